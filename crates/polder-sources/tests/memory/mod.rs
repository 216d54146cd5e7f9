//! The source of tests is held to what it stands in for.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use polder_core::{CursorValue, ErrorCode, Field, LakeType, Source, TableSchema};
use polder_sources::conformance::{Fixture, conformance};
use polder_sources::memory::{MemorySource, MemoryTable};

use crate::reading::{Vary, read, refused, request};

/// A table with the deals 0, 1, …, in batches that end before these numbers.
fn deals(ends: &[i64]) -> MemoryTable {
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("name", LakeType::String),
    ]);
    let mut start = 0;
    let batch = |end: &i64| {
        let numbers = std::mem::replace(&mut start, *end)..*end;
        let ids = Int64Array::from_iter_values(numbers.clone());
        let names = StringArray::from_iter_values(numbers.map(|n| format!("deal {n}")));
        RecordBatch::try_new(schema.to_arrow(), vec![Arc::new(ids), Arc::new(names)])
            .expect("a batch")
    };
    MemoryTable {
        batches: ends.iter().map(batch).collect(),
        schema: schema.clone(),
        ..MemoryTable::default()
    }
}

#[tokio::test]
async fn the_suite_of_all_sources_passes() {
    let source = MemorySource::new();
    source.put("deal_401", deals(&[10, 20, 30]));
    source.put("deal_402", deals(&[40]));
    source.put("nothing_401", deals(&[]));
    let keys = |numbers: std::ops::Range<i64>| numbers.map(|n| n.to_string()).collect();
    let fixture = Fixture {
        org: "401".parse().expect("org"),
        from: "deal_{org}".to_owned(),
        filter: None,
        key: "id".to_owned(),
        keys: keys(0..30),
        cursor: Some(("id".to_owned(), CursorValue::Int(15), keys(15..30))),
        columns: vec!["name".to_owned(), "id".to_owned()],
        empty: Some("nothing_{org}".to_owned()),
        missing: "deals_{org}".to_owned(),
    };
    conformance(&source, &fixture).await;
}

#[tokio::test]
async fn it_fails_where_it_is_told_to() {
    let source = MemorySource::new();
    source.put("deal", MemoryTable { fail_after: Some(2), ..deals(&[1, 2, 3]) });
    let error = refused(&source, request("deal")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    let error = refused(&source, request("dael")).await;
    assert!(error.hint_text().expect("hint").contains("deal"), "{error:?}");
    source.put("deal", deals(&[2]));
    let found = read(&source, request("deal").columns(&["name"])).await.expect("read");
    assert_eq!(found.shown("name"), ["deal 0", "deal 1"]);
    let error = source.plan(request("deal").columns(&["id", "id"])).await.err().expect("twice");
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
}
