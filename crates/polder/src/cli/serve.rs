//! `polder serve`: HTTP, until it is asked to stop.

use std::net::SocketAddr;

use clap::Args;
use polder_core::{Error, ErrorCode, Result};
use polder_lake::service::IcebergCatalog;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::serve::{Clients, IcebergSettings, Server};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; `[serve] listen` when absent.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

impl Serve {
    pub(crate) async fn run(self, app: &App) -> Result<u8> {
        let catalog = IcebergCatalog::open(&app.lake_settings()?).await?;
        let address = match self.listen {
            Some(address) => address,
            None => parse(&app.config.process.serve.listen)?,
        };
        let clients = clients(app)?;
        let server = Server::bind(address, IcebergSettings { catalog, clients }).await?;
        output::note(&format!("Iceberg REST catalog: http://{}/iceberg", server.address()?));
        let stop = CancellationToken::new();
        let serving = server.run(stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => ended?,
            signal = asked_to_stop() => {
                signal?;
                output::note("stopping: running requests end first");
                stop.cancel();
                serving.await?;
            }
        }
        Ok(exit::OK)
    }
}

fn parse(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, format!("[serve] listen: {text:?} is not an address"))
            .hint("write an IP address and a port: 127.0.0.1:7070")
            .caused_by(cause)
    })
}

fn clients(app: &App) -> Result<Clients> {
    let mut clients = Clients::default();
    for (id, client) in &app.config.process.serve.clients {
        let org = client.org.as_deref().map(str::parse).transpose();
        let org = org.map_err(|error: Error| error.within(&format!("[serve.clients.{id}]")))?;
        clients.add(id, &app.secret(&client.secret)?, org)?;
    }
    Ok(clients)
}

/// Ctrl-C, or the signal service managers send.
async fn asked_to_stop() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |cause: std::io::Error| {
        Error::new(ErrorCode::Internal, "signals cannot be listened for").caused_by(cause)
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.map_err(failed),
        _ = terminate.recv() => Ok(()),
    }
}
