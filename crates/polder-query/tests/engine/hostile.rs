//! SQL that must not run, and SQL that must not bring the process down.

use std::time::{Duration, Instant};

use polder_core::{ErrorCode, Principal};

use super::lake::{TestLake, org, session};

#[tokio::test]
async fn nothing_is_written_and_nothing_else_is_read() {
    let test = TestLake::new().await;
    let target = test.folder().join("out");
    let shown = target.display();
    let statements = [
        format!("COPY (SELECT 1) TO '{shown}.csv'"),
        format!("EXPLAIN ANALYZE COPY (SELECT 1) TO '{shown}.csv'"),
        format!("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '{shown}'"),
        "CREATE TABLE x AS SELECT 1".to_string(),
        "CREATE VIEW x AS SELECT 1".to_string(),
        "SELECT 1 INTO x".to_string(),
        "SET datafusion.runtime.memory_limit = '100G'".to_string(),
        "SHOW ALL".to_string(),
        "SELECT * FROM information_schema.df_settings".to_string(),
        "INSERT INTO lake.org_1.t VALUES (1)".to_string(),
        "WITH x AS (INSERT INTO lake.org_1.t VALUES (1)) SELECT 1".to_string(),
        "DEALLOCATE x".to_string(),
        "SELECT 1; DROP TABLE lake.org_1.t".to_string(),
        format!("SELECT * FROM '{shown}'"),
    ];
    for sql in statements {
        for principal in [Principal::Operator, Principal::Org(org("1"))] {
            let error = test.text_for(&sql, &session(principal)).await.expect_err(&sql);
            assert_eq!(error.code(), ErrorCode::QueryInvalid, "{sql}: {error}");
        }
    }
    assert!(!target.with_extension("csv").exists());
}

#[tokio::test]
async fn planning_bombs_are_defused() {
    let test = TestLake::new().await;
    let doubled = |levels: usize| {
        let ctes: Vec<String> = (1..=levels)
            .map(|n| format!("c{n} AS (SELECT a.x FROM c{p} a, c{p} b)", p = n - 1))
            .collect();
        format!("WITH c0 AS (SELECT 1 AS x), {} SELECT count(*) FROM c{levels}", ctes.join(", "))
    };
    let sums = |levels: usize| {
        let open = "SELECT x + x AS x FROM (".repeat(levels);
        format!(
            "SELECT x FROM ({open} SELECT value AS x FROM generate_series(1, 2){}) q WHERE x > 5",
            ")".repeat(levels)
        )
    };
    let chain = |n: usize, op: &str| {
        format!(
            "SELECT count(*) FROM generate_series(1, 2) t(x) WHERE {}",
            vec!["x > 1"; n].join(op)
        )
    };
    let cases = [
        ("14 doubled WITH queries", doubled(14)),
        ("40 doubled WITH queries", doubled(40)),
        ("30 nested sums", sums(30)),
        (
            "45 nested CASE",
            format!("SELECT {}1{}", "CASE WHEN random() > 1 THEN ".repeat(45), " END".repeat(45)),
        ),
        ("10,000 ORs", chain(10_000, " OR ")),
        ("deep parentheses", format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000))),
        ("deep arrays", format!("SELECT {}1{}", "[".repeat(10_000), "]".repeat(10_000))),
        (
            "deep subqueries",
            format!("{}SELECT 1{}", "SELECT * FROM (".repeat(500), ") x".repeat(500)),
        ),
    ];
    for (name, sql) in cases {
        let start = Instant::now();
        let error = test.text(&sql).await.expect_err(name);
        assert!(
            matches!(error.code(), ErrorCode::QueryLimit | ErrorCode::QueryInvalid),
            "{name}: {error}"
        );
        assert!(start.elapsed() < Duration::from_secs(5), "{name} took {:?}", start.elapsed());
    }
    for (name, sql) in [
        ("5 doubled", doubled(5)),
        ("5 sums", sums(5)),
        ("600 ORs", chain(590, " OR ")),
        (
            "12 CASE",
            format!("SELECT {}1{}", "CASE WHEN random() > 1 THEN ".repeat(12), " END".repeat(12)),
        ),
    ] {
        test.text(&sql).await.expect(name);
    }
}

#[tokio::test]
async fn errors_say_what_to_do_and_no_cells() {
    let test = TestLake::new().await;
    let cases = [
        ("SELECT 1 +", "cannot be parsed"),
        ("SELECT nothing", "column nothing does not exist"),
        ("SELECT sun(1)", "sun"),
        ("SELECT 1/0", "division by zero"),
        ("SELECT * FROM lake.org_1.t", "org_1"),
        ("SELECT * FROM a.b.c.d", ""),
    ];
    for (sql, part) in cases {
        let error = test.text(sql).await.expect_err(sql);
        let said = format!("{error} {:?}", error.hint_text());
        assert!(said.contains(part), "{sql}: {said}");
        assert!(!said.contains("DataFusion") && !said.contains("Error during"), "{sql}: {said}");
    }
    let cast = "SELECT CAST(concat('sec', value) AS int) FROM generate_series(1, 2)";
    let error = test.text(cast).await.expect_err("a cast");
    assert_eq!(error.code(), ErrorCode::QueryFailed);
    let all =
        format!("{error} {:?} {:?} {:?}", error.hint_text(), error.detail_text(), error.causes());
    assert!(!all.contains("sec1"), "{all}");
}
