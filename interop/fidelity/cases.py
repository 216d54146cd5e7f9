"""What a case of the fidelity suite is: a value, and what has to become of it.

A value either arrives as it is, or the lake type does not hold it (`Odd`). Then the run is refused,
naming column and key, or the value is altered by the table's policy and counted.
"""

import datetime as dt
import decimal
import math
import struct
import uuid
from dataclasses import dataclass, field


class Sql(str):
    """An expression; any other string is a value as PostgreSQL reads it from text."""


@dataclass(frozen=True)
class Odd:
    """A value that the lake type does not hold. `clamped` and `nulled` are what these policies store
    for it, written like the value itself; None is null."""

    value: str
    clamped: str | None = None
    nulled: str | None = None
    # How many values are altered: several elements of one array may be.
    count: int = 1


@dataclass(frozen=True)
class Type:
    """A PostgreSQL type, its values, and how the server is asked for what the lake has to hold."""

    name: str
    values: list[str]
    odd: list[Odd] = field(default_factory=list)
    # `{}` stands for the value. Types without a counterpart in the lake are kept as their text.
    asked: str = "{}::text"
    # What it is, for types that the tests create.
    made: str = ""
    # The type is as the table spec declares it under `types`.
    declared: str | None = None
    # Arrays of it are tried too.
    arrays: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, declared {self.declared}" if self.declared else self.name

    def literal(self, value: str | None) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, Sql):
            return value
        text = value.replace("'", "''")
        return f"'{text}'::{self.name}"

    def asked_of_array(self, array: str) -> str:
        """The same question for each element of an array."""
        element = self.asked.format(f"({array})[i]")
        return (
            f"CASE WHEN {array} IS NOT NULL THEN coalesce((SELECT array_agg({element} ORDER BY i)"
            f" FROM generate_subscripts({array}, 1) AS i), '{{}}') END"
        )


def canonical(value, type_: str = ""):
    """One form for what drivers and readers give different forms. Nothing is lost on the way: a float
    is its bits, a number its digits, a time its instant."""
    match value:
        case list():
            return [canonical(item, type_) for item in value]
        case dict():
            return {name: canonical(item, type_) for name, item in value.items()}
        case float():
            format_ = "<f" if type_ == "real" else "<d"
            return "NaN" if math.isnan(value) else struct.pack(format_, value)
        case decimal.Decimal():
            return str(value)
        case uuid.UUID():
            return str(value)
        case bytes() if type_ == "uuid":
            return str(uuid.UUID(bytes=value))
        case dt.datetime() if value.tzinfo is not None:
            return value.astimezone(dt.timezone.utc)
    return value


def nulls(value) -> int:
    """The nulls in a value, at any depth."""
    match value:
        case None:
            return 1
        case list():
            return sum(map(nulls, value))
        case dict():
            return sum(map(nulls, value.values()))
    return 0
