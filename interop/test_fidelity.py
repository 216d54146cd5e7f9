"""The fidelity suite: every type of PostgreSQL and of BSON, with its extremes, read back by DuckDB and
PyIceberg.

What is expected comes from the source itself: PostgreSQL is asked for each value in the form the lake
should have it in (a type without a counterpart as its text), and BSON values are the driver's own. A
value comes back equal, or its run is refused with column and key, or it is altered by the policy that
the spec names and counted. The page docs/reference/types.md is made of the same cases.
"""

import re

import psycopg
import pytest
from fidelity.cases import Odd, Type, canonical, nulls
from fidelity.lake import columns, lake_types, make_lake, runs
from fidelity.postgres import TYPES
from fidelity.postgres_texts import DEFINITIONS, WITHOUT_VALUES
from lakes import READERS, Lake, Services

SOURCE = """
[sources.pg]
type = "postgres"
url = "env:FIDELITY_URL"
"""
POLICIES = ["null", "clamp", "text"]
# The most rows that the report names for each column.
KEYS_MAX = 5

ODD_TYPES = [type_ for type_ in TYPES if type_.odd]
EVERY_TYPE = pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.title)
EVERY_ODD_TYPE = pytest.mark.parametrize("type_", ODD_TYPES, ids=lambda type_: type_.title)
EVERY_READER = pytest.mark.parametrize("reader", READERS)


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


@pytest.fixture(scope="module")
def database(services: Services, suffix: str):
    """A database of our own with all values; dropped at the end."""
    name = f"fidelity_{suffix}"
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


@pytest.fixture(scope="module")
def exact(services: Services, database: str, tmp_path_factory) -> tuple[Lake, dict]:
    """All values that the lake holds, read under the default policy, and the reports."""
    tables = [spec(type_, table(type_), table(type_)) for type_ in TYPES]
    work = tmp_path_factory.mktemp("exact")
    lake = make_lake(services, work, SOURCE, {"exact": tables}, FIDELITY_URL=database)
    return lake, runs(lake)


@pytest.fixture(scope="module")
def altered(services: Services, database: str, tmp_path_factory) -> tuple[Lake, dict]:
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
    lake = make_lake(services, work, SOURCE, orgs, FIDELITY_URL=database)
    return lake, runs(lake)


@pytest.fixture(scope="module")
def asked(database: str):
    with psycopg.connect(database) as connection:
        yield lambda sql: connection.execute(sql).fetchall()


def test_every_type_of_the_server_has_values(asked):
    """But for pseudo-types, tables' row types, and types that no value can be given."""
    missing = asked("""
        SELECT typname FROM pg_type AS t
        WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm')
        AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)
        AND NOT EXISTS (
          SELECT FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
          WHERE a.attname = 'v' AND a.atttypid = t.oid AND c.relname LIKE 't%'
          AND c.relnamespace = 'public'::regnamespace)
    """)
    assert {name for (name,) in missing} == WITHOUT_VALUES


def test_there_are_enough_values():
    assert sum(len(type_.values) + len(type_.odd) for type_ in TYPES) >= 400


@EVERY_TYPE
@EVERY_READER
def test_every_value_comes_back_equal(exact, asked, reader, type_):
    lake, reports = exact
    run = reports["exact", table(type_)]
    assert run["state"] == "succeeded", run["error"]
    assert (run["report"]["altered"], run["report"]["altered_keys"]) == ({}, {})
    array = type_.asked_of_array("a") if type_.arrays else "NULL"
    rows = asked(f"SELECT id, {type_.asked.format('v')}, {array} FROM {table(type_)}")
    found = columns(lake, reader, "exact", table(type_), form(type_))
    assert found["v"] == {id_: canonical(value, type_.name) for id_, value, _ in rows}
    if type_.arrays:
        assert found["a"] == {id_: canonical(value, type_.name) for id_, _, value in rows}


def odd_values() -> list:
    every = [(type_, id_, odd) for type_ in ODD_TYPES for id_, odd in enumerate(type_.odd, 2)]
    return [pytest.param(*one, id=f"{one[0].title} {one[2].value}") for one in every]


@pytest.mark.parametrize("type_, id_, odd", odd_values())
def test_a_value_that_no_lake_type_holds_is_refused(altered, type_: Type, id_: int, odd: Odd):
    lake, reports = altered
    name = f"{odd_table(type_)}_{id_}"
    run = reports["error", name]
    assert run["state"] == "failed"
    error = run["error"]
    assert error["code"] == "source.unrepresentable"
    assert 'column "v"' in error["message"] and error["detail"].endswith(f", row id={id_}")
    # The key names the row. Its value is not shown, but for these, which are reasons by themselves.
    assert odd.value in {"NaN", "24:00"} or odd.value not in error["message"] + error["detail"]
    assert ("error", name) not in lake.tables()


@EVERY_ODD_TYPE
@pytest.mark.parametrize("policy", POLICIES)
@EVERY_READER
def test_a_policy_alters_such_values_and_counts_them(altered, asked, reader, policy, type_):
    lake, reports = altered
    run = reports[policy, odd_table(type_)]
    assert run["state"] == "succeeded", run["error"]
    report = run["report"]
    found = columns(lake, reader, policy, odd_table(type_), form(type_))["v"]
    if policy == "text":
        rows = asked(f"SELECT id, v::text FROM {odd_table(type_)}")
        assert found == dict(rows)
        assert (report["altered"], report["altered_keys"]) == ({}, {})
        return
    stored = [odd.nulled if policy == "null" else odd.clamped for odd in type_.odd]
    stored = [type_.asked.format(type_.literal(v)) for v in [type_.values[0], *stored, None]]
    (expected,) = asked(f"SELECT {', '.join(stored)}")
    assert found == {id_: canonical(v, type_.name) for id_, v in enumerate(expected, 1)}
    assert report["altered"] == {"v": sum(odd.count for odd in type_.odd)}
    keys = [f"id={id_}" for id_, _ in enumerate(type_.odd, 2)]
    assert report["altered_keys"] == {"v": keys[:KEYS_MAX]}


@EVERY_READER
def test_no_null_is_silent(exact, asked, reader):
    """As many nulls as the source has, in values, arrays and elements."""
    lake, _ = exact
    wrong = {}
    for type_ in TYPES:
        # What an array is made of is counted here, if the value is one itself.
        array = "a" if type_.arrays else "v" if type_.name.endswith("[]") else "NULL::text[]"
        (expected,) = asked(
            "SELECT count(*) FILTER (WHERE v::text IS NULL), count(*) FILTER (WHERE a IS NULL),"
            f" coalesce(sum((SELECT count(*) FROM generate_subscripts({array}, 1) AS i"
            f" WHERE ({array})[i]::text IS NULL)), 0)"
            f" FROM (SELECT v, {'a' if type_.arrays else '0 AS a'} FROM {table(type_)}) AS t"
        )
        stored = columns(lake, reader, "exact", table(type_), form(type_))
        found = sum(nulls(value) for name in "va" for value in stored.get(name, {}).values())
        if found != sum(expected):
            wrong[type_.title] = (found, expected)
    assert wrong == {}
