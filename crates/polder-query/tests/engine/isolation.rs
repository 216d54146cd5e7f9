//! A principal of one org sees nothing of another's, however it spells it.

use arrow::array::{Int64Array, RecordBatch, StringArray};
use polder_core::{ErrorCode, Field, LakeType, ManagementTable, Principal, TableSchema};

use super::lake::{Rows, TestLake, array, org, session};

async fn lake() -> TestLake {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![Field::new("id", LakeType::Long)]);
    for (owner, table) in [("401", "opportunity"), ("402", "opportunity"), ("402", "secret")] {
        let parts =
            vec![vec![array(Int64Array::from(vec![owner.parse::<i64>().expect("a number")]))]];
        let rows = Rows { org: owner, table, schema: &schema, partition: &[], parts };
        test.replace(rows).await;
    }
    test
}

#[tokio::test]
async fn names_of_another_org_do_not_exist() {
    let test = lake().await;
    let session = session(Principal::Org(org("401")));
    let other = test.folder().join("lake").display().to_string();
    let hidden = [
        "SELECT * FROM lake.org_402.opportunity".to_owned(),
        "SELECT * FROM org_402.opportunity".to_owned(),
        "SELECT * FROM \"org_402\".\"opportunity\"".to_owned(),
        "SELECT * FROM \"lake\".\"org_402\".\"opportunity\"".to_owned(),
        "SELECT * FROM `org_402`.`opportunity`".to_owned(),
        "SELECT * FROM ORG_402.OPPORTUNITY".to_owned(),
        "SELECT * FROM lake.org_402.opportunity FOR VERSION AS OF 'v1'".to_owned(),
        "SELECT * FROM org_402.\"opportunity$files\"".to_owned(),
        "SELECT * FROM org_402.\"opportunity$partitions\"".to_owned(),
        "SELECT * FROM org_402.\"opportunity$files\" FOR VERSION AS OF 'v1'".to_owned(),
        "SELECT * FROM secret".to_owned(),
        "SELECT * FROM \"org_402.opportunity\"".to_owned(),
        "SELECT * FROM \"../org_402/opportunity\"".to_owned(),
        "SELECT id FROM opportunity UNION ALL SELECT id FROM org_402.secret".to_owned(),
        "WITH x AS (SELECT * FROM org_402.secret) SELECT 1 FROM opportunity".to_owned(),
        "SELECT (SELECT max(id) FROM org_402.secret)".to_owned(),
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM org_402.secret)".to_owned(),
        "EXPLAIN SELECT * FROM org_402.secret".to_owned(),
        "DESCRIBE org_402.secret".to_owned(),
        "TABLE org_402.secret".to_owned(),
        "SELECT * FROM polder_management.runs".to_owned(),
        "SELECT * FROM datafusion.public.t".to_owned(),
        format!("SELECT * FROM '{other}'"),
        format!("SELECT * FROM \"{other}/x.parquet\""),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "SELECT * FROM 'file:///etc/passwd'".to_owned(),
        "SELECT * FROM parquet_metadata('x')".to_owned(),
        "SELECT * FROM read_csv('/etc/passwd')".to_owned(),
    ];
    for sql in hidden {
        let error = test.text_for(&sql, &session).await.expect_err(&sql);
        assert_eq!(error.code(), ErrorCode::QueryInvalid, "{sql}: {error}");
        let said = format!("{error} {:?} {:?}", error.hint_text(), error.detail_text());
        assert!(!said.contains("did you mean secret"), "{sql}: {said}");
    }
}

#[tokio::test]
async fn there_and_not_there_look_the_same() {
    let test = lake().await;
    let session = session(Principal::Org(org("401")));
    let error = async |sql: &str| {
        let error = test.text_for(sql, &session).await.expect_err(sql);
        format!("{error}|{:?}|{:?}", error.hint_text(), error.detail_text())
    };
    let there = error("SELECT * FROM org_402.opportunity").await;
    let absent = error("SELECT * FROM org_403.opportunity").await;
    assert_eq!(there.replace("402", "403"), absent);
}

#[tokio::test]
async fn information_schema_shows_what_may_be_seen() {
    let test = lake().await;
    let own = session(Principal::Org(org("401")));
    let tables = "SELECT table_schema, table_name FROM information_schema.tables WHERE \
                  table_schema <> 'information_schema' ORDER BY 1, 2";
    let columns = "SELECT table_schema, table_name, column_name, data_type FROM \
                   information_schema.columns WHERE table_schema LIKE 'org%' ORDER BY 1, 2";
    let schemata = "SELECT schema_name FROM information_schema.schemata ORDER BY 1";
    assert_eq!(test.text_for(tables, &own).await.expect("tables"), "org_401|opportunity");
    assert_eq!(
        test.text_for(columns, &own).await.expect("columns"),
        "org_401|opportunity|id|Int64"
    );
    assert_eq!(test.text_for(schemata, &own).await.expect("schemata"), "org_401");
    let all = "org_401|opportunity\norg_402|opportunity\norg_402|secret";
    assert_eq!(test.text(tables).await.expect("tables"), all);
    assert_eq!(test.text(schemata).await.expect("schemata"), "org_401\norg_402");
    let shown = test.text_for("SHOW TABLES", &own).await.expect("tables");
    assert!(shown.contains("opportunity") && !shown.contains("402"), "{shown}");
    assert_eq!(
        test.text_for("SELECT count(*) FROM information_schema.views", &own).await.expect("views"),
        "0"
    );
}

#[tokio::test]
async fn the_management_tables_are_the_operators() {
    const RUNS: ManagementTable =
        ManagementTable { name: "runs", columns: || vec![Field::new("rows", LakeType::Long)] };
    let test = lake().await;
    let columns = vec![array(StringArray::from(vec!["401"])), array(Int64Array::from(vec![7]))];
    let rows = RecordBatch::try_new(RUNS.schema().to_arrow(), columns).expect("batch");
    test.lake.record(&Principal::Operator, &RUNS, rows).await.expect("recorded");
    let sql = "SELECT org, rows FROM lake.polder_management.runs";
    assert_eq!(test.text(sql).await.expect("rows"), "401|7");
    let listed = "SELECT table_name FROM information_schema.tables WHERE table_schema = \
                  'polder_management'";
    assert_eq!(test.text(listed).await.expect("tables"), "runs");
    let own = session(Principal::Org(org("401")));
    let error = test.text_for(sql, &own).await.expect_err("not an org's");
    assert_eq!(error.code(), ErrorCode::QueryInvalid);
    assert_eq!(test.text_for(listed, &own).await.expect("tables"), "");
}

#[tokio::test]
async fn an_org_may_leave_its_own_name_out() {
    let test = lake().await;
    let own = session(Principal::Org(org("402")));
    for sql in [
        "SELECT id FROM opportunity",
        "SELECT id FROM org_402.opportunity",
        "SELECT id FROM lake.org_402.Opportunity",
        "SELECT id FROM opportunity FOR VERSION AS OF 'v1'",
    ] {
        assert_eq!(test.text_for(sql, &own).await.expect(sql), "402", "{sql}");
    }
    let error = test.text("SELECT id FROM opportunity").await.expect_err("whose?");
    assert!(error.hint_text().expect("a hint").contains("lake.org_<id>"), "{error}");
}
