"""The notebooks of `examples/notebooks`, run cell by cell in a kernel of their own against `polder serve`: each
prints how many rows version 1 has, and what the table adds up to now."""

import os
from decimal import Decimal
from tempfile import TemporaryDirectory

import nbformat
import pytest
from lakes import FROM_FILES, KEYS, ROOT, Lake
from nbclient import NotebookClient
from traitlets.config import Config

from test_rest_catalog import serving
from test_trino import catalog

NOTEBOOKS = ROOT / "examples/notebooks"
SECONDS_MAX = 300
PIPELINE = """
orgs:
  - id: "401"
    tables:
      - name: opportunity
        source: files
        from: "{org}/opportunity.csv"
        key: [id]
        types: { id: long, amount: "decimal(18, 2)" }
"""
STAGES = ["lost", "open", "won"]


def deals(count: int) -> dict[int, tuple[str, Decimal]]:
    return {id: (STAGES[id % 3], Decimal(id * 137 % 10_000) / 100) for id in range(count)}


def write(lake: Lake, rows: dict[int, tuple[str, Decimal]]) -> None:
    folder = lake.work / "exports/401"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{id},{stage},{amount}\n" for id, (stage, amount) in rows.items()]
    (folder / "opportunity.csv").write_text("id,stage,amount\n" + "".join(lines))
    lake.polder("run", "--json")


@pytest.fixture(scope="module")
def lake(services, tmp_path_factory) -> Lake:
    """Version 1 with 600 deals, version 2 with 900."""
    lake = Lake(services, tmp_path_factory.mktemp("notebooks"), {})
    (lake.work / "polder.toml").write_text(FROM_FILES + KEYS)
    (lake.work / "pipelines").mkdir()
    (lake.work / "pipelines/crm.yaml").write_text(PIPELINE)
    for count in (600, 900):
        write(lake, deals(count))
    return lake


@pytest.fixture(scope="module")
def environment(lake):
    key = lake.polder("keys", "create", "--role", "reader", "--org", "401", "--json")["key"]
    with serving(lake.services.polder, lake.work, {}) as uri:
        address = uri.removesuffix("/iceberg")
        yield {"POLDER_URL": address, "POLDER_KEY": key, "POLDER_ORG": "401"}


@pytest.fixture
def trino_environment(environment, trino):
    settings = {
        "iceberg.rest-catalog.security": "OAUTH2",
        "iceberg.rest-catalog.oauth2.token": environment["POLDER_KEY"],
        "fs.hadoop.enabled": "true",
    }
    with catalog(trino, environment["POLDER_URL"] + "/iceberg", settings) as name:
        address = {"TRINO_HOST": "127.0.0.1", "TRINO_PORT": str(trino.port), "TRINO_CATALOG": name}
        yield environment | address


def printed(name: str, environment: dict[str, str], work) -> str:
    """What the cells of a notebook print; a cell that fails is the test's failure."""
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    paths = [str(ROOT / "python/polder-lake/src"), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_USAGE_STATS_ENABLED": "0"}
    resources = {"metadata": {"path": str(work)}}
    # Ports would be chosen before the kernel has them; sockets in a folder are its own, if the path is short.
    with TemporaryDirectory(prefix="kernel-") as sockets:
        config = Config({"KernelManager": {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}})
        client = NotebookClient(book, timeout=SECONDS_MAX, resources=resources, config=config)
        client.execute(env=os.environ | environment | more)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def check(said: str) -> None:
    now = deals(900)
    expected = ["v1 600"]
    for stage in STAGES:
        amounts = [amount for found, amount in now.values() if found == stage]
        expected.append(f"{stage} {len(amounts)} {sum(amounts):.2f}")
    assert said.splitlines() == expected


def test_every_notebook_has_a_test():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"duckdb", "polars", "pyiceberg", "ray", "trino"}


@pytest.mark.parametrize("name", ["pyiceberg", "duckdb", "polars", "ray"])
def test_the_notebook_reads_what_is_there(name, environment, tmp_path):
    check(printed(name, environment, tmp_path))


def test_the_notebook_for_trino_reads_what_is_there(trino_environment, tmp_path):
    check(printed("trino", trino_environment, tmp_path))
