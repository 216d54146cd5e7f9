//! Carries out queued runs in this process, side by side within its limits, and holds on to each
//! while it works. Who may run what, and in which order, is `polder_control::queue`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::queue::{self, LEASE, Lease, QueuedRun, Renewed};
use polder_control::{Store, desired};
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::Lake;
use polder_pipeline::IngestReport;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::worker::{How, Job, Watched, Worker, ended};

/// How often the queue is looked at when nobody says that something is in it: runs that other
/// servers took in, and those of servers that died.
const LOOK: Duration = Duration::from_secs(1);

/// The runs of one server.
pub(crate) struct Runner {
    pub(crate) app: Arc<App>,
    pub(crate) store: Store,
    pub(crate) lake: Lake,
    /// Told when a run was queued here.
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    /// This server's name in leases; another one after each start.
    pub(crate) owner: String,
}

impl Runner {
    /// Works until `stop`; then gives back what it has not done.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        while !self.stop.is_cancelled() {
            while tasks.len() < self.app.config.process.limits.runs.max(1) {
                match queue::claim(&self.store, &self.owner).await {
                    Ok(Some((run, lease))) => {
                        let runner = Arc::clone(&self);
                        tasks.spawn(async move { Box::pin(runner.carry_out(run, lease)).await });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!("the queue cannot be looked at: {error}");
                        break;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                Some(joined) = tasks.join_next() => log_panic(joined),
            }
        }
        while let Some(joined) = tasks.join_next().await {
            log_panic(joined);
        }
    }

    async fn carry_out(&self, run: QueuedRun, lease: Lease) {
        let (org, table, run_id) = (run.org.clone(), run.table.clone(), run.run_id);
        let cancel = self.stop.child_token();
        let outcome = tokio::select! {
            outcome = self.ingest(&run, &cancel) => outcome,
            () = self.hold(&lease, &cancel) => {
                tracing::warn!(%org, table, %run_id, "the run is another server's now");
                return;
            }
        };
        let cancelled = outcome.as_ref().is_err_and(|error| error.code() == ErrorCode::Cancelled);
        let said = if cancelled && self.stop.is_cancelled() {
            queue::release(&self.store, &lease).await
        } else {
            let (state, report) = ended(&outcome);
            queue::finish(&self.store, &lease, state, &report).await.map(drop)
        };
        match outcome {
            Ok(report) => {
                tracing::info!(%org, table, %run_id, rows = report.rows_written, "the run succeeded");
            }
            Err(error) => {
                tracing::warn!(%org, table, %run_id, code = %error.code(), "the run ended: {error}");
            }
        }
        if let Err(error) = said {
            // The lease ends, and the run is found landed when it is taken up again.
            tracing::warn!(%org, table, %run_id, "the run's end was not recorded: {error}");
        }
    }

    /// Holds on to a run; ends when it is lost.
    async fn hold(&self, lease: &Lease, cancel: &CancellationToken) {
        let mut held = Instant::now();
        loop {
            tokio::time::sleep(LEASE / 3).await;
            match queue::renew(&self.store, lease).await {
                Ok(Renewed::Held) => held = Instant::now(),
                Ok(Renewed::CancelWanted) => {
                    held = Instant::now();
                    cancel.cancel();
                }
                Ok(Renewed::Lost) => return,
                Err(error) => {
                    tracing::warn!("a lease was not renewed: {error}");
                    if held.elapsed() > LEASE {
                        return;
                    }
                }
            }
        }
    }

    async fn ingest(&self, run: &QueuedRun, cancel: &CancellationToken) -> Result<IngestReport> {
        let org = Principal::Operator.authorize(&run.org)?;
        let table = self.table(&org, &run.table).await?;
        let source = self.app.source(&table.source)?;
        let worker = Worker {
            lake: self.lake.clone(),
            store: self.store.clone(),
            sources: Arc::new(BTreeMap::from([(table.source.clone(), source)])),
            limits: self.app.config.process.limits.clone(),
            cancel: cancel.clone(),
        };
        let how = How { full_refresh: run.full_refresh, dry_run: false };
        let job = Job::Ingest { org, table, how };
        let watched = Watched { job, progress: Arc::default() };
        Box::pin(worker.ingest_as(run.run_id, watched)).await
    }

    /// What the desired state says of the table now, not when the run was asked for.
    async fn table(&self, org: &Authorized<OrgId>, name: &str) -> Result<TableSpec> {
        let gone = || {
            let message = format!("org {} has no table {name:?} any more", org.get());
            Error::new(ErrorCode::ControlNotFound, message)
        };
        let (document, templates) = desired::org(&self.store, org).await?.ok_or_else(gone)?;
        let process = &self.app.config.process;
        let effective = desired::effective(process, &templates, org.get(), &document)?;
        let pipeline = effective.pipeline();
        pipeline.tables.into_iter().find(|table| table.name == name).ok_or_else(gone)
    }
}

fn log_panic(joined: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = joined {
        tracing::error!("a run panicked, and is taken up again when its lease ends: {error}");
    }
}
