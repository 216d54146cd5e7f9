//! Creating, appending, replacing, evolving and finding tables.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use polder_core::{ErrorCode, Field, LakeType, Principal, TableSchema};
use polder_lake::{CmpOp, Literal, Predicate, RefKind, ScanRequest, StageKind};
use uuid::Uuid;

use crate::support::*;

fn equals(column: &str, value: Literal) -> Predicate {
    Predicate::Cmp { column: column.to_owned(), op: CmpOp::Eq, value }
}

#[tokio::test]
async fn a_table_is_created_appended_to_and_replaced() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let schema = id_and_text();
    let first = request(StageKind::Replace, &schema);
    let run_id = first.run_id;
    let made = run(lake, "t", first, &[rows(0..3)]).await.expect("create");
    assert_eq!((made.already, made.version.as_deref()), (false, Some("v1")));
    let created = table(lake, "t").await;
    assert_eq!((created.name(), created.org().as_str()), ("t", "401"));
    assert_eq!(created.run_ids(), [run_id]);
    assert_eq!(created.checkpoint().expect("checkpoint"), Some(checkpoint(3)));
    assert_eq!(created.schema(), schema);

    let more = request(StageKind::Append, &schema);
    let appended = run(lake, "t", more, &[rows(3..5), rows(5..6)]).await.expect("append");
    assert_eq!(appended.version, None);
    let table_now = table(lake, "t").await;
    assert_eq!(ids(&table_now).await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(ids(&created).await, [0, 1, 2], "an opened table does not change");
    let summary = summary_of(&table_now);
    let expected = [
        ("operation", "append"),
        ("added-data-files", "1"),
        ("added-records", "3"),
        ("total-records", "6"),
        ("total-data-files", "2"),
        ("total-delete-files", "0"),
    ];
    for (key, value) in expected {
        assert_eq!(summary.get(key).map(String::as_str), Some(value), "{key}");
    }

    run(lake, "t", request(StageKind::Replace, &schema), &[rows(7..8)]).await.expect("replace");
    let replaced = table(lake, "t").await;
    assert_eq!(replaced.uuid(), created.uuid());
    assert_eq!(ids(&replaced).await, [7]);
    let summary = summary_of(&replaced);
    let expected = [
        ("operation", "overwrite"),
        ("deleted-records", "6"),
        ("deleted-data-files", "2"),
        ("total-records", "1"),
        ("total-data-files", "1"),
    ];
    for (key, value) in expected {
        assert_eq!(summary.get(key).map(String::as_str), Some(value), "{key}");
    }
    let refs = replaced.refs();
    let names: Vec<_> = refs.iter().map(|r| (r.name.as_str(), r.kind)).collect();
    assert_eq!(names, [("main", RefKind::Branch), ("v1", RefKind::Tag), ("v2", RefKind::Tag)]);
    let old = read_at(&replaced, Some(made.snapshot_id), Predicate::True).await;
    assert_eq!(longs(&old, "id"), [0, 1, 2]);
    assert_eq!(replaced.resolve("v1").expect("v1"), made.snapshot_id);
    let by_id = replaced.resolve(&appended.snapshot_id.to_string()).expect("id");
    assert_eq!(by_id, appended.snapshot_id);
    let error = replaced.resolve("v9").expect_err("none");
    assert_eq!(error.code(), ErrorCode::LakeNotFound);
    assert!(error.hint_text().expect("hint").contains("main, v1, v2"));
    let snapshots = replaced.snapshots();
    let counts: Vec<_> = snapshots.iter().map(|s| (s.rows, s.files)).collect();
    assert_eq!(counts, [(Some(3), Some(1)), (Some(6), Some(2)), (Some(1), Some(1))]);
    assert_eq!(snapshots[0].refs, ["v1"]);
    assert_eq!(snapshots[1].parent, Some(snapshots[0].id));
}

#[tokio::test]
async fn no_rows_make_an_empty_table_and_an_empty_append_moves_the_checkpoint() {
    let scratch = Scratch::new().await;
    let schema = id_and_text();
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), &[]).await.expect("empty");
    let empty = table(&scratch.lake, "t").await;
    assert_eq!(ids(&empty).await, [0; 0]);
    assert_eq!(empty.current_snapshot().expect("snapshot").rows, Some(0));
    assert!(scratch.files(".parquet").is_empty());
    let none = rows(0..0);
    run(&scratch.lake, "t", request(StageKind::Append, &schema), &[none]).await.expect("nothing");
    run(&scratch.lake, "t", request(StageKind::Append, &schema), &[rows(0..1)]).await.expect("one");
    let now = table(&scratch.lake, "t").await;
    assert_eq!((now.snapshots().len(), now.run_ids().len()), (3, 3));
    assert_eq!(ids(&now).await, [0]);
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), &[]).await.expect("emptied");
    assert_eq!(ids(&table(&scratch.lake, "t").await).await, [0; 0]);
}

#[tokio::test]
async fn an_append_needs_the_table_and_its_shape() {
    let scratch = Scratch::new().await;
    let schema = id_and_text();
    let error = run(&scratch.lake, "t", request(StageKind::Append, &schema), &[])
        .await
        .expect_err("no table");
    assert_eq!(error.code(), ErrorCode::LakeNotFound);
    run(&scratch.lake, "t", request(StageKind::Replace, &schema), &[]).await.expect("create");
    let other = crate::support::schema(&[("id", LakeType::String), ("text", LakeType::String)]);
    let error =
        run(&scratch.lake, "t", request(StageKind::Append, &other), &[]).await.expect_err("shape");
    assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
}

fn schema_without_text() -> TableSchema {
    TableSchema::new(vec![Field::new("id", LakeType::Long)])
}

#[tokio::test]
async fn a_batch_of_another_layout_is_refused() {
    let scratch = Scratch::new().await;
    let request = request(StageKind::Replace, &id_and_text());
    let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let batches = [
        batch(&schema_without_text(), vec![Arc::clone(&ids)]),
        RecordBatch::try_from_iter([("id", Arc::clone(&ids)), ("txt", ids)]).expect("batch"),
    ];
    for wrong in batches {
        let error = stage.writer().write(wrong).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::Internal);
    }
}

#[tokio::test]
async fn an_append_adds_columns_that_old_rows_lack() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let mut columns = id_and_text();
    run(lake, "t", request(StageKind::Replace, &columns), &[rows(0..2)]).await.expect("create");
    columns.fields.push(Field::new("score", LakeType::Long).with_source_id(9));
    let more = batch(
        &columns,
        vec![
            Arc::new(Int64Array::from(vec![2, 3])),
            Arc::new(StringArray::from(vec!["a", "b"])),
            Arc::new(Int64Array::from(vec![Some(20), None])),
        ],
    );
    run(lake, "t", request(StageKind::Append, &columns), &[more]).await.expect("evolved");
    let now = table(lake, "t").await;
    assert_eq!(now.schema(), columns, "source ids are kept");
    let all = read(&now, Predicate::True).await;
    assert_eq!((all.num_rows(), longs(&all, "score")), (4, vec![20]));
    let found = read(&now, equals("score", Literal::Long(20))).await;
    assert_eq!(longs(&found, "id"), [2]);
    let missing = read(&now, Predicate::IsNull("score".into())).await;
    assert_eq!(longs(&missing, "id"), [0, 1, 3]);
    let v1 = now.resolve("v1").expect("v1");
    assert_eq!(now.schema_at(Some(v1)).expect("old").0, id_and_text());
    assert_eq!(read_at(&now, Some(v1), Predicate::True).await.num_columns(), 2);
}

#[tokio::test]
async fn a_replace_may_change_everything_and_versions_keep_their_shape() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let old = TableSchema::new(vec![
        Field::new("id", LakeType::Long).with_source_id(1),
        Field::new("region", LakeType::String).with_source_id(2),
    ]);
    let mut first = request(StageKind::Replace, &old);
    first.partition = vec!["region".parse().expect("field")];
    let data = batch(
        &old,
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            Arc::new(StringArray::from(vec!["eu", "us", "eu"])),
        ],
    );
    run(lake, "t", first, &[data]).await.expect("create");
    // The partition's column goes, `id` gets another name, and a new column gets the old one's.
    let new = TableSchema::new(vec![
        Field::new("region", LakeType::Long).with_source_id(3),
        Field::new("key", LakeType::Long).with_source_id(1),
    ]);
    let data = batch(
        &new,
        vec![Arc::new(Int64Array::from(vec![7, 8])), Arc::new(Int64Array::from(vec![10, 11]))],
    );
    run(lake, "t", request(StageKind::Replace, &new), &[data]).await.expect("replace");
    let now = table(lake, "t").await;
    assert_eq!((now.schema(), now.partition()), (new, vec![]));
    let found = read(&now, equals("region", Literal::Long(8))).await;
    assert_eq!(longs(&found, "key"), [11]);
    let v1 = now.resolve("v1").expect("v1");
    let eu = equals("region", Literal::String("eu".into()));
    assert_eq!(longs(&read_at(&now, Some(v1), eu).await, "id"), [1, 3]);
    let ids: Vec<_> = field_ids(&now, None).into_iter().zip(field_ids(&now, Some(v1))).collect();
    assert_eq!(
        ids,
        [(("region".into(), 3), ("id".into(), 1)), (("key".into(), 1), ("region".into(), 2))]
    );
}

fn field_ids(table: &polder_lake::LakeTable, snapshot: Option<i64>) -> Vec<(String, i32)> {
    let (_, arrow) = table.schema_at(snapshot).expect("schema");
    let fields = arrow.fields().iter().map(|field| {
        let id = field.metadata()["PARQUET:field_id"].parse().expect("id");
        (field.name().clone(), id)
    });
    fields.collect()
}

#[tokio::test]
async fn names_never_become_paths() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    for name in ["../org_2/t", "../../../escaped", "a*b", "é ü/\\", "."] {
        run(lake, name, request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
            .await
            .expect(name);
        let made = table(lake, name).await;
        assert_eq!(ids(&made).await, [0]);
        let root = format!("file://{}/lake/", scratch.folder.path().display());
        let below = made.location().strip_prefix(&root).expect("below the warehouse");
        let parts: Vec<_> = below.split('/').map(str::parse::<Uuid>).collect();
        assert!(parts.len() == 2 && parts.iter().all(Result::is_ok), "{below}");
    }
    assert_eq!(lake.tables(&org("401")).await.expect("tables").len(), 5);
    for name in ["", "a\nb", &"x".repeat(201)] {
        let request = request(StageKind::Replace, &id_and_text());
        let error = lake.stage(&org("401"), name, request).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
    }
}

#[tokio::test]
async fn orgs_have_places_of_their_own() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    for id in ["401", "402"] {
        let request = request(StageKind::Replace, &id_and_text());
        let stage = lake.stage(&org(id), "t", request).await.expect("stage");
        let files = written(&stage, &[rows(0..1)]).await;
        let summary = summary(&files);
        stage.commit(files, &checkpoint(0), summary).await.expect("commit");
    }
    let all = lake.orgs(&Principal::Operator).await.expect("orgs");
    assert_eq!(all.iter().map(polder_core::OrgId::as_str).collect::<Vec<_>>(), ["401", "402"]);
    let own = Principal::Org("402".parse().expect("org"));
    assert_eq!(lake.orgs(&own).await.expect("orgs").len(), 1);
    assert!(lake.tables(&org("403")).await.expect("none").is_empty());
    assert!(lake.table(&org("403"), "t").await.expect("none").is_none());
    let a = lake.table(&org("401"), "t").await.expect("load").expect("table");
    let b = lake.table(&org("402"), "t").await.expect("load").expect("table");
    let folder = |location: &str| location.rsplit_once('/').expect("folder").0.to_owned();
    assert_ne!(folder(a.location()), folder(b.location()));
}

#[tokio::test]
async fn chosen_columns_come_in_the_order_asked_for() {
    let scratch = Scratch::new().await;
    run(&scratch.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..9)])
        .await
        .expect("create");
    let now = table(&scratch.lake, "t").await;
    let filter = equals("id", Literal::Int(4));
    let scan = ScanRequest { snapshot: None, filter, columns: Some(vec!["text".into()]) };
    let stream = now.read(scan).await.expect("read");
    let batches: Vec<RecordBatch> = futures::TryStreamExt::try_collect(stream).await.expect("rows");
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].schema().fields().len(), 1);
    let text = batches[0].column(0).as_any().downcast_ref::<StringArray>().expect("text");
    assert_eq!((text.len(), text.value(0)), (1, "row 4"));
    // Also where both are of one type.
    let columns = schema(&[("a", LakeType::Long), ("b", LakeType::Long)]);
    let of = |value| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let twins = batch(&columns, vec![of(1), of(2)]);
    run(&scratch.lake, "twins", request(StageKind::Replace, &columns), &[twins])
        .await
        .expect("create");
    let filter = equals("a", Literal::Long(1));
    let scan = ScanRequest { snapshot: None, filter, columns: Some(vec!["b".into(), "a".into()]) };
    let stream = table(&scratch.lake, "twins").await.read(scan).await.expect("read");
    let found: Vec<RecordBatch> = futures::TryStreamExt::try_collect(stream).await.expect("rows");
    assert_eq!((longs(&found[0], "b"), longs(&found[0], "a")), (vec![2], vec![1]));
    let scan =
        ScanRequest { snapshot: None, filter: Predicate::True, columns: Some(vec!["x".into()]) };
    assert_eq!(now.read(scan).await.err().expect("unknown").code(), ErrorCode::QueryInvalid);
}
