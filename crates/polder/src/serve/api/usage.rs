//! What an org uses by day, what is left of its limits today, and what its runs hold at the moment.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use polder_control::usage::{self, DAY_MS, DAYS_KEPT, Used};
use polder_core::spec::OrgLimits;
use polder_core::{OrgId, Right};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Named, Params, answer};
use super::problem::{Problem, Reply};
use crate::app::App;
use crate::output::rfc3339;

/// Days that are told of when the client does not say how many.
const DAYS: u16 = 30;

/// What an org has used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    org: String,
    /// The newest first; days without a run that succeeded are left out.
    items: Vec<UsedDay>,
    limits: DayLimits,
    now: Held,
}

/// What an org's runs hold at the moment in the server that answers, and the most that they may. Other
/// servers have memory and connections of their own.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Held {
    /// MB, rounded up.
    memory_mb: usize,
    /// The org's limit, or the server's for all orgs where that is less or there is none.
    memory_mb_max: usize,
    /// Open connections by the source's name.
    connections: BTreeMap<String, usize>,
    /// The most to any one source; null where the org has no limit.
    connections_max: Option<u32>,
}

/// What an org used in one day.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsedDay {
    /// Year, month and day in UTC: `2027-01-15`.
    day: String,
    /// Runs that succeeded, of all kinds: of servers and of `polder run`.
    runs: u64,
    /// Rows that they read from sources.
    rows: u64,
    /// Bytes that they wrote into the lake.
    bytes: u64,
}

/// An org's limits of a day; null where there is none.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DayLimits {
    rows_per_day: Option<u64>,
    /// Rows until it is reached today.
    rows_left: Option<u64>,
    bytes_per_day: Option<u64>,
    bytes_left: Option<u64>,
    /// One of them is reached: ingestions that have not begun wait. Validation and maintenance go on.
    reached: bool,
    /// RFC 3339: when the next day begins, and everything is left again.
    #[schema(format = "date-time")]
    begins_anew_at: String,
}

/// Which days.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Days {
    /// So many days, today among them; 30 when absent.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 400)]
    days: Option<String>,
}

impl Days {
    fn wanted(&self) -> Reply<u16> {
        let Some(text) = &self.days else { return Ok(DAYS) };
        let days =
            text.parse::<u16>().ok().filter(|days| (1..=DAYS_KEPT).contains(&i64::from(*days)));
        days.ok_or_else(|| {
            Problem::invalid(format!("days has to be a number from 1 to {DAYS_KEPT}"))
        })
    }
}

impl From<&Used> for UsedDay {
    fn from(used: &Used) -> Self {
        let mut day = rfc3339(used.day * DAY_MS);
        day.truncate("2027-01-15".len());
        Self { day, runs: used.runs, rows: used.rows, bytes: used.bytes }
    }
}

impl Held {
    fn of(app: &App, org: &OrgId, limits: &OrgLimits) -> Self {
        Self {
            memory_mb: app.room.held_mb(org),
            memory_mb_max: app.room.most_mb(limits),
            connections: app.connections.of_org(org),
            connections_max: limits.connections,
        }
    }
}

impl DayLimits {
    fn of(limits: &OrgLimits, days: &[Used], now_ms: i64) -> Self {
        let today = days.first().filter(|used| used.day == usage::day(now_ms));
        let (rows, bytes) = today.map_or((0, 0), |used| (used.rows, used.bytes));
        let bytes_per_day = limits.bytes_per_day.map(|most| most.0);
        let rows_left = limits.rows_per_day.map(|most| most.saturating_sub(rows));
        let bytes_left = bytes_per_day.map(|most| most.saturating_sub(bytes));
        Self {
            rows_per_day: limits.rows_per_day,
            rows_left,
            bytes_per_day,
            bytes_left,
            reached: rows_left == Some(0) || bytes_left == Some(0),
            begins_anew_at: rfc3339(usage::next_day_ms(now_ms)),
        }
    }
}

/// What an org has used by day (UTC), what is left of its limits today, and what its runs hold at the
/// moment.
#[utoipa::path(get, path = "/v1/orgs/{org}/usage", operation_id = "read_usage", tag = "orgs",
    params(("org" = String, Path, description = "The org's id."), Days),
    responses((status = 200, body = Usage)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(days): Params<Days>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let (effective, days) = (effective(&api, &org).await?, days.wanted()?);
    let used = usage::of_org(&api.store, &org, days).await?;
    let shown = Usage {
        org: org.get().to_string(),
        items: used.iter().map(UsedDay::from).collect(),
        limits: DayLimits::of(&effective.limits, &used, api.store.now_ms()),
        now: Held::of(&api.app, org.get(), &effective.limits),
    };
    Ok(answer(StatusCode::OK, &shown))
}
