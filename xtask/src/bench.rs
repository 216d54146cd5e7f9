//! Benchmarks against real servers: builds the binary as users get it, starts a PostgreSQL of its
//! own and leaves the measuring to `xtask/bench/ingest.py`.

use crate::command::{cargo, command, quiet_status, run};
use crate::services::{self, Guard, Instance, Server};
use crate::{Result, places};

/// `bench ingest [--scale N] [--runs N] [--json]`; loaded data stays for the next call.
pub(crate) fn ingest(args: &[&str]) -> Result {
    services::install()?;
    run("building polder (release)", &mut cargo(&["build", "--release", "--package", "polder"]))?;
    let instance = Instance::named("bench")?;
    let guard = Guard::start(&instance, false)?;
    instance.up(&[Server::Postgres])?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/ingest.py").args(args);
    python.args(["--postgres", &instance.postgres_url("bench")?]);
    python.arg("--psql").arg(services::postgres_bin()?.join("psql"));
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    let outcome = quiet_status("the benchmark", &mut python);
    outcome.and(guard.stop())
}
