"""The fidelity suite's other half: every type of BSON, with its extremes (see `test_fidelity`)."""

import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from fidelity.lake import columns
from fidelity.mongodb import (
    ODD_TYPES, TYPES, Bson, OddBson, OddType, Raw, expected, found, plain,
)
from lakes import READERS

POLICIES = ["error", "null", "clamp", "text"]
# The most rows that the report names for each column.
KEYS_MAX = 5

EVERY_READER = pytest.mark.parametrize("reader", READERS)
EVERY_TYPE = pytest.mark.parametrize("case", TYPES, ids=lambda case: case.name)


def collection(case: Bson | OddType) -> str:
    cases = TYPES if isinstance(case, Bson) else ODD_TYPES
    return f"{'t' if isinstance(case, Bson) else 'odd'}{cases.index(case)}"


def test_there_are_enough_values():
    assert sum(len(case.values) for case in TYPES) >= 100


@EVERY_TYPE
@EVERY_READER
def test_every_value_comes_back_equal(bson_exact, reader, case):
    lake, reports = bson_exact
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
