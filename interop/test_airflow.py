"""A real Airflow over a real lake: DAGs from the manifest that `polder manifest` writes, run by `airflow
dags test` with the binary, the rows read back by PyIceberg; DAGs come and go as the configuration does."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lakes import ROOT, Lake

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
    (airflow.dags / "api.py").unlink()
