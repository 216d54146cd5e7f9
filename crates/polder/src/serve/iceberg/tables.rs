//! Tables and transactions.

use axum::body::Bytes;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use polder_core::Principal;
use polder_lake::service::{
    CommitRequest, CreateTableRequest, Loaded, LoadedTable, Recall, Refusal, RegisterRequest,
    SnapshotMode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::Target;
use super::paging::Paging;
use super::reply::{Failure, Reply, json_text, nothing, ok, parse};
use super::storage::{Access, hands_out_keys, keys};
use super::{As, Shared, etag, idempotency};

#[derive(Debug, Deserialize)]
pub(super) struct Snapshots {
    snapshots: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Purge {
    purge_requested: Option<String>,
}

impl Snapshots {
    fn mode(&self) -> Result<SnapshotMode, Refusal> {
        match self.snapshots.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("all") => Ok(SnapshotMode::All),
            Some("refs") => Ok(SnapshotMode::Refs),
            Some(other) => Err(Refusal::invalid(format!("Invalid snapshot mode: {other}"))),
        }
    }
}

/// The request behind an answer that holds a table.
pub(super) struct Asked {
    shared: Shared,
    principal: Principal,
    headers: HeaderMap,
    target: Target,
}

impl FromRequestParts<Shared> for Asked {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        let As(principal) = As::from_request_parts(parts, shared).await?;
        let target = Target::from_request_parts(parts, shared).await?;
        Ok(Self { shared: shared.clone(), principal, headers: parts.headers.clone(), target })
    }
}

impl Asked {
    async fn answer(&self, table: &LoadedTable, mode: SnapshotMode) -> Reply {
        let Self { shared, principal, headers, target } = self;
        let access = Access::of(shared, principal, headers, target, table).await?;
        let document = table.document(mode, &access.config, &access.credentials)?;
        let mut response = json_text(StatusCode::OK, document);
        if headers.contains_key(idempotency::HEADER) {
            let (namespace, name) = (target.namespace.clone(), target.name.clone());
            response.extensions_mut().insert(Shown { namespace, name, state: table.recall() });
        }
        Ok(match &table.metadata_location {
            Some(location) => etag::tagged(response, &etag::of(location, mode)),
            None => response,
        })
    }
}

/// The table that an answer holds, with nothing of what its client was given beside it. For whoever
/// keeps answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Shown {
    namespace: Vec<String>,
    name: String,
    state: Recall,
}

/// An answer again, with keys of now.
pub(super) async fn again(
    shared: &Shared,
    principal: Principal,
    headers: HeaderMap,
    shown: Shown,
) -> Reply {
    let Shown { namespace, name, state } = shown;
    let table = shared.catalog.table_again(&principal, &namespace, &name, state).await?;
    let target = Target { namespace, name };
    let asked = Asked { shared: shared.clone(), principal, headers, target };
    asked.answer(&table, SnapshotMode::All).await
}

pub(super) async fn list(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    Query(paging): Query<Paging>,
) -> Reply {
    let names = shared.catalog.list_tables(&principal, &target.namespace).await?;
    identifiers(&target.namespace, &paging, names)
}

/// A page of names.
pub(super) fn identifiers(namespace: &[String], paging: &Paging, names: Vec<String>) -> Reply {
    let page = paging.page(names)?;
    let one = |name: &String| json!({ "namespace": namespace, "name": name });
    let found: Vec<Value> = page.items.iter().map(one).collect();
    Ok(ok(&json!({ "identifiers": found, "next-page-token": page.next })))
}

pub(super) async fn create(mut asked: Asked, body: Bytes) -> Reply {
    let request: CreateTableRequest = parse(&body)?;
    asked.target.name.clone_from(&request.name);
    let (catalog, namespace) = (&asked.shared.catalog, &asked.target.namespace);
    let made = catalog.create_table(&asked.principal, namespace, request).await?;
    asked.answer(&made, SnapshotMode::All).await
}

pub(super) async fn register(mut asked: Asked, body: Bytes) -> Reply {
    let request: RegisterRequest = parse(&body)?;
    asked.target.name.clone_from(&request.name);
    let (catalog, namespace) = (&asked.shared.catalog, &asked.target.namespace);
    let made = catalog.register_table(&asked.principal, namespace, request).await?;
    asked.answer(&made, SnapshotMode::All).await
}

pub(super) async fn load(asked: Asked, Query(snapshots): Query<Snapshots>) -> Reply {
    let mode = snapshots.mode()?;
    let Asked { shared, principal, headers, target } = &asked;
    let (namespace, name) = (&target.namespace, &target.name);
    let has = |location: &str| {
        !hands_out_keys(shared, headers) && etag::client_has(headers, || etag::of(location, mode))
    };
    match shared.catalog.load_table(principal, namespace, name, has).await? {
        Loaded::Table(table) => asked.answer(&table, mode).await,
        Loaded::Unchanged { metadata_location } => {
            let tag = etag::of(&metadata_location, mode);
            Ok(etag::tagged(StatusCode::NOT_MODIFIED.into_response(), &tag))
        }
    }
}

/// Keys for the table's files, for clients that may have them.
pub(super) async fn credentials(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply {
    let (namespace, name) = (&target.namespace, &target.name);
    let found = shared.catalog.load_table(&principal, namespace, name, |_| false).await?;
    let mut given = Vec::new();
    if let Loaded::Table(table) = found
        && let Some(keys) = keys(&shared, &principal, &target, &table).await?
    {
        given.push(json!({ "prefix": table.location()?, "config": keys }));
    }
    Ok(ok(&json!({ "storage-credentials": given })))
}

pub(super) async fn exists(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply {
    shared.catalog.table_pointer(&principal, &target.namespace, &target.name).await?;
    Ok(nothing())
}

pub(super) async fn commit(asked: Asked, body: Bytes) -> Reply {
    let request: CommitRequest = parse(&body)?;
    let Asked { shared, principal, target, .. } = &asked;
    let (namespace, name) = (&target.namespace, &target.name);
    let made = shared.catalog.commit_table(principal, namespace, name, request).await?;
    asked.answer(&made, SnapshotMode::All).await
}

pub(super) async fn transaction(
    State(shared): State<Shared>,
    As(principal): As,
    body: Bytes,
) -> Reply {
    shared.catalog.commit_transaction(&principal, parse(&body)?).await?;
    Ok(nothing())
}

pub(super) async fn rename(State(shared): State<Shared>, As(principal): As, body: Bytes) -> Reply {
    shared.catalog.rename_table(&principal, parse(&body)?).await?;
    Ok(nothing())
}

pub(super) async fn drop(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    Query(purge): Query<Purge>,
) -> Reply<Response> {
    let purge = purge.purge_requested.is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let (namespace, name) = (&target.namespace, &target.name);
    shared.catalog.drop_table(&principal, namespace, name, purge).await?;
    Ok(nothing())
}

/// What a client measured while scanning or committing.
pub(super) async fn metrics(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Report {
        report_type: String,
    }
    let report: Report = parse(&body)?;
    let (namespace, name) = (&target.namespace, &target.name);
    shared.catalog.table_pointer(&principal, namespace, name).await?;
    tracing::debug!(kind = report.report_type, bytes = body.len(), "a client's metrics report");
    Ok(nothing())
}
