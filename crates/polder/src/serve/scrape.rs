//! `GET /metrics`: for operators, as the labels name orgs and sources. `polder serve` has it beside its other
//! doors, `polder worker` on a port of its own if asked to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use polder_control::Store;
use polder_control::audit::Event;
use polder_core::{Error, ErrorCode, Result, Role};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use super::ledger::Ledger;
use super::metrics::Metrics;
use super::{HEALTH, listen, loopback};

const PATH: &str = "/metrics";

/// What the page is made of.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) clients: Arc<Clients>,
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ledger: Arc<Ledger>,
}

/// The page, for operators.
pub(super) async fn show(State(shown): State<Shown>, request: Request) -> Response {
    let caller = match shown.clients.who(request.headers()).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return stranger(&shown, &request),
        Err(error) => return unavailable(&error),
    };
    if caller.principal.role() != Role::Operator {
        let event = event(caller.who(), ErrorCode::ControlDenied);
        shown.ledger.add_refusal(event, Instant::now());
        return refused();
    }
    match shown.metrics.page(&shown.store).await {
        Ok(page) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], page).into_response(),
        Err(error) => unavailable(&error),
    }
}

fn refused() -> Response {
    let text = "metrics are the operator's: send a key as Authorization: Bearer\n";
    (StatusCode::UNAUTHORIZED, text).into_response()
}

fn unavailable(error: &Error) -> Response {
    tracing::warn!("the metrics cannot be shown: {error}");
    (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be asked\n").into_response()
}

fn event(who: String, code: ErrorCode) -> Event {
    let (action, outcome) = (format!("GET {PATH}"), code.as_str().to_owned());
    Event { who, action, outcome, ..Event::default() }
}

/// Whoever shows nothing leaves no trace: anybody could fill the log.
fn stranger(shown: &Shown, request: &Request) -> Response {
    if !request.headers().contains_key(AUTHORIZATION) {
        return refused();
    }
    let (strangers, now) = (shown.clients.strangers(), Instant::now());
    if let Err(wait) = strangers.failed(request.extensions(), now) {
        strangers.leave_out();
        let text = "too many requests without a good key came from this address\n";
        let mut response = (StatusCode::TOO_MANY_REQUESTS, text).into_response();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        return response;
    }
    if strangers.take_entry(now) {
        shown.ledger.add(event("-".to_owned(), ErrorCode::ControlUnauthenticated));
    }
    refused()
}

/// The page on a port of its own, ready to listen.
pub(crate) struct Scraped {
    listener: TcpListener,
    routes: Router,
    clients: Arc<Clients>,
    ledger: Arc<Ledger>,
}

impl Scraped {
    /// Opens the socket.
    ///
    /// # Errors
    /// As [`listen`].
    pub(crate) async fn bind(
        address: SocketAddr,
        store: Store,
        clients: Clients,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let listener = listen(address, &clients).await?;
        let (clients, ledger) = (Arc::new(clients), Arc::new(Ledger::new(store.clone())));
        let (callers, entries) = (Arc::clone(&clients), Arc::clone(&ledger));
        let shown = Shown { clients: callers, store, metrics, ledger: entries };
        let guarded = Arc::clone(&clients);
        let routes = Router::new()
            .route(PATH, get(show).with_state(shown))
            .route(HEALTH, get(|| async { "ok\n" }))
            .layer(middleware::from_fn_with_state(guarded, loopback::guard));
        Ok(Self { listener, routes, clients, ledger })
    }

    /// The address that was got, with the port the system chose for port 0.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|cause| {
            Error::new(ErrorCode::Internal, "the socket has no address").caused_by(cause)
        })
    }

    /// Answers until `stop`. A worker goes on working where this ends badly.
    pub(crate) async fn run(self, stop: &CancellationToken) {
        let Self { listener, routes, clients, ledger } = self;
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let serving = async {
            tokio::select! {
                // A scrape that is under way at the end is cut off: the next one is another process's.
                () = stop.cancelled() => {}
                ended = async { serve(listener, routes).await } => {
                    if let Err(error) = ended {
                        tracing::error!("/metrics is answered no more: {error}");
                    }
                }
            }
        };
        tokio::join!(serving, ledger.run(stop));
        if let Some(event) = clients.strangers().summed_up() {
            ledger.add(event);
        }
        ledger.sum_up();
        ledger.flush().await;
    }
}
