"""`[server] auth = "oidc"` with a real OpenID provider (npm's `oidc-provider`): roles and orgs by claims, at every
door, while the provider's keys rotate."""

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from agents import talk
from lakes import FROM_FILES
from pyiceberg.catalog.rest import RestCatalog
from waits import SECONDS_MAX

from test_rest_catalog import serving

AUDIENCE = "https://polder.example"
CONFIG = """
[server]
auth = "oidc"
[server.oidc]
issuer = "{issuer}"
audience = "{audience}"
"""
PIPELINE = """
orgs:
  - { id: "401", tables: [{ name: deal, source: files, from: deal.csv, types: { id: long } }] }
  - { id: "402", tables: [{ name: deal, source: files, from: deal.csv, types: { id: long } }] }
"""


class Provider:
    """The provider's process. Each client is one of `CLAIMS` in `oidc/provider.mjs`."""

    def __init__(self) -> None:
        script = Path(__file__).parent / "oidc/provider.mjs"
        command = ["node", str(script), os.environ["POLDER_OIDC_PROVIDER"]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.issuer = self.process.stdout.readline().strip()
        assert self.issuer.startswith("http://127.0.0.1:"), "the provider did not start"

    def tell(self, word: str) -> None:
        """`rotate`: another key signs, the one before stays. `withdraw`: no other key is left."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        # Others of the lines may be notices of the provider.
        while (line := self.process.stdout.readline().strip()) != word:
            assert line, "the provider ended"

    def token(self, client: str) -> str:
        form = {"grant_type": "client_credentials", "client_id": client, "client_secret": f"{client}-secret"}
        data = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{self.issuer}/token", data, timeout=30) as answer:
            return json.load(answer)["access_token"]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(30)


@pytest.fixture
def provider():
    provider = Provider()
    yield provider
    provider.stop()


@pytest.fixture
def served(provider, tmp_path):
    config = CONFIG.format(issuer=provider.issuer, audience=AUDIENCE)
    (tmp_path / "polder.toml").write_text(FROM_FILES + config)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/t.yaml").write_text(PIPELINE)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports/deal.csv").write_text("id\n1\n2\n")
    binary = os.environ["POLDER_BIN"]
    subprocess.run([binary, "run", "--json"], cwd=tmp_path, check=True, capture_output=True)
    with serving(binary, tmp_path, {}) as uri:
        yield uri.removesuffix("/iceberg"), tmp_path


def status(address: str, token: str | None, path: str, body: str | None = None) -> int:
    """What a call is answered with; 401s and 403s have to say so in the way of their door."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    data = None if body is None else body.encode()
    request = urllib.request.Request(f"{address}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        document = json.load(error)
        if error.code == 401 and path.startswith("/v1"):
            assert document["code"] == "control.unauthenticated", document
        return error.code


def changed(token: str, part: int, **values) -> str:
    """The token with other values in its header (0) or its claims (1)."""
    parts = token.split(".")
    document = json.loads(base64.urlsafe_b64decode(parts[part] + "=="))
    text = json.dumps(document | values).encode()
    parts[part] = base64.urlsafe_b64encode(text).decode().rstrip("=")
    return ".".join(parts)


def test_claims_decide_at_every_door(provider, served):
    address, work = served
    operator, writer, reader = (provider.token(client) for client in ("operator", "writer", "reader"))
    assert status(address, operator, "/v1/orgs/402") == 200
    for path in ("/v1/orgs/401", "/v1/orgs/401/tables/deal", "/iceberg/v1/namespaces/org_401/tables/deal"):
        assert {status(address, token, path) for token in (operator, writer, reader)} == {200}, path
    assert status(address, writer, "/v1/orgs/402") == 404
    assert status(address, writer, "/iceberg/v1/namespaces/org_402/tables/deal") in (403, 404)
    run = '{"tables": ["deal"]}'
    assert status(address, writer, "/v1/orgs/401/runs", run) == 202
    assert status(address, reader, "/v1/orgs/401/runs", run) == 403
    namespace = '{"namespace": ["org_401", "more"]}'
    assert status(address, reader, "/iceberg/v1/namespaces", namespace) == 403
    assert status(address, operator, "/metrics") == 200
    catalog = RestCatalog("polder", uri=f"{address}/iceberg", token=reader)
    assert sorted(catalog.load_table("org_401.deal").scan().to_arrow()["id"].to_pylist()) == [1, 2]
    # As keys are, tokens are the names of who did what.
    listed = json.loads(
        subprocess.run(
            [os.environ["POLDER_BIN"], "audit", "list", "--json"],
            cwd=work, check=True, capture_output=True, text=True,
        ).stdout
    )
    who = {entry["who"] for entry in listed}
    assert f"oidc:{provider.issuer}#writer" in who, who
    log = (work / "serve.log").read_text()
    assert writer not in log and writer.split(".")[1] not in log


def test_agents_show_tokens_too(provider, served):
    address, _ = served
    tools, [(error, answer)] = talk(address, provider.token("agent"), ("list_tables", {}))
    assert not error and [table["table"] for table in answer["tables"]] == ["deal"], answer
    assert "request_table" not in tools
    tools, _ = talk(address, provider.token("writer"))
    assert "request_table" in tools


def refused(address: str, token: str, path: str) -> int:
    """The status, once the address that tries bad tokens may try again."""
    for _ in range(60):
        code = status(address, token, path)
        if code != 429:
            break
        time.sleep(1)
    return code


def test_tokens_that_are_no_good_are_refused_at_every_door(provider, served):
    address, _ = served
    good = provider.token("operator")
    unsigned = changed(good, 0, alg="none").rsplit(".", 1)[0] + "."
    bad = {
        "no role": provider.token("nobody"),
        "no org": provider.token("orgless"),
        "another role": provider.token("stranger"),
        "another audience": provider.token("other"),
        "claims that were not signed": changed(provider.token("writer"), 1, polder_role="operator"),
        "unsigned": unsigned,
        "a shared secret": changed(good, 0, alg="HS256"),
        "an unknown key": changed(good, 0, kid="another"),
        "no token at all": "eyJhbGciOiJSUzI1NiJ9",
    }
    for what, token in bad.items():
        for path in ("/v1/orgs", "/iceberg/v1/namespaces", "/mcp"):
            assert refused(address, token, path) == 401, (what, path)
    assert status(address, None, "/v1/orgs") == 401
    assert status(address, good, "/v1/orgs") == 200


def test_keys_of_polder_stay_good(provider, served):
    address, work = served
    made = subprocess.run(
        [os.environ["POLDER_BIN"], "keys", "create", "--role", "reader", "--org", "401", "--json"],
        cwd=work, check=True, capture_output=True, text=True,
    )
    key = json.loads(made.stdout)["key"]
    assert status(address, key, "/v1/orgs/401") == 200
    assert status(address, key, "/iceberg/v1/namespaces/org_401/tables/deal") == 200
    assert status(address, key + "x", "/v1/orgs/401") == 401


def test_keys_of_the_provider_rotate_while_the_server_runs(provider, served):
    address, _ = served
    old = provider.token("writer")
    assert status(address, old, "/v1/orgs/401") == 200
    provider.tell("rotate")
    new = provider.token("writer")
    assert json.loads(base64.urlsafe_b64decode(new.split(".")[0] + "=="))["alg"] == "ES256"

    def until(token: str, expect: int) -> None:
        # The provider is asked at most every ten seconds, and an address may show what is no good once a second.
        deadline = time.monotonic() + SECONDS_MAX
        while (found := status(address, token, "/v1/orgs/401")) != expect:
            assert found in (200, 401) and time.monotonic() < deadline, found
            time.sleep(1)

    until(new, 200)
    assert status(address, old, "/v1/orgs/401") == 200, "its key is still published"
    provider.tell("withdraw")
    newest = provider.token("writer")
    until(newest, 200)
    assert status(address, old, "/v1/orgs/401") == 401, "its key was withdrawn"
    assert status(address, new, "/v1/orgs/401") == 401
    # What is known stays good without the provider; of what is not, nobody can tell.
    provider.stop()
    assert status(address, newest, "/v1/orgs/401") == 200
    until_unknown = time.monotonic() + SECONDS_MAX
    while (found := status(address, changed(newest, 0, kid="another"), "/v1/orgs/401")) != 503:
        assert found == 401 and time.monotonic() < until_unknown, found
        time.sleep(1)
    assert status(address, newest, "/v1/orgs/401") == 200
