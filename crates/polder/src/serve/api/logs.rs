//! What a run said of itself, line by line.

use axum::extract::State;
use axum::http::StatusCode;
use polder_control::run_logs::{self, Line};
use polder_control::runs as records;
use polder_core::Right;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Named, Paging, Params, answer, cursor, numbered};
use super::problem::Reply;
use super::runs::{Run, no_run};
use crate::output::rfc3339;

/// One line of a run's log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogLine {
    /// RFC 3339.
    #[schema(format = "date-time")]
    at: String,
    /// `error`, `warn` or `info`.
    level: String,
    message: String,
    /// What else is known: counts, codes and names.
    #[schema(value_type = Object)]
    fields: Value,
}

/// A page of a run's log, the oldest line first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunLog {
    table: String,
    items: Vec<LogLine>,
    /// Null once the run has ended and all its lines were given; while it goes on, more may come there.
    next_cursor: Option<String>,
}

impl From<Line> for LogLine {
    fn from(line: Line) -> Self {
        Self {
            at: rfc3339(line.at_ms),
            level: line.level,
            message: line.message,
            fields: serde_json::from_str(&line.fields).unwrap_or_default(),
        }
    }
}

/// Read a run's log, the oldest line first: of its attempts together the newest 1,000 lines, for as long as
/// the run is listed and for 30 days at most.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs/{run}/logs", operation_id = "read_run_log",
    tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("run" = String, Path, description = "The run's id."), Paging),
    responses((status = 200, body = RunLog)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named((org, run)): Named<(String, String)>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let (limit, after) = (paging.limit()?, numbered(&paging.after()?)?);
    let id = Uuid::try_parse(&run).map_err(|_| no_run(&run))?;
    // Before its lines: of a run that has ended there are none to come.
    let record = records::find(&api.store, &org, id).await?.ok_or_else(|| no_run(&run))?;
    let mut lines = run_logs::page(&api.store, &org, id, after, limit as u16 + 1).await?;
    let more = lines.len() > limit;
    lines.truncate(limit);
    let last = lines.last().map(|line| line.seq).or(after);
    let next = more || !Run::from(&record).has_ended();
    let shown = RunLog {
        table: record.table,
        items: lines.into_iter().map(LogLine::from).collect(),
        next_cursor: next.then(|| cursor(&last.unwrap_or(-1).to_string())),
    };
    Ok(answer(StatusCode::OK, &shown))
}
