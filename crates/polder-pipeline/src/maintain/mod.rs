//! What is done to tables between runs: each action on its own, and by the policies of a table spec.

mod action;
mod copy;
mod elsewhere;
mod history;
mod retention;
mod rewrite;
mod sort;

pub use action::{
    Done, ExpiryReport, MaintainLimits, MaintainReport, MaintainRequest, Maintenance, maintain,
    sweep,
};
pub use history::{MaintenancePlace, MaintenanceRecord, maintenance_history};
pub(crate) use retention::too_old;
pub use retention::{RetentionReport, RetentionRequest, retain};
pub use rewrite::{RewriteReport, RewriteRequest, Wanted, rewrite};
