//! Partitioned tables: which file a row goes to, and that every filter still finds it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::compute::cast;
use polder_core::{ErrorCode, Field, LakeType, TableSchema};
use polder_lake::{CmpOp, Literal, Predicate, StageKind};
use uuid::Uuid;

use crate::support::*;

const DAY: i64 = 86_400_000_000;

fn stamps(values: &[i64]) -> ArrayRef {
    let values = Int64Array::from(values.to_vec());
    cast(&values, &LakeType::Timestamptz.to_arrow()).expect("timestamps")
}

fn with_ids(data_type: LakeType, values: ArrayRef) -> (TableSchema, RecordBatch) {
    let columns = schema(&[("id", LakeType::Long), ("c", data_type)]);
    let ids = Int64Array::from_iter_values(0..values.len() as i64);
    let rows = batch(&columns, vec![Arc::new(ids), values]);
    (columns, rows)
}

#[tokio::test]
async fn a_month_s_query_reads_that_month_s_file_only() {
    let scratch = Scratch::new().await;
    // 2,000 days from 1969-07-05 on, one row a day, in small batches of mixed months.
    let days: Vec<i64> = (0..2_000).map(|row| (row * 37 % 2_000 - 180) * DAY).collect();
    let (columns, all) = with_ids(LakeType::Timestamptz, stamps(&days));
    let mut request = request(StageKind::Replace, &columns);
    request.partition = vec!["month(c)".parse().expect("field")];
    let batches: Vec<_> = (0..20).map(|part| all.slice(part * 100, 100)).collect();
    run(&scratch.lake, "t", request, &batches).await.expect("create");
    let now = table(&scratch.lake, "t").await;
    assert_eq!(now.partition(), ["month(c)".parse().expect("field")]);
    let months = files_planned(&now, Predicate::True).await;
    assert_eq!(months, 66, "one file a month, however many batches");
    let stamp = |op, day: i64| Predicate::Cmp {
        column: "c".into(),
        op,
        value: Literal::Timestamptz(day * DAY),
    };
    let december = stamp(CmpOp::GtEq, -31).and(stamp(CmpOp::Lt, 0));
    assert_eq!(files_planned(&now, december.clone()).await, 1);
    assert_eq!(read(&now, december).await.num_rows(), 31);
    assert_eq!(read(&now, Predicate::True).await.num_rows(), 2_000);
}

/// Every row is found by its own value, whatever the transform, negative values and nulls included.
async fn check(transforms: &[&str], data_type: LakeType, values: ArrayRef, literals: Vec<Literal>) {
    let scratch = Scratch::new().await;
    for (number, transform) in transforms.iter().enumerate() {
        let (columns, rows) = with_ids(data_type.clone(), Arc::clone(&values));
        let mut request = request(StageKind::Replace, &columns);
        request.partition = vec![transform.parse().expect("field")];
        let name = format!("t{number}");
        run(&scratch.lake, &name, request, std::slice::from_ref(&rows)).await.expect(transform);
        let now = table(&scratch.lake, &name).await;
        assert_eq!(read(&now, Predicate::True).await.num_rows(), rows.num_rows());
        for (row, value) in literals.iter().enumerate() {
            for op in [CmpOp::Eq, CmpOp::LtEq, CmpOp::GtEq, CmpOp::Lt, CmpOp::Gt] {
                let filter = Predicate::Cmp { column: "c".into(), op, value: value.clone() };
                let wanted = filter.matches(&rows).expect("filter");
                let expected: Vec<i64> = (0..rows.num_rows())
                    .filter(|i| wanted.iter().nth(*i).flatten() == Some(true))
                    .map(|i| i as i64)
                    .collect();
                let found = longs(&read(&now, filter).await, "id");
                assert_eq!(found, expected, "{transform} {op:?} row {row}");
            }
        }
        let nulls = longs(&read(&now, Predicate::IsNull("c".into())).await, "id");
        assert_eq!(nulls.len(), rows.column(1).null_count(), "{transform}");
    }
}

#[tokio::test]
async fn temporal_transforms_lose_no_row() {
    let micros = [0, -1, 1, -DAY, DAY - 1, -DAY - 1, 365 * DAY, -719_162 * DAY, 2_932_896 * DAY];
    let transforms = ["year(c)", "month(c)", "day(c)", "hour(c)", "bucket(4, c)", "c"];
    let literals = micros.iter().map(|value| Literal::Timestamptz(*value)).collect();
    check(&transforms, LakeType::Timestamptz, stamps(&micros), literals).await;
    let days = [0, -1, 1, 30, 31, -365, -719_162, 2_932_896];
    let literals = days.iter().map(|value| Literal::Date(*value)).collect();
    let dates = Arc::new(Date32Array::from(days.to_vec()));
    check(&["year(c)", "month(c)", "day(c)", "bucket(4, c)", "c"], LakeType::Date, dates, literals)
        .await;
}

#[tokio::test]
async fn value_transforms_lose_no_row() {
    let ints = [0, -1, 1, 9, 10, -10, -11, i32::MAX, i32::MIN + 16];
    let literals = ints.iter().map(|value| Literal::Int(*value)).collect();
    let mut values: Vec<Option<i32>> = ints.iter().copied().map(Some).collect();
    values.push(None);
    let array = Arc::new(Int32Array::from(values));
    check(&["truncate(10, c)", "bucket(7, c)", "c"], LakeType::Int, array, literals).await;
    let texts = ["", "a", "ab", "abc", "abcd", "é", "éa", "éab", "\u{10FFFF}\u{10FFFF}x"];
    let literals = texts.iter().map(|value| Literal::String((*value).into())).collect();
    let array = Arc::new(StringArray::from(texts.to_vec()));
    check(&["truncate(2, c)", "bucket(7, c)", "c"], LakeType::String, array, literals).await;
    let unscaled = [0, -1, 1, 1_065, -1_065, 10_i128.pow(20)];
    let data_type = LakeType::Decimal { precision: 22, scale: 2 };
    let literal = |unscaled| Literal::Decimal { unscaled, precision: 22, scale: 2 };
    let array = Decimal128Array::from(unscaled.to_vec()).with_precision_and_scale(22, 2);
    let array = Arc::new(array.expect("decimals"));
    let literals = unscaled.into_iter().map(literal).collect();
    check(&["truncate(50, c)", "bucket(7, c)", "c"], data_type, array, literals).await;
}

#[tokio::test]
async fn other_partition_columns_work_too() {
    let uuids: Vec<Uuid> = (0..5_u128).map(|n| Uuid::from_u128(n << 100 | n)).collect();
    let literals = uuids.iter().map(|value| Literal::Uuid(*value)).collect();
    let array = FixedSizeBinaryArray::try_from_iter(uuids.iter().map(Uuid::as_bytes));
    let array = Arc::new(array.expect("uuids"));
    check(&["bucket(3, c)"], LakeType::Uuid, array, literals).await;
    let bytes: [&[u8]; 4] = [b"", b"\0", b"ab", &[0xFF; 30]];
    let literals = bytes.iter().map(|value| Literal::Binary(value.to_vec())).collect();
    let array = Arc::new(BinaryArray::from(bytes.to_vec()));
    check(&["bucket(3, c)", "truncate(1, c)", "c"], LakeType::Binary, array, literals).await;
    let array = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
    let literals = vec![Literal::Boolean(true), Literal::Boolean(false)];
    check(&["c"], LakeType::Boolean, array, literals).await;
}

#[tokio::test]
async fn uuids_are_no_partition_values_and_the_error_says_what_to_do() {
    let scratch = Scratch::new().await;
    let columns = schema(&[("c", LakeType::Uuid)]);
    let mut request = request(StageKind::Replace, &columns);
    request.partition = vec!["c".parse().expect("field")];
    let error = scratch.lake.stage(&org("401"), "t", request).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
    assert_eq!(error.hint_text(), Some("use bucket(16, c)"));
}

#[tokio::test]
async fn little_memory_makes_more_row_groups_and_the_same_rows() {
    let scratch = Scratch::new().await;
    let columns = TableSchema::new(vec![
        Field::new("id", LakeType::Long).required(),
        Field::new("c", LakeType::Long),
    ]);
    let mut request = request(StageKind::Replace, &columns);
    request.partition = vec!["c".parse().expect("field")];
    request.memory_bytes = 100_000;
    let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
    let (mut a, mut b) = (stage.writer(), stage.writer());
    for part in 0..40_i64 {
        let ids = Int64Array::from_iter_values(part * 1_000..(part + 1) * 1_000);
        let keys = Int64Array::from_iter_values((0..1_000).map(|row| row % 300));
        let rows = batch(&columns, vec![Arc::new(ids), Arc::new(keys)]);
        let writer = if part % 2 == 0 { &mut a } else { &mut b };
        writer.write(rows).await.expect("write");
    }
    let mut files = a.finish().await.expect("finish");
    files.extend(b.finish().await.expect("finish"));
    assert!(files.len() < 1_300, "{} files for 300 partitions of two writers", files.len());
    let summary = summary(&files);
    assert_eq!(summary.rows, 40_000);
    stage.commit(files, &checkpoint(0), summary).await.expect("commit");
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, (0..40_000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn large_input_is_cut_into_files_of_the_target_size() {
    let scratch = Scratch::new().await;
    let mut request = request(StageKind::Replace, &id_and_text());
    request.target_file_bytes = 100_000;
    let batches: Vec<_> = (0..50).map(|part| rows(part * 4_000..(part + 1) * 4_000)).collect();
    run(&scratch.lake, "t", request, &batches).await.expect("create");
    let files = scratch.files(".parquet");
    assert!((3..=20).contains(&files.len()), "{} files", files.len());
    assert_eq!(ids(&table(&scratch.lake, "t").await).await.len(), 200_000);
}
