//! Making snapshots: manifests, the manifest list, the summary and the updates that publish them.
//!
//! Manifests do not depend on the table's state and are written once per commit; the list is written
//! for every attempt, on top of the state found.

use std::collections::{HashMap, HashSet};

use iceberg::TableUpdate;
use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, ManifestFile, ManifestList, ManifestListWriter,
    ManifestWriterBuilder, Operation, PartitionSpec, Snapshot, SnapshotReference,
    SnapshotRetention, Summary,
};
use polder_core::{Checkpoint, Error, ErrorCode, Result};
use uuid::Uuid;

use crate::catalog::TableState;
use crate::error;
use crate::stage::{Stage, StageKind};
use crate::table::{At, Properties, references, version_number};
use crate::write::StagedFile;

/// Data files per manifest, which readers load as a whole.
const ENTRIES_MAX: usize = 10_000;
/// The longest checkpoint that a snapshot's summary holds, as all summaries are read with the table.
const CHECKPOINT_BYTES_MAX: usize = 8 << 10;

/// The snapshots of one commit's attempts: all have one id, so that at most one can be in a table.
pub(super) struct Snapshots<'a> {
    stage: &'a Stage,
    files: &'a [StagedFile],
    checkpoint: &'a Checkpoint,
    id: i64,
    /// Distinguishes this commit's metadata files from every other's.
    unique: Uuid,
    manifests: Option<Vec<ManifestFile>>,
    lists: Vec<String>,
}

/// How one attempt publishes.
pub(super) struct Published {
    pub(super) updates: Vec<TableUpdate>,
    pub(super) at: At,
    /// The number of the version a replace makes.
    pub(super) version: Option<u64>,
}

impl<'a> Snapshots<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        files: &'a [StagedFile],
        checkpoint: &'a Checkpoint,
    ) -> Self {
        // Positive, as other implementations choose them, and random: see the spec, *Snapshots*.
        let id = (rand::random::<u64>() >> 1).max(1) as i64;
        let unique = Uuid::new_v4();
        Self { stage, files, checkpoint, id, unique, manifests: None, lists: Vec::new() }
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The metadata files written so far.
    pub(super) fn written(&self) -> Vec<String> {
        let manifests = self.manifests.iter().flatten();
        let manifests = manifests.map(|manifest| manifest.manifest_path.clone());
        manifests.chain(self.lists.iter().cloned()).collect()
    }

    pub(super) async fn publish(&mut self, present: Option<&TableState>) -> Result<Published> {
        if let Some(present) = present
            && present.metadata.format_version() != FormatVersion::V2
        {
            return Err(Error::new(ErrorCode::LakeFailed, "only tables of format version 2")
                .hint("another engine upgraded the table; reload it into a new one"));
        }
        let parent = present.and_then(|present| present.metadata.current_snapshot());
        let mut manifests = self.new_manifests().await?;
        if let (StageKind::Append, Some(parent)) = (self.stage.request.kind, parent) {
            manifests.extend(self.live_manifests(parent).await?);
        }
        let sequence_number = present.map_or(1, |present| present.metadata.next_sequence_number());
        let parent_id = parent.map(|parent| parent.snapshot_id());
        let list = self.write_list(manifests, parent_id, sequence_number).await?;
        let last_ms = present.map_or(0, |present| present.metadata.last_updated_ms());
        let snapshot = Snapshot::builder()
            .with_snapshot_id(self.id)
            .with_parent_snapshot_id(parent_id)
            .with_sequence_number(sequence_number)
            // Never before the last change: readers and the library refuse clocks that go back.
            .with_timestamp_ms(chrono::Utc::now().timestamp_millis().max(last_ms))
            .with_manifest_list(list)
            .with_summary(self.summary(present))
            .with_schema_id(self.stage.target.schema.schema_id())
            .build();
        self.refer(present, snapshot)
    }

    /// The updates that add the snapshot, move `main` to it, and tag a version.
    fn refer(&self, present: Option<&TableState>, snapshot: Snapshot) -> Result<Published> {
        let refs = match present {
            Some(present) => references(&present.metadata)?,
            None => std::collections::BTreeMap::new(),
        };
        // The branch keeps its retention.
        let at = At::of(&snapshot);
        let main = refs.get(MAIN_BRANCH).map_or_else(
            || SnapshotRetention::branch(None, None, None),
            |main| main.retention.clone(),
        );
        let point = |name: &str, retention| TableUpdate::SetSnapshotRef {
            ref_name: name.to_owned(),
            reference: SnapshotReference::new(self.id, retention),
        };
        let mut updates = vec![TableUpdate::AddSnapshot { snapshot }, point(MAIN_BRANCH, main)];
        let version = (self.stage.request.kind == StageKind::Replace).then(|| {
            let last = present.map_or(0, |p| Properties(p.metadata.properties()).version());
            // Somebody may have set such a tag by hand.
            let tagged = refs.keys().filter_map(|name| version_number(name)).max();
            last.max(tagged.unwrap_or(0)) + 1
        });
        if let Some(version) = version {
            let tag = SnapshotRetention::Tag { max_ref_age_ms: None };
            updates.push(point(&format!("v{version}"), tag));
        }
        Ok(Published { updates, at, version })
    }

    async fn new_manifests(&mut self) -> Result<Vec<ManifestFile>> {
        if let Some(manifests) = &self.manifests {
            return Ok(manifests.clone());
        }
        let failed = |cause| error::iceberg("write a manifest", cause);
        let target = &self.stage.target;
        let file_io = self.stage.lake.store().file_io();
        let mut manifests = Vec::new();
        for (number, files) in self.files.chunks(ENTRIES_MAX).enumerate() {
            let path = format!("{}/metadata/{}-m{number}.avro", target.location, self.unique);
            let output = file_io.new_output(path).map_err(failed)?;
            let spec = PartitionSpec::clone(&target.spec);
            let mut writer =
                ManifestWriterBuilder::new(output, Some(self.id), target.schema.clone(), spec)
                    .build_v2_data();
            for file in files {
                // Below zero: the sequence number is inherited from the commit that lands.
                writer.add_file(file.data_file().clone(), -1).map_err(failed)?;
            }
            manifests.push(writer.write_manifest_file().await.map_err(failed)?);
        }
        self.manifests = Some(manifests.clone());
        Ok(manifests)
    }

    /// The parent's manifests that still list live files.
    async fn live_manifests(&self, parent: &Snapshot) -> Result<Vec<ManifestFile>> {
        let bytes = self.stage.lake.store().read(parent.manifest_list()).await?;
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2)
            .map_err(|cause| error::iceberg("read a manifest list", cause))?;
        let live =
            |manifest: &ManifestFile| manifest.has_added_files() || manifest.has_existing_files();
        Ok(list.consume_entries().into_iter().filter(live).collect())
    }

    async fn write_list(
        &mut self,
        manifests: Vec<ManifestFile>,
        parent: Option<i64>,
        sequence_number: i64,
    ) -> Result<String> {
        let failed = |cause| error::iceberg("write a manifest list", cause);
        let (location, attempt) = (&self.stage.target.location, self.lists.len());
        let path = format!("{location}/metadata/snap-{}-{attempt}-{}.avro", self.id, self.unique);
        let output = self.stage.lake.store().file_io().new_output(&path).map_err(failed)?;
        self.lists.push(path.clone());
        let writer = output.writer().await.map_err(failed)?;
        let mut list = ManifestListWriter::v2(writer, self.id, parent, sequence_number);
        list.add_manifests(manifests.into_iter()).map_err(failed)?;
        list.close().await.map_err(failed)?;
        Ok(path)
    }

    /// What only Polder reads: where a rollback to this snapshot leads.
    fn own_fields(&self, present: Option<&TableState>) -> Vec<(String, String)> {
        let request = &self.stage.request;
        let empty = HashMap::new();
        let properties = Properties(present.map_or(&empty, |p| p.metadata.properties()));
        let marked_by = properties.marked_by(request.run_id, &request.schema);
        let mut fields = vec![
            (Properties::RUN_ID.to_owned(), request.run_id.to_string()),
            (Properties::SPEC_ID.to_owned(), self.stage.target.spec.spec_id().to_string()),
            (Properties::MARKED_BY.to_owned(), marked_by.to_string()),
        ];
        let checkpoint = self.checkpoint.to_json();
        if checkpoint.len() <= CHECKPOINT_BYTES_MAX {
            fields.push((Properties::CHECKPOINT.to_owned(), checkpoint));
        }
        fields
    }

    /// What changed and what there is now (spec, *Optional Snapshot Summary Fields*).
    fn summary(&self, present: Option<&TableState>) -> Summary {
        let parent = present.and_then(|p| p.metadata.current_snapshot()).map(|parent| &**parent);
        let replaces = self.stage.request.kind == StageKind::Replace;
        let mut fields = HashMap::new();
        let mut set = |key: &str, value: u64| fields.insert(key.to_owned(), value.to_string());
        let sum = |of: fn(&StagedFile) -> u64| self.files.iter().map(of).sum::<u64>();
        let counts = [
            ("data-files", sum(|_| 1)),
            ("records", sum(StagedFile::rows)),
            ("files-size", sum(StagedFile::size_bytes)),
        ];
        for (key, added) in counts {
            set(&format!("added-{key}"), added);
            let before = before(parent, &format!("total-{key}"));
            if let Some(removed) = before.filter(|removed| replaces && *removed > 0) {
                let verb = if key == "files-size" { "removed" } else { "deleted" };
                set(&format!("{verb}-{key}"), removed);
            }
            // Where another engine gave no total, no total can be given.
            if let Some(kept) = if replaces { Some(0) } else { before } {
                set(&format!("total-{key}"), kept + added);
            }
        }
        for key in ["delete-files", "position-deletes", "equality-deletes"] {
            let before = before(parent, &format!("total-{key}"));
            if let Some(removed) = before.filter(|removed| replaces && *removed > 0) {
                set(&format!("removed-{key}"), removed);
            }
            if let Some(kept) = if replaces { Some(0) } else { before } {
                set(&format!("total-{key}"), kept);
            }
        }
        let partitions: HashSet<_> = self.files.iter().map(|f| f.data_file().partition()).collect();
        set("changed-partition-count", partitions.len() as u64);
        fields.extend(self.own_fields(present));
        let overwrites = replaces && parent.is_some();
        let operation = if overwrites { Operation::Overwrite } else { Operation::Append };
        Summary { operation, additional_properties: fields }
    }
}

/// A total of the state before; zero where there was none.
fn before(parent: Option<&Snapshot>, key: &str) -> Option<u64> {
    let Some(parent) = parent else { return Some(0) };
    parent.summary().additional_properties.get(key)?.parse().ok()
}
