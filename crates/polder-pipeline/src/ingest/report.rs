//! What a run did, for people and for `--json`.

use std::collections::BTreeMap;

use polder_core::evolution::SchemaChange;
use polder_core::spec::Mode;
use polder_core::{Assurance, Checkpoint, Doubt, Guarantee, ReadPlan, Reason};
use polder_lake::{Committed, LakeTable, StagedFile};
use serde::Serialize;

use super::IngestRequest;

/// What became of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole content was replaced.
    FullRefresh,
    /// Rows were added.
    Append,
    /// Rows took the place of others of their keys, were added, or went.
    Merge,
    /// The source had nothing that the table lacks.
    NothingNew,
}

/// The report of one run.
#[derive(Clone, Debug, Serialize)]
pub struct IngestReport {
    pub run_id: String,
    pub org: String,
    pub table: String,
    pub outcome: Outcome,
    /// The run was only planned: this is what it would do.
    pub dry_run: bool,
    /// Why everything was reloaded, if it was.
    pub reason: Option<String>,
    /// Differences of the source's schema that were taken over.
    pub schema_changes: Vec<SchemaChange>,
    pub rows_read: u64,
    pub bytes_read: u64,
    pub rows_written: u64,
    /// Rows read again and recognised as already stored.
    pub rows_known: u64,
    /// In a merge: keys that came, keys whose row was replaced, keys that the source marks as deleted
    /// and whose row went.
    pub rows_inserted: u64,
    pub rows_updated: u64,
    pub rows_deleted: u64,
    /// Rows read and left out because the table's retention does not keep them.
    pub rows_too_old: u64,
    pub files: usize,
    pub file_bytes: u64,
    pub snapshot_id: Option<i64>,
    /// The version's tag, after a full refresh.
    pub version: Option<String>,
    pub checkpoint: Option<Checkpoint>,
    /// What is known of the rows read, and of the mark that the checkpoint keeps for the next run.
    pub guarantee: Guarantee,
    /// Why it is not `exact`, the gravest first.
    pub guarantee_reasons: Vec<Reason>,
    /// The source's name for the state that was read.
    pub source_snapshot: Option<String>,
    /// Values changed because the spec says so, by column.
    pub altered: BTreeMap<String, u64>,
    /// The keys of a few rows with such values, by column; none where the spec names no key.
    pub altered_keys: BTreeMap<String, Vec<String>>,
    /// Lines set aside because the spec says so, by file.
    pub rejected: BTreeMap<String, u64>,
    pub warnings: Vec<String>,
    pub attempts: u32,
    pub duration_ms: u64,
}

pub(super) fn begin(
    request: &IngestRequest,
    (outcome, reason): &(Outcome, Option<String>),
    plan: &ReadPlan,
    schema_changes: Vec<SchemaChange>,
) -> IngestReport {
    let Assurance { guarantee, reasons } = Assurance::of(&request.table, &plan.doubts);
    IngestReport {
        run_id: request.run_id.to_string(),
        org: request.org.get().to_string(),
        table: request.table.name.clone(),
        outcome: *outcome,
        dry_run: request.dry_run,
        reason: reason.clone(),
        schema_changes,
        rows_read: 0,
        bytes_read: 0,
        rows_written: 0,
        rows_known: 0,
        rows_inserted: 0,
        rows_updated: 0,
        rows_deleted: 0,
        rows_too_old: 0,
        files: 0,
        file_bytes: 0,
        snapshot_id: None,
        version: None,
        checkpoint: None,
        guarantee,
        guarantee_reasons: reasons,
        source_snapshot: plan.snapshot.clone(),
        altered: BTreeMap::new(),
        altered_keys: BTreeMap::new(),
        rejected: BTreeMap::new(),
        warnings: plan.warnings.clone(),
        attempts: 1,
        duration_ms: 0,
    }
}

pub(super) fn count_files(report: &mut IngestReport, files: &[StagedFile]) {
    report.files = files.len();
    report.file_bytes = files.iter().map(StagedFile::size_bytes).sum();
}

pub(super) fn committed(
    report: IngestReport,
    request: &IngestRequest,
    committed: &Committed,
) -> IngestReport {
    let report = counted(report, request);
    IngestReport {
        snapshot_id: Some(committed.snapshot_id),
        version: committed.version.clone(),
        ..report
    }
}

pub(super) fn nothing_new(
    report: IngestReport,
    request: &IngestRequest,
    table: Option<&LakeTable>,
) -> IngestReport {
    let snapshot_id = table.and_then(LakeTable::current_snapshot).map(|snapshot| snapshot.id);
    IngestReport { outcome: Outcome::NothingNew, snapshot_id, ..counted(report, request) }
}

/// The report of a run whose commit landed although its answer was lost.
pub(super) fn found(request: &IngestRequest, table: &LakeTable) -> IngestReport {
    let checkpoint = table.checkpoint().ok().flatten();
    let exact = checkpoint.is_some_and(|kept| kept.guarantee == Some(Guarantee::Exact));
    let plan = ReadPlan {
        schema: table.schema(),
        snapshot: None,
        splits: Vec::new(),
        rows_estimated: None,
        cursor_ceiling: None,
        cursor_floor: None,
        key_is_unique: false,
        objects: BTreeMap::new(),
        doubts: if exact { Vec::new() } else { vec![Doubt::AnswerLost] },
        warnings: vec!["the answer to the commit was lost; the commit was found".to_owned()],
    };
    let own = table.snapshots().into_iter().find(|s| s.run_id == Some(request.run_id));
    let version = own.iter().flat_map(|own| &own.refs).find(|name| name.starts_with('v')).cloned();
    let outcome = match request.table.mode {
        _ if version.is_some() => Outcome::FullRefresh,
        Mode::Merge => Outcome::Merge,
        Mode::FullRefresh | Mode::Append => Outcome::Append,
    };
    let report = begin(request, &(outcome, None), &plan, Vec::new());
    let snapshot_id = own.map(|snapshot| snapshot.id);
    IngestReport { snapshot_id, version, ..counted(report, request) }
}

fn counted(report: IngestReport, request: &IngestRequest) -> IngestReport {
    let counts = request.progress.snapshot();
    IngestReport {
        rows_read: counts.rows_read,
        bytes_read: counts.bytes_read,
        rows_written: counts.rows_written,
        rows_known: counts.rows_known,
        altered: counts.altered,
        altered_keys: counts.altered_keys,
        rejected: counts.rejected,
        ..report
    }
}
