"""`/mcp`: the official Python client over streamable HTTP, with the keys and roles of the API."""

import json
import time
import urllib.error
import urllib.request

import pytest
from agents import ask, talk
from lakes import FROM_FILES, KEYS, Lake

from test_mcp import INJECTION
from test_rest_catalog import serving

PIPELINE = """
templates:
  t:
    tables:
      - name: deal
        source: files
        from: "{org}/deal.csv"
        key: [id]
        types: { id: long }
        description: Deals
        docs: { note: What was said }
      - name: call
        source: files
        from: "{org}/call.csv"
        types: { deal_id: long, at: timestamptz }
        references: { deal_id: deal }
        event_time: at
      - { name: later, source: files, from: "{org}/later.csv", key: [id] }
orgs:
  - { id: "401", template: t }
  - { id: "402", template: t }
"""
SECRET = "top secret"


@pytest.fixture(scope="module")
def lake(services, tmp_path_factory) -> Lake:
    lake = Lake(services, tmp_path_factory.mktemp("mcp-http"), {})
    (lake.work / "polder.toml").write_text(FROM_FILES + KEYS)
    (lake.work / "pipelines").mkdir()
    (lake.work / "pipelines/t.yaml").write_text(PIPELINE)
    for org, note in (("401", INJECTION), ("402", SECRET)):
        folder = lake.work / "exports" / org
        folder.mkdir(parents=True)
        (folder / "deal.csv").write_text("id,note\n" + "".join(f"{i},{note}\n" for i in range(2_000)))
        calls = "".join(f"{i % 40},2026-01-{1 + i % 28:02d}T00:00:00Z,{note} {i}\n" for i in range(400))
        (folder / "call.csv").write_text("deal_id,at,text\n" + calls)
        (folder / "later.csv").write_text("id\n1\n2\n")
    lake.polder("run", "--table", "deal", "--table", "call", "--json")
    return lake


@pytest.fixture(scope="module")
def address(lake):
    with serving(lake.services.polder, lake.work, {}) as uri:
        yield uri.removesuffix("/iceberg")


def key(lake: Lake, role: str, *orgs: str) -> str:
    named = [part for org in orgs for part in ("--org", org)]
    return lake.polder("keys", "create", "--role", role, *named, "--json")["key"]


@pytest.fixture(scope="module")
def agent(lake) -> str:
    return key(lake, "agent", "401")


def test_an_agent_sees_its_org_as_over_stdio(address, agent):
    tools, answers = talk(
        address, agent,
        ("list_tables", {}),
        ("describe_table", {"table": "deal"}),
        ("query", {"sql": "SELECT count(*) AS n FROM deal"}),
        ("query", {"sql": "SELECT DISTINCT note FROM deal"}),
        ("explain", {"sql": "SELECT count(*) FROM deal WHERE id > 5"}),
    )
    assert tools == ["list_tables", "describe_table", "query", "explain", "bootstrap"]
    assert [error for error, _ in answers] == [False] * 5
    tables, described, counted, notes, plan = (answer for _, answer in answers)
    assert [(t["namespace"], t["table"]) for t in tables["tables"]] == [("org_401", "call"), ("org_401", "deal")]
    assert (described["description"], described["columns"][1]["doc"]) == ("Deals", "What was said")
    assert described["key"] == ["id"] and described["verdict"] is None and described["age_seconds"] >= 0
    assert counted["rows"] == [{"n": 2000}] and notes["rows"] == [{"note": INJECTION}]
    assert "deal" in json.dumps(plan["rows"]) and len(plan["rows"]) >= 1


def test_without_a_good_key_there_is_nothing(lake, address, agent):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    kinds = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    revoked = key(lake, "agent", "401")
    lake.polder("keys", "revoke", "_".join(revoked.split("_")[:2]), "--json")
    for shown in [None, "plk_0_0", "polder1.1.2.3", revoked, agent[:-1]]:
        headers = kinds | ({"Authorization": f"Bearer {shown}"} if shown else {})
        request = urllib.request.Request(f"{address}/mcp", data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=60)
        assert error.value.code == 401 and error.value.headers["WWW-Authenticate"] == "Bearer"


def test_no_wording_reaches_another_org(lake, address, agent):
    # A token of the other org, rightly got by its own agent.
    other = key(lake, "agent", "402")
    foreign = ask(address, other, "bootstrap", rows_max=1)
    assert SECRET in json.dumps(foreign)
    attempts = [
        ("describe_table", {"table": "org_402.deal"}),
        ("describe_table", {"table": "lake.org_402.deal"}),
        ("bootstrap", {"tables": ["org_402.deal"]}),
        ("bootstrap", {"tables": ["lake.org_402.deal"], "rows_max": 5}),
        ("bootstrap", {"org": "402"}),
        ("bootstrap", {"org": "org_402", "rows_max": 5}),
        ("bootstrap", {"org": "401", "tables": ["org_402.deal"], "rows_max": 5}),
        ("bootstrap", {"entity": "org_402.deal", "rows_max": 5}),
        ("bootstrap", {"resume": foreign["mark"]["next"], "rows_max": 5}),
        ("bootstrap", {"resume": foreign["token"], "org": "402", "rows_max": 5}),
        ("explain", {"sql": "SELECT * FROM lake.org_402.deal"}),
        ("explain", {"sql": "ANALYZE SELECT * FROM lake.org_402.deal"}),
        ("query", {"sql": "SELECT * FROM lake.org_402.deal"}),
        ("query", {"sql": "SELECT note FROM deal UNION SELECT note FROM org_402.deal"}),
        ("query", {"sql": "SELECT * FROM files.\"402/*.csv\""}),
        ("query", {"sql": "SELECT * FROM polder_management.runs"}),
        ("request_table", {"org": "402", "name": "later"}),
    ]
    asked = [attempt for attempt in attempts if attempt[0] != "request_table"]
    _, answers = talk(address, agent, *asked)
    for attempt, (error, answer) in zip(asked, answers, strict=True):
        assert error and SECRET not in json.dumps(answer), (attempt, answer)
    writer = key(lake, "writer", "401")
    _, answers = talk(address, writer, *attempts)
    for attempt, (error, answer) in zip(attempts, answers, strict=True):
        assert error and SECRET not in json.dumps(answer), (attempt, answer)
    # There and not there look the same.
    _, answers = talk(
        address, writer,
        *[(name, {"org": org, **more}) for name, more in (("bootstrap", {}), ("request_table", {"name": "x"}))
          for org in ("402", "409")],
    )
    texts = [json.dumps(answer).replace("409", "402") for _, answer in answers]
    assert texts[0] == texts[1] and texts[2] == texts[3]


def test_bootstrap_hands_out_rows_and_documents_in_parts(lake, address, agent):
    first = ask(address, agent, "bootstrap", entity="deal", rows_max=30, since="2026-01-15T00:00:00Z")
    assert [document["key"] for document in first["rows"]] == list(range(30))
    for document in first["rows"]:
        calls = document["related"]["call"]
        times = [row["at"] for row in calls]
        assert times == sorted(times) and all(time >= "2026-01-15" for time in times)
        assert all(row["deal_id"] == document["key"] for row in calls)
    assert first["mark"]["stopped_by"] == "rows_max" and first["tables"][0]["snapshot_id"]
    token, keys = first["mark"]["next"], []
    while token:
        more = ask(address, agent, "bootstrap", resume=token, tokens_max=20_000)
        assert "tables" not in more
        keys += [document["key"] for document in more["rows"]]
        token = more["mark"]["next"]
    assert keys == list(range(30, 2_000))
    entries = lake.polder("audit", "list", "--limit", "5000", "--json")
    assert sum(entry["action"] == "mcp bootstrap" for entry in entries) > 3


def causes(error):
    """The errors in a group of groups."""
    groups = error.exceptions if isinstance(error, ExceptionGroup) else None
    return [error] if groups is None else [cause for inner in groups for cause in causes(inner)]


def test_a_writers_agent_asks_for_a_table_and_a_readers_cannot(lake, address, agent):
    tools, [(error, _)] = talk(address, key(lake, "writer", "401"), ("list_tables", {}))
    assert "request_table" in tools and not error
    for role in ("agent", "reader"):
        with pytest.raises(ExceptionGroup) as caught:
            talk(address, key(lake, role, "401"), ("request_table", {"name": "later"}))
        assert any("there is no tool" in str(cause) for cause in causes(caught.value))
    writer = key(lake, "writer", "401")
    planned = ask(address, writer, "request_table", name="later")
    assert planned["done"] is False and planned["plan"]["spec"]["from"] == "{org}/later.csv"
    again = ask(address, writer, "request_table", name="later")
    assert again == planned, "a plan changes nothing"
    _, answers = talk(
        address, writer,
        ("request_table", {"name": "later", "plan_hash": "0" * 64}),
        ("request_table", {"name": "later", "plan_hash": planned["plan_hash"], "settings": {"mode": "append"}}),
        ("request_table", {"name": "later", "settings": {"from": "402/deal.csv"}}),
        ("request_table", {"name": "nowhere"}),
        ("request_table", {"name": "later", "settings": {"colour": "red"}}),
    )
    codes = [answer["code"] for error, answer in answers if error]
    assert codes[:3] == ["control.stale", "control.stale", "control.denied"] and len(codes) == 5
    assert "later" not in [t["table"] for t in ask(address, writer, "list_tables")["tables"]]
    done = ask(address, writer, "request_table", name="later", plan_hash=planned["plan_hash"])
    assert done["done"] and done["operation"]
    for _ in range(100):
        if "later" in [t["table"] for t in ask(address, writer, "list_tables")["tables"]]:
            break
        # The API and the agents' door have one limit together.
        time.sleep(0.2)
    rows = ask(address, writer, "query", sql="SELECT count(*) AS n FROM later")
    assert rows["rows"] == [{"n": 2}]
    entries = lake.polder("audit", "list", "--limit", "5000", "--json")
    posts = [e for e in entries if e["action"] == "POST /v1/orgs/{org}/tables" and e["outcome"] == "done"]
    assert posts and all(entry["who"].startswith("key:plk_") for entry in posts)
