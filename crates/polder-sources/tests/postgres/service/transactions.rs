//! `cursor: xmin`: rows are found by the transaction that wrote them, and the mark stays below those that
//! are under way.

use polder_core::{CursorValue, ErrorCode, LakeType, Source};
use tokio_postgres::Client;

use super::support::{Database, Read, Vary, read, request};

async fn numbers(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect(sql).get(0)
}

const NEXT: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8";
const OWN: &str = "SELECT pg_current_xact_id()::text::int8";

fn mark(read: &Read) -> i64 {
    assert_eq!(read.ceiling, read.floor, "it moves as far as it may");
    match read.ceiling {
        Some(CursorValue::Int(mark)) => mark,
        ref other => panic!("a mark of another kind: {other:?}"),
    }
}

async fn since(database: &Database, table: &str, mark: i64) -> Read {
    let asked = request(table).key(&["id"]).cursor("xmin", Some(CursorValue::Int(mark)));
    read(&database.source(), asked).await.expect(table)
}

#[tokio::test]
async fn new_and_changed_rows_are_found_and_open_transactions_hold_the_mark() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    database.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    let before = database.number(NEXT).await;
    let all = read(&database.source(), request("t").cursor("xmin", None)).await.expect("all");
    assert_eq!(all.types(), "id int, note string, xmin long");
    assert!(!all.schema.field("xmin").expect("xmin").nullable);
    assert!(mark(&all) >= before, "nothing is open in this database: {} {before}", mark(&all));

    let (late, _connection) = database.session().await;
    late.batch_execute("BEGIN; SAVEPOINT s; UPDATE t SET note = 'late' WHERE id = 1")
        .await
        .expect("an open transaction with a number inside another one");
    let held = numbers(&late, OWN).await;
    database.run("UPDATE t SET note = 'early' WHERE id = 2").await;
    let found = since(&database, "t", mark(&all)).await;
    assert_eq!(found.sorted("id"), [2]);
    assert_eq!(mark(&found), held, "it stays below what may yet be committed");
    late.batch_execute("COMMIT").await.expect("commit");
    let found = since(&database, "t", held).await;
    assert_eq!(found.sorted("id"), [1, 2], "the late one, and the one that is read again");

    let (prepared, _connection) = database.session().await;
    let ready = "BEGIN; INSERT INTO t VALUES (4, 'd')";
    prepared.batch_execute(ready).await.expect("begin");
    let held = numbers(&prepared, OWN).await;
    // A snapshot ends above a number once a later transaction is over.
    database.number(OWN).await;
    let reader = "SELECT count(*) FROM t";
    let (idle, _connection) = database.session().await;
    idle.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("begin");
    numbers(&idle, reader).await;
    assert_eq!(mark(&since(&database, "t", held).await), held);
    prepared.batch_execute("ROLLBACK").await.expect("rollback");
    let found = since(&database, "t", held).await;
    assert!(found.sorted("id").is_empty() && mark(&found) > held, "readers hold nothing back");
}

#[tokio::test]
async fn a_row_keeps_its_number_when_it_is_frozen_moved_or_locked() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int PRIMARY KEY, note text)").await;
    database.run("INSERT INTO t SELECT n, 'a' FROM generate_series(1, 50) n").await;
    database.run("CREATE TABLE of_t (id int REFERENCES t)").await;
    let before = since(&database, "t", i64::MIN).await.texts("xmin");
    let mark = database.number(NEXT).await;
    database.run("INSERT INTO of_t SELECT id FROM t").await;
    for sql in ["VACUUM FREEZE t", "VACUUM (FULL, FREEZE) t", "CLUSTER t USING t_pkey"] {
        database.run(sql).await;
        assert!(since(&database, "t", mark).await.sorted("id").is_empty(), "{sql}");
        assert_eq!(since(&database, "t", i64::MIN).await.texts("xmin"), before, "{sql}");
    }
    database.run("ALTER TABLE t ADD made timestamptz DEFAULT clock_timestamp()").await;
    let rewritten = since(&database, "t", mark).await;
    assert_eq!(rewritten.sorted("id").len(), 50, "a rewritten table's rows are read again");
}

#[tokio::test]
async fn partitions_and_splits_have_one_count() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE parted (id int PRIMARY KEY, pad text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (30000);
             CREATE TABLE high PARTITION OF parted DEFAULT;
             INSERT INTO parted SELECT n, repeat('x', 400) FROM generate_series(1, 60000) n",
        )
        .await;
    let asked = request("parted").key(&["id"]).cursor("xmin", None).splits(3);
    let all = read(&database.source(), asked).await.expect("all");
    assert!(all.splits > 1, "{} splits", all.splits);
    let own: i64 = database.number("SELECT min(xmin::text::int8) FROM parted").await;
    let written = all.sorted("xmin");
    assert_eq!(written.len(), 60_000);
    assert!(written.iter().all(|number| number % (1 << 32) == own), "{own}");
    database.run("UPDATE parted SET id = id + 100000 WHERE id IN (7, 30007)").await;
    let moved = since(&database, "parted", mark(&all)).await;
    assert_eq!(moved.sorted("id"), [100_007, 130_007], "one went to another partition");
    let named = request("parted").cursor("xmin", None).columns(&["xmin", "id"]);
    assert_eq!(read(&database.source(), named).await.expect("named").types(), "id int, xmin long");
}

#[tokio::test]
async fn what_is_no_table_and_what_another_server_counted_are_refused() {
    let database = Database::new().await;
    database
        .run(
            "CREATE EXTENSION IF NOT EXISTS file_fdw;
             CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE TABLE t (id int PRIMARY KEY);
             CREATE FOREIGN TABLE f (id int) SERVER files OPTIONS (filename '/dev/null');
             CREATE TABLE parted (id int) PARTITION BY RANGE (id);
             CREATE FOREIGN TABLE far PARTITION OF parted DEFAULT
                 SERVER files OPTIONS (filename '/dev/null');
             CREATE VIEW v AS SELECT * FROM t; CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
             CREATE VIEW own AS SELECT id, id::int8 AS \"xmin\" FROM t",
        )
        .await;
    let source = database.source();
    for table in ["f", "parted", "v", "m"] {
        let asked = request(table).cursor("xmin", None);
        let error = source.doubts(&asked).await.expect_err(table);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{table}");
        let error = source.plan(asked).await.err().expect(table);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{table}");
    }
    let own =
        read(&source, request("own").cursor("xmin", None)).await.expect("a view's own column");
    assert_eq!(own.schema.field("xmin").expect("xmin").data_type, LakeType::Long);
    let next = database.number(NEXT).await;
    let ahead = request("t").cursor("xmin", Some(CursorValue::Int(next + 1_000_000)));
    let error = source.plan(ahead).await.err().expect("a mark that this server has not reached");
    assert!(error.hint_text().expect("hint").contains("--full-refresh"), "{error:?}");
    let mut moved = request("t").cursor("xmin", Some(CursorValue::Int(3)));
    moved.snapshot_read = Some("1@3:4:/3".to_owned());
    let error = source.plan(moved.clone()).await.err().expect("a mark of another server");
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
    let state = read(&source, request("t").cursor("xmin", None)).await.expect("read").snapshot;
    moved.snapshot_read = state;
    source.plan(moved).await.expect("a mark of this one");
}
