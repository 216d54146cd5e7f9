//! `optimize` by another engine, in its own commit: asked for, found by its mark, and told as our own is.
//!
//! What is worth a rewrite is the engine's word. That no row was lost is checked by what its snapshot says.

use std::time::Instant;

use polder_core::{Error, ErrorCode, Optimizer, Result};
use polder_lake::{Lake, Summary};

use super::action::{Done, MaintainRequest};
use super::rewrite::{RewriteReport, load};

/// How often it is asked again after a commit in between.
const ATTEMPTS_MAX: u32 = 5;

/// # Errors
/// `lake.conflict` if runs kept changing the files; `lake.corrupt` for a snapshot that has other rows;
/// `lake.fenced`; `cancelled`.
pub(super) async fn optimize(
    lake: &Lake,
    request: &MaintainRequest,
    optimizer: &dyn Optimizer,
) -> Result<Done> {
    let (started, name) = (Instant::now(), &request.table.name);
    let report = RewriteReport {
        org: request.org.get().to_string(),
        table: name.clone(),
        engine: optimizer.kind(),
        dry_run: request.dry_run,
        ..RewriteReport::default()
    };
    if request.dry_run {
        // What it would take is known to the engine alone.
        return Ok(Done::Rewritten(report));
    }
    // Nothing is asked for that the catalog would refuse to commit.
    lake.check_open(&request.org).await?;
    let mut attempt = 1;
    let mark = loop {
        let target_mb = request.table.maintenance.target_file_mb;
        let work = optimizer.optimize(&request.org, name, target_mb, &request.progress);
        let outcome = tokio::select! {
            biased;
            () = request.limits.cancel.cancelled() => {
                return Err(Error::new(ErrorCode::Cancelled, "the rewrite was cancelled")
                    .hint("what the engine had committed by then stays done"));
            }
            outcome = work => outcome,
        };
        match outcome {
            Ok(mark) => break mark,
            Err(error) if error.code() == ErrorCode::LakeConflict && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            Err(error) => {
                let place = format!("org {}, table {name}", request.org.get());
                return Err(error.within(&place));
            }
        }
    };
    let table = load(lake, &request.org, name).await?;
    let mut report = match table.summaries_with(mark.key, &mark.value) {
        Some((own, before)) => told(report, &own, before.as_ref())?,
        None => report,
    };
    report.duration_ms = started.elapsed().as_millis() as u64;
    Ok(Done::Rewritten(report))
}

/// The report of a commit, from its own summary and that of the state before.
fn told(report: RewriteReport, own: &Summary, before: Option<&Summary>) -> Result<RewriteReport> {
    let number = |key: &str| own.get(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let none_deleted = before.and_then(|said| said.get("total-delete-files"));
    let none_deleted = none_deleted.is_some_and(|files| files == "0");
    let (removed, added) = (number("deleted-records"), number("added-records"));
    // Rows that were deleted before have to be in files still; without delete files there are none.
    if added > removed || (none_deleted && added != removed) {
        let detail = format!("{removed} rows were in the files that went, {added} are in new ones");
        return Err(Error::new(ErrorCode::LakeCorrupt, "another engine's files hold other rows")
            .detail(detail)
            .hint("`polder rollback` goes back to the state before"));
    }
    Ok(RewriteReport {
        files_replaced: number("deleted-data-files") as usize,
        files_written: number("added-data-files") as usize,
        delete_files_removed: number("removed-delete-files") as usize,
        rows: added,
        rows_deleted: removed - added,
        bytes_read: number("removed-files-size"),
        bytes_written: number("added-files-size"),
        commits: 1,
        ..report
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(said: &[(&str, &str)]) -> Summary {
        said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_commit_is_told_as_our_own_is() {
        let own = summary(&[
            ("deleted-data-files", "9"),
            ("added-data-files", "2"),
            ("removed-delete-files", "1"),
            ("deleted-records", "100"),
            ("added-records", "97"),
            ("removed-files-size", "5000"),
            ("added-files-size", "4000"),
        ]);
        let report = told(RewriteReport::default(), &own, None).expect("told");
        let expected = RewriteReport {
            files_replaced: 9,
            files_written: 2,
            delete_files_removed: 1,
            rows: 97,
            rows_deleted: 3,
            bytes_read: 5000,
            bytes_written: 4000,
            commits: 1,
            ..RewriteReport::default()
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn lost_and_doubled_rows_are_noticed() {
        let own =
            |removed, added| summary(&[("deleted-records", removed), ("added-records", added)]);
        let before = |files| summary(&[("total-delete-files", files)]);
        let code = |own: &Summary, before: &Summary| {
            told(RewriteReport::default(), own, Some(before)).err().map(|error| error.code())
        };
        assert_eq!(code(&own("9", "9"), &before("0")), None);
        assert_eq!(code(&own("9", "8"), &before("1")), None, "one row was deleted");
        assert_eq!(code(&own("9", "8"), &before("0")), Some(ErrorCode::LakeCorrupt));
        assert_eq!(code(&own("9", "10"), &before("1")), Some(ErrorCode::LakeCorrupt));
    }
}
