//! Moves the rows of a plan's splits into staged files, several splits at a time.
//!
//! Each worker reads one split after another: one task decodes the next batch while another encodes
//! the last one. In a full load, a split whose connection breaks is read once more, into files of its own,
//! where the source still has the state that is read. Nothing is committed here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use polder_core::{
    Content, CursorValue, Error, ErrorCode, ReadPlan, Result, Split, TableSchema, digest,
};
use polder_lake::failpoint::{self, Point};
use polder_lake::{RowsBefore, Stage, StagedFile, TableWriter, Writers};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::IngestRequest;
use super::conform::Conform;
use super::known::{Known, cursor_max};
use super::merge::Merging;

/// Batches waiting between reading and writing, per worker.
const BATCHES_WAITING_MAX: usize = 1;
/// How often a split is read while its connection breaks.
const SPLIT_READS_MAX: u32 = 4;
/// Before it is read the second time; later pauses are longer.
const SPLIT_PAUSE: Duration = Duration::from_millis(500);

/// One copy to do.
pub(super) struct Transfer<'a> {
    pub(super) plan: ReadPlan,
    /// The table's schema after the run.
    pub(super) schema: &'a TableSchema,
    pub(super) cursor: Option<&'a str>,
    pub(super) known: Arc<Known>,
    /// In `mode: merge`.
    pub(super) merging: Option<Arc<Merging>>,
    /// Rows that the table does not keep.
    pub(super) too_old: Option<RowsBefore>,
    /// No rows of the table stay.
    pub(super) full: bool,
    pub(super) stage: &'a Stage,
}

/// What was copied.
#[derive(Default)]
pub(super) struct Copied {
    pub(super) files: Vec<StagedFile>,
    pub(super) rows_written: u64,
    /// Rows that the source marks as deleted.
    pub(super) rows_marked: u64,
    /// Of the rows written.
    pub(super) content: Content,
    /// Rows left out because the table does not keep them any more.
    pub(super) rows_too_old: u64,
    /// The highest cursor value read, stored before or not.
    pub(super) cursor_max: Option<CursorValue>,
    /// What the reader of the run's report should know.
    pub(super) warnings: Vec<String>,
}

/// A copy that failed, with the files it had finished, for removal.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) files: Vec<StagedFile>,
}

impl Failure {
    /// Removes the files with the stage; what went wrong.
    pub(super) async fn clean_up(self, stage: Stage) -> Error {
        stage.abort(self.files).await;
        self.error
    }
}

type Splits = Arc<Mutex<VecDeque<Box<dyn Split>>>>;

/// The files of all workers, those that were stopped too.
type Finished = Arc<Mutex<Vec<StagedFile>>>;

impl Transfer<'_> {
    /// Whether every row that is read is stored.
    pub(super) fn takes_all(&self) -> bool {
        self.full && self.merging.is_none() && self.too_old.is_none()
    }

    /// Reads every split and writes what is not stored yet.
    ///
    /// # Errors
    /// The first error of any worker; the others are stopped.
    pub(super) async fn run(self, request: &IngestRequest) -> Result<Copied, Failure> {
        let Self { plan, schema, cursor, known, merging, too_old, full, stage } = self;
        let ReadPlan { schema: read_schema, splits, rows_estimated, .. } = plan;
        if let Some(rows) = rows_estimated {
            request.progress.estimate(rows);
        }
        let conform = Conform::new(&read_schema, schema);
        let workers = splits.len().min(request.limits.splits.get());
        let splits: Splits = Arc::new(Mutex::new(splits.into()));
        let worker = Worker {
            conform: conform.map_err(|error| Failure { error, files: Vec::new() })?,
            known,
            merging,
            cursor: cursor.map(str::to_owned),
            too_old: too_old.map(|rows| (rows, Arc::new(schema.clone()))),
            full,
            writers: stage.writers(),
            finished: Finished::default(),
            request: request.clone(),
        };
        let finished = Arc::clone(&worker.finished);
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let work = worker.clone().run(Arc::clone(&splits));
            tasks.spawn(work.in_current_span());
        }
        let mut copied = Copied::default();
        let mut failed = None;
        while let Some(joined) = tasks.join_next().await {
            match joined.map_err(panicked).and_then(|outcome| outcome) {
                Ok(part) => copied.add(part),
                Err(error) => {
                    // The first error counts; those that follow are its echoes.
                    failed.get_or_insert(error);
                    tasks.abort_all();
                }
            }
        }
        copied.files = std::mem::take(&mut *lock(&finished));
        copied.ended(failed, request).await
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panicked(error: tokio::task::JoinError) -> Error {
    let what = if error.is_cancelled() { "was stopped" } else { "panicked" };
    Error::new(ErrorCode::Internal, format!("a worker of the run {what}")).caused_by(error)
}

impl Copied {
    /// All but the files.
    pub(super) fn add(&mut self, part: Self) {
        self.warnings.extend(part.warnings);
        self.rows_written += part.rows_written;
        self.rows_marked += part.rows_marked;
        self.content = self.content.and(part.content);
        self.rows_too_old += part.rows_too_old;
        self.cursor_max = match (self.cursor_max.take(), part.cursor_max) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }

    /// What was written, whatever the first error was; audited if there was none.
    pub(super) async fn ended(
        self,
        failed: Option<Error>,
        request: &IngestRequest,
    ) -> Result<Self, Failure> {
        let reached = match failed {
            Some(error) => Err(error),
            None => failpoint::reach(Point::Written).await,
        };
        match reached {
            Ok(()) => self.checked(request),
            Err(error) => Err(Failure { error, files: self.files }),
        }
    }

    /// The audit every run has: rows the source delivered = rows stored + known before + too old +
    /// marked as deleted, and the files hold as many as were written to them.
    fn checked(self, request: &IngestRequest) -> Result<Self, Failure> {
        let counts = request.progress.snapshot();
        let in_files: u64 = self.files.iter().map(StagedFile::rows).sum();
        let accounted =
            counts.rows_known + self.rows_too_old + self.rows_written + self.rows_marked;
        if counts.rows_read == accounted && in_files == self.rows_written {
            return Ok(self);
        }
        let detail = format!(
            "read {}, known {}, too old {}, marked {}, written {}, in files {in_files}",
            counts.rows_read,
            counts.rows_known,
            self.rows_too_old,
            self.rows_marked,
            self.rows_written,
        );
        let error = Error::new(ErrorCode::Internal, "the rows of the run do not add up")
            .detail(detail)
            .hint("nothing was published; please report this");
        Err(Failure { error, files: self.files })
    }
}

#[derive(Clone)]
struct Worker {
    conform: Conform,
    known: Arc<Known>,
    merging: Option<Arc<Merging>>,
    cursor: Option<String>,
    /// With the table's columns.
    too_old: Option<(RowsBefore, Arc<TableSchema>)>,
    full: bool,
    writers: Writers,
    finished: Finished,
    request: IngestRequest,
}

impl Worker {
    async fn run(self, splits: Splits) -> Result<Copied> {
        let mut copied = Copied::default();
        // Of the splits that can be read once only.
        let mut writer = None;
        loop {
            let next = lock(&splits).pop_front();
            let Some(split) = next else { break };
            if self.full && split.again().is_some() {
                copied.add(self.copy_patiently(split).await?);
            } else {
                let writer = writer.get_or_insert_with(|| self.writers.writer());
                self.copy_split(split, writer, &mut copied).await?;
            }
            failpoint::reach(Point::SplitRead).await?;
        }
        if let Some(writer) = writer {
            let files = writer.finish().await?;
            lock(&self.finished).extend(files);
        }
        Ok(copied)
    }

    /// Reads a split into files of its own, and once more from its beginning where its connection breaks.
    /// Of a read that broke off nothing stays.
    async fn copy_patiently(&self, mut split: Box<dyn Split>) -> Result<Copied> {
        let mut warnings = Vec::new();
        let mut read = 0;
        loop {
            read += 1;
            let (name, again) = (split.describe(), split.again());
            let mut writer = self.writers.writer();
            let mut copied = Copied::default();
            let error = match self.copy_split(split, &mut writer, &mut copied).await {
                Ok(()) => {
                    let files = writer.finish().await?;
                    lock(&self.finished).extend(files);
                    copied.warnings = warnings;
                    return Ok(copied);
                }
                Err(error) => error,
            };
            drop(writer);
            let broken = error.code() == ErrorCode::SourceUnavailable && read < SPLIT_READS_MAX;
            let Some(next) = again.filter(|_| broken) else { return Err(error) };
            tracing::warn!(
                org = %self.request.org.get(), split = name, read,
                "the split is read again, of the same state: {error}",
            );
            warnings.push(format!("{name} was read again, of the same state, after: {error}"));
            self.request.progress.take_back_written(copied.rows_written);
            split = next;
            tokio::select! {
                () = self.request.cancel.cancelled() => return Err(super::cancelled()),
                () = tokio::time::sleep(SPLIT_PAUSE * read) => {}
            }
        }
    }

    async fn copy_split(
        &self,
        split: Box<dyn Split>,
        writer: &mut TableWriter,
        copied: &mut Copied,
    ) -> Result<()> {
        tracing::debug!(org = %self.request.org.get(), split = split.describe(), "reading");
        let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let mut reader = JoinSet::new();
        let mut stream = split.read();
        let read = async move {
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                if sender.send(batch).await.is_err() || failed {
                    break;
                }
            }
        };
        reader.spawn(read.in_current_span());
        while let Some(batch) = batches.recv().await {
            if self.request.cancel.is_cancelled() {
                return Err(super::cancelled());
            }
            let records = batch?.records;
            if records.num_rows() == 0 {
                continue;
            }
            let mut records = self.conform.apply(records)?;
            if let Some(cursor) = &self.cursor {
                let seen = cursor_max(&records, cursor)?;
                copied.cursor_max = match (copied.cursor_max.take(), seen) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    (a, b) => a.or(b),
                };
                if let Some(merging) = &self.merging {
                    let before = records.num_rows();
                    records = merging.take(records)?;
                    copied.rows_marked += (before - records.num_rows()) as u64;
                }
                let before = records.num_rows();
                records = self.known.without(records)?;
                self.request.progress.add_known((before - records.num_rows()) as u64);
            }
            if let Some((too_old, columns)) = &self.too_old {
                let before = records.num_rows();
                records = too_old.without(columns, &records)?;
                copied.rows_too_old += (before - records.num_rows()) as u64;
            }
            let rows = records.num_rows() as u64;
            if rows > 0 {
                let digest = digest::content(&records)?;
                copied.content = copied.content.and(Content { rows, digest });
                writer.write(records).await?;
                copied.rows_written += rows;
                self.request.progress.add_written(rows);
            }
        }
        match reader.join_next().await {
            Some(Err(error)) => Err(panicked(error)),
            _ => Ok(()),
        }
    }
}
