//! Templates: the tables that orgs take together. Operators change them, and are told first what becomes of
//! the lake tables of every org that takes one; others see those that their own orgs take.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::future::try_join_all;
use polder_control::desired::{
    self, Action, Change, LakeFacts, PlannedTable, TemplateChange, TemplatePlan, no_template,
};
use polder_core::spec::{GroupSpec, ScheduleSpec, TableSpec, TemplateSpec};
use polder_core::{Error, ErrorCode, OrgId, Principal, Right};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::etag::{self, Conditions};
use super::gate::{Note, Who};
use super::orgs::{Limits, States};
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor, flag, numbered};
use super::problem::{Problem, Reply};
use super::tables::encoded;

const NAME_CHARS_MAX: usize = 100;
/// Orgs whose lake tables are listed at once.
const AT_ONCE: usize = 8;
/// How often a change is planned anew, because others changed the desired state meanwhile.
const TRIES_MAX: usize = 5;

/// A set of tables that orgs take together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Template {
    name: String,
    /// When tables run that say nothing of it themselves, nor their org.
    #[schema(value_type = Option<Object>)]
    schedule: Option<ScheduleSpec>,
    /// How much of the machine each of its orgs may take; what an org says itself holds instead, limit by
    /// limit. Null where it says nothing.
    limits: Option<Limits>,
    /// Tables that orgs switch on and off together, by the group's name.
    #[schema(value_type = Object)]
    groups: BTreeMap<String, GroupSpec>,
    #[schema(value_type = Vec<Object>)]
    tables: Vec<TableSpec>,
    /// Pipeline files speak of it.
    declared: bool,
    /// The API has said something of it, over what they say.
    adjusted: bool,
    /// Why the store's template cannot be read, and its orgs' tables do not run: give it anew by PUT, or by
    /// `polder apply`. Null where all is well.
    unreadable: Option<String>,
}

/// A page of templates.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Templates {
    items: Vec<Template>,
    next_cursor: Option<String>,
}

/// A template after a change, and what becomes of the lake.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangedTemplate {
    template: Template,
    plan: Difference,
    /// True where this was a dry run, and nothing was changed.
    dry_run: bool,
}

/// What a change of a template does to the tables of all orgs that take it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Difference {
    /// Of the change and what becomes of each table: `plan` takes it.
    hash: String,
    /// Orgs that take the template.
    orgs: usize,
    /// Those of them of which a table changes.
    orgs_changed: usize,
    /// Those of them whose limits change.
    orgs_limited: usize,
    /// Tables that their first run makes.
    create: usize,
    /// Tables that their next run reloads as a new version; the version before stays.
    rewrite: usize,
    /// Tables that go on as they are, with other settings.
    change: usize,
    /// Tables whose runs stop, or go on again.
    switch: usize,
    /// Tables that leave their pipelines. Their rows stay in the lake, and get no newer.
    drop: usize,
    /// Tables that only `yes=true` lets go.
    destructive: usize,
    /// How long what tables keep less can be taken back, once it is said.
    undo_seconds: i64,
    /// Some of the tables, 20 at most, the destructive ones first.
    examples: Vec<PlannedChange>,
}

/// What becomes of one table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlannedChange {
    org: String,
    table: String,
    /// `create`, `rewrite`, `change`, `switch` or `drop`.
    #[schema(value_type = String)]
    action: Action,
    destructive: bool,
    /// The settings that change.
    settings: Vec<String>,
    /// What of its rows and states maintenance removes under the new settings, once the undo window is over.
    goes: Vec<String>,
    /// Rows in the lake now; null where that is not known.
    rows: Option<u64>,
    /// Those of them that the next run reads again.
    rows_to_read: Option<u64>,
}

/// A template that was taken out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemovedTemplate {
    name: String,
    dry_run: bool,
}

/// How sure a change is.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Confirmation {
    /// Only say what would be; nothing is changed.
    #[param(value_type = Option<bool>)]
    dry_run: Option<String>,
    /// Only if the plan is the one with this hash, or with one that begins so (12 characters at least).
    plan: Option<String>,
    /// Also what takes tables out of pipelines, or has rows go.
    #[param(value_type = Option<bool>)]
    yes: Option<String>,
}

/// The same, understood.
struct Confirmed {
    dry_run: bool,
    plan: Option<String>,
    yes: bool,
}

impl Confirmation {
    fn wanted(self) -> Reply<Confirmed> {
        let dry_run = flag("dry_run", self.dry_run.as_deref())?;
        Ok(Confirmed { dry_run, yes: flag("yes", self.yes.as_deref())?, plan: self.plan })
    }
}

impl Confirmed {
    /// # Errors
    /// `control.stale` for another plan than was confirmed; `control.conflict` for one that takes tables
    /// away without a yes.
    fn check(&self, plan: &TemplatePlan) -> polder_core::Result<()> {
        let other = |hash: &String| hash.len() < 12 || !plan.hash.starts_with(hash.as_str());
        if self.plan.as_ref().is_some_and(other) {
            let message = "the plan with this hash is not what would be done now";
            return Err(Error::new(ErrorCode::ControlStale, message)
                .hint("look at the difference again: ?dry_run=true"));
        }
        if plan.destructive > 0 && !self.yes && !self.dry_run {
            let message =
                format!("{} tables would leave their pipelines, or have rows go", plan.destructive);
            return Err(Error::new(ErrorCode::ControlConflict, message)
                .hint("?dry_run=true says which; if that is meant: ?yes=true"));
        }
        Ok(())
    }
}

impl From<PlannedTable> for PlannedChange {
    fn from(table: PlannedTable) -> Self {
        Self {
            org: table.org,
            table: table.table,
            action: table.action,
            destructive: table.destructive,
            settings: table.settings,
            goes: table.goes,
            rows: table.rows,
            rows_to_read: table.rows_to_read,
        }
    }
}

impl From<TemplatePlan> for ChangedTemplate {
    fn from(plan: TemplatePlan) -> Self {
        let difference = Difference {
            hash: plan.hash,
            orgs: plan.orgs,
            orgs_changed: plan.orgs_changed,
            orgs_limited: plan.orgs_limited,
            create: plan.actions.create,
            rewrite: plan.actions.rewrite,
            change: plan.actions.change,
            switch: plan.actions.switch,
            drop: plan.actions.drop,
            destructive: plan.destructive,
            undo_seconds: plan.undo_seconds,
            examples: plan.examples.into_iter().map(PlannedChange::from).collect(),
        };
        let template = Template {
            name: plan.name,
            schedule: plan.spec.schedule,
            limits: plan.spec.limits.as_ref().map(Limits::of),
            groups: plan.spec.groups,
            tables: plan.spec.tables,
            declared: plan.declared,
            adjusted: plan.adjusted,
            unreadable: None,
        };
        Self { template, plan: difference, dry_run: false }
    }
}

fn tag(name: &str, spec: &TemplateSpec) -> String {
    etag::of(&(name, spec))
}

/// The templates that the caller may see, by name, with their entity tags.
async fn visible(api: &Api, who: &Who) -> Reply<Vec<(Template, String)>> {
    let taken = taken(api, who).await?;
    let mut found = Vec::new();
    for (name, document) in desired::template_documents(&api.store).await? {
        if taken.as_ref().is_some_and(|own| !own.contains(&name)) {
            continue;
        }
        let (spec, unreadable) = match document.spec(&name) {
            Ok(Some(spec)) => (spec, None),
            Ok(None) => continue,
            Err(error) => (TemplateSpec::default(), Some(error.to_string())),
        };
        let tag = tag(&name, &spec);
        let template = Template {
            name,
            schedule: spec.schedule,
            limits: spec.limits.as_ref().map(Limits::of),
            groups: spec.groups,
            tables: spec.tables,
            declared: document.is_declared(),
            adjusted: document.adjusted.is_some(),
            unreadable,
        };
        found.push((template, tag));
    }
    Ok(found)
}

/// The templates that the caller's orgs take; `None` for operators, who see all.
async fn taken(api: &Api, who: &Who) -> Reply<Option<BTreeSet<String>>> {
    let principal = &who.0.principal;
    if *principal == Principal::Operator {
        return Ok(None);
    }
    let (orgs, _) = desired::orgs(&api.store, principal, "", usize::MAX).await?;
    let taken = orgs.iter().filter_map(|(_, document)| document.template());
    Ok(Some(taken.map(str::to_owned).collect()))
}

/// List the templates: all for operators, for others those that their orgs take.
#[utoipa::path(get, path = "/v1/templates", operation_id = "list_templates", tag = "templates",
    params(Paging), responses((status = 200, body = Templates)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Params(paging): Params<Paging>,
) -> Reply {
    let (limit, after) = (paging.limit()?, paging.after()?);
    let visible = visible(&api, &who).await?.into_iter().map(|(template, _)| template);
    let mut rest = visible.filter(|template| template.name > after);
    let items: Vec<Template> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    let next_cursor = items.last().filter(|_| more).map(|template| cursor(&template.name));
    Ok(answer(StatusCode::OK, &Templates { items, next_cursor }))
}

/// Read one template.
#[utoipa::path(get, path = "/v1/templates/{template}",
    operation_id = "read_template", tag = "templates",
    params(("template" = String, Path, description = "The template's name.")),
    responses((status = 200, body = Template)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named(template): Named<String>,
) -> Reply {
    let visible = visible(&api, &who).await?;
    let found = visible.into_iter().find(|(one, _)| one.name == template);
    let (found, tag) = found.ok_or_else(|| {
        let problem = Problem::from(no_template(&template));
        if who.0.principal == Principal::Operator { problem } else { problem.refusing() }
    })?;
    Ok(etag::tagged(answer(StatusCode::OK, &found), &tag))
}

/// Every state a template had, oldest first: who changed it, when and why. Operators alone.
#[utoipa::path(get, path = "/v1/templates/{template}/history",
    operation_id = "template_history", tag = "templates",
    params(("template" = String, Path, description = "The template's name."), Paging),
    responses((status = 200, body = States)))]
pub(super) async fn history(
    State(api): State<Api>,
    who: Who,
    Named(template): Named<String>,
    Params(paging): Params<Paging>,
) -> Reply {
    who.require(Right::Operate)?;
    let (limit, after) = (paging.limit()?, numbered(&paging.after()?)?);
    let (principal, page) = (&who.0.principal, (after, limit + 1));
    let states = desired::template_history(&api.store, principal, &template, page).await?;
    if states.is_empty() && after.is_none() {
        return Err(no_template(&template).into());
    }
    Ok(answer(StatusCode::OK, &States::of(states, limit)))
}

/// Make a template, or say anew all of what it is. Operators alone.
#[utoipa::path(put, path = "/v1/templates/{template}",
    operation_id = "put_template", tag = "templates",
    params(("template" = String, Path, description = "The template's name."), Confirmation),
    request_body(content = Object, description = "The template, as pipeline files have it."),
    responses((status = 201, body = ChangedTemplate, description = "It was made.",
               headers(("Location" = String, description = "/v1/templates/<name>"))),
              (status = 200, body = ChangedTemplate, description = "It was changed, or a dry run.")))]
pub(super) async fn put(
    State(api): State<Api>,
    who: Who,
    Named(template): Named<String>,
    Params(said): Params<Confirmation>,
    body: Body,
) -> Reply {
    who.require(Right::Operate)?;
    let (confirmed, wanted) = (said.wanted()?, body.parse::<TemplateSpec>()?);
    let conditions = Conditions::of(&who.1);
    carry_out(&api, &who, &template, &confirmed, |now| {
        if now.is_none() {
            check_name(&template)?;
        }
        conditions.check(now.map(|spec| tag(&template, spec)).as_deref())?;
        Ok(wanted.clone())
    })
    .await
}

/// Change a template, as a JSON merge patch of what is read of it. `tables` may be an object that names tables,
/// each with its own patch, or null to take it out. Operators alone.
#[utoipa::path(patch, path = "/v1/templates/{template}",
    operation_id = "update_template", tag = "templates",
    params(("template" = String, Path, description = "The template's name."), Confirmation),
    request_body(content = Object, description = "What of the template is to be otherwise.",
                 content_type = "application/merge-patch+json"),
    responses((status = 200, body = ChangedTemplate)))]
pub(super) async fn update(
    State(api): State<Api>,
    who: Who,
    Named(template): Named<String>,
    Params(said): Params<Confirmation>,
    body: Body,
) -> Reply {
    who.require(Right::Operate)?;
    let (confirmed, patch) = (said.wanted()?, body.parse::<Map<String, Value>>()?);
    let conditions = Conditions::of(&who.1);
    carry_out(&api, &who, &template, &confirmed, |now| {
        let now = now.ok_or_else(|| no_template(&template))?;
        conditions.check(Some(&tag(&template, now)))?;
        desired::patch_template(&template, now, &patch)
    })
    .await
}

/// Take out a template that no org takes and no file speaks of. Operators alone.
#[utoipa::path(delete, path = "/v1/templates/{template}",
    operation_id = "remove_template", tag = "templates",
    params(("template" = String, Path, description = "The template's name."), DryRun),
    responses((status = 200, body = RemovedTemplate)))]
pub(super) async fn remove(
    State(api): State<Api>,
    who: Who,
    Named(template): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    who.require(Right::Operate)?;
    let dry_run = dry.wanted()?;
    let (author, conditions) = (who.author(), Conditions::of(&who.1));
    // No org takes it.
    let change = Change { process: &api.app.config.process, author: &author, dry_run, yes: true };
    desired::remove_template(&api.store, &who.0.principal, &template, change, |now| {
        conditions.check(Some(&tag(&template, now)))
    })
    .await?;
    Ok(answer(StatusCode::OK, &RemovedTemplate { name: template, dry_run }))
}

fn check_name(name: &str) -> polder_core::Result<()> {
    if name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let message = format!("{name:?} cannot name a template");
    Err(Error::new(ErrorCode::SpecInvalid, message)
        .hint(format!("use {NAME_CHARS_MAX} characters at most, none of them a control character")))
}

/// Plans a change and, unless it is a dry run, carries out just that plan.
async fn carry_out(
    api: &Api,
    who: &Who,
    name: &str,
    confirmed: &Confirmed,
    decide: impl Fn(Option<&TemplateSpec>) -> polder_core::Result<TemplateSpec>,
) -> Reply {
    let author = who.author();
    for _ in 0..TRIES_MAX {
        let mut plan = planned(api, who, name, &decide).await?;
        confirmed.check(&plan)?;
        // Before the change: what fails here must not look as if nothing had been changed.
        count_rows(api, who, &mut plan.examples).await?;
        if !confirmed.dry_run {
            match desired::apply_template(&api.store, &plan, &author).await {
                Ok(()) => {}
                Err(error) if error.code() == ErrorCode::ControlStale => continue,
                Err(error) => return Err(error.into()),
            }
        }
        return Ok(shown(plan, confirmed.dry_run));
    }
    let message = "others change the desired state all the while";
    let error = Error::new(ErrorCode::ControlConflict, message);
    Err(error.hint("nothing was changed: repeat it in a moment").into())
}

/// What would become of the lake, org by org: no more of them than a page is held at once.
async fn planned(
    api: &Api,
    who: &Who,
    name: &str,
    decide: &impl Fn(Option<&TemplateSpec>) -> polder_core::Result<TemplateSpec>,
) -> Reply<TemplatePlan> {
    let (process, principal) = (&api.app.config.process, &who.0.principal);
    let mut change = TemplateChange::begin(&api.store, principal, process, name, decide).await?;
    while let Some(orgs) = change.page(&api.store).await? {
        for some in orgs.chunks(AT_ONCE) {
            let mut asked = Vec::with_capacity(some.len());
            for org in some {
                asked.push(facts(api, who, org.id()));
            }
            let found = try_join_all(asked).await?;
            for (org, facts) in some.iter().zip(&found) {
                change.take(org, facts)?;
            }
        }
    }
    Ok(change.finish())
}

/// Which tables the lake has of an org; not how many rows, for which each would have to be loaded.
async fn facts(api: &Api, who: &Who, org: &OrgId) -> polder_core::Result<LakeFacts> {
    let names = api.lake.tables(&who.0.principal.authorize(org)?).await?;
    Ok(names.into_iter().map(|name| ((org.clone(), name), None)).collect())
}

/// Looks up the rows of the tables that are shown.
async fn count_rows(api: &Api, who: &Who, examples: &mut [PlannedTable]) -> Reply<()> {
    for example in examples.iter_mut().filter(|example| example.action != Action::Create) {
        let id: OrgId = example.org.parse()?;
        let org = who.0.principal.authorize(&id)?;
        let table = api.lake.table(&org, &example.table).await?;
        let snapshot = table.and_then(|table| table.current_snapshot());
        example.rows = snapshot.and_then(|snapshot| snapshot.rows);
        if example.action == Action::Rewrite {
            example.rows_to_read = example.rows;
        }
    }
    Ok(())
}

fn shown(plan: TemplatePlan, dry_run: bool) -> Response {
    let tag = tag(&plan.name, &plan.spec);
    let made = plan.new && !dry_run;
    let detail = format!(
        "plan {}: {} of {} orgs, {} tables dropped or with rows that go",
        &plan.hash[..12],
        plan.orgs_changed,
        plan.orgs,
        plan.destructive
    );
    let place = HeaderValue::from_str(&format!("/v1/templates/{}", encoded(&plan.name)));
    let document = ChangedTemplate { dry_run, ..ChangedTemplate::from(plan) };
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = etag::tagged(answer(status, &document), &tag);
    if let (true, Ok(place)) = (made, place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    if !dry_run {
        response.extensions_mut().insert(Note { detail: Some(detail), ..Note::default() });
    }
    response
}
