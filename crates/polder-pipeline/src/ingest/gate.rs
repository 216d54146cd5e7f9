//! `policy: block_publish`: what a run has staged is read back row by row, and `checks:` are asked of
//! it, before anybody sees it. And the evidence of what an audit has refused.
//!
//! A full refresh is read back whole. An `append` run reads its own files; a merge the table's keys, as
//! what it holds is not known to the run as a whole.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use polder_core::spec::{Mode, ValidationPolicy};
use polder_core::validation::{Check, CheckName, Verdict};
use polder_core::{Content, Error, ErrorCode, Result};
use polder_lake::{Gate, Lake, LakeTable, StagedFile};

use super::IngestRequest;
use crate::validate::{Asked, Compared, ValidationReport, checks, keep, lake, now_ms};

/// What has to be true of the staged state.
pub(super) struct StagedChecks<'a> {
    request: &'a IngestRequest,
    /// The files to read; all of the state's where absent.
    files: Option<Arc<HashSet<String>>>,
    /// What those files hold; `None` where the run does not know.
    content: Option<Content>,
    /// See [`polder_core::Split::cursor_is_coarse`].
    coarse: bool,
    /// What was found, with the snapshot.
    found: Mutex<(Option<i64>, Vec<Check>)>,
}

impl<'a> StagedChecks<'a> {
    /// `None` where the policy does not ask for it. `full`: no rows of the table stay; `added`: what
    /// the run has written.
    pub(super) fn of(
        request: &'a IngestRequest,
        files: &[StagedFile],
        (full, added): (bool, Content),
        coarse: bool,
    ) -> Option<Self> {
        let spec = &request.table;
        if spec.validation.policy != ValidationPolicy::BlockPublish {
            return None;
        }
        let own = || files.iter().map(|file| file.location().to_owned()).collect();
        let appends = !full && spec.mode == Mode::Append;
        Some(Self {
            request,
            files: appends.then(|| Arc::new(own())),
            content: (spec.mode != Mode::Merge).then_some(added),
            coarse,
            found: Mutex::default(),
        })
    }

    async fn checks(&self, staged: &LakeTable, snapshot: i64) -> Result<Vec<Check>> {
        let spec = &self.request.table;
        let (columns, _) = staged.schema_at(Some(snapshot))?;
        let mut compared = Compared::of(&columns, spec, self.coarse);
        if !self.coarse {
            // The words of whole rows are not needed.
            let cursor = compared.cursor.iter().filter(|cursor| !spec.key.contains(cursor));
            compared.columns = spec.key.iter().chain(cursor).cloned().collect();
        }
        compared.snapshot = Some(snapshot);
        compared.files.clone_from(&self.files);
        if spec.key.is_empty() {
            // Nothing is told apart: the content alone counts.
            compared.columns.clear();
            compared.cursor = None;
        }
        let mut checks = checks::Checks::new();
        let memory = self.request.limits.memory_bytes / 2;
        let found = lake::digests(staged, &compared, memory).await?;
        checks.add(checks::content(self.content, found.content));
        if !spec.key.is_empty() {
            let returns = compared.cursor.is_some();
            checks.add([checks::staged_duplicates(found.repeated_rows, returns)]);
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
        let file = error.detail_text().map(|text| text.rsplit('/').next().unwrap_or(text));
        checks.push(check.with_samples(file.map(str::to_owned)));
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
