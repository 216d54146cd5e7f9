"""docs/reference/types.md, made of the cases and of the types that the lake's tables really got."""

import datetime as dt
import re
from pathlib import Path

from pyiceberg.types import IcebergType, ListType, StructType

from fidelity import mongodb, postgres
from fidelity.cases import Odd, Sql, Type
from fidelity.mongodb import OddBson, OddType, Raw

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/reference/types.md"

# Characters of a value on the page.
SHOWN_MAX = 44


def lake_type(type_: IcebergType) -> str:
    """An Iceberg type without its fields' numbers."""
    match type_:
        case ListType():
            return f"list<{lake_type(type_.element_type)}>"
        case StructType():
            members = (f"{field.name}: {lake_type(field.field_type)}" for field in type_.fields)
            return f"struct<{', '.join(members)}>"
    return re.sub(r"decimal\((\d+), (\d+)\)", r"decimal(\1, \2)", str(type_))


def lake_code(type_: IcebergType) -> str:
    return f"`{lake_type(type_)}`"


def code(text: str) -> str:
    """A text as code in a table's cell, cut where it is long."""
    text = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"
    return f"`{text}`".replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |")


def stored(text: str | None) -> str:
    if text is None:
        return "null"
    # An expression is the literal in it.
    return code(re.sub(r"^\w+ '(.*)'$", r"\1", text) if isinstance(text, Sql) else text)


def postgres_types(types: dict[str, dict[str, IcebergType]]) -> str:
    rows = []
    for type_ in postgres.TYPES:
        found = types[type_.title]
        array = lake_code(found["a"]) if "a" in found else ""
        count = len(type_.values) + len(type_.odd)
        rows.append([title(type_), lake_code(found["v"]), array, str(count)])
    return table(["PostgreSQL", "lake", "an array of it", "values tried"], rows)


def title(type_: Type | OddType) -> str:
    declared = f", `types:` {code(type_.declared)}" if type_.declared else ""
    if isinstance(type_, OddType):
        return f"{type_.name}{declared}"
    made = f" ({type_.made})" if type_.made else ""
    return f"{code(type_.name)}{made}{declared}"


def postgres_odd() -> str:
    def row(type_: Type, odd: Odd) -> list[str]:
        return [title(type_), code(odd.value), stored(odd.nulled), stored(odd.clamped)]

    rows = [row(type_, odd) for type_ in postgres.TYPES for odd in type_.odd]
    return table(["PostgreSQL", "value", "`null` stores", "`clamp` stores"], rows)


KEPT = {
    "same": "the value",
    "double": "the value",
    "text": "its text",
    "json": "extended JSON",
    "raw": "extended JSON",
    "members": "a struct with JSON members",
    "elements": "a list of JSON",
}


def bson_types(types: dict[str, dict[str, IcebergType]]) -> str:
    rows = [
        [case.name, lake_code(types[case.name]["v"]), KEPT[case.kept], str(len(case.values))]
        for case in mongodb.TYPES
    ]
    return table(["BSON", "lake", "kept as", "values tried"], rows)


def bson_value(value: object) -> str:
    match value:
        case None:
            return "null"
        case Raw():
            return code(f"{value.json['$date']['$numberLong']} ms")
        case dt.datetime():
            return code(value.replace(tzinfo=None).isoformat(" "))
        case float():
            return code(repr(value))
    return code(str(value))


def bson_odd() -> str:
    def row(case: OddType, odd: OddBson) -> list[str]:
        if odd.refused:
            return [title(case), bson_value(odd.value), "refused", "refused"]
        return [title(case), bson_value(odd.value), "null", bson_value(odd.clamped)]

    rows = [row(case, odd) for case in mongodb.ODD_TYPES for odd in case.odd]
    return table(["BSON", "value", "`null` stores", "`clamp` stores"], rows)


def page(postgres_found: dict, bson_found: dict) -> str:
    """The whole page; the types found are by case, then by column."""
    return TEXT.format(
        postgres_count=sum(len(type_.values) + len(type_.odd) for type_ in postgres.TYPES),
        postgres_types=postgres_types(postgres_found),
        postgres_odd=postgres_odd(),
        bson_count=sum(len(case.values) for case in mongodb.TYPES)
        + sum(len(case.odd) for case in mongodb.ODD_TYPES),
        bson_types=bson_types(bson_found),
        bson_odd=bson_odd(),
    )


TEXT = """\
<!-- Made by `cargo xtask fidelity` from interop/fidelity: change it there. -->
# Types

A value arrives exactly or not at all. What a lake type cannot hold is *unrepresentable*, and
`on_unrepresentable` of the table spec says what happens then:

| policy | effect |
|---|---|
| `error` (default) | the run stops, naming table, column and row; what is stored stays |
| `null` | the value becomes null, and is counted in the run's report |
| `clamp` | the nearest value the type has (null for `NaN`), counted |
| `text` | columns of types that have such values are read as text, all of them, exactly |

A PostgreSQL cursor column keeps its type and its values: `null` and `text` are `error` there. The nearest
value of a number or a time is the rounded one, half away from zero, within what the type holds.

A row is named by the columns of the spec's `key:`, in the error (`row id=7`) and in the run's report, which
names up to five rows for each column with altered values:

```json
"altered": {{ "closed_on": 12 }},
"altered_keys": {{ "closed_on": ["id=7", "id=31", "id=40", "id=44", "id=58"] }}
```

No value of another column is shown. An error of a file names the file instead, and the line where it has such.

Every value below is stored in a real source, read by a run, and read back from the lake by DuckDB and by
PyIceberg. It comes back equal (floats bit by bit, numbers digit by digit, text character by character), or it
is one of those under *what the lake does not hold*, and then refused, or altered and counted. Nothing else
becomes null. `cargo xtask fidelity` does it again, and writes this page.

## PostgreSQL

{postgres_count} values, extremes of every type among them; what the server prints is what text has to be. In
short:

- Numbers, dates, times, `bytea`, `uuid` keep their kind. `numeric(p, s)` is a decimal where p ≤ 38 and
  0 ≤ s ≤ p; any other `numeric` is text with every digit, also the 147,455 that PostgreSQL can store.
- Types without a counterpart are text, as PostgreSQL prints them: `json` byte for byte, `\\u0000` and lone
  surrogates included.
- Domains are read as their base type, enums and composites as text, arrays as lists of their element's type.
- `types:` may declare `decimal(p, s)` for an unbounded `numeric`, `long` for an `int4`, `string` for anything,
  and `binary` for text, which is then its bytes in the database's encoding.

{postgres_types}

### What the lake does not hold

Years outside 1 to 9999, which not every reader can show; infinities and `NaN` where there are none; `24:00`;
arrays of several dimensions or with another lower bound than 1, which a list has not. (Infinite intervals,
since PostgreSQL 17, too: both policies make them null.) `text` keeps what PostgreSQL prints.

{postgres_odd}

## MongoDB and JSON lines

The schema is inferred over every document read; `int32` and `int64` may mix, and so may integers and
doubles, or decimals, as long as every value fits. A decimal column keeps the number, not how many zeros it was
written with. A column whose values have no common type is string with lossless
[extended JSON](https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/), and stays so until a full
refresh. {bson_count} values:

{bson_types}

### What the lake does not hold

Dates outside the years 1 to 9999: `text` makes extended JSON of such a column. And values that a declared
type has no exact place for. What is no value of the type at all is refused under any policy; under `text` both
are.

{bson_odd}

A document that has a member twice is refused, with the member's name.

## Files

Parquet keeps its types. CSV is inferred over the whole file: boolean, int, long, decimal, double, date,
timestamp, timestamptz, string; numbers with leading zeros stay text. `types:` overrides either.
"""
