//! Rows and tables as large as PostgreSQL has them, in runs with the least memory that an org may have: slow,
//! and whole in the lake.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::compute::{sort_to_indices, take_record_batch};
use arrow::datatypes::Int32Type;
use futures::TryStreamExt;
use md5::{Digest, Md5};
use polder_core::ErrorCode;
use polder_lake::{Predicate, ScanRequest};
use polder_pipeline::{Outcome, ingest};
use serde_json::{Value, json};

use super::database::{Database, Session};
use crate::support::{Scratch, org};

/// The least that an org may have for its runs.
const MEMORY_BYTES: usize = 16 << 20;
/// Rows of the table with huge values, three of which have one.
const ROWS: usize = 1_000;
/// 200 MB of a text that is not all one letter.
const HUGE: &str = "repeat(t, 204800)";
const KILOBYTE: &str = "(SELECT string_agg(md5(i::text), '') AS t FROM generate_series(1, 32) i) k";
/// As many columns as PostgreSQL has.
const COLUMNS: usize = 1_600;
const WIDE_ROWS: i32 = 300;

async fn scratch(spec: Value) -> Scratch {
    let mut scratch = Scratch::new(spec).await;
    scratch.memory_bytes = MEMORY_BYTES;
    scratch
}

/// Length and digest of each value, by the server.
async fn committed(session: &Session) -> Vec<(i64, String)> {
    let word = |value: &str| format!("octet_length({value}) || ' ' || md5({value})");
    let words = ["doc::text", "body", "raw"].map(word).join(" || ' ' || ");
    session.rows(&format!("SELECT id::bigint, {words} FROM huge ORDER BY id")).await
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    batch.column_by_name(name).expect(name)
}

/// The same of the lake's rows.
async fn stored(scratch: &Scratch) -> Vec<(i64, String)> {
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let mut batches = scratch.table().await.read(scan).await.expect("read");
    let mut rows = Vec::new();
    while let Some(batch) = batches.try_next().await.expect("rows") {
        let ids = column(&batch, "id").as_primitive::<Int32Type>();
        let docs = column(&batch, "doc").as_string::<i32>();
        let bodies = column(&batch, "body").as_string::<i32>();
        let bytes = column(&batch, "raw").as_binary::<i32>();
        for row in 0..batch.num_rows() {
            let values =
                [docs.value(row).as_bytes(), bodies.value(row).as_bytes(), bytes.value(row)];
            let words = values.map(|bytes| format!("{} {:x}", bytes.len(), Md5::digest(bytes)));
            rows.push((i64::from(ids.value(row)), words.join(" ")));
        }
    }
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_far_larger_than_the_memory_of_the_run_are_in_the_lake() {
    let database = Database::new().await;
    let session = database.session().await;
    session
        .run(&format!(
            "CREATE TABLE huge (id int PRIMARY KEY, doc jsonb, body text, raw bytea);
             INSERT INTO huge
             SELECT n, CASE n WHEN 400 THEN jsonb_build_object('t', {HUGE})
                              ELSE jsonb_build_object('n', n) END,
                    CASE n WHEN 500 THEN {HUGE} ELSE 'row ' || n END,
                    CASE n WHEN 501 THEN convert_to({HUGE}, 'UTF8')
                           ELSE decode(md5(n::text), 'hex') END
             FROM generate_series(1, {ROWS}) n, {KILOBYTE} ORDER BY n"
        ))
        .await;
    let source = database.source();
    let spec = json!({
        "source": "revdb", "from": "huge", "key": ["id"], "cursor": "xmin", "mode": "merge",
    });
    let scratch = scratch(spec).await;
    let report = scratch.run_from(&source).await;
    assert_eq!((report.outcome, report.rows_written), (Outcome::FullRefresh, ROWS as u64));
    let expected = committed(&session).await;
    let nine_digits = |words: &str| words.split(' ').any(|word| word.len() == 9);
    assert_eq!(expected.iter().filter(|(_, words)| nine_digits(words)).count(), 3);
    assert!(stored(&scratch).await == expected, "the rows of the first load differ");

    // One of them changes, and is put in the place of the row that is stored.
    session.run("UPDATE huge SET body = body || '!' WHERE id IN (499, 500)").await;
    let report = scratch.run_from(&source).await;
    assert_eq!((report.outcome, report.rows_updated), (Outcome::Merge, 2));
    assert!(stored(&scratch).await == committed(&session).await, "the rows of the merge differ");
    drop((source, session));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_postgresql_itself_cannot_send_fails_by_name_and_leaves_nothing() {
    let database = Database::new().await;
    let session = database.session().await;
    session.run("CREATE TABLE beyond (id int PRIMARY KEY, a text, b text, c text)").await;
    session.run("INSERT INTO beyond VALUES (1), (2)").await;
    for column in ["a", "b", "c"] {
        let set = format!("UPDATE beyond SET {column} = repeat(t, 368640) FROM {KILOBYTE}");
        session.run(&format!("{set} WHERE id = 2")).await;
    }
    let source = database.source();
    let scratch = scratch(json!({ "source": "revdb", "from": "beyond" })).await;
    let request = scratch.request();
    let error = Box::pin(ingest(&scratch.lake, &source, &request)).await.expect_err("1,080 MB");
    assert_eq!(error.code(), ErrorCode::SourceFailed, "{error:?}");
    assert!(error.to_string().contains("beyond"), "{error:?}");
    assert!(error.hint_text().expect("hint").contains("`columns`"), "{error:?}");
    assert!(scratch.lake.table(&org(), "t").await.expect("load").is_none());
    assert_eq!(scratch.data_files(), 0);
    drop((source, session));
    database.drop().await;
}

/// A column's type in PostgreSQL, its value there as `{v}` has it, and the same values in Arrow.
struct Kind {
    name: &'static str,
    value: &'static str,
    array: fn(Vec<Option<i32>>) -> ArrayRef,
}

/// Small ones: a row has to fit into a page of 8 kB.
static KINDS: [Kind; 9] = [
    Kind {
        name: "bigint",
        value: "{v} * 1000000007::bigint",
        array: |values| Arc::new(values.into_iter().map(long).collect::<Int64Array>()),
    },
    Kind {
        name: "double precision",
        value: "{v} / 8.0",
        array: |values| {
            let value = |v: Option<i32>| v.map(|v| f64::from(v) / 8.0);
            Arc::new(values.into_iter().map(value).collect::<Float64Array>())
        },
    },
    Kind { name: "int", value: "{v} - 50", array: whole },
    Kind { name: "smallint", value: "{v} - 50", array: whole },
    Kind {
        name: "real",
        value: "{v} / 4.0",
        array: |values| {
            let value = |v: Option<i32>| v.map(|v| v as f32 / 4.0);
            Arc::new(values.into_iter().map(value).collect::<Float32Array>())
        },
    },
    Kind {
        name: "date",
        value: "DATE '1970-01-01' + {v}",
        array: |values| Arc::new(Date32Array::from(values)),
    },
    Kind {
        name: "numeric(9, 2)",
        value: "{v} + 0.25",
        array: |values| {
            let value = |v: Option<i32>| v.map(|v| i128::from(v) * 100 + 25);
            let array = values.into_iter().map(value).collect::<Decimal128Array>();
            Arc::new(array.with_precision_and_scale(9, 2).expect("precision"))
        },
    },
    Kind {
        name: "boolean",
        value: "{v} % 2 = 0",
        array: |values| {
            let value = |v: Option<i32>| v.map(|v| v % 2 == 0);
            Arc::new(values.into_iter().map(value).collect::<BooleanArray>())
        },
    },
    Kind {
        name: "text",
        value: "({v})::text",
        array: |values| {
            let value = |v: Option<i32>| v.map(|v| v.to_string());
            Arc::new(values.into_iter().map(value).collect::<StringArray>())
        },
    },
];

fn long(value: Option<i32>) -> Option<i64> {
    value.map(|value| i64::from(value) * 1_000_000_007)
}

fn whole(values: Vec<Option<i32>>) -> ArrayRef {
    Arc::new(values.into_iter().map(|v| v.map(|v| v - 50)).collect::<Int32Array>())
}

/// What the value of a row in a column is made of; half of them are null.
fn seed(row: i32, column: usize) -> Option<i32> {
    let column = column as i32;
    ((row + column) % 2 == 0).then_some((row * 31 + column * 7) % 97)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_of_sixteen_hundred_columns_is_in_the_lake() {
    let database = Database::new().await;
    let session = database.session().await;
    let kind = |column: usize| &KINDS[column * KINDS.len() / COLUMNS];
    let columns: Vec<String> =
        (1..COLUMNS).map(|column| format!("c{column} {}", kind(column).name)).collect();
    session.run(&format!("CREATE TABLE wide (id int, {})", columns.join(", "))).await;
    let value = |column: usize| {
        let seed = format!("((n * 31 + {column} * 7) % 97)");
        let value = kind(column).value.replace("{v}", &seed);
        format!("CASE WHEN (n + {column}) % 2 = 0 THEN {value} END")
    };
    let values: Vec<String> = (1..COLUMNS).map(value).collect();
    let rows = format!("generate_series(1, {WIDE_ROWS}) n");
    session.run(&format!("INSERT INTO wide SELECT n, {} FROM {rows}", values.join(", "))).await;

    let source = database.source();
    let scratch = scratch(json!({ "source": "revdb", "from": "wide" })).await;
    let report = scratch.run_from(&source).await;
    assert_eq!(report.rows_written, WIDE_ROWS as u64);
    let rows = scratch.rows().await;
    let order = sort_to_indices(column(&rows, "id"), None, None).expect("order");
    let rows = take_record_batch(&rows, &order).expect("sorted");
    assert_eq!((rows.num_columns(), rows.num_rows()), (COLUMNS, WIDE_ROWS as usize));
    for number in 1..COLUMNS {
        let Kind { name, array, .. } = kind(number);
        let expected = array((1..=WIDE_ROWS).map(|row| seed(row, number)).collect());
        let found = column(&rows, &format!("c{number}"));
        assert_eq!(found.as_ref(), expected.as_ref(), "c{number} {name}");
    }
    drop((source, session));
    database.drop().await;
}
