//! `polder churn`: an org leaves.

use clap::Args;
use polder_control::audit::Event;
use polder_control::{Churn as Record, ChurnState, Notice, churn};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::eraser::Eraser;
use crate::output::rfc3339;
use crate::{exit, output};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Churn {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Do it: fence the org, erase everything of it and print the certificate.
    #[arg(long)]
    yes: bool,
    /// Erase at once, whatever [governance] grace says.
    #[arg(long, requires = "yes")]
    now: bool,
    /// Say how far it is.
    #[arg(long, group = "other", conflicts_with = "yes")]
    status: bool,
    /// Bring the org back, as long as nothing of it is erased.
    #[arg(long, group = "other", conflicts_with = "yes")]
    undo: bool,
    /// Let the id of an erased org be used anew.
    #[arg(long, group = "other", conflicts_with = "yes")]
    release: bool,
    /// Who asks for it; the user of this process when absent.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why, for the certificate.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The event's own id; asking twice with it is asking once.
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Churn {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        if self.status {
            return self.show_status(&org, app).await;
        }
        let eraser = app.eraser().await?;
        if self.undo {
            let done = eraser.undo(&org).await;
            let record = app.noted(self.event("churn.undo"), done).await?;
            let back = format!("org {} is open again: nothing of it was erased", self.org);
            return Ok(self.said(&record, &back));
        }
        if self.release {
            let done = eraser.release(&org).await;
            let record = app.noted(self.event("churn.release"), done).await?;
            let free = format!("org id {} may be used anew", self.org);
            return Ok(self.said(&record, &free));
        }
        self.check_known(&org, app, &eraser).await?;
        if !self.yes {
            return self.show_what_would_go(&org, &eraser).await;
        }
        let grace = if self.now { std::time::Duration::ZERO } else { eraser.grace };
        let notice = Notice {
            event_id: self.event.clone().unwrap_or_else(|| Uuid::now_v7().to_string()),
            asked_by: self.by.clone().unwrap_or_else(user),
            via: "cli",
            reason: self.reason.clone(),
            grace_ms: i64::try_from(grace.as_millis()).unwrap_or(i64::MAX),
        };
        let taken = eraser.take(&org, &notice).await;
        let record = app.noted(self.event("churn.take"), taken).await?;
        let waits = record.due_ms > chrono::Utc::now().timestamp_millis();
        if record.state == ChurnState::Waiting && waits && !self.now {
            let (org, due) = (&self.org, rfc3339(record.due_ms));
            let text = format!("org {org} is fenced, and erased after {due} (undo: --undo)");
            return Ok(self.said(&record, &text));
        }
        if !self.json {
            output::note(&format!("org {} is fenced (event {})", self.org, record.event_id));
        }
        let done = Box::pin(eraser.carry_out(&record.event_id)).await;
        let done = app.noted(self.event("churn.erase"), done).await?;
        let Some(document) = &done.certificate else {
            let text = format!("org {} is {}", self.org, done.state.as_str());
            return Ok(self.said(&done, &text));
        };
        output::line(document.trim_end());
        Ok(exit::OK)
    }

    /// What the audit log has of it.
    fn event(&self, action: &str) -> Event {
        Event {
            action: action.to_owned(),
            org: Some(self.org.to_string()),
            subject: self.event.clone(),
            detail: self.by.as_ref().map(|by| format!("by {by}")),
            ..Event::default()
        }
    }

    /// A mistyped id must not fence an org that comes later.
    async fn check_known(&self, org: &Authorized<OrgId>, app: &App, eraser: &Eraser) -> Result<()> {
        let known = app.config.declares(&self.org)
            || eraser.lake.knows(org).await?
            || churn::latest(&eraser.store, org).await?.is_some();
        if known {
            return Ok(());
        }
        let message = format!("there is no org {}, in the pipelines or in the lake", self.org);
        Err(Error::new(ErrorCode::SpecUnknownName, message).hint("`polder tables` lists the orgs"))
    }

    async fn show_what_would_go(&self, org: &Authorized<OrgId>, eraser: &Eraser) -> Result<u8> {
        if let Some(record) = churn::in_force(&eraser.store, org).await? {
            let text = sentence(&record);
            self.said(&record, &text);
            return Ok(exit::USAGE);
        }
        let tables = eraser.lake.tables(org).await?;
        if self.json {
            output::document(&json!({
                "org": self.org.as_str(), "state": "asked", "tables": tables,
                "grace_seconds": eraser.grace.as_secs(),
            }));
        } else {
            let grace = eraser.grace.as_secs();
            output::line(&format!(
                "org {} would be fenced, and erased with its {} tables after {grace} s",
                self.org,
                tables.len()
            ));
        }
        output::note("nothing was done: add --yes");
        Ok(exit::USAGE)
    }

    async fn show_status(&self, org: &Authorized<OrgId>, app: &App) -> Result<u8> {
        let found = churn::latest(&app.store().await?, org).await?;
        let Some(record) = found else {
            let message = format!("org {} is not leaving and never left", self.org);
            return Err(Error::new(ErrorCode::SpecUnknownName, message));
        };
        let text = sentence(&record);
        Ok(self.said(&record, &text))
    }

    fn said(&self, record: &Record, text: &str) -> u8 {
        if self.json {
            output::document(&document(record));
        } else {
            output::line(text);
        }
        exit::OK
    }
}

/// The event as JSON; the same over HTTP.
pub(crate) fn document(record: &Record) -> Value {
    json!({
        "id": record.event_id,
        "org": record.org.as_str(),
        "state": record.state.as_str(),
        "asked_by": record.asked_by,
        "via": record.via,
        "reason": record.reason,
        "asked_at": rfc3339(record.asked_ms),
        "due_at": rfc3339(record.due_ms),
        "step": record.erasure.as_ref().map(|erasure| erasure.step),
        "certificate": record.certificate.as_ref().map(|text| {
            serde_json::from_str::<Value>(text).unwrap_or_default()
        }),
    })
}

fn sentence(record: &Record) -> String {
    let org = &record.org;
    match record.state {
        ChurnState::Waiting => {
            format!(
                "org {org} is fenced, and erased after {} (undo: --undo)",
                rfc3339(record.due_ms)
            )
        }
        ChurnState::Erasing => {
            format!("org {org} is being erased: `polder churn --org {org} --yes` goes on")
        }
        ChurnState::Erased => {
            format!(
                "org {org} is erased: polder certificate show --org {org}; --release frees its id"
            )
        }
        ChurnState::Undone => format!("org {org} was to leave, and was brought back"),
        ChurnState::Released => format!("org {org} was erased, and its id may be used anew"),
    }
}

/// Who runs this process, as far as it says so.
pub(crate) fn user() -> String {
    let named = |name: &str| std::env::var(name).ok().filter(|user| !user.is_empty());
    named("SUDO_USER").or_else(|| named("USER")).unwrap_or_else(|| "operator".to_owned())
}
