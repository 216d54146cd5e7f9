"""Spark and Trino, which rewrite the small files of a lake through `polder serve`, for comparison.

Each is started once, and has answered a query before it is timed: what is measured is its statement alone.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "Iceberg REST catalog: "
TARGET_BYTES = 128 << 20
# What the JVMs may take: twice what Polder does.
HEAP_MB = 2048


@contextmanager
def serving(polder: str, work: Path):
    """A server of the lake in `work`; gives its address."""
    log = work / "serve.log"
    with log.open("w") as output:
        command = [polder, "serve", "--listen", "127.0.0.1:0"]
        server = subprocess.Popen(command, cwd=work, stderr=output)
    try:
        deadline = time.monotonic() + 30
        address = None
        while address is None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"polder serve does not begin:\n{log.read_text()}")
            lines = [line for line in log.read_text().splitlines(True) if line.endswith("\n")]
            address = next((x[len(ADDRESS):].strip() for x in lines if x.startswith(ADDRESS)), None)
            time.sleep(0.05)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


class Spark:
    def __init__(self, jars: Path, work: Path):
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master(f"local[{os.cpu_count()}]").appName("bench")
        for key, value in {
            "spark.jars": ",".join(sorted(str(jar) for jar in jars.glob("*.jar"))),
            "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
            "spark.sql.warehouse.dir": str(work / "warehouse"),
            "spark.driver.memory": f"{HEAP_MB}m",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
        }.items():
            builder = builder.config(key, value)
        self._session = builder.getOrCreate()
        self._catalogs = 0

    def rewrite(self, uri: str, schema: str, table: str) -> float:
        """Seconds that `rewrite_data_files` takes."""
        self._catalogs += 1
        catalog = f"lake{self._catalogs}"
        key = f"spark.sql.catalog.{catalog}"
        self._session.conf.set(key, "org.apache.iceberg.spark.SparkCatalog")
        for name, value in {"type": "rest", "uri": uri, "cache-enabled": "false"}.items():
            self._session.conf.set(f"{key}.{name}", value)
        self._session.sql(f"SELECT count(*) FROM {catalog}.{schema}.{table}").collect()
        options = {"target-file-size-bytes": TARGET_BYTES, "max-concurrent-file-group-rewrites": os.cpu_count()}
        listed = ", ".join(f"'{name}', '{value}'" for name, value in options.items())
        started = time.perf_counter()
        self._session.sql(
            f"CALL {catalog}.system.rewrite_data_files(table => '{schema}.{table}', options => map({listed}))"
        ).collect()
        return time.perf_counter() - started

    def stop(self) -> None:
        self._session.stop()


class Trino:
    def __init__(self, home: Path, work: Path):
        sys.path.insert(0, str(ROOT / "interop"))
        from trino_server import Trino as Server

        work.mkdir(parents=True, exist_ok=True)
        self._server = Server(home, work, HEAP_MB, HEAP_MB // 2)
        self._catalogs = 0

    def rewrite(self, uri: str, schema: str, table: str) -> float:
        """Seconds that `optimize` takes."""
        self._catalogs += 1
        catalog = f"lake{self._catalogs}"
        settings = {
            "iceberg.catalog.type": "rest", "iceberg.rest-catalog.uri": uri, "fs.hadoop.enabled": "true",
            "iceberg.target-max-file-size": f"{TARGET_BYTES >> 20}MB",
        }
        listed = ", ".join(f"\"{key}\" = '{value}'" for key, value in settings.items())
        self._server.sql(f"CREATE CATALOG {catalog} USING iceberg WITH ({listed})")
        self._server.sql(f"SELECT count(*) FROM {catalog}.{schema}.{table}")
        started = time.perf_counter()
        self._server.sql(f"ALTER TABLE {catalog}.{schema}.{table} EXECUTE optimize")
        seconds = time.perf_counter() - started
        self._server.sql(f"DROP CATALOG {catalog}")
        return seconds

    def stop(self) -> None:
        self._server.stop()
