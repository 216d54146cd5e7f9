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
from lakes import Services  # noqa: E402


@pytest.fixture(scope="session")
def services() -> Services:
    return Services.from_environment()


@pytest.fixture(scope="module")
def suffix() -> str:
    """Makes the names of databases and buckets a module's own."""
    return uuid.uuid4().hex[:8]


@pytest.fixture(scope="session")
def trino(tmp_path_factory):
    """One Trino for all modules: it takes half a minute to start."""
    from trino_server import Trino

    server = Trino(Path(os.environ["TRINO_HOME"]), tmp_path_factory.mktemp("trino"))
    yield server
    server.stop()
