"""One state of one lake table, and what is wanted of it. Nothing is read before a `to_…`.

A table is a value: each method gives a new one, so that a part can be used again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table.metadata import TableMetadata

from polder import _tensors
from polder._conditions import fitted, parsed
from polder._errors import AccessDenied, Invalid, NotFound, Unavailable, named, translated
from polder._history import Pin, Version, pins, snapshot_at, versions

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas
    import polars
    import torch

# Keys to storage are good for an hour. A table that is read later than this is loaded again, for new
# ones; the rows stay those of the same snapshot.
_LOADED_SECONDS_MAX = 900.0


@dataclass(frozen=True, repr=False, eq=False)
class Table:
    """A lake table at one state. Made by `Org.table`."""

    name: str
    _label: str
    _load: Callable[[], IcebergTable]
    _loaded: IcebergTable
    _loaded_at: float
    _snapshot_id: int | None
    _filter: BooleanExpression
    _columns: tuple[str, ...] | None
    _rows_max: int | None

    @classmethod
    def _open(cls, label: str, name: str, load: Callable[[], IcebergTable]) -> "Table":
        loaded = load()
        snapshot = loaded.metadata.current_snapshot_id
        return cls(
            name, label, load, loaded, time.monotonic(), snapshot, AlwaysTrue(), None, None
        )

    def __repr__(self) -> str:
        return self._label

    # What is wanted

    def at(self, state: str | int | datetime | Version | Pin) -> "Table":
        """The table as it was: at a version (`"v3"`), a pin's name, a snapshot's id, or a time.

        A time means the state that was the current one then. Columns are those of that state. Raises
        `NotFound` for a state that is not there, or has expired, with those there are.
        """
        snapshot = snapshot_at(self._loaded.metadata, state)
        label = f"{self._label}.at({state!r})"
        return replace(self, _snapshot_id=snapshot, _label=label)._checked()

    def where(self, condition: str | BooleanExpression) -> "Table":
        """The rows of which this is true; several conditions all have to be.

        `condition` is a PyIceberg row filter, as text (`"stage = 'won' and amount > 1000"`) or as an
        expression. Files and row groups that hold no such row are not read. Raises `Invalid` for
        text that is no condition, `NotFound` for a column that is not there.
        """
        wanted = parsed(condition)
        label = f"{self._label}.where({condition!r})"
        return replace(self, _filter=And(self._filter, wanted), _label=label)._checked()

    def select(self, *columns: str) -> "Table":
        """Only these columns (`"who.name"` for a member of a struct). Others are not read."""
        if not columns:
            raise Invalid("select names no column")
        label = f"{self._label}.select({', '.join(map(repr, columns))})"
        return replace(self, _columns=columns, _label=label)._checked()

    def limit(self, rows: int) -> "Table":
        """At most so many rows, whichever come first."""
        if rows < 0:
            raise Invalid(f"limit({rows}): give 0 or more")
        most = rows if self._rows_max is None else min(rows, self._rows_max)
        return replace(self, _rows_max=most, _label=f"{self._label}.limit({rows})")

    def refresh(self) -> "Table":
        """The same of the table as it is now."""
        loaded = self._load()
        snapshot = loaded.metadata.current_snapshot_id
        now = time.monotonic()
        return replace(self, _loaded=loaded, _loaded_at=now, _snapshot_id=snapshot)._checked()

    # What is known without reading rows

    @property
    def snapshot_id(self) -> int | None:
        """The state's Iceberg snapshot; none while nothing was ever published."""
        return self._snapshot_id

    def schema(self) -> pa.Schema:
        """The columns that a read gives."""
        return schema_to_pyarrow(self._projection(), include_field_ids=False)

    def versions(self) -> list[Version]:
        """The table's published versions, oldest first, as of when the table was loaded."""
        return versions(self._loaded.metadata)

    def pins(self) -> list[Pin]:
        """The states of the table that somebody named, as of when the table was loaded."""
        return pins(self._loaded.metadata)

    def count(self) -> int:
        """How many rows a read gives; from metadata where that says it."""
        if self._is_empty():
            return 0
        with self._reading():
            found = self._scan().count()
        return found if self._rows_max is None else min(found, self._rows_max)

    # Reading

    def to_arrow(self) -> pa.Table:
        """All rows, in memory."""
        return self.to_batches().read_all()

    def to_batches(self) -> pa.RecordBatchReader:
        """The rows in batches, which are read as they are asked for."""
        schema = self.schema()
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Lets every library that takes Arrow streams take a table as it is."""
        return self.to_batches().__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> "pandas.DataFrame":
        """All rows, as pandas converts Arrow. Needs pandas."""
        _needed("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """All rows. Needs Polars."""
        frame = _needed("polars").from_arrow(self.to_arrow())
        return cast("polars.DataFrame", frame)

    def to_duckdb(
        self, con: "duckdb.DuckDBPyConnection | None" = None, name: str | None = None
    ) -> "duckdb.DuckDBPyConnection":
        """Makes the rows a view of a DuckDB connection (a new one unless given), under the table's
        name unless another is given; gives the connection. Needs DuckDB.
        """
        opened = _needed("duckdb").connect() if con is None else con
        opened.register(name or self.name, self.to_arrow())
        return opened

    def to_ray(self) -> Any:
        """The rows as Ray Data has them, in blocks of the batches they were read in. Needs Ray."""
        data = _needed("ray.data")
        schema = self.schema()
        blocks = [pa.Table.from_batches([batch]) for batch in self.to_batches() if len(batch)]
        return data.from_arrow(blocks or [schema.empty_table()])

    def to_numpy(self) -> "dict[str, np.ndarray[Any, Any]]":
        """One array a column, of its own type, for columns of booleans and numbers.

        Raises `Invalid` for a column of another type (a decimal too: it would have to be rounded),
        and for nulls in a column that has no `NaN` to stand for them.
        """
        return _tensors.arrays(self.to_arrow())

    def to_torch(self) -> "dict[str, torch.Tensor]":
        """One tensor a column; the columns `to_numpy` takes. Needs PyTorch."""
        torch = _needed("torch")
        return {name: torch.from_numpy(array) for name, array in self.to_numpy().items()}

    # How

    def _metadata(self, loaded: IcebergTable) -> TableMetadata:
        """The table's metadata, with the columns of this state as the current ones: PyIceberg looks
        for a filter's columns there, also in the past."""
        metadata = loaded.metadata
        if self._snapshot_id is None:
            return metadata
        snapshot = metadata.snapshot_by_id(self._snapshot_id)
        if snapshot is None:
            raise NotFound(f"snapshot {self._snapshot_id} of {self._label} has expired: refresh()")
        if snapshot.schema_id is None:
            return metadata
        return metadata.model_copy(update={"current_schema_id": snapshot.schema_id})

    def _all_columns(self) -> Schema:
        return self._metadata(self._loaded).schema()

    def _projection(self) -> Schema:
        columns = self._all_columns()
        if self._columns is None:
            return columns
        missing = next((name for name in self._columns if name not in columns.column_names), None)
        if missing is not None:
            raise named(f"column of {self.name}", missing, columns.column_names)
        return columns.select(*self._columns)

    def _checked(self) -> "Table":
        """This, if columns and conditions mean something in this state."""
        self._projection()
        fitted(self._filter, self._all_columns(), self._label)
        return self

    def _is_empty(self) -> bool:
        return self._snapshot_id is None or self._rows_max == 0

    def _scan(self) -> DataScan:
        loaded = self._loaded
        if time.monotonic() - self._loaded_at > _LOADED_SECONDS_MAX:
            loaded = self._load()
        settings = loaded.io.properties
        signs = str(settings.get("s3.remote-signing-enabled", "")).lower() == "true"
        if signs and not settings.get("s3.access-key-id"):
            raise AccessDenied(
                "the server signs requests to storage and hands out no keys, which this client needs:"
                " configure [storage.s3] role_arn on the server, or give connect(storage=…) keys"
            )
        metadata = self._metadata(loaded)
        return DataScan(
            table_metadata=metadata,
            io=loaded.io,
            row_filter=fitted(self._filter, metadata.schema(), self._label),
            selected_fields=self._columns or ("*",),
            snapshot_id=self._snapshot_id,
            limit=self._rows_max,
        )

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        if self._is_empty():
            return
        with self._reading():
            for batch in self._scan().to_arrow_batch_reader():
                yield batch.cast(schema)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with translated(f"reading {self._label}"):
            try:
                yield
            except FileNotFoundError as error:
                raise NotFound(
                    f"reading {self._label}: a file of this state is gone: refresh()"
                ) from error
            except OSError as error:
                raise Unavailable(f"reading {self._label}: {error}") from error


def _needed(module: str) -> Any:
    """An optional library, or the words to install it with."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        extra = module.split(".")[0]
        message = f"{extra} is not installed: pip install 'polder-lake[{extra}]'"
        raise ImportError(message) from error
