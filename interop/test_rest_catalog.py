"""PyIceberg and DuckDB as clients of `polder serve`: create, append, read, drop on local disk."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from duckdb_extensions import import_extension
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import ForbiddenError, NoSuchNamespaceError, NoSuchTableError
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType, NestedField, StringType
from waits import SECONDS_MAX

ADDRESS = "Iceberg REST catalog: "
SECRET = "a-secret-of-some-length"
SECRETS = {"OPERATOR_SECRET": SECRET, "CRM_SECRET": SECRET[::-1]}
CLIENTS = """
[serve.clients.operator]
secret = "env:OPERATOR_SECRET"

[serve.clients.crm]
secret = "env:CRM_SECRET"
org = "401"
"""


@contextmanager
def server(binary: str, work: Path, config: str = "", warehouse: str = "lake"):
    """A server over a fresh lake."""
    (work / "polder.toml").write_text(
        f'[lake]\nwarehouse = "{warehouse}"\ncatalog = "sqlite://catalog.db"\n\n'
        f'[store]\nurl = "sqlite://store.db"\n{config}'
    )
    with serving(binary, work, SECRETS) as address:
        yield address


@contextmanager
def serving(binary: str, work: Path, env: dict[str, str]):
    """A server of the configuration in `work`; gives its address, and asks it to stop in the end."""
    env = os.environ | env
    log = work / "serve.log"
    with log.open("w") as output:
        command = [binary, "serve", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(command, cwd=work, env=env, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS_MAX
        while not (address := announced(log)):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(SECONDS_MAX) == 0, log.read_text()
        finally:
            process.kill()


def announced(log: Path) -> str | None:
    """The address that a server says once it listens."""
    lines = [line for line in log.read_text().splitlines(True) if line.endswith("\n")]
    return next((line[len(ADDRESS):].strip() for line in lines if line.startswith(ADDRESS)), None)


@pytest.fixture
def binary() -> str:
    return os.environ["POLDER_BIN"]


def rows(start: int, count: int) -> pa.Table:
    ids = range(start, start + count)
    names = [f"name {i % 3}" for i in ids]
    return pa.table({"id": pa.array(ids, pa.int64()), "name": pa.array(names, pa.string())})


def test_pyiceberg_creates_appends_reads_and_drops(binary, tmp_path):
    with server(binary, tmp_path) as uri:
        catalog = RestCatalog("polder", uri=uri)
        catalog.create_namespace("sales", {"owner": "crm"})
        catalog.create_namespace(("sales", "eu west"))
        assert catalog.list_namespaces() == [("sales",)]
        assert catalog.list_namespaces("sales") == [("sales", "eu west")]
        assert catalog.load_namespace_properties("sales")["owner"] == "crm"
        schema = Schema(
            NestedField(10, "id", LongType(), required=False),
            NestedField(20, "name", StringType(), required=False),
        )
        spec = PartitionSpec(PartitionField(20, 1000, IdentityTransform(), "name"))
        for name in ["plain", "sp ace+plus", "../up"]:
            table = catalog.create_table(("sales", "eu west", name), schema, partition_spec=spec)
            table.append(rows(0, 30))
            table.append(rows(30, 30))
            with table.update_schema() as update:
                update.add_column("more", LongType())
            found = catalog.load_table(("sales", "eu west", name)).scan().to_arrow()
            assert sorted(found["id"].to_pylist()) == list(range(60))
            assert found["more"].null_count == 60
            table.delete("id < 10")
            assert len(catalog.load_table(("sales", "eu west", name)).scan().to_arrow()) == 50
        inside = tmp_path / "lake"
        assert all(path.is_relative_to(inside) for path in tmp_path.rglob("*.parquet"))
        with catalog.create_table_transaction(("sales", "staged"), rows(0, 1).schema) as staged:
            with staged.update_snapshot().fast_append():
                pass
            staged.set_properties(comment="staged")
        assert catalog.load_table("sales.staged").properties["comment"] == "staged"
        catalog.rename_table("sales.staged", "sales.other")
        assert sorted(catalog.list_tables("sales")) == [("sales", "other")]
        catalog.drop_table("sales.other")
        catalog.purge_table(("sales", "eu west", "plain"))
        with pytest.raises(NoSuchTableError):
            catalog.load_table(("sales", "eu west", "plain"))
        for name in ["sp ace+plus", "../up"]:
            catalog.purge_table(("sales", "eu west", name))
        assert not list(inside.rglob("*.parquet"))
        catalog.drop_namespace(("sales", "eu west"))
        catalog.drop_namespace("sales")
        assert catalog.list_namespaces() == []


def test_duckdb_creates_appends_reads_and_drops(binary, tmp_path):
    for extension in ("avro", "httpfs", "iceberg"):
        import_extension(extension)
    with server(binary, tmp_path) as uri:
        db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        db.execute(
            f"ATTACH 'lake' AS lake (TYPE iceberg, ENDPOINT '{uri}',"
            " AUTHORIZATION_TYPE 'none', ACCESS_DELEGATION_MODE 'none')"
        )
        db.execute("CREATE SCHEMA lake.sales")
        db.execute("CREATE TABLE lake.sales.t (id BIGINT, name VARCHAR)")
        db.execute("INSERT INTO lake.sales.t SELECT i, 'name ' || i FROM range(100) r(i)")
        db.execute("INSERT INTO lake.sales.t SELECT i, 'name ' || i FROM range(100, 200) r(i)")
        counted = db.execute("SELECT count(*), sum(id) FROM lake.sales.t").fetchone()
        assert counted == (200, sum(range(200)))
        other = RestCatalog("polder", uri=uri).load_table("sales.t")
        assert len(other.scan().to_arrow()) == 200
        db.execute("DROP TABLE lake.sales.t")
        db.execute("DROP SCHEMA lake.sales")
        assert RestCatalog("polder", uri=uri).list_namespaces() == []


def test_a_client_of_one_org_sees_and_writes_its_own_alone(binary, tmp_path):
    with server(binary, tmp_path, CLIENTS) as uri:
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        for name in ["org_401", "org_402", "other"]:
            operator.create_namespace(name)
        operator.create_table("org_402.t", rows(0, 1).schema)
        crm = RestCatalog("polder", uri=uri, credential=f"crm:{SECRET[::-1]}")
        assert crm.list_namespaces() == [("org_401",)]
        crm.create_table("org_401.t", rows(0, 1).schema).append(rows(0, 5))
        assert len(crm.load_table("org_401.t").scan().to_arrow()) == 5
        for call in (crm.list_tables, crm.load_namespace_properties, crm.list_namespaces):
            with pytest.raises(NoSuchNamespaceError):
                call("org_402")
        with pytest.raises(NoSuchTableError):
            crm.load_table("org_402.t")
        with pytest.raises(ForbiddenError):
            crm.create_namespace("mine")
        theirs = operator.load_table("org_402.t").location()
        with pytest.raises(ForbiddenError):
            crm.create_table("org_401.u", rows(0, 1).schema, location=f"{theirs}/x")
        with pytest.raises(Exception, match="(?i)invalid_client|unauthor"):
            RestCatalog("polder", uri=uri, credential="crm:wrong").list_namespaces()
