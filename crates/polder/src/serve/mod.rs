//! `polder serve`: HTTP on one port, and PostgreSQL's protocol on another (`pgwire`) if that is wished. Here are the socket, the routes' top level and the orderly end;
//! what is served lies in modules of its own. Who calls is decided in `clients.rs`.

mod api;
mod churn;
mod clients;
mod iceberg;
mod jobs;
mod kept;
mod ledger;
mod loopback;
mod mcp;
mod metrics;
mod oidc;
mod pace;
mod pgwire;
mod queue;
mod scheduler;
mod scrape;
mod strangers;
mod tasks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use axum::routing::get;
use polder_core::{Error, ErrorCode, Result};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use api::{Settings as ApiSettings, api_description, path_segment};
pub(crate) use churn::{Settings as ChurnSettings, webhook_key};
pub(crate) use clients::{Clients, sha256};
pub(crate) use iceberg::Settings as IcebergSettings;
pub(crate) use jobs::Jobs;
pub(crate) use ledger::Ledger;
pub(crate) use metrics::Metrics;
pub(crate) use oidc::{Oidc, Refresher};
pub(crate) use pace::Pace;
pub(crate) use pgwire::Postgres;
pub(crate) use queue::Runner;
pub(crate) use scheduler::Scheduler;
pub(crate) use scrape::Scraped;

use crate::telemetry;
use scrape::Shown;
use tasks::Tasks;

/// Where the Iceberg REST catalog is.
const ICEBERG: &str = "/iceberg";
/// Where notices of orgs that leave are taken.
const CHURN: &str = "/v1/churn";
/// Where to ask whether the server lives.
const HEALTH: &str = "/healthz";
/// How long requests that run when the end is asked for may take.
const DRAIN: Duration = Duration::from_secs(20);

/// Opens a socket.
///
/// # Errors
/// `spec.invalid` for an address others can reach while nobody has to show who they are, and for one that
/// cannot be had.
async fn listen(address: SocketAddr, clients: &Clients) -> Result<TcpListener> {
    if !address.ip().is_loopback() && !clients.required() {
        return Err(Error::new(
            ErrorCode::SpecInvalid,
            format!("{address} can be reached by others, and nobody has to authenticate"),
        )
        .hint(
            "make a key (`polder keys create --role operator`) and set [server] auth = \"keys\", \
             or declare [serve.clients.<id>] in polder.toml, or listen on 127.0.0.1",
        ));
    }
    TcpListener::bind(address).await.map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, format!("cannot listen on {address}"))
            .hint("another process may use the port: choose one with --listen")
            .caused_by(cause)
    })
}

/// What is served, ready to listen.
pub(crate) struct Server {
    listener: TcpListener,
    routes: Router,
    /// Changes that are carried out whether or not their clients wait.
    changes: Arc<Tasks>,
    /// What all doors share.
    settings: Arc<ApiSettings>,
    postgres: Option<Postgres>,
}

impl Server {
    /// Opens the socket.
    ///
    /// # Errors
    /// As [`listen`].
    pub(crate) async fn bind(
        address: SocketAddr,
        catalog: IcebergSettings,
        api: ApiSettings,
        churn: ChurnSettings,
        postgres: Option<Postgres>,
    ) -> Result<Self> {
        let listener = listen(address, &catalog.clients).await?;
        let shown = Shown {
            clients: Arc::clone(&api.clients),
            store: api.store.clone(),
            metrics: Arc::clone(&api.metrics),
            ledger: Arc::clone(&api.ledger),
        };
        let (guarded, changes) = (Arc::clone(&api.clients), Arc::clone(&api.changes));
        let api = Arc::new(api);
        let routes = api::routes(Arc::clone(&api));
        let routes = Router::new()
            .nest(ICEBERG, iceberg::routes(catalog, Arc::clone(&changes)))
            .nest(CHURN, churn::routes(churn))
            .merge(mcp::routes(Arc::clone(&api), routes.clone()))
            .merge(routes)
            .layer(middleware::from_fn(telemetry::request))
            // Outside of traces: they are asked for every few seconds.
            .route(HEALTH, get(|| async { "ok\n" }))
            .route("/metrics", get(scrape::show).with_state(shown))
            .layer(middleware::from_fn_with_state(guarded, loopback::guard));
        Ok(Self { listener, routes, changes, settings: api, postgres })
    }

    /// The address that was got, with the port the system chose for port 0.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|cause| {
            Error::new(ErrorCode::Internal, "the socket has no address").caused_by(cause)
        })
    }

    /// The same of the door that speaks PostgreSQL's protocol, if there is one.
    pub(crate) fn postgres_address(&self) -> Result<Option<SocketAddr>> {
        self.postgres.as_ref().map(Postgres::address).transpose()
    }

    /// Serves until `stop`, then lets running requests end.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<()> {
        let asked = stop.clone();
        // Ends with the server, also if that ends by itself.
        let closing = stop.child_token();
        let Self { listener, routes, changes, settings, postgres } = self;
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let open = closing.clone();
        let door = async move {
            if let Some(postgres) = postgres {
                postgres.run(settings, open).await;
            }
        };
        let http = async move {
            let ended = axum::serve(listener, routes)
                .with_graceful_shutdown(async move { asked.cancelled().await })
                .await;
            closing.cancel();
            // Those whose clients do not wait for them.
            changes.drain().await;
            ended
        };
        let serving = async move { tokio::join!(http, door).0 };
        let overdue = async move {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            ended = serving => ended.map_err(|cause| {
                Error::new(ErrorCode::Internal, "the server stopped").caused_by(cause)
            }),
            () = overdue => Ok(()),
        }
    }
}
