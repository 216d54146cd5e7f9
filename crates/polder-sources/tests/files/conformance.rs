//! The suite that every source passes, on each format.

use std::sync::Arc;

use arrow::array::{Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use polder_core::Source;
use polder_sources::conformance::{Fixture, conformance};

use super::support::{Folder, gzip, zstd};

/// Three files of org 401 with the deals 0 to 299 and one of org 402, by key and content.
pub(super) fn deals(extension: &str, content: fn(&[i32]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let file = |number: i32| (number * 100..(number + 1) * 100).collect::<Vec<_>>();
    (0..3)
        .map(|number| (format!("401/deals/{number}.{extension}"), content(&file(number))))
        .chain([(format!("402/deals/0.{extension}"), content(&file(7)))])
        .collect()
}

pub(super) fn csv(ids: &[i32]) -> Vec<u8> {
    let rows = ids.iter().map(|id| format!("{id},deal {id},{id}.50\n"));
    ("id,name,amount\n".to_owned() + &rows.collect::<String>()).into_bytes()
}

fn json_lines(ids: &[i32]) -> Vec<u8> {
    let line =
        |id: &i32| format!("{{\"id\": {id}, \"name\": \"deal {id}\", \"amount\": {id}.5}}\n");
    ids.iter().map(line).collect::<String>().into_bytes()
}

fn parquet(ids: &[i32]) -> Vec<u8> {
    let fields = vec![
        Field::new("id", DataType::Int32, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("amount", DataType::Utf8, true),
    ];
    let names = Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("deal {id}"))));
    let columns =
        vec![Arc::new(Int32Array::from(ids.to_vec())) as _, names.clone() as _, names as _];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("batch");
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("writer");
    writer.write(&batch).expect("rows");
    writer.into_inner().expect("file")
}

/// The suite on a place that holds what [`deals`] made.
pub(super) async fn suite(source: &dyn Source, extension: &str) {
    let fixture = Fixture {
        org: "401".parse().expect("org"),
        from: format!("{{org}}/deals/*.{extension}"),
        filter: None,
        key: "id".to_owned(),
        keys: (0..300).map(|id| id.to_string()).collect(),
        cursor: None,
        columns: vec!["amount".to_owned(), "id".to_owned()],
        empty: Some(format!("{{org}}/none/*.{extension}")),
        missing: format!("{{org}}/deals/9.{extension}"),
    };
    conformance(source, &fixture).await;
}

async fn on_disk(extension: &str, content: fn(&[i32]) -> Vec<u8>) {
    let folder = Folder::new();
    for (key, content) in deals(extension, content) {
        folder.write(&key, content);
    }
    suite(&folder.source(), extension).await;
}

#[tokio::test]
async fn the_suite_of_all_sources_passes_on_csv() {
    on_disk("csv", csv).await;
    on_disk("csv.gz", |ids| gzip(csv(ids))).await;
}

#[tokio::test]
async fn the_suite_of_all_sources_passes_on_json_lines() {
    on_disk("jsonl", json_lines).await;
    on_disk("ndjson.zst", |ids| zstd(json_lines(ids))).await;
}

#[tokio::test]
async fn the_suite_of_all_sources_passes_on_parquet() {
    on_disk("parquet", parquet).await;
    on_disk("parquet.gz", |ids| gzip(parquet(ids))).await;
}
