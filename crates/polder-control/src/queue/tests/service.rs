//! In PostgreSQL, where others write while a run is being taken: cancellations, renewals and ends take no
//! turns. Needs the servers of `cargo xtask services up`.

use sqlx::PgPool;

use super::*;

/// A database of a test's own with a queue in it.
struct Database {
    admin: PgPool,
    name: String,
    /// Somebody else who writes.
    other: PgPool,
    queue: Queue,
}

impl Database {
    async fn new() -> Self {
        let address = std::env::var("POLDER_TEST_PG_URL").expect(
            "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let admin = PgPool::connect(&address).await.expect("PostgreSQL");
        let name = format!("queue_{}", Uuid::new_v4().simple());
        sqlx::query(&format!("CREATE DATABASE {name}")).execute(&admin).await.expect("created");
        let (base, _) = address.rsplit_once('/').expect("address");
        let url = format!("{base}/{name}");
        let now = Arc::new(AtomicI64::new(1_800_000_000_000));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        let store = Store::open(&url).await.expect("store").with_clock(clock);
        let other = PgPool::connect(&url).await.expect("PostgreSQL");
        Self { admin, name, other, queue: Queue { store, now } }
    }

    /// The runs of an operation, in the order they were asked for.
    async fn runs(&self, id: Uuid) -> Vec<QueuedRun> {
        operation(&self.queue.store, id).await.expect("operation")
    }

    /// What a server takes while somebody else sets columns of a run: it has looked for one already, and
    /// waits for that row.
    async fn claim_while(&self, run: Uuid, set: &str) -> Option<(QueuedRun, Lease)> {
        let mut other = self.other.begin().await.expect("begun");
        let sql = format!("UPDATE polder_queue SET {set} WHERE run_id = $1");
        let done = sqlx::query(&sql).bind(run.to_string()).execute(&mut *other).await;
        assert_eq!(done.expect("set").rows_affected(), 1);
        let change = async {
            self.until_one_waits().await;
            other.commit().await.expect("committed");
        };
        let (claimed, ()) = tokio::join!(self.queue.claim("s2"), change);
        claimed
    }

    async fn until_one_waits(&self) {
        for _ in 0..6_000 {
            let sql = "SELECT count(*) AS waiting FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let row = sqlx::query(sql).fetch_one(&self.other).await.expect("asked");
            if row.get::<i64, _>("waiting") > 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("nobody waits for the row");
    }

    async fn remove(self) {
        let Self { admin, name, other, queue } = self;
        other.close().await;
        queue.store.pool().close().await;
        let sql = format!("DROP DATABASE {name} WITH (FORCE)");
        sqlx::query(&sql).execute(&admin).await.expect("dropped");
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_it_is_taken_does_not_run() {
    let database = Database::new().await;
    let queue = &database.queue;
    let operation = queue.submit("1", &["a", "b"]).await;
    let first = database.runs(operation).await[0].run_id;
    let taken = database.claim_while(first, "state = 'cancelled', finished_ms = 1").await;
    let (run, _) = taken.expect("the other one");
    assert_eq!((run.table.as_str(), run.state), ("b", RunState::Running));
    assert_eq!(queue.states(operation).await, [RunState::Cancelled, RunState::Running]);
    database.remove().await;
}

#[tokio::test]
async fn a_lease_that_is_renewed_while_it_is_taken_stays() {
    let database = Database::new().await;
    let queue = &database.queue;
    queue.submit("1", &["a"]).await;
    let (run, lease) = queue.claim("s1").await.expect("run");
    queue.pass(LEASE.as_millis() as i64 + 1);
    let renewed = format!("lease_until_ms = {}", queue.store.now_ms() + 1_000);
    assert!(database.claim_while(run.run_id, &renewed).await.is_none(), "its server lives");
    assert_eq!(renew(&queue.store, &lease).await.expect("renewed"), Renewed::Held);
    // Nor is it buried, however often its servers died before.
    let sql = format!("UPDATE polder_queue SET deaths = {}", DEATHS_MAX - 1);
    sqlx::query(&sql).execute(&database.other).await.expect("set");
    queue.pass(LEASE.as_millis() as i64 + 1);
    let renewed = format!("lease_until_ms = {}", queue.store.now_ms() + 1_000);
    assert!(database.claim_while(run.run_id, &renewed).await.is_none());
    assert_eq!(queue.states(run.operation).await, [RunState::Running]);
    assert_eq!(queue.finish(&lease, Outcome::Succeeded).await, Ended::Done(RunState::Succeeded));
    database.remove().await;
}

#[tokio::test]
async fn a_run_that_ends_while_it_is_taken_runs_once() {
    let database = Database::new().await;
    let queue = &database.queue;
    queue.submit("1", &["a"]).await;
    let (run, _) = queue.claim("s1").await.expect("run");
    queue.pass(LEASE.as_millis() as i64 + 1);
    let later = queue.store.now_ms() + 30_000;
    // It failed for now, and waits for its next attempt.
    let again = format!("state = 'queued', lease_until_ms = 0, due_ms = {later}");
    assert!(database.claim_while(run.run_id, &again).await.is_none(), "it is not due");
    queue.pass(30_000);
    let (run, _) = queue.claim("s1").await.expect("due");
    queue.pass(LEASE.as_millis() as i64 + 1);
    let ended = "state = 'succeeded', lease_until_ms = 0, finished_ms = 1";
    assert!(database.claim_while(run.run_id, ended).await.is_none());
    assert_eq!(queue.states(run.operation).await, [RunState::Succeeded]);
    database.remove().await;
}

fn unless(is_so: bool) -> Result<()> {
    let stale = || Error::new(ErrorCode::ControlStale, "it is not as it was");
    if is_so { Err(stale()) } else { Ok(()) }
}

/// Cancels a run that waits, and none that runs.
async fn cancel_waiting(store: &Store, run: Uuid) -> Result<QueuedRun> {
    cancel_if(store, &org("1"), run, |now| unless(now.state != RunState::Queued)).await
}

/// Pauses an org of which nothing is paused.
async fn pause_first(store: &Store) -> Result<()> {
    let pausing = Some(Pausing { who: "test", why: None });
    set_paused(store, &org("1"), None, pausing, |now| unless(!now.is_empty())).await
}

/// Pauses a source that is not paused.
async fn pause_source_first(store: &Store) -> Result<()> {
    let operator = Principal::Operator;
    set_source_paused_if(store, &operator, "revdb", true, |now| unless(now.paused)).await
}

#[tokio::test]
async fn a_condition_is_looked_at_when_others_are_done_with_the_run() {
    let database = Database::new().await;
    let queue = &database.queue;
    let operation = queue.submit("1", &["a"]).await;
    let run = database.runs(operation).await[0].run_id;
    let mut other = database.other.begin().await.expect("begun");
    let sql = "UPDATE polder_queue SET state = 'running' WHERE run_id = $1";
    let done = sqlx::query(sql).bind(run.to_string()).execute(&mut *other).await;
    assert_eq!(done.expect("set").rows_affected(), 1);
    let change = async {
        database.until_one_waits().await;
        other.commit().await.expect("committed");
    };
    let (asked, ()) = tokio::join!(cancel_waiting(&queue.store, run), change);
    assert_eq!(asked.expect_err("it runs").code(), ErrorCode::ControlStale);
    assert_eq!(queue.states(operation).await, [RunState::Running]);
    let sql = "SELECT run_id FROM polder_queue WHERE cancel_wanted <> 0";
    assert!(sqlx::query(sql).fetch_all(&database.other).await.expect("asked").is_empty());
    database.remove().await;
}

#[tokio::test]
async fn of_two_with_the_same_condition_one_changes_something() {
    let database = Database::new().await;
    let store = &database.queue.store;
    let sql = "INSERT INTO polder_desired (kind, id, revision) VALUES ('org', '1', 1)";
    sqlx::query(sql).execute(&database.other).await.expect("there");
    for round in 0..20 {
        let paused = tokio::join!(pause_first(store), pause_first(store));
        assert!(paused.0.is_ok() != paused.1.is_ok(), "{round}: {paused:?}");
        resume(store, &org("1"), None).await.expect("resumed");
        let paused = tokio::join!(pause_source_first(store), pause_source_first(store));
        assert!(paused.0.is_ok() != paused.1.is_ok(), "{round}: {paused:?}");
        let operator = Principal::Operator;
        set_source_paused(store, &operator, "revdb", false).await.expect("resumed");
    }
    database.remove().await;
}
