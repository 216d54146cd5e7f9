//! Reads all documents that the server answers with once, as the raw batches it sends.
//!
//! While the next batch is on its way, a blocking thread infers from the last one and spills it.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, RawDocumentBuf};
use futures::{Stream, StreamExt};
use mongodb::error::{Error as DriverError, Result as DriverResult};
use mongodb::options::{AggregateOptions, FindOptions};
use mongodb::raw_batch_cursor::RawBatch;
use mongodb::{Client, Collection};
use polder_core::{Result, RunProgress, Stage};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::failure::{is_without_snapshot, source_error};
use crate::blocking;
use crate::document::{Inference, InferenceOptions, Spill, SpillWriter, documents_of};

/// Batches (up to 16 MB each) that wait to be looked at.
const WAITING_MAX: usize = 1;
/// How long a pipeline may take: its rows are made while a query is planned, which has a limit, too. What takes
/// longer is read instead.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(8);

/// One read of a collection.
pub(super) struct Read {
    pub(super) client: Client,
    pub(super) documents: Collection<RawDocumentBuf>,
    pub(super) question: Question,
    pub(super) options: InferenceOptions,
    pub(super) progress: Arc<RunProgress>,
}

/// What the server is asked.
pub(super) enum Question {
    /// The documents that pass the filter; options are projection, limit and collation.
    Find { filter: Document, options: Box<FindOptions> },
    /// What a pipeline makes of them.
    Aggregate { pipeline: Vec<Document>, options: Box<AggregateOptions> },
}

/// The documents at rest and what was learnt from them.
pub(super) struct Drained {
    pub(super) spill: Spill,
    pub(super) inference: Inference,
    /// The server's name for the state that was read.
    pub(super) snapshot: Option<String>,
    pub(super) warning: Option<String>,
}

/// Why an attempt ended early.
enum Stopped {
    /// The server has no snapshot of this.
    NoSnapshot,
    Driver(DriverError),
    /// The thread that takes the batches has failed and says why itself.
    Taker,
}

impl From<DriverError> for Stopped {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl Read {
    /// As [`Self::run`]; `None` if a pipeline takes too long.
    pub(super) async fn run_in_time(&self) -> Result<Option<Drained>> {
        let run = self.run();
        match self.question {
            Question::Find { .. } => run.await.map(Some),
            // Not every server looks at `maxTimeMS`.
            Question::Aggregate { .. } => tokio::time::timeout(ANSWER_MAX, run)
                .await
                .map_or(Ok(None), |drained| drained.map(Some)),
        }
    }

    /// Reads in a snapshot, or without one where the server has none.
    pub(super) async fn run(&self) -> Result<Drained> {
        if let Some(drained) = self.attempt(true).await? {
            return Ok(drained);
        }
        self.progress.restart();
        self.progress.enter(Stage::Inferring);
        let drained = self.attempt(false).await?;
        let warning = "the server has no snapshot for this read: documents changed meanwhile are \
                       in either state";
        drained
            .map(|drained| Drained { warning: Some(warning.to_owned()), ..drained })
            .ok_or_else(unreachable_attempt)
    }

    /// `None` when a snapshot was asked for and the server has none.
    async fn attempt(&self, snapshot: bool) -> Result<Option<Drained>> {
        let (sender, receiver) = channel(WAITING_MAX);
        let (options, progress) = (self.options.clone(), self.progress.clone());
        let taking = blocking::run(move || take(receiver, options, &progress));
        let sending = async {
            let sent =
                if snapshot { self.send_snapshot(&sender).await } else { self.send(&sender).await };
            drop(sender);
            sent
        };
        let (sent, taken) = tokio::join!(sending, taking);
        match sent {
            Ok(snapshot) => {
                let (spill, inference) = taken?;
                Ok(Some(Drained { spill, inference, snapshot, warning: None }))
            }
            Err(Stopped::NoSnapshot) => Ok(None),
            Err(Stopped::Driver(error)) if snapshot && is_without_snapshot(&error) => Ok(None),
            Err(Stopped::Driver(error)) => Err(source_error(error)),
            Err(Stopped::Taker) => Err(taken.err().unwrap_or_else(unreachable_attempt)),
        }
    }

    async fn send(&self, sender: &Sender<RawBatch>) -> Result<Option<String>, Stopped> {
        let batches = match &self.question {
            Question::Find { filter, options } => {
                let find = self.documents.find(filter.clone());
                find.with_options((**options).clone()).batch().await?
            }
            Question::Aggregate { pipeline, options } => {
                let aggregate = self.documents.aggregate(pipeline.clone());
                Box::pin(aggregate.with_options((**options).clone()).batch()).await?
            }
        };
        forward(batches, sender).await?;
        Ok(None)
    }

    async fn send_snapshot(&self, sender: &Sender<RawBatch>) -> Result<Option<String>, Stopped> {
        let mut session = self.client.start_session().snapshot(true).await?;
        let mut cursor = match &self.question {
            Question::Find { filter, options } => {
                let find = self.documents.find(filter.clone());
                let find = find.with_options((**options).clone());
                find.session(&mut session).batch().await?
            }
            Question::Aggregate { pipeline, options } => {
                let aggregate = self.documents.aggregate(pipeline.clone());
                let aggregate = aggregate.with_options((**options).clone());
                Box::pin(aggregate.session(&mut session).batch()).await?
            }
        };
        // A server that ignores the request for a snapshot does not name one.
        let time = session.snapshot_time().ok_or(Stopped::NoSnapshot)?;
        forward(cursor.stream(&mut session), sender).await?;
        Ok(Some(format!("cluster time {}.{}", time.time, time.increment)))
    }
}

async fn forward(
    batches: impl Stream<Item = DriverResult<RawBatch>>,
    sender: &Sender<RawBatch>,
) -> Result<(), Stopped> {
    let mut batches = std::pin::pin!(batches);
    while let Some(batch) = batches.next().await {
        sender.send(batch?).await.map_err(|_| Stopped::Taker)?;
    }
    Ok(())
}

fn take(
    mut batches: Receiver<RawBatch>,
    options: InferenceOptions,
    progress: &RunProgress,
) -> Result<(Spill, Inference)> {
    let mut inference = Inference::new(options);
    let mut spill = SpillWriter::new()?;
    while let Some(batch) = batches.blocking_recv() {
        let (mut rows, mut bytes) = (0, 0);
        let array = batch.doc_slices().map_err(source_error)?;
        for document in documents_of(array.as_bytes())? {
            let document = document?;
            inference.see(document)?;
            spill.push(document)?;
            rows += 1;
            bytes += document.len() as u64;
        }
        progress.add_read(rows, bytes);
    }
    Ok((spill.finish()?, inference))
}

fn unreachable_attempt() -> polder_core::Error {
    polder_core::Error::new(polder_core::ErrorCode::Internal, "a read ended without an outcome")
}
