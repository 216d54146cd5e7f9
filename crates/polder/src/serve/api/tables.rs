//! Tables of an org's pipeline.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use polder_control::desired::{
    self, Action, Change, Current, EffectiveOrg, EffectiveTable, OrgLayer, Pending,
};
use polder_control::schedule;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::Who;
use super::lake::{LakeState, TableVerdict, lake_state};
use super::orgs::{effective, gone};
use super::paging::{Body, DryRun, Named, Paging, Params, Sure, answer, cursor};
use super::problem::{Problem, Reply};
use super::resolve::{self, Found, Resolved};

/// A table of an org's pipeline, and what the lake has of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Table {
    org: String,
    name: String,
    /// Every setting, resolved from the template, the files and the API.
    #[schema(schema_with = super::openapi::table_spec)]
    spec: TableSpec,
    /// The API has said something of it.
    adjusted: bool,
    /// The published version that is current; null before the first run.
    version: Option<String>,
    /// The current snapshot's id; null before the first run.
    snapshot: Option<i64>,
    rows: Option<u64>,
    freshness: Option<Freshness>,
    /// When it runs next by itself, RFC 3339; null without a schedule. See the org's schedules for what
    /// is paused.
    #[schema(format = "date-time")]
    next_run_at: Option<String>,
    /// What the last validation said; null before the first one.
    validation: Option<TableVerdict>,
    /// Settings that are not carried out yet: null where maintenance and runs go by `spec` as it is.
    pending: Option<Waiting>,
    /// What a change does to the lake table: in the answer to PATCH alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
}

/// What of a table's rows and states is going to go, and can still be taken back.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Waiting {
    /// What maintenance is going to remove.
    goes: Vec<String>,
    /// When it begins to, RFC 3339. `POST …/undo`, or the earlier settings, take it back until then.
    #[schema(format = "date-time")]
    until: String,
    /// Who had the table keep less.
    who: String,
}

impl From<Pending> for Waiting {
    fn from(Pending { goes, until, who, .. }: Pending) -> Self {
        Self { goes, until, who }
    }
}

/// What a change of settings does to the lake table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Effect {
    /// `keep`: it goes on as it is, with the same settings; `change`: with others; `rewrite`: the next run reloads
    /// it as a new version, and the version before stays; `switch`: its runs stop, or go on again.
    #[schema(value_type = String)]
    action: EffectAction,
    /// The settings that change.
    settings: Vec<String>,
    /// Rows in the lake now; null where there is no lake table, or nobody said how many.
    rows: Option<u64>,
    /// Those of them that the next run reads again.
    rows_to_read: Option<u64>,
    /// What of its rows and states maintenance removes once the undo window is over.
    goes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum EffectAction {
    Keep,
    Change,
    Rewrite,
    Switch,
    Create,
    Drop,
}

impl From<Action> for EffectAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Create => Self::Create,
            Action::Rewrite => Self::Rewrite,
            Action::Change => Self::Change,
            Action::Switch => Self::Switch,
            Action::Drop => Self::Drop,
        }
    }
}

impl Effect {
    fn of(name: &str, orgs: (&EffectiveOrg, &EffectiveOrg), lake: &LakeState) -> Self {
        let there = lake.snapshot.map(|_| lake.rows);
        match desired::effect(name, orgs, there) {
            Some(planned) => Self {
                action: planned.action.into(),
                settings: planned.settings,
                rows: planned.rows,
                rows_to_read: planned.rows_to_read,
                goes: planned.goes,
            },
            None => Self {
                action: EffectAction::Keep,
                settings: Vec::new(),
                rows: lake.rows,
                rows_to_read: None,
                goes: Vec::new(),
            },
        }
    }
}

/// How old a table's rows are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Freshness {
    /// When the lake table last changed, RFC 3339.
    #[schema(format = "date-time")]
    updated_at: String,
    age_seconds: u64,
}

/// A table in a listing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableEntry {
    name: String,
    #[schema(schema_with = super::openapi::table_spec)]
    spec: TableSpec,
    adjusted: bool,
}

/// A page of tables.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tables {
    items: Vec<TableEntry>,
    next_cursor: Option<String>,
}

/// A table that was added.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Added {
    org: String,
    name: String,
    #[schema(schema_with = super::openapi::table_spec)]
    spec: TableSpec,
    /// Where the settings came from that nobody said.
    resolved: Resolved,
    /// True where this was a dry run, and nothing was added.
    dry_run: bool,
}

/// A table that left the pipeline.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Removed {
    org: String,
    name: String,
    /// Rows that stay in the lake, as they are; null where there is no lake table.
    rows: Option<u64>,
    dry_run: bool,
}

/// Refuses who would see other rows than the operator meant.
const SCOPE: [&str; 3] = ["source", "from", "filter"];

pub(super) fn tag(table: &EffectiveTable) -> String {
    etag::of(&table.spec)
}

impl Table {
    fn of(org: &OrgId, table: &EffectiveTable, lake: LakeState, next_ms: Option<i64>) -> Self {
        Self {
            org: org.to_string(),
            name: table.spec.name.clone(),
            spec: table.spec.clone(),
            adjusted: table.adjusted,
            version: lake.version,
            snapshot: lake.snapshot,
            rows: lake.rows,
            validation: lake.validation,
            freshness: lake.updated_ms.map(|ms| Freshness {
                updated_at: crate::output::rfc3339(ms),
                age_seconds: (chrono::Utc::now().timestamp_millis() - ms).max(0) as u64 / 1000,
            }),
            next_run_at: next_ms.map(crate::output::rfc3339),
            pending: None,
            effect: None,
        }
    }
}

/// List the tables of an org's pipeline.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables", operation_id = "list_tables", tag = "tables",
    params(("org" = String, Path, description = "The org's id."), Paging),
    responses((status = 200, body = Tables)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let (limit, after) = (paging.limit()?, paging.after()?);
    let mut tables = effective(&api, &org).await?.tables;
    tables.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let mut rest = tables.into_iter().filter(|table| table.spec.name > after);
    let entry = |table: EffectiveTable| TableEntry {
        name: table.spec.name.clone(),
        spec: table.spec,
        adjusted: table.adjusted,
    };
    let items: Vec<TableEntry> = rest.by_ref().take(limit).map(entry).collect();
    let more = rest.next().is_some();
    let next_cursor = items.last().filter(|_| more).map(|table| cursor(&table.name));
    Ok(answer(StatusCode::OK, &Tables { items, next_cursor }))
}

/// Read one table: its spec, and its state in the lake.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}",
    operation_id = "read_table", tag = "tables",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name.")),
    responses((status = 200, body = Table)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let effective = effective(&api, &org).await?;
    let found = effective.table(&table).ok_or_else(|| Problem::no_table(&table))?;
    shown(&api, &org, found, None).await
}

/// A table; after a change of its org, with what that does to the lake.
async fn shown(
    api: &Api,
    org: &Authorized<OrgId>,
    table: &EffectiveTable,
    orgs: Option<(&EffectiveOrg, &EffectiveOrg)>,
) -> Reply {
    let name = &table.spec.name;
    let lake = lake_state(api, org, name).await?;
    let effect = orgs.map(|orgs| Effect::of(name, orgs, &lake));
    let next = schedule::next_ingest_ms(&api.store, org, name).await?;
    let undo = desired::undo_of(&api.store, org, name).await?;
    let pending = undo.and_then(|undo| undo.pending(org.get(), &table.spec)).map(Waiting::from);
    let document = Table { pending, effect, ..Table::of(org.get(), table, lake, next) };
    Ok(etag::tagged(answer(StatusCode::OK, &document), &tag(table)))
}

/// Add a table to an org's pipeline. What is not said is resolved from the template and from
/// discovery, and returned in full.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables", tag = "tables",
    params(("org" = String, Path, description = "The org's id."), Sure),
    request_body(content = Object, description = "A name, and any other setting of a table spec."),
    responses((status = 201, body = Added,
               headers(("Location" = String, description = "/v1/orgs/<id>/tables/<name>"))),
              (status = 200, body = Added, description = "A dry run.")))]
pub(super) async fn add(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(sure): Params<Sure>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let (dry_run, yes) = sure.wanted()?;
    let mut said: Map<String, Value> = body.parse()?;
    let Some(Value::String(name)) = said.remove("name") else {
        return Err(Problem::invalid("a table needs a name: {\"name\": \"opportunity\"}"));
    };
    let Found { patch, resolved, inherited } =
        resolve::resolve(&api, &who, &org, &name, said).await?;
    let author = who.author();
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes };
    let operator = who.0.principal.role().has(Right::Operate);
    let changed = desired::change(&api.store, &org, change, |current| {
        if !operator {
            check_scope(&patch, &inherited)?;
        }
        added(&org, &current, &name, patch)
    })
    .await?;
    let table = changed.table(&name).ok_or_else(|| Problem::no_table(&name))?;
    let document = Added {
        org: org.get().to_string(),
        name: name.clone(),
        spec: table.spec.clone(),
        resolved,
        dry_run,
    };
    let status = if dry_run { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = etag::tagged(answer(status, &document), &tag(table));
    let place = format!("/v1/orgs/{}/tables/{}", org.get(), encoded(&name));
    if let (false, Ok(place)) = (dry_run, HeaderValue::from_str(&place)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// The org's layer with the table in it.
fn added(
    org: &Authorized<OrgId>,
    current: &Current<'_>,
    name: &str,
    patch: Map<String, Value>,
) -> polder_core::Result<OrgLayer> {
    let (document, effective) = current.org.ok_or_else(|| gone(org.get()))?;
    let mut layer = current.layer();
    let own = document.declared.as_ref();
    let own = own.is_some_and(|files| files.tables.iter().any(|table| table.name == name));
    let there = layer.tables.get(name).is_some_and(|patch| !patch.is_null());
    if there || (own && effective.table(name).is_some()) {
        let message = format!("org {} has table {name:?} already", org.get());
        return Err(Error::new(ErrorCode::ControlConflict, message)
            .hint("change it with PATCH /v1/orgs/{org}/tables/{table}"));
    }
    layer.tables.insert(name.to_owned(), Value::Object(patch));
    Ok(layer)
}

/// # Errors
/// `control.denied` where a patch says another source, source table or filter than was inherited.
fn check_scope(
    patch: &Map<String, Value>,
    inherited: &Map<String, Value>,
) -> polder_core::Result<()> {
    let other = |setting: &&str| {
        patch.get(*setting).is_some_and(|said| inherited.get(*setting) != Some(said))
    };
    SCOPE.iter().find(|setting| other(setting)).map_or(Ok(()), |setting| Err(out_of_scope(setting)))
}

fn out_of_scope(setting: &str) -> Error {
    let message =
        format!("which rows of a source are the org's ({setting}) is the operator's to say");
    Error::new(ErrorCode::ControlDenied, message)
        .hint("leave it out, or ask the operator to put the table into the org's template")
}

pub(crate) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

/// Change a table's settings, as a JSON merge patch. Null takes a setting back to its default. What has rows or
/// states go needs `yes=true`, and is carried out once it cannot be taken back any more. The answer, of a dry run as
/// well, has in `effect` what becomes of the lake table.
#[utoipa::path(patch, path = "/v1/orgs/{org}/tables/{table}",
    operation_id = "update_table", tag = "tables",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), Sure),
    request_body(content = Object, description = "Settings of a table spec.",
                 content_type = "application/merge-patch+json"),
    responses((status = 200, body = Table)))]
pub(super) async fn update(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(sure): Params<Sure>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let patch: Map<String, Value> = body.parse()?;
    if patch.get("name").is_some_and(|name| name.as_str() != Some(&table)) {
        return Err(Problem::invalid("a table's name cannot be changed"));
    }
    let operator = who.0.principal.role().has(Right::Operate);
    let (author, wanted) = (who.author(), IfMatch::of(&who.1));
    let (dry_run, yes) = sure.wanted()?;
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes };
    let mut before = None;
    let changed = desired::change(&api.store, &org, change, |current| {
        let found = present(&org, &current, &table)?;
        wanted.check(&tag(found))?;
        before = current.org.map(|(_, effective)| effective.clone());
        if !operator && let Some(setting) = SCOPE.iter().find(|name| patch.contains_key(**name)) {
            return Err(out_of_scope(setting));
        }
        let mut layer = current.layer();
        let before = layer.tables.remove(&table).unwrap_or_else(|| Value::Object(Map::new()));
        let after = desired::patch_after(before, &Value::Object(patch));
        layer.tables.insert(table.clone(), after);
        Ok(layer)
    })
    .await?;
    let found = changed.table(&table).ok_or_else(|| Problem::no_table(&table))?;
    shown(&api, &org, found, before.as_ref().map(|before| (before, &changed))).await
}

/// Have a table keep again what it kept before it was told to keep less, while nothing has gone: see `pending` of
/// the table. 409 where nothing waits.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables/{table}/undo",
    operation_id = "undo_table", tag = "tables",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), DryRun),
    responses((status = 200, body = Table)))]
pub(super) async fn undo(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let dry_run = dry.wanted()?;
    let (author, wanted) = (who.author(), IfMatch::of(&who.1));
    // What was kept before is not less than what is kept now.
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes: true };
    let mut before = None;
    let changed = desired::change(&api.store, &org, change, |current| {
        let found = present(&org, &current, &table)?;
        wanted.check(&tag(found))?;
        before = current.org.map(|(_, effective)| effective.clone());
        desired::undone(&current, org.get(), &table)
    })
    .await?;
    let found = changed.table(&table).ok_or_else(|| Problem::no_table(&table))?;
    shown(&api, &org, found, before.as_ref().map(|before| (before, &changed))).await
}

fn present<'a>(
    org: &Authorized<OrgId>,
    current: &Current<'a>,
    table: &str,
) -> polder_core::Result<&'a EffectiveTable> {
    let (_, effective): (_, &EffectiveOrg) = current.org.ok_or_else(|| gone(org.get()))?;
    effective.table(table).ok_or_else(|| {
        Error::new(ErrorCode::ControlNotFound, format!("the org has no table {table:?}"))
            .hint("GET /v1/orgs/{org}/tables lists its tables")
    })
}

/// Take a table out of the pipeline, with `yes=true`. The lake table stays as it is, and adding it again goes on
/// from there.
#[utoipa::path(delete, path = "/v1/orgs/{org}/tables/{table}", tag = "tables",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), Sure),
    responses((status = 200, body = Removed)))]
pub(super) async fn remove(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(sure): Params<Sure>,
) -> Reply<Response> {
    let org = who.org(&org, Right::Write)?;
    let (dry_run, yes) = sure.wanted()?;
    let (author, wanted) = (who.author(), IfMatch::of(&who.1));
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes };
    desired::change(&api.store, &org, change, |current| {
        let found = present(&org, &current, &table)?;
        wanted.check(&tag(found))?;
        let (document, effective) = current.org.ok_or_else(|| gone(org.get()))?;
        let mut layer = current.layer();
        let below = desired::base_tables(
            current.templates,
            effective.template.as_deref(),
            document.declared.as_ref(),
            &document.groups(),
        );
        if below.iter().any(|below| below.name == table) {
            layer.tables.insert(table.clone(), Value::Null);
        } else {
            layer.tables.remove(&table);
        }
        Ok(layer)
    })
    .await?;
    let rows = lake_state(&api, &org, &table).await?.rows;
    let document = Removed { org: org.get().to_string(), name: table, rows, dry_run };
    Ok(answer(StatusCode::OK, &document))
}
