//! A line on what was done to one table.

use polder_core::spec::EngineKind;
use polder_pipeline::{Done, ExpiryReport, MaintainReport, RetentionReport, RewriteReport};

use crate::output::{bytes, number};

pub(super) fn of(report: &MaintainReport) -> String {
    let table = report.table.as_ref().map_or_else(String::new, |table| format!(".{table}"));
    let seconds = report.duration_ms as f64 / 1000.0;
    let would = if report.dry_run { "would " } else { "" };
    let what = match &report.done {
        Done::Rewritten(done) => rewritten(report.action, done, report.dry_run, seconds),
        Done::Retained(done) => retained(done.as_ref(), report.dry_run),
        Done::Expired(done) => expired(done),
        Done::Tidied(done) => format!(
            "{} manifests {would}become {}, {} metadata files {would}go",
            number(done.manifests_before as u64),
            number(done.manifests_after as u64),
            number(done.files as u64),
        ),
        Done::Swept(done) => format!(
            "{} files: {} orphans ({}) {would}go to quarantine, {} come back, {} ({}) are deleted; \
             {} then wait there, {} are too young",
            number(done.listed),
            number(done.quarantined),
            bytes(done.quarantined_bytes),
            number(done.restored),
            number(done.purged),
            bytes(done.purged_bytes),
            number(done.waiting),
            number(done.young),
        ),
    };
    format!("{}{table}: {what}", report.org)
}

fn rewritten(action: &str, done: &RewriteReport, dry_run: bool, seconds: f64) -> String {
    if dry_run && done.engine == EngineKind::Trino {
        return "Trino would say what it rewrites once it has".to_owned();
    }
    let files = number(done.files_replaced as u64);
    if dry_run && done.files_replaced > 0 {
        return format!("{files} files ({}) would be rewritten", bytes(done.bytes_read));
    }
    if done.files_replaced == 0 && done.delete_files_removed == 0 {
        let well = if action == "optimize" { "as it should be" } else { "in its partition" };
        return format!("every file is {well}");
    }
    format!(
        "{files} files ({}) became {} ({}), {} rows, {} deleted rows left out, {} commits, {seconds:.1} s",
        bytes(done.bytes_read),
        number(done.files_written as u64),
        bytes(done.bytes_written),
        number(done.rows),
        number(done.rows_deleted),
        done.commits,
    )
}

fn retained(done: Option<&RetentionReport>, dry_run: bool) -> String {
    let Some(done) = done else { return "keeps its rows for ever".to_owned() };
    if done.rows_removed == 0 {
        return format!("no rows of before {}", done.before);
    }
    let verb = if dry_run { "would go" } else { "went" };
    format!(
        "{} rows of before {} {verb}: {} files as a whole, {} rewritten",
        number(done.rows_removed),
        done.before,
        number(done.files_dropped as u64),
        number(done.files_replaced as u64),
    )
}

fn expired(done: &ExpiryReport) -> String {
    let mut parts = Vec::new();
    let listed =
        if done.names.is_empty() { String::new() } else { format!(" ({})", done.names.join(", ")) };
    match done.files {
        _ if done.snapshots == 0 && done.names.is_empty() && done.files.is_none_or(|n| n == 0) => {
            parts.push("nothing to remove".to_owned());
        }
        Some(files) => {
            parts.push(format!("{} snapshots{listed} and {files} files removed", done.snapshots));
        }
        None => parts.push(format!("{} snapshots{listed} would be removed", done.snapshots)),
    }
    if !done.moved.is_empty() {
        parts.push(format!("{} names what retention has left of it", done.moved.join(", ")));
    }
    if !done.holding.is_empty() {
        parts.push(format!("{} still hold rows that retention let go", done.holding.join(", ")));
    }
    parts.join("; ")
}
