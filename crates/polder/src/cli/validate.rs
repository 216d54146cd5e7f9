//! `polder validate`: lake tables held to their sources.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use polder_control::{Store, alerts, runs};
use polder_core::validation::{Check, Verdict};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_pipeline::ValidationReport;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::alerts::Alerts;
use crate::app::App;
use crate::cli::selection::Selection;
use crate::validator::{Validator, Wanted};
use crate::worker::ended;
use crate::{exit, output};

/// Proves tables: keys and values are compared with the source's, at a common point. Exits with 0
/// only when every table is verified.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    selection: Selection,
    /// How many hours after a run rows of the source may be waiting for the next one; as the table spec
    /// says when absent.
    #[arg(long, value_name = "HOURS")]
    fresh_within: Option<u32>,
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
        let pipelines = self.selection.pipelines(&app.pipelines)?;
        let names = pipelines.iter().flat_map(|p| p.tables.iter().map(|t| t.source.as_str()));
        let sources = app.sources(names)?;
        let (lake, store) = (app.lake().await?, app.store().await?);
        let validator = Validator {
            engine: Arc::new(crate::cli::engine(app, &lake)?),
            alerts: Alerts::open(app)?,
            room: Arc::clone(&app.room),
            lake,
        };
        let cancel = CancellationToken::new();
        let work = async {
            let mut ended = Vec::new();
            for pipeline in &pipelines {
                let org = Principal::Operator.authorize(&pipeline.org)?;
                for table in &pipeline.tables {
                    let source = sources.get(&table.source).map(Arc::clone).ok_or_else(|| {
                        Error::new(ErrorCode::Internal, "a source was not opened")
                    })?;
                    let wanted = Wanted {
                        org: &org,
                        limits: &pipeline.limits,
                        table,
                        source: &*source,
                        fresh_within: self.fresh_within(),
                        progress: Arc::default(),
                        cancel: cancel.clone(),
                    };
                    ended.push(self.one(&validator, &store, wanted).await);
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

    fn fresh_within(&self) -> Option<Duration> {
        self.fresh_within.map(|hours| Duration::from_secs(u64::from(hours) * 3600))
    }

    /// Validates a table, and records it in the store.
    async fn one(&self, validator: &Validator, store: &Store, wanted: Wanted<'_>) -> Ended {
        let (org, table) = (wanted.org.clone(), wanted.table.clone());
        let started_ms = chrono::Utc::now().timestamp_millis();
        let outcome = Box::pin(validator.validate(wanted)).await;
        let (state, text) = ended(&outcome);
        let report = outcome.as_ref().ok();
        let alerts = report.map(|report| validator.alerts_of(&org, &table, report));
        let alerts = alerts.unwrap_or_default();
        let said = (state, text.as_str());
        let kept = runs::keep_validation(store, &org, (&table.name, started_ms), said, &alerts);
        if let Err(error) = kept.await {
            // The lake has the results; this is a copy for the API.
            tracing::warn!(org = %org.get(), table = table.name, "not recorded: {error}");
        }
        let ended = Ended { org: org.get().clone(), table: table.name.clone(), outcome };
        if !self.json {
            say(&ended);
        }
        if let Some(alert) = alerts.first() {
            tell(validator, store, &org, &alert.id).await;
        }
        ended
    }
}

/// Sends a validation's alerts. Those that are not taken wait in the store, for a server to send them again.
async fn tell(validator: &Validator, store: &Store, org: &Authorized<OrgId>, id: &str) {
    match alerts::waiting(store, org, id).await {
        Ok(waiting) => {
            let sent = waiting.into_iter().map(|one| validator.alerts.send(store, one));
            futures::future::join_all(sent).await;
        }
        Err(error) => tracing::warn!("alerts are not sent now: {error}"),
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
    if let Some(quarantine) = &report.quarantine {
        output::line(&match (quarantine.to_snapshot, &quarantine.kept_as) {
            (Some(id), kept_as) => format!(
                "  quarantine: moved back to snapshot {id}, which was verified; the state that \
                 failed is {}",
                kept_as.as_deref().unwrap_or("kept"),
            ),
            (None, _) => "  quarantine: there is no verified state to move back to".to_owned(),
        });
    }
}

fn sentence(check: &Check) -> String {
    let of = check.column.as_ref().or(check.name.as_ref());
    let column = of.map(|name| format!(" of {name}")).unwrap_or_default();
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
