//! `polder worker`: carries out queued runs beside `polder serve`, on this or another machine.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use polder_core::{Error, ErrorCode, Result};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::cli::serve::{Signals, clients, parse};
use crate::serve::{Jobs, Metrics, Runner, Scheduler, Scraped};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Where to answer `/metrics`, for operators; `[server] worker_metrics` when absent, or nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

/// Whether another process has the port.
fn is_taken(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::AddrInUse)
}

/// The page of metrics. All workers of a host read one setting: the first has its port, and the others work
/// without the page.
///
/// # Errors
/// What the page was refused for; a port that another process has where the command line `named` it.
fn told(bound: Result<Scraped>, address: SocketAddr, named: bool) -> Result<Option<Scraped>> {
    match bound {
        Ok(scraped) => {
            output::note(&format!("metrics: http://{}/metrics", scraped.address()?));
            Ok(Some(scraped))
        }
        Err(error) if !named && is_taken(&error) => {
            output::note(&format!(
                "warning: another process answers on {address}, and this worker answers no \
                 /metrics; give it a port of its own: --metrics 127.0.0.1:0"
            ));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Works until it is asked to stop; then it gives back what it has not done. It schedules too, so that
/// runs go on being queued while no `polder serve` is there.
pub(crate) async fn run(arguments: Worker, app: App) -> Result<u8> {
    if app.store_is_a_file()? {
        let message = "[store] url is a SQLite file, which serves one process";
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint(
            "set it to postgres://… to have workers beside `polder serve`; raise [limits] runs \
                 otherwise",
        ));
    }
    let mut signals = Signals::listen()?;
    let app = Arc::new(app);
    let (store, lake) = (app.store().await?, app.lake().await?);
    let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let scheduler = Scheduler {
        app: Arc::clone(&app),
        store: store.clone(),
        wake: Arc::clone(&wake),
        stop: stop.clone(),
    };
    let owner = Uuid::new_v4().to_string();
    output::note(&format!("worker {owner}: {} runs at a time", app.config.process.limits.runs));
    let engine = Arc::new(crate::cli::engine(&app, &lake)?);
    let metrics = Arc::new(Metrics::default());
    let place = match (arguments.metrics, &app.config.process.server.worker_metrics) {
        (Some(address), _) => Some(address),
        (None, Some(text)) => Some(parse("[server] worker_metrics", text)?),
        (None, None) => None,
    };
    let mut keys = JoinSet::new();
    let scraped = match place {
        Some(address) => {
            let (clients, refresher) = clients(&app, &store).await?;
            if let Some(refresher) = refresher {
                keys.spawn(refresher.run());
            }
            let shown = Arc::clone(&metrics);
            let bound = Scraped::bind(address, store.clone(), clients, shown).await;
            told(bound, address, arguments.metrics.is_some())?
        }
        None => None,
    };
    let jobs = Jobs::open(app, store, lake, engine)?;
    let runner = Arc::new(Runner { jobs, wake, stop: stop.clone(), owner, metrics });
    let page = async {
        if let Some(scraped) = scraped {
            scraped.run(&stop).await;
        }
    };
    let work = async { tokio::join!(runner.run(), scheduler.run(), page) };
    tokio::pin!(work);
    tokio::select! {
        // Only once it was asked to stop.
        _ = &mut work => return Ok(exit::OK),
        () = signals.first() => {}
    }
    output::note("stopping: what is not done goes back into the queue");
    stop.cancel();
    work.await;
    Ok(exit::OK)
}
