"""The types of BSON, with their extremes.

A case is a collection: the lake's schema is inferred over all of its documents. `Raw` values are bytes,
for what the driver does not make.
"""

import datetime as dt
import json
import math
import struct
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from bson import Int64, ObjectId, Regex, Timestamp, encode, json_util
from bson.binary import Binary, UuidRepresentation
from bson.code import Code
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey

from fidelity.postgres import PLANES


@dataclass(frozen=True)
class Raw:
    """A value as the bytes of BSON (bsonspec.org), and as it is in extended JSON."""

    kind: int
    content: bytes
    json: object


@dataclass(frozen=True)
class Bson:
    """A collection's values, and what the lake has to hold for them.

    `kept`: `same`, the value; `double`, the value as one; `text`, its text; `json`, extended JSON that
    reads as the value; `raw`, that of a `Raw` value; `members` and `elements`, such JSON in the struct's
    members or the list's elements.
    """

    name: str
    values: list
    kept: str = "same"


@dataclass(frozen=True)
class OddBson:
    """A value that its column's type does not hold, and what the policies store for it."""

    value: object
    clamped: object = None
    # Whether no policy alters it: it is no value of the type at all.
    refused: bool = False


@dataclass(frozen=True)
class OddType:
    """A collection with values that the column's type, inferred or declared, does not hold."""

    name: str
    value: object
    odd: list[OddBson] = field(default_factory=list)
    declared: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, declared {self.declared}" if self.declared else self.name


def text(content: str) -> bytes:
    data = content.encode()
    return struct.pack("<i", len(data) + 1) + data + b"\0"


def date(millis: int) -> Raw:
    return Raw(0x09, struct.pack("<q", millis), {"$date": {"$numberLong": str(millis)}})


def instant(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.timezone.utc)


def decimals(*texts: str) -> list[Decimal128]:
    return [Decimal128(text) for text in texts]


NINES = "9" * 34
ID, LAST_ID = ObjectId("0" * 24), ObjectId("f" * 24)

NUMBERS = [
    Bson("bool", [True, False]),
    Bson("int32", [-(2**31), 2**31 - 1, 0, -1]),
    Bson("int64", [Int64(-(2**63)), Int64(2**63 - 1), Int64(0), Int64(2**53 + 1)]),
    Bson("int32 and int64", [1, Int64(2**63 - 1), Int64(5)]),
    Bson(
        "double",
        [
            1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 2.225073858507201e-308, 0.1, -0.0,
            0.0, float("nan"), float("inf"), float("-inf"), 9007199254740992.0,
        ],
    ),
    Bson("int32 and double", [1.5, 7, float("nan"), -(2**31)], kept="double"),
    Bson("int64 beyond 2^53 and double", [1.5, Int64(2**53 + 1)], kept="json"),
    Bson("decimal128", [*decimals("1.50", "-0.01", "0.00", NINES, "-" + NINES, "1E+3")]),
    Bson("decimal128 and int64", [Decimal128("1.5"), Int64(2**63 - 1), 3]),
    Bson(
        "decimal128 beyond 38 digits",
        decimals(f"{NINES}E+6111", f"-{NINES}E+6111", "1E-6176", "-0", "0E+6111", "1.50", "-0.00"),
        kept="text",
    ),
    Bson("decimal128, not finite", decimals("NaN", "Infinity", "-Infinity", "1.0"), kept="text"),
]

TEXTS = [
    Bson("string", ["", "a\0b", "\0", "null", " x ", "👩‍👩‍👧‍👦", "e\u0301", "x" * 100_000, *PLANES]),
    Bson("objectId", [ID, LAST_ID, ObjectId("018f4d2e7b1a7c3d9e5f0123")], kept="text"),
    Bson(
        "date",
        [
            instant(1970, 1, 1), instant(1969, 12, 31, 23, 59, 59, 999_000), instant(1, 1, 1),
            instant(9999, 12, 31, 23, 59, 59, 999_000), instant(2024, 2, 29, 12, 0, 0, 1_000),
        ],
    ),
    Bson("null", [None, None]),
    Bson("binary, subtype 0", [b"", b"\0", b"\0\xff", bytes(range(256)) * 400]),
    Bson("binary, subtype 4 (UUID)", [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID(int=1)]),
    *(
        Bson(
            f"binary, subtype {subtype}",
            [Binary(b"\xfb\xff" * 8, subtype), Binary(content, subtype)],
            kept="json",
        )
        for subtype, content in [
            (1, b""), (2, b"\1"), (3, b"\0" * 16), (5, b"md5"), (6, b"\1"), (7, b"\1"), (8, b"\1"),
            (9, b"\x03\0\1"), (128, b""), (255, b"\1\2\3"),
        ]
    ),
    Bson("binary, subtype 4 of another length", [Binary(b"", 4), Binary(b"\1" * 15, 4)], kept="json"),
]

NESTED = [
    Bson("object", [{"a": 1, "b": {"c": "x"}}, {"a": None, "b": {"c": "\0"}}, {"a": -1, "b": None}]),
    Bson("object, empty", [{}, {}], kept="json"),
    Bson(
        "object, members of several types",
        [{"a": 1, "b": {}}, {"a": "x", "b": {"": 1}}],
        kept="members",
    ),
    Bson("array", [[1, None, -(2**31)], [], [None]]),
    Bson("array of arrays", [[[1, 2], [], None, [3]], []]),
    Bson("array of objects", [[{"a": 1}, None, {"a": None}], [], None]),
    Bson("array, always empty", [[], []], kept="json"),
    Bson("array of several types", [[1, "x", None, {"a": 1.5}], [True, [ID]]], kept="elements"),
    Bson("several types", [1, "x", 1.5, True, [], {}, ID, Int64(2**53 + 1), "\0"], kept="json"),
]

REST = [
    Bson("regex", [Regex('^"/\\d$', "im"), Regex("", "")], kept="json"),
    Bson("javascript", [Code("f(\"x\")"), Code("")], kept="json"),
    Bson("javascript with scope", [Code("f()", {"x": 1}), Code("", {})], kept="json"),
    Bson("timestamp", [Timestamp(2**32 - 1, 7), Timestamp(0, 0), Timestamp(1, 2**32 - 1)], kept="json"),
    Bson("minKey and maxKey", [MinKey(), MaxKey()], kept="json"),
    Bson("undefined", [Raw(0x06, b"", {"$undefined": True})], kept="raw"),
    Bson("symbol", [Raw(0x0E, text("x\0é"), {"$symbol": "x\0é"})], kept="raw"),
    Bson(
        "dbPointer",
        [
            Raw(
                0x0C, text("db.c") + LAST_ID.binary,
                {"$dbPointer": {"$ref": "db.c", "$id": {"$oid": "f" * 24}}},
            )
        ],
        kept="raw",
    ),
]

TYPES = NUMBERS + TEXTS + NESTED + REST

FIRST, LAST = instant(1, 1, 1), instant(9999, 12, 31, 23, 59, 59, 999_000)

ODD_TYPES = [
    OddType(
        "date",
        instant(2024, 2, 29),
        [
            OddBson(date(-(2**63)), FIRST), OddBson(date(2**63 - 1), LAST),
            OddBson(date(-62_135_596_800_001), FIRST), OddBson(date(253_402_300_800_000), LAST),
        ],
    ),
    OddType(
        "date", dt.date(2024, 2, 29),
        [OddBson(instant(2024, 2, 29, 12), dt.date(2024, 2, 29)), OddBson("29.2.2024", refused=True)],
        declared="date",
    ),
    OddType(
        "double", 7,
        [
            OddBson(1.5, 2), OddBson(-1.5, -2), OddBson(2.0**31, 2**31 - 1), OddBson(-1e300, -(2**31)),
            OddBson(float("nan")), OddBson(float("inf"), 2**31 - 1), OddBson(float("-inf"), -(2**31)),
            OddBson(Int64(2**31), 2**31 - 1), OddBson("x", refused=True), OddBson(True, refused=True),
        ],
        declared="int",
    ),
    OddType(
        "decimal128", Decimal("7.25"),
        [
            OddBson(Decimal128("1.005"), Decimal("1.01")), OddBson(Decimal128("-1.005"), Decimal("-1.01")),
            OddBson(Decimal128("1E+6000"), Decimal("999.99")),
            OddBson(Decimal128("-Infinity"), Decimal("-999.99")),
            OddBson(Decimal128("NaN")), OddBson(0.001, Decimal("0.00")), OddBson({"a": 1}, refused=True),
        ],
        declared="decimal(5, 2)",
    ),
    OddType(
        "int64", 0.5,
        [OddBson(Int64(2**53 + 1), 9007199254740992.0), OddBson(Decimal128("0.1000000000000000001"), 0.1)],
        declared="double",
    ),
]


STANDARD = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


def element(value) -> bytes:
    """The value as the element `v` of a document."""
    if isinstance(value, Raw):
        return bytes([value.kind]) + b"v\0" + value.content
    if isinstance(value, Decimal):
        value = Decimal128(value)
    elif type(value) is dt.date:
        value = instant(value.year, value.month, value.day)
    return encode({"v": value}, codec_options=STANDARD)[4:-1]


# Reads what the lake keeps as JSON. What has no type of the driver's own stays as it is written.
OPTIONS = json_util.JSONOptions(
    uuid_representation=UuidRepresentation.UNSPECIFIED, tz_aware=True, tzinfo=dt.timezone.utc
)


def parsed(text: str):
    """A text as the value that it is extended JSON of."""
    return json_util.loads(text, json_options=OPTIONS)


def expected(case: Bson, value):
    """What has to be in the lake for a value, in `plain`'s form."""
    if value is None:
        return plain(None)
    match case.kept:
        case "double":
            return plain(float(value))
        case "text":
            return plain(str(value))
        case "raw":
            return plain(value.json)
    return plain(value)


def found(case: Bson, value):
    """What is in the lake, in `plain`'s form."""
    if value is None:
        return plain(None)
    match case.kept:
        case "json":
            return plain(parsed(value))
        case "raw":
            return plain(json.loads(value))
        case "same" if "UUID" in case.name:
            return plain(uuid.UUID(bytes=value) if isinstance(value, bytes) else uuid.UUID(str(value)))
        case "members":
            return plain({name: parsed(text) for name, text in value.items()})
        case "elements":
            return plain([None if text is None else parsed(text) for text in value])
    return plain(value)


def plain(value):
    """One form for equal values, that differs for values that are not: a number is not a bool, a
    double is its bits, and decimals are equal if they are the same number."""
    match value:
        case bool() | None | str():
            return repr(value)
        case int() | Decimal():
            return Fraction(value)
        case Decimal128():
            decimal = value.to_decimal()
            return Fraction(decimal) if decimal.is_finite() else repr(value)
        case float():
            return "NaN" if math.isnan(value) else struct.pack("<d", value)
        case dict():
            return {name: plain(member) for name, member in value.items()}
        case list():
            return [plain(member) for member in value]
        case dt.datetime():
            return repr(value.astimezone(dt.timezone.utc))
        case uuid.UUID():
            return repr(value.bytes)
        case Binary() if value.subtype:
            return (value.subtype, bytes(value))
        case bytes():
            return repr(bytes(value))
    return repr(value)


def document(id_: int, *values) -> bytes:
    """A document with a key and an element `v` for each value."""
    body = encode({"_id": id_})[4:-1] + b"".join(map(element, values))
    return struct.pack("<i", len(body) + 5) + body + b"\0"
