"""The API fuzzed by schemathesis from its own description: no answer is a server error, and every answer is
as described."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from lakes import FROM_FILES, KEYS

from test_rest_catalog import serving

CONFIG = """
rate_limit = { per_second = 100000, burst = 100000 }
[sources.spare]
type = "files"
url = "./exports"
[governance]
grace = "7d"
"""
TEMPLATE = """
templates:
  crm:
    tables:
      - name: deal
        source: files
        from: "{org}/deal.csv"
        key: [id]
        types: { id: long, amount: "decimal(18, 2)", at: timestamptz }
        description: Deals
      - { name: broken, source: files, from: "{org}/broken.jsonl" }
"""
DEALS = "id,name,amount,at\n" + "".join(
    f"{i},deal {i},{i}.50,2026-01-{1 + i % 28:02d}T00:00:00Z\n" for i in range(50)
)
# Of each operation the cases that follow from its description, and so many more; then sequences that follow
# what answers name. No operation is left out: of a watched run that does not end, the first event is read.
FUZZ = """
seed = {seed}
hooks = "{hooks}"
request-timeout = 60
max-stream-events = 1
continue-on-failure = true

[headers]
Authorization = "Bearer {key}"

[generation]
max-examples = {examples}
database = "none"
with-security-parameters = false

# Not by answers, which have ids and times: the same seed gives the same requests, but for sequences.
[phases.coverage]
extra-data-sources.responses = false
[phases.fuzzing]
extra-data-sources.responses = false
error-feedback.enabled = false

# Every query of `fuzz_requests.py`.
[[operations]]
include-path = "/v1/query"
generation.max-examples = {queries}

[checks]
enabled = false
{checks}
"""
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]


class Operator:
    """Calls the API before the fuzzing begins."""

    def __init__(self, address: str, key: str) -> None:
        self.address, self.key = address, key

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, org: str, table: str, expect: str, kind: str = "ingest") -> dict:
        """One run that has ended."""
        asked = self.call("POST", f"/v1/orgs/{org}/runs", {"tables": [table], "kind": kind})
        deadline = time.monotonic() + 60
        while (now := self.call("GET", f"/v1/operations/{asked['id']}"))["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, now
            time.sleep(0.1)
        assert now["status"] == expect, now
        return now["runs"][0]


def project(work: Path) -> list[str]:
    """Writes the configuration and the files of some orgs, and gives their names."""
    (work / "polder.toml").write_text(FROM_FILES + KEYS + CONFIG)
    (work / "pipelines").mkdir()
    (work / "pipelines/crm.yaml").write_text(TEMPLATE)
    orgs = ["401", "402", "403", "404", "405", "406"]
    for org in orgs:
        folder = work / "exports" / org
        folder.mkdir(parents=True)
        (folder / "deal.csv").write_text(DEALS)
        (folder / "broken.jsonl").write_text('{"id": 1}\n{"id": \n')
    return orgs


def polder(work: Path, *args: str) -> str:
    command = [os.environ["POLDER_BIN"], *args]
    return subprocess.run(command, cwd=work, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def operator(work):
    """Over a server with orgs and their tables."""
    orgs = project(work)
    made = polder(work, "keys", "create", "--role", "operator", "--json")
    with serving(os.environ["POLDER_BIN"], work, {}) as uri:
        operator = Operator(uri.removesuffix("/iceberg"), json.loads(made)["key"])
        for org in orgs:
            operator.call("POST", "/v1/orgs", {"id": org, "template": "crm"})
        yield operator


@pytest.fixture(scope="module")
def runs(operator, work) -> dict[str, dict]:
    """Runs by what became of them, an org that leaves after its own, and a table that is to keep less."""
    operator.run("405", "deal", "succeeded")
    polder(work, "churn", "--org", "405", "--yes")
    ended = operator.run("401", "deal", "succeeded")
    operator.run("401", "deal", "succeeded")
    validation = operator.run("401", "deal", "succeeded", "validate")
    failed = operator.run("401", "broken", "failed")
    less = {"retention": {"column": "at", "keep": "30 days"}}
    operator.call("PATCH", "/v1/orgs/406/tables/deal?yes=true", less)
    operator.call("POST", "/v1/orgs/404/pause")
    waiting = operator.call("POST", "/v1/orgs/404/runs", {"tables": ["deal"]})["runs"][0]
    return {"ended": ended, "validation": validation, "failed": failed, "waiting": waiting}


@pytest.fixture(scope="module")
def names(operator) -> dict[str, str]:
    """Templates and keys that requests name: some to be changed, and some to go."""
    for template in ("spare", "leaving"):
        operator.call("PUT", f"/v1/templates/{template}", {"tables": []})
    new = {"role": "reader", "orgs": ["401"]}
    made = [operator.call("POST", "/v1/keys", new)["id"] for _ in range(2)]
    return {"key": made[0], "ended": made[1], "own": operator.key[: len(made[0])]}


def operations(operator) -> dict[str, dict]:
    paths = operator.call("GET", "/openapi.json")["paths"]
    return {f"{method.upper()} {path}": found for path, item in paths.items() for method, found in item.items()}


def test_every_answer_is_as_described(operator, runs, names, work):
    hooks = Path(__file__).with_name("fuzz_requests.py")
    examples = int(os.environ.get("POLDER_FUZZ_EXAMPLES", "25"))
    config = FUZZ.format(
        hooks=hooks,
        key=operator.key,
        seed=os.environ.get("POLDER_FUZZ_SEED", "6"),
        examples=examples,
        queries=8 * examples,
        checks="\n".join(f"{check}.enabled = true" for check in CHECKS),
    )
    (work / "fuzz.toml").write_text(config)
    env = os.environ | {
        "PYTHONHASHSEED": "0",
        "POLDER_FUZZ_RUNS": json.dumps(runs),
        "POLDER_FUZZ_NAMES": json.dumps(names),
        "POLDER_FUZZ_ANSWERS": str(work / "answers.jsonl"),
    }
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "fuzz.toml", "--no-color"]
    command += ["run", "--warnings=off", f"{operator.address}/openapi.json"]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    # Requests that are all refused would show nothing.
    statuses = defaultdict(Counter)
    for line in (work / "answers.jsonl").read_text().splitlines():
        label, method, status = json.loads(line)
        if label.startswith(f"{method} "):
            statuses[label][status] += 1
    told = {label: dict(statuses[label]) for label in operations(operator)}
    assert all(any(200 <= status < 300 for status in found) for found in told.values()), told


def test_the_description_names_every_operation_once(operator):
    ids = [found["operationId"] for found in operations(operator).values()]
    assert len(set(ids)) == len(ids) >= 35, sorted(ids)
