//! Every type with extreme values, and what file statistics say of them.

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Fields, Int32Type};
use polder_core::{Field, LakeType, TableSchema};
use polder_lake::{CmpOp, Literal, Predicate, StageKind};
use uuid::Uuid;

use crate::support::*;

fn decimal(precision: u8, scale: u8) -> LakeType {
    LakeType::Decimal { precision, scale }
}

fn decimals(values: &[Option<i128>], precision: u8, scale: i8) -> ArrayRef {
    let array = Decimal128Array::from(values.to_vec());
    Arc::new(array.with_precision_and_scale(precision, scale).expect("decimal"))
}

const YEAR_1: i64 = -62_135_596_800_000_000;
const YEAR_9999: i64 = 253_402_300_799_999_999;

/// The first and the last time there is, without and with a zone.
fn stamps() -> (ArrayRef, ArrayRef) {
    let times = Int64Array::from(vec![Some(YEAR_1), Some(YEAR_9999), None]);
    let cast = |to: &LakeType| arrow::compute::cast(&times, &to.to_arrow()).expect("times");
    (cast(&LakeType::Timestamp), cast(&LakeType::Timestamptz))
}

/// Three rows: small, large, null.
fn scalars() -> (TableSchema, Vec<ArrayRef>) {
    let most = 10_i128.pow(38) - 1;
    let uuids: [Option<[u8; 16]>; 3] = [Some([0; 16]), Some([0xFF; 16]), None];
    let uuids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(uuids.into_iter(), 16);
    let (stamps, stamps_tz) = stamps();
    let long_text = "é".repeat(100);
    let columns: Vec<(&str, LakeType, ArrayRef)> = vec![
        (
            "boolean",
            LakeType::Boolean,
            Arc::new(BooleanArray::from(vec![Some(false), Some(true), None])),
        ),
        (
            "int",
            LakeType::Int,
            Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), None])),
        ),
        (
            "long",
            LakeType::Long,
            Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None])),
        ),
        (
            "float",
            LakeType::Float,
            Arc::new(Float32Array::from(vec![Some(f32::NEG_INFINITY), Some(f32::MAX), None])),
        ),
        (
            "double",
            LakeType::Double,
            Arc::new(Float64Array::from(vec![Some(f64::MIN), Some(f64::INFINITY), None])),
        ),
        ("dec9", decimal(9, 2), decimals(&[Some(-999_999_999), Some(999_999_999), None], 9, 2)),
        (
            "dec18",
            decimal(18, 18),
            decimals(&[Some(-1), Some(999_999_999_999_999_999), None], 18, 18),
        ),
        ("dec38", decimal(38, 10), decimals(&[Some(-most), Some(most), None], 38, 10)),
        (
            "date",
            LakeType::Date,
            Arc::new(Date32Array::from(vec![Some(-719_162), Some(2_932_896), None])),
        ),
        (
            "time",
            LakeType::Time,
            Arc::new(Time64MicrosecondArray::from(vec![Some(0), Some(86_399_999_999), None])),
        ),
        ("stamp", LakeType::Timestamp, stamps),
        ("stamptz", LakeType::Timestamptz, stamps_tz),
        (
            "text",
            LakeType::String,
            Arc::new(StringArray::from(vec![Some(""), Some(long_text.as_str()), None])),
        ),
        ("uuid", LakeType::Uuid, Arc::new(uuids.expect("uuids"))),
        (
            "binary",
            LakeType::Binary,
            Arc::new(BinaryArray::from(vec![Some(&b"\0"[..]), Some(&[0xFF; 40][..]), None])),
        ),
    ];
    let schema =
        TableSchema::new(columns.iter().map(|(n, t, _)| Field::new(*n, t.clone())).collect());
    (schema, columns.into_iter().map(|(_, _, array)| array).collect())
}

fn fields(data_type: &LakeType) -> Fields {
    match data_type.to_arrow() {
        DataType::Struct(fields) => fields,
        other => panic!("{other} is no struct"),
    }
}

/// A list of structs with a list in it, and an interval.
fn nested() -> (TableSchema, Vec<ArrayRef>) {
    let segment = LakeType::Struct(vec![
        Field::new("words", LakeType::list_of(LakeType::String)),
        Field::new("score", LakeType::Double),
        Field::new("raw", LakeType::Binary),
    ]);
    let list = LakeType::list_of(segment.clone());
    let mut words = ListBuilder::new(StringBuilder::new())
        .with_field(arrow::datatypes::Field::new("element", DataType::Utf8, true));
    words.append_value([Some("a"), None]);
    words.append_null();
    words.append_value([] as [Option<&str>; 0]);
    let structs = StructArray::new(
        fields(&segment),
        vec![
            Arc::new(words.finish()),
            Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(-0.0), None])),
            Arc::new(BinaryArray::from(vec![Some(&b"x"[..]), None, Some(&b""[..])])),
        ],
        Some(NullBuffer::from(vec![true, false, true])),
    );
    let DataType::List(element) = list.to_arrow() else { panic!("list") };
    let lists = ListArray::new(
        element,
        OffsetBuffer::new(vec![0, 2, 2, 3].into()),
        Arc::new(structs),
        Some(NullBuffer::from(vec![true, false, true])),
    );
    let interval = StructArray::new(
        fields(&LakeType::interval()),
        vec![
            Arc::new(Int32Array::from(vec![1, 2, 3])),
            Arc::new(Int32Array::from(vec![-1, 0, 0])),
            Arc::new(Int64Array::from(vec![0, i64::MAX, 0])),
        ],
        Some(NullBuffer::from(vec![true, true, false])),
    );
    let schema = schema(&[("segments", list), ("lasts", LakeType::interval())]);
    (schema, vec![Arc::new(lists), Arc::new(interval)])
}

#[tokio::test]
async fn every_type_comes_back_as_it_went() {
    let scratch = Scratch::new().await;
    for (name, (schema, columns)) in [("scalars", scalars()), ("nested", nested())] {
        let written = batch(&schema, columns);
        run(
            &scratch.lake,
            name,
            request(StageKind::Replace, &schema),
            std::slice::from_ref(&written),
        )
        .await
        .expect(name);
        assert_eq!(read(&table(&scratch.lake, name).await, Predicate::True).await, written);
    }
}

fn literals() -> Vec<(&'static str, Literal)> {
    let most = 10_i128.pow(38) - 1;
    let decimal = |unscaled, precision, scale| Literal::Decimal { unscaled, precision, scale };
    vec![
        ("boolean", Literal::Boolean(true)),
        ("int", Literal::Int(i32::MAX)),
        ("int", Literal::Long(i32::MAX.into())),
        ("long", Literal::Long(i64::MAX)),
        ("float", Literal::Float(f32::MAX)),
        ("double", Literal::Double(f64::INFINITY)),
        ("dec9", decimal(999_999_999, 9, 2)),
        ("dec18", decimal(999_999_999_999_999_999, 18, 18)),
        ("dec38", decimal(most, 38, 10)),
        ("date", Literal::Date(2_932_896)),
        ("time", Literal::Time(86_399_999_999)),
        ("stamp", Literal::Timestamp(YEAR_9999)),
        ("stamptz", Literal::Timestamptz(YEAR_9999)),
        ("text", Literal::String("é".repeat(100))),
        ("uuid", Literal::Uuid(Uuid::from_bytes([0xFF; 16]))),
        ("binary", Literal::Binary(vec![0xFF; 40])),
    ]
}

#[tokio::test]
async fn filters_find_exactly_the_rows_of_every_type() {
    let scratch = Scratch::new().await;
    let (schema, columns) = scalars();
    let written = batch(&schema, columns);
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), std::slice::from_ref(&written))
        .await
        .expect("create");
    let now = table(&scratch.lake, "t").await;
    let (small, large, null) = (written.slice(0, 1), written.slice(1, 1), written.slice(2, 1));
    for (column, value) in literals() {
        let filter = |op| Predicate::Cmp { column: column.into(), op, value: value.clone() };
        let not = |op| Predicate::Not(Box::new(filter(op)));
        let cases = [
            (filter(CmpOp::Eq), &large),
            (filter(CmpOp::GtEq), &large),
            (filter(CmpOp::Lt), &small),
            (filter(CmpOp::NotEq), &small),
            (not(CmpOp::Eq), &small),
            (not(CmpOp::LtEq), &written.slice(0, 0)),
            (Predicate::In { column: column.into(), values: vec![value.clone()] }, &large),
            (Predicate::IsNull(column.into()), &null),
        ];
        for (filter, expected) in cases {
            assert_eq!(&read(&now, filter.clone()).await, expected, "{filter:?}");
        }
        // And the file is skipped when nothing can match.
        assert_eq!(
            files_planned(&now, filter(CmpOp::Gt)).await == 0,
            column != "binary" && column != "text" && column != "float" && column != "double",
            "{column}"
        );
    }
}

#[tokio::test]
async fn long_values_over_several_row_groups_are_found() {
    let scratch = Scratch::new().await;
    let schema =
        schema(&[("id", LakeType::Long), ("text", LakeType::String), ("bytes", LakeType::Binary)]);
    // So little memory that every batch becomes a row group.
    let mut request = request(StageKind::Replace, &schema);
    request.memory_bytes = 1;
    let groups: Vec<RecordBatch> = (0..4_i64)
        .map(|group| {
            let letter = char::from(b'a' + group as u8);
            let text: Vec<String> =
                (0..10).map(|i| format!("{}{i}", letter.to_string().repeat(100))).collect();
            let bytes: Vec<Vec<u8>> =
                text.iter().map(|text| text.bytes().map(|b| b ^ 0xFF).collect()).collect();
            batch(
                &schema,
                vec![
                    Arc::new(Int64Array::from_iter_values(group * 10..group * 10 + 10)),
                    Arc::new(StringArray::from(text)),
                    Arc::new(BinaryArray::from_iter_values(bytes)),
                ],
            )
        })
        .collect();
    run(&scratch.lake, "t", request, &groups).await.expect("create");
    let now = table(&scratch.lake, "t").await;
    assert_eq!(scratch.files(".parquet").len(), 1);
    for (id, letter) in [(0, 'a'), (10, 'b'), (39, 'd')] {
        let text = format!("{}{}", letter.to_string().repeat(100), id % 10);
        let bytes: Vec<u8> = text.bytes().map(|b| b ^ 0xFF).collect();
        let prefix = text[..90].to_owned();
        let filters = [(Literal::String(text), "text"), (Literal::Binary(bytes), "bytes")];
        for (value, column) in filters {
            let filter = Predicate::Cmp { column: column.into(), op: CmpOp::Eq, value };
            assert_eq!(longs(&read(&now, filter).await, "id"), [id], "{column}");
        }
        let filter = Predicate::StartsWith { column: "text".into(), prefix };
        assert_eq!(longs(&read(&now, filter).await, "id").len(), 10);
    }
    // Bounds are cut to 16 characters, the upper one rounded up: what differs later is not seen.
    for (prefix, planned) in [("A", 0), ("e", 0), ("aab", 1), ("ddddddddddddddddde", 1)] {
        let filter = Predicate::StartsWith { column: "text".into(), prefix: prefix.into() };
        assert_eq!(files_planned(&now, filter.clone()).await, planned, "{prefix}");
        assert_eq!(read(&now, filter).await.num_rows(), 0);
    }
}

#[tokio::test]
async fn nan_is_above_everything_and_zeros_have_signs() {
    let scratch = Scratch::new().await;
    let schema = schema(&[("id", LakeType::Long), ("x", LakeType::Double)]);
    let values = [Some(f64::NAN), Some(1.0), Some(-0.0), Some(0.0), None];
    let all = batch(
        &schema,
        vec![
            Arc::new(Int64Array::from_iter_values(0..5)),
            Arc::new(Float64Array::from(values.to_vec())),
        ],
    );
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), &[all]).await.expect("create");
    let now = table(&scratch.lake, "t").await;
    let cases = [
        (CmpOp::Gt, 5.0, vec![0]),
        (CmpOp::GtEq, 1.0, vec![0, 1]),
        (CmpOp::Lt, 0.0, vec![2]),
        (CmpOp::Gt, -0.0, vec![0, 1, 3]),
        (CmpOp::Eq, f64::NAN, vec![0]),
        (CmpOp::LtEq, f64::NAN, vec![0, 1, 2, 3]),
        (CmpOp::NotEq, 1.0, vec![0, 2, 3]),
    ];
    for (op, value, expected) in cases {
        let filter = Predicate::Cmp { column: "x".into(), op, value: Literal::Double(value) };
        assert_eq!(longs(&read(&now, filter).await, "id"), expected, "{op:?} {value}");
    }
}

#[tokio::test]
async fn an_all_null_column_has_no_bounds_and_is_found_by_is_null_only() {
    let scratch = Scratch::new().await;
    let schema = schema(&[("id", LakeType::Long), ("x", LakeType::Int), ("f", LakeType::Float)]);
    let all = batch(
        &schema,
        vec![
            Arc::new(Int64Array::from_iter_values(0..2)),
            Arc::new(PrimitiveArray::<Int32Type>::new_null(2)),
            Arc::new(Float32Array::from(vec![f32::NAN, f32::NAN])),
        ],
    );
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), &[all]).await.expect("create");
    let now = table(&scratch.lake, "t").await;
    let filter =
        |column: &str, value| Predicate::Cmp { column: column.into(), op: CmpOp::Eq, value };
    assert_eq!(files_planned(&now, filter("x", Literal::Int(0))).await, 0);
    assert_eq!(files_planned(&now, filter("f", Literal::Float(0.0))).await, 0);
    assert_eq!(files_planned(&now, filter("f", Literal::Float(f32::NAN))).await, 1);
    assert_eq!(files_planned(&now, Predicate::IsNull("x".into())).await, 1);
    assert_eq!(files_planned(&now, Predicate::IsNull("id".into())).await, 0);
}
