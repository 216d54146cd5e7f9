"""From a manifest to DAGs: what is made, what one broken org costs, how long thousands take."""

import json
import os
import time

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from polder_airflow import dags
from polder_airflow import manifest as manifests
from polder_airflow.__main__ import main
from polder_airflow.manifest import ManifestError

WORKS = ["ingest", "validate", "maintain"]


def org(id, *tables, **more):
    return {"id": id, "tables": [{"name": name} for name in tables]} | more


def write(path, *orgs, **more):
    document = {"format": 1, "hash": "sha256:1", "limits": {"runs": 2}, "orgs": list(orgs)} | more
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def manifest(tmp_path):
    return tmp_path / "manifest.json"


@pytest.fixture
def parse_for(monkeypatch):
    """Makes Airflow parse for one DAG, as a worker does."""
    return lambda id: monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", id)


def made(manifest, **options) -> dict[str, DAG]:
    namespace = {"kept": 1}
    dags(namespace, manifest=manifest, **options)
    assert namespace.pop("kept") == 1
    return namespace


def test_each_org_has_a_dag_for_each_work_and_a_mapped_step_for_each_table(manifest):
    write(manifest, org("401", "opportunity", "email", name="Acme"), org("402", "email"), org("403"))
    found = made(manifest, retries=4)
    assert set(found) == {f"polder_{id}_{work}" for id in ["401", "402"] for work in WORKS}
    for id, dag in found.items():
        assert dag.dag_id == id and len(dag.tasks) == 1
        assert (dag.catchup, dag.max_active_runs, dag.max_active_tasks) == (False, 1, 2)
        step = DagSerialization.to_dict(dag)["dag"]["tasks"][0]["__var"]
        assert step["_is_mapped"] and step["partial_kwargs"]["retries"] == 4
    ingest = found["polder_401_ingest"]
    step = ingest.tasks[0]
    assert step.operator_class.__name__ == "PolderOperator"
    assert step.expand_input.value == {"table": ["opportunity", "email"]}
    assert step.partial_kwargs["org"] == "401" and step.partial_kwargs["work"] == "ingest"
    assert ingest.dag_display_name == "Acme: ingest" and "org:401" in ingest.tags


def test_what_the_manifest_says_of_an_org_comes_before_what_the_file_says(manifest):
    schedules = {"ingest": "5 4 * * *", "maintain": None}
    write(manifest, org("a", "t", schedules=schedules, retries=7, runs=9), org("b", "t"))
    found = made(manifest, schedules={"validate": "external", "ingest": "7 * * * *"}, retries=1)
    cron = {id: getattr(dag.timetable, "expression", None) for id, dag in found.items()}
    assert cron["polder_a_ingest"] == "5 4 * * *" and cron["polder_b_ingest"] == "7 * * * *"
    assert cron["polder_a_validate"] is None and cron["polder_a_maintain"] is None
    assert cron["polder_b_maintain"] is not None
    assert [found[f"polder_{id}_ingest"].max_active_tasks for id in "ab"] == [9, 2]
    retries = [found[f"polder_{id}_ingest"].tasks[0].partial_kwargs["retries"] for id in "ab"]
    assert retries == [7, 1]


CRON = {"ingest": "5 4 * * *", "maintain": "@daily", "timezone": "Europe/Amsterdam"}


def when(dag: DAG) -> tuple[str, str] | None:
    expression = getattr(dag.timetable, "expression", None)
    return expression and (expression, str(dag.timetable.timezone))


@pytest.mark.parametrize("run_with, clock", [("api", None), ("cli", None), ("api", "airflow"), ("cli", "polder")])
def test_one_clock_winds_each_org(manifest, run_with, clock):
    external = {"ingest": "external", "timezone": "Europe/Amsterdam"}
    over = {"ingest": "1 1 * * *"}
    write(
        manifest, org("timed", "t", schedule=CRON), org("handed", "t", schedule=external),
        org("silent", "t"), org("over", "t", schedule=CRON, schedules=over),
    )
    given = {"ingest": "7 * * * *", "validate": "8 * * * *", "maintain": "9 * * * *"}
    found = made(manifest, run_with=run_with, clock=clock, schedules=given, spread=False)
    times = {id.removeprefix("polder_"): when(dag) for id, dag in found.items()}
    for id in ["handed", "silent"]:
        assert [times[f"{id}_{work}"] for work in WORKS] == [(given[work], "UTC") for work in WORKS]
    here = clock == "airflow" or (run_with, clock) == ("cli", None)
    assert times["timed_ingest"] == (("5 4 * * *", "Europe/Amsterdam") if here else None)
    assert times["timed_maintain"] == (("0 0 * * *", "Europe/Amsterdam") if here else None)
    assert times["timed_validate"] == ("8 * * * *", "UTC"), "of which the configuration says nothing"
    assert times["over_ingest"] == ("1 1 * * *", "UTC")


def test_an_orgs_limits_bound_its_dags_and_pools(manifest, capsys):
    write(
        manifest, org("a", "t", limits={"runs": 6, "weight": 2}), org("b", "t", limits={"runs": None}),
        org("c", "t", limits={"runs": 6}, runs=1),
    )
    found = made(manifest)
    assert [found[f"polder_{id}_ingest"].max_active_tasks for id in "abc"] == [6, 2, 1]
    assert main(["pools", str(manifest)]) == 0
    pools = json.loads(capsys.readouterr().out)
    assert [pools[f"polder_{id}"]["slots"] for id in "abc"] == [6, 2, 1]


def test_steps_know_their_sources_for_openlineage(manifest):
    tables = [{"name": "t", "source": "revdb", "mode": "append"}, {"name": "u", "source": "files"}]
    write(manifest, {"id": "401", "tables": tables})
    for run_with in ["api", "cli"]:
        dag = made(manifest, run_with=run_with)["polder_401_ingest"]
        assert dag.tasks[0].partial_kwargs["sources"] == {"t": "revdb", "u": "files"}
        steps = made(manifest, run_with=run_with, steps="explicit")["polder_401_ingest"].tasks
        assert [step.sources[step.table] for step in steps] == ["revdb", "files"]
    options = {"image": "polder:1", "namespace": "lake", "name": "polder"}
    assert made(manifest, run_with="pod", options=options)


def test_presets_start_at_a_time_of_each_orgs_own(manifest):
    write(manifest, *(org(str(id), "t") for id in range(300)))
    found = made(manifest, schedules={"maintain": "@weekly"})
    for work, least in [("ingest", 50), ("validate", 150), ("maintain", 150)]:
        times = {found[f"polder_{id}_{work}"].timetable.expression for id in range(300)}
        assert len(times) >= least, work
    again = made(manifest, schedules={"maintain": "@weekly"})
    for id in found:
        assert found[id].timetable.expression == again[id].timetable.expression
    at_once = made(manifest, spread=False)
    assert {at_once[f"polder_{id}_ingest"].timetable.expression for id in range(300)} == {"0 * * * *"}


def test_explicit_steps_have_ids_that_airflow_takes(manifest):
    names = ["opportunity", "o p", "o/p", "naïve", "x" * 255]
    write(manifest, org("401", *names))
    found = made(manifest, steps="explicit", works=("ingest",), pools=True)["polder_401_ingest"]
    assert {step.table for step in found.tasks} == set(names)
    ids = {step.task_id for step in found.tasks}
    assert {"ingest_opportunity", "ingest_o_p", "ingest_o_p_2", "ingest_na_ve"} < ids
    assert {step.pool for step in found.tasks} == {"polder_401"}


@pytest.mark.parametrize("run_with", ["api", "cli", "pod"])
def test_options_reach_the_operator(manifest, run_with):
    options = {
        "api": {"conn_id": "lake"},
        "cli": {"project": "/srv/polder"},
        "pod": {"image": "polder:1", "namespace": "lake", "name": "polder"},
    }[run_with]
    write(manifest, org("401", "t"))
    found = made(manifest, run_with=run_with, options=options)
    for dag in found.values():
        assert options.items() <= dag.tasks[0].partial_kwargs.items()
        DagSerialization.to_dict(dag)


def test_airflow_parses_for_one_dag_and_gets_that_one(manifest, parse_for, monkeypatch):
    write(manifest, org("401", "t"), org("4_0-1", "t"), org("401_ingest", "t"), org("bad", "t", "t"))
    for id in ["polder_401_ingest", "polder_4_0-1_maintain", "polder_401_ingest_validate"]:
        parse_for(id)
        assert list(made(manifest)) == [id]
    parse_for("polder_bad_broken")
    assert list(made(manifest)) == ["polder_bad_broken"]
    for id in ["polder_402_ingest", "polder_401_other", "other", "polder_ingest", "polder_bad_ingest"]:
        parse_for(id)
        assert made(manifest) == {}
    # The others are not looked at.
    looked = []
    monkeypatch.setattr(manifests, "_checked", lambda id, entry: looked.append(id) or 1 / 0)
    parse_for("polder_401_ingest")
    with pytest.raises(ZeroDivisionError):
        made(manifest)
    assert looked == ["401"]


BROKEN = {
    "no tables": {"id": "x"},
    "tables are no list": {"id": "x", "tables": "t"},
    "a table without a name": {"id": "x", "tables": [{}]},
    "a table twice": org("x", "t", "t"),
    "no cron expression": org("x", "t", schedules={"ingest": "every day"}),
    "unknown work": org("x", "t", schedules={"erase": "@daily"}),
    "retries are no number": org("x", "t", retries="many"),
    "a schedule that is none": org("x", "t", schedule="@daily"),
    "a schedule of numbers": org("x", "t", schedule={"ingest": 5}),
    "a cron text that Airflow has not": org("x", "t", schedules={"ingest": "0 0 * * * *"}),
    "limits are none": org("x", "t", limits=3),
    "a limit that is no number": org("x", "t", limits={"runs": "all"}),
    "an id that names no org": org("../x", "t"),
    "no object": ["x"],
    "nothing": None,
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("steps", ["mapped", "explicit"])
def test_a_broken_org_leaves_the_others_as_they_are(manifest, entry, steps):
    write(manifest, org("401", "t"), org("402", "t"))
    alone = made(manifest, steps=steps)
    write(manifest, org("401", "t"), entry, org("402", "t"))
    found = made(manifest, steps=steps)
    notes = [id for id in found if id.endswith("_broken")]
    assert len(notes) == 1 and set(found) - set(notes) == set(alone)
    for id, dag in alone.items():
        assert DagSerialization.to_dict(dag) == DagSerialization.to_dict(found[id])
    note = found[notes[0]]
    assert note.schedule is None and "This org has no DAGs" in note.doc_md
    with pytest.raises(Exception, match="of the manifest"):
        note.tasks[0].execute({})


@pytest.mark.parametrize("schedule", [CRON | {"timezone": "Europe/Atlantis"}, CRON | {"ingest": "now and then"}])
def test_a_time_that_is_none_breaks_its_org_alone(manifest, schedule):
    write(manifest, org("401", "t", schedule=schedule), org("402", "t"))
    found = made(manifest, clock="airflow")
    assert {id for id in found if "401" in id} == {"polder_401_broken"} and len(found) == 4


def test_an_org_that_stands_twice_has_no_dags(manifest):
    write(manifest, org("401", "t"), org("402", "t"), org("401", "u"))
    found = made(manifest)
    assert {id for id in found if "401" in id} == {"polder_401_broken"}
    assert len(found) == 4


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format":2,"orgs":[]}', '{"format":1}', '{"orgs":[]}', None]
)
def test_a_manifest_that_cannot_be_read_is_the_files_import_error(manifest, text, tmp_path):
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(ManifestError, match=str(manifest)):
        made(manifest)
    file = tmp_path / "dags/polder.py"
    file.parent.mkdir()
    file.write_text(f"from polder_airflow import dags\n\ndags(globals(), manifest={str(manifest)!r})\n")
    bag = DagBag(dag_folder=str(file))
    assert bag.dags == {} and str(manifest) in next(iter(bag.import_errors.values()))


def test_unknown_options_are_refused(manifest):
    write(manifest, org("401", "t"))
    for wrong in [
        {"steps": "grouped"}, {"run_with": "ssh"}, {"works": ("erase",)},
        {"schedules": {"erase": None}}, {"clock": "mine"},
    ]:
        with pytest.raises(ValueError):
            made(manifest, **wrong)


def test_a_file_is_parsed_again_when_it_is_another(manifest, monkeypatch):
    parsed = []
    parse = manifests._parse
    monkeypatch.setattr(manifests, "_parse", lambda *args: parsed.append(1) or parse(*args))
    write(manifest, org("401", "t"))
    assert len(made(manifest)) == len(made(manifest)) == 3
    assert len(parsed) == 1
    # As `polder manifest` writes: another file under the same name, be it of the same size and time.
    before = manifest.stat()
    other = write(manifest.with_suffix(".new"), org("402", "t"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(manifest)
    assert "polder_402_ingest" in made(manifest) and len(parsed) == 2


def test_pools_are_the_orgs_limits(manifest, capsys):
    write(manifest, org("401", "t"), org("402", "t", runs=5), org("bad", "t", "t"))
    assert main(["pools", str(manifest)]) == 0
    pools = json.loads(capsys.readouterr().out)
    assert {name: pool["slots"] for name, pool in pools.items()} == {"polder_401": 2, "polder_402": 5}
    assert main(["pools", str(manifest) + ".none"]) == 2
    assert "polder manifest --out" in capsys.readouterr().err


def test_thousands_of_orgs_are_parsed_in_seconds(manifest, tmp_path, parse_for):
    """Processor time, which a busy machine does not lengthen much."""
    tables = [f"table_{number}" for number in range(20)]
    write(manifest, *(org(str(id), *tables) for id in range(5000)))
    file = tmp_path / "polder.py"
    file.write_text(f"from polder_airflow import dags\n\ndags(globals(), manifest={str(manifest)!r})\n")
    begin = time.process_time()
    bag = DagBag(dag_folder=str(file))
    all_seconds = time.process_time() - begin
    assert (len(bag.dags), bag.import_errors) == (15_000, {})
    manifests._cache.clear()
    parse_for("polder_4321_ingest")
    begin = time.process_time()
    bag = DagBag(dag_folder=str(file))
    one_seconds = time.process_time() - begin
    assert list(bag.dags) == ["polder_4321_ingest"]
    print(f"5,000 orgs: {all_seconds:.1f} s; one DAG: {one_seconds:.3f} s")
    assert all_seconds <= 15 and one_seconds <= 0.5


