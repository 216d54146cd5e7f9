//! The data plane: what a run does, as plain async functions over the seams.
//!
//! Nothing here knows where a configuration came from, when it should run or who is watching: the
//! caller hands in a source, the lake and a [`polder_core::RunProgress`], and gets a report.

mod erase;
pub mod ingest;
mod maintain;
mod validate;

pub use erase::{erase_step, record_erasure};
pub use ingest::{IngestLimits, IngestReport, IngestRequest, Outcome, ingest};
pub use maintain::{
    Done, ExpiryReport, MaintainLimits, MaintainReport, MaintainRequest, Maintenance,
    RetentionReport, RetentionRequest, RewriteReport, RewriteRequest, Wanted, maintain, retain,
    rewrite, sweep,
};
pub use validate::{
    LastVerdict, ValidateRequest, ValidationReport, last_verdicts, last_verdicts_of,
    results as validation_results, validate,
};
