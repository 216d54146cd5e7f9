"""Files of sqllogictest: read, and answers made comparable.

A record is `query <types> [rowsort]`, SQL, `----` and the rows, one a line, values with a blank between
them; or `statement error`, SQL, and nothing. `onlyif <engine>` and `skipif <engine>` before a record are
for where two dialects say different things; the comment above says which. Types are I (whole numbers),
R (other numbers), T (everything else). Numbers are compared by value: neither the scale of a decimal nor
more than 12 digits of a float; instants in UTC.
"""

import datetime
import decimal
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Record:
    place: str
    kind: str
    sql: str
    types: str = ""
    sorted: bool = False
    rows: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)

    def is_for(self, engine: str) -> bool:
        return engine not in self.skip and (not self.only or engine in self.only)


def read(path: Path) -> list[Record]:
    records = []
    for block, line in blocks(path.read_text()):
        only, skip = [], []
        while block and block[0].split(" ")[0] in ("onlyif", "skipif"):
            word, engine = block.pop(0).split(" ")
            (only if word == "onlyif" else skip).append(engine)
        head, *rest = block
        words = head.split(" ")
        place = f"{path.name}:{line}"
        if head == "statement error":
            records.append(Record(place, "error", "\n".join(rest), only=only, skip=skip))
            continue
        assert words[0] == "query" and set(words[1]) <= set("IRT") and words[2:] in ([], ["rowsort"]), f"{place}: {head}"
        at = rest.index("----")
        record = Record(place, "query", "\n".join(rest[:at]), words[1], words[2:] == ["rowsort"])
        record.rows, record.only, record.skip = rest[at + 1:], only, skip
        records.append(record)
    return records


def blocks(text: str) -> list[tuple[list[str], int]]:
    """Lines between empty ones, without comments, and the number of the first."""
    found, block, first = [], [], 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if not line.strip():
            if block:
                found.append((block, first))
            block = []
        elif not line.startswith("#"):
            first = first if block else number
            block.append(line)
    return found


def filled(sql: str, names: dict[str, str]) -> str:
    """The SQL with `${name}` put in."""
    return re.sub(r"\$\{(\w+)}", lambda name: names[name[1]], sql)


def lines(record: Record, rows: list) -> list[str]:
    """Rows of Python values as the file has them."""
    for row in rows:
        assert len(row) == len(record.types), f"{record.place}: {len(row)} columns"
    found = [" ".join(value(v, t) for v, t in zip(row, record.types)) for row in rows]
    return sorted(found) if record.sorted else found


def value(v, kind: str = "T") -> str:
    if v is None:
        return "NULL"
    if isinstance(v, bool):
        assert kind == "T", f"{v} is no number"
        return str(v).lower()
    if kind == "I":
        assert v == int(v), f"{v} is no whole number"
        return str(int(v))
    if isinstance(v, float):
        return plain(decimal.Decimal(f"{v:.12g}")) if v == v and abs(v) != float("inf") else str(v)
    if isinstance(v, (int, decimal.Decimal)):
        return plain(decimal.Decimal(v))
    assert kind == "T", f"{v!r} is no number"
    if isinstance(v, datetime.datetime):
        if v.tzinfo is not None:
            return f"{moment(v.astimezone(datetime.timezone.utc).replace(tzinfo=None))}Z"
        return moment(v)
    if isinstance(v, bytes):
        return v.hex()
    if isinstance(v, dict):
        v = tuple(v.values())
    if isinstance(v, (list, tuple)):
        start, end = "[]" if isinstance(v, list) else "()"
        return start + ", ".join(value(inner) for inner in v) + end
    assert isinstance(v, (str, datetime.date, datetime.time, uuid.UUID)), type(v)
    return str(v) or "(empty)"


def plain(number: decimal.Decimal) -> str:
    """Without an exponent, and without zeros at the end of the fraction."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def moment(at: datetime.datetime) -> str:
    text = at.isoformat(sep="T")
    return text.rstrip("0") if at.microsecond else text
