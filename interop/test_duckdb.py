"""DuckDB through `polder serve`, on local disk and on S3: what it writes, PyIceberg and Polder read, and
what Polder wrote, it reads and changes."""

from contextlib import closing
from datetime import date
from decimal import Decimal

import pytest
from lakes import PLACES, Lake, as_json, room

from test_lake_changes import Events, anywhere, events  # noqa: F401  (a fixture)
from test_rest_catalog import server, serving

DAY = date(2026, 1, 1)
ORDERS = [[1, "a", Decimal("1.50"), DAY], [2, "b", Decimal("2.50"), DAY], [3, "c", None, None]]


@pytest.mark.parametrize("place", PLACES)
def test_duckdb_lives_in_a_schema_of_its_own(services, tmp_path, place):
    warehouse, storage = room(place, services)
    with server(services.polder, tmp_path, storage, warehouse) as uri:
        lake = Lake(services, tmp_path, {}).through(uri)
        with closing(lake.attached()) as db:
            db.execute("CREATE SCHEMA lake.org_401")
            name = "lake.org_401.orders"

            def check(expected: list[list]) -> None:
                found = db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
                assert [list(row) for row in found] == expected
                found = lake.load("401", "orders").scan().to_arrow().sort_by("key").to_pylist()
                assert [list(row.values()) for row in found] == expected
                assert lake.query(f"SELECT * FROM {name} ORDER BY 1") == as_json(expected)

            db.execute(f"CREATE TABLE {name} (key BIGINT, name VARCHAR, price DECIMAL(10, 2), day DATE)")
            db.execute(
                f"INSERT INTO {name} VALUES (1, 'a', 1.50, DATE '2026-01-01'),"
                " (2, 'b', 2.50, DATE '2026-01-01'), (3, 'c', NULL, NULL)"
            )
            check(ORDERS)
            db.execute(f"DELETE FROM {name} WHERE key = 1")
            db.execute(f"UPDATE {name} SET name = 'z' WHERE key = 2")
            check([[2, "z", *ORDERS[1][2:]], ORDERS[2]])
            db.execute(
                f"MERGE INTO {name} t USING (VALUES (2, 'y'), (9, 'n')) s(k, n) ON t.key = s.k"
                " WHEN MATCHED THEN UPDATE SET name = s.n"
                " WHEN NOT MATCHED THEN INSERT (key, name) VALUES (s.k, s.n)"
            )
            merged = [[2, "y", *ORDERS[1][2:]], ORDERS[2], [9, "n", None, None]]
            check(merged)
            db.execute(f"ALTER TABLE {name} ADD COLUMN more BIGINT")
            db.execute(f"INSERT INTO {name} VALUES (10, 'k', 3.50, NULL, 7)")
            check([*([*row, None] for row in merged), [10, "k", Decimal("3.50"), None, 7]])
            db.execute(f"DROP TABLE {name}")


@anywhere
def test_duckdb_reads_and_changes_what_polder_wrote(events: Events):  # noqa: F811
    expected = events.evolved("[]")
    with serving(events.lake.services.polder, events.lake.work, events.lake.env) as uri:
        served = events.lake.through(uri)
        events.check_evolved(expected, served)
        with closing(served.attached()) as db:
            db.execute("DELETE FROM lake.org_changes.event WHERE id BETWEEN 100 AND 109")
        left = [row for row in expected if not 100 <= row[0] <= 109]
        events.check_evolved(left, events.lake, served)
        events.repartition()
        events.check_evolved(left, served)
        kept_as = events.roll_back("v1")
        old = served.read_with_duckdb("changes", "event", "note")["note"]
        assert (len(old), old.null_count) == (500, 0)
        events.roll_back(kept_as)
        events.check_evolved(left, served)
