//! The audit before publishing: a staged snapshot is read back from the store and compared with what
//! the run wrote.
//!
//! - The table has the snapshot on top of the present `main`, with the run's schema and spec.
//! - Its manifests add exactly the run's files and deletes, each once, as they were written, and hold
//!   exactly those of the parent that stay: only delete files that others take the place of go.
//! - Each file is there with its length, and page indexes and footer as they were made; the footer has the rows, and a data file's has the columns
//!   under their ids, and as many nulls and the same extremes in each as the rows had that were handed
//!   to the writer.
//! - The totals of the summary add up.
//!
//! The rows themselves are [`super::read_back`]'s.

use std::collections::{HashMap, HashSet};

use futures::{FutureExt, StreamExt, TryStreamExt};
use iceberg::spec::{
    DataFile, ManifestEntryRef, ManifestFile, ManifestStatus, Snapshot, TableMetadata,
};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use polder_core::{Error, ErrorCode, Result, digest};

use super::conflict;
use super::snapshot::read_list;
use crate::catalog::TableState;
use crate::error;
use crate::field_ids::{check_readable, field_id};
use crate::read::footer;
use crate::schema;
use crate::stage::Target;
use crate::storage::Store;
use crate::write::{StagedDeletes, StagedFile, Tail, bounds, null_counts};

/// Files read back at the same time.
const FILES_AT_ONCE: usize = 8;

/// What a staged snapshot has to be.
pub(super) struct Audit<'a> {
    pub(super) store: &'a Store,
    pub(super) target: &'a Target,
    pub(super) files: &'a [StagedFile],
    pub(super) deletes: &'a [StagedDeletes],
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
        let rewritten = self.check_added(&added).await?;
        self.check_kept(metadata, snapshot, &kept, rewritten).await?;
        self.check_totals(metadata, snapshot)?;
        let deletes = self.deletes.iter().map(|deletes| self.check_deletes(deletes).boxed());
        let deletes: Vec<_> = deletes.collect();
        let checks = futures::stream::iter(deletes).buffer_unordered(FILES_AT_ONCE);
        checks.try_collect::<()>().await?;
        let files = self.files.iter().map(|file| self.check_file(file).boxed());
        let files: Vec<_> = files.collect();
        futures::stream::iter(files).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await
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
        mut rewritten: Rewritten,
    ) -> Result<()> {
        let parent = snapshot.parent_snapshot_id();
        if parent != metadata.current_snapshot_id() {
            return Err(conflict());
        }
        let mut expected = HashMap::new();
        if let Some(parent) = parent.filter(|_| self.keeps) {
            let parent = metadata.snapshot_by_id(parent);
            let parent = parent.ok_or_else(|| failed("the state before is gone"))?;
            let live = read_list(self.store, parent).await?.into_iter();
            let live = live.filter(|list| list.has_added_files() || list.has_existing_files());
            expected.extend(live.map(|manifest| (manifest.manifest_path.clone(), manifest)));
        }
        let (count, wanted) = (kept.len(), expected.len());
        let others = || {
            failed("the files of the state before are not those that stay")
                .detail(format!("{count} manifests, {wanted} before"))
        };
        for manifest in kept {
            expected.remove(&manifest.manifest_path).ok_or_else(others)?;
        }
        // The others were written anew, without the delete files that go.
        for manifest in expected.values() {
            for file in self.load(manifest).await?.iter().filter(|entry| entry.is_alive()) {
                if !rewritten.stays.remove(file.file_path())
                    && !rewritten.gone.remove(file.file_path())
                {
                    return Err(others());
                }
            }
        }
        let Rewritten { stays, gone } = rewritten;
        if stays.is_empty() && gone.is_empty() { Ok(()) } else { Err(others()) }
    }

    async fn load(&self, manifest: &ManifestFile) -> Result<Vec<ManifestEntryRef>> {
        let loaded = manifest.load_manifest(&self.store.file_io()).await;
        let loaded = loaded.map_err(|cause| unread(error::iceberg("read a manifest", cause)))?;
        Ok(loaded.into_parts().0)
    }

    /// Checks what the snapshot's own manifests add; returns what else they hold.
    async fn check_added(&self, added: &[&ManifestFile]) -> Result<Rewritten> {
        let files = self.files.iter().map(|file| (file.data_file(), self.target.spec.spec_id()));
        let deletes = self.deletes.iter().map(|deletes| (deletes.file(), deletes.spec_id()));
        let mut missing: HashMap<&str, (&DataFile, i32)> =
            files.chain(deletes).map(|(file, spec)| (file.file_path(), (file, spec))).collect();
        if missing.len() != self.files.len() + self.deletes.len() {
            return Err(failed("a file would be in the table twice"));
        }
        let mut rewritten = Rewritten::default();
        for manifest in added {
            for entry in self.load(manifest).await? {
                let (found, path) = (entry.data_file(), entry.file_path());
                if entry.status() != ManifestStatus::Added {
                    let alive = entry.is_alive();
                    let of = if alive { &mut rewritten.stays } else { &mut rewritten.gone };
                    of.insert(path.to_owned());
                    continue;
                }
                let Some((written, spec_id)) = missing.remove(path) else {
                    return Err(failed(
                        "a manifest names a file twice, or one that is not the run's",
                    ));
                };
                if manifest.partition_spec_id != spec_id {
                    return Err(failed("a manifest is of another partition spec"));
                }
                let same = found.content_type() == written.content_type()
                    && found.record_count() == written.record_count()
                    && found.file_size_in_bytes() == written.file_size_in_bytes()
                    && found.partition() == written.partition();
                if !same {
                    return Err(failed("a manifest says other things of a file than were written")
                        .detail(path.to_owned()));
                }
            }
        }
        if let Some(file) = missing.keys().next() {
            let message = "the manifests lack a file of the run";
            return Err(failed(message).detail((*file).to_owned()));
        }
        let replaced: HashSet<String> =
            self.deletes.iter().flat_map(StagedDeletes::replaces).cloned().collect();
        if rewritten.gone != replaced {
            let message = "the delete files that go are not those that others take the place of";
            return Err(failed(message));
        }
        Ok(rewritten)
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

    async fn check_deletes(&self, deletes: &StagedDeletes) -> Result<()> {
        self.check_length(deletes.file()).await?;
        self.check_footer(deletes.file()).await.map(drop)
    }

    /// The store has the file, as long as it was written.
    async fn check_length(&self, file: &DataFile) -> Result<()> {
        let (location, written) = (file.file_path(), file.file_size_in_bytes());
        let at = |error: Error| error.detail(location.to_owned());
        let size = match self.store.head(location).await {
            Ok(found) => found.size,
            Err(error) if error.code() == ErrorCode::LakeNotFound => {
                return Err(at(failed("a data file is not there")));
            }
            Err(error) => return Err(error),
        };
        if size != written {
            let message = format!("a data file has {size} bytes, {written} written");
            return Err(at(failed(&message)));
        }
        Ok(())
    }

    /// The footer as the store has it, with as many rows as were written.
    async fn check_footer(&self, file: &DataFile) -> Result<ParquetMetaData> {
        let (location, size) = (file.file_path(), file.file_size_in_bytes());
        let at = |error: Error| error.detail(location.to_owned());
        let broken =
            |cause: ParquetError| at(failed("a data file cannot be read back")).caused_by(cause);
        let footer = footer(self.store, location, size).await?.map_err(broken)?;
        let rows: i64 = footer.row_groups().iter().map(RowGroupMetaData::num_rows).sum();
        let written = file.record_count();
        if u64::try_from(rows) != Ok(written) || footer.file_metadata().num_rows() != rows {
            let message = format!("a data file has {rows} rows, {written} written");
            return Err(at(failed(&message)));
        }
        Ok(footer)
    }

    async fn check_file(&self, file: &StagedFile) -> Result<()> {
        let location = file.location();
        let at = |error: Error| error.detail(location.to_owned());
        let broken =
            |cause: ParquetError| at(failed("a data file cannot be read back")).caused_by(cause);
        self.check_length(file.data_file()).await?;
        self.check_tail(file).await?;
        let footer = self.check_footer(file.data_file()).await?;
        let nulls = file.data_file().null_value_counts();
        if null_counts(&footer).iter().any(|(id, found)| nulls.get(id) != Some(found)) {
            return Err(at(failed("a data file has other nulls than were written")));
        }
        let (lower, upper) = bounds(&footer, &self.target.schema);
        let written = file.data_file();
        if lower != *written.lower_bounds() || upper != *written.upper_bounds() {
            return Err(at(failed("a data file has other extremes than were written")));
        }
        let found = parquet_to_arrow_schema(footer.file_metadata().schema_descr(), None);
        let found = found.map_err(broken)?;
        let columns = schema::table_schema(&self.target.schema)?;
        let by_id = found.fields().iter().map(|field| (field_id(field), field));
        let by_id: HashMap<_, _> = by_id.collect();
        for wanted in schema::arrow_schema(&columns, &self.target.schema).fields() {
            let column = by_id.get(&field_id(wanted));
            if column.is_none_or(|column| check_readable(column, wanted).is_err()) {
                let message = format!("a data file lacks column {:?} as written", wanted.name());
                return Err(at(failed(&message)));
            }
        }
        Ok(())
    }

    /// What follows the rows is what was made: readers skip rows by page indexes, too.
    async fn check_tail(&self, file: &StagedFile) -> Result<()> {
        let Some(Tail { from, hash }) = file.tail() else { return Ok(()) };
        let stored = self.store.read_range(file.location(), from..file.size_bytes()).await?;
        if digest::bytes(&stored) == hash {
            return Ok(());
        }
        let message = "a data file ends with other bytes than were written";
        Err(failed(message).detail(file.location().to_owned()))
    }
}

/// What manifests written anew hold of the state before.
#[derive(Default)]
struct Rewritten {
    stays: HashSet<String>,
    gone: HashSet<String>,
}

/// A file that was written and cannot be read: the store may only be away.
fn unread(error: Error) -> Error {
    if error.retryable() {
        return error;
    }
    failed("the snapshot's own metadata cannot be read back").caused_by(error)
}

pub(super) fn failed(what: &str) -> Error {
    Error::new(ErrorCode::LakeAuditFailed, format!("the audit before publishing failed: {what}"))
        .hint("nothing was published; run again, and look at the store if it happens again")
}
