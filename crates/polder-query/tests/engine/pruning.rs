//! Which files a query opens.

use arrow::array::{ArrayRef, Date32Array, Int64Array, StringArray};
use polder_core::{Field, LakeType, TableSchema};
use uuid::Uuid;

use super::lake::{Rows, TestLake, array};

fn schema() -> TableSchema {
    TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("day", LakeType::Date),
        Field::new("Région", LakeType::String),
    ])
}

/// 100 rows of one month, ids from `first`.
fn month(first: i64, month: i32, region: &str) -> Vec<ArrayRef> {
    let days = (0..100).map(|n| 20_454 + month * 31 + n % 28);
    vec![
        array(Int64Array::from_iter_values(first..first + 100)),
        array(Date32Array::from_iter_values(days)),
        array(StringArray::from(vec![region; 100])),
    ]
}

async fn lake(partition: &[&str]) -> TestLake {
    let test = TestLake::new().await;
    let long = "x".repeat(100);
    let regions = ["eu", "us", &format!("{long}1"), &format!("{long}2")];
    let parts = regions.iter().zip(0..).map(|(r, n)| month(i64::from(n) * 100, n, r)).collect();
    let schema = schema();
    test.replace(Rows { org: "1", table: "t", schema: &schema, partition, parts }).await;
    test
}

#[tokio::test]
async fn column_statistics_choose_files() {
    let test = lake(&[]).await;
    let long = "x".repeat(100);
    let cases = [
        ("true".to_owned(), 4, 400),
        ("id >= 250".to_owned(), 2, 150),
        ("id = 5 OR id = 305".to_owned(), 2, 2),
        ("id IN (1, 2, 3)".to_owned(), 1, 3),
        ("id NOT IN (1, 2, 3)".to_owned(), 4, 397),
        ("id BETWEEN 90 AND 110".to_owned(), 2, 21),
        ("NOT id < 300".to_owned(), 1, 100),
        ("id + 0 = 5".to_owned(), 4, 1),
        ("id = 1000".to_owned(), 0, 0),
        ("id IS NULL".to_owned(), 0, 0),
        ("day < DATE '2026-01-30'".to_owned(), 1, 100),
        ("\"Région\" = 'us'".to_owned(), 1, 100),
        ("\"Région\" LIKE 'u%'".to_owned(), 1, 100),
        (format!("\"Région\" = '{long}2'"), 2, 100),
        (format!("\"Région\" > '{long}1'"), 2, 100),
    ];
    for (condition, files, rows) in cases {
        let sql = format!("SELECT id FROM lake.org_1.t WHERE {condition}");
        let counted = test.text(&format!("SELECT count(*) FROM ({sql})")).await.expect("rows");
        assert_eq!(counted, rows.to_string(), "{condition}");
        let (scanned, all) = test.files(&sql).await;
        assert_eq!(scanned, files, "{condition}");
        assert!(all == 4 || files == 0, "{condition}");
    }
}

#[tokio::test]
async fn partitions_choose_files() {
    let test = lake(&["month(day)"]).await;
    let sql = "SELECT count(*) FROM lake.org_1.t WHERE day >= DATE '2026-04-01'";
    let (scanned, all) = test.files(sql).await;
    assert!(scanned < all && scanned > 0, "{scanned} of {all}");
    assert_eq!(
        test.text(sql).await.expect("rows"),
        test.text(
            "SELECT count(*) FROM lake.org_1.t WHERE day + INTERVAL '0 day' >= DATE '2026-04-01'",
        )
        .await
        .expect("rows")
    );
}

/// Bytes of data files that a query reads.
async fn bytes_read(test: &TestLake, sql: &str) -> f64 {
    let run = test.text(&format!("EXPLAIN ANALYZE {sql}")).await.expect("a plan with numbers");
    let (_, found) = run.split_once("bytes_scanned=").expect("a scan");
    let end = found.find([',', ']']).expect("its end");
    let (number, unit) = match found[..end].split_once(' ') {
        Some((number, "K")) => (number, 1e3),
        Some((number, "M")) => (number, 1e6),
        Some(other) => panic!("{other:?} bytes"),
        None => (&found[..end], 1.0),
    };
    number.parse::<f64>().expect("a number") * unit
}

#[tokio::test]
async fn a_month_of_a_year_is_a_small_part_of_its_bytes() {
    let test = TestLake::new().await;
    // By ids, as the source has them: every part has rows of every month of 2026.
    let day_of = |id: i64| (id * 7 % 365) as i32;
    let part = |part: i64| -> Vec<ArrayRef> {
        let ids = part * 1_000..(part + 1) * 1_000;
        let words: Vec<String> = ids.clone().map(|_| Uuid::new_v4().to_string()).collect();
        vec![
            array(Int64Array::from_iter_values(ids.clone())),
            array(Date32Array::from_iter_values(ids.map(|id| 20_454 + day_of(id)))),
            array(StringArray::from(words)),
        ]
    };
    let (schema, parts) = (schema(), (0..4).map(part).collect());
    let partition = &["month(day)"];
    test.replace(Rows { org: "1", table: "t", schema: &schema, partition, parts }).await;
    let february = "SELECT * FROM lake.org_1.t \
                    WHERE day >= DATE '2026-02-01' AND day < DATE '2026-03-01'";
    let wanted = (0..4_000).filter(|id| (31..59).contains(&day_of(*id))).count();
    let counted = test.text(&format!("SELECT count(*) FROM ({february})")).await.expect("rows");
    assert_eq!(counted, wanted.to_string());
    let month = bytes_read(&test, february).await;
    let year = bytes_read(&test, "SELECT * FROM lake.org_1.t").await;
    assert!(month > 0.0 && month < year / 6.0, "{month} of {year} bytes");
}

#[tokio::test]
async fn counts_come_from_metadata_and_scans_are_spread() {
    let test = lake(&[]).await;
    let plan = test.text("EXPLAIN SELECT count(*) FROM lake.org_1.t").await.expect("a plan");
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    let plan = test.text("EXPLAIN SELECT id FROM lake.org_1.t").await.expect("a plan");
    assert!(plan.contains("4 groups"), "{plan}");
    assert!(plan.contains("projection=[id]"), "{plan}");
    let run = test.text("EXPLAIN ANALYZE SELECT id FROM lake.org_1.t WHERE id < 3").await;
    let run = run.expect("a plan with numbers");
    assert!(run.contains("files=1 of 4") && run.contains("output_rows=3"), "{run}");
}

#[tokio::test]
async fn bounds_tell_which_side_of_a_join_is_small() {
    let test = TestLake::new().await;
    let schema = schema();
    let rows = |count: i64| -> Vec<ArrayRef> {
        vec![
            array(Int64Array::from_iter_values(0..count)),
            array(Date32Array::from_iter_values((0..count).map(|id| id as i32 % 500))),
            array(StringArray::from(vec!["eu"; count as usize])),
        ]
    };
    for (table, count) in [("t", 1_000), ("u", 10_000)] {
        let parts = vec![rows(count)];
        test.replace(Rows { org: "1", table, schema: &schema, partition: &[], parts }).await;
    }
    // Ten rows of ten thousand are fewer than a thousand, and a fifth of them, as is guessed without bounds, are not.
    let sql =
        "SELECT count(*) FROM lake.org_1.t JOIN lake.org_1.u ON t.day = u.day WHERE u.id < 10";
    let plan = test.text(&format!("EXPLAIN {sql}")).await.expect("a plan");
    let (_, join) = plan.split_once("HashJoinExec").expect("a join");
    let kept = join.lines().find(|line| line.contains("DataSourceExec")).expect("a scan");
    assert!(kept.contains("predicate=id@0 < 10"), "{plan}");
    assert_eq!(test.text(sql).await.expect("rows"), "20");
}

/// One that gives the least value so far to the scan must give it for every aggregate of the query.
#[tokio::test]
async fn extremes_leave_no_file_unread() {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("x", LakeType::Long),
        Field::new("note", LakeType::String),
    ]);
    let part = |ids: [i64; 2], xs: [i64; 2], notes: [Option<&str>; 2]| -> Vec<ArrayRef> {
        vec![
            array(Int64Array::from(ids.to_vec())),
            array(Int64Array::from(xs.to_vec())),
            array(StringArray::from(notes.to_vec())),
        ]
    };
    // Whichever file comes first, the next ones have no `id` beyond its; only one of them has the least `x` and `note`.
    let mut parts = vec![part([0, 9], [70, 70], [None, None]); 8];
    parts.extend(vec![part([0, 9], [70, 70], [Some("b"), Some("c")]); 8]);
    parts.push(part([4, 5], [70, 1], [Some("a"), None]));
    test.replace(Rows { org: "1", table: "t", schema: &schema, partition: &[], parts }).await;
    for _ in 0..20 {
        for (aggregates, expected) in [
            ("min(id), max(id), min(x + 1)", "0|9|2"),
            ("min(note), max(note)", "a|c"),
            ("min(note), max(note), max(x)", "a|c|70"),
        ] {
            let sql = format!("SELECT {aggregates} FROM lake.org_1.t");
            assert_eq!(test.text(&sql).await.expect("extremes"), expected, "{aggregates}");
        }
    }
}
