"""Operators, trigger and hook against a stand-in of the API, and the command-line operator against
programs that end in every way `polder` may."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from api import TOKEN, Api, serving
from polder_airflow.cli import PolderCliOperator
from polder_airflow.hook import PolderHook, PolderRefused, PolderUnavailable
from polder_airflow.kubernetes import PolderPodOperator
from polder_airflow.links import PolderRunLink
from polder_airflow.operators import (
    PolderMaintainOperator,
    PolderOperator,
    PolderRunOperator,
    PolderValidateOperator,
)
from polder_airflow.provider import get_provider_info
from polder_airflow.trigger import OperationTrigger
from polder_airflow.work import Step, Work


@pytest.fixture
def api(monkeypatch):
    api = Api()
    with serving(api) as (host, port):
        address = f"{host}:{port}"
        for name, key in {"DEFAULT": TOKEN, "WRONG": "other", "CLIENT": "acme:a-secret", "NONE": ""}.items():
            key = f":{key.replace(':', '%3A')}@" if key else ""
            monkeypatch.setenv(f"AIRFLOW_CONN_POLDER_{name}", f"polder://{key}{address}")
        yield api


def context(attempt=1, index=-1):
    ti = SimpleNamespace(
        dag_id="polder_401_ingest", run_id="manual", task_id="ingest", map_index=index,
        try_number=attempt,
    )
    return {"ti": ti}


def step(kind=PolderOperator, **options):
    return kind(task_id="ingest", org="401", table="op/portunity", **options)


@pytest.mark.parametrize(
    "kind, path",
    [
        (PolderRunOperator, "/v1/orgs/401/runs"),
        (PolderValidateOperator, "/v1/orgs/401/validations"),
        (PolderMaintainOperator, "/v1/orgs/401/maintenance"),
    ],
)
def test_a_step_starts_the_work_and_waits_in_the_triggerer(api, kind, path):
    with pytest.raises(TaskDeferred) as deferred:
        step(kind, poll_seconds=0.01).execute(context())
    assert api.started == [(path, {"tables": ["op/portunity"]})]
    assert deferred.value.method_name == "finish"
    # Another process makes the trigger anew.
    name, kwargs = deferred.value.trigger.serialize()
    assert name == f"{OperationTrigger.__module__}.OperationTrigger"
    event = asyncio.run(anext(OperationTrigger(**kwargs).run())).payload
    assert (event["id"], event["status"]) == ("op-0", "succeeded")
    assert [run["status"] for run in event["document"]["runs"]] == ["succeeded"]
    assert api.asked == 3
    assert step(kind).finish(context(), event)["status"] == "succeeded"


def test_a_step_may_wait_itself_and_a_request_that_is_repeated_starts_nothing_twice(api):
    waiting = step(deferrable=False, poll_seconds=0.01)
    assert waiting.execute(context())["id"] == "op-0"
    waiting.execute(context())
    assert len(api.started) == 1
    waiting.execute(context(attempt=2))
    waiting.execute(context(index=1))
    assert len(api.started) == 3
    waiting.on_kill()
    assert api.cancelled == ["/v1/orgs/401/runs/run-of-op-2/cancel"]


@pytest.mark.parametrize(
    "status, error, raised",
    [
        ("failed", {"message": "no answer", "retryable": True}, AirflowException),
        ("failed", {"message": "no such column", "hint": "look", "retryable": False}, AirflowFailException),
        ("failed", None, AirflowException),
        ("cancelled", None, AirflowFailException),
    ],
)
def test_an_end_that_is_no_success_fails_the_step(api, status, error, raised):
    api.states, api.error = [status], error
    with pytest.raises(AirflowException) as failed:
        step(deferrable=False).execute(context())
    assert type(failed.value) is raised
    assert all(str(error[part]) in str(failed.value) for part in ("message", "hint") if part in (error or {}))


def linked(made) -> str:
    [link] = made.operator_extra_links
    assert isinstance(link, PolderRunLink)
    return link.get_link(made, ti_key=None)


def test_a_step_links_to_its_run_however_it_ended(api):
    server = os.environ["AIRFLOW_CONN_POLDER_DEFAULT"].rpartition("@")[2]
    made = step(deferrable=False, poll_seconds=0.01)
    assert linked(made) == ""
    made.execute(context())
    assert linked(made) == f"http://{server}/v1/orgs/401/runs/run-of-op-0"
    api.states, api.error = ["failed"], {"message": "no answer", "retryable": True}
    made = step(deferrable=False)
    with pytest.raises(AirflowException):
        made.execute(context(attempt=2))
    assert linked(made) == f"http://{server}/v1/orgs/401/runs/run-of-op-1"
    # The worker that finishes a deferred step is another one, and the key is in no address.
    made = step()
    made.finish(context(), {"id": "op-1", "status": "succeeded", "document": {"runs": [{"id": "r/1"}]}})
    assert linked(made) == f"http://{server}/v1/orgs/401/runs/r%2F1" and TOKEN not in linked(made)
    made.finish(context(), {"id": "op-1", "status": "succeeded", "document": {"runs": [{}]}})


def named(tables) -> list[tuple[str, str]]:
    return [(table.namespace, table.name) for table in tables]


@pytest.mark.parametrize("kind", [PolderOperator, PolderCliOperator])
def test_openlineage_is_told_what_a_step_reads_and_writes(kind):
    source, lake = ("polder://sources/revdb", "401.op/portunity"), ("polder://lake", "org_401.op/portunity")
    expected = {
        "ingest": ([source], [lake]), "validate": ([source, lake], []), "maintain": ([lake], [lake]),
    }
    for work, (inputs, outputs) in expected.items():
        made = step(kind, work=work, sources={"op/portunity": "revdb", "other": "files"})
        facets = made.get_openlineage_facets_on_complete(None)
        assert (named(facets.inputs), named(facets.outputs)) == (inputs, outputs), work
    unknown = step(kind).get_openlineage_facets_on_complete(None)
    assert (named(unknown.inputs), named(unknown.outputs)) == ([], [lake])


def test_without_openlineage_a_step_says_nothing(monkeypatch):
    # As where it is not installed: a None in there fails the import.
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    assert step(sources={"op/portunity": "revdb"}).get_openlineage_facets_on_complete(None) is None


def test_what_the_server_refuses_is_not_tried_again_and_what_it_cannot_now_is(api):
    api.refuse = [(422, {"title": "no table", "detail": "x", "hint": "there is: y"})]
    with pytest.raises(AirflowFailException, match="no table: x: there is: y"):
        step().execute(context())
    api.refuse = [(503, {})]
    with pytest.raises(PolderUnavailable, match="503"):
        step().execute(context())
    with pytest.raises(AirflowFailException, match="no key: polder keys create"):
        step(conn_id="polder_wrong").execute(context())
    assert api.started == []


def test_a_trigger_outlasts_a_server_that_is_away_for_a_moment(api, monkeypatch):
    api.refuse = [(503, {}), (502, {})]
    trigger = OperationTrigger("polder_default", "op-7", 0.01)
    assert asyncio.run(anext(trigger.run())).payload["status"] == "succeeded"
    api.refuse = [(404, {"title": "no such operation"})]
    assert "no such operation" in asyncio.run(anext(trigger.run())).payload["error"]
    monkeypatch.setattr("polder_airflow.trigger._AWAY_SECONDS_MAX", 0.02)
    api.refuse = [(503, {})] * 1000
    event = asyncio.run(anext(trigger.run())).payload
    assert "503" in event["error"]
    with pytest.raises(AirflowException, match="503"):
        step().finish(context(), event)


def test_a_clients_secret_gets_a_token(api):
    hook = PolderHook("polder_client")
    id = hook.start(Step(Work.INGEST, "401", "t"), "once")
    assert hook.operation(id).status == "queued"

    async def watched():
        async with hook.watching() as watch:
            return await watch.operation(id)

    assert asyncio.run(watched()).status == "running"


def test_no_server_is_said_to_be_none(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_POLDER_DEFAULT", "polder://127.0.0.1:9")
    with pytest.raises(PolderUnavailable, match="no answer from http://127.0.0.1:9"):
        PolderHook().operation("x")
    worked, said = PolderHook().test_connection()
    assert not worked and "no answer from http://127.0.0.1:9" in said


def test_a_connection_needs_a_host(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_POLDER_DEFAULT", "polder://")
    with pytest.raises(PolderRefused, match="names no host"):
        PolderHook().operation("x")


def program(tmp_path, text):
    path = tmp_path / "polder"
    path.write_text(f"#!{sys.executable}\nimport json, os, signal, sys, time\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_binary_is_run_in_its_project_and_its_reports_are_shortened(tmp_path):
    report = {"org": "401", "table": "t", "rows_written": 3, "checkpoint": {"a": 1}}
    binary = program(
        tmp_path,
        f"runs = [dict(state='succeeded', report={report!r})]\n"
        "open('seen', 'w').write(json.dumps([sys.argv[1:], os.environ['REVDB_URL']]))\n"
        "print(json.dumps(dict(tables=1, runs=runs)))",
    )
    project = tmp_path / "project"
    project.mkdir()
    made = PolderCliOperator(
        task_id="ingest", org="401", table="--x", project=str(project), binary=binary,
        env={"REVDB_URL": "postgres://"},
    )
    expected = {"state": "succeeded", "org": "401", "table": "t", "rows_written": 3}
    assert made.execute({}) == [expected]
    seen = json.loads((project / "seen").read_text())
    assert seen == [["run", "--org=401", "--table=--x", "--json"], "postgres://"]


@pytest.mark.parametrize(
    "code, retryable, raised",
    [
        (75, None, AirflowException), (130, None, AirflowException), (1, True, AirflowException),
        (1, False, AirflowFailException), (2, None, AirflowFailException), (4, False, AirflowFailException),
        (-9, None, AirflowException),
    ],
)
def test_the_exit_code_says_whether_to_try_again(tmp_path, code, retryable, raised):
    error = {"message": "it went wrong", "retryable": retryable}
    document = {"runs": [{"state": "failed", "error": error}]} if retryable is not None else None
    end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
    said, where = (f"json.dumps({document!r})", "stdout") if document else ("'said'", "stderr")
    text = f"print({said}, file=sys.{where}, flush=True)"
    binary = program(tmp_path, f"{text}\n{end}")
    with pytest.raises(AirflowException) as failed:
        step(PolderCliOperator, binary=binary).execute({})
    assert type(failed.value) is raised
    assert ("it went wrong" if document else "said") in str(failed.value)


def test_a_binary_that_is_not_there_is_not_tried_again(tmp_path):
    with pytest.raises(AirflowFailException, match="cannot be started"):
        step(PolderCliOperator, binary=str(tmp_path / "none")).execute({})


def test_a_killed_step_asks_the_binary_to_stop(tmp_path):
    binary = program(
        tmp_path,
        "def stop(*_):\n    open('stopped', 'w').close()\n    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\nopen('started', 'w').close()\ntime.sleep(60)",
    )
    made = step(PolderCliOperator, binary=binary, project=str(tmp_path))

    def kill():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        made.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AirflowException, match=f"exited with {128 + signal.SIGINT}"):
        made.execute({})
    killer.join()
    assert (tmp_path / "stopped").exists()


KUBE_CONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


@pytest.mark.parametrize("work, command", [("ingest", ["run"]), ("maintain", ["maintain", "all"])])
def test_a_pod_runs_the_same_command(monkeypatch, tmp_path, work, command):
    asked = []
    record = lambda self, _: asked.append(self.build_pod_request_obj({}))  # noqa: E731
    monkeypatch.setattr(KubernetesPodOperator, "execute", record)
    (tmp_path / "config").write_text(KUBE_CONFIG)
    made = step(
        PolderPodOperator, work=work, image="polder:1", name="polder", namespace="lake",
        config="/etc/polder/polder.toml", config_file=str(tmp_path / "config"), in_cluster=False,
    )
    made.execute({})
    container = asked[0].spec.containers[0]
    assert (container.image, container.command) == ("polder:1", ["polder"])
    arguments = [*command, "--org=401", "--table=op/portunity", "--json"]
    assert container.args == [*arguments, "--config=/etc/polder/polder.toml"]
    assert asked[0].metadata.labels["app.kubernetes.io/name"] == "polder"


def test_the_provider_says_what_it_has():
    import importlib

    info = get_provider_info()
    for part in ("operators", "hooks", "triggers"):
        for module in info[part][0]["python-modules"]:
            importlib.import_module(module)
    for link in info["extra-links"]:
        module, _, name = link.rpartition(".")
        assert getattr(importlib.import_module(module), name) is PolderRunLink
    connection = info["connection-types"][0]
    assert connection["connection-type"] == PolderHook.conn_type
    behaviour = PolderHook.get_ui_field_behaviour()
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
