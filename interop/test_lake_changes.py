"""What happens to a table between runs, as other engines see it: new partitions for new files, a
rewrite of the old ones, a rollback and the way back, columns that evolve."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psycopg
import pytest
from lakes import MORE_READERS, PLACES, READERS, Lake, Services, at
from pyiceberg.expressions import And, GreaterThanOrEqual, LessThan

ORG, TABLE = "changes", "event"

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.pg]
type = "postgres"
url = "env:CHANGES_URL"
[sources.exports]
type = "files"
url = "./exports"
"""
PIPELINE = """
orgs:
  - id: changes
    tables:
      - {{ name: event, source: pg, from: public.event, mode: append, cursor: seen_at, key: [id], partition: {partition}, on_schema_change: {policy} }}
"""
DOCUMENTS = """
orgs:
  - id: changes
    tables:
      - { name: document, source: exports, from: "*.jsonl", mode: append }
"""
# By account in the source's layout: every page has rows of every month.
EVENTS = """
CREATE TABLE event (
  id bigint PRIMARY KEY, account int NOT NULL, happened_at timestamptz NOT NULL, note text,
  seen_at timestamptz NOT NULL)
"""
INSERT = """
INSERT INTO event
SELECT i, i / 100, timestamptz '2026-01-01 00:00Z' + i %% 90 * interval '1 day', md5(i::text),
       now() - interval '1 hour' FROM generate_series(%s::int, %s::int) AS i
"""
FEBRUARY = And(
    GreaterThanOrEqual("happened_at", "2026-02-01T00:00:00+00:00"),
    LessThan("happened_at", "2026-03-01T00:00:00+00:00"),
)


class Events:
    """A source table and the lake table made from it."""

    def __init__(self, services: Services, name: str, work: Path, place: str):
        self.url = services.database(name)
        self.lake = Lake(services, work, {"CHANGES_URL": self.url})
        (work / "polder.toml").write_text(at(place, services, CONFIG))
        (work / "pipelines").mkdir()
        self.partition("[]")

    def partition(self, by: str, policy: str = "refresh") -> None:
        pipeline = PIPELINE.format(partition=by, policy=policy)
        (self.lake.work / "pipelines/changes.yaml").write_text(pipeline)

    def insert(self, first: int, last: int) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(INSERT, [first, last])

    def run(self, *args: str) -> dict:
        return self.lake.polder("run", "--json", *args)["runs"][0]["report"]

    def check(self, first: int, last: int) -> None:
        """Every reader, and Polder itself, sees exactly these ids, each with its own note."""
        with psycopg.connect(self.url) as connection:
            query = "SELECT id, note FROM event WHERE id BETWEEN %s AND %s ORDER BY id"
            expected = connection.execute(query, [first, last]).fetchall()
        for reader in READERS + MORE_READERS:
            found = self.lake.read(reader, ORG, TABLE, "id", "note").sort_by("id")
            rows = list(zip(found["id"].to_pylist(), found["note"].to_pylist()))
            assert rows == expected, reader
        query = "SELECT id, note FROM lake.org_changes.event ORDER BY id"
        assert [tuple(row) for row in self.lake.query(query)] == expected

    def evolved(self, by: str = '["month(happened_at)"]') -> list[tuple]:
        """Fills the lake table in two runs, between which columns evolve in place; its rows."""
        self.partition(by, "evolve")
        self.insert(1, 500)
        self.run()
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "ALTER TABLE event RENAME COLUMN note TO remark; ALTER TABLE event ADD COLUMN tags text[];"
                "INSERT INTO event SELECT 501, 5, now(), 'new', now(), ARRAY['a', NULL]"
            )
            rows = connection.execute("SELECT id, remark, tags FROM event ORDER BY id").fetchall()
        self.run()
        return rows

    def repartition(self) -> None:
        """Brings every file into other partitions."""
        self.partition('["bucket(4, account)"]', "evolve")
        report = self.lake.polder("maintain", "repartition", "--json")["tables"][0]
        assert report["commits"] == 1

    def roll_back(self, to: str) -> str:
        """Makes an older state the current one; the name of the state before."""
        moved = ["rollback", "--org", ORG, "--table", TABLE, "--json", "--to", to]
        return self.lake.polder(*moved)["rollback"]["kept_as"]

    def check_evolved(self, rows: list[tuple], *lakes: Lake) -> None:
        """Every reader, and Polder itself, sees exactly these rows: readers of the catalog's database,
        or of `lakes` instead."""
        for lake in lakes or [self.lake]:
            for reader in READERS + MORE_READERS:
                found = lake.read(reader, ORG, TABLE, "id", "remark", "tags").sort_by("id")
                columns = (found[name].to_pylist() for name in found.column_names)
                assert list(zip(*columns)) == rows, reader
        query = "SELECT id, remark, tags FROM lake.org_changes.event ORDER BY id"
        assert [tuple(row) for row in self.lake.query(query)] == rows

    def meanwhile(self, *command: str) -> dict:
        """Runs the binary; whoever reads the table until it has ended gets the same answer each time."""
        def answers() -> list:
            sums = "SELECT count(*), sum(id), max(note) FROM lake.org_changes.event"
            read = [self.lake.read(reader, ORG, TABLE, "id")["id"].to_pylist() for reader in READERS]
            return [*self.lake.query(sums), *(sorted(ids) for ids in read)]

        before = answers()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.lake.polder, *command)
            asked = 0
            while asked == 0 or not running.done():
                assert answers() == before
                asked += 1
        assert answers() == before
        return running.result()

    def february(self) -> tuple[int, int, int]:
        """Rows of one month, the bytes PyIceberg reads for them, and the bytes there are."""
        table = self.lake._catalog.load_table((f"org_{ORG}", TABLE))
        size = lambda tasks: sum(task.file.file_size_in_bytes for task in tasks)
        scan = table.scan(row_filter=FEBRUARY)
        return scan.to_arrow().num_rows, size(scan.plan_files()), size(table.scan().plan_files())


@contextmanager
def events_in(place: str, services: Services, suffix: str, work: Path) -> Iterator[Events]:
    """The same, its lake in one of `PLACES`."""
    name = f"changes_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    events = Events(services, name, work, place)
    with psycopg.connect(events.url) as connection:
        connection.execute(EVENTS)
    yield events
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def events(request, services: Services, suffix: str, tmp_path: Path) -> Iterator[Events]:
    place = getattr(request, "param", "local")
    with events_in(place, services, suffix, tmp_path) as events:
        yield events


# For tests that go through both on local disk and on S3.
anywhere = pytest.mark.parametrize("events", PLACES, indirect=True)


@anywhere
def test_partitions_follow_the_configuration(events: Events) -> None:
    events.insert(1, 9000)
    assert events.run()["outcome"] == "full_refresh"
    rows, read, total = events.february()
    assert (rows, read) == (2800, total), "without partitions every file is read"
    events.partition('["month(happened_at)"]')
    events.insert(9001, 9900)
    assert events.run()["outcome"] == "append", "no reload"
    events.check(1, 9900)
    report = events.meanwhile("maintain", "repartition", "--json")["tables"][0]
    assert (report["rows"], report["commits"]) == (9000, 1)
    events.check(1, 9900)
    rows, read, total = events.february()
    assert rows == 3080
    assert read < total * 0.4, "a month's files only"
    again = events.lake.polder("maintain", "repartition", "--json")["tables"][0]
    assert again["commits"] == 0
    answer = events.lake.polder(
        "query", "--format", "json",
        "SELECT count(*) AS n FROM lake.org_changes.event"
        " WHERE happened_at >= '2026-02-01T00:00:00Z' AND happened_at < '2026-03-01T00:00:00Z'",
    )
    assert answer == [{"n": 3080}]


@anywhere
def test_a_rollback_is_seen_by_all_and_loses_no_row(events: Events) -> None:
    events.insert(1, 500)
    events.run()
    events.partition('["month(happened_at)"]')
    events.insert(501, 700)
    assert events.run("--full-refresh")["version"] == "v2"
    events.insert(701, 800)
    events.run()
    events.check(1, 800)
    before = events.lake.tables()[ORG, TABLE]
    back = ["rollback", "--org", ORG, "--table", TABLE, "--json", "--to"]
    done = events.lake.polder(*back, "v1")["rollback"]
    events.check(1, 500)
    listed = events.lake.polder("versions", "--org", ORG, "--json")[0]
    assert [(v["version"], v["current"]) for v in listed["versions"]] == [("v1", True), ("v2", False)]
    # The next run reads on from v1's checkpoint, into the partitions asked for.
    assert events.run()["outcome"] == "append"
    events.check(1, 800)
    events.lake.polder(*back, done["kept_as"])
    events.check(1, 800)
    now = events.lake.tables()[ORG, TABLE]
    assert now["snapshot_id"] == before["snapshot_id"]
    assert now["partition"] == before["partition"]
    events.insert(801, 810)
    assert events.run()["rows_written"] == 10
    events.check(1, 810)


EVOLVE = """
ALTER TABLE event RENAME COLUMN note TO remark;
ALTER TABLE event ALTER COLUMN account TYPE bigint;
ALTER TABLE event ADD COLUMN tags text[];
INSERT INTO event SELECT 1000 + i, 5000000000 + i, now(), md5(i::text), now(), ARRAY['a', NULL]
FROM generate_series(1, 10) AS i;
ALTER TABLE event DROP COLUMN happened_at;
"""


@anywhere
def test_columns_evolve_in_place_under_every_reader(events: Events) -> None:
    events.partition('["bucket(4, account)", "month(seen_at)"]', "evolve")
    events.insert(1, 500)
    events.run()
    with psycopg.connect(events.url) as connection:
        connection.execute(EVOLVE)
        expected = connection.execute(
            "SELECT id, account, remark, tags FROM event ORDER BY id"
        ).fetchall()
    report = events.run()
    assert (report["outcome"], report["rows_written"]) == ("append", 10), "no reload"
    kept = {}
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, ORG, TABLE).sort_by("id")
        assert found.column_names == ["id", "account", "happened_at", "remark", "seen_at", "tags"]
        columns = [found[name].to_pylist() for name in ("id", "account", "remark", "tags")]
        assert list(zip(*columns)) == expected, reader
        kept[reader] = found["happened_at"].null_count
    assert kept == dict.fromkeys(READERS + MORE_READERS, 10), "the dropped column is kept for its rows"
    # The old state has its own columns still, and a rewrite of old files changes no value.
    metadata = events.lake._catalog.load_table((f"org_{ORG}", TABLE)).metadata
    first = min(metadata.snapshots, key=lambda snapshot: snapshot.sequence_number)
    old = events.lake.read_with_pyiceberg(ORG, TABLE, snapshot_id=first.snapshot_id)
    assert old.column_names == ["id", "account", "happened_at", "note", "seen_at"]
    events.partition('["month(seen_at)"]', "evolve")
    events.run()
    report = events.lake.polder("maintain", "repartition", "--json")["tables"][0]
    assert report["rows"] == 510
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, ORG, TABLE, "id", "account", "remark", "tags").sort_by("id")
        assert list(zip(*(found[name].to_pylist() for name in found.column_names))) == expected


def test_a_table_is_read_after_a_column_went_that_it_was_partitioned_by(events: Events) -> None:
    events.partition('["month(happened_at)"]')
    events.insert(1, 300)
    events.run()
    events.partition("[]")
    with psycopg.connect(events.url) as connection:
        connection.execute("ALTER TABLE event DROP COLUMN happened_at")
    assert events.run("--full-refresh")["version"] == "v2"
    events.check(1, 300)
    with psycopg.connect(events.url) as connection:
        connection.execute("INSERT INTO event SELECT 301, 3, md5('301'), now() - interval '1 minute'")
    events.run()
    events.check(1, 301)
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, ORG, TABLE)
        assert found.column_names == ["id", "account", "note", "seen_at"], reader
    v1 = events.lake.load(ORG, TABLE).metadata.refs["v1"].snapshot_id
    old = events.lake.read_with_pyiceberg(ORG, TABLE, snapshot_id=v1)
    assert old["happened_at"].null_count == 0 and len(old) == 300


def test_members_of_documents_evolve_in_place(events: Events) -> None:
    (events.lake.work / "pipelines/changes.yaml").write_text(DOCUMENTS)
    days = [
        [{"id": 1, "s": {"a": 1}, "l": [{"x": 1}, {"x": None}]}, {"id": 2, "s": None, "l": []}],
        [{"id": 3, "s": {"b": "t", "a": 2**40}, "l": [{"y": True, "x": 5}], "tags": ["t"]}],
    ]
    outcomes = []
    (events.lake.work / "exports").mkdir()
    for number, rows in enumerate(days):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (events.lake.work / f"exports/{number}.jsonl").write_text(lines)
        outcomes.append(events.run()["outcome"])
    assert outcomes == ["full_refresh", "append"], "what is new was in no earlier document"
    expected = [
        {"id": 1, "s": {"a": 1, "b": None}, "l": [{"x": 1, "y": None}, {"x": None, "y": None}], "tags": None},
        {"id": 2, "s": None, "l": [], "tags": None},
        {"id": 3, "s": {"a": 2**40, "b": "t"}, "l": [{"x": 5, "y": True}], "tags": ["t"]},
    ]
    names = ("id", "s", "l", "tags")
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, ORG, "document", *names).sort_by("id").to_pylist()
        assert found == expected, reader
    answer = events.lake.polder(
        "query", "--format", "json",
        "SELECT sum(s['a']) AS a, count(s['b']) AS b FROM lake.org_changes.document",
    )
    assert answer == [{"a": 2**40 + 1, "b": 1}]


def test_old_versions_are_let_go_and_all_others_stay_whole(events: Events) -> None:
    for last in [300, 400, 500]:
        events.insert(last - 99 if last > 300 else 1, last)
        events.run("--full-refresh")
    events.insert(501, 510)
    events.run()
    only = ["maintain", "expire", "--json", "--days", "0"]
    planned = events.lake.polder(*only, "--dry-run")["tables"][0]
    assert (planned["names"], planned["snapshots"], planned["files"]) == (["v1"], 1, None)
    files = {path for path in (events.lake.work / "lake").rglob("*") if path.is_file()}
    done = events.lake.polder(*only)["tables"][0]
    assert (done["names"], done["snapshots"], done["files"]) == (["v1"], 1, 3)
    left = {path for path in (events.lake.work / "lake").rglob("*") if path.is_file()}
    assert len(files - left) == 3, "a manifest list, a manifest and a data file"
    events.check(1, 510)
    table = events.lake._catalog.load_table((f"org_{ORG}", TABLE))
    v2 = table.metadata.refs["v2"].snapshot_id
    assert len(events.lake.read_with_pyiceberg(ORG, TABLE, snapshot_id=v2)) == 400
    refused = events.lake.run("rollback", "--org", ORG, "--table", TABLE, "--to", "v1")
    assert refused.returncode == 1 and "there are main, v2, v3" in refused.stderr
    assert events.lake.polder(*only)["tables"][0]["snapshots"] == 0


def test_small_files_are_merged_and_what_is_left_behind_goes(events: Events) -> None:
    events.partition('["month(happened_at)"]')
    for last in range(100, 1001, 100):
        events.insert(last - 99, last)
        events.run()
    report = events.lake.polder("maintain", "optimize", "--json")["tables"][0]
    assert (report["files_replaced"], report["rows"]) == (report["before"]["files"], 1000)
    assert report["after"]["files"] == report["files_written"] <= 4, "one for each month"
    events.check(1, 1000)
    again = events.lake.polder("maintain", "optimize", "--json")["tables"][0]
    assert (again["files_replaced"], again["commits"]) == (0, 0)

    folder = Path(events.lake.load(ORG, TABLE).location().removeprefix("file://"))
    lost = folder / "data/of-a-run-that-died.parquet"
    lost.write_bytes(b"rows")
    orphans = ["maintain", "orphans", "--json", "--older-than", "0"]
    found = events.lake.polder(*orphans)["tables"][0]
    assert found["quarantined"] >= 1 and not lost.exists()
    events.check(1, 1000)
    assert events.lake.polder("maintain", "orphans", "--restore", "--json")["orgs"][0]["restored"] >= 1
    assert lost.exists()
    done = events.lake.polder("maintain", "all", "--org", ORG, "--json")["tables"]
    assert [row["action"] for row in done] == ["retention", "optimize", "versions", "metadata", "orphans"]
    history = "SELECT action, outcome FROM lake.polder_management.maintenance_history ORDER BY started_at"
    rows = events.lake.polder("query", "--format", "json", history)
    actions = ["optimize", "optimize", "orphans", "retention", "optimize", "versions", "metadata", "orphans"]
    assert [row["action"] for row in rows] == actions
    assert [row["outcome"] for row in rows[:3]] == ["done", "nothing_to_do", "done"]
    whole = events.lake.polder("maintain", "all", "--json")["tables"]
    assert ("polder_management", "maintenance_history", "optimize") in {
        (row["org"], row["table"], row["action"]) for row in whole
    }
    assert len(events.lake.polder("query", "--format", "json", history)) > len(rows)
    events.check(1, 1000)


def test_rows_that_are_too_old_go_and_are_not_read_again(events: Events) -> None:
    """Days of 2026-01-01 to 2026-03-31, of which the last are kept."""
    days = (date.today() - date(2026, 3, 15)).days
    pipeline = events.lake.work / "pipelines/changes.yaml"
    kept = f'retention: {{ column: happened_at, keep: "{days} days" }}, partition'
    events.insert(1, 900)
    assert events.run()["rows_too_old"] == 0
    pipeline.write_text(pipeline.read_text().replace("partition", kept))
    kept_all = events.lake.polder("maintain", "retention", "--json", "--dry-run")["tables"]
    assert all(table.get("rows_removed", 0) == 0 for table in kept_all), "not before it is confirmed"
    plan = events.lake.polder("plan", "--json")
    events.lake.polder("apply", "--yes", "--plan", plan["hash"], "--json")
    waiting = events.lake.polder("maintain", "all", "--json")
    assert waiting["tables"][0].get("rows_removed", 0) == 0, "not while it can be taken back"
    [pending] = waiting["pending"]
    assert pending["org"] == ORG and pending["goes"][0].startswith("retention: for ever -> ")
    assert events.run("--full-refresh")["rows_too_old"] == 0, "nor by a run"
    assert len(events.lake.read_with_duckdb(ORG, TABLE)) == 900
    planned = events.lake.polder("maintain", "retention", "--json", "--dry-run", "--now")["tables"][0]
    with psycopg.connect(events.url) as connection:
        old = "SELECT count(*) FROM event WHERE happened_at < '2026-03-15Z'"
        [expected] = connection.execute(old).fetchone()
    assert 0 < planned["rows_removed"] == expected < 900
    done = events.lake.polder("maintain", "retention", "--json", "--now")["tables"][0]
    assert done["rows_removed"] == expected
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, ORG, TABLE, "happened_at")["happened_at"].to_pylist()
        assert len(found) == 900 - expected and min(found).date() >= date(2026, 3, 15), reader
    report = events.run("--full-refresh")
    assert (report["rows_read"], report["rows_too_old"]) == (900, expected), "they do not come back"
    assert len(events.lake.read_with_duckdb(ORG, TABLE)) == 900 - expected
