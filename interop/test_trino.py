"""Trino through `polder serve`, on local disk and on S3: what it writes, everybody reads, and what
Polder wrote, it reads and changes."""

import datetime
import decimal
import uuid
from contextlib import contextmanager

import psycopg
import pytest
from lakes import MORE_READERS, READERS, STORAGE, Lake, as_json
from pyiceberg.catalog.rest import RestCatalog
from trino.exceptions import TrinoUserError
from trino_server import Trino

from test_lake_changes import Events, anywhere, events  # noqa: F401  (a fixture)
from test_rest_catalog import CLIENTS, SECRET, SECRETS, serving, server
from test_rest_catalog_s3 import bucket  # noqa: F401  (a fixture)


@contextmanager
def catalog(trino: Trino, uri: str, settings: dict[str, str], name: str | None = None):
    """A catalog of Trino's over the served one; its name."""
    name = name or f"lake_{uuid.uuid4().hex[:8]}"
    settings = {"iceberg.catalog.type": "rest", "iceberg.rest-catalog.uri": uri} | settings
    listed = ", ".join(f"\"{key}\" = '{value}'" for key, value in settings.items())
    trino.sql(f"CREATE CATALOG {name} USING iceberg WITH ({listed})")
    yield name
    trino.sql(f"DROP CATALOG {name}")


def oauth(client: str, secret: str) -> dict[str, str]:
    return {
        "iceberg.rest-catalog.security": "OAUTH2",
        "iceberg.rest-catalog.oauth2.credential": f"{client}:{secret}",
        "iceberg.rest-catalog.oauth2.scope": "catalog",
    }


DAY = datetime.date(2026, 1, 1)
ORDERS = [[1, "a", decimal.Decimal("1.50"), DAY], [2, "b", decimal.Decimal("2.50"), DAY], [3, "c", None, None]]


def life_of_a_table(trino: Trino, schema: str, rest: RestCatalog, lake: Lake) -> None:
    """Everything Trino does to a table; after each change PyIceberg and Polder see what Trino sees."""
    name = f"{schema}.orders"
    namespace = schema.split(".")[1].strip('"')
    own = f"lake.{namespace}.orders"

    def check(expected: list[list]) -> None:
        assert trino.sql(f"SELECT * FROM {name} ORDER BY 1") == expected
        found = rest.load_table((namespace, "orders")).scan().to_arrow().sort_by("key")
        assert [list(row.values()) for row in found.to_pylist()] == expected
        assert lake.query(f"SELECT * FROM {own} ORDER BY 1") == as_json(expected)

    trino.sql(
        f"CREATE TABLE {name} WITH (partitioning = ARRAY['bucket(key, 4)']) AS SELECT * FROM (VALUES"
        " (1, 'a', 1.50, DATE '2026-01-01'), (2, 'b', 2.50, DATE '2026-01-01'), (3, 'c', NULL, NULL))"
        " AS t(key, name, price, day)"
    )
    check(ORDERS)
    trino.sql(f"UPDATE {name} SET name = 'z' WHERE key = 2")
    trino.sql(f"DELETE FROM {name} WHERE key = 1")
    check([[2, "z", *ORDERS[1][2:]], ORDERS[2]])
    trino.sql(
        f"MERGE INTO {name} t USING (VALUES (2, 'y'), (9, 'n')) s(k, n) ON t.key = s.k"
        " WHEN MATCHED THEN UPDATE SET name = s.n"
        " WHEN NOT MATCHED THEN INSERT (key, name) VALUES (s.k, s.n)"
    )
    trino.sql(f"ALTER TABLE {name} ADD COLUMN more bigint")
    trino.sql(f"ALTER TABLE {name} RENAME COLUMN name TO label")
    trino.sql(f"INSERT INTO {name} VALUES (10, 'k', 3.50, NULL, 7)")
    after = [
        [2, "y", *ORDERS[1][2:], None], [*ORDERS[2], None], [9, "n", None, None, None],
        [10, "k", decimal.Decimal("3.50"), None, 7],
    ]
    check(after)
    trino.sql(f"ALTER TABLE {name} EXECUTE optimize")
    trino.sql(f"ALTER TABLE {name} EXECUTE expire_snapshots(retention_threshold => '7d')")
    check(after)
    table = rest.load_table((namespace, "orders"))
    first = min(table.snapshots(), key=lambda s: s.sequence_number).snapshot_id
    # Trino has no statement for it.
    table.manage_snapshots().create_tag(first, "first").commit()
    for version in [str(first), "'first'"]:
        assert trino.sql(f"SELECT * FROM {name} FOR VERSION AS OF {version} ORDER BY 1") == ORDERS
        old = lake.query(f"SELECT * FROM {own} FOR VERSION AS OF {version} ORDER BY 1")
        assert old == as_json(ORDERS)
    trino.sql(f"CREATE VIEW {schema}.names AS SELECT label FROM {name}")
    assert trino.sql(f"SELECT count(label) FROM {schema}.names") == [[4]]
    trino.sql(f"DROP VIEW {schema}.names")
    trino.sql(f"CREATE OR REPLACE TABLE {name} AS SELECT 1 AS key")
    check([[1]])
    trino.sql(f"ALTER TABLE {name} RENAME TO {schema}.other")
    assert trino.sql(f"SHOW TABLES FROM {schema}") == [["other"]]
    trino.sql(f"DROP TABLE {schema}.other")


def test_trino_lives_in_a_schema_of_its_own(trino, services, tmp_path):
    with server(services.polder, tmp_path) as uri:
        lake = Lake(services, tmp_path, {}).through(uri)
        with catalog(trino, uri, lake.for_trino()) as name:
            trino.sql(f"CREATE SCHEMA {name}.sales")
            trino.sql(f"CREATE TABLE {name}.sales.t AS SELECT 1 AS key")
            assert trino.sql(f"SELECT * FROM {name}.sales.t") == [[1]]
            trino.sql(f"DROP TABLE {name}.sales.t")
            trino.sql(f"DROP SCHEMA {name}.sales")
            rest = RestCatalog("polder", uri=uri)
            rest.create_namespace("org_401")
            life_of_a_table(trino, f"{name}.org_401", rest, lake)
            assert all(path.is_relative_to(tmp_path / "lake") for path in tmp_path.rglob("*.parquet"))


def test_trino_of_one_org_sees_and_changes_its_own_alone(trino, services, bucket, tmp_path):  # noqa: F811
    config = STORAGE.format(endpoint=services.s3) + CLIENTS
    with server(services.polder, tmp_path, config, f"s3://{bucket}/lake") as uri:
        lake = Lake(services, tmp_path, SECRETS).through(uri)
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        for org in ["org_401", "org_402"]:
            operator.create_namespace(org)
        with catalog(trino, uri, lake.for_trino() | oauth("crm", SECRET[::-1])) as name:
            schemas = {schema for [schema] in trino.sql(f"SHOW SCHEMAS FROM {name}")}
            assert schemas == {"information_schema", "system", "org_401"}, "its own beside Trino's"
            life_of_a_table(trino, f"{name}.org_401", operator, lake)
            with pytest.raises(TrinoUserError):
                trino.sql(f"SELECT * FROM {name}.org_402.orders")
            with pytest.raises(Exception, match="(?i)may not|forbidden|failed to create"):
                trino.sql(f"CREATE SCHEMA {name}.other")


@anywhere
def test_trino_reads_and_changes_what_polder_wrote(trino, events: Events):  # noqa: F811
    expected = events.evolved()
    with serving(events.lake.services.polder, events.lake.work, events.lake.env) as uri:
        served = events.lake.through(uri)
        with catalog(trino, uri, served.for_trino()) as name:
            table = f"{name}.org_changes.event"
            query = f"SELECT id, remark, tags FROM {table} ORDER BY id"
            assert [tuple(row) for row in trino.sql(query)] == expected
            old = trino.sql(f"SELECT count(note) FROM {table} FOR VERSION AS OF 'v1'")
            assert old == [[500]], "a version's tag names its rows and its columns"
            events.repartition()
            assert [tuple(row) for row in trino.sql(query)] == expected
            kept_as = events.roll_back("v1")
            assert trino.sql(f"SELECT count(note) FROM {table}") == [[500]]
            events.roll_back(kept_as)
            assert [tuple(row) for row in trino.sql(query)] == expected
            trino.sql(f"DELETE FROM {table} WHERE id BETWEEN 100 AND 109")
            trino.sql(f"ALTER TABLE {table} EXECUTE optimize")
            trino.sql(f"DELETE FROM {table} WHERE id = 7")
            left = [row for row in expected if row[0] != 7 and not 100 <= row[0] <= 109]
            assert [tuple(row) for row in trino.sql(query)] == left
        events.check_evolved(left, events.lake, served)
    # The next run goes on from its own checkpoint, on top of what Trino did.
    with psycopg.connect(events.url) as connection:
        connection.execute(
            "INSERT INTO event (id, account, happened_at, seen_at) VALUES (502, 5, now(), now())"
        )
    report = events.run()
    assert (report["outcome"], report["rows_written"]) == ("append", 1)
    events.check_evolved([*left, (502, None, None)])


def test_deletes_that_trino_wrote_are_applied_by_optimize(trino, events: Events):  # noqa: F811
    for first in [1, 201, 301]:
        events.insert(first, 200 if first == 1 else first + 99)
        events.run()
    with serving(events.lake.services.polder, events.lake.work, events.lake.env) as uri:
        served = events.lake.through(uri)
        with catalog(trino, uri, served.for_trino()) as name:
            table = f"{name}.org_changes.event"
            trino.sql(f"DELETE FROM {table} WHERE id % 3 = 0")
            trino.sql(f"DELETE FROM {table} WHERE id BETWEEN 205 AND 210")
            expected = [[i] for i in range(1, 401) if i % 3 and not 205 <= i <= 210]
            report = events.lake.polder("maintain", "optimize", "--json")["tables"][0]
            assert report["files_replaced"] == 3 and report["delete_files_removed"] == 0
            assert (report["before"]["delete_files"] > 0, report["after"]["delete_files"]) == (True, 0)
            assert report["rows"] == len(expected)
            assert trino.sql(f"SELECT id FROM {table} ORDER BY id") == expected
    tasks = list(events.lake.load("changes", "event").scan().plan_files())
    assert len(tasks) == 1 and not tasks[0].delete_files
    for reader in READERS + MORE_READERS:
        found = events.lake.read(reader, "changes", "event", "id").sort_by("id")
        assert [[i] for i in found["id"].to_pylist()] == expected, reader
