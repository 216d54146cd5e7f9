"""PostgreSQL tables of every shape, read back whole through DuckDB and PyIceberg: odd names, dropped and
generated columns, views, partitions, nothing at all. Values are the business of the fidelity suite.
"""

import psycopg
import pytest
from fidelity.lake import make_lake
from lakes import READERS, Lake, Services

ORG = "shapes"

SOURCE = """
[sources.pg]
type = "postgres"
url = "env:SHAPES_URL"
"""

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
    name = f"shapes_{suffix}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    url = services.database(name)
    with psycopg.connect(url) as connection:
        connection.execute(SHAPES)
    yield url
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def lake(services: Services, database: str, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    specs = [
        {"name": name, "source": "pg", "from": source} for name, source in SHAPE_TABLES.items()
    ]
    work = tmp_path_factory.mktemp("shapes")
    lake = make_lake(services, work, SOURCE, {ORG: specs}, SHAPES_URL=database)
    lake.polder("run", "--json")
    return lake


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
