//! The management tables: rows of several writers, columns that come later, nobody else's business.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use polder_core::{ErrorCode, Field, LakeType, ManagementTable, OrgId, Principal};
use polder_lake::Predicate;
use tokio::task::JoinSet;

use crate::support::*;

const EVENTS: ManagementTable =
    ManagementTable { name: "events", columns: || vec![Field::new("id", LakeType::Long)] };

fn events(org: &str, ids: std::ops::Range<i64>) -> RecordBatch {
    let orgs: StringArray = ids.clone().map(|_| Some(org)).collect();
    let ids: Int64Array = ids.map(Some).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(orgs), Arc::new(ids)];
    RecordBatch::try_new(EVENTS.schema().to_arrow(), columns).expect("batch")
}

#[tokio::test]
async fn writers_that_record_at_once_lose_nothing() {
    let scratch = Scratch::new().await;
    let mut writers = JoinSet::new();
    for number in 0..8 {
        let lake = scratch.lake.clone();
        writers.spawn(async move {
            let rows =
                events(if number % 2 == 0 { "1" } else { "2" }, number * 10..number * 10 + 3);
            lake.record(&Principal::Operator, &EVENTS, rows).await
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("joined").expect("recorded");
    }
    let found = scratch.lake.management_table(&Principal::Operator, "events").await.expect("table");
    let found = found.expect("made");
    assert_eq!(found.org(), &OrgId::management());
    let expected: Vec<i64> = (0..8).flat_map(|n| [n * 10, n * 10 + 1, n * 10 + 2]).collect();
    assert_eq!(ids(&found).await, expected);
    assert!(found.versions().is_empty(), "what is recorded has no versions");
    assert_eq!(found.snapshots().len(), 8);
    let filter = Predicate::Cmp {
        column: "org".to_owned(),
        op: polder_lake::CmpOp::Eq,
        value: polder_lake::Literal::String("2".to_owned()),
    };
    assert_eq!(files_planned(&found, filter).await, 4, "an org's rows are in files of their own");
    assert!(scratch.lake.orgs(&Principal::Operator).await.expect("orgs").is_empty());
}

#[tokio::test]
async fn a_column_that_comes_later_is_null_before() {
    const WIDER: ManagementTable = ManagementTable {
        name: "events",
        columns: || vec![Field::new("id", LakeType::Long), Field::new("words", LakeType::String)],
    };
    let scratch = Scratch::new().await;
    let (lake, operator) = (&scratch.lake, Principal::Operator);
    lake.record(&operator, &EVENTS, events("1", 0..1)).await.expect("recorded");
    let mut columns = events("1", 1..2).columns().to_vec();
    columns.push(Arc::new(StringArray::from(vec!["new"])));
    let rows = RecordBatch::try_new(WIDER.schema().to_arrow(), columns).expect("batch");
    lake.record(&operator, &WIDER, rows).await.expect("recorded");
    let found = lake.management_table(&operator, "events").await.expect("table").expect("made");
    assert_eq!(found.schema(), WIDER.schema());
    let rows = read(&found, Predicate::True).await;
    assert_eq!((rows.num_rows(), rows.column(2).null_count()), (2, 1));
}

#[tokio::test]
async fn an_org_reads_and_writes_none_of_them() {
    let scratch = Scratch::new().await;
    let org = Principal::Org("1".parse().expect("id"));
    let denied = scratch.lake.record(&org, &EVENTS, events("1", 0..1)).await.expect_err("denied");
    assert_eq!(denied.code(), ErrorCode::ControlDenied);
    let denied = scratch.lake.management_table(&org, "events").await.expect_err("denied");
    assert_eq!(denied.code(), ErrorCode::ControlDenied);
}
