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
async fn the_statement_is_for_this_database_alone() {
    let (database, other) = (Database::new().await, Database::new().await);
    for of in [&database, &other] {
        of.run("CREATE TABLE t (id int, org text)").await;
    }
    let source = database.source();
    let plain = source.hand_over(request("t")).await.expect("planned");
    let filtered = source.hand_over(request("t").filter("org = {org}")).await.expect("planned");
    let (own, _own) = database.session().await;
    let (elsewhere, _elsewhere) = other.session().await;
    own.batch_execute("SET TimeZone = 'Asia/Kolkata'").await.expect("zone");
    own.simple_query(&plain.statement).await.expect("no word depends on the zone");
    // Of a table without rows, too.
    assert!(refusal(&own, &filtered.statement).await.contains("polder-refused-0"));
    own.batch_execute("SET TimeZone = 'UTC'; SET search_path = x").await.expect("path");
    assert!(refusal(&own, &filtered.statement).await.contains("polder-refused-0"));
    own.batch_execute("RESET search_path").await.expect("path");
    own.simple_query(&filtered.statement).await.expect("as it was planned");
    elsewhere.batch_execute("SET TimeZone = 'UTC'").await.expect("zone");
    for asked in [&plain, &filtered] {
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
