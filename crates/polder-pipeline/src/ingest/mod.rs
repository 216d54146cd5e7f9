//! One run of one table: plan, read the splits, conform, write, audit, and publish in one commit.
//!
//! ```text
//! decide (full or since the checkpoint) ─► source.plan ─► evolution ─► stage ─► copy ─► (merge) ─► commit
//! ```
//!
//! Another engine may read and write the rows: see `handed`.
//!
//! Readers see the old state until the commit and the new one after it. A run that is killed leaves
//! staged files that no metadata names; the next run starts from the table's own checkpoint.

mod checkpoint;
pub(crate) mod conform;
mod copy;
mod gate;
mod guarantee;
mod handed;
mod known;
mod merge;
mod report;
mod scope;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_core::evolution::{self, Evolution, SchemaChange};
use polder_core::spec::{Mode, OnSchemaChange, TableSpec};
use polder_core::{
    Authorized, Checkpoint, ConnectionLimits, Content, CursorRange, Engine, Error, ErrorCode,
    Importer, OrgId, Predicate, ReadPlan, ReadRequest, Result, RunProgress, Source,
    Stage as RunStage, TableSchema,
};
use polder_lake::failpoint::{self, Point};
use polder_lake::{Gate, Lake, LakeTable, RowDelta, RunSummary, Stage, StageKind, StageRequest};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};
use uuid::Uuid;

pub use guarantee::expected_guarantee;
pub use report::{IngestReport, Outcome};

use copy::Transfer;
use gate::{StagedChecks, keep_evidence};
use handed::Handed;
use known::{Known, Overlap};
use merge::{Merge, Merging};
use scope::{Scope, check_columns, decide, scope_words};

use crate::maintain::too_old;

/// How often a run is tried while its errors say that trying again may help.
const ATTEMPTS_MAX: u32 = 3;
/// The size data files aim at.
const TARGET_FILE_BYTES: u64 = 128 << 20;
/// Rows that a run may read again in vain before a checkpoint that moved is committed without rows.
const REREAD_ROWS_MAX: u64 = 10_000;
/// The bounds of a batch's size, within which it adapts to the run's memory.
const BATCH_BYTES_MIN: usize = 1 << 20;
const BATCH_BYTES_MAX: usize = 2 << 20;

/// What one run may use.
#[derive(Clone, Copy, Debug)]
pub struct IngestLimits {
    /// Splits read at the same time.
    pub splits: NonZeroUsize,
    /// Bytes for batches and half-written files together.
    pub memory_bytes: usize,
    /// Connections that the org may have to the source, over all its runs in this process.
    pub connections: Option<u32>,
}

/// One run to do.
#[derive(Clone)]
pub struct IngestRequest {
    pub org: Authorized<OrgId>,
    pub run_id: Uuid,
    pub table: TableSpec,
    /// Reload everything, whatever the mode and the checkpoint.
    pub full_refresh: bool,
    pub limits: IngestLimits,
    pub progress: Arc<RunProgress>,
    /// Answers the checks of the table spec, where they are asked before publishing.
    pub engine: Option<Arc<dyn Engine>>,
    /// Reads the source and writes the rows in this process's place.
    pub importer: Option<Arc<dyn Importer>>,
    /// Only plan, and report what a run would do; nothing is written.
    pub dry_run: bool,
    /// Stops the run at the next batch; nothing becomes visible.
    pub cancel: CancellationToken,
}

/// Brings one lake table up to date with its source.
///
/// Retries what its error says may be retried, under the same run id, so that a commit whose answer
/// was lost is found and not made twice.
///
/// # Errors
/// Whatever the source or the lake reports, named with org and table. The table is then as it was.
pub async fn ingest(
    lake: &Lake,
    source: &dyn Source,
    request: &IngestRequest,
) -> Result<IngestReport> {
    let started = Instant::now();
    let mut attempt = 1;
    let mut begun_anew = Vec::new();
    loop {
        request.progress.restart();
        let outcome = tokio::select! {
            biased;
            () = cancelled_before_the_commit(request) => Err(cancelled()),
            outcome = Box::pin(attempt_once(lake, source, request)) => outcome,
        };
        match outcome {
            Ok(mut report) => {
                request.progress.enter(RunStage::Done);
                report.attempts = attempt;
                report.warnings.append(&mut begun_anew);
                report.duration_ms = started.elapsed().as_millis() as u64;
                return Ok(report);
            }
            Err(error) if error.retryable() && attempt < ATTEMPTS_MAX => {
                tracing::warn!(
                    org = %request.org.get(), table = %request.table.name, attempt,
                    code = %error.code(), "the attempt failed and is repeated: {error}",
                );
                let pause = Duration::from_millis(500 << attempt);
                request.progress.wait_for(format!("the next attempt, after: {error}"));
                tokio::select! {
                    () = request.cancel.cancelled() => return Err(cancelled()),
                    () = tokio::time::sleep(pause) => {}
                }
                let dropped = "what was read by then was dropped";
                begun_anew.push(format!("begun anew after: {error}; {dropped}"));
                attempt += 1;
            }
            Err(error) => {
                let (org, table) = (request.org.get(), &request.table.name);
                return Err(error.within(&format!("org {org}, table {table}")));
            }
        }
    }
}

/// Ends when the run is cancelled; never once it commits, as a commit cut off may land nevertheless,
/// nor while it merges, which looks for itself and removes what was staged.
async fn cancelled_before_the_commit(request: &IngestRequest) {
    request.cancel.cancelled().await;
    if matches!(request.progress.snapshot().stage, RunStage::Merging | RunStage::Committing) {
        std::future::pending::<()>().await;
    }
}

fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "the run was cancelled")
        .hint("nothing of it is visible; the next run starts from the last checkpoint")
}

/// A run after planning: the source's fixed state and what it means for the table.
struct Planned {
    scope: Scope,
    plan: ReadPlan,
    /// The schema the table has after the run.
    schema: TableSchema,
    changes: Vec<SchemaChange>,
    /// Who else carries the read out has this to ask.
    handed: Option<Handed>,
}

async fn attempt_once(
    lake: &Lake,
    source: &dyn Source,
    request: &IngestRequest,
) -> Result<IngestReport> {
    request.progress.enter(RunStage::Planning);
    let table = lake.table(&request.org, &request.table.name).await?;
    if let Some(table) = &table
        && table.run_ids().contains(&request.run_id)
    {
        return Ok(report::found(request, table));
    }
    let scope = decide(request, source, table.as_ref())?;
    let planning = plan(source, request, table.as_ref(), scope);
    let mut planned = planning.instrument(info_span!("plan")).await?;
    if planned.schema.fields.is_empty() {
        let Some(table) = &table else {
            // Its schema comes from its rows, and there are none yet.
            let warning = "the source has no rows yet, and so no columns: the table is made when \
                           the first row is there";
            planned.plan.warnings.push(warning.to_owned());
            let words = (Outcome::NothingNew, None);
            return Ok(report::begin(request, &words, &planned.plan, Vec::new()));
        };
        // What was there is gone, and nothing says that its columns are.
        planned.schema = table.schema();
        planned.plan.schema = table.schema();
        planned.plan.splits.clear();
        planned.handed = None;
    }
    check_columns(&request.table, &planned.schema, source.capabilities().complete_schema)?;
    let words = scope_words(request, &planned.scope);
    tracing::info!(
        outcome = ?words.0, reason = words.1, splits = planned.plan.splits.len(),
        schema_changes = planned.changes.len(), "the run is planned",
    );
    if request.dry_run {
        return Ok(report::begin(request, &words, &planned.plan, planned.changes));
    }
    failpoint::reach(Point::Planned).await?;
    copy_and_commit(lake, request, table.as_ref(), planned).await
}

/// Plans the read; where the source's schema asks for a reload, plans that instead.
async fn plan(
    source: &dyn Source,
    request: &IngestRequest,
    table: Option<&LakeTable>,
    scope: Scope,
) -> Result<Planned> {
    let (Scope::Since(checkpoint), Some(table)) = (&scope, table) else {
        return plan_full(source, request, table, scope).await;
    };
    let current = table.schema();
    let read = read_request(request, Some(checkpoint), Some(current.clone()));
    let (plan, handed) = handed::plan(source, request, read).await?;
    let complete = source.capabilities().complete_schema;
    let spec = &request.table;
    let (policy, dropped) = (spec.on_schema_change, spec.on_dropped_column);
    match evolution::decide(&current, &plan.schema, complete, policy, dropped)? {
        Evolution::Unchanged => {
            Ok(Planned { scope, plan, schema: current, changes: Vec::new(), handed })
        }
        Evolution::InPlace { schema, changes } => {
            Ok(Planned { scope, plan, schema, changes, handed })
        }
        Evolution::Refresh { changes } => {
            drop((plan, handed));
            request.progress.restart();
            let mut planned =
                plan_full(source, request, None, Scope::Full("the source's schema changed"))
                    .await?;
            planned.changes = changes;
            Ok(planned)
        }
    }
}

async fn plan_full(
    source: &dyn Source,
    request: &IngestRequest,
    table: Option<&LakeTable>,
    scope: Scope,
) -> Result<Planned> {
    let (plan, handed) = handed::plan(source, request, read_request(request, None, None)).await?;
    let schema = plan.schema.clone();
    let changes = match table {
        // Nothing says that its columns are others.
        Some(table) if !schema.fields.is_empty() => {
            let policy = if request.full_refresh {
                // Asked for by a person, whatever the policy.
                OnSchemaChange::Refresh
            } else {
                request.table.on_schema_change
            };
            evolution::reload(&table.schema(), &schema, policy)?
        }
        _ => Vec::new(),
    };
    Ok(Planned { scope, plan, schema, changes, handed })
}

fn read_request(
    request: &IngestRequest,
    since: Option<&Checkpoint>,
    known_schema: Option<TableSchema>,
) -> ReadRequest {
    let spec = &request.table;
    let lower = since.and_then(|checkpoint| checkpoint.cursor.clone());
    let cursor = match spec.mode {
        Mode::Append | Mode::Merge => {
            spec.cursor.clone().map(|column| CursorRange { column, lower })
        }
        Mode::FullRefresh => None,
    };
    ReadRequest {
        cursor,
        snapshot_read: since.and_then(|checkpoint| checkpoint.snapshot.clone()),
        objects_read: since.map(|checkpoint| checkpoint.objects.clone()).unwrap_or_default(),
        known_schema,
        ..whole_table(spec, request.org.get(), request.limits, &request.progress)
    }
}

/// A read of all rows that a table spec means.
pub(crate) fn whole_table(
    spec: &TableSpec,
    org: &OrgId,
    limits: IngestLimits,
    progress: &Arc<RunProgress>,
) -> ReadRequest {
    // Each split has a batch being read, one waiting and one being written.
    let batch_bytes = limits.memory_bytes / (6 * limits.splits.get());
    ReadRequest {
        org: org.clone(),
        from: spec.from.clone(),
        filter: spec.filter.clone(),
        predicate: Predicate::True,
        columns: spec.columns.clone(),
        cursor: None,
        snapshot_read: None,
        key: spec.key.clone(),
        objects_read: BTreeMap::new(),
        known_schema: None,
        types: spec.types.iter().map(|(name, t)| (name.clone(), t.0.clone())).collect(),
        on_unrepresentable: spec.on_unrepresentable,
        format: spec.format.clone(),
        splits_max: limits.splits,
        batch_bytes: batch_bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX),
        connections: ConnectionLimits { of_org: limits.connections, patience: None },
        progress: Arc::clone(progress),
    }
}

async fn copy_and_commit(
    lake: &Lake,
    request: &IngestRequest,
    table: Option<&LakeTable>,
    planned: Planned,
) -> Result<IngestReport> {
    let Planned { scope, plan, schema, changes, handed } = planned;
    let cursor = read_request(request, None, None).cursor.map(|range| range.column);
    let base = match &scope {
        Scope::Since(checkpoint) => Some(checkpoint.clone()),
        Scope::Full(_) => None,
    };
    let lower = base.as_ref().and_then(|checkpoint| checkpoint.cursor.clone());
    let full = base.is_none();
    let merging = Merging::of(request, &schema, plan.key_is_unique, full)?;
    let coarse = plan.splits.iter().any(|split| split.cursor_is_coarse())
        || handed.as_ref().is_some_and(Handed::cursor_is_coarse);
    let overlap = table
        .zip(cursor.as_deref().zip(lower.as_ref()))
        .map(|(table, (cursor, lower))| Overlap { table, schema: &schema, cursor, lower });
    let known = Arc::new(known_rows(request, overlap, merging.as_deref(), coarse).await?);
    let stage = stage(lake, request, &schema, full).instrument(info_span!("stage")).await?;
    // What is known was read from `table`: the stage must begin from the same state.
    stage.check_base(table)?;
    let mut report = report::begin(request, &scope_words(request, &scope), &plan, changes);
    request.progress.enter(RunStage::Reading);
    let bounds = (plan.cursor_ceiling.clone(), plan.cursor_floor.clone());
    let objects = plan.objects.clone();
    let transfer = Transfer {
        plan,
        schema: &schema,
        cursor: cursor.as_deref(),
        known: Arc::clone(&known),
        merging: merging.clone(),
        too_old: request.table.retention.as_ref().map(|kept| too_old(kept, Utc::now())),
        full,
        stage: &stage,
    };
    let reading = Box::pin(handed::read(transfer, handed, request));
    let mut copied = match reading.instrument(info_span!("read")).await {
        Ok(copied) => copied,
        Err(failure) => return Err(failure.clean_up(stage).await),
    };
    tell_read(request, copied.rows_written, copied.files.len());
    report.rows_too_old = copied.rows_too_old;
    report.warnings.append(&mut copied.warnings);
    let read = (&copied, bounds, objects);
    let checkpoint = checkpoint::after(request, base.as_ref(), &report, read);
    report.checkpoint = Some(checkpoint.clone());
    let mut written = Written { rows: copied.rows_written, content: Some(copied.content) };
    let delta = match &merging {
        None => RowDelta { files: copied.files, deletes: Vec::new(), among: Predicate::True },
        Some(merging) => {
            request.progress.enter(RunStage::Merging);
            let read_again = known.take_again();
            let merge =
                Merge { request, stage: &stage, schema: &schema, merging, full, read_again };
            match merge.work_out(copied.files).instrument(info_span!("merge")).await {
                Ok(merged) => {
                    written = written.without(merged.rows_dropped);
                    merged.reported(&mut report, full)
                }
                Err(failure) => return Err(failure.clean_up(stage).await),
            }
        }
    };
    let apart = told_apart_by(&request.table, &schema, !delta.deletes.is_empty(), coarse);
    let decided = Decided { base, checkpoint, written, apart, report };
    publish(lake, (request, table), stage, delta, decided).await
}

fn tell_read(request: &IngestRequest, rows_written: u64, files: usize) {
    let read = request.progress.snapshot();
    tracing::info!(
        rows_read = read.rows_read,
        bytes_read = read.bytes_read,
        rows_known = read.rows_known,
        rows_written,
        files,
        "the source is read, and its rows are in files",
    );
}

/// What the files to commit have to hold.
#[derive(Clone, Copy)]
struct Written {
    rows: u64,
    /// `None` once files of a merge have gone of which no row stays.
    content: Option<Content>,
}

impl Written {
    fn without(self, rows: u64) -> Self {
        Self { rows: self.rows - rows, content: self.content.filter(|_| rows == 0) }
    }
}

/// What a run knows before it commits.
struct Decided {
    /// The checkpoint it began from.
    base: Option<Checkpoint>,
    checkpoint: Checkpoint,
    written: Written,
    /// Columns in which no two rows may be alike.
    apart: Vec<String>,
    report: IngestReport,
}

/// Columns in which no two rows of the files to commit may be alike; none where the table's key does not say so.
/// `deletes`: some of the rows have gone; `coarse`: see [`polder_core::Split::cursor_is_coarse`].
fn told_apart_by(
    spec: &TableSpec,
    schema: &TableSchema,
    deletes: bool,
    coarse: bool,
) -> Vec<String> {
    if spec.key.is_empty() || deletes {
        return Vec::new();
    }
    if spec.mode != Mode::Append {
        return spec.key.clone();
    }
    // A key may return with another value of the cursor; without one, as with files, in another object.
    match spec.cursor.as_ref().filter(|cursor| schema.field(cursor).is_some()) {
        None => Vec::new(),
        // A row can change within one value of the cursor.
        Some(_) if coarse => schema.fields.iter().map(|field| field.name.clone()).collect(),
        Some(cursor) => spec.key.iter().chain([cursor]).cloned().collect(),
    }
}

/// Commits what has changed; nothing if nothing has.
async fn publish(
    lake: &Lake,
    (request, table): (&IngestRequest, Option<&LakeTable>),
    stage: Stage,
    delta: RowDelta,
    decided: Decided,
) -> Result<IngestReport> {
    let Decided { base, checkpoint, written, apart, mut report } = decided;
    let unchanged = delta.files.is_empty() && delta.deletes.is_empty();
    if let Some(base) = base.filter(|base| unchanged && base.objects == checkpoint.objects) {
        let reread = request.progress.snapshot().rows_known + report.rows_too_old;
        if base.cursor == checkpoint.cursor || reread < REREAD_ROWS_MAX {
            stage.abort(delta.files).await;
            tracing::info!("the source has nothing that the table lacks");
            return Ok(report::nothing_new(report, request, table));
        }
        report.outcome = Outcome::NothingNew;
    }
    request.progress.enter(RunStage::Committing);
    report::count_files(&mut report, &delta.files);
    let gate = StagedChecks::of(request);
    let summary = RunSummary { rows: written.rows, content: written.content, unique: apart };
    let asked = gate.as_ref().map(|gate| gate as &dyn Gate);
    let publishing = stage.commit_delta(delta, &checkpoint, summary, asked);
    let outcome = publishing.instrument(info_span!("publish")).await;
    match outcome {
        Ok(committed) => {
            let (snapshot, version) = (committed.snapshot_id, committed.version.as_deref());
            tracing::info!(snapshot, version, "the new state is published");
            Ok(report::committed(report, request, &committed))
        }
        Err(error) => {
            if error.code() == ErrorCode::LakeAuditFailed {
                let found = gate.map(StagedChecks::into_found).unwrap_or_default();
                keep_evidence(lake, request, &error, found).await;
            }
            Err(error)
        }
    }
}

async fn stage(
    lake: &Lake,
    request: &IngestRequest,
    schema: &TableSchema,
    full: bool,
) -> Result<Stage> {
    let kind = match request.table.mode {
        _ if full => StageKind::Replace,
        Mode::Merge => StageKind::Merge,
        Mode::FullRefresh | Mode::Append => StageKind::Append,
    };
    let wanted = StageRequest {
        run_id: request.run_id,
        schema: schema.clone(),
        partition: request.table.partition.clone(),
        sort: request.table.sort.clone(),
        kind,
        target_file_bytes: TARGET_FILE_BYTES,
        memory_bytes: request.limits.memory_bytes / 2,
    };
    lake.stage(&request.org, &request.table.name, wanted).await
}

/// The rows of the table that the plan may bring again. `schema`: the table's after the run; `coarse`:
/// see [`Split::cursor_is_coarse`].
///
/// [`Split::cursor_is_coarse`]: polder_core::Split::cursor_is_coarse
async fn known_rows(
    request: &IngestRequest,
    overlap: Option<Overlap<'_>>,
    merging: Option<&Merging>,
    coarse: bool,
) -> Result<Known> {
    let Some(overlap) = overlap else { return Ok(Known::default()) };
    if let Some(merging) = merging {
        return Known::of_merge(overlap, merging.keys(), coarse, merging.unique()).await;
    }
    let key = if coarse { &[][..] } else { &request.table.key };
    Known::of_append(overlap, key).await
}

#[cfg(test)]
mod tests {
    use polder_core::{Field, LakeType};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn rows_are_told_apart_by_what_the_mode_says_of_a_key() {
        let field = |name: &str| Field::new(name, LakeType::Long);
        let schema = TableSchema::new(["id", "at", "x"].map(field).to_vec());
        let apart = |more: Value, deletes: bool, coarse: bool| {
            let mut spec = json!({ "name": "t", "source": "s", "from": "t" });
            spec.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
            let spec: TableSpec = serde_json::from_value(spec).expect("spec");
            told_apart_by(&spec, &schema, deletes, coarse)
        };
        let full = json!({ "mode": "full_refresh", "key": ["id"] });
        assert_eq!(apart(full.clone(), false, false), ["id"]);
        assert_eq!(apart(full, false, true), ["id"]);
        assert!(apart(json!({ "mode": "full_refresh" }), false, false).is_empty());
        let append = json!({ "mode": "append", "key": ["id"], "cursor": "at" });
        assert_eq!(apart(append.clone(), false, false), ["id", "at"]);
        assert_eq!(apart(append, false, true), ["id", "at", "x"], "whole rows");
        let files = json!({ "mode": "append", "key": ["id"] });
        assert!(apart(files, false, false).is_empty(), "states of a key, an object each");
        let merge = json!({ "mode": "merge", "key": ["id"], "cursor": "at" });
        assert_eq!(apart(merge.clone(), false, false), ["id"]);
        assert!(apart(merge, true, false).is_empty(), "some rows have gone");
    }
}
