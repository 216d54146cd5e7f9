"""Lakes of the fidelity suite, and how their rows are compared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from pyiceberg.types import IcebergType

from lakes import Lake, Services

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
"""


@dataclass
class Settled(Lake):
    """A lake whose runs have ended: its tables are listed once for all who read them."""

    @cached_property
    def _listed(self) -> dict[tuple[str, str], dict]:
        return super().tables()

    def tables(self) -> dict[tuple[str, str], dict]:
        return self._listed


def settled(lake: Lake) -> tuple[Lake, dict[tuple[str, str], dict]]:
    """The lake after it ran everything, and what became of each table."""
    reports = runs(lake)
    return Settled(lake.services, lake.work, lake.env), reports


def make_lake(services: Services, work: Path, source: str, orgs: dict[str, list[dict]], **env: str) -> Lake:
    """A lake with table specs by org; `source` is the rest of `polder.toml`."""
    (work / "pipelines").mkdir(parents=True)
    (work / "polder.toml").write_text(CONFIG + source)
    # JSON is YAML too.
    pipeline = {"orgs": [{"id": org, "tables": tables} for org, tables in orgs.items()]}
    (work / "pipelines/fidelity.yaml").write_text(json.dumps(pipeline))
    return Lake(services, work, env)


def runs(lake: Lake, *args: str) -> dict[tuple[str, str], dict]:
    """Runs everything, and returns what became of each table by org and table: refusals are no
    failure here."""
    done = lake.run("run", "--json", *args)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    ended = json.loads(done.stdout)["runs"]
    return {
        (run.get("org") or run["report"]["org"], run.get("table") or run["report"]["table"]): run
        for run in ended
    }


def columns(lake: Lake, reader: str, org: str, table: str, form: Callable) -> dict[str, dict]:
    """A table as a reader sees it: column, then key, then value in some form."""
    read = lake.read(reader, org, table)
    if reader == "pyiceberg":
        read = with_null_lists(lake, org, table, read)
    key = "id" if "id" in read.column_names else "_id"
    rows = read.to_pylist()
    return {name: {row[key]: form(row[name]) for row in rows} for name in rows[0]}


def with_null_lists(lake: Lake, org: str, table: str, read: pa.Table) -> pa.Table:
    """PyIceberg shows a list of structs that is null as an empty one (apache/iceberg-python#3833):
    which ones are null is read from the data files."""
    names = [
        field.name for field in read.schema
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)
        or pa.types.is_large_list(field.type) and pa.types.is_struct(field.type.value_type)
    ]
    if not names:
        return read
    scan = lake.load(org, table).scan()
    files = [file.file.file_path.removeprefix("file://") for file in scan.plan_files()]
    stored = pa.concat_tables(parquet.ParquetFile(file).read(names) for file in files)
    assert stored.num_rows == read.num_rows
    for name in names:
        lists = pc.if_else(stored[name].is_null(), None, read[name].combine_chunks())
        read = read.set_column(read.column_names.index(name), name, lists)
    return read


def lake_types(lake: Lake, org: str, table: str) -> dict[str, IcebergType]:
    """The types of a table's columns."""
    schema = lake.load(org, table).schema()
    return {field.name: field.field_type for field in schema.fields}
