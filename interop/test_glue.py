"""A lake whose catalog is AWS Glue (moto behind `glue_server.py`), its files on S3: what Polder writes,
Trino's and PyIceberg's own Glue catalogs find, read and change, and Polder goes on from there."""

import uuid
from contextlib import contextmanager
from pathlib import Path

import boto3
import psycopg
import pyarrow as pa
import pytest
from lakes import Lake, Services
from pyiceberg.catalog.glue import GlueCatalog
from trino_server import Trino

from test_rest_catalog_s3 import STORAGE, bucket  # noqa: F401  (a fixture)

REGION = "eu-west-1"
CONFIG = """
[lake]
warehouse = "s3://{bucket}/lake"
catalog = "glue://{region}"
[store]
url = "sqlite://./polder.db"
[catalog.glue]
endpoint = "{glue}"
catalog_id = "{account}"
access_key = "env:GLUE_ACCESS_KEY"
secret_key = "env:GLUE_SECRET_KEY"
[sources.pg]
type = "postgres"
url = "env:GLUE_SOURCE_URL"
"""
PIPELINE = """
orgs:
  - id: glue
    tables:
      - { name: event, source: pg, from: public.event, mode: append, cursor: seen_at, key: [id], on_schema_change: evolve }
"""
EVENTS = """
CREATE TABLE event (id bigint PRIMARY KEY, note text, amount numeric(12, 2), seen_at timestamptz);
INSERT INTO event
SELECT i, md5(i::text), i * 1.25, now() - (400 - i) * interval '1 minute'
FROM generate_series(1, 300) AS i
"""


class GlueLake:
    """A lake filled from PostgreSQL, and its account in Glue as others open it."""

    def __init__(self, services: Services, bucket: str, work: Path):
        self.services = services
        self.account = str(uuid.uuid4().int)[:12]
        name = f"glue_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(services.postgres, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        self.url = services.database(name)
        with psycopg.connect(self.url) as connection:
            connection.execute(EVENTS)
        keys = {"GLUE_ACCESS_KEY": "glue-key", "GLUE_SECRET_KEY": "glue-secret"}
        self.lake = Lake(services, work, {"GLUE_SOURCE_URL": self.url} | keys)
        config = CONFIG.format(
            bucket=bucket, region=REGION, glue=services.glue, account=self.account
        )
        (work / "polder.toml").write_text(config + STORAGE.format(endpoint=services.s3))
        (work / "pipelines").mkdir()
        (work / "pipelines/glue.yaml").write_text(PIPELINE)

    def run(self) -> dict:
        return self.lake.polder("run", "--json")["runs"][0]["report"]

    def query(self, sql: str) -> list[dict]:
        return self.lake.polder("query", "--format", "json", sql)

    def pyiceberg(self) -> GlueCatalog:
        return GlueCatalog(
            "glue",
            **{
                "glue.endpoint": self.services.glue,
                "glue.region": REGION,
                "glue.access-key-id": "another",
                "glue.secret-access-key": "secret",
                "glue.id": self.account,
                "s3.endpoint": self.services.s3,
                "s3.access-key-id": self.services.access_key,
                "s3.secret-access-key": self.services.secret_key,
                "s3.region": "us-east-1",
                "s3.force-virtual-addressing": "false",
            },
        )

    @contextmanager
    def trino(self, trino: Trino):
        """A Glue catalog of Trino's; the lake's schema in it."""
        settings = {
            "iceberg.catalog.type": "glue",
            "hive.metastore.glue.endpoint-url": self.services.glue,
            "hive.metastore.glue.region": REGION,
            "hive.metastore.glue.aws-access-key": "another",
            "hive.metastore.glue.aws-secret-key": "secret",
            "hive.metastore.glue.catalogid": self.account,
            "fs.native-s3.enabled": "true",
            "s3.endpoint": self.services.s3,
            "s3.region": "us-east-1",
            "s3.path-style-access": "true",
            "s3.aws-access-key": self.services.access_key,
            "s3.aws-secret-key": self.services.secret_key,
        }
        name = f"glue_{self.account}"
        listed = ", ".join(f"\"{key}\" = '{value}'" for key, value in settings.items())
        trino.sql(f"CREATE CATALOG {name} USING iceberg WITH ({listed})")
        yield f"{name}.org_glue"
        trino.sql(f"DROP CATALOG {name}")

    def entry(self, table: str) -> dict:
        """What Glue has of a table."""
        keys = {"aws_access_key_id": "another", "aws_secret_access_key": "secret"}
        glue = boto3.client("glue", endpoint_url=self.services.glue, region_name=REGION, **keys)
        names = {"CatalogId": self.account, "DatabaseName": "org_glue", "Name": table}
        return glue.get_table(**names)["Table"]


@pytest.fixture
def glue_lake(services, bucket, tmp_path) -> GlueLake:  # noqa: F811
    lake = GlueLake(services, bucket, tmp_path)
    report = lake.run()
    assert (report["outcome"], report["rows_written"]) == ("full_refresh", 300)
    return lake


SUMS = "SELECT count(*) AS n, CAST(sum(id) AS bigint) AS ids, sum(amount) AS amount FROM "


def test_trino_reads_and_changes_a_table_in_glue(trino, glue_lake: GlueLake):
    with glue_lake.trino(trino) as schema:
        event = f"{schema}.event"
        assert trino.sql(f"SHOW TABLES FROM {schema}") == [["event"]]
        columns = [name for [name, *_] in trino.sql(f"SHOW COLUMNS FROM {event}")]
        assert columns == ["id", "note", "amount", "seen_at"]
        [[n, ids, amount]] = trino.sql(SUMS + event)
        assert (n, ids, float(amount)) == (300, 45150, 45150 * 1.25)
        trino.sql(f"INSERT INTO {event} VALUES (1001, 'from Trino', 0.50, NULL)")
        trino.sql(f"UPDATE {event} SET note = 'changed' WHERE id BETWEEN 1 AND 10")
        trino.sql(f"ALTER TABLE {event} ADD COLUMN more bigint")
        trino.sql(f"INSERT INTO {event} VALUES (1002, 'with more', NULL, NULL, 7)")
        trino.sql(f"DELETE FROM {event} WHERE id = 150")
        trino.sql(f"CREATE TABLE {schema}.made AS SELECT id, note FROM {event} WHERE id < 4")
        trino.sql(f"CREATE VIEW {schema}.seen AS SELECT id FROM {event}")
        ids = 45150 + 1001 + 1002 - 150
        counted = (
            "SELECT count(*) AS n, sum(id) AS ids, sum(more) AS more,"
            " count(CASE WHEN note = 'changed' THEN 1 END) AS changed FROM lake.org_glue.event"
        )
        assert glue_lake.query(counted) == [{"n": 301, "ids": ids, "more": 7, "changed": 10}]
        made = glue_lake.query("SELECT sum(id) AS ids FROM lake.org_glue.made")
        assert made == [{"ids": 6}], "a table that Trino made is the lake's as well"
        assert set(glue_lake.lake.tables()) == {("glue", "event"), ("glue", "made")}
        found = glue_lake.pyiceberg().load_table("org_glue.event").scan().to_arrow()
        assert (len(found), sum(found["id"].to_pylist())) == (301, ids)

        # The next run goes on from its own checkpoint, on top of what Trino did.
        with psycopg.connect(glue_lake.url) as connection:
            connection.execute("INSERT INTO event VALUES (301, 'later', 2, now())")
        report = glue_lake.run()
        assert (report["outcome"], report["rows_written"]) == ("append", 1)
        [row] = glue_lake.query(counted)
        assert (row["n"], row["ids"]) == (302, ids + 301)
        assert trino.sql(f"SELECT count(*), sum(id) FROM {event}") == [[302, ids + 301]]
        entry = glue_lake.entry("event")
        assert entry["Parameters"]["table_type"] == "ICEBERG"
        columns = {column["Name"]: column["Type"] for column in entry["StorageDescriptor"]["Columns"]}
        assert columns["amount"] == "decimal(12,2)" and columns["more"] == "bigint"


def test_pyiceberg_reads_and_changes_a_table_in_glue(glue_lake: GlueLake):
    catalog = glue_lake.pyiceberg()
    assert ("org_glue",) in catalog.list_namespaces()
    assert "polder.org-uuid" in catalog.load_namespace_properties("org_glue")
    assert catalog.list_tables("org_glue") == [("org_glue", "event")]
    table = catalog.load_table("org_glue.event")
    found = table.scan(selected_fields=("id", "note")).to_arrow().sort_by("id")
    with psycopg.connect(glue_lake.url) as connection:
        expected = connection.execute("SELECT id, note FROM event ORDER BY id").fetchall()
    assert list(zip(found["id"].to_pylist(), found["note"].to_pylist())) == expected
    row = {"id": [2001], "note": ["from PyIceberg"], "amount": [None], "seen_at": [None]}
    table.append(pa.table(row, schema=table.schema().as_arrow()))
    table.delete("id <= 100")
    sums = glue_lake.query("SELECT count(*) AS n, sum(id) AS ids FROM lake.org_glue.event")
    assert sums == [{"n": 201, "ids": 45150 - 5050 + 2001}]
    assert glue_lake.run()["rows_written"] == 0
    assert len(catalog.load_table("org_glue.event").scan().to_arrow()) == 201


def test_commands_say_what_glue_does_not_do(glue_lake: GlueLake):
    served = glue_lake.lake.run("serve", "--listen", "127.0.0.1:0")
    assert served.returncode == 2 and "point other engines at the external catalog itself" in served.stderr
    pipeline = glue_lake.lake.work / "pipelines/glue.yaml"
    pipeline.write_text(PIPELINE.replace("name: event", "name: Event"))
    refused = glue_lake.lake.run("run")
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0 and "lower-case letters" in said, said
    assert set(glue_lake.lake.tables()) == {("glue", "event")}
