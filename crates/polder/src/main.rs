//! The `polder` binary: argv in, exit code out.
//!
//! Only this crate knows the command line and HTTP. What a command does lives in `cli/`,
//! what a job does in `worker.rs`, what it may hold in `room.rs`, how an org goes in `eraser.rs`, what both need opened in `app.rs`,
//! what is offered over HTTP in `serve/`, and to agents in `mcp/`; what they boot with in `bootstrap/`; in which
//! processes queries run in `processes/`; what is told of all that in `telemetry/`.

// The futures of maintenance lie deeper in one another than the compiler looks by itself.
#![recursion_limit = "256"]

mod airflow;
mod alerts;
mod answer;
mod app;
mod bootstrap;
mod caps;
mod cli;
mod eraser;
mod exit;
mod mcp;
mod outgoing;
mod output;
mod processes;
mod progress;
mod room;
mod serve;
mod telemetry;
mod validator;
mod worker;

use std::process::ExitCode;

use clap::Parser;

/// Open files wished for: writers keep one for each partition they are in.
const OPEN_FILES: u64 = 16_384;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    // Where the limit cannot be raised, what needs more files says so itself.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: the runtime cannot be started: {error}"));
            return ExitCode::from(exit::FAILED);
        }
    };
    let code = match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            exit::of(&error)
        }
    };
    // A reader that still blocks on its source must not hold the exit back.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ExitCode::from(code)
}
