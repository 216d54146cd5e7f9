"""`engine: trino`: a real Trino optimizes tables and answers queries, and Polder tells what it did."""

import csv
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
import uuid
from decimal import Decimal

import pytest
from lakes import FROM_FILES, KEYS, MORE_READERS, READERS, Lake, s3_of
from test_rest_catalog import serving
from test_trino import catalog
from trino_server import Trino
from waits import SECONDS_MAX, until

PIPELINE = """
orgs:
  - id: "401"
    tables:
      - { name: event, source: files, from: "event/*.csv", mode: append, engine: trino }
      - { name: visit, source: files, from: "visit/*.csv", mode: append }
"""
FILES = 6
ROWS = 50


def section(trino: Trino, lake: str, more: str = "") -> str:
    return f'[trino]\nurl = "http://127.0.0.1:{trino.port}"\nuser = "test"\ncatalog = "{lake}"\n{more}'


@pytest.fixture
def made(services, trino, tmp_path):
    """A lake of two tables of six files each; its name in Trino."""
    name = f"lake_engine_{uuid.uuid4().hex[:8]}"
    (tmp_path / "polder.toml").write_text(FROM_FILES + section(trino, name))
    for folder in ["pipelines", "exports/event", "exports/visit"]:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pipelines/orgs.yaml").write_text(PIPELINE)
    lake = Lake(services, tmp_path, {})
    for number in range(FILES):
        ids = range(number * ROWS, (number + 1) * ROWS)
        text = "id,amount,name\n" + "".join(f"{i},{i}.25,n{i % 7}\n" for i in ids)
        for table in ["event", "visit"]:
            (tmp_path / f"exports/{table}/{number}.csv").write_text(text)
        lake.polder("run", "--json")
    return lake, name


def files(lake: Lake, table: str) -> int:
    return len(list(lake.load("401", table).scan().plan_files()))


def test_optimize_is_trinos_where_the_table_says_so(trino, made):
    lake, name = made
    with serving(lake.services.polder, lake.work, dict(os.environ)) as uri:
        served = lake.through(uri)
        with catalog(trino, uri, served.for_trino(), name):
            planned = lake.polder("maintain", "optimize", "--dry-run", "--json")["tables"]
            assert [row["engine"] for row in planned] == ["trino", "embedded"]
            assert files(lake, "event") == FILES
            trino.sql(f"DELETE FROM {name}.org_401.event WHERE id % 10 = 3")
            left = [i for i in range(FILES * ROWS) if i % 10 != 3]
            done = {row["table"]: row for row in lake.polder("maintain", "optimize", "--json")["tables"]}
            assert {table: row["engine"] for table, row in done.items()} == {"event": "trino", "visit": "embedded"}
            event, visit = done["event"], done["visit"]
            assert (event["files_replaced"], event["files_written"], event["commits"]) == (FILES, 1, 1)
            assert (event["rows"], event["rows_deleted"]) == (len(left), FILES * ROWS - len(left))
            assert event["bytes_read"] > 0 and event["bytes_written"] > 0
            assert (visit["files_replaced"], visit["rows"]) == (FILES, FILES * ROWS)
            assert {key for key in event if key != "engine"} == {key for key in visit if key != "engine"}
            [query] = {
                s.summary.additional_properties["trino_query_id"]
                for s in lake.load("401", "event").snapshots()
                if s.summary.operation.value == "replace"
            }
            [[text]] = trino.sql(f"SELECT query FROM system.runtime.queries WHERE query_id = '{query}'")
            assert "EXECUTE optimize" in text
            for reader in READERS + MORE_READERS:
                found = lake.read(reader, "401", "event", "id").sort_by("id")
                assert found["id"].to_pylist() == left, reader
            again = lake.polder("maintain", "optimize", "--table", "event", "--json")["tables"][0]
            assert (again["files_replaced"], again["commits"]) == (0, 0)
            history = lake.query(
                "SELECT outcome, files_before, files_after FROM lake.polder_management.maintenance_history"
                " WHERE table_name = 'event' AND action = 'optimize' ORDER BY started_at"
            )
            assert history == [["done", FILES, 1], ["nothing_to_do", 1, 1]]
            # The next run goes on from its own checkpoint, on top of what Trino did.
            (lake.work / "exports/event/9.csv").write_text("id,amount,name\n1000,1,x\n")
            lake.polder("run", "--json")
            assert trino.sql(f"SELECT count(*) FROM {name}.org_401.event") == [[len(left) + 1]]


def test_optimize_by_default_and_what_trino_cannot_find(trino, made):
    lake, name = made
    text = (lake.work / "polder.toml").read_text()
    (lake.work / "polder.toml").write_text(text + "default = true\n")
    with serving(lake.services.polder, lake.work, dict(os.environ)) as uri:
        with catalog(trino, uri, lake.through(uri).for_trino(), name):
            tables = lake.polder("maintain", "optimize", "--json")["tables"]
            assert [(row["table"], row["engine"], row["files_written"]) for row in tables] == [
                ("event", "trino", 1), ("visit", "trino", 1),
            ]
    # Trino has no such catalog any more: nothing is done, and the table is as it was.
    failed = lake.run("maintain", "optimize", "--json", "--table", "event")
    assert failed.returncode != 0 and "query.invalid" in failed.stderr + failed.stdout
    assert files(lake, "event") == 1
    checked = lake.run("check", "--json")
    assert any(row["what"] == "trino" and not row["ok"] for row in json.loads(checked.stdout))


def ask(uri: str, body: dict, key: str) -> tuple[int, dict]:
    request = urllib.request.Request(
        uri.removesuffix("/iceberg") + "/v1/query", json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_queries_are_the_operators_and_read_only(trino, made):
    lake, name = made
    (lake.work / "polder.toml").write_text(FROM_FILES + KEYS + section(trino, name))
    create = ["keys", "create", "--json", "--role"]
    operator = lake.polder(*create, "operator")["key"]
    reader = lake.polder(*create, "reader", "--org", "401")["key"]
    client = lake.polder(*create, "writer", "--org", "401")["key"]
    with serving(lake.services.polder, lake.work, dict(os.environ)) as uri:
        settings = lake.through(uri).for_trino() | {
            "iceberg.rest-catalog.security": "OAUTH2", "iceberg.rest-catalog.oauth2.token": operator,
        }
        with catalog(trino, uri, settings, name):
            sql = f"SELECT count(*) AS n, sum(amount) AS s FROM {name}.org_401.event"
            status, found = ask(uri, {"sql": sql, "engine": "trino"}, operator)
            assert status == 200 and found["rows"][0][0] == FILES * ROWS, found
            own = sql.replace(f"{name}.", "lake.")
            assert ask(uri, {"sql": own}, operator)[1]["rows"] == found["rows"]
            for key in [reader, client]:
                status, refused = ask(uri, {"sql": sql, "engine": "trino"}, key)
                assert (status, refused["code"]) == (403, "control.denied"), refused
            for statement in [
                f"DELETE FROM {name}.org_401.event", f"DROP TABLE {name}.org_401.event",
                f"EXPLAIN ANALYZE DELETE FROM {name}.org_401.event",
                f"ALTER TABLE {name}.org_401.event EXECUTE optimize",
            ]:
                status, refused = ask(uri, {"sql": statement, "engine": "trino"}, operator)
                assert (status, refused["code"]) == (400, "query.invalid"), refused
            status, refused = ask(uri, {"sql": f"SELECT nothing FROM {name}.org_401.event", "engine": "trino"}, operator)
            assert status == 400 and "'nothing'" in json.dumps(refused), refused
            assert ask(uri, {"sql": sql, "engine": "trino"}, operator)[1]["rows"] == found["rows"]


def test_a_query_that_is_stopped_is_cancelled_in_trino(trino, made):
    lake, name = made
    source = f"tpch_{uuid.uuid4().hex[:8]}"
    trino.sql(f"CREATE CATALOG {source} USING tpch")
    mark = uuid.uuid4().hex
    sql = f"SELECT count(*) AS c_{mark} FROM {source}.sf100.lineitem WHERE tax + extendedprice < 0"
    command = [lake.services.polder, "query", "--engine", "trino", sql]
    state = (
        "SELECT state, error_code FROM system.runtime.queries"
        f" WHERE source = 'polder' AND query LIKE '%c_{mark}%'"
    )
    process = subprocess.Popen(command, cwd=lake.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: trino.sql(state) == [["RUNNING", None]])
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS_MAX)
        until(lambda: trino.sql(state) == [["FAILED", "USER_CANCELED"]])
    finally:
        process.kill()
        trino.sql(f"DROP CATALOG {source}")


def test_large_answers_come_from_storage_which_is_empty_then(services, trino, made):
    lake, _ = made
    s3 = s3_of(services)

    def segments() -> int:
        return s3.list_objects_v2(Bucket=trino.bucket)["KeyCount"]

    trino.sql("CREATE CATALOG spooled USING tpch")
    try:
        rows = "spooled.sf1.orders WHERE orderkey < 1000000"
        sql = f"SELECT orderkey, totalprice, comment FROM {rows}"
        command = [services.polder, "query", "--engine", "trino", "--format", "csv", sql]
        with subprocess.Popen(command, cwd=lake.work, stdout=subprocess.PIPE, text=True) as asking:
            # Its pages wait until somebody reads.
            until(lambda: segments() > 0)
            found = list(csv.DictReader(asking.stdout))
        assert asking.returncode == 0
        sums = "count(*), sum(orderkey), sum(cast(totalprice AS decimal(12, 2))), sum(length(comment))"
        [expected] = trino.sql(f"SELECT {sums} FROM {rows}")
        counted = [
            len(found),
            sum(int(row["orderkey"]) for row in found),
            sum(Decimal(row["totalprice"]) for row in found),
            sum(len(row["comment"]) for row in found),
        ]
        assert counted == list(expected)
        until(lambda: segments() == 0)
    finally:
        trino.sql("DROP CATALOG spooled")
