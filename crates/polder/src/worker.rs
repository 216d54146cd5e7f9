//! Carries out jobs: the one place where the control plane's decisions meet the data plane.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use polder_control::queue::JobKind;
use polder_control::runs::{self, RunState};
use polder_control::{OrgPipeline, Spent, Store};
use polder_core::spec::{EngineKind, OrgLimits, TableSpec};
use polder_core::{
    Authorized, Engine, Error, ErrorCode, Importer, OrgId, Principal, Result, RunProgress, Source,
};
use polder_lake::Lake;
use polder_lake::failpoint::{self, Point};
use polder_pipeline::{IngestReport, IngestRequest, ingest};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};
use uuid::Uuid;

use crate::output;
use crate::room::Room;
use crate::telemetry::{self, RunLog};

/// How often a run looks whether its org was fenced by another process.
const FENCE_WATCH: Duration = Duration::from_secs(1);

/// Something to do for one org.
pub(crate) enum Job {
    /// Bring one lake table up to date, within the org's limits.
    Ingest { org: Authorized<OrgId>, limits: OrgLimits, table: TableSpec, how: How },
}

/// How a table is brought up to date.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Reload everything, whatever the mode and the checkpoint.
    pub(crate) full_refresh: bool,
    /// Only say what would be done.
    pub(crate) dry_run: bool,
}

impl Job {
    /// The ingest jobs of a pipeline, in its order.
    ///
    /// # Errors
    /// `control.denied` when the principal may not act for the org.
    pub(crate) fn of_pipeline(
        principal: &Principal,
        pipeline: &OrgPipeline,
        how: How,
    ) -> Result<Vec<Self>> {
        let org = principal.authorize(&pipeline.org)?;
        let job = |table: &TableSpec| Self::Ingest {
            org: org.clone(),
            limits: pipeline.limits.clone(),
            table: table.clone(),
            how,
        };
        Ok(pipeline.tables.iter().map(job).collect())
    }
}

/// A job with its progress, as whoever watches sees it.
pub(crate) struct Watched {
    pub(crate) job: Job,
    pub(crate) progress: Arc<RunProgress>,
}

/// How a job ended.
pub(crate) struct Ended {
    pub(crate) org: OrgId,
    pub(crate) table: String,
    pub(crate) outcome: Result<IngestReport>,
}

/// Another engine that carries out runs, and of which tables.
#[derive(Clone)]
pub(crate) struct Elsewhere {
    pub(crate) importer: Arc<dyn Importer>,
    /// Of these sources, tables that name no engine are its own, too.
    pub(crate) by_default: Arc<BTreeSet<String>>,
}

impl Elsewhere {
    /// Who carries out runs of the table, if it is not this process.
    fn of(&self, table: &TableSpec) -> Option<Arc<dyn Importer>> {
        let own = match table.engine {
            Some(EngineKind::Trino) => true,
            Some(EngineKind::Embedded) => false,
            None => self.by_default.contains(&table.source),
        };
        own.then(|| Arc::clone(&self.importer))
    }
}

/// Carries out jobs side by side, within the process's limits.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) lake: Lake,
    pub(crate) store: Store,
    pub(crate) sources: Arc<BTreeMap<String, Arc<dyn Source>>>,
    /// Answers the checks that are asked before publishing.
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) elsewhere: Option<Elsewhere>,
    pub(crate) room: Arc<Room>,
    pub(crate) cancel: CancellationToken,
}

impl Worker {
    /// Runs all jobs and hands each one's end to `ended`, in the order they end.
    pub(crate) async fn run(&self, jobs: Vec<Watched>, mut ended: impl FnMut(Ended)) {
        let places = Arc::new(Semaphore::new(self.room.limits.runs.max(1)));
        let mut tasks = JoinSet::new();
        for watched in jobs {
            let (worker, places) = (self.clone(), Arc::clone(&places));
            tasks.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire_owned().await;
                worker.carry_out(watched).await
            });
        }
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(end) => ended(end),
                Err(error) => output::note(&format!("error: a run panicked: {error}")),
            }
        }
    }

    async fn carry_out(&self, watched: Watched) -> Ended {
        let Job::Ingest { org, table, .. } = &watched.job;
        let (id, name) = (org.get().clone(), table.name.clone());
        let outcome = Box::pin(self.ingest(watched)).await;
        Ended { org: id, table: name, outcome }
    }

    async fn ingest(&self, watched: Watched) -> Result<IngestReport> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the run was cancelled before it began"));
        }
        let Job::Ingest { org, table, how, .. } = &watched.job;
        let (org, dry_run) = (org.clone(), how.dry_run);
        self.lake.check_open(&org).await?;
        let run_id = if dry_run {
            Uuid::new_v4()
        } else {
            runs::enqueue(&self.store, &org, &table.name).await?
        };
        let name = table.name.clone();
        let work = self.ingest_as(run_id, watched);
        if dry_run {
            return work.await;
        }
        let span = telemetry::run_span(org.get(), &name, run_id, JobKind::Ingest, None);
        let log = RunLog::begin(&span, &self.store, (org.get(), run_id), 0);
        let outcome = log.kept(Box::pin(told(work).instrument(span))).await;
        let (state, report) = ended(&outcome);
        let spent = outcome.as_ref().map(spent).unwrap_or_default();
        // The table is the truth; a record that cannot be written must not fail the run.
        let recorded = runs::finish(&self.store, &org, run_id, spent, (state, &*report)).await;
        if let Err(error) = recorded {
            tracing::warn!(%run_id, "the end of the run was not recorded: {error}");
        }
        failpoint::reach(Point::Reported).await?;
        outcome
    }

    /// Carries out a run that has its record already.
    pub(crate) async fn ingest_as(&self, run_id: Uuid, watched: Watched) -> Result<IngestReport> {
        let Watched { job: Job::Ingest { org, limits, table, how }, progress } = watched;
        let source = self.sources.get(&table.source).ok_or_else(|| {
            Error::new(ErrorCode::Internal, format!("source {:?} was not opened", table.source))
        })?;
        let cancel = self.cancel.child_token();
        let importer = self.elsewhere.as_ref().and_then(|elsewhere| elsewhere.of(&table));
        let work = async {
            let place = self.room.enter(org.get(), &limits, &progress, &cancel).await?;
            let request = IngestRequest {
                org: org.clone(),
                run_id,
                table,
                full_refresh: how.full_refresh,
                dry_run: how.dry_run,
                limits: place.limits(),
                engine: Some(Arc::clone(&self.engine)),
                importer,
                progress: Arc::clone(&progress),
                cancel: cancel.clone(),
            };
            ingest(&self.lake, source.as_ref(), &request).await
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = self.cancel_if_fenced(&org, &cancel) => {
                unreachable!("it watches until the run ends")
            }
        };
        self.explained(outcome, &org).await
    }

    /// Cancels the run once its org is fenced. Never ends.
    async fn cancel_if_fenced(&self, org: &Authorized<OrgId>, cancel: &CancellationToken) {
        loop {
            tokio::time::sleep(FENCE_WATCH).await;
            let open = self.lake.check_open(org).await;
            if open.is_err_and(|error| error.code() == ErrorCode::LakeFenced) {
                cancel.cancel();
                std::future::pending::<()>().await;
            }
        }
    }

    /// A run that failed while its org is leaving says so, whatever it stumbled over.
    async fn explained(
        &self,
        outcome: Result<IngestReport>,
        org: &Authorized<OrgId>,
    ) -> Result<IngestReport> {
        let error = match outcome {
            Err(error) if !self.cancel.is_cancelled() => error,
            outcome => return outcome,
        };
        match self.lake.check_open(org).await {
            Err(fenced) if fenced.code() == ErrorCode::LakeFenced => Err(fenced.caused_by(error)),
            _ => Err(error),
        }
    }
}

/// Says how a run ended, in its own span.
async fn told(work: impl Future<Output = Result<IngestReport>>) -> Result<IngestReport> {
    let outcome = work.await;
    let spent = outcome.as_ref().map(spent).unwrap_or_default();
    match &outcome {
        Ok(_) => tracing::info!("the run succeeded"),
        // Whoever started it is shown the error.
        Err(error) => tracing::info!(code = %error.code(), "the run ended: {error}"),
    }
    telemetry::note_end(&Span::current(), state(&outcome).as_str(), &outcome, spent);
    outcome
}

/// What counts for the org's limits of a day.
pub(crate) fn spent(report: &IngestReport) -> Spent {
    Spent { rows: report.rows_read, bytes: report.file_bytes }
}

/// How a run ended, in the store's words: its state, and the report's or the error's JSON.
pub(crate) fn ended<T: Serialize>(outcome: &Result<T>) -> (RunState, String) {
    let text = match outcome {
        // A report is made of texts and numbers.
        Ok(report) => serde_json::to_string(report).unwrap_or_default(),
        Err(error) => output::error_json(error).to_string(),
    };
    (state(outcome), text)
}

fn state<T>(outcome: &Result<T>) -> RunState {
    match outcome {
        Ok(_) => RunState::Succeeded,
        Err(error) if error.code() == ErrorCode::Cancelled => RunState::Cancelled,
        Err(_) => RunState::Failed,
    }
}
