//! Keys of every type that a merge goes by, and those it refuses.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use polder_core::{ErrorCode, Field, LakeType, TableSchema};
use polder_pipeline::Outcome;
use polder_sources::memory::MemoryTable;
use serde_json::json;

use crate::support::Scratch;

const ROWS: i64 = 400;

/// `n` as a key of the type, in an order of its own and with equal beginnings.
fn key(data_type: &LakeType, ids: &Int64Array) -> ArrayRef {
    let arrow = data_type.to_arrow();
    match data_type {
        LakeType::Uuid => {
            let bytes = ids.values().iter().map(|id| {
                uuid::Uuid::from_u128(
                    u128::from(*id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C),
                )
                .into_bytes()
            });
            let array = arrow::array::FixedSizeBinaryArray::try_from_iter(bytes);
            Arc::new(array.expect("uuids"))
        }
        LakeType::String => {
            let texts = ids.values().iter().map(|id| format!("{}{}", "prefix ".repeat(20), id - 7));
            Arc::new(arrow::array::StringArray::from_iter_values(texts))
        }
        LakeType::Int | LakeType::Date => {
            let narrow = cast(ids, &DataType::Int32).expect("narrow");
            cast(&narrow, &arrow).expect("key")
        }
        _ => cast(ids, &arrow).expect("key"),
    }
}

fn table(types: &[LakeType], ids: std::ops::Range<i64>, at: i64) -> MemoryTable {
    let mut fields: Vec<Field> =
        types.iter().enumerate().map(|(n, t)| Field::new(format!("k{n}"), t.clone())).collect();
    fields.extend([Field::new("at", LakeType::Long), Field::new("id", LakeType::Long)]);
    let schema = TableSchema::new(fields);
    let ids = Int64Array::from_iter_values(ids);
    // All but the last column of a key are the same in several rows.
    let part = |n: usize| -> Int64Array {
        let (last, ids) = (n + 1 == types.len(), ids.values().iter());
        ids.map(|id| if last { *id } else { *id / 7 }).collect()
    };
    let mut columns: Vec<ArrayRef> =
        types.iter().enumerate().map(|(n, t)| key(t, &part(n))).collect();
    columns.push(Arc::new(Int64Array::from_iter_values(ids.values().iter().map(|id| at + id))));
    columns.push(Arc::new(ids));
    let batch = RecordBatch::try_new(schema.to_arrow(), columns).expect("batch");
    MemoryTable { schema, batches: vec![batch], ..MemoryTable::default() }
}

async fn check(types: &[LakeType]) {
    let names: Vec<String> = (0..types.len()).map(|n| format!("k{n}")).collect();
    let scratch = Scratch::new(json!({ "mode": "merge", "key": names, "cursor": "at" })).await;
    scratch.put(table(types, 0..ROWS, 0));
    scratch.run().await;
    scratch.put(table(types, ROWS / 2..ROWS + 10, 10_000));
    let report = scratch.run().await;
    let counts = [report.rows_inserted, report.rows_updated, report.rows_deleted];
    assert_eq!((report.outcome, counts), (Outcome::Merge, [10, 200, 0]), "{types:?}");
    let rows = scratch.rows().await;
    let column =
        |name: &str| rows.column_by_name(name).expect("column").as_primitive::<Int64Type>().clone();
    let (ids, ats) = (column("id"), column("at"));
    let mut found: Vec<(i64, i64)> =
        ids.values().iter().zip(ats.values()).map(|(id, at)| (*id, *at)).collect();
    found.sort_unstable();
    let at = |id: i64| if id < ROWS / 2 { id } else { 10_000 + id };
    assert_eq!(found, (0..ROWS + 10).map(|id| (id, at(id))).collect::<Vec<_>>(), "{types:?}");
}

#[tokio::test]
async fn every_type_that_tells_rows_apart_is_a_key() {
    let decimal = LakeType::Decimal { precision: 20, scale: 2 };
    for data_type in [
        LakeType::Int,
        LakeType::Long,
        LakeType::String,
        LakeType::Uuid,
        LakeType::Date,
        LakeType::Timestamp,
        LakeType::Timestamptz,
        decimal.clone(),
    ] {
        check(&[data_type]).await;
    }
    check(&[LakeType::Int, LakeType::String]).await;
    check(&[LakeType::Uuid, LakeType::Date, decimal]).await;
}

#[tokio::test]
async fn a_key_that_does_not_tell_rows_apart_is_refused() {
    for data_type in [
        LakeType::Double,
        LakeType::Float,
        LakeType::List(Box::new(Field::new("element", LakeType::Int))),
        LakeType::Struct(vec![Field::new("a", LakeType::Int)]),
    ] {
        let spec = json!({ "mode": "merge", "key": ["k"], "cursor": "at" });
        let scratch = Scratch::new(spec).await;
        let schema = TableSchema::new(vec![
            Field::new("k", data_type.clone()),
            Field::new("at", LakeType::Long),
        ]);
        let columns = vec![
            new_null_array(&data_type.to_arrow(), 1),
            Arc::new(Int64Array::from(vec![1])) as Arc<dyn Array>,
        ];
        let batch = RecordBatch::try_new(schema.to_arrow(), columns).expect("batch");
        let batches = vec![batch];
        scratch.put(MemoryTable { schema, batches, ..MemoryTable::default() });
        let error = scratch.fails().await;
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{data_type:?}");
        assert!(error.to_string().contains("cannot be a key"), "{error}");
    }
}
