//! `polder run`: one pass over pipelines, in this process.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;
use polder_control::OrgPipeline;
use polder_core::{Assurance, ErrorCode, Guarantee, Principal, Result};
use polder_pipeline::{IngestReport, Outcome};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::selection::Selection;
use crate::progress::Display;
use crate::room::Room;
use crate::worker::{Ended, How, Job, Watched, Worker};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    selection: Selection,
    /// Reload everything, whatever the mode and the checkpoint.
    #[arg(long)]
    full_refresh: bool,
    /// Only say what a run would do to each table, schema changes included; nothing is written.
    #[arg(long = "dry-run")]
    dry: bool,
    /// Print one JSON document, and no progress.
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let app = if self.dry { app.looked().await? } else { app.settled().await? };
        for left in &app.left {
            output::note(&left.sentence());
        }
        let pipelines = self.selection.pipelines(&app.pipelines)?;
        let names = pipelines.iter().flat_map(|p| p.tables.iter().map(|t| t.source.as_str()));
        let (lake, limits) = (app.lake().await?, &app.config.process.limits);
        let trino = app.trino()?;
        let worker = Worker {
            sources: Arc::new(app.sources(names)?),
            engine: Arc::new(crate::cli::engine(&app, &lake)?),
            elsewhere: app.elsewhere(trino.as_ref()),
            lake,
            store: app.store().await?,
            room: Arc::new(Room::new(limits.clone(), limits.runs)),
            cancel: CancellationToken::new(),
        };
        let mut display = Display::new(self.json);
        let jobs = self.jobs(&pipelines, &mut display)?;
        display.start(self.json);
        let mut ended = Vec::new();
        let finished = self.work(&worker, jobs, &display, &mut ended).await;
        display.finish();
        if let Some(trino) = &trino {
            trino.settle().await;
        }
        if !finished {
            return Ok(exit::INTERRUPTED);
        }
        ended.sort_by(|a, b| (&a.org, &a.table).cmp(&(&b.org, &b.table)));
        if self.json {
            print_json(&ended);
        } else {
            print_summary(&ended);
        }
        Ok(exit_code(&ended))
    }

    /// Carries out the jobs until they end or Ctrl-C stops them. False if a second Ctrl-C cut them
    /// off.
    async fn work(
        &self,
        worker: &Worker,
        jobs: Vec<Watched>,
        display: &Display,
        ended: &mut Vec<Ended>,
    ) -> bool {
        let mut work = std::pin::pin!(worker.run(jobs, |end| {
            if !self.json {
                display.say(&sentence(&end));
            }
            ended.push(end);
        }));
        tokio::select! {
            () = &mut work => return true,
            _ = tokio::signal::ctrl_c() => {}
        }
        worker.cancel.cancel();
        display.say("stopping: nothing unfinished becomes visible (Ctrl-C again: at once)");
        tokio::select! {
            () = work => true,
            _ = tokio::signal::ctrl_c() => false,
        }
    }

    fn jobs(&self, pipelines: &[OrgPipeline], display: &mut Display) -> Result<Vec<Watched>> {
        let mut watched = Vec::new();
        let how = How { full_refresh: self.full_refresh, dry_run: self.dry };
        for pipeline in pipelines {
            for job in Job::of_pipeline(&Principal::Operator, pipeline, how)? {
                let Job::Ingest { org, table, .. } = &job;
                let progress = Arc::default();
                display.watch(format!("{}/{}", org.get(), table.name), Arc::clone(&progress));
                watched.push(Watched { job, progress });
            }
        }
        Ok(watched)
    }
}

/// What became of one table, as a line.
fn sentence(end: &Ended) -> String {
    let place = format!("{}/{}", end.org, end.table);
    let report = match &end.outcome {
        Ok(report) => report,
        Err(error) => return format!("{place}: failed: {error}"),
    };
    let seconds = report.duration_ms as f64 / 1000.0;
    let rows = output::number(report.rows_written);
    let mut text = match report.outcome {
        Outcome::FullRefresh if report.dry_run => {
            let reason = report.reason.as_deref().unwrap_or("full refresh");
            format!("{place}: would be reloaded as a new version ({reason})")
        }
        Outcome::Append | Outcome::Merge if report.dry_run => {
            format!("{place}: would take the rows since its checkpoint")
        }
        Outcome::FullRefresh => {
            let version = report.version.as_deref().unwrap_or("a version");
            let reason = report.reason.as_deref().unwrap_or("full refresh");
            format!("{place}: {rows} rows as {version} in {seconds:.1} s ({reason})")
        }
        Outcome::Append => format!("{place}: {rows} rows added in {seconds:.1} s"),
        Outcome::Merge => {
            let [new, changed, gone] =
                [report.rows_inserted, report.rows_updated, report.rows_deleted]
                    .map(output::number);
            format!("{place}: {new} rows new, {changed} changed, {gone} deleted in {seconds:.1} s")
        }
        Outcome::NothingNew => format!("{place}: nothing new ({seconds:.1} s)"),
    };
    if report.guarantee != Guarantee::Exact {
        let (guarantee, words) = (report.guarantee, Assurance::words(&report.guarantee_reasons));
        let _ = write!(text, "\n  guarantee: {guarantee} ({words}); `polder check` says why");
    }
    for change in &report.schema_changes {
        let _ = write!(text, "\n  schema: {change}");
    }
    for (column, count) in &report.altered {
        let _ = write!(text, "\n  {count} values of {column} altered by on_unrepresentable");
        if let Some(keys) = report.altered_keys.get(column) {
            let _ = write!(text, ", in rows like {}", keys.join("; "));
        }
    }
    for (file, count) in &report.rejected {
        let _ = write!(text, "\n  {count} lines of {file} set aside");
    }
    for warning in &report.warnings {
        let _ = write!(text, "\n  warning: {warning}");
    }
    text
}

fn print_summary(ended: &[Ended]) {
    let reports: Vec<&IngestReport> =
        ended.iter().filter_map(|e| e.outcome.as_ref().ok()).collect();
    for end in ended {
        if let Err(error) = &end.outcome {
            output::error(error);
        }
    }
    if reports.iter().any(|report| report.dry_run) {
        let (planned, all) = (reports.len(), ended.len());
        return output::line(&format!("{planned} of {all} tables planned; nothing was written"));
    }
    let read: u64 = reports.iter().map(|report| report.rows_read).sum();
    let written: u64 = reports.iter().map(|report| report.rows_written).sum();
    output::line(&format!(
        "{} of {} tables up to date: {} rows read, {} written",
        reports.len(),
        ended.len(),
        output::number(read),
        output::number(written),
    ));
}

fn print_json(ended: &[Ended]) {
    let runs: Vec<_> = ended
        .iter()
        .map(|end| match &end.outcome {
            Ok(report) => json!({ "state": "succeeded", "report": report }),
            Err(error) => json!({
                "state": if error.code() == ErrorCode::Cancelled { "cancelled" } else { "failed" },
                "org": end.org.as_str(),
                "table": end.table,
                "error": output::error_json(error),
            }),
        })
        .collect();
    let succeeded = ended.iter().filter(|end| end.outcome.is_ok()).count();
    output::document(&json!({
        "tables": ended.len(),
        "succeeded": succeeded,
        "failed": ended.len() - succeeded,
        "runs": runs,
    }));
}

fn exit_code(ended: &[Ended]) -> u8 {
    let codes: Vec<u8> =
        ended.iter().filter_map(|e| e.outcome.as_ref().err()).map(exit::of).collect();
    let Some(first) = codes.first() else { return exit::OK };
    if codes.contains(&exit::INTERRUPTED) {
        exit::INTERRUPTED
    } else if codes.len() < ended.len() {
        exit::PARTIAL
    } else if codes.iter().all(|code| code == first) {
        *first
    } else {
        exit::FAILED
    }
}
