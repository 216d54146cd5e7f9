//! Benchmarks against real servers: each builds the binary as users get it, gets ready what it is
//! compared with and leaves the measuring to a program below `xtask/bench/`.

use crate::command::{cargo, command, quiet_status, run};
use crate::services::{self, Guard, Instance, Server};
use crate::{Result, places};

/// `bench ingest [--scale N] [--runs N] [--json]`; loaded data stays for the next call.
pub(crate) fn ingest(args: &[&str]) -> Result {
    services::install()?;
    build()?;
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

/// `bench catalog [--tables N]… [--seconds S] [--runs R] [--json]`: what `polder serve` offers at
/// `/iceberg`, next to Iceberg's reference server.
pub(crate) fn catalog(args: &[&str]) -> Result {
    services::install()?;
    services::install_wrk()?;
    services::install_reference()?;
    build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/catalog.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--reference").arg(places::rest_jars());
    python.arg("--work").arg(places::target().join("bench-catalog"));
    if let Some(java) = places::java_17() {
        python.arg("--java").arg(java.join("bin/java"));
    }
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench optimize [--files N] [--runs N] [--json]`: many small files merged into few.
pub(crate) fn optimize(args: &[&str]) -> Result {
    services::install()?;
    build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/optimize.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-optimize"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench bootstrap [--rows N] [--runs N] [--json]`: an org's rows as one stream, next to PyIceberg.
pub(crate) fn bootstrap(args: &[&str]) -> Result {
    services::install()?;
    build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/bootstrap.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-bootstrap"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

fn build() -> Result {
    run("building polder (release)", &mut cargo(&["build", "--release", "--package", "polder"]))
}
