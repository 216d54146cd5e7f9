//! What follows from a validation: its results are kept, and a table that is wrong is moved back where
//! its policy says so.

use polder_core::management::VALIDATION_RESULTS;
use polder_core::spec::ValidationPolicy;
use polder_core::validation::Verdict;
use polder_core::{Authorized, ErrorCode, OrgId, Principal, Result, Source};
use polder_lake::Lake;
use serde::Serialize;

use super::{ValidateRequest, ValidationReport, Verdicts, results, validate, verdicts};

/// What the policy `quarantine` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    /// The snapshot that is the current one now; `None` if there is none that was verified.
    pub to_snapshot: Option<i64>,
    /// The tag that keeps the state that failed.
    pub kept_as: Option<String>,
}

/// Validates a table, keeps the results in `validation_results`, and does what its policy asks for.
///
/// What schedules, queues and command lines call.
///
/// # Errors
/// As [`validate`], and `lake.*` when the results cannot be kept.
pub async fn validate_and_keep(
    lake: &Lake,
    source: &dyn Source,
    request: &ValidateRequest,
) -> Result<ValidationReport> {
    let known = verdicts(lake, Some((&request.org, Some(&request.table.name)))).await?;
    let place = (request.org.get().to_string(), request.table.name.clone());
    let known = known.get(&place).cloned().unwrap_or_default();
    let mut report = Box::pin(validate(lake, source, request, &known)).await?;
    let wrong = report.verdict == Verdict::Failed;
    let mut stuck = None;
    if wrong && request.table.validation.policy == ValidationPolicy::Quarantine {
        match Box::pin(quarantine(lake, request, &report, &known)).await {
            Ok(done) => report.quarantine = done,
            Err(error) => stuck = Some(error),
        }
    }
    keep(lake, &request.org, &report).await?;
    stuck.map_or(Ok(report), Err)
}

/// Adds a report's rows to the management table.
///
/// # Errors
/// As [`Lake::record`].
pub(crate) async fn keep(
    lake: &Lake,
    org: &Authorized<OrgId>,
    report: &ValidationReport,
) -> Result<()> {
    debug_assert_eq!(org.get().as_str(), report.org);
    let rows = results(std::slice::from_ref(report))?;
    // Polder writes it of its own accord, for whomever it worked.
    Box::pin(lake.record(&Principal::Operator, &VALIDATION_RESULTS, rows)).await
}

/// Moves the table back to the last state that was verified; `None` if it has another state than the
/// one that failed by now.
async fn quarantine(
    lake: &Lake,
    request: &ValidateRequest,
    report: &ValidationReport,
    known: &Verdicts,
) -> Result<Option<Quarantine>> {
    let (org, name) = (&request.org, &request.table.name);
    let (table, from) = (lake.table(org, name).await?, report.snapshot_id);
    let (Some(table), Some(from)) = (table, from) else { return Ok(None) };
    if table.current_snapshot().is_none_or(|snapshot| snapshot.id != from) {
        return Ok(None);
    }
    let there = |id: &i64| *id != from && table.snapshots().iter().any(|info| info.id == *id);
    let Some(id) = known.verified().into_iter().find(there) else {
        return Ok(Some(Quarantine { to_snapshot: None, kept_as: None }));
    };
    let to = id.to_string();
    let done = Box::pin(lake.rollback_from(org, name, (from, &to), report.id)).await;
    let done = match done {
        Err(error) if error.code() == ErrorCode::LakeConflict => return Ok(None),
        done => done?,
    };
    tracing::warn!(org = %org.get(), table = name, snapshot = id, "the table was moved back");
    Ok(Some(Quarantine {
        to_snapshot: Some(done.snapshot_id),
        kept_as: done.done.map(|rollback| rollback.kept_as),
    }))
}
