//! `polder validate`: lake tables held to their sources.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use polder_core::management::VALIDATION_RESULTS;
use polder_core::spec::TableSpec;
use polder_core::validation::{Check, Verdict};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result, Source};
use polder_lake::Lake;
use polder_pipeline::{IngestLimits, ValidateRequest, ValidationReport, validate};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::selection::Selection;
use crate::{exit, output};

/// Proves tables: keys and values are compared with the source's, at a common point. Exits with 0
/// only when every table is verified.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    selection: Selection,
    /// How many hours after a run rows of the source may be waiting for the next one.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    fresh_within: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// How the validation of one table ended.
struct Ended {
    org: OrgId,
    table: String,
    outcome: Result<ValidationReport>,
}

impl Validate {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let pipelines = self.selection.pipelines(&app.config.pipelines)?;
        let names = pipelines.iter().flat_map(|p| p.tables.iter().map(|t| t.source.as_str()));
        let sources = app.sources(names)?;
        let lake = app.lake().await?;
        let cancel = CancellationToken::new();
        let work = async {
            let mut ended = Vec::new();
            for pipeline in &pipelines {
                let org = Principal::Operator.authorize(&pipeline.org)?;
                for table in &pipeline.tables {
                    let source = sources.get(&table.source).map(Arc::clone).ok_or_else(|| {
                        Error::new(ErrorCode::Internal, "a source was not opened")
                    })?;
                    let request = self.request(app, org.clone(), table, &cancel);
                    ended.push(self.one(&lake, &*source, &request).await);
                }
            }
            Ok(ended)
        };
        let ended: Vec<Ended> = tokio::select! {
            ended = work => ended?,
            _ = tokio::signal::ctrl_c() => return Ok(exit::INTERRUPTED),
        };
        if self.json {
            print_json(&ended);
        } else {
            print_summary(&ended);
        }
        Ok(exit_code(&ended))
    }

    fn request(
        &self,
        app: &App,
        org: Authorized<OrgId>,
        table: &TableSpec,
        cancel: &CancellationToken,
    ) -> ValidateRequest {
        let limits = &app.config.process.limits;
        ValidateRequest {
            org,
            table: table.clone(),
            limits: IngestLimits {
                splits: NonZeroUsize::new(limits.splits).unwrap_or(NonZeroUsize::MIN),
                memory_bytes: limits.memory_mb << 20,
            },
            fresh_within: Duration::from_secs(u64::from(self.fresh_within) * 3600),
            cancel: cancel.clone(),
        }
    }

    /// Validates a table and keeps the results.
    async fn one(&self, lake: &Lake, source: &dyn Source, request: &ValidateRequest) -> Ended {
        let outcome = async {
            let report = Box::pin(validate(lake, source, request)).await?;
            let rows = polder_pipeline::validation_results(std::slice::from_ref(&report))?;
            Box::pin(lake.record(&Principal::Operator, &VALIDATION_RESULTS, rows)).await?;
            Ok(report)
        };
        let org = request.org.get().clone();
        let ended = Ended { org, table: request.table.name.clone(), outcome: outcome.await };
        if !self.json {
            say(&ended);
        }
        ended
    }
}

/// What became of one table, in lines.
fn say(ended: &Ended) {
    let place = format!("{}/{}", ended.org, ended.table);
    let report = match &ended.outcome {
        Ok(report) => report,
        Err(error) => return output::error(error),
    };
    let version = report.version.as_deref().unwrap_or("no version");
    let seconds = report.duration_ms as f64 / 1000.0;
    let pending = match report.pending {
        0 => String::new(),
        pending => format!(", {} rows pending", output::number(pending as u64)),
    };
    output::line(&format!("{place}: {} ({version}{pending}, {seconds:.1} s)", report.verdict));
    for check in report.checks.iter().filter(|check| check.verdict != Verdict::Verified) {
        output::line(&sentence(check));
    }
}

fn sentence(check: &Check) -> String {
    let column = check.column.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
    let mut samples = check.samples.join("; ");
    if !samples.is_empty() {
        samples.insert_str(0, ": ");
    }
    let Check { check: name, verdict, expected, observed, .. } = check;
    format!("  {name}{column} {verdict}: {observed} (expected: {expected}){samples}")
}

fn print_summary(ended: &[Ended]) {
    let verified = ended.iter().filter(|end| verdict(end) == Some(Verdict::Verified)).count();
    output::line(&format!("{verified} of {} tables verified", ended.len()));
}

fn print_json(ended: &[Ended]) {
    let validations: Vec<_> = ended
        .iter()
        .map(|end| match &end.outcome {
            Ok(report) => json!({ "state": "validated", "report": report }),
            Err(error) => json!({
                "state": "failed",
                "org": end.org.as_str(),
                "table": end.table,
                "error": output::error_json(error),
            }),
        })
        .collect();
    let verified = ended.iter().filter(|end| verdict(end) == Some(Verdict::Verified)).count();
    output::document(&json!({
        "tables": ended.len(),
        "verified": verified,
        "validations": validations,
    }));
}

fn verdict(ended: &Ended) -> Option<Verdict> {
    ended.outcome.as_ref().ok().map(|report| report.verdict)
}

fn exit_code(ended: &[Ended]) -> u8 {
    if ended.iter().filter_map(verdict).any(|verdict| verdict != Verdict::Verified) {
        return exit::NOT_VERIFIED;
    }
    ended.iter().find_map(|end| end.outcome.as_ref().err()).map_or(exit::OK, exit::of)
}
