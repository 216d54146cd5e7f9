//! The binary from outside: commands in, output, exit codes and tables out.
//!
//! Modules under `service` need the servers of `cargo xtask services up`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod churn;
mod configuration;
mod files;
mod http;
mod manifest;
mod processes;
mod project;
mod scheduling;
mod secrets;
mod serve;
mod service;
mod telemetry;
mod validate;
