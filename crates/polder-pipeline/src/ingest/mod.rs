//! One run of one table: plan, read the splits, conform, write, audit, and publish in one commit.
//!
//! ```text
//! decide (full or since the checkpoint) ─► source.plan ─► evolution ─► stage ─► copy ─► (merge) ─► commit
//! ```
//!
//! Readers see the old state until the commit and the new one after it. A run that is killed leaves
//! staged files that no metadata names; the next run starts from the table's own checkpoint.

pub(crate) mod conform;
mod copy;
mod known;
mod merge;
mod report;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_core::evolution::{self, Evolution, SchemaChange};
use polder_core::spec::{Mode, OnSchemaChange, TableSpec};
use polder_core::{
    Authorized, Checkpoint, Content, CursorRange, CursorValue, Error, ErrorCode, OrgId, Predicate,
    ReadPlan, ReadRequest, Result, RunProgress, Source, Stage as RunStage, TableSchema,
};
use polder_lake::{Lake, LakeTable, RowDelta, RunSummary, Stage, StageKind, StageRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use report::{IngestReport, Outcome};

use copy::Transfer;
use known::{Known, Overlap};
use merge::{Merge, Merging};

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

/// What a run reads, and why.
enum Scope {
    Full(&'static str),
    Since(Checkpoint),
}

/// A run after planning: the source's fixed state and what it means for the table.
struct Planned {
    scope: Scope,
    plan: ReadPlan,
    /// The schema the table has after the run.
    schema: TableSchema,
    changes: Vec<SchemaChange>,
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
    let mut planned = plan(source, request, table.as_ref(), scope).await?;
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
    }
    check_columns(&request.table, &planned.schema, source.capabilities().complete_schema)?;
    if request.dry_run {
        let words = scope_words(request, &planned.scope);
        return Ok(report::begin(request, &words, &planned.plan, planned.changes));
    }
    copy_and_commit(lake, request, table.as_ref(), planned).await
}

fn decide(
    request: &IngestRequest,
    source: &dyn Source,
    table: Option<&LakeTable>,
) -> Result<Scope> {
    let full = |reason| Ok(Scope::Full(reason));
    let spec = &request.table;
    if spec.mode == Mode::FullRefresh {
        return full("mode: full_refresh");
    }
    let capabilities = source.capabilities();
    let follows = capabilities.cursor && spec.cursor.is_some();
    if spec.mode == Mode::Merge && (spec.key.is_empty() || !follows) {
        return Err(Error::new(ErrorCode::SpecInvalid, "mode: merge needs a key and a cursor")
            .hint("name them: key: [id], cursor: updated_at; files have none: use mode: append"));
    }
    if !(capabilities.objects || follows) {
        return Err(Error::new(ErrorCode::SpecInvalid, "mode: append needs a cursor here")
            .hint("name the column by which new and changed rows are found: cursor: updated_at"));
    }
    let Some(table) = table else { return full("first load") };
    if request.full_refresh {
        return full("asked for");
    }
    let Some(checkpoint) = table.checkpoint()? else { return full("no checkpoint") };
    if checkpoint.reads != reads(spec) {
        return full("the table spec reads other rows");
    }
    if !capabilities.objects && checkpoint.cursor.is_none() {
        return full("no cursor value seen yet");
    }
    Ok(Scope::Since(checkpoint))
}

/// The parts of a spec that decide which rows and columns are read: see [`Checkpoint::reads`].
pub(crate) fn reads(spec: &TableSpec) -> String {
    let mut reads = json!({
        "source": spec.source, "from": spec.from, "filter": spec.filter, "cursor": spec.cursor,
        "columns": spec.columns, "types": spec.types, "format": spec.format,
        "on_unrepresentable": spec.on_unrepresentable,
    });
    if spec.mode == Mode::Merge {
        // A table that holds one row for each key is another one than a table of all states.
        reads["merge"] = json!({ "key": spec.key, "deleted_at": spec.deleted_at });
    }
    reads.to_string()
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
    let plan = source.plan(read).await?;
    let complete = source.capabilities().complete_schema;
    let spec = &request.table;
    let (policy, dropped) = (spec.on_schema_change, spec.on_dropped_column);
    match evolution::decide(&current, &plan.schema, complete, policy, dropped)? {
        Evolution::Unchanged => Ok(Planned { scope, plan, schema: current, changes: Vec::new() }),
        Evolution::InPlace { schema, changes } => Ok(Planned { scope, plan, schema, changes }),
        Evolution::Refresh { changes } => {
            drop(plan);
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
    let plan = source.plan(read_request(request, None, None)).await?;
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
    Ok(Planned { scope, plan, schema, changes })
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
        key: spec.key.clone(),
        objects_read: BTreeMap::new(),
        known_schema: None,
        types: spec.types.iter().map(|(name, t)| (name.clone(), t.0.clone())).collect(),
        on_unrepresentable: spec.on_unrepresentable,
        format: spec.format.clone(),
        splits_max: limits.splits,
        batch_bytes: batch_bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX),
        progress: Arc::clone(progress),
    }
}

async fn copy_and_commit(
    lake: &Lake,
    request: &IngestRequest,
    table: Option<&LakeTable>,
    planned: Planned,
) -> Result<IngestReport> {
    let Planned { scope, plan, schema, changes } = planned;
    let cursor = read_request(request, None, None).cursor.map(|range| range.column);
    let base = match &scope {
        Scope::Since(checkpoint) => Some(checkpoint.clone()),
        Scope::Full(_) => None,
    };
    let lower = base.as_ref().and_then(|checkpoint| checkpoint.cursor.clone());
    let full = base.is_none();
    let merging = Merging::of(request, &schema, plan.key_is_unique, full)?;
    let coarse = plan.splits.iter().any(|split| split.cursor_is_coarse());
    let overlap = table
        .zip(cursor.as_deref().zip(lower.as_ref()))
        .map(|(table, (cursor, lower))| Overlap { table, schema: &schema, cursor, lower });
    let known = Arc::new(known_rows(request, overlap, merging.as_deref(), coarse).await?);
    let stage = stage(lake, request, &schema, full).await?;
    // What is known was read from `table`: the stage must begin from the same state.
    stage.check_base(table)?;
    let mut report = report::begin(request, &scope_words(request, &scope), &plan, changes);
    request.progress.enter(RunStage::Reading);
    let (ceiling, objects) = (plan.cursor_ceiling.clone(), plan.objects.clone());
    let too_old = request.table.retention.as_ref().map(|kept| too_old(kept, Utc::now()));
    let transfer = Transfer {
        plan,
        schema: &schema,
        cursor: cursor.as_deref(),
        known: Arc::clone(&known),
        merging: merging.clone(),
        too_old,
        stage: &stage,
    };
    let copied = match transfer.run(request).await {
        Ok(copied) => copied,
        Err(failure) => return Err(failure.clean_up(stage).await),
    };
    report.rows_too_old = copied.rows_too_old;
    let seen = copied.cursor_max.into_iter().chain(lower).reduce(CursorValue::max);
    let checkpoint = Checkpoint {
        cursor: seen.map(|seen| ceiling.map_or(seen.clone(), |ceiling| seen.min(ceiling))),
        objects,
        reads: reads(&request.table),
        snapshot: report.source_snapshot.clone(),
        content: content_after(request, base.as_ref(), &report, copied.content),
    };
    report.checkpoint = Some(checkpoint.clone());
    let mut rows = copied.rows_written;
    let delta = match &merging {
        None => RowDelta { files: copied.files, deletes: Vec::new(), among: Predicate::True },
        Some(merging) => {
            request.progress.enter(RunStage::Merging);
            let read_again = known.take_again();
            let merge =
                Merge { request, stage: &stage, schema: &schema, merging, full, read_again };
            match merge.work_out(copied.files).await {
                Ok(merged) => {
                    rows -= merged.rows_dropped;
                    merged.reported(&mut report, full)
                }
                Err(failure) => return Err(failure.clean_up(stage).await),
            }
        }
    };
    publish(request, table, stage, delta, Decided { base, checkpoint, rows, report }).await
}

/// What a run knows before it commits.
struct Decided {
    /// The checkpoint it began from.
    base: Option<Checkpoint>,
    checkpoint: Checkpoint,
    /// Rows that the files to commit have to hold.
    rows: u64,
    report: IngestReport,
}

/// Commits what has changed; nothing if nothing has.
async fn publish(
    request: &IngestRequest,
    table: Option<&LakeTable>,
    stage: Stage,
    delta: RowDelta,
    decided: Decided,
) -> Result<IngestReport> {
    let Decided { base, checkpoint, rows, mut report } = decided;
    let unchanged = delta.files.is_empty() && delta.deletes.is_empty();
    if let Some(base) = base.filter(|base| unchanged && base.objects == checkpoint.objects) {
        let reread = request.progress.snapshot().rows_known + report.rows_too_old;
        if base.cursor == checkpoint.cursor || reread < REREAD_ROWS_MAX {
            stage.abort(delta.files).await;
            return Ok(report::nothing_new(report, request, table));
        }
        report.outcome = Outcome::NothingNew;
    }
    request.progress.enter(RunStage::Committing);
    report::count_files(&mut report, &delta.files);
    let committed = stage.commit_delta(delta, &checkpoint, RunSummary { rows }).await?;
    Ok(report::committed(report, request, &committed))
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
        kind,
        target_file_bytes: TARGET_FILE_BYTES,
        memory_bytes: request.limits.memory_bytes / 2,
    };
    lake.stage(&request.org, &request.table.name, wanted).await
}

/// What the table holds after the run has added its rows to those of `base`; `None` where its columns
/// change under these, or where a merge takes rows away.
fn content_after(
    request: &IngestRequest,
    base: Option<&Checkpoint>,
    report: &IngestReport,
    added: Content,
) -> Option<Content> {
    if request.table.mode == Mode::Merge {
        return None;
    }
    let before = match base {
        Some(base) => base.content.filter(|_| report.schema_changes.is_empty())?,
        None => Content::default(),
    };
    Some(before.and(added))
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

fn scope_words(request: &IngestRequest, scope: &Scope) -> (Outcome, Option<String>) {
    match scope {
        Scope::Full(reason) => (Outcome::FullRefresh, Some((*reason).to_owned())),
        Scope::Since(_) if request.table.mode == Mode::Merge => (Outcome::Merge, None),
        Scope::Since(_) => (Outcome::Append, None),
    }
}

/// Every column the spec names has to exist: in the table to partition it, in the source to tell its
/// rows apart and to find new ones. A schema that was inferred (`complete` is false) may lack a mark
/// that no row has yet.
fn check_columns(spec: &TableSpec, schema: &TableSchema, complete: bool) -> Result<()> {
    let retention = spec.retention.iter().map(|kept| (&kept.column, true));
    let partition = spec.partition.iter().map(|field| (&field.column, true)).chain(retention);
    let marks = spec.deleted_at.as_ref().filter(|_| complete);
    let of_source = spec.key.iter().chain(&spec.cursor).chain(marks);
    let of_source = of_source.map(|column| (column, false));
    for (column, may_be_retired) in of_source.chain(partition) {
        if schema.field(column).is_none_or(|field| field.retired && !may_be_retired) {
            let present = schema.fields.iter().filter(|field| !field.retired);
            let names: Vec<_> = present.map(|field| field.name.as_str()).collect();
            return Err(Error::new(
                ErrorCode::SpecUnknownName,
                format!("the source table has no column {column:?}"),
            )
            .hint(format!("its columns are: {}", names.join(", "))));
        }
    }
    Ok(())
}
