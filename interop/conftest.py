"""Fixtures shared by the reader tests: the running services and the binary under test.

`cargo xtask test` starts the services and sets the environment; a missing variable is an error.
"""

import os
import sys
import uuid
from pathlib import Path

import pytest

INTEROP = Path(__file__).resolve().parent
ROOT = INTEROP.parent
sys.path[:0] = [str(INTEROP), str(ROOT / "demo"), str(ROOT / "examples"), str(ROOT / "python/polder-lake/src")]

# Found through the line above.
from fidelity.mongodb_lake import bson_database, bson_lake  # noqa: E402, F401
from fidelity.postgres_lake import postgres_altered, postgres_database, postgres_exact  # noqa: E402, F401
from lakes import FROM_FILES, Services  # noqa: E402


@pytest.fixture(scope="session")
def services() -> Services:
    return Services.from_environment()


@pytest.fixture(scope="module")
def suffix() -> str:
    """Makes the names of databases and buckets a module's own."""
    return uuid.uuid4().hex[:8]


@pytest.fixture(scope="session")
def trino(services, tmp_path_factory):
    """One Trino for all modules: it takes half a minute to start. Most tests are an operator of its rules."""
    from trino_server import Trino, write_rules

    work = tmp_path_factory.mktemp("trino")
    write_rules(services.polder, work, FROM_FILES)
    server = Trino(Path(os.environ["TRINO_HOME"]), work)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """One Spark for all modules: there is one in a process."""
    from pyspark.sql import SparkSession

    jars = sorted(str(jar) for jar in Path(os.environ["SPARK_JARS"]).glob("*.jar"))
    work = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.master("local[2]").appName("polder")
    for key, value in {
        "spark.jars": ",".join(jars),
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(work / "warehouse"),
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
    }.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()
