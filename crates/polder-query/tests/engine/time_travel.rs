//! Earlier states of a table.

use arrow::array::{ArrayRef, Date32Array, Float64Array, Int64Array, StringArray};
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
        (
            "SELECT summary['total-records'], manifest_list LIKE '%.avro' \
             FROM lake.org_1.\"Opp$snapshots\" ORDER BY committed_at",
            "2|true\n3|true\n1|true".to_owned(),
        ),
        (
            "SELECT record_count, file_count, p.data.id.min, p.data.id.max, p.data.id.null_count \
             FROM lake.org_1.\"Opp$partitions\" p",
            "1|1|9|9|0".to_owned(),
        ),
        (
            "SELECT record_count, p.data.id.max \
             FROM lake.org_1.\"Opp$partitions\" FOR VERSION AS OF 'v1' AS p",
            "2|2".to_owned(),
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(test.text(sql).await.expect(sql), expected, "{sql}");
    }
}

#[tokio::test]
async fn files_are_told_with_their_statistics_and_added_up_by_partition() {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("day", LakeType::Date),
        Field::new("region", LakeType::String),
        Field::new("x", LakeType::Double),
    ]);
    // Two days of January 2026, and one of February; 672 months after the epoch.
    let part = |id: i64, day: i32, region: Option<&str>, x: Vec<Option<f64>>| -> Vec<ArrayRef> {
        let rows = x.len();
        vec![
            array(Int64Array::from_iter_values(id..id + rows as i64)),
            array(Date32Array::from(vec![day; rows])),
            array(StringArray::from(vec![region; rows])),
            array(Float64Array::from(x)),
        ]
    };
    let parts = vec![
        part(1, 20_454, Some("eu"), vec![Some(0.5), None]),
        part(3, 20_464, Some("eu"), vec![Some(f64::NAN), Some(-2.0)]),
        part(5, 20_490, None, vec![None]),
    ];
    let partition = &["month(day)", "region"];
    test.replace(Rows { org: "1", table: "t", schema: &schema, partition, parts }).await;
    let cases = [
        (
            "SELECT p.\"partition\".day_month, p.\"partition\".region, record_count, file_count, \
             total_size > 0 FROM lake.org_1.\"t$partitions\" p ORDER BY 1",
            "672|eu|4|2|true\n673||1|1|true",
        ),
        (
            "SELECT p.data.id.min, p.data.id.max, p.data.day.min, p.data.x.min, p.data.x.max, \
             p.data.x.null_count, p.data.x.nan_count \
             FROM lake.org_1.\"t$partitions\" p ORDER BY p.\"partition\".day_month",
            "1|4|2026-01-01|-2.0|0.5|1|1\n5|5|2026-02-06|||1|0",
        ),
        (
            "SELECT record_count, value_counts[4], null_value_counts[4], nan_value_counts[4], \
             lower_bounds[1], upper_bounds[2], lower_bounds[4], column_sizes[1] > 0 \
             FROM lake.org_1.\"t$files\" ORDER BY lower_bounds[1]",
            "2|2|1|0|1|2026-01-01|0.5|true\n2|2|0|1|3|2026-01-11|-2.0|true\n\
             1|1|1|0|5|2026-02-06||true",
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(test.text(sql).await.expect(sql), expected, "{sql}");
    }
    let all = "SELECT * FROM lake.org_1.\"t$partitions\"";
    let columns = test.batches(all).await.expect("rows")[0].schema();
    let columns: Vec<&str> = columns.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(columns, ["partition", "record_count", "file_count", "total_size", "data"]);
}
