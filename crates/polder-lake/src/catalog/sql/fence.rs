//! What the embedded catalog does for an org that leaves: its fence, and the end of its rows.
//!
//! The fence is a row of the namespace. Every statement that makes or moves a pointer asks for it
//! (`entries.rs`, `namespaces.rs`). In PostgreSQL, which has many writers, a statement may have looked
//! before the fence was there and move its pointer afterwards. Who sets a fence waits for all of these,
//! so that commits need not hold anything for it.

use std::collections::BTreeMap;

use polder_core::{Error, ErrorCode, Result};
use sqlx::PgPool;

use super::namespaces::PUT;
use super::{CATALOG, Database, SqlCatalog, begin, held, on};
use crate::catalog::fenced::{FENCED, fenced, org_of};
use crate::error;

/// `$2` is the namespace, `$3` what namespaces below it begin with.
const BELOW: &str = "substr(namespace, 1, length($3)) = $3";
const BELOW_TABLES: &str = "(table_namespace = $2 OR substr(table_namespace, 1, length($3)) = $3)";

impl SqlCatalog {
    /// # Errors
    /// `lake.fenced` for a namespace of an org behind its fence.
    pub(crate) async fn check_open(&self, namespace: &str) -> Result<()> {
        let Some((outer, org)) = org_of(namespace) else { return Ok(()) };
        let sql = "SELECT property_key FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 AND namespace = $2 AND property_key = $3";
        let found: Option<(String,)> = on!(&self.database, pool => {
            sqlx::query_as(sql).bind(CATALOG).bind(outer).bind(FENCED).fetch_optional(pool).await
        })
        .map_err(|cause| error::database("look for a fence in the catalog", cause))?;
        if found.is_some() { Err(fenced(&org)) } else { Ok(()) }
    }

    /// The namespaces that have a fence, in order.
    pub(super) async fn fenced_namespaces(&self) -> Result<Vec<String>> {
        let sql = "SELECT namespace FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 AND property_key = $2 ORDER BY namespace";
        let found: Vec<(String,)> = on!(&self.database, pool => {
            sqlx::query_as(sql).bind(CATALOG).bind(FENCED).fetch_all(pool).await
        })
        .map_err(|cause| error::database("list the catalog's fences", cause))?;
        Ok(found.into_iter().map(|(name,)| name).collect())
    }

    /// Fences a namespace; the first event wins.
    pub(super) async fn set_fence(&self, name: &str, event: &str) -> Result<String> {
        let put = "INSERT INTO iceberg_namespace_properties
                       (catalog_name, namespace, property_key, property_value)
                   VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        let get = "SELECT property_value FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 AND namespace = $2 AND property_key = $3";
        let (begin, claim) = (self.database.begin(), self.database.claim());
        let done: Result<Option<String>, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                let _there = held!(&mut *transaction, claim, name);
                for (key, value) in [("exists", "true"), (FENCED, event)] {
                    sqlx::query(put).bind(CATALOG).bind(name).bind(key).bind(value)
                        .execute(&mut *transaction).await?;
                }
                let found: Option<(Option<String>,)> = sqlx::query_as(get)
                    .bind(CATALOG).bind(name).bind(FENCED)
                    .fetch_optional(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(found.and_then(|(value,)| value))
            })
        }
        .await;
        let found = done.map_err(|cause| error::database("fence a namespace", cause))?;
        if let Database::Postgres(pool) = &self.database {
            let what = "wait for the commits that began before a fence";
            outwait(pool).await.map_err(|cause| error::database(what, cause))?;
        }
        found.ok_or_else(|| Error::new(ErrorCode::LakeCorrupt, "a fence has no event"))
    }

    /// Sets and removes properties, behind a fence or not.
    pub(super) async fn change_properties(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        let delete = "DELETE FROM iceberg_namespace_properties
                      WHERE catalog_name = $1 AND namespace = $2 AND property_key = $3";
        let (begin, claim) = (self.database.begin(), self.database.claim());
        let there: Result<bool, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                if !held!(&mut *transaction, claim, name) {
                    return Ok(false);
                }
                for key in remove {
                    sqlx::query(delete).bind(CATALOG).bind(name).bind(key)
                        .execute(&mut *transaction).await?;
                }
                for (key, value) in set {
                    sqlx::query(PUT).bind(CATALOG).bind(name).bind(key).bind(value)
                        .execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(true)
            })
        }
        .await;
        if there.map_err(|cause| error::database("change a namespace of the catalog", cause))? {
            return Ok(());
        }
        Err(Error::new(ErrorCode::LakeNotFound, "the namespace is not in the catalog")
            .detail(name.to_owned()))
    }

    /// Tables, views and namespaces below a namespace.
    pub(super) async fn content_of(&self, name: &str) -> Result<Vec<String>> {
        let entries = format!(
            "SELECT table_namespace, table_name FROM iceberg_tables
             WHERE catalog_name = $1 AND {BELOW_TABLES} ORDER BY table_namespace, table_name"
        );
        let namespaces = format!(
            "SELECT DISTINCT namespace FROM iceberg_namespace_properties
             WHERE catalog_name = $1 AND namespace <> $2 AND {BELOW} ORDER BY namespace"
        );
        let below = format!("{name}.");
        let found: Result<_, sqlx::Error> = async {
            on!(&self.database, pool => {
                let entries: Vec<(String, String)> = sqlx::query_as(&entries)
                    .bind(CATALOG).bind(name).bind(&below).fetch_all(pool).await?;
                let namespaces: Vec<(String,)> = sqlx::query_as(&namespaces)
                    .bind(CATALOG).bind(name).bind(&below).fetch_all(pool).await?;
                Ok((entries, namespaces))
            })
        }
        .await;
        let what = "list what a namespace holds";
        let (entries, namespaces) = found.map_err(|cause| error::database(what, cause))?;
        let entries = entries.into_iter().map(|(namespace, name)| format!("{namespace}.{name}"));
        Ok(entries.chain(namespaces.into_iter().map(|(name,)| name)).collect())
    }

    /// Removes the rows of tables, views and namespaces below a namespace, in one transaction.
    pub(super) async fn clear_namespace(&self, name: &str) -> Result<()> {
        let entries =
            format!("DELETE FROM iceberg_tables WHERE catalog_name = $1 AND {BELOW_TABLES}");
        let namespaces = format!(
            "DELETE FROM iceberg_namespace_properties
             WHERE catalog_name = $1 AND namespace <> $2 AND {BELOW}"
        );
        let below = format!("{name}.");
        let (begin, claim) = (self.database.begin(), self.database.claim());
        let done: Result<(), sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                let _there = held!(&mut *transaction, claim, name);
                for sql in [&entries, &namespaces] {
                    sqlx::query(sql).bind(CATALOG).bind(name).bind(&below)
                        .execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        }
        .await;
        done.map_err(|cause| error::database("clear a namespace of the catalog", cause))
    }
}

/// Waits for everybody who writes to the catalog now. A statement locks the tables it writes to before
/// it takes the snapshot by which it sees others' rows, until its transaction ends (manual, *Explicit
/// Locking*): whoever does not see what was committed before this call has ended when it returns.
///
/// # Errors
/// After ten seconds for a table, in which new commits wait too; what was committed stays.
async fn outwait(pool: &PgPool) -> Result<(), sqlx::Error> {
    // One after the other, so that nobody waits for this while it waits.
    for lock in [
        "LOCK TABLE iceberg_tables IN SHARE MODE",
        "LOCK TABLE iceberg_namespace_properties IN SHARE MODE",
    ] {
        let mut transaction = begin::begin(pool, "BEGIN").await?;
        for statement in ["SET LOCAL lock_timeout = '10s'", lock] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
    }
    Ok(())
}
