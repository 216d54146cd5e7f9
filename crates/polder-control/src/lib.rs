//! The control plane: configuration, desired state, keys, the queue of runs and their logs, what orgs
//! use, the audit log, secrets, orgs that leave and the certificates of it.
//!
//! Decides what should run for whom, and remembers what did. It reads no source and writes no
//! table; `crates/polder/src/worker.rs` joins it to the data plane.

pub mod alerts;
pub mod audit;
pub mod certificate;
pub mod churn;
pub mod clock;
pub mod config;
pub mod desired;
pub mod idempotency;
pub mod keys;
pub mod queue;
pub mod run_logs;
pub mod runs;
pub mod schedule;
pub mod secrets;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod usage;
pub mod verdicts;

pub use churn::{Churn, ChurnState, Notice};
pub use clock::Clock;
pub use config::{Config, OrgPipeline};
pub use secrets::ProcessSecrets;
pub use store::Store;
pub use usage::Spent;
