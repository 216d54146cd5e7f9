//! The live data files of a table, each with the deletes of its rows.
//!
//! A scan's plan gives every file the delete files of its partition; here position deletes are laid to
//! the files they name, so that it is known what a rewrite gains, and which delete files nobody needs.

use std::collections::{HashMap, HashSet};

use arrow::array::AsArray;
use futures::{FutureExt, StreamExt, TryStreamExt};
use iceberg::scan::FileScanTask;
use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, Manifest, ManifestContentType, ManifestFile, Struct,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use polder_core::optimize::FileCost;
use polder_core::spec::{PartitionField, SortField};
use polder_core::{Error, ErrorCode, Result};

use crate::Predicate;
use crate::commit::{deletes_of, is_live, read_list};
use crate::error;
use crate::scan::{BatchStream, ScanRequest};
use crate::schema;
use crate::storage::Store;
use crate::table::LakeTable;

/// Manifests and delete files read at the same time.
const READS_MAX: usize = 16;

/// A live data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveFile {
    /// The file's full address.
    pub path: String,
    pub cost: FileCost,
    /// Equality deletes may apply: how many rows they take is known by reading only.
    pub unsure: bool,
}

/// The files of a table as it is now.
pub struct TableFiles {
    table: LakeTable,
    files: Vec<LiveFile>,
    tasks: HashMap<String, FileScanTask>,
    dead: Vec<String>,
}

impl LakeTable {
    /// The live files of the table as it is now; those that are partitioned otherwise than `partition`
    /// are misplaced, those that are not marked as sorted by `sort` unsorted, if it names any column.
    ///
    /// # Errors
    /// `lake.*` when metadata cannot be read.
    pub async fn files(
        &self,
        partition: &[PartitionField],
        sort: &[SortField],
    ) -> Result<TableFiles> {
        let entries = Entries::of(self).await?;
        let metadata = self.metadata();
        let schema = metadata.current_schema();
        let other: HashSet<i32> = metadata
            .partition_specs_iter()
            .filter(|spec| schema::fields_of_spec(spec, schema) != partition)
            .map(|spec| spec.spec_id())
            .collect();
        let orders: HashSet<i32> = metadata
            .sort_orders_iter()
            .filter(|order| schema::sort_fields(order, schema).is_some_and(|own| own == sort))
            .filter_map(|order| i32::try_from(order.order_id).ok())
            .collect();
        let sorted = |file: &DataFile| file.sort_order_id().is_some_and(|id| orders.contains(&id));
        let deletes = entries.deletes(self.store()).await?;
        let mut numbers: HashMap<(i32, &Struct), usize> = HashMap::new();
        let mut files = Vec::with_capacity(entries.data.len());
        for entry in &entries.data {
            let next = numbers.len();
            let partition = *numbers.entry(entry.place()).or_insert(next);
            let found = deletes.of.get(entry.file.file_path()).copied().unwrap_or_default();
            files.push(LiveFile {
                path: entry.file.file_path().to_owned(),
                cost: FileCost {
                    partition,
                    misplaced: other.contains(&entry.spec_id),
                    unsorted: !sort.is_empty() && !sorted(&entry.file),
                    size_bytes: entry.file.file_size_in_bytes(),
                    rows: entry.file.record_count(),
                    deleted_rows: found.rows,
                    delete_files: found.files,
                },
                unsure: found.unsure,
            });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let tasks = self.tasks(&scan).await?.into_iter();
        let tasks = tasks.map(|task| (task.data_file_path.clone(), task)).collect();
        Ok(TableFiles { table: self.clone(), files, tasks, dead: deletes.dead })
    }
}

impl TableFiles {
    /// In order of their addresses.
    pub fn files(&self) -> &[LiveFile] {
        &self.files
    }

    pub fn table(&self) -> &LakeTable {
        &self.table
    }

    /// Delete files that delete nothing any more.
    pub fn dead_deletes(&self) -> &[String] {
        &self.dead
    }

    /// The rows of some of the files, by their places in [`Self::files`], that are not deleted and
    /// that the filter wants.
    ///
    /// # Errors
    /// As [`LakeTable::read`].
    pub fn read(&self, files: &[usize], filter: Predicate) -> Result<BatchStream> {
        let gone = || Error::new(ErrorCode::Internal, "a live file is not in the scan's plan");
        let tasks = files.iter().map(|at| {
            let file = self.files.get(*at).ok_or_else(gone)?;
            self.tasks.get(&file.path).cloned().ok_or_else(gone)
        });
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        self.table.read_tasks(ScanRequest { snapshot: None, filter, columns: None }, tasks)
    }
}

/// A live file of a manifest.
struct Entry {
    file: DataFile,
    spec_id: i32,
    /// The spec has no fields: equality deletes of it are of the whole table.
    unpartitioned: bool,
    sequence_number: i64,
}

impl Entry {
    fn place(&self) -> (i32, &Struct) {
        (self.spec_id, self.file.partition())
    }

    /// What [`positions`] says of a file of position deletes; nothing of others.
    async fn positions(&self, store: &Store) -> Result<Option<HashMap<String, u64>>> {
        match self.file.content_type() {
            DataContentType::PositionDeletes => positions(store, &self.file).await,
            DataContentType::Data | DataContentType::EqualityDeletes => Ok(None),
        }
    }
}

struct Entries {
    data: Vec<Entry>,
    deletes: Vec<Entry>,
}

/// The deletes of one data file's rows.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    rows: u64,
    files: usize,
    unsure: bool,
}

#[derive(Default)]
struct Deletes {
    of: HashMap<String, Found>,
    dead: Vec<String>,
}

impl Entries {
    async fn of(table: &LakeTable) -> Result<Self> {
        let mut entries = Self { data: Vec::new(), deletes: Vec::new() };
        let Some(snapshot) = table.metadata().current_snapshot() else { return Ok(entries) };
        let list = read_list(table.store(), snapshot).await?.into_iter();
        let list: Vec<ManifestFile> = list.filter(is_live).collect();
        let loaded = futures::stream::iter(list)
            .map(|manifest| load(table.store(), manifest))
            .buffered(READS_MAX);
        let loaded: Vec<_> = loaded.try_collect().await?;
        for (content, found) in loaded {
            match content {
                ManifestContentType::Data => entries.data.extend(found),
                ManifestContentType::Deletes => entries.deletes.extend(found),
            }
        }
        Ok(entries)
    }

    async fn deletes(&self, store: &Store) -> Result<Deletes> {
        // Boxed, so that whoever spawns this can tell that it may go to another thread.
        let named: Vec<_> =
            self.deletes.iter().map(|delete| delete.positions(store).boxed()).collect();
        let named: Vec<_> = futures::stream::iter(named).buffered(READS_MAX).try_collect().await?;
        let live: HashMap<&str, &Entry> =
            self.data.iter().map(|entry| (entry.file.file_path(), entry)).collect();
        let mut deletes = Deletes::default();
        for (delete, named) in self.deletes.iter().zip(named) {
            let mut alive = false;
            let mut lay = |path: &str, rows: u64, unsure: bool| {
                let found = deletes.of.entry(path.to_owned()).or_default();
                found.rows += rows;
                found.files += 1;
                found.unsure |= unsure;
                alive = true;
            };
            if let Some(named) = named {
                for (path, rows) in named {
                    let of = live.get(path.as_str());
                    if of.is_some_and(|of| of.sequence_number <= delete.sequence_number) {
                        lay(&path, rows, false);
                    }
                }
            } else {
                for entry in self.data.iter().filter(|entry| delete.may_be_of(entry)) {
                    let rows = delete.file.record_count().min(entry.file.record_count());
                    lay(entry.file.file_path(), rows, true);
                }
            }
            if !alive {
                deletes.dead.push(delete.file.file_path().to_owned());
            }
        }
        Ok(deletes)
    }
}

impl Entry {
    /// Whether a delete file that does not name its data files may be of one (spec, *Scan Planning*).
    fn may_be_of(&self, data: &Entry) -> bool {
        let equality = self.file.content_type() == DataContentType::EqualityDeletes;
        let younger = if equality {
            data.sequence_number < self.sequence_number
        } else {
            data.sequence_number <= self.sequence_number
        };
        younger && (equality && self.unpartitioned || data.place() == self.place())
    }
}

async fn load(store: &Store, manifest: ManifestFile) -> Result<(ManifestContentType, Vec<Entry>)> {
    let failed = |cause| error::iceberg("read a manifest", cause);
    let loaded: Manifest = manifest.load_manifest(&store.file_io()).await.map_err(failed)?;
    let unpartitioned = loaded.metadata().partition_spec().fields().is_empty();
    let entries = loaded.entries().iter().filter(|entry| entry.is_alive()).map(|entry| Entry {
        file: entry.data_file().clone(),
        spec_id: manifest.partition_spec_id,
        unpartitioned,
        sequence_number: entry.sequence_number().unwrap_or(manifest.sequence_number),
    });
    Ok((manifest.content, entries.collect()))
}

/// The rows that a position delete file deletes, by data file; `None` if it is not in a format we read.
async fn positions(store: &Store, file: &DataFile) -> Result<Option<HashMap<String, u64>>> {
    if let Some(path) = deletes_of(file) {
        return Ok(Some(HashMap::from([(path, file.record_count())])));
    }
    if file.file_format() != DataFileFormat::Parquet {
        return Ok(None);
    }
    let failed = |cause| error::parquet("read a delete file", cause);
    let bytes = store.read(file.file_path()).await?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?;
    let columns = reader.parquet_schema();
    let Some(at) = columns.columns().iter().position(|column| column.name() == "file_path") else {
        return Ok(None);
    };
    let mask = ProjectionMask::leaves(columns, [at]);
    let mut counts: HashMap<String, u64> = HashMap::new();
    for batch in reader.with_projection(mask).build().map_err(failed)? {
        let batch = batch.map_err(|cause| error::arrow("read a delete file", cause))?;
        let Some(paths) = batch.column(0).as_string_opt::<i32>() else { return Ok(None) };
        for path in paths.iter().flatten() {
            match counts.get_mut(path) {
                Some(count) => *count += 1,
                None => drop(counts.insert(path.to_owned(), 1)),
            }
        }
    }
    Ok(Some(counts))
}
