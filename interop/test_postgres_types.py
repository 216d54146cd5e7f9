"""Every PostgreSQL type with extreme values, read back equal through DuckDB and PyIceberg.

What is expected comes from PostgreSQL itself: each column is asked for in the form the lake should
hold it in (a type without an exact counterpart as its text), and compared value by value.
"""

import datetime as dt
import math
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from lakes import READERS, Lake, Services

ORG = "types"

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.pg]
type = "postgres"
url = "env:TYPES_URL"
"""


@dataclass
class Column:
    """A column, its values as SQL literals, and how PostgreSQL is asked for what to expect."""

    type: str
    values: list[str]
    # The lake holds the value's text.
    as_text: bool = False
    # Asked for instead of the column; `{}` is its name.
    expect: str = "{}"
    name: str = field(default="", compare=False)


INTERVAL = (
    "CASE WHEN {0} IS NULL THEN NULL ELSE jsonb_build_object("
    "'months', extract(year FROM {0})::int * 12 + extract(month FROM {0})::int,"
    " 'days', extract(day FROM {0})::int,"
    " 'microseconds', extract(hour FROM {0})::bigint * 3600000000"
    " + extract(minute FROM {0})::bigint * 60000000"
    " + (extract(second FROM {0}) * 1000000)::bigint) END"
)

COLUMNS = {
    "c_bool": Column("boolean", ["true", "false"]),
    "c_int2": Column("smallint", ["-32768", "32767", "0"]),
    "c_int4": Column("integer", ["-2147483648", "2147483647", "0"]),
    "c_int8": Column("bigint", ["-9223372036854775808", "9223372036854775807", "0"]),
    "c_oid": Column("oid", ["0", "4294967295"], expect="{}::bigint"),
    "c_float4": Column("real", ["'-3.4028235e38'", "'1.1754944e-38'", "'NaN'", "'Infinity'", "'-0'"]),
    "c_float8": Column(
        "double precision",
        ["'1.7976931348623157e308'", "'5e-324'", "'NaN'", "'-Infinity'", "'-0'", "0.1"],
    ),
    "c_numeric_9_2": Column("numeric(9,2)", ["9999999.99", "-9999999.99", "0.01", "0"]),
    "c_numeric_18_2": Column("numeric(18,2)", ["9999999999999999.99", "-0.01", "10000"]),
    "c_numeric_38_0": Column("numeric(38)", ["9" * 38, "-" + "9" * 38, "1" + "0" * 37]),
    "c_numeric_38_38": Column("numeric(38,38)", ["0." + "9" * 38, "-0." + "0" * 37 + "1"]),
    "c_numeric_20_10": Column("numeric(20,10)", ["1234567890.0123456789", "0.00001", "100000000"]),
    "c_numeric": Column(
        "numeric", ["'NaN'", "'Infinity'", "1e-30", "1." + "0" * 20, "9" * 200], as_text=True
    ),
    "c_numeric_50_5": Column("numeric(50,5)", ["9" * 45 + ".99999", "-0.00001"], as_text=True),
    "c_numeric_negative_scale": Column("numeric(5,-2)", ["1234567"], as_text=True),
    "c_text": Column("text", ["''", "' x '", "'Ünï 漢字 😀'", "repeat('long ', 50000)", "E'a\\tb\\nc\\\\'"]),
    "c_varchar": Column("varchar(10)", ["'0123456789'", "'é'"]),
    "c_char": Column("char(5)", ["'ab'", "'     '", "'abcde'"], expect="rpad({}::text, 5)"),
    "c_name": Column("name", ["'pg_catalog'"], as_text=True),
    "c_bytea": Column("bytea", ["''", "'\\x00ff00'", "decode(repeat('00ff', 40000), 'hex')"]),
    "c_uuid": Column(
        "uuid",
        ["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    ),
    "c_date": Column("date", ["'0001-01-01'", "'9999-12-31'", "'1969-12-31'", "'2000-02-29'"]),
    "c_time": Column("time", ["'00:00'", "'23:59:59.999999'", "'12:00:00.000001'"]),
    "c_timetz": Column("timetz", ["'23:59:59.999999-15:59'"], as_text=True),
    "c_timestamp": Column(
        "timestamp",
        ["'0001-01-01 00:00'", "'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'"],
    ),
    "c_timestamptz": Column(
        "timestamptz",
        ["'0001-01-01 00:00Z'", "'9999-12-31 23:59:59.999999Z'", "'2024-03-31 02:30+05:45'"],
    ),
    "c_interval": Column(
        "interval",
        [
            "'178000000 years'", "'-1 year -2 months +3 days -04:05:06.000007'",
            "'25:00:00.000001'", "'0'",
        ],
        expect=INTERVAL,
    ),
    "c_json": Column("json", ["'{ \"b\":1,  \"a\": [null] }'", "'\"x\"'", "'null'"], as_text=True),
    "c_jsonb": Column("jsonb", ["'{ \"b\":1e400,  \"a\": [null] }'", "'null'"], as_text=True),
    "c_enum": Column("mood", ["'happy'", "'très \"sad\"'"], as_text=True),
    "c_domain": Column("positive", ["1", "2147483647"]),
    "c_int_array": Column("integer[]", ["'{}'", "'{1,NULL,-2147483648}'"]),
    "c_text_array": Column("text[]", ["'{}'", "ARRAY['', NULL, 'a,\"b\"', 'NULL']"]),
    "c_numeric_array": Column("numeric(10,2)[]", ["'{12345678.90,NULL}'"]),
    "c_timestamptz_array": Column("timestamptz[]", ["'{2024-01-01T00:00Z,NULL}'"]),
    "c_uuid_array": Column("uuid[]", ["'{00000000-0000-0000-0000-00000000000a}'"]),
    "c_inet": Column("inet", ["'203.0.113.1/24'", "'2001:db8::1'"], as_text=True),
    "c_cidr": Column("cidr", ["'10.0.0.0/8'"], as_text=True),
    "c_macaddr": Column("macaddr", ["'08:00:2b:01:02:03'"], as_text=True),
    "c_int_range": Column("int4range", ["'[1,10)'", "'empty'", "'(,5)'"], as_text=True),
    "c_time_range": Column("tstzrange", ["'[2024-01-01 00:00Z,infinity)'"], as_text=True),
    "c_multirange": Column("int4multirange", ["'{[1,3),[5,7)}'"], as_text=True),
    "c_bit": Column("bit varying(8)", ["B'10110'"], as_text=True),
    "c_money": Column("money", ["'-92233720368547758.08'"], as_text=True),
    "c_xml": Column("xml", ["'<a b=\"c\">é</a>'"], as_text=True),
    "c_point": Column("point", ["'(1.5,-2)'"], as_text=True),
    "c_tsvector": Column("tsvector", ["'a:1 b:2A'"], as_text=True),
    "c_composite": Column("pair", ["ROW(1, 'a,b')::pair"], as_text=True),
}

DEFINITIONS = """
CREATE TYPE mood AS ENUM ('happy', 'très "sad"');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (number integer, word text);
"""

# Values no reader could show exactly: (type, literals, what `text` keeps of them).
UNREPRESENTABLE = {
    "u_numeric": ("numeric(10,2)", ["'NaN'"], ["NaN"]),
    "u_date": ("date", ["'infinity'", "'-infinity'", "'0044-03-15 BC'"], ["infinity", "-infinity", "0044-03-15 BC"]),
    "u_timestamp": ("timestamp", ["'infinity'", "'10000-01-01'"], ["infinity", "10000-01-01 00:00:00"]),
    "u_timestamptz": ("timestamptz", ["'-infinity'"], ["-infinity"]),
    "u_time": ("time", ["'24:00'"], ["24:00:00"]),
}

SHAPES = """
CREATE TABLE "Größe ""and"" .dots" ("Spalte Ä" integer PRIMARY KEY, "select" text, "a.b" text);
INSERT INTO "Größe ""and"" .dots" VALUES (1, 'x', 'y'), (2, NULL, 'z');

CREATE TABLE dropped (id integer PRIMARY KEY, gone text, kept text, doubled integer GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO dropped (id, gone, kept) VALUES (1, 'old', 'a');
ALTER TABLE dropped DROP COLUMN gone;
ALTER TABLE dropped ADD COLUMN late text DEFAULT 'filled in';
INSERT INTO dropped (id, kept) VALUES (2, 'b');

CREATE VIEW seen AS SELECT id, kept || '!' AS loud FROM dropped;

CREATE TABLE parts (id integer, day date, note text) PARTITION BY RANGE (day);
CREATE TABLE parts_2024 PARTITION OF parts FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE parts_2025 (note text, day date, extra integer, id integer);
ALTER TABLE parts_2025 DROP COLUMN extra;
ALTER TABLE parts ATTACH PARTITION parts_2025 FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO parts SELECT i, DATE '2024-01-01' + i, 'n' || i FROM generate_series(0, 700) AS i;

CREATE TABLE nothing (id integer PRIMARY KEY, t timestamptz, a text[]);
"""

SHAPE_TABLES = {
    "odd_names": '"public"."Größe ""and"" .dots"',
    "dropped": "public.dropped",
    "seen": "public.seen",
    "parts": "public.parts",
    "nothing": "public.nothing",
}


@pytest.fixture(scope="module")
def database(services: Services, suffix: str):
    """A database of our own with all tables; dropped at the end."""
    name = f"types_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    url = services.database(name)
    with psycopg.connect(url) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(DEFINITIONS)
        connection.execute(create_and_fill("every_type", COLUMNS))
        for column, (type_, values, _) in UNREPRESENTABLE.items():
            connection.execute(create_and_fill(column, {"v": Column(type_, values)}))
        connection.execute(SHAPES)
    yield url
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def create_and_fill(table: str, columns: dict[str, Column]) -> str:
    """One row per value; shorter columns go on with nulls, and the last row is null everywhere."""
    definitions = ", ".join(f"{name} {column.type}" for name, column in columns.items())
    rows = []
    for number in range(1 + max(len(column.values) for column in columns.values())):
        cells = [
            column.values[number] if number < len(column.values) else "NULL"
            for column in columns.values()
        ]
        rows.append(f"({number}, {', '.join(cells)})")
    return (
        f"CREATE TABLE {table} (id integer PRIMARY KEY, {definitions});"
        f"INSERT INTO {table} VALUES {', '.join(rows)};"
    )


def make_lake(services: Services, work: Path, url: str, tables: list[str]) -> Lake:
    (work / "pipelines").mkdir()
    (work / "polder.toml").write_text(CONFIG)
    lines = "\n".join(f"      - {table}" for table in tables)
    pipeline = f"orgs:\n  - id: {ORG}\n    tables:\n{lines}\n"
    (work / "pipelines/types.yaml").write_text(pipeline)
    return Lake(services, work, {"TYPES_URL": url})


@pytest.fixture(scope="module")
def lake(services: Services, database: str, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    tables = {"every_type": "public.every_type"} | SHAPE_TABLES
    specs = [f"{{ name: {name}, source: pg, from: '{source}' }}" for name, source in tables.items()]
    lake = make_lake(services, tmp_path_factory.mktemp("types"), database, specs)
    lake.polder("run", "--json")
    return lake


@pytest.fixture(scope="module")
def found(lake: Lake) -> dict:
    """The table of every type as each reader sees it, by row id."""
    return {
        reader: {row["id"]: row for row in lake.read(reader, ORG, "every_type").to_pylist()}
        for reader in READERS
    }


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("reader", READERS)
def test_every_value_comes_back_equal(database, found, reader, name):
    column = COLUMNS[name]
    asked = f"{name}::text" if column.as_text else column.expect.format(name)
    with psycopg.connect(database) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(f"SELECT id, {asked} FROM every_type ORDER BY id").fetchall()
    expected = {id_: canonical(value, column) for id_, value in rows}
    actual = {id_: canonical(row[name], column) for id_, row in sorted(found[reader].items())}
    assert actual == expected


def canonical(value, column: Column):
    """One form for what psycopg, DuckDB and PyIceberg call by different names, losing nothing."""
    if isinstance(value, list):
        return [canonical(item, column) for item in value]
    if isinstance(value, float):
        # Bits, so that NaN equals NaN and -0 differs from 0; `real` has fewer of them.
        if math.isnan(value):
            return "NaN"
        return struct.pack("<f" if column.type == "real" else "<d", value)
    if column.type.startswith("uuid") and isinstance(value, (bytes, str)):
        return uuid.UUID(bytes=value) if isinstance(value, bytes) else uuid.UUID(value)
    if column.type.startswith("timestamptz") and value is not None:
        return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return value


@pytest.mark.parametrize("table", SHAPE_TABLES)
@pytest.mark.parametrize("reader", READERS)
def test_tables_of_every_shape_come_back_whole(database, lake, reader, table):
    with psycopg.connect(database) as connection:
        cursor = connection.execute(f"SELECT * FROM {SHAPE_TABLES[table]}")
        columns = [column.name for column in cursor.description]
        expected = sorted(map(repr, (dict(zip(columns, row)) for row in cursor)))
    read = lake.read(reader, ORG, table)
    assert read.column_names == columns
    assert sorted(map(repr, read.to_pylist())) == expected


@pytest.fixture
def one_table(services: Services, database: str, tmp_path: Path):
    """A lake with one table of values that cannot be represented, under a policy."""

    def make(table: str, policy: str) -> Lake:
        spec = f"{{ name: {table}, source: pg, from: public.{table}, on_unrepresentable: {policy} }}"
        return make_lake(services, tmp_path, database, [spec])

    return make


@pytest.mark.parametrize("table", UNREPRESENTABLE)
def test_a_value_that_cannot_be_represented_stops_the_run(one_table, table):
    lake = one_table(table, "error")
    done = lake.run("run", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "source.unrepresentable" in done.stdout + done.stderr
    assert lake.tables() == {}


@pytest.mark.parametrize("table", UNREPRESENTABLE)
def test_null_is_stored_and_counted_where_the_spec_says_so(one_table, table):
    lake = one_table(table, "null")
    report = lake.polder("run", "--json")["runs"][0]["report"]
    values = UNREPRESENTABLE[table][1]
    assert report["altered"] == {"v": len(values)}
    for reader in READERS:
        assert lake.read(reader, ORG, table)["v"].to_pylist() == [None] * (len(values) + 1)


@pytest.mark.parametrize("table", UNREPRESENTABLE)
def test_text_is_kept_where_the_spec_says_so(one_table, table):
    lake = one_table(table, "text")
    lake.polder("run", "--json")
    expected = [*UNREPRESENTABLE[table][2], None]
    for reader in READERS:
        rows = {row["id"]: row["v"] for row in lake.read(reader, ORG, table).to_pylist()}
        assert [rows[id_] for id_ in sorted(rows)] == expected
