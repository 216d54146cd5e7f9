//! Reads files of a table and stages their rows anew, several bins at a time.
//!
//! Each worker writes one bin after another into files of its own, while a task of its own reads the
//! next batch: reading and encoding keep every core busy. Nothing is committed here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use polder_core::optimize::Bin;
use polder_core::spec::PartitionField;
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{
    BatchStream, Lake, Predicate, Stage, StageKind, StageRequest, StagedFile, TableFiles,
    TableWriter,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::action::MaintainLimits;

/// Batches waiting between reading and writing, per worker.
const BATCHES_WAITING_MAX: usize = 1;

/// One copy to do.
pub(super) struct Copy<'a> {
    pub(super) files: &'a TableFiles,
    pub(super) bins: &'a [Bin],
    /// The rows that stay.
    pub(super) keep: Predicate,
    pub(super) partition: &'a [PartitionField],
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
        let stage = StageRequest {
            run_id: Uuid::new_v4(),
            schema: table.schema(),
            partition: self.partition.to_vec(),
            kind: StageKind::Files,
            target_file_bytes: self.target_bytes,
            memory_bytes: limits.memory_bytes / 2,
        };
        let stage = lake.stage_on(table, stage)?;
        let streams = self.bins.iter().map(|bin| self.files.read(&bin.files, self.keep.clone()));
        let streams = streams.collect::<Result<VecDeque<BatchStream>>>()?;
        let workers = self.bins.len().min(limits.workers.get());
        let streams: Streams = Arc::new(Mutex::new(streams));
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            tasks.spawn(work(Arc::clone(&streams), stage.writer(), limits.cancel.clone()));
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

async fn work(
    streams: Streams,
    mut writer: TableWriter,
    cancel: CancellationToken,
) -> Result<Copied> {
    let mut rows = 0;
    loop {
        let next = streams.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(mut stream) = next else { break };
        let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                if sender.send(batch).await.is_err() || failed {
                    break;
                }
            }
        });
        while let Some(batch) = batches.recv().await {
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorCode::Cancelled, "the rewrite was cancelled")
                    .hint("what was done stays done; run it again for the rest"));
            }
            let batch = batch?;
            rows += batch.num_rows() as u64;
            writer.write(batch).await?;
        }
        if let Some(Err(error)) = reader.join_next().await {
            return Err(panicked(error));
        }
    }
    Ok(Copied { files: writer.finish().await?, rows })
}

fn panicked(error: tokio::task::JoinError) -> Error {
    let what = if error.is_cancelled() { "was stopped" } else { "panicked" };
    Error::new(ErrorCode::Internal, format!("a worker of the rewrite {what}")).caused_by(error)
}
