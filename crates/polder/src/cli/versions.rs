//! `polder versions`: the published states of tables, and the times they were rolled back.

use clap::Args;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::LakeTable;
use polder_pipeline::{Verdicts, verdicts};
use serde_json::{Value, json};

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Versions {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Only this table.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Versions {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let org = Principal::Operator.authorize(&self.org)?;
        let present = lake.tables(&org).await?;
        if let Some(name) = self.table.as_ref().filter(|name| !present.contains(name)) {
            let message = format!("org {} has no table {name:?}", self.org);
            return Err(Error::new(ErrorCode::LakeNotFound, message)
                .hint(format!("its tables are: {}", present.join(", "))));
        }
        let mut tables = Vec::new();
        for name in present.iter().filter(|name| self.table.as_ref().is_none_or(|t| t == *name)) {
            tables.extend(lake.table(&org, name).await?);
        }
        let said = verdicts(&lake, Some((&org, None))).await?;
        let said = |table: &LakeTable| {
            let place = (table.org().to_string(), table.name().to_owned());
            said.get(&place).cloned().unwrap_or_default()
        };
        if self.json {
            let described = tables.iter().map(|table| describe(table, &said(table)));
            output::document(&described.collect::<Vec<_>>());
            return Ok(exit::OK);
        }
        let rows: Vec<_> = tables.iter().flat_map(|table| rows(table, &said(table))).collect();
        let header =
            ["table", "version", "current", "published", "rows", "files", "snapshot", "verdict"];
        output::columns(&header, &rows, &["rows", "files"]);
        for note in tables.iter().flat_map(rollbacks) {
            output::note(&note);
        }
        Ok(exit::OK)
    }
}

fn rows(table: &LakeTable, said: &Verdicts) -> Vec<Vec<String>> {
    let versions = table.versions();
    versions
        .iter()
        .map(|version| {
            let snapshot = &version.snapshot;
            vec![
                table.name().to_owned(),
                format!("v{}", version.number),
                if version.current { "yes" } else { "" }.to_owned(),
                output::time(snapshot.timestamp_ms),
                snapshot.rows.map_or_else(String::new, output::number),
                snapshot.files.map_or_else(String::new, output::number),
                snapshot.id.to_string(),
                verdict(said, version.number).unwrap_or_default(),
            ]
        })
        .collect()
}

fn rollbacks(table: &LakeTable) -> Vec<String> {
    let said = |rollback: polder_lake::Rollback| {
        format!(
            "{}: {} rolled back to {}; the state before is {}",
            output::time(rollback.at_ms),
            table.name(),
            rollback.to,
            rollback.kept_as,
        )
    };
    table.rollbacks().into_iter().map(said).collect()
}

/// What was last said of a version, in whichever state it was then.
fn verdict(said: &Verdicts, version: u64) -> Option<String> {
    said.of_version(&format!("v{version}")).map(|said| said.verdict.to_string())
}

fn describe(table: &LakeTable, said: &Verdicts) -> Value {
    let versions = table.versions().into_iter().map(|version| {
        json!({
            "version": format!("v{}", version.number),
            "current": version.current,
            "snapshot_id": version.snapshot.id,
            "published_ms": version.snapshot.timestamp_ms,
            "rows": version.snapshot.rows,
            "files": version.snapshot.files,
            "run_id": version.snapshot.run_id,
            "verdict": verdict(said, version.number),
        })
    });
    json!({
        "org": table.org().as_str(),
        "table": table.name(),
        "snapshot_id": table.current_snapshot().map(|snapshot| snapshot.id),
        "versions": versions.collect::<Vec<_>>(),
        "rollbacks": table.rollbacks(),
    })
}
