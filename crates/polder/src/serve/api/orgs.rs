//! Orgs.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use polder_control::desired::{self, Change, EffectiveOrg, OrgLayer};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::Who;
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor};
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
    /// False: no runs.
    enabled: bool,
    /// Its database in the lake.
    namespace: String,
    /// Tables in its pipeline.
    tables: usize,
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
    #[serde(default)]
    enabled: Option<bool>,
}

/// What of an org to change. A null takes the API's word back: what the files say holds again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the shape of a merge patch, in which null and absence differ")]
pub(super) struct OrgChange {
    name: Option<String>,
    /// Operators alone.
    template: Option<String>,
    /// Operators alone.
    enabled: Option<bool>,
}

/// One state an org had.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OrgState {
    revision: i64,
    who: String,
    why: Option<String>,
    /// RFC 3339.
    at: String,
    /// What the pipeline files said.
    #[schema(value_type = Option<Object>)]
    declared: Option<Value>,
    /// What the API said.
    #[schema(value_type = Option<Object>)]
    adjusted: Option<Value>,
}

impl Org {
    fn of(org: &EffectiveOrg) -> Self {
        Self {
            id: org.org.to_string(),
            name: org.name.clone(),
            template: org.template.clone(),
            enabled: org.enabled,
            namespace: org.org.namespace(),
            tables: org.tables.len(),
        }
    }
}

/// The tag covers what the org's own routes change.
fn tag(org: &EffectiveOrg) -> String {
    etag::of(&(org.org.as_str(), &org.name, &org.template, org.enabled))
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
#[utoipa::path(get, path = "/v1/orgs", tag = "orgs", params(Paging),
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
        items.push(Org::of(&desired::effective(process, &templates, id, document)?));
    }
    let next_cursor = items.last().filter(|_| more).map(|org| cursor(&org.id));
    Ok(answer(StatusCode::OK, &Orgs { items, next_cursor }))
}

/// Read one org.
#[utoipa::path(get, path = "/v1/orgs/{org}", tag = "orgs",
    params(("org" = String, Path, description = "The org's id.")),
    responses((status = 200, body = Org)))]
pub(super) async fn read(State(api): State<Api>, who: Who, Named(org): Named<String>) -> Reply {
    let org = who.org(&org, Right::Read)?;
    Ok(shown(StatusCode::OK, &effective(&api, &org).await?))
}

/// Make an org. Operators alone.
#[utoipa::path(post, path = "/v1/orgs", tag = "orgs", params(DryRun), request_body = NewOrg,
    responses((status = 201, body = Org), (status = 200, body = Org, description = "A dry run.")))]
pub(super) async fn create(
    State(api): State<Api>,
    who: Who,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    who.require(Right::Operate)?;
    let (dry_run, new) = (dry.wanted()?, body.parse::<NewOrg>()?);
    let id: OrgId = new.id.parse()?;
    let org = who.0.principal.authorize_to(Right::Operate, &id)?;
    let author = who.author();
    let change = Change { process: &api.app.config.process, author: &author, dry_run };
    let made = desired::change(&api.store, &org, change, |current| {
        if current.org.is_some() {
            let message = format!("there is an org {id} already");
            return Err(Error::new(ErrorCode::ControlConflict, message));
        }
        check_template(new.template.as_deref(), current.templates)?;
        Ok(OrgLayer {
            name: new.name,
            template: new.template,
            enabled: new.enabled,
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

fn check_template(name: Option<&str>, templates: &desired::Templates) -> polder_core::Result<()> {
    let Some(unknown) = name.filter(|name| !templates.contains_key(*name)) else { return Ok(()) };
    let known: Vec<&str> = templates.keys().map(String::as_str).take(20).collect();
    let message = format!("there is no template {unknown:?}");
    let error = Error::new(ErrorCode::SpecUnknownName, message);
    Err(error
        .hint(format!("templates are defined in pipeline files; there is: {}", known.join(", "))))
}

/// Change an org.
#[utoipa::path(patch, path = "/v1/orgs/{org}", tag = "orgs",
    params(("org" = String, Path, description = "The org's id."), DryRun),
    request_body = OrgChange, responses((status = 200, body = Org)))]
pub(super) async fn update(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Administer)?;
    // For its checks: null and absence differ in a merge patch.
    body.parse::<OrgChange>()?;
    let patch: Map<String, Value> = body.parse()?;
    if patch.keys().any(|name| name != "name") {
        who.org(org.get().as_str(), Right::Operate)?;
    }
    change(&api, &who, &org, dry.wanted()?, |layer, templates| {
        // Its types were checked above.
        let text = |name: &str| patch.get(name).map(|v| v.as_str().map(str::to_owned));
        if let Some(name) = text("name") {
            layer.name = name;
        }
        if let Some(template) = text("template") {
            check_template(template.as_deref(), templates)?;
            layer.template = template;
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
    change(&api, &who, &org, dry.wanted()?, |layer, _| {
        layer.enabled = Some(false);
        Ok(())
    })
    .await
}

async fn change(
    api: &Api,
    who: &Who,
    org: &Authorized<OrgId>,
    dry_run: bool,
    edit: impl FnOnce(&mut OrgLayer, &desired::Templates) -> polder_core::Result<()>,
) -> Reply {
    let (author, wanted) = (who.author(), IfMatch::of(&who.1));
    let change = Change { process: &api.app.config.process, author: &author, dry_run };
    let changed = desired::change(&api.store, org, change, |current| {
        let (_, effective) = current.org.ok_or_else(|| gone(org.get()))?;
        wanted.check(&tag(effective))?;
        let mut layer = current.layer();
        edit(&mut layer, current.templates)?;
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
    params(("org" = String, Path, description = "The org's id.")),
    responses((status = 200, body = Vec<OrgState>)))]
pub(super) async fn history(State(api): State<Api>, who: Who, Named(org): Named<String>) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let states = desired::history(&api.store, &org).await?;
    let shown = states.into_iter().map(|state| OrgState {
        revision: state.revision,
        who: state.who,
        why: state.why,
        at: rfc3339(state.at_ms),
        declared: state.declared,
        adjusted: state.adjusted,
    });
    Ok(answer(StatusCode::OK, &shown.collect::<Vec<_>>()))
}
