//! `/mcp`: the Model Context Protocol over streamable HTTP, with the keys and roles of the API.
//!
//! There are no sessions: every request shows its key, and is answered for whom that is. So nobody can
//! take over what another one began.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::Response;
use axum::routing::any;
use polder_control::audit::Event;
use polder_core::ErrorCode;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use super::api::{self, Settings};
use crate::mcp::{Agent, Door};

const PATH: &str = "/mcp";

#[derive(Clone)]
struct Mcp {
    settings: Arc<Settings>,
    api: Router,
}

/// The route of `/mcp`; `api` are the routes of `/v1`.
pub(super) fn routes(settings: Arc<Settings>, api: Router) -> Router {
    Router::new().route(PATH, any(serve)).with_state(Mcp { settings, api })
}

/// Somebody without a good key. Whoever shows none leaves no trace: anybody could fill the log.
fn stranger(settings: &Settings, request: &Request) -> Response {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        return api::unauthenticated();
    }
    let (strangers, now) = (settings.clients.strangers(), Instant::now());
    if let Err(wait) = strangers.failed(request.extensions(), now) {
        strangers.leave_out();
        settings.metrics.limited();
        return api::too_many(wait);
    }
    if strangers.take_entry(now) {
        settings.ledger.add(Event {
            who: "-".to_owned(),
            action: format!("{} {PATH}", request.method()),
            outcome: ErrorCode::ControlUnauthenticated.as_str().to_owned(),
            ..Event::default()
        });
    }
    api::unauthenticated()
}

async fn serve(State(mcp): State<Mcp>, request: Request) -> Response {
    let settings = &mcp.settings;
    let caller = match settings.clients.who(request.headers()).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return stranger(settings, &request),
        Err(error) => return api::refusal(error),
    };
    // One bucket with `/v1`.
    if let Err(wait) = settings.pace.take(&caller.who(), Instant::now()) {
        settings.metrics.limited();
        return api::too_many(wait);
    }
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let agent = Agent {
        app: Arc::clone(&settings.app),
        store: settings.store.clone(),
        lake: settings.lake.clone(),
        engine: Arc::clone(&settings.engine),
        bootstraps: settings.bootstraps.clone(),
        who: caller.who(),
        principal: caller.principal,
        door: Some(Door::Here { routes: mcp.api.clone(), authorization }),
    };
    let mut config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true);
    if settings.clients.required() {
        // A page that has a browser call this address under another name has no key.
        config = config.disable_allowed_hosts();
    }
    let service = StreamableHttpService::new(
        move || Ok(agent.clone()),
        Arc::new(NeverSessionManager::default()),
        config,
    );
    service.handle(request).await.map(Body::new)
}
