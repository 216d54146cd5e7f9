//! Validates tables: what the command line, servers and schedules have in common. What is found is kept
//! in the lake by the pipeline, and recorded in the store by whoever asked, with the alerts that are to be sent.

use std::sync::Arc;
use std::time::Duration;

use polder_control::alerts::Alert;
use polder_core::spec::{OrgLimits, TableSpec};
use polder_core::{Authorized, Engine, OrgId, Result, RunProgress, Source};
use polder_lake::Lake;
use polder_pipeline::{ValidateRequest, ValidationReport, validate_and_keep};
use tokio_util::sync::CancellationToken;

use crate::alerts::Alerts;
use crate::room::Room;

/// The means to validate.
#[derive(Clone)]
pub(crate) struct Validator {
    pub(crate) lake: Lake,
    /// Answers the checks of table specs.
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) alerts: Alerts,
    pub(crate) room: Arc<Room>,
}

/// One table to validate.
pub(crate) struct Wanted<'a> {
    pub(crate) org: &'a Authorized<OrgId>,
    pub(crate) limits: &'a OrgLimits,
    pub(crate) table: &'a TableSpec,
    pub(crate) source: &'a dyn Source,
    /// Another freshness target than the spec's.
    pub(crate) fresh_within: Option<Duration>,
    pub(crate) progress: Arc<RunProgress>,
    pub(crate) cancel: CancellationToken,
}

impl Validator {
    /// Validates a table, keeps the results, does what the policy says.
    ///
    /// # Errors
    /// As [`validate_and_keep`] and [`Room::enter`]; `lake.fenced` for an org that has left or is leaving.
    pub(crate) async fn validate(&self, wanted: Wanted<'_>) -> Result<ValidationReport> {
        let Wanted { org, limits, table, source, fresh_within, progress, cancel } = wanted;
        let place = self.room.enter(org.get(), limits, &progress, &cancel).await?;
        // The org may have left while it waited.
        self.lake.check_open(org).await?;
        let request = ValidateRequest {
            org: org.clone(),
            table: table.clone(),
            limits: place.limits(),
            fresh_within: fresh_within.unwrap_or_else(|| table.validation.freshness_target()),
            engine: Some(Arc::clone(&self.engine)),
            progress,
            cancel,
        };
        Box::pin(validate_and_keep(&self.lake, source, &request)).await
    }

    /// What is to be told of a validation.
    pub(crate) fn alerts_of(
        &self,
        org: &Authorized<OrgId>,
        table: &TableSpec,
        report: &ValidationReport,
    ) -> Vec<Alert> {
        self.alerts.of(org.get(), &table.validation, report)
    }
}
