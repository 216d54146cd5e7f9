//! Carries out jobs: the one place where the control plane's decisions meet the data plane.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use polder_control::runs::{self, RunState};
use polder_control::{OrgPipeline, Store};
use polder_core::spec::{Limits, TableSpec};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result, RunProgress, Source};
use polder_lake::Lake;
use polder_pipeline::{IngestLimits, IngestReport, IngestRequest, ingest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::output;

/// How often a run looks whether its org was fenced by another process.
const FENCE_WATCH: Duration = Duration::from_secs(1);

/// Something to do for one org.
pub(crate) enum Job {
    /// Bring one lake table up to date.
    Ingest { org: Authorized<OrgId>, table: TableSpec, how: How },
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
        let job = |table: &TableSpec| Self::Ingest { org: org.clone(), table: table.clone(), how };
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

/// Carries out jobs side by side, within the process's limits.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) lake: Lake,
    pub(crate) store: Store,
    pub(crate) sources: Arc<BTreeMap<String, Arc<dyn Source>>>,
    pub(crate) limits: Limits,
    pub(crate) cancel: CancellationToken,
}

impl Worker {
    /// Runs all jobs and hands each one's end to `ended`, in the order they end.
    pub(crate) async fn run(&self, jobs: Vec<Watched>, mut ended: impl FnMut(Ended)) {
        let places = Arc::new(Semaphore::new(self.limits.runs.max(1)));
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
        let Watched { job: Job::Ingest { org, table, how }, progress } = watched;
        let (id, name) = (org.get().clone(), table.name.clone());
        let outcome = Box::pin(self.ingest(org, table, how, progress)).await;
        Ended { org: id, table: name, outcome }
    }

    async fn ingest(
        &self,
        org: Authorized<OrgId>,
        table: TableSpec,
        how: How,
        progress: Arc<RunProgress>,
    ) -> Result<IngestReport> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the run was cancelled before it began"));
        }
        self.lake.check_open(&org).await?;
        let run_id = if how.dry_run {
            Uuid::new_v4()
        } else {
            runs::enqueue(&self.store, &org, &table.name).await?
        };
        let job = Job::Ingest { org: org.clone(), table, how };
        let outcome = self.ingest_as(run_id, Watched { job, progress }).await;
        if how.dry_run {
            return outcome;
        }
        let (state, report) = ended(&outcome);
        // The table is the truth; a record that cannot be written must not fail the run.
        if let Err(error) = runs::finish(&self.store, &org, run_id, state, &report).await {
            tracing::warn!(%run_id, "the end of the run was not recorded: {error}");
        }
        outcome
    }

    /// Carries out a run that has its record already.
    pub(crate) async fn ingest_as(&self, run_id: Uuid, watched: Watched) -> Result<IngestReport> {
        let Watched { job: Job::Ingest { org, table, how }, progress } = watched;
        let source = self.sources.get(&table.source).ok_or_else(|| {
            Error::new(ErrorCode::Internal, format!("source {:?} was not opened", table.source))
        })?;
        let request = IngestRequest {
            org,
            run_id,
            table,
            full_refresh: how.full_refresh,
            dry_run: how.dry_run,
            limits: self.ingest_limits(),
            progress,
            cancel: self.cancel.child_token(),
        };
        let outcome = tokio::select! {
            outcome = ingest(&self.lake, source.as_ref(), &request) => outcome,
            () = self.cancel_if_fenced(&request) => unreachable!("it watches until the run ends"),
        };
        self.explained(outcome, &request.org).await
    }

    /// Cancels the run once its org is fenced. Never ends.
    async fn cancel_if_fenced(&self, request: &IngestRequest) {
        loop {
            tokio::time::sleep(FENCE_WATCH).await;
            let open = self.lake.check_open(&request.org).await;
            if open.is_err_and(|error| error.code() == ErrorCode::LakeFenced) {
                request.cancel.cancel();
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

    fn ingest_limits(&self) -> IngestLimits {
        let runs = self.limits.runs.max(1);
        IngestLimits {
            splits: NonZeroUsize::new(self.limits.splits).unwrap_or(NonZeroUsize::MIN),
            memory_bytes: (self.limits.memory_mb << 20) / runs,
        }
    }
}

/// How a run ended, in the store's words: its state, and the report's or the error's JSON.
pub(crate) fn ended(outcome: &Result<IngestReport>) -> (RunState, String) {
    match outcome {
        // A report is made of texts and numbers.
        Ok(report) => (RunState::Succeeded, serde_json::to_string(report).unwrap_or_default()),
        Err(error) => {
            let cancelled = error.code() == ErrorCode::Cancelled;
            let state = if cancelled { RunState::Cancelled } else { RunState::Failed };
            (state, output::error_json(error).to_string())
        }
    }
}
