//! Reading rows in one order: that of the files' addresses, and within a file that of its rows.
//!
//! The order of a snapshot's rows is the same however often and by whomever it is read, as neither
//! the snapshot nor its files ever change. So a reader can say how far it has come with two numbers.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use iceberg::scan::FileScanTask;
use polder_core::{Error, ErrorCode, Result};

use crate::scan::{BatchStream, ScanRequest};
use crate::table::LakeTable;

/// The files of one state that may hold wanted rows, in order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OrderedScan {
    table: LakeTable,
    scan: ScanRequest,
    tasks: Arc<Vec<FileScanTask>>,
    schema: SchemaRef,
}

impl LakeTable {
    /// Plans a scan whose rows come in one order.
    ///
    /// # Errors
    /// As [`Self::plan`]; `spec.invalid` for a scan that names no snapshot: the order would not last.
    pub async fn ordered(&self, scan: ScanRequest) -> Result<OrderedScan> {
        if scan.snapshot.is_none() {
            return Err(Error::new(ErrorCode::SpecInvalid, "an ordered scan needs a snapshot"));
        }
        let mut tasks = self.tasks(&scan).await?;
        tasks.sort_by(|a, b| (&a.data_file_path, a.start).cmp(&(&b.data_file_path, b.start)));
        let layout = self.layout(&scan)?;
        let wanted: Vec<usize> = (0..layout.wanted).collect();
        let schema = layout.plain.project(&wanted).map(Arc::new);
        let schema = schema.map_err(|cause| crate::error::arrow("choose columns", cause))?;
        Ok(OrderedScan { table: self.clone(), scan, tasks: Arc::new(tasks), schema })
    }
}

impl OrderedScan {
    /// How many files there are.
    pub fn files(&self) -> usize {
        self.tasks.len()
    }

    /// The columns of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The wanted rows of one file, in its own order; none behind the last file.
    ///
    /// # Errors
    /// `lake.*`, also in the stream, when the file cannot be read.
    pub fn read(&self, file: usize) -> Result<BatchStream> {
        let tasks = self.tasks.get(file).cloned().into_iter().collect();
        self.table.read_tasks(self.scan.clone(), tasks)
    }
}
