//! `polder audit`: who changed what, and who was refused.

use clap::{Args, Subcommand};
use polder_control::Store;
use polder_control::audit::{self, Entry, Head};
use polder_core::{Error, ErrorCode, Result};
use serde_json::{Value, json};

use crate::app::App;
use crate::{exit, output};

/// Entries read at a time.
const PAGE: i64 = 1000;

#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the newest entries.
    List(List),
    /// Print every entry, one JSON object a line.
    Export(Export),
    /// Look whether any entry was changed, taken out or cut off.
    Verify(Verify),
}

#[derive(Debug, Args)]
struct List {
    /// So many entries.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u16,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Export {
    /// Print one JSON document instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Verify {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let store = app.store().await?;
        match &self.command {
            Command::List(list) => list.run(&store).await,
            Command::Export(export) => export.run(&store).await,
            Command::Verify(verify) => verify.run(app, &store).await,
        }
    }
}

impl List {
    async fn run(&self, store: &Store) -> Result<u8> {
        let entries = audit::newest(store, i64::from(self.limit)).await?;
        if self.json {
            output::document(&entries.iter().map(describe).collect::<Vec<_>>());
            return Ok(exit::OK);
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let row = |entry: &Entry| {
            vec![
                entry.seq.to_string(),
                output::time(entry.at_ms),
                entry.who.clone(),
                entry.action.clone(),
                text(&entry.org),
                text(&entry.subject),
                entry.outcome.clone(),
            ]
        };
        let rows: Vec<_> = entries.iter().map(row).collect();
        let header = ["entry", "when", "who", "what", "org", "of", "outcome"];
        output::columns(&header, &rows, &["entry"]);
        Ok(exit::OK)
    }
}

impl Export {
    async fn run(&self, store: &Store) -> Result<u8> {
        let mut all = Vec::new();
        let mut last = 0;
        loop {
            let page = audit::after(store, last, PAGE).await?;
            let Some(end) = page.last() else { break };
            last = end.seq;
            if self.json {
                all.extend(page.iter().map(describe));
            } else {
                for entry in &page {
                    output::line(&describe(entry).to_string());
                }
            }
        }
        if self.json {
            output::document(&all);
        }
        Ok(exit::OK)
    }
}

impl Verify {
    async fn run(&self, app: &App, store: &Store) -> Result<u8> {
        let lake = app.lake().await?;
        let written = lake.audit_head().await?;
        let checkpoint: Option<Head> = match written {
            Some(text) => Some(serde_json::from_slice(&text).map_err(|error| {
                Error::new(ErrorCode::LakeCorrupt, "the audit log's checkpoint cannot be read")
                    .caused_by(error)
            })?),
            None => None,
        };
        let verified = audit::verify(store, checkpoint.as_ref()).await?;
        let whole = verified.problems.is_empty();
        if self.json {
            output::document(&json!({
                "whole": whole,
                "entries": verified.entries,
                "head": verified.head,
                "checkpoint": checkpoint,
                "problems": verified.problems,
            }));
        } else {
            for problem in &verified.problems {
                output::line(problem);
            }
            let known = match &checkpoint {
                Some(head) => format!("the lake's checkpoint is at entry {}", head.seq),
                None => "the lake has no checkpoint yet".to_owned(),
            };
            if whole {
                output::line(&format!("{} entries, all whole; {known}", verified.entries));
            }
        }
        if whole {
            checkpoint_audit(app, store).await?;
        }
        Ok(if whole { exit::OK } else { exit::FAILED })
    }
}

/// Writes down in the lake's storage how far the log goes.
pub(crate) async fn checkpoint_audit(app: &App, store: &Store) -> Result<()> {
    let head = audit::head(store).await?;
    let text = serde_json::to_vec(&head).map_err(|error| {
        Error::new(ErrorCode::Internal, "the audit log's checkpoint cannot be written")
            .caused_by(error)
    })?;
    app.lake().await?.keep_audit_head(text).await
}

fn describe(entry: &Entry) -> Value {
    json!({
        "seq": entry.seq,
        "at": output::rfc3339(entry.at_ms),
        "who": entry.who,
        "action": entry.action,
        "org": entry.org,
        "subject": entry.subject,
        "outcome": entry.outcome,
        "detail": entry.detail,
        "hash": entry.hash,
    })
}
