"""Runs that die, fail or wait at each point they pass: other engines see the state before or the one
after, whole, and the next run makes it good.

The binary does so by `POLDER_FAIL_AT`, which builds with debug assertions have."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import psycopg
import pytest
from fidelity.lake import make_lake
from lakes import Lake, Services
from pyiceberg.exceptions import NoSuchTableError

ORG = "points"
SOURCE = """
[sources.pg]
type = "postgres"
url = "env:POINTS_URL"
"""
# How the table is brought up to date; of a first load there is no state before.
KINDS = {
    "load": {"mode": "append", "cursor": "xmin", "key": ["id"]},
    "refresh": {"mode": "full_refresh"},
    "merge": {"mode": "merge", "cursor": "xmin", "key": ["id"]},
}
# In the order in which a run passes them. Readers have the new state from `published` on.
POINTS = ["planned", "split_read", "written", "staged", "audited", "published", "reported"]
ACTIONS = ["kill", "error", "delay"]
CASES = list(product(KINDS, POINTS, ACTIONS))
BEFORE = """
CREATE TABLE deal (id int PRIMARY KEY, note text NOT NULL);
INSERT INTO deal SELECT i, md5(i::text) FROM generate_series(1, 300) AS i
"""
AFTER = """
UPDATE deal SET note = 'changed' WHERE id % 3 = 0;
INSERT INTO deal SELECT i, 'new' FROM generate_series(301, 350) AS i
"""

Rows = list[tuple[int, str]]


def name(kind: str, point: str, action: str) -> str:
    return f"{kind}_{point}_{action}"


def rows_of(url: str) -> Rows:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT id, note FROM deal ORDER BY id").fetchall()


def seen(lake: Lake, table: str) -> Rows:
    """What PyIceberg and DuckDB find; nothing of Polder's has a part in it."""
    try:
        found = lake.load(ORG, table)
    except NoSuchTableError:
        return []
    if found.current_snapshot() is None:
        return []
    pyiceberg = found.scan(selected_fields=("id", "note")).to_arrow()
    rows = sorted(zip(*(pyiceberg[column].to_pylist() for column in ("id", "note"))))
    query = "SELECT id, note FROM iceberg_scan(?) ORDER BY id"
    assert lake._duckdb.execute(query, [found.metadata_location]).fetchall() == rows, table
    return rows


def command(lake: Lake, table: str, point: str, action: str) -> dict:
    env = os.environ | lake.env | {"POLDER_FAIL_AT": f"{point}={action}"}
    args = [lake.services.polder, "run", "--json", "--table", table]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return {"args": args, "cwd": lake.work, "env": env, **output}


@contextmanager
def held(lake: Lake, table: str, point: str, mark: Path) -> Iterator[None]:
    """A run that waits at the point while the block goes on, and ends well after it."""
    process = subprocess.Popen(**command(lake, table, point, f"delay:{mark}"))
    try:
        until = time.monotonic() + 60
        while not mark.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert mark.exists(), f"{table}: the run did not come by: {process.communicate()[0]}"
        yield
        mark.unlink()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{table}: {said}"
    finally:
        process.kill()
        process.wait()


def outcome(lake: Lake, table: str, point: str, action: str) -> list[Rows]:
    """What readers see at the point, or after it where the run did not survive it."""
    if action == "delay":
        with held(lake, table, point, lake.work / f"{table}.mark"):
            at_the_point = seen(lake, table)
        return [at_the_point, seen(lake, table)]
    done = subprocess.run(**command(lake, table, point, action))
    if action == "kill":
        assert done.returncode == -9, f"{table}: {done.returncode}: {done.stdout}"
    else:
        assert done.returncode > 0 and f"an error was asked for at {point}" in done.stdout, done.stdout
    return [seen(lake, table)]


class Points:
    """All cases, carried out in one lake, and what came of them."""

    def __init__(self, services: Services, url: str, work: Path):
        specs = [
            {"name": name(*case), "source": "pg", "from": "public.deal", **KINDS[case[0]]}
            for case in CASES
        ]
        with psycopg.connect(url) as connection:
            connection.execute(BEFORE)
        self.lake = make_lake(services, work, SOURCE, {ORG: specs}, POINTS_URL=url)
        known = [f"--table={name(*case)}" for case in CASES if case[0] != "load"]
        self.lake.polder("run", "--json", *known)
        self.before = rows_of(url)
        with psycopg.connect(url) as connection:
            connection.execute(AFTER)
        self.after = rows_of(url)
        self.outcomes = {
            case: outcome(self.lake, name(*case), case[1], case[2]) for case in CASES
        }
        done = self.lake.polder("run", "--json")
        self.recovered = {
            run["report"]["table"]: run["report"] for run in done["runs"]
        }


@pytest.fixture(scope="module")
def points(services: Services, suffix: str, tmp_path_factory: pytest.TempPathFactory):
    database = f"points_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {database}")
    work = tmp_path_factory.mktemp("points")
    yield Points(services, services.database(database), work)
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.mark.parametrize("kind, point, action", CASES)
def test_readers_see_the_state_before_or_the_one_after(points: Points, kind, point, action):
    before = [] if kind == "load" else points.before
    is_public = POINTS.index(point) >= POINTS.index("published")
    expected = [points.after if is_public else before]
    if action == "delay":
        expected.append(points.after)
    assert points.before != points.after
    assert points.outcomes[kind, point, action] == expected


@pytest.mark.parametrize("kind, point, action", CASES)
def test_the_next_run_makes_it_good(points: Points, kind, point, action):
    table = name(kind, point, action)
    assert seen(points.lake, table) == points.after
    report = points.recovered[table]
    survived = action == "delay" or POINTS.index(point) >= POINTS.index("published")
    if kind != "refresh":
        # What was published is not read into the table once more.
        assert (report["rows_written"] == 0) == survived, report
    assert report["guarantee"] == ("at_least_once" if kind == "load" else "exact"), report
