//! `polder serve`: HTTP on one port. Here are the socket, the routes' top level and the orderly end;
//! what is served lies in modules of its own. Who calls is decided in `clients.rs`.

mod api;
mod churn;
mod clients;
mod iceberg;
mod mcp;
mod queue;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use polder_core::{Error, ErrorCode, Result};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use api::{Settings as ApiSettings, api_description, path_segment};
pub(crate) use churn::{Settings as ChurnSettings, webhook_key};
pub(crate) use clients::{Clients, sha256};
pub(crate) use iceberg::Settings as IcebergSettings;
pub(crate) use queue::Runner;

/// Where the Iceberg REST catalog is.
const ICEBERG: &str = "/iceberg";
/// Where notices of orgs that leave are taken.
const CHURN: &str = "/v1/churn";
/// How long requests that run when the end is asked for may take.
const DRAIN: Duration = Duration::from_secs(20);

/// What is served, ready to listen.
pub(crate) struct Server {
    listener: TcpListener,
    routes: Router,
}

impl Server {
    /// Opens the socket.
    ///
    /// # Errors
    /// `spec.invalid` for an address others can reach while nobody has to show who they are, and for
    /// one that cannot be had.
    pub(crate) async fn bind(
        address: SocketAddr,
        catalog: IcebergSettings,
        api: ApiSettings,
        churn: ChurnSettings,
    ) -> Result<Self> {
        if !address.ip().is_loopback() && !catalog.clients.required() {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                format!("{address} can be reached by others, and nobody has to authenticate"),
            )
            .hint(
                "make a key (`polder keys create --role operator`) and set [server] auth = \"keys\", \
                 or declare [serve.clients.<id>] in polder.toml, or listen on 127.0.0.1",
            ));
        }
        let listener = TcpListener::bind(address).await.map_err(|cause| {
            Error::new(ErrorCode::SpecInvalid, format!("cannot listen on {address}"))
                .hint("another process may use the port: choose one with --listen")
                .caused_by(cause)
        })?;
        let api = Arc::new(api);
        let routes = api::routes(Arc::clone(&api));
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .nest(ICEBERG, iceberg::routes(catalog))
            .nest(CHURN, churn::routes(churn))
            .merge(mcp::routes(Arc::clone(&api), routes.clone()))
            .merge(routes);
        Ok(Self { listener, routes })
    }

    /// The address that was got, with the port the system chose for port 0.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|cause| {
            Error::new(ErrorCode::Internal, "the socket has no address").caused_by(cause)
        })
    }

    /// Serves until `stop`, then lets running requests end.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<()> {
        let asked = stop.clone();
        let serving = axum::serve(self.listener, self.routes)
            .with_graceful_shutdown(async move { asked.cancelled().await });
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
