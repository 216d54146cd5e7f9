"""Rows that another engine deletes by equality, with Iceberg's own Java library through `polder serve`: queries, runs
and maintenance of Polder see what Trino sees."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

import psycopg
import pytest
from jvm import program
from lakes import ROOT, Lake, Served

import test_lake_changes as changes
import test_merge as merges
from test_lake_changes import Events, events  # noqa: F401  (a fixture)
from test_merge import Merged, merged  # noqa: F401  (a fixture)
from test_rest_catalog import serving
from test_trino import catalog as trino_catalog

JARS = ["iceberg-spark-runtime-*.jar", "hadoop-client-api-*.jar", "hadoop-client-runtime-*.jar", "slf4j-api-*.jar"]


def jars() -> list[str]:
    folders = [Path(os.environ["SPARK_JARS"]), Path(os.environ["REST_JARS"])]
    found = [str(jar) for pattern in JARS for folder in folders for jar in folder.glob(pattern)]
    assert len(found) == len(JARS), f"{found}: cargo xtask services install"
    return found


def delete(uri: str, org: str, table: str, *rows: str) -> None:
    """Deletes rows by their values, `column=value,…`; a delete file for each."""
    engine = program(ROOT / "interop/EqualityDeletes.java", jars())
    done = subprocess.run([*engine, uri, f"org_{org}", table, *rows], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def note(number: int) -> str:
    return md5(str(number).encode()).hexdigest()


@contextmanager
def engines(trino, lake: Lake) -> Iterator[tuple[Served, str]]:
    """The lake as it is served, and a catalog of Trino's over it."""
    with serving(lake.services.polder, lake.work, lake.env) as uri:
        served = lake.through(uri)
        with trino_catalog(trino, uri, served.for_trino()) as of_trino:
            yield served, of_trino


# What is deleted of the events 1 to 100, as SQL and by equality. Every tenth has no note, and all but
# the last are of account 0.
DELETED = "id IN (7, 8) OR id BETWEEN 31 AND 38 OR (account = 0 AND note IS NULL) OR note = md5('5')"
BY_EQUALITY = [
    "id=7", "id=8", *(f"id={number}" for number in range(31, 39)), "account=0,note=null", f"note={note(5)}",
]


@pytest.mark.parametrize("partition", ["[]", '["bucket(4, id)"]'])
def test_deleted_rows_are_gone_from_queries_runs_and_rewrites(trino, events: Events, partition: str) -> None:
    lake, table = events.lake, f"org_{changes.ORG}.{changes.TABLE}"
    by_equality, deleted = BY_EQUALITY, DELETED
    if partition != "[]":
        # A delete file is of one partition.
        by_equality, deleted = BY_EQUALITY[:-2], DELETED.split(" OR (")[0]
    events.partition(partition)
    events.insert(1, 100)

    def source(query: str) -> list[tuple]:
        with psycopg.connect(events.url) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    rows = "SELECT id, note FROM event ORDER BY id"
    source("UPDATE event SET note = NULL WHERE id % 10 = 0")
    before = source(rows)
    assert events.run()["outcome"] == "full_refresh"
    first = lake.tables()[changes.ORG, changes.TABLE]["snapshot_id"]

    with engines(trino, lake) as (served, of_trino):

        def check() -> None:
            """Both engines see the source's rows, by whichever columns they ask for them."""
            expected = source(rows)
            ids = [[row[0]] for row in expected]
            assert [tuple(row) for row in lake.query(f"SELECT id, note FROM lake.{table} ORDER BY id")] == expected
            assert lake.query(f"SELECT id FROM lake.{table} ORDER BY 1") == ids
            assert lake.query(f"SELECT count(*) FROM lake.{table}") == [[len(expected)]]
            some = [[row[0]] for row in source("SELECT id FROM event WHERE account = 0 AND id > 50 ORDER BY id")]
            assert lake.query(f"SELECT id FROM lake.{table} WHERE account = 0 AND id > 50 ORDER BY 1") == some
            nulls = [[number] for number, text in expected if text is None]
            assert lake.query(f"SELECT id FROM lake.{table} WHERE note IS NULL ORDER BY 1") == nulls
            assert trino.sql(f"SELECT id, note FROM {of_trino}.{table} ORDER BY id") == [list(row) for row in expected]
            old = lake.query(f"SELECT id, note FROM lake.{table} FOR VERSION AS OF {first} ORDER BY id")
            assert [tuple(row) for row in old] == before, "what was before stays as it was"

        check()
        source(f"DELETE FROM event WHERE {deleted}")
        delete(served.uri, changes.ORG, changes.TABLE, *by_equality)
        assert 0 < len(source(rows)) < len(before)
        check()
        # Rows that come later are not deleted, whatever their values.
        events.insert(7, 7)
        events.insert(101, 140)
        report = events.run()
        assert (report["outcome"], report["rows_written"]) == ("append", 41)
        check()
        assert lake.polder("maintain", "optimize", "--json")["tables"][0]["commits"] > 0
        check()
        stored = f'SELECT sum(record_count) FROM {of_trino}.org_{changes.ORG}."{changes.TABLE}$files" WHERE content = 0'
        assert trino.sql(stored) == [[len(source(rows))]], "no file has a deleted row any more"
        events.insert(141, 150)
        assert events.run()["rows_written"] == 10
        lake.polder("maintain", "all", "--org", changes.ORG, "--json")
        expected = source(rows)
        assert [tuple(row) for row in lake.query(f"SELECT id, note FROM lake.{table} ORDER BY id")] == expected
        assert events.run("--full-refresh")["rows_written"] == len(expected)
        found = trino.sql(f"SELECT id, note FROM {of_trino}.{table} ORDER BY id")
        assert found == [list(row) for row in expected]


def test_files_from_before_a_column_lose_no_row_by_it(trino, events: Events) -> None:
    lake, table = events.lake, f"org_{changes.ORG}.{changes.TABLE}"
    rows = events.evolved("[]")
    with engines(trino, lake) as (served, of_trino):
        # The first has its column under an earlier name.
        delete(served.uri, changes.ORG, changes.TABLE, f"remark={note(5)}", "remark=new")
        left = [row for row in rows if row[0] not in (5, 501)]
        assert len(left) == 499
        query = "SELECT id, remark, tags FROM {} ORDER BY id"
        assert [tuple(row) for row in lake.query(query.format(f"lake.{table}"))] == left
        assert lake.query(f"SELECT id FROM lake.{table} ORDER BY 1") == [[row[0]] for row in left]
        assert [tuple(row) for row in trino.sql(query.format(f"{of_trino}.{table}"))] == left


def test_by_a_column_that_came_later_only_what_has_its_value_goes(trino, events: Events) -> None:
    lake, table = events.lake, f"org_{changes.ORG}.{changes.TABLE}"
    events.partition("[]", "evolve")
    events.insert(1, 20)
    events.run()
    with psycopg.connect(events.url) as connection:
        connection.execute(
            "ALTER TABLE event ADD COLUMN stage text; INSERT INTO event"
            " SELECT i, 1, now(), 'late', now(), CASE i WHEN 21 THEN 'won' WHEN 22 THEN 'lost' END"
            " FROM generate_series(21, 23) AS i"
        )
    assert events.run()["outcome"] == "append"
    with engines(trino, lake) as (served, of_trino):

        def ids() -> list[int]:
            found = [row[0] for row in lake.query(f"SELECT id FROM lake.{table} ORDER BY 1")]
            assert [row[0] for row in trino.sql(f"SELECT id FROM {of_trino}.{table} ORDER BY 1")] == found
            return found

        delete(served.uri, changes.ORG, changes.TABLE, "stage=won")
        assert ids() == [*range(1, 21), 22, 23]
        delete(served.uri, changes.ORG, changes.TABLE, "stage=null")
        assert ids() == [22], "rows from before the column have none"


def test_a_merge_refuses_and_a_full_refresh_is_the_way_out(trino, merged: Merged) -> None:
    lake = merged.lake
    merged.sql(merges.DEALS)
    assert merged.run(merges.TABLE)["version"] == "v1"
    with engines(trino, lake) as (served, of_trino):
        count = f"SELECT count(*) FROM {{}}.org_{merges.ORG}.{merges.TABLE}"
        delete(served.uri, merges.ORG, merges.TABLE, "id=1,region=r1", "id=2,region=none")
        assert lake.query(count.format("lake")) == trino.sql(count.format(of_trino)) == [[4999]]
        merged.sql(merges.CHANGES[0])
        refused = lake.run("run", "--table", merges.TABLE)
        said = refused.stdout + refused.stderr
        assert refused.returncode != 0 and "deleted rows of the table by equality" in said, said
        assert "--full-refresh" in said
        assert lake.query(count.format("lake")) == [[4999]], "nothing of it is there"
        lake.polder("run", "--json", "--table", merges.TABLE, "--full-refresh")
        merged.check_deals()
        merged.sql(merges.CHANGES[1])
        assert merged.run(merges.TABLE)["outcome"] == "merge"
        merged.check_deals()
