//! What the tools answer.

use std::collections::BTreeMap;

use futures::StreamExt;
use polder_core::{Error, ErrorCode, OrgId, Result, Session};
use polder_lake::LakeTable;
use polder_pipeline::verdicts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Agent;
use crate::answer;
use crate::bootstrap::{Wanted, name_in_sql};
use crate::caps::Caps;
use crate::output::{columns_json, rfc3339};

const SAMPLE_ROWS: usize = 3;
const PLAN_ROWS_MAX: usize = 10;
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
    rows_max: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explained {
    sql: String,
}

impl Agent {
    pub(super) async fn list_tables(&self) -> Result<Value> {
        let (tables, truncated) = self.tables().await?;
        let tables: Vec<_> = tables.iter().map(headline).collect();
        Ok(json!({ "tables": tables, "truncated": truncated }))
    }

    pub(super) async fn describe_table(&self, of: OfTable) -> Result<Value> {
        let table = self.table(&of.table).await?;
        let sample =
            self.rows(&format!("SELECT * FROM {}", name_in_sql(&table)), SAMPLE_ROWS).await?;
        let mut described = headline(&table);
        described["validation"] = self.validation(&table).await?;
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
        self.document(&table, &mut described).await?;
        described["partition"] = json!(table.partition());
        described["cursor"] = json!(table.checkpoint()?.and_then(|checkpoint| checkpoint.cursor));
        described["versions"] = versions.collect();
        described["pins"] = pins.collect();
        described["sample"] = sample["rows"].clone();
        Ok(described)
    }

    /// What the manifest of a bootstrap says of a table: what it holds, how fresh and how true it is.
    async fn document(&self, table: &LakeTable, described: &mut Value) -> Result<()> {
        if table.current_snapshot().is_none() {
            return Ok(());
        }
        let org = self.principal.authorize(table.org())?;
        let tables = Some(vec![table.name().to_owned()]);
        let specs = self.specs(&org).await?;
        let wanted = Wanted { tables, ..Wanted::default() };
        let opened = self.bootstraps.open(&org, specs, wanted).await?;
        let manifest = serde_json::to_value(opened.manifest).unwrap_or_default();
        for said in ["description", "columns", "age_seconds", "verdict", "key", "references"] {
            described[said] = manifest["tables"][0][said].clone();
        }
        Ok(())
    }

    pub(super) async fn query(&self, query: Query) -> Result<Value> {
        self.rows(&query.sql, Caps::AGENT.rows(query.rows_max)?).await
    }

    /// How a query would be answered. Only the planner looks at it.
    pub(super) async fn explain(&self, query: Explained) -> Result<Value> {
        self.rows(&format!("EXPLAIN {}", query.sql), PLAN_ROWS_MAX).await
    }

    /// Rows of a query, up to the limits.
    async fn rows(&self, sql: &str, rows_max: usize) -> Result<Value> {
        let session = Session {
            principal: self.principal.clone(),
            rows_max: None,
            memory_bytes_max: self.app.config.process.limits.query_memory_mb << 20,
            snapshots: BTreeMap::default(),
            pushdown: true,
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
                    if rows.len() == rows_max || bytes > Caps::AGENT.bytes_max {
                        truncated = true;
                        break 'batches;
                    }
                    rows.push(row);
                }
            }
            Ok(json!({ "columns": columns, "rows": rows, "truncated": truncated }))
        };
        let done = tokio::time::timeout(Caps::AGENT.time_max, reading).await;
        done.unwrap_or_else(|_| Err(Caps::AGENT.too_long()))
    }

    /// What the last validation said of the table; null before the first one.
    async fn validation(&self, table: &LakeTable) -> Result<Value> {
        let org = self.principal.authorize(table.org())?;
        let said = verdicts(&self.lake, Some((&org, Some(table.name())))).await?;
        let said = said.get(&(table.org().to_string(), table.name().to_owned()));
        let current = table.current_snapshot().map(|snapshot| snapshot.id);
        let Some((said, now)) = said.and_then(|said| said.of(current)) else {
            return Ok(Value::Null);
        };
        Ok(json!({
            "verdict": said.verdict,
            "current": now,
            "version": said.version,
            "snapshot_id": said.snapshot_id,
            "validated": rfc3339(said.at_ms),
        }))
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
        let (org, table) = match plain.split_once('.') {
            Some((namespace, table)) if OrgId::from_namespace(namespace).is_some() => {
                (Some(namespace), table)
            }
            _ => (None, plain),
        };
        let org = self.org(org).map_err(|_| missing())?;
        self.lake.table(&org, table).await?.ok_or_else(missing)
    }
}

fn headline(table: &LakeTable) -> Value {
    let snapshot = table.current_snapshot();
    json!({
        "table": table.name(),
        "namespace": table.org().namespace(),
        "name": name_in_sql(table),
        "rows": snapshot.as_ref().and_then(|found| found.rows),
        "snapshot_id": snapshot.as_ref().map(|found| found.id),
        "updated": snapshot.as_ref().map(|found| rfc3339(found.timestamp_ms)),
    })
}
