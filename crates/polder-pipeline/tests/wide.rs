//! Files with ten thousand columns, or as many paths, in runs with the least memory that an org may have: slow,
//! and whole in the lake.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use arrow::array::{Array, AsArray, BooleanArray, Int32Array, RecordBatch, StringArray};
use arrow::compute::{sort_to_indices, take_record_batch};
use polder_core::spec::StorageConfig;
use polder_core::{Result, SecretRef, SecretResolver};
use polder_sources::files::{FilesSource, Place};
use secrecy::SecretString;
use serde_json::json;

use crate::support::Scratch;

/// The least that an org may have for its runs.
const MEMORY_BYTES: usize = 16 << 20;
/// As many as a CSV file may have.
const COLUMNS: usize = 10_000;
const ROWS: usize = 100;
/// Structs of ten members each: with them and `id` there are as many paths as documents may have.
const STRUCTS: usize = 909;
const MEMBERS: usize = 10;

struct NoSecrets;

impl SecretResolver for NoSecrets {
    fn resolve(&self, reference: &SecretRef) -> Result<SecretString> {
        panic!("{reference} is not of a test")
    }
}

fn source(folder: &Path) -> FilesSource {
    let place = Place::open("files", &StorageConfig::default(), &NoSecrets, folder);
    FilesSource::new("uploads", place.expect("place"), folder)
}

/// A lake whose table is read from the file `name` of this content, and that source.
async fn scratch(name: &str, content: &str) -> (Scratch, FilesSource) {
    let mut scratch = Scratch::new(json!({ "source": "uploads", "from": name })).await;
    scratch.memory_bytes = MEMORY_BYTES;
    let files = scratch.folder().join("files");
    fs::create_dir_all(&files).expect("folder");
    fs::write(files.join(name), content).expect("file");
    let source = source(scratch.folder());
    (scratch, source)
}

/// The rows of the lake, by `id`.
async fn rows(scratch: &Scratch) -> RecordBatch {
    let rows = scratch.rows().await;
    let ids = rows.column_by_name("id").expect("id");
    let order = sort_to_indices(ids, None, None).expect("order");
    take_record_batch(&rows, &order).expect("sorted")
}

/// What the value of a row in a column is made of; a third of them are null.
fn seed(row: usize, column: usize) -> Option<i32> {
    (!(row + column).is_multiple_of(3)).then_some((row * 31 + column * 7) as i32 % 97)
}

/// A column's values in Arrow: of three types in turn.
fn expected(column: usize) -> Box<dyn Array> {
    let seeds = (0..ROWS).map(|row| seed(row, column));
    match column % 3 {
        0 => Box::new(seeds.collect::<Int32Array>()),
        1 => Box::new(seeds.map(|v| v.map(|v| format!("t{v}"))).collect::<StringArray>()),
        _ => Box::new(seeds.map(|v| v.map(|v| v % 2 == 0)).collect::<BooleanArray>()),
    }
}

/// The same value as a file has it.
fn text(value: i32, column: usize, quote: &str) -> String {
    match column % 3 {
        0 => value.to_string(),
        1 => format!("{quote}t{value}{quote}"),
        _ => (value % 2 == 0).to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_ten_thousand_columns_is_in_the_lake() {
    let mut content = "id".to_owned();
    for column in 1..COLUMNS {
        write!(content, ",c{column}").expect("text");
    }
    for row in 0..ROWS {
        write!(content, "\n{row}").expect("text");
        for column in 1..COLUMNS {
            let value = seed(row, column).map_or_else(String::new, |v| text(v, column, ""));
            write!(content, ",{value}").expect("text");
        }
    }
    content.push('\n');
    let (scratch, source) = scratch("wide.csv", &content).await;
    let report = scratch.run_from(&source).await;
    assert_eq!(report.rows_written, ROWS as u64);
    let rows = rows(&scratch).await;
    assert_eq!((rows.num_columns(), rows.num_rows()), (COLUMNS, ROWS));
    for column in 1..COLUMNS {
        let found = rows.column_by_name(&format!("c{column}")).expect("column");
        assert_eq!(found.as_ref(), expected(column).as_ref(), "c{column}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_ten_thousand_paths_are_in_the_lake() {
    let mut content = String::new();
    for row in 0..ROWS {
        write!(content, "{{\"id\":{row}").expect("text");
        for number in 0..STRUCTS {
            let member = |member: usize| {
                let column = number * MEMBERS + member;
                let value = seed(row, column);
                let value = value.map_or_else(|| "null".to_owned(), |v| text(v, column, "\""));
                format!("\"m{member}\":{value}")
            };
            let members: Vec<String> = (0..MEMBERS).map(member).collect();
            write!(content, ",\"s{number}\":{{{}}}", members.join(",")).expect("text");
        }
        content.push_str("}\n");
    }
    let (scratch, source) = scratch("wide.jsonl", &content).await;
    let report = scratch.run_from(&source).await;
    assert_eq!(report.rows_written, ROWS as u64);
    let rows = rows(&scratch).await;
    assert_eq!((rows.num_columns(), rows.num_rows()), (1 + STRUCTS, ROWS));
    for number in 0..STRUCTS {
        let found = rows.column_by_name(&format!("s{number}")).expect("column").as_struct();
        assert_eq!(found.null_count(), 0, "s{number}");
        for member in 0..MEMBERS {
            let values = found.column_by_name(&format!("m{member}")).expect("member");
            let expected = expected(number * MEMBERS + member);
            assert_eq!(values.as_ref(), expected.as_ref(), "s{number}.m{member}");
        }
    }
}
