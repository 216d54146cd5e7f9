"""Bootstrap: all rows of an org at one moment, by HTTP and by `polder-lake`, with breaks, budgets and
ingestion going on."""

import io
import json
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta

import duckdb
import polder
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from breaking import Breaking
from lakes import FROM_FILES, KEYS, Lake
from waits import SECONDS_MAX, promptly

from test_rest_catalog import serving

PIPELINE = """
templates:
  crm:
    tables:
      - name: opportunity
        source: files
        from: "{org}/opportunity/*.csv"
        types: { amount: "decimal(18, 2)", account_id: long, id: long }
        key: [id]
        description: Deals, won and lost
        docs: { amount: "In the account's currency" }
        references: { account_id: account }
      - name: account
        source: files
        from: "{org}/account/*.csv"
        types: { id: long }
        key: [id]
      - name: activity
        source: files
        from: "{org}/activity/*.csv"
        mode: append
        key: [id]
        types: { id: long, opportunity_id: long, happened_at: timestamptz }
        references: { opportunity_id: opportunity }
        event_time: happened_at
      - name: email
        source: files
        from: "{org}/email/*.csv"
        mode: append
        key: [id]
        types: { account_id: long, sent_at: timestamptz }
        references: { account_id: account }
        event_time: sent_at
      - name: note
        source: files
        from: "{org}/note/*.csv"
  deep:
    tables:
      - { name: opportunity, source: files, from: "{org}/opportunity/*.csv", key: [id], types: { id: long } }
      - name: call
        source: files
        from: "{org}/call/*.csv"
        mode: append
        key: [id]
        types: { id: long, opportunity_id: long, at: timestamptz }
        references: { opportunity_id: opportunity }
        event_time: at
      - name: segment
        source: files
        from: "{org}/segment/*.csv"
        key: [id]
        types: { call_id: long, at: timestamptz }
        references: { call_id: call }
        event_time: at
      - name: word
        source: files
        from: "{org}/word/*.csv"
        key: [id]
        types: { id: long, at: timestamptz }
        references: { segment_id: segment }
        event_time: at
      - name: letter
        source: files
        from: "{org}/letter/*.csv"
        key: [id]
        types: { id: long, word_id: int }
        references: { word_id: word }
      - name: dot
        source: files
        from: "{org}/dot/*.csv"
        types: { letter_id: long }
        references: { letter_id: letter }
      - name: merger
        source: files
        from: "{org}/merger/*.csv"
        key: [id]
        types: { id: long, from_id: long, into_id: long, at: timestamptz }
        references: { from_id: opportunity, into_id: opportunity }
        event_time: at
      - name: reason
        source: files
        from: "{org}/reason/*.csv"
        key: [id]
        types: { id: long, merger_id: long }
        references: { merger_id: merger }
orgs:
  - { id: "401", template: crm }
  - { id: "402", template: crm }
  - { id: "403", template: deep }
"""
DEALS, ACTIVITIES = 300, 150_000
SECRET = "of the other org"


def write(lake: Lake, org: str, name: str, text: str) -> None:
    path = lake.work / "exports" / org / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def moment(number: int) -> str:
    return datetime.fromtimestamp(1_700_000_000 + number * 60, UTC).isoformat()


def fill(lake: Lake, org: str, note: str) -> None:
    deals = "".join(f"{i},deal {i},{i}.50,{i % 50}\n" for i in range(DEALS))
    write(lake, org, "opportunity/1.csv", "id,name,amount,account_id\n" + deals)
    write(lake, org, "account/1.csv", "id,name\n" + "".join(f"{i},account {i}\n" for i in range(50)))
    for part in range(2):
        ids = range(part * ACTIVITIES // 2, (part + 1) * ACTIVITIES // 2)
        # Newest first: order is the reader's to make. Some belong to no deal.
        rows = "".join(f"{i},{i % (DEALS + 1)},{moment(ACTIVITIES - i)},call\n" for i in ids)
        write(lake, org, f"activity/{part}.csv", "id,opportunity_id,happened_at,kind\n" + rows)
    mails = "".join(f"m{i},{i % 50},{moment(i)},{note}\n" for i in range(500))
    write(lake, org, "email/1.csv", "id,account_id,sent_at,body\n" + mails)
    write(lake, org, "note/1.csv", "id,text\n1,x\n")


def fill_deep(lake: Lake, org: str) -> None:
    """Rows of every level, in another order than that of time; some belong to no row above."""
    tables = {
        "opportunity/1": ("id,name", [(i, f"deal {i}") for i in [*range(40), 1000]]),
        "call/1": ("id,opportunity_id,at", [(i, i % 41, moment(i * 7919 % 400)) for i in range(400)]),
        # Later states of some.
        "call/2": ("id,opportunity_id,at", [(i, i % 41, moment(1_000 + i)) for i in range(0, 400, 20)]),
        "segment/1": (
            "id,call_id,at,text",
            [(f"s{i}", i * 31 % 410, moment(i * 37 % 1200), f"text {i}") for i in range(1_200)],
        ),
        "word/1": ("id,segment_id,at", [(i, f"s{i * 17 % 1210}", moment(i * 53 % 2400)) for i in range(2_400)]),
        "letter/1": ("id,word_id", [(i, i * 11 % 2400) for i in range(599, -1, -1)]),
        "dot/1": ("letter_id,x", [(1, 1)]),
        "merger/1": (
            "id,from_id,into_id,at",
            [(i, i % 40, (i * 3 + 1) % 40, moment(i * 7 % 60)) for i in range(60)],
        ),
        "reason/1": ("id,merger_id,text", [(i, i % 61, f"reason {i}") for i in range(120)]),
    }
    for name, (header, rows) in tables.items():
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        write(lake, org, f"{name}.csv", "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def lake(services, tmp_path_factory) -> Lake:
    lake = Lake(services, tmp_path_factory.mktemp("bootstrap"), {})
    (lake.work / "polder.toml").write_text(FROM_FILES + KEYS)
    (lake.work / "pipelines").mkdir()
    (lake.work / "pipelines/crm.yaml").write_text(PIPELINE)
    fill(lake, "401", "hello")
    fill(lake, "402", SECRET)
    fill_deep(lake, "403")
    lake.polder("run", "--json")
    return lake


def key(lake: Lake, role: str, *orgs: str) -> str:
    named = [part for org in orgs for part in ("--org", org)]
    return lake.polder("keys", "create", "--role", role, *named, "--json")["key"]


@pytest.fixture(scope="module")
def served(lake):
    with serving(lake.services.polder, lake.work, {}) as uri:
        yield uri.removesuffix("/iceberg"), key(lake, "agent", "401")


@pytest.fixture(scope="module")
def org(served):
    return polder.connect(*served).org("401")


def get(served, path: str, **parameters) -> bytes:
    address, token = served
    query = urllib.parse.urlencode(parameters)
    request = urllib.request.Request(f"{address}{path}?{query}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
        return answer.read()


def lines(served, **parameters) -> tuple[dict | None, list[dict], list[dict]]:
    """Manifest, rows and marks of an answer."""
    text = get(served, "/v1/orgs/401/bootstrap", format="ndjson", **parameters)
    found = [json.loads(line) for line in text.splitlines()]
    assert "manifest" in found[0] and "mark" in found[-1] and found[-1]["mark"]["end"]
    rows = [line for line in found if "manifest" not in line and "mark" not in line]
    return found[0]["manifest"], rows, [line["mark"] for line in found if "mark" in line]


def test_the_manifest_says_what_there_is(served):
    manifest = json.loads(get(served, "/v1/orgs/401/bootstrap"))
    assert (manifest["org"], manifest["consistent"], manifest["left_out"]) == ("401", "at_once", [])
    tables = {table["table"]: table for table in manifest["tables"]}
    assert list(tables) == ["account", "activity", "email", "note", "opportunity"]
    deal = tables["opportunity"]
    assert (deal["rows"], deal["key"], deal["references"]) == (DEALS, ["id"], {"account_id": "account"})
    assert deal["description"] == "Deals, won and lost" and deal["verdict"] is None
    amount = next(column for column in deal["columns"] if column["name"] == "amount")
    assert amount == {
        "name": "amount", "type": "decimal(18, 2)", "nullable": True, "doc": "In the account's currency",
    }
    assert tables["activity"]["event_time"] == "happened_at" and deal["event_time"] is None


def test_every_format_has_every_row_once(lake, org, served):
    expected = {name: lake.read_with_pyiceberg("401", name) for name in org.tables()}
    arrow = org.bootstrap().to_arrow()
    assert {name: rows.num_rows for name, rows in arrow.items()} == {n: t.num_rows for n, t in expected.items()}
    for name, rows in arrow.items():
        by = [(rows.column_names[0], "ascending")]
        assert rows.cast(expected[name].schema).sort_by(by).equals(expected[name].sort_by(by)), name
    _, rows, marks = lines(served)
    assert len(rows) == sum(table.num_rows for table in expected.values()) == marks[-1]["rows"]
    assert marks[-1]["next"] is None and len(marks) > 2
    deals = [line["row"] for line in rows if line["table"] == "opportunity"]
    assert deals[3] == {"id": 3, "name": "deal 3", "amount": "3.50", "account_id": 3}
    body = get(served, "/v1/orgs/401/bootstrap", format="parquet")
    read: dict[str, list[pa.Table]] = {}
    with tarfile.open(fileobj=io.BytesIO(body), mode="r|") as archive:
        names = []
        for member in archive:
            names.append(member.name)
            if member.name.endswith(".parquet"):
                part = parquet.read_table(io.BytesIO(archive.extractfile(member).read()))
                table = part.schema.metadata[b"polder.table"].decode()
                read.setdefault(table, []).append(part.replace_schema_metadata(None))
    assert names[0] == "manifest.json" and names[-1] == "mark.json"
    for name, parts in read.items():
        assert pa.concat_tables(parts).equals(arrow[name].replace_schema_metadata(None)), name


def test_every_mark_goes_on_with_exactly_the_rest(served):
    _, all_rows, marks = lines(served)
    for mark in marks[:-1]:
        _, rest, _ = lines(served, resume=mark["next"])
        assert rest == all_rows[mark["rows"]:]
    # And so does every budget, wherever it cuts.
    taken, token = [], None
    for size in [1, 7, 9_000, 65_537, 500_000]:
        manifest, rows, marks = lines(served, rows_max=size, **({"resume": token} if token else {}))
        taken += rows
        token = marks[-1]["next"]
        assert marks[-1]["rows"] == len(rows) <= size
        assert marks[-1]["stopped_by"] == ("rows_max" if token else None)
    assert token is None and taken == all_rows


def test_budgets_hold_to_the_byte(served):
    for name, limit, unit in [("bytes_max", 5_000, 1), ("tokens_max", 2_000, 3)]:
        text = get(served, "/v1/orgs/401/bootstrap", format="ndjson", **{name: limit})
        rows = [line for line in text.splitlines(True) if line.startswith(b'{"table"')]
        mark = json.loads(text.splitlines()[-1])["mark"]
        size = sum(map(len, rows))
        assert mark["bytes"] == size <= limit * unit and mark["stopped_by"] == name
        _, more, _ = lines(served, resume=mark["next"], rows_max=1)
        assert size + len(json.dumps(more[0], separators=(",", ":"))) + 1 > limit * unit
    # A budget smaller than a row lets one through, so that everybody gets on.
    _, rows, marks = lines(served, bytes_max=1)
    assert len(rows) == 1 and marks[-1]["next"]


def test_since_leaves_out_earlier_events_alone(org, served):
    since = datetime.fromisoformat(moment(ACTIVITIES - 99))
    rows = org.bootstrap(["activity", "note"], since=since).to_arrow()
    assert rows["note"].num_rows == 1
    assert sorted(rows["activity"]["id"].to_pylist()) == list(range(100))
    _, found, _ = lines(served, tables="activity", since=since.isoformat())
    assert len(found) == 100


def test_a_document_has_all_that_belongs_to_it_by_time(org):
    documents = list(org.documents())
    assert [document["key"] for document in documents] == list(range(DEALS))
    manifest = org.documents().manifest
    assert [left["table"] for left in manifest["left_out"]] == ["note"]
    total = 0
    for document in documents:
        related = document["related"]
        activities = related["activity"]
        total += len(activities)
        assert all(row["opportunity_id"] == document["key"] for row in activities)
        times = [row["happened_at"] for row in activities]
        assert times == sorted(times) and times
        account = document["row"]["account_id"]
        assert [row["id"] for row in related["account"]] == [account]
        assert [row["id"] for row in related["email"]] == [f"m{i}" for i in range(account, 500, 50)]
        assert document["earlier"] == []
    orphans = sum(1 for i in range(ACTIVITIES) if i % (DEALS + 1) == DEALS)
    assert total == ACTIVITIES - orphans
    some = org.documents(rows_max=120)
    first = list(some)
    rest = list(org.documents(resume=some.token))
    assert len(first) == 120 and first + rest == documents
    tokens = list(org.documents(tokens_max=50_000))
    assert 0 < len(tokens) < DEALS and tokens == documents[: len(tokens)]


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def flat(documents: list[dict], *path: str) -> list[tuple]:
    """The rows at a place of the documents, in order: the keys down to them, and their own columns."""
    found = [((document["key"],), document) for document in documents]
    for name in path:
        # Only the last state of a row has what belongs to it.
        holders = [(keys, row["related"]) for keys, row in found if "related" in row]
        found = [((*keys, row["id"]), row) for keys, related in holders for row in related[name]]
    own = [(keys, {name: value for name, value in row.items() if name != "related"}) for keys, row in found]
    return [(*keys, row | ({"at": microseconds(row["at"])} if "at" in row else {})) for keys, row in own]


# Where rows are nested, and the same rows by plain SQL in the same order.
CALLS = "(SELECT * FROM call_rows c QUALIFY row_number() OVER (PARTITION BY c.id ORDER BY c.at DESC) = 1)"
PLACES = {
    ("call",): "SELECT o.id, c.id, c.* FROM opportunity_rows o JOIN call_rows c ON c.opportunity_id = o.id"
    " WHERE c.at >= $since ORDER BY o.id, c.at, c.id",
    ("call", "segment"): f"SELECT o.id, c.id, s.id, s.* FROM opportunity_rows o JOIN {CALLS} c"
    " ON c.opportunity_id = o.id JOIN segment_rows s ON s.call_id = c.id WHERE c.at >= $since AND s.at >= $since"
    " ORDER BY o.id, c.at, c.id, s.at, s.id",
    ("call", "segment", "word"): f"SELECT o.id, c.id, s.id, w.id, w.* FROM opportunity_rows o JOIN {CALLS} c"
    " ON c.opportunity_id = o.id JOIN segment_rows s ON s.call_id = c.id JOIN word_rows w ON w.segment_id = s.id"
    " WHERE c.at >= $since AND s.at >= $since AND w.at >= $since ORDER BY o.id, c.at, c.id, s.at, s.id, w.at, w.id",
    ("call", "segment", "word", "letter"): "SELECT o.id, c.id, s.id, w.id, l.id, l.* FROM opportunity_rows o"
    f" JOIN {CALLS} c ON c.opportunity_id = o.id JOIN segment_rows s ON s.call_id = c.id"
    " JOIN word_rows w ON w.segment_id = s.id JOIN letter_rows l ON l.word_id = w.id"
    " WHERE c.at >= $since AND s.at >= $since AND w.at >= $since"
    " ORDER BY o.id, c.at, c.id, s.at, s.id, w.at, w.id, l.id",
    ("merger__from_id",): "SELECT o.id, m.id, m.* FROM opportunity_rows o JOIN merger_rows m ON m.from_id = o.id"
    " WHERE m.at >= $since ORDER BY o.id, m.at, m.id",
    ("merger__into_id",): "SELECT o.id, m.id, m.* FROM opportunity_rows o JOIN merger_rows m ON m.into_id = o.id"
    " WHERE m.at >= $since ORDER BY o.id, m.at, m.id",
    ("merger__into_id", "reason"): "SELECT o.id, m.id, r.id, r.* FROM opportunity_rows o JOIN merger_rows m"
    " ON m.into_id = o.id JOIN reason_rows r ON r.merger_id = m.id WHERE m.at >= $since"
    " ORDER BY o.id, m.at, m.id, r.id",
}


@pytest.fixture(scope="module")
def deep(lake, served):
    return polder.connect(served[0], key(lake, "agent", "403")).org("403")


@pytest.mark.parametrize("since", [None, moment(30)])
def test_documents_nest_as_deep_as_references_lead(lake, deep, since):
    begun = deep.documents(since=since and datetime.fromisoformat(since))
    documents = list(begun)
    assert [document["key"] for document in documents] == [*range(40), 1000]
    assert [left["table"] for left in begun.manifest["left_out"]] == ["dot"]
    names = ["opportunity", "call", "merger", "segment", "reason", "word", "letter"]
    assert [table["table"] for table in begun.manifest["tables"]][0] == "opportunity"
    assert sorted(table["table"] for table in begun.manifest["tables"]) == sorted(names)
    database, columns = duckdb.connect(), {}
    for name in names:
        rows = lake.read_with_pyiceberg("403", name)
        if "at" in rows.column_names:
            at = rows.column_names.index("at")
            rows = rows.set_column(at, "at", rows["at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
        database.register(f"{name}_rows", rows)
        columns[name] = rows.column_names
    for path, sql in PLACES.items():
        found = database.execute(sql, {"since": microseconds(since) if since else 0}).fetchall()
        keys, names = len(path) + 1, columns[path[-1].split("__")[0]]
        expected = [(*row[:keys], dict(zip(names, row[keys:], strict=True))) for row in found]
        assert flat(documents, *path) == expected and expected, path
    lonely = documents[-1]["related"]
    assert lonely == {"call": [], "merger__from_id": [], "merger__into_id": []}
    # Rows at the deepest place hold nothing more.
    letters = [
        letter
        for call in documents[1]["related"]["call"]
        for segment in call.get("related", {"segment": []})["segment"]
        for word in segment["related"]["word"]
        for letter in word["related"]["letter"]
    ]
    assert all(set(letter) == {"id", "word_id"} for letter in letters)


def test_nested_documents_go_on_where_a_budget_cut_them(deep):
    whole = list(deep.documents())
    begun = deep.documents(rows_max=7)
    taken = list(begun)
    while begun.token is not None:
        begun = deep.documents(resume=begun.token, tokens_max=20_000)
        more = list(begun)
        assert more
        taken += more
    assert taken == whole
    chosen = list(deep.documents(tables=["opportunity", "call", "segment"]))
    assert [set(document["related"]) for document in chosen] == [{"call"}] * len(whole)
    assert flat(chosen, "call", "segment") == flat(whole, "call", "segment")
    with pytest.raises(Exception, match="no reference leads from it"):
        list(deep.documents(tables=["opportunity", "call", "segment", "word", "letter", "dot"]))
    with pytest.raises(Exception, match="no reference leads from it"):
        list(deep.documents(tables=["opportunity", "segment"]))


def test_a_stream_that_breaks_goes_on_by_itself(served, org, monkeypatch):
    from polder import _bootstrap
    from polder._http import Api

    monkeypatch.setattr(_bootstrap, "_FIRST_PAUSE_SECONDS", 0.0)
    breaking = Breaking(served[0])
    try:
        api = Api(breaking.address, served[1])
        _bootstrap.Bootstrap(api, "/v1/orgs/401/bootstrap", {}).to_arrow()
        assert breaking.cuts == 1, "one answer is enough where nothing breaks"
        breaking.cuts, breaking.cut_bytes = 0, 400_000
        broken = _bootstrap.Bootstrap(api, "/v1/orgs/401/bootstrap", {}).to_arrow()
        assert breaking.cuts > 3
        whole = org.bootstrap().to_arrow()
        assert {n: t.combine_chunks() for n, t in broken.items()} == {n: t.combine_chunks() for n, t in whole.items()}
        breaking.cuts = 0
        path = {"shape": "entity", "entity": "opportunity"}
        documents = list(_bootstrap.Documents(api, "/v1/orgs/401/bootstrap", dict(path)))
        assert breaking.cuts > 1 and documents == list(org.documents())
    finally:
        breaking.server.shutdown()


def test_others_rows_do_not_exist_and_wrong_requests_say_what_is_wrong(served):
    def refused(path: str, **parameters) -> tuple[int, dict]:
        with pytest.raises(urllib.error.HTTPError) as error:
            get(served, path, **parameters)
        return error.value.code, json.loads(error.value.read())

    other, none = refused("/v1/orgs/402/bootstrap"), refused("/v1/orgs/409/bootstrap")
    assert other[0] == none[0] == 404
    assert json.dumps(other).replace("402", "409") == json.dumps(none)
    own = "/v1/orgs/401/bootstrap"
    # A token names tables of its own org alone, whatever is written into it.
    token = json.loads(get(served, own))["token"]
    import base64

    opened = json.loads(base64.urlsafe_b64decode(token + "=="))
    for change in ({"org": "402"}, {"tables": [["../org_402/email", 1]]}, {"tables": [["email", 1]]}):
        forged = base64.urlsafe_b64encode(json.dumps(opened | change).encode()).decode().rstrip("=")
        assert refused(own, resume=forged)[0] in (400, 404)
    cases = [
        ({"tables": "org_402.email"}, 404, "org_402.email"),
        ({"tables": "emial"}, 404, "its tables are"),
        ({"tables": ""}, 400, "empty name"),
        ({"since": "yesterday"}, 400, "since"),
        ({"as_of": "2999-01-01"}, 400, "future"),
        ({"as_of": "2001-01-01"}, 404, "no table with rows"),
        ({"as_of": "2001-01-01", "tables": "email"}, 404, "no rows yet at that time"),
        ({"pin": "nothing"}, 404, "no pin"),
        ({"pin": "a", "as_of": "2001-01-01"}, 400, "exclude"),
        ({"format": "xml"}, 400, "arrow, parquet or ndjson"),
        ({"format": "arrow", "tokens_max": 5}, 400, "ndjson"),
        ({"format": "arrow", "shape": "entity"}, 400, "ndjson"),
        ({"shape": "entity", "entity": "email_"}, 400, "not among the tables"),
        ({"shape": "entity", "entity": "note"}, 400, "key"),
        ({"shape": "entity", "tables": "opportunity,note"}, 400, "references"),
        ({"rows_max": 0, "format": "arrow"}, 400, "rows_max"),
        ({"rows_max": 5}, 400, "format"),
        ({"resume": "x"}, 400, "no token"),
        ({"resume": token, "since": "2001-01-01"}, 400, "in the token"),
        ({"colour": "red"}, 400, "colour"),
    ]
    for parameters, status, said in cases:
        code, problem = refused(own, **parameters)
        assert code == status and said in json.dumps(problem), (parameters, problem)


def test_one_call_one_entry_in_the_audit_log(lake, served):
    def entries():
        found = lake.polder("audit", "list", "--limit", "5000", "--json")
        found = found if isinstance(found, list) else found["entries"]
        return [entry for entry in found if "bootstrap" in entry["action"] and entry["outcome"] == "done"]

    before = len(entries())
    get(served, "/v1/orgs/401/bootstrap", format="arrow", tables="email")
    after = entries()
    assert len(after) == before + 1
    last = max(after, key=lambda entry: entry["seq"])
    assert last["org"] == "401" and "email at " in last["detail"] and last["who"].startswith("key:plk_")


def test_the_states_are_of_one_moment_while_tables_move_on(lake, org, served):
    """Every run adds one row to `activity`, and then one to `email`: never fewer activities than mails."""
    stop = threading.Event()
    failed: list[str] = []

    def ingest():
        for number in range(1_000):
            if stop.is_set():
                return
            for table in ("activity", "email"):
                row = {
                    "activity": f"id,opportunity_id,happened_at,kind\n{ACTIVITIES + number},1,{moment(0)},call\n",
                    "email": f"id,account_id,sent_at,body\nn{number},1,{moment(0)},x\n",
                }[table]
                write(lake, "401", f"{table}/more-{number}.csv", row)
                done = lake.run("run", "--org", "401", "--table", table)
                if done.returncode != 0:
                    failed.append(done.stderr)
                    return

    runs = threading.Thread(target=ingest)
    runs.start()
    seen = set()
    try:
        deadline = time.monotonic() + 5 * SECONDS_MAX
        while runs.is_alive() and len(seen) < 8 and time.monotonic() < deadline:
            begun = org.bootstrap(["email", "activity"])
            rows = {table["table"]: table["rows"] for table in begun.manifest["tables"]}
            more = (rows["activity"] - ACTIVITIES, rows["email"] - 500)
            assert 0 <= more[0] - more[1] <= 1, rows
            seen.add(more)
            if len(seen) % 5 == 1:
                read = {name: table.num_rows for name, table in begun.to_arrow().items()}
                assert read == rows
    finally:
        stop.set()
        runs.join()
    assert not failed and len(seen) == 8, (failed, seen)


def test_a_time_and_a_pin_choose_states(lake, org):
    before = datetime.now(UTC)
    then = org.bootstrap(["email"]).to_arrow()["email"]
    lake.polder("pin", "create", "boot-1", "--org", "401", "--table", "email", "--json")
    write(lake, "401", "email/late.csv", f"id,account_id,sent_at,body\nlate,1,{moment(1)},x\n")
    lake.polder("run", "--org", "401", "--table", "email", "--json")
    assert org.bootstrap(["email"]).to_arrow()["email"].num_rows == then.num_rows + 1
    assert org.bootstrap(["email"], as_of=before).to_arrow()["email"].equals(then)
    pinned = org.bootstrap(pin="boot-1")
    assert [table["table"] for table in pinned.manifest["tables"]] == ["email"]
    assert len(pinned.manifest["left_out"]) == 4
    assert pinned.to_arrow()["email"].equals(then)


def test_the_first_byte_is_early_whatever_follows(served):
    """The manifest is sent before a row is read."""
    address, token = served
    request = urllib.request.Request(
        f"{address}/v1/orgs/401/bootstrap?format=ndjson&shape=entity",
        headers={"Authorization": f"Bearer {token}"},
    )

    def first() -> float:
        begun = time.monotonic()
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
            assert answer.read(1) == b"{"
            first = time.monotonic() - begun
            answer.read()
        whole = time.monotonic() - begun
        assert first < whole / 2, (first, whole)
        return first

    promptly(2, first)
