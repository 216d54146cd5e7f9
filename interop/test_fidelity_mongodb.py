"""The fidelity suite's other half: every type of BSON, with its extremes (see `test_fidelity`)."""

import json

import pytest
from fidelity.lake import columns
from fidelity.mongodb import ODD_TYPES, TYPES, OddBson, OddType, Raw, expected, found, parsed, plain
from fidelity.mongodb_lake import POLICIES, collection, rows
from lakes import READERS

# The most rows that the report names for each column.
KEYS_MAX = 5

EVERY_READER = pytest.mark.parametrize("reader", READERS)
EVERY_TYPE = pytest.mark.parametrize("case", TYPES, ids=lambda case: case.name)


def test_there_are_enough_values():
    assert sum(len(case.values) for case in TYPES) >= 100


@EVERY_TYPE
@EVERY_READER
def test_every_value_comes_back_equal(bson_lake, reader, case):
    lake, reports = bson_lake
    run = reports["bson", collection(case)]
    assert run["state"] == "succeeded", run["error"]
    assert (run["report"]["altered"], run["report"]["altered_keys"]) == ({}, {})
    stored = columns(lake, reader, "bson", collection(case), lambda value: value)["v"]
    values = {id_: expected(case, value) for id_, value in enumerate([*case.values, None], 1)}
    assert {id_: found(case, value) for id_, value in stored.items()} == values
    nulls = [id_ for id_, value in stored.items() if value is None]
    assert nulls == [id_ for id_, value in enumerate([*case.values, None], 1) if value is None]


def test_what_is_read_again_is_what_the_lake_has(bson_lake):
    """`polder validate`: the documents' digests are those of the lake's rows."""
    lake, reports = bson_lake
    done = lake.run("validate", "--org", "bson", "--json")
    validations = json.loads(done.stdout)["validations"]
    wrong = [v for v in validations if v["state"] != "validated" or v["report"]["verdict"] != "verified"]
    assert wrong == []
    assert len(validations) == len([org for org, _ in reports if org == "bson"])
    assert done.returncode == 0, done.stderr


def odd_values() -> list:
    return [
        pytest.param(case, id_, odd, id=f"{case.title} {id_}")
        for case in ODD_TYPES
        for id_, odd in enumerate(case.odd, 2)
    ]


@pytest.mark.parametrize("case, id_, odd", odd_values())
def test_a_value_that_its_type_does_not_hold_is_refused(bson_lake, case: OddType, id_: int, odd: OddBson):
    lake, reports = bson_lake
    name = f"{collection(case)}_{id_}"
    # What is no value of the type is refused under any policy.
    for policy in POLICIES if odd.refused else ["error"]:
        run = reports[policy, name]
        assert run["state"] == "failed"
        error = run["error"]
        assert error["code"] == "source.unrepresentable"
        assert "column v " in error["message"] and error["detail"].endswith(f", row _id={id_}")
        assert (policy, name) not in lake.tables()


def test_a_document_that_is_no_row_is_refused(bson_lake):
    _, reports = bson_lake
    error = reports["error", "twice"]["error"]
    assert error["code"] == "source.unrepresentable"
    assert '"v" twice' in error["message"] and error["detail"].endswith(", row _id=7")


@pytest.mark.parametrize("case", ODD_TYPES, ids=lambda case: case.title)
@pytest.mark.parametrize("policy", ["null", "clamp"])
@EVERY_READER
def test_a_policy_alters_such_values_and_counts_them(bson_lake, reader, policy, case):
    lake, reports = bson_lake
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
def test_text_keeps_dates_beyond_the_calendar(bson_lake, reader):
    """Declared types stay; what does not fit them is refused."""
    lake, reports = bson_lake
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
