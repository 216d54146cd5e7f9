//! Queries of `polder serve` in processes of their own (ADR 0034): a query that takes too much memory, overflows its
//! stack or never ends is an error of that query. A process answers one query after the other, by the engine of
//! `polder query`; who may see what was decided before, and is decided again there by the same session.

pub(crate) mod child;
mod frames;
mod process;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use polder_core::{Description, Engine, Error, ErrorCode, QueryStream, Result, Session};
use polder_lake::Lake;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::App;
use crate::serve::Metrics;
use frames::Request;
use process::{Launch, Process, Why};

/// How long a query may wait for a process.
const WAITING_MAX: Duration = Duration::from_mins(1);
/// How long to wait before a process is started again where one did not start.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Who answers the queries of a server: its processes, or, where there are to be none, the server itself.
///
/// # Errors
/// `query.failed` when the system gives no threads.
pub(crate) fn engine(app: &App, lake: &Lake, metrics: &Arc<Metrics>) -> Result<Arc<dyn Engine>> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    match app.config.process.server.query_processes.unwrap_or(cores.max(2)) {
        0 => Ok(Arc::new(crate::cli::engine(app, lake)?)),
        processes => Ok(Arc::new(QueryProcesses::start(processes, Launch::of(app)?, metrics))),
    }
}

/// An engine whose queries run in processes. They are killed when this is dropped.
struct QueryProcesses {
    jobs: mpsc::Sender<Job>,
    _slots: JoinSet<()>,
}

/// A statement that waits for a process.
struct Job {
    /// JSON.
    request: Vec<u8>,
    reply: Reply,
}

/// Where the parts of an answer go. Whoever waits for them drops the other end to cancel.
type Reply = mpsc::Sender<Result<Part>>;

/// A part of an answer.
enum Part {
    /// A process has begun.
    Taken,
    /// Which parameters have a type.
    Known(Vec<bool>),
    Schema(SchemaRef),
    Batch(RecordBatch),
    /// There is no more: without it, some may be missing.
    End,
}

/// The place of one process, and of those that follow it.
struct Slot {
    launch: Arc<Launch>,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    metrics: Arc<Metrics>,
}

/// The parts of one answer.
struct Parts(mpsc::Receiver<Result<Part>>);

impl QueryProcesses {
    fn start(processes: usize, launch: Launch, metrics: &Arc<Metrics>) -> Self {
        let (sender, jobs) = mpsc::channel(1);
        let (launch, jobs) = (Arc::new(launch), Arc::new(Mutex::new(jobs)));
        let mut slots = JoinSet::new();
        for _ in 0..processes {
            let slot = Slot {
                launch: Arc::clone(&launch),
                jobs: Arc::clone(&jobs),
                metrics: Arc::clone(metrics),
            };
            slots.spawn(slot.run());
        }
        Self { jobs: sender, _slots: slots }
    }

    /// Hands a statement to a process, once one is free.
    async fn ask(&self, describe: bool, sql: &str, session: &Session) -> Result<Parts> {
        let request = frames::json(&Request::new(describe, sql, session)?)?;
        let (reply, parts) = mpsc::channel(1);
        let mut parts = Parts(parts);
        let taken = async {
            if self.jobs.send(Job { request, reply }).await.is_err() {
                return Err(stopped());
            }
            match parts.next().await? {
                Part::Taken => Ok(()),
                _ => Err(frames::broken("an answer comes too early")),
            }
        };
        timeout(WAITING_MAX, taken).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorCode::QueryLimit, "too many queries are running")
                .hint("try again later, or raise [server] query_processes"))
        })?;
        Ok(parts)
    }
}

#[async_trait]
impl Engine for QueryProcesses {
    async fn query(&self, sql: &str, session: &Session) -> Result<QueryStream> {
        let mut parts = self.ask(false, sql, session).await?;
        let Part::Schema(schema) = parts.next().await? else {
            return Err(frames::broken("an answer begins without its columns"));
        };
        let batches = futures::stream::try_unfold(parts, |mut parts| async move {
            match parts.next().await? {
                Part::Batch(batch) => Ok(Some((batch, parts))),
                Part::End => Ok(None),
                _ => Err(frames::broken("something else among rows")),
            }
        });
        Ok(QueryStream { schema, batches: Box::pin(batches) })
    }

    async fn describe(&self, sql: &str, session: &Session) -> Result<Description> {
        let mut parts = self.ask(true, sql, session).await?;
        let broken = || frames::broken("no description");
        let Part::Known(known) = parts.next().await? else { return Err(broken()) };
        let Part::Schema(both) = parts.next().await? else { return Err(broken()) };
        let Part::End = parts.next().await? else { return Err(broken()) };
        let count = known.iter().filter(|known| **known).count();
        let (types, columns) = both.fields().split_at_checked(count).ok_or_else(broken)?;
        let mut types = types.iter().map(|of| of.data_type().clone());
        let parameters = known.iter().map(|known| if *known { types.next() } else { None });
        let parameters = parameters.collect();
        let columns: Vec<FieldRef> = columns.to_vec();
        let schema = Arc::new(Schema::new_with_metadata(columns, both.metadata().clone()));
        Ok(Description { parameters, schema })
    }
}

impl Parts {
    async fn next(&mut self) -> Result<Part> {
        self.0.recv().await.unwrap_or_else(|| Err(stopped()))
    }
}

fn stopped() -> Error {
    Error::new(ErrorCode::Internal, "the query stopped with its process")
}

impl Slot {
    async fn run(self) {
        loop {
            match Process::start(&self.launch).await {
                Ok(mut process) => {
                    self.metrics.query_process("started");
                    if self.serve(&mut process).await.is_none() {
                        return;
                    }
                    process.end().await;
                }
                Err(error) => {
                    tracing::error!(code = %error.code(), "no queries are answered: {error}");
                    self.refuse(error).await;
                }
            }
        }
    }

    /// Has a process answer until it is of no more use; `None` where no more is asked.
    async fn serve(&self, process: &mut Process) -> Option<()> {
        let why = loop {
            let job = tokio::select! {
                biased;
                () = process.gone() => break Why::Crashed,
                job = self.next() => job?,
            };
            if let Some(why) = process.answer(job).await {
                break why;
            }
        };
        self.metrics.query_process(why.as_str());
        Some(())
    }

    async fn next(&self) -> Option<Job> {
        self.jobs.lock().await.recv().await
    }

    /// Tells whoever asks in the next moment why there is no process.
    async fn refuse(&self, error: Error) {
        if let Ok(Some(job)) = timeout(START_AGAIN, self.next()).await {
            // They may have gone.
            let _ = job.reply.send(Ok(Part::Taken)).await;
            let _ = job.reply.send(Err(error)).await;
        }
    }
}
