//! `polder serve`: HTTP, until it is asked to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use polder_control::{Store, keys};
use polder_core::spec::{Auth, OidcConfig};
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
use crate::serve::{
    ApiSettings, ChurnSettings, Clients, IcebergSettings, Jobs, Ledger, Metrics, Oidc, Pace,
    Postgres, Refresher, Runner, Scheduler, Server,
};
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
        let app = Arc::new(app.served().await?);
        for left in &app.left {
            output::note(&left.sentence());
        }
        let (store, lake) = (app.store().await?, app.lake().await?);
        let (clients, refresher) = clients(&app, &store).await?;
        let (clients, wake) = (Arc::new(clients), Arc::new(Notify::new()));
        let (stop, metrics) = (CancellationToken::new(), Arc::new(Metrics::default()));
        let engine = crate::processes::engine(&app, &lake, &metrics)?;
        let ledger = Arc::new(Ledger::new(store.clone()));
        let iceberg = IcebergSettings {
            catalog,
            clients: Arc::clone(&clients),
            store: store.clone(),
            ledger: Arc::clone(&ledger),
            pace: Pace::new(app.config.process.server.catalog_rate_limit),
        };
        let api = ApiSettings {
            app: Arc::clone(&app),
            store: store.clone(),
            engine: Arc::clone(&engine),
            trino: app.trino()?,
            bootstraps: crate::cli::bootstraps(&app, &lake)?,
            lake: lake.clone(),
            clients: Arc::clone(&clients),
            wake: Arc::clone(&wake),
            metrics: Arc::clone(&metrics),
            ledger: Arc::clone(&ledger),
            changes: Arc::default(),
            pace: Pace::new(app.config.process.server.rate_limit),
            watchers: Arc::default(),
            stop: stop.clone(),
        };
        let (eraser, notices) = (app.eraser().await?, Arc::new(Notify::new()));
        let churn = ChurnSettings {
            secret: webhook_secret(&app)?,
            clients: Arc::clone(&clients),
            eraser: eraser.clone(),
            wake: Arc::clone(&notices),
            ledger: Arc::clone(&ledger),
        };
        let postgres = postgres(&app, &clients).await?;
        let server = Server::bind(address, iceberg, api, churn, postgres).await?;
        // Before anybody can learn that there is something to stop.
        let signals = Signals::listen()?;
        announce(&server, clients.required())?;
        let scheduler = Scheduler {
            app: Arc::clone(&app),
            store: store.clone(),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
        };
        let jobs = Jobs::open(Arc::clone(&app), store.clone(), lake, engine)?;
        let owner = Uuid::new_v4().to_string();
        let runner = Arc::new(Runner { jobs, wake, stop, owner, metrics });
        let mut background = JoinSet::new();
        background.spawn(async move { eraser.erase_what_is_due(&notices).await });
        refresher.map(|refresher| background.spawn(refresher.run()));
        let people = (&*clients, &*ledger);
        let ended = Box::pin(serve(server, runner, &scheduler, people, signals)).await;
        write_down(&ledger, &clients).await;
        ended?;
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
async fn serve(
    server: Server,
    runner: Arc<Runner>,
    scheduler: &Scheduler,
    (clients, ledger): (&Clients, &Ledger),
    mut signals: Signals,
) -> Result<()> {
    let stop = runner.stop.clone();
    let serving = server.run(stop.clone());
    let work = async {
        let checkpoints = keep_checkpoints(&runner, clients, ledger);
        let entries = ledger.run(&runner.stop);
        tokio::join!(Arc::clone(&runner).run(), scheduler.run(), checkpoints, entries);
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

/// Writes down from time to time how far the audit log goes. A log that was cut off is told each time.
async fn keep_checkpoints(runner: &Runner, clients: &Clients, ledger: &Ledger) {
    loop {
        tokio::select! {
            () = runner.stop.cancelled() => return,
            () = tokio::time::sleep(AUDIT_CHECKPOINT) => {}
        }
        write_down(ledger, clients).await;
        let kept = checkpoint_audit(&runner.jobs.app, &runner.jobs.store).await;
        let damaged = kept.as_ref().is_err_and(|error| error.code() == ErrorCode::LakeCorrupt);
        if damaged || kept.is_ok() {
            runner.metrics.audited(!damaged);
        }
        if let Err(error) = kept {
            let detail = error.detail_text().unwrap_or_default();
            tracing::error!(code = %error.code(), detail, "the audit log's checkpoint: {error}");
        }
    }
}

/// Says where the doors are.
fn announce(server: &Server, required: bool) -> Result<()> {
    let address = server.address()?;
    output::note(&format!("Iceberg REST catalog: http://{address}/iceberg"));
    let shown = if required { "by key" } else { "nobody has to show who they are" };
    output::note(&format!("API: http://{address}/v1 ({shown})"));
    output::note(&format!("agents: http://{address}/mcp (Model Context Protocol)"));
    if let Some(address) = server.postgres_address()? {
        output::note(&format!("SQL: postgresql://{address}/lake (a key is the password)"));
    }
    Ok(())
}

/// The door that speaks PostgreSQL's protocol, where the configuration has one.
async fn postgres(app: &App, clients: &Clients) -> Result<Option<Postgres>> {
    let server = &app.config.process.server;
    let Some(text) = &server.postgres else {
        if server.postgres_tls.is_some() {
            let message = "there is a [server.postgres_tls], but no [server] postgres";
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("say where to listen: postgres = \"0.0.0.0:5432\""));
        }
        return Ok(None);
    };
    let address = parse("[server] postgres", text)?;
    let tls = match &server.postgres_tls {
        Some(tls) => {
            Some((PathBuf::from(app.config.address(&tls.certificate)), app.secret(&tls.key)?))
        }
        None => None,
    };
    let tls = tls.as_ref().map(|(certificate, key)| (certificate.as_path(), key));
    Postgres::bind(address, tls, clients).await.map(Some)
}

/// Writes the audit log's entries that wait, and how many callers there were for whom it had no room.
async fn write_down(ledger: &Ledger, clients: &Clients) {
    if let Some(event) = clients.strangers().summed_up() {
        ledger.add(event);
    }
    ledger.sum_up();
    ledger.flush().await;
}

/// An address of the configuration.
pub(crate) fn parse(setting: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, format!("{setting}: {text:?} is not an address"))
            .hint("write an IP address and a port: 127.0.0.1:7070")
            .caused_by(cause)
    })
}

/// The key that signs notices; none are taken without.
fn webhook_secret(app: &App) -> Result<Option<hmac::Key>> {
    let reference = app.config.process.governance.webhook_secret.as_ref();
    let setting = "[governance] webhook_secret";
    reference
        .map(|reference| crate::serve::webhook_key(setting, &app.secret(reference)?))
        .transpose()
}

/// Whose tokens are taken, as `[server] auth` says.
fn issuer(app: &App) -> Result<Option<&OidcConfig>> {
    let server = &app.config.process.server;
    let invalid = |message: &str| Error::new(ErrorCode::SpecInvalid, message);
    match (server.auth, &server.oidc) {
        (Some(Auth::Oidc), None) => {
            Err(invalid("[server] auth is oidc, but there is no [server.oidc]")
                .hint("name the provider there: issuer and audience"))
        }
        (Some(Auth::Oidc), issuer) => Ok(issuer.as_ref()),
        (_, Some(_)) => Err(invalid("there is a [server.oidc], but [server] auth is not oidc")
            .hint("set auth = \"oidc\", or remove the section")),
        (_, None) => Ok(None),
    }
}

/// Everybody who may call, as `[server] auth` says, and who keeps the issuer's keys.
pub(crate) async fn clients(app: &App, store: &Store) -> Result<(Clients, Option<Refresher>)> {
    let mut clients = Clients::default();
    let issuer = issuer(app)?;
    let auth = app.config.process.server.auth;
    let required = match auth {
        Some(Auth::Keys | Auth::Oidc) => true,
        Some(Auth::None) => false,
        // Whoever has made a key wants it to be asked for.
        None => keys::any(store).await?,
    };
    if auth == Some(Auth::None) && !app.config.process.serve.clients.is_empty() {
        let message = "[server] auth is none, but there are [serve.clients]";
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint("remove one of the two"));
    }
    clients.take_keys(store.clone(), required);
    if auth.is_none() {
        clients.ask_once_made();
    }
    for (id, client) in &app.config.process.serve.clients {
        let org = client.org.as_deref().map(str::parse).transpose();
        let org = org.map_err(|error: Error| error.within(&format!("[serve.clients.{id}]")))?;
        clients.add(id, &app.secret(&client.secret)?, org)?;
    }
    let Some(issuer) = issuer else { return Ok((clients, None)) };
    let (oidc, refresher) = Oidc::open(issuer).await?;
    clients.take_tokens(oidc);
    Ok((clients, Some(refresher)))
}

/// Ctrl-C, and the signal service managers send.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the signals do not end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let failed = |cause: std::io::Error| {
            Error::new(ErrorCode::Internal, "signals cannot be listened for").caused_by(cause)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Waits for the first of them.
    pub(crate) async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
