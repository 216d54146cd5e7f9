"""PostgreSQL's types that the lake has too: numbers, times, texts, bytes; and arrays with their oddities.

Types that the lake keeps as text are in `postgres_texts`.
"""

from fidelity.cases import Odd, Sql, Type
from fidelity.postgres_texts import TEXTS

AS_IT_IS = "{}"

INTERVAL = (
    "CASE WHEN {0} IS NOT NULL THEN jsonb_build_object("
    "'months', extract(year FROM {0})::int * 12 + extract(month FROM {0})::int,"
    " 'days', extract(day FROM {0})::int,"
    " 'microseconds', extract(hour FROM {0})::bigint * 3600000000"
    " + extract(minute FROM {0})::bigint * 60000000"
    " + (extract(second FROM {0}) * 1000000)::bigint) END"
)

NUMBERS = [
    Type("boolean", ["true", "false"], asked=AS_IT_IS),
    Type("smallint", ["-32768", "32767", "0", "-1"], asked=AS_IT_IS),
    Type("integer", ["-2147483648", "2147483647", "0", "-1"], asked=AS_IT_IS),
    Type(
        "bigint",
        ["-9223372036854775808", "9223372036854775807", "0", "-1", "9007199254740993"],
        asked=AS_IT_IS,
    ),
    Type("oid", ["0", "2147483648", "4294967295"], asked="{}::bigint"),
    Type(
        "real",
        [
            "3.4028235e38", "-3.4028235e38", "1.1754944e-38", "1e-45", "-1e-45", "0.1", "16777217",
            "0", "-0", "NaN", "Infinity", "-Infinity",
        ],
        asked=AS_IT_IS,
    ),
    Type(
        "double precision",
        [
            "1.7976931348623157e308", "-1.7976931348623157e308", "2.2250738585072014e-308", "5e-324",
            "-5e-324", "0.1", "0.30000000000000004", "9007199254740993", "0", "-0", "NaN",
            "Infinity", "-Infinity",
        ],
        asked=AS_IT_IS,
    ),
    Type(
        "numeric(9,2)", ["9999999.99", "-9999999.99", "0.01", "-0.01", "0"], [Odd("NaN")],
        asked=AS_IT_IS,
    ),
    Type("numeric(18,2)", ["9999999999999999.99", "-0.01", "10000"], [Odd("NaN")], asked=AS_IT_IS),
    Type(
        "numeric(38)", ["9" * 38, "-" + "9" * 38, "1" + "0" * 37, "0"], [Odd("NaN")], asked=AS_IT_IS
    ),
    Type(
        "numeric(38,38)", ["0." + "9" * 38, "-0." + "0" * 37 + "1", "0"], [Odd("NaN")],
        asked=AS_IT_IS,
    ),
    Type(
        "numeric(20,10)", ["1234567890.0123456789", "0.00001", "100000000", "-9999999999.9999999999"],
        [Odd("NaN")], asked=AS_IT_IS,
    ),
    Type(
        "numeric", ["12345678.90", "-0.01", "0"],
        [
            Odd("NaN"), Odd("Infinity", "99999999.99"), Odd("-Infinity", "-99999999.99"),
            Odd("1.005", "1.01"), Odd("-1.005", "-1.01"), Odd("0.0049", "0.00"),
            Odd("100000000", "99999999.99"), Odd("-1e100", "-99999999.99"),
        ],
        asked="{}::numeric(10,2)", declared="decimal(10, 2)", arrays=False,
    ),
]

# The years that every reader of the lake can show are 1 to 9999.
FIRST, LAST = "0001-01-01", "9999-12-31"
MIDNIGHT, LAST_MICROSECOND = "00:00:00", "23:59:59.999999"


def odd_times(zone: str) -> list[Odd]:
    first, last = f"{FIRST} {MIDNIGHT}{zone}", f"{LAST} {LAST_MICROSECOND}{zone}"
    return [
        Odd("infinity", last), Odd("-infinity", first), Odd(f"10000-01-01 00:00{zone}", last),
        Odd(f"294276-12-31 23:59:59.999999{zone}", last),
        Odd(f"0001-01-01 00:00{zone} BC", first), Odd(f"0001-12-31 23:59:59.999999{zone} BC", first),
        Odd(f"4713-11-24 00:00{zone} BC", first),
    ]


TIMES = [
    Type(
        "date", [FIRST, LAST, "1969-12-31", "1970-01-01", "2000-02-29", "1582-10-10", "1900-02-28"],
        [
            Odd("infinity", LAST), Odd("-infinity", FIRST), Odd("10000-01-01", LAST),
            Odd("5874897-12-31", LAST), Odd("0001-01-01 BC", FIRST), Odd("0001-12-31 BC", FIRST),
            Odd("0044-03-15 BC", FIRST), Odd("4713-11-24 BC", FIRST),
        ],
        asked=AS_IT_IS,
    ),
    Type(
        "time", ["00:00", LAST_MICROSECOND, "00:00:00.000001", "12:00"],
        [Odd("24:00", LAST_MICROSECOND)], asked=AS_IT_IS,
    ),
    Type(
        "time(0)", ["00:00", "23:59:59"], [Odd("23:59:59.5", Sql(f"time '{LAST_MICROSECOND}'"))],
        asked=AS_IT_IS,
    ),
    Type(
        "timestamp",
        [
            f"{FIRST} {MIDNIGHT}", f"{LAST} {LAST_MICROSECOND}", "1969-12-31 23:59:59.999999",
            "1970-01-01 00:00", "2000-02-29 12:00:00.000001", "1582-10-10 00:00",
        ],
        odd_times(""), asked=AS_IT_IS,
    ),
    Type("timestamp(3)", ["2024-02-29 23:59:59.999", "2024-12-31 23:59:59.9999"], asked=AS_IT_IS),
    Type(
        "timestamptz",
        [
            f"{FIRST} {MIDNIGHT}Z", f"{LAST} {LAST_MICROSECOND}Z", "1969-12-31 23:59:59.999999Z",
            "2024-03-31 02:30+05:45", "2024-03-31 02:30 Europe/Berlin", "2024-10-27 02:30-15:59",
        ],
        odd_times("Z"), asked=AS_IT_IS,
    ),
    Type(
        "interval",
        [
            "178000000 years", "-178000000 years", "2147483647 days", "-2147483648 days", "0",
            "-1 year -2 months +3 days -04:05:06.000007", "25:00:00.000001",
            "2562047788:00:54.775807", "-2562047788:00:54.775807", "1 month -1 day", "P1Y2M3DT4H5M6S",
        ],
        asked=INTERVAL,
    ),
    Type("interval year to month", ["3 years 4 months"], asked=INTERVAL),
]

# The first and the last code point of each of Unicode's planes, and one in between. PostgreSQL's
# texts hold no U+0000; the surrogates U+D800 to U+DFFF are no characters.
PLANES = [
    "".join(chr((plane << 16) + at) for at in (1, 0x7FFF, 0xFFFF)) for plane in range(17)
]

CHARACTERS = [
    Type(
        "text",
        [
            "", " x ", "NULL", "null", "\\N", "a\tb\nc\r\\", "'\"`$", "Ünï 漢字 😀", "e\u0301",
            "\u202eright to left", "\ud7ff\ue000", "\ufeffmark", "👩‍👩‍👧‍👦", "x" * 100_000,
            Sql("repeat('long \U0001f30a', 50000)"), *PLANES,
        ],
    ),
    Type("varchar", ["", "é", "\U0010ffff"]),
    Type("varchar(10)", ["0123456789", "é", "ÄÖÜäöüß€漢😀", ""]),
    # The cast to text would drop the blanks that the type pads with.
    Type("char(5)", ["ab", "     ", "abcde", "漢字"], asked="rpad({}::text, 5)"),
    Type("name", ["pg_catalog", "", "x" * 63, "é" * 31]),
    Type('"char"', ["a", "", "~", "\\001", "\\377"]),
    Type("bytea", ["", "\\x00", "\\x00ff00", "\\xdeadbeef", "\\x" + "00ff" * 40_000], asked=AS_IT_IS),
    Type(
        "uuid",
        [
            "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "018f4d2e-7b1a-7c3d-9e5f-0123456789ab", "{A0EEBC999C0B4EF8BB6D6BB9BD380A11}",
        ],
        asked=AS_IT_IS,
    ),
]

# Arrays whose form or whose elements the lake's lists do not have. Arrays of every other type are
# made from that type's own values.
ARRAYS = [
    Type(
        "integer[]", ["{}", "{1,NULL,-2147483648}", "{NULL}", "{NULL,NULL}", "[1:2]={7,8}"],
        [
            Odd("{{1,2},{3,4}}"), Odd("{{1},{NULL}}"), Odd("{{{1,2}},{{3,4}}}"),
            Odd("[0:1]={1,2}", "{1,2}"), Odd("[-5:-4]={1,NULL}", "{1,NULL}"),
            Odd("[2:3]={1,2}", "{1,2}"), Odd("[2:2][3:4]={{1,2}}"),
        ],
        asked=AS_IT_IS, arrays=False,
    ),
    Type(
        "text[]", ["{}", '{"",NULL,"a,\\"b\\"","NULL"}', '{"{nested}"}', "{漢,😀}"],
        [Odd("{{a,b},{c,NULL}}"), Odd("[0:0]={x}", "{x}")], asked=AS_IT_IS, arrays=False,
    ),
    Type(
        "date[]", ["{0001-01-01,NULL,9999-12-31}"],
        [
            Odd("{infinity,2020-01-01}", "{9999-12-31,2020-01-01}", "{NULL,2020-01-01}"),
            Odd("{NULL,-infinity,0044-03-15 BC}", "{NULL,0001-01-01,0001-01-01}", "{NULL,NULL,NULL}", 2),
        ],
        asked=AS_IT_IS, arrays=False,
    ),
    Type(
        "timestamptz[]", ["{2024-01-01 00:00Z,NULL}"],
        [
            Odd(
                "{infinity,NULL}", '{"9999-12-31 23:59:59.999999Z",NULL}', "{NULL,NULL}",
            ),
        ],
        asked=AS_IT_IS, arrays=False,
    ),
    Type(
        "numeric(5,2)[]", ["{123.45,NULL,-999.99}"],
        [Odd("{NaN,1}", "{NULL,1}", "{NULL,1}")], asked=AS_IT_IS, arrays=False,
    ),
    Type(
        "time[]", ["{00:00,NULL}"],
        [Odd("{24:00,12:00}", "{23:59:59.999999,12:00}", "{NULL,12:00}")], asked=AS_IT_IS,
        arrays=False,
    ),
]

TYPES = NUMBERS + TIMES + CHARACTERS + TEXTS + ARRAYS
