//! Splits that agree, locks, cancelling.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use polder_core::Source;
use tokio::task::JoinSet;

use super::support::{Database, Vary, drain, read, request};

/// About 40 MB: enough for four splits.
const ACCOUNTS: &str = "
    CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, filler text);
    INSERT INTO account SELECT n, 100, repeat('x', 200) FROM generate_series(1, 160000) n;
    ANALYZE account";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_splits_see_one_snapshot_while_rows_move() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    let mut writers = JoinSet::new();
    for writer in 0..2_u32 {
        let (client, connection) = database.session().await;
        writers.spawn(async move {
            let _connection = connection;
            // Every transfer keeps the sum; every update moves its row to the table's end.
            for step in 0..2000_u32 {
                let (from, to) = ((step * 37 + writer) % 160_000 + 1, (step * 91) % 160_000 + 1);
                let moved = format!(
                    "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
                     UPDATE account SET balance = balance + 1 WHERE id = {to}; COMMIT"
                );
                // Two writers may block each other; then neither transfer counts.
                if client.batch_execute(&moved).await.is_err() {
                    client.batch_execute("ROLLBACK").await.ok();
                }
            }
        });
    }
    let source = database.source();
    for _ in 0..3 {
        let found = read(&source, request("account").splits(4)).await.expect("read");
        assert_eq!(found.splits, 4);
        let ids = found.sorted("id");
        assert!(ids.iter().copied().eq(1..=160_000), "every row once");
        assert_eq!(found.sorted("balance").iter().sum::<i64>(), 16_000_000, "one snapshot");
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
        let estimated = found.rows_estimated.expect("analysed");
        assert!((100_000..400_000).contains(&estimated), "{estimated}");
    }
    writers.shutdown().await;
}

#[tokio::test]
async fn splits_are_for_scans_of_large_tables_only() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    database.run("CREATE VIEW v AS SELECT * FROM account; CREATE TABLE small (id int)").await;
    let source = database.source();
    let cases = [
        (request("account").splits(2), 2),
        (request("account").splits(1), 1),
        (request("account").splits(8).filter("balance >= 0"), 4),
        (request("account").splits(4).filter("id between 10 and 20"), 1),
        (request("v").splits(4), 1),
        (request("small").splits(4), 1),
    ];
    for (request, splits) in cases {
        let plan = source.plan(request).await.expect("plan");
        assert_eq!(plan.splits.len(), splits);
    }
}

#[tokio::test]
async fn partitions_are_read_as_one_table() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE sale (id int, region text NOT NULL, amount numeric(10,2))
                 PARTITION BY LIST (region);
             CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu');
             CREATE TABLE sale_us (gone int, amount numeric(10,2), region text NOT NULL, id int);
             ALTER TABLE sale_us DROP COLUMN gone;
             ALTER TABLE sale ATTACH PARTITION sale_us FOR VALUES IN ('us');
             INSERT INTO sale SELECT n, 'eu', n FROM generate_series(1, 300000) n;
             INSERT INTO sale SELECT n, 'us', n FROM generate_series(300001, 400000) n;
             ANALYZE sale",
        )
        .await;
    let source = database.source();
    let found = read(&source, request("sale").splits(2)).await.expect("read");
    assert_eq!(found.splits, 2);
    assert!(found.sorted("id").iter().copied().eq(1..=400_000));
    assert!(!found.schema.field("region").expect("region").nullable);
    let whole = |id: Option<String>| id.map(|id| format!("{id}.00"));
    let expected: Vec<_> = found.texts("id").into_iter().map(whole).collect();
    assert!(found.texts("amount") == expected, "columns are matched by name");

    // Who may read the parent need not be allowed to read the partitions.
    let role = format!("{}_reader", database.name);
    database.run(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON sale TO {role}")).await;
    let reader = database.source_as(&role);
    let found = read(&reader, request("sale").splits(2)).await.expect("read");
    assert_eq!(found.rows.num_rows(), 400_000);
    drop(reader);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_lock_is_waited_for_and_the_snapshot_comes_after_it() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await;
    let (other, _connection) = database.session().await;
    let sql = "BEGIN; TRUNCATE t; INSERT INTO t VALUES (2), (3)";
    other.batch_execute(sql).await.expect("truncate");
    let source = database.source();
    let request = request("t");
    let progress = request.progress.clone();
    let (plan, ()) = tokio::join!(source.plan(request), async {
        let mut waited_for = None;
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            waited_for = progress.snapshot().waiting_for;
            if waited_for.is_some() {
                break;
            }
        }
        assert!(waited_for.expect("waits").contains("public.t"));
        other.batch_execute("COMMIT").await.expect("commit");
    });
    let found = drain(plan.expect("plan")).await.expect("read");
    assert_eq!(found.sorted("id"), [2, 3], "neither the old rows nor none");
    assert_eq!(progress.snapshot().waiting_for, None);
}

#[tokio::test]
async fn what_is_attached_during_a_read_is_not_part_of_it() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE sale (id int, region text) PARTITION BY LIST (region);
             CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu');
             CREATE TABLE sale_us (id int, region text);
             INSERT INTO sale_us VALUES (2, 'us'); INSERT INTO sale VALUES (1, 'eu');
             CREATE TABLE t (id int); CREATE TABLE other (id int);
             INSERT INTO t VALUES (1); INSERT INTO other VALUES (2)",
        )
        .await;
    let source = database.source();
    let sales = source.plan(request("sale")).await.expect("plan");
    let plain = source.plan(request("t")).await.expect("plan");
    database
        .run(
            "ALTER TABLE sale ATTACH PARTITION sale_us FOR VALUES IN ('us');
             ALTER TABLE other INHERIT t",
        )
        .await;
    assert_eq!(drain(sales).await.expect("read").sorted("id"), [1]);
    assert_eq!(drain(plain).await.expect("read").sorted("id"), [1]);
    for (from, expected) in [("sale", [1, 2]), ("t", [1, 2])] {
        assert_eq!(read(&source, request(from)).await.expect("read").sorted("id"), expected);
    }
}

#[tokio::test]
async fn a_table_under_another_name_is_not_read() {
    let database = Database::new().await;
    database
        .run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id int); INSERT INTO a.t VALUES (1);
             CREATE SCHEMA b; CREATE TABLE b.t (id int); INSERT INTO b.t VALUES (2)",
        )
        .await;
    let plan = database.source().plan(request("a.t")).await.expect("plan");
    database.run("ALTER SCHEMA a RENAME TO c; ALTER SCHEMA b RENAME TO a").await;
    let error = drain(plan).await.err().expect("another table");
    assert!(error.retryable() && error.to_string().contains("a.t"), "{error:?}");
}

#[tokio::test]
async fn a_table_truncated_before_it_could_be_locked_is_read_again() {
    let database = Database::new().await;
    let role = format!("{}_columns", database.name);
    database
        .run(&format!(
            "CREATE TABLE t (id int, more int); INSERT INTO t VALUES (1); CREATE ROLE {role} LOGIN;
             CREATE VIEW v AS SELECT id FROM t; GRANT SELECT (id) ON t, v TO {role}"
        ))
        .await;
    let (other, _connection) = database.session().await;
    for from in ["t", "v"] {
        // A role with rights on columns alone may read and may not lock.
        let source = database.source_as(&role);
        let sql = "BEGIN; TRUNCATE t; INSERT INTO t VALUES (2), (3)";
        other.batch_execute(sql).await.expect("truncate");
        let (plan, ()) = tokio::join!(source.plan(request(from).columns(&["id"])), async {
            // Other tests wait in databases of their own.
            let waits = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                         WHERE NOT granted AND datname = current_database()";
            for _ in 0..3_000 {
                if database.number(waits).await > 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other.batch_execute("COMMIT").await.expect("commit");
        });
        let error = plan.err().expect("the snapshot has an empty table");
        assert!(error.retryable(), "{error:?}");
        let found = read(&source, request(from).columns(&["id"])).await.expect("read");
        assert_eq!(found.sorted("id"), [2, 3]);
    }
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

const BUSY: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'polder/%'";

async fn sessions_end(database: &Database) {
    for _ in 0..1_200 {
        if database.number(BUSY).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("sessions are left over");
}

#[tokio::test]
async fn dropping_a_read_ends_it_at_the_server() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    database.run("CREATE VIEW slow AS SELECT id, pg_sleep(0.01)::text FROM account").await;
    let source = database.source();

    let plan = source.plan(request("account").splits(4)).await.expect("plan");
    assert_eq!(database.number(BUSY).await, 4, "a session for each split");
    drop(plan);
    sessions_end(&database).await;

    let mut plan = source.plan(request("account")).await.expect("plan");
    let mut stream = plan.splits.remove(0).read();
    stream.next().await.expect("a batch").expect("rows");
    drop(stream);
    sessions_end(&database).await;

    // A statement that sends nothing for a long time does not notice a closed socket by itself.
    let mut plan = source.plan(request("slow")).await.expect("plan");
    let mut stream = plan.splits.remove(0).read();
    let waited = tokio::time::timeout(Duration::from_millis(500), stream.next()).await;
    assert!(waited.is_err(), "the first batch takes minutes");
    drop(stream);
    sessions_end(&database).await;
}

#[tokio::test]
async fn a_session_that_is_killed_is_an_error_that_can_be_retried() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    let source = database.source();
    let mut plan = source.plan(request("account")).await.expect("plan");
    database
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'polder/401'",
        )
        .await;
    let read: Result<Vec<_>, _> = plan.splits.remove(0).read().try_collect().await;
    let error = read.expect_err("killed");
    assert!(error.retryable(), "{error:?}");
}
