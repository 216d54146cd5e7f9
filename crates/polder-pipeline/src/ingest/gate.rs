//! `policy: block_publish`: `checks:` are asked of what a run has staged before anybody sees it, and after a merge
//! all keys of the table are looked at. And the evidence of what an audit has refused.
//!
//! The rows of the run itself are read back under every policy ([`polder_lake::RunSummary`]).

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use polder_core::spec::{Mode, ValidationPolicy};
use polder_core::validation::{Check, CheckName, Verdict};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{Gate, Lake, LakeTable};

use super::IngestRequest;
use crate::validate::{Asked, Compared, ValidationReport, checks, keep, lake, now_ms};

/// What has to be true of the staged state.
pub(super) struct StagedChecks<'a> {
    request: &'a IngestRequest,
    /// What was found, with the snapshot.
    found: Mutex<(Option<i64>, Vec<Check>)>,
}

impl<'a> StagedChecks<'a> {
    /// `None` where the policy does not ask for it. `full`: no rows of the table stay; `added`: what
    /// the run has written.
    pub(super) fn of(request: &'a IngestRequest) -> Option<Self> {
        let blocks = request.table.validation.policy == ValidationPolicy::BlockPublish;
        blocks.then(|| Self { request, found: Mutex::default() })
    }

    async fn checks(&self, staged: &LakeTable, snapshot: i64) -> Result<Vec<Check>> {
        let spec = &self.request.table;
        let mut checks = checks::Checks::new();
        if spec.mode == Mode::Merge {
            // What the table holds as a whole is not known to a merge.
            let (columns, _) = staged.schema_at(Some(snapshot))?;
            let mut compared = Compared::of(&columns, spec, false);
            compared.columns.clone_from(&spec.key);
            compared.snapshot = Some(snapshot);
            let memory = self.request.limits.memory_bytes / 2;
            let found = lake::digests(staged, &compared, memory).await?;
            checks.add([checks::staged_duplicates(found.repeated_rows, false)]);
        }
        for check in &spec.checks {
            let engine = self.request.engine.as_deref().ok_or_else(|| {
                Error::new(ErrorCode::Internal, "there is no engine to ask checks of")
            })?;
            let asked = Asked {
                engine,
                org: &self.request.org,
                table: &spec.name,
                snapshot: Some(snapshot),
                memory_bytes: self.request.limits.memory_bytes,
            };
            checks.add([asked.check(check).await?]);
        }
        Ok(checks.done)
    }

    /// What was found, and of which snapshot.
    pub(super) fn into_found(self) -> (Option<i64>, Vec<Check>) {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Gate for StagedChecks<'_> {
    async fn check(&self, staged: &LakeTable, snapshot: i64) -> Result<()> {
        let checks = Box::pin(self.checks(staged, snapshot)).await?;
        let wrong = |check: &&Check| !matches!(check.verdict, Verdict::Verified | Verdict::Warning);
        let failed: Vec<String> = checks.iter().filter(wrong).map(title).collect();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = (Some(snapshot), checks);
        if failed.is_empty() {
            return Ok(());
        }
        let message = "checks before publishing failed, and the policy is block_publish";
        Err(Error::new(ErrorCode::LakeAuditFailed, message).detail(failed.join("; ")).hint(
            "nothing was published; lake.polder_management.validation_results has what was found, \
             in rows that are `staged`",
        ))
    }
}

/// A check by its name, and what it saw.
fn title(check: &Check) -> String {
    let name = check.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
    format!("{}{name}: {}, expected {}", check.check, check.observed, check.expected)
}

/// Keeps what an audit refused, in `validation_results`. What cannot be kept is logged: the run failed
/// for another reason.
pub(super) async fn keep_evidence(
    into: &Lake,
    request: &IngestRequest,
    error: &Error,
    (snapshot, mut checks): (Option<i64>, Vec<Check>),
) {
    let (started, started_ms) = (Instant::now(), now_ms());
    let fails = |check: &Check| !matches!(check.verdict, Verdict::Verified | Verdict::Warning);
    // What an earlier attempt of the run found right is no evidence of this failure.
    if !checks.iter().any(fails) {
        let expected = "what was staged, as it was written";
        let mut check = Check::new(CheckName::Audit, Verdict::Failed, expected, error.message());
        check.started_ms = started_ms;
        let detail = error.detail_text().unwrap_or_default();
        let samples: Vec<String> = match detail.rsplit_once("://") {
            // Of a file's address its name is enough.
            Some((_, path)) => path.rsplit('/').take(1).map(str::to_owned).collect(),
            None => detail.split("; ").filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        };
        checks.push(check.with_samples(samples));
    }
    let report = ValidationReport {
        id: request.run_id,
        org: request.org.get().to_string(),
        table: request.table.name.clone(),
        version: None,
        snapshot_id: snapshot,
        source_snapshot: None,
        source_state: None,
        verdict: Verdict::worst(checks.iter().map(|check| check.verdict)).unwrap_or_default(),
        pending: 0,
        checks,
        staged: true,
        quarantine: None,
        started_ms,
        duration_ms: started.elapsed().as_millis() as u64,
    };
    if let Err(error) = keep(into, &request.org, &report).await {
        let (org, table) = (request.org.get(), &request.table.name);
        tracing::warn!(%org, table, "the evidence of a failed audit was not kept: {error}");
    }
}
