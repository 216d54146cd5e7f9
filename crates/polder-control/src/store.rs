//! The control store: one small database (SQLite or PostgreSQL) with the desired state, keys, the
//! queue and records of runs, and the audit log.
//!
//! It is never asked what a table contains or how far it has read: that is in the table's own
//! metadata, and what stands here about it is a copy for people.

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use polder_core::{Error, ErrorCode, Result};
use sqlx::AnyPool;
use sqlx::any::AnyPoolOptions;

use crate::clock::Clock;

/// How long SQLite waits for another writer of the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Takes SQLite's lock for writing, and changes nothing.
const LOCK: &str = "UPDATE polder_turn_head SET turn = turn WHERE id = 0";
/// Between two attempts to set up a database that others are just making.
const OPENING_PAUSE: Duration = Duration::from_millis(20);

/// Statements that bring an empty database up to date, in order. Append only.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS polder_runs (
        run_id TEXT NOT NULL PRIMARY KEY,
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        state TEXT NOT NULL,
        enqueued_ms BIGINT NOT NULL,
        finished_ms BIGINT,
        report TEXT
    )",
    "CREATE INDEX IF NOT EXISTS polder_runs_by_table
        ON polder_runs (org, table_name, enqueued_ms)",
    "CREATE TABLE IF NOT EXISTS polder_churns (
        event_id TEXT NOT NULL PRIMARY KEY,
        org TEXT NOT NULL,
        asked_by TEXT NOT NULL,
        via TEXT NOT NULL,
        reason TEXT,
        asked_ms BIGINT NOT NULL,
        due_ms BIGINT NOT NULL,
        state TEXT NOT NULL,
        erasure TEXT,
        certificate TEXT
    )",
    // Of an org that is not undone or released there is one.
    "CREATE UNIQUE INDEX IF NOT EXISTS polder_churns_in_force
        ON polder_churns (org) WHERE state IN ('waiting', 'erasing', 'erased')",
    "CREATE TABLE IF NOT EXISTS polder_holds (
        hold_id TEXT NOT NULL PRIMARY KEY,
        org TEXT NOT NULL,
        table_name TEXT,
        reason TEXT NOT NULL,
        set_by TEXT NOT NULL,
        set_ms BIGINT NOT NULL,
        released_by TEXT,
        released_ms BIGINT,
        release_reason TEXT
    )",
    // Desired state: one row an org or template, and each state it ever had.
    "CREATE TABLE IF NOT EXISTS polder_desired_head (
        id BIGINT NOT NULL PRIMARY KEY,
        revision BIGINT NOT NULL
    )",
    "INSERT INTO polder_desired_head (id, revision) VALUES (1, 0) ON CONFLICT (id) DO NOTHING",
    "CREATE TABLE IF NOT EXISTS polder_desired (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision BIGINT NOT NULL,
        declared TEXT,
        adjusted TEXT,
        PRIMARY KEY (kind, id)
    )",
    "CREATE TABLE IF NOT EXISTS polder_desired_history (
        revision BIGINT NOT NULL,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        declared TEXT,
        adjusted TEXT,
        who TEXT NOT NULL,
        why TEXT,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (kind, id, revision)
    )",
    "CREATE TABLE IF NOT EXISTS polder_keys (
        id TEXT NOT NULL PRIMARY KEY,
        hash TEXT NOT NULL,
        role TEXT NOT NULL,
        orgs TEXT NOT NULL,
        name TEXT,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT,
        revoked_ms BIGINT
    )",
    // Runs that servers carry out. What became of one stands in polder_runs too.
    "CREATE TABLE IF NOT EXISTS polder_queue (
        run_id TEXT NOT NULL PRIMARY KEY,
        operation TEXT NOT NULL,
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        full_refresh BIGINT NOT NULL,
        state TEXT NOT NULL,
        enqueued_ms BIGINT NOT NULL,
        started_ms BIGINT,
        finished_ms BIGINT,
        owner TEXT,
        fence BIGINT NOT NULL,
        lease_until_ms BIGINT NOT NULL,
        cancel_wanted BIGINT NOT NULL,
        asked_by TEXT NOT NULL
    )",
    "CREATE UNIQUE INDEX IF NOT EXISTS polder_queue_one_a_table
        ON polder_queue (org, table_name) WHERE state = 'running'",
    "CREATE INDEX IF NOT EXISTS polder_queue_open
        ON polder_queue (enqueued_ms, run_id) WHERE state IN ('queued', 'running')",
    "CREATE INDEX IF NOT EXISTS polder_queue_by_operation ON polder_queue (operation)",
    "CREATE TABLE IF NOT EXISTS polder_idempotency (
        id TEXT NOT NULL PRIMARY KEY,
        request TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        status BIGINT,
        headers TEXT,
        body TEXT
    )",
    "CREATE TABLE IF NOT EXISTS polder_audit_head (
        id BIGINT NOT NULL PRIMARY KEY,
        seq BIGINT NOT NULL,
        hash TEXT NOT NULL
    )",
    "INSERT INTO polder_audit_head (id, seq, hash) VALUES (1, 0, '') ON CONFLICT (id) DO NOTHING",
    "CREATE TABLE IF NOT EXISTS polder_audit (
        seq BIGINT NOT NULL PRIMARY KEY,
        at_ms BIGINT NOT NULL,
        who TEXT NOT NULL,
        action TEXT NOT NULL,
        org TEXT,
        subject TEXT,
        outcome TEXT NOT NULL,
        detail TEXT,
        hash TEXT NOT NULL
    )",
    // Whose turn it is: one row an org that ever had a run, and the turn that was had last.
    "CREATE TABLE IF NOT EXISTS polder_turns (
        org TEXT NOT NULL PRIMARY KEY,
        turn BIGINT NOT NULL,
        weight BIGINT NOT NULL,
        runs_max BIGINT
    )",
    "CREATE TABLE IF NOT EXISTS polder_turn_head (
        id BIGINT NOT NULL PRIMARY KEY,
        turn BIGINT NOT NULL
    )",
    "INSERT INTO polder_turn_head (id, turn) VALUES (1, 0) ON CONFLICT (id) DO NOTHING",
    // An empty table name stands for the whole org.
    "CREATE TABLE IF NOT EXISTS polder_pauses (
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        who TEXT NOT NULL,
        why TEXT,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (org, table_name)
    )",
    "CREATE TABLE IF NOT EXISTS polder_sources (
        source TEXT NOT NULL PRIMARY KEY,
        paused BIGINT NOT NULL,
        failures BIGINT NOT NULL,
        open_until_ms BIGINT NOT NULL
    )",
    // When the desired state's schedules are due next.
    "CREATE TABLE IF NOT EXISTS polder_schedules (
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        kind TEXT NOT NULL,
        source TEXT NOT NULL,
        spec TEXT NOT NULL,
        next_ms BIGINT NOT NULL,
        last_ms BIGINT,
        PRIMARY KEY (org, table_name, kind)
    )",
    "CREATE INDEX IF NOT EXISTS polder_schedules_by_time ON polder_schedules (next_ms)",
    // Days are counted from the epoch.
    "CREATE TABLE IF NOT EXISTS polder_usage (
        org TEXT NOT NULL,
        day BIGINT NOT NULL,
        runs BIGINT NOT NULL,
        rows BIGINT NOT NULL,
        bytes BIGINT NOT NULL,
        PRIMARY KEY (org, day)
    )",
    // What changed after a revision, in the order in which it did.
    "CREATE INDEX IF NOT EXISTS polder_desired_by_revision
        ON polder_desired (kind, revision, id)",
    // What runs said of themselves.
    "CREATE TABLE IF NOT EXISTS polder_run_logs (
        org TEXT NOT NULL,
        run_id TEXT NOT NULL,
        seq BIGINT NOT NULL,
        at_ms BIGINT NOT NULL,
        level TEXT NOT NULL,
        message TEXT NOT NULL,
        fields TEXT NOT NULL,
        PRIMARY KEY (org, run_id, seq)
    )",
    // What tables kept that keep less now, until that counts, or that left their pipelines.
    "CREATE TABLE IF NOT EXISTS polder_undo (
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        keeps TEXT NOT NULL,
        until_ms BIGINT NOT NULL,
        who TEXT NOT NULL,
        PRIMARY KEY (org, table_name)
    )",
    // Whoever writes schedules holds this row first.
    "CREATE TABLE IF NOT EXISTS polder_schedule_head (id BIGINT NOT NULL PRIMARY KEY)",
    "INSERT INTO polder_schedule_head (id) VALUES (1) ON CONFLICT (id) DO NOTHING",
    // Alerts that nobody has taken yet.
    "CREATE TABLE IF NOT EXISTS polder_alerts (
        alert TEXT NOT NULL,
        id TEXT NOT NULL,
        org TEXT NOT NULL,
        body TEXT NOT NULL,
        asked_ms BIGINT NOT NULL,
        next_ms BIGINT NOT NULL,
        tries BIGINT NOT NULL,
        PRIMARY KEY (alert, id)
    )",
    "CREATE INDEX IF NOT EXISTS polder_alerts_by_time ON polder_alerts (next_ms)",
    // What the last validation of each table said.
    "CREATE TABLE IF NOT EXISTS polder_verdicts (
        org TEXT NOT NULL,
        table_name TEXT NOT NULL,
        verdict TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (org, table_name)
    )",
];

/// Columns that tables got later. Append only.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("polder_queue", "kind", "TEXT NOT NULL DEFAULT 'ingest'"),
    ("polder_queue", "source", "TEXT NOT NULL DEFAULT ''"),
    ("polder_queue", "due_ms", "BIGINT NOT NULL DEFAULT 0"),
    ("polder_queue", "failures", "BIGINT NOT NULL DEFAULT 0"),
    ("polder_queue", "deaths", "BIGINT NOT NULL DEFAULT 0"),
    ("polder_queue", "validate_after", "BIGINT NOT NULL DEFAULT 0"),
    ("polder_queue", "progress", "TEXT"),
    ("polder_runs", "kind", "TEXT NOT NULL DEFAULT 'ingest'"),
    ("polder_runs", "asked_by", "TEXT NOT NULL DEFAULT ''"),
    ("polder_idempotency", "until_ms", "BIGINT NOT NULL DEFAULT 0"),
    // Limits of a day.
    ("polder_turns", "rows_max", "BIGINT"),
    ("polder_turns", "bytes_max", "BIGINT"),
    // The trace of the request that asked for the run.
    ("polder_queue", "traceparent", "TEXT"),
    // Runs of the org that have room in one server.
    ("polder_turns", "here_max", "BIGINT"),
    // Validations that wait for the hours of their schedule.
    ("polder_queue", "off_peak", "BIGINT NOT NULL DEFAULT 0"),
];

/// Statements that need those columns. Append only.
const AFTER_COLUMNS: &[&str] = &[
    "CREATE INDEX IF NOT EXISTS polder_queue_waiting
        ON polder_queue (org, due_ms, run_id) WHERE state = 'queued'",
    "CREATE INDEX IF NOT EXISTS polder_queue_of_table
        ON polder_queue (org, table_name, kind) WHERE state IN ('queued', 'running')",
    "CREATE INDEX IF NOT EXISTS polder_queue_due
        ON polder_queue (due_ms) WHERE state = 'queued'",
    "CREATE INDEX IF NOT EXISTS polder_queue_leases
        ON polder_queue (lease_until_ms) WHERE state = 'running'",
    "CREATE INDEX IF NOT EXISTS polder_runs_of_table
        ON polder_runs (org, table_name, kind, run_id)",
    // Those that waited when there were no turns.
    "INSERT INTO polder_turns (org, turn, weight) SELECT DISTINCT org, 0, 1 FROM polder_queue
        WHERE state IN ('queued', 'running') ON CONFLICT (org) DO NOTHING",
    "CREATE INDEX IF NOT EXISTS polder_idempotency_until ON polder_idempotency (until_ms)",
    // Those that were kept when all were kept for a day.
    "UPDATE polder_idempotency SET until_ms = at_ms + 86400000 WHERE until_ms = 0",
    // What goes on of an org that has reached a limit of the day.
    "CREATE INDEX IF NOT EXISTS polder_queue_waiting_beside
        ON polder_queue (org, due_ms, run_id) WHERE state = 'queued' AND kind <> 'ingest'",
];

/// How often another process may be setting the store up at the same moment.
const SET_UP_TRIES: usize = 20;

/// A connection pool to the control store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    is_sqlite: bool,
    clock: Clock,
}

impl Store {
    /// Opens the store at `sqlite://PATH` (created when absent) or `postgres://…` and brings its
    /// tables up to date.
    ///
    /// # Errors
    /// `control.store` when it cannot be reached; `spec.invalid` for another kind of address.
    pub async fn open(url: &str) -> Result<Self> {
        install_drivers();
        let sqlite = url.strip_prefix("sqlite://");
        if sqlite.is_none() && !url.starts_with("postgres://") && !url.starts_with("postgresql://")
        {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                "the store's address is of no known kind",
            )
            .hint("write sqlite://FILE or postgres://… under [store] url"));
        }
        let address = match sqlite {
            Some(path) => {
                make_folder(Path::new(path))?;
                format!("sqlite://{path}?mode=rwc")
            }
            None => url.to_owned(),
        };
        // One connection to SQLite: a second writer would only wait for the first.
        let connections = if sqlite.is_some() { 1 } else { 4 };
        let options = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(10));
        let options = if sqlite.is_some() { patient(options) } else { options };
        let pool = options
            .connect(&address)
            .await
            .map_err(|error| failed("the control store cannot be opened", error))?;
        if sqlite.is_some() {
            let run = set_up_file(&pool).await;
            run.map_err(|error| failed("the control store cannot be set up", error))?;
        }
        let mut tries = 1;
        // Of two processes that make one table or column at the same moment, the second is refused.
        while let Err(error) = set_up(&pool).await {
            if tries == SET_UP_TRIES {
                return Err(failed("the control store's tables cannot be made", error));
            }
            tries += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { pool, is_sqlite: sqlite.is_some(), clock: Clock::system() })
    }

    /// The same store under another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The time by the store's clock, in milliseconds since the epoch.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    pub(crate) fn new_id(&self) -> uuid::Uuid {
        self.clock.id()
    }

    /// A store without a file.
    #[cfg(test)]
    pub(crate) async fn in_memory() -> Self {
        install_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect("sqlite::memory:").await.expect("store");
        set_up(&pool).await.expect("tables");
        Self { pool, is_sqlite: true, clock: Clock::system() }
    }

    pub(crate) fn pool(&self) -> &AnyPool {
        &self.pool
    }
}

fn install_drivers() {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
}

async fn set_up(pool: &AnyPool) -> Result<(), sqlx::Error> {
    for statement in MIGRATIONS {
        sqlx::query(statement).execute(pool).await?;
    }
    for (table, column, kind) in COLUMNS {
        // Names of ours, from the list above.
        let look = format!("SELECT {column} FROM {table} LIMIT 0");
        if sqlx::query(&look).fetch_optional(pool).await.is_err() {
            let add = format!("ALTER TABLE {table} ADD COLUMN {column} {kind}");
            sqlx::query(&add).execute(pool).await?;
        }
    }
    for statement in AFTER_COLUMNS {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}

/// Each connection waits for other writers: the pool makes new ones in place of old ones.
fn patient(options: AnyPoolOptions) -> AnyPoolOptions {
    options.after_connect(|connection, _| {
        Box::pin(async move {
            let timeout = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
            sqlx::query(&timeout).execute(&mut *connection).await.map(drop)
        })
    })
}

/// Of several that give a new file its write-ahead log at the same moment, SQLite refuses all but one
/// at once: each has read already and wants to write, so waiting for `busy_timeout` would be waiting
/// for each other (<https://sqlite.org/c3ref/busy_handler.html>).
async fn set_up_file(pool: &AnyPool) -> std::result::Result<(), sqlx::Error> {
    let started = Instant::now();
    loop {
        match sqlx::query("PRAGMA journal_mode = WAL").execute(pool).await {
            Err(error) if is_busy(&error) && started.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(OPENING_PAUSE).await;
            }
            set => return set.map(|_| ()),
        }
    }
}

/// Whether SQLite says that another is writing (primary result code 5, sqlite.org/rescode.html).
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xFF == 5)
}

fn make_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| {
        Error::new(ErrorCode::ControlStore, "the control store's folder cannot be made")
            .detail(folder.display().to_string())
            .caused_by(error)
    })
}

/// A transaction; dropped without [`commit`], it changes nothing.
pub(crate) type Transaction = sqlx::Transaction<'static, sqlx::Any>;

impl Store {
    /// Begins a transaction that is going to write. SQLite refuses at once who has read in it before, if
    /// others of the file, such as the lake's catalog, have written since (sqlite.org/rescode.html,
    /// `SQLITE_BUSY_SNAPSHOT`): the lock is waited for first.
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        let wrong = |error| failed("the control store takes no transaction", error);
        let mut transaction = self.pool.begin().await.map_err(wrong)?;
        if self.is_sqlite {
            sqlx::query(LOCK).execute(&mut *transaction).await.map_err(wrong)?;
        }
        Ok(transaction)
    }
}

/// `$1, $2, …`: places for so many values in a statement.
pub(crate) fn places(count: usize) -> String {
    (1..=count).map(|place| format!("${place}")).collect::<Vec<_>>().join(", ")
}

pub(crate) async fn commit(transaction: Transaction) -> Result<()> {
    let done = transaction.commit().await;
    done.map_err(|error| failed("the change cannot be stored", error))
}

pub(crate) fn failed(what: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorCode::ControlStore, what).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use sqlx::Row;
    use tokio::task::JoinSet;

    use super::*;

    /// The lake's catalog is in the same file by default, and writes by connections of its own.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_reads_first_is_not_refused_because_others_of_the_file_write() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}/s.db", folder.path().display());
        let mut writers = JoinSet::new();
        for _ in 0..2 {
            let store = Store::open(&url).await.expect("store");
            writers.spawn(async move {
                for _ in 0..200 {
                    let mut transaction = store.begin().await.expect("begun");
                    let look = sqlx::query("SELECT count(*) FROM polder_queue");
                    look.fetch_one(&mut *transaction).await.expect("read");
                    let write = sqlx::query("UPDATE polder_turn_head SET turn = turn + 1");
                    write.execute(&mut *transaction).await.expect("written");
                    commit(transaction).await.expect("committed");
                }
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.expect("every transaction is carried out");
        }
    }

    #[tokio::test]
    async fn every_connection_waits_for_other_writers() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}/s.db", folder.path().display());
        let store = Store::open(&url).await.expect("store");
        for _ in 0..2 {
            let mut connection = store.pool.acquire().await.expect("connection");
            let row = sqlx::query("PRAGMA busy_timeout").fetch_one(&mut *connection).await;
            let timeout: i64 = row.expect("asked").try_get(0).expect("number");
            assert_eq!(timeout, BUSY_TIMEOUT.as_millis() as i64);
            // As the pool does with one that has grown old.
            connection.close().await.expect("closed");
        }
    }

    /// Each opener in a thread of its own: a file's lock is asked for at the same moment.
    #[tokio::test(flavor = "multi_thread", worker_threads = 8)]
    async fn all_who_make_a_store_at_the_same_moment_get_in() {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("folder");
            let url = format!("sqlite://{}/s.db", folder.path().display());
            let together = Arc::new(Barrier::new(8));
            let mut openers = JoinSet::new();
            for _ in 0..8 {
                let (url, together) = (url.clone(), Arc::clone(&together));
                openers.spawn(async move {
                    together.wait();
                    Store::open(&url).await.map(|_| ())
                });
            }
            while let Some(opened) = openers.join_next().await {
                opened.expect("task").expect("opened");
            }
        }
    }
}
