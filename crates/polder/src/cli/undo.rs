//! `polder undo`: settings by which rows or states go are taken back while nothing has gone yet.

use clap::Args;
use polder_control::audit::Event;
use polder_control::desired::{self, Change, Pending};
use polder_core::{OrgId, Principal, Result};
use serde_json::json;

use crate::app::{App, author};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Undo {
    /// The org; without org and table what can be taken back is listed.
    #[arg(long, value_name = "ID", requires = "table")]
    org: Option<OrgId>,
    /// The table.
    #[arg(long, value_name = "NAME", requires = "org")]
    table: Option<String>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", requires = "org")]
    why: Option<String>,
    /// Only say what would be.
    #[arg(long, requires = "org")]
    dry_run: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Undo {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        match (&self.org, &self.table) {
            (Some(org), Some(table)) => self.take_back(app, org, table).await,
            _ => self.list(app).await,
        }
    }

    async fn list(&self, app: &App) -> Result<u8> {
        let now = desired::load(&app.store().await?, &Principal::Operator).await?;
        let pending: Vec<Pending> = desired::pending(&app.config.process, &now);
        if self.json {
            output::document(&json!({ "pending": pending }));
            return Ok(exit::OK);
        }
        for pending in &pending {
            output::line(&pending.sentence());
        }
        if pending.is_empty() {
            output::note("nothing waits to be carried out");
        }
        Ok(exit::OK)
    }

    async fn take_back(&self, app: &App, id: &OrgId, table: &str) -> Result<u8> {
        let store = app.store().await?;
        let org = Principal::Operator.authorize(id)?;
        let (process, author) = (&app.config.process, author(self.why.clone()));
        // What was kept before is not less than what is kept now.
        let change = Change { process, author: &author, dry_run: self.dry_run, yes: true };
        let changed =
            desired::change(&store, &org, change, |current| desired::undone(&current, id, table));
        let event = Event {
            action: "table.undo".to_owned(),
            org: Some(id.to_string()),
            subject: Some(table.to_owned()),
            detail: self.why.clone(),
            ..Event::default()
        };
        let changed = changed.await;
        let changed = if self.dry_run { changed? } else { app.noted(event, changed).await? };
        let spec = changed.table(table).map(|table| &table.spec);
        let retention = spec.and_then(|spec| spec.retention.as_ref());
        if self.json {
            output::document(&json!({
                "org": id.as_str(),
                "table": table,
                "dry_run": self.dry_run,
                "retention": retention,
                "maintenance": spec.map(|spec| &spec.maintenance),
            }));
            return Ok(exit::OK);
        }
        let would = if self.dry_run { "would keep" } else { "keeps" };
        output::line(&format!("table {table} of org {id} {would} again what it kept before"));
        output::note(
            "this is said over the pipeline files: where they keep less, take that back there too",
        );
        Ok(exit::OK)
    }
}
