//! Documents in, columns out, and the documents again from the columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{
    Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, doc};
use polder_core::spec::OnUnrepresentable;
use polder_core::{Error, ErrorCode, Field, LakeType, Result, RunProgress, TableSchema, TextOf};
use proptest::prelude::*;

use super::column::{Decoder, DecoderOptions};
use super::spill::DocumentBatches;
use super::{Dialect, Inference, InferenceOptions, SpillWriter};
use crate::blocking::Batches;
use crate::values::{self, Number};

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).expect("a document")
}

fn infer(documents: &[Document], options: InferenceOptions) -> Result<TableSchema> {
    let mut inference = Inference::new(options);
    for document in documents {
        inference.see(raw(document).as_bytes())?;
    }
    Ok(inference.finish()?.0)
}

fn decode(
    documents: &[Document],
    schema: &TableSchema,
    on_unrepresentable: OnUnrepresentable,
) -> Result<(RecordBatch, Arc<RunProgress>)> {
    let options = DecoderOptions { dialect: Dialect::Extended, on_unrepresentable };
    let mut decoder = Decoder::new(schema, options);
    for document in documents {
        decoder.append(raw(document).as_bytes())?;
    }
    let progress = Arc::new(RunProgress::default());
    let batch = decoder.finish(&progress)?;
    Ok((batch, progress))
}

/// The schema in short: `a int, b string(json)`.
fn words(schema: &TableSchema) -> String {
    let word = |field: &Field| {
        let text_of = field.text_of.map_or(String::new(), |text_of| format!("({text_of:?})"));
        format!("{} {}{text_of}", field.name, field.data_type)
    };
    schema.fields.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn check(documents: &[Document], expected: &str) {
    let schema = infer(documents, InferenceOptions::default()).expect("schema");
    assert_eq!(words(&schema), expected);
    decode(documents, &schema, OnUnrepresentable::Error).expect("every value fits");
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse().expect("decimal"))
}

fn binary(subtype: BinarySubtype, bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype, bytes: bytes.to_vec() })
}

#[test]
fn values_of_one_kind_become_its_type() {
    let id = ObjectId::from_bytes([7; 12]);
    check(
        &[doc! { "_id": id, "b": true, "i": 1_i32, "l": 1_i64, "d": 0.5, "s": "x" }],
        "_id string(ObjectId), b boolean, i int, l long, d double, s string",
    );
    check(&[doc! { "t": DateTime::from_millis(5) }], "t timestamptz");
    check(&[doc! { "b": binary(BinarySubtype::Generic, b"x") }], "b binary");
    check(&[doc! { "u": binary(BinarySubtype::Uuid, &[1; 16]) }], "u uuid");
    check(&[doc! { "n": Bson::Null }, doc! {}], "n string");
    check(&[doc! { "a": [1_i32, 2_i32], "d": { "x": 1_i32 } }], "a list<int>, d struct<x: int>");
    check(&[doc! { "A": 1_i32, "a": 2_i32, "a b": 3_i32 }], "A int, a int, a b int");
}

#[test]
fn kinds_widen_only_where_nothing_is_lost() {
    let both = |a: Bson, b: Bson| [doc! { "v": a }, doc! { "v": b }];
    check(&both(1_i32.into(), 1_i64.into()), "v long");
    check(&both(1_i32.into(), 0.5.into()), "v double");
    check(&both(5_i64.into(), 0.5.into()), "v double");
    check(&both(i64::MAX.into(), 0.5.into()), "v string(Json)");
    check(&both(decimal("1.50"), decimal("100")), "v decimal(5, 2)");
    check(&both(decimal("1.5"), i64::MAX.into()), "v decimal(20, 1)");
    check(&both(decimal("1E+3"), decimal("0E-6000")), "v decimal(4, 0)");
    check(&both(decimal("1E+30"), decimal("1E-30")), "v string(Decimal)");
    check(&both(decimal("NaN"), decimal("1")), "v string(Decimal)");
    check(&both(decimal("1.5"), 0.5.into()), "v string(Json)");
    check(&both(1_i32.into(), "x".into()), "v string(Json)");
    check(&both(ObjectId::from_bytes([7; 12]).into(), "x".into()), "v string(Json)");
    check(&both(doc! { "a": 1_i32 }.into(), 1_i32.into()), "v string(Json)");
    check(
        &both(doc! { "a": 1_i32 }.into(), doc! { "b": "x" }.into()),
        "v struct<a: int, b: string>",
    );
    check(&both(binary(BinarySubtype::Md5, &[1; 16]), Bson::Null), "v string(Json)");
    check(&both(Bson::MinKey, Bson::Null), "v string(Json)");
}

#[test]
fn shapes_no_column_holds_become_text() {
    check(&[doc! { "d": {}, "a": [] }], "d string(Json), a string(Json)");
    check(&[doc! { "a": [] }, doc! { "a": [1_i32] }], "a list<int>");
    check(&[doc! { "a": [Bson::Null] }], "a list<string>");
    check(&[doc! { "d": { "": 1_i32 } }], "d string(Json)");
    check(&[doc! { "": 1_i32 }], "_unnamed int");
    check(&[doc! { "a": { "b": 1_i32 }, "a.b": 2_i32 }], "a string(Json), a.b int");
    let map: Document = (0..2000).map(|n| (format!("k{n}"), Bson::Int32(n))).collect();
    check(&[doc! { "m": map.clone() }], "m string(Json)");
    let deep = (0..80).fold(Bson::Int32(1), |inner, _| doc! { "d": inner }.into());
    let schema = infer(&[doc! { "x": deep.clone() }], InferenceOptions::default()).expect("schema");
    let (batch, _) =
        decode(&[doc! { "x": deep }], &schema, OnUnrepresentable::Error).expect("decoded");
    assert_eq!(batch.num_rows(), 1);
    let error = infer(&[map], InferenceOptions::default()).expect_err("too many columns");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
}

/// A document with a member twice, which the driver's own type cannot hold.
fn twice() -> Vec<u8> {
    let member = [0x10, b'a', 0, 1, 0, 0, 0];
    let mut bytes = vec![19, 0, 0, 0];
    bytes.extend(member);
    bytes.extend(member);
    bytes.push(0);
    bytes
}

#[test]
fn a_member_that_appears_twice_is_not_lost() {
    let mut inference = Inference::new(InferenceOptions::default());
    let error = inference.see(&twice()).expect_err("twice at the top");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    let inner = twice();
    let mut outer = ((inner.len() + 8) as i32).to_le_bytes().to_vec();
    outer.extend([0x03, b'd', 0]);
    outer.extend(inner);
    outer.push(0);
    let mut inference = Inference::new(InferenceOptions::default());
    inference.see(&outer).expect("twice below");
    let (schema, _) = inference.finish().expect("schema");
    let options =
        DecoderOptions { dialect: Dialect::Extended, on_unrepresentable: OnUnrepresentable::Error };
    let mut decoder = Decoder::new(&schema, options);
    decoder.append(&outer).expect("decoded");
    let batch = decoder.finish(&RunProgress::default()).expect("batch");
    assert_eq!(batch.column(0).as_string::<i32>().value(0), r#"{"a":1,"a":1}"#);
}

#[test]
fn broken_bytes_are_an_error_and_never_a_panic() {
    let good = raw(&doc! { "a": { "b": ["x", 1_i32] }, "r": Bson::MaxKey }).into_bytes();
    for cut in 0..good.len() {
        let mut inference = Inference::new(InferenceOptions::default());
        assert!(inference.see(&good[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] = bytes[at].wrapping_add(0x55);
        let mut inference = Inference::new(InferenceOptions::default());
        // Some changes are still documents; none may panic.
        let _ = inference.see(&bytes).map(|()| {
            let (schema, _) = inference.finish().expect("schema");
            let options = DecoderOptions {
                dialect: Dialect::Extended,
                on_unrepresentable: OnUnrepresentable::Error,
            };
            Decoder::new(&schema, options).append(&bytes)
        });
    }
}

#[test]
fn policies_say_what_becomes_of_values_that_do_not_fit() {
    let date = |millis| doc! { "v": DateTime::from_millis(millis) };
    let documents = [date(0), date(i64::MAX)];
    let policy =
        |on_unrepresentable| InferenceOptions { on_unrepresentable, ..InferenceOptions::default() };
    let read = |on: OnUnrepresentable| -> Result<(String, u64)> {
        let schema = infer(&documents, policy(on))?;
        let (batch, progress) = decode(&documents, &schema, on)?;
        let options = arrow::util::display::FormatOptions::default().with_null("null");
        let column = batch.column(0);
        let format = arrow::util::display::ArrayFormatter::try_new(column, &options);
        let second = format.expect("printable").value(1).to_string();
        Ok((second, progress.snapshot().altered.get("v").copied().unwrap_or(0)))
    };
    let error = read(OnUnrepresentable::Error).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(!format!("{error:?}").contains("9223372036854775807"), "no values in errors");
    assert_eq!(read(OnUnrepresentable::Null).expect("null"), ("null".into(), 1));
    let clamped = ("9999-12-31T23:59:59.999Z".into(), 1);
    assert_eq!(read(OnUnrepresentable::Clamp).expect("clamp"), clamped);
    let text = r#"{"$date":{"$numberLong":"9223372036854775807"}}"#;
    assert_eq!(read(OnUnrepresentable::Text).expect("text"), (text.into(), 0));
}

#[test]
fn declared_types_take_what_fits_exactly() {
    let declared = |name: &str| -> LakeType { name.parse().expect("type") };
    let read = |value: Bson, data_type: &str| -> Result<RecordBatch, Error> {
        let options = InferenceOptions {
            declared: [("v".to_owned(), declared(data_type))].into(),
            ..InferenceOptions::default()
        };
        let documents = [doc! { "v": value }];
        let schema = infer(&documents, options)?;
        assert_eq!(schema.fields[0].data_type, declared(data_type));
        Ok(decode(&documents, &schema, OnUnrepresentable::Error)?.0)
    };
    for (value, data_type) in [
        (Bson::from("12.50"), "decimal(18, 2)"),
        (Bson::from(12.5), "decimal(18, 2)"),
        (Bson::from(3_i64), "int"),
        (Bson::from("2024-02-29"), "date"),
        (Bson::from("2024-02-29T10:00:00Z"), "timestamptz"),
        (Bson::from(DateTime::from_millis(86_400_000)), "date"),
        (Bson::from("00000000-0000-0000-0000-000000000001"), "uuid"),
        (Bson::from(5_i32), "string"),
        (decimal("2.5"), "double"),
        (Bson::from(0.5), "float"),
    ] {
        read(value.clone(), data_type).unwrap_or_else(|e| panic!("{value} as {data_type}: {e}"));
    }
    for (value, data_type) in [
        (Bson::from("12.505"), "decimal(18, 2)"),
        (Bson::from(i64::MAX), "int"),
        (Bson::from("x"), "long"),
        (Bson::from(0.1), "float"),
        (Bson::from(1.5), "long"),
        (Bson::from(DateTime::from_millis(1)), "date"),
        (Bson::from("2024-02-29T10:00:00"), "timestamptz"),
    ] {
        let error = read(value.clone(), data_type).expect_err(&format!("{value} as {data_type}"));
        assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    }
}

#[test]
fn spilled_documents_come_back_in_batches() {
    let mut spill = SpillWriter::new().expect("spill");
    let text = "x".repeat(1000);
    let documents: Vec<_> = (0..5000_i32).map(|n| doc! { "n": n, "t": &text }).collect();
    for document in &documents {
        spill.push(raw(document).as_bytes()).expect("push");
    }
    let spill = Arc::new(spill.finish().expect("finish"));
    assert_eq!(spill.rows(), 5000);
    let schema = infer(&documents, InferenceOptions::default()).expect("schema");
    let mut numbers = Vec::new();
    for runs in spill.ranges(3) {
        let options = DecoderOptions {
            dialect: Dialect::Extended,
            on_unrepresentable: OnUnrepresentable::Error,
        };
        let decoder = Decoder::new(&schema, options);
        let progress = Arc::new(RunProgress::default());
        let mut batches =
            DocumentBatches::new(spill.clone(), runs, decoder, 100_000, progress).expect("batches");
        while let Some(batch) = batches.next().expect("batch") {
            assert!(batch.num_rows() < 120, "batches keep to their size");
            numbers.extend(batch.column(0).as_primitive::<Int32Type>().values().iter().copied());
        }
    }
    assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
}

// Round trip: any documents → schema → columns → the same documents.

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "d", "é", "x.y", "a.b", "$e", ""]).prop_map(Into::into)
}

fn leaf() -> impl Strategy<Value = Bson> {
    prop_oneof![
        4 => Just(Bson::Null),
        4 => any::<i32>().prop_map(Bson::Int32),
        2 => any::<i64>().prop_map(Bson::Int64),
        2 => (-1000_i64..1000).prop_map(Bson::Int64),
        2 => any::<f64>().prop_map(Bson::Double),
        4 => "[a-z\"\\\\\u{0}é]{0,6}".prop_map(Bson::String),
        1 => any::<bool>().prop_map(Bson::Boolean),
        1 => any::<[u8; 12]>().prop_map(|bytes| ObjectId::from_bytes(bytes).into()),
        2 => (-62_135_596_800_000_i64..253_402_300_800_000)
            .prop_map(|millis| DateTime::from_millis(millis).into()),
        2 => (any::<i64>(), -20_i32..20)
            .prop_map(|(digits, exponent)| decimal(&format!("{digits}E{exponent}"))),
        1 => prop::sample::select(vec!["NaN", "Infinity", "-Infinity", "0E-6176", "9E+6111"])
            .prop_map(decimal),
        1 => prop::collection::vec(any::<u8>(), 0..5)
            .prop_map(|bytes| binary(BinarySubtype::Generic, &bytes)),
        1 => any::<[u8; 16]>().prop_map(|bytes| binary(BinarySubtype::Uuid, &bytes)),
        1 => any::<[u8; 3]>().prop_map(|bytes| binary(BinarySubtype::UserDefined(0x80), &bytes)),
        1 => any::<(u32, u32)>()
            .prop_map(|(time, increment)| bson::Timestamp { time, increment }.into()),
        1 => prop::sample::select(vec![
            Bson::MinKey,
            Bson::MaxKey,
            Bson::Undefined,
            Bson::JavaScriptCode("f()".into()),
            Bson::Symbol("s".into()),
        ]),
    ]
}

fn value() -> impl Strategy<Value = Bson> {
    leaf().prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Bson::Array),
            prop::collection::vec((key(), inner), 0..4)
                .prop_map(|members| Bson::Document(members.into_iter().collect())),
        ]
    })
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    let document = prop::collection::vec((key(), value()), 0..5);
    prop::collection::vec(document.prop_map(|members| members.into_iter().collect()), 1..6)
}

/// A form in which values are equal if they say the same: numbers by value, nulls in documents left
/// out (a table tells null from missing no more than SQL does).
fn normal(value: &Bson) -> Bson {
    let number = |number: Option<Number>| match number {
        Some(Number { coefficient: 0, .. }) => Bson::from("number 0"),
        Some(Number { negative, mut coefficient, mut exponent }) => {
            while coefficient % 10 == 0 {
                coefficient /= 10;
                exponent += 1;
            }
            Bson::from(format!("number {negative} {coefficient}E{exponent}"))
        }
        None => unreachable!("a finite number"),
    };
    match value {
        Bson::Int32(value) => number(Some(Number::from_integer(i64::from(*value)))),
        Bson::Int64(value) => number(Some(Number::from_integer(*value))),
        Bson::Double(value) if value.is_finite() => number(Number::from_double(*value)),
        Bson::Double(value) => Bson::from(format!("double {value}")),
        Bson::Decimal128(value) => {
            let text = value.to_string();
            if text.ends_with(['N', 'y']) {
                Bson::from(text)
            } else {
                number(values::number(&text))
            }
        }
        Bson::Array(values) => Bson::Array(values.iter().map(normal).collect()),
        Bson::Document(members) => Bson::Document(normal_document(members)),
        other => other.clone(),
    }
}

fn normal_document(document: &Document) -> Document {
    let mut members: Vec<_> = document
        .iter()
        .filter(|(_, value)| **value != Bson::Null)
        .map(|(name, value)| (name.clone(), normal(value)))
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    members.into_iter().collect()
}

/// A column's value as the BSON value it came from.
fn back(array: &ArrayRef, row: usize, field: &Field) -> Bson {
    if array.is_null(row) {
        return Bson::Null;
    }
    match (&field.data_type, field.text_of) {
        (LakeType::Boolean, _) => array.as_boolean().value(row).into(),
        (LakeType::Int, _) => array.as_primitive::<Int32Type>().value(row).into(),
        (LakeType::Long, _) => array.as_primitive::<Int64Type>().value(row).into(),
        (LakeType::Double, _) => array.as_primitive::<Float64Type>().value(row).into(),
        (LakeType::Decimal { scale, .. }, _) => {
            let digits = array.as_primitive::<Decimal128Type>().value(row);
            let number = Number::new(digits < 0, digits.unsigned_abs(), -i32::from(*scale));
            normal_number(number)
        }
        (LakeType::Timestamptz, _) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            DateTime::from_millis(micros / 1000).into()
        }
        (LakeType::Uuid, _) => binary(BinarySubtype::Uuid, array.as_fixed_size_binary().value(row)),
        (LakeType::Binary, _) => {
            binary(BinarySubtype::Generic, array.as_binary::<i32>().value(row))
        }
        (LakeType::String, text_of) => text_back(array.as_string::<i32>().value(row), text_of),
        (LakeType::List(element), _) => {
            let values = array.as_list::<i32>().value(row);
            (0..values.len()).map(|row| back(&values, row, element)).collect()
        }
        (LakeType::Struct(members), _) => struct_back(array.as_struct(), row, members).into(),
        (other, _) => unreachable!("{other} is never inferred"),
    }
}

/// As [`normal`] writes numbers.
fn normal_number(number: Number) -> Bson {
    let sign = if number.negative { "-" } else { "" };
    let text = format!("{sign}{}E{}", number.coefficient, number.exponent);
    let mut parsed = values::number(&text).expect("number");
    if parsed.coefficient == 0 {
        return Bson::from("number 0");
    }
    while parsed.coefficient.is_multiple_of(10) {
        parsed.coefficient /= 10;
        parsed.exponent += 1;
    }
    Bson::from(format!("number {} {}E{}", parsed.negative, parsed.coefficient, parsed.exponent))
}

fn text_back(text: &str, text_of: Option<TextOf>) -> Bson {
    match text_of {
        None => text.into(),
        Some(TextOf::ObjectId) => ObjectId::parse_str(text).expect("id").into(),
        Some(TextOf::Decimal) => decimal(text),
        Some(TextOf::Json) => {
            let text = wrapped_doubles(text);
            let json: serde_json::Value = serde_json::from_str(&text).expect("json");
            Bson::try_from(json).expect("extended json")
        }
    }
}

/// Bare doubles as `{"$numberDouble": …}`: as numbers, the parser used here reads some inexactly.
fn wrapped_doubles(json: &str) -> String {
    let (mut wrapped, mut rest) = (String::new(), json);
    let is_number = |c: char| matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.expect("a closed text") + 2
            }
            '0'..='9' | '-' => rest.find(|c| !is_number(c)).unwrap_or(rest.len()),
            other => other.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        if first != '"' && token.len() > 1 && token.contains(['.', 'e', 'E']) {
            wrapped.extend(["{\"$numberDouble\":\"", token, "\"}"]);
        } else {
            wrapped.push_str(token);
        }
        rest = after;
    }
    wrapped
}

fn struct_back(array: &StructArray, row: usize, members: &[Field]) -> Document {
    let columns = members.iter().zip(array.columns());
    columns.map(|(field, column)| (field.name.clone(), back(column, row, field))).collect()
}

/// The top level's name for a member without one.
fn renamed(document: &Document) -> Document {
    let name = |name: &String| if name.is_empty() { "_unnamed".into() } else { name.clone() };
    document.iter().map(|(key, value)| (name(key), value.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn documents_survive_the_way_into_columns(documents in documents()) {
        let schema = infer(&documents, InferenceOptions::default()).expect("schema");
        let (batch, _) = decode(&documents, &schema, OnUnrepresentable::Error).expect("decoded");
        prop_assert_eq!(batch.schema(), schema.to_arrow());
        for (row, document) in documents.iter().enumerate() {
            let columns = schema.fields.iter().zip(batch.columns());
            let read: Document = columns
                .map(|(field, column)| (field.name.clone(), back(column, row, field)))
                .collect();
            prop_assert_eq!(normal_document(&read), normal_document(&renamed(document)));
        }
    }

    #[test]
    fn a_known_schema_is_kept_by_any_of_its_documents(documents in documents(), keep in any::<u8>()) {
        let known = infer(&documents, InferenceOptions::default()).expect("schema");
        let some: Vec<_> = documents
            .iter()
            .enumerate()
            .filter(|(number, _)| keep >> number & 1 == 1)
            .map(|(_, document)| document.clone())
            .collect();
        let options = InferenceOptions { known: Some(known.clone()), ..InferenceOptions::default() };
        prop_assert_eq!(infer(&some, options).expect("schema"), known.clone());
        decode(&some, &known, OnUnrepresentable::Error).expect("decoded");
    }
}
