"""A real Airflow over a real lake: DAGs from the manifest that `polder manifest` writes, run by `airflow
dags test` with the binary, the rows read back by PyIceberg; DAGs come and go as the configuration does, and
with an org that leaves for good."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from lakes import ROOT, Lake
from ports import free_port

from test_rest_catalog import CLIENTS, SECRET, serving

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.exports]
type = "files"
url = "./exports"
"""
FORECAST = '{ name: forecast, source: exports, from: "{org}/forecast/*.csv", mode: append }'
QUOTA = '{ name: quota, source: exports, from: "{org}/quota/*.csv" }'
FILE = """
from polder_airflow import dags

options = {{"project": {project!r}, "binary": {binary!r}}}
dags(globals(), manifest={manifest!r}, run_with="cli", options=options)
dags(globals(), manifest={manifest!r}, run_with="cli", options=options, steps="explicit", prefix="steps")
"""


class Airflow:
    """An Airflow with a database of its own and the provider as it is in the checkout."""

    def __init__(self, work: Path):
        self.python = os.environ["POLDER_AIRFLOW"]
        self.dags = work / "dags"
        self.dags.mkdir()
        self.packages = work / "packages"
        self._install("airflow-provider-polder", "polder-lake")
        self.env = {
            "AIRFLOW_HOME": str(work / "home"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "PYTHONPATH": str(self.packages),
        }
        self("db", "migrate")

    def _install(self, *names: str) -> None:
        """Builds the packages as their users get them."""
        self._pip("wheel", "-w", str(self.packages), *(str(ROOT / "python" / name) for name in names))
        self.wheels = {path.name.split("-")[0]: path for path in self.packages.glob("*.whl")}
        provider = self.wheels["airflow_provider_polder"]
        self._pip("install", "--target", str(self.packages), str(provider))

    def _pip(self, verb: str, *arguments: str) -> None:
        quiet = ["--quiet", "--no-deps", "--disable-pip-version-check"]
        quiet += ["--no-build-isolation"] if verb == "wheel" else ["--no-index"]
        subprocess.run([self.python, "-m", "pip", verb, *quiet, *arguments], check=True)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        command = [str(Path(self.python).with_name("airflow")), *arguments]
        env = os.environ | self.env | env
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)

    def __call__(self, *arguments: str, **env: str) -> str:
        """Runs a command that has to succeed; its output."""
        done = self.run(*arguments, **env)
        assert done.returncode == 0, f"airflow {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def listed(self) -> dict[str, list[str]]:
        """The DAGs that the files make, with the ids of their tasks."""
        code = (
            "import json; from airflow.dag_processing.dagbag import DagBag;"
            f"bag = DagBag(dag_folder={str(self.dags)!r}); assert not bag.import_errors, bag.import_errors;"
            "print('DAGS', json.dumps({id: d.task_ids for id, d in bag.dags.items()}))"
        )
        return json.loads(self.ask(code).rpartition("DAGS ")[2])

    def ask(self, code: str, **env: str) -> str:
        """What a program prints in Airflow's environment."""
        env = os.environ | self.env | env
        done = subprocess.run([self.python, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


    @contextmanager
    def serving(self, password: str):
        """Its API server, to which user `eve` signs in; gives its address."""
        home = Path(self.env["AIRFLOW_HOME"])
        (home / "passwords.json").write_text(json.dumps({"eve": password}))
        port = free_port()
        env = os.environ | self.env | {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "eve:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        }
        command = [str(Path(self.python).with_name("airflow")), "api-server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = home / "api-server.log"
        with log.open("w") as output:
            server = subprocess.Popen(
                command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 300
            while not answers(f"http://127.0.0.1:{port}/api/v2/version"):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)

    def rows(self, *dags: str) -> dict[str, int]:
        """How many rows of DAGs the tables of its database have, the audit log's left out."""
        counts = {}
        with closing(sqlite3.connect(Path(self.env["AIRFLOW_HOME"]) / "airflow.db")) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                columns = {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}
                if "dag_id" in columns and table != "log":
                    asked = f'SELECT count(*) FROM "{table}" WHERE dag_id IN ({", ".join("?" * len(dags))})'
                    counts[table] = database.execute(asked, dags).fetchone()[0]
        return counts


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def airflow(tmp_path_factory) -> Airflow:
    return Airflow(tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="module")
def lake(services, airflow, tmp_path_factory) -> Lake:
    lake = Lake(services, tmp_path_factory.mktemp("project"), {})
    (lake.work / "polder.toml").write_text(CONFIG)
    (lake.work / "pipelines").mkdir()
    for org, rows in [("401", "id,amount\n1,10.5\n2,0.25\n"), ("402", "id,amount\n9,1\n")]:
        for table in ["forecast", "quota"]:
            folder = lake.work / "exports" / org / table
            folder.mkdir(parents=True)
            (folder / "1.csv").write_text(rows)
    told = {"project": str(lake.work), "binary": services.polder, "manifest": str(manifest(lake))}
    (airflow.dags / "polder.py").write_text(FILE.format(**told))
    return lake


def manifest(lake: Lake) -> Path:
    return lake.work / "manifest.json"


def configure(lake: Lake, orgs: list[str], *tables: str) -> None:
    """Writes the pipelines and compiles the manifest."""
    lines = ["templates:", "  crm:", "    tables:", *(f"      - {table}" for table in tables)]
    lines += ["orgs:", *(f'  - {{ id: "{org}", template: crm }}' for org in orgs)]
    (lake.work / "pipelines/crm.yaml").write_text("\n".join(lines) + "\n")
    lake.polder("manifest", "--out", str(manifest(lake)), "--json")


def rows(lake: Lake, org: str, table: str) -> list[int]:
    return sorted(lake.read_with_pyiceberg(org, table, "id")["id"].to_pylist())


def test_the_packages_are_whole(airflow):
    for package, module in [("airflow_provider_polder", "polder_airflow"), ("polder_lake", "polder")]:
        names = zipfile.ZipFile(airflow.wheels[package]).namelist()
        assert {f"{module}/py.typed", f"{module}/__init__.py"} < set(names)
        assert not [name for name in names if "test" in name]
    asked = (
        "from airflow.providers_manager import ProvidersManager as M;"
        "print('FOUND', 'airflow-provider-polder' in M().providers, M().hooks['polder'].hook_name)"
    )
    assert "FOUND True Polder" in airflow.ask(asked)


def test_an_orgs_dag_runs_green_and_the_rows_are_there(airflow, lake):
    configure(lake, ["401", "402"], FORECAST)
    works = ["ingest", "validate", "maintain"]
    expected = {f"polder_{org}_{work}": [work] for org in ["401", "402"] for work in works}
    expected |= {f"steps_{org}_{w}": [f"{w}_forecast"] for org in ["401", "402"] for w in works}
    assert airflow.listed() == expected
    airflow("dags", "test", "polder_401_ingest")
    assert rows(lake, "401", "forecast") == [1, 2]
    # The other org was not touched.
    assert set(lake.tables()) == {("401", "forecast")}


def test_a_table_that_is_added_appears_and_an_org_that_goes_takes_its_dags_along(airflow, lake):
    configure(lake, ["401", "402"], FORECAST, QUOTA)
    assert airflow.listed()["steps_401_ingest"] == ["ingest_forecast", "ingest_quota"]
    (lake.work / "exports/401/forecast/2.csv").write_text("id,amount\n3,1.5\n")
    airflow("dags", "test", "polder_401_ingest")
    assert (rows(lake, "401", "quota"), rows(lake, "401", "forecast")) == ([1, 2], [1, 2, 3])
    airflow("dags", "test", "steps_402_ingest")
    assert rows(lake, "402", "quota") == [9]

    # Airflow's own record of them follows.
    airflow("dags", "reserialize")
    listed = airflow("dags", "list", "-o", "json")
    known = {dag["dag_id"] for dag in json.loads(listed[listed.index("[{") :])}
    assert known == set(airflow.listed())
    configure(lake, ["401"], FORECAST, QUOTA)
    assert {id.split("_")[1] for id in airflow.listed()} == {"401"}
    # A configuration that is wrong leaves the manifest, and so the DAGs, as they were.
    (lake.work / "pipelines/crm.yaml").write_text("orgs: [{ id: '401', template: none }]\n")
    assert lake.run("manifest", "--out", str(manifest(lake))).returncode == 2
    assert "polder_401_ingest" in airflow.listed()


def test_a_run_that_fails_fails_the_dag_and_says_why(airflow, lake):
    configure(lake, ["401"], FORECAST)
    before = rows(lake, "401", "forecast")
    bad = lake.work / "exports/401/forecast/3.csv"
    bad.write_text("id,amount\n4\n")
    done = airflow.run("dags", "test", "polder_401_ingest")
    bad.unlink()
    said = done.stdout + done.stderr
    assert "forecast/3.csv" in said and "state=failed" in said, said
    assert rows(lake, "401", "forecast") == before


def test_the_connections_test_button_asks_a_real_server(airflow, services, tmp_path):
    (tmp_path / "polder.toml").write_text(CONFIG + CLIENTS)
    secrets = {"OPERATOR_SECRET": SECRET, "CRM_SECRET": SECRET[::-1]}
    with serving(services.polder, tmp_path, secrets) as uri:
        address = uri.removeprefix("http://").removesuffix("/iceberg")
        host, port = address.split(":")
        keys = {"A": f"crm:{SECRET[::-1]}", "B": "crm:wrong", "C": "rubbish"}
        env = {}
        for name, key in keys.items():
            uri = {"conn_type": "polder", "host": host, "port": int(port), "password": key}
            env[f"AIRFLOW_CONN_POLDER_{name}"] = json.dumps(uri)
        said = airflow.ask(
            "from polder_airflow.hook import PolderHook;"
            "print('SAID', [PolderHook(f'polder_{c}').test_connection()[0] for c in 'abc'])",
            **env,
        )
        assert "SAID [True, False, False]" in said


def test_a_deferred_step_runs_through_the_api(airflow):
    """A DAG of API steps in a real Airflow: it defers, the trigger fires, the step ends."""
    sys.path.insert(0, str(ROOT / "python/airflow-provider-polder/tests"))
    from api import TOKEN, Api, serving as stand_in

    path = airflow.dags.parent / "api.json"
    tables = [{"name": name} for name in ("opportunity", "email")]
    path.write_text(json.dumps({"format": 1, "hash": "x", "orgs": [{"id": "a1", "tables": tables}]}))
    text = f"from polder_airflow import dags\n\ndags(globals(), manifest={str(path)!r}, prefix='api')\n"
    (airflow.dags / "api.py").write_text(text.replace("prefix", "options={'poll_seconds': 0.1}, prefix"))
    api = Api()
    with stand_in(api) as (host, port):
        connection = json.dumps({"conn_type": "polder", "host": host, "port": port, "password": TOKEN})
        said = airflow("dags", "test", "api_a1_validate", AIRFLOW_CONN_POLDER_DEFAULT=connection)
    expected = [("/v1/orgs/a1/validations", {"tables": [name]}) for name in ("email", "opportunity")]
    assert sorted(api.started, key=str) == expected, said
    assert api.asked >= 4
    # Airflow keeps each step's link to its run.
    with closing(sqlite3.connect(Path(airflow.env["AIRFLOW_HOME"]) / "airflow.db")) as database:
        asked = "SELECT value FROM xcom WHERE dag_id = 'api_a1_validate' AND key = '_link_PolderRunLink'"
        links = [str(value) for (value,) in database.execute(asked)]
    assert len(links) == 2 and all("/v1/orgs/a1/runs/run-of-op-" in link for link in links), links
    (airflow.dags / "api.py").unlink()


AIRFLOW = """
[airflow]
url = "{url}"
username = "eve"
password = "env:AIRFLOW_PASSWORD"
private = true
"""


def test_an_org_that_leaves_takes_its_dags_and_their_history_along(airflow, lake):
    """Nothing of it is in Airflow's database but the audit log's names, and no value anywhere below its home."""
    canary = f"canary{uuid.uuid4().hex}"
    for org, word in [("405", canary), ("406", "plain")]:
        folder = lake.work / "exports" / org / "forecast"
        folder.mkdir(parents=True)
        (folder / "1.csv").write_text(f"id,word\n1,{word}\n2,{word}\n")
    configure(lake, ["405", "406"], FORECAST)
    airflow("dags", "reserialize")
    for org in ["405", "406"]:
        airflow("dags", "test", f"polder_{org}_ingest")
    # A run that fails over the org's values has a history too.
    bad = lake.work / "exports/405/forecast/2.csv"
    bad.write_text(f"id,word\n{canary}\n")
    airflow.run("dags", "test", "polder_405_ingest")

    works = ["ingest", "validate", "maintain"]
    leaving = [f"{prefix}_405_{work}" for prefix in ["polder", "steps"] for work in works]
    staying = [id.replace("405", "406") for id in leaving]
    before = airflow.rows(*leaving)
    assert min(before[table] for table in ["dag", "dag_tag", "dag_run", "task_instance"]) > 0, before
    others = airflow.rows(*staying)
    password = uuid.uuid4().hex
    config = lake.work / "polder.toml"
    config.write_text(CONFIG + AIRFLOW.format(url="http://127.0.0.1:9"))
    lake.env["AIRFLOW_PASSWORD"] = password
    try:
        leave = ["churn", "--org", "405", "--yes", "--by", "pytest"]
        away = lake.run(*leave)
        assert away.returncode == 75 and "control.orchestrator" in away.stderr, away.stderr
        assert lake.run("certificate", "show", "--org", "405").returncode != 0
        with airflow.serving(password) as url:
            config.write_text(CONFIG + AIRFLOW.format(url=url))
            assert "ok    airflow: signed in" in lake.run("check").stdout
            done = lake.run(*leave)
        assert done.returncode == 0, done.stderr
    finally:
        config.write_text(CONFIG)
    certificate = json.loads(done.stdout)["certificate"]
    assert certificate["deleted"]["airflow"]["dags"] == sorted(leaving)
    assert certificate["verification"]["airflow_dags"] == 0
    assert password not in done.stdout + done.stderr + away.stderr
    assert set(airflow.rows(*leaving).values()) == {0}, airflow.rows(*leaving)
    assert airflow.rows(*staying) == others
    home = Path(airflow.env["AIRFLOW_HOME"])
    held = [path for path in home.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert held == []
    # The next manifest is without the org, though the pipelines still name it; Airflow makes no DAG anew.
    lake.polder("manifest", "--out", str(manifest(lake)), "--json")
    airflow("dags", "reserialize")
    assert set(airflow.rows(*leaving).values()) == {0}
    assert rows(lake, "406", "forecast") == [1, 2]
