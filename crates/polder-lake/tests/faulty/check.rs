//! What must be true of every table at every time, read from its files and not by the lake: all that
//! any retained state reaches is there, whole, and counted as it is.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use iceberg::spec::{
    DataContentType, FormatVersion, Manifest, ManifestContentType, ManifestFile, ManifestList,
    ManifestStatus, Snapshot, TableMetadata,
};
use object_store::ObjectStoreExt;
use parquet::file::metadata::ParquetMetaDataReader;
use polder_lake::{Lake, LakeTable};

/// What was found.
pub(crate) struct Checked {
    /// Every file that the table reaches.
    pub(crate) files: BTreeSet<String>,
    /// Delete files in the present state.
    pub(crate) delete_files: usize,
    pub(crate) metadata: TableMetadata,
}

/// Checks all of a table.
///
/// # Panics
/// If something is not as the specification says, with what it is.
pub(crate) async fn check(lake: &Lake, table: &LakeTable) -> Checked {
    let location = table.metadata_location().to_owned();
    let mut check = Check { lake, files: BTreeSet::new(), sizes: HashMap::new() };
    let json = check.read(&location).await;
    let metadata: TableMetadata = serde_json::from_slice(&json).expect("metadata");
    for entry in metadata.metadata_log() {
        check.read(&entry.metadata_file).await;
    }
    // By these an expiry that was cut off is ended.
    let from = metadata.properties().get("polder.expired-from").map_or("[]", String::as_str);
    check.files.extend(serde_json::from_str::<Vec<String>>(from).expect("a list"));
    check_history(&metadata, &serde_json::from_slice(&json).expect("JSON"));
    let mut delete_files = 0;
    for snapshot in metadata.snapshots() {
        let totals = check.snapshot(snapshot, &metadata).await;
        if metadata.current_snapshot_id() == Some(snapshot.snapshot_id()) {
            delete_files = totals.delete_files;
        }
    }
    for statistics in metadata.statistics_iter() {
        check.sized(&statistics.statistics_path, statistics.file_size_in_bytes as u64).await;
    }
    for statistics in metadata.partition_statistics_iter() {
        check.sized(&statistics.statistics_path, statistics.file_size_in_bytes as u64).await;
    }
    Checked { files: check.files, delete_files, metadata }
}

/// References lead to snapshots, and numbers and times only grow.
fn check_history(metadata: &TableMetadata, json: &serde_json::Value) {
    let refs = json["refs"].as_object().cloned().unwrap_or_default();
    for (name, found) in &refs {
        let id = found["snapshot-id"].as_i64().expect("id");
        assert!(metadata.snapshot_by_id(id).is_some(), "{name} leads to no snapshot");
    }
    let main = refs.get("main").and_then(|main| main["snapshot-id"].as_i64());
    assert_eq!(main, metadata.current_snapshot_id(), "main is the present state");
    let mut numbers = HashSet::new();
    for snapshot in metadata.snapshots() {
        let number = snapshot.sequence_number();
        assert!(numbers.insert(number), "two snapshots have the number {number}");
        assert!(number <= metadata.last_sequence_number());
        let parent = snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        if let Some(parent) = parent {
            assert!(parent.sequence_number() < number, "a parent comes before its child");
            assert!(parent.timestamp_ms() <= snapshot.timestamp_ms());
        }
        assert!(snapshot.schema(metadata).is_ok(), "its schema is there");
    }
    let log = metadata.history();
    assert!(log.is_sorted_by_key(|entry| entry.timestamp_ms), "the history goes forward");
    assert_eq!(log.last().map(|entry| entry.snapshot_id), metadata.current_snapshot_id());
}

/// What a state holds.
#[derive(Debug, Default)]
struct Totals {
    data_files: usize,
    records: u64,
    delete_files: usize,
    position_deletes: u64,
    bytes: u64,
}

struct Check<'a> {
    lake: &'a Lake,
    files: BTreeSet<String>,
    /// The size of each file that was read, and the rows of those with rows.
    sizes: HashMap<String, (u64, Option<u64>)>,
}

impl Check<'_> {
    async fn read(&mut self, location: &str) -> Bytes {
        let path = self.lake.object_path(location).expect("a path of the store");
        let found = self.lake.object_store().get(&path).await;
        let found = found.unwrap_or_else(|error| panic!("{location} is reached: {error}"));
        // Java's local paths have one slash.
        let java = location.strip_prefix("file:/").filter(|path| !path.starts_with('/'));
        self.files
            .insert(java.map_or_else(|| location.to_owned(), |path| format!("file:///{path}")));
        found.bytes().await.expect("bytes")
    }

    async fn sized(&mut self, location: &str, bytes: u64) {
        assert_eq!(self.read(location).await.len() as u64, bytes, "{location} has its length");
    }

    async fn snapshot(&mut self, snapshot: &Snapshot, metadata: &TableMetadata) -> Totals {
        let bytes = self.read(snapshot.manifest_list()).await;
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2).expect("a list");
        let (mut totals, mut live) = (Totals::default(), HashSet::new());
        let manifests: Vec<ManifestFile> = list.consume_entries().into_iter().collect();
        for manifest in manifests {
            assert!(manifest.sequence_number <= snapshot.sequence_number());
            let spec = metadata.partition_spec_by_id(manifest.partition_spec_id);
            assert!(spec.is_some(), "its partition spec is there");
            self.manifest(&manifest, &mut totals, &mut live).await;
        }
        let summary = &snapshot.summary().additional_properties;
        let counted = [
            ("total-data-files", totals.data_files as u64),
            ("total-records", totals.records),
            ("total-delete-files", totals.delete_files as u64),
            ("total-position-deletes", totals.position_deletes),
            ("total-files-size", totals.bytes),
        ];
        for (key, counted) in counted {
            let said = summary.get(key).map(|text| text.parse::<u64>().expect("a number"));
            assert!(said.is_none_or(|said| said == counted), "{key}: {said:?}, is {counted}");
        }
        totals
    }

    async fn manifest(
        &mut self,
        manifest: &ManifestFile,
        totals: &mut Totals,
        live: &mut HashSet<String>,
    ) {
        let bytes = self.read(&manifest.manifest_path).await;
        assert_eq!(bytes.len() as i64, manifest.manifest_length, "a manifest has its length");
        let loaded = Manifest::parse_avro(&bytes).expect("a manifest");
        let entries = loaded.entries();
        let count = |status| {
            let found = entries.iter().filter(|entry| entry.status() == status);
            Some(u32::try_from(found.count()).expect("few"))
        };
        assert_eq!(manifest.added_files_count, count(ManifestStatus::Added));
        assert_eq!(manifest.existing_files_count, count(ManifestStatus::Existing));
        assert_eq!(manifest.deleted_files_count, count(ManifestStatus::Deleted));
        for entry in entries.iter().filter(|entry| entry.is_alive()) {
            let file = entry.data_file();
            let path = file.file_path();
            assert!(live.insert(path.to_owned()), "{path} is listed twice");
            let added = entry.status() == ManifestStatus::Added;
            assert!(added || entry.sequence_number().is_some(), "{path} has its number");
            let said = (file.file_size_in_bytes(), Some(file.record_count()));
            assert_eq!(self.rows(path).await, said, "{path} is as its entry says");
            totals.bytes += file.file_size_in_bytes();
            let of_data = manifest.content == ManifestContentType::Data;
            assert_eq!(of_data, file.content_type() == DataContentType::Data);
            if of_data {
                totals.data_files += 1;
                totals.records += file.record_count();
            } else {
                totals.delete_files += 1;
                totals.position_deletes += file.record_count();
            }
        }
    }

    /// A Parquet file's length and rows, by its own footer.
    async fn rows(&mut self, path: &str) -> (u64, Option<u64>) {
        if let Some(known) = self.sizes.get(path) {
            return *known;
        }
        let bytes = self.read(path).await;
        let size = bytes.len() as u64;
        let footer = ParquetMetaDataReader::new().parse_and_finish(&bytes);
        let rows = footer.unwrap_or_else(|error| panic!("{path} can be read: {error}"));
        let rows = rows.file_metadata().num_rows() as u64;
        self.sizes.insert(path.to_owned(), (size, Some(rows)));
        (size, Some(rows))
    }
}
