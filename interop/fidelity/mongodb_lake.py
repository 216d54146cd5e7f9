"""The cases of BSON as collections and a lake: fixtures of the fidelity suite."""

import uuid

import pymongo
import pytest
from bson.raw_bson import RawBSONDocument

from fidelity.lake import make_lake, settled
from fidelity.mongodb import ODD_TYPES, TYPES, Bson, OddType, Raw, document
from fidelity.swap import stand_in, swapped
from lakes import Lake, Services

SOURCE = """
[sources.mongo]
type = "mongodb"
url = "env:FIDELITY_URL"
database = "{}"
"""

POLICIES = ["error", "null", "clamp", "text"]


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


@pytest.fixture(scope="session")
def bson_database(services: Services):
    """The address of a database of our own with all documents; dropped at the end."""
    name = f"fidelity_{uuid.uuid4().hex[:8]}"
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


@pytest.fixture(scope="session")
def bson_lake(services: Services, bson_database, tmp_path_factory) -> tuple[Lake, dict]:
    """All collections under the default policy in the org `bson`; values that a column's type does not
    hold under each policy in an org of that name."""
    name, url = bson_database
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
    return settled(lake)
