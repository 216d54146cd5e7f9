"""A lake as the tests see it: the binary that fills it and the foreign readers that open it.

The readers share nothing with Polder: DuckDB starts from the metadata file's location, PyIceberg
from the catalog database; as readers of a `Served` lake, all of them from `polder serve`.
"""

import json
import os
import subprocess
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import duckdb
import pyarrow as pa
from duckdb_extensions import import_extension
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table


ROOT = Path(__file__).resolve().parent.parent
# A lake on local disk, filled from files.
FROM_FILES = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.files]
type = "files"
url = "./exports"
"""
# The end of the configuration of a lake on S3.
STORAGE = """
[storage.s3]
endpoint = "{endpoint}"
access_key = "env:S3_ACCESS_KEY"
secret_key = "env:S3_SECRET_KEY"
path_style = true
"""
# Where the files of a lake may be: local disk and S3.
PLACES = ["local", "s3"]
# Every caller of `polder serve` shows a key.
KEYS = """
[server]
auth = "keys"
"""


@dataclass(frozen=True)
class Services:
    """Addresses of the running servers and of the binary."""

    postgres: str
    mongo: str
    s3: str
    access_key: str
    secret_key: str
    glue: str
    polder: str

    @classmethod
    def from_environment(cls) -> "Services":
        names = [
            "POLDER_TEST_PG_URL", "POLDER_TEST_MONGO_URL", "POLDER_TEST_S3_ENDPOINT",
            "S3_ACCESS_KEY", "S3_SECRET_KEY", "POLDER_TEST_GLUE_URL", "POLDER_BIN",
        ]
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise RuntimeError(f"{', '.join(missing)} not set: run `cargo xtask test`")
        return cls(*(os.environ[name] for name in names))

    def database(self, name: str) -> str:
        """The address of another database of the PostgreSQL server."""
        return urlunsplit(urlsplit(self.postgres)._replace(path=f"/{name}"))


def s3_of(services: Services):
    import boto3

    keys = {
        "aws_access_key_id": services.access_key,
        "aws_secret_access_key": services.secret_key,
    }
    return boto3.client("s3", endpoint_url=services.s3, region_name="us-east-1", **keys)


def new_bucket(services: Services) -> str:
    name = f"lake-{uuid.uuid4().hex[:8]}"
    s3_of(services).create_bucket(Bucket=name)
    return name


def room(place: str, services: Services) -> tuple[str, str]:
    """The warehouse of a new lake in one of `PLACES`, and what its configuration has to end with."""
    if place == "local":
        return "./lake", ""
    return f"s3://{new_bucket(services)}/lake", STORAGE.format(endpoint=services.s3)


def at(place: str, services: Services, config: str) -> str:
    """The configuration of a lake on local disk, with its files in one of `PLACES`."""
    warehouse, storage = room(place, services)
    local = 'warehouse = "./lake"'
    assert local in config
    return config.replace(local, f'warehouse = "{warehouse}"') + storage


def as_json(rows: list) -> list[list]:
    """Rows as `Lake.query` gives them: lists, with dates as texts."""
    return [[v.isoformat() if isinstance(v, date) else v for v in row] for row in rows]


def duckdb_for(services: Services) -> duckdb.DuckDBPyConnection:
    """DuckDB with its Iceberg extension and the keys of the tests' S3."""
    for extension in ("avro", "httpfs", "iceberg"):
        import_extension(extension)
    db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    db.execute("SET TimeZone = 'UTC'")
    db.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{services.access_key}',"
        f" SECRET '{services.secret_key}', REGION 'us-east-1', URL_STYLE 'path',"
        f" USE_SSL false, ENDPOINT '{urlsplit(services.s3).netloc}')"
    )
    return db


@dataclass
class Lake:
    """A folder with `polder.toml`, and what the binary made from it."""

    services: Services
    work: Path
    env: dict[str, str]

    def run(self, *args: str) -> subprocess.CompletedProcess:
        command = [self.services.polder, *args]
        env = os.environ | self.env
        return subprocess.run(command, cwd=self.work, env=env, capture_output=True, text=True)

    def polder(self, *args: str) -> dict | list:
        """Runs the binary, which must succeed and print one JSON document."""
        done = self.run(*args)
        assert done.returncode == 0, f"polder {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def tables(self) -> dict[tuple[str, str], dict]:
        """What `polder tables` lists, by org and table."""
        return {(row["org"], row["table"]): row for row in self.polder("tables", "--json")}

    def query(self, sql: str) -> list[list]:
        """Rows as Polder's own engine answers, values in the columns' order: no digit of a decimal is
        lost, and dates are texts."""
        done = self.run("query", "--format", "json", sql)
        assert done.returncode == 0, f"{sql}:\n{done.stdout}\n{done.stderr}"
        return [list(row.values()) for row in json.loads(done.stdout, parse_float=Decimal)]

    @property
    def on_s3(self) -> bool:
        return "[storage.s3]" in (self.work / "polder.toml").read_text()

    @property
    def _store(self) -> dict[str, str]:
        """How PyIceberg reaches the files of a lake on S3."""
        return {
            "s3.endpoint": self.services.s3,
            "s3.access-key-id": self.services.access_key,
            "s3.secret-access-key": self.services.secret_key,
            "s3.region": "us-east-1",
            "s3.force-virtual-addressing": "false",
        }

    @cached_property
    def _catalog(self) -> Catalog:
        return SqlCatalog("polder", **{"uri": f"sqlite:///{self.work}/polder.db"} | self._store)

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        return duckdb_for(self.services)

    def through(self, uri: str) -> "Served":
        """The lake as readers find it at the address of a `polder serve`."""
        return Served(self.services, self.work, self.env, uri)

    def load(self, org: str, table: str) -> Table:
        """A table as PyIceberg opens it."""
        return self._catalog.load_table((f"org_{org}", table))

    def read_with_pyiceberg(
        self, org: str, table: str, *columns: str, snapshot_id: int | None = None
    ) -> pa.Table:
        found = self.load(org, table)
        return found.scan(selected_fields=columns or ("*",), snapshot_id=snapshot_id).to_arrow()

    def read_with_duckdb(self, org: str, table: str, *columns: str) -> pa.Table:
        location = self.tables()[org, table]["metadata_location"]
        wanted = ", ".join(f'"{column}"' for column in columns) or "*"
        query = f"SELECT {wanted} FROM iceberg_scan(?)"
        return self._duckdb.execute(query, [location]).to_arrow_table()

    def read_with_polars(self, org: str, table: str, *columns: str) -> pa.Table:
        import polars

        # Polars reads S3 itself, and takes no endpoint from PyIceberg's catalog.
        names = {
            "aws_endpoint_url": "s3.endpoint",
            "aws_access_key_id": "s3.access-key-id",
            "aws_secret_access_key": "s3.secret-access-key",
            "aws_region": "s3.region",
            "aws_virtual_hosted_style_request": "s3.force-virtual-addressing",
        }
        options = {name: self._store[known] for name, known in names.items()}
        options = options | {"aws_allow_http": "true"} if self.on_s3 else None
        found = polars.scan_iceberg(self.load(org, table), storage_options=options)
        return (found.select(columns) if columns else found).collect().to_arrow()

    def read_with_daft(self, org: str, table: str, *columns: str) -> pa.Table:
        import daft

        found = daft.read_iceberg(self.load(org, table))
        return (found.select(*columns) if columns else found).to_arrow()

    def read(self, reader: str, org: str, table: str, *columns: str) -> pa.Table:
        """All columns, or those named, with one of `READERS` or `MORE_READERS`."""
        read = {
            "duckdb": self.read_with_duckdb,
            "pyiceberg": self.read_with_pyiceberg,
            "polars": self.read_with_polars,
            "daft": self.read_with_daft,
        }
        return read[reader](org, table, *columns)


@dataclass
class Served(Lake):
    """A lake whose readers know nothing but the Iceberg REST catalog that `polder serve` offers to
    everybody who reaches it."""

    uri: str

    @cached_property
    def _catalog(self) -> Catalog:
        return RestCatalog("polder", **{"uri": self.uri} | self._store)

    def attached(self) -> duckdb.DuckDBPyConnection:
        """DuckDB with the catalog as `lake`; it keeps what it knows of tables while it lives."""
        db = duckdb_for(self.services)
        db.execute(
            f"ATTACH 'lake' AS lake (TYPE iceberg, ENDPOINT '{self.uri}',"
            " AUTHORIZATION_TYPE 'none', ACCESS_DELEGATION_MODE 'none')"
        )
        return db

    def read_with_duckdb(self, org: str, table: str, *columns: str) -> pa.Table:
        wanted = ", ".join(f'"{column}"' for column in columns) or "*"
        with closing(self.attached()) as db:
            found = db.execute(f'SELECT {wanted} FROM lake."org_{org}"."{table}"')
            return found.to_arrow_table()

    def for_trino(self) -> dict[str, str]:
        """How a catalog of Trino's reaches the files."""
        if not self.on_s3:
            return {"fs.hadoop.enabled": "true"}
        return {
            "fs.native-s3.enabled": "true", "s3.endpoint": self.services.s3,
            "s3.region": "us-east-1", "s3.path-style-access": "true",
            "s3.aws-access-key": self.services.access_key,
            "s3.aws-secret-key": self.services.secret_key,
        }

    def for_spark(self) -> dict[str, str]:
        """The same of Spark's."""
        if not self.on_s3:
            return {}
        return {
            "io-impl": "org.apache.iceberg.aws.s3.S3FileIO", "s3.endpoint": self.services.s3,
            "s3.path-style-access": "true", "client.region": "us-east-1",
            "s3.access-key-id": self.services.access_key,
            "s3.secret-access-key": self.services.secret_key,
        }


READERS = ["duckdb", "pyiceberg"]
MORE_READERS = ["polars", "daft"]
