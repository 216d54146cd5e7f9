//! `polder audit`: who changed what, and who was refused.

use clap::{Args, Subcommand};
use polder_control::Store;
use polder_control::audit::{self, Entry, Head};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{AuditHead, Lake};
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
        let checkpoint = written(&app.lake().await?).await?;
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

/// What was last written down in the lake's storage.
async fn written(lake: &Lake) -> Result<Option<Head>> {
    lake.audit_head().await?.as_ref().map(read).transpose()
}

fn read(kept: &AuditHead) -> Result<Head> {
    serde_json::from_slice(kept.bytes()).map_err(|error| {
        Error::new(ErrorCode::LakeCorrupt, "the audit log's checkpoint cannot be read")
            .caused_by(error)
    })
}

/// Writes down in the lake's storage how far the log goes, in place of what stood there before. That is
/// kept if the log no longer has its entry: it is the proof.
///
/// # Errors
/// `lake.corrupt` if the log was cut off or changed since the last time.
pub(crate) async fn checkpoint_audit(app: &App, store: &Store) -> Result<()> {
    let lake = app.lake().await?;
    let head = audit::head(store).await?;
    let kept = lake.audit_head().await?;
    if let Some(before) = kept.as_ref().map(read).transpose()? {
        if !audit::holds(store, &before).await? {
            let message = "the audit log was cut off or changed: an entry is gone that was there";
            return Err(Error::new(ErrorCode::LakeCorrupt, message)
                .detail(format!("entry {}, as the lake's checkpoint has it", before.seq))
                .hint("`polder audit verify` says what is wrong; the checkpoint stays as it was"));
        }
        // Another server was faster.
        if head.seq <= before.seq {
            return Ok(());
        }
    }
    let text = serde_json::to_vec(&head).map_err(|error| {
        Error::new(ErrorCode::Internal, "the audit log's checkpoint cannot be written")
            .caused_by(error)
    })?;
    // If another server was faster, the next time goes on from there.
    lake.keep_audit_head(kept.as_ref(), text).await.map(drop)
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

#[cfg(test)]
mod tests {
    use polder_control::audit::Event;

    use super::*;

    const PROCESS: &str = r#"
[lake]
warehouse = "./lake"
catalog = "sqlite://./c.db"
[store]
url = "sqlite://./c.db"
"#;

    async fn record(store: &Store, entries: usize) -> Head {
        for _ in 0..entries {
            audit::record(store, &Event::default()).await.expect("recorded");
        }
        audit::head(store).await.expect("head")
    }

    #[tokio::test]
    async fn a_log_that_was_cut_off_is_not_written_down_in_place_of_the_whole_one() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("polder.toml");
        std::fs::write(&file, PROCESS).expect("written");
        let app = App::load(Some(&file)).expect("app");
        let (store, lake) = (app.store().await.expect("store"), app.lake().await.expect("lake"));
        let whole = record(&store, 5).await;
        checkpoint_audit(&app, &store).await.expect("written down");
        assert_eq!(written(&lake).await.expect("read"), Some(whole.clone()));
        // A log that goes less far, and then one that has gone on from there.
        let url = format!("sqlite://{}", folder.path().join("cut.db").display());
        let cut = Store::open(&url).await.expect("store");
        for entries in [3, 4] {
            record(&cut, entries).await;
            let refused = checkpoint_audit(&app, &cut).await.expect_err("the fifth is not there");
            assert_eq!(refused.code(), ErrorCode::LakeCorrupt);
            assert_eq!(written(&lake).await.expect("read"), Some(whole.clone()));
        }
        let kept = lake.audit_head().await.expect("read");
        let more = record(&store, 2).await;
        checkpoint_audit(&app, &store).await.expect("written down");
        assert_eq!(written(&lake).await.expect("read"), Some(more.clone()));
        // Whoever read before that was written down does not take it back, nor does who found nothing.
        for before in [kept.as_ref(), None] {
            let text = serde_json::to_vec(&whole).expect("text");
            assert!(!lake.keep_audit_head(before, text).await.expect("asked"));
        }
        assert_eq!(written(&lake).await.expect("read"), Some(more));
    }
}
