//! Views.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::Response;
use polder_lake::service::{CommitRequest, CreateViewRequest, RegisterRequest};

use super::names::Target;
use super::paging::Paging;
use super::reply::{Reply, nothing, ok, parse};
use super::tables::identifiers;
use super::{As, Shared};

pub(super) async fn list(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    Query(paging): Query<Paging>,
) -> Reply {
    let names = shared.catalog.list_views(&principal, &target.namespace).await?;
    identifiers(&target.namespace, &paging, names)
}

pub(super) async fn create(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    let request: CreateViewRequest = parse(&body)?;
    let made = shared.catalog.create_view(&principal, &target.namespace, request).await?;
    Ok(ok(&made.document()?))
}

pub(super) async fn register(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    let request: RegisterRequest = parse(&body)?;
    let made = shared.catalog.register_view(&principal, &target.namespace, request).await?;
    Ok(ok(&made.document()?))
}

pub(super) async fn load(State(shared): State<Shared>, As(principal): As, target: Target) -> Reply {
    let found = shared.catalog.load_view(&principal, &target.namespace, &target.name).await?;
    Ok(ok(&found.document()?))
}

pub(super) async fn exists(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply {
    shared.catalog.view_exists(&principal, &target.namespace, &target.name).await?;
    Ok(nothing())
}

pub(super) async fn commit(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    let request: CommitRequest = parse(&body)?;
    let (namespace, name) = (&target.namespace, &target.name);
    let made = shared.catalog.commit_view(&principal, namespace, name, request).await?;
    Ok(ok(&made.document()?))
}

pub(super) async fn rename(State(shared): State<Shared>, As(principal): As, body: Bytes) -> Reply {
    shared.catalog.rename_view(&principal, parse(&body)?).await?;
    Ok(nothing())
}

pub(super) async fn drop(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply<Response> {
    shared.catalog.drop_view(&principal, &target.namespace, &target.name).await?;
    Ok(nothing())
}
