"""Merged tables as other engines see them: equal to their source, whatever was changed and deleted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pymongo
import pytest
from lakes import MORE_READERS, READERS, Lake, Services, at

ORG, TABLE = "merge", "deal"

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.pg]
type = "postgres"
url = "env:MERGE_PG_URL"
[sources.mongo]
type = "mongodb"
url = "env:MERGE_MONGO_URL"
database = "{database}"
"""
PIPELINE = """
orgs:
  - id: merge
    tables:
      - name: deal
        source: pg
        from: public.deal
        mode: merge
        key: [region, id]
        cursor: updated_at
        deleted_at: deleted_at
        partition: ["bucket(3, id)"]
        on_schema_change: evolve
      - { name: mail, source: mongo, from: mail, mode: merge, key: [_id], cursor: at, deleted_at: gone }
"""
# Keys of two columns, one of them text; every file has rows of every region.
DEALS = """
CREATE TABLE deal (
  region text, id int, amount numeric(12, 2), note text, tags text[], deleted_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (region, id));
INSERT INTO deal SELECT 'r' || i % 7, i, i / 4.0, md5(i::text), ARRAY['a', NULL], NULL,
  timestamptz '2026-01-01 00:00Z' + i * interval '1 minute' FROM generate_series(1, 5000) AS i
"""
CHANGES = [
    "UPDATE deal SET note = 'changed', updated_at = clock_timestamp() WHERE id % 50 = 1",
    "UPDATE deal SET deleted_at = now(), updated_at = clock_timestamp() WHERE id % 50 = 2",
    "UPDATE deal SET tags = ARRAY['b'], updated_at = clock_timestamp() WHERE region = 'r3'",
    "INSERT INTO deal (region, id, note) SELECT 'new', i, 'new' FROM generate_series(1, 300) AS i",
    "ALTER TABLE deal ADD COLUMN stage text; ALTER TABLE deal RENAME COLUMN note TO remark;"
    "UPDATE deal SET stage = 'won', updated_at = clock_timestamp() WHERE id % 50 = 3",
    "UPDATE deal SET deleted_at = NULL, updated_at = clock_timestamp() WHERE id % 100 = 2",
]


def key_in(columns: list[str]):
    """What rows of these columns are sorted by."""
    places = [columns.index("region"), columns.index("id")]
    return lambda row: [row[place] for place in places]


def check_readers(lake: Lake, columns: list[str], expected: list[tuple]) -> None:
    for reader in READERS + MORE_READERS:
        found = lake.read(reader, ORG, TABLE, *columns)
        rows = zip(*(found[name].to_pylist() for name in columns))
        assert sorted(rows, key=key_in(columns)) == expected, reader


def check_polder(lake: Lake, columns: list[str], expected: list[tuple]) -> None:
    """Polder's own engine sees these rows, but for the times, which JSON has as texts."""
    names = [name for name in columns if not name.endswith("_at")]
    listed = ", ".join(f'"{name}"' for name in names)
    found = lake.query(f"SELECT {listed} FROM lake.org_{ORG}.{TABLE} ORDER BY region, id")
    places = [columns.index(name) for name in names]
    assert found == [[row[place] for place in places] for row in expected]


class Merged:
    """Two source tables and the lake they are merged into."""

    def __init__(self, services: Services, name: str, work: Path, place: str):
        self.url = services.database(name)
        env = {"MERGE_PG_URL": self.url, "MERGE_MONGO_URL": services.mongo}
        self.lake = Lake(services, work, env)
        self.mail = pymongo.MongoClient(services.mongo)[name].mail
        (work / "polder.toml").write_text(at(place, services, CONFIG.format(database=name)))
        (work / "pipelines").mkdir()
        (work / "pipelines/merge.yaml").write_text(PIPELINE)

    def sql(self, text: str) -> list[tuple]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    def run(self, table: str) -> dict:
        return self.lake.polder("run", "--json", "--table", table)["runs"][0]["report"]

    def deals(self) -> tuple[list[str], list[tuple]]:
        """The source's columns and, by key, its rows that are not marked."""
        columns = [row[0] for row in self.sql(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'deal'::regclass AND attnum > 0"
        )]
        living = self.sql(f"SELECT {', '.join(columns)} FROM deal WHERE deleted_at IS NULL")
        return columns, sorted(living, key=key_in(columns))

    def check_deals(self) -> None:
        """Every reader, and Polder itself, sees the source's rows that are not marked."""
        columns, expected = self.deals()
        check_readers(self.lake, columns, expected)
        check_polder(self.lake, columns, expected)

    def check_mail(self) -> None:
        living = [mail for mail in self.mail.find({"gone": None})]
        expected = sorted((mail["_id"], mail["text"]) for mail in living)
        for reader in READERS:
            found = self.lake.read(reader, ORG, "mail", "_id", "text")
            assert sorted(zip(found["_id"].to_pylist(), found["text"].to_pylist())) == expected, reader


@contextmanager
def merged_in(place: str, services: Services, suffix: str, work: Path) -> Iterator[Merged]:
    """The same, their lake in one of `PLACES`."""
    name = f"merge_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    merged = Merged(services, name, work, place)
    yield merged
    merged.mail.database.client.drop_database(name)
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def merged(services: Services, suffix: str, tmp_path: Path) -> Iterator[Merged]:
    with merged_in("local", services, suffix, tmp_path) as merged:
        yield merged


def test_a_merged_table_equals_its_source_in_every_reader(merged: Merged):
    merged.sql(DEALS)
    assert merged.run(TABLE)["version"] == "v1"
    merged.check_deals()
    for change in CHANGES:
        merged.sql(change)
        report = merged.run(TABLE)
        assert report["outcome"] == "merge", change
        merged.check_deals()
    assert merged.run(TABLE)["outcome"] == "nothing_new"
    # One delete file for each data file, however many merges there were.
    deletes = merged.lake.load(ORG, TABLE).inspect.delete_files()
    paths = [json.dumps(bounds) for bounds in map(str, deletes["lower_bounds"].to_pylist())]
    assert deletes.num_rows > 0 and len(set(paths)) == len(paths)
    # The first version is as it was.
    v1 = merged.lake.load(ORG, TABLE).metadata.refs["v1"].snapshot_id
    assert len(merged.lake.read_with_pyiceberg(ORG, TABLE, snapshot_id=v1)) == 5000
    # And a rewrite leaves the same rows, without deletes.
    pipeline = merged.lake.work / "pipelines/merge.yaml"
    pipeline.write_text(pipeline.read_text().replace("bucket(3, id)", "bucket(2, id)"))
    merged.lake.polder("maintain", "repartition", "--json", "--table", TABLE)
    merged.check_deals()
    assert merged.lake.load(ORG, TABLE).inspect.delete_files().num_rows == 0
    assert merged.run(TABLE)["outcome"] == "nothing_new"


def test_documents_are_merged_by_their_id(merged: Merged):
    from datetime import datetime, timedelta, timezone

    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    mail = lambda n, at, text, **more: {"_id": n, "at": at, "text": text} | more
    merged.mail.insert_many(mail(n, start + timedelta(minutes=n), f"text {n}") for n in range(2000))
    assert merged.run("mail")["version"] == "v1"
    merged.check_mail()
    now = datetime.now(timezone.utc)
    merged.mail.update_many({"_id": {"$mod": [40, 1]}}, {"$set": {"text": "changed", "at": now}})
    merged.mail.update_many({"_id": {"$mod": [40, 2]}}, {"$set": {"gone": now, "at": now}})
    merged.mail.insert_one(mail(5000, now, "new"))
    report = merged.run("mail")
    counts = [report[name] for name in ("rows_inserted", "rows_updated", "rows_deleted")]
    assert (report["outcome"], counts) == ("merge", [1, 50, 50])
    merged.check_mail()
    # Within the time that documents may come late, they are read again, and known.
    report = merged.run("mail")
    assert (report["outcome"], report["rows_known"]) == ("nothing_new", 51)
