//! `polder hold`: legal holds. What they forbid asks for them in the lake.

use chrono::Utc;
use clap::{Args, Subcommand};
use polder_control::audit::Event;
use polder_control::churn;
use polder_core::{Error, ErrorCode, Hold as Mark, OrgId, Principal, Result};
use serde_json::json;

use crate::app::App;
use crate::cli::churn::user;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Hold {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep an org, or one table of it, from being removed.
    Set(Change),
    /// End a hold.
    Release(Change),
    /// List the holds there are.
    List(List),
}

#[derive(Debug, Args)]
struct Change {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Only this table; everything of the org when absent.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who says so; the user of this process when absent.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    /// Only this org.
    #[arg(long, value_name = "ID")]
    org: Option<OrgId>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Hold {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        match &self.command {
            Command::Set(change) => {
                app.noted(change.event("hold.set"), change.set(app).await).await
            }
            Command::Release(change) => {
                app.noted(change.event("hold.release"), change.release(app).await).await
            }
            Command::List(list) => list.run(app).await,
        }
    }
}

impl Change {
    /// What the audit log has of it.
    fn event(&self, action: &str) -> Event {
        Event {
            action: action.to_owned(),
            org: Some(self.org.to_string()),
            subject: self.table.clone(),
            detail: self.by.as_ref().map(|by| format!("by {by}")),
            ..Event::default()
        }
    }

    async fn set(&self, app: &App) -> Result<u8> {
        let (lake, store) = (app.lake().await?, app.store().await?);
        let org = Principal::Operator.authorize(&self.org)?;
        let mark = Mark {
            table: self.table.clone(),
            reason: self.reason.clone(),
            set_by: self.by.clone().unwrap_or_else(user),
            set_ms: Utc::now().timestamp_millis(),
        };
        lake.hold(&org, &mark).await?;
        churn::hold_set(&store, &org, &mark).await?;
        self.say("held", "nothing of it is removed until the hold is released");
        Ok(exit::OK)
    }

    async fn release(&self, app: &App) -> Result<u8> {
        let (lake, store) = (app.lake().await?, app.store().await?);
        let org = Principal::Operator.authorize(&self.org)?;
        if !lake.release_hold(&org, self.table.as_deref()).await? {
            let message = format!("{} is not held", self.what());
            return Err(Error::new(ErrorCode::SpecUnknownName, message)
                .hint("`polder hold list` shows the holds there are"));
        }
        let by = self.by.clone().unwrap_or_else(user);
        let table = self.table.as_deref();
        churn::hold_released(&store, &org, table, (&by, &self.reason)).await?;
        self.say("released", "what is due to be removed goes again");
        Ok(exit::OK)
    }

    fn what(&self) -> String {
        match &self.table {
            Some(table) => format!("table {table} of org {}", self.org),
            None => format!("org {}", self.org),
        }
    }

    fn say(&self, state: &str, then: &str) {
        if self.json {
            let (org, table) = (self.org.as_str(), &self.table);
            output::document(&json!({ "org": org, "table": table, "state": state }));
        } else {
            output::line(&format!("{} is {state}: {then}", self.what()));
        }
    }
}

impl List {
    async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let principal = Principal::Operator;
        let orgs = match &self.org {
            Some(org) => vec![org.clone()],
            None => lake.orgs(&principal).await?,
        };
        let mut found = Vec::new();
        for org in orgs {
            for mark in lake.holds(&principal.authorize(&org)?).await? {
                found.push((org.clone(), mark));
            }
        }
        if self.json {
            let holds: Vec<_> = found
                .iter()
                .map(|(org, mark)| json!({ "org": org.as_str(), "hold": mark }))
                .collect();
            output::document(&json!({ "holds": holds }));
            return Ok(exit::OK);
        }
        let rows: Vec<Vec<String>> = found
            .into_iter()
            .map(|(org, mark)| {
                let table = mark.table.unwrap_or_else(|| "*".to_owned());
                vec![org.to_string(), table, mark.set_by, output::time(mark.set_ms), mark.reason]
            })
            .collect();
        if rows.is_empty() {
            output::note("there is no hold");
        } else {
            output::columns(&["org", "table", "set by", "set at", "reason"], &rows, &[]);
        }
        Ok(exit::OK)
    }
}
