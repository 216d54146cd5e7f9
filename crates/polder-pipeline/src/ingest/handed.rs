//! A run whose rows another engine reads and writes: it fills a table that the run has made for it, in one
//! statement, which reads one state of the source.
//!
//! What it wrote is read back here, row by row, before any of it is published: of a full load, files are
//! taken as they are where that can be; otherwise their rows go the way of all rows, past those that are
//! known, marked or too old, into files of the run's own.

use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::{FutureExt, StreamExt, TryStreamExt};
use polder_core::{
    Batch, BatchStream, Carried, Content, Error, ErrorCode, Handover, Import, Imported, Importer,
    ReadPlan, ReadRequest, Result, RunProgress, Source, Split, Standing, digest,
};
use polder_lake::failpoint::{self, Point};
use polder_lake::{ScanFile, Stage, StagedFile};

use super::copy::{Copied, Failure, Transfer};
use super::known::cursor_max;
use super::{IngestRequest, TARGET_FILE_BYTES};

/// What another engine is to ask the source.
pub(super) struct Handed {
    statement: String,
    columns: Vec<Carried>,
    cursor_is_coarse: bool,
    standing: Box<dyn Standing>,
}

impl Handed {
    /// See [`Split::cursor_is_coarse`].
    pub(super) fn cursor_is_coarse(&self) -> bool {
        self.cursor_is_coarse
    }
}

/// Plans a read, for whoever carries it out.
pub(super) async fn plan(
    source: &dyn Source,
    request: &IngestRequest,
    read: ReadRequest,
) -> Result<(ReadPlan, Option<Handed>)> {
    if request.importer.is_none() {
        return Ok((source.plan(read).await?, None));
    }
    let Handover { plan, cursor_is_coarse, statement, columns, standing } =
        source.hand_over(read).await?;
    Ok((plan, Some(Handed { statement, columns, cursor_is_coarse, standing })))
}

/// Reads what was planned, here or by the other engine.
///
/// # Errors
/// As of [`Transfer::run`], and what the other engine ends with.
pub(super) async fn read(
    mut transfer: Transfer<'_>,
    handed: Option<Handed>,
    request: &IngestRequest,
) -> Result<Copied, Failure> {
    let (Some(handed), Some(importer)) = (handed, request.importer.clone()) else {
        return transfer.run(request).await;
    };
    if let Some(rows) = transfer.plan.rows_estimated {
        request.progress.estimate(rows);
    }
    let stage = transfer.stage;
    let files = Box::pin(fill(&*importer, handed, request, stage)).await;
    let files = files.map_err(|error| Failure { error, files: Vec::new() })?;
    let outcome = if transfer.takes_all() {
        take((stage, transfer.cursor), &files, request).await
    } else {
        // They are in the table's columns already.
        transfer.plan.schema.clone_from(transfer.schema);
        transfer.plan.splits = Vec::with_capacity(files.len());
        for file in &files {
            let rows = stage.read_handed(file);
            let rows = rows.map_err(|error| Failure { error, files: Vec::new() })?;
            transfer.plan.splits.push(Box::new(HandedSplit::new(file, rows, &request.progress)));
        }
        transfer.run(request).await
    };
    let outcome = outcome.and_then(|copied| all_read(copied, &files, request));
    let kept = match &outcome {
        Ok(copied) => &copied.files,
        Err(failure) => &failure.files,
    };
    stage.drop_handed(&files, kept).await;
    outcome
}

/// Has the other engine write its files.
async fn fill(
    importer: &dyn Importer,
    handed: Handed,
    request: &IngestRequest,
    stage: &Stage,
) -> Result<Vec<ScanFile>> {
    let Handed { statement, columns, standing, .. } = handed;
    let intake = stage.open_intake().await?;
    let import = Import {
        org: &request.org,
        source: &request.table.source,
        statement: &statement,
        columns: &columns,
        table: intake.name(),
        file_mb: TARGET_FILE_BYTES >> 20,
    };
    let outcome = tokio::select! {
        outcome = importer.import(import, &request.progress) => outcome,
        error = standing.disturbed() => Err(error),
    };
    // The table's columns were those of the plan until here.
    let stood = standing.release().await;
    failpoint::reach(Point::SplitRead).await?;
    let files = match outcome.and_then(|done| stood.map(|()| done)) {
        Ok(Imported { rows, mark }) => {
            tracing::info!(rows, query = mark.value, "another engine has written the rows");
            stage.intake_files(&intake, &Imported { rows, mark }).await
        }
        Err(error) => Err(error),
    };
    let closed = stage.close_intake(intake).await;
    files.and_then(|files| closed.map(|()| files))
}

/// Every row that was written was read back.
fn all_read(
    copied: Copied,
    files: &[ScanFile],
    request: &IngestRequest,
) -> Result<Copied, Failure> {
    let written: u64 = files.iter().filter_map(|file| file.rows).sum();
    let read = request.progress.snapshot().rows_read;
    if read == written {
        return Ok(copied);
    }
    let message = "another engine's files have other rows than it has counted";
    let error = Error::new(ErrorCode::LakeAuditFailed, message)
        .detail(format!("{written} written, {read} read back"))
        .hint("nothing was published; run again");
    Err(Failure { error, files: copied.files })
}

/// Takes the files of a full load over, several at a time.
async fn take(
    (stage, cursor): (&Stage, Option<&str>),
    files: &[ScanFile],
    request: &IngestRequest,
) -> Result<Copied, Failure> {
    let at_once = request.limits.splits.get();
    let parts: Vec<_> =
        files.iter().map(|file| take_one(stage, cursor, file, request).boxed()).collect();
    let mut parts = futures::stream::iter(parts).buffer_unordered(at_once);
    let mut copied = Copied::default();
    let mut failed = None;
    while let Some(part) = parts.next().await {
        match part {
            Ok((part, files)) => {
                copied.add(part);
                copied.files.extend(files);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(parts);
    copied.ended(failed, request).await
}

/// Takes a file over, or writes its rows anew; what is in it.
async fn take_one(
    stage: &Stage,
    cursor: Option<&str>,
    file: &ScanFile,
    request: &IngestRequest,
) -> Result<(Copied, Vec<StagedFile>)> {
    let mut copied = Copied::default();
    request.progress.add_read(0, file.size_bytes);
    let see = |records: &RecordBatch| -> Result<()> {
        if request.cancel.is_cancelled() {
            return Err(super::cancelled());
        }
        if let Some(cursor) = cursor {
            let seen = cursor_max(records, cursor)?;
            copied.cursor_max = match (copied.cursor_max.take(), seen) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            };
        }
        let rows = records.num_rows() as u64;
        let digest = digest::content(records)?;
        copied.content = copied.content.and(Content { rows, digest });
        copied.rows_written += rows;
        request.progress.add_read(rows, 0);
        request.progress.add_written(rows);
        Ok(())
    };
    if let Some(taken) = stage.take_handed(file, see).await? {
        return Ok((copied, vec![taken]));
    }
    let (mut rows, mut writer) = (stage.read_handed(file)?, stage.writer());
    while let Some(records) = rows.try_next().await? {
        writer.write(records).await?;
    }
    let files = writer.finish().await?;
    Ok((copied, files))
}

/// A file of another engine's, as a split of the run.
struct HandedSplit {
    name: String,
    size_bytes: u64,
    rows: polder_lake::BatchStream,
    progress: Arc<RunProgress>,
}

impl HandedSplit {
    fn new(file: &ScanFile, rows: polder_lake::BatchStream, progress: &Arc<RunProgress>) -> Self {
        let name = file.path.rsplit('/').next().unwrap_or_default().to_owned();
        Self { name, size_bytes: file.size_bytes, rows, progress: Arc::clone(progress) }
    }
}

impl Split for HandedSplit {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn read(self: Box<Self>) -> BatchStream {
        let Self { size_bytes, rows, progress, .. } = *self;
        progress.add_read(0, size_bytes);
        Box::pin(rows.map(move |records| {
            let records = records?;
            progress.add_read(records.num_rows() as u64, 0);
            Ok(Batch { records })
        }))
    }
}
