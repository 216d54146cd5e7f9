//! Tables and views as rows: looked up, renamed, dropped, and several pointers swapped in one
//! database transaction.

use iceberg::TableIdent;
use polder_core::{Error, ErrorCode, Result};

use super::{CATALOG, Database, SqlCatalog, on};
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
    const fn text(self) -> &'static str {
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

const INSERT: &str = "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name,
        iceberg_type, metadata_location, previous_metadata_location)
    SELECT CAST($1 AS VARCHAR), CAST($2 AS VARCHAR), CAST($3 AS VARCHAR),
           CAST($4 AS VARCHAR), CAST($5 AS VARCHAR), NULL
    WHERE EXISTS (SELECT 1 FROM iceberg_namespace_properties
                  WHERE catalog_name = $1 AND namespace = $2)
    ON CONFLICT DO NOTHING";

impl SqlCatalog {
    /// The table or view of this name.
    pub(crate) async fn entry(&self, ident: &TableIdent) -> Result<Option<Entry>> {
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
                           WHERE catalog_name = $1 AND namespace = $5)"
        );
        let (old, new) = (namespace_text(&from.namespace), namespace_text(&to.namespace));
        let done = on!(&self.database, pool => {
            sqlx::query(&sql).bind(CATALOG).bind(&old).bind(&from.name).bind(kind.text())
                .bind(&new).bind(&to.name)
                .execute(pool).await.map(|done| done.rows_affected() == 1)
        });
        match done {
            Err(sqlx::Error::Database(cause)) if cause.is_unique_violation() => Ok(false),
            other => other.map_err(|cause| error::database("rename in the catalog", cause)),
        }
    }

    /// Moves all pointers, or none.
    ///
    /// # Errors
    /// [`CommitFailure::Conflict`] when one of them is not where it was seen, or for a new one when
    /// its name is taken or its namespace gone.
    pub(crate) async fn swap_all(&self, swaps: &[Swap]) -> Result<(), CommitFailure> {
        let swapped = on!(&self.database, pool => {
            async {
                let mut transaction = pool.begin().await?;
                for swap in swaps {
                    let namespace = namespace_text(&swap.ident.namespace);
                    let sql = swap_statement(swap);
                    let query = sqlx::query(&sql).bind(CATALOG).bind(&namespace)
                        .bind(&swap.ident.name).bind(swap.kind.text()).bind(&swap.to);
                    let query = match &swap.from {
                        Some(from) => query.bind(from),
                        None => query,
                    };
                    if query.execute(&mut *transaction).await?.rows_affected() != 1 {
                        transaction.rollback().await?;
                        return Ok(false);
                    }
                }
                transaction.commit().await?;
                Ok(true)
            }
            .await
        });
        match swapped {
            Ok(true) => Ok(()),
            Ok(false) => {
                let conflict = "another writer changed the catalog first";
                Err(CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, conflict)))
            }
            Err(cause) if error::statement_outcome(&cause) == StatementOutcome::Unknown => {
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

fn swap_statement(swap: &Swap) -> String {
    match swap.from {
        None => INSERT.to_owned(),
        Some(_) => format!(
            "UPDATE iceberg_tables SET metadata_location = $5, previous_metadata_location = $6
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND {KIND_IS}
               AND metadata_location = $6"
        ),
    }
}
