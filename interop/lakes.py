"""A lake as the tests see it: the binary that fills it and two foreign readers that open it.

The readers share nothing with Polder: DuckDB starts from the metadata file's location, PyIceberg
from the catalog database.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import duckdb
import pyarrow as pa
from duckdb_extensions import import_extension
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

    @cached_property
    def _catalog(self) -> SqlCatalog:
        return SqlCatalog(
            "polder",
            **{
                "uri": f"sqlite:///{self.work}/polder.db",
                "s3.endpoint": self.services.s3,
                "s3.access-key-id": self.services.access_key,
                "s3.secret-access-key": self.services.secret_key,
                "s3.region": "us-east-1",
                "s3.force-virtual-addressing": "false",
            },
        )

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        for extension in ("avro", "httpfs", "iceberg"):
            import_extension(extension)
        db = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        db.execute("SET TimeZone = 'UTC'")
        db.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{self.services.access_key}',"
            f" SECRET '{self.services.secret_key}', REGION 'us-east-1', URL_STYLE 'path',"
            f" USE_SSL false, ENDPOINT '{urlsplit(self.services.s3).netloc}')"
        )
        return db

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

        found = polars.scan_iceberg(self.load(org, table))
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


READERS = ["duckdb", "pyiceberg"]
MORE_READERS = ["polars", "daft"]
