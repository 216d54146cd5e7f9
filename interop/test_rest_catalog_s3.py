"""A lake on S3 through `polder serve`: keys for the operator, signed requests for a client of one org."""

import http.client
import json
from urllib.parse import urlsplit

import boto3
import duckdb
import pytest
from botocore.exceptions import ClientError
from duckdb_extensions import import_extension
from lakes import STORAGE, new_bucket
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import ForbiddenError

from test_rest_catalog import CLIENTS, SECRET, rows, server


@pytest.fixture
def bucket(services) -> str:
    return new_bucket(services)


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


ROLE = """
role_arn = "arn:aws:iam::000000000000:role/polder"
sts_endpoint = "{endpoint}"
"""


def test_with_a_role_every_client_gets_keys_for_one_table_alone(services, bucket, tmp_path):
    for extension in ("avro", "httpfs", "iceberg"):
        import_extension(extension)
    storage = (STORAGE + ROLE).format(endpoint=services.s3)
    with server(services.polder, tmp_path, storage + CLIENTS, f"s3://{bucket}/lake") as uri:
        operator = RestCatalog("polder", uri=uri, credential=f"operator:{SECRET}")
        operator.create_namespace("org_401")
        # A client of one org writes and reads with the keys of each table.
        secret = SECRET[::-1]
        client = RestCatalog("polder", uri=uri, credential=f"crm:{secret}")
        for name in ["t", "u"]:
            client.create_table(f"org_401.{name}", rows(0, 1).schema).append(rows(0, 5))
        assert len(client.load_table("org_401.t").scan().to_arrow()) == 5
        db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        db.execute(
            f"CREATE SECRET served (TYPE iceberg, CLIENT_ID 'crm', CLIENT_SECRET '{secret}',"
            f" OAUTH2_SERVER_URI '{uri}/v1/oauth/tokens')"
        )
        db.execute(f"ATTACH 'lake' AS lake (TYPE iceberg, ENDPOINT '{uri}', SECRET served)")
        db.execute("INSERT INTO lake.org_401.u SELECT * FROM lake.org_401.t")
        assert db.execute("SELECT count(*) FROM lake.org_401.u").fetchone() == (10,)

        crm = Client(uri, "crm", secret)
        loaded, other = (crm.load("org_401", name, "vended-credentials") for name in "tu")
        given = loaded["storage-credentials"]
        assert [one["prefix"] for one in given] == [loaded["metadata"]["location"]]
        assert services.secret_key not in json.dumps(loaded)
        keys = given[0]["config"]
        assert keys.items() <= loaded["config"].items()
        refreshed = crm._send(
            "GET", f"/{keys['client.refresh-credentials-endpoint']}", None, crm.headers
        )
        assert refreshed == (200, {"storage-credentials": given})
        s3 = boto3.client(
            "s3",
            endpoint_url=services.s3,
            region_name="us-east-1",
            aws_access_key_id=keys["s3.access-key-id"],
            aws_secret_access_key=keys["s3.secret-access-key"],
            aws_session_token=keys["s3.session-token"],
        )

        def key(table: dict) -> str:
            return table["metadata-location"].removeprefix(f"s3://{bucket}/")

        assert s3.get_object(Bucket=bucket, Key=key(loaded))["Body"].read()
        folder = key(loaded).rsplit("/", 1)[0] + "/"
        assert s3.list_objects_v2(Bucket=bucket, Prefix=folder)["KeyCount"] > 0
        refused = [
            lambda: s3.get_object(Bucket=bucket, Key=key(other)),
            lambda: s3.put_object(Bucket=bucket, Key=key(other) + ".mine", Body=b"x"),
            lambda: s3.delete_object(Bucket=bucket, Key=key(other)),
            lambda: s3.list_objects_v2(Bucket=bucket, Prefix="lake/"),
        ]
        for call in refused:
            with pytest.raises(ClientError, match="AccessDenied"):
                call()
        signed = crm.load("org_401", "t", "remote-signing")
        assert signed["config"]["s3.remote-signing-enabled"] == "true"
        assert "storage-credentials" not in signed
