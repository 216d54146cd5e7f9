//! A data file that another engine has written, as its rows are read back: what a manifest of ours says
//! of it. Reading is the caller's.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::spec::Struct;
use parquet::file::metadata::ParquetMetaData;
use polder_core::{Error, ErrorCode, Result};

use super::StagedFile;
use super::extremes::Extremes;
use super::layout::Layout;
use super::metrics::{self, Finished, NanCounts};

/// The rows of one file so far.
pub(crate) struct Taken {
    layout: Arc<Layout>,
    rows: u64,
    nans: NanCounts,
    nulls: HashMap<i32, u64>,
    extremes: Extremes,
    /// That of the first row, by key and values.
    partition: Option<(Box<[u8]>, Struct)>,
    /// Whether other rows are of other partitions.
    mixed: bool,
}

impl Taken {
    pub(crate) fn new(layout: Arc<Layout>) -> Self {
        Self {
            layout,
            rows: 0,
            nans: NanCounts::default(),
            nulls: HashMap::new(),
            extremes: Extremes::default(),
            partition: None,
            mixed: false,
        }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// # Errors
    /// `internal` for a batch that is not in the stage's layout.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        layout.check(batch)?;
        self.rows += batch.num_rows() as u64;
        self.nans.add(&layout.floats, batch);
        metrics::add_nulls(&mut self.nulls, batch, &layout.arrow);
        self.extremes.add(batch, &layout.arrow);
        let Some(partitioner) = &layout.partitioner else { return Ok(()) };
        for slice in partitioner.split(batch)? {
            if let Some((key, _)) = &self.partition {
                self.mixed |= *key != slice.key;
            } else {
                self.partition = Some((slice.key, slice.values));
            }
        }
        Ok(())
    }

    /// The file, which has this footer. `None` where the footer does not tell of every column of single values what
    /// rows do, so that readers would skip the file by it, or rows are of several partitions.
    ///
    /// # Errors
    /// `lake.audit_failed` for another number of rows.
    pub(crate) fn file(
        self,
        location: String,
        size_bytes: u64,
        metadata: ParquetMetaData,
    ) -> Result<Option<StagedFile>> {
        if u64::try_from(metadata.file_metadata().num_rows()) != Ok(self.rows) {
            let message = "a data file's footer has other rows than can be read";
            return Err(Error::new(ErrorCode::LakeAuditFailed, message).detail(location));
        }
        // Others leave a float's extremes out where there is a NaN: those of other row groups say too little.
        if self.mixed || self.nans.any() {
            return Ok(None);
        }
        let finished = Finished {
            location,
            size_bytes,
            metadata,
            nans: self.nans,
            nulls: self.nulls,
            extremes: self.extremes,
            partition: self.partition.map_or_else(Struct::empty, |(_, values)| values),
            order: None,
        };
        match metrics::data_file(&self.layout, finished) {
            Ok(data_file) => Ok(Some(StagedFile { data_file, tail: None })),
            Err(error) if error.code() == ErrorCode::LakeAuditFailed => Ok(None),
            Err(error) => Err(error),
        }
    }
}
