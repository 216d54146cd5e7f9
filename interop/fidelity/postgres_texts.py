"""PostgreSQL's types that the lake keeps as text, digit for digit as the server prints them."""

from fidelity.cases import Sql, Type

# What the tests create before anything else.
DEFINITIONS = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('happy', 'très "sad"', '');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN short AS varchar(3);
CREATE DOMAIN price AS numeric(10, 2) DEFAULT 0;
CREATE DOMAIN any_number AS numeric;
CREATE DOMAIN positive_again AS positive;
CREATE TYPE pair AS (number integer, word text);
CREATE TYPE nest AS (one pair, many pair[], at timestamptz);
CREATE TYPE float_range AS RANGE (subtype = double precision);
CREATE TABLE defaults (n integer DEFAULT 7, a integer, b integer);
CREATE STATISTICS related (ndistinct, dependencies, mcv) ON a, b FROM defaults;
INSERT INTO defaults (a, b) SELECT i % 10, i % 20 FROM generate_series(1, 1000) AS i;
ANALYZE defaults;
"""

# Types of `pg_type` that no value can be given: `gtsvector` lives in indexes alone, and the
# summaries in BRIN's.
WITHOUT_VALUES = {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"}

NUMBERS = [
    Type(
        "numeric",
        [
            "NaN", "Infinity", "-Infinity", "0", "0.000", "-0", "1e-30", "1." + "0" * 20, "1e131071",
            "9" * 200, "-" + "9" * 131_072, "0." + "0" * 16_382 + "1",
            # 147,455 digits: the most PostgreSQL stores, 131,072 before the point and 16,383 after.
            "9" * 131_072 + "." + "9" * 16_383, "-1" + "0" * 131_071 + "." + "0" * 16_382 + "1",
        ],
    ),
    Type("numeric(50,5)", ["9" * 45 + ".99999", "-0.00001", "NaN"]),
    Type("numeric(5,-2)", ["1234567", "-9999900", "49"]),
    Type("numeric(3,5)", ["0.00999", "-0.00001"]),
    Type("money", ["-92233720368547758.08", "92233720368547758.07", "0", "0.01"]),
]

JSON = [
    Type(
        "json",
        [
            '{ "b":1,  "a": [null] }', '"x"', "null", "{}", "[]", " 1 ", '{"a":1,"a":2}',
            '"\\u0000"', '{"\\u0000": "\\ud83d\\ude00"}', '"\\ud800"', "1e400", "-0.0",
            "12345678901234567890.123456789", '"' + "é" * 50_000 + '"', '[[[[["deep"]]]]]',
            '"' + "".join(f"\\u{high:04x}\\udc00" for high in range(0xD800, 0xDC00, 64)) + '"',
        ],
    ),
    Type(
        "jsonb",
        [
            '{ "b":1e400,  "a": [null] }', "null", '"x"', "{}", "[]", "1.000", "-0.0",
            '{"a":1,"a":2}', '"\\ud83d\\ude00"', '"\\u0001"', '{"":"\\u007f"}', "true",
            "12345678901234567890.123456789", '[1, [2, [3, {"x": [4]}]]]',
        ],
    ),
    Type("jsonpath", ["$", "$.a[*] ? (@.b > 1)", "strict $.\"x y\"", "$.**.size()", "lax $[0 to last]"]),
    Type(
        "xml",
        [
            '<a b="c">é</a>', "<a/>", "text only", "<!-- c --><a>&lt;😀</a>", "<a><![CDATA[<]]></a>",
        ],
    ),
    Type("hstore", ["", '"a"=>NULL', '"a b"=>"c\\"d", "é"=>""']),
]

NETWORK = [
    Type(
        "inet",
        [
            "0.0.0.0", "255.255.255.255", "203.0.113.1/24", "10.0.0.1/0", "::", "::1", "2001:db8::1",
            "2001:db8::1/64", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::ffff:1.2.3.4",
            "::1.2.3.4", "1:0:0:2:0:0:0:3", "0:0:1::", "64:ff9b::192.0.2.33/96",
        ],
    ),
    Type("cidr", ["0.0.0.0/0", "10.0.0.0/8", "192.168.1.1/32", "::/0", "2001:db8::/32", "::1/128"]),
    Type("macaddr", ["00:00:00:00:00:00", "08:00:2b:01:02:03", "ffffffffffff"]),
    Type("macaddr8", ["00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05", "ffffffffffffffff"]),
]

BITS = [
    Type("bit(1)", ["0", "1"]),
    Type("bit(9)", ["000000000", "111111111", "101010101"]),
    Type("bit varying", ["", "0", "10110", "1" * 10_000]),
    Type("bit varying(8)", ["10110", "00000000", ""]),
]

GEOMETRY = [
    Type("point", ["(1.5,-2)", "(0,-0)", "(1e308,5e-324)", "(NaN,Infinity)", "(0.1,0.30000000000000004)"]),
    Type("line", ["{1,-1,0}", "{0,1,2.5}", "{NaN,1,Infinity}"]),
    Type("lseg", ["[(0,0),(1,1)]", "[(-1e10,0.1),(NaN,3)]"]),
    Type("box", ["(1,1),(0,0)", "(Infinity,Infinity),(-Infinity,-Infinity)"], arrays=True),
    Type("path", ["[(0,0),(1,1),(2,0)]", "((0,0),(1,1),(2,0))", "[(1,2)]"]),
    Type("polygon", ["((0,0),(1,1),(2,0))", "((0.1,0.2))"]),
    Type("circle", ["<(0,0),0>", "<(1.5,-2),Infinity>", "<(0.1,0.2),1e-300>"]),
]

SEARCH = [
    Type("tsvector", ["", "a:1 b:2A", "'it''s':3,4B 'é':16383", "'x y' '\\\\'", "fat:1,2,3C rat"]),
    Type("tsquery", ["", "a & b", "!(a | b) <-> c:*A", "'it''s' <3> 'é'", "a:AB & !b"]),
]

IDENTIFIERS = [
    Type("xid", ["0", "3", "4294967295"]),
    Type("xid8", ["0", "18446744073709551615", "4294967296"]),
    Type("cid", ["0", "4294967295"]),
    Type("tid", ["(0,0)", "(4294967295,65535)"]),
    Type("pg_lsn", ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    Type("pg_snapshot", ["10:20:10,14,15", "1:1:"]),
    Type("txid_snapshot", ["10:20:10,14,15", "1:1:"]),
    Type("regclass", ["pg_class", "0", "4294967295", '"defaults"']),
    Type("regtype", ["integer", "timestamp with time zone", "0", "text[]"]),
    Type("regproc", ["pg_catalog.now", "0"]),
    Type("regprocedure", ["abs(integer)", "0"]),
    Type("regoper", ["pg_catalog.^@", "0"]),
    Type("regoperator", ["+(integer,integer)", "0"]),
    Type("regrole", ["postgres", "0"]),
    Type("regnamespace", ["pg_catalog", "0"]),
    Type("regconfig", ["english", "0"]),
    Type("regdictionary", ["simple", "0"]),
    Type("regcollation", ['"C"', "0"]),
    Type("refcursor", ["", "my cursor"]),
    Type("aclitem", ["postgres=arwdDxt/postgres", "=r/postgres"]),
    Type("int2vector", ["", "1 2 -3", "32767"]),
    Type("oidvector", ["", "1 4294967295"]),
]

# Values that the server makes of a table's definition and its statistics.
INTERNAL = [
    Type("pg_node_tree", [Sql("(SELECT adbin FROM pg_attrdef LIMIT 1)")], arrays=False),
    Type("pg_ndistinct", [Sql("(SELECT stxdndistinct FROM pg_statistic_ext_data)")], arrays=False),
    Type("pg_dependencies", [Sql("(SELECT stxddependencies FROM pg_statistic_ext_data)")], arrays=False),
    Type("pg_mcv_list", [Sql("(SELECT stxdmcv FROM pg_statistic_ext_data)")], arrays=False),
]

RANGES = [
    Type("int4range", ["empty", "[1,10)", "(,5)", "[-2147483648,2147483647)", "(,)", "[3,3]"]),
    Type("int8range", ["empty", "[-9223372036854775808,0]", "(,9223372036854775807)", "(,)"]),
    Type("numrange", ["empty", "[1.10,2.2)", "(,1e100]", "[0,Infinity]", "[NaN,NaN]"]),
    Type("tsrange", ["empty", "[infinity,infinity]", "(-infinity,2024-01-01 00:00:00.000001)", "(,)"]),
    Type("tstzrange", ["empty", "[2024-01-01 00:00Z,infinity)", "[0044-03-15 00:00Z BC,)", "(,)"]),
    Type("daterange", ["empty", "[2024-01-01,2024-02-29]", "(,infinity)", "[4713-11-24 BC,5874897-12-31)"]),
    Type("float_range", ["[NaN,NaN]", "(-Infinity,5e-324]", "empty"], made="a range of `double precision`"),
    Type("int4multirange", ["{}", "{[1,3),[5,7)}", "{(,)}"]),
    Type("int8multirange", ["{}", "{(,0),[9223372036854775806,9223372036854775807)}"]),
    Type("nummultirange", ["{}", "{[1.10,2.2),(3,]}"]),
    Type("tsmultirange", ["{}", "{[2024-01-01,infinity)}"]),
    Type("tstzmultirange", ["{}", "{[-infinity,2024-01-01 00:00Z),[2025-01-01 00:00Z,)}"]),
    Type("datemultirange", ["{}", "{[2024-01-01,2024-02-29],[2025-01-01,)}"]),
]

ZONED = [
    Type(
        "timetz",
        ["23:59:59.999999-15:59", "00:00+15:59", "24:00:00Z", "12:00:00.000001+05:45", "00:00:00+00:00:01"],
    ),
]

MADE_BY_USERS = [
    Type("mood", ["happy", 'très "sad"', ""], made="an enum"),
    Type("positive", ["1", "2147483647"], asked="{}::integer", made="a domain over `integer`"),
    Type("positive_again", ["1"], asked="{}::integer", made="a domain over a domain"),
    Type("short", ["", "abc", "漢字😀"], made="a domain over `varchar(3)`"),
    Type("price", ["0", "99999999.99", "-0.01"], asked="{}::numeric", made="a domain over `numeric(10,2)`"),
    Type("any_number", ["1e200", "NaN", "0.10"], made="a domain over `numeric`"),
    Type("citext", ["", "Straße", "ÀÉ"]),
    Type("pair", ["(1,\"a,b\")", "(,)", '(-2147483648,"")', '(0,"""\\\\")'], made="a composite"),
    Type(
        "nest",
        [
            Sql("ROW(ROW(1, 'x'), ARRAY[ROW(2, NULL)::pair, NULL], 'infinity')::nest"),
            Sql("ROW(NULL, '{}', NULL)::nest"),
        ],
        made="a composite of composites",
    ),
]

TEXTS = (
    NUMBERS + JSON + NETWORK + BITS + GEOMETRY + SEARCH + IDENTIFIERS + INTERNAL + RANGES + ZONED
    + MADE_BY_USERS
)
