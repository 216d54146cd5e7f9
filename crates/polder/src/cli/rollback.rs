//! `polder rollback`: an older version of a table becomes the current one.

use clap::Args;
use polder_control::audit::Event;
use polder_core::{OrgId, Principal, Result};
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// The table.
    #[arg(long, value_name = "NAME")]
    table: String,
    /// What to go back to: a version (`v3`), another tag, or a snapshot's id.
    #[arg(long, value_name = "VERSION")]
    to: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Rollback {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let org = Principal::Operator.authorize(&self.org)?;
        let event = Event {
            action: "table.rollback".to_owned(),
            org: Some(self.org.to_string()),
            subject: Some(self.table.clone()),
            detail: Some(format!("to {}", self.to)),
            ..Event::default()
        };
        let done = lake.rollback(&org, &self.table, &self.to, Uuid::new_v4()).await;
        let outcome = app.noted(event, done).await?;
        if self.json {
            output::document(&json!({
                "org": self.org.as_str(),
                "table": self.table,
                "snapshot_id": outcome.snapshot_id,
                "rollback": outcome.done,
            }));
            return Ok(exit::OK);
        }
        let (org, table, to) = (&self.org, &self.table, &self.to);
        let Some(done) = outcome.done else {
            output::line(&format!("table {table} of org {org} is at {to} already"));
            return Ok(exit::OK);
        };
        output::line(&format!(
            "table {table} of org {org} is at {to} again (snapshot {})",
            outcome.snapshot_id
        ));
        output::note(&format!(
            "undo with: polder rollback --org {org} --table {table} --to {}",
            done.kept_as
        ));
        Ok(exit::OK)
    }
}
