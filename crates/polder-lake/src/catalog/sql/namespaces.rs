//! Namespaces: created, changed and dropped, each in one database transaction.

use std::collections::BTreeMap;

use polder_core::Result;

use super::{CATALOG, Database, SqlCatalog, begin, held, on, outermost};
use crate::error;

pub(super) const PUT: &str = "INSERT INTO iceberg_namespace_properties
        (catalog_name, namespace, property_key, property_value)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (catalog_name, namespace, property_key)
    DO UPDATE SET property_value = excluded.property_value";

impl SqlCatalog {
    /// Creates a namespace with its properties; false if it is there already, or what should be
    /// above it is not.
    pub(crate) async fn create_namespace(
        &self,
        name: &str,
        above: Option<&str>,
        properties: &BTreeMap<String, String>,
    ) -> Result<bool> {
        let sql = "INSERT INTO iceberg_namespace_properties
                       (catalog_name, namespace, property_key, property_value)
                   SELECT CAST($1 AS VARCHAR), CAST($2 AS VARCHAR), 'exists', 'true'
                   WHERE NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                                     WHERE catalog_name = $1 AND namespace = $2)
                     AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                                     WHERE catalog_name = $1 AND namespace = $3
                                       AND property_key = 'polder.fenced')
                   ON CONFLICT DO NOTHING";
        let (begin, hold) = (self.database.begin(), self.database.hold());
        let made: Result<bool, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                if let Some(above) = above && !held!(&mut *transaction, hold, above) {
                    return Ok(false);
                }
                let done = sqlx::query(sql).bind(CATALOG).bind(name).bind(outermost(name))
                    .execute(&mut *transaction).await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                for (key, value) in properties {
                    sqlx::query(PUT).bind(CATALOG).bind(name).bind(key).bind(value)
                        .execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(true)
            })
        }
        .await;
        made.map_err(|cause| error::database("create a namespace in the catalog", cause))
    }

    /// Sets and removes properties; false if there is no such namespace.
    pub(crate) async fn alter_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<bool> {
        // Finds out that the namespace is there, and keeps it there until the end.
        let hold = "UPDATE iceberg_namespace_properties SET property_value = property_value
                    WHERE catalog_name = $1 AND namespace = $2
                      AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties fence
                                      WHERE fence.catalog_name = $1 AND fence.namespace = $3
                                        AND fence.property_key = 'polder.fenced')";
        let delete = "DELETE FROM iceberg_namespace_properties
                      WHERE catalog_name = $1 AND namespace = $2 AND property_key = $3";
        let begin = self.database.begin();
        let done: Result<bool, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                let there = sqlx::query(hold).bind(CATALOG).bind(name).bind(outermost(name))
                    .execute(&mut *transaction).await?;
                if there.rows_affected() == 0 {
                    return Ok(false);
                }
                for key in remove {
                    sqlx::query(delete).bind(CATALOG).bind(name).bind(key)
                        .execute(&mut *transaction).await?;
                }
                let marker = ("exists".to_owned(), "true".to_owned());
                for (key, value) in set.iter().chain(Some((&marker.0, &marker.1))) {
                    sqlx::query(PUT).bind(CATALOG).bind(name).bind(key).bind(value)
                        .execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(true)
            })
        }
        .await;
        done.map_err(|cause| error::database("change a namespace of the catalog", cause))
    }

    /// Drops an empty namespace; false if it is not there or something is in it.
    pub(crate) async fn drop_namespace(&self, name: &str) -> Result<bool> {
        let sql = "DELETE FROM iceberg_namespace_properties
                   WHERE catalog_name = $1 AND namespace = $2
                     AND NOT EXISTS (SELECT 1 FROM iceberg_tables
                                     WHERE catalog_name = $1 AND table_namespace = $2)
                     AND NOT EXISTS (SELECT 1 FROM iceberg_namespace_properties below
                                     WHERE below.catalog_name = $1
                                       AND substr(below.namespace, 1, length($3)) = $3)";
        let below = format!("{name}.");
        let (begin, claim) = (self.database.begin(), self.database.claim());
        let done: Result<bool, sqlx::Error> = async {
            on!(&self.database, pool => {
                let mut transaction = begin::begin(pool, begin).await?;
                if !held!(&mut *transaction, claim, name) {
                    return Ok(false);
                }
                let done = sqlx::query(sql).bind(CATALOG).bind(name).bind(&below)
                    .execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(done.rows_affected() > 0)
            })
        }
        .await;
        done.map_err(|cause| error::database("drop a namespace of the catalog", cause))
    }
}
