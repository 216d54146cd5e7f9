//! Work that keeps a core or a disk busy, off the async threads.

use arrow::array::RecordBatch;
use futures::stream::try_unfold;
use polder_core::{Batch, BatchStream, Error, ErrorCode, Result};

/// Makes one batch after the other.
pub(crate) trait Batches: Send + 'static {
    /// `None` after the last row.
    fn next(&mut self) -> Result<Option<RecordBatch>>;
}

/// Runs `work` where it may block.
///
/// The work is awaited, never detached: a caller that is dropped leaves at most this one call running
/// to its end.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorCode::Internal, "a reader stopped unexpectedly").caused_by(error)
    })?
}

/// The batches as a stream that makes the next one when it is asked for.
pub(crate) fn stream(batches: impl Batches) -> BatchStream {
    Box::pin(try_unfold(batches, |mut batches| {
        run(move || Ok(batches.next()?.map(|records| (Batch { records }, batches))))
    }))
}
