//! The embedded catalog, in SQLite or PostgreSQL.
//!
//! The two tables are laid out exactly as Iceberg's JDBC catalog has them (schema version V1), so
//! that Java's `JdbcCatalog` and PyIceberg's `SqlCatalog` open the same database under the catalog
//! name `polder`. A commit is one `UPDATE … WHERE metadata_location = <what we saw>`; in SQLite those
//! that come together are made in one transaction (`sql/writer.rs`).

mod entries;
mod metadata_cache;
mod namespaces;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::spec::TableMetadata;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, SqlitePool};
use uuid::Uuid;

pub(super) use self::entries::{Entry, EntryKind, Swap};
use self::metadata_cache::MetadataCache;
use self::writer::Writer;
use super::names::namespace_text;
use super::{Catalog, CommitFailure, TableState, metadata_json};
use crate::error;
use crate::storage::Store;

/// The catalog's name inside the database, as other engines have to give it.
const CATALOG: &str = "polder";
const CONNECTIONS_MAX: u32 = 8;
/// Each table may be created by another process while we try, and any number of those start at once.
const CREATE_TRIES_MAX: u32 = 8;
/// How long SQLite waits for another writer of the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

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

/// The embedded catalog.
#[derive(Debug)]
pub struct SqlCatalog {
    database: Database,
    store: Store,
    cache: MetadataCache,
}

impl SqlCatalog {
    /// Opens the catalog and creates its tables where they are missing.
    pub async fn open(url: &SecretString, store: Store) -> Result<Self> {
        let database = connect(url.expose_secret()).await?;
        let catalog = Self { database, store, cache: MetadataCache::default() };
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

    pub(super) async fn state_at(
        &self,
        ident: &TableIdent,
        location: String,
    ) -> Result<TableState> {
        let metadata = if let Some(metadata) = self.cache.parsed(&location) {
            metadata
        } else {
            let text = self.text_at(&location).await?;
            let parsed = serde_json::from_str(text.get());
            let parsed = parsed.map_err(|cause| not_understood(&location).caused_by(cause))?;
            let metadata = Arc::new(parsed);
            self.cache.put_parsed(&location, &metadata, text.get().len());
            metadata
        };
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
    }

    /// The metadata as its file has it.
    pub(super) async fn text_at(&self, location: &str) -> Result<Arc<RawValue>> {
        if let Some(text) = self.cache.text(location) {
            return Ok(text);
        }
        let bytes = self.store.read_small(location).await.map_err(missing_metadata)?;
        let text: Arc<RawValue> = parse_json::<Box<RawValue>>(&bytes, location)?.into();
        self.cache.put_text(location, &text);
        Ok(text)
    }

    /// The metadata of a file that is there. A copy may outlive its file, and a table whose file is
    /// gone is not one to work with.
    pub(super) async fn text_now(&self, location: &str) -> Result<Arc<RawValue>> {
        match self.cache.text(location) {
            Some(text) => {
                self.store.check_there(location).await.map_err(missing_metadata)?;
                Ok(text)
            }
            None => self.text_at(location).await,
        }
    }

    /// Keeps metadata that was just committed, for whoever asks for it next.
    pub(super) fn remember(
        &self,
        location: &str,
        metadata: &Arc<TableMetadata>,
        text: &Arc<RawValue>,
    ) {
        self.cache.put_parsed(location, metadata, text.get().len());
        self.cache.put_text(location, text);
    }

    /// Writes a new metadata file. When this returns, it survives a power cut.
    pub(super) async fn write_metadata(&self, location: &str, text: &RawValue) -> Result<()> {
        self.store.put_new(location, Bytes::copy_from_slice(text.get().as_bytes())).await
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
        let begin = self.database.begin();
        let done: Result<(), sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = pool.begin_with(begin).await?;
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

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        match self.pointer(ident).await? {
            Some(location) => self.state_at(ident, location).await.map(Some),
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
        super::check(base.as_ref(), requirements)?;
        super::check_names(base.as_ref(), &updates)?;
        let metadata = super::apply(base.as_ref(), updates).map_err(CommitFailure::Rejected)?;
        let from = base.as_ref().map(|base| base.metadata_location.as_str());
        let location = next_metadata_file(from, &format!("{}/metadata", metadata.location()));
        let text: Arc<RawValue> =
            metadata_json::text(&metadata).map_err(CommitFailure::Rejected)?.into();
        // Written and flushed before the swap: the pointer never leads to a file that is not there.
        self.write_metadata(&location, &text).await.map_err(CommitFailure::Rejected)?;
        let from = from.map(str::to_owned);
        let kind = EntryKind::Table;
        let swap = Swap { ident: ident.clone(), kind, from, to: location.clone() };
        self.swap_new(&[swap]).await?;
        let metadata = Arc::new(metadata);
        self.remember(&location, &metadata, &text);
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
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
        let writing = pool().max_connections(1).connect_with(options.clone()).await;
        let reading = pool().max_connections(CONNECTIONS_MAX).connect_with(options).await;
        let writer = Writer::start(writing.map_err(failed)?);
        return Ok(Database::Sqlite(reading.map_err(failed)?, writer));
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

/// `<folder>/<version>-<uuid>.metadata.json`, as Iceberg's own catalogs name it: one version after
/// `base`.
pub(super) fn next_metadata_file(base: Option<&str>, folder: &str) -> String {
    let version = base
        .and_then(|base| base.rsplit('/').next()?.split('-').next()?.parse().ok())
        .map_or(0, |version: u64| version + 1);
    format!("{folder}/{version:05}-{}.metadata.json", Uuid::new_v4())
}

/// Metadata files of other engines may be compressed (spec, *Appendix D*: `write.metadata.compression-codec`).
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8], location: &str) -> Result<T> {
    const GZIP: [u8; 2] = [0x1F, 0x8B];
    let parsed = if bytes.starts_with(&GZIP) {
        serde_json::from_reader(flate2::read::GzDecoder::new(bytes))
    } else {
        serde_json::from_slice(bytes)
    };
    parsed.map_err(|cause| not_understood(location).caused_by(cause))
}

fn not_understood(location: &str) -> Error {
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata cannot be understood").detail(location)
}

pub(super) fn missing_metadata(error: Error) -> Error {
    if error.code() != ErrorCode::LakeNotFound {
        return error;
    }
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata file is missing").caused_by(error)
}
