//! Tables and views as rows: looked up, renamed, dropped, and the one way their pointers move.

use std::collections::BTreeSet;
use std::sync::Arc;

use iceberg::TableIdent;
use polder_core::{Error, ErrorCode, Result};
use sqlx::PgPool;

use super::{CATALOG, Database, SqlCatalog, begin, held, on, outermost};
use crate::catalog::CommitFailure;
use crate::catalog::names::namespace_text;
use crate::error::{self, StatementOutcome};

/// What a row of `iceberg_tables` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Table,
    View,
}

impl EntryKind {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Table => "TABLE",
            Self::View => "VIEW",
        }
    }
}

/// A row: what it is, and where its metadata is.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) metadata_location: String,
}

/// One pointer's move from the metadata file that was seen (none: it is new) to the next one.
#[derive(Clone, Debug)]
pub(crate) struct Swap {
    pub(crate) ident: TableIdent,
    pub(crate) kind: EntryKind,
    pub(crate) from: Option<String>,
    pub(crate) to: String,
}

/// Rows written before Iceberg had views have no type.
const KIND_IS: &str = "COALESCE(iceberg_type, 'TABLE') = $4";

pub(super) const INSERT: &str =
    "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name,
        iceberg_type, metadata_location, previous_metadata_location)
    SELECT CAST($1 AS VARCHAR), CAST($2 AS VARCHAR), CAST($3 AS VARCHAR),
           CAST($4 AS VARCHAR), CAST($5 AS VARCHAR), NULL
    WHERE EXISTS (SELECT 1 FROM iceberg_namespace_properties
                  WHERE catalog_name = $1 AND namespace = $2)
      AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                      WHERE catalog_name = $1 AND namespace = $6
                        AND property_key = 'polder.fenced')
    ON CONFLICT DO NOTHING";
pub(super) const UPDATE: &str = "UPDATE iceberg_tables
    SET metadata_location = $5, previous_metadata_location = $7
    WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3
      AND COALESCE(iceberg_type, 'TABLE') = $4 AND metadata_location = $7
      AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                      WHERE catalog_name = $1 AND namespace = $6
                        AND property_key = 'polder.fenced')";

/// Moves one pointer in whichever database the connection leads to; true if it was where it was seen.
macro_rules! move_pointer {
    ($connection:expr, $swap:expr) => {{
        let swap: &$crate::catalog::sql::Swap = $swap;
        let namespace = $crate::catalog::names::namespace_text(&swap.ident.namespace);
        let sql = match swap.from {
            Some(_) => $crate::catalog::sql::entries::UPDATE,
            None => $crate::catalog::sql::entries::INSERT,
        };
        let query = sqlx::query(sql)
            .bind($crate::catalog::sql::CATALOG)
            .bind(&namespace)
            .bind(&swap.ident.name)
            .bind(swap.kind.text())
            .bind(&swap.to)
            .bind($crate::catalog::sql::outermost(&namespace));
        let query = match &swap.from {
            Some(from) => query.bind(from),
            None => query,
        };
        query.execute($connection).await?.rows_affected() == 1
    }};
}
pub(super) use move_pointer;

impl SqlCatalog {
    /// The table or view of this name.
    ///
    /// # Errors
    /// `lake.fenced` for one of an org behind its fence.
    pub(crate) async fn entry(&self, ident: &TableIdent) -> Result<Option<Entry>> {
        self.check_open(&namespace_text(&ident.namespace)).await?;
        self.entry_behind(ident).await
    }

    /// The same, behind a fence or not.
    async fn entry_behind(&self, ident: &TableIdent) -> Result<Option<Entry>> {
        let sql = "SELECT metadata_location, iceberg_type FROM iceberg_tables
                   WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3";
        let namespace = namespace_text(&ident.namespace);
        let found: Option<(Option<String>, Option<String>)> = on!(&self.database, pool => {
            sqlx::query_as(sql).bind(CATALOG).bind(&namespace).bind(&ident.name)
                .fetch_optional(pool).await
        })
        .map_err(|cause| error::database("look a name up in the catalog", cause))?;
        Ok(found.and_then(|(location, kind)| {
            let kind = match kind.as_deref() {
                Some("VIEW") => EntryKind::View,
                _ => EntryKind::Table,
            };
            location.map(|metadata_location| Entry { kind, metadata_location })
        }))
    }

    /// The names of one kind in a namespace, in order.
    pub(crate) async fn entries(&self, namespace: &str, kind: EntryKind) -> Result<Vec<String>> {
        let sql = "SELECT table_name FROM iceberg_tables
                   WHERE catalog_name = $1 AND table_namespace = $2
                     AND COALESCE(iceberg_type, 'TABLE') = $3
                   ORDER BY table_name";
        let found: Vec<(String,)> = on!(&self.database, pool => {
            sqlx::query_as(sql).bind(CATALOG).bind(namespace).bind(kind.text())
                .fetch_all(pool).await
        })
        .map_err(|cause| error::database("list the catalog's names", cause))?;
        Ok(found.into_iter().map(|(name,)| name).collect())
    }

    /// Takes a name out of the catalog, if it still leads where it did; true if this call did.
    pub(crate) async fn drop_entry(&self, ident: &TableIdent, entry: &Entry) -> Result<bool> {
        let sql = format!(
            "DELETE FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND {KIND_IS}
               AND metadata_location = $5"
        );
        let namespace = namespace_text(&ident.namespace);
        on!(&self.database, pool => {
            sqlx::query(&sql).bind(CATALOG).bind(&namespace).bind(&ident.name)
                .bind(entry.kind.text()).bind(&entry.metadata_location)
                .execute(pool).await.map(|done| done.rows_affected() == 1)
        })
        .map_err(|cause| error::database("drop a name from the catalog", cause))
    }

    /// Gives a table or view another name; false if the old one is gone or the new one is taken.
    pub(crate) async fn rename_entry(
        &self,
        kind: EntryKind,
        from: &TableIdent,
        to: &TableIdent,
    ) -> Result<bool> {
        let sql = format!(
            "UPDATE iceberg_tables SET table_namespace = $5, table_name = $6
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND {KIND_IS}
               AND EXISTS (SELECT 1 FROM iceberg_namespace_properties
                           WHERE catalog_name = $1 AND namespace = $5)
               AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                               WHERE catalog_name = $1 AND namespace = $7
                                 AND property_key = 'polder.fenced')"
        );
        let (old, new) = (namespace_text(&from.namespace), namespace_text(&to.namespace));
        let (begin, hold) = (self.database.begin(), self.database.hold());
        let done: Result<bool, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                if !held!(&mut *transaction, hold, &new) {
                    return Ok(false);
                }
                let done = sqlx::query(&sql).bind(CATALOG).bind(&old).bind(&from.name)
                    .bind(kind.text()).bind(&new).bind(&to.name).bind(outermost(&new))
                    .execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(done.rows_affected() == 1)
            })
        }
        .await;
        match done {
            Err(sqlx::Error::Database(cause)) if cause.is_unique_violation() => Ok(false),
            other => other.map_err(|cause| error::database("rename in the catalog", cause)),
        }
    }

    /// Moves all pointers to metadata files that nothing else names, or none. What was certainly not
    /// swapped in is removed again; a file that stays is found by orphan removal.
    ///
    /// # Errors
    /// As for [`Self::swap_all`].
    pub(crate) async fn swap_new(&self, swaps: &[Swap]) -> Result<(), CommitFailure> {
        let done = self.swap_all(swaps).await;
        if let Err(CommitFailure::Conflict(_)) = done
            // A statement that the driver sent twice finds its own work done.
            && self.made(swaps).await.map_err(CommitFailure::Unknown)?
        {
            return Ok(());
        }
        if let Err(CommitFailure::Conflict(_) | CommitFailure::Rejected(_)) = done {
            self.discard(swaps).await;
        }
        done
    }

    /// Whether all pointers are where they were to go.
    async fn made(&self, swaps: &[Swap]) -> Result<bool> {
        for swap in swaps {
            let entry = self.entry_behind(&swap.ident).await?;
            if entry.is_none_or(|entry| entry.metadata_location != swap.to) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes metadata files that nothing names.
    pub(crate) async fn discard(&self, swaps: &[Swap]) {
        let files = swaps.iter().map(|swap| swap.to.clone()).collect();
        self.files.discard(files).await;
    }

    /// Moves all pointers, or none.
    ///
    /// # Errors
    /// [`CommitFailure::Conflict`] when one of them is not where it was seen, or for a new one when
    /// its name is taken or its namespace gone.
    pub(crate) async fn swap_all(&self, swaps: &[Swap]) -> Result<(), CommitFailure> {
        let mut swaps = swaps.to_vec();
        // Of transactions that meet, one waits for the other, and none for each other.
        swaps.sort_by(|a, b| a.ident.cmp(&b.ident));
        let swapped = match &self.database {
            _ if swaps.is_empty() => Ok(true),
            Database::Sqlite(_, writer) => writer.swap(swaps).await,
            Database::Postgres(pool) => {
                swap_in_postgres(pool, self.database.hold(), &swaps).await.map_err(Arc::new)
            }
        };
        match swapped {
            Ok(true) => Ok(()),
            Ok(false) => {
                let conflict = "another writer changed the catalog first";
                Err(CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, conflict)))
            }
            Err(cause) if error::statement_outcome(&cause) == StatementOutcome::Unknown => {
                // The statement may have been carried out before the connection broke.
                let message = "the catalog's answer to the commit was lost";
                let unknown = Error::new(ErrorCode::LakeUnknownOutcome, message).caused_by(cause);
                Err(CommitFailure::Unknown(unknown))
            }
            Err(cause) => {
                Err(CommitFailure::Rejected(error::database("commit to the catalog", cause)))
            }
        }
    }
}

/// Moves all pointers, or none; true if it did.
async fn swap_in_postgres(
    pool: &PgPool,
    hold: &'static str,
    swaps: &[Swap],
) -> Result<bool, sqlx::Error> {
    if let [swap @ Swap { from: Some(_), .. }] = swaps {
        return Ok(move_pointer!(pool, swap));
    }
    let mut transaction = pool.begin().await?;
    let created = swaps.iter().filter(|swap| swap.from.is_none());
    let namespaces: BTreeSet<String> =
        created.map(|swap| namespace_text(&swap.ident.namespace)).collect();
    for namespace in &namespaces {
        if !held!(&mut *transaction, hold, namespace) {
            return Ok(false);
        }
    }
    for swap in swaps {
        if !move_pointer!(&mut *transaction, swap) {
            return Ok(false);
        }
    }
    transaction.commit().await?;
    Ok(true)
}
