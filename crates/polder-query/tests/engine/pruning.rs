//! Which files a query opens.

use arrow::array::{ArrayRef, Date32Array, Int64Array, StringArray};
use polder_core::{Field, LakeType, TableSchema};

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

#[tokio::test]
async fn counts_come_from_metadata_and_scans_are_spread() {
    let test = lake(&[]).await;
    let plan = test.text("EXPLAIN SELECT count(*) FROM lake.org_1.t").await.expect("a plan");
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    let plan = test.text("EXPLAIN SELECT id FROM lake.org_1.t").await.expect("a plan");
    assert!(plan.contains("2 groups"), "{plan}");
    assert!(plan.contains("projection=[id]"), "{plan}");
    let run = test.text("EXPLAIN ANALYZE SELECT id FROM lake.org_1.t WHERE id < 3").await;
    let run = run.expect("a plan with numbers");
    assert!(run.contains("files=1 of 4") && run.contains("output_rows=3"), "{run}");
}
