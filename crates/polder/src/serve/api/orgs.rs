//! Orgs.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use polder_control::desired::{self, Change, EffectiveOrg, HistoryEntry, OrgDocument, OrgLayer};
use polder_core::spec::{ByteCount, OrgLimits, ScheduleSpec};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::Who;
use super::paging::{Body, DryRun, Named, Paging, Params, Sure, answer, cursor, numbered};
use super::problem::{Problem, Reply};
use crate::output::rfc3339;

/// An org.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Org {
    id: String,
    /// For people.
    name: Option<String>,
    /// The template whose tables it takes.
    template: Option<String>,
    /// Its template's groups of tables, and whether they are on.
    groups: BTreeMap<String, bool>,
    /// False: no runs.
    enabled: bool,
    limits: Limits,
    /// When its tables run that say nothing of it themselves; its template's where nobody said it of the
    /// org.
    #[schema(value_type = Option<Object>)]
    schedule: Option<ScheduleSpec>,
    /// Its database in the lake.
    namespace: String,
    /// Tables in its pipeline.
    tables: usize,
    /// Why what it takes cannot be read, and its tables do not run: in listings alone; reading the org itself is
    /// this error. Null where all is well.
    unreadable: Option<String>,
}

/// How much of the machine an org may take; null where a server's own setting holds.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    /// Runs at the same time, over all servers.
    #[schema(minimum = 1)]
    runs: Option<u32>,
    /// The org's share where many wait; 1 when absent.
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u32>,
    /// Rows that runs read in a day (UTC). Once there were so many, the org's next ingestion begins on the
    /// next day.
    #[schema(minimum = 1)]
    rows_per_day: Option<u64>,
    /// Bytes that runs write into the lake in a day, likewise. A text such as `50 GB` is taken, too.
    #[schema(value_type = Option<u64>, minimum = 1)]
    bytes_per_day: Option<ByteCount>,
    /// Memory in MB of the org's runs in one server, all together; a run for which nothing is left waits.
    #[schema(minimum = 16)]
    memory_mb: Option<u32>,
    /// Connections that the org's runs have to any one source from one server; a run for which none is left
    /// waits.
    #[schema(minimum = 1)]
    connections: Option<u32>,
}

/// A page of orgs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Orgs {
    items: Vec<Org>,
    /// The next page's cursor; null at the end.
    next_cursor: Option<String>,
}

/// An org to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOrg {
    /// 1 to 63 letters, digits, `_` or `-`, beginning with a letter or a digit.
    #[schema(max_length = 63, pattern = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    template: Option<String>,
    /// Groups of the template that are to be on (true) or off.
    #[serde(default)]
    groups: BTreeMap<String, bool>,
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    limits: Option<Limits>,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    schedule: Option<ScheduleSpec>,
}

/// What of an org to change. A null takes the API's word back: what the files say holds again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the shape of a merge patch, in which null and absence differ")]
pub(super) struct OrgChange {
    name: Option<String>,
    /// Operators alone.
    template: Option<String>,
    /// Groups of its template that are to be on (true) or off; null gives one back to the files and the template.
    #[schema(value_type = Option<Object>)]
    groups: Option<BTreeMap<String, Option<bool>>>,
    /// Operators alone.
    enabled: Option<bool>,
    /// Operators alone; replaced as a whole.
    limits: Option<Limits>,
    /// When the org's tables run that say nothing of it themselves; replaced as a whole.
    #[schema(value_type = Option<Object>)]
    schedule: Option<ScheduleSpec>,
}

/// One state an org or a template had.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OrgState {
    revision: i64,
    who: String,
    why: Option<String>,
    /// RFC 3339.
    #[schema(format = "date-time")]
    at: String,
    /// What the pipeline files said.
    #[schema(value_type = Option<Object>)]
    declared: Option<Value>,
    /// What the API said.
    #[schema(value_type = Option<Object>)]
    adjusted: Option<Value>,
}

/// A page of a history, the oldest state first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct States {
    items: Vec<OrgState>,
    next_cursor: Option<String>,
}

impl States {
    /// Of one state more than the page has, if there are more.
    pub(super) fn of(mut found: Vec<HistoryEntry>, limit: usize) -> Self {
        let more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().filter(|_| more);
        let next_cursor = last.map(|state| cursor(&state.revision.to_string()));
        Self { items: found.into_iter().map(OrgState::from).collect(), next_cursor }
    }
}

impl From<HistoryEntry> for OrgState {
    fn from(state: HistoryEntry) -> Self {
        Self {
            revision: state.revision,
            who: state.who,
            why: state.why,
            at: rfc3339(state.at_ms),
            declared: state.declared,
            adjusted: state.adjusted,
        }
    }
}

impl Limits {
    pub(super) fn of(limits: &OrgLimits) -> Self {
        let OrgLimits { runs, weight, rows_per_day, bytes_per_day, memory_mb, connections } =
            *limits;
        Self { runs, weight, rows_per_day, bytes_per_day, memory_mb, connections }
    }
}

impl Org {
    fn of(org: &EffectiveOrg) -> Self {
        Self {
            id: org.org.to_string(),
            name: org.name.clone(),
            template: org.template.clone(),
            groups: org.groups.clone(),
            enabled: org.enabled,
            limits: Limits::of(&org.limits),
            schedule: org.schedule.clone(),
            namespace: org.org.namespace(),
            tables: org.tables.len(),
            unreadable: None,
        }
    }

    /// One of which more cannot be told.
    fn unreadable(id: &OrgId, document: &OrgDocument, error: &Error) -> Self {
        let detail = error.detail_text().map_or_else(String::new, |text| format!(": {text}"));
        Self {
            id: id.to_string(),
            name: document.name().map(str::to_owned),
            template: document.template().map(str::to_owned),
            groups: BTreeMap::new(),
            enabled: document.is_enabled(),
            limits: Limits::default(),
            schedule: None,
            namespace: id.namespace(),
            tables: 0,
            unreadable: Some(format!("{error}{detail}")),
        }
    }
}

/// The tag covers what the org's own routes change.
fn tag(org: &EffectiveOrg) -> String {
    let own = (org.org.as_str(), &org.name, &org.template, org.enabled);
    etag::of(&(own, &org.limits, &org.schedule, &org.groups))
}

fn shown(status: StatusCode, org: &EffectiveOrg) -> Response {
    etag::tagged(answer(status, &Org::of(org)), &tag(org))
}

/// The org with its layers put together.
pub(super) async fn effective(api: &Api, org: &Authorized<OrgId>) -> Reply<EffectiveOrg> {
    let found = desired::org(&api.store, org).await?;
    let (document, templates) = found.ok_or_else(|| Problem::no_org(org.get().as_str()))?;
    Ok(desired::effective(&api.app.config.process, &templates, org.get(), &document)?)
}

/// List the orgs that the caller may see.
#[utoipa::path(get, path = "/v1/orgs", operation_id = "list_orgs", tag = "orgs", params(Paging),
    responses((status = 200, body = Orgs)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Params(paging): Params<Paging>,
) -> Reply {
    let (limit, after) = (paging.limit()?, paging.after()?);
    let principal = &who.0.principal;
    let (mut found, templates) = desired::orgs(&api.store, principal, &after, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let process = &api.app.config.process;
    let mut items = Vec::new();
    for (id, document) in &found {
        let org = desired::effective(process, &templates, id, document);
        items.push(match &org {
            Ok(org) => Org::of(org),
            Err(error) => Org::unreadable(id, document, error),
        });
    }
    let next_cursor = items.last().filter(|_| more).map(|org| cursor(&org.id));
    Ok(answer(StatusCode::OK, &Orgs { items, next_cursor }))
}

/// Read one org.
#[utoipa::path(get, path = "/v1/orgs/{org}", operation_id = "read_org", tag = "orgs",
    params(("org" = String, Path, description = "The org's id.")),
    responses((status = 200, body = Org)))]
pub(super) async fn read(State(api): State<Api>, who: Who, Named(org): Named<String>) -> Reply {
    let org = who.org(&org, Right::Read)?;
    Ok(shown(StatusCode::OK, &effective(&api, &org).await?))
}

/// Make an org, or give one anew that cannot be read. Operators alone. One that was there before, and whose tables
/// are to keep less than they did, needs `yes=true`.
#[utoipa::path(post, path = "/v1/orgs", tag = "orgs", params(Sure), request_body = NewOrg,
    responses((status = 201, body = Org,
               headers(("Location" = String, description = "/v1/orgs/<id>"))),
              (status = 200, body = Org, description = "A dry run.")))]
pub(super) async fn create(
    State(api): State<Api>,
    who: Who,
    Params(sure): Params<Sure>,
    body: Body,
) -> Reply {
    who.require(Right::Operate)?;
    let ((dry_run, yes), new) = (sure.wanted()?, body.parse::<NewOrg>()?);
    let id: OrgId = new.id.parse()?;
    let org = who.0.principal.authorize_to(Right::Operate, &id)?;
    let author = who.author();
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes };
    let made = desired::change(&api.store, &org, change, |current| {
        if current.org.is_some() {
            let message = format!("there is an org {id} already");
            return Err(Error::new(ErrorCode::ControlConflict, message));
        }
        check_template(new.template.as_deref(), current.templates)?;
        check_groups(new.groups.keys(), new.template.as_deref(), current.templates)?;
        Ok(OrgLayer {
            name: new.name,
            template: new.template,
            groups: new.groups,
            enabled: new.enabled,
            limits: new.limits.as_ref().map(checked).transpose()?,
            schedule: new.schedule,
            ..OrgLayer::default()
        })
    })
    .await?;
    if dry_run {
        return Ok(shown(StatusCode::OK, &made));
    }
    let mut response = shown(StatusCode::CREATED, &made);
    // An org's id has no characters that an address could not hold.
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/orgs/{}", made.org)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

fn checked(said: &Limits) -> polder_core::Result<OrgLimits> {
    let Limits { runs, weight, rows_per_day, bytes_per_day, memory_mb, connections } = *said;
    let limits = OrgLimits { runs, weight, rows_per_day, bytes_per_day, memory_mb, connections };
    limits.check().map(|()| limits)
}

fn check_template(name: Option<&str>, templates: &desired::Templates) -> polder_core::Result<()> {
    let Some(unknown) = name.filter(|name| !templates.contains_key(*name)) else { return Ok(()) };
    let known: Vec<&str> = templates.keys().map(String::as_str).take(20).collect();
    let message = format!("there is no template {unknown:?}");
    let error = Error::new(ErrorCode::SpecUnknownName, message);
    Err(error.hint(format!("GET /v1/templates lists them; there is: {}", known.join(", "))))
}

/// Names of groups are those of the org's template.
fn check_groups<'a>(
    mut named: impl Iterator<Item = &'a String>,
    template: Option<&str>,
    templates: &desired::Templates,
) -> polder_core::Result<()> {
    let template = template.and_then(|name| templates.get(name));
    let unknown = named.find(|name| template.is_none_or(|one| !one.groups.contains_key(*name)));
    let Some(unknown) = unknown else { return Ok(()) };
    let known = template.map(|one| one.groups.keys().map(String::as_str).collect::<Vec<_>>());
    let message = format!("the org's template has no group {unknown:?}");
    let error = Error::new(ErrorCode::SpecUnknownName, message);
    Err(error.hint(format!("there is: {}", known.unwrap_or_default().join(", "))))
}

/// Change an org. A template by which tables leave the pipeline, or rows go, needs `yes=true`.
#[utoipa::path(patch, path = "/v1/orgs/{org}", operation_id = "update_org", tag = "orgs",
    params(("org" = String, Path, description = "The org's id."), Sure),
    request_body = OrgChange, responses((status = 200, body = Org)))]
pub(super) async fn update(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(sure): Params<Sure>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Administer)?;
    // For its checks: null and absence differ in a merge patch.
    body.parse::<OrgChange>()?;
    let patch: Map<String, Value> = body.parse()?;
    // When tables run is a writer's to say of each of them.
    if patch.keys().any(|name| !matches!(name.as_str(), "name" | "schedule" | "groups")) {
        who.org(org.get().as_str(), Right::Operate)?;
    }
    change(&api, &who, &org, sure.wanted()?, |layer, templates| {
        // Its types were checked above.
        let text = |name: &str| patch.get(name).map(|v| v.as_str().map(str::to_owned));
        if let Some(name) = text("name") {
            layer.name = name;
        }
        if let Some(template) = text("template") {
            check_template(template.as_deref(), templates)?;
            layer.template = template;
        }
        match patch.get("groups") {
            Some(Value::Object(said)) => {
                for (name, on) in said {
                    layer.groups.remove(name);
                    layer.groups.extend(on.as_bool().map(|on| (name.clone(), on)));
                }
            }
            Some(_) => layer.groups.clear(),
            None => {}
        }
        if let Some(limits) = patch.get("limits") {
            let said: Option<Limits> = serde_json::from_value(limits.clone()).unwrap_or_default();
            layer.limits = said.as_ref().map(checked).transpose()?;
        }
        if let Some(schedule) = patch.get("schedule") {
            layer.schedule = serde_json::from_value(schedule.clone()).unwrap_or_default();
        }
        if let Some(enabled) = patch.get("enabled") {
            layer.enabled = enabled.as_bool();
        }
        Ok(())
    })
    .await
}

/// Switch an org off: no more runs. Its tables stay; erasing them is another matter. Operators alone.
#[utoipa::path(delete, path = "/v1/orgs/{org}", tag = "orgs",
    params(("org" = String, Path, description = "The org's id."), DryRun),
    responses((status = 200, body = Org)))]
pub(super) async fn disable(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Operate)?;
    // Its tables stay as they are, and in the pipeline.
    change(&api, &who, &org, (dry.wanted()?, true), |layer, _| {
        layer.enabled = Some(false);
        Ok(())
    })
    .await
}

async fn change(
    api: &Api,
    who: &Who,
    org: &Authorized<OrgId>,
    (dry_run, yes): (bool, bool),
    edit: impl FnOnce(&mut OrgLayer, &desired::Templates) -> polder_core::Result<()>,
) -> Reply {
    let (author, wanted) = (who.author(), IfMatch::of(&who.1));
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes };
    let changed = desired::change(&api.store, org, change, |current| {
        let (document, effective) = current.org.ok_or_else(|| gone(org.get()))?;
        wanted.check(&tag(effective))?;
        let before = current.layer();
        let mut layer = before.clone();
        edit(&mut layer, current.templates)?;
        let declared = document.declared.as_ref().and_then(|files| files.template.as_deref());
        let template = layer.template.as_deref().or(declared);
        // Those of a template that it had are of no account.
        let new = layer.groups.keys().filter(|name| !before.groups.contains_key(*name));
        check_groups(new, template, current.templates)?;
        Ok(layer)
    })
    .await?;
    Ok(shown(StatusCode::OK, &changed))
}

/// As [`Problem::no_org`].
pub(super) fn gone(org: &OrgId) -> Error {
    Error::new(ErrorCode::ControlNotFound, format!("there is no org {:?}", org.as_str()))
        .hint("GET /v1/orgs lists the orgs you may see")
}

/// Every state an org had, oldest first: who changed it, when and why.
#[utoipa::path(get, path = "/v1/orgs/{org}/history", tag = "orgs",
    params(("org" = String, Path, description = "The org's id."), Paging),
    responses((status = 200, body = States)))]
pub(super) async fn history(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let (limit, after) = (paging.limit()?, numbered(&paging.after()?)?);
    effective(&api, &org).await?;
    let states = desired::history(&api.store, &org, after, limit + 1).await?;
    Ok(answer(StatusCode::OK, &States::of(states, limit)))
}
