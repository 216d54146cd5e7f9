//! Every file that a table reaches: by its states, whatever names them, by their statistics, and by the
//! metadata files of its log.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{Manifest, Snapshot, TableMetadata};
use object_store::path::Path;
use polder_core::{Error, ErrorCode, Result};

use crate::catalog::{TableState, parse_metadata};
use crate::commit::{expired_from, read_list};
use crate::error;
use crate::storage::Store;

/// Files read at the same time.
const READS_MAX: usize = 16;

/// The files that a table reaches.
///
/// Of the log's metadata files, those of states since `since_ms` (milliseconds since the epoch) count
/// with all they name, as somebody may have opened the table by them; of older ones only the files
/// themselves: what they name besides has been expired.
///
/// # Errors
/// If any of them cannot be read, or a location cannot be understood: then nothing is known.
pub(super) async fn reached(
    store: &Store,
    state: &TableState,
    since_ms: i64,
) -> Result<HashSet<Path>> {
    let metadata = &state.metadata;
    let own = store.of_table(metadata.location());
    let mut reach = Reach { store, own: &own, files: HashSet::new(), manifests: HashSet::new() };
    reach.add(&state.metadata_location)?;
    let log = metadata.metadata_log().iter();
    let recent: Vec<String> = log
        .clone()
        .filter(|entry| entry.timestamp_ms >= since_ms)
        .map(|entry| entry.metadata_file.clone())
        .collect();
    let earlier = log.map(|entry| entry.metadata_file.clone());
    for location in earlier.chain(expired_from(metadata)) {
        reach.add(&location)?;
    }
    let mut snapshots: HashMap<i64, (Snapshot, bool)> = HashMap::new();
    for location in recent {
        let past = match own.read(&location).await {
            Ok(bytes) => parse_metadata(&bytes, &location)?,
            Err(error) if error.code() == ErrorCode::LakeNotFound => continue,
            Err(error) => return Err(error),
        };
        let named = past.snapshots().map(|found| (found.snapshot_id(), ((**found).clone(), false)));
        snapshots.extend(named);
        reach.statistics(&past)?;
    }
    let named = metadata.snapshots().map(|found| (found.snapshot_id(), ((**found).clone(), true)));
    snapshots.extend(named);
    reach.statistics(metadata)?;
    for (snapshot, present) in snapshots.into_values() {
        reach.snapshot(&snapshot, present).await?;
    }
    Ok(reach.files)
}

struct Reach<'a> {
    store: &'a Store,
    /// As far as the table's metadata leads.
    own: &'a Store,
    files: HashSet<Path>,
    /// Manifests that were read.
    manifests: HashSet<String>,
}

impl Reach<'_> {
    fn add(&mut self, location: &str) -> Result<()> {
        self.files.insert(self.store.path(location)?);
        Ok(())
    }

    fn statistics(&mut self, metadata: &TableMetadata) -> Result<()> {
        let tables = metadata.statistics_iter().map(|found| &found.statistics_path);
        let partitions = metadata.partition_statistics_iter().map(|found| &found.statistics_path);
        tables.chain(partitions).try_for_each(|location| self.add(location))
    }

    /// `present`: the table has it, and it has to be whole.
    async fn snapshot(&mut self, snapshot: &Snapshot, present: bool) -> Result<()> {
        let gone = |error: &Error| !present && error.code() == ErrorCode::LakeNotFound;
        let list = match read_list(self.own, snapshot).await {
            Err(error) if gone(&error) => return Ok(()),
            list => list?,
        };
        self.add(snapshot.manifest_list())?;
        let mut new: Vec<String> =
            list.into_iter().map(|manifest| manifest.manifest_path).collect();
        new.retain(|path| self.manifests.insert(path.clone()));
        for path in &new {
            self.add(path)?;
        }
        let store = self.own;
        let live = futures::stream::iter(new)
            .map(|path| live_files(store, path))
            .buffer_unordered(READS_MAX)
            .map(|found| match found {
                Err(error) if gone(&error) => Ok(Vec::new()),
                found => found,
            });
        let live: Vec<Vec<String>> = live.try_collect().await?;
        live.iter().flatten().try_for_each(|file| self.add(file))
    }
}

async fn live_files(store: &Store, manifest: String) -> Result<Vec<String>> {
    let loaded = Manifest::parse_avro(&store.read(&manifest).await?);
    let loaded = loaded.map_err(|cause| error::iceberg("read a manifest", cause))?;
    let live = loaded.entries().iter().filter(|entry| entry.is_alive());
    Ok(live.map(|entry| entry.file_path().to_owned()).collect())
}
