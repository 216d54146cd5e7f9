//! How many connections a read opens, and what becomes of one for which there is none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use polder_core::{ErrorCode, ReadRequest, RunProgress, Source};
use polder_sources::Connections;

use super::support::{Database, Vary, drain, read, request};

/// Worth three splits.
const BIG: &str = "
CREATE TABLE big AS SELECT i AS id, repeat('x', 1000) AS pad FROM generate_series(1, 30000) i;
ANALYZE big;
";
const OPEN: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND application_name LIKE 'polder/%'";

/// Waits until a read says what it waits for.
async fn waiting_for(progress: &RunProgress) -> String {
    for _ in 0..6_000 {
        if let Some(what) = progress.snapshot().waiting_for {
            return what;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not wait");
}

#[tokio::test]
async fn a_read_takes_what_is_free_and_waits_for_its_first_alone() {
    let database = Database::new().await;
    database.run(BIG).await;
    let all = Connections::new();
    // Opened anew for each run, as servers do.
    let source = || database.source().within(&all, NonZeroU32::new(3));
    let mut wants = request("big").splits(3);
    wants.connections.of_org = Some(2);
    let plan = source().plan(wants.clone()).await.expect("plan");
    assert_eq!((plan.splits.len(), plan.warnings.len()), (2, 0), "the org has two");
    let other = ReadRequest { org: "402".parse().expect("org"), ..request("big").splits(3) };
    let theirs = source().plan(other).await.expect("plan");
    assert_eq!(theirs.splits.len(), 1, "one is left of the process's three");
    assert_eq!(database.number(OPEN).await, 3);
    let progress = Arc::clone(&wants.progress);
    let late = source();
    let (rows, again) = tokio::join!(
        async {
            let told = waiting_for(&progress).await;
            assert!(told.contains("a connection to revdb: the org has all of its 2"), "{told}");
            drain(plan).await.expect("read").rows.num_rows()
        },
        late.plan(wants),
    );
    assert_eq!(rows, 30_000);
    assert!(!again.expect("plan").splits.is_empty(), "once the others were read");
    drop(theirs);
    // They close in the background.
    for _ in 0..6_000 {
        if all.of_org(&"401".parse().expect("org")).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections of splits that were dropped are not given back");
}

#[tokio::test]
async fn a_server_without_a_connection_left_is_asked_again() {
    let database = Database::new().await;
    let role = format!("{}_one", database.name);
    database
        .run(&format!(
            "CREATE TABLE t (a int); INSERT INTO t VALUES (1);
             CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT SELECT ON t TO {role}"
        ))
        .await;
    let (source, other) = (database.source_as(&role), database.source_as(&role));
    let held = source.plan(request("t")).await.expect("the one connection");
    let error = other.check().await.expect_err("none is left");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable, "{error:?}");
    assert!(error.hint_text().expect("hint").contains("max_connections"), "{error:?}");
    let wants = request("t");
    let progress = Arc::clone(&wants.progress);
    let (told, found) = tokio::join!(
        async {
            let told = waiting_for(&progress).await;
            drop(held);
            told
        },
        read(&other, wants),
    );
    assert_eq!(told, "a connection to revdb: its server has none left");
    assert_eq!(found.expect("read").rows.num_rows(), 1);
    drop((source, other));
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
