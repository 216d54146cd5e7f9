"""The embedded catalog's own database, in SQLite and in PostgreSQL, as other catalogs open it: PyIceberg's
`SqlCatalog` and Iceberg's `JdbcCatalog` in Java, behind its reference server."""

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg
import pyarrow as pa
import pytest
from jvm import postgres_driver, program
from lakes import FROM_FILES, ROOT, Lake, Services
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from waits import SECONDS_MAX

PIPELINE = """
orgs:
  - id: "401"
    tables:
      - { name: event, source: files, from: "*.csv" }
"""
LISTENING = "listening on "


class Database:
    """A catalog's database, by the names that each client has for it."""

    def __init__(self, services: Services, kind: str, work: Path):
        self.name = f"jdbc_{uuid.uuid4().hex[:8]}"
        self.work = work
        if kind == "sqlite":
            self.polder = f"sqlite://{work}/polder.db"
            self.sqlalchemy = f"sqlite:///{work}/polder.db"
            self.jdbc = f"jdbc:sqlite:{work}/polder.db?busy_timeout=30000"
            return
        with psycopg.connect(services.postgres, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {self.name}")
        self.polder = services.database(self.name)
        parts = urlsplit(self.polder)
        self.sqlalchemy = parts._replace(scheme="postgresql+psycopg").geturl()
        keys = {"user": parts.username, "password": parts.password}
        options = urlencode({key: value for key, value in keys.items() if value})
        self.jdbc = f"jdbc:postgresql://{parts.hostname}:{parts.port}/{self.name}?{options}"


@contextmanager
def java(database: Database, warehouse: Path) -> Iterator[str]:
    """Iceberg's reference server over the database; its address."""
    jars = [f"{os.environ['REST_JARS']}/*", *postgres_driver()]
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    server = program(ROOT / "interop/rest/ReferenceServer.java", jars, quiet)
    command = [*server, "0", database.jdbc, f"file://{warehouse}", "polder", "1"]
    log = database.work / "java.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS_MAX
        address = None
        while address is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            lines = log.read_text().splitlines(True)
            whole = (line for line in lines if line.startswith(LISTENING) and line.endswith("\n"))
            address = next((line.removeprefix(LISTENING).strip() for line in whole), None)
            time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(SECONDS_MAX)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, services: Services, tmp_path: Path) -> Iterator[Database]:
    database = Database(services, request.param, tmp_path)
    yield database
    if request.param == "postgres":
        with psycopg.connect(services.postgres, autocommit=True) as server:
            server.execute(f"DROP DATABASE {database.name} WITH (FORCE)")


def test_other_catalogs_open_the_same_database(services, database: Database, tmp_path):
    sqlite = 'catalog = "sqlite://./polder.db"'
    assert sqlite in FROM_FILES
    config = FROM_FILES.replace(sqlite, 'catalog = "env:CATALOG_URL"')
    (tmp_path / "polder.toml").write_text(config)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/orgs.yaml").write_text(PIPELINE)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports/1.csv").write_text("id,name\n1,a\n2,b\n3,\n")
    lake = Lake(services, tmp_path, {"CATALOG_URL": database.polder})
    lake.polder("run", "--json")
    expected = lake.query("SELECT id, name FROM lake.org_401.event ORDER BY id")
    assert [row[0] for row in expected] == [1, 2, 3]

    def append(catalog: SqlCatalog | RestCatalog, number: int) -> None:
        assert ("org_401",) in catalog.list_namespaces()
        assert catalog.list_tables("org_401") == [("org_401", "event")]
        table = catalog.load_table("org_401.event")
        found = table.scan(selected_fields=("id", "name")).to_arrow().sort_by("id")
        assert [list(row.values()) for row in found.to_pylist()] == expected
        row = {"id": [number], "name": [f"row {number}"]}
        columns = table.schema().as_arrow()
        table.append(pa.Table.from_pydict({name: row.get(name, [None]) for name in columns.names}, columns))
        expected.append([number, f"row {number}"])
        assert lake.query("SELECT id, name FROM lake.org_401.event ORDER BY id") == expected

    append(SqlCatalog("polder", uri=database.sqlalchemy), 4)
    with java(database, tmp_path / "lake") as uri:
        append(RestCatalog("java", uri=uri), 5)
