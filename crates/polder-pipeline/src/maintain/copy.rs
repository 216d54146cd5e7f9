//! Reads files of a table and stages their rows anew, several bins at a time.
//!
//! Each worker writes one bin after another into files of its own, while a task of its own reads ahead
//! of it: reading and encoding keep every core busy, with one bin too. Where the table has an order, the
//! rows of a bin are sorted in between. Nothing is committed here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use futures::StreamExt;
use polder_core::optimize::Bin;
use polder_core::spec::{PartitionField, SortField};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{
    BatchStream, Lake, Predicate, Stage, StageKind, StageRequest, StagedFile, TableFiles,
    TableWriter,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::action::MaintainLimits;
use super::sort::{Keys, Sorted, Sorter};

/// Batches waiting between reading and writing, per worker, whatever their size.
const BATCHES_AHEAD_MAX: usize = 64;
/// Batches handed to the encoder at once: each time costs two turns of the threads that read, too.
const READY_MAX: usize = 16;
/// Sorted batches waiting to be written, per worker.
const SORTED_AHEAD_MAX: usize = 2;
/// Bytes that a worker reads ahead, and sorts at once, at least.
const BYTES_MIN: usize = 1 << 20;

/// One copy to do.
pub(super) struct Copy<'a> {
    pub(super) files: &'a TableFiles,
    pub(super) bins: &'a [Bin],
    /// The rows that stay.
    pub(super) keep: Predicate,
    pub(super) partition: &'a [PartitionField],
    /// The order of rows in each file; `None` and none for any.
    pub(super) sort: Option<Vec<SortField>>,
    pub(super) target_bytes: u64,
}

/// What was copied.
#[derive(Default)]
pub(super) struct Copied {
    pub(super) files: Vec<StagedFile>,
    pub(super) rows: u64,
}

type Streams = Arc<Mutex<VecDeque<BatchStream>>>;

impl Copy<'_> {
    /// Stages the rows of all bins on the state that the files were planned on.
    ///
    /// # Errors
    /// The first of any worker; nothing is staged then. `cancelled`.
    pub(super) async fn run(self, lake: &Lake, limits: &MaintainLimits) -> Result<(Stage, Copied)> {
        let table = self.files.table();
        let schema = table.schema();
        let order = self.sort.as_deref().filter(|sort| !sort.is_empty());
        let order = order.map(|sort| Keys::new(&schema.to_arrow(), sort));
        let stage = StageRequest {
            run_id: Uuid::new_v4(),
            schema,
            partition: self.partition.to_vec(),
            sort: self.sort.clone(),
            kind: StageKind::Files,
            target_file_bytes: self.target_bytes,
            memory_bytes: limits.memory_bytes / 2,
        };
        // Says of a column that cannot be sorted by what is wrong with it.
        let stage = lake.stage_on(table, stage)?;
        let order = order.transpose()?.map(Arc::new);
        let streams = self.bins.iter().map(|bin| self.files.read(&bin.files, self.keep.clone()));
        let streams = streams.collect::<Result<VecDeque<BatchStream>>>()?;
        let workers = self.bins.len().min(limits.workers.get());
        let streams: Streams = Arc::new(Mutex::new(streams));
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let writer = if order.is_some() { stage.sorted_writer()? } else { stage.writer() };
            let worker = Worker {
                streams: Arc::clone(&streams),
                writer,
                order: order.clone(),
                // The stage has the other half.
                ahead_bytes: (limits.memory_bytes / 8 / workers).max(BYTES_MIN),
                sort_bytes: (limits.memory_bytes / 4 / workers).max(BYTES_MIN),
                cancel: limits.cancel.clone(),
            };
            tasks.spawn(worker.work().in_current_span());
        }
        let mut copied = Copied::default();
        let mut failed = None;
        while let Some(joined) = tasks.join_next().await {
            match joined.map_err(panicked).and_then(|outcome| outcome) {
                Ok(part) => {
                    copied.files.extend(part.files);
                    copied.rows += part.rows;
                }
                Err(error) => {
                    // The first error counts; those that follow are its echoes.
                    failed.get_or_insert(error);
                    tasks.abort_all();
                }
            }
        }
        match failed {
            None => Ok((stage, copied)),
            Some(error) => {
                stage.abort(copied.files).await;
                Err(error)
            }
        }
    }
}

/// Copies bins until there are no more.
struct Worker {
    streams: Streams,
    writer: TableWriter,
    order: Option<Arc<Keys>>,
    ahead_bytes: usize,
    sort_bytes: usize,
    cancel: CancellationToken,
}

impl Worker {
    async fn work(mut self) -> Result<Copied> {
        let mut rows = 0;
        loop {
            let next = self.streams.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(stream) = next else { break };
            let read = Ahead::read(stream, self.ahead_bytes);
            rows += match self.order.clone() {
                None => self.write(read).await?,
                Some(order) => self.sort(read, order).await?,
            };
        }
        Ok(Copied { files: self.writer.finish().await?, rows })
    }

    /// Writes the batches as they come; how many rows they have.
    async fn write(&mut self, mut batches: Ahead) -> Result<u64> {
        let mut rows = 0;
        loop {
            // Their room is taken until they are written.
            let (ready, _room) = batches.ready().await?;
            if ready.is_empty() {
                return Ok(rows);
            }
            self.check_cancelled()?;
            rows += ready.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            self.writer.write_all(ready).await?;
        }
    }

    /// Writes the rows of all batches in their order, into files of their own.
    async fn sort(&mut self, mut batches: Ahead, order: Arc<Keys>) -> Result<u64> {
        let mut sorter = Sorter::new(order, self.sort_bytes);
        while let Some(batch) = batches.next().await? {
            self.check_cancelled()?;
            let pushed = move || sorter.push(batch).map(|()| sorter);
            sorter = blocking(pushed).await?;
        }
        let merge = blocking(move || sorter.finish()).await?;
        let rows = self.write(Ahead::merge(merge)).await?;
        self.writer.cut().await?;
        Ok(rows)
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the rewrite was cancelled")
                .hint("what was done stays done; run it again for the rest"));
        }
        Ok(())
    }
}

/// Batches that are made by a task of their own, ahead of who takes them.
struct Ahead {
    batches: mpsc::Receiver<(Result<RecordBatch>, Option<OwnedSemaphorePermit>)>,
    maker: JoinSet<()>,
}

impl Ahead {
    /// Reads so many bytes ahead, and one batch at least.
    fn read(mut stream: BatchStream, bytes_max: usize) -> Self {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD_MAX);
        let all = permits(bytes_max);
        let room = Arc::new(Semaphore::new(all as usize));
        let mut maker = JoinSet::new();
        maker.spawn(async move {
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                let bytes = batch.as_ref().map_or(0, RecordBatch::get_array_memory_size);
                let own = Arc::clone(&room).acquire_many_owned(permits(bytes).min(all)).await;
                if sender.send((batch, own.ok())).await.is_err() || failed {
                    break;
                }
            }
        });
        Self { batches, maker }
    }

    /// Merges sorted rows.
    fn merge(mut sorted: Sorted) -> Self {
        let (sender, batches) = mpsc::channel(SORTED_AHEAD_MAX);
        let mut maker = JoinSet::new();
        maker.spawn_blocking(move || {
            while let Some(batch) = sorted.next().transpose() {
                let failed = batch.is_err();
                if sender.blocking_send((batch, None)).is_err() || failed {
                    break;
                }
            }
        });
        Self { batches, maker }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if let Some((batch, _)) = self.batches.recv().await {
            return batch.map(Some);
        }
        self.ended().await.map(|()| None)
    }

    /// Those that wait to be taken, and one at least, with the room they take; none once all were taken.
    async fn ready(&mut self) -> Result<(Vec<RecordBatch>, Vec<OwnedSemaphorePermit>)> {
        let mut ready = Vec::with_capacity(READY_MAX);
        if self.batches.recv_many(&mut ready, READY_MAX).await == 0 {
            self.ended().await?;
        }
        let (batches, room): (Vec<_>, Vec<_>) = ready.into_iter().unzip();
        let batches = batches.into_iter().collect::<Result<Vec<RecordBatch>>>()?;
        Ok((batches, room.into_iter().flatten().collect()))
    }

    async fn ended(&mut self) -> Result<()> {
        match self.maker.join_next().await {
            Some(Err(error)) => Err(panicked(error)),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// Room for so many bytes, in kilobytes.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1)
}

/// Computes away from the threads that wait.
async fn blocking<T: Send + 'static>(
    compute: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(compute).await.map_err(panicked)?
}

fn panicked(error: tokio::task::JoinError) -> Error {
    let what = if error.is_cancelled() { "was stopped" } else { "panicked" };
    Error::new(ErrorCode::Internal, format!("a worker of the rewrite {what}")).caused_by(error)
}
