//! Connections that break while a split is read: another session of the plan still sees its snapshot.

use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use futures::TryStreamExt;
use polder_core::{Batch, BatchStream, ErrorCode, ReadPlan, Source};

use super::support::{Database, Vary, request};

const ROWS: i32 = 120_000;
/// Worth three splits, each of more bytes than wait on their way.
const ACCOUNTS: &str = "
    CREATE TABLE account (id int PRIMARY KEY, filler text);
    INSERT INTO account SELECT n, repeat('x', 500) FROM generate_series(1, 120000) n;
    ANALYZE account";
const COPIES: &str = "pid <> pg_backend_pid() AND datname = current_database()";

async fn plan(database: &Database) -> (ReadPlan, std::sync::Arc<polder_core::RunProgress>) {
    let mut asked = request("account").splits(3);
    asked.batch_bytes = 64 << 10;
    let progress = asked.progress.clone();
    let plan = database.source().plan(asked).await.expect("plan");
    assert_eq!(plan.splits.len(), 3);
    (plan, progress)
}

fn ids(batches: &[Batch]) -> Vec<i32> {
    let of = |batch: &Batch| batch.records.column(0).as_primitive::<Int32Type>().values().to_vec();
    batches.iter().flat_map(of).collect()
}

/// Reads on until it breaks off.
async fn breaks(mut stream: BatchStream) -> ErrorCode {
    loop {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the split was read to its end"),
            Err(error) => return error.code(),
        }
    }
}

/// Waits until so many connections of reads are open.
async fn open(database: &Database, expected: i64) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE {COPIES} AND application_name LIKE 'polder/%'"
    );
    for _ in 0..6_000 {
        if database.number(&sql).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} connections are open, not {expected}", database.number(&sql).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_split_is_read_again_from_the_same_snapshot() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    let (plan, progress) = plan(&database).await;
    database.run("UPDATE account SET filler = 'later'; DELETE FROM account WHERE id % 2 = 0").await;
    let mut splits = plan.splits.into_iter();
    let (first, second, third) = (splits.next(), splits.next(), splits.next());
    let (first, second) = (first.expect("first"), second.expect("second"));
    let again = first.again().expect("there are other sessions");
    let mut stream = first.read();
    stream.try_next().await.expect("a batch").expect("a batch");
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE {COPIES} AND query LIKE 'COPY%'"
    );
    assert_eq!(database.number(&kill).await, 1, "the one that reads");
    assert_eq!(breaks(stream).await, ErrorCode::SourceUnavailable);
    // It waits for the session of the second split.
    let once_more = again.again().expect("as often as one likes");
    let (second, again) =
        tokio::join!(second.read().try_collect::<Vec<_>>(), again.read().try_collect::<Vec<_>>(),);
    let mut read = ids(&second.expect("second"));
    read.extend(ids(&again.expect("again")));
    let third: Vec<Batch> = third.expect("third").read().try_collect().await.expect("third");
    read.extend(ids(&third));
    read.sort_unstable();
    assert!(read.into_iter().eq(1..=ROWS), "each row of the snapshot once");
    assert_eq!(progress.snapshot().rows_read, ROWS as u64, "what broke off does not count");
    open(&database, 0).await;
    let late: Result<Vec<Batch>, _> = once_more.read().try_collect().await;
    assert_eq!(late.expect_err("no session is left").code(), ErrorCode::SourceUnavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_session_that_sees_the_snapshot_nothing_is_read_again() {
    let database = Database::new().await;
    database.run(ACCOUNTS).await;
    let (plan, _) = plan(&database).await;
    let mut splits = plan.splits;
    let first = splits.remove(0);
    let again = first.again().expect("there are other sessions");
    let mut stream = first.read();
    stream.try_next().await.expect("a batch");
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE {COPIES} AND application_name LIKE 'polder/%'"
    );
    assert_eq!(database.number(&kill).await, 3);
    assert_eq!(breaks(stream).await, ErrorCode::SourceUnavailable);
    for split in splits {
        assert_eq!(breaks(split.read()).await, ErrorCode::SourceUnavailable);
    }
    let error = again.read().try_collect::<Vec<_>>().await.expect_err("no session is left");
    assert!(error.to_string().contains("no connection is left"), "{error}");
    let alone = database.source().plan(request("account")).await.expect("plan");
    assert!(alone.splits[0].again().is_none(), "there is one session, and no other");
}
