//! Rows that another engine deletes by equality, whatever becomes of columns, partitions and files.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, new_null_array};
use arrow::datatypes::{Field, Schema};
use futures::TryStreamExt;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, MAIN_BRANCH, Manifest,
    ManifestContentType, ManifestFile, ManifestList, ManifestListWriter, ManifestWriterBuilder,
    Operation, PartitionSpec, Snapshot, SnapshotReference, SnapshotRetention, Struct, Summary,
    TableMetadata,
};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
use polder_core::{ErrorCode, LakeType};
use polder_lake::{
    Catalog, LakeTable, Predicate, ScanRequest, Stage, StageKind, StagedFile, Store,
};
use uuid::Uuid;

use crate::support::*;

fn local(location: &str) -> &str {
    location.strip_prefix("file://").expect("local")
}

/// The present state of the table `t`, and the manifests that it has.
async fn state(scratch: &Scratch) -> (TableMetadata, Vec<ManifestFile>) {
    let now = table(&scratch.lake, "t").await;
    let metadata: TableMetadata = serde_json::from_value(metadata(&now)).expect("metadata");
    let list = metadata.current_snapshot().expect("current").manifest_list();
    let list = std::fs::read(local(list)).expect("list");
    let list = ManifestList::parse_with_version(&list, FormatVersion::V2).expect("list");
    (metadata, list.consume_entries().into_iter().collect())
}

/// The partition of the first of the table's data files.
fn place(manifests: &[ManifestFile]) -> (i32, Struct) {
    let data = manifests.iter().find(|found| found.content == ManifestContentType::Data);
    let data = data.expect("data");
    let bytes = std::fs::read(local(&data.manifest_path)).expect("manifest");
    let manifest = Manifest::parse_avro(&bytes).expect("manifest");
    let partition = manifest.entries()[0].data_file().partition().clone();
    (data.partition_spec_id, partition)
}

/// A file of equality deletes by one column, at a new place of the table.
fn write_deletes(metadata: &TableMetadata, id: i32, values: ArrayRef) -> (String, u64) {
    let marks = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    let field = Field::new("c", values.data_type().clone(), true).with_metadata(marks);
    let rows = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![values]);
    let rows = rows.expect("rows");
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).expect("writer");
    writer.write(&rows).expect("write");
    let bytes = writer.into_inner().expect("a file");
    let location = format!("{}/data/{}.parquet", metadata.location(), Uuid::new_v4());
    std::fs::write(local(&location), &bytes).expect("write");
    (location, bytes.len() as u64)
}

/// Another engine's commit: rows are deleted that have one of these values, in the partition of the first
/// data file. Returns the snapshot.
async fn delete(scratch: &Scratch, column: &str, values: ArrayRef) -> i64 {
    let (metadata, manifests) = state(scratch).await;
    let (spec_id, partition) = place(&manifests);
    let schema = metadata.current_schema();
    let id = schema.field_by_name(column).expect("column").id;
    let rows = values.len() as u64;
    let (location, size) = write_deletes(&metadata, id, values);
    let file = DataFileBuilder::default()
        .content(DataContentType::EqualityDeletes)
        .file_path(location)
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .partition_spec_id(spec_id)
        .record_count(rows)
        .file_size_in_bytes(size)
        .equality_ids(Some(vec![id]))
        .build();
    let spec = metadata.partition_spec_by_id(spec_id).expect("spec");
    let snapshot = (Uuid::new_v4().as_u128() >> 65) as i64;
    let folder = format!("{}/metadata", metadata.location());
    let io = FileIO::new_with_fs();
    let output = io.new_output(format!("{folder}/{}.avro", Uuid::new_v4())).expect("output");
    let spec = PartitionSpec::clone(spec);
    let writer = ManifestWriterBuilder::new(output, Some(snapshot), schema.clone(), spec);
    let mut writer = writer.build_v2_deletes();
    writer.add_file(file.expect("file"), -1).expect("added");
    let manifest = writer.write_manifest_file().await.expect("manifest");
    let path = format!("{folder}/snap-{}.avro", Uuid::new_v4());
    let output = io.new_output(&path).expect("output").writer().await.expect("writer");
    let (parent, number) = (metadata.current_snapshot_id(), metadata.next_sequence_number());
    let mut list = ManifestListWriter::v2(output, snapshot, parent, number);
    list.add_manifests(manifests.into_iter().chain([manifest])).expect("manifests");
    list.close().await.expect("list");
    commit(scratch, &metadata, snapshot, path).await;
    snapshot
}

async fn commit(scratch: &Scratch, metadata: &TableMetadata, id: i64, list: String) {
    let summary = Summary { operation: Operation::Delete, additional_properties: HashMap::new() };
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(metadata.next_sequence_number())
        .with_timestamp_ms(metadata.last_updated_ms())
        .with_manifest_list(list)
        .with_summary(summary)
        .with_schema_id(metadata.current_schema_id())
        .build();
    let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
    let updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference },
    ];
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    let ident = TableIdent::new(NamespaceIdent::new("org_401".to_owned()), "t".to_owned());
    catalog.commit(&ident, &[], updates).await.expect("committed");
}

fn longs_of(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

async fn ids_now(scratch: &Scratch) -> Vec<i64> {
    ids(&table(&scratch.lake, "t").await).await
}

async fn files(table: &LakeTable) -> Vec<String> {
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let files = table.plan(scan).await.expect("plan").files;
    files.into_iter().map(|file| file.path).collect()
}

/// The rows of the files, rewritten by the stage.
async fn rewritten(table: &LakeTable, stage: &Stage, files: &[String]) -> Vec<StagedFile> {
    let wanted: HashSet<String> = files.iter().cloned().collect();
    let stream = table.read_files(&wanted).await.expect("read");
    let batches: Vec<_> = stream.try_collect().await.expect("rows");
    written(stage, &batches).await
}

/// A table with the ids 0 to 4 in one file.
async fn loaded(partition: &[&str]) -> Scratch {
    let scratch = Scratch::new().await;
    let mut first = request(StageKind::Replace, &id_and_text());
    first.partition = partition.iter().map(|text| text.parse().expect("field")).collect();
    run(&scratch.lake, "t", first, &[rows(0..5)]).await.expect("create");
    scratch
}

/// Spec, *Equality Delete Files*: a column that was dropped is still used.
#[tokio::test]
async fn a_column_that_was_dropped_still_tells_which_rows_are_deleted() {
    let scratch = loaded(&[]).await;
    let lake = &scratch.lake;
    let gone: ArrayRef = Arc::new(StringArray::from(vec!["row 2", "row 9"]));
    let deleted = delete(&scratch, "text", gone).await;
    assert_eq!(ids_now(&scratch).await, [0, 1, 3, 4]);
    let id = schema(&[("id", LakeType::Long)]);
    let more = batch(&id, vec![longs_of(&[5])]);
    run(lake, "t", request(StageKind::Append, &id), &[more]).await.expect("dropped");
    let now = table(lake, "t").await;
    assert_eq!(now.schema(), id);
    let last = now.current_snapshot().expect("current").id;
    assert_eq!(ids(&now).await, [0, 1, 3, 4, 5]);
    // So it does in states whose columns are not those of the table as it is now.
    lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await.expect("rolled back");
    let back = table(lake, "t").await;
    assert_eq!(back.schema(), id_and_text());
    for (snapshot, expected) in [(deleted, &[0, 1, 3, 4][..]), (last, &[0, 1, 3, 4, 5][..])] {
        let found = read_at(&back, Some(snapshot), Predicate::True).await;
        assert_eq!(longs(&found, "id"), expected);
    }
    assert_eq!(ids(&back).await, [0, 1, 2, 3, 4]);
}

/// A column that came later is null in older files, whatever its type.
#[tokio::test]
async fn files_from_before_a_column_of_any_type_have_nulls_to_delete_by() {
    let scratch = loaded(&[]).await;
    let mut columns = id_and_text();
    columns.fields.extend(schema(&[("key", LakeType::Uuid)]).fields);
    let keys = new_null_array(&LakeType::Uuid.to_arrow(), 1);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["row 5"]));
    let more = batch(&columns, vec![longs_of(&[5]), text, keys]);
    let evolve = request(StageKind::Append, &columns);
    run(&scratch.lake, "t", evolve, &[more]).await.expect("evolved");
    delete(&scratch, "id", longs_of(&[1])).await;
    assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4, 5]);
    delete(&scratch, "key", new_null_array(&LakeType::Uuid.to_arrow(), 1)).await;
    assert!(ids_now(&scratch).await.is_empty());
}

#[tokio::test]
async fn deletes_that_come_while_rows_are_rewritten_apply_to_them() {
    for partition in [&[] as &[&str], &["truncate(10, id)"]] {
        let scratch = loaded(partition).await;
        let before = table(&scratch.lake, "t").await;
        let mut request = request(StageKind::Files, &id_and_text());
        request.partition = partition.iter().map(|text| text.parse().expect("field")).collect();
        let stage = scratch.lake.stage_on(&before, request).expect("stage");
        let old = files(&before).await;
        let new = rewritten(&before, &stage, &old).await;
        delete(&scratch, "id", longs_of(&[1])).await;
        stage.rewrite_files(old, new).await.expect("rewritten");
        assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4], "{partition:?}");
    }
}

/// They are of one partition, and would stay there.
#[tokio::test]
async fn rows_do_not_go_into_another_partition_past_deletes_of_theirs() {
    let scratch = loaded(&["truncate(10, id)"]).await;
    let before = table(&scratch.lake, "t").await;
    let stage = || scratch.lake.stage_on(&before, request(StageKind::Files, &id_and_text()));
    let (one, two) = (stage().expect("stage"), stage().expect("stage"));
    let old = files(&before).await;
    let (new, again) = (rewritten(&before, &one, &old).await, rewritten(&before, &two, &old).await);
    delete(&scratch, "id", longs_of(&[1])).await;
    let error = one.rewrite_files(old.clone(), new).await.expect_err("1 would come back");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    let error = two.remove_rows(Vec::new(), old, again).await.expect_err("1 would come back");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4]);
    // Planned anew, it goes.
    let now = table(&scratch.lake, "t").await;
    let request = request(StageKind::Files, &id_and_text());
    let stage = scratch.lake.stage_on(&now, request).expect("stage");
    let old = files(&now).await;
    let new = rewritten(&now, &stage, &old).await;
    stage.rewrite_files(old, new).await.expect("rewritten");
    assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4]);
}

/// What takes the rows' place is newer than the deletes.
#[tokio::test]
async fn rows_are_not_overwritten_past_deletes_of_theirs() {
    let scratch = loaded(&[]).await;
    let before = table(&scratch.lake, "t").await;
    let request = request(StageKind::Files, &id_and_text());
    let stage = scratch.lake.stage_on(&before, request).expect("stage");
    let old = files(&before).await;
    let new = rewritten(&before, &stage, &old).await;
    delete(&scratch, "id", longs_of(&[1])).await;
    let done = stage.overwrite_files(Predicate::True, old, new).await;
    assert_eq!(done.expect_err("1 would come back").code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4]);
}
