//! One action on one table (or, for orphans, one org): carried out by its policy, and written down in
//! `maintenance_history`.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use polder_core::optimize::Aim;
use polder_core::retention::Retention;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Optimizer, OrgId, Result, RunProgress};
use polder_lake::{
    ExpiryRequest, Lake, MetadataRequest, MetadataTidied, OrphanRequest, Orphans, RowsBefore,
    TableSize,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::elsewhere;
use super::history;
use super::retention::{RetentionReport, RetentionRequest, retain};
use super::rewrite::{RewriteReport, RewriteRequest, Wanted, load, rewrite};

const DAY_MS: i64 = 86_400_000;
/// How long a metadata file that no table remembers stays: a commit may be about to name it.
const METADATA_MS: i64 = DAY_MS;

/// What can be done to a table between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Maintenance {
    /// Rows that are too old go.
    Retention,
    /// Small files are merged, deletes applied, partitions brought up to date, rows sorted.
    Optimize,
    /// Only files in partitions that new ones do not have are rewritten.
    Repartition,
    /// Old versions and states go, with the files that only they reached.
    Versions,
    /// Only states without a name go.
    Snapshots,
    /// Metadata of earlier states goes, and many manifests become few.
    Metadata,
}

impl Maintenance {
    /// Everything, in the order that saves most work: what goes is not rewritten first, and what was
    /// rewritten is let go after.
    pub const ALL: [Self; 4] = [Self::Retention, Self::Optimize, Self::Versions, Self::Metadata];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Optimize => "optimize",
            Self::Repartition => "repartition",
            Self::Versions => "versions",
            Self::Snapshots => "snapshots",
            Self::Metadata => "metadata",
        }
    }
}

/// What maintenance may use, and how it ends early.
#[derive(Clone, Debug)]
pub struct MaintainLimits {
    /// Bytes for batches and half-written files together.
    pub memory_bytes: usize,
    /// Bins of files rewritten at the same time.
    pub workers: NonZeroUsize,
    /// Stops between two commits.
    pub cancel: CancellationToken,
}

/// One action to carry out.
#[derive(Clone, Debug)]
pub struct MaintainRequest {
    pub org: Authorized<OrgId>,
    /// The table, with its policies.
    pub table: TableSpec,
    pub action: Maintenance,
    pub now: DateTime<Utc>,
    pub limits: MaintainLimits,
    /// Who carries out `optimize`; this process where there is none.
    pub optimizer: Option<Arc<dyn Optimizer>>,
    pub progress: Arc<RunProgress>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What an action did, or would do.
#[derive(Clone, Debug)]
pub enum Done {
    Rewritten(RewriteReport),
    /// `None`: the table keeps its rows for ever.
    Retained(Option<RetentionReport>),
    Expired(ExpiryReport),
    Tidied(MetadataTidied),
    Swept(Orphans),
}

/// Versions and states that went, or would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExpiryReport {
    /// Tags and branches.
    pub names: Vec<String>,
    /// The current version, if it names what retention has left of it from now on.
    pub moved: Vec<String>,
    /// Names that keep rows which retention has taken from the table for longer than it allows.
    pub holding: Vec<String>,
    pub snapshots: usize,
    /// `None` of a dry run.
    pub files: Option<usize>,
}

/// The report of one action.
#[derive(Clone, Debug)]
pub struct MaintainReport {
    pub id: Uuid,
    pub org: String,
    /// `None` for what is done to an org as a whole.
    pub table: Option<String>,
    pub action: &'static str,
    pub dry_run: bool,
    pub started_at: DateTime<Utc>,
    pub duration_ms: u64,
    pub before: Option<TableSize>,
    pub after: Option<TableSize>,
    pub done: Done,
}

/// Carries an action out on one table.
///
/// # Errors
/// `lake.not_found` for a table that is not there; what the action reports, after it was written down.
pub async fn maintain(lake: &Lake, request: &MaintainRequest) -> Result<MaintainReport> {
    let name = &request.table.name;
    let before = load(lake, &request.org, name).await?.size();
    let begun = Begun::now(&request.org, Some(name), request.action.as_str(), request.dry_run);
    let begun = Begun { before: Some(before), ..begun };
    let done = match carry_out(lake, request).boxed().await {
        Ok(done) => done,
        Err(error) => return begun.failed(lake, error).await,
    };
    let after = load(lake, &request.org, name).await?.size();
    begun.ended(lake, Some(after), done).await
}

/// Looks for an org's orphans.
///
/// # Errors
/// As [`Lake::orphans`], after it was written down.
pub async fn sweep(
    lake: &Lake,
    org: &Authorized<OrgId>,
    request: &OrphanRequest,
) -> Result<MaintainReport> {
    let begun = Begun::now(org, None, "orphans", request.dry_run);
    match lake.orphans(org, request).boxed().await {
        Ok(found) => begun.ended(lake, None, Done::Swept(found)).await,
        Err(error) => begun.failed(lake, error).await,
    }
}

async fn carry_out(lake: &Lake, request: &MaintainRequest) -> Result<Done> {
    match request.action {
        Maintenance::Retention => retain_rows(lake, request).boxed().await.map(Done::Retained),
        Maintenance::Optimize => match &request.optimizer {
            Some(optimizer) => elsewhere::optimize(lake, request, &**optimizer).boxed().await,
            None => files(lake, request, Wanted::Worthwhile).await,
        },
        Maintenance::Repartition => files(lake, request, Wanted::Misplaced).await,
        Maintenance::Versions => {
            let versions = request.table.maintenance.keep_versions;
            expire(lake, request, versions).boxed().await.map(Done::Expired)
        }
        Maintenance::Snapshots => {
            expire(lake, request, usize::MAX).boxed().await.map(Done::Expired)
        }
        Maintenance::Metadata => {
            let wanted = MetadataRequest {
                files: request.table.maintenance.keep_metadata_files,
                older_than_ms: METADATA_MS,
                dry_run: request.dry_run,
            };
            lake.tidy_metadata(&request.org, &request.table.name, &wanted)
                .boxed()
                .await
                .map(Done::Tidied)
        }
    }
}

fn aim(request: &MaintainRequest) -> Aim {
    let policy = &request.table.maintenance;
    Aim { sorts: policy.sort_files, ..Aim::at(policy.target_file_mb << 20) }
}

async fn files(lake: &Lake, request: &MaintainRequest, wanted: Wanted) -> Result<Done> {
    let rewriting = RewriteRequest {
        org: request.org.clone(),
        table: request.table.name.clone(),
        wanted,
        aim: aim(request),
        partition: request.table.partition.clone(),
        sort: request.table.sort.clone(),
        limits: request.limits.clone(),
        dry_run: request.dry_run,
    };
    rewrite(lake, &rewriting).boxed().await.map(Done::Rewritten)
}

async fn retain_rows(lake: &Lake, request: &MaintainRequest) -> Result<Option<RetentionReport>> {
    let Some(retention) = request.table.retention.clone() else { return Ok(None) };
    let wanted = RetentionRequest {
        org: request.org.clone(),
        table: request.table.name.clone(),
        retention,
        now: request.now,
        aim: aim(request),
        limits: request.limits.clone(),
        dry_run: request.dry_run,
    };
    Box::pin(retain(lake, &wanted)).await.map(Some)
}

async fn expire(lake: &Lake, request: &MaintainRequest, versions: usize) -> Result<ExpiryReport> {
    let policy = &request.table.maintenance;
    let wanted = ExpiryRequest {
        retention: Retention {
            versions,
            history_ms: i64::from(policy.keep_snapshots_days) * DAY_MS,
            history_min: policy.keep_snapshots,
        },
        overdue: request.table.retention.as_ref().map(|kept| RowsBefore {
            column: kept.column.clone(),
            micros: kept.overdue_micros(request.now),
        }),
    };
    let (org, table) = (&request.org, &request.table.name);
    if request.dry_run {
        let planned = lake.expiry(org, table, wanted).await?;
        return Ok(ExpiryReport {
            names: planned.names,
            moved: planned.moved,
            holding: planned.holding,
            snapshots: planned.snapshots.len(),
            files: None,
        });
    }
    let done = lake.expire(org, table, wanted, Uuid::new_v4()).await?;
    Ok(ExpiryReport {
        names: done.names,
        moved: done.moved,
        holding: done.holding,
        snapshots: done.snapshots,
        files: Some(done.files),
    })
}

/// An action under way.
struct Begun {
    id: Uuid,
    org: Authorized<OrgId>,
    table: Option<String>,
    action: &'static str,
    dry_run: bool,
    started_at: DateTime<Utc>,
    clock: Instant,
    before: Option<TableSize>,
}

impl Begun {
    fn now(
        org: &Authorized<OrgId>,
        table: Option<&str>,
        action: &'static str,
        dry_run: bool,
    ) -> Self {
        Self {
            id: Uuid::new_v4(),
            org: org.clone(),
            table: table.map(str::to_owned),
            action,
            dry_run,
            started_at: Utc::now(),
            clock: Instant::now(),
            before: None,
        }
    }

    fn report(&self, after: Option<TableSize>, done: Done) -> MaintainReport {
        MaintainReport {
            id: self.id,
            org: self.org.get().to_string(),
            table: self.table.clone(),
            action: self.action,
            dry_run: self.dry_run,
            started_at: self.started_at,
            duration_ms: self.clock.elapsed().as_millis() as u64,
            before: self.before,
            after,
            done,
        }
    }

    async fn ended(
        self,
        lake: &Lake,
        after: Option<TableSize>,
        done: Done,
    ) -> Result<MaintainReport> {
        let report = self.report(after, done);
        if !self.dry_run {
            let written = history::ended(lake, &report).await;
            written
                .map_err(|error| error.within("the work is done, and could not be written down"))?;
        }
        Ok(report)
    }

    async fn failed(self, lake: &Lake, error: polder_core::Error) -> Result<MaintainReport> {
        if !self.dry_run {
            let nothing = self.report(None, Done::Retained(None));
            if let Err(unwritten) = history::failed(lake, &nothing, &error).await {
                tracing::warn!(
                    org = %self.org.get(), action = self.action,
                    "a failed action could not be written down: {unwritten}",
                );
            }
        }
        Err(error)
    }
}

impl Done {
    /// What was done, as JSON: an object.
    pub fn document(&self) -> serde_json::Value {
        let value = match self {
            Self::Rewritten(report) => serde_json::to_value(report),
            Self::Retained(report) => serde_json::to_value(report),
            Self::Expired(report) => serde_json::to_value(report),
            Self::Tidied(report) => serde_json::to_value(report),
            Self::Swept(report) => serde_json::to_value(report),
        };
        value.unwrap_or_default()
    }

    /// Whether anything was changed, or would be.
    pub fn changed(&self) -> bool {
        match self {
            Self::Rewritten(report) => report.files_replaced > 0 || report.delete_files_removed > 0,
            Self::Retained(report) => report.as_ref().is_some_and(|report| report.rows_removed > 0),
            Self::Expired(report) => {
                let names = report.names.len() + report.moved.len();
                names + report.snapshots + report.files.unwrap_or(0) > 0
            }
            Self::Tidied(report) => {
                report.files > 0 || report.manifests_after < report.manifests_before
            }
            Self::Swept(report) => report.quarantined + report.restored + report.purged > 0,
        }
    }
}
