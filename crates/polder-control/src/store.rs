//! The control store: one small database (SQLite or PostgreSQL) with the records of runs.
//!
//! It is never asked what a table contains or how far it has read: that is in the table's own
//! metadata, and what stands here about it is a copy for people.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Result};
use sqlx::AnyPool;
use sqlx::any::AnyPoolOptions;

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
            for pragma in ["PRAGMA journal_mode = WAL", "PRAGMA busy_timeout = 10000"] {
                let run = sqlx::query(pragma).execute(&pool).await;
                run.map_err(|error| failed("the control store cannot be set up", error))?;
            }
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

fn make_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| {
        Error::new(ErrorCode::ControlStore, "the control store's folder cannot be made")
            .detail(folder.display().to_string())
            .caused_by(error)
    })
}

pub(crate) fn failed(what: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorCode::ControlStore, what).caused_by(error)
}
