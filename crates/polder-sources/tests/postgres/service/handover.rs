//! Reads that somebody else carries out: the statement in a session of theirs, what it refuses, and the
//! table that stands still meanwhile.

use std::time::Duration;

use polder_core::{ErrorCode, Source};
use tokio_postgres::Client;

use super::support::*;

const TABLE: &str = "CREATE TYPE stage AS ENUM ('größer');
    CREATE TABLE deal (id int PRIMARY KEY, org text, n numeric, j jsonb, i inet, c char(4), s stage,
        l text[], v interval);
    INSERT INTO deal VALUES
        (1, '401', 1.10, '{\"b\": 2,\"a\": 1}', '10.1.2.3', 'ab', 'größer', '{a,NULL,\"\\\"\"}',
            '1 month 2 days 03:00:00.000004'),
        (2, '402', 2, NULL, NULL, NULL, NULL, NULL, NULL),
        (3, '401', NULL, NULL, NULL, NULL, NULL, '{}', NULL)";

async fn refusal(client: &Client, statement: &str) -> String {
    let error = client.simple_query(statement).await.expect_err(statement);
    error.as_db_error().expect("the server's error").message().to_owned()
}

#[tokio::test]
async fn settings_of_the_session_change_nothing() {
    let database = Database::new().await;
    database.run(TABLE).await;
    let source = database.source();
    let asked = source.hand_over(request("deal").filter("org = {org}")).await.expect("planned");
    database
        .run(
            "SET TimeZone = 'Etc/UTC'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'iso_8601';
             SET bytea_output = 'escape'; SET extra_float_digits = 0",
        )
        .await;
    let sql = format!(
        "SELECT c1::text, c3, c4, c5, c6, c7, c8, c9 FROM ({}) AS asked ORDER BY 1",
        asked.statement
    );
    let text = |text: &str| Some(text.to_owned());
    let first = [
        "1",
        "1.10",
        "{\"a\": 1, \"b\": 2}",
        "10.1.2.3/32",
        "ab  ",
        "größer",
        "[\"a\",null,\"\\\"\"]",
        "[1, 2, 10800000004]",
    ];
    let mut third = vec![None; 8];
    (third[0], third[6]) = (text("3"), text("[]"));
    assert_eq!(database.texts(&sql).await, [first.map(text).to_vec(), third]);
    let json: Vec<bool> = asked.columns.iter().map(|column| column.json).collect();
    assert_eq!(json, [false, false, false, false, false, false, false, true, true]);
    asked.standing.release().await.expect("the table stood still");
}

#[tokio::test]
async fn what_the_lake_does_not_have_ends_the_statement() {
    let database = Database::new().await;
    let cases = [
        ("numeric(10, 2)", "NaN"),
        ("date", "infinity"),
        ("date", "0001-01-01 BC"),
        ("timestamp", "-infinity"),
        ("timestamptz", "infinity"),
        ("timestamptz", "10000-01-01 00:00:00+00"),
        ("time", "24:00:00"),
        ("int[]", "{{1},{2}}"),
        ("text[]", "[0:1]={a,b}"),
    ];
    let (client, _connection) = database.session().await;
    for (number, (data_type, value)) in cases.into_iter().enumerate() {
        let sql = format!(
            "CREATE TABLE t{number} (id int, v {data_type}); INSERT INTO t{number} VALUES (1, NULL)"
        );
        database.run(&sql).await;
        let from = format!("t{number}");
        let asked = database.source().hand_over(request(&from)).await.expect("planned");
        client.simple_query(&asked.statement).await.expect("a null is one of the lake's");
        database.run(&format!("INSERT INTO t{number} VALUES (2, '{value}')")).await;
        let found = refusal(&client, &asked.statement).await;
        assert!(found.contains("polder-refused-2"), "{data_type} {value}: {found}");
    }
}

#[tokio::test]
async fn columns_that_cannot_be_the_same_are_named() {
    let database = Database::new().await;
    for data_type in ["money", "xml", "tstzrange", "float8[]", "point", "char(3)[]"] {
        database.run(&format!("CREATE TABLE odd (id int, v {data_type})")).await;
        let error = database.source().hand_over(request("odd")).await.err().expect(data_type);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{data_type}");
        assert!(error.message().contains("\"v\""), "{error:?}");
        database.run("DROP TABLE odd").await;
    }
}

#[tokio::test]
async fn what_a_session_decides_by_itself_is_not_handed_over() {
    let database = Database::new().await;
    database
        .run(
            "CREATE EXTENSION IF NOT EXISTS file_fdw;
             CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE TABLE t (id int, at timestamptz);
             CREATE VIEW days AS SELECT id, at::date AS day FROM t;
             CREATE MATERIALIZED VIEW stored AS SELECT id, at::date AS day FROM t;
             CREATE FOREIGN TABLE far (id int) SERVER files OPTIONS (filename '/dev/null');
             CREATE TABLE parted (id int) PARTITION BY RANGE (id);
             CREATE FOREIGN TABLE part PARTITION OF parted DEFAULT
                 SERVER files OPTIONS (filename '/dev/null')",
        )
        .await;
    let source = database.source();
    for from in ["days", "far", "parted"] {
        let error = source.hand_over(request(from)).await.err().expect(from);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{from}");
        assert!(error.message().contains("reads tables"), "{error:?}");
    }
    source.hand_over(request("stored")).await.expect("it is stored");
}

/// A driver has floats sent as texts, of which the session decides how long they are.
#[tokio::test]
async fn floats_that_would_be_rounded_end_the_statement() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE t (id int, x float8); INSERT INTO t VALUES (1, 0.1::float8 + 0.2)")
        .await;
    let asked = database.source().hand_over(request("t")).await.expect("planned");
    let (client, _connection) = database.session().await;
    client.batch_execute("SET extra_float_digits = 0").await.expect("rounded");
    assert!(refusal(&client, &asked.statement).await.contains("polder-refused-0"));
    client.batch_execute("SET extra_float_digits = 3").await.expect("as they are");
    client.simple_query(&asked.statement).await.expect("as they are");
    let narrow = request("t").columns(&["id"]);
    let asked = database.source().hand_over(narrow).await.expect("planned");
    client.batch_execute("SET extra_float_digits = 0").await.expect("rounded");
    client.simple_query(&asked.statement).await.expect("no float is read");
}

/// A row that moves to a partition that came later would be in none that are read.
#[tokio::test]
async fn a_partition_that_comes_meanwhile_undoes_the_read() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (id int) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1);
             CREATE TABLE high (id int)",
        )
        .await;
    let asked = database.source().hand_over(request("t")).await.expect("planned");
    database
        .run("ALTER TABLE t ATTACH PARTITION high FOR VALUES FROM (10) TO (20); UPDATE t SET id = 11")
        .await;
    let error = asked.standing.release().await.expect_err("a row is elsewhere");
    assert!(error.retryable() && error.message().contains("partitions"), "{error:?}");
    let asked = database.source().hand_over(request("t")).await.expect("planned");
    asked.standing.release().await.expect("nothing came");
}

#[tokio::test]
async fn the_statement_is_for_this_database_alone() {
    let (database, other) = (Database::new().await, Database::new().await);
    for of in [&database, &other] {
        of.run("CREATE TABLE t (id int, org text)").await;
        of.run("CREATE TABLE parted (id int, org text) PARTITION BY LIST (org)").await;
    }
    database.run("CREATE TABLE part PARTITION OF parted FOR VALUES IN ('401')").await;
    let source = database.source();
    let plain = source.hand_over(request("t")).await.expect("planned");
    let filtered = source.hand_over(request("t").filter("org = {org}")).await.expect("planned");
    // Where no partition can have a row the server looks at no condition.
    let parted = source.hand_over(request("parted").filter("org = {org}")).await.expect("planned");
    let (own, _own) = database.session().await;
    let (elsewhere, _elsewhere) = other.session().await;
    own.batch_execute("SET TimeZone = 'Asia/Kolkata'").await.expect("zone");
    own.simple_query(&plain.statement).await.expect("no word depends on the zone");
    // Of a table without rows, too.
    assert!(refusal(&own, &filtered.statement).await.contains("polder-refused-0"));
    own.batch_execute("SET TimeZone = 'UTC'; SET search_path = x").await.expect("path");
    assert!(refusal(&own, &filtered.statement).await.contains("polder-refused-0"));
    own.batch_execute("RESET search_path").await.expect("path");
    let role = "DO $$ BEGIN CREATE ROLE polder_other_reader; \
         EXCEPTION WHEN duplicate_object THEN NULL; END $$";
    own.batch_execute(role).await.expect("a role");
    own.batch_execute("GRANT SELECT ON t TO polder_other_reader; SET ROLE polder_other_reader")
        .await
        .expect("another role");
    assert!(refusal(&own, &filtered.statement).await.contains("polder-refused-0"));
    own.simple_query(&plain.statement).await.expect("nothing depends on the role");
    own.batch_execute("RESET ROLE").await.expect("role");
    own.simple_query(&filtered.statement).await.expect("as it was planned");
    elsewhere.batch_execute("SET TimeZone = 'UTC'").await.expect("zone");
    for asked in [&plain, &filtered, &parted] {
        assert!(refusal(&elsewhere, &asked.statement).await.contains("polder-refused-0"));
    }
}

#[tokio::test]
async fn the_table_stands_still_until_somebody_waits_in_line() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int)").await;
    let source = database.source();
    let asked = source.hand_over(request("t")).await.expect("planned");
    let alter = "ALTER TABLE t ADD COLUMN late int";
    let (altering, _altering) = database.session().await;
    altering.batch_execute("SET lock_timeout = '200ms'").await.expect("timeout");
    altering.batch_execute(alter).await.expect_err("the plan's session has the lock");
    altering.batch_execute("SET lock_timeout = 0").await.expect("no timeout");
    let (reading, _reading) = database.session().await;
    let wait = Duration::from_mins(1);
    let standing = asked.standing;
    let both = async {
        let read = async {
            // Behind the change.
            while database.number(WAITING).await == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            reading.simple_query(&asked.statement).await
        };
        let (altered, read) = tokio::join!(altering.batch_execute(alter), read);
        altered.expect("altered");
        read.expect("read");
    };
    let letting_go = async {
        let error = tokio::time::timeout(wait, standing.disturbed()).await.expect("noticed");
        assert!(error.retryable() && error.code() == ErrorCode::SourceUnavailable, "{error:?}");
        standing.release().await.expect("the table is as it was until here");
    };
    tokio::time::timeout(wait, async { tokio::join!(both, letting_go) }).await.expect("in time");
}

const WAITING: &str = "SELECT count(*) FROM pg_locks
    WHERE mode = 'AccessExclusiveLock' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
