//! `polder serve`: HTTP, until it is asked to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use polder_core::{Error, ErrorCode, Result};
use polder_lake::service::IcebergCatalog;
use ring::hmac;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::serve::{ChurnSettings, Clients, IcebergSettings, Server};
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
        let eraser = app.eraser().await?;
        let wake = Arc::new(Notify::new());
        let churn = ChurnSettings {
            secret: webhook_secret(app)?,
            clients: clients.clone(),
            eraser: eraser.clone(),
            wake: Arc::clone(&wake),
        };
        let server = Server::bind(address, IcebergSettings { catalog, clients }, churn).await?;
        // Before anybody can learn that there is something to stop.
        let mut signals = Signals::listen()?;
        output::note(&format!("Iceberg REST catalog: http://{}/iceberg", server.address()?));
        let stop = CancellationToken::new();
        let serving = server.run(stop.clone());
        tokio::pin!(serving);
        let mut background = JoinSet::new();
        background.spawn(async move { eraser.erase_what_is_due(&wake).await });
        tokio::select! {
            ended = &mut serving => ended?,
            () = signals.first() => {
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

/// The key that signs notices; none are taken without.
fn webhook_secret(app: &App) -> Result<Option<hmac::Key>> {
    let reference = app.config.process.governance.webhook_secret.as_ref();
    reference.map(|reference| crate::serve::webhook_key(&app.secret(reference)?)).transpose()
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

/// Ctrl-C, and the signal service managers send.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the signals do not end the process by themselves.
    fn listen() -> Result<Self> {
        let failed = |cause: std::io::Error| {
            Error::new(ErrorCode::Internal, "signals cannot be listened for").caused_by(cause)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Waits for the first of them.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
