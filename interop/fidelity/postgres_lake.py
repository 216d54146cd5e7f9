"""PostgreSQL's cases as tables and lakes: fixtures of the fidelity suite."""

import re
import uuid

import psycopg
import pytest

from fidelity.cases import Type, canonical
from fidelity.lake import make_lake, settled
from fidelity.postgres import TYPES
from fidelity.postgres_texts import DEFINITIONS
from lakes import Lake, Services

SOURCE = """
[sources.pg]
type = "postgres"
url = "env:FIDELITY_URL"
"""
POLICIES = ["null", "clamp", "text"]
ODD_TYPES = [type_ for type_ in TYPES if type_.odd]


def table(type_: Type) -> str:
    """The table that holds a type's values."""
    return re.sub(r"\W+", "_", f"t{TYPES.index(type_)}_{type_.name.lower()}").strip("_")


def odd_table(type_: Type) -> str:
    return f"odd_{table(type_)}"


def form(type_: Type):
    return lambda value: canonical(value, type_.name)


def spec(type_: Type, name: str, of: str, **more: str) -> dict:
    types = {"types": {"v": type_.declared}} if type_.declared else {}
    return {"name": name, "source": "pg", "from": f"public.{of}", "key": ["id"], **types, **more}


def create(name: str, type_: Type, values: list[str], arrays: bool) -> str:
    """A table with a row for each value, the first of which have arrays too, and a row of nulls."""
    cells = [type_.literal(value) for value in [*values, None]]
    lists = ["'{}'", f"ARRAY[{', '.join(cells)}]::{type_.name}[]"]
    lists += ["NULL"] * (len(cells) - len(lists))
    rows = zip(cells, lists) if arrays else zip(cells)
    rows = ", ".join(f"({id_}, {', '.join(row)})" for id_, row in enumerate(rows, 1))
    array = f", a {type_.name}[]" if arrays else ""
    return (
        f"CREATE TABLE {name} (id integer PRIMARY KEY, v {type_.name}{array});"
        f"INSERT INTO {name} VALUES {rows};"
    )


@pytest.fixture(scope="session")
def postgres_database(services: Services):
    """A database of our own with all values; dropped at the end."""
    name = f"fidelity_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        server.execute(f"ALTER DATABASE {name} SET TimeZone = 'UTC'")
    url = services.database(name)
    with psycopg.connect(url) as connection:
        connection.execute(DEFINITIONS)
        for type_ in TYPES:
            connection.execute(create(table(type_), type_, type_.values, type_.arrays))
        for type_ in ODD_TYPES:
            values = [type_.values[0], *(odd.value for odd in type_.odd)]
            connection.execute(create(odd_table(type_), type_, values, False))
    yield url
    with psycopg.connect(services.postgres, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_exact(services: Services, postgres_database: str, tmp_path_factory) -> tuple[Lake, dict]:
    """All values that the lake holds, read under the default policy, and the reports."""
    tables = [spec(type_, table(type_), table(type_)) for type_ in TYPES]
    work = tmp_path_factory.mktemp("exact")
    lake = make_lake(services, work, SOURCE, {"exact": tables}, FIDELITY_URL=postgres_database)
    return settled(lake)


@pytest.fixture(scope="session")
def postgres_altered(services: Services, postgres_database: str, tmp_path_factory) -> tuple[Lake, dict]:
    """The values that it does not hold: under each policy an org, with a table for each type; in the
    org `error` one for each value."""
    orgs = {
        policy: [
            spec(type_, odd_table(type_), odd_table(type_), on_unrepresentable=policy)
            for type_ in ODD_TYPES
        ]
        for policy in POLICIES
    }
    orgs["error"] = [
        spec(type_, f"{odd_table(type_)}_{id_}", odd_table(type_), filter=f"id = {id_}")
        for type_ in ODD_TYPES
        for id_, _ in enumerate(type_.odd, 2)
    ]
    work = tmp_path_factory.mktemp("altered")
    lake = make_lake(services, work, SOURCE, orgs, FIDELITY_URL=postgres_database)
    return settled(lake)
