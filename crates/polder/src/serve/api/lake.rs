//! What the lake has of a table: state, columns, a few rows, versions; and going back to one.

use axum::extract::State;
use axum::http::StatusCode;
use futures::TryStreamExt;
use polder_core::validation::Verdict;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result, Right};
use polder_lake::{LakeTable, Predicate, ScanRequest, Version};
use polder_pipeline::{LastVerdict, Verdicts, verdicts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor, numbered};
use super::problem::{Problem, Reply};
use super::tables;
use crate::output::rfc3339;

/// Rows of a sample when the client does not say how many, and at most.
const SAMPLE_ROWS: usize = 10;
const SAMPLE_ROWS_MAX: usize = 100;

/// The current state; empty before the first run.
#[derive(Debug, Default)]
pub(super) struct LakeState {
    pub(super) version: Option<String>,
    pub(super) snapshot: Option<i64>,
    pub(super) rows: Option<u64>,
    /// Milliseconds since the epoch.
    pub(super) updated_ms: Option<i64>,
    pub(super) validation: Option<TableVerdict>,
}

/// What the last validation said.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableVerdict {
    /// `verified`, `warning`, `stale` or `failed`.
    #[schema(value_type = String)]
    verdict: Verdict,
    /// It was said of the table as it is now; else of an earlier state.
    current: bool,
    version: Option<String>,
    snapshot: Option<i64>,
    /// RFC 3339.
    #[schema(format = "date-time")]
    validated_at: String,
}

impl TableVerdict {
    pub(super) fn of((said, current): (&LastVerdict, bool)) -> Self {
        Self {
            verdict: said.verdict,
            current,
            version: said.version.clone(),
            snapshot: said.snapshot_id,
            validated_at: rfc3339(said.at_ms),
        }
    }
}

/// What validations have said of a table.
async fn said(api: &Api, org: &Authorized<OrgId>, table: &str) -> Result<Verdicts> {
    let mut found = verdicts(&api.lake, Some((org, Some(table)))).await?;
    Ok(found.remove(&(org.get().to_string(), table.to_owned())).unwrap_or_default())
}

pub(super) async fn lake_state(
    api: &Api,
    org: &Authorized<OrgId>,
    table: &str,
) -> Result<LakeState> {
    let Some(table) = api.lake.table(org, table).await? else { return Ok(LakeState::default()) };
    let said = said(api, org, table.name()).await?;
    let current = table.versions().into_iter().find(|version| version.current);
    let snapshot = table.current_snapshot();
    Ok(LakeState {
        version: current.map(|version| format!("v{}", version.number)),
        snapshot: snapshot.as_ref().map(|snapshot| snapshot.id),
        rows: snapshot.as_ref().and_then(|snapshot| snapshot.rows),
        validation: said.of(snapshot.as_ref().map(|found| found.id)).map(TableVerdict::of),
        updated_ms: snapshot.map(|snapshot| snapshot.timestamp_ms),
    })
}

/// The lake table that a path names. Tables that left the pipeline can still be looked at.
async fn find(api: &Api, org: &Authorized<OrgId>, name: &str) -> Reply<LakeTable> {
    effective(api, org).await?;
    of_lake(api, org, name).await
}

async fn of_lake(api: &Api, org: &Authorized<OrgId>, name: &str) -> Reply<LakeTable> {
    let found = api.lake.table(org, name).await?;
    found.ok_or_else(|| {
        let message = format!("the lake has no table {name:?} of org {}", org.get());
        let error = Error::new(ErrorCode::LakeNotFound, message);
        error.hint("the first run makes it: POST /v1/orgs/{org}/runs").into()
    })
}

/// A column of a lake table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Column {
    name: String,
    /// In Iceberg's notation.
    #[serde(rename = "type")]
    data_type: String,
    nullable: bool,
}

/// The columns of a lake table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Schema {
    columns: Vec<Column>,
    /// How new files are partitioned.
    partition: Vec<String>,
}

/// Read a lake table's columns.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/schema", tag = "lake",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name.")),
    responses((status = 200, body = Schema)))]
pub(super) async fn schema(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
) -> Reply {
    let table = find(&api, &who.org(&org, Right::Read)?, &table).await?;
    let columns = table.schema().fields.into_iter().map(|field| Column {
        data_type: field.data_type.to_string(),
        nullable: field.nullable,
        name: field.name,
    });
    let document = Schema {
        columns: columns.collect(),
        partition: table.partition().iter().map(ToString::to_string).collect(),
    };
    Ok(answer(StatusCode::OK, &document))
}

/// How many rows to show.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SampleSize {
    /// At most so many rows.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 100)]
    rows: Option<String>,
}

/// Some rows of a lake table, in no order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sample {
    snapshot: Option<i64>,
    #[schema(value_type = Vec<Object>)]
    rows: Vec<Value>,
}

/// Read a few rows of a lake table.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/sample", tag = "lake",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), SampleSize),
    responses((status = 200, body = Sample)))]
pub(super) async fn sample(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(size): Params<SampleSize>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let wanted = size.rows.as_deref().map_or(Some(SAMPLE_ROWS), |text| text.parse().ok());
    let wanted = wanted.filter(|rows| (1..=SAMPLE_ROWS_MAX).contains(rows)).ok_or_else(|| {
        Problem::invalid(format!("rows has to be a number from 1 to {SAMPLE_ROWS_MAX}"))
    })?;
    let table = find(&api, &org, &table).await?;
    let snapshot = table.current_snapshot().map(|snapshot| snapshot.id);
    let scan = ScanRequest { snapshot, filter: Predicate::True, columns: None };
    let mut batches = table.read(scan).await?;
    let mut rows = Vec::new();
    let mut missing = wanted;
    // Dropping the stream stops the read.
    while missing > 0
        && let Some(batch) = batches.try_next().await?
    {
        let part = batch.slice(0, batch.num_rows().min(missing));
        missing -= part.num_rows();
        rows.extend(crate::answer::objects(&part)?);
    }
    Ok(answer(StatusCode::OK, &Sample { snapshot, rows }))
}

/// A published state of a table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableVersion {
    /// `v1`, `v2`, …
    version: String,
    /// The table's rows are this version's, and what runs have added to it since.
    current: bool,
    snapshot: i64,
    /// RFC 3339.
    #[schema(format = "date-time")]
    published_at: String,
    rows: Option<u64>,
    #[schema(value_type = Option<String>, format = "uuid")]
    run: Option<Uuid>,
    /// What was last said of the version, in whichever state it was then.
    validation: Option<TableVerdict>,
}

/// A page of versions, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TableVersions {
    items: Vec<TableVersion>,
    next_cursor: Option<String>,
}

/// The tag of a table's state in the lake: of the snapshot that is current, and the versions there are.
fn state_tag(table: &LakeTable) -> String {
    let snapshot = table.current_snapshot().map(|snapshot| snapshot.id);
    let numbers: Vec<_> = table.versions().iter().map(|version| version.number).collect();
    etag::of(&(snapshot, numbers))
}

/// List the published versions of a table, oldest first. The `ETag` is of all of them and of the state that
/// is current: `rollback` takes it.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/versions", tag = "lake",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), Paging),
    responses((status = 200, body = TableVersions)))]
pub(super) async fn versions(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let (limit, after) = (paging.limit()?, numbered(&paging.after()?)?);
    let table = find(&api, &org, &table).await?;
    let (said, now) = (said(&api, &org, table.name()).await?, table.current_snapshot());
    let now = now.map(|snapshot| snapshot.id);
    let told = |name: &str| {
        let found = said.of_version(name)?;
        Some(TableVerdict::of((found, found.snapshot_id == now)))
    };
    let all = table.versions();
    let number = |version: &Version| i64::try_from(version.number).unwrap_or(i64::MAX);
    let mut rest = all.into_iter().filter(|one| after.is_none_or(|last| number(one) > last));
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    let last = page.last().filter(|_| more).map(|version| cursor(&version.number.to_string()));
    let versions = page.into_iter().map(|version| TableVersion {
        validation: told(&format!("v{}", version.number)),
        version: format!("v{}", version.number),
        current: version.current,
        snapshot: version.snapshot.id,
        published_at: rfc3339(version.snapshot.timestamp_ms),
        rows: version.snapshot.rows,
        run: version.snapshot.run_id,
    });
    let shown = TableVersions { items: versions.collect(), next_cursor: last };
    Ok(etag::tagged(answer(StatusCode::OK, &shown), &state_tag(&table)))
}

/// Where to go back to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackRequest {
    /// A version (`v3`), another tag, or a snapshot's id.
    to: String,
}

/// A table after a rollback.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RolledBack {
    /// The snapshot that is current now; in a dry run, that would be.
    snapshot: i64,
    /// The tag that keeps the state before; null if the table was there already, and in a dry run.
    kept_as: Option<String>,
    dry_run: bool,
}

/// Make an older version of a table the current one. `If-Match` takes the `ETag` of its versions, and that
/// of the table.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables/{table}/rollback", tag = "lake",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), DryRun),
    request_body = RollbackRequest, responses((status = 200, body = RolledBack)))]
pub(super) async fn rollback(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let (dry_run, request) = (dry.wanted()?, body.parse::<RollbackRequest>()?);
    let effective = effective(&api, &org).await?;
    let found = of_lake(&api, &org, &table).await?;
    let (wanted, state) = (IfMatch::of(&who.1), state_tag(&found));
    let spec = effective.table(&table).map(tables::tag);
    let tags = [Some(&state), spec.as_ref()].into_iter().flatten().map(String::as_str);
    wanted.check_any(&tags.collect::<Vec<_>>())?;
    if dry_run {
        let snapshot = found.resolve(&request.to)?;
        return Ok(answer(StatusCode::OK, &RolledBack { snapshot, kept_as: None, dry_run }));
    }
    let id = Uuid::new_v4();
    let from = found.current_snapshot().map(|snapshot| snapshot.id);
    // What was looked at is what is left behind, or nothing is done.
    let done = match from.filter(|_| wanted.names(&state)) {
        Some(from) => {
            Box::pin(api.lake.rollback_from(&org, &table, (from, &request.to), id)).await?
        }
        None => Box::pin(api.lake.rollback(&org, &table, &request.to, id)).await?,
    };
    let kept_as = done.done.map(|rollback| rollback.kept_as);
    Ok(answer(StatusCode::OK, &RolledBack { snapshot: done.snapshot_id, kept_as, dry_run }))
}
