"""The fidelity suite's other half: every type of BSON, with its extremes (see `test_fidelity`)."""

import json

import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from fidelity.lake import columns, make_lake, runs
from fidelity.mongodb import (
    ODD_TYPES, TYPES, Bson, OddBson, OddType, Raw, document, expected, found, parsed, plain,
)
from fidelity.swap import stand_in, swapped
from lakes import READERS, Lake, Services

SOURCE = """
[sources.mongo]
type = "mongodb"
url = "env:FIDELITY_URL"
database = "{}"
"""

POLICIES = ["error", "null", "clamp", "text"]
# The most rows that the report names for each column.
KEYS_MAX = 5

EVERY_READER = pytest.mark.parametrize("reader", READERS)
EVERY_TYPE = pytest.mark.parametrize("case", TYPES, ids=lambda case: case.name)


def collection(case: Bson | OddType) -> str:
    cases = TYPES if isinstance(case, Bson) else ODD_TYPES
    return f"{'t' if isinstance(case, Bson) else 'odd'}{cases.index(case)}"


def rows(case: Bson | OddType) -> dict[int, list]:
    """A collection's documents, by key; the last one has a null."""
    values = case.values if isinstance(case, Bson) else [case.value, *(odd.value for odd in case.odd)]
    return {id_: [value] for id_, value in enumerate([*values, None], 1)}


# A document with a member twice, which no row can be.
TWICE = {"twice": {7: [1, 2]}}
COLLECTIONS = {collection(case): rows(case) for case in [*TYPES, *ODD_TYPES]} | TWICE


def spec(case: Bson | OddType, name: str, **more: object) -> dict:
    declared = getattr(case, "declared", None)
    types = {"types": {"v": declared}} if declared else {}
    return {"name": name, "source": "mongo", "from": collection(case), "key": ["_id"], **types, **more}


def one(case: OddType, id_: int, policy: str) -> dict:
    """The table of a single value."""
    name = f"{collection(case)}_{id_}"
    return spec(case, name, filter={"_id": id_}, on_unrepresentable=policy)


@pytest.fixture(scope="module")
def database(services: Services, suffix: str):
    """The address of a database of our own with all documents; dropped at the end."""
    name = f"fidelity_{suffix}"
    pairs = {}
    with pymongo.MongoClient(services.mongo) as client:
        for into, documents in COLLECTIONS.items():
            stored = []
            for id_, values in documents.items():
                shown = document(id_, *values)
                if len(values) > 1 or isinstance(values[0], Raw):
                    hidden = stand_in(shown, id_, len(pairs))
                    pairs[hidden] = shown
                    stored.append(hidden)
                else:
                    stored.append(shown)
            client[name][into].insert_many(map(RawBSONDocument, stored))
        with swapped(services.mongo, pairs) as url:
            yield name, url
        client.drop_database(name)


@pytest.fixture(scope="module")
def lake(services: Services, database, tmp_path_factory) -> tuple[Lake, dict]:
    """All collections under the default policy in the org `bson`; values that a column's type does not
    hold under each policy in an org of that name."""
    name, url = database
    orgs = {"bson": [spec(case, collection(case)) for case in TYPES]}
    for policy in POLICIES:
        orgs[policy] = [
            one(case, id_, policy) for case in ODD_TYPES for id_, _ in enumerate(case.odd, 2)
        ]
        orgs[policy] += [
            spec(
                case, collection(case), on_unrepresentable=policy,
                filter={"_id": {"$nin": [id_ for id_, odd in enumerate(case.odd, 2) if odd.refused]}},
            )
            for case in ODD_TYPES
        ]
    orgs["error"].append({"name": "twice", "source": "mongo", "from": "twice", "key": ["_id"]})
    work = tmp_path_factory.mktemp("bson")
    lake = make_lake(services, work, SOURCE.format(name), orgs, FIDELITY_URL=url)
    return lake, runs(lake)


def test_there_are_enough_values():
    assert sum(len(case.values) for case in TYPES) >= 100


@EVERY_TYPE
@EVERY_READER
def test_every_value_comes_back_equal(lake, reader, case):
    lake, reports = lake
    run = reports["bson", collection(case)]
    assert run["state"] == "succeeded", run["error"]
    assert (run["report"]["altered"], run["report"]["altered_keys"]) == ({}, {})
    stored = columns(lake, reader, "bson", collection(case), lambda value: value)["v"]
    values = {id_: expected(case, value) for id_, value in enumerate([*case.values, None], 1)}
    assert {id_: found(case, value) for id_, value in stored.items()} == values
    nulls = [id_ for id_, value in stored.items() if value is None]
    assert nulls == [id_ for id_, value in enumerate([*case.values, None], 1) if value is None]


def odd_values() -> list:
    return [
        pytest.param(case, id_, odd, id=f"{case.title} {id_}")
        for case in ODD_TYPES
        for id_, odd in enumerate(case.odd, 2)
    ]


@pytest.mark.parametrize("case, id_, odd", odd_values())
def test_a_value_that_its_type_does_not_hold_is_refused(lake, case: OddType, id_: int, odd: OddBson):
    lake, reports = lake
    name = f"{collection(case)}_{id_}"
    # What is no value of the type is refused under any policy.
    for policy in POLICIES if odd.refused else ["error"]:
        run = reports[policy, name]
        assert run["state"] == "failed"
        error = run["error"]
        assert error["code"] == "source.unrepresentable"
        assert "column v " in error["message"] and error["detail"].endswith(f", row _id={id_}")
        assert (policy, name) not in lake.tables()


def test_a_document_that_is_no_row_is_refused(lake):
    _, reports = lake
    error = reports["error", "twice"]["error"]
    assert error["code"] == "source.unrepresentable"
    assert '"v" twice' in error["message"] and error["detail"].endswith(", row _id=7")


@pytest.mark.parametrize("case", ODD_TYPES, ids=lambda case: case.title)
@pytest.mark.parametrize("policy", ["null", "clamp"])
@EVERY_READER
def test_a_policy_alters_such_values_and_counts_them(lake, reader, policy, case):
    lake, reports = lake
    run = reports[policy, collection(case)]
    assert run["state"] == "succeeded", run["error"]
    kept = {id_: odd for id_, odd in enumerate(case.odd, 2) if not odd.refused}
    values = {1: case.value, len(case.odd) + 2: None}
    values |= {id_: odd.clamped if policy == "clamp" else None for id_, odd in kept.items()}
    stored = columns(lake, reader, policy, collection(case), plain)["v"]
    assert stored == {id_: plain(value) for id_, value in values.items()}
    assert run["report"]["altered"] == {"v": len(kept)}
    keys = [f"_id={id_}" for id_ in kept]
    assert run["report"]["altered_keys"] == {"v": keys[:KEYS_MAX]}


@EVERY_READER
def test_text_keeps_dates_beyond_the_calendar(lake, reader):
    """Declared types stay; what does not fit them is refused."""
    lake, reports = lake
    for case in ODD_TYPES:
        run = reports["text", collection(case)]
        if case.declared:
            assert run["state"] == "failed" and run["error"]["code"] == "source.unrepresentable"
            continue
        assert run["report"]["altered"] == {}
        stored = columns(lake, reader, "text", collection(case), lambda value: value)["v"]
        for id_, [value] in rows(case).items():
            text = stored[id_]
            if isinstance(value, Raw):
                assert json.loads(text) == value.json
            else:
                assert (None if text is None else parsed(text)) == value
