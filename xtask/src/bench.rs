//! Benchmarks against real servers: each builds the binary as users get it, gets ready what it is
//! compared with and leaves the measuring to a program below `xtask/bench/`.

use std::fs;
use std::path::PathBuf;

use crate::command::{command, quiet_status};
use crate::services::{self, Guard, Instance, Server};
use crate::{Result, places, release};

/// `bench ingest [--scale N] [--runs N] [--no-peers] [--spark] [--json]`; loaded data stays for the next
/// call.
pub(crate) fn ingest(args: &[&str]) -> Result {
    let beside = if args.contains(&"--spark") { Beside::PeersAndSpark } else { Beside::Peers };
    from_postgres("ingest.py", "bench", args, &beside)
}

/// `bench changes [--scale N] [--runs N] [--upsert] [--orgs N] [--json]`: runs after little has changed.
pub(crate) fn changes(args: &[&str]) -> Result {
    from_postgres("changes.py", "bench", args, &Beside::Peers)
}

/// `bench validate [--scale N] [--runs N] [--json] [--check]`: what the audit of a load and a validation
/// cost, on the same tables. With `--check`, a goal that is not met is a failure.
pub(crate) fn validate(args: &[&str]) -> Result {
    from_postgres("validate.py", "bench-validate", args, &Beside::Nobody)
}

/// Who takes part in a program that is measured.
#[derive(PartialEq)]
enum Beside {
    Nobody,
    Peers,
    PeersAndSpark,
}

/// A program that loads PostgreSQL and reads it, with its files in `work`.
fn from_postgres(program: &str, work: &str, args: &[&str], beside: &Beside) -> Result {
    services::install()?;
    if *beside != Beside::Nobody {
        services::install_peers()?;
    }
    if *beside == Beside::PeersAndSpark {
        services::install_engines()?;
    }
    release::build()?;
    let instance = Instance::named("bench")?;
    let guard = Guard::start(&instance, false)?;
    instance.up(&[Server::Postgres])?;
    let mut python = command(places::venv_bin("python"));
    python.arg(format!("xtask/bench/{program}")).args(args);
    python.args(["--postgres", &instance.postgres_url("bench")?]);
    python.arg("--psql").arg(services::postgres_bin()?.join("psql"));
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join(work));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    if *beside != Beside::Nobody {
        python.arg("--peers").arg(places::peers().join("bin/python"));
    }
    if *beside == Beside::PeersAndSpark {
        python.env("SPARK_JARS", places::spark_jars()).env("JDBC_JAR", jdbc_driver()?);
        if let Some(java) = places::java_17() {
            python.env("JAVA_HOME", java);
        }
    }
    let outcome = quiet_status("the benchmark", &mut python);
    outcome.and(guard.stop())
}

/// PostgreSQL's JDBC driver, which Trino brings.
fn jdbc_driver() -> Result<PathBuf> {
    let folder = places::trino().join("plugin/postgresql");
    let jars = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut drivers = jars.filter(|jar| {
        let name = jar.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.contains("postgresql-42") && jar.extension().is_some_and(|ending| ending == "jar")
    });
    drivers.next().ok_or_else(|| format!("no JDBC driver in {}", folder.display()))
}

/// `bench documents [--documents N] [--runs N] [--json]`: MongoDB next to pymongoarrow.
pub(crate) fn documents(args: &[&str]) -> Result {
    services::install()?;
    services::install_peers()?;
    release::build()?;
    let instance = Instance::named("bench")?;
    let guard = Guard::start(&instance, false)?;
    instance.up(&[Server::Mongo])?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/documents.py").args(args);
    python.args(["--mongo", &instance.mongo_url()?]);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--peers").arg(places::peers().join("bin/python"));
    python.arg("--work").arg(places::target().join("bench-documents"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    let outcome = quiet_status("the benchmark", &mut python);
    outcome.and(guard.stop())
}

/// `bench catalog [--tables N]… [--seconds S] [--runs R] [--json] [--check]`: what `polder serve` offers
/// at `/iceberg`, next to Iceberg's reference server. With `--check`, a goal that is not met is a failure.
pub(crate) fn catalog(args: &[&str]) -> Result {
    services::install()?;
    services::install_wrk()?;
    services::install_reference()?;
    release::build()?;
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

/// `bench optimize [--files N] [--runs N] [--alone] [--json] [--check]`: many small files merged into
/// few, next to Spark and Trino. With `--check`, a goal that is not met is a failure.
pub(crate) fn optimize(args: &[&str]) -> Result {
    services::install()?;
    if !args.contains(&"--alone") {
        services::install_engines()?;
    }
    release::build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/optimize.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-optimize"));
    python.arg("--spark").arg(places::spark_jars()).arg("--trino").arg(places::trino());
    if let Some(java) = places::java_17() {
        python.env("JAVA_HOME", java);
    }
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench trickle [--appends N] [--rows N] [--runs N] [--json] [--check]`: a table of many tiny appends
/// after maintenance, next to one that was loaded at once.
pub(crate) fn trickle(args: &[&str]) -> Result {
    services::install()?;
    release::build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/trickle.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-trickle"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench erase [--objects N] [--json] [--check]`: an org of many objects on S3 leaves while another one
/// is worked for.
pub(crate) fn erase(args: &[&str]) -> Result {
    services::install()?;
    release::build()?;
    let instance = Instance::named("bench")?;
    let guard = Guard::start(&instance, false)?;
    instance.up(&[Server::S3])?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/erase.py").args(args);
    python.args(["--s3", &instance.s3_url()?]);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-erase"));
    python.env("S3_ACCESS_KEY", services::ACCESS_KEY).env("S3_SECRET_KEY", services::SECRET_KEY);
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    let outcome = quiet_status("the benchmark", &mut python);
    outcome.and(guard.stop())
}

/// `bench control [--orgs N] [--tables N] [--hourly N] [--window S] [--json]`: many orgs in one
/// configuration, and how punctual scheduled runs are.
pub(crate) fn control(args: &[&str]) -> Result {
    services::install()?;
    release::build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/control.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--work").arg(places::target().join("bench-control"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench bootstrap [--rows N] [--runs N] [--json]`: an org's rows as one stream, next to PyIceberg and
/// Trino.
pub(crate) fn bootstrap(args: &[&str]) -> Result {
    services::install()?;
    services::install_engines()?;
    release::build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/bootstrap.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--trino").arg(places::trino());
    python.arg("--work").arg(places::target().join("bench-bootstrap"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench query [--scale N] [--runs N] [--memory-mb MB] [--json] [--check]`: TPC-H's queries and a point
/// query, next to DuckDB and Trino on the same tables. With `--check`, a goal that is not met is a failure.
pub(crate) fn query(args: &[&str]) -> Result {
    services::install()?;
    services::install_engines()?;
    release::build()?;
    let mut python = command(places::venv_bin("python"));
    python.arg("xtask/bench/query.py").args(args);
    python.arg("--polder").arg(places::polder("release"));
    python.arg("--trino").arg(places::trino());
    python.arg("--work").arg(places::target().join("bench-query"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}

/// `bench airflow [--orgs N] [--tables N] [--runs N] [--json] [--check]`: how long Airflow takes to parse the DAGs of
/// many orgs, and for one. With `--check`, a goal that is not met is a failure.
pub(crate) fn airflow(args: &[&str]) -> Result {
    services::install_airflow()?;
    let mut python = command(places::airflow().join("bin/python"));
    python.arg("xtask/bench/airflow_parse.py").args(args);
    python.arg("--work").arg(places::target().join("bench-airflow"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    quiet_status("the benchmark", &mut python)
}
