"""A lake on S3 through `polder serve`: keys for the operator, signed requests for a client of one org."""

import http.client
import json
import uuid
from urllib.parse import urlsplit

import boto3
import duckdb
import pytest
from duckdb_extensions import import_extension
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import ForbiddenError

from test_rest_catalog import CLIENTS, SECRET, rows, server

STORAGE = """
[storage.s3]
endpoint = "{endpoint}"
access_key = "env:S3_ACCESS_KEY"
secret_key = "env:S3_SECRET_KEY"
path_style = true
"""


@pytest.fixture
def bucket(services) -> str:
    name = f"served-{uuid.uuid4().hex[:8]}"
    keys = {
        "aws_access_key_id": services.access_key,
        "aws_secret_access_key": services.secret_key,
    }
    s3 = boto3.client("s3", endpoint_url=services.s3, region_name="us-east-1", **keys)
    s3.create_bucket(Bucket=name)
    return name


class Client:
    """The protocol's requests by hand, as a client of one org."""

    def __init__(self, uri: str, client: str, secret: str):
        self.address = urlsplit(uri)
        form = f"grant_type=client_credentials&client_id={client}&client_secret={secret}"
        headers = {"content-type": "application/x-www-form-urlencoded"}
        status, answer = self._send("POST", "/v1/oauth/tokens", form, headers)
        assert status == 200, answer
        self.headers = {"authorization": f"Bearer {answer['access_token']}"}

    def _send(self, method: str, path: str, body: str | None, headers: dict) -> tuple[int, dict]:
        connection = http.client.HTTPConnection(self.address.netloc, timeout=30)
        connection.request(method, self.address.path + path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else {}

    def load(self, namespace: str, table: str, delegation: str) -> dict:
        headers = self.headers | {"x-iceberg-access-delegation": delegation}
        path = f"/v1/namespaces/{namespace}/tables/{table}"
        status, answer = self._send("GET", path, None, headers)
        assert status == 200, answer
        return answer

    def sign(self, endpoint: str, method: str, uri: str) -> tuple[int, dict]:
        body = {"region": "us-east-1", "method": method, "uri": uri, "headers": {}}
        return self._send("POST", f"/{endpoint}", json.dumps(body), self.headers)


def send(method: str, signed: dict, body: bytes | None = None) -> tuple[int, bytes]:
    """Sends a signed request to the store."""
    uri = urlsplit(signed["uri"])
    connection = http.client.HTTPConnection(uri.netloc, timeout=30)
    headers = {name: ",".join(values) for name, values in signed["headers"].items()}
    connection.request(method, f"{uri.path}?{uri.query}", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_files_on_s3_are_reached_by_whoever_may(services, bucket, tmp_path):
    config = STORAGE.format(endpoint=services.s3) + CLIENTS
    warehouse = f"s3://{bucket}/lake"
    with server(services.polder, tmp_path, config, warehouse) as uri:
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        for org in ["401", "402"]:
            operator.create_namespace(f"org_{org}")
            table = operator.create_table(f"org_{org}.t", rows(0, 1).schema)
            table.append(rows(0, 5))
            assert len(operator.load_table(f"org_{org}.t").scan().to_arrow()) == 5
        theirs = operator.load_table("org_402.t").location()

        crm = Client(uri, "crm", SECRET[::-1])
        for delegation in ["vended-credentials", "remote-signing", "vended-credentials,other"]:
            loaded = crm.load("org_401", "t", delegation)
            assert loaded["config"]["s3.remote-signing-enabled"] == "true"
            assert services.secret_key not in json.dumps(loaded)
        endpoint = loaded["config"]["s3.signer.endpoint"]

        def address(location: str) -> str:
            return f"{services.s3}/{location.removeprefix('s3://')}"

        own = loaded["metadata"]["location"] + "/data/x%20y=1.bin"
        status, signed = crm.sign(endpoint, "PUT", address(own))
        assert status == 200, signed
        assert send("PUT", signed, b"content")[0] == 200
        status, signed = crm.sign(endpoint, "GET", address(own))
        assert (status, send("GET", signed)) == (200, (200, b"content"))
        for other in [f"{theirs}/data/x", f"{own}/../../../../x", f"s3://{bucket}/x"]:
            status, answer = crm.sign(endpoint, "PUT", address(other))
            assert status == 403 and answer["error"]["type"] == "ForbiddenException", other
        assert crm.sign(endpoint, "GET", f"{services.s3}/{bucket}?list-type=2")[0] == 403
        assert crm.sign(endpoint.replace("401", "402"), "GET", address(f"{theirs}/x"))[0] == 404

        client = RestCatalog("polder", uri=uri, credential=f"crm:{SECRET[::-1]}")
        with pytest.raises(ForbiddenError):
            client.create_table("org_401.u", rows(0, 1).schema, location=f"{theirs}/x")
        operator.purge_table("org_402.t")


def test_duckdb_writes_and_reads_with_the_keys_it_is_given(services, bucket, tmp_path):
    for extension in ("avro", "httpfs", "iceberg"):
        import_extension(extension)
    config = STORAGE.format(endpoint=services.s3) + CLIENTS
    with server(services.polder, tmp_path, config, f"s3://{bucket}/lake") as uri:
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        operator.create_namespace("org_401")
        db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        db.execute(
            f"CREATE SECRET served (TYPE iceberg, CLIENT_ID 'operator', CLIENT_SECRET '{SECRET}',"
            f" OAUTH2_SERVER_URI '{uri}/v1/oauth/tokens')"
        )
        db.execute(f"ATTACH 'lake' AS lake (TYPE iceberg, ENDPOINT '{uri}', SECRET served)")
        db.execute("CREATE TABLE lake.org_401.t (id BIGINT, name VARCHAR)")
        db.execute("INSERT INTO lake.org_401.t SELECT i, 'name ' || i FROM range(100) r(i)")
        db.execute("DELETE FROM lake.org_401.t WHERE id % 10 = 0")
        db.execute("UPDATE lake.org_401.t SET name = 'changed' WHERE id = 1")
        expected = (90, sum(i for i in range(100) if i % 10))
        assert db.execute("SELECT count(*), sum(id) FROM lake.org_401.t").fetchone() == expected
        found = operator.load_table("org_401.t").scan().to_arrow().to_pydict()
        assert (len(found["id"]), sum(found["id"])) == expected
        assert found["name"].count("changed") == 1
        db.execute("DROP TABLE lake.org_401.t")
