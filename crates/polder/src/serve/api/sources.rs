//! Sources, to look at: they are defined in `polder.toml`, by operators.

use axum::extract::State;
use axum::http::StatusCode;
use polder_core::spec::SourceSpec;
use polder_core::{Error, ErrorCode, Right, SourceTable};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::gate::Who;
use super::paging::{Named, answer};
use super::problem::Reply;
use super::resolve::{self, CursorCandidate, PartitionSuggestion};

/// An outside system. Its address is the operator's.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Source {
    name: String,
    /// `postgres`, `mongodb` or `files`.
    kind: &'static str,
}

/// A table that a source offers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OfferedTable {
    /// As `from` of a table spec takes it.
    name: String,
    /// `table`, `view`, `collection`, `files`, …
    kind: String,
    /// The primary key's columns.
    key: Vec<String>,
    /// Columns that can serve as cursor, best first.
    cursors: Vec<CursorCandidate>,
    /// Null where no column says when a row was made, or nobody knows how many rows there are.
    partition: Option<PartitionSuggestion>,
    /// The source's estimate, over all orgs; for operators alone.
    rows_estimated: Option<u64>,
    columns: Vec<OfferedColumn>,
}

/// A column that a source offers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OfferedColumn {
    name: String,
    #[serde(rename = "type")]
    data_type: String,
    nullable: bool,
}

impl From<SourceTable> for OfferedTable {
    fn from(table: SourceTable) -> Self {
        let (cursors, partition) = (resolve::cursors(&table), resolve::partition(&table));
        let columns = table.schema.fields.into_iter().map(|field| OfferedColumn {
            data_type: field.data_type.to_string(),
            nullable: field.nullable,
            name: field.name,
        });
        Self {
            name: table.name,
            kind: table.kind.to_owned(),
            key: table.key,
            cursors,
            partition,
            rows_estimated: table.rows_estimated,
            columns: columns.collect(),
        }
    }
}

/// List the sources.
#[utoipa::path(get, path = "/v1/sources", operation_id = "list_sources", tag = "sources",
    responses((status = 200, body = Vec<Source>)))]
pub(super) async fn list(State(api): State<Api>, _: Who) -> Reply {
    let sources = api.app.config.process.sources.iter();
    let shown = sources.map(|(name, spec)| Source { name: name.clone(), kind: spec.kind() });
    Ok(answer(StatusCode::OK, &shown.collect::<Vec<_>>()))
}

/// # Errors
/// 404 for a source that is not configured.
pub(super) fn check(api: &Api, source: &str) -> Reply<()> {
    if api.app.config.process.sources.contains_key(source) {
        return Ok(());
    }
    let error = Error::new(ErrorCode::ControlNotFound, format!("there is no source {source:?}"));
    Err(error.hint("GET /v1/sources lists them").into())
}

/// List the tables that a source offers. Of a source of files, operators alone.
#[utoipa::path(get, path = "/v1/sources/{source}/tables", tag = "sources",
    params(("source" = String, Path, description = "The source's name.")),
    responses((status = 200, body = Vec<OfferedTable>)))]
pub(super) async fn discover(
    State(api): State<Api>,
    who: Who,
    Named(source): Named<String>,
) -> Reply {
    check(&api, &source)?;
    let operator = who.0.principal.role().has(Right::Operate);
    if matches!(api.app.config.process.sources.get(&source), Some(SourceSpec::Files(_))) {
        // Names of folders may be other orgs' ids.
        who.require(Right::Operate)?;
    }
    let offered = api.app.source(&source)?.discover().await?;
    let mut shown: Vec<OfferedTable> = offered.into_iter().map(OfferedTable::from).collect();
    for table in shown.iter_mut().filter(|_| !operator) {
        table.rows_estimated = None;
    }
    Ok(answer(StatusCode::OK, &shown))
}
