//! What is done to tables between runs: each action on its own, and by the policies of a table spec.

mod action;
mod copy;
mod history;
mod retention;
mod rewrite;

pub use action::{
    Done, ExpiryReport, MaintainLimits, MaintainReport, MaintainRequest, Maintenance, maintain,
    sweep,
};
pub(crate) use retention::too_old;
pub use retention::{RetentionReport, RetentionRequest, retain};
pub use rewrite::{RewriteReport, RewriteRequest, Wanted, rewrite};
