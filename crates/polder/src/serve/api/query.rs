//! `POST /v1/query`: one SELECT, answered as the `Accept` header asks.
//!
//! It reads as `polder query` does, for whom the key is: names of others do not exist.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use polder_core::{Engine, Error, ErrorCode, QueryStream, Result, Right, Session};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Api;
use super::gate::Who;
use super::paging::{Body, answer};
use super::problem::{Problem, Reply};
use crate::caps::Caps;

/// Rows of a JSON answer if nothing is said, and at most: it is one document.
const JSON_ROWS: u64 = 10_000;
const JSON_ROWS_MAX: u64 = 100_000;
/// Bytes of its batches in memory.
const JSON_BYTES_MAX: usize = 128 << 20;
/// How long a JSON answer may take.
const TIME_MAX: Duration = Duration::from_mins(5);
const ARROW: &str = "application/vnd.apache.arrow.stream";
const CSV: &str = "text/csv";
const JSON: &str = "application/json";

/// A query.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryRequest {
    /// One SELECT over `lake.org_<id>.<table>`; a key of one org may leave out all but the table.
    sql: String,
    /// Fail if the answer has more rows; a JSON answer has 10,000 without it and 100,000 at most. A JSON
    /// answer to an agent's key has 1,000 without it and 10,000 at most, and leaves out the rows after them.
    #[serde(default)]
    rows_max: Option<u64>,
    /// Who answers: Polder itself when absent.
    #[serde(default)]
    engine: Option<QueryEngine>,
}

/// Who answers a query.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum QueryEngine {
    /// Polder itself.
    Embedded,
    /// The Trino of `[trino]`, in its own SQL: for the operator alone.
    Trino,
}

/// A column of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AnswerColumn {
    name: String,
    /// The Arrow type.
    #[serde(rename = "type")]
    data_type: String,
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueryAnswer {
    columns: Vec<AnswerColumn>,
    /// One array a row, in the columns' order. Decimals are texts, so that no digit is lost.
    #[schema(value_type = Vec<Vec<Value>>)]
    rows: Vec<Value>,
    /// Rows were left out: to an agent's key alone, where others get an error.
    truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Arrow,
    Csv,
}

/// Answer one SQL query.
///
/// By `Accept`: JSON, an Arrow IPC stream (`application/vnd.apache.arrow.stream`) or CSV (`text/csv`). The
/// last two are sent as they are computed: an error after their first rows ends them early. An answer to an
/// agent's key has 10,000 rows and 1 MiB at most, and takes 30 seconds at most.
#[utoipa::path(post, path = "/v1/query", tag = "lake", request_body = QueryRequest,
    responses((status = 200, description = "The rows.", content(
        (QueryAnswer = "application/json"),
        (Vec<u8> = "application/vnd.apache.arrow.stream"),
        (String = "text/csv"),
    ))))]
pub(super) async fn query(
    State(api): State<Api>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    who.require(Right::Read)?;
    let format = wanted(&headers)?;
    let request: QueryRequest = body.parse()?;
    if let Some(caps) = Caps::of(who.0.principal.role()) {
        return Box::pin(capped(&api, &who, (format, &request), caps)).await;
    }
    let rows_max = match (format, request.rows_max) {
        (Format::Json, None) => Some(JSON_ROWS),
        (Format::Json, Some(rows)) if rows > JSON_ROWS_MAX => {
            let text = format!("a JSON answer has {JSON_ROWS_MAX} rows at most: ask for {ARROW}");
            return Err(Problem::invalid(text));
        }
        (_, rows) => rows,
    };
    let engine = engine(&api, &request)?;
    let found = engine.query(&request.sql, &session(&api, &who, rows_max)).await?;
    match format {
        Format::Json => {
            let document = tokio::time::timeout(TIME_MAX, whole(found)).await.map_err(|_| {
                let message = format!("the query took longer than {} s", TIME_MAX.as_secs());
                Error::new(ErrorCode::QueryLimit, message).hint("filter or aggregate")
            })??;
            Ok(answer(StatusCode::OK, &document))
        }
        Format::Arrow => Ok(streamed(ARROW, begun(arrow(found)?).await?)),
        Format::Csv => Ok(streamed(CSV, begun(csv(found)).await?)),
    }
}

/// Who is to answer.
fn engine<'a>(api: &'a Api, request: &QueryRequest) -> Result<&'a dyn Engine> {
    match (request.engine, &api.trino) {
        (None | Some(QueryEngine::Embedded), _) => Ok(&*api.engine),
        (Some(QueryEngine::Trino), Some(trino)) => Ok(&**trino),
        (Some(QueryEngine::Trino), None) => Err(crate::app::no_trino()),
    }
}

fn session(api: &Api, who: &Who, rows_max: Option<u64>) -> Session {
    Session {
        principal: who.0.principal.clone(),
        rows_max,
        memory_bytes_max: api.app.config.process.limits.query_memory_mb << 20,
        snapshots: BTreeMap::default(),
        pushdown: true,
    }
}

/// An answer to somebody who has caps of their own. JSON ends with the last row that is within them, and says so;
/// a stream that would be larger fails.
async fn capped(
    api: &Api,
    who: &Who,
    (format, request): (Format, &QueryRequest),
    caps: Caps,
) -> Reply {
    let rows_max = match (format, request.rows_max) {
        (Format::Arrow | Format::Csv, None) => caps.rows_max,
        (_, said) => caps.rows(said)?,
    };
    let most = (format != Format::Json).then_some(rows_max as u64);
    let deadline = Instant::now() + caps.time_max;
    let session = session(api, who, most);
    let engine = engine(api, request)?;
    let work = async {
        let found = engine.query(&request.sql, &session).await?;
        let (kind, bytes) = match format {
            Format::Json => {
                return Ok(answer(StatusCode::OK, &first(found, rows_max, caps.bytes_max).await?));
            }
            Format::Arrow => (ARROW, arrow(found)?),
            Format::Csv => (CSV, csv(found)),
        };
        Ok::<_, Error>(streamed(kind, begun(within(bytes, caps, deadline)).await?))
    };
    let done: Result<Response> =
        tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(caps.too_long()));
    Ok(done?)
}

/// The first rows, as many as there may be.
async fn first(mut found: QueryStream, rows_max: usize, bytes_max: usize) -> Result<QueryAnswer> {
    let columns = columns(&found);
    let (mut rows, mut bytes, mut truncated) = (Vec::new(), 0, false);
    'batches: while let Some(batch) = found.batches.try_next().await? {
        // One more than there may be shows that there are more.
        let few = batch.slice(0, batch.num_rows().min(rows_max + 1 - rows.len()));
        for row in crate::answer::arrays(&few)? {
            bytes += row.to_string().len();
            if rows.len() == rows_max || bytes > bytes_max {
                truncated = true;
                break 'batches;
            }
            rows.push(row);
        }
    }
    Ok(QueryAnswer { columns, rows, truncated })
}

/// The same bytes, until they are too many or it is too late: then an error, and no end mark.
fn within(bytes: Bytes, caps: Caps, deadline: Instant) -> Bytes {
    let next = move |(mut bytes, sent): (Bytes, usize)| async move {
        let part = tokio::time::timeout_at(deadline, bytes.try_next()).await;
        let Some(part) = part.unwrap_or_else(|_| Err(caps.too_long()))? else { return Ok(None) };
        let sent = sent + part.len();
        if sent > caps.bytes_max {
            return Err(caps.too_large());
        }
        Ok(Some((part, (bytes, sent))))
    };
    futures::stream::try_unfold((bytes, 0), next).boxed()
}

fn columns(found: &QueryStream) -> Vec<AnswerColumn> {
    let columns = found.schema.fields().iter().map(|field| AnswerColumn {
        name: field.name().clone(),
        data_type: field.data_type().to_string(),
    });
    columns.collect()
}

/// What the client takes, the first of its list that is known.
fn wanted(headers: &HeaderMap) -> Reply<Format> {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let Some(accepted) = accepted else { return Ok(Format::Json) };
    let kinds = accepted.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
    let known = |kind: &str| match kind {
        ARROW => Some(Format::Arrow),
        CSV => Some(Format::Csv),
        JSON | "application/*" | "*/*" | "" => Some(Format::Json),
        _ => None,
    };
    let mut kinds = kinds;
    kinds.find_map(known).ok_or_else(|| {
        Problem::invalid(format!("answers are {JSON}, {ARROW} or {CSV}, and not {accepted:?}"))
    })
}

async fn whole(mut found: QueryStream) -> Result<QueryAnswer> {
    let columns = columns(&found);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = found.batches.try_next().await? {
        bytes += crate::answer::bytes(&batch);
        if bytes > JSON_BYTES_MAX {
            let message = format!("a JSON answer has {} MiB of rows at most", JSON_BYTES_MAX >> 20);
            return Err(Error::new(ErrorCode::QueryLimit, message)
                .hint(format!("name the columns that are needed, or ask for {ARROW}")));
        }
        rows.extend(crate::answer::arrays(&batch)?);
    }
    Ok(QueryAnswer { columns, rows, truncated: false })
}

type Bytes = futures::stream::BoxStream<'static, Result<Vec<u8>, Error>>;

/// With its first rows: what fails before them is told by a status, and not by an answer cut short.
async fn begun(mut bytes: Bytes) -> Result<Bytes> {
    let mut first = Vec::new();
    // The header line of CSV comes by itself.
    while first.len() < 2
        && let Some(part) = bytes.try_next().await?
    {
        first.push(Ok(part));
    }
    Ok(futures::stream::iter(first).chain(bytes).boxed())
}

fn streamed(kind: &'static str, bytes: Bytes) -> Response {
    let told = bytes.inspect_err(|error| tracing::warn!("an answer was cut off: {error}"));
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], Stream::from_stream(told)).into_response()
}

fn written<T>(outcome: std::result::Result<T, ArrowError>) -> Result<T> {
    outcome.map_err(crate::answer::failed)
}

/// The schema, the batches, and the end mark, without which a reader knows that some are missing.
fn arrow(found: QueryStream) -> Result<Bytes> {
    let writer = written(StreamWriter::try_new(Vec::new(), &found.schema))?;
    let begun = (Some(writer), found.batches);
    let bytes = futures::stream::try_unfold(begun, async |(writer, mut batches)| {
        let Some(mut writer) = writer else { return Ok(None) };
        match batches.try_next().await? {
            Some(batch) => {
                written(writer.write(&batch))?;
                let bytes = std::mem::take(writer.get_mut());
                Ok(Some((bytes, (Some(writer), batches))))
            }
            None => Ok(Some((written(writer.into_inner())?, (None, batches)))),
        }
    });
    Ok(bytes.boxed())
}

/// RFC 4180 with a header line, also without rows.
fn csv(found: QueryStream) -> Bytes {
    let lines = |batch: &RecordBatch, header: bool| {
        let mut text = Vec::new();
        let mut writer = arrow::csv::WriterBuilder::new().with_header(header).build(&mut text);
        written(writer.write(&crate::cli::flat(batch)?))?;
        drop(writer);
        Ok(text)
    };
    let first = lines(&RecordBatch::new_empty(found.schema), true);
    let rest = found.batches.map(move |batch| lines(&batch?, false));
    futures::stream::once(async { first }).chain(rest).boxed()
}
