"""What schemathesis sends in `test_fuzz.py`: it loads this module by its `hooks`.

A generator of texts finds neither an org that is there nor a query that parses: most requests get the names
of what is there, and bodies that say something. Which ones follows from the request alone, so that a failure
can be had again.
"""

import json
import os
import zlib
from pathlib import Path

import schemathesis

ARROW, CSV = "application/vnd.apache.arrow.stream", "text/csv"
# Nothing is read or written for it any more.
LEAVES = "405"
# Of the headers that are described, these are sent: with a tag of its own every change would be refused.
HEADERS = [
    {},
    {"Accept": "application/json"},
    {"Accept": f"{CSV};q=0.5, */*"},
    {"Accept": ARROW},
    {"Accept": "image/png"},
    {"Polder-Reason": "because"},
    {"Polder-Reason": "\xff"},
    {"Idempotency-Key": "again"},
    {"Idempotency-Key": "x" * 256},
    {"If-Match": "*"},
    {"If-Match": '"0"'},
]
QUERIES = [
    "SELECT * FROM lake.org_401.deal",
    "SELECT count(*), sum(amount), max(at) FROM lake.org_401.deal",
    "SELECT id, id, NULL, at::date, at::time FROM lake.org_401.deal LIMIT 3",
    "SELECT * FROM lake.org_405.deal",
    "SELECT * FROM files.\"401/deal.csv\"",
    "SELECT * FROM lake.polder_management.validation_results",
    "SELECT 1 / (id - id) FROM lake.org_401.deal",
    "SELECT CAST(name AS INT) FROM lake.org_401.deal",
    "SELECT id * 9223372036854775807 FROM lake.org_401.deal",
    "SELECT 1 / 0",
    "SELECT 'NaN'::double, 'inf'::double, X'00ff', INTERVAL '1' DAY, [1, NULL], {a: 1}, MAP {'a': 1}",
    "SELECT arrow_cast(1, 'Duration(Second)'), arrow_cast('a', 'Dictionary(Int32, Utf8)'), '0001-01-01'::date",
    "SELECT * FROM lake.org_401.deal FOR TIMESTAMP AS OF '2001-01-01'",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM generate_series(1, 20000)",
    "SELECT generate_series(1, 1000000000)",
    "SELECT range(0, id * 1000000000) FROM lake.org_401.deal",
    "SELECT range(DATE '2020-01-31', DATE '2020-01-01', INTERVAL '1 month -30 days')",
    "SELECT repeat('a', 1000000000), lpad('a', 1000000000), rpad(name, 1000000000) FROM lake.org_401.deal",
    "SELECT array_repeat(1, 1000000000), array_resize([1], 1000000000)",
    "SELECT replace(repeat('a', 100000), 'a', repeat('b', 100000))",
    "SELECT",
    "EXPLAIN SELECT 1",
    "DELETE FROM lake.org_401.deal",
    "SELECT 1; SELECT 2",
    "",
]
# By operation; what they leave out stays as it was generated.
BODIES = {
    "POST /v1/query": [{"sql": sql, "rows_max": rows} for sql in QUERIES for rows in (None, 3)],
    "POST /v1/orgs": [{"id": "401"}, {"id": "500", "template": "crm", "name": None, "limits": None}],
    "PATCH /v1/orgs/{org}": [{"template": "crm"}, {"name": "Acme", "template": None, "limits": {"runs": 2}}],
    "POST /v1/orgs/{org}/tables": [
        {"name": "broken"},
        {"source": "files", "from": "401/deal.csv"},
        {"source": "files", "from": "401/*.csv", "filter": None, "schedule": None, "checks": []},
    ],
    "POST /v1/orgs/{org}/tables/{table}/rollback": [{"to": "v1"}, {"to": "v2"}],
    "POST /v1/orgs/{org}/runs": [{"tables": ["deal"]}, {"tables": ["deal"], "kind": "maintain"}],
    "PUT /v1/templates/{template}": [
        {"tables": [], "schedule": None, "limits": {"runs": 2}},
        {"tables": [{"name": "deal", "source": "files", "from": "{org}/deal.csv"}], "schedule": {"cron": "0 3 * * *"}},
    ],
    "PATCH /v1/templates/{template}": [
        {"schedule": None, "tables": []},
        {"schedule": {"cron": "0 5 * * *"}, "tables": {"more": {"source": "files", "from": "{org}/more.csv"}}},
    ],
    "POST /v1/keys": [
        {"role": "reader", "orgs": ["401"], "name": None, "expires_at": None},
        {"role": "operator", "orgs": [], "name": "other", "expires_at": "2099-01-01T00:00:00Z"},
    ],
    "POST /v1/keys/{key}/rotate": [{"old_until": None, "expires_at": None}],
}
# Of an operation, too.
PARAMETERS = {
    "GET /v1/orgs/{org}/bootstrap": [
        {},
        {"format": "arrow"},
        {"format": "parquet", "tables": "deal", "since": "2026-01-05"},
        {"format": "ndjson", "rows_max": 7},
        {"format": "ndjson", "shape": "entity", "entity": "deal", "tokens_max": 50},
        {"as_of": "2001-01-01"},
        {"pin": "none"},
    ],
    "GET /v1/orgs/{org}/runs": [{}, {"limit": 1}],
    "GET /v1/orgs/{org}/usage": [{}, {"days": 400}],
}


def names(method: str, path: str) -> dict[str, str]:
    """Names of what there is, for the path of an operation. What takes much away has an org of its own."""
    runs = json.loads(os.environ["POLDER_FUZZ_RUNS"])
    keys = json.loads(os.environ["POLDER_FUZZ_NAMES"])
    org, run = "401", runs["ended"]
    if method == "DELETE" or (method, path) == ("PATCH", "/v1/orgs/{org}"):
        org = "403"
    elif method == "PATCH" or path.endswith(("/pause", "/resume")):
        org = "402"
    elif path.endswith("/retry"):
        run = runs["failed"]
    elif path.endswith("/cancel"):
        org, run = "404", runs["waiting"]
    elif path.endswith("/undo"):
        org = "406"
    return {
        "org": org,
        "table": "deal",
        "run": run["id"],
        "operation": run["operation"],
        "validation": runs["validation"]["id"],
        # No run reads the other one.
        "source": "files" if method == "GET" else "spare",
        "template": {"GET": "crm", "DELETE": "leaving"}.get(method, "spare"),
        "key": keys["ended" if method == "DELETE" else "key"],
    }


def chosen(chance: int, choices: list[dict]) -> dict:
    return choices[chance % len(choices)]


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    keys = json.loads(os.environ["POLDER_FUZZ_NAMES"])
    if (case.path_parameters or {}).get("key") == keys["own"]:
        # Sequences find it in listings. Without it, everything else would be refused.
        case.path_parameters["key"] = keys["key"]
    for name in ("If-Match", "If-None-Match", "Idempotency-Key"):
        if case.headers and name in case.headers:
            del case.headers[name]
    if case.meta is not None and case.meta.phase.name.value == "stateful":
        return
    method, path = case.method.upper(), case.operation.path
    body = case.body if isinstance(case.body, dict) else None
    generated = repr([method, path, case.path_parameters, case.query, body])
    chance = zlib.crc32(generated.encode(errors="replace"))
    if chance % 4 and case.path_parameters:
        there = names(method, path)
        if chance % 8 == 1:
            there["org"] = LEAVES
        case.path_parameters = {name: there[name] for name in case.path_parameters}
    if chance // 4 % 3 and body is not None:
        case.body = body | chosen(chance // 12, BODIES.get(f"{method} {path}", [{}]))
    if chance // 4 % 3 == 1 and f"{method} {path}" in PARAMETERS:
        case.query = chosen(chance // 12, PARAMETERS[f"{method} {path}"])
    for name, value in chosen(chance // 1200, HEADERS).items():
        case.headers[name] = value


@schemathesis.hook
def after_call(context, case, response) -> None:
    with Path(os.environ["POLDER_FUZZ_ANSWERS"]).open("a") as answers:
        answers.write(json.dumps([case.operation.label, case.method, response.status_code]) + "\n")
