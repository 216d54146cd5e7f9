//! The engine's own threads: planning and computing happen here, off the caller's runtime.
//!
//! Expressions and plans nest as deep as the SQL does, and DataFusion recurses over them: these
//! threads have stacks for it (two megabytes, the default, overflow at some hundred terms). A query
//! that computes hard also does not hold up whatever else the process serves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use futures::Stream;
use polder_core::{Error, ErrorCode, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

/// Address space per thread; pages are only used as far as the stack grows.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Threads for planning and for blocking file reads, beside one for each that computes.
const BLOCKING_THREADS: usize = 8;
/// Batches computed ahead of the reader.
const BATCHES_AHEAD: usize = 2;

/// Bytes of address space that the stacks of an engine may take, which computes on so many threads.
pub const fn stack_bytes(threads: usize) -> usize {
    (2 * threads + 1 + BLOCKING_THREADS) * STACK_BYTES
}

/// A runtime that can be dropped anywhere.
pub(super) struct Workers {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Workers {
    pub(super) fn start(threads: usize) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(threads.max(1) + BLOCKING_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("polder-query")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorCode::QueryFailed, "the query threads could not be started")
                    .caused_by(error)
            })?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where this may be dropped: inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// A future's outcome that never arrived: it panicked, or the engine was dropped.
pub(super) fn lost(error: JoinError) -> Error {
    Error::new(ErrorCode::Internal, "the query stopped because of a bug").caused_by(error)
}

/// Where a running query's batches go.
pub(super) type Sender = mpsc::Sender<Result<RecordBatch>>;

/// Batches of a query that runs on the workers. Dropping it aborts the query.
pub(super) struct Running {
    batches: mpsc::Receiver<Result<RecordBatch>>,
    tasks: JoinSet<()>,
    _workers: Arc<Workers>,
}

impl Running {
    /// Starts `query`, which sends its batches and then ends.
    pub(super) fn start<F, Q>(workers: &Arc<Workers>, query: Q) -> Self
    where
        Q: FnOnce(Sender) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(query(sender), workers.handle());
        Self { batches, tasks, _workers: Arc::clone(workers) }
    }
}

impl Stream for Running {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(batch) = ready!(self.batches.poll_recv(context)) {
            return Poll::Ready(Some(batch));
        }
        // The channel also closes when the task panics: rows would be missing without a word.
        match ready!(self.tasks.poll_join_next(context)) {
            Some(Err(error)) => Poll::Ready(Some(Err(lost(error)))),
            Some(Ok(())) | None => Poll::Ready(None),
        }
    }
}
