//! The audit before publishing: a staged snapshot is read back from the store and compared with what
//! the run wrote.
//!
//! - The table has the snapshot on top of the present `main`, with the run's schema and spec.
//! - Its manifests add exactly the run's files, each once, as they were written, and hold exactly
//!   those of the parent that stay.
//! - Each file is there with its length; its footer has the rows, the columns under their ids, and as
//!   many nulls in each as the rows had that were handed to the writer.
//! - The totals of the summary add up.

use std::collections::{HashMap, HashSet};

use futures::{FutureExt, StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, ManifestFile, ManifestStatus, Snapshot, TableMetadata};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use polder_core::{Error, ErrorCode, Result};

use super::conflict;
use super::snapshot::read_list;
use crate::catalog::TableState;
use crate::error;
use crate::field_ids::{check_readable, field_id};
use crate::read::footer;
use crate::schema;
use crate::stage::Target;
use crate::storage::Store;
use crate::write::{StagedFile, null_counts};

/// Files read back at the same time.
const FILES_AT_ONCE: usize = 8;

/// What a staged snapshot has to be.
pub(super) struct Audit<'a> {
    pub(super) store: &'a Store,
    pub(super) target: &'a Target,
    pub(super) files: &'a [StagedFile],
    /// Whether the files of the state before stay.
    pub(super) keeps: bool,
}

impl Audit<'_> {
    /// # Errors
    /// `lake.audit_failed` with the first difference; `lake.conflict` if the table moved on, so that
    /// the snapshot cannot be published; `lake.*` when the store cannot be read.
    pub(super) async fn check(&self, staged: &TableState, snapshot: i64) -> Result<()> {
        let metadata = &staged.metadata;
        // Gone if another process expired it, which it may.
        let snapshot = metadata.snapshot_by_id(snapshot).ok_or_else(conflict)?;
        self.check_shape(metadata, snapshot)?;
        let manifests = read_list(self.store, snapshot).await.map_err(unread)?;
        let own = |manifest: &&ManifestFile| manifest.added_snapshot_id == snapshot.snapshot_id();
        let (added, kept): (Vec<_>, Vec<_>) = manifests.iter().partition(own);
        self.check_kept(metadata, snapshot, &kept).await?;
        self.check_added(&added).await?;
        self.check_totals(metadata, snapshot)?;
        let checks: Vec<_> = self.files.iter().map(|file| self.check_file(file).boxed()).collect();
        futures::stream::iter(checks).buffer_unordered(FILES_AT_ONCE).try_collect().await
    }

    /// The catalog gave the schema and the spec the ids that the files and manifests were written for.
    fn check_shape(&self, metadata: &TableMetadata, snapshot: &Snapshot) -> Result<()> {
        let schema = &self.target.schema;
        let found = metadata.schema_by_id(schema.schema_id());
        let same = found.is_some_and(|found| found.as_struct() == schema.as_struct());
        if !same || snapshot.schema_id() != Some(schema.schema_id()) {
            return Err(failed("the catalog changed the schema's ids"));
        }
        let spec = &self.target.spec;
        let found = metadata.partition_spec_by_id(spec.spec_id());
        if found.is_none_or(|found| found.fields() != spec.fields()) {
            return Err(failed("the catalog changed the partition spec's ids"));
        }
        Ok(())
    }

    async fn check_kept(
        &self,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
        kept: &[&ManifestFile],
    ) -> Result<()> {
        let parent = snapshot.parent_snapshot_id();
        if parent != metadata.current_snapshot_id() {
            return Err(conflict());
        }
        let mut expected = HashSet::new();
        if let Some(parent) = parent.filter(|_| self.keeps) {
            let parent = metadata.snapshot_by_id(parent);
            let parent = parent.ok_or_else(|| failed("the state before is gone"))?;
            let live = read_list(self.store, parent).await?.into_iter();
            let live = live.filter(|list| list.has_added_files() || list.has_existing_files());
            expected.extend(live.map(|manifest| manifest.manifest_path));
        }
        let found: HashSet<String> = kept.iter().map(|list| list.manifest_path.clone()).collect();
        if found != expected || found.len() != kept.len() {
            return Err(failed("the files of the state before are not those that stay")
                .detail(format!("{} manifests, {} expected", kept.len(), expected.len())));
        }
        Ok(())
    }

    async fn check_added(&self, added: &[&ManifestFile]) -> Result<()> {
        let file_io = self.store.file_io();
        let mut missing: HashMap<&str, &StagedFile> =
            self.files.iter().map(|file| (file.location(), file)).collect();
        if missing.len() != self.files.len() {
            return Err(failed("a file would be in the table twice"));
        }
        for manifest in added {
            if manifest.partition_spec_id != self.target.spec.spec_id() {
                return Err(failed("a manifest is of another partition spec"));
            }
            let loaded = manifest.load_manifest(&file_io).await;
            let loaded =
                loaded.map_err(|cause| unread(error::iceberg("read a manifest", cause)))?;
            for entry in loaded.entries() {
                let found = entry.data_file();
                let Some(written) = missing.remove(entry.file_path()) else {
                    return Err(failed(
                        "a manifest names a file twice, or one that is not the run's",
                    ));
                };
                let same = entry.status() == ManifestStatus::Added
                    && found.content_type() == DataContentType::Data
                    && found.record_count() == written.rows()
                    && found.file_size_in_bytes() == written.size_bytes()
                    && found.partition() == written.data_file().partition();
                if !same {
                    return Err(failed("a manifest says other things of a file than were written")
                        .detail(entry.file_path().to_owned()));
                }
            }
        }
        match missing.keys().next() {
            None => Ok(()),
            Some(file) => {
                Err(failed("the manifests lack a file of the run").detail((*file).to_owned()))
            }
        }
    }

    /// Rows and files of the new state, where the summaries say how many there were.
    fn check_totals(&self, metadata: &TableMetadata, snapshot: &Snapshot) -> Result<()> {
        let number = |snapshot: &Snapshot, key: &str| -> Option<u64> {
            snapshot.summary().additional_properties.get(key)?.parse().ok()
        };
        let parent = snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        let parent = parent.filter(|_| self.keeps);
        let rows: u64 = self.files.iter().map(StagedFile::rows).sum();
        for (key, new) in [("total-records", rows), ("total-data-files", self.files.len() as u64)] {
            let before = parent.map_or(Some(0), |parent| number(parent, key));
            let (Some(before), total) = (before, number(snapshot, key)) else { continue };
            if total != Some(before + new) {
                return Err(failed("the snapshot's totals do not add up").detail(format!(
                    "{key}: {before} before, {new} new, {} after",
                    total.map_or_else(|| "none".to_owned(), |total| total.to_string()),
                )));
            }
        }
        Ok(())
    }

    /// The file as the store has it.
    async fn check_file(&self, file: &StagedFile) -> Result<()> {
        let location = file.location();
        let at = |error: Error| error.detail(location.to_owned());
        let broken =
            |cause: ParquetError| at(failed("a data file cannot be read back")).caused_by(cause);
        let size = match self.store.head(location).await {
            Ok(found) => found.size,
            Err(error) if error.code() == ErrorCode::LakeNotFound => {
                return Err(at(failed("a data file is not there")));
            }
            Err(error) => return Err(error),
        };
        if size != file.size_bytes() {
            let message = format!("a data file has {size} bytes, {} written", file.size_bytes());
            return Err(at(failed(&message)));
        }
        let footer = footer(self.store, location, size).await?.map_err(broken)?;
        let rows: i64 = footer.row_groups().iter().map(RowGroupMetaData::num_rows).sum();
        if u64::try_from(rows) != Ok(file.rows()) || footer.file_metadata().num_rows() != rows {
            let message = format!("a data file has {rows} rows, {} written", file.rows());
            return Err(at(failed(&message)));
        }
        let nulls = file.data_file().null_value_counts();
        if null_counts(&footer).iter().any(|(id, found)| nulls.get(id) != Some(found)) {
            return Err(at(failed("a data file has other nulls than were written")));
        }
        let found = parquet_to_arrow_schema(footer.file_metadata().schema_descr(), None);
        let found = found.map_err(broken)?;
        let columns = schema::table_schema(&self.target.schema)?;
        for wanted in schema::arrow_schema(&columns, &self.target.schema).fields() {
            let id = field_id(wanted);
            let column = found.fields().iter().find(|field| field_id(field) == id);
            if column.is_none_or(|column| check_readable(column, wanted).is_err()) {
                let message = format!("a data file lacks column {:?} as written", wanted.name());
                return Err(at(failed(&message)));
            }
        }
        Ok(())
    }
}

/// A file that was written and cannot be read: the store may only be away.
fn unread(error: Error) -> Error {
    if error.retryable() {
        return error;
    }
    failed("the snapshot's own metadata cannot be read back").caused_by(error)
}

fn failed(what: &str) -> Error {
    Error::new(ErrorCode::LakeAuditFailed, format!("the audit before publishing failed: {what}"))
        .hint("nothing was published; run again, and look at the store if it happens again")
}
