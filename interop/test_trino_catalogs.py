"""`polder trino catalogs`: with the files it writes, Trino sees the lake and its sources under the names
they have in `polder query`, and joins them."""

import os
import re
import uuid
from pathlib import Path

import psycopg
import pytest
from lakes import Lake, Services
from psycopg.sql import SQL, Identifier
from pymongo import MongoClient
from test_rest_catalog import serving
from test_rest_catalog_s3 import STORAGE, bucket  # noqa: F401  (a fixture)
from trino_server import Trino

CONFIG = """
[lake]
warehouse = "s3://{bucket}/lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.revdb]
type = "postgres"
url = "env:REVDB_URL"
[sources.conversations]
type = "mongodb"
url = "env:CONVERSATIONS_URL"
database = "{database}"
[sources.files]
type = "files"
url = "./exports"
[serve.clients.trino]
secret = "env:TRINO_SECRET"
[trino]
url = "http://127.0.0.1:1"
user = "polder"
ingest = true
"""
PIPELINE = """
orgs:
  - id: "401"
    tables:
      - { name: deal, source: revdb, from: public.deal, mode: full_refresh }
      - { name: email, source: conversations, from: emails, mode: full_refresh }
"""
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def lake(services: Services, bucket, tmp_path) -> Lake:  # noqa: F811
    database = f"trino_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(SQL("CREATE DATABASE {}").format(Identifier(database)))
    with psycopg.connect(services.database(database), autocommit=True) as source:
        source.execute("CREATE TABLE deal (id int PRIMARY KEY, stage text, amount numeric(12, 2))")
        source.execute("INSERT INTO deal SELECT i, 's' || i % 3, i * 1.5 FROM generate_series(1, 500) i")
    client = MongoClient(services.mongo)
    emails = [{"_id": i, "deal": i % 50 + 1, "subject": f"about {i}"} for i in range(200)]
    client[database]["emails"].insert_many(emails)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "orgs.yaml").write_text(PIPELINE)
    config = CONFIG.format(bucket=bucket, database=database) + STORAGE.format(endpoint=services.s3)
    (tmp_path / "polder.toml").write_text(config)
    env = {
        "REVDB_URL": services.database(database),
        "CONVERSATIONS_URL": services.mongo,
        "TRINO_SECRET": SECRET,
    }
    lake = Lake(services, tmp_path, env)
    lake.polder("run", "--json")
    yield lake
    client.drop_database(database)
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(database)))


def properties(path: Path, env: dict[str, str]) -> dict[str, str]:
    """A catalog's settings as Trino reads them: with its environment put in."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines)
    return {key: re.sub(r"\$\{ENV:(\w+)}", lambda m: env[m[1]], value) for key, value in found.items()}


def test_trino_joins_the_lake_with_its_sources(services, lake, trino: Trino):
    out = lake.work / "catalog"
    with serving(services.polder, lake.work, os.environ | lake.env) as uri:
        written = lake.polder("trino", "catalogs", "--out", str(out), "--serve", uri.removesuffix("/iceberg"), "--json")
        assert sorted(Path(f).name for f in written["files"]) == [
            "conversations.properties", "lake.properties", "revdb.properties",
        ]
        assert any(note.startswith("files: left out") for note in written["notes"])
        text = "".join(Path(f).read_text() for f in written["files"])
        for secret in (SECRET, services.secret_key, services.mongo):
            assert secret not in text
        env = os.environ | lake.env | {"POLDER_TRINO_CREDENTIAL": f"trino:{SECRET}"}
        assert set(written["environment"]) <= set(env)
        names = []
        try:
            for file in written["files"]:
                settings = properties(Path(file), env)
                connector = settings.pop("connector.name")
                listed = ", ".join(f"\"{key}\" = '{value}'" for key, value in settings.items())
                trino.sql(f"CREATE CATALOG {Path(file).stem} USING {connector} WITH ({listed})")
                names.append(Path(file).stem)
            database = lake.env["REVDB_URL"].rsplit("/", 1)[1]
            sql = f"""
                SELECT l.stage, count(*), sum(s.amount), count(e.subject)
                FROM lake.org_401.deal l
                JOIN revdb.public.deal s ON s.id = l.id
                LEFT JOIN conversations.{database}.emails e ON e.deal = l.id
                WHERE l.id <= 60 GROUP BY l.stage ORDER BY l.stage"""
            answer = [[*map(str, row)] for row in trino.sql(sql)]
            assert len(answer) == 3
            # The same names, the same question, our own engine.
            done = lake.run("query", sql, "--format", "csv")
            assert done.returncode == 0, done.stderr
            assert [line.split(",") for line in done.stdout.splitlines()[1:]] == answer
        finally:
            for name in names:
                trino.sql(f"DROP CATALOG {name}")
