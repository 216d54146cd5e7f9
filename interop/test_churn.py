"""An org leaves while it is worked for, after everything that can be done to its tables: every byte of storage,
store and catalog is searched for words that only its rows have, and other engines see the other org's rows
as they were. Airflow's database is searched in `test_airflow.py`."""

import json
import os
import signal
import subprocess
import time
import uuid
import zlib
from pathlib import Path

import psycopg
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pymongo
import pytest
from lakes import READERS, Lake, Services

LEAVES, STAYS = "leaves", "stays"
TABLES = ["deal", "mail", "note", "owner"]

CONFIG = """
[lake]
warehouse = "s3://polder-ready/churn/{place}"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[storage.s3]
endpoint = "{s3}"
path_style = true
access_key = "env:S3_ACCESS_KEY"
secret_key = "env:S3_SECRET_KEY"
[sources.pg]
type = "postgres"
url = "env:CHURN_PG"
[sources.mongo]
type = "mongodb"
url = "env:CHURN_MONGO"
database = "{database}"
[sources.files]
type = "files"
url = "./exports"
[governance]
backups = ["weekly copies on tape"]
drain = "5s"
"""
TEMPLATE = """
templates:
  all:
    tables:
      - { name: deal, source: pg, from: public.deal, filter: "org = {org}", mode: full_refresh }
      - { name: mail, source: mongo, from: mail, filter: { org: "{org}" }, mode: full_refresh }
      - { name: note, source: files, from: "{org}/*.jsonl", mode: append }
      - { name: owner, source: pg, from: public.owner, filter: "org = {org}", mode: merge, key: [id], cursor: updated_at }
"""
ORGS = """
orgs:
  - { id: leaves, template: all }
  - { id: stays, template: all }
"""


class Company:
    """Two orgs with rows in three sources, and a lake made of them."""

    def __init__(self, services: Services, work: Path):
        self.services, self.work = services, work
        self.name = f"churn_{uuid.uuid4().hex[:8]}"
        # Nothing else has these words. Manifests hold the first 16 characters of texts.
        self.canaries = [f"canary{uuid.uuid4().hex[:8]}" for _ in TABLES]
        with psycopg.connect(services.postgres, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {self.name}")
        self.pg = services.database(self.name)
        environment = {
            "CHURN_PG": self.pg, "CHURN_MONGO": services.mongo,
            "S3_ACCESS_KEY": services.access_key, "S3_SECRET_KEY": services.secret_key,
        }
        self.lake = Lake(services, work, environment)
        config = CONFIG.format(place=self.name, s3=services.s3, database=self.name)
        (work / "polder.toml").write_text(config)
        (work / "pipelines").mkdir()
        (work / "pipelines/all.yaml").write_text(TEMPLATE + ORGS)
        self.fill()

    def fill(self):
        rows = [(org, n) for org in (LEAVES, STAYS) for n in range(200)]
        word = lambda org, kind, n: f"{self.canaries[kind] if org == LEAVES else 'plain'} {n}"  # noqa: E731
        with psycopg.connect(self.pg) as connection:
            connection.execute("CREATE TABLE deal (id bigint PRIMARY KEY, org text, name text)")
            for id_, (org, n) in enumerate(rows):
                connection.execute("INSERT INTO deal VALUES (%s, %s, %s)", [id_, org, word(org, 0, n)])
            connection.execute(
                "CREATE TABLE owner (id bigint PRIMARY KEY, org text, name text,"
                " updated_at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
            for id_, (org, n) in enumerate(rows):
                connection.execute("INSERT INTO owner VALUES (%s, %s, %s)", [id_, org, word(org, 3, n)])
        mails = [{"_id": i, "org": o, "body": {"text": word(o, 1, n)}} for i, (o, n) in enumerate(rows)]
        with pymongo.MongoClient(self.services.mongo) as client:
            client[self.name]["mail"].insert_many(mails)
        for org in (LEAVES, STAYS):
            self.export(org, 1, [word(org, 2, n) for n in range(200)])

    def export(self, org: str, number: int, texts: list[str]):
        folder = self.work / "exports" / org
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")

    def alter(self):
        """Another column, whose values are the org's own too."""
        with psycopg.connect(self.pg) as connection:
            connection.execute("ALTER TABLE deal ADD COLUMN remark text")
            connection.execute("UPDATE deal SET remark = name || ' remarked'")

    def rename(self):
        """Rows that take the place of others of their keys."""
        with psycopg.connect(self.pg) as connection:
            changed = "name = name || ' renamed', updated_at = clock_timestamp()"
            connection.execute(f"UPDATE owner SET {changed} WHERE id % 7 = 0")

    def killed_after(self, seconds: float):
        """A run of the leaving org that is killed on its way."""
        command = [self.services.polder, "run", "--json", "--full-refresh", "--org", LEAVES]
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen(command, cwd=self.work, env=os.environ | self.lake.env, **nowhere)
        time.sleep(seconds)
        run.kill()
        run.wait()

    def objects(self):
        """Every object of the lake: its key and its bytes."""
        endpoint = self.services.s3
        store = fs.S3FileSystem(
            access_key=self.services.access_key, secret_key=self.services.secret_key,
            endpoint_override=endpoint.split("://")[1], scheme="http", region="us-east-1",
        )
        selector = fs.FileSelector(f"polder-ready/churn/{self.name}", recursive=True, allow_not_found=True)
        for found in store.get_file_info(selector):
            if found.is_file:
                with store.open_input_file(found.path) as file:
                    yield found.path, file.readall()

    def found(self) -> set[str]:
        """Where a canary is: an object, or a file beside the configuration (store, catalog, logs)."""
        places = set()
        for key, content in self.objects():
            if any(canary.encode() in text for text in readings(key, content) for canary in self.canaries):
                places.add(key)
        for path in self.work.rglob("*"):
            # What Polder reads is the source's.
            own = path.is_file() and "exports" not in path.parts
            if own and any(canary.encode() in path.read_bytes() for canary in self.canaries):
                places.add(path.name)
        return places

    def rows(self, reader: str) -> dict[str, list]:
        tables = {name: self.lake.read(reader, STAYS, name).to_pylist() for name in TABLES}
        return {name: sorted(map(repr, rows)) for name, rows in tables.items()}

    def close(self):
        with psycopg.connect(self.services.postgres, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        with pymongo.MongoClient(self.services.mongo) as client:
            client.drop_database(self.name)


def readings(key: str, content: bytes):
    """The bytes as they are, and what is packed in them."""
    yield content
    if key.endswith(".parquet"):
        import pyarrow as pa

        yield repr(pq.read_table(pa.BufferReader(content)).to_pylist()).encode()
    if key.endswith(".avro"):
        for start in range(len(content)):
            try:
                yield zlib.decompressobj(-15).decompress(content[start:])
            except zlib.error:
                continue


@pytest.fixture(scope="module")
def company(services, tmp_path_factory):
    company = Company(services, tmp_path_factory.mktemp("churn"))
    yield company
    company.close()


def test_nothing_is_left_of_an_org_that_leaves_while_it_is_worked_for(company, tmp_path):
    lake = company.lake
    all_tables = 2 * len(TABLES)
    assert lake.polder("run", "--json")["succeeded"] == all_tables
    company.alter()
    company.export(LEAVES, 2, [f"{company.canaries[2]} again {n}" for n in range(50)])
    assert lake.polder("run", "--json", "--full-refresh")["succeeded"] == all_tables
    company.rename()
    merged = lake.polder("run", "--json", "--table", "owner")["runs"]
    assert [run["report"]["outcome"] for run in merged] == ["merge"] * 2
    lake.polder("pin", "create", "model", "--org", LEAVES, "--json")
    assert lake.run("validate", "--org", LEAVES, "--json").returncode in (0, 3)
    lake.polder("maintain", "optimize", "--org", LEAVES, "--json")
    for seconds in (0.3, 0.6, 1.0):
        company.killed_after(seconds)
    lake.polder("rollback", "--json", "--org", LEAVES, "--table", "deal", "--to", "v1")
    kinds = {Path(place).suffix for place in company.found()}
    assert {".parquet", ".avro"} <= kinds, "the search finds what is there"
    before = {reader: company.rows(reader) for reader in READERS}

    # Two processes go on loading the org, each run in full.
    command = [company.services.polder, "run", "--json", "--full-refresh", "--org", LEAVES]
    script = "while :; do \"$@\" || true; done"
    environment = os.environ | lake.env
    loops = [
        subprocess.Popen(
            ["sh", "-c", script, "sh", *command], cwd=company.work, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        for _ in range(2)
    ]
    try:
        time.sleep(1.5)
        done = lake.run("churn", "--org", LEAVES, "--yes", "--by", "pytest", "--reason", "a test")
        assert done.returncode == 0, done.stderr
        # They go on trying.
        time.sleep(1.5)
    finally:
        for loop in loops:
            os.killpg(loop.pid, signal.SIGTERM)
            loop.wait()
    certificate = json.loads(done.stdout)["certificate"]
    assert certificate["deleted"]["found"]["objects"] > 20
    assert certificate["deleted"]["catalog_entries"] == len(TABLES)
    assert certificate["verification"]["objects"] == 0
    assert "weekly copies on tape" in [one["what"] for one in certificate["remains"]]

    assert company.found() == set()
    folder = certificate["deleted"]["folder"].removeprefix("s3://")
    assert [key for key, _ in company.objects() if key.startswith(folder)] == []
    assert {reader: company.rows(reader) for reader in READERS} == before
    refused = lake.run("run", "--json", "--org", LEAVES)
    assert refused.returncode == 1
    codes = {run["error"]["code"] for run in json.loads(refused.stdout)["runs"]}
    assert codes == {"lake.fenced"}
    erasures = lake.polder("query", "SELECT * FROM lake.polder_management.erasures", "--format", "json")
    assert [row["org"] for row in erasures] == [LEAVES]
    assert company.found() == set()


def test_others_verify_the_certificate_with_their_own_tools(company, tmp_path):
    """As docs/reference/certificate.md shows it; OpenSSL in place of a Python library."""
    import base64

    document = json.loads(company.lake.run("certificate", "show", "--org", LEAVES).stdout)
    text = json.dumps(document["certificate"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (tmp_path / "text").write_text(text)
    (tmp_path / "value").write_bytes(base64.b64decode(document["signature"]["value"]))
    spki = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(document["signature"]["public_key"])
    pem = base64.b64encode(spki).decode()
    (tmp_path / "key").write_text(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n")
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key", "-rawin", "-in", "text", "-sigfile", "value"]
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "text").write_text(text.replace("pytest", "nobody"))
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True).returncode != 0
