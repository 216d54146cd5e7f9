//! How many connections a read opens, and what becomes of one for which there is none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use polder_core::{ErrorCode, ReadRequest, RunProgress, Source};
use polder_sources::Connections;
use polder_sources::postgres::PostgresSource;

use super::support::{Database, Read, Vary, drain, open, read, request};

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

/// What the server knows of the session that reads it; the function leaves settings and a lock behind.
const WHO: &str = "
CREATE FUNCTION leave() RETURNS text LANGUAGE sql AS $$
    SELECT set_config('polder.secret', 'of 401', false) || set_config('search_path', 'elsewhere', false)
        || pg_advisory_lock(7)::text $$;
CREATE VIEW who AS SELECT pg_backend_pid()::text AS id, current_setting('application_name') AS name,
    coalesce(current_setting('polder.secret', true), '') AS secret, current_setting('search_path') AS path,
    current_user::text AS role, (SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks;
CREATE VIEW leaves AS SELECT id, leave() AS left FROM who;
";
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                        AND application_name LIKE 'polder%'";

fn of_org(org: &str, from: &str) -> ReadRequest {
    ReadRequest { org: org.parse().expect("org"), ..request(from) }
}

/// A column's only value.
fn only(found: &Read, column: &str) -> String {
    let texts = found.texts(column);
    assert_eq!(texts.len(), 1, "{column}");
    texts[0].clone().expect("a value")
}

async fn pid(source: &PostgresSource, request: ReadRequest) -> String {
    only(&read(source, request).await.expect("read"), "id")
}

/// Waits until so many sessions are open: the server takes a moment to note that one has ended.
async fn until_open(database: &Database, count: i64) {
    for _ in 0..600 {
        if database.number(SESSIONS).await == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} sessions are open, not {count}", database.number(SESSIONS).await);
}

#[tokio::test]
async fn a_session_rests_for_the_next_read_and_has_nothing_of_the_last() {
    let database = Database::new().await;
    database.run(WHO).await;
    let all = Connections::new();
    let source = || database.source().within(&all, None);
    let before = read(&source(), of_org("401", "who")).await.expect("read");
    let first = only(&before, "id");
    assert_eq!(pid(&source(), of_org("401", "leaves")).await, first, "the same session");
    assert_eq!(database.number(OPEN).await, 0, "it is nobody's");
    assert_eq!(database.number(SESSIONS).await, 1, "and open");
    let after = read(&source(), of_org("402", "who")).await.expect("read");
    assert_eq!(only(&after, "id"), first);
    assert_eq!(only(&after, "name"), "polder/402");
    for column in ["secret", "path", "locks"] {
        assert_eq!(only(&after, column), only(&before, column), "{column}");
    }
    assert_eq!(all.of_org(&"402".parse().expect("org")).len(), 0);
    // One that died meanwhile is not noticed by who reads next.
    database.run(&format!("SELECT pg_terminate_backend({first})")).await;
    let second = pid(&source(), of_org("401", "who")).await;
    assert_ne!(second, first);
    until_open(&database, 0).await;
}

#[tokio::test]
async fn a_session_rests_for_its_own_address_alone_and_leaves_room_for_others() {
    let database = Database::new().await;
    database.run(WHO).await;
    let role = format!("{}_other", database.name);
    database.run(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON who TO {role}")).await;
    let all = Connections::new();
    let one = NonZeroU32::new(1);
    let first = pid(&database.source().within(&all, one), request("who")).await;
    assert_eq!(database.number(SESSIONS).await, 1);
    let other = pid(&database.source_as(&role).within(&all, one), request("who")).await;
    assert_ne!(first, other, "another role's is another one");
    until_open(&database, 1).await;
    // A login that has a role of its own has it in every read.
    database.run(&format!("GRANT {role} TO CURRENT_USER")).await;
    let sign = if database.url.contains('?') { '&' } else { '?' };
    let with_role = format!("{}{sign}options=-c%20role%3D{role}", database.url);
    for _ in 0..3 {
        let found = read(&open(&with_role).within(&all, one), request("who")).await.expect("read");
        assert_eq!(only(&found, "role"), role);
    }
    drop(all);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
