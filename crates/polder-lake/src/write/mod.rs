//! Rows into Parquet files below a table's location, with what Iceberg wants to know of each file.
//!
//! [`TableWriter`] is the part that waits: it hands batches to the [`encoder`](encode), which only
//! computes, on a thread for blocking work, and carries the encoded bytes to the store. Nothing here
//! makes files visible: that is [`crate::commit`].

mod bounds;
mod dictionary;
mod encode;
mod extremes;
mod file;
mod layout;
mod metrics;
mod partition;
mod position_deletes;
mod taken;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::spec::DataFile;
use polder_core::{Error, ErrorCode, Result};
use tokio::task::JoinSet;

pub(crate) use bounds::string_after;
pub(crate) use encode::Budget;
pub(crate) use layout::Layout;
pub(crate) use metrics::{bounds, null_counts};
pub(crate) use partition::Partitioner;
pub use position_deletes::StagedDeletes;
pub(crate) use position_deletes::{FILE_PATH_ID, write as write_deletes};
pub(crate) use taken::Taken;

use crate::error;
use crate::scan::ScanFile;
use crate::storage::Output;
use encode::{Encoder, Ready};

/// Complete files of one writer on their way to being durable, while the next one is encoded.
const FINISHING_MAX: usize = 1;

/// A finished data file that no metadata names yet.
#[derive(Clone, Debug)]
pub struct StagedFile {
    data_file: DataFile,
    /// What follows its rows; `None` of another engine's file.
    tail: Option<Tail>,
}

/// What follows the rows in a file, page indexes and footer, as it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    /// Where it begins.
    pub(crate) from: u64,
    /// Its [`digest::bytes`](polder_core::digest::bytes).
    pub(crate) hash: u64,
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

    /// `None` of another engine's file.
    pub(crate) fn tail(&self) -> Option<Tail> {
        self.tail
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
    /// Complete files that are not durable yet.
    finishing: JoinSet<Result<StagedFile>>,
    /// Bytes that these keep in memory.
    finishing_bytes: usize,
    finished: Vec<StagedFile>,
}

impl TableWriter {
    /// `order`: the id of the order that rows come in, for files to be marked with.
    pub(crate) fn new(
        layout: Arc<Layout>,
        budget: Arc<Budget>,
        number: usize,
        order: Option<i32>,
    ) -> Self {
        budget.join();
        let encoder = Encoder::new(Arc::clone(&layout), Arc::clone(&budget), number, order);
        Self {
            layout,
            budget,
            encoder: Some(encoder),
            outputs: HashMap::new(),
            finishing: JoinSet::new(),
            finishing_bytes: 0,
            finished: Vec::new(),
        }
    }

    /// Takes rows in the stage's layout ([`polder_core::TableSchema::to_arrow`]).
    ///
    /// # Errors
    /// `internal` for a batch of another layout; `lake.*` when the store fails. The writer is of no
    /// use afterwards.
    pub async fn write(&mut self, batch: RecordBatch) -> Result<()> {
        self.write_all(vec![batch]).await
    }

    /// The same of several batches, which are encoded in one go. What comes of them is in memory until the
    /// last one is.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_all(&mut self, batches: Vec<RecordBatch>) -> Result<()> {
        for batch in &batches {
            self.layout.check(batch)?;
        }
        if batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(());
        }
        let rows = |batch: &&RecordBatch| batch.num_rows() > 0;
        self.step(move |encoder| {
            batches.iter().filter(rows).try_for_each(|batch| encoder.write(batch))
        })
        .await?;
        while let Some(largest) = self.over_buffered() {
            if self.finishing.is_empty() {
                self.step(move |encoder| encoder.close(&largest)).await?;
            } else {
                // What is on its way may be enough.
                let settled = self.settle(0).await;
                self.unless_failed(settled).await?;
            }
        }
        Ok(())
    }

    /// Completes the files at hand: rows that come later are in others.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn cut(&mut self) -> Result<()> {
        self.step(Encoder::close_all).await
    }

    /// Completes the files. When this returns, they are durable.
    pub async fn finish(mut self) -> Result<Vec<StagedFile>> {
        self.step(Encoder::close_all).await?;
        let settled = self.settle(0).await;
        self.unless_failed(settled).await?;
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by(|a, b| a.location().cmp(b.location()));
        Ok(finished)
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
        self.unless_failed(carried).await
    }

    /// After a failure nothing of the writer stays.
    async fn unless_failed(&mut self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            self.encoder = None;
            self.discard().await;
        }
        done
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
                Ready::Closed(file) => {
                    let file = *file;
                    let Some(output) = self.outputs.remove(file.location()) else {
                        let message = "a data file without content";
                        return Err(Error::new(ErrorCode::Internal, message));
                    };
                    self.settle(FINISHING_MAX - 1).await?;
                    self.finishing_bytes += output.buffered();
                    self.finishing.spawn(async move { output.finish().await.map(|()| file) });
                }
            }
        }
        Ok(())
    }

    /// Waits until at most so many complete files are not durable yet.
    async fn settle(&mut self, left: usize) -> Result<()> {
        while self.finishing.len() > left {
            let Some(joined) = self.finishing.join_next().await else { break };
            let file = joined.map_err(error::join).and_then(|done| done)?;
            self.finished.push(file);
        }
        if self.finishing.is_empty() {
            self.finishing_bytes = 0;
        }
        Ok(())
    }

    /// The file with the most bytes waiting for upload, if all files of this writer keep too many.
    fn over_buffered(&self) -> Option<String> {
        let buffered: usize = self.outputs.values().map(Output::buffered).sum();
        if buffered + self.finishing_bytes <= self.budget.share() {
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
        self.finished.extend(made(&mut self.finishing).await);
        let files = self.finished.drain(..).map(|file| file.location().to_owned()).collect();
        if let Err(error) = self.layout.store.delete(files).await {
            tracing::warn!("files of a failed writer stay until orphan removal: {error}");
        }
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        self.budget.leave();
        while let Some(joined) = self.finishing.try_join_next() {
            self.finished.extend(joined.ok().and_then(Result::ok));
        }
        let store = &self.layout.store;
        let finished = self.finished.iter().map(|file| file.location().to_owned());
        store.delete_soon(finished.collect());
        // Local files come to be whoever waits for them, and so do objects whose request is on its way.
        if self.finishing.is_empty() {
            return;
        }
        let mut finishing = std::mem::take(&mut self.finishing);
        let cleaner = store.clone();
        store.clean_up(async move {
            let files = made(&mut finishing).await;
            let files = files.iter().map(|file| file.location().to_owned()).collect();
            if let Err(error) = cleaner.delete(files).await {
                tracing::warn!("files of a dropped writer stay until orphan removal: {error}");
            }
        });
    }
}

/// The files of those on their way that have come to be.
async fn made(finishing: &mut JoinSet<Result<StagedFile>>) -> Vec<StagedFile> {
    let mut files = Vec::new();
    while let Some(joined) = finishing.join_next().await {
        files.extend(joined.ok().and_then(Result::ok));
    }
    files
}
