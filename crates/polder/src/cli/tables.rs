//! `polder tables`: the lake's tables.

use std::collections::HashMap;

use clap::Args;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::{Lake, LakeTable};
use polder_pipeline::{LastVerdict, Verdicts, verdicts};
use serde_json::{Value, json};

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Tables {
    /// Only these orgs.
    #[arg(long, value_name = "ID")]
    org: Vec<OrgId>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Tables {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let tables = load(&lake, &self.org).await?;
        let verdicts = verdicts(&lake, None).await?;
        if self.json {
            let described = tables.iter().map(|table| describe(table, last(&verdicts, table)));
            output::document(&described.collect::<Vec<_>>());
            return Ok(exit::OK);
        }
        let rows: Vec<_> = tables.iter().map(|table| row(table, last(&verdicts, table))).collect();
        let header = ["org", "table", "rows", "files", "snapshot", "refs", "updated", "verdict"];
        output::columns(&header, &rows, &["rows", "files"]);
        if tables.is_empty() {
            output::note("the lake has no tables yet: run `polder run`");
        }
        Ok(exit::OK)
    }
}

async fn load(lake: &Lake, orgs: &[OrgId]) -> Result<Vec<LakeTable>> {
    let principal = Principal::Operator;
    let present = lake.orgs(&principal).await?;
    if let Some(org) = orgs.iter().find(|org| !present.contains(org)) {
        return Err(Error::new(ErrorCode::LakeNotFound, format!("the lake has no org {org}"))
            .hint("`polder tables` lists all orgs"));
    }
    let mut tables = Vec::new();
    for org in present.iter().filter(|org| orgs.is_empty() || orgs.contains(org)) {
        let org = principal.authorize(org)?;
        match tables_of(lake, &org).await {
            Ok(found) => tables.extend(found),
            // Not every catalog can leave it out of its list.
            Err(error) if error.code() == ErrorCode::LakeFenced && orgs.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables)
}

type Said = HashMap<(String, String), Verdicts>;

/// The last word on the table as it is now; if there is none, on an earlier state, and false.
fn last<'a>(said: &'a Said, table: &LakeTable) -> Option<(&'a LastVerdict, bool)> {
    let current = table.current_snapshot().map(|snapshot| snapshot.id);
    said.get(&(table.org().to_string(), table.name().to_owned()))?.of(current)
}

/// A verdict for people; one of an earlier state says so.
fn verdict_words((said, current): (&LastVerdict, bool)) -> String {
    let before = if current { "" } else { " before" };
    format!("{}{before}", said.verdict)
}

async fn tables_of(lake: &Lake, org: &Authorized<OrgId>) -> Result<Vec<LakeTable>> {
    let mut tables = Vec::new();
    for name in lake.tables(org).await? {
        tables.extend(lake.table(org, &name).await?);
    }
    Ok(tables)
}

fn describe(table: &LakeTable, verdict: Option<(&LastVerdict, bool)>) -> Value {
    let snapshot = table.current_snapshot();
    let refs: Vec<_> = table
        .refs()
        .iter()
        .map(|r| json!({ "name": r.name, "snapshot_id": r.snapshot_id }))
        .collect();
    json!({
        "org": table.org().as_str(),
        "namespace": table.org().namespace(),
        "table": table.name(),
        "uuid": table.uuid(),
        "location": table.location(),
        "metadata_location": table.metadata_location(),
        "snapshot_id": snapshot.as_ref().map(|s| s.id),
        "rows": snapshot.as_ref().and_then(|s| s.rows).unwrap_or(0),
        "files": snapshot.as_ref().and_then(|s| s.files).unwrap_or(0),
        "updated_ms": snapshot.as_ref().map(|s| s.timestamp_ms),
        "snapshots": table.snapshots().len(),
        "refs": refs,
        "partition": table.partition(),
        "columns": output::columns_json(&table.schema()),
        "validation": verdict.map(|(last, current)| json!({
            "verdict": last.verdict,
            "version": last.version,
            "snapshot_id": last.snapshot_id,
            "at_ms": last.at_ms,
            "current": current,
        })),
    })
}

fn row(table: &LakeTable, verdict: Option<(&LastVerdict, bool)>) -> Vec<String> {
    let snapshot = table.current_snapshot();
    let refs: Vec<_> = table.refs().iter().map(|r| r.name.clone()).collect();
    vec![
        table.org().to_string(),
        table.name().to_owned(),
        output::number(snapshot.as_ref().and_then(|s| s.rows).unwrap_or(0)),
        output::number(snapshot.as_ref().and_then(|s| s.files).unwrap_or(0)),
        snapshot.as_ref().map_or_else(String::new, |s| s.id.to_string()),
        refs.join(" "),
        snapshot.as_ref().map_or_else(String::new, |s| output::time(s.timestamp_ms)),
        verdict.map_or_else(String::new, verdict_words),
    ]
}
