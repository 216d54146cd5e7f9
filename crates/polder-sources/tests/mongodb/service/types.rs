//! Every BSON type, with extreme values.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, JavaScriptCodeWithScope, Timestamp, doc};
use serde_json::json;

use super::support::Database;
use super::swap::Swap;
use crate::reading::{NULL, read, request};

fn binary(subtype: BinarySubtype, bytes: &[u8]) -> Bson {
    Binary { subtype, bytes: bytes.to_vec() }.into()
}

fn decimals(texts: &[&str]) -> Vec<Bson> {
    texts.iter().map(|text| Bson::Decimal128(text.parse().expect("decimal"))).collect()
}

fn dates(millis: &[i64]) -> Vec<Bson> {
    millis.iter().map(|millis| DateTime::from_millis(*millis).into()).collect()
}

/// A type that the driver makes from extended JSON only.
fn extended(json: serde_json::Value) -> Bson {
    Bson::try_from(json).expect("extended JSON")
}

/// The values of one column, the lake type it becomes, and the values as they are read.
struct Case {
    values: Vec<Bson>,
    lake_type: &'static str,
    shown: Vec<String>,
}

fn case(values: impl Into<Vec<Bson>>, lake_type: &'static str, shown: &[&str]) -> Case {
    let shown = shown.iter().map(|&text| text.to_owned()).collect();
    Case { values: values.into(), lake_type, shown }
}

fn numbers() -> Vec<Case> {
    let (low, high) = (f64::MIN_POSITIVE.next_down(), f64::MAX);
    vec![
        case([true.into(), false.into()], "boolean", &["true", "false"]),
        case([i32::MIN.into(), i32::MAX.into()], "int", &["-2147483648", "2147483647"]),
        case(
            [i64::MIN.into(), i64::MAX.into(), 0_i32.into()],
            "long",
            &["-9223372036854775808", "9223372036854775807", "0"],
        ),
        case(
            [high.into(), 5e-324.into(), low.into(), (-0.0).into(), 0.1.into()],
            "double",
            &["1.7976931348623157e308", "5e-324", "2.225073858507201e-308", "-0.0", "0.1"],
        ),
        case(
            [f64::NAN.into(), f64::INFINITY.into(), f64::NEG_INFINITY.into()],
            "double",
            &["NaN", "inf", "-inf"],
        ),
        case(
            decimals(&["1.50", "-0.01", "9999999999999999999999999999999999", "-0", "1E+3"]),
            "decimal(36, 2)",
            &["1.50", "-0.01", "9999999999999999999999999999999999.00", "0.00", "1000.00"],
        ),
        case(
            decimals(&["9.999999999999999999999999999999999E+6144", "1E-6176", "-0", "1.50"]),
            "string(Decimal)",
            &["9.999999999999999999999999999999999E+6144", "1E-6176", "-0", "1.50"],
        ),
    ]
}

fn texts_and_times() -> Vec<Case> {
    let long = "🌊".repeat(100_000);
    vec![
        case(
            [
                "".into(),
                "a\0b".into(),
                "naïve \u{1F30A}".into(),
                "null".into(),
                long.clone().into(),
            ],
            "string",
            &["", "a\0b", "naïve \u{1F30A}", "null", &long],
        ),
        case(
            [ObjectId::from_bytes([0; 12]).into(), ObjectId::from_bytes([0xFF; 12]).into()],
            "string(ObjectId)",
            &["000000000000000000000000", "ffffffffffffffffffffffff"],
        ),
        case(
            dates(&[0, -1, -62_135_596_800_000, 253_402_300_799_999]),
            "timestamptz",
            &[
                "1970-01-01T00:00:00Z",
                "1969-12-31T23:59:59.999Z",
                "0001-01-01T00:00:00Z",
                "9999-12-31T23:59:59.999Z",
            ],
        ),
        case(
            [binary(BinarySubtype::Generic, b""), binary(BinarySubtype::Generic, &[0, 0xFF])],
            "binary",
            &["0x", "0x00ff"],
        ),
        case(
            [binary(BinarySubtype::Uuid, &[0; 16]), binary(BinarySubtype::Uuid, &[0xAB; 16])],
            "uuid",
            &["00000000-0000-0000-0000-000000000000", "abababab-abab-abab-abab-abababababab"],
        ),
        case([Bson::Null], "string", &[NULL]),
    ]
}

/// Types that only text keeps: extended JSON.
fn kept_as_text() -> Vec<Case> {
    let text = |value: Bson, shown: &str| case([value], "string(Json)", &[shown]);
    let scope = JavaScriptCodeWithScope { code: "f(\"x\")".into(), scope: doc! { "x": 1_i32 } };
    let regex = r#"{"$regularExpression":{"pattern":"^\"/\\d$","options":"im"}}"#;
    vec![
        text(
            binary(BinarySubtype::UuidOld, &[0; 16]),
            r#"{"$binary":{"base64":"AAAAAAAAAAAAAAAAAAAAAA==","subType":"03"}}"#,
        ),
        text(
            binary(BinarySubtype::Md5, &[0xFB, 0xFF]),
            r#"{"$binary":{"base64":"+/8=","subType":"05"}}"#,
        ),
        text(
            binary(BinarySubtype::UserDefined(0x80), &[1, 2, 3]),
            r#"{"$binary":{"base64":"AQID","subType":"80"}}"#,
        ),
        text(
            binary(BinarySubtype::BinaryOld, &[1]),
            r#"{"$binary":{"base64":"AQ==","subType":"02"}}"#,
        ),
        text(extended(serde_json::from_str(regex).expect("json")), regex),
        text(Bson::JavaScriptCode("f(\"x\")".into()), r#"{"$code":"f(\"x\")"}"#),
        text(scope.into(), r#"{"$code":"f(\"x\")","$scope":{"x":1}}"#),
        text(
            Timestamp { time: u32::MAX, increment: 7 }.into(),
            r#"{"$timestamp":{"t":4294967295,"i":7}}"#,
        ),
        text(Bson::MinKey, r#"{"$minKey":1}"#),
        text(Bson::MaxKey, r#"{"$maxKey":1}"#),
        case([json_document(), doc! {}.into()], "string(Json)", &[r#"{"":1}"#, "{}"]),
        case([Bson::Array(vec![])], "string(Json)", &["[]"]),
    ]
}

/// A member without a name, which no struct can have.
fn json_document() -> Bson {
    extended(json!({ "": 1 }))
}

fn nested() -> Vec<Case> {
    vec![
        case(
            [doc! { "a": { "b": [1_i32, Bson::Null] } }.into(), doc! { "c": "x" }.into()],
            "struct<a: struct<b: list<int>>, c: string>",
            &["{a: {b: [1, ∅]}, c: ∅}", "{a: ∅, c: x}"],
        ),
        case(
            [
                Bson::from(vec![doc! { "n": 1_i32 }, doc! { "n": 2_i64, "t": "x" }]),
                Bson::Array(vec![]),
            ],
            "list<struct<n: long, t: string>>",
            &["[{n: 1, t: ∅}, {n: 2, t: x}]", "[]"],
        ),
        case([Bson::from(vec![vec![1_i32], vec![]])], "list<list<int>>", &["[[1], []]"]),
    ]
}

#[tokio::test]
async fn every_type_is_read_as_it_is_stored() {
    let database = Database::new().await;
    let source = database.source();
    let cases = [numbers(), texts_and_times(), kept_as_text(), nested()];
    for (index, case) in cases.into_iter().flatten().enumerate() {
        let Case { values, lake_type, shown } = case;
        let name = format!("case_{index}");
        let place = format!("{lake_type} {values:.80?}");
        let row = |(id, value): (usize, Bson)| doc! { "_id": id as i32, "v": value };
        let mut documents: Vec<_> = values.into_iter().enumerate().map(row).collect();
        documents.push(doc! { "_id": -1 });
        database.insert(&name, documents).await;
        let found = read(&source, request(&name)).await.expect(&place);
        assert_eq!(found.types(), format!("_id int, v {lake_type}"), "{place}");
        let mut expected = shown;
        expected.push(NULL.to_owned());
        assert_eq!(found.shown("v"), expected, "{place}");
    }
}

#[tokio::test]
async fn types_that_servers_no_longer_take_are_read_too() {
    let pointed = r#"{"$dbPointer":{"$ref":"db.c","$id":{"$oid":"0102030405060708090a0b0c"}}}"#;
    let old = extended(serde_json::from_str(pointed).expect("json"));
    let stored = [
        ("pointer", binary(BinarySubtype::Generic, &[7; 16])),
        ("symbol", "s\n".into()),
        ("undefined", Bson::Null),
    ];
    let shown = [old, Bson::Symbol("s\n".into()), Bson::Undefined];
    let pairs = stored
        .iter()
        .zip(shown)
        .map(|((name, stored), shown)| (doc! { *name: stored.clone() }, doc! { *name: shown }));
    let swap = Swap::new(&pairs.collect::<Vec<_>>()).await;
    let database = Database::new().await;
    let document: Document =
        stored.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    database.insert("t", vec![document]).await;
    let found = read(&swap.source(&database), request("t")).await.expect("read");
    let types =
        "_id string(ObjectId), pointer string(Json), symbol string(Json), undefined string(Json)";
    assert_eq!(found.types(), types);
    assert_eq!(found.shown("pointer"), [pointed]);
    assert_eq!(found.shown("symbol"), [r#"{"$symbol":"s\n"}"#]);
    assert_eq!(found.shown("undefined"), [r#"{"$undefined":true}"#]);
}
