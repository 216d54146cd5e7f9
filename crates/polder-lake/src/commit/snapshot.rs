//! Making snapshots: manifests, the manifest list and the summary.
//!
//! What does not depend on the table's state (manifests of new files) is written once per commit; the
//! list is written for every attempt, on top of the state found, and so are the manifests that lose
//! files, once for each that is found.

use std::collections::{HashMap, HashSet};

use futures::FutureExt;
use futures::future::join_all;
use iceberg::spec::{
    DataContentType, DataFile, Datum, FormatVersion, Manifest, ManifestContentType, ManifestEntry,
    ManifestEntryRef, ManifestFile, ManifestList, ManifestListWriter, ManifestWriter,
    ManifestWriterBuilder, Operation, PartitionSpec, PartitionSpecRef, PrimitiveLiteral, SchemaRef,
    Snapshot, SnapshotRef, Struct, Summary,
};
use polder_core::{Error, ErrorCode, Result};
use uuid::Uuid;

use crate::catalog::TableState;
use crate::error;
use crate::storage::Store;
use crate::write::FILE_PATH_ID;

/// Files per manifest, which readers load as a whole.
const ENTRIES_MAX: usize = 10_000;
/// Manifests of the state before that are read, and written anew, at the same time.
const MANIFESTS_AT_ONCE: usize = 16;

/// What a snapshot makes of its parent's files.
pub(super) struct Change {
    pub(super) operation: Operation,
    pub(super) added: Vec<NewFile>,
    /// Locations of data and delete files that go.
    pub(super) removed: HashSet<String>,
    /// Whether the parent's other files stay.
    pub(super) keeps: bool,
    /// Whether manifests do not even say of the files removed that they were there: their entries hold
    /// bounds of their rows.
    pub(super) forgets: bool,
    /// What else the summary says.
    pub(super) fields: Vec<(String, String)>,
}

/// A data or delete file that no snapshot has yet.
#[derive(Clone, Debug)]
pub(super) struct NewFile {
    pub(super) file: DataFile,
    pub(super) spec: PartitionSpecRef,
    /// The sequence number that its rows have; `None` for that of the commit.
    pub(super) sequence_number: Option<i64>,
}

/// Writes the snapshots of one commit's attempts: all have one id, so that at most one can be in a
/// table.
pub(super) struct SnapshotWriter {
    store: Store,
    location: String,
    schema: SchemaRef,
    id: i64,
    /// Distinguishes this commit's metadata files from every other's.
    unique: Uuid,
    added: Option<Vec<ManifestFile>>,
    /// What became of manifests that lost files, by their location.
    thinned: HashMap<String, Thinned>,
    written: Vec<String>,
    lists: usize,
}

/// A manifest after files were taken from it.
#[derive(Clone)]
struct Thinned {
    /// `None` if nothing is left in it.
    manifest: Option<ManifestFile>,
    removed: Counts,
    locations: Vec<String>,
    partitions: Vec<(i32, Struct)>,
}

impl SnapshotWriter {
    /// A writer for the table at `location`; the snapshots have the schema.
    pub(super) fn new(store: &Store, location: &str, schema: &SchemaRef) -> Self {
        Self {
            store: store.of_table(location),
            location: location.to_owned(),
            schema: schema.clone(),
            // Positive, as other implementations choose them, and random: see the spec, *Snapshots*.
            id: (rand::random::<u64>() >> 1).max(1) as i64,
            unique: Uuid::new_v4(),
            added: None,
            thinned: HashMap::new(),
            written: Vec::new(),
            lists: 0,
        }
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The metadata files written so far.
    pub(super) fn written(&self) -> Vec<String> {
        self.written.clone()
    }

    /// Of the metadata files written, those that the table does not have: of other attempts than the
    /// one that landed, or of all if it was another call that landed (`already`). None may land any
    /// more: their snapshot's id and number are taken. Where it cannot be learnt which are in use, none.
    pub(super) async fn superseded(&self, landed: &TableState, already: bool) -> Vec<String> {
        let own = landed.metadata.snapshot_by_id(self.id);
        if own.is_none() && already {
            return self.written();
        }
        // Of one that landed and has expired since, any later snapshot may have the manifests.
        let users: Vec<&SnapshotRef> =
            own.map_or_else(|| landed.metadata.snapshots().collect(), |own| vec![own]);
        let mut used = HashSet::new();
        for snapshot in users {
            let Ok(manifests) = read_list(&self.store, snapshot).await else { return Vec::new() };
            used.extend(manifests.into_iter().map(|manifest| manifest.manifest_path));
            used.insert(snapshot.manifest_list().to_owned());
        }
        self.written.iter().filter(|path| !used.contains(*path)).cloned().collect()
    }

    /// Makes the snapshot that follows on `main` as it is at present. The change has to be the same
    /// in every call.
    ///
    /// # Errors
    /// `lake.conflict` if a file to be removed is not there any more.
    pub(super) async fn write(
        &mut self,
        present: Option<&TableState>,
        change: &Change,
    ) -> Result<Snapshot> {
        check_format(present)?;
        let parent = present.and_then(|present| present.metadata.current_snapshot());
        let mut tally = Tally::of(&change.added);
        let mut manifests = self.added_manifests(&change.added).await?;
        if let (true, Some(parent)) = (change.keeps, parent) {
            manifests.extend(self.kept_manifests(parent, change, &mut tally).await?);
        }
        self.finish(present, manifests, change, &tally).await
    }

    /// Makes the snapshot that follows on `main` with the same files: each group of its manifests in
    /// one. Those of a group are of one kind, spec and schema.
    pub(super) async fn write_merged(
        &mut self,
        present: &TableState,
        groups: Vec<Vec<ManifestFile>>,
        change: &Change,
    ) -> Result<Snapshot> {
        check_format(Some(present))?;
        let Some(parent) = present.metadata.current_snapshot() else {
            return Err(Error::new(ErrorCode::LakeConflict, "the table has no state any more"));
        };
        let mut manifests = read_list(&self.store, parent).await?;
        let merged: HashSet<&str> =
            groups.iter().flatten().map(|manifest| manifest.manifest_path.as_str()).collect();
        manifests.retain(|found| is_live(found) && !merged.contains(found.manifest_path.as_str()));
        drop(merged);
        for group in groups {
            manifests.push(self.merge(&group).await?);
        }
        self.finish(Some(present), manifests, change, &Tally::of(&[])).await
    }

    async fn merge(&mut self, group: &[ManifestFile]) -> Result<ManifestFile> {
        let failed = |cause| error::iceberg("merge manifests", cause);
        let file_io = self.store.file_io();
        let mut merged: Option<ManifestWriter> = None;
        for manifest in group {
            let loaded = manifest.load_manifest(&file_io).await.map_err(failed)?;
            let (entries, own) = loaded.into_parts();
            let mut writer = if let Some(writer) = merged.take() {
                writer
            } else {
                let spec = PartitionSpec::clone(own.partition_spec());
                self.manifest_writer(manifest.content, own.schema().clone(), spec)?
            };
            for entry in entries.iter().filter(|entry| entry.is_alive()) {
                keep(&mut writer, entry)?;
            }
            merged = Some(writer);
        }
        let writer =
            merged.ok_or_else(|| Error::new(ErrorCode::Internal, "no manifests to merge"))?;
        writer.write_manifest_file().await.map_err(failed)
    }

    async fn finish(
        &mut self,
        present: Option<&TableState>,
        manifests: Vec<ManifestFile>,
        change: &Change,
        tally: &Tally,
    ) -> Result<Snapshot> {
        let parent = present.and_then(|present| present.metadata.current_snapshot());
        let sequence_number = present.map_or(1, |present| present.metadata.next_sequence_number());
        let parent_id = parent.map(|parent| parent.snapshot_id());
        let list = self.write_list(manifests, parent_id, sequence_number).await?;
        let last_ms = present.map_or(0, |present| present.metadata.last_updated_ms());
        let summary = summary(change, tally, parent.map(|parent| &**parent));
        Ok(Snapshot::builder()
            .with_snapshot_id(self.id)
            .with_parent_snapshot_id(parent_id)
            .with_sequence_number(sequence_number)
            // Never before the last change: readers and the library refuse clocks that go back.
            .with_timestamp_ms(chrono::Utc::now().timestamp_millis().max(last_ms))
            .with_manifest_list(list)
            .with_summary(summary)
            .with_schema_id(self.schema.schema_id())
            .build())
    }

    async fn added_manifests(&mut self, added: &[NewFile]) -> Result<Vec<ManifestFile>> {
        if let Some(manifests) = &self.added {
            return Ok(manifests.clone());
        }
        let mut groups: Vec<(ManifestContentType, &PartitionSpecRef, Vec<&NewFile>)> = Vec::new();
        for new in added {
            let content = content(&new.file);
            let own = |group: &&mut (ManifestContentType, &PartitionSpecRef, Vec<&NewFile>)| {
                group.0 == content && group.1.spec_id() == new.spec.spec_id()
            };
            match groups.iter_mut().find(own) {
                Some(group) => group.2.push(new),
                None => groups.push((content, &new.spec, vec![new])),
            }
        }
        let failed = |cause| error::iceberg("write a manifest", cause);
        let mut manifests = Vec::new();
        for (content, spec, files) in groups {
            for files in files.chunks(ENTRIES_MAX) {
                let schema = self.schema.clone();
                let mut writer =
                    self.manifest_writer(content, schema, PartitionSpec::clone(spec))?;
                for new in files {
                    // Below zero: inherited from the commit that lands.
                    let sequence_number = new.sequence_number.unwrap_or(-1);
                    writer.add_file(new.file.clone(), sequence_number).map_err(failed)?;
                }
                manifests.push(writer.write_manifest_file().await.map_err(failed)?);
            }
        }
        self.added = Some(manifests.clone());
        Ok(manifests)
    }

    fn manifest_writer(
        &mut self,
        content: ManifestContentType,
        schema: SchemaRef,
        spec: PartitionSpec,
    ) -> Result<ManifestWriter> {
        let failed = |cause| error::iceberg("write a manifest", cause);
        let number = self.written.len();
        let path = format!("{}/metadata/{}-m{number}.avro", self.location, self.unique);
        let output = self.store.file_io().new_output(&path).map_err(failed)?;
        self.written.push(path);
        let builder = ManifestWriterBuilder::new(output, Some(self.id), schema, spec);
        Ok(match content {
            ManifestContentType::Data => builder.build_v2_data(),
            ManifestContentType::Deletes => builder.build_v2_deletes(),
        })
    }

    /// The parent's manifests that list live files, without those that are removed.
    async fn kept_manifests(
        &mut self,
        parent: &Snapshot,
        change: &Change,
        tally: &mut Tally,
    ) -> Result<Vec<ManifestFile>> {
        let removed = &change.removed;
        let manifests = read_list(&self.store, parent).await?;
        let manifests: Vec<_> = manifests.into_iter().filter(is_live).collect();
        if removed.is_empty() {
            return Ok(manifests);
        }
        let thinned = self.thin(&manifests, change).await?;
        let (mut found, mut kept) = (0, Vec::with_capacity(manifests.len()));
        for (manifest, thinned) in manifests.into_iter().zip(thinned) {
            let Some(thinned) = thinned else {
                kept.push(manifest);
                continue;
            };
            found += thinned.locations.iter().filter(|path| removed.contains(*path)).count();
            tally.removed.add(&thinned.removed);
            tally.partitions.extend(thinned.partitions);
            kept.extend(thinned.manifest);
        }
        if found < removed.len() {
            return Err(Error::new(ErrorCode::LakeConflict, "files to be replaced are gone")
                .detail(format!("{} of {} files", removed.len() - found, removed.len()))
                .hint("another commit replaced them first: plan anew"));
        }
        Ok(kept)
    }

    /// The manifests with the files, and the deletes of rows of them alone, marked as deleted; `None` for
    /// those that have none of them. Several are read, and several written, at the same time.
    async fn thin(
        &mut self,
        manifests: &[ManifestFile],
        change: &Change,
    ) -> Result<Vec<Option<Thinned>>> {
        let mut all = Vec::with_capacity(manifests.len());
        for some in manifests.chunks(MANIFESTS_AT_ONCE) {
            let new = some.iter().filter(|found| !self.thinned.contains_key(&found.manifest_path));
            let new: Vec<&ManifestFile> = new.collect();
            let store = self.store.clone();
            let reads = new.iter().copied().map(|new| concerned(&store, new, change).boxed());
            let read = join_all(reads.collect::<Vec<_>>()).await;
            let mut thinning = Vec::new();
            for (manifest, read) in new.into_iter().zip(read) {
                let Some(loaded) = read? else { continue };
                let own = loaded.metadata();
                let alive = |entry: &&ManifestEntryRef| entry.is_alive();
                let mut living = loaded.entries().iter().filter(alive);
                let empty = living.all(|entry| change.takes(entry.data_file()));
                let writer = if change.forgets && empty {
                    None
                } else {
                    let spec = PartitionSpec::clone(own.partition_spec());
                    Some(self.manifest_writer(manifest.content, own.schema().clone(), spec)?)
                };
                thinning.push(thinned(manifest, loaded, writer, change).boxed());
            }
            // All are waited for: one that is still being written could not be removed.
            for done in join_all(thinning).await {
                let (path, thinned) = done?;
                self.thinned.insert(path, thinned);
            }
            all.extend(some.iter().map(|found| self.thinned.get(&found.manifest_path).cloned()));
        }
        Ok(all)
    }

    async fn write_list(
        &mut self,
        manifests: Vec<ManifestFile>,
        parent: Option<i64>,
        sequence_number: i64,
    ) -> Result<String> {
        let failed = |cause| error::iceberg("write a manifest list", cause);
        let (location, attempt) = (&self.location, self.lists);
        let path = format!("{location}/metadata/snap-{}-{attempt}-{}.avro", self.id, self.unique);
        let output = self.store.file_io().new_output(&path).map_err(failed)?;
        self.written.push(path.clone());
        self.lists += 1;
        let writer = output.writer().await.map_err(failed)?;
        let mut list = ManifestListWriter::v2(writer, self.id, parent, sequence_number);
        list.add_manifests(manifests.into_iter()).map_err(failed)?;
        list.close().await.map_err(failed)?;
        Ok(path)
    }
}

impl Change {
    /// Whether a file goes: one to be removed, or deletes of its rows alone.
    fn takes(&self, file: &DataFile) -> bool {
        self.removed.contains(file.file_path())
            || deletes_of(file).is_some_and(|of| self.removed.contains(&of))
    }
}

/// A manifest that loses files; `None` for one that does not.
async fn concerned(
    store: &Store,
    manifest: &ManifestFile,
    change: &Change,
) -> Result<Option<Manifest>> {
    let loaded = manifest.load_manifest(&store.file_io()).await;
    let loaded = loaded.map_err(|cause| error::iceberg("rewrite a manifest", cause))?;
    let loses = |entry: &ManifestEntryRef| {
        if entry.is_alive() { change.takes(entry.data_file()) } else { change.forgets }
    };
    let concerned = loaded.entries().iter().any(loses);
    Ok(concerned.then_some(loaded))
}

/// Writes a manifest without the files that go, or with these marked as deleted; its address before.
async fn thinned(
    manifest: &ManifestFile,
    loaded: Manifest,
    mut writer: Option<ManifestWriter>,
    change: &Change,
) -> Result<(String, Thinned)> {
    let failed = |cause| error::iceberg("rewrite a manifest", cause);
    let (entries, own) = loaded.into_parts();
    let spec_id = own.partition_spec().spec_id();
    let (mut removed, mut partitions, mut locations) = (Counts::default(), vec![], vec![]);
    for entry in entries.iter().filter(|entry| entry.is_alive()) {
        if change.takes(entry.data_file()) {
            let number = entry.sequence_number().ok_or_else(unnumbered)?;
            let (file_number, file) = (entry.file_sequence_number, entry.data_file().clone());
            removed.count(&file);
            partitions.push((spec_id, file.partition().clone()));
            locations.push(file.file_path().to_owned());
            if let (Some(writer), false) = (&mut writer, change.forgets) {
                writer.add_delete_file(file, number, file_number).map_err(failed)?;
            }
        } else if let Some(writer) = &mut writer {
            keep(writer, entry)?;
        }
    }
    let now = match writer {
        Some(writer) => Some(writer.write_manifest_file().await.map_err(failed)?),
        None => None,
    };
    let thinned = Thinned { manifest: now, removed, locations, partitions };
    Ok((manifest.manifest_path.clone(), thinned))
}

fn check_format(present: Option<&TableState>) -> Result<()> {
    match present {
        Some(present) if present.metadata.format_version() != FormatVersion::V2 => {
            Err(Error::new(ErrorCode::LakeFailed, "only tables of format version 2")
                .hint("another engine upgraded the table; reload it into a new one"))
        }
        _ => Ok(()),
    }
}

fn unnumbered() -> Error {
    Error::new(ErrorCode::LakeCorrupt, "a file without its numbers")
}

/// Lists a live file as one that was there before.
fn keep(writer: &mut ManifestWriter, entry: &ManifestEntry) -> Result<()> {
    let snapshot = entry.snapshot_id().ok_or_else(unnumbered)?;
    let number = entry.sequence_number().ok_or_else(unnumbered)?;
    let (file, file_number) = (entry.data_file().clone(), entry.file_sequence_number);
    writer
        .add_existing_file(file, snapshot, number, file_number)
        .map_err(|cause| error::iceberg("rewrite a manifest", cause))
}

/// Whether a manifest lists files that are in the table by it.
pub(crate) fn is_live(manifest: &ManifestFile) -> bool {
    manifest.has_added_files() || manifest.has_existing_files()
}

/// The manifests of a snapshot.
pub(crate) async fn read_list(store: &Store, snapshot: &Snapshot) -> Result<Vec<ManifestFile>> {
    let bytes = store.read(snapshot.manifest_list()).await?;
    let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2)
        .map_err(|cause| error::iceberg("read a manifest list", cause))?;
    Ok(list.consume_entries().into_iter().collect())
}

/// The data file that is the only one in which a position delete file deletes rows, if it says so.
pub(crate) fn deletes_of(file: &DataFile) -> Option<String> {
    if file.content_type() != DataContentType::PositionDeletes {
        return None;
    }
    // Bounds that are one value are whole: a lower one that was cut would be below the upper one.
    let one = || path_bounds(file).filter(|(lower, upper)| lower == upper).map(|(path, _)| path);
    file.referenced_data_file().or_else(one)
}

/// The bounds of the data files that a position delete file names.
pub(super) fn path_bounds(deletes: &DataFile) -> Option<(String, String)> {
    let text = |datum: &Datum| match datum.literal() {
        PrimitiveLiteral::String(text) => Some(text.clone()),
        _ => None,
    };
    let lower = deletes.lower_bounds().get(&FILE_PATH_ID).and_then(text)?;
    let upper = deletes.upper_bounds().get(&FILE_PATH_ID).and_then(text)?;
    Some((lower, upper))
}

fn content(file: &DataFile) -> ManifestContentType {
    match file.content_type() {
        DataContentType::Data => ManifestContentType::Data,
        DataContentType::PositionDeletes | DataContentType::EqualityDeletes => {
            ManifestContentType::Deletes
        }
    }
}

/// Files and what is in them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    data_files: u64,
    records: u64,
    bytes: u64,
    delete_files: u64,
    position_deletes: u64,
    equality_deletes: u64,
}

impl Counts {
    fn count(&mut self, file: &DataFile) {
        let records = file.record_count();
        self.bytes += file.file_size_in_bytes();
        match file.content_type() {
            DataContentType::Data => {
                self.data_files += 1;
                self.records += records;
            }
            DataContentType::PositionDeletes => {
                self.delete_files += 1;
                self.position_deletes += records;
            }
            DataContentType::EqualityDeletes => {
                self.delete_files += 1;
                self.equality_deletes += records;
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.data_files += other.data_files;
        self.records += other.records;
        self.bytes += other.bytes;
        self.delete_files += other.delete_files;
        self.position_deletes += other.position_deletes;
        self.equality_deletes += other.equality_deletes;
    }

    /// The kinds as summaries name them: what is counted, the verb for its removal, how many.
    fn kinds(&self) -> [(&'static str, &'static str, u64); 6] {
        [
            ("data-files", "deleted", self.data_files),
            ("records", "deleted", self.records),
            ("files-size", "removed", self.bytes),
            ("delete-files", "removed", self.delete_files),
            ("position-deletes", "removed", self.position_deletes),
            ("equality-deletes", "removed", self.equality_deletes),
        ]
    }
}

/// What a snapshot adds and removes.
struct Tally {
    added: Counts,
    removed: Counts,
    partitions: HashSet<(i32, Struct)>,
}

impl Tally {
    fn of(added: &[NewFile]) -> Self {
        let mut counts = Counts::default();
        for new in added {
            counts.count(&new.file);
        }
        let partition = |new: &NewFile| (new.spec.spec_id(), new.file.partition().clone());
        let partitions = added.iter().map(partition).collect();
        Self { added: counts, removed: Counts::default(), partitions }
    }
}

/// What changed and what there is now (spec, *Optional Snapshot Summary Fields*).
fn summary(change: &Change, tally: &Tally, parent: Option<&Snapshot>) -> Summary {
    let mut fields: HashMap<String, String> = change.fields.iter().cloned().collect();
    let mut set = |key: String, value: u64| fields.insert(key, value.to_string());
    let kinds = tally.added.kinds().into_iter().zip(tally.removed.kinds());
    for ((kind, verb, added), (_, _, removed)) in kinds {
        let before = before(parent, &format!("total-{kind}"));
        // A replace removes everything, unseen.
        let removed = if change.keeps { Some(removed) } else { before };
        if added > 0 || ["data-files", "records", "files-size"].contains(&kind) {
            set(format!("added-{kind}"), added);
        }
        if let Some(removed) = removed.filter(|removed| *removed > 0) {
            set(format!("{verb}-{kind}"), removed);
        }
        // Where another engine gave no total, no total can be given.
        let total = if change.keeps {
            before.zip(removed).map(|(before, removed)| (before + added).saturating_sub(removed))
        } else {
            Some(added)
        };
        if let Some(total) = total {
            set(format!("total-{kind}"), total);
        }
    }
    set("changed-partition-count".to_owned(), tally.partitions.len() as u64);
    Summary { operation: change.operation.clone(), additional_properties: fields }
}

/// A total of the state before; zero where there was none.
fn before(parent: Option<&Snapshot>, key: &str) -> Option<u64> {
    let Some(parent) = parent else { return Some(0) };
    parent.summary().additional_properties.get(key)?.parse().ok()
}
