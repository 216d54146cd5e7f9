//! Every type, with extreme values, against PostgreSQL's own text.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use polder_core::LakeType;

use super::support::{Database, Vary, read, request};

/// A value as PostgreSQL prints it with `TimeZone` UTC.
pub(super) fn text(data_type: &LakeType, array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    Some(match data_type {
        LakeType::Boolean => array.as_boolean().value(row).to_string(),
        LakeType::Int => array.as_primitive::<Int32Type>().value(row).to_string(),
        LakeType::Long => array.as_primitive::<Int64Type>().value(row).to_string(),
        LakeType::Float => number(f64::from(array.as_primitive::<Float32Type>().value(row)), true),
        LakeType::Double => number(array.as_primitive::<Float64Type>().value(row), false),
        LakeType::Decimal { .. } => array.as_primitive::<Decimal128Type>().value_as_string(row),
        LakeType::Date => {
            let days = array.as_primitive::<Date32Type>().value_as_date(row).expect("date");
            days.format("%Y-%m-%d").to_string()
        }
        LakeType::Time => {
            let time = array.as_primitive::<Time64MicrosecondType>().value_as_time(row);
            trimmed(&time.expect("time").format("%H:%M:%S%.6f").to_string())
        }
        LakeType::Timestamp | LakeType::Timestamptz => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            let time = chrono::DateTime::from_timestamp_micros(micros).expect("time");
            let zone = if *data_type == LakeType::Timestamptz { "+00" } else { "" };
            trimmed(&time.format("%Y-%m-%d %H:%M:%S%.6f").to_string()) + zone
        }
        LakeType::String => array.as_string::<i32>().value(row).to_owned(),
        LakeType::Binary => hex(array.as_binary::<i32>().value(row)),
        LakeType::Uuid => uuid::Uuid::from_slice(array.as_fixed_size_binary().value(row))
            .expect("uuid")
            .to_string(),
        LakeType::List(element) => {
            let list = array.as_list::<i32>().value(row);
            let element = |index| text(&element.data_type, &list, index).unwrap_or("NULL".into());
            let elements: Vec<String> = (0..list.len()).map(element).collect();
            format!("{{{}}}", elements.join(","))
        }
        LakeType::Struct(_) => {
            let parts = array.as_struct();
            let months = parts.column(0).as_primitive::<Int32Type>().value(row);
            let days = parts.column(1).as_primitive::<Int32Type>().value(row);
            let micros = parts.column(2).as_primitive::<Int64Type>().value(row);
            format!("{months} {days} {micros}")
        }
    })
}

/// Bits, so that −0 and NaN count too.
fn number(value: f64, single: bool) -> String {
    format!("{:016x}", if single { f64::from(value as f32) } else { value }.to_bits())
}

fn trimmed(text: &str) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

const INTERVAL: &str = "extract(year FROM v) * 12 + extract(month FROM v) || ' ' ||
    extract(day FROM v) || ' ' || (extract(hour FROM v) * 3600000000
    + extract(minute FROM v) * 60000000 + extract(microseconds FROM v))::int8";

/// SQL type, the lake type it becomes, and values as SQL; `null` is tried with all of them.
const CASES: &[(&str, &str, &[&str])] = &[
    ("bool", "boolean", &["true", "false"]),
    ("int2", "int", &["-32768", "32767", "0"]),
    ("int4", "int", &["-2147483648", "2147483647"]),
    ("int8", "long", &["-9223372036854775808", "9223372036854775807"]),
    ("oid", "long", &["0", "4294967295"]),
    ("float4", "float", &["'NaN'", "'-Infinity'", "'3.4028235e38'", "'1e-45'", "'-0'", "0.1"]),
    ("float8", "double", &["'NaN'", "'Infinity'", "'1.7976931348623157e308'", "'5e-324'", "'-0'"]),
    (
        "numeric(38,10)",
        "decimal(38, 10)",
        &["9999999999999999999999999999.9999999999", "-0.0000000001", "0", "10000", "1.5"],
    ),
    ("numeric(18,2)", "decimal(18, 2)", &["9999999999999999.99", "-9999999999999999.99", "0.01"]),
    ("numeric(38,38)", "decimal(38, 38)", &["0.00000000000000000000000000000000000001"]),
    ("numeric(5)", "decimal(5, 0)", &["99999", "-1"]),
    ("numeric(39,1)", "string", &["99999999999999999999999999999999999999.9"]),
    ("numeric(3,-2)", "string", &["12300"]),
    ("numeric(3,5)", "string", &["0.00123"]),
    (
        "numeric",
        "string",
        &[
            "1.10",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "10::numeric ^ 1000",
            "-(10::numeric ^ 1003)",
            "1e-1000",
            "0.000",
            "-0.00012345",
            "10000",
            "12345678.9",
            "-99999.99990000",
            "1.5e16000",
        ],
    ),
    ("text", "string", &["''", "'naïve \u{1F30A}'", "repeat('x', 100000)"]),
    ("varchar(5)", "string", &["'abc'"]),
    ("char(5)", "string", &["'ab'"]),
    ("\"char\"", "string", &["'x'"]),
    ("name", "string", &["'n'"]),
    ("xml", "string", &["'<a>b</a>'"]),
    ("bytea", "binary", &["'\\x'", "'\\x00ff'"]),
    (
        "uuid",
        "uuid",
        &["'00000000-0000-0000-0000-000000000000'", "'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'"],
    ),
    ("date", "date", &["'0001-01-01'", "'9999-12-31'", "'1999-12-31'", "'1970-01-01'"]),
    ("time", "time", &["'00:00'", "'23:59:59.999999'", "'12:00:00.5'"]),
    ("timetz", "string", &["'23:59:59.999999-15:59'", "'24:00:00+00'"]),
    (
        "timestamp",
        "timestamp",
        &["'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'"],
    ),
    (
        "timestamptz",
        "timestamptz",
        &["'0001-01-01 00:00+00'", "'9999-12-31 23:59:59.999999+00'", "'2024-02-29 12:00+05:30'"],
    ),
    (
        "interval",
        "struct<months: int, days: int, microseconds: long>",
        &[
            "'178000000 years'",
            "'-1 mon 2147483647 days -0.000001 sec'",
            "'2562047788:00:54.775807'",
        ],
    ),
    ("json", "string", &["'{\"a\" :  1, \"a\": null}'", "'null'"]),
    ("jsonb", "string", &["'{\"b\": [1.10, \"\u{e9}\"]}'", "'null'", "'1e400'"]),
    ("mood", "string", &["'so so'", "'h\u{e4}ppy'"]),
    ("price", "decimal(9, 3)", &["999999.999"]),
    ("tagged", "list<decimal(9, 3)>", &["'{1.5,NULL}'"]),
    ("pair", "string", &["ROW(1, 'a b')"]),
    (
        "inet",
        "string",
        &[
            "'10.0.0.1/8'",
            "'255.255.255.255'",
            "'0.0.0.0/0'",
            "'::'",
            "'::1'",
            "'::2:0'",
            "'::1:2:3'",
            "'::ffff:1.2.3.4/96'",
            "'::ffff:0:0'",
            "'::fffe:1.2.3.4'",
            "'1::'",
            "'1:0:0:2:0:0:0:3'",
            "'1:0:0:2:3:0:0:4/64'",
            "'1:0:2:3:4:5:6:7'",
            "'2001:db8:AB:0cd::f'",
        ],
    ),
    ("cidr", "string", &["'10.0.0.0/8'", "'2001:db8::/32'", "'::/0'", "'::1.2.3.4'"]),
    ("macaddr", "string", &["'08:00:2b:01:02:03'"]),
    ("int4range", "string", &["'[1,5)'", "'empty'"]),
    ("tstzrange", "string", &["'[2020-01-01 00:00+00,)'"]),
    ("int4multirange", "string", &["'{[1,2),[5,6)}'"]),
    ("bit(3)", "string", &["B'101'"]),
    ("varbit", "string", &["B''"]),
    ("money", "string", &["12.34"]),
    ("tsvector", "string", &["'a b'"]),
    ("point", "string", &["'(1.5,-2)'"]),
    ("regclass", "string", &["'pg_class'"]),
    ("xid8", "string", &["'18446744073709551615'"]),
    ("int2vector", "string", &["'1 2'"]),
    ("int4[]", "list<int>", &["'{1,NULL,3}'", "'{}'"]),
    ("text[]", "list<string>", &["'{a,b}'", "array['\u{e9}']"]),
    ("numeric(6,2)[]", "list<decimal(6, 2)>", &["'{1.10,NULL,9999.99}'"]),
    ("numeric[]", "list<string>", &["'{1.10,NaN}'"]),
    ("jsonb[]", "list<string>", &["array['true', null, '1.10'::jsonb]"]),
    ("uuid[]", "list<uuid>", &["'{00000000-0000-0000-0000-000000000001}'"]),
    ("timestamptz[]", "list<timestamptz>", &["array['2020-01-01 00:00:00.5+00'::timestamptz]"]),
    ("bool[]", "list<boolean>", &["array[]::bool[]"]),
    ("inet[]", "list<string>", &["'{10.0.0.1}'"]),
    ("mood[]", "list<string>", &["array['h\u{e4}ppy']::mood[]"]),
    ("oid[]", "list<long>", &["'{4294967295}'"]),
];

#[tokio::test]
async fn every_type_is_read_as_postgresql_prints_it() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TYPE mood AS ENUM ('so so', 'häppy');
             CREATE DOMAIN small_price AS numeric(9,3); CREATE DOMAIN price AS small_price;
             CREATE DOMAIN tagged AS price[];
             CREATE TYPE pair AS (a int, b text)",
        )
        .await;
    let source = database.source();
    for (index, (sql_type, lake_type, values)) in CASES.iter().enumerate() {
        let table = format!("case_{index}");
        database
            .run(&format!("CREATE TABLE {table} (v {sql_type}); INSERT INTO {table} VALUES (null)"))
            .await;
        for value in *values {
            database.run(&format!("INSERT INTO {table} VALUES ({value})")).await;
        }
        let shown = match *sql_type {
            "interval" => INTERVAL,
            "float4" | "float8" => "encode(float8send(v), 'hex')",
            "timestamptz[]" => "translate(v::text, '\"', '')",
            // The cast of an inet always shows its mask, an array's own text does not.
            "inet[]" => "v::text[]::text",
            // Padding is part of the value; PostgreSQL's cast to text takes it off.
            "char(5)" => "rpad(v::text, 5)",
            _ => "v::text",
        };
        database.run("SET TimeZone = 'UTC'").await;
        let expected: Vec<Option<String>> = database
            .texts(&format!("SELECT {shown} FROM {table} ORDER BY ctid"))
            .await
            .into_iter()
            .map(|mut row| row.remove(0))
            .collect();
        let found = read(&source, request(&table)).await.expect(sql_type);
        assert_eq!(found.schema.fields[0].data_type.to_string(), *lake_type, "{sql_type}");
        assert_eq!(found.texts("v"), expected, "{sql_type}");
    }
}

#[tokio::test]
async fn declared_types_are_exact_or_refused() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (i int4, n numeric, f float4, s text, l int4[]);
             INSERT INTO t VALUES (7, 1.5, 0.1, 'ab', '{1,2}')",
        )
        .await;
    let source = database.source();
    let declared = [
        ("i", "long"),
        ("n", "decimal(38, 10)"),
        ("f", "double"),
        ("s", "binary"),
        ("l", "string"),
    ];
    let found = read(&source, request("t").types(&declared)).await.expect("read");
    assert_eq!(found.texts("i"), [Some("7".to_owned())]);
    assert_eq!(found.texts("n"), [Some("1.5000000000".to_owned())]);
    assert_eq!(found.texts("f"), [Some(number(f64::from(0.1_f32), false))]);
    assert_eq!(found.texts("s"), [Some("\\x6162".to_owned())]);
    assert_eq!(found.texts("l"), [Some("{1,2}".to_owned())]);
    let mut itself = request("t");
    itself.types.insert("l".to_owned(), LakeType::list_of(LakeType::Int));
    let itself = read(&source, itself).await.expect("a list as what it is");
    assert_eq!(itself.texts("l"), [Some("{1,2}".to_owned())]);
    for (column, declared) in [("n", "long"), ("s", "date"), ("l", "int"), ("i", "boolean")] {
        let error = read(&source, request("t").types(&[(column, declared)])).await.err();
        let error = error.expect("refused");
        assert_eq!(error.code(), polder_core::ErrorCode::SpecInvalid, "{column} as {declared}");
        assert!(error.hint_text().expect("hint").contains("string"), "{error:?}");
    }
    database.run("INSERT INTO t (n) VALUES (1.00000000001)").await;
    let error = read(&source, request("t").types(&[("n", "decimal(38, 10)")])).await.err();
    assert_eq!(error.expect("refused").code(), polder_core::ErrorCode::SourceUnrepresentable);
}
