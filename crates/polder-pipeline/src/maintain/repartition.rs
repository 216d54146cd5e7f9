//! Bringing old files into the partitions that new ones have.
//!
//! A group of files at a time is read, written anew under the present spec and exchanged in one
//! commit, so that queries are right at every moment, work that was done stays done, and runs go on
//! meanwhile.

use std::collections::HashSet;
use std::time::Instant;

use futures::TryStreamExt;
use polder_core::spec::PartitionField;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use polder_lake::{Lake, LakeTable, ScanFile, StageKind, StageRequest, StagedFile};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Bytes of old files that one commit exchanges, at most; at least one file is.
const GROUP_BYTES_MAX: u64 = 1 << 30;
/// The size data files aim at.
const TARGET_FILE_BYTES: u64 = 128 << 20;
/// How often a group is done anew after a commit in between.
const ATTEMPTS_MAX: u32 = 5;

/// One table to repartition.
#[derive(Clone)]
pub struct RepartitionRequest {
    pub org: Authorized<OrgId>,
    pub table: String,
    /// How all files shall be partitioned.
    pub partition: Vec<PartitionField>,
    /// Bytes for batches and half-written files together.
    pub memory_bytes: usize,
    /// Stops between two groups.
    pub cancel: CancellationToken,
}

/// What was done to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepartitionReport {
    pub org: String,
    pub table: String,
    pub files_replaced: usize,
    pub files_written: usize,
    pub rows: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub commits: usize,
    pub duration_ms: u64,
}

/// Rewrites every file of the table that is not partitioned as asked.
///
/// # Errors
/// `lake.not_found` for a table that is not there; `lake.conflict` if runs kept changing the files;
/// `cancelled`. Groups that were exchanged stay so.
pub async fn repartition(lake: &Lake, request: &RepartitionRequest) -> Result<RepartitionReport> {
    let started = Instant::now();
    let mut report = RepartitionReport {
        org: request.org.get().to_string(),
        table: request.table.clone(),
        ..RepartitionReport::default()
    };
    let mut attempt = 1;
    loop {
        if request.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "repartitioning was cancelled")
                .hint("what was done stays done; run it again for the rest"));
        }
        let table = load(lake, request).await?;
        let group = group(table.files_partitioned_otherwise(&request.partition).await?);
        if group.is_empty() {
            report.duration_ms = started.elapsed().as_millis() as u64;
            return Ok(report);
        }
        match exchange(lake, request, &table, &group).await {
            Ok(files) => {
                attempt = 1;
                report.commits += 1;
                report.files_replaced += group.len();
                report.bytes_read += group.iter().map(|file| file.size_bytes).sum::<u64>();
                report.files_written += files.len();
                report.rows += files.iter().map(StagedFile::rows).sum::<u64>();
                report.bytes_written += files.iter().map(StagedFile::size_bytes).sum::<u64>();
            }
            Err(error) if error.retryable() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => {
                let (org, table) = (request.org.get(), &request.table);
                return Err(error.within(&format!("org {org}, table {table}")));
            }
        }
    }
}

async fn load(lake: &Lake, request: &RepartitionRequest) -> Result<LakeTable> {
    lake.table(&request.org, &request.table).await?.ok_or_else(|| {
        let message = format!("the lake has no table {:?} of this org", request.table);
        Error::new(ErrorCode::LakeNotFound, message).hint("`polder tables` lists all tables")
    })
}

/// The first files, as many as one commit exchanges.
fn group(files: Vec<ScanFile>) -> Vec<ScanFile> {
    let mut bytes = 0;
    let small = |file: &ScanFile| {
        let first = bytes == 0;
        bytes += file.size_bytes;
        first || bytes <= GROUP_BYTES_MAX
    };
    files.into_iter().take_while(small).collect()
}

async fn exchange(
    lake: &Lake,
    request: &RepartitionRequest,
    table: &LakeTable,
    group: &[ScanFile],
) -> Result<Vec<StagedFile>> {
    let stage = StageRequest {
        run_id: Uuid::new_v4(),
        schema: table.schema(),
        partition: request.partition.clone(),
        kind: StageKind::Files,
        target_file_bytes: TARGET_FILE_BYTES,
        memory_bytes: request.memory_bytes / 2,
    };
    let stage = lake.stage_on(table, stage)?;
    let old: HashSet<String> = group.iter().map(|file| file.path.clone()).collect();
    let mut batches = table.read_files(&old).await?;
    let mut writer = stage.writer();
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(batch).await?;
    }
    let files = writer.finish().await?;
    let whole = group.iter().all(|file| !file.has_deletes);
    let listed: Option<u64> = group.iter().map(|file| file.rows).sum();
    if whole && listed.is_some_and(|listed| listed != rows) {
        stage.abort(files).await;
        return Err(Error::new(
            ErrorCode::LakeCorrupt,
            "files hold other rows than is said of them",
        )
        .detail(format!("{rows} rows read, {} listed", listed.unwrap_or_default())));
    }
    stage.rewrite_files(old.into_iter().collect(), files.clone()).await?;
    Ok(files)
}
