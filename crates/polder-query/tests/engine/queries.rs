//! A table of queries and their answers, over two small tables.

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use polder_core::{Field, LakeType, TableSchema};

use super::lake::{Rows, TestLake, array};

fn money(values: &[Option<i128>]) -> ArrayRef {
    let decimals = Decimal128Array::from(values.to_vec());
    array(decimals.with_precision_and_scale(18, 2).expect("fits"))
}

async fn lake() -> TestLake {
    let test = TestLake::new().await;
    let opportunity = TableSchema::new(vec![
        Field::new("id", LakeType::Long).required(),
        Field::new("account_id", LakeType::Long),
        Field::new("Stage", LakeType::String),
        Field::new("amount", LakeType::Decimal { precision: 18, scale: 2 }),
        Field::new("close_date", LakeType::Date),
        Field::new("updated_at", LakeType::Timestamptz),
    ]);
    let part = |first: i64, stages: [&str; 3], amounts: [Option<i128>; 3]| -> Vec<ArrayRef> {
        let ids = first..first + 3;
        let times: Vec<i64> =
            ids.clone().map(|n| 1_767_225_600_000_000 + n * 3_600_000_000).collect();
        vec![
            array(Int64Array::from_iter_values(ids.clone())),
            array(Int64Array::from_iter_values(ids.clone().map(|n| n % 2))),
            array(StringArray::from(stages.to_vec())),
            money(&amounts),
            array(Date32Array::from_iter_values(ids.map(|n| 20_454 + n as i32))),
            array(TimestampMicrosecondArray::from(times).with_timezone("+00:00")),
        ]
    };
    let parts = vec![
        part(1, ["Won", "Lost", "Open"], [Some(10), Some(20), None]),
        part(4, ["Won", "Won", "Open"], [Some(1_000_000), Some(5), Some(30)]),
    ];
    let rows = Rows { org: "1", table: "opportunity", schema: &opportunity, partition: &[], parts };
    test.replace(rows).await;
    let account = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("name", LakeType::String),
    ]);
    let names = array(StringArray::from(vec!["even", "odd"]));
    let parts = vec![vec![array(Int64Array::from(vec![0, 1])), names]];
    test.replace(Rows { org: "1", table: "account", schema: &account, partition: &[], parts })
        .await;
    test
}

const QUERIES: &[(&str, &str)] = &[
    ("SELECT count(*), count(amount), sum(amount), min(id), max(id) FROM o", "6|5|10000.65|1|6"),
    ("SELECT id FROM o ORDER BY amount DESC NULLS LAST LIMIT 2", "4\n6"),
    ("SELECT \"Stage\", count(*) FROM o GROUP BY 1 ORDER BY 2 DESC, 1", "Won|3\nOpen|2\nLost|1"),
    (
        "SELECT \"Stage\" s, sum(amount) FROM o GROUP BY s HAVING sum(amount) > 0.25 ORDER BY s",
        "Open|0.30\nWon|10000.15",
    ),
    ("SELECT id FROM o WHERE amount = 0.1", "1"),
    ("SELECT id FROM o WHERE amount > 0.15 AND amount < 0.25", "2"),
    ("SELECT count(*) FROM o WHERE amount IS NULL", "1"),
    (
        "SELECT a.name, count(*) FROM o JOIN lake.org_1.account a ON a.id = o.account_id GROUP BY 1 ORDER BY 1",
        "even|3\nodd|3",
    ),
    (
        "SELECT id FROM o WHERE account_id IN (SELECT id FROM lake.org_1.account WHERE name = 'odd') ORDER BY id",
        "1\n3\n5",
    ),
    ("SELECT id, sum(id) OVER (ORDER BY id) FROM o WHERE id < 4 ORDER BY id", "1|1\n2|3\n3|6"),
    ("SELECT id FROM o WHERE updated_at >= '2026-01-01 05:00:00' ORDER BY id", "5\n6"),
    ("SELECT date_trunc('day', updated_at), count(*) FROM o GROUP BY 1", "2026-01-01T00:00:00Z|6"),
    ("SELECT extract(month FROM close_date), count(*) FROM o GROUP BY 1", "1|6"),
    ("SELECT count(DISTINCT \"Stage\") FROM o", "3"),
    ("SELECT id FROM o UNION SELECT id FROM lake.org_1.account ORDER BY id DESC LIMIT 2", "6\n5"),
    ("SELECT id FROM o EXCEPT SELECT id + 1 FROM o", "1"),
    (
        "SELECT CASE WHEN id > 5 THEN 'big' ELSE 'small' END, count(*) FROM o GROUP BY 1 ORDER BY 1",
        "big|1\nsmall|5",
    ),
    ("SELECT string_agg(\"Stage\", ',' ORDER BY id) FROM o WHERE id < 4", "Won,Lost,Open"),
    ("SELECT upper(name) || '!' FROM lake.org_1.account WHERE name LIKE 'e%'", "EVEN!"),
    ("SELECT 7 / 2, 7 % 2, 0.1 + 0.2, 1.10", "3|1|0.3|1.10"),
    (
        "WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM n WHERE x < 3) SELECT sum(x) FROM n",
        "6",
    ),
    ("SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(x, y) ORDER BY x", "1|a\n2|b"),
    ("SELECT id FROM o ORDER BY id OFFSET 5", "6"),
    ("SELECT count(*) FROM o a, o b", "36"),
    ("SELECT avg(amount) FROM o WHERE id IN (1, 2)", "0.150000"),
    ("SELECT id FROM o WHERE (id, \"Stage\") IN ((1, 'Won'), (2, 'Won'))", "1"),
    ("SELECT approx_distinct(id) FROM o", "6"),
    ("SELECT median(id) FROM o WHERE id <> 6", "3"),
];

#[tokio::test]
async fn queries_have_the_right_answers() {
    let test = lake().await;
    let mut wrong = Vec::new();
    for (sql, expected) in QUERIES {
        let sql = sql
            .replace("FROM o", "FROM lake.org_1.opportunity o")
            .replace(", o b", ", lake.org_1.opportunity b")
            .replace("opportunity o a", "opportunity a");
        match test.text(&sql).await {
            Ok(found) if found == *expected => {}
            Ok(found) => {
                wrong.push(format!("{sql}\n  gives    {found:?}\n  expected {expected:?}"));
            }
            Err(error) => wrong.push(format!("{sql}\n  fails: {error} {:?}", error.hint_text())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn names_that_are_nearly_right_get_a_hint() {
    let test = lake().await;
    let cases = [
        ("SELECT id FROM lake.org_1.oportunity", "did you mean opportunity?"),
        ("SELECT id FROM lake.org_1.zzz", "its tables are account, opportunity"),
        ("SELECT amuont FROM lake.org_1.opportunity", "did you mean amount?"),
        ("SELECT stage FROM lake.org_1.opportunity", "did you mean \"Stage\"?"),
        ("SELECT zzzzzzzz FROM lake.org_1.account", "the columns are id, name"),
        ("SELECT id FROM lake.org_9.account", "SHOW TABLES"),
        ("SELECT id FROM revdb.public.account", "lake.org_<id>.<table>"),
        (
            "SELECT o.id, a.id FROM lake.org_1.opportunity o, lake.org_1.account a WHERE id = 1",
            "in front of it",
        ),
    ];
    for (sql, hint) in cases {
        let error = test.text(sql).await.expect_err(sql);
        let given = error.hint_text().unwrap_or("no hint");
        assert!(given.contains(hint), "{sql}: {error} – {given}");
    }
}

#[tokio::test]
async fn what_the_planner_would_pass_over_is_refused() {
    let test = lake().await;
    for sql in [
        "SELECT count(*) FROM lake.org_1.account PREWHERE id > 5",
        "SELECT name, count(*) FROM lake.org_1.account GROUP BY name WITH ROLLUP",
        "SELECT 1 UNION ALL SELECT count(*) FROM lake.org_1.account PREWHERE id > 5",
    ] {
        let error = test.text(sql).await.expect_err(sql);
        assert_eq!(error.code(), polder_core::ErrorCode::QueryInvalid, "{sql}: {error}");
    }
}

#[tokio::test]
async fn nulls_find_each_other_where_a_join_says_so() {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![Field::new("n", LakeType::Long)]);
    let part =
        |numbers: Vec<Option<i64>>| -> Vec<ArrayRef> { vec![array(Int64Array::from(numbers))] };
    let many = vec![part(vec![Some(1), Some(2), Some(9)]), part(vec![None; 4])];
    let few = vec![part(vec![Some(1), None])];
    for (table, parts) in [("many", many), ("few", few)] {
        test.replace(Rows { org: "1", table, schema: &schema, partition: &[], parts }).await;
    }
    // A file of nulls alone is outside of every range of keys.
    let cases = [("f.n = m.n", "1"), ("f.n IS NOT DISTINCT FROM m.n", "5")];
    for (condition, expected) in cases {
        let sql =
            format!("SELECT count(*) FROM lake.org_1.few f JOIN lake.org_1.many m ON {condition}");
        assert_eq!(test.text(&sql).await.expect(&sql), expected, "{sql}");
    }
}
