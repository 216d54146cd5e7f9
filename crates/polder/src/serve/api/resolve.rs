//! What a new table is, where whoever adds it says little more than its name: from the org's template
//! first, from what the sources offer second.
//!
//! Which rows of a source are the org's is never guessed. A table that no template has takes the
//! filter that the org's other tables of that source share; where there is none, an operator has to
//! say it.

use polder_control::desired;
use polder_core::spec::{Mode, SourceSpec, TableSpec};
use polder_core::{
    Authorized, Error, ErrorCode, LakeType, OrgId, Result, Right, SourceTable, TableSchema,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::Api;
use super::gate::Who;
use super::problem::{Problem, Reply};

/// Names of columns that say when a row was made, and do not change after.
const MADE: [&str; 6] =
    ["created_at", "created", "inserted_at", "created_on", "create_time", "createddate"];
/// Tables below this are read whole in no time: partitions would only make small files.
const PARTITION_ROWS_MIN: u64 = 1_000_000;

/// Where settings came from that nobody said.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Resolved {
    /// `template`; `discovery` for a table that no template has; `request` where all was said.
    from: &'static str,
    /// The source's own primary key.
    primary_key: Vec<String>,
    /// Columns by which new and changed rows can be found, best first.
    cursors: Vec<CursorCandidate>,
    partition: Option<PartitionSuggestion>,
    /// What could not be looked at.
    warnings: Vec<String>,
}

/// A column that can serve as cursor.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CursorCandidate {
    column: String,
    /// From 1, the best.
    rank: usize,
    reason: String,
}

/// A way to cut the lake table into parts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PartitionSuggestion {
    /// As `partition` of a table spec takes it; empty where none is worth while.
    fields: Vec<String>,
    reason: String,
}

/// A new table's settings: what was said, over what was found.
pub(super) struct Found {
    pub(super) patch: Map<String, Value>,
    pub(super) resolved: Resolved,
    /// What source, source table and filter came to be without the caller's word.
    pub(super) inherited: Map<String, Value>,
}

pub(super) async fn resolve(
    api: &Api,
    who: &Who,
    org: &Authorized<OrgId>,
    name: &str,
    mut said: Map<String, Value>,
) -> Reply<Found> {
    let found = desired::org(&api.store, org).await?;
    let (document, templates) = found.ok_or_else(|| Problem::no_org(org.get().as_str()))?;
    let process = &api.app.config.process;
    let effective = desired::effective(process, &templates, org.get(), &document)?;
    let template = effective.template.as_deref();
    let declared = document.declared.as_ref();
    let below = desired::base_tables(&templates, template, declared, &document.groups());
    if let Some(base) = below.iter().find(|table| table.name == name) {
        return Ok(of_template(api, org, base, said).await);
    }
    let operator = who.0.principal.role().has(Right::Operate);
    if operator && said.contains_key("source") && said.contains_key("from") {
        let resolved = Resolved { from: "request", ..Resolved::default() };
        return Ok(Found { patch: said, resolved, inherited: Map::new() });
    }
    let (source, offered) = find(api, name, &said, operator).await?;
    // They named the source table that was found, whole or in part.
    said.retain(|setting, _| setting != "source" && setting != "from");
    let siblings: Vec<&TableSpec> = effective
        .tables
        .iter()
        .map(|t| &t.spec)
        .chain(&below)
        .filter(|t| t.source == source)
        .collect();
    let mut patch = Map::from_iter([
        ("source".to_owned(), json!(source)),
        ("from".to_owned(), json!(offered.name)),
    ]);
    match (said.get("filter"), shared_filter(&siblings)) {
        (Some(_), _) => {}
        (None, Some(filter)) => drop(patch.insert("filter".to_owned(), filter)),
        (None, None) if operator => {}
        (None, None) => return Err(unscoped(name, &source).into()),
    }
    let inherited = patch.clone();
    let mut resolved = Resolved { from: "discovery", ..Resolved::default() };
    describe(&offered, &mut resolved);
    if !said.contains_key("key") && !offered.key.is_empty() {
        patch.insert("key".to_owned(), json!(offered.key));
    }
    let best = offered.cursors.first().filter(|_| !said.contains_key("mode"));
    if let Some(best) = best.filter(|_| !said.contains_key("cursor")) {
        // One that is no column of the table tells changes too.
        let is_column = offered.schema.field(best).is_some();
        let mode = if is_column { Mode::Append } else { offered.mode };
        patch.insert("mode".to_owned(), json!(mode));
        patch.insert("cursor".to_owned(), json!(best));
    }
    patch.extend(said);
    Ok(Found { patch, resolved, inherited })
}

/// The template has said it all; the key is filled in, and the rest is advice.
async fn of_template(
    api: &Api,
    org: &Authorized<OrgId>,
    base: &TableSpec,
    said: Map<String, Value>,
) -> Found {
    let mut patch = Map::new();
    let mut resolved = Resolved { from: "template", ..Resolved::default() };
    match offered(api, &base.source).await {
        Ok(tables) => {
            let from = base.from.replace("{org}", org.get().as_str());
            if let Some(found) = tables.iter().find(|table| is_named(table, &from)) {
                describe(found, &mut resolved);
                if base.key.is_empty() && !said.contains_key("key") && !found.key.is_empty() {
                    patch.insert("key".to_owned(), json!(found.key));
                }
            } else {
                resolved.warnings.push(format!("source {} does not list it", base.source));
            }
        }
        // The template is enough; a source that is away must not stand in the way.
        Err(error) => resolved.warnings.push(format!("not discovered: {error}")),
    }
    let scope = [
        ("source".to_owned(), json!(base.source)),
        ("from".to_owned(), json!(base.from)),
        ("filter".to_owned(), json!(base.filter)),
    ];
    // Whoever asks for it wants it to run, also where its group is off.
    if !base.enabled {
        patch.insert("enabled".to_owned(), json!(true));
    }
    patch.extend(said);
    Found { patch, resolved, inherited: Map::from_iter(scope) }
}

async fn offered(api: &Api, source: &str) -> Result<Vec<SourceTable>> {
    api.app.source(source)?.discover().await
}

/// The one source table of that name.
async fn find(
    api: &Api,
    name: &str,
    said: &Map<String, Value>,
    operator: bool,
) -> Reply<(String, SourceTable)> {
    let text = |setting: &str| said.get(setting).and_then(Value::as_str);
    let wanted = text("from").unwrap_or(name);
    let configured = &api.app.config.process.sources;
    // Names of folders may be other orgs' ids: what there is of them is the operator's to know.
    let hidden =
        |source: &String| !operator && matches!(configured.get(source), Some(SourceSpec::Files(_)));
    if let Some(source) = text("source").map(str::to_owned).filter(hidden) {
        return Err(unscoped(name, &source).into());
    }
    let sources: Vec<&String> = match text("source") {
        Some(source) => configured.keys().filter(|known| *known == source).collect(),
        None => configured.keys().filter(|source| !hidden(source)).collect(),
    };
    if let (Some(source), true) = (text("source"), sources.is_empty()) {
        // Says which sources there are.
        api.app.source(source)?;
    }
    let mut found = Vec::new();
    let mut failed = None;
    for source in sources {
        match offered(api, source).await {
            Ok(tables) => {
                let named = tables.into_iter().filter(|table| is_named(table, wanted));
                found.extend(named.map(|table| (source.clone(), table)));
            }
            Err(error) => failed = Some(error),
        }
    }
    match (found.len(), failed) {
        (1, _) => Ok(found.remove(0)),
        (0, Some(error)) => Err(error.into()),
        (0, None) => {
            let message = format!("no source offers a table {wanted:?}, and no template has one");
            let error = Error::new(ErrorCode::SourceNotFound, message);
            Err(error.hint("GET /v1/sources/{source}/tables lists what there is").into())
        }
        _ => {
            let places: Vec<String> =
                found.iter().map(|(source, table)| format!("{source}: {}", table.name)).collect();
            let message = format!("several sources offer a table {wanted:?}");
            let error = Error::new(ErrorCode::SpecUnknownName, message);
            Err(error.detail(places.join(", ")).hint("say which: \"source\" and \"from\"").into())
        }
    }
}

/// By the whole name, or by the last part of it.
fn is_named(table: &SourceTable, wanted: &str) -> bool {
    table.name == wanted || table.name.strip_prefix("public.") == Some(wanted)
}

/// The filter that all of the org's tables of a source have, if they have the same one.
fn shared_filter(siblings: &[&TableSpec]) -> Option<Value> {
    let first = siblings.first()?.filter.as_ref()?;
    let same = siblings.iter().all(|table| table.filter.as_ref() == Some(first));
    same.then(|| json!(first))
}

fn unscoped(name: &str, source: &str) -> Error {
    let message =
        format!("which rows of {name:?} in source {source} are the org's is the operator's to say");
    Error::new(ErrorCode::ControlDenied, message)
        .hint("ask the operator to put the table into the org's template")
}

fn describe(offered: &SourceTable, resolved: &mut Resolved) {
    resolved.primary_key.clone_from(&offered.key);
    resolved.cursors = cursors(offered);
    resolved.partition = partition(offered);
}

/// Columns by which new and changed rows can be found, with the reason for their order.
pub(super) fn cursors(offered: &SourceTable) -> Vec<CursorCandidate> {
    let reason = |column: &str| {
        let data_type = offered.schema.field(column).map(|field| &field.data_type);
        match data_type {
            Some(LakeType::Timestamptz) => {
                "a moment in time: finds changed rows as well as new \
                 ones if every change sets it; late commits are waited for"
            }
            Some(LakeType::Timestamp | LakeType::Date) => {
                "a local time: finds changed rows if \
                 every change sets it; stays 12 hours behind while transactions are open"
            }
            Some(LakeType::Int | LakeType::Long) => {
                "a growing number: finds new rows, not \
                 changed ones"
            }
            None => {
                "the transaction that wrote the row: finds new rows and changed ones, whoever writes; \
                 every run scans the table"
            }
            _ => "ordered: finds rows that come after those read",
        }
        .to_owned()
    };
    let candidates = offered.cursors.iter().enumerate();
    candidates
        .map(|(index, column)| CursorCandidate {
            column: column.clone(),
            rank: index + 1,
            reason: reason(column),
        })
        .collect()
}

/// How the lake table may be cut into parts.
pub(super) fn partition(offered: &SourceTable) -> Option<PartitionSuggestion> {
    let is_time = |schema: &TableSchema, column: &str| {
        schema.field(column).is_some_and(|field| {
            matches!(field.data_type, LakeType::Timestamptz | LakeType::Timestamp | LakeType::Date)
        })
    };
    let column = MADE.iter().find(|column| is_time(&offered.schema, column))?;
    let rows = offered.rows_estimated?;
    if rows < PARTITION_ROWS_MIN {
        let reason = "so few rows are read faster as one part".to_owned();
        return Some(PartitionSuggestion { fields: Vec::new(), reason });
    }
    Some(PartitionSuggestion {
        fields: vec![format!("month({column})")],
        reason: format!(
            "{column} does not change: queries over a time read the files of that time alone"
        ),
    })
}
