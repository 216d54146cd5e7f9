//! When runs happen by themselves, what is paused, and runs that failed for good.

use std::slice::from_mut;

use axum::extract::State;
use axum::http::StatusCode;
use polder_control::queue::{self, JobKind, Pause, Pausing, QueuedRun, SourceState};
use polder_control::schedule::{self, Scheduled};
use polder_control::usage;
use polder_core::{Authorized, OrgId, Principal, Right};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::{REASON, Who};
use super::orgs::effective;
use super::paging::{DryRun, Named, Params, answer};
use super::problem::{Problem, Reply};
use super::runs::{self, Kind, Run, no_run, waiting};
use super::{sources, tables};
use crate::output::rfc3339;

/// When an org's tables run by themselves.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Schedules {
    org: String,
    /// Nothing of the org is begun: neither by schedule nor of what waits.
    paused: bool,
    /// The org has reached a limit of the day: no ingestion of it is begun before this time, when the next
    /// day begins. Validation and maintenance go on.
    #[schema(format = "date-time")]
    limited_until: Option<String>,
    items: Vec<Schedule>,
    pauses: Vec<Paused>,
}

/// When one table runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Schedule {
    table: String,
    kind: Kind,
    /// RFC 3339, as all times; null where its cron text has no time to come.
    #[schema(format = "date-time")]
    next_run_at: Option<String>,
    /// The time it was due last.
    #[schema(format = "date-time")]
    last_due_at: Option<String>,
    /// It or its org is paused: the next run waits for the end of that.
    paused: bool,
    /// Its org has reached a limit of the day: the next run waits for the next day.
    limited: bool,
}

/// Something that is paused.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Paused {
    /// Null: the whole org.
    table: Option<String>,
    who: String,
    why: Option<String>,
    #[schema(format = "date-time")]
    at: String,
}

impl From<Pause> for Paused {
    fn from(pause: Pause) -> Self {
        Self { table: pause.table, who: pause.who, why: pause.why, at: rfc3339(pause.at_ms) }
    }
}

impl Schedules {
    fn of(
        org: &OrgId,
        scheduled: Vec<Scheduled>,
        pauses: Vec<Pause>,
        limited_until: Option<i64>,
    ) -> Self {
        let all = pauses.iter().any(|pause| pause.table.is_none());
        let is_paused =
            |table: &str| all || pauses.iter().any(|pause| pause.table.as_deref() == Some(table));
        let shown = |one: Scheduled| Schedule {
            paused: is_paused(&one.table),
            limited: limited_until.is_some() && one.kind == JobKind::Ingest,
            table: one.table,
            kind: one.kind.into(),
            next_run_at: one.next_ms.map(rfc3339),
            last_due_at: one.last_ms.map(rfc3339),
        };
        let items = scheduled.into_iter().map(shown).collect();
        let pauses = pauses.into_iter().map(Paused::from).collect();
        let limited_until = limited_until.map(rfc3339);
        Self { org: org.to_string(), paused: all, limited_until, items, pauses }
    }
}

/// The tag covers what is paused, which these routes change; times go by themselves.
fn tag(org: &OrgId, pauses: &[Pause]) -> String {
    let told: Vec<_> = pauses.iter().map(|one| (&one.table, &one.who, one.at_ms)).collect();
    etag::of(&(org.as_str(), told))
}

async fn shown(api: &Api, org: &Authorized<OrgId>) -> Reply {
    let scheduled = schedule::of_org(&api.store, org).await?;
    let pauses = queue::pauses(&api.store, org).await?;
    let until = usage::waits_until_ms(&api.store, org).await?;
    let tag = tag(org.get(), &pauses);
    let document = Schedules::of(org.get(), scheduled, pauses, until);
    Ok(etag::tagged(answer(StatusCode::OK, &document), &tag))
}

/// When an org's tables run next, and what is paused.
#[utoipa::path(get, path = "/v1/orgs/{org}/schedules",
    operation_id = "list_schedules", tag = "runs",
    params(("org" = String, Path, description = "The org's id.")),
    responses((status = 200, body = Schedules)))]
pub(super) async fn list(State(api): State<Api>, who: Who, Named(org): Named<String>) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    shown(&api, &org).await
}

/// What a pause or its end is about.
struct Subject<'a> {
    org: Authorized<OrgId>,
    table: Option<&'a str>,
    paused: bool,
    dry_run: bool,
}

async fn set(api: &Api, who: &Who, subject: Subject<'_>) -> Reply {
    let Subject { org, table, paused, dry_run } = subject;
    let effective = effective(api, &org).await?;
    if let Some(name) = table.filter(|name| paused && effective.table(name).is_none()) {
        return Err(Problem::no_table(name));
    }
    let of_table = table.and_then(|name| effective.table(name)).map(tables::tag);
    let wanted = IfMatch::of(&who.1);
    let check = |pauses: &[Pause]| {
        let of_pauses = tag(org.get(), pauses);
        let tags = [Some(of_pauses.as_str()), of_table.as_deref()];
        wanted.check_any(&tags.into_iter().flatten().collect::<Vec<_>>())
    };
    if dry_run {
        check(&queue::pauses(&api.store, &org).await?)?;
        return shown(api, &org).await;
    }
    let asked_by = who.0.who();
    let why = who.1.get(REASON).and_then(|value| value.to_str().ok());
    let pausing = paused.then_some(Pausing { who: &asked_by, why });
    queue::set_paused(&api.store, &org, table, pausing, check).await?;
    if !paused {
        api.wake.notify_one();
    }
    shown(api, &org).await
}

/// Pause an org: nothing of it is begun until it is resumed. What runs goes on to its end.
#[utoipa::path(post, path = "/v1/orgs/{org}/pause", tag = "runs",
    params(("org" = String, Path, description = "The org's id."), DryRun),
    responses((status = 200, body = Schedules)))]
pub(super) async fn pause_org(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Administer)?;
    let subject = Subject { org, table: None, paused: true, dry_run: dry.wanted()? };
    set(&api, &who, subject).await
}

/// Resume an org.
#[utoipa::path(post, path = "/v1/orgs/{org}/resume", tag = "runs",
    params(("org" = String, Path, description = "The org's id."), DryRun),
    responses((status = 200, body = Schedules)))]
pub(super) async fn resume_org(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Administer)?;
    let subject = Subject { org, table: None, paused: false, dry_run: dry.wanted()? };
    set(&api, &who, subject).await
}

/// Pause one table.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables/{table}/pause", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), DryRun),
    responses((status = 200, body = Schedules)))]
pub(super) async fn pause_table(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let subject = Subject { org, table: Some(&table), paused: true, dry_run: dry.wanted()? };
    set(&api, &who, subject).await
}

/// Resume one table. Its org's pause is another.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables/{table}/resume", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), DryRun),
    responses((status = 200, body = Schedules)))]
pub(super) async fn resume_table(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let subject = Subject { org, table: Some(&table), paused: false, dry_run: dry.wanted()? };
    set(&api, &who, subject).await
}

/// How runs fare that read a source.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SourceRuns {
    source: String,
    paused: bool,
    /// Runs in a row that could not reach it.
    failures: i64,
    /// After several of them, no run begins before this time, and then one alone.
    #[schema(format = "date-time")]
    closed_until: Option<String>,
}

impl SourceRuns {
    fn of(state: SourceState, now_ms: i64) -> Self {
        let SourceState { source, paused, failures, open_until_ms } = state;
        let closed = open_until_ms > now_ms;
        let closed_until = closed.then(|| rfc3339(open_until_ms));
        Self { source, paused, failures, closed_until }
    }
}

/// The tag covers what runs and pauses change; that the source is tried again goes by itself.
fn tag_of_source(state: &SourceState) -> String {
    etag::of(&(&state.source, state.paused, state.failures, state.open_until_ms))
}

/// How a source is, also one of which nothing is known.
async fn state_of(api: &Api, source: &str) -> Reply<SourceState> {
    let known = queue::sources(&api.store).await?;
    let nothing = || SourceState { source: source.to_owned(), ..SourceState::default() };
    Ok(known.into_iter().find(|state| state.source == source).unwrap_or_else(nothing))
}

async fn shown_source(api: &Api, source: &str) -> Reply {
    let state = state_of(api, source).await?;
    let tag = tag_of_source(&state);
    let document = SourceRuns::of(state, api.store.now_ms());
    Ok(etag::tagged(answer(StatusCode::OK, &document), &tag))
}

async fn set_source(api: &Api, who: &Who, source: &str, (paused, dry_run): (bool, bool)) -> Reply {
    // Says which sources there are.
    api.app.source(source)?;
    let wanted = IfMatch::of(&who.1);
    let check = |now: &SourceState| wanted.check(&tag_of_source(now));
    if dry_run {
        check(&state_of(api, source).await?)?;
        return shown_source(api, source).await;
    }
    let principal = if who.0.principal.role().has(Right::Operate) {
        Principal::Operator
    } else {
        who.0.principal.clone()
    };
    queue::set_source_paused_if(&api.store, &principal, source, paused, check).await?;
    api.wake.notify_one();
    shown_source(api, source).await
}

/// How runs fare that read a source. Operators alone.
#[utoipa::path(get, path = "/v1/sources/{source}", operation_id = "read_source", tag = "sources",
    params(("source" = String, Path, description = "The source's name.")),
    responses((status = 200, body = SourceRuns)))]
pub(super) async fn read_source(
    State(api): State<Api>,
    who: Who,
    Named(source): Named<String>,
) -> Reply {
    who.require(Right::Operate)?;
    sources::check(&api, &source)?;
    shown_source(&api, &source).await
}

/// Pause a source: no run that reads it is begun, of whatever org. Operators alone.
#[utoipa::path(post, path = "/v1/sources/{source}/pause", tag = "sources",
    params(("source" = String, Path, description = "The source's name."), DryRun),
    responses((status = 200, body = SourceRuns)))]
pub(super) async fn pause_source(
    State(api): State<Api>,
    who: Who,
    Named(source): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    who.require(Right::Operate)?;
    set_source(&api, &who, &source, (true, dry.wanted()?)).await
}

/// Resume a source; one that was left alone after failures is tried at once, too. Operators alone.
#[utoipa::path(post, path = "/v1/sources/{source}/resume", tag = "sources",
    params(("source" = String, Path, description = "The source's name."), DryRun),
    responses((status = 200, body = SourceRuns)))]
pub(super) async fn resume_source(
    State(api): State<Api>,
    who: Who,
    Named(source): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    who.require(Right::Operate)?;
    set_source(&api, &who, &source, (false, dry.wanted()?)).await
}

/// Try a run again that failed for good, once its cause is mended.
#[utoipa::path(post, path = "/v1/orgs/{org}/runs/{run}/retry", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("run" = String, Path, description = "The run's id."), DryRun),
    responses((status = 202, body = Run), (status = 200, body = Run, description = "A dry run.")))]
pub(super) async fn retry(
    State(api): State<Api>,
    who: Who,
    Named((org, run)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    effective(&api, &org).await?;
    let id = Uuid::try_parse(&run).map_err(|_| no_run(&run))?;
    let wanted = IfMatch::of(&who.1);
    let check = |now: &QueuedRun| wanted.check(&runs::tag(&Run::from(now)));
    if dry.wanted()? {
        let found = queue::run(&api.store, &org, id).await?.ok_or_else(|| no_run(&run))?;
        check(&found)?;
        found.check_failed()?;
        return Ok(runs::shown(StatusCode::OK, &Run::from(&found)));
    }
    let again = queue::retry_if(&api.store, &org, id, check).await?;
    api.wake.notify_one();
    let mut run = Run::from(&again);
    waiting(&api.store, &org, from_mut(&mut run)).await?;
    Ok(runs::shown(StatusCode::ACCEPTED, &run))
}
