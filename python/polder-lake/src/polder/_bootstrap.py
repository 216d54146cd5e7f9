"""All rows of an org's tables at one moment, as one stream that goes on by itself where it broke off.

The order of the rows never changes for the same states. So after a break the stream is taken up at the
last mark that was seen, and the rows that came after that mark are passed over.
"""

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import requests
import urllib3

from polder._errors import Invalid, PolderError, Unavailable
from polder._http import Api

# Attempts after the last that brought a row.
_TRIES_MAX = 5
_FIRST_PAUSE_SECONDS = 0.2
_BUFFER_BYTES = 1 << 20
_BREAKS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    pa.ArrowException,
    OSError,
    Unavailable,
)


@dataclass(frozen=True)
class Batch:
    """Rows of one table."""

    table: str
    rows: pa.RecordBatch


class _Stream:
    """What rows and documents have in common: the token, and going on."""

    _format: str

    def __init__(self, api: Api, path: str, parameters: dict[str, str]) -> None:
        self._api = api
        self._path = path
        resume = parameters.pop("resume", None)
        self._budgets = {name: parameters.pop(name) for name in list(parameters) if name.endswith("_max")}
        asked = {"resume": resume} if resume else parameters
        with api.get(path, asked) as response:
            self.manifest: dict[str, Any] = response.json()
        self._token: str | None = self.manifest["token"]
        self._passed = 0
        self._started = False

    @property
    def token(self) -> str | None:
        """Goes on behind the last mark (`resume=`), also in another process; none at the end."""
        return self._token

    def _all(self) -> Iterator[Any]:
        if self._started:
            raise Invalid("a bootstrap is read once: call bootstrap() again, or with resume=.token")
        self._started = True
        failures = 0
        while self._token is not None:
            before = (self._token, self._passed)
            try:
                yield from self._once()
                return
            except _BREAKS as error:
                failures = 1 if (self._token, self._passed) != before else failures + 1
                if self._budgets:
                    # A budget is for one answer: going on would begin it anew.
                    raise _broken(error) from error
                if failures > _TRIES_MAX:
                    raise _broken(error) from error
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1))

    def _once(self) -> Iterator[Any]:
        """One answer: its rows but for those already passed on, until its last mark."""
        skip = self._passed
        asked = {"resume": self._token or "", "format": self._format} | self._budgets
        with self._api.get(self._path, asked) as response:
            for item in self._items(response):
                if isinstance(item, dict) and "mark" in item:
                    mark = item["mark"]
                    self._token, self._passed, skip = mark["next"], 0, 0
                    if mark["end"]:
                        return
                    continue
                size = self._size(item)
                if skip >= size:
                    skip -= size
                    continue
                rest = self._rest(item, skip)
                skip = 0
                # Before it is handed over: a reader that stops has had it.
                self._passed += self._size(rest)
                yield rest
        raise Unavailable("the stream ended before its last mark")

    def _items(self, response: requests.Response) -> Iterator[Any]:
        raise NotImplementedError

    def _size(self, item: Any) -> int:
        raise NotImplementedError

    def _rest(self, item: Any, skip: int) -> Any:
        raise NotImplementedError


class Bootstrap(_Stream):
    """The rows of an org's tables at one moment. Made by `Org.bootstrap`; iterated once.

    `manifest` has the tables with their snapshots, columns and what these hold, rows, freshness and
    last verdict. Each item is a `Batch`: the rows of one table come together, in the manifest's order.
    """

    _format = "arrow"

    def __iter__(self) -> Iterator[Batch]:
        return self._all()

    def to_arrow(self) -> dict[str, pa.Table]:
        """All rows, in memory, by table. Tables without rows are absent."""
        batches: dict[str, list[pa.RecordBatch]] = {}
        for batch in self:
            batches.setdefault(batch.table, []).append(batch.rows)
        return {table: pa.Table.from_batches(rows) for table, rows in batches.items()}

    def _items(self, response: requests.Response) -> Iterator[Any]:
        source = pa.PythonFile(_buffered(response), "r")
        while True:
            reader = pa.ipc.open_stream(source)
            said = reader.schema.metadata or {}
            if mark := said.get(b"polder.mark"):
                # To its end, behind which the next stream begins.
                reader.read_all()
                yield {"mark": json.loads(mark)}
                continue
            name = said.get(b"polder.table", b"").decode()
            for rows in reader:
                yield Batch(name, rows.replace_schema_metadata(None))

    def _size(self, item: Batch) -> int:
        return len(item.rows)

    def _rest(self, item: Batch, skip: int) -> Batch:
        return item if skip == 0 else Batch(item.table, item.rows.slice(skip))


class Documents(_Stream):
    """One document for each row of a table, with what belongs to it. Made by `Org.documents`.

    Each item is a dict: `entity`, `key`, `row` (the newest state), `earlier` (its older states, where
    the table keeps them), `related` (by table, the rows that belong to it, by time; those rows have
    a `related` of their own where tables refer to theirs).
    """

    _format = "ndjson"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._all()

    def _items(self, response: requests.Response) -> Iterator[Any]:
        for line in _buffered(response):
            if not line.endswith(b"\n"):
                raise Unavailable("the stream broke off")
            item = json.loads(line)
            if "manifest" not in item:
                yield item

    def _size(self, item: dict[str, Any]) -> int:
        return 1

    def _rest(self, item: dict[str, Any], skip: int) -> dict[str, Any]:
        return item


def _buffered(response: requests.Response) -> io.BufferedReader:
    """The body as a file."""
    # It would close itself at its end, with bytes of it still in the buffer.
    response.raw.auto_close = False
    return io.BufferedReader(response.raw, _BUFFER_BYTES)


def parameters(
    tables: Sequence[str] | None,
    since: datetime | None,
    as_of: datetime | None,
    **others: str | int | None,
) -> dict[str, str]:
    """What is asked for, as the address has it."""
    asked = {name: str(value) for name, value in others.items() if value is not None}
    if tables is not None:
        if isinstance(tables, str) or not tables:
            raise Invalid("tables is a list of one or more names")
        escaped = (name.replace("\\", "\\\\").replace(",", "\\,") for name in tables)
        asked["tables"] = ",".join(escaped)
    for name, time_ in (("since", since), ("as_of", as_of)):
        if time_ is None:
            continue
        if time_.tzinfo is None:
            raise Invalid(f"{name}={time_!r} has no time zone: add tzinfo=UTC")
        asked[name] = time_.isoformat()
    if "resume" in asked:
        other = [name for name in asked if name != "resume" and not name.endswith("_max")]
        if other:
            raise Invalid(f"resume goes with budgets alone, not with {', '.join(other)}")
    return asked


def _broken(error: Exception) -> PolderError:
    if isinstance(error, PolderError):
        return error
    return Unavailable(f"the stream broke off: {error}")
