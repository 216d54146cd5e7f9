//! What every source has to do, as one suite that all of them run.
//!
//! A fixture names a table with rows of two orgs; the suite reads it in all the ways the pipeline
//! does. It asserts, so it is for tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use polder_core::spec::Filter;
use polder_core::{
    CursorRange, CursorValue, ErrorCode, OrgId, ReadPlan, ReadRequest, Result, RunProgress, Source,
    TableSchema,
};

/// What the source under test holds.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// The org whose rows are read.
    pub org: OrgId,
    /// The table, as a table spec says it; with `filter` it selects the org's rows.
    pub from: String,
    pub filter: Option<Filter>,
    /// A column with a value of its own in every row, and those values as text, for the org.
    pub key: String,
    pub keys: BTreeSet<String>,
    /// A cursor column, a bound, and the keys of the org's rows at or above it (fewer than all).
    pub cursor: Option<(String, CursorValue, BTreeSet<String>)>,
    /// Some columns in another order than the table's, the key among them.
    pub columns: Vec<String>,
    /// A table that exists and has no rows for the org.
    pub empty: Option<String>,
    /// A table that does not exist.
    pub missing: String,
}

impl Fixture {
    /// A read of the fixture's table, all of it.
    pub fn request(&self) -> ReadRequest {
        ReadRequest {
            org: self.org.clone(),
            from: self.from.clone(),
            filter: self.filter.clone(),
            predicate: polder_core::Predicate::True,
            columns: None,
            cursor: None,
            snapshot_read: None,
            key: Vec::new(),
            objects_read: BTreeMap::new(),
            known_schema: None,
            types: BTreeMap::new(),
            on_unrepresentable: polder_core::spec::OnUnrepresentable::default(),
            format: polder_core::spec::FormatOptions::default(),
            splits_max: NonZeroUsize::MIN,
            batch_bytes: 1 << 20,
            connections: polder_core::ConnectionLimits::default(),
            progress: Arc::new(RunProgress::default()),
        }
    }
}

/// Reads every split of a plan and checks each batch against the plan's schema.
///
/// # Errors
/// The first error of a split.
///
/// # Panics
/// When a batch has another layout than the plan says.
pub async fn read_all(plan: ReadPlan) -> Result<Vec<RecordBatch>> {
    let layout = plan.schema.to_arrow();
    let mut batches = Vec::new();
    for split in plan.splits {
        let read: Vec<_> = split.read().map_ok(|batch| batch.records).try_collect().await?;
        for batch in &read {
            assert_eq!(batch.schema(), layout, "a batch differs from the plan's schema");
            assert!(batch.num_rows() > 0, "a batch without rows");
        }
        batches.extend(read);
    }
    Ok(batches)
}

/// The values of a column as text, nulls as the empty text.
///
/// # Panics
/// When there is no such column.
pub fn values(batches: &[RecordBatch], column: &str) -> Vec<String> {
    let mut values = Vec::new();
    for batch in batches {
        let array = batch.column_by_name(column).expect("the column is there");
        let options = FormatOptions::default();
        let formatter = ArrayFormatter::try_new(array, &options).expect("a printable column");
        values.extend((0..array.len()).map(|row| formatter.value(row).to_string()));
    }
    values
}

/// Runs the suite.
///
/// # Panics
/// On the first thing that is not as it has to be.
pub async fn conformance(source: &dyn Source, fixture: &Fixture) {
    let found = source.check().await.expect("check");
    assert!(!found.is_empty(), "check says what it found");
    source.discover().await.expect("discover");
    every_row_once(source, fixture).await;
    projection(source, fixture).await;
    cursor(source, fixture).await;
    objects(source, fixture).await;
    unknown_and_empty(source, fixture).await;
    cancellation(source, fixture).await;
}

/// All rows of the org, each once, none of another org, over any number of splits and batch sizes,
/// and the same again from a new plan that knows the table.
async fn every_row_once(source: &dyn Source, fixture: &Fixture) {
    let mut schema: Option<TableSchema> = None;
    for (splits, batch_bytes) in [(1, 1 << 20), (4, 1 << 20), (2, 1)] {
        let mut request = fixture.request();
        request.splits_max = NonZeroUsize::new(splits).expect("not zero");
        request.batch_bytes = batch_bytes;
        request.known_schema.clone_from(&schema);
        let progress = request.progress.clone();
        let plan = source.plan(request).await.expect("plan");
        assert!(plan.splits.len() <= splits, "no more splits than allowed");
        if let Some(earlier) = &schema {
            assert_eq!(plan.schema, *earlier, "a second plan sees the same schema");
        }
        schema = Some(plan.schema.clone());
        let read = values(&read_all(plan).await.expect("read"), &fixture.key);
        same_keys(&read, &fixture.keys);
        assert_eq!(progress.snapshot().rows_read, read.len() as u64, "rows are counted once");
        assert!(progress.snapshot().bytes_read > 0, "bytes are counted");
    }
}

async fn projection(source: &dyn Source, fixture: &Fixture) {
    let mut request = fixture.request();
    request.columns = Some(fixture.columns.clone());
    let plan = source.plan(request).await.expect("plan");
    let names: Vec<_> = plan.schema.fields.iter().map(|field| field.name.clone()).collect();
    assert_eq!(names, fixture.columns, "the columns asked for, in their order");
    same_keys(&values(&read_all(plan).await.expect("read"), &fixture.key), &fixture.keys);
}

async fn cursor(source: &dyn Source, fixture: &Fixture) {
    let Some((column, lower, keys)) = &fixture.cursor else {
        assert!(!source.capabilities().cursor, "a source with cursors needs one in its fixture");
        return;
    };
    for (lower, expected) in [(None, &fixture.keys), (Some(lower.clone()), keys)] {
        let mut request = fixture.request();
        request.cursor = Some(CursorRange { column: column.clone(), lower });
        let plan = source.plan(request).await.expect("plan");
        same_keys(&values(&read_all(plan).await.expect("read"), &fixture.key), expected);
    }
}

async fn objects(source: &dyn Source, fixture: &Fixture) {
    if !source.capabilities().objects {
        return;
    }
    let first = source.plan(fixture.request()).await.expect("plan");
    let objects = first.objects.clone();
    assert!(!objects.is_empty(), "a source with objects names them");
    let mut request = fixture.request();
    request.objects_read.clone_from(&objects);
    request.known_schema = Some(first.schema.clone());
    let again = source.plan(request).await.expect("plan");
    assert_eq!(again.objects, objects, "objects read earlier stay known");
    assert!(read_all(again).await.expect("read").is_empty(), "nothing is read twice");
}

async fn unknown_and_empty(source: &dyn Source, fixture: &Fixture) {
    let mut request = fixture.request();
    request.from.clone_from(&fixture.missing);
    match source.plan(request).await {
        Ok(_) => panic!("a missing table has no plan"),
        Err(error) => assert_eq!(error.code(), ErrorCode::SourceNotFound),
    }
    if let Some(empty) = &fixture.empty {
        let mut request = fixture.request();
        request.from.clone_from(empty);
        let plan = source.plan(request).await.expect("plan of an empty table");
        assert!(read_all(plan).await.expect("read").is_empty(), "an empty table has no rows");
    }
}

/// A plan, a split or a stream that is dropped leaves nothing behind that hinders the next read.
async fn cancellation(source: &dyn Source, fixture: &Fixture) {
    drop(source.plan(fixture.request()).await.expect("plan"));
    let mut request = fixture.request();
    request.batch_bytes = 1;
    let mut plan = source.plan(request).await.expect("plan");
    let mut stream = plan.splits.pop().expect("a split").read();
    stream.try_next().await.expect("a batch");
    drop(stream);
    drop(plan);
    let plan = source.plan(fixture.request()).await.expect("plan");
    same_keys(&values(&read_all(plan).await.expect("read"), &fixture.key), &fixture.keys);
}

fn same_keys(read: &[String], expected: &BTreeSet<String>) {
    let distinct: BTreeSet<_> = read.iter().cloned().collect();
    assert_eq!(distinct.len(), read.len(), "no row is read twice");
    assert_eq!(distinct, *expected, "exactly the org's rows are read");
}
