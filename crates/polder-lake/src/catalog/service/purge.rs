//! Removing a dropped table's files: what its metadata reaches, and nothing outside the namespace's
//! fence, whatever a manifest names.

use std::collections::HashSet;

use iceberg::TableIdent;
use iceberg::spec::{ManifestList, TableMetadata};
use polder_core::Result;

use super::IcebergCatalog;
use super::refusal::Answer;
use crate::catalog::keeps_files;
use crate::error;

impl IcebergCatalog {
    /// Removes what the metadata at `pointer` reaches. The table is out of the catalog already; what
    /// cannot be read or removed is left for orphan removal, and logged.
    pub(super) async fn purge(&self, ident: &TableIdent, pointer: String) -> Answer<()> {
        let fence = self.fence(&ident.namespace).await?;
        let metadata = match self.table_at(ident, pointer.clone()).await {
            Ok(table) => table.metadata,
            Err(refusal) => {
                tracing::warn!(table = %ident, reason = refusal.message, "purge left files");
                return Ok(());
            }
        };
        if keeps_files(&metadata) {
            return Ok(());
        }
        let mut files = HashSet::from([pointer]);
        files.extend(metadata.metadata_log().iter().map(|entry| entry.metadata_file.clone()));
        files.extend(metadata.statistics_iter().map(|file| file.statistics_path.clone()));
        let partitions = metadata.partition_statistics_iter();
        files.extend(partitions.map(|file| file.statistics_path.clone()));
        if let Err(error) = self.reach(&metadata, &mut files).await {
            tracing::warn!(table = %ident, %error, "purge left files that cannot be found");
        }
        files.retain(|file| fence.check(file).is_ok());
        if let Err(error) = self.store.delete(files.into_iter().collect()).await {
            tracing::warn!(table = %ident, %error, "purge left files that cannot be removed");
        }
        Ok(())
    }

    /// Adds manifest lists, manifests and the files they name.
    async fn reach(&self, metadata: &TableMetadata, files: &mut HashSet<String>) -> Result<()> {
        let store = self.store.of_table(metadata.location());
        let file_io = store.file_io();
        let unreadable = |cause| error::iceberg("read a manifest", cause);
        let mut outcome = Ok(());
        for snapshot in metadata.snapshots() {
            files.insert(snapshot.manifest_list().to_owned());
            let bytes = match store.read(snapshot.manifest_list()).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    outcome = Err(error);
                    continue;
                }
            };
            let version = metadata.format_version();
            let list = ManifestList::parse_with_version(&bytes, version).map_err(unreadable)?;
            for manifest in list.entries() {
                if !files.insert(manifest.manifest_path.clone()) {
                    continue;
                }
                match manifest.load_manifest(&file_io).await {
                    Ok(read) => {
                        let entries = read.entries().iter();
                        files.extend(entries.map(|entry| entry.file_path().to_owned()));
                    }
                    Err(cause) => outcome = Err(unreadable(cause)),
                }
            }
        }
        outcome
    }
}
