//! Rows with their places: which file a row is in, and which one it is there, from 0.
//!
//! What deletes rows by position needs both. Files are decoded whole, in their order, without their
//! deletes; these are read here, and take the rows out afterwards.

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use futures::{Stream, StreamExt, TryStreamExt};
use iceberg::scan::FileScanTask;
use iceberg::spec::DataContentType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use polder_core::{Error, ErrorCode, Predicate, Result};

use crate::error;
use crate::read::FILES_MAX;
use crate::scan::{BatchStream, ScanFile, ScanRequest, scan_file};
use crate::storage::Store;
use crate::table::LakeTable;

/// Some rows of one file.
#[derive(Clone, Debug)]
pub struct Placed {
    pub file: Arc<ScanFile>,
    /// Of each row.
    pub positions: Vec<u64>,
    pub records: RecordBatch,
}

/// The rows of several files, those of each file in their order.
pub type PlacedStream = Pin<Box<dyn Stream<Item = Result<Placed>> + Send>>;

impl LakeTable {
    /// Reads rows with their places, deleted ones left out. The filter leaves out files that cannot
    /// hold wanted rows, and no row of the others.
    ///
    /// # Errors
    /// As [`Self::read`]; `lake.failed` where rows are deleted by equality, as other engines do.
    pub async fn read_placed(&self, scan: ScanRequest) -> Result<PlacedStream> {
        let tasks = self.tasks(&scan).await?;
        let scan = ScanRequest { filter: Predicate::True, ..scan };
        let table = self.clone();
        let placed = futures::stream::iter(tasks).map(move |task| {
            let (table, scan) = (table.clone(), scan.clone());
            let of_file = async move { table.read_placed_task(scan, task).await };
            futures::stream::once(of_file).try_flatten().boxed()
        });
        Ok(Box::pin(placed.flatten_unordered(FILES_MAX)))
    }

    async fn read_placed_task(
        &self,
        scan: ScanRequest,
        task: FileScanTask,
    ) -> Result<PlacedStream> {
        let file = scan_file(&task);
        let dead = dead_rows(self.store(), &task).await?;
        let task = FileScanTask { deletes: Vec::new(), predicate: None, ..task };
        Ok(placed(file, dead, self.read_tasks(scan, vec![task])?))
    }
}

/// Numbers the rows of a file, which `batches` has whole and in order, and leaves out the dead ones.
/// `dead`: ascending.
pub(crate) fn placed(file: ScanFile, dead: Vec<u64>, batches: BatchStream) -> PlacedStream {
    let file = Arc::new(file);
    let mut next = 0;
    let numbered = batches.map(move |batch| {
        let records = batch?;
        let positions: Vec<u64> = (next..next + records.num_rows() as u64).collect();
        next += records.num_rows() as u64;
        let living = Placed { file: Arc::clone(&file), positions, records };
        if dead.is_empty() { Ok(living) } else { living.without(&dead) }
    });
    Box::pin(numbered.try_filter(|placed| std::future::ready(!placed.positions.is_empty())))
}

impl Placed {
    fn without(self, dead: &[u64]) -> Result<Self> {
        let lives = |position: &u64| dead.binary_search(position).is_err();
        let living: BooleanArray = self.positions.iter().map(|p| Some(lives(p))).collect();
        let records = filter_record_batch(&self.records, &living)
            .map_err(|cause| error::arrow("leave out deleted rows", cause))?;
        let positions = self.positions.into_iter().filter(lives).collect();
        Ok(Self { file: self.file, positions, records })
    }
}

/// The deleted rows of a file, ascending.
async fn dead_rows(store: &Store, task: &FileScanTask) -> Result<Vec<u64>> {
    let mut dead = Vec::new();
    for deletes in &task.deletes {
        if deletes.file_type != DataContentType::PositionDeletes {
            let message =
                "another engine has deleted rows of the table by equality, not by position";
            return Err(Error::new(ErrorCode::LakeFailed, message)
                .detail(task.data_file_path.clone())
                .hint("reload the table once: run with --full-refresh"));
        }
        dead.extend(positions(store, &deletes.file_path, &task.data_file_path).await?);
    }
    dead.sort_unstable();
    dead.dedup();
    Ok(dead)
}

/// The positions that a delete file has for one data file (spec, *Position Delete Files*).
///
/// # Errors
/// `lake.corrupt` for bytes that are no such file.
pub(crate) async fn positions(store: &Store, location: &str, of: &str) -> Result<Vec<u64>> {
    let failed = |what: &str| Error::new(ErrorCode::LakeCorrupt, what.to_owned()).detail(location);
    let unreadable = || failed("cannot read a delete file");
    let bytes = store.read(location).await?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(ParquetRecordBatchReaderBuilder::build);
    let mut found = Vec::new();
    for batch in reader.map_err(|cause| unreadable().caused_by(cause))? {
        let batch = batch.map_err(|cause| unreadable().caused_by(cause))?;
        let column = |name: &str, data_type: DataType| {
            let column = batch.column_by_name(name).map(|column| cast(column, &data_type));
            column.and_then(std::result::Result::ok).ok_or_else(unreadable)
        };
        let paths = column("file_path", DataType::Utf8)?;
        let rows = column("pos", DataType::Int64)?;
        let (paths, rows) = (paths.as_string::<i32>(), rows.as_primitive::<Int64Type>());
        let own =
            (0..batch.num_rows()).filter(|row| paths.is_valid(*row) && paths.value(*row) == of);
        found.extend(own.map(|row| rows.value(row) as u64));
    }
    Ok(found)
}
