//! What the tools answer.

use std::time::Duration;

use futures::StreamExt;
use polder_core::{Engine, Error, ErrorCode, OrgId, Result, Session};
use polder_lake::{LakeTable, SnapshotInfo};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Agent;
use crate::answer;
use crate::output::{columns_json, rfc3339};

/// Rows of one answer at most, and if nothing is said.
pub(super) const ROWS_MAX: usize = 10_000;
const ROWS_USUAL: usize = 1_000;
const SAMPLE_ROWS: usize = 3;
/// Bytes of JSON after which no more rows are added.
const BYTES_MAX: usize = 1 << 20;
const TIME_MAX: Duration = Duration::from_secs(30);
/// Tables listed at most.
const TABLES_MAX: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfTable {
    table: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    sql: String,
    rows_max: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    tables: Vec<String>,
    pin: Option<String>,
}

impl Agent {
    pub(super) async fn list_tables(&self) -> Result<Value> {
        let (tables, truncated) = self.tables().await?;
        let tables: Vec<_> = tables.iter().map(headline).collect();
        Ok(json!({ "tables": tables, "truncated": truncated }))
    }

    pub(super) async fn describe_table(&self, of: OfTable) -> Result<Value> {
        let table = self.table(&of.table).await?;
        let sample = self.rows(&format!("SELECT * FROM {}", sql_name(&table)), SAMPLE_ROWS).await?;
        let mut described = headline(&table);
        let versions = table.versions().into_iter().map(|version| {
            json!({
                "version": format!("v{}", version.number),
                "snapshot_id": version.snapshot.id,
                "published": rfc3339(version.snapshot.timestamp_ms),
                "current": version.current,
            })
        });
        let pins = table.pins().into_iter().map(|pin| {
            json!({ "pin": pin.name, "snapshot_id": pin.snapshot.id, "rows": pin.snapshot.rows })
        });
        described["columns"] = columns_json(&table.schema());
        described["partition"] = json!(table.partition());
        described["cursor"] = json!(table.checkpoint()?.and_then(|checkpoint| checkpoint.cursor));
        described["versions"] = versions.collect();
        described["pins"] = pins.collect();
        described["sample"] = sample["rows"].clone();
        Ok(described)
    }

    pub(super) async fn query(&self, query: Query) -> Result<Value> {
        let rows_max = query.rows_max.unwrap_or(ROWS_USUAL);
        if !(1..=ROWS_MAX).contains(&rows_max) {
            let message = format!("rows_max is {rows_max}, and not from 1 to {ROWS_MAX}");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("aggregate in SQL, or read in parts with ORDER BY and WHERE"));
        }
        self.rows(&query.sql, rows_max).await
    }

    pub(super) async fn bootstrap(&self, wanted: Wanted) -> Result<Value> {
        let tables = if wanted.tables.is_empty() {
            let (tables, truncated) = self.tables().await?;
            if truncated {
                let message = format!("there are more than {TABLES_MAX} tables");
                return Err(Error::new(ErrorCode::QueryLimit, message)
                    .hint("name the tables that are needed"));
            }
            tables
        } else {
            let mut tables = Vec::new();
            for name in &wanted.tables {
                tables.push(self.table(name).await?);
            }
            tables
        };
        let mut states = Vec::new();
        for table in &tables {
            let Some(snapshot) = state(table, wanted.pin.as_deref(), !wanted.tables.is_empty())?
            else {
                continue;
            };
            let (schema, _) = table.schema_at(Some(snapshot.id))?;
            states.push(json!({
                "table": table.name(),
                "namespace": table.org().namespace(),
                "snapshot_id": snapshot.id,
                "from": format!("{} FOR VERSION AS OF {}", sql_name(table), snapshot.id),
                "as_of": rfc3339(snapshot.timestamp_ms),
                "rows": snapshot.rows,
                "columns": columns_json(&schema),
            }));
        }
        Ok(json!({ "tables": states }))
    }

    /// Rows of a query, up to the limits.
    async fn rows(&self, sql: &str, rows_max: usize) -> Result<Value> {
        let session = Session {
            principal: self.principal.clone(),
            rows_max: None,
            memory_bytes_max: self.memory_bytes,
        };
        let reading = async {
            let mut answer = self.engine.query(sql, &session).await?;
            let columns: Vec<_> = answer.schema.fields().iter().map(|f| f.name().clone()).collect();
            let (mut rows, mut bytes, mut truncated) = (Vec::new(), 0, false);
            'batches: while let Some(batch) = answer.batches.next().await {
                let batch = batch?;
                let few = batch.slice(0, batch.num_rows().min(rows_max + 1 - rows.len()));
                for row in answer::objects(&few)? {
                    bytes += row.to_string().len();
                    if rows.len() == rows_max || bytes > BYTES_MAX {
                        truncated = true;
                        break 'batches;
                    }
                    rows.push(row);
                }
            }
            Ok(json!({ "columns": columns, "rows": rows, "truncated": truncated }))
        };
        tokio::time::timeout(TIME_MAX, reading).await.unwrap_or_else(|_| {
            let message = format!("the query took longer than {} s", TIME_MAX.as_secs());
            Err(Error::new(ErrorCode::QueryLimit, message)
                .hint("ask for less: filter or aggregate"))
        })
    }

    /// What the agent may see, and whether that is not all.
    async fn tables(&self) -> Result<(Vec<LakeTable>, bool)> {
        let mut tables = Vec::new();
        for org in self.lake.orgs(&self.principal).await? {
            let org = self.principal.authorize(&org)?;
            for name in self.lake.tables(&org).await? {
                if tables.len() == TABLES_MAX {
                    return Ok((tables, true));
                }
                tables.extend(self.lake.table(&org, &name).await?);
            }
        }
        Ok((tables, false))
    }

    /// A table by its name, with or without namespace. Another org's does not exist.
    async fn table(&self, name: &str) -> Result<LakeTable> {
        let missing = || {
            Error::new(ErrorCode::LakeNotFound, format!("there is no table {name:?}"))
                .hint("list_tables says which there are")
        };
        let plain = name.strip_prefix("lake.").unwrap_or(name);
        let own = match &self.principal {
            polder_core::Principal::Org(org) => Some(org.clone()),
            _ => None,
        };
        let (org, table) = match plain.split_once('.') {
            Some((namespace, table)) => (OrgId::from_namespace(namespace), table),
            None => (own, plain),
        };
        let org = org.ok_or_else(missing)?;
        let org = self.principal.authorize(&org).map_err(|_| missing())?;
        self.lake.table(&org, table).await?.ok_or_else(missing)
    }
}

/// The state to work on; `None` for a table without one that nobody asked for by name.
fn state(table: &LakeTable, pin: Option<&str>, named: bool) -> Result<Option<SnapshotInfo>> {
    let found = match pin {
        None => table.current_snapshot(),
        Some(pin) => {
            let pins = table.pins().into_iter();
            pins.filter(|found| found.name == pin).map(|found| found.snapshot).next()
        }
    };
    if found.is_some() || !named {
        return Ok(found);
    }
    let message = match pin {
        Some(pin) => format!("table {:?} has no pin {pin:?}", table.name()),
        None => format!("table {:?} has no rows yet", table.name()),
    };
    Err(Error::new(ErrorCode::LakeNotFound, message).hint("describe_table says what it has"))
}

fn headline(table: &LakeTable) -> Value {
    let snapshot = table.current_snapshot();
    json!({
        "table": table.name(),
        "namespace": table.org().namespace(),
        "name": sql_name(table),
        "rows": snapshot.as_ref().and_then(|found| found.rows),
        "snapshot_id": snapshot.as_ref().map(|found| found.id),
        "updated": snapshot.as_ref().map(|found| rfc3339(found.timestamp_ms)),
    })
}

/// The name as SQL takes it, whatever is in it.
fn sql_name(table: &LakeTable) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!("lake.{}.{}", quoted(&table.org().namespace()), quoted(table.name()))
}
