//! One run of one table: plan, read the splits, conform, write, audit, and publish in one commit.
//!
//! ```text
//! decide (full or since the checkpoint) ─► source.plan ─► evolution ─► stage ─► copy ─► commit
//! ```
//!
//! Readers see the old state until the commit and the new one after it. A run that is killed leaves
//! staged files that no metadata names; the next run starts from the table's own checkpoint.

mod conform;
mod copy;
mod known;
mod report;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_core::evolution::{self, Evolution, SchemaChange};
use polder_core::spec::{Mode, OnSchemaChange, TableSpec};
use polder_core::{
    Authorized, Checkpoint, CursorRange, CursorValue, Error, ErrorCode, OrgId, ReadPlan,
    ReadRequest, Result, RunProgress, Source, Stage as RunStage, TableSchema,
};
use polder_lake::{Lake, LakeTable, RunSummary, StageKind, StageRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use report::{IngestReport, Outcome};

use copy::{Copied, Transfer};

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

/// Ends when the run is cancelled; never once it commits, as a commit cut off may land nevertheless.
async fn cancelled_before_the_commit(request: &IngestRequest) {
    request.cancel.cancelled().await;
    if request.progress.snapshot().stage == RunStage::Committing {
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
    if request.dry_run {
        check_columns(&request.table, &planned.schema)?;
        let words = scope_words(&planned.scope);
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
    let can_append = capabilities.objects || (capabilities.cursor && spec.cursor.is_some());
    if !can_append {
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
fn reads(spec: &TableSpec) -> String {
    json!({
        "source": spec.source, "from": spec.from, "filter": spec.filter, "cursor": spec.cursor,
        "columns": spec.columns, "types": spec.types, "format": spec.format,
        "on_unrepresentable": spec.on_unrepresentable,
    })
    .to_string()
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
        Mode::Append => spec.cursor.clone().map(|column| CursorRange { column, lower }),
        Mode::FullRefresh => None,
    };
    // Each split has a batch being read, one waiting and one being written.
    let batch_bytes = request.limits.memory_bytes / (6 * request.limits.splits.get());
    ReadRequest {
        org: request.org.get().clone(),
        from: spec.from.clone(),
        filter: spec.filter.clone(),
        columns: spec.columns.clone(),
        cursor,
        key: spec.key.clone(),
        objects_read: since.map(|checkpoint| checkpoint.objects.clone()).unwrap_or_default(),
        known_schema,
        types: spec.types.iter().map(|(name, t)| (name.clone(), t.0.clone())).collect(),
        on_unrepresentable: spec.on_unrepresentable,
        format: spec.format.clone(),
        splits_max: request.limits.splits,
        batch_bytes: batch_bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX),
        progress: Arc::clone(&request.progress),
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
    check_columns(&request.table, &schema)?;
    let base = match &scope {
        Scope::Since(checkpoint) => Some(checkpoint.clone()),
        Scope::Full(_) => None,
    };
    let lower = base.as_ref().and_then(|checkpoint| checkpoint.cursor.clone());
    let coarse = plan.splits.iter().any(|split| split.cursor_is_coarse());
    let since = cursor.as_deref().zip(lower.as_ref());
    let known = known_rows(request, table, &schema, coarse, since).await?;
    let stage = lake
        .stage(
            &request.org,
            &request.table.name,
            StageRequest {
                run_id: request.run_id,
                schema: schema.clone(),
                partition: request.table.partition.clone(),
                kind: if base.is_some() { StageKind::Append } else { StageKind::Replace },
                target_file_bytes: TARGET_FILE_BYTES,
                memory_bytes: request.limits.memory_bytes / 2,
            },
        )
        .await?;
    // What is known was read from `table`: the stage must begin from the same state.
    stage.check_base(table)?;
    let mut report = report::begin(request, &scope_words(&scope), &plan, changes);
    request.progress.enter(RunStage::Reading);
    let (ceiling, objects) = (plan.cursor_ceiling.clone(), plan.objects.clone());
    let cursor = cursor.as_deref();
    let too_old = request.table.retention.as_ref().map(|kept| too_old(kept, Utc::now()));
    let copied = Transfer { plan, schema: &schema, cursor, known, too_old, stage: &stage };
    let copied = match copied.run(request).await {
        Ok(copied) => copied,
        Err(failure) => {
            stage.abort(failure.files).await;
            return Err(failure.error);
        }
    };
    report.rows_too_old = copied.rows_too_old;
    let seen = copied.cursor_max.clone().into_iter().chain(lower).reduce(CursorValue::max);
    let cursor = seen.map(|seen| ceiling.map_or(seen.clone(), |ceiling| seen.min(ceiling)));
    let checkpoint = Checkpoint { cursor, objects, reads: reads(&request.table) };
    report.checkpoint = Some(checkpoint.clone());
    if let Some(base) =
        base.filter(|base| copied.rows_written == 0 && base.objects == checkpoint.objects)
    {
        if base.cursor == checkpoint.cursor || reread(request, &copied) < REREAD_ROWS_MAX {
            stage.abort(copied.files).await;
            return Ok(report::nothing_new(report, request, table));
        }
        report.outcome = Outcome::NothingNew;
    }
    request.progress.enter(RunStage::Committing);
    report::count_files(&mut report, &copied.files);
    let summary = RunSummary { rows: copied.rows_written };
    let committed = stage.commit(copied.files, &checkpoint, summary).await?;
    Ok(report::committed(report, request, &committed))
}

/// Rows that were read in vain.
fn reread(request: &IngestRequest, copied: &Copied) -> u64 {
    request.progress.snapshot().rows_known + copied.rows_too_old
}

/// The rows of the table that the plan may bring again. `schema`: the table's after the run; `coarse`:
/// see [`Split::cursor_is_coarse`].
///
/// [`Split::cursor_is_coarse`]: polder_core::Split::cursor_is_coarse
async fn known_rows(
    request: &IngestRequest,
    table: Option<&LakeTable>,
    schema: &TableSchema,
    coarse: bool,
    since: Option<(&str, &CursorValue)>,
) -> Result<known::Known> {
    let (Some(table), Some((cursor, lower))) = (table, since) else {
        return Ok(known::Known::none());
    };
    let key = if coarse { &[][..] } else { &request.table.key };
    known::load(table, schema, key, cursor, lower).await
}

fn scope_words(scope: &Scope) -> (Outcome, Option<String>) {
    match scope {
        Scope::Full(reason) => (Outcome::FullRefresh, Some((*reason).to_owned())),
        Scope::Since(_) => (Outcome::Append, None),
    }
}

/// Every column the spec names has to exist: in the table to partition it, in the source to tell its
/// rows apart and to find new ones.
fn check_columns(spec: &TableSpec, schema: &TableSchema) -> Result<()> {
    let retention = spec.retention.iter().map(|kept| (&kept.column, true));
    let partition = spec.partition.iter().map(|field| (&field.column, true)).chain(retention);
    let of_source = spec.key.iter().chain(&spec.cursor).map(|column| (column, false));
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
