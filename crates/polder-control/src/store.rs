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

/// How long SQLite waits for another writer of the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
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
];

/// A connection pool to the control store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
}

impl Store {
    /// Opens the store at `sqlite://PATH` (created when absent) or `postgres://…` and brings its
    /// tables up to date.
    ///
    /// # Errors
    /// `control.store` when it cannot be reached; `spec.invalid` for another kind of address.
    pub async fn open(url: &str) -> Result<Self> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
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
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect(&address)
            .await
            .map_err(|error| failed("the control store cannot be opened", error))?;
        if sqlite.is_some() {
            let run = set_up_file(&pool).await;
            run.map_err(|error| failed("the control store cannot be set up", error))?;
        }
        for statement in MIGRATIONS {
            let run = sqlx::query(statement).execute(&pool).await;
            run.map_err(|error| failed("the control store's tables cannot be made", error))?;
        }
        Ok(Self { pool })
    }

    pub(crate) fn pool(&self) -> &AnyPool {
        &self.pool
    }
}

/// Of several that give a new file its write-ahead log at the same moment, SQLite refuses all but one
/// at once: each has read already and wants to write, so waiting for `busy_timeout` would be waiting
/// for each other (sqlite.org/c3ref/busy_handler.html).
async fn set_up_file(pool: &AnyPool) -> std::result::Result<(), sqlx::Error> {
    let timeout = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
    sqlx::query(&timeout).execute(pool).await?;
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
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        let begun = self.pool.begin().await;
        begun.map_err(|error| failed("the control store takes no transaction", error))
    }
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

    use tokio::task::JoinSet;

    use super::*;

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
