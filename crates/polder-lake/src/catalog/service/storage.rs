//! How clients reach the files: which objects belong to a table, and with which account.

use std::sync::Arc;

use polder_core::Principal;

use super::IcebergCatalog;
use super::documents::{LoadedTable, Places};
use super::location::Fence;
use super::refusal::{Answer, Refusal, RefusalKind, show};
use crate::catalog::sql::EntryKind;
use crate::settings::S3Settings;
use crate::storage::TemporaryKeys;

/// Where a table's files may be beside its location.
const OTHER_PLACES: [&str; 2] = ["write.data.path", "write.metadata.path"];

impl IcebergCatalog {
    /// The account and the bucket of a lake on S3; `None` on local disk.
    pub fn s3(&self) -> Option<(&S3Settings, &str)> {
        let bucket = self.store.url().strip_prefix("s3://")?;
        Some((self.s3.as_ref()?, bucket))
    }

    /// Whether clients are handed keys for single tables.
    pub fn hands_out_keys(&self) -> bool {
        self.tokens.is_some()
    }

    /// Keys that open a table's files alone; `None` where they are not handed out.
    ///
    /// # Errors
    /// `ServiceUnavailable` and the like when the token service gives none.
    pub async fn table_keys(&self, table: &LoadedTable) -> Answer<Option<Arc<TemporaryKeys>>> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let Places { table_uuid, location, mut properties } = table.places()?;
        let others = OTHER_PLACES.iter().filter_map(|key| properties.remove(*key));
        let mut places: Vec<String> = others.chain([location]).collect();
        places.sort_unstable();
        places.dedup();
        Ok(tokens.keys(places, &format!("polder-{table_uuid}")).await?)
    }

    /// Whether an object is the table's own. Of a table that is not there yet (a staged creation is
    /// being written) it is enough that the object lies in the namespace's storage.
    ///
    /// # Errors
    /// `Forbidden`; `NoSuchNamespace`.
    pub async fn check_object(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        location: &str,
    ) -> Answer<()> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        self.fence(&namespace).await?.check(location)?;
        let ident = iceberg::TableIdent::new(namespace, name.to_owned());
        let Some(entry) = self.catalog.entry(&ident).await? else { return Ok(()) };
        if entry.kind != EntryKind::Table {
            return Err(Refusal::absent(EntryKind::Table, &show(&ident)));
        }
        let metadata = self.table_at(&ident, entry.metadata_location).await?.metadata;
        let others = OTHER_PLACES.iter().filter_map(|key| metadata.properties().get(*key));
        let mut places = others.map(String::as_str).chain([metadata.location()]);
        let inside =
            places.any(|place| Fence::org(place).is_ok_and(|fence| fence.check(location).is_ok()));
        if inside {
            return Ok(());
        }
        let message =
            format!("Object is not of table {}: {location}", super::refusal::show(&ident));
        Err(Refusal::new(RefusalKind::Forbidden, message))
    }
}
