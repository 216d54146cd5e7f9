//! Rows that are too old go from a table: files of nothing else as a whole, others are rewritten
//! without them.
//!
//! That frees no byte by itself: earlier states have the files still, until expiry takes them
//! (`polder_core::retention`). That they are not read again is the run's work (`crate::ingest`).

use std::collections::HashSet;
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use polder_core::optimize::{self, Aim, Bin, FileCost};
use polder_core::spec::RetentionSpec;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use polder_lake::{Lake, LakeTable, Predicate, RowsBefore, ScanRequest, StagedFile, TableFiles};
use serde::Serialize;

use super::action::MaintainLimits;
use super::copy::{Copied, Copy};
use super::rewrite::load;

/// How often a group is done anew after a commit in between.
const ATTEMPTS_MAX: u32 = 5;

/// One table to rid of old rows.
#[derive(Clone)]
pub struct RetentionRequest {
    pub org: Authorized<OrgId>,
    pub table: String,
    pub retention: RetentionSpec,
    pub now: DateTime<Utc>,
    pub aim: Aim,
    pub limits: MaintainLimits,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went of one table, or would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetentionReport {
    pub org: String,
    pub table: String,
    pub dry_run: bool,
    pub column: String,
    /// Rows of before this moment go (RFC 3339).
    pub before: String,
    pub rows_removed: u64,
    /// Files that went as a whole.
    pub files_dropped: usize,
    /// Files with other rows too.
    pub files_replaced: usize,
    pub files_written: usize,
    pub commits: usize,
    pub duration_ms: u64,
}

/// The rows of a table that its retention does not keep now.
pub(crate) fn too_old(retention: &RetentionSpec, now: DateTime<Utc>) -> RowsBefore {
    RowsBefore { column: retention.column.clone(), micros: retention.cutoff_micros(now) }
}

/// Removes the rows that are older than the table keeps.
///
/// # Errors
/// `lake.not_found` for a table that is not there; `spec.*` for a column that cannot say a row's age;
/// `lake.conflict` if runs kept changing the files; `lake.held` for a table under legal hold; `cancelled`.
/// What went stays gone.
pub async fn retain(lake: &Lake, request: &RetentionRequest) -> Result<RetentionReport> {
    let started = Instant::now();
    if !request.dry_run {
        lake.check_hold(&request.org, Some(&request.table), "retention").await?;
    }
    let old = too_old(&request.retention, request.now);
    let mut report = RetentionReport {
        org: request.org.get().to_string(),
        table: request.table.clone(),
        dry_run: request.dry_run,
        column: old.column.clone(),
        before: DateTime::from_timestamp_micros(old.micros)
            .map_or_else(|| "for ever".to_owned(), |at| at.to_rfc3339()),
        ..RetentionReport::default()
    };
    let mut made = HashSet::new();
    let mut attempt = 1;
    loop {
        if request.limits.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "retention was cancelled")
                .hint("what went stays gone; run it again for the rest"));
        }
        let group = plan(lake, request, &old, &made).await.map_err(|e| named(e, request))?;
        if group.is_empty() || request.dry_run {
            if request.dry_run {
                report.rows_removed = count(&group.files, &old).await?;
                report.files_dropped = group.dropped.len();
                report.files_replaced = group.replaced().count();
            }
            report.duration_ms = started.elapsed().as_millis() as u64;
            return Ok(report);
        }
        match remove(lake, request, &old, &group).await {
            Ok(copied) => {
                attempt = 1;
                made.extend(copied.files.iter().map(|file| file.location().to_owned()));
                report.removed(&group, &copied);
            }
            Err(error) if error.retryable() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(named(error, request)),
        }
    }
}

/// What one commit removes, by places among the files.
struct Group {
    files: TableFiles,
    dropped: Vec<usize>,
    bins: Vec<Bin>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.bins.is_empty()
    }

    fn replaced(&self) -> impl Iterator<Item = usize> {
        self.bins.iter().flat_map(|bin| bin.files.iter().copied())
    }

    fn cost(&self, at: usize) -> &FileCost {
        &self.files.files()[at].cost
    }

    fn path(&self, at: usize) -> String {
        self.files.files()[at].path.clone()
    }
}

impl RetentionReport {
    fn removed(&mut self, group: &Group, copied: &Copied) {
        let all = group.dropped.iter().copied().chain(group.replaced());
        let live = |at: usize| group.cost(at).rows.saturating_sub(group.cost(at).deleted_rows);
        self.rows_removed += all.map(live).sum::<u64>().saturating_sub(copied.rows);
        self.files_dropped += group.dropped.len();
        self.files_replaced += group.replaced().count();
        self.files_written += copied.files.len();
        self.commits += 1;
    }
}

async fn plan(
    lake: &Lake,
    request: &RetentionRequest,
    old: &RowsBefore,
    made: &HashSet<String>,
) -> Result<Group> {
    let table = load(lake, &request.org, &request.table).await?;
    let columns = table.schema();
    let going = paths(&table, old.older(&columns)?).await?;
    let staying = paths(&table, old.others(&columns)?).await?;
    let files = table.files(&table.partition(), &[]).await?;
    let places = || files.files().iter().enumerate();
    let dropped: Vec<usize> = places()
        .filter(|(_, file)| going.contains(&file.path) && !staying.contains(&file.path))
        .map(|(at, _)| at)
        .collect();
    let mixed: Vec<usize> = places()
        .filter(|(_, file)| going.contains(&file.path) && staying.contains(&file.path))
        .filter(|(_, file)| !made.contains(&file.path))
        .map(|(at, _)| at)
        .collect();
    let costs: Vec<FileCost> = files.files().iter().map(|file| file.cost).collect();
    let mut bins = optimize::pack(&costs, &mixed, &request.aim);
    if !request.dry_run {
        bins.truncate(optimize::first_commit(&bins, &request.aim));
    }
    Ok(Group { files, dropped, bins })
}

/// The files that may hold rows the filter wants.
async fn paths(table: &LakeTable, filter: Predicate) -> Result<HashSet<String>> {
    let plan = table.plan(ScanRequest { snapshot: None, filter, columns: None }).await?;
    Ok(plan.files.into_iter().map(|file| file.path).collect())
}

async fn count(files: &TableFiles, old: &RowsBefore) -> Result<u64> {
    let table = files.table();
    let filter = old.older(&table.schema())?;
    let columns = Some(vec![old.column.clone()]);
    let mut batches = table.read(ScanRequest { snapshot: None, filter, columns }).await?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
    }
    Ok(rows)
}

async fn remove(
    lake: &Lake,
    request: &RetentionRequest,
    old: &RowsBefore,
    group: &Group,
) -> Result<Copied> {
    let table = group.files.table();
    let copy = Copy {
        files: &group.files,
        bins: &group.bins,
        keep: old.others(&table.schema())?,
        partition: &table.partition(),
        sort: table.sort(),
        target_bytes: request.aim.target_bytes,
    };
    let (stage, copied) = copy.run(lake, &request.limits).await?;
    let in_files: u64 = copied.files.iter().map(StagedFile::rows).sum();
    if in_files != copied.rows {
        stage.abort(copied.files).await;
        return Err(Error::new(ErrorCode::Internal, "the rows that stay do not add up"));
    }
    let dropped = group.dropped.iter().map(|at| group.path(*at)).collect();
    let replaced = group.replaced().map(|at| group.path(at)).collect();
    stage.remove_rows(dropped, replaced, copied.files.clone()).await?;
    Ok(copied)
}

fn named(error: Error, request: &RetentionRequest) -> Error {
    let (org, table) = (request.org.get(), &request.table);
    error.within(&format!("org {org}, table {table}"))
}
