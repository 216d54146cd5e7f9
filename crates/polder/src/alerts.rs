//! Verdicts told by webhook, as a Standard Webhook (standardwebhooks.com, specification 1.0).
//!
//! Whom operators name in `[alerts]` is called, and nobody else, by the rules of `outgoing.rs`.
//! What is sent says what was found, and no rows. A call is tried a few times; then the alert waits in the store
//! (`polder_control::alerts`), is sent again for three days, and is given up. The results are in the lake all the
//! same.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use polder_control::Store;
use polder_control::alerts::{self as kept, Alert, Waiting};
use polder_core::spec::{AlertSpec, ValidationSpec};
use polder_core::validation::{Check, CheckName, Verdict};
use polder_core::{OrgId, Result};
use polder_pipeline::ValidationReport;
use reqwest::{Client, StatusCode, Url};
use ring::hmac;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::app::App;
use crate::outgoing;
use crate::output::rfc3339;
use crate::serve::webhook_key;

/// Calls when an alert is sent for the first time, and the pause after the first; each later one is twice as long.
/// When it is sent again there is one.
const TRIES_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Checks that are named in one alert.
const CHECKS_MAX: usize = 50;
/// What an alert says it is.
const TYPE: &str = "table.validated";

/// Everybody who is told.
#[derive(Clone)]
pub(crate) struct Alerts {
    hooks: Vec<Hook>,
    pause: Duration,
}

#[derive(Clone)]
struct Hook {
    name: String,
    url: Url,
    key: hmac::Key,
    on: Vec<Verdict>,
    client: Client,
}

impl Alerts {
    /// # Errors
    /// `spec.invalid` for an address that may not be called, `spec.secret` for a secret that cannot be
    /// read or is none.
    pub(crate) fn open(app: &App) -> Result<Self> {
        let hook = |(name, alert): (&String, &AlertSpec)| {
            Hook::open(app, name, alert)
                .map_err(|error| error.within(&format!("[alerts.{name}] of polder.toml")))
        };
        let hooks = app.config.process.alerts.iter().map(hook).collect::<Result<_>>()?;
        Ok(Self { hooks, pause: PAUSE })
    }

    /// What is to be told of a validation: to those whom the table's spec names and who want to hear of such
    /// a verdict.
    pub(crate) fn of(
        &self,
        org: &OrgId,
        spec: &ValidationSpec,
        report: &ValidationReport,
    ) -> Vec<Alert> {
        let wanted = |hook: &&Hook| {
            let named = spec.alerts.as_ref().is_none_or(|names| names.contains(&hook.name));
            named && hook.on.contains(&report.verdict)
        };
        let alert = |hook: &Hook| Alert {
            org: org.clone(),
            alert: hook.name.clone(),
            id: id(report),
            body: document(report).to_string(),
        };
        self.hooks.iter().filter(wanted).map(alert).collect()
    }

    /// Sends an alert that is kept, unless somebody else does. How it went is logged, and kept.
    pub(crate) async fn send(&self, store: &Store, mut waiting: Waiting) {
        let done = match kept::hold(store, &mut waiting).await {
            Ok(true) => self.send_held(store, &waiting).await,
            held => held.map(drop),
        };
        if let Err(error) = done {
            // It is sent once more when nobody holds it.
            tracing::warn!(id = waiting.alert.id, "what became of an alert was not kept: {error}");
        }
    }

    async fn send_held(&self, store: &Store, waiting: &Waiting) -> Result<()> {
        let Alert { org, alert, id, .. } = &waiting.alert;
        let calls_max = if waiting.tries == 0 { TRIES_MAX } else { 1 };
        let told = match self.hooks.iter().find(|hook| hook.name == *alert) {
            Some(hook) => hook.tell(&waiting.alert, calls_max, self.pause).await,
            None => Err(NotTaken { why: "nobody has that name now".to_owned(), again: true }),
        };
        match told {
            Ok(calls) => {
                tracing::info!(alert, %org, id, calls, "the alert was taken");
                kept::forget(store, waiting).await
            }
            Err(NotTaken { why, again: false }) => {
                tracing::warn!(alert, %org, id, "the alert was refused: {why}");
                kept::forget(store, waiting).await
            }
            Err(NotTaken { why, again: true }) => {
                let then =
                    if kept::later(store, waiting).await? { "sent again" } else { "given up" };
                tracing::warn!(alert, %org, id, "the alert was not taken and is {then}: {why}");
                Ok(())
            }
        }
    }
}

/// The same however often it is sent: whoever takes it twice knows by that.
fn id(report: &ValidationReport) -> String {
    format!("validation-{}", report.id)
}

/// Why an alert was not taken, and whether that may change.
struct NotTaken {
    why: String,
    again: bool,
}

impl Hook {
    fn open(app: &App, name: &str, alert: &AlertSpec) -> Result<Self> {
        let text = app.address(&alert.url)?;
        let url = outgoing::checked(text.expose_secret(), alert.private)?;
        let key = webhook_key("secret", &app.secret(&alert.secret)?)?;
        let client = outgoing::client(alert.private, CALL_MAX)?;
        Ok(Self { name: name.to_owned(), url, key, on: alert.on.clone(), client })
    }

    /// The number of calls it took.
    async fn tell(&self, alert: &Alert, calls_max: u32, pause: Duration) -> Result<u32, NotTaken> {
        let mut calls = 0;
        loop {
            calls += 1;
            let (why, again) = match self.call(&alert.id, &alert.body).await {
                Ok(status) if status.is_success() => return Ok(calls),
                Ok(status) => (status.to_string(), may_change(status)),
                // Of the error's own words none: they may repeat the address.
                Err(error) if error.is_timeout() => ("no answer came".to_owned(), true),
                Err(_) => ("it cannot be called".to_owned(), true),
            };
            if !again || calls == calls_max {
                return Err(NotTaken { why: format!("{why}, after {calls} calls"), again });
            }
            tokio::time::sleep(pause * (1 << (calls - 1))).await;
        }
    }

    async fn call(&self, id: &str, body: &str) -> reqwest::Result<StatusCode> {
        let time = Utc::now().timestamp();
        let signed = hmac::sign(&self.key, format!("{id}.{time}.{body}").as_bytes());
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", time.to_string())
            .header("webhook-signature", format!("v1,{}", STANDARD.encode(signed)))
            .body(body.to_owned());
        Ok(request.send().await?.status())
    }
}

/// Whether another call may be answered otherwise.
fn may_change(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::TOO_EARLY
                | StatusCode::TOO_MANY_REQUESTS
        )
}

/// What is told: verdicts and counts, no keys and no rows.
fn document(report: &ValidationReport) -> Value {
    let wrong = report.checks.iter().filter(|check| check.verdict != Verdict::Verified);
    let shown = |check: &Check| {
        // What the engine says of a statement may repeat a value.
        let unanswered = check.check == CheckName::Sql && check.verdict == Verdict::Stale;
        let observed = if unanswered { "no answer" } else { check.observed.as_str() };
        json!({
            "check": check.check,
            "name": check.name,
            "column": check.column,
            "verdict": check.verdict,
            "expected": check.expected,
            "observed": observed,
        })
    };
    json!({
        "type": TYPE,
        "timestamp": rfc3339(report.started_ms),
        "data": {
            "org": report.org,
            "table": report.table,
            "version": report.version,
            "snapshot_id": report.snapshot_id.map(|id| id.to_string()),
            "validation": report.id,
            "verdict": report.verdict,
            "checks": wrong.take(CHECKS_MAX).map(shown).collect::<Vec<_>>(),
            "quarantine": report.quarantine,
        },
    })
}

#[cfg(test)]
mod tests;
