//! The embedded catalog, in SQLite or PostgreSQL.
//!
//! The two tables are laid out exactly as Iceberg's JDBC catalog has them (schema version V1), so
//! that Java's `JdbcCatalog` and PyIceberg's `SqlCatalog` open the same database under the catalog
//! name `polder`. A commit is one `UPDATE … WHERE metadata_location = <what we saw>`.

mod entries;
mod metadata_cache;
mod namespaces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::spec::TableMetadata;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, SqlitePool};
use uuid::Uuid;

pub(super) use self::entries::{Entry, EntryKind, Swap};
use self::metadata_cache::MetadataCache;
use super::names::namespace_text;
use super::{Catalog, CommitFailure, TableState};
use crate::error::{self, StatementOutcome};
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

#[derive(Clone, Debug)]
enum Database {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Runs the same statement on whichever database it is. Both take `$1`.
macro_rules! on {
    ($database:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite($pool) => $body,
            Database::Postgres($pool) => $body,
        }
    };
}
use on;

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
        let metadata = if let Some(metadata) = self.cache.get(&location) {
            metadata
        } else {
            let bytes = self.store.read(&location).await.map_err(missing_metadata)?;
            let metadata = parse_metadata(&bytes, &location)?;
            self.cache.put(&location, Arc::new(metadata))
        };
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
    }

    /// What a swap that ended in an error was. The new metadata file goes unless it may be the
    /// table's.
    async fn not_swapped(&self, location: String, cause: sqlx::Error) -> CommitFailure {
        let outcome = error::statement_outcome(&cause);
        if outcome == StatementOutcome::Unknown {
            // The statement may have been carried out before the connection broke.
            let message = "the catalog's answer to the commit was lost";
            let unknown = Error::new(ErrorCode::LakeUnknownOutcome, message);
            return CommitFailure::Unknown(unknown.caused_by(cause));
        }
        let _ = self.store.delete(vec![location]).await;
        CommitFailure::Rejected(error::database("commit to the catalog", cause))
    }

    /// The swap itself: true when this call made it.
    async fn swap(
        &self,
        ident: &TableIdent,
        from: Option<&str>,
        to: &str,
    ) -> Result<bool, sqlx::Error> {
        let namespace = namespace_text(&ident.namespace);
        let Some(from) = from else {
            let sql = "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name,
                           metadata_location, previous_metadata_location, iceberg_type)
                       VALUES ($1, $2, $3, $4, NULL, 'TABLE')
                       ON CONFLICT DO NOTHING";
            return on!(&self.database, pool => sqlx::query(sql)
                .bind(CATALOG).bind(&namespace).bind(&ident.name).bind(to)
                .execute(pool).await.map(|done| done.rows_affected() == 1));
        };
        let sql = format!(
            "UPDATE iceberg_tables SET metadata_location = $4, previous_metadata_location = $5
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3
               AND metadata_location = $5 AND {IS_TABLE}"
        );
        on!(&self.database, pool => sqlx::query(&sql)
            .bind(CATALOG).bind(&namespace).bind(&ident.name).bind(to).bind(from)
            .execute(pool).await.map(|done| done.rows_affected() == 1))
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
        for (key, value) in properties.iter().chain(Some((&exists.0, &exists.1))) {
            on!(&self.database, pool => sqlx::query(sql)
                .bind(CATALOG).bind(name).bind(key).bind(value).execute(pool).await.map(drop))
            .map_err(|cause| error::database("create a namespace in the catalog", cause))?;
        }
        Ok(())
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
        let bytes = serde_json::to_vec(&metadata).map_err(|cause| {
            let error = Error::new(ErrorCode::Internal, "cannot serialise the table's metadata");
            CommitFailure::Rejected(error.caused_by(cause))
        })?;
        // Written and flushed before the swap: the pointer never leads to a file that is not there.
        self.store.put_new(&location, Bytes::from(bytes)).await.map_err(CommitFailure::Rejected)?;
        let swapped = match self.swap(ident, from, &location).await {
            // A statement that the driver sent twice finds its own work done.
            Ok(false) => match self.pointer(ident).await {
                Ok(now) => now.as_ref() == Some(&location),
                Err(error) => return Err(CommitFailure::Unknown(error)),
            },
            Ok(true) => true,
            Err(cause) => return Err(self.not_swapped(location, cause).await),
        };
        if swapped {
            let metadata = self.cache.put(&location, Arc::new(metadata));
            return Ok(TableState { ident: ident.clone(), metadata, metadata_location: location });
        }
        // Nothing can lead to this file any more. If it stays, orphan removal finds it.
        let _ = self.store.delete(vec![location]).await;
        let conflict = "another writer changed the table first";
        Err(CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, conflict)))
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
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX);
        return Ok(Database::Sqlite(pool.connect_with(options).await.map_err(failed)?));
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
pub(crate) fn parse_metadata(bytes: &[u8], location: &str) -> Result<TableMetadata> {
    const GZIP: [u8; 2] = [0x1F, 0x8B];
    let not_understood = || {
        Error::new(ErrorCode::LakeCorrupt, "the table's metadata cannot be understood")
            .detail(location)
    };
    let parsed = if bytes.starts_with(&GZIP) {
        serde_json::from_reader(flate2::read::GzDecoder::new(bytes))
    } else {
        serde_json::from_slice(bytes)
    };
    parsed.map_err(|cause| not_understood().caused_by(cause))
}

pub(super) fn missing_metadata(error: Error) -> Error {
    if error.code() != ErrorCode::LakeNotFound {
        return error;
    }
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata file is missing").caused_by(error)
}
