"""One full load of one PostgreSQL table by a peer: `peers.py PEER URL TABLE FOLDER`, as a process of
its own. Prints where the Iceberg table's metadata is. `peers.py check METADATA COLUMN COLUMN` prints
what a table holds: rows, two sums and types.

Columns of types that a peer cannot read, or that PyIceberg cannot store as they come from it, are cast
to text by the server: the bench lists them as lost.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

KEYS = {"lineitem": "l_orderkey", "opportunity_wide": "id"}
ROWS_AT_ONCE = 1_000_000
# Connections that read side by side, where a peer can do that.
STREAMS = 2
PLAIN = {
    "boolean", "smallint", "integer", "bigint", "real", "double precision", "text",
    "character varying", "character", "date", "timestamp without time zone",
    "timestamp with time zone",
}
# ADBC has numeric as a text of a type of its own, which PyIceberg refuses.
KNOWN = {"connectorx": PLAIN | {"numeric"}, "adbc": PLAIN, "duckdb": PLAIN | {"numeric"}, "spark": PLAIN | {"numeric"}}
COLUMNS = """
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def main() -> None:
    if sys.argv[1] == "check":
        return print(json.dumps(check(*sys.argv[2:])))
    name, url, table, folder = sys.argv[1:]
    load = {"connectorx": connectorx, "adbc": adbc, "duckdb": duckdb, "dlt": dlt, "spark": spark}
    metadata = load[name](url, table, Path(folder))
    print(json.dumps({"metadata": str(metadata)}))


def selected(url: str, table: str, peer: str) -> str:
    """The columns, those that the peer cannot bring as texts."""
    import psycopg2

    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(COLUMNS, [table])
        columns = cursor.fetchall()
    known = KNOWN[peer]
    texts = [name if kind in known else f"CAST({name} AS varchar) AS {name}" for name, kind in columns]
    return ", ".join(texts)


def connectorx(url: str, table: str, folder: Path) -> str:
    import connectorx

    query = f"SELECT {selected(url, table, 'connectorx')} FROM {table}"
    partition = {"partition_on": KEYS[table], "partition_num": STREAMS}
    return stored(table, folder, [connectorx.read_sql(url, query, return_type="arrow", **partition)])


def adbc(url: str, table: str, folder: Path) -> str:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {selected(url, table, 'adbc')} FROM {table}")
        return stored(table, folder, in_pieces(cursor.fetch_record_batch()))


def duckdb(url: str, table: str, folder: Path) -> str:
    import duckdb
    from duckdb_extensions import import_extension

    import_extension("postgres_scanner")
    db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    db.execute(f"ATTACH '{url}' AS pg (TYPE postgres, READ_ONLY)")
    found = db.execute(f"SELECT {selected(url, table, 'duckdb')} FROM pg.public.{table}")
    return stored(table, folder, in_pieces(found.fetch_record_batch(ROWS_AT_ONCE)))


def dlt(url: str, table: str, folder: Path) -> Path:
    import dlt
    import sqlalchemy
    from dlt.sources.sql_database import sql_table

    # Without a driver's name SQLAlchemy 2.1 wants psycopg, and it knows no "postgres".
    address = f"postgresql+psycopg2://{url.partition('://')[2]}"
    query = sqlalchemy.text(f"SELECT {selected(url, table, 'connectorx')} FROM {table}")
    # Types as they come: those of the source are no longer those of the texts.
    rows = sql_table(
        credentials=address, schema="public", table=table, backend="connectorx", reflection_level="minimal",
        backend_kwargs={"conn": url}, chunk_size=ROWS_AT_ONCE, query_adapter_callback=lambda *_: query,
    )
    place = dlt.destinations.filesystem(bucket_url=(folder / "dlt").as_uri())
    pipeline = dlt.pipeline("bench", pipelines_dir=str(folder / "state"), destination=place)
    pipeline.run(rows, table_format="iceberg", write_disposition="replace")
    return newest(folder / "dlt")


def spark(url: str, table: str, folder: Path) -> Path:
    import os
    from urllib.parse import urlsplit

    import psycopg
    from pyspark.sql import SparkSession

    jars = [*Path(os.environ["SPARK_JARS"]).glob("*.jar"), os.environ["JDBC_JAR"]]
    catalog = "spark.sql.catalog.local"
    session = (
        SparkSession.builder.master(f"local[{STREAMS}]")
        .config("spark.jars", ",".join(map(str, jars)))
        .config("spark.driver.memory", "2g").config("spark.ui.enabled", "false")
        # Spark 4.0 fails to plan a new table with columns of char and varchar from JDBC.
        .config("spark.sql.legacy.charVarcharAsString", "true")
        .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        .config(catalog, "org.apache.iceberg.spark.SparkCatalog")
        .config(f"{catalog}.type", "hadoop").config(f"{catalog}.warehouse", str(folder / "spark"))
        .getOrCreate()
    )
    key, address = KEYS[table], urlsplit(url)
    with psycopg.connect(url) as connection:
        columns = connection.execute(COLUMNS, [table]).fetchall()
        low, high = connection.execute(f"SELECT min({key}), max({key}) FROM {table}").fetchone()
    texts = [n if k in KNOWN["spark"] else f"CAST({n} AS varchar) AS {n}" for n, k in columns]
    options = {
        "url": f"jdbc:postgresql://{address.hostname}:{address.port}{address.path}",
        "driver": "org.postgresql.Driver", "user": address.username or "postgres",
        "password": address.password or "", "fetchsize": "10000",
        "dbtable": f"(SELECT {', '.join(texts)} FROM {table}) AS t", "partitionColumn": key,
        "lowerBound": str(low), "upperBound": str(high), "numPartitions": str(STREAMS),
    }
    rows = session.read.format("jdbc").options(**options).load()
    rows.writeTo(f"local.bench.{table}").using("iceberg").create()
    gateway = session.sparkContext._gateway
    session.stop()
    # Waited for, or the kernel counts nothing of it: it ends with its input.
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()
    return newest(folder / "spark")


def in_pieces(reader) -> Iterator:
    """Tables of about so many rows each."""
    import pyarrow as pa

    held, rows = [], 0
    for batch in reader:
        held.append(batch)
        rows += batch.num_rows
        if rows >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def stored(name: str, folder: Path, tables: Iterable) -> str:
    """Appends the rows to a new table of PyIceberg's."""
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("peer", uri=f"sqlite:///{folder}/peer.db", warehouse=(folder / "lake").as_uri())
    catalog.create_namespace("bench")
    table = None
    for rows in tables:
        if table is None:
            table = catalog.create_table(f"bench.{name}", rows.schema)
        table.append(rows)
    return table.metadata_location


def newest(folder: Path) -> Path:
    found = [path for path in folder.rglob("*.metadata.json") if "_dlt" not in str(path)]
    return max(found, key=lambda path: path.stat().st_mtime)


def check(metadata: str, key: str, amount: str) -> dict:
    import duckdb
    from pyiceberg.table import StaticTable

    table = StaticTable.from_metadata(metadata)
    rows = table.scan(selected_fields=(key, amount)).to_arrow()
    query = f"SELECT count(*), sum({key})::varchar, sum({amount}::decimal(38, 2))::varchar FROM rows"
    count, keys, amounts = duckdb.sql(query).fetchone()
    types = {field.name: str(field.field_type) for field in table.schema().fields}
    return {"rows": count, "sums": [keys, amounts], "types": types}


if __name__ == "__main__":
    main()
