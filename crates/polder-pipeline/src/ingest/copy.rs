//! Moves the rows of a plan's splits into staged files, several splits at a time.
//!
//! Each worker reads one split after another: one task decodes the next batch while another encodes
//! the last one. Nothing is committed here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use polder_core::{
    Content, CursorValue, Error, ErrorCode, ReadPlan, Result, Split, TableSchema, digest,
};
use polder_lake::{RowsBefore, Stage, StagedFile, TableWriter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::IngestRequest;
use super::conform::Conform;
use super::known::{Known, cursor_max};
use super::merge::Merging;

/// Batches waiting between reading and writing, per worker.
const BATCHES_WAITING_MAX: usize = 1;

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

impl Transfer<'_> {
    /// Reads every split and writes what is not stored yet.
    ///
    /// # Errors
    /// The first error of any worker; the others are stopped.
    pub(super) async fn run(self, request: &IngestRequest) -> Result<Copied, Failure> {
        let Self { plan, schema, cursor, known, merging, too_old, stage } = self;
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
            request: request.clone(),
        };
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            tasks.spawn(worker.clone().run(Arc::clone(&splits), stage.writer()));
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
        let Some(error) = failed else { return copied.checked(request) };
        Err(Failure { error, files: copied.files })
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    let what = if error.is_cancelled() { "was stopped" } else { "panicked" };
    Error::new(ErrorCode::Internal, format!("a worker of the run {what}")).caused_by(error)
}

impl Copied {
    fn add(&mut self, part: Self) {
        self.files.extend(part.files);
        self.rows_written += part.rows_written;
        self.rows_marked += part.rows_marked;
        self.content = self.content.and(part.content);
        self.rows_too_old += part.rows_too_old;
        self.cursor_max = match (self.cursor_max.take(), part.cursor_max) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
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
    request: IngestRequest,
}

impl Worker {
    async fn run(self, splits: Splits, mut writer: TableWriter) -> Result<Copied> {
        let mut copied = Copied::default();
        loop {
            let next = splits.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(split) = next else { break };
            self.copy_split(split, &mut writer, &mut copied).await?;
        }
        copied.files = writer.finish().await?;
        Ok(copied)
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
        reader.spawn(async move {
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                if sender.send(batch).await.is_err() || failed {
                    break;
                }
            }
        });
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
