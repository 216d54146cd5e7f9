//! `polder pin`: states of an org's tables kept under one name, for training that can be repeated.

use clap::{Args, Subcommand};
use polder_control::audit::Event;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::{Lake, LakeTable, Pin as TablePin, Predicate, ScanRequest};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Pin {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the present states of tables under a name.
    Create(Create),
    /// List an org's pins.
    List(List),
    /// Say what a pin holds: snapshots, columns, counts, digests.
    Show(Named),
    /// Give a pin up; what it alone kept goes with the next expiry.
    Release(Named),
}

#[derive(Debug, Args)]
struct Create {
    /// The pin's name: FOR VERSION AS OF '<name>' reads it in every engine.
    name: String,
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Only these tables; all of the org's without.
    #[arg(long, alias = "tables", value_name = "NAME", value_delimiter = ',')]
    table: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Named {
    /// The pin's name.
    name: String,
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Pin {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        match &self.command {
            Command::Create(create) => {
                let event = event("pin.create", (&create.org, &create.name), &create.table);
                app.noted(event, create.run(&lake).await).await
            }
            Command::List(list) => list.run(&lake).await,
            Command::Show(named) => named.show(&lake).await,
            Command::Release(named) => {
                let event = event("pin.release", (&named.org, &named.name), &[]);
                app.noted(event, named.release(&lake).await).await
            }
        }
    }
}

/// What the audit log has of a change.
fn event(action: &str, (org, pin): (&OrgId, &str), tables: &[String]) -> Event {
    Event {
        action: action.to_owned(),
        org: Some(org.to_string()),
        subject: Some(pin.to_owned()),
        detail: (!tables.is_empty()).then(|| tables.join(" ")),
        ..Event::default()
    }
}

impl Create {
    async fn run(&self, lake: &Lake) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        let tables = tables(lake, &org, &self.table).await?;
        // All states are looked up before the first is named: what runs publish meanwhile is in none.
        let mut states = Vec::new();
        for table in &tables {
            match (table.current_snapshot(), self.table.is_empty()) {
                (Some(snapshot), _) => states.push((table.name(), snapshot)),
                (None, true) => {}
                (None, false) => {
                    let message = format!("table {:?} has no state to pin", table.name());
                    return Err(Error::new(ErrorCode::LakeNotFound, message)
                        .hint("load it first: polder run"));
                }
            }
        }
        let mut made = Vec::new();
        for (table, snapshot) in &states {
            match lake.pin(&org, table, &self.name, snapshot.id).await {
                Ok(true) => made.push(*table),
                Ok(false) => {}
                Err(error) => {
                    // A pin of some of its tables would pass for the whole.
                    for table in made {
                        lake.release_pin(&org, table, &self.name).await?;
                    }
                    return Err(error.within(&format!("org {}, table {table}", self.org)));
                }
            }
        }
        if self.json {
            let of_table = |(table, snapshot): &(&str, polder_lake::SnapshotInfo)| json!({ "table": table, "snapshot_id": snapshot.id, "rows": snapshot.rows });
            let tables: Vec<_> = states.iter().map(of_table).collect();
            output::document(&json!({
                "pin": self.name, "org": self.org.as_str(), "tables": tables,
            }));
            return Ok(exit::OK);
        }
        for (table, snapshot) in &states {
            let rows = snapshot.rows.map_or_else(String::new, output::number);
            output::line(&format!("{}.{table}: snapshot {}, {rows} rows", self.org, snapshot.id));
        }
        Ok(exit::OK)
    }
}

impl List {
    async fn run(&self, lake: &Lake) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        let tables = tables(lake, &org, &[]).await?;
        let mut pins: Vec<(&str, TablePin)> = tables
            .iter()
            .flat_map(|table| table.pins().into_iter().map(|pin| (table.name(), pin)))
            .collect();
        pins.sort_by(|(table, pin), (other, than)| (&pin.name, *table).cmp(&(&than.name, *other)));
        if self.json {
            let entry = |(table, pin): &(&str, TablePin)| json!({ "pin": pin.name, "table": table, "snapshot_id": pin.snapshot.id });
            let pins: Vec<_> = pins.iter().map(entry).collect();
            output::document(&json!({ "org": self.org.as_str(), "pins": pins }));
            return Ok(exit::OK);
        }
        let row = |(table, pin): &(&str, TablePin)| {
            vec![
                pin.name.clone(),
                (*table).to_owned(),
                output::time(pin.snapshot.timestamp_ms),
                pin.snapshot.rows.map_or_else(String::new, output::number),
                pin.snapshot.id.to_string(),
            ]
        };
        let rows: Vec<_> = pins.iter().map(row).collect();
        output::columns(&["pin", "table", "state of", "rows", "snapshot"], &rows, &["rows"]);
        Ok(exit::OK)
    }
}

impl Named {
    /// The org's tables that have the pin.
    async fn pinned(
        &self,
        lake: &Lake,
        org: &Authorized<OrgId>,
    ) -> Result<Vec<(LakeTable, TablePin)>> {
        let tables = tables(lake, org, &[]).await?;
        let mut names: Vec<String> = Vec::new();
        let mut found = Vec::new();
        for table in tables {
            let pins = table.pins();
            names.extend(pins.iter().map(|pin| pin.name.clone()));
            if let Some(pin) = pins.into_iter().find(|pin| pin.name == self.name) {
                found.push((table, pin));
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        names.sort_unstable();
        names.dedup();
        let message = format!("org {} has no pin {:?}", self.org, self.name);
        let hint = if names.is_empty() {
            "it has none: polder pin create NAME --org ID".to_owned()
        } else {
            format!("it has: {}", names.join(", "))
        };
        Err(Error::new(ErrorCode::LakeNotFound, message).hint(hint))
    }

    async fn show(&self, lake: &Lake) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        let mut tables = Vec::new();
        for (table, pin) in self.pinned(lake, &org).await? {
            tables.push(contents(&table, &pin).await?);
        }
        if self.json {
            output::document(&json!({
                "pin": self.name, "org": self.org.as_str(), "tables": tables,
            }));
            return Ok(exit::OK);
        }
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let shown = ["table", "snapshot_id", "rows", "files", "bytes", "digest"];
        let row = |table: &Value| shown.iter().map(|key| text(&table[*key])).collect();
        let rows: Vec<Vec<String>> = tables.iter().map(row).collect();
        output::columns(&shown, &rows, &["rows", "files", "bytes"]);
        Ok(exit::OK)
    }

    async fn release(&self, lake: &Lake) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        let mut released = Vec::new();
        for (table, _) in self.pinned(lake, &org).await? {
            lake.release_pin(&org, table.name(), &self.name).await?;
            released.push(table.name().to_owned());
        }
        if self.json {
            output::document(&json!({
                "pin": self.name, "org": self.org.as_str(), "released": released,
            }));
        } else {
            output::line(&format!("{} is released: {}", self.name, released.join(", ")));
        }
        Ok(exit::OK)
    }
}

/// The org's tables of these names; all of them without names.
async fn tables(lake: &Lake, org: &Authorized<OrgId>, names: &[String]) -> Result<Vec<LakeTable>> {
    let present = lake.tables(org).await?;
    if let Some(name) = names.iter().find(|name| !present.contains(name)) {
        let message = format!("org {} has no table {name:?}", org.get());
        return Err(Error::new(ErrorCode::LakeNotFound, message)
            .hint(format!("its tables are: {}", present.join(", "))));
    }
    let mut tables = Vec::new();
    for name in present.iter().filter(|name| names.is_empty() || names.contains(name)) {
        tables.extend(lake.table(org, name).await?);
    }
    Ok(tables)
}

/// What a training job needs to be sure that it reads the same again. Files never change under their
/// names, so their list stands for what is in them.
async fn contents(table: &LakeTable, pin: &TablePin) -> Result<Value> {
    let snapshot = Some(pin.snapshot.id);
    let (columns, _) = table.schema_at(snapshot)?;
    let scan = ScanRequest { snapshot, filter: Predicate::True, columns: None };
    let mut files = table.plan(scan).await?.files;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut digest = Context::new(&SHA256);
    for file in &files {
        let rows = file.rows.map_or_else(|| "?".to_owned(), |rows| rows.to_string());
        let line = format!("{}\t{}\t{rows}\t{}\n", file.path, file.size_bytes, file.has_deletes);
        digest.update(line.as_bytes());
    }
    let digest = polder_core::digest::hex(digest.finish().as_ref());
    Ok(json!({
        "table": table.name(),
        "snapshot_id": pin.snapshot.id,
        "timestamp_ms": pin.snapshot.timestamp_ms,
        "run_id": pin.snapshot.run_id,
        "rows": pin.snapshot.rows,
        "files": files.len(),
        "bytes": files.iter().map(|file| file.size_bytes).sum::<u64>(),
        "digest": format!("sha256:{digest}"),
        "metadata_location": table.metadata_location(),
        "columns": output::columns_json(&columns),
    }))
}
