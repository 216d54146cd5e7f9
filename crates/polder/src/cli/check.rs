//! `polder check`: is everything there that a run needs? Changes nothing but what opening the
//! embedded store and catalog creates.

use std::collections::HashMap;

use clap::Args;
use polder_core::spec::{Mode, TableSpec};
use polder_core::{Assurance, OrgId, Result, Source, SourceTable};
use polder_pipeline::expected_guarantee;
use serde_json::{Value, json};

use crate::airflow::Airflow;
use crate::app::App;
use crate::{exit, output, telemetry};

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
struct Finding {
    what: String,
    outcome: Result<String>,
    /// Of a table whose runs are not exact.
    assurance: Option<Assurance>,
}

impl Finding {
    fn new(what: impl Into<String>, outcome: Result<String>) -> Self {
        Self { what: what.into(), outcome, assurance: None }
    }

    fn json(&self) -> Value {
        let mut json = match &self.outcome {
            Ok(found) => json!({ "what": self.what, "ok": true, "found": found }),
            Err(error) => {
                json!({ "what": self.what, "ok": false, "error": output::error_json(error) })
            }
        };
        if let Some(Assurance { guarantee, reasons }) = &self.assurance {
            json["guarantee"] = json!(guarantee);
            json["guarantee_reasons"] = json!(reasons);
        }
        json
    }
}

impl Check {
    pub(crate) async fn run(&self, load: impl FnOnce() -> Result<App>) -> Result<u8> {
        let app = load()?;
        // What stands in the store counts too, where that can be opened.
        let store = app.store().await;
        let app = if store.is_ok() { app.looked().await? } else { app.by_files()? };
        let orgs = app.pipelines.len();
        let tables: usize = app.pipelines.iter().map(|p| p.tables.len()).sum();
        let mut findings = vec![
            Finding::new("configuration", Ok(format!("{orgs} orgs, {tables} tables"))),
            Finding::new("store", store.map(|_| "opened".to_owned())),
        ];
        let lake = Box::pin(app.lake()).await;
        let warehouse = lake.map(|_| app.config.process.lake.warehouse.clone());
        findings.push(Finding::new("lake", warehouse));
        if app.config.process.telemetry.is_some() {
            let read = telemetry::check(&app).map(|()| "read; nobody was called".to_owned());
            findings.push(Finding::new("telemetry", read));
        }
        if let Some(opened) = Airflow::open(&app).transpose() {
            let listed = match opened {
                Ok(airflow) => airflow.check().await,
                Err(error) => Err(error),
            };
            let said = listed.map(|()| "signed in; its DAGs can be listed".to_owned());
            findings.push(Finding::new("airflow", said));
        }
        if let Some(trino) = app.trino().transpose() {
            let found = match trino {
                Ok(trino) => trino.check().await,
                Err(error) => Err(error),
            };
            findings.push(Finding::new("trino", found));
        }
        for name in app.config.process.sources.keys() {
            sources(&app, name, &mut findings).await;
        }
        self.print(&findings);
        Ok(findings.iter().find_map(|f| f.outcome.as_ref().err()).map_or(exit::OK, exit::of))
    }

    fn print(&self, findings: &[Finding]) {
        if self.json {
            let list: Vec<Value> = findings.iter().map(Finding::json).collect();
            output::document(&list);
            return;
        }
        for finding in findings {
            match &finding.outcome {
                Ok(found) => output::line(&format!("ok    {}: {found}", finding.what)),
                Err(error) => {
                    output::line(&format!("FAIL  {}", finding.what));
                    output::error(error);
                }
            }
        }
    }
}

/// Checks one source, and that tables whose name holds no `{org}` or pattern exist in it.
async fn sources(app: &App, name: &str, findings: &mut Vec<Finding>) {
    let what = format!("source {name}");
    let source = match app.source(name) {
        Ok(source) => source,
        Err(error) => return findings.push(Finding::new(what, Err(error))),
    };
    let outcome = source.check().await;
    let reachable = outcome.is_ok();
    findings.push(Finding::new(what, outcome));
    if !reachable || !source.capabilities().cursor {
        return;
    }
    let offered = match source.discover().await {
        Ok(offered) => offered,
        Err(error) => {
            let what = format!("source {name}: tables");
            return findings.push(Finding::new(what, Err(error)));
        }
    };
    for pipeline in &app.pipelines {
        for table in pipeline.tables.iter().filter(|table| table.source == name) {
            if let Some(found) = look(&offered, table) {
                let what = format!("{}/{}", pipeline.org, table.name);
                findings.push(Finding::new(what, Ok(found)));
            }
        }
    }
    guarantees(app, name, &*source, findings).await;
}

/// Names the tables of a source whose runs are not exact, and why. Tables of several orgs that are read
/// alike are asked for once.
async fn guarantees(app: &App, name: &str, source: &dyn Source, findings: &mut Vec<Finding>) {
    let mut known: HashMap<String, Asked> = HashMap::new();
    for pipeline in &app.pipelines {
        for table in pipeline.tables.iter().filter(|table| table.source == name && table.enabled) {
            let alike = alike(&pipeline.org, table);
            let asked = if let Some(asked) = known.get(&alike) {
                asked.clone()
            } else {
                let asked = Asked::of(source, &pipeline.org, table).await;
                known.insert(alike, asked.clone());
                asked
            };
            let (text, assurance) = match asked {
                Asked::Known(assurance) if assurance.is_exact() => continue,
                Asked::Known(assurance) => (format!("guarantee: {assurance}"), Some(assurance)),
                // What `look` can tell, it has told.
                Asked::Failed(_) if !table.from.contains(['{', '"']) => continue,
                Asked::Failed(error) => (format!("warning: no guarantee is known: {error}"), None),
            };
            let found = Finding::new(format!("{}/{}", pipeline.org, table.name), Ok(text));
            findings.push(Finding { assurance, ..found });
        }
    }
}

/// The answer for one table.
#[derive(Clone)]
enum Asked {
    Known(Assurance),
    Failed(String),
}

impl Asked {
    async fn of(source: &dyn Source, org: &OrgId, table: &TableSpec) -> Self {
        match expected_guarantee(source, org, table).await {
            Ok(assurance) => Self::Known(assurance),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// All that an answer depends on.
fn alike(org: &OrgId, table: &TableSpec) -> String {
    let TableSpec { from, mode, cursor, key, on_unrepresentable, .. } = table;
    let from = from.replace("{org}", org.as_str());
    format!("{from:?} {mode:?} {cursor:?} {key:?} {on_unrepresentable:?}")
}

/// What is odd about a table spec, or could suit better, seen from what the source offers.
fn look(offered: &[SourceTable], spec: &TableSpec) -> Option<String> {
    let (from, key, cursor) = (&spec.from, &spec.key, spec.cursor.as_deref());
    if from.contains(['{', '"']) {
        return None;
    }
    let qualified = format!("public.{from}");
    let Some(table) = offered.iter().find(|t| t.name == *from || t.name == qualified) else {
        return Some(format!("warning: the source does not offer {from}"));
    };
    // One may be a cursor and no column.
    let known = |column: &str| {
        table.schema.fields.is_empty()
            || table.schema.field(column).is_some()
            || table.cursors.iter().any(|cursor| cursor == column)
    };
    let named = key.iter().map(String::as_str).chain(cursor).chain(spec.deleted_at.as_deref());
    if let Some(column) = named.into_iter().find(|column| !known(column)) {
        return Some(format!("warning: {from} has no column {column}"));
    }
    if cursor.is_some() && key.is_empty() && !table.key.is_empty() {
        let keys = table.key.join(", ");
        let text = format!("warning: no key is named; {from} has the primary key [{keys}]");
        return Some(text);
    }
    let changes = table.mode == Mode::Merge && cursor == table.cursors.first().map(String::as_str);
    (spec.mode == Mode::Append && changes).then(|| {
        format!(
            "suggestion: rows of {from} change, and append keeps every state; mode: merge keeps the \
             last"
        )
    })
}
