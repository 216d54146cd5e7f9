//! The data plane: what a run does, as plain async functions over the seams.
//!
//! Nothing here knows where a configuration came from, when it should run or who is watching: the
//! caller hands in a source, the lake and a [`polder_core::RunProgress`], and gets a report.

mod erase;
pub mod ingest;
mod maintain;
mod validate;

pub use erase::{erase_step, record_erasure};
pub use ingest::{IngestLimits, IngestReport, IngestRequest, Outcome, expected_guarantee, ingest};
pub use maintain::{
    Done, ExpiryReport, MaintainLimits, MaintainReport, MaintainRequest, Maintenance,
    MaintenancePlace, MaintenanceRecord, RetentionReport, RetentionRequest, RewriteReport,
    RewriteRequest, Wanted, maintain, maintenance_history, retain, rewrite, sweep,
};
pub use validate::{
    LastVerdict, Quarantine, ValidateRequest, ValidationReport, Verdicts, validate,
    validate_and_keep, verdicts,
};
