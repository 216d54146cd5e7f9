//! Columns that change under the rows that are there: what is read back, at every level of nesting.

use arrow::array::RecordBatch;
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use futures::TryStreamExt;
use polder_core::{ErrorCode, Field, LakeType, TableSchema};
use polder_lake::{CmpOp, LakeTable, Literal, Predicate, ScanRequest, StageKind};
use uuid::Uuid;

use crate::support::*;

fn json_batch(schema: &TableSchema, rows: &[&str]) -> RecordBatch {
    let mut reader = ReaderBuilder::new(schema.to_arrow())
        .with_coerce_primitive(false)
        .build(std::io::Cursor::new(rows.join("\n")))
        .expect("reader");
    reader.next().expect("a batch").expect("rows")
}

/// The rows as JSON objects without their nulls, sorted.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>()).expect("JSON");
    writer.finish().expect("JSON");
    let text = String::from_utf8(writer.into_inner()).expect("UTF-8");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn members(fields: &[(&str, LakeType)]) -> LakeType {
    LakeType::Struct(schema(fields).fields)
}

/// A column with the source's id.
fn column(id: i32, name: &str, data_type: LakeType) -> Field {
    Field::new(name, data_type).with_source_id(id)
}

fn before() -> TableSchema {
    TableSchema::new(vec![
        column(1, "id", LakeType::Int),
        column(2, "name", LakeType::String),
        column(3, "s", members(&[("a", LakeType::Int), ("b", LakeType::String)])),
        column(4, "l", LakeType::list_of(members(&[("x", LakeType::Int)]))),
        column(5, "gone", LakeType::String),
    ])
}

/// Widened, renamed, reordered, grown and shrunk, with a list and a struct that are new.
fn after() -> TableSchema {
    TableSchema::new(vec![
        column(1, "id", LakeType::Long),
        column(
            4,
            "l",
            LakeType::list_of(members(&[("y", LakeType::String), ("x", LakeType::Long)])),
        ),
        column(3, "name", members(&[("c", LakeType::Double), ("a", LakeType::Long)])),
        column(2, "label", LakeType::String),
        column(6, "tags", LakeType::list_of(LakeType::String)),
        column(7, "place", members(&[("city", LakeType::String)])),
    ])
}

const OLD: [&str; 3] = [
    r#"{"id":1,"name":"one","s":{"a":10,"b":"x"},"l":[{"x":1},{"x":2}],"gone":"g"}"#,
    r#"{"id":2,"l":[]}"#,
    r#"{"id":3,"name":"three","s":{"b":"y"},"l":[{}]}"#,
];
const NEW: &str = r#"{"id":4294967296,"l":[{"y":"z","x":4294967297}],"name":{"c":0.5,"a":4294967298},"label":"four","tags":["t"],"place":{"city":"Delft"}}"#;
const OLD_AS_NEW: [&str; 3] = [
    r#"{"id":1,"l":[{"x":1},{"x":2}],"name":{"a":10},"label":"one"}"#,
    r#"{"id":2,"l":[]}"#,
    r#"{"id":3,"l":[{}],"name":{},"label":"three"}"#,
];

/// A table of three rows in the old columns and one in the new ones.
async fn evolved() -> Scratch {
    let scratch = Scratch::new().await;
    let first = request(StageKind::Replace, &before());
    run(&scratch.lake, "t", first, &[json_batch(&before(), &OLD)]).await.expect("create");
    let second = request(StageKind::Append, &after());
    run(&scratch.lake, "t", second, &[json_batch(&after(), &[NEW])]).await.expect("evolve");
    scratch
}

async fn read_columns(scratch: &Scratch, filter: Predicate, columns: &[&str]) -> Vec<String> {
    let columns = Some(columns.iter().map(|name| (*name).to_owned()).collect());
    let scan = ScanRequest { snapshot: None, filter, columns };
    let stream = table(&scratch.lake, "t").await.read(scan).await.expect("read");
    lines(&stream.try_collect::<Vec<_>>().await.expect("rows"))
}

#[tokio::test]
async fn old_rows_are_read_under_the_new_columns() {
    let scratch = evolved().await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!(now.schema(), after(), "marks and order are the new ones");
    let mut expected = OLD_AS_NEW.to_vec();
    expected.push(NEW);
    expected.sort_unstable();
    assert_eq!(lines(&[read(&now, Predicate::True).await]), expected);
    let wide = Predicate::Cmp { column: "id".to_owned(), op: CmpOp::LtEq, value: Literal::Long(2) };
    assert_eq!(lines(&[read(&now, wide).await]), OLD_AS_NEW[..2]);
    let all = Predicate::True;
    let some = read_columns(&scratch, all.clone(), &["tags"]).await;
    assert_eq!(some, [r#"{"tags":["t"]}"#, "{}", "{}", "{}"], "a row each, of no column of theirs");
    let some = read_columns(&scratch, Predicate::IsNull("place".into()), &["label"]).await;
    assert_eq!(some, [r#"{"label":"one"}"#, r#"{"label":"three"}"#, "{}"]);
}

/// Types of which the `iceberg` crate makes no nulls by itself.
#[tokio::test]
async fn columns_of_any_type_that_came_later_are_null_in_old_rows() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let old = schema(&[("id", LakeType::Long)]);
    let first = json_batch(&old, &[r#"{"id":1}"#]);
    run(lake, "t", request(StageKind::Replace, &old), &[first]).await.expect("create");
    let added = [("u", LakeType::Uuid), ("b", LakeType::Binary), ("t", LakeType::Time)];
    let mut new = old.clone();
    new.fields.extend(schema(&added).fields);
    let nulls = added.iter().map(|(_, of)| arrow::array::new_null_array(&of.to_arrow(), 1));
    let mut columns = json_batch(&old, &[r#"{"id":2}"#]).columns().to_vec();
    columns.extend(nulls);
    let append = request(StageKind::Append, &new);
    run(lake, "t", append, &[batch(&new, columns)]).await.expect("evolve");
    let now = table(lake, "t").await;
    let found = read(&now, Predicate::True).await;
    assert_eq!(longs(&found, "id"), [1, 2]);
    for (name, _) in &added {
        assert_eq!(found.column_by_name(name).expect("column").null_count(), 2, "{name}");
        assert_eq!(read_columns(&scratch, Predicate::True, &[*name]).await, ["{}", "{}"]);
    }
}

/// A file's only column is not taken for another of its type.
#[tokio::test]
async fn the_only_column_of_a_file_is_no_other() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let (old, new) =
        (schema(&[("a", LakeType::Long)]), [("a", LakeType::Long), ("b", LakeType::Long)]);
    let first = json_batch(&old, &[r#"{"a":1}"#, r#"{"a":2}"#]);
    run(lake, "t", request(StageKind::Replace, &old), &[first]).await.expect("create");
    let new = schema(&new);
    let more = json_batch(&new, &[r#"{"a":3,"b":30}"#]);
    run(lake, "t", request(StageKind::Append, &new), &[more]).await.expect("evolve");
    let found = read_columns(&scratch, Predicate::True, &["b"]).await;
    assert_eq!(found, [r#"{"b":30}"#, "{}", "{}"]);
    let wanted = Predicate::Cmp { column: "b".to_owned(), op: CmpOp::Lt, value: Literal::Long(10) };
    assert!(read_columns(&scratch, wanted, &["b"]).await.is_empty());
}

#[tokio::test]
async fn old_snapshots_keep_their_columns() {
    let scratch = evolved().await;
    let now = table(&scratch.lake, "t").await;
    let v1 = now.resolve("v1").expect("v1");
    assert_eq!(lines(&[read_at(&now, Some(v1), Predicate::True).await]), OLD);
    let moved = scratch.lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await.expect("back");
    let back = table(&scratch.lake, "t").await;
    assert_eq!(back.schema(), before());
    assert_eq!(lines(&[read(&back, Predicate::True).await]), OLD);
    let kept = &moved.done.expect("moved").kept_as;
    scratch.lake.rollback(&org("401"), "t", kept, Uuid::new_v4()).await.expect("forth");
    let forth = table(&scratch.lake, "t").await;
    assert_eq!(forth.schema(), after());
    assert_eq!(read(&forth, Predicate::True).await.num_rows(), 4);
}

#[tokio::test]
async fn deletes_and_rewrites_reach_old_files() {
    let scratch = evolved().await;
    let now = table(&scratch.lake, "t").await;
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let files = now.plan(scan).await.expect("plan").files;
    let old = files.iter().find(|file| file.rows == Some(3)).expect("the old file").clone();
    let stage =
        |request| async { scratch.lake.stage_on(&table(&scratch.lake, "t").await, request) };
    let deleting = stage(request(StageKind::Files, &after())).await.expect("stage");
    let deletes = deleting.write_deletes(&[(old.clone(), vec![1])]).await.expect("deletes");
    deleting.row_delta(deletes, Vec::new()).await.expect("row delta");
    let mut expected = vec![OLD_AS_NEW[0], OLD_AS_NEW[2], NEW];
    expected.sort_unstable();
    let now = table(&scratch.lake, "t").await;
    assert_eq!(lines(&[read(&now, Predicate::True).await]), expected);
    let rewriting = stage(request(StageKind::Files, &after())).await.expect("stage");
    let stream = now.read_files(&[old.path.clone()].into()).await.expect("read");
    let batches: Vec<RecordBatch> = stream.try_collect().await.expect("rows");
    let made = written(&rewriting, &batches).await;
    rewriting.rewrite_files([old.path].into(), made).await.expect("rewrite");
    let now = table(&scratch.lake, "t").await;
    assert_eq!(lines(&[read(&now, Predicate::True).await]), expected);
}

#[tokio::test]
async fn a_column_that_files_are_partitioned_by_cannot_be_dropped() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let mut first = request(StageKind::Replace, &id_and_text());
    first.partition = vec!["bucket(4, id)".parse().expect("field")];
    run(lake, "t", first, &[rows(0..10)]).await.expect("create");
    let text = schema(&[("text", LakeType::String)]);
    let batch = || json_batch(&text, &[r#"{"text":"new"}"#]);
    let refused = run(lake, "t", request(StageKind::Append, &text), &[batch()]).await;
    let error = refused.expect_err("files are partitioned by id");
    assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
    assert!(error.hint_text().expect("hint").contains("on_dropped_column: keep"));
    assert_eq!(ids(&table(lake, "t").await).await.len(), 10, "nothing changed");
    // Once no file of that kind is left, it can.
    let others = request(StageKind::Replace, &id_and_text());
    run(lake, "t", others, &[rows(0..10)]).await.expect("reload");
    run(lake, "t", request(StageKind::Append, &text), &[batch()]).await.expect("dropped");
    let now = table(lake, "t").await;
    assert_eq!(now.schema(), text);
    assert_eq!(read(&now, Predicate::True).await.num_rows(), 11);
}

#[tokio::test]
async fn a_partition_follows_its_column_under_another_name() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let columns = |name: &str, data_type: LakeType| {
        TableSchema::new(vec![column(1, name, data_type), column(2, "text", LakeType::String)])
    };
    let partitioned = |kind, name: &str, data_type| {
        let mut request = request(kind, &columns(name, data_type));
        request.partition = vec![format!("truncate(10, {name})").parse().expect("field")];
        request
    };
    let rows: Vec<String> =
        (0..40).map(|id| format!(r#"{{"n":{id},"text":"row {id}"}}"#)).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let old = columns("n", LakeType::Int);
    let first = partitioned(StageKind::Replace, "n", LakeType::Int);
    run(lake, "t", first, &[json_batch(&old, &rows)]).await.expect("create");
    let new = columns("number", LakeType::Long);
    let more = json_batch(&new, &[r#"{"number":4294967296,"text":"far"}"#]);
    let second = partitioned(StageKind::Append, "number", LakeType::Long);
    run(lake, "t", second, &[more]).await.expect("evolve");
    let now = table(lake, "t").await;
    assert_eq!(now.partition(), ["truncate(10, number)".parse().expect("field")]);
    assert_eq!(metadata(&now)["partition-specs"].as_array().expect("specs").len(), 1);
    let equals = |value| Predicate::Cmp {
        column: "number".to_owned(),
        op: CmpOp::Eq,
        value: Literal::Long(value),
    };
    for value in [0, 9, 10, 39, 4_294_967_296] {
        assert_eq!(longs(&read(&now, equals(value)).await, "number"), [value]);
    }
    assert_eq!(read(&now, equals(41)).await.num_rows(), 0);
}

/// The table's order, as a table spec has it.
fn order_of(table: &LakeTable) -> Vec<String> {
    table.sort().expect("in words").iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn an_order_follows_its_column_under_another_name_and_ends_with_it() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let columns = |name: &str, data_type: LakeType| {
        TableSchema::new(vec![column(1, name, data_type), column(2, "text", LakeType::String)])
    };
    let (old, new) = (columns("n", LakeType::Int), columns("number", LakeType::Long));
    let go = async |kind: StageKind, schema: &TableSchema, sort: Option<&[&str]>, row: &str| {
        let mut request = request(kind, schema);
        let fields = |sort: &[&str]| sort.iter().map(|text| text.parse().expect("field")).collect();
        request.sort = sort.map(fields);
        run(lake, "t", request, &[json_batch(schema, &[row])]).await
    };
    let by_n = Some(&["n desc"][..]);
    let row = r#"{"number":1,"text":"a"}"#;
    go(StageKind::Replace, &old, by_n, r#"{"n":2,"text":"b"}"#).await.expect("create");
    let now = table(lake, "t").await;
    assert_eq!(order_of(&now), ["n desc"]);
    assert_eq!(metadata(&now)["default-sort-order-id"], 1);
    let files = now.files(&[], &now.sort().expect("order")).await.expect("files");
    assert!(files.files().iter().all(|file| file.cost.unsorted), "runs do not sort");

    // Without a word of it the order stays, under the column's new name.
    go(StageKind::Append, &new, None, row).await.expect("renamed");
    let now = table(lake, "t").await;
    assert_eq!(order_of(&now), ["number desc"]);
    assert_eq!(metadata(&now)["sort-orders"].as_array().expect("orders").len(), 2);
    let both = Some(&["text", "number desc nulls first"][..]);
    go(StageKind::Append, &new, both, row).await.expect("another");
    assert_eq!(order_of(&table(lake, "t").await), ["text", "number desc nulls first"]);
    go(StageKind::Replace, &new, None, row).await.expect("reloaded");
    assert_eq!(order_of(&table(lake, "t").await), ["text", "number desc nulls first"]);
    let error = go(StageKind::Append, &new, by_n, row).await.expect_err("an old name");
    assert_eq!(error.code(), ErrorCode::SpecUnknownName);

    // An order cannot outlive its column; `[]` ends one too.
    let text = TableSchema::new(vec![column(2, "text", LakeType::String)]);
    go(StageKind::Append, &text, None, r#"{"text":"c"}"#).await.expect("dropped");
    assert!(order_of(&table(lake, "t").await).is_empty());
    go(StageKind::Append, &text, Some(&["text"][..]), r#"{"text":"d"}"#).await.expect("sorted");
    assert_eq!(order_of(&table(lake, "t").await), ["text"]);
    go(StageKind::Append, &text, Some(&[][..]), r#"{"text":"e"}"#).await.expect("ended");
    assert!(order_of(&table(lake, "t").await).is_empty());
    assert_eq!(read(&table(lake, "t").await, Predicate::True).await.num_rows(), 4);
}
