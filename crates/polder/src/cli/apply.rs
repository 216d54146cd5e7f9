//! `polder plan` and `polder apply`: pipeline files into the desired state, seen from the lake.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use polder_control::Store;
use polder_control::desired::{self, Action, LakeFacts, Plan, PlannedTable, Unreadable};
use polder_core::{Error, ErrorCode, Principal, Result};
use polder_lake::Lake;
use serde_json::json;

use crate::app::{App, author};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct PlanFiles {
    /// The folder of the pipeline files; the one beside `polder.toml` when absent.
    #[arg(short, long, value_name = "FOLDER")]
    files: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyFiles {
    /// The folder of the pipeline files; the one beside `polder.toml` when absent.
    #[arg(short, long, value_name = "FOLDER")]
    files: Option<PathBuf>,
    /// Only if the plan is the one with this hash, or that begins so, as `polder plan` shows it.
    #[arg(long, value_name = "HASH")]
    plan: Option<String>,
    /// Also what takes tables out of pipelines or has rows go; goes with --plan.
    #[arg(long)]
    yes: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl PlanFiles {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let (plan, _) = make(app, self.files.as_ref()).await?;
        if self.json {
            output::document(&plan);
        } else {
            show(&plan);
        }
        Ok(exit::OK)
    }
}

impl ApplyFiles {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let (plan, store) = make(app, self.files.as_ref()).await?;
        // A plan may be named by the beginning of its hash, as it is shown.
        let asked = self.plan.as_deref().unwrap_or(&plan.hash);
        if asked.len() < 12 || !plan.hash.starts_with(asked) {
            let message = "the plan with this hash is not what would be done now";
            return Err(Error::new(ErrorCode::ControlStale, message)
                .hint("look at the difference again: polder plan"));
        }
        if plan.destructive > 0 {
            self.confirm(&plan)?;
        }
        let author = author(self.why.clone());
        let applied = desired::apply(&store, &plan, &author).await?;
        if self.json {
            output::document(&json!({ "applied": applied, "plan": plan }));
            return Ok(exit::OK);
        }
        show(&plan);
        output::line(&format!("applied: the desired state is at revision {}", applied.revision));
        Ok(exit::OK)
    }
}

impl ApplyFiles {
    /// Whoever has something go has seen what: by the plan's hash, or here and now.
    ///
    /// # Errors
    /// `control.conflict` for what was not confirmed.
    fn confirm(&self, plan: &Plan) -> Result<()> {
        if self.yes && self.plan.is_some() {
            return Ok(());
        }
        if !self.json {
            show(plan);
        }
        let tables = plan.destructive;
        let what = format!("{tables} tables would leave their pipelines, or have rows go");
        let is_asked = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if is_asked && !self.json {
            output::note(&format!("{what}: type yes if that is meant"));
            let mut said = String::new();
            let read = std::io::stdin().read_line(&mut said);
            if read.is_ok() && said.trim() == "yes" {
                return Ok(());
            }
        }
        let hint = format!("if that is meant: polder apply --plan {} --yes", &plan.hash[..12]);
        Err(Error::new(ErrorCode::ControlConflict, what).hint(hint))
    }
}

async fn make(mut app: App, folder: Option<&PathBuf>) -> Result<(Plan, Store)> {
    if let Some(folder) = folder {
        app.config.read_pipelines_of(folder)?;
    }
    let store = app.store().await?;
    let now = desired::load(&store, &Principal::Operator).await?;
    let facts = facts(&app.lake().await?).await?;
    let plan = desired::plan(&app.config.process, &now, &app.config.declared, &facts)?;
    Ok((plan, store))
}

/// The lake's tables and their rows.
async fn facts(lake: &Lake) -> Result<LakeFacts> {
    let principal = Principal::Operator;
    let mut facts = LakeFacts::new();
    for id in lake.orgs(&principal).await? {
        let org = principal.authorize(&id)?;
        for name in lake.tables(&org).await? {
            let table = lake.table(&org, &name).await?;
            let snapshot = table.and_then(|table| table.current_snapshot());
            facts.insert((id.clone(), name), snapshot.and_then(|snapshot| snapshot.rows));
        }
    }
    Ok(facts)
}

fn show(plan: &Plan) {
    for pending in &plan.pending {
        output::note(&format!("waits since before: {}", pending.sentence()));
    }
    if plan.is_empty() && plan.orgs_unreadable.is_empty() {
        return output::line("no difference: the desired state is what the files say");
    }
    for org in &plan.orgs_added {
        output::line(&format!("+ org {org}"));
    }
    for org in &plan.orgs_removed {
        output::line(&format!("- org {org} (its namespace and its tables stay in the lake)"));
    }
    for org in &plan.orgs_limited {
        output::line(&format!("~ org {org}: limits changes"));
    }
    for Unreadable { org, why } in &plan.orgs_unreadable {
        output::line(&format!("! org {org} stays as it is: {why}"));
    }
    for table in &plan.tables {
        output::line(&sentence(table));
        for goes in &table.goes {
            output::line(&format!("    {goes} (destructive)"));
        }
    }
    if plan.tables.iter().any(|table| !table.goes.is_empty()) {
        let window = output::span(plan.undo_seconds);
        output::note(&format!("what goes can be taken back for {window} after it is applied"));
    }
    let yes = if plan.destructive > 0 { " --yes" } else { "" };
    output::note(&format!("carry it out with: polder apply --plan {}{yes}", &plan.hash[..12]));
}

fn sentence(table: &PlannedTable) -> String {
    let place = format!("{}/{}", table.org, table.table);
    let rows = |rows: Option<u64>| rows.map_or_else(|| "all".to_owned(), output::number);
    let settings = table.settings.join(", ");
    match table.action {
        Action::Create if !table.goes.is_empty() => {
            format!("~ {place}: comes back, and keeps less")
        }
        Action::Create => format!("+ {place}: the first run makes it"),
        Action::Rewrite => format!(
            "~ {place}: {settings} changes; the next run reloads it as a new version ({} rows now)",
            rows(table.rows_to_read),
        ),
        Action::Change => format!("~ {place}: {settings} changes"),
        Action::Switch if settings.is_empty() => {
            format!("~ {place}: runs go on or stop; its {} rows stay", rows(table.rows))
        }
        Action::Switch => format!("~ {place}: {settings} changes: runs go on or stop"),
        Action::Drop => format!(
            "- {place}: leaves the pipeline; its {} rows stay in the lake and get no newer \
             (destructive)",
            rows(table.rows),
        ),
    }
}
