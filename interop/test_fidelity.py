"""The fidelity suite: every type of PostgreSQL and of BSON, with its extremes, read back by DuckDB and
PyIceberg.

What is expected comes from the source itself: PostgreSQL is asked for each value in the form the lake
should have it in (a type without a counterpart as its text), and BSON values are the driver's own. A
value comes back equal, or its run is refused with column and key, or it is altered by the policy that
the spec names and counted. The page docs/reference/types.md is made of the same cases.
"""

import json

import psycopg
import pytest
from fidelity.cases import Odd, Type, canonical, nulls
from fidelity.lake import columns
from fidelity.postgres import TYPES
from fidelity.postgres_lake import ODD_TYPES, POLICIES, form, odd_table, table
from fidelity.postgres_texts import WITHOUT_VALUES
from lakes import READERS

# The most rows that the report names for each column.
KEYS_MAX = 5

EVERY_TYPE = pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.title)
EVERY_ODD_TYPE = pytest.mark.parametrize("type_", ODD_TYPES, ids=lambda type_: type_.title)
EVERY_READER = pytest.mark.parametrize("reader", READERS)


@pytest.fixture(scope="module")
def asked(postgres_database: str):
    """Puts a question to the source."""
    with psycopg.connect(postgres_database) as connection:
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
def test_every_value_comes_back_equal(postgres_exact, asked, reader, type_):
    lake, reports = postgres_exact
    run = reports["exact", table(type_)]
    assert run["state"] == "succeeded", run["error"]
    assert (run["report"]["altered"], run["report"]["altered_keys"]) == ({}, {})
    array = type_.asked_of_array("a") if type_.arrays else "NULL"
    rows = asked(f"SELECT id, {type_.asked.format('v')}, {array} FROM {table(type_)}")
    found = columns(lake, reader, "exact", table(type_), form(type_))
    assert found["v"] == {id_: canonical(value, type_.name) for id_, value, _ in rows}
    if type_.arrays:
        assert found["a"] == {id_: canonical(value, type_.name) for id_, _, value in rows}


def test_the_server_and_the_lake_agree_on_every_value(postgres_exact):
    """`polder validate`: PostgreSQL's own digests of every type's values are those of the lake."""
    lake, reports = postgres_exact
    done = lake.run("validate", "--org", "exact", "--json")
    validations = json.loads(done.stdout)["validations"]
    wrong = {
        v.get("table") or v["report"]["table"]: v
        for v in validations
        if v["state"] != "validated" or v["report"]["verdict"] != "verified" or v["report"]["pending"]
    }
    assert wrong == {}
    assert len(validations) == len([org for org, _ in reports if org == "exact"])
    assert done.returncode == 0, done.stderr


def odd_values() -> list:
    every = [(type_, id_, odd) for type_ in ODD_TYPES for id_, odd in enumerate(type_.odd, 2)]
    return [pytest.param(*one, id=f"{one[0].title} {one[2].value}") for one in every]


@pytest.mark.parametrize("type_, id_, odd", odd_values())
def test_a_value_that_no_lake_type_holds_is_refused(postgres_altered, type_: Type, id_: int, odd: Odd):
    lake, reports = postgres_altered
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
def test_a_policy_alters_such_values_and_counts_them(postgres_altered, asked, reader, policy, type_):
    lake, reports = postgres_altered
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
def test_no_null_is_silent(postgres_exact, asked, reader):
    """As many nulls as the source has, in values, arrays and elements."""
    lake, _ = postgres_exact
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


def test_people_are_told_the_rows_too(postgres_altered):
    lake, reports = postgres_altered
    name = next(odd_table(type_) for type_ in ODD_TYPES if type_.name == "date")
    done = lake.run("run", "--org", "null", "--table", name)
    assert done.returncode == 0, done.stderr
    count = reports["null", name]["report"]["altered"]["v"]
    told = f"{count} values of v altered by on_unrepresentable, in rows like id=2; id=3; id=4; id=5; id=6"
    assert told in done.stdout + done.stderr
