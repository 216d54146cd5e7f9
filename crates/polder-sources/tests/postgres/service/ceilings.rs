//! How far the next checkpoint may go: other transactions, seen and unseen.

use std::time::Duration;

use polder_core::{CursorValue, ReadRequest};
use polder_sources::postgres::PostgresSource;

use super::support::{Database, Read, Vary, read, request};

const MICROS_OF: &str = "SELECT (extract(epoch FROM";

#[tokio::test]
async fn the_ceiling_stays_below_open_transactions() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int PRIMARY KEY, at timestamptz DEFAULT now())").await;
    let (writer, _connection) = database.session().await;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("insert");
    let began: i64 = writer
        .query_one("SELECT (extract(epoch FROM now()) * 1000000)::int8", &[])
        .await
        .expect("now")
        .get(0);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    database.run("INSERT INTO t VALUES (2)").await;

    let source = database.source();
    let first = read(&source, request("t").cursor("at", None)).await.expect("first");
    assert_eq!(first.sorted("id"), [2], "row 1 is not committed");
    assert!(first.warnings.is_empty(), "{:?}", first.warnings);
    let Some(CursorValue::Timestamptz(ceiling)) = first.ceiling else { panic!("no ceiling") };
    assert!(ceiling < began, "{ceiling} passes the open transaction's start {began}");

    writer.batch_execute("COMMIT").await.expect("commit");
    let bound = Some(CursorValue::Timestamptz(ceiling));
    let second = read(&source, request("t").cursor("at", bound)).await.expect("second");
    assert_eq!(second.sorted("id"), [1, 2], "the late row comes");
    let Some(CursorValue::Timestamptz(ceiling)) = second.ceiling else { panic!("no ceiling") };
    assert!(ceiling > began, "with nothing open the ceiling moves on");
    let now = database.number(&format!("{MICROS_OF} now()) * 1000000)::int8")).await;
    assert!(ceiling < now);
}

/// Reads until no other transaction is in the way: those of earlier reads may take a moment to end.
async fn quiet(source: &PostgresSource, request: ReadRequest) -> Read {
    for _ in 0..1_200 {
        let found = read(source, request.clone()).await.expect("read");
        if found.warnings.is_empty() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the ceiling stays");
}

#[tokio::test]
async fn numbers_and_texts_move_only_while_no_transaction_is_open() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int, big int8, code text COLLATE \"en-x-icu\", u uuid)").await;
    let row = |id: u32| {
        format!(
            "INSERT INTO t VALUES ({id}, {id}, 'c{id}', '00000000-0000-0000-0000-00000000000{id}')"
        )
    };
    let (writer, _connection) = database.session().await;
    let source = database.source();
    let text = |text: &str| CursorValue::Text(text.to_owned());
    let uuid = |id: u32| text(&format!("00000000-0000-0000-0000-00000000000{id}"));
    let cases = [
        ("id", CursorValue::Int(i64::MIN), CursorValue::Int(2)),
        ("big", CursorValue::Int(i64::MIN), CursorValue::Int(2)),
        ("code", text(""), text("c2")),
        ("u", uuid(0), uuid(2)),
    ];
    for (column, least, highest) in cases {
        database.run("TRUNCATE t").await;
        // Its numbers are lower than what is committed before it.
        writer.batch_execute(&format!("BEGIN; {}", row(1))).await.expect("insert");
        database.run(&row(2)).await;
        let first = read(&source, request("t").cursor(column, None)).await.expect(column);
        assert_eq!(first.sorted("id"), [2], "{column}");
        assert_eq!(first.ceiling.as_ref(), Some(&least), "{column}: as if nothing was read");
        assert!(first.warnings[0].contains("reads the same rows again"), "{:?}", first.warnings);
        let bound = Some(highest.clone());
        let held = read(&source, request("t").cursor(column, bound.clone())).await.expect(column);
        assert_eq!(held.ceiling, bound, "{column} stays at its bound");

        writer.batch_execute("COMMIT").await.expect("commit");
        let second = quiet(&source, request("t").cursor(column, first.ceiling)).await;
        assert_eq!(second.sorted("id"), [1, 2], "{column}: the late row comes");
        assert_eq!(second.ceiling, Some(highest), "{column}");
    }
}

#[tokio::test]
async fn rows_of_other_databases_transactions_have_ten_minutes() {
    let database = Database::new().await;
    database.run("CREATE MATERIALIZED VIEW m AS SELECT 1 AS id, now() AS at").await;
    let source = database.source();
    let found = read(&source, request("m").cursor("at", None)).await.expect("read");
    let now = database.number(&format!("{MICROS_OF} now()) * 1000000)::int8")).await;
    let Some(CursorValue::Timestamptz(ceiling)) = found.ceiling else { panic!("no ceiling") };
    assert!((600_000_000..700_000_000).contains(&(now - ceiling)), "{}", now - ceiling);
    assert!(found.warnings[0].contains("materialized"), "{:?}", found.warnings);
    let numbers = read(&source, request("m").cursor("id", None)).await.expect("read");
    assert_eq!(numbers.ceiling, Some(CursorValue::Int(i64::MIN)));
}

#[tokio::test]
async fn a_role_that_cannot_see_transactions_stays_ten_minutes_behind() {
    let database = Database::new().await;
    let role = format!("{}_reader", database.name);
    database
        .run(&format!(
            "CREATE TABLE t (id int, at timestamptz); CREATE ROLE {role} LOGIN;
             GRANT SELECT ON t TO {role}"
        ))
        .await;
    let source = database.source_as(&role);
    let (other, _connection) = database.session().await;
    let idle = quiet(&source, request("t").cursor("at", None)).await;
    let now = database.number(&format!("{MICROS_OF} now()) * 1000000)::int8")).await;
    let Some(CursorValue::Timestamptz(ceiling)) = idle.ceiling else { panic!("no ceiling") };
    assert!(now - ceiling < 60_000_000, "sessions without a transaction are in nobody's way");

    other.batch_execute("BEGIN; SELECT 1").await.expect("begin");
    let found = read(&source, request("t").cursor("at", None)).await.expect("read");
    let now = database.number(&format!("{MICROS_OF} now()) * 1000000)::int8")).await;
    let Some(CursorValue::Timestamptz(ceiling)) = found.ceiling else { panic!("no ceiling") };
    let behind = now - ceiling;
    assert!((600_000_000..700_000_000).contains(&behind), "{behind}");
    assert!(found.warnings.iter().any(|text| text.contains("pg_read_all_stats")));
    drop(source);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
