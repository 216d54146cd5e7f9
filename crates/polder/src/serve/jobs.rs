//! What a queued run does: one function for each kind, joining the queue to the data plane.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::Utc;
use futures::FutureExt;
use polder_control::alerts::Alert;
use polder_control::desired::{self, Pending};
use polder_control::queue::{JobKind, QueuedRun};
use polder_control::{OrgPipeline, Spent, Store};
use polder_core::spec::{OrgLimits, TableSpec};
use polder_core::validation::Verdict;
use polder_core::{Authorized, Engine, Error, ErrorCode, OrgId, Principal, Result, RunProgress};
use polder_lake::Lake;
use polder_pipeline::{MaintainLimits, MaintainRequest, Maintenance, ValidationReport, maintain};
use polder_query::TrinoEngine;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::alerts::Alerts;
use crate::app::App;
use crate::validator::{Validator, Wanted};
use crate::worker::{How, Job, Watched, Worker, spent};

/// What runs are carried out with.
pub(crate) struct Jobs {
    pub(crate) app: Arc<App>,
    pub(crate) store: Store,
    lake: Lake,
    /// Answers the checks of table specs.
    engine: Arc<dyn Engine>,
    /// Optimizes the tables that say so, and carries out their runs where it is to.
    trino: Option<Arc<TrinoEngine>>,
    validator: Validator,
}

/// What a run did.
pub(super) struct Done {
    /// JSON.
    pub(super) report: String,
    pub(super) spent: Spent,
    /// What a validation found.
    pub(super) verdict: Option<Verdict>,
    /// Whom to tell of it.
    pub(super) alerts: Vec<Alert>,
}

impl Done {
    fn of(report: String, spent: Spent) -> Self {
        Self { report, spent, verdict: None, alerts: Vec::new() }
    }
}

/// The table of a run, and the org with its limits.
struct Of {
    org: Authorized<OrgId>,
    limits: OrgLimits,
    /// Keeping what can still be taken back.
    table: TableSpec,
    pending: Option<Pending>,
}

impl Jobs {
    /// # Errors
    /// As [`Alerts::open`] and [`App::trino`].
    pub(crate) fn open(
        app: Arc<App>,
        store: Store,
        lake: Lake,
        engine: Arc<dyn Engine>,
    ) -> Result<Self> {
        let validator = Validator {
            lake: lake.clone(),
            engine: Arc::clone(&engine),
            alerts: Alerts::open(&app)?,
            room: Arc::clone(&app.room),
        };
        let trino = app.trino()?;
        Ok(Self { app, store, lake, engine, trino, validator })
    }

    /// Until when a run that was taken is to wait, by what its table's schedule says now: a validation, for
    /// its hours.
    pub(super) async fn waits_until_ms(&self, run: &QueuedRun) -> Result<Option<i64>> {
        if !run.off_peak {
            return Ok(None);
        }
        let org = Principal::Operator.authorize(&run.org)?;
        let of = self.table(org, &run.table).await?;
        let now = self.store.now_ms();
        Ok(of.table.schedule.and_then(|schedule| schedule.validation_waits_until_ms(now)))
    }

    pub(super) async fn carry_out(
        &self,
        run: &QueuedRun,
        progress: &Arc<RunProgress>,
        cancel: &CancellationToken,
    ) -> Result<Done> {
        let org = Principal::Operator.authorize(&run.org)?;
        let of = self.table(org, &run.table).await?;
        match run.kind {
            JobKind::Ingest => self.ingest(run, of, progress, cancel).boxed().await,
            JobKind::Validate => {
                let report = self.validate(&of, progress, cancel).boxed().await?;
                let (verdict, checks) = (report.verdict.as_str(), report.checks.len());
                tracing::info!(verdict, checks, "the table was held to its source");
                let alerts = self.validator.alerts_of(&of.org, &of.table, &report);
                let done = Done::of(written(&report)?, Spent::default());
                Ok(Done { verdict: Some(report.verdict), alerts, ..done })
            }
            JobKind::Maintain => {
                let report = self.maintain(of, progress, cancel).boxed().await?;
                Ok(Done::of(report, Spent::default()))
            }
        }
    }

    /// Who is told of validations.
    pub(super) fn alerts(&self) -> &Alerts {
        &self.validator.alerts
    }

    async fn ingest(
        &self,
        run: &QueuedRun,
        Of { org, limits, table, .. }: Of,
        progress: &Arc<RunProgress>,
        cancel: &CancellationToken,
    ) -> Result<Done> {
        let source = self.app.source(&table.source)?;
        let worker = Worker {
            lake: self.lake.clone(),
            store: self.store.clone(),
            sources: Arc::new(BTreeMap::from([(table.source.clone(), source)])),
            engine: Arc::clone(&self.engine),
            elsewhere: self.app.elsewhere(self.trino.as_ref()),
            room: Arc::clone(&self.app.room),
            cancel: cancel.clone(),
        };
        let how = How { full_refresh: run.full_refresh, dry_run: false };
        let job = Job::Ingest { org, limits, table, how };
        let watched = Watched { job, progress: Arc::clone(progress) };
        let report = Box::pin(worker.ingest_as(run.run_id, watched)).await?;
        Ok(Done::of(written(&report)?, spent(&report)))
    }

    async fn validate(
        &self,
        Of { org, limits, table, .. }: &Of,
        progress: &Arc<RunProgress>,
        cancel: &CancellationToken,
    ) -> Result<ValidationReport> {
        let source = self.app.source(&table.source)?;
        let wanted = Wanted {
            org,
            limits,
            table,
            source: &*source,
            fresh_within: None,
            progress: Arc::clone(progress),
            cancel: cancel.clone(),
        };
        self.validator.validate(wanted).boxed().await
    }

    /// Everything that a table's policies say, as `polder maintain all` does it to one table.
    async fn maintain(
        &self,
        Of { org, limits, table, pending }: Of,
        progress: &Arc<RunProgress>,
        cancel: &CancellationToken,
    ) -> Result<String> {
        let place = self.app.room.enter(org.get(), &limits, progress, cancel).await?;
        let limits = MaintainLimits {
            memory_bytes: place.memory_bytes,
            workers: NonZeroUsize::MIN,
            cancel: cancel.clone(),
        };
        if let Some(pending) = &pending {
            let (until, goes) = (pending.until.as_str(), pending.goes.join("; "));
            tracing::info!(until, "what can be taken back is not carried out: {goes}");
        }
        let optimizer = self.app.optimizer(&table, self.trino.as_ref())?;
        let mut done: Vec<Value> = Vec::new();
        // A table that was never loaded has nothing to look after.
        let there = self.lake.table(&org, &table.name).await?.is_some();
        let actions = if there { &Maintenance::ALL[..] } else { &[] };
        for &action in actions {
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorCode::Cancelled, "the maintenance was cancelled"));
            }
            let request = MaintainRequest {
                org: org.clone(),
                table: table.clone(),
                action,
                now: Utc::now(),
                limits: limits.clone(),
                optimizer: optimizer.clone(),
                progress: Arc::clone(progress),
                dry_run: false,
            };
            let report = maintain(&self.lake, &request).boxed().await?;
            tracing::info!(
                action = report.action,
                changed = report.done.changed(),
                duration_ms = report.duration_ms,
                "the table was looked after",
            );
            done.push(json!({
                "id": report.id,
                "action": report.action,
                "done": report.done.document(),
                "before": report.before,
                "after": report.after,
                "duration_ms": report.duration_ms,
            }));
        }
        let (org, table) = (org.get().as_str(), &table.name);
        written(&json!({ "org": org, "table": table, "actions": done, "pending": pending }))
    }

    /// What the desired state says of the table and its org now, not when the run was asked for.
    async fn table(&self, org: Authorized<OrgId>, name: &str) -> Result<Of> {
        let gone = || {
            let message = format!("org {} has no table {name:?} any more", org.get());
            Error::new(ErrorCode::ControlNotFound, message)
        };
        let found = desired::org(&self.store, &org).await?;
        let (document, templates) = found.ok_or_else(gone)?;
        let process = &self.app.config.process;
        let effective = desired::effective(process, &templates, org.get(), &document)?;
        let OrgPipeline { tables, limits, .. } = effective.pipeline();
        let table = tables.into_iter().find(|table| table.name == name);
        let mut table = table.ok_or_else(gone)?;
        let undo = desired::undo_of(&self.store, &org, name).await?;
        let pending = undo.as_ref().and_then(|undo| undo.pending(org.get(), &table));
        if let Some(undo) = undo {
            undo.hold(&mut table);
        }
        Ok(Of { org, limits, table, pending })
    }
}

fn written(report: &impl Serialize) -> Result<String> {
    serde_json::to_string(report).map_err(|cause| {
        Error::new(ErrorCode::Internal, "a run's report cannot be written as JSON").caused_by(cause)
    })
}
