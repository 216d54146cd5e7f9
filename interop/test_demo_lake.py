"""The demo's lake, read by DuckDB and PyIceberg, holds what the sources hold: after the first run
and after the sources changed and a second run followed.
"""

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import exports
import psycopg
import pytest
from expect import FILES, MONGO, POSTGRES, everything
from lakes import READERS, ROOT, Lake, Services
from world import ORGS

ORG_IDS = [str(org.id) for org in ORGS]
SUMMED = {table: column for tables in (POSTGRES, MONGO, FILES) for table, (_, _, column) in tables.items()}
KEYS = {table: key for tables in (POSTGRES, MONGO, FILES) for table, (_, key, _) in tables.items()}
# Append mode keeps every state of a row; the newest by cursor is the source's.
CURSORS = {
    "opportunity": "updated_at", "activity": "updated_at", "email": "sent_at",
    "transcript": "started_at",
}
RUNS = ["first", "second"]
SCALE = "0.25"


class Demo:
    """The demo's sources under names of our own, and its lake."""

    def __init__(self, services: Services, suffix: str, work: Path) -> None:
        self.services = services
        self.postgres = services.database(f"revdb_{suffix}")
        self.mongo_database = f"conversations_{suffix}"
        self.exports = f"exports-{suffix}"
        self.warehouse_bucket = f"lake-{suffix}"
        env = {
            "REVDB_URL": self.postgres,
            "CONVERSATIONS_URL": services.mongo,
            "S3_ACCESS_KEY": services.access_key,
            "S3_SECRET_KEY": services.secret_key,
        }
        self.lake = Lake(services, work, env)
        (work / "pipelines").mkdir()
        pipeline = (ROOT / "demo/pipelines/crm.yaml").read_text()
        (work / "pipelines/crm.yaml").write_text(pipeline)
        (work / "polder.toml").write_text(self.config())

    def config(self) -> str:
        text = (ROOT / "demo/polder.toml").read_text()
        for ours, theirs in {
            '"http://127.0.0.1:8333"': f'"{self.services.s3}"',
            '"s3://lake/demo"': f'"s3://{self.warehouse_bucket}/demo"',
            '"s3://exports"': f'"s3://{self.exports}"',
            'database = "conversations"': f'database = "{self.mongo_database}"',
        }.items():
            assert ours in text
            text = text.replace(ours, theirs)
        return text

    def generate(self, *more: str) -> None:
        command = [
            sys.executable, str(ROOT / "demo/generate.py"), "--scale", SCALE,
            "--postgres", self.postgres, "--s3", self.services.s3,
            "--mongo", self.services.mongo, "--mongo-database", self.mongo_database,
            "--exports", self.exports, "--lake", self.warehouse_bucket, *more,
        ]
        subprocess.run(command, env=os.environ | self.lake.env, check=True)

    def expected(self) -> dict:
        s3 = exports.connect(self.services.s3, self.services.access_key, self.services.secret_key)
        return everything(self.postgres, self.services.mongo, self.mongo_database, s3, self.exports)

    def found(self) -> dict:
        """What each reader finds, by reader, org and table."""
        return {
            reader: {
                org: {table: self.find(reader, org, table) for table in SUMMED} for org in ORG_IDS
            }
            for reader in READERS
        }

    def find(self, reader: str, org: str, table: str) -> dict:
        key, cursor, summed = KEYS[table], CURSORS.get(table), SUMMED[table]
        columns = [column for column in (key, cursor, summed) if column]
        rows = self.lake.read(reader, org, table, *columns).to_pylist()
        stored = len(rows)
        if key and cursor:
            newest: dict = {}
            for row in rows:
                before = newest.get(row[key])
                if before is None or before[cursor] < row[cursor]:
                    newest[row[key]] = row
            rows = list(newest.values())
        keys = len({row[key] for row in rows}) if key else None
        total = sum((Decimal(row[summed]) for row in rows if row[summed] is not None), Decimal(0))
        return {"count": len(rows), "keys": keys, "sum": total, "stored": stored}


@pytest.fixture(scope="module")
def story(services: Services, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Both runs of the demo: what the sources held and what the readers found after each."""
    demo = Demo(services, suffix, tmp_path_factory.mktemp("demo"))
    told = {}
    for run, change in zip(RUNS, [[], ["--mutate"]]):
        demo.generate(*change)
        report = demo.lake.polder("run", "--json")
        told[run] = {"expected": demo.expected(), "found": demo.found(), "report": report}
        told[run]["tables"] = demo.lake.tables()
    told["demo"] = demo
    return told


@pytest.mark.parametrize("table", SUMMED)
@pytest.mark.parametrize("org", ORG_IDS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("run", RUNS)
def test_the_lake_holds_what_the_source_holds(story, run, reader, org, table):
    expected = story[run]["expected"][org][table]
    found = story[run]["found"][reader][org][table]
    assert found["count"] == expected["count"]
    assert found["keys"] == expected["keys"]
    assert found["sum"] == Decimal(expected["sum"])


@pytest.mark.parametrize("run", RUNS)
def test_every_table_of_every_org_is_listed(story, run):
    listed = story[run]["tables"]
    assert set(listed) == {(org, table) for org in ORG_IDS for table in SUMMED}
    for (org, table), row in listed.items():
        assert row["namespace"] == f"org_{org}"
        assert row["rows"] == story[run]["found"]["pyiceberg"][org][table]["stored"]


@pytest.mark.parametrize("table", sorted(set(SUMMED) - set(CURSORS)))
def test_tables_without_a_cursor_hold_no_row_twice(story, table):
    for org in ORG_IDS:
        found = story["second"]["found"]["duckdb"][org][table]
        assert found["stored"] == story["second"]["expected"][org][table]["count"]


@pytest.mark.parametrize("table", CURSORS)
def test_the_first_run_stores_every_key_once(story, table):
    for org in ORG_IDS:
        assert (
            story["first"]["found"]["duckdb"][org][table]["stored"]
            == story["first"]["expected"][org][table]["count"]
        )


@pytest.mark.parametrize("reader", READERS)
def test_the_new_column_has_its_values_in_old_rows_too(story, reader):
    demo = story["demo"]
    query = (
        "SELECT count(next_step_due), min(next_step_due), max(next_step_due)"
        " FROM opportunity WHERE org_id = 401"
    )
    with psycopg.connect(demo.postgres) as connection:
        expected = connection.execute(query).fetchone()
    rows = demo.lake.read(reader, "401", "opportunity", "id", "updated_at", "next_step_due")
    newest = {}
    for row in rows.to_pylist():
        if row["id"] not in newest or newest[row["id"]]["updated_at"] < row["updated_at"]:
            newest[row["id"]] = row
    due = [row["next_step_due"] for row in newest.values() if row["next_step_due"]]
    assert (len(due), min(due), max(due)) == expected


def test_the_first_run_can_still_be_read_after_the_second(story):
    lake = story["demo"].lake
    for org in ORG_IDS:
        snapshot = story["first"]["tables"][org, "opportunity"]["snapshot_id"]
        before = lake.read_with_pyiceberg(org, "opportunity", "id", snapshot_id=snapshot)
        assert before.num_rows == story["first"]["expected"][org]["opportunity"]["count"]


def test_a_run_with_nothing_new_changes_no_incremental_table(story):
    lake = story["demo"].lake
    before = lake.tables()
    lake.polder("run", "--json")
    after = lake.tables()
    for org in ORG_IDS:
        for table in [*CURSORS, "forecast_upload", "usage"]:
            assert after[org, table]["rows"] == before[org, table]["rows"]
