//! WITH queries that are used several times.

use arrow::array::{Int64Array, StringArray};
use polder_core::{Field, LakeType, Principal, TableSchema};

use super::lake::{Rows, TestLake, array, session};

const ROWS: i64 = 400_000;

/// `t` of 400,000 rows in two files, twice: the current state has twice the amounts.
async fn table() -> TestLake {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("account", LakeType::String),
        Field::new("amount", LakeType::Long),
    ]);
    for factor in [1, 2] {
        let part = |ids: std::ops::Range<i64>| {
            let accounts = ids.clone().map(|id| format!("account {}", id % 1_000));
            vec![
                array(Int64Array::from_iter_values(ids.clone())),
                array(StringArray::from_iter_values(accounts)),
                array(Int64Array::from_iter_values(ids.map(|id| id * factor))),
            ]
        };
        let parts = vec![part(0..ROWS / 2), part(ROWS / 2..ROWS)];
        test.replace(Rows { org: "1", table: "t", schema: &schema, partition: &[], parts }).await;
    }
    test
}

async fn shared(test: &TestLake, sql: &str) -> usize {
    let plan = test.text(&format!("EXPLAIN {sql}")).await.expect("a plan");
    plan.matches("SharedScan: part=1, computed once").count()
}

#[tokio::test]
async fn a_query_that_is_used_twice_is_computed_once() {
    let test = table().await;
    let with =
        "WITH sums AS (SELECT account, sum(amount) AS total FROM lake.org_1.t GROUP BY account)";
    let best = format!(
        "{with} SELECT account, total FROM sums WHERE total = (SELECT max(total) FROM sums)"
    );
    assert_eq!(shared(&test, &best).await, 2);
    // The last account: 999 + 1999 + …, twice.
    let total: i64 = (0..ROWS).filter(|id| id % 1_000 == 999).map(|id| id * 2).sum();
    let expected = format!("account 999|{total}");
    assert_eq!(test.text(&best).await.expect("the best"), expected);
    // One of them is given up early, whoever computes.
    for _ in 0..10 {
        let limited = format!(
            "{with}, few AS (SELECT total FROM sums LIMIT 1) \
             SELECT count(*) FROM sums, few WHERE few.total >= 0"
        );
        assert_eq!(test.text(&limited).await.expect("all"), "1000");
    }
    let both = format!("{with} SELECT count(*) FROM sums a JOIN sums b USING (account, total)");
    assert_eq!(test.text(&both).await.expect("joined"), "1000");
}

#[tokio::test]
async fn what_is_not_the_same_is_not_shared() {
    let test = table().await;
    let count =
        |of: &str| format!("SELECT account, sum(amount) AS total FROM {of} GROUP BY account");
    let versions = format!(
        "SELECT (SELECT sum(total) FROM ({now})) - (SELECT sum(total) FROM ({before})) AS more",
        now = count("lake.org_1.t FOR VERSION AS OF 'v2'"),
        before = count("lake.org_1.t FOR VERSION AS OF 'v1'"),
    );
    assert_eq!(shared(&test, &versions).await, 0);
    assert_eq!(test.text(&versions).await.expect("more"), (0..ROWS).sum::<i64>().to_string());
    let random = "WITH some AS (SELECT account, count(*) AS n FROM lake.org_1.t \
                  WHERE random() < 0.5 GROUP BY account) \
                  SELECT count(*) FROM some a JOIN some b USING (account)";
    assert_eq!(shared(&test, random).await, 0);
}

/// Filters of joins are off where nulls find each other, in shared parts too.
#[tokio::test]
async fn nulls_find_each_other_in_a_shared_part() {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![Field::new("x", LakeType::Long)]);
    for (table, values) in [("a", vec![Some(1), None, None]), ("b", vec![Some(1), None])] {
        let parts = vec![vec![array(Int64Array::from(values))]];
        test.replace(Rows { org: "1", table, schema: &schema, partition: &[], parts }).await;
    }
    let sql = "WITH pairs AS (SELECT a.x, count(*) AS n FROM lake.org_1.a JOIN lake.org_1.b \
               ON a.x IS NOT DISTINCT FROM b.x GROUP BY a.x) \
               SELECT n FROM pairs WHERE n = (SELECT max(n) FROM pairs)";
    assert_eq!(shared(&test, sql).await, 2);
    assert_eq!(test.text(sql).await.expect("rows"), "2");
}

#[tokio::test]
async fn rows_that_are_too_many_to_be_kept_are_computed_again() {
    let test = table().await;
    let sql = "WITH sums AS (SELECT id, account, sum(amount) AS total FROM lake.org_1.t GROUP BY id, account) \
               SELECT count(*), min(total) FROM \
               (SELECT total FROM sums UNION ALL SELECT total + 1 FROM sums) x";
    assert_eq!(shared(&test, sql).await, 2);
    let expected = format!("{}|0", 2 * ROWS);
    for mib in [256, 48, 32, 24] {
        let mut session = session(Principal::Operator);
        session.memory_bytes_max = mib * 1024 * 1024;
        assert_eq!(test.text_for(sql, &session).await.expect("rows"), expected, "{mib} MiB");
    }
}
