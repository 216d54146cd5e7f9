"""PostgreSQL's protocol: psql, psycopg in text and in binary, and PostgreSQL's own JDBC driver as clients of
`polder serve`."""

import os
import re
import shutil
import subprocess
import threading
import time
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jvm import postgres_driver, program
from lakes import FROM_FILES, ROOT, Lake
from psycopg import sql as composed
from waits import promptly, until

from test_mcp_http import key
from test_rest_catalog import serving

PIPELINE = """
templates:
  t:
    tables:
      - { name: deal, source: files, from: "{org}/deal.parquet" }
orgs:
  - id: "401"
    tables:
      - { name: deal, source: files, from: "401/deal.parquet" }
      - { name: many, source: files, from: "401/many.parquet" }
  - { id: "402", template: t }
"""
SERVER = """
[server]
auth = "keys"
postgres = "127.0.0.1:0"
rate_limit = { per_second = 1000, burst = 1000 }
"""
SECRET = "of the other org"
MANY = 100_000
AT = datetime(2026, 1, 2, 3, 4, 5, 123_456, timezone.utc)
BIG = Decimal("-12345678901234567890123456.789012")
FOREVER = "SELECT count(*) FROM generate_series(1, 1000000000000)"


def deals(note: str) -> pa.Table:
    ids = list(range(10))
    point = pa.struct([("x", pa.int32()), ("y", pa.string())])
    columns = {
        "id": pa.array(ids, pa.int64()),
        "note": pa.array([f"{note} {i}" if i != 9 else None for i in ids], pa.string()),
        "amount": pa.array([Decimal(i) + Decimal("0.25") for i in ids], pa.decimal128(12, 2)),
        "big": pa.array([BIG] * 10, pa.decimal128(38, 6)),
        "at": pa.array([AT] * 10, pa.timestamp("us", "UTC")),
        "local": pa.array([AT.replace(tzinfo=None)] * 10, pa.timestamp("us")),
        "day": pa.array([date(2026, 1, 2)] * 10, pa.date32()),
        "share": pa.array([i / 8 for i in ids], pa.float64()),
        "open": pa.array([i % 2 == 0 for i in ids], pa.bool_()),
        "raw": pa.array([b"\x00\xff"] * 10, pa.binary()),
        "tags": pa.array([["a b", None, '"']] * 10, pa.list_(pa.string())),
        "counts": pa.array([[1, -2, None]] * 10, pa.list_(pa.int64())),
        "point": pa.array([{"x": i, "y": "z"} for i in ids], point),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def lake(services, tmp_path_factory) -> Lake:
    lake = Lake(services, tmp_path_factory.mktemp("pgwire"), {})
    (lake.work / "polder.toml").write_text(FROM_FILES + SERVER)
    (lake.work / "pipelines").mkdir()
    (lake.work / "pipelines/t.yaml").write_text(PIPELINE)
    for org, note in (("401", "note"), ("402", SECRET)):
        folder = lake.work / "exports" / org
        folder.mkdir(parents=True)
        pq.write_table(deals(note), folder / "deal.parquet")
    many = pa.table({"id": pa.array(range(MANY), pa.int64()), "text": [f"row {i}" for i in range(MANY)]})
    pq.write_table(many, lake.work / "exports/401/many.parquet")
    lake.polder("run", "--json")
    return lake


def announced(log: Path) -> int:
    """The port that a server says, which it does after its first line."""
    address = re.compile(r"postgresql://127\.0\.0\.1:(\d+)/")
    until(lambda: address.search(log.read_text()) is not None)
    return int(address.search(log.read_text()).group(1))


@pytest.fixture(scope="module")
def port(lake) -> int:
    with serving(lake.services.polder, lake.work, {}):
        yield announced(lake.work / "serve.log")


@pytest.fixture(scope="module")
def reader(lake) -> str:
    return key(lake, "reader", "401")


@pytest.fixture(scope="module")
def operator(lake) -> str:
    return key(lake, "operator")


def connect(port: int, password: str, database: str = "org_401", **more) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1", port=port, user="ann", password=password, dbname=database, autocommit=True, **more
    )


def psql(port: int, password: str, *commands: str, database: str = "org_401", ok: bool = True) -> str:
    program = shutil.which("psql")
    assert program, "psql is missing: apt-get install postgresql-client"
    command = [program, "-X", "-h", "127.0.0.1", "-p", str(port), "-U", "ann", "-d", database, "-v", "ON_ERROR_STOP=1"]
    for text in commands:
        command += ["-c", text]
    done = subprocess.run(
        command, env=os.environ | {"PGPASSWORD": password, "PGCONNECT_TIMEOUT": "60"}, capture_output=True, text=True
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_psql_reads_and_describes(port, reader, operator):
    found = psql(port, reader, "SELECT id, amount, at, counts, point FROM deal WHERE id = 7")
    line = next(line for line in found.splitlines() if line.strip().startswith("7"))
    assert [part.strip() for part in line.split("|")] == [
        "7", "7.25", "2026-01-02 03:04:05.123456+00", "{1,-2,NULL}", '{"x":7,"y":"z"}'
    ]
    listed = psql(port, reader, r"\dt")
    assert re.search(r"org_401 \| deal +\| table \| ann", listed) and "402" not in listed, listed
    described = psql(port, reader, r"\d deal")
    for name, kind in {
        "id": "bigint", "amount": "numeric(12,2)", "at": "timestamp with time zone",
        "local": "timestamp without time zone", "day": "date", "raw": "bytea", "tags": r"text\[\]", "point": "json",
    }.items():
        kind = re.escape(kind) if "\\" not in kind else kind
        assert re.search(rf"^ {name} +\| {kind} ", described, re.MULTILINE), described
    assert "org_401" in psql(port, reader, r"\dn") and "lake" in psql(port, operator, r"\l", database="lake")
    listed = psql(port, operator, r"\dt", database="lake")
    assert "org_401" in listed and "org_402" in listed
    assert "PostgreSQL" in psql(port, reader, "SELECT version()")


def test_psql_is_told_why(port, reader):
    told = psql(port, reader, "SELECT idd FROM deal", ok=False)
    assert "[query.invalid]" in told and "HINT" in told
    for text in ("EXPLAIN ANALYZE COPY deal TO '/tmp/deal.parquet'", "COPY deal TO STDOUT", "DELETE FROM deal"):
        told = psql(port, reader, text, ok=False)
        assert "only queries can be run" in told, told
    assert "search_path cannot have" in psql(port, reader, "SET search_path = org_402", ok=False)


@pytest.mark.parametrize("binary", [False, True])
def test_psycopg_has_every_type(port, reader, binary):
    with connect(port, reader) as connection, connection.cursor(binary=binary) as cursor:
        columns = composed.SQL(", ").join(composed.Identifier(name) for name in deals("").column_names)
        where = "%b" if binary else "%t"
        cursor.execute(composed.SQL("SELECT {} FROM deal WHERE id = " + where).format(columns), [7])
        row = dict(zip([column.name for column in cursor.description], cursor.fetchone()))
        assert row == {
            "id": 7, "note": "note 7", "amount": Decimal("7.25"), "big": BIG, "at": AT,
            "local": AT.replace(tzinfo=None), "day": date(2026, 1, 2), "share": 0.875, "open": False,
            "raw": b"\x00\xff", "tags": ["a b", None, '"'], "counts": [1, -2, None], "point": {"x": 7, "y": "z"},
        }
        assert row["at"].utcoffset().total_seconds() == 0
        cursor.execute("SELECT note FROM deal WHERE id = 9")
        assert cursor.fetchone() == (None,)


@pytest.mark.parametrize("form", ["%t", "%b"])
def test_psycopg_binds_parameters(port, reader, form):
    def ask(text: str, *values):
        with connect(port, reader) as connection:
            return connection.execute(text.replace("%s", form), values).fetchall()

    assert ask("SELECT id FROM deal WHERE amount = %s", Decimal("3.25")) == [(3,)]
    assert ask("SELECT count(*) FROM deal WHERE at = %s AND day = %s", AT, date(2026, 1, 2)) == [(10,)]
    assert ask("SELECT id FROM deal WHERE note = %s", "note 4") == [(4,)]
    assert ask("SELECT count(*) FROM deal WHERE note = %s", "x' OR '1'='1") == [(0,)]
    assert ask("SELECT id FROM deal WHERE share = %s AND open = %s", 0.25, True) == [(2,)]
    assert ask("SELECT id FROM deal ORDER BY id LIMIT %s", 2) == [(0,), (1,)]
    assert ask("SELECT count(*) FROM deal WHERE array_has(%s, id)", [1, 2, 99]) == [(2,)]
    assert ask("SELECT %s::text", "é\\' \" $1; --") == [("é\\' \" $1; --",)]
    assert ask("SELECT count(*) FROM deal WHERE id < %s", -1) == [(0,)]
    assert ask("SELECT %s::text", UUID(int=7)) == [(str(UUID(int=7)),)]


def test_a_text_is_compared_as_the_column_it_is_compared_with(port, reader):
    # Without a type of its own: as a text '10' would be less than '7'.
    with connect(port, reader) as connection:
        found = connection.execute("SELECT count(*) FROM many WHERE id < %s", ["10"]).fetchone()
    assert found == (10,)


def test_a_hundred_thousand_rows_come_in_parts(port, reader):
    with connect(port, reader) as connection:
        rows = connection.cursor().stream("SELECT id, text FROM many")
        total = sum(number for number, text in rows if text == f"row {number}")
    assert total == MANY * (MANY - 1) // 2


def test_a_foreign_org_is_not_there(port, reader):
    with connect(port, reader, "lake") as connection:
        told = []
        for org in ("402", "409"):
            with pytest.raises(psycopg.errors.InvalidSchemaName) as raised:
                connection.execute(f"SELECT * FROM lake.org_{org}.deal")
            told.append(str(raised.value).replace(org, ""))
        assert told[0] == told[1]
        names = connection.execute("SELECT nspname FROM pg_catalog.pg_namespace").fetchall()
        assert ("org_401",) in names and ("org_402",) not in names
        listed = connection.execute("SELECT DISTINCT table_schema FROM information_schema.tables").fetchall()
        assert ("org_402",) not in listed
    for database in ("org_402", "org_409"):
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            connect(port, reader, database)
    for bad in ("plk_0_0", "nothing"):
        with pytest.raises(psycopg.OperationalError, match="no valid key"):
            connect(port, bad)


def test_a_statement_is_cancelled_within_a_second(port, reader):
    def cancelled() -> float:
        with connect(port, reader) as connection:
            asked, ended = [], threading.Event()

            def cancel():
                # One that comes before the statement does is nobody's, and another one has to.
                while not ended.wait(10 if asked else 0.5):
                    asked.append(time.monotonic())
                    connection.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            try:
                with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
                    connection.execute(FOREVER)
                took = time.monotonic() - asked[-1]
            finally:
                ended.set()
                thread.join()
            assert connection.execute("SELECT 1").fetchone() == (1,)
        return took

    promptly(1, cancelled)


def test_a_timeout_is_one_connections_own(port, reader):
    with connect(port, reader) as one, connect(port, reader) as other:
        one.execute("SET statement_timeout = '300ms'")
        assert other.execute("SHOW statement_timeout").fetchone() == ("0",)

        def ended() -> float:
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
                one.execute(FOREVER)
            return time.monotonic() - begun

        promptly(1.3, ended)
        one.execute("RESET ALL")
        assert one.execute("SHOW statement_timeout").fetchone() == ("0",)
    with connect(port, reader, options="-c statement_timeout=200") as begun_so:
        with pytest.raises(psycopg.errors.QueryCanceled):
            begun_so.execute(FOREVER)


def test_transactions_are_answered_and_nothing_writes(port, reader):
    with connect(port, reader) as connection:
        connection.autocommit = False
        assert connection.execute("SELECT count(*) FROM deal").fetchone() == (10,)
        for text in ("INSERT INTO deal (id) VALUES (1)", "CREATE TABLE x (a int)", "TRUNCATE deal"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(text)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                connection.execute("SELECT 1")
            connection.rollback()
        connection.execute("SELECT 1")
        connection.commit()
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute(composed.SQL("SELECT * FROM {}").format(composed.Identifier('no "table"')))


def test_an_agent_has_its_caps(lake, port):
    with connect(port, key(lake, "agent", "401")) as connection:
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            connection.execute("SELECT id FROM many")
        assert connection.execute("SELECT count(*) FROM many").fetchone() == (MANY,)


def test_the_jdbc_driver(port, reader):
    client = program(ROOT / "interop/PostgresClient.java", postgres_driver())
    address = f"jdbc:postgresql://127.0.0.1:{port}/org_401"
    done = subprocess.run([*client, address, reader], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    row = f"7|note 7|7.25|2026-01-02T03:04:05.123456Z|2026-01-02|0.875|[a b, null, \"]|{BIG}"
    assert found["row"] == [row] * 8, found
    assert found["parameters"] == ["42|é\\'|-12.340|true|2026-01-02"]
    assert found["parts"] == [f"{MANY}|{MANY * (MANY - 1) // 2}"]
    assert found["tables"] == ["[org_401|deal, org_401|many]"]
    columns = found["columns"][0]
    for expected in ("id|int8", "amount|numeric", "at|timestamptz", "tags|_text", "point|json", "raw|bytea"):
        assert expected in columns, columns
    assert "org_401" in found["schemas"][0] and "org_402" not in found["schemas"][0]
    assert found["ended"] == ["57014|true"]
    assert found["refused"] == ["25006", "3F000"]


def certificate(folder: Path) -> None:
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "server.pem",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_over_tls_and_nowhere_else_without_it(services, tmp_path):
    certificate(tmp_path)
    tls = '[server.postgres_tls]\ncertificate = "server.pem"\nkey = "file:key.pem"\n'
    lake = Lake(services, tmp_path, {})
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/t.yaml").write_text(PIPELINE)
    (tmp_path / "exports").mkdir()
    (tmp_path / "polder.toml").write_text(FROM_FILES + SERVER + tls)
    operator = key(lake, "operator")
    with serving(services.polder, tmp_path, {}):
        port = announced(tmp_path / "serve.log")
        more = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "server.pem")}
        with connect(port, operator, "lake", **more) as connection:
            assert connection.pgconn.ssl_in_use
            assert connection.execute("SELECT 1").fetchone() == (1,)
    everywhere = SERVER.replace("127.0.0.1:0", "0.0.0.0:0")
    for config, told in (
        (FROM_FILES + everywhere, "can be reached by others"),
        (FROM_FILES + SERVER + tls.replace("server.pem", "none.pem"), "cannot be read"),
        (FROM_FILES + SERVER + tls.replace("file:key.pem", "file:server.pem"), "no private key"),
    ):
        (tmp_path / "polder.toml").write_text(config)
        done = lake.run("serve", "--listen", "127.0.0.1:0")
        assert done.returncode != 0 and told in done.stderr, done.stderr
