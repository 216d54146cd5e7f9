//! `polder serve`: HTTP, until it is asked to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use polder_control::{Store, keys};
use polder_core::spec::Auth;
use polder_core::{Error, ErrorCode, Result};
use polder_lake::service::IcebergCatalog;
use ring::hmac;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::cli::audit::checkpoint_audit;
use crate::serve::{ApiSettings, ChurnSettings, Clients, IcebergSettings, Runner, Server};
use crate::{exit, output};

/// How often the audit log's head is written down in the lake.
const AUDIT_CHECKPOINT: Duration = Duration::from_mins(1);

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; `[serve] listen` when absent.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

impl Serve {
    pub(crate) async fn run(self, app: App) -> Result<u8> {
        // First: a lake of another catalog is not served at all.
        let catalog = IcebergCatalog::open(&app.lake_settings()?).await?;
        let address = self.address(&app)?;
        let app = Arc::new(app.settled().await?);
        for left in &app.left {
            output::note(&format!(
                "{}/{}: not in the pipeline files any more; `polder apply` takes it out of the \
                 pipeline",
                left.org, left.table,
            ));
        }
        let (store, lake) = (app.store().await?, app.lake().await?);
        let clients = Arc::new(clients(&app, &store).await?);
        let required = clients.required();
        let wake = Arc::new(Notify::new());
        let iceberg = IcebergSettings { catalog, clients: Arc::clone(&clients) };
        let api = ApiSettings {
            app: Arc::clone(&app),
            store: store.clone(),
            engine: Arc::new(crate::cli::engine(&app, &lake)?),
            bootstraps: crate::cli::bootstraps(&app, &lake)?,
            lake: lake.clone(),
            clients: Arc::clone(&clients),
            wake: Arc::clone(&wake),
        };
        let eraser = app.eraser().await?;
        let notices = Arc::new(Notify::new());
        let churn = ChurnSettings {
            secret: webhook_secret(&app)?,
            clients,
            eraser: eraser.clone(),
            wake: Arc::clone(&notices),
        };
        let server = Server::bind(address, iceberg, api, churn).await?;
        // Before anybody can learn that there is something to stop.
        let signals = Signals::listen()?;
        let address = server.address()?;
        output::note(&format!("Iceberg REST catalog: http://{address}/iceberg"));
        let shown = if required { "by key" } else { "nobody has to show who they are" };
        output::note(&format!("API: http://{address}/v1 ({shown})"));
        output::note(&format!("agents: http://{address}/mcp (Model Context Protocol)"));
        let stop = CancellationToken::new();
        let owner = Uuid::new_v4().to_string();
        let runner =
            Runner { app: Arc::clone(&app), store: store.clone(), lake, wake, stop, owner };
        let mut background = JoinSet::new();
        background.spawn(async move { eraser.erase_what_is_due(&notices).await });
        serve(server, Arc::new(runner), signals).await?;
        checkpoint_audit(&app, &store).await?;
        Ok(exit::OK)
    }

    fn address(&self, app: &App) -> Result<SocketAddr> {
        let process = &app.config.process;
        match (self.listen, &process.server.listen) {
            (Some(address), _) => Ok(address),
            (None, Some(text)) => parse("[server] listen", text),
            (None, None) => parse("[serve] listen", &process.serve.listen),
        }
    }
}

/// Serves and runs until a signal, then lets requests end and gives runs back.
async fn serve(server: Server, runner: Arc<Runner>, mut signals: Signals) -> Result<()> {
    let stop = runner.stop.clone();
    let serving = server.run(stop.clone());
    let work = async {
        tokio::join!(Arc::clone(&runner).run(), keep_checkpoints(&runner));
    };
    tokio::pin!(serving, work);
    tokio::select! {
        ended = &mut serving => {
            stop.cancel();
            work.await;
            return ended;
        }
        // Only once it was asked to stop.
        () = &mut work => return Ok(()),
        () = signals.first() => {}
    }
    output::note("stopping: running requests end first");
    stop.cancel();
    let (ended, ()) = tokio::join!(serving, work);
    ended
}

/// Writes down from time to time how far the audit log goes.
async fn keep_checkpoints(runner: &Runner) {
    loop {
        tokio::select! {
            () = runner.stop.cancelled() => return,
            () = tokio::time::sleep(AUDIT_CHECKPOINT) => {}
        }
        if let Err(error) = checkpoint_audit(&runner.app, &runner.store).await {
            tracing::warn!("the audit log's checkpoint was not written: {error}");
        }
    }
}

fn parse(setting: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, format!("{setting}: {text:?} is not an address"))
            .hint("write an IP address and a port: 127.0.0.1:7070")
            .caused_by(cause)
    })
}

/// The key that signs notices; none are taken without.
fn webhook_secret(app: &App) -> Result<Option<hmac::Key>> {
    let reference = app.config.process.governance.webhook_secret.as_ref();
    reference.map(|reference| crate::serve::webhook_key(&app.secret(reference)?)).transpose()
}

/// Everybody who may call, as `[server] auth` says.
async fn clients(app: &App, store: &Store) -> Result<Clients> {
    let mut clients = Clients::default();
    let auth = app.config.process.server.auth;
    let required = match auth {
        Some(Auth::Keys) => true,
        Some(Auth::None) => false,
        Some(Auth::Oidc) => {
            let message = "[server] auth: oidc is not there yet";
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("use keys: polder keys create --role operator"));
        }
        // Whoever has made a key wants it to be asked for.
        None => keys::any(store).await?,
    };
    if auth == Some(Auth::None) && !app.config.process.serve.clients.is_empty() {
        let message = "[server] auth is none, but there are [serve.clients]";
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint("remove one of the two"));
    }
    clients.take_keys(store.clone(), required);
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
