//! Namespaces.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::names::{SEPARATOR, Target, levels};
use super::paging::Paging;
use super::reply::{Reply, nothing, ok, parse};
use super::{As, Shared};

#[derive(Debug, Deserialize)]
pub(super) struct Below {
    parent: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    As(principal): As,
    Query(below): Query<Below>,
    Query(paging): Query<Paging>,
) -> Reply {
    let parent = below.parent.filter(|text| !text.is_empty()).map(|text| levels(&text));
    let found = shared.catalog.list_namespaces(&principal, parent.as_deref()).await?;
    let joined = found.iter().map(|levels| levels.join(&SEPARATOR.to_string())).collect();
    let page = paging.page(joined)?;
    let found: Vec<Vec<String>> = page.items.iter().map(|text| levels(text)).collect();
    Ok(ok(&json!({ "namespaces": found, "next-page-token": page.next })))
}

pub(super) async fn create(State(shared): State<Shared>, As(principal): As, body: Bytes) -> Reply {
    Ok(ok(&shared.catalog.create_namespace(&principal, parse(&body)?).await?))
}

pub(super) async fn load(State(shared): State<Shared>, As(principal): As, target: Target) -> Reply {
    Ok(ok(&shared.catalog.load_namespace(&principal, &target.namespace).await?))
}

pub(super) async fn exists(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply {
    shared.catalog.load_namespace(&principal, &target.namespace).await?;
    Ok(nothing())
}

pub(super) async fn drop(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
) -> Reply<Response> {
    shared.catalog.drop_namespace(&principal, &target.namespace).await?;
    Ok(nothing())
}

pub(super) async fn update_properties(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    let namespace = &target.namespace;
    let update = parse(&body)?;
    Ok(ok(&shared.catalog.update_namespace_properties(&principal, namespace, update).await?))
}
