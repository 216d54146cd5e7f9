"""Spark through `polder serve`, on local disk and on S3: what it writes, PyIceberg and Polder read, and
what Polder wrote, it reads and changes."""

import datetime
import uuid
from decimal import Decimal

from lakes import STORAGE, Lake, as_json
from pyiceberg.catalog.rest import RestCatalog
from pyspark.sql import SparkSession

from test_lake_changes import Events, anywhere, events  # noqa: F401  (a fixture)
from test_rest_catalog import CLIENTS, SECRET, SECRETS, serving, server
from test_rest_catalog_s3 import bucket  # noqa: F401  (a fixture)


def catalog(spark: SparkSession, uri: str, settings: dict[str, str]) -> str:
    """A catalog of Spark's over the served one; its name."""
    name = f"lake_{uuid.uuid4().hex[:8]}"
    key = f"spark.sql.catalog.{name}"
    spark.conf.set(key, "org.apache.iceberg.spark.SparkCatalog")
    for setting, value in ({"type": "rest", "uri": uri, "cache-enabled": "false"} | settings).items():
        spark.conf.set(f"{key}.{setting}", value)
    return name


def values(spark: SparkSession, query: str) -> list[list]:
    return [list(row) for row in spark.sql(query).collect()]


DAY = datetime.date(2026, 1, 1)


def life_of_a_table(spark: SparkSession, schema: str, rest: RestCatalog, lake: Lake) -> None:
    """Everything Spark does to a table; after each change PyIceberg and Polder see what Spark sees."""
    catalog, namespace = schema.split(".")
    name, own = f"{schema}.orders", f"lake.{namespace}.orders"

    def check(expected: list[list]) -> None:
        assert values(spark, f"SELECT * FROM {name} ORDER BY 1") == expected
        found = rest.load_table((namespace, "orders")).scan().to_arrow().sort_by("key")
        assert [list(row.values()) for row in found.to_pylist()] == expected
        assert lake.query(f"SELECT * FROM {own} ORDER BY 1") == as_json(expected)

    spark.sql(
        f"CREATE OR REPLACE TABLE {name} USING iceberg PARTITIONED BY (bucket(4, key)) TBLPROPERTIES"
        " ('write.delete.mode'='merge-on-read', 'write.update.mode'='merge-on-read',"
        " 'write.merge.mode'='merge-on-read') AS SELECT * FROM VALUES"
        " (1L, 'a', 1.50, DATE '2026-01-01'), (2L, 'b', 2.50, DATE '2026-01-01'), (3L, 'c', NULL, NULL)"
        " AS t(key, name, price, day)"
    )
    orders = [[1, "a", Decimal("1.50"), DAY], [2, "b", Decimal("2.50"), DAY], [3, "c", None, None]]
    check(orders)
    spark.sql(f"UPDATE {name} SET name = 'z' WHERE key = 2")
    spark.sql(f"DELETE FROM {name} WHERE key = 1")
    check([[2, "z", *orders[1][2:]], orders[2]])
    spark.sql(
        f"MERGE INTO {name} t USING (SELECT * FROM VALUES (2L, 'y'), (9L, 'n') AS s(k, n)) ON t.key = k"
        " WHEN MATCHED THEN UPDATE SET name = n"
        " WHEN NOT MATCHED THEN INSERT (key, name) VALUES (k, n)"
    )
    spark.sql(f"ALTER TABLE {name} ADD COLUMN more struct<x: int, y: string>")
    spark.sql(f"ALTER TABLE {name} RENAME COLUMN name TO label")
    spark.sql(f"INSERT INTO {name} VALUES (10, 'k', 3.50, NULL, named_struct('x', 7, 'y', 's'))")
    keys = f"SELECT key, label, more.x FROM {name} ORDER BY 1"
    our_keys = f"SELECT \"key\", label, more['x'] AS x FROM {own} ORDER BY 1"
    after = [[2, "y", None], [3, "c", None], [9, "n", None], [10, "k", 7]]
    assert values(spark, keys) == lake.query(our_keys) == after
    spark.sql(f"CALL {catalog}.system.rewrite_data_files('{namespace}.orders', 'binpack', NULL, map('rewrite-all', 'true'))")
    spark.sql(f"ALTER TABLE {name} REPLACE PARTITION FIELD bucket(4, key) WITH truncate(10, key)")
    spark.sql(f"INSERT INTO {name} VALUES (11, 'l', NULL, NULL, NULL)")
    assert values(spark, keys) == lake.query(our_keys) == [*after, [11, "l", None]]
    found = rest.load_table((namespace, "orders")).scan().to_arrow().sort_by("key").to_pylist()
    assert [[row["key"], row["label"], row["more"] and row["more"]["x"]] for row in found] == [
        *after, [11, "l", None],
    ]
    first = min(rest.load_table((namespace, "orders")).snapshots(), key=lambda s: s.sequence_number)
    assert values(spark, f"SELECT * FROM {name} VERSION AS OF {first.snapshot_id} ORDER BY 1") == orders
    old = lake.query(f"SELECT * FROM {own} FOR VERSION AS OF {first.snapshot_id} ORDER BY 1")
    assert old == as_json(orders)
    spark.sql(f"ALTER TABLE {name} CREATE TAG kept")
    spark.sql(f"DELETE FROM {name}")
    assert values(spark, f"SELECT count(*) FROM {name}") == [[0]]
    assert values(spark, f"SELECT count(*) FROM {name} VERSION AS OF 'kept'") == [[5]]
    assert lake.query(f"SELECT count(*) FROM {own}") == [[0]]
    assert lake.query(f"SELECT count(*) FROM {own} FOR VERSION AS OF 'kept'") == [[5]]
    spark.sql(f"CREATE VIEW {schema}.names AS SELECT label FROM {name}")
    assert values(spark, f"SELECT count(*) FROM {schema}.names") == [[0]]
    spark.sql(f"DROP VIEW {schema}.names")
    spark.sql(f"DROP TABLE {name} PURGE")


def test_spark_lives_in_a_namespace_of_its_own(spark, services, tmp_path):
    with server(services.polder, tmp_path) as uri:
        name = catalog(spark, uri, {})
        spark.sql(f"CREATE NAMESPACE {name}.sales")
        spark.sql(f"CREATE TABLE {name}.sales.t USING iceberg AS SELECT 1 AS key")
        assert values(spark, f"SELECT * FROM {name}.sales.t") == [[1]]
        spark.sql(f"DROP TABLE {name}.sales.t PURGE")
        spark.sql(f"DROP NAMESPACE {name}.sales")
        rest = RestCatalog("polder", uri=uri)
        rest.create_namespace("org_401")
        life_of_a_table(spark, f"{name}.org_401", rest, Lake(services, tmp_path, {}))
        assert list((tmp_path / "lake").rglob("*.parquet")) == []


def test_spark_of_one_org_writes_through_signed_requests(spark, services, bucket, tmp_path):  # noqa: F811
    config = STORAGE.format(endpoint=services.s3) + CLIENTS
    with server(services.polder, tmp_path, config, f"s3://{bucket}/lake") as uri:
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        operator.create_namespace("org_401")
        settings = {
            "credential": f"crm:{SECRET[::-1]}", "scope": "catalog",
            "io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
            "header.X-Iceberg-Access-Delegation": "remote-signing",
            "s3.endpoint": services.s3, "s3.path-style-access": "true", "client.region": "us-east-1",
        }
        name = catalog(spark, uri, settings)
        lake = Lake(services, tmp_path, SECRETS)
        life_of_a_table(spark, f"{name}.org_401", operator, lake)


@anywhere
def test_spark_reads_and_changes_what_polder_wrote(spark, events: Events):  # noqa: F811
    expected = events.evolved()
    with serving(events.lake.services.polder, events.lake.work, events.lake.env) as uri:
        served = events.lake.through(uri)
        table = f"{catalog(spark, uri, served.for_spark())}.org_changes.event"
        query = f"SELECT id, remark, tags FROM {table} ORDER BY id"
        assert [tuple(row) for row in values(spark, query)] == expected
        assert values(spark, f"SELECT count(note) FROM {table} VERSION AS OF 'v1'") == [[500]]
        events.repartition()
        assert [tuple(row) for row in values(spark, query)] == expected
        kept_as = events.roll_back("v1")
        assert values(spark, f"SELECT count(note) FROM {table}") == [[500]]
        events.roll_back(kept_as)
        assert [tuple(row) for row in values(spark, query)] == expected
        spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('write.delete.mode'='merge-on-read')")
        spark.sql(f"DELETE FROM {table} WHERE id BETWEEN 100 AND 109")
        left = [row for row in expected if not 100 <= row[0] <= 109]
        assert [tuple(row) for row in values(spark, query)] == left
        events.check_evolved(left, events.lake, served)
