//! Rows into Parquet files below a table's location, with what Iceberg wants to know of each file.
//!
//! [`TableWriter`] is the part that waits: it hands batches to the [`encoder`](encode), which only
//! computes, on a thread for blocking work, and carries the encoded bytes to the store. Nothing here
//! makes files visible: that is [`crate::commit`].

mod bounds;
mod dictionary;
mod encode;
mod file;
mod layout;
mod metrics;
mod partition;
mod position_deletes;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::spec::DataFile;
use polder_core::{Error, ErrorCode, Result};

pub(crate) use bounds::string_after;
pub(crate) use encode::Budget;
pub(crate) use layout::Layout;
pub(crate) use metrics::null_counts;
pub(crate) use partition::Partitioner;
pub use position_deletes::StagedDeletes;
pub(crate) use position_deletes::{FILE_PATH_ID, write as write_deletes};

use crate::error;
use crate::scan::ScanFile;
use crate::storage::Output;
use encode::{Encoder, Ready};

/// A finished data file that no metadata names yet.
#[derive(Clone, Debug)]
pub struct StagedFile {
    data_file: DataFile,
}

impl StagedFile {
    /// The file's full address.
    pub fn location(&self) -> &str {
        self.data_file.file_path()
    }

    pub fn rows(&self) -> u64 {
        self.data_file.record_count()
    }

    pub fn size_bytes(&self) -> u64 {
        self.data_file.file_size_in_bytes()
    }

    /// As a scan shows a file of the table.
    pub fn as_scanned(&self) -> ScanFile {
        ScanFile {
            path: self.location().to_owned(),
            size_bytes: self.size_bytes(),
            rows: Some(self.rows()),
            has_deletes: false,
        }
    }

    pub(crate) fn data_file(&self) -> &DataFile {
        &self.data_file
    }
}

/// Writes batches into files of its own.
///
/// Dropped before [`Self::finish`], it removes what it has made: on S3 in the background, which
/// [`crate::Stage::abort`] waits for.
#[derive(Debug)]
pub struct TableWriter {
    layout: Arc<Layout>,
    budget: Arc<Budget>,
    /// Absent after a failure.
    encoder: Option<Encoder>,
    outputs: HashMap<String, Output>,
    finished: Vec<StagedFile>,
}

impl TableWriter {
    pub(crate) fn new(layout: Arc<Layout>, budget: Arc<Budget>, number: usize) -> Self {
        budget.join();
        let encoder = Encoder::new(Arc::clone(&layout), Arc::clone(&budget), number);
        Self {
            layout,
            budget,
            encoder: Some(encoder),
            outputs: HashMap::new(),
            finished: Vec::new(),
        }
    }

    /// Takes rows in the stage's layout ([`polder_core::TableSchema::to_arrow`]).
    ///
    /// # Errors
    /// `internal` for a batch of another layout; `lake.*` when the store fails. The writer is of no
    /// use afterwards.
    pub async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        self.layout.check(&batch)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.step(move |encoder| encoder.write(&batch)).await?;
        while let Some(largest) = self.over_buffered() {
            self.step(move |encoder| encoder.close(&largest)).await?;
        }
        Ok(())
    }

    /// Completes the files. When this returns, they are durable.
    pub async fn finish(mut self) -> Result<Vec<StagedFile>> {
        self.step(Encoder::close_all).await?;
        Ok(std::mem::take(&mut self.finished))
    }

    /// Lets the encoder compute, then carries away what it made.
    async fn step(
        &mut self,
        compute: impl FnOnce(&mut Encoder) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut encoder = self.encoder.take().ok_or_else(|| {
            Error::new(ErrorCode::Internal, "a table writer was used after it had failed")
        })?;
        let computed = tokio::task::spawn_blocking(move || {
            let done = compute(&mut encoder);
            done.map(|()| encoder)
        });
        let carried = match computed.await.map_err(error::join)? {
            Ok(mut encoder) => {
                let ready = encoder.take_ready();
                let carried = self.carry(ready).await;
                self.encoder = Some(encoder);
                carried
            }
            Err(error) => Err(error),
        };
        if carried.is_err() {
            self.encoder = None;
            self.discard().await;
        }
        carried
    }

    async fn carry(&mut self, ready: Vec<Ready>) -> Result<()> {
        for ready in ready {
            match ready {
                Ready::Bytes { location, bytes } => {
                    if !self.outputs.contains_key(&location) {
                        let output = self.layout.store.create(&location)?;
                        self.outputs.insert(location.clone(), output);
                    }
                    if let Some(output) = self.outputs.get_mut(&location) {
                        output.write(bytes).await?;
                    }
                }
                Ready::Closed(data_file) => {
                    if let Some(output) = self.outputs.remove(data_file.file_path()) {
                        output.finish().await?;
                    }
                    self.finished.push(StagedFile { data_file: *data_file });
                }
            }
        }
        Ok(())
    }

    /// The file with the most bytes waiting for upload, if all files of this writer keep too many.
    fn over_buffered(&self) -> Option<String> {
        let buffered: usize = self.outputs.values().map(Output::buffered).sum();
        if buffered <= self.budget.share() {
            return None;
        }
        let largest = self.outputs.iter().max_by_key(|(_, output)| output.buffered());
        largest.map(|(location, _)| location.clone())
    }

    /// Removes what a failed writer has made, as far as that works.
    async fn discard(&mut self) {
        for (_, output) in self.outputs.drain() {
            output.abort().await;
        }
        let files = self.finished.drain(..).map(|file| file.location().to_owned()).collect();
        if let Err(error) = self.layout.store.delete(files).await {
            tracing::warn!("files of a failed writer stay until orphan removal: {error}");
        }
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        self.budget.leave();
        let finished = self.finished.iter().map(|file| file.location().to_owned());
        self.layout.store.delete_soon(finished.collect());
    }
}
