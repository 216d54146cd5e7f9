//! `polder check`: is everything there that a run needs? Changes nothing but what opening the
//! embedded store and catalog creates.

use clap::Args;
use polder_core::spec::{Mode, TableSpec};
use polder_core::{Result, SourceTable};
use serde_json::{Value, json};

use crate::app::App;
use crate::{exit, output};

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
}

impl Check {
    pub(crate) async fn run(&self, load: impl FnOnce() -> Result<App>) -> Result<u8> {
        let mut app = load()?;
        // What stands in the store counts too, where that can be opened.
        let store = app.store().await;
        if store.is_ok() {
            app = app.looked().await?;
        }
        let orgs = app.config.pipelines.len();
        let tables: usize = app.config.pipelines.iter().map(|p| p.tables.len()).sum();
        let mut findings = vec![Finding {
            what: "configuration".to_owned(),
            outcome: Ok(format!("{orgs} orgs, {tables} tables")),
        }];
        findings.push(Finding {
            what: "store".to_owned(),
            outcome: store.map(|_| "opened".to_owned()),
        });
        let lake = Box::pin(app.lake()).await;
        findings.push(Finding {
            what: "lake".to_owned(),
            outcome: lake.map(|_| app.config.process.lake.warehouse.clone()),
        });
        for name in app.config.process.sources.keys() {
            sources(&app, name, &mut findings).await;
        }
        self.print(&findings);
        Ok(findings.iter().find_map(|f| f.outcome.as_ref().err()).map_or(exit::OK, exit::of))
    }

    fn print(&self, findings: &[Finding]) {
        if self.json {
            let list: Vec<Value> = findings
                .iter()
                .map(|f| match &f.outcome {
                    Ok(found) => json!({ "what": f.what, "ok": true, "found": found }),
                    Err(error) => {
                        json!({ "what": f.what, "ok": false, "error": output::error_json(error) })
                    }
                })
                .collect();
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
        Err(error) => return findings.push(Finding { what, outcome: Err(error) }),
    };
    let outcome = source.check().await;
    let reachable = outcome.is_ok();
    findings.push(Finding { what, outcome });
    if !reachable || !source.capabilities().cursor {
        return;
    }
    let offered = match source.discover().await {
        Ok(offered) => offered,
        Err(error) => {
            let what = format!("source {name}: tables");
            return findings.push(Finding { what, outcome: Err(error) });
        }
    };
    for pipeline in &app.config.pipelines {
        for table in pipeline.tables.iter().filter(|table| table.source == name) {
            if let Some(found) = look(&offered, table) {
                let what = format!("{}/{}", pipeline.org, table.name);
                findings.push(Finding { what, outcome: Ok(found) });
            }
        }
    }
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
    let known =
        |column: &str| table.schema.fields.is_empty() || table.schema.field(column).is_some();
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
