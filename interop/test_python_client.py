"""The Python package `polder-lake` against `polder serve`: names, states, conditions, every form rows
come in; on local disk and on S3, with keys that are vended."""

import json
import sys
import types
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import duckdb
import numpy
import pandas
import polars
import polder
import pyarrow as pa
import pytest
from lakes import Lake
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.expressions import GreaterThan

from test_rest_catalog import CLIENTS, SECRET, serving
from test_rest_catalog_s3 import ROLE, STORAGE, bucket  # noqa: F401

CONFIG = """
[lake]
warehouse = "{warehouse}"
catalog = "sqlite://polder.db"
[store]
url = "sqlite://polder.db"
[sources.exports]
type = "files"
url = "./exports"
"""
PIPELINE = """
templates:
  crm:
    tables:
      - name: opportunity
        source: exports
        from: "{org}/opportunity/*.csv"
        types: { amount: "decimal(18, 2)", score: double }
      - { name: activity, source: exports, from: "{org}/activity/*.jsonl", mode: append }
orgs:
  - { id: "401", name: Acme, template: crm }
  - { id: "402", name: Globex, template: crm }
"""
ENV = {"OPERATOR_SECRET": SECRET, "CRM_SECRET": SECRET[::-1]}
FIRST = "id,stage,amount,score\n1,won,10.50,0.5\n2,lost,0.25,\n3,won,7.00,0.75\n"
# `score` went, `owner` came.
SECOND = "id,stage,amount,owner\n1,won,11.50,ann\n2,lost,0.25,bob\n4,open,1.00,cy\n"


def lake_of(services, work, warehouse="lake", more="") -> Lake:
    """A lake of two orgs after its first run."""
    (work / "polder.toml").write_text(CONFIG.format(warehouse=warehouse) + more)
    (work / "pipelines").mkdir()
    (work / "pipelines/crm.yaml").write_text(PIPELINE)
    lake = Lake(services, work, ENV)
    for org in ["401", "402"]:
        write(lake, org, "opportunity/1.csv", FIRST)
        lines = [{"n": n, "who": {"name": f"name {n}"}, "ok": n % 2 == 0} for n in range(200)]
        write(lake, org, "activity/1.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    lake.polder("run", "--json")
    return lake


def write(lake: Lake, org: str, name: str, text: str) -> None:
    path = lake.work / "exports" / org / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def lake(services, tmp_path_factory) -> Lake:
    """Read by the tests that change nothing."""
    return lake_of(services, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def org(lake):
    with serving(lake.services.polder, lake.work, ENV) as uri:
        yield polder.connect(uri.removesuffix("/iceberg")).org("401")


def test_names_are_listed_and_a_wrong_one_says_what_there_is(org):
    connection = org._connection
    assert connection.orgs() == ["401", "402"]
    assert connection.org(402).tables() == org.tables() == ["activity", "opportunity"]
    assert repr(org).endswith(".org('401')")
    with pytest.raises(polder.NotFound, match="did you mean 'opportunity'.*activity, opportunity"):
        org.table("oportunity")
    for call in (connection.org("499").tables, lambda: connection.org("499").table("activity")):
        with pytest.raises(polder.NotFound, match="no org '499'.*401, 402"):
            call()
    table = org.table("opportunity")
    columns = "id, stage, amount, score"
    with pytest.raises(polder.NotFound, match=f"'stag'.*mean 'stage'.*{columns}"):
        table.select("id", "stag")
    with pytest.raises(polder.NotFound, match=f"stag.*{columns}"):
        table.where("stag = 'won'")
    with pytest.raises(polder.NotFound, match=r"'v9' \(there is: v1\)"):
        table.at("v9")
    with pytest.raises(polder.NotFound, match='snapshot 1: versions are named as text, "v1"'):
        table.at(1)


@pytest.mark.parametrize("wrong", ["", "stage =", "stage = 'won' or", "id = 'x'", "amount > 0.125", "select 1"])
def test_what_is_no_condition_is_refused_before_anything_is_read(org, wrong):
    with pytest.raises(polder.Invalid):
        org.table("opportunity").where(wrong)


def test_rows_come_in_every_form(org):
    table = org.table("opportunity")
    won = table.where("stage = 'won'").select("id", "amount")
    expected = {"id": [1, 3], "amount": [Decimal("10.50"), Decimal("7.00")]}
    arrow = won.to_arrow()
    assert arrow.schema == won.schema() and won.schema().names == ["id", "amount"]
    assert arrow.sort_by("id").to_pydict() == expected
    more = table.where("amount > 1.5 and not (amount = 7 or score < 0)")
    assert (more.count(), more.to_arrow()["id"].to_pylist()) == (1, [1])
    reader = won.to_batches()
    assert isinstance(reader, pa.RecordBatchReader)
    assert sum(batch.num_rows for batch in reader) == won.count() == 2
    assert pa.table(won).sort_by("id").to_pydict() == expected
    frame = won.to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.sort("id").to_dict(as_series=False) == expected
    pandas_frame = won.to_pandas().sort_values("id")
    assert isinstance(pandas_frame, pandas.DataFrame)
    assert pandas_frame.to_dict("list") == expected
    con = duckdb.connect()
    assert won.to_duckdb(con) is con
    table.to_duckdb(con, "everything")
    joined = "SELECT sum(amount), count(*) FROM everything JOIN opportunity USING (id, amount)"
    assert con.execute(joined).fetchone() == (Decimal("17.50"), 2)
    assert won.to_duckdb().execute("FROM opportunity").fetchall() != []


def test_conditions_columns_and_limits_add_up_and_change_nothing_before_them(org):
    table = org.table("activity")
    some = table.where("n >= 50").where(GreaterThan("n", 99)).where("ok = true")
    numbers = [n for n in range(100, 200) if n % 2 == 0]
    assert sorted(some.select("n").to_arrow()["n"].to_pylist()) == numbers
    names = some.select("who.name").to_arrow()["who"].to_pylist()
    assert {row["name"] for row in names} == {f"name {n}" for n in numbers}
    few = some.limit(30).limit(7)
    assert (few.count(), few.to_arrow().num_rows, some.limit(0).to_arrow().num_rows) == (7, 7, 0)
    assert sum(len(batch) for batch in few.to_batches()) == 7
    assert (some.count(), table.count()) == (50, 200)
    with pytest.raises(AttributeError):
        table.name = "other"
    for wrong in (lambda: table.limit(-1), table.select):
        with pytest.raises(polder.Invalid):
            wrong()


def test_numbers_become_arrays_and_what_would_be_altered_is_refused(org, monkeypatch):
    table = org.table("opportunity")
    arrays = table.select("id", "score").to_numpy()
    assert sorted(arrays["id"].tolist()) == [1, 2, 3] and arrays["id"].dtype == numpy.int32
    assert numpy.isnan(arrays["score"]).sum() == 1 and numpy.nansum(arrays["score"]) == 1.25
    arrays["id"][0] = 7
    flags = org.table("activity").select("ok").to_numpy()["ok"]
    assert (flags.dtype, int(flags.sum())) == (numpy.dtype(bool), 100)
    with pytest.raises(polder.Invalid, match=r"stage is \w+, no number; column amount is decimal"):
        table.to_numpy()
    # PyTorch's wheel is larger than the rest of this environment: what it is handed is looked at.
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_numpy=lambda a: a.copy()))
    assert sorted(table.select("id").to_torch()["id"].tolist()) == [1, 2, 3]
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'polder-lake\[torch\]'"):
        table.to_torch()


def test_rows_are_handed_to_ray(org, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        numbers = org.table("activity").where("n < 150").select("n").to_ray()
        assert (numbers.count(), numbers.sum("n")) == (150, sum(range(150)))
        none = org.table("activity").where("n < 0").to_ray()
        assert (none.count(), none.schema().names) == (0, ["n", "who", "ok"])
    finally:
        ray.shutdown()


def test_a_table_stays_at_its_state_until_it_is_refreshed(services, tmp_path):
    lake = lake_of(services, tmp_path)
    with serving(services.polder, lake.work, ENV) as uri:
        org = polder.connect(uri).org("401")
        before = org.table("opportunity")
        activity = org.table("activity").where("n >= 199")
        between = datetime.now(UTC)
        write(lake, "401", "opportunity/1.csv", SECOND)
        write(lake, "401", "activity/2.jsonl", '{"n": 200, "who": {"name": "x"}, "ok": true}\n')
        lake.polder("run", "--org", "401", "--json")

        # What was opened says the same; opened again, it says more.
        assert before.to_arrow().sort_by("id")["stage"].to_pylist() == ["won", "lost", "won"]
        assert (activity.count(), activity.refresh().count()) == (1, 2)
        after = before.refresh()
        assert after.schema().names == ["id", "stage", "amount", "owner"]
        versions = {version.name: version for version in after.versions()}
        assert [(v.rows, v.current) for v in versions.values()] == [(3, False), (3, True)]
        listed = lake.polder("versions", "--org", "401", "--table", "opportunity", "--json")[0]
        told = {v["version"]: v["snapshot_id"] for v in listed["versions"]}
        assert {v.name: v.snapshot_id for v in versions.values()} == told

        # Every name of the first state gives its rows under its columns.
        first = versions["v1"]
        for state in ["v1", first, first.snapshot_id, between, first.published_at]:
            old = after.at(state)
            assert old.snapshot_id == first.snapshot_id
            assert old.schema().names == ["id", "stage", "amount", "score"]
            found = old.where("score > 0.6").select("id", "score").to_arrow()
            assert found.to_pydict() == {"id": [3], "score": [0.75]}
        with pytest.raises(polder.NotFound, match="score"):
            after.where("score > 0.6")
        with pytest.raises(polder.NotFound, match="score"):
            before.where("score > 0.6").refresh()
        with pytest.raises(polder.Invalid, match="no time zone"):
            after.at(between.replace(tzinfo=None))
        with pytest.raises(polder.NotFound, match="history begins"):
            after.at(between - timedelta(days=1))

        # A pin keeps its state; a rollback makes the old one the current one.
        assert after.pins() == []
        theirs = RestCatalog("other", uri=uri).load_table("org_401.opportunity")
        theirs.manage_snapshots().create_tag(first.snapshot_id, "model-2026-11").commit()
        pin = after.refresh().pins()[0]
        assert (pin.name, pin.snapshot_id, pin.rows) == ("model-2026-11", first.snapshot_id, 3)
        rollback = ["rollback", "--org", "401", "--table", "opportunity", "--to", "v1"]
        lake.polder(*rollback, "--json")
        back = org.table("opportunity")
        assert [(v.name, v.current) for v in back.versions()] == [("v1", True), ("v2", False)]
        assert [found.name for found in back.pins()] == ["model-2026-11"]
        assert "score" in back.schema().names
        assert back.at(pin).to_arrow().sort_by("id").equals(before.to_arrow().sort_by("id"))


def test_a_state_that_expired_meanwhile_is_named(services, tmp_path):
    lake = lake_of(services, tmp_path)
    with serving(services.polder, lake.work, ENV) as uri:
        table = polder.connect(uri).org("401").table("opportunity")
        for amount in range(3):
            write(lake, "401", "opportunity/1.csv", FIRST.replace("10.50", str(amount)))
            lake.polder("run", "--org", "401", "--table", "opportunity", "--full-refresh", "--json")
        expire = ["maintain", "expire", "--org", "401", "--table", "opportunity"]
        lake.polder(*expire, "--versions", "1", "--days", "0", "--json")
        with pytest.raises(polder.NotFound, match="gone"):
            table.to_arrow()
        newest = table.refresh()
        assert newest.count() == 3
        with pytest.raises(polder.NotFound, match="v1"):
            newest.at("v1")


def test_a_key_opens_its_own_org_alone(services, tmp_path, monkeypatch):
    lake = lake_of(services, tmp_path, more=CLIENTS)
    with serving(services.polder, lake.work, ENV) as uri:
        url = uri.removesuffix("/iceberg")
        assert polder.connect(url, f"operator:{SECRET}").orgs() == ["401", "402"]
        key = f"crm:{SECRET[::-1]}"
        form = {"grant_type": "client_credentials", "client_id": "crm", "client_secret": SECRET[::-1]}
        data = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{uri}/v1/oauth/tokens", data) as answer:
            token = json.load(answer)["access_token"]
        monkeypatch.setenv("POLDER_KEY", key)
        for given in [key, token, None]:
            mine = polder.connect(url, given)
            assert mine.orgs() == ["401"]
            assert mine.org("401").table("activity").count() == 200
            with pytest.raises(polder.NotFound, match="no org '402'"):
                mine.org("402").tables()
            with pytest.raises(polder.NotFound):
                mine.org("402").table("activity")
        for wrong in ["crm:wrong", "rubbish", token[:-2] + "00", "nobody:" + SECRET]:
            with pytest.raises(polder.AccessDenied) as refused:
                polder.connect(url, wrong).orgs()
            assert SECRET not in str(refused.value)
    with pytest.raises(polder.Unavailable):
        polder.connect(url, key)


@pytest.mark.parametrize("url", ["127.0.0.1:7070", "", "http://", "http://a:b@h", "http://h?x=1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(polder.Invalid):
        polder.connect(url)


@pytest.mark.parametrize("role", [False, True])
def test_on_s3_bytes_come_straight_from_storage(services, bucket, tmp_path, role):  # noqa: F811
    storage = (STORAGE + (ROLE if role else "")).format(endpoint=services.s3)
    lake = lake_of(services, tmp_path, f"s3://{bucket}/lake", storage + CLIENTS)
    with serving(services.polder, lake.work, ENV) as uri:
        operator = polder.connect(uri, f"operator:{SECRET}").org("402").table("opportunity")
        assert operator.where("stage = 'won'").count() == 2
        key = f"crm:{SECRET[::-1]}"
        mine = polder.connect(uri, key).org("401").table("opportunity")
        if role:
            assert mine.to_arrow().num_rows == 3
            return
        # Without a role an org's client has its requests signed, which PyArrow cannot ask for.
        with pytest.raises(polder.AccessDenied, match="role_arn"):
            mine.to_arrow()
        own = {
            "s3.access-key-id": services.access_key, "s3.secret-access-key": services.secret_key,
            "s3.endpoint": services.s3,
        }
        mine = polder.connect(uri, key, storage=own).org("401").table("opportunity")
        assert mine.to_arrow().num_rows == 3
