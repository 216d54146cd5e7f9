"""`engine: trino` with `[trino] ingest`: a real Trino reads PostgreSQL and writes a run's rows. The tables are those
of the embedded engine, row for row and in their reports, and nobody sees a run that did not end."""

import json
import os
import subprocess
import uuid
from contextlib import contextmanager
from threading import Thread

import psycopg
import pytest
from fidelity.lake import make_lake, runs
from lakes import MORE_READERS, READERS, Lake
from test_rest_catalog import serving
from test_trino import catalog
from waits import until

SOURCE = """
[sources.{name}]
type = "postgres"
url = "env:INGEST_URL"
[trino]
url = "http://127.0.0.1:{port}"
user = "test"
catalog = "{lake}"
ingest = true
"""
TABLE = """
CREATE TYPE stage AS ENUM ('won', 'größer');
CREATE TABLE deal (
    id bigint PRIMARY KEY, org_id text NOT NULL, changed timestamptz NOT NULL, amount numeric(18, 2), meta jsonb,
    owner uuid, "Name" text, open boolean, day date, at timestamp, hour time, seats int, few smallint, big numeric,
    ratio double precision, part real, raw bytea, code char(5), label varchar(9), stage stage, ip inet, tags text[],
    numbers bigint[], lasts interval, gone_at timestamptz
);
"""
# Of three orgs, with all that a type has of odd values, and rows of nulls.
ROWS = """
INSERT INTO deal SELECT i, (400 + i % 3)::text, '2024-01-01T00:00:00Z'::timestamptz + i * interval '7 hours', i * 1.25 - 300,
    jsonb_build_object('a', i, 'ü', null, 'l', '[1, 2.50]'::jsonb), md5(i::text)::uuid, 'Grüße ' || i || ' 漢字 🙂', i % 2 = 0,
    date '2024-01-01' - i, timestamp '1969-12-31 23:59:59.999999' + i * interval '1 day', time '00:00:00.000001' * 1
        + i * interval '1 second', -i, i % 100, i * 1e30 + 0.10, i / 3.0, i / 7.0, decode(md5(i::text), 'hex'), 'ab', 'x y ',
    (ARRAY['won', 'größer'])[1 + i % 2]::stage, '10.1.2.3/8', ARRAY['a', NULL, '"' || i, ''], ARRAY[i, NULL, -i],
    i * interval '1 month 2 days 03:04:05.000006', NULL
FROM generate_series(1, 900) AS i;
INSERT INTO deal (id, org_id, changed) SELECT i, '401', '2024-02-01T00:00:00Z' FROM generate_series(2001, 2005) AS i;
INSERT INTO deal (id, org_id, changed, amount, day, at, "Name", raw, tags, numbers, code, ratio, part, hour) VALUES
    (3001, '401', '0001-01-01T00:00:00Z', -9999999999999999.99, '0001-01-01', '0001-01-01', '', '', '{}', '{}', '', '-0', '-0', '00:00'),
    (3002, '401', '2024-02-02T00:00:00.000001Z', 9999999999999999.99, '9999-12-31', '9999-12-31 23:59:59.999999', E'\\t''\\\\', '\\x00',
        '{NULL}', '{9223372036854775807}', '  x', 'NaN', '-Infinity', '23:59:59.999999');
"""
CHANGES = """
UPDATE deal SET amount = amount + 1, changed = '2024-12-01T00:00:00Z' WHERE id % 10 = 0;
UPDATE deal SET gone_at = '2024-12-01T00:00:00Z', changed = '2024-12-01T00:00:01Z' WHERE id IN (7, 8, 9, 10, 11, 12);
DELETE FROM deal WHERE id % 50 = 1;
INSERT INTO deal (id, org_id, changed, "Name") SELECT i, (400 + i % 3)::text, '2024-12-02T00:00:00Z', 'new ' || i FROM generate_series(5000, 5100) AS i;
"""
SPECS = {
    "refresh": {"mode": "full_refresh", "partition": ["month(changed)", "bucket(4, id)"]},
    "added": {"mode": "append", "cursor": "changed", "key": ["id"]},
    "merged": {"mode": "merge", "cursor": "changed", "key": ["id"], "deleted_at": "gone_at"},
    "parted": {"mode": "full_refresh", "partition": ["stage", "day(at)"]},
}
ENGINES = ["embedded", "trino"]


def spec(kind: str, engine: str, source: str) -> dict:
    more = {"source": source, "from": "public.deal", "filter": "org_id = {org}"}
    return {"name": f"{kind}_{engine}", "engine": engine, **more, **SPECS[kind]}


@contextmanager
def made(services, trino, work, tables, sql=TABLE + ROWS):
    """A lake whose source is a catalog of Trino's, too, and which Trino has as `polder serve` serves it; the address
    of the source."""
    suffix = uuid.uuid4().hex[:8]
    name, lake_name = f"crm_{suffix}", f"lake_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    url = services.database(name)
    place = url.split("@")[-1]
    user = url.split("//")[1].split("@")[0].split(":")[0]
    try:
        with psycopg.connect(url) as connection:
            connection.execute(sql)
        source = SOURCE.format(name=name, port=trino.port, lake=lake_name)
        lake = make_lake(services, work, source, {"401": tables(name)}, INGEST_URL=url)
        trino.sql(
            f"CREATE CATALOG {name} USING postgresql WITH"
            f" (\"connection-url\" = 'jdbc:postgresql://{place}', \"connection-user\" = '{user}')"
        )
        with serving(services.polder, work, os.environ | lake.env) as uri:
            with catalog(trino, uri, lake.through(uri).for_trino(), lake_name):
                yield lake, url
    finally:
        trino.sql(f"DROP CATALOG IF EXISTS {name}")
        with psycopg.connect(services.postgres, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def change(url: str, sql: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(sql)


def names(lake: Lake) -> list[str]:
    """The tables that the catalog has, by whoever's word."""
    return sorted(name for _, name in lake._catalog.list_tables("org_401"))


def rows(lake: Lake, table: str, reader: str = "pyiceberg") -> list[dict]:
    return lake.read(reader, "401", table).sort_by("id").to_pylist()


# What differs between two runs whatever carries them out.
OF_A_RUN = {
    "run_id", "table", "duration_ms", "snapshot_id", "files", "file_bytes", "bytes_read", "source_snapshot", "checkpoint",
}


def alike(lake: Lake, kind: str, reports: dict) -> None:
    """Both engines have made the same table, and say the same of it."""
    embedded, trino = (reports["401", f"{kind}_{engine}"]["report"] for engine in ENGINES)
    assert {key: trino[key] for key in trino.keys() - OF_A_RUN} == {key: embedded[key] for key in embedded.keys() - OF_A_RUN}
    assert trino.keys() == embedded.keys()
    for part in ["cursor", "content_2", "guarantee"]:
        assert trino["checkpoint"].get(part) == embedded["checkpoint"].get(part), part
    tables = [lake.load("401", f"{kind}_{engine}") for engine in ENGINES]
    assert tables[0].schema().as_struct() == tables[1].schema().as_struct(), kind
    found = [rows(lake, f"{kind}_{engine}") for engine in ENGINES]
    assert len(found[0]) > 300 and repr(found[0]) == repr(found[1]), kind


def test_both_engines_make_the_same_tables(services, trino, tmp_path):
    def tables(source):
        return [spec(kind, engine, source) for kind in SPECS for engine in ENGINES]

    with made(services, trino, tmp_path, tables) as (lake, url):
        first = runs(lake)
        for kind in SPECS:
            alike(lake, kind, first)
        # Files lie where the table's own do: Trino's, and one that was written anew, as it has a NaN.
        for kind, folders in [("refresh", {"intake", "data"}), ("parted", {"data"}), ("merged", {"data"})]:
            table = lake.load("401", f"{kind}_trino")
            files = [task.file.file_path for task in table.scan().plan_files()]
            assert all(path.startswith(f"{table.location()}/") for path in files), files
            assert {path.removeprefix(f"{table.location()}/").split("/")[0] for path in files} == folders
        assert not [name for name in names(lake) if name.startswith("polder_")]
        again = runs(lake, "--table", "added_trino", "--table", "merged_trino")
        assert {run["report"]["outcome"] for run in again.values()} == {"nothing_new"}
        change(url, CHANGES)
        second = runs(lake)
        for kind in SPECS:
            alike(lake, kind, second)
        assert second["401", "merged_trino"]["report"]["rows_deleted"] == 2
        for reader in READERS + MORE_READERS:
            found = lake.read(reader, "401", "added_trino", "id")["id"].to_pylist()
            own = lake.read("pyiceberg", "401", "added_embedded", "id")["id"].to_pylist()
            assert sorted(found) == sorted(own), reader
        # Columns come, go, get other names and wider types.
        change(url, "ALTER TABLE deal ADD COLUMN more text DEFAULT 'ß'; ALTER TABLE deal DROP COLUMN raw;"
                    " ALTER TABLE deal RENAME COLUMN label TO title; ALTER TABLE deal ALTER COLUMN seats TYPE bigint")
        third = runs(lake)
        for kind in SPECS:
            alike(lake, kind, third)
        assert third["401", "refresh_trino"]["report"]["version"] == "v3"
        # The other engine goes on where one has ended.
        text = (lake.work / "polder.toml").read_text()
        (lake.work / "polder.toml").write_text(text.replace("ingest = true", "ingest = false"))
        change(url, "INSERT INTO deal (id, org_id, changed) VALUES (9000, '401', '2024-12-03T00:00:00Z')")
        fourth = runs(lake)
        for kind in SPECS:
            alike(lake, kind, fourth)


@pytest.mark.parametrize("point", ["split_read", "written", "staged"])
def test_a_run_that_dies_leaves_readers_the_old_state(services, trino, tmp_path, point):
    def tables(source):
        return [spec("added", "trino", source), spec("refresh", "trino", source)]

    with made(services, trino, tmp_path, tables) as (lake, url):
        lake.polder("run", "--json")
        before = {table: rows(lake, table) for table in ["added_trino", "refresh_trino"]}
        change(url, CHANGES)
        env = os.environ | lake.env | {"POLDER_FAIL_AT": f"{point}=kill"}
        for table in before:
            command = [services.polder, "run", "--json", "--table", table]
            done = subprocess.run(command, cwd=lake.work, env=env, capture_output=True, text=True)
            assert done.returncode == -9, done.stdout + done.stderr
            assert repr(rows(lake, table)) == repr(before[table])
            # The table that Trino has filled is there still, for nobody.
            assert (f"polder_intake_{table}" in names(lake)) == (point == "split_read")
        assert [name for _, name in sorted(lake.tables())] == sorted(before)
        done = {run["report"]["table"]: run["report"] for run in lake.polder("run", "--json")["runs"]}
        assert names(lake) == sorted(before)
        with psycopg.connect(url) as connection:
            now = connection.execute("SELECT id, changed FROM deal WHERE org_id = '401' ORDER BY id").fetchall()
        assert [(row["id"], row["changed"]) for row in rows(lake, "refresh_trino")] == now
        added = [(row["id"], row["changed"]) for row in rows(lake, "added_trino")]
        old = [(row["id"], row["changed"]) for row in before["added_trino"]]
        assert sorted(added) == sorted({*old, *now}), "each state of a row once"
        assert done["added_trino"]["rows_written"] == len(set(now) - set(old))


def test_a_change_of_the_table_is_not_waited_for_for_ever(services, trino, tmp_path):
    """Trino's read stands in line behind an ALTER TABLE that waits for the run."""
    with made(services, trino, tmp_path, lambda source: [spec("refresh", "trino", source)]) as (lake, url):
        mark = tmp_path / "planned"
        env = os.environ | lake.env | {"POLDER_FAIL_AT": f"planned=delay:{mark}"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.Popen([services.polder, "run", "--json"], cwd=lake.work, env=env, **output)
        altering = Thread(target=change, args=(url, "ALTER TABLE deal ADD COLUMN late int DEFAULT 7"))
        try:
            until(mark.exists)
            altering.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
            with psycopg.connect(url) as connection:
                until(lambda: connection.execute(waiting).fetchone() == (1,))
            mark.unlink()
            said, log = run.communicate(timeout=120)
            assert run.returncode == 0, said + log
        finally:
            run.kill()
            run.wait()
            if altering.ident:
                altering.join()
        [done] = json.loads(said)["runs"]
        assert done["report"]["attempts"] == 2 and "waits to change" in json.dumps(done["report"]["warnings"])
        assert {row["late"] for row in rows(lake, "refresh_trino")} == {7}
        assert names(lake) == ["refresh_trino"]


def test_an_org_that_leaves_is_written_for_no_more(services, trino, tmp_path):
    """A run is killed, and Trino goes on with what it was told."""
    def tables(source):
        return [spec("refresh", "trino", source) | {"filter": "org_id = {org} AND length(pg_sleep(0.5)::text) = 0"}]

    with made(services, trino, tmp_path, tables) as (lake, _):
        config = lake.work / "polder.toml"
        config.write_text(config.read_text() + '[governance]\ndrain = "1s"\n')
        env = os.environ | lake.env
        run = subprocess.Popen([services.polder, "run"], cwd=lake.work, env=env, stderr=subprocess.DEVNULL)
        own = "FROM system.runtime.queries WHERE query LIKE 'INSERT INTO %polder_intake_refresh_trino%pg_sleep%'"
        running = f"SELECT count(*) {own} AND state = 'RUNNING'"
        try:
            until(lambda: trino.sql(running) == [[1]])
        finally:
            run.kill()
            run.wait()
        assert trino.sql(running) == [[1]], "it would end some minutes later"
        done = lake.run("churn", "--org", "401", "--yes", "--by", "pytest", "--reason", "a test")
        assert done.returncode == 0, done.stdout + done.stderr
        assert trino.sql(f"SELECT state, error_code {own}") == [["FAILED", "ADMINISTRATIVELY_KILLED"]]


def failed(lake: Lake, table: str) -> str:
    done = lake.run("run", "--json", "--table", table)
    assert done.returncode != 0, done.stdout
    return json.dumps(json.loads(done.stdout), ensure_ascii=False)


def test_what_cannot_be_the_same_is_refused(services, trino, tmp_path):
    sql = """
    CREATE TABLE priced (id int PRIMARY KEY, price money);
    CREATE TABLE dated (id int PRIMARY KEY, day date); INSERT INTO dated VALUES (1, 'infinity');
    CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1);
    """

    def tables(source):
        of = lambda name: {"name": name, "source": source, "from": f"public.{name}", "engine": "trino"}  # noqa: E731
        files = {"name": "events", "source": "files", "from": "*.csv", "engine": "trino", "mode": "append"}
        return [of("priced"), of("dated"), of("plain"), {**of("plain"), "name": "Upper"}, files]

    (tmp_path / "exports").mkdir()
    with made(services, trino, tmp_path, lambda source: tables(source)[:4], sql) as (lake, url):
        text = failed(lake, "priced")
        assert "spec.invalid" in text and "price" in text and "money" in text
        text = failed(lake, "dated")
        assert "source.unrepresentable" in text and "day" in text
        assert "lower case" in failed(lake, "Upper")
        lake.polder("run", "--json", "--table", "plain")
        # A catalog of that name that is another database.
        [name] = [row[0] for row in trino.sql("SHOW CATALOGS LIKE 'crm_%'")]
        other = f"{name}_other"
        with psycopg.connect(services.postgres, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {other}")
        try:
            change(services.database(other), sql)
            place = services.database(other).split("@")[-1]
            user = url.split("//")[1].split("@")[0].split(":")[0]
            trino.sql(f"DROP CATALOG {name}")
            trino.sql(
                f"CREATE CATALOG {name} USING postgresql WITH"
                f" (\"connection-url\" = 'jdbc:postgresql://{place}', \"connection-user\" = '{user}')"
            )
            text = failed(lake, "plain")
            assert "source.failed" in text and "not the database" in text
            assert rows(lake, "plain") == [{"id": 1}]
            assert names(lake) == ["plain"]
        finally:
            trino.sql(f"DROP CATALOG {name}")
            with psycopg.connect(services.postgres, autocommit=True) as server:
                server.execute(f"DROP DATABASE {other} WITH (FORCE)")
        config = lake.work / "polder.toml"
        config.write_text(config.read_text() + '[sources.files]\ntype = "files"\nurl = "./exports"\n')
        pipelines = lake.work / "pipelines/fidelity.yaml"
        pipelines.write_text(json.dumps({"orgs": [{"id": "401", "tables": [tables(name)[4]]}]}))
        (lake.work / "exports/1.csv").write_text("id\n1\n")
        assert "reads PostgreSQL only" in failed(lake, "events")
