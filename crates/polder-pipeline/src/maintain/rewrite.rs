//! The same rows in better files: small ones merged, deletes applied, old ones brought into the
//! partitions that new ones have.
//!
//! What is worth it is `polder_core::optimize`'s word. A group of files at a time is read, written anew
//! and exchanged in one commit, so that queries are right at every moment, work that was done stays
//! done, and runs go on meanwhile: a commit in between that touches the group makes it be planned anew.

use std::collections::HashSet;
use std::time::Instant;

use polder_core::optimize::{self, Aim, Bin, FileCost};
use polder_core::spec::{EngineKind, PartitionField, SortField};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use polder_lake::{Lake, LakeTable, StagedFile, TableFiles};
use serde::Serialize;

use super::action::MaintainLimits;
use super::copy::{Copied, Copy};

/// How often a group is done anew after a commit in between.
const ATTEMPTS_MAX: u32 = 5;

/// Which files are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those that are worth it.
    Worthwhile,
    /// Those that are not partitioned as asked.
    Misplaced,
}

/// One table to rewrite.
#[derive(Clone)]
pub struct RewriteRequest {
    pub org: Authorized<OrgId>,
    pub table: String,
    pub wanted: Wanted,
    pub aim: Aim,
    /// How all files shall be partitioned.
    pub partition: Vec<PartitionField>,
    /// How rows of rewritten files shall be sorted; `None` as the table is.
    pub sort: Option<Vec<SortField>>,
    pub limits: MaintainLimits,
    /// Only say what a rewrite would replace.
    pub dry_run: bool,
}

/// What was done to one table, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RewriteReport {
    pub org: String,
    pub table: String,
    /// Who did it.
    pub engine: EngineKind,
    pub dry_run: bool,
    pub files_replaced: usize,
    pub files_written: usize,
    /// Delete files that nothing is left for.
    pub delete_files_removed: usize,
    /// Rows written.
    pub rows: u64,
    /// Rows that were deleted, and are in no file now.
    pub rows_deleted: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub commits: usize,
    pub duration_ms: u64,
}

/// Rewrites the wanted files of the table, group by group.
///
/// # Errors
/// `lake.not_found` for a table that is not there; `lake.conflict` if runs kept changing the files;
/// `cancelled`. Groups that were exchanged stay so.
pub async fn rewrite(lake: &Lake, request: &RewriteRequest) -> Result<RewriteReport> {
    let started = Instant::now();
    let mut report = RewriteReport {
        org: request.org.get().to_string(),
        table: request.table.clone(),
        dry_run: request.dry_run,
        ..RewriteReport::default()
    };
    // What this call has made is not made again, whatever size it came out at.
    let mut made = HashSet::new();
    let mut attempt = 1;
    loop {
        if request.limits.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the rewrite was cancelled")
                .hint("what was done stays done; run it again for the rest"));
        }
        let group = match plan(lake, request, &made).await {
            Ok(group) => group,
            Err(error) => return Err(named(error, request)),
        };
        if group.is_empty() || request.dry_run {
            report.planned(&group, request.dry_run);
            report.duration_ms = started.elapsed().as_millis() as u64;
            return Ok(report);
        }
        match exchange(lake, request, &group).await {
            Ok(copied) => {
                attempt = 1;
                made.extend(copied.files.iter().map(|file| file.location().to_owned()));
                report.exchanged(&group, &copied);
            }
            Err(error) if error.retryable() && attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(named(error, request)),
        }
    }
}

/// What one commit exchanges.
struct Group {
    files: TableFiles,
    sort: Option<Vec<SortField>>,
    bins: Vec<Bin>,
    /// Delete files that delete nothing.
    dead: Vec<String>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.bins.is_empty() && self.dead.is_empty()
    }

    fn costs(&self) -> impl Iterator<Item = &FileCost> {
        self.bins.iter().flat_map(|bin| &bin.files).map(|at| &self.files.files()[*at].cost)
    }
}

impl RewriteReport {
    fn planned(&mut self, group: &Group, dry_run: bool) {
        if dry_run {
            self.files_replaced = group.costs().count();
            self.bytes_read = group.costs().map(|cost| cost.size_bytes).sum();
            self.rows_deleted = group.costs().map(|cost| cost.deleted_rows).sum();
            self.delete_files_removed = group.dead.len();
        }
    }

    fn exchanged(&mut self, group: &Group, copied: &Copied) {
        self.commits += 1;
        self.files_replaced += group.costs().count();
        self.bytes_read += group.costs().map(|cost| cost.size_bytes).sum::<u64>();
        self.delete_files_removed += group.dead.len();
        self.files_written += copied.files.len();
        self.rows += copied.rows;
        self.rows_deleted +=
            group.costs().map(|cost| cost.rows).sum::<u64>().saturating_sub(copied.rows);
        self.bytes_written += copied.files.iter().map(StagedFile::size_bytes).sum::<u64>();
    }
}

async fn plan(lake: &Lake, request: &RewriteRequest, made: &HashSet<String>) -> Result<Group> {
    let table = load(lake, &request.org, &request.table).await?;
    let sort = request.sort.clone().or_else(|| table.sort());
    let files = table.files(&request.partition, sort.as_deref().unwrap_or_default()).await?;
    let old: Vec<usize> =
        (0..files.files().len()).filter(|at| !made.contains(&files.files()[*at].path)).collect();
    let costs: Vec<FileCost> = old.iter().map(|at| files.files()[*at].cost).collect();
    let mut bins = match request.wanted {
        Wanted::Worthwhile => optimize::plan(&costs, &request.aim),
        Wanted::Misplaced => optimize::misplaced(&costs, &request.aim),
    };
    if !request.dry_run {
        bins.truncate(optimize::first_commit(&bins, &request.aim));
    }
    for bin in &mut bins {
        bin.files.iter_mut().for_each(|at| *at = old[*at]);
    }
    let dead = match request.wanted {
        Wanted::Worthwhile => files.dead_deletes().to_vec(),
        Wanted::Misplaced => Vec::new(),
    };
    Ok(Group { files, sort, bins, dead })
}

pub(super) async fn load(lake: &Lake, org: &Authorized<OrgId>, table: &str) -> Result<LakeTable> {
    lake.table(org, table).await?.ok_or_else(|| {
        let message = format!("the lake has no table {table:?} of this org");
        Error::new(ErrorCode::LakeNotFound, message).hint("`polder tables` lists all tables")
    })
}

async fn exchange(lake: &Lake, request: &RewriteRequest, group: &Group) -> Result<Copied> {
    let copy = Copy {
        files: &group.files,
        bins: &group.bins,
        keep: polder_lake::Predicate::True,
        partition: &request.partition,
        sort: group.sort.clone(),
        target_bytes: request.aim.target_bytes,
    };
    let (stage, copied) = copy.run(lake, &request.limits).await?;
    if let Err(error) = check_rows(group, &copied) {
        stage.abort(copied.files).await;
        return Err(error);
    }
    let old = group.bins.iter().flat_map(|bin| &bin.files);
    let old = old.map(|at| group.files.files()[*at].path.clone());
    let replaced = old.chain(group.dead.iter().cloned()).collect();
    stage.rewrite_files(replaced, copied.files.clone()).await?;
    Ok(copied)
}

/// No row is lost or doubled: the files hold what is said of them, less what is deleted.
fn check_rows(group: &Group, copied: &Copied) -> Result<()> {
    let rows: u64 = group.costs().map(|cost| cost.rows).sum();
    let deleted: u64 = group.costs().map(|cost| cost.deleted_rows).sum();
    let unsure = group.bins.iter().flat_map(|bin| &bin.files);
    let unsure = unsure.map(|at| &group.files.files()[*at]).any(|file| file.unsure);
    // Two delete files may name one row; equality deletes tell no number.
    let least = if unsure { 0 } else { rows.saturating_sub(deleted) };
    let in_files: u64 = copied.files.iter().map(StagedFile::rows).sum();
    if (least..=rows).contains(&copied.rows) && in_files == copied.rows {
        return Ok(());
    }
    let detail = format!(
        "{} rows read, {in_files} written, {rows} listed, {deleted} of them deleted",
        copied.rows
    );
    Err(Error::new(ErrorCode::LakeCorrupt, "files hold other rows than is said of them")
        .detail(detail))
}

fn named(error: Error, request: &RewriteRequest) -> Error {
    let (org, table) = (request.org.get(), &request.table);
    error.within(&format!("org {org}, table {table}"))
}
