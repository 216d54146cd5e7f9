//! Earlier states of a table.

use arrow::array::{ArrayRef, Int64Array, StringArray};
use polder_core::{ErrorCode, Field, LakeType, TableSchema};

use super::lake::{Rows, TestLake, array};

fn ids(ids: &[i64]) -> Vec<Vec<ArrayRef>> {
    vec![vec![array(Int64Array::from(ids.to_vec()))]]
}

/// Three states: `v1` with 1 and 2; an append of 3; `v2`, another schema with 9.
async fn lake() -> (TestLake, Vec<i64>) {
    let test = TestLake::new().await;
    let one = TableSchema::new(vec![Field::new("id", LakeType::Long)]);
    let two = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("name", LakeType::String),
    ]);
    let rows = |schema, parts| Rows { org: "1", table: "Opp", schema, partition: &[], parts };
    let mut made = Vec::new();
    made.push(test.replace(rows(&one, ids(&[1, 2]))).await.snapshot_id);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    made.push(test.append(rows(&one, ids(&[3]))).await.snapshot_id);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let last = vec![array(Int64Array::from(vec![9])), array(StringArray::from(vec!["nine"]))];
    made.push(test.replace(rows(&two, vec![last])).await.snapshot_id);
    (test, made)
}

#[tokio::test]
async fn versions_answer_as_they_were() {
    let (test, made) = lake().await;
    let t = "lake.org_1.\"Opp\"";
    let [first, second, third] = made[..] else { panic!("three states") };
    let cases = [
        (format!("SELECT * FROM {t}"), "9|nine"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF {first}"), "1\n2"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF {second}"), "1\n2\n3"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF '{third}'"), "9|nine"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF 'v1'"), "1\n2"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF 'v2'"), "9|nine"),
        (format!("SELECT * FROM {t} FOR VERSION AS OF 'main'"), "9|nine"),
        (format!("SELECT \"Opp\".id FROM {t} FOR VERSION AS OF 'v1' WHERE \"Opp\".id > 1"), "2"),
        (format!("SELECT o.id FROM {t} FOR VERSION AS OF 'v1' o WHERE o.id > 1"), "2"),
        (format!("SELECT count(*) FROM {t} FOR VERSION AS OF {second}"), "3"),
        (
            format!(
                "SELECT a.id, b.id, c.n FROM {t} FOR VERSION AS OF 'v1' AS a JOIN {t} FOR VERSION \
                 AS OF {second} b USING (id), (SELECT count(*) AS n FROM {t}) c ORDER BY 1"
            ),
            "1|1|1\n2|2|1",
        ),
        (
            format!(
                "WITH old AS (SELECT * FROM {t} FOR VERSION AS OF {second}) SELECT id FROM old \
                 EXCEPT SELECT id FROM {t} FOR VERSION AS OF 'v1'"
            ),
            "3",
        ),
        (
            format!("SELECT (SELECT max(id) FROM {t} FOR VERSION AS OF 'v1'), max(id) FROM {t}"),
            "2|9",
        ),
    ];
    for (sql, expected) in cases {
        let mut rows: Vec<String> =
            test.text(&sql).await.expect(&sql).lines().map(str::to_owned).collect();
        rows.sort();
        assert_eq!(rows.join("\n"), expected, "{sql}");
    }
}

#[tokio::test]
async fn times_answer_as_they_were() {
    let (test, made) = lake().await;
    let history = "SELECT cast(made_current_at AS varchar) AS at, snapshot_id, is_current_ancestor \
                   FROM lake.org_1.\"Opp$history\" ORDER BY at";
    let history = test.text(history).await.expect("a history");
    let times: Vec<&str> = history.lines().map(|l| l.split('|').next().expect("a time")).collect();
    assert_eq!(times.len(), 3, "{history}");
    for (time, expected) in times.iter().zip(["2", "3", "1"]) {
        for clause in ["TIMESTAMP AS OF TIMESTAMP", "SYSTEM_TIME AS OF", "TIMESTAMP AS OF"] {
            let sql = format!("SELECT count(*) FROM lake.org_1.\"Opp\" FOR {clause} '{time}'");
            assert_eq!(test.text(&sql).await.expect(&sql), expected, "{sql}");
        }
    }
    let early = "SELECT 1 FROM lake.org_1.\"Opp\" FOR TIMESTAMP AS OF DATE '2000-01-01'";
    assert_eq!(test.text(early).await.expect_err("too early").code(), ErrorCode::LakeNotFound);
    assert_eq!(made.len(), 3);
}

#[tokio::test]
async fn a_version_that_is_not_there_is_an_error() {
    let (test, _) = lake().await;
    for version in ["1", "'v3'", "'V1'", "''"] {
        let sql = format!("SELECT 1 FROM lake.org_1.\"Opp\" FOR VERSION AS OF {version}");
        let error = test.text(&sql).await.expect_err(&sql);
        assert_eq!(error.code(), ErrorCode::LakeNotFound, "{sql}");
        assert!(error.hint_text().expect("a hint").contains("v1"), "{sql}");
    }
    for sql in [
        "SELECT 1 FROM information_schema.tables FOR VERSION AS OF 1",
        "SELECT 1 FROM lake.information_schema.tables FOR VERSION AS OF 1",
        "SELECT 1 FROM lake.org_1.\"Opp$refs\" FOR VERSION AS OF 'v1'",
        "SELECT 1 FROM lake.org_1.missing FOR VERSION AS OF 'v1'",
    ] {
        let error = test.text(sql).await.expect_err(sql);
        assert_eq!(error.code(), ErrorCode::QueryInvalid, "{sql}: {error}");
    }
}

#[tokio::test]
async fn metadata_tables_tell_the_history() {
    let (test, made) = lake().await;
    let cases = [
        (
            "SELECT count(*), count(DISTINCT run_id), sum(files) FROM lake.org_1.\"Opp$snapshots\"",
            "3|3|4".to_owned(),
        ),
        (
            "SELECT name, type FROM lake.org_1.\"Opp$refs\" ORDER BY name",
            "main|BRANCH\nv1|TAG\nv2|TAG".to_owned(),
        ),
        ("SELECT sum(record_count) FROM lake.org_1.\"Opp$files\"", "1".to_owned()),
        (
            "SELECT sum(record_count) FROM lake.org_1.\"Opp$files\" FOR VERSION AS OF 'v1'",
            "2".to_owned(),
        ),
        ("SELECT snapshot_id FROM lake.org_1.\"Opp$refs\" WHERE name = 'v2'", made[2].to_string()),
    ];
    for (sql, expected) in cases {
        assert_eq!(test.text(sql).await.expect(sql), expected, "{sql}");
    }
}
