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
from lakes import FROM_FILES, Services, new_bucket  # noqa: E402

# Modules that one process runs where several run tests side by side, for what they share takes long to make.
TOGETHER = {
    "engines": [
        "test_equality_deletes", "test_glue", "test_notebooks", "test_slt", "test_spark", "test_spark_and_trino",
        "test_trino", "test_trino_catalogs", "test_trino_engine", "test_trino_ingest", "test_trino_rules",
    ],
    "fidelity": ["test_fidelity", "test_fidelity_mongodb", "test_fidelity_page"],
}
SHARED = {
    "trino": "engines", "spark": "engines",
    "postgres_exact": "fidelity", "postgres_altered": "fidelity", "bson_lake": "fidelity",
}
GROUPS = {module: group for group, modules in TOGETHER.items() for module in modules}
# These take longest and are begun first.
LONG = ["engines", "test_airflow"]


def group(module: str) -> str:
    """What is run by one process with a module."""
    return GROUPS.get(module, module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in SHARED.keys() & set(item.fixturenames):
            assert group(item.path.stem) == SHARED[name], f"{item.path.stem} uses {name}: see TOGETHER"
    # Modules stay whole: items of the same rank keep their order.
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(group(item.path.stem), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(Path(nodeid.split("::")[0]).stem)

    return Together(config, log)


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
    from trino_server import SPOOLING, Trino, write_rules

    work = tmp_path_factory.mktemp("trino")
    write_rules(services.polder, work, FROM_FILES)
    bucket = new_bucket(services)
    spooling = SPOOLING.format(bucket=bucket, services=services)
    server = Trino(Path(os.environ["TRINO_HOME"]), work, spooling=spooling)
    server.bucket = bucket
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
