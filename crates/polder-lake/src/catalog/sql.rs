//! The embedded catalog, in SQLite or PostgreSQL.
//!
//! The two tables are laid out exactly as Iceberg's JDBC catalog has them (schema version V1), so
//! that Java's `JdbcCatalog` and PyIceberg's `SqlCatalog` open the same database under the catalog
//! name `polder`. A commit is one `UPDATE … WHERE metadata_location = <what we saw>`; in SQLite those
//! that come together are made in one transaction (`sql/writer.rs`).

mod begin;
mod entries;
mod fence;
mod namespaces;
mod writer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, SqlitePool};

pub(super) use self::entries::{Entry, EntryKind, Swap};
use self::writer::Writer;
use super::metadata_files::MetadataFiles;
use super::names::namespace_text;
use super::{Catalog, CommitFailure, TableState};
use crate::error;
use crate::storage::Store;

/// The catalog's name inside the database, as other engines have to give it.
const CATALOG: &str = "polder";
const CONNECTIONS_MAX: u32 = 8;
/// Each table may be created by another process while we try, and any number of those start at once.
const CREATE_TRIES_MAX: u32 = 8;
/// How often a name is looked up to be taken out while its table is written to.
const FORGET_TRIES_MAX: u32 = 8;
/// How long SQLite waits for another writer of the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two attempts to open a database that others are just making.
const OPENING_PAUSE: Duration = Duration::from_millis(20);

/// Iceberg's `JdbcUtil`, V1.
const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000),
        PRIMARY KEY (catalog_name, namespace, property_key))",
];

/// Rows of other kinds (views) share the table.
const IS_TABLE: &str = "(iceberg_type = 'TABLE' OR iceberg_type IS NULL)";

#[derive(Debug)]
enum Database {
    Sqlite(SqlitePool, Writer),
    Postgres(PgPool),
}

impl Database {
    /// Begins a transaction that is going to write.
    const fn begin(&self) -> &'static str {
        match self {
            // A lock that is only wanted later is refused when somebody has written in between.
            Self::Sqlite(..) => "BEGIN IMMEDIATE",
            Self::Postgres(_) => "BEGIN",
        }
    }

    /// Finds out whether a namespace is there, and keeps it from being dropped until the end of the
    /// transaction. SQLite has one writer at a time anyway.
    const fn hold(&self) -> &'static str {
        match self {
            Self::Sqlite(..) => {
                "SELECT property_key FROM iceberg_namespace_properties
                 WHERE catalog_name = $1 AND namespace = $2"
            }
            Self::Postgres(_) => {
                "SELECT property_key FROM iceberg_namespace_properties
                 WHERE catalog_name = $1 AND namespace = $2 FOR KEY SHARE"
            }
        }
    }

    /// Waits for everybody who holds a namespace, and lets nobody hold it until the end of the
    /// transaction. What then is in it is seen by the next statement.
    const fn claim(&self) -> &'static str {
        match self {
            Self::Sqlite(..) => self.hold(),
            Self::Postgres(_) => {
                "SELECT property_key FROM iceberg_namespace_properties
                 WHERE catalog_name = $1 AND namespace = $2 FOR UPDATE"
            }
        }
    }
}

/// Runs the same statement on whichever database it is. Both take `$1`.
macro_rules! on {
    ($database:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite($pool, _) => $body,
            Database::Postgres($pool) => $body,
        }
    };
}
use on;

/// Runs [`Database::hold`] or [`Database::claim`]; true if the namespace is there.
macro_rules! held {
    ($connection:expr, $statement:expr, $namespace:expr) => {{
        let rows = sqlx::query($statement).bind(CATALOG).bind($namespace);
        !rows.fetch_all($connection).await?.is_empty()
    }};
}
use held;

/// The outermost level of a namespace's text: where an org's fence is.
fn outermost(namespace: &str) -> &str {
    namespace.split('.').next().unwrap_or_default()
}

/// The embedded catalog.
#[derive(Debug)]
pub struct SqlCatalog {
    database: Database,
    pub(super) files: MetadataFiles,
}

impl SqlCatalog {
    /// Opens the catalog and creates its tables where they are missing.
    pub async fn open(url: &SecretString, store: Store) -> Result<Self> {
        let database = connect(url.expose_secret()).await?;
        let catalog = Self { database, files: MetadataFiles::new(store) };
        // Two processes may create the tables at the same time; the slower one's statement fails on
        // PostgreSQL, and finds them there when it tries again.
        let mut tries = 1;
        while let Err(error) = catalog.create_tables().await {
            if tries == CREATE_TRIES_MAX {
                return Err(error);
            }
            tries += 1;
        }
        Ok(catalog)
    }

    async fn create_tables(&self) -> Result<()> {
        for statement in SCHEMA {
            on!(&self.database, pool => sqlx::query(statement).execute(pool).await.map(drop))
                .map_err(|cause| error::database("create the catalog's tables", cause))?;
        }
        Ok(())
    }

    /// Where the table's present metadata is.
    async fn pointer(&self, ident: &TableIdent) -> Result<Option<String>> {
        let sql = format!(
            "SELECT metadata_location FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND {IS_TABLE}"
        );
        let namespace = namespace_text(&ident.namespace);
        let found: Option<(Option<String>,)> = on!(&self.database, pool => {
            sqlx::query_as(&sql)
                .bind(CATALOG).bind(&namespace).bind(&ident.name)
                .fetch_optional(pool).await
        })
        .map_err(|cause| error::database("look a table up in the catalog", cause))?;
        Ok(found.and_then(|(location,)| location))
    }
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn namespaces(&self) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT namespace FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 ORDER BY namespace";
        let found: Vec<(String,)> =
            on!(&self.database, pool => sqlx::query_as(sql).bind(CATALOG).fetch_all(pool).await)
                .map_err(|cause| error::database("list the catalog's namespaces", cause))?;
        Ok(found.into_iter().map(|(name,)| name).collect())
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let sql = "SELECT property_key, property_value FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 AND namespace = $2";
        let found: Vec<(String, Option<String>)> = on!(&self.database, pool => {
            sqlx::query_as(sql).bind(CATALOG).bind(name).fetch_all(pool).await
        })
        .map_err(|cause| error::database("read a namespace of the catalog", cause))?;
        let properties = found.into_iter().map(|(key, value)| (key, value.unwrap_or_default()));
        let properties: BTreeMap<_, _> = properties.collect();
        Ok((!properties.is_empty()).then_some(properties))
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        let sql = "INSERT INTO iceberg_namespace_properties
                       (catalog_name, namespace, property_key, property_value)
                   VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        // Iceberg's own marker of a namespace that may have no other property.
        let exists = ("exists".to_owned(), "true".to_owned());
        // One transaction: of two callers at the same time, the properties of one are there, and none
        // of the other's.
        let begin = self.database.begin();
        let done: Result<(), sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                for (key, value) in properties.iter().chain(Some((&exists.0, &exists.1))) {
                    sqlx::query(sql).bind(CATALOG).bind(name).bind(key).bind(value)
                        .execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        }
        .await;
        done.map_err(|cause| error::database("create a namespace in the catalog", cause))
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT table_name FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND {IS_TABLE} ORDER BY table_name"
        );
        let found: Vec<(String,)> = on!(&self.database, pool => {
            sqlx::query_as(&sql).bind(CATALOG).bind(namespace).fetch_all(pool).await
        })
        .map_err(|cause| error::database("list the catalog's tables", cause))?;
        Ok(found.into_iter().map(|(name,)| name).collect())
    }

    fn lists_all(&self) -> bool {
        true
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        match self.pointer(ident).await? {
            Some(location) => self.files.state_at(ident, location).await.map(Some),
            None => Ok(None),
        }
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let base = self.load(ident).await.map_err(CommitFailure::Rejected)?;
        let next = self.files.write_next(ident, base.as_ref(), requirements, updates).await?;
        let from = base.map(|base| base.metadata_location);
        let (kind, to) = (EntryKind::Table, next.state.metadata_location.clone());
        self.swap_new(&[Swap { ident: ident.clone(), kind, from, to }]).await?;
        Ok(self.files.keep(next))
    }

    async fn fenced(&self) -> Result<Vec<String>> {
        self.fenced_namespaces().await
    }

    async fn fence(&self, name: &str, event: &str) -> Result<String> {
        self.set_fence(name, event).await
    }

    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        self.change_properties(name, set, remove).await
    }

    async fn content(&self, name: &str) -> Result<Vec<String>> {
        self.content_of(name).await
    }

    async fn forget(&self, ident: &TableIdent) -> Result<()> {
        // The entry moves with every commit.
        for _ in 0..FORGET_TRIES_MAX {
            match self.entry(ident).await? {
                Some(entry) if entry.kind == EntryKind::Table => {
                    if self.drop_entry(ident, &entry).await? {
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
        }
        Err(super::outrun().detail(ident.to_string()))
    }

    async fn clear(&self, name: &str) -> Result<()> {
        self.clear_namespace(name).await
    }
}

/// Opens a file of SQLite's. Of several that give a new file its write-ahead log at the same moment,
/// SQLite refuses all but one at once: each has read already and wants to write, so waiting for
/// `busy_timeout` would be waiting for each other (<https://sqlite.org/c3ref/busy_handler.html>).
async fn open_file(
    pool: SqlitePoolOptions,
    options: &SqliteConnectOptions,
) -> std::result::Result<SqlitePool, sqlx::Error> {
    let started = Instant::now();
    loop {
        match pool.clone().connect_with(options.clone()).await {
            Err(cause)
                if error::statement_outcome(&cause) == error::StatementOutcome::NotNow
                    && started.elapsed() < BUSY_TIMEOUT =>
            {
                tokio::time::sleep(OPENING_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

async fn connect(url: &str) -> Result<Database> {
    let failed = |cause| error::database("open the catalog's database", cause);
    if let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // The pointer to the data must survive a power cut once the commit was acknowledged.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        // Connections to a file are not lost: nothing to find out before each use.
        let pool = || SqlitePoolOptions::new().test_before_acquire(false);
        let writing = open_file(pool().max_connections(1), &options).await.map_err(failed)?;
        let reading = pool().max_connections(CONNECTIONS_MAX);
        let reading = open_file(reading, &options).await.map_err(failed)?;
        return Ok(Database::Sqlite(reading, Writer::start(writing)));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let options: PgConnectOptions = url.parse().map_err(failed)?;
        let options = options.application_name("polder/catalog");
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS_MAX);
        return Ok(Database::Postgres(pool.connect_with(options).await.map_err(failed)?));
    }
    // The address itself is not repeated: it may hold a password.
    Err(Error::new(ErrorCode::SpecInvalid, "the catalog's address has no scheme known here")
        .hint("use sqlite://PATH or postgres://…"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use tempfile::TempDir;
    use tokio::task::JoinSet;

    use super::*;

    /// Each opener in a thread of its own: a file's lock is asked for at the same moment.
    #[tokio::test(flavor = "multi_thread", worker_threads = 8)]
    async fn all_who_make_a_database_at_the_same_moment_get_in() {
        for _ in 0..20 {
            let folder = TempDir::new().expect("folder");
            let url = format!("sqlite://{}/c.db", folder.path().display());
            let together = Arc::new(Barrier::new(8));
            let mut openers = JoinSet::new();
            for _ in 0..8 {
                let (url, together) = (url.clone(), Arc::clone(&together));
                openers.spawn(async move {
                    together.wait();
                    connect(&url).await.map(|_| ())
                });
            }
            while let Some(opened) = openers.join_next().await {
                opened.expect("task").expect("opened");
            }
        }
    }
}
