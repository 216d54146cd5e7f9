//! Project automation: one entry point for everything that is more than one cargo command.
//!
//! Nothing here is part of the product. Only the standard library, JSON and TOML, so that it
//! compiles in seconds on a machine that has nothing yet. Linux only: it reads `/proc`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod bench;
mod ci;
mod command;
mod demo;
mod places;
mod process;
mod rck;
mod release;
mod services;
mod tidy;

use std::env;
use std::process::ExitCode;

/// Automation fails with a text for the person at the terminal; nobody branches on it.
type Result<T = ()> = std::result::Result<T, String>;

const HELP: &str = "\
cargo xtask <command>

  check                   quick loop: tidy, clippy, tests that need no server
  test                    everything: install, services, all tests, reader tests
  stress [--seconds N]    many writers of one table, on every catalog, for N (180) seconds each
  longer                  random histories of a table, and erasures of an org that is being loaded
         [--histories N] [--races N]  10,000 and 500; hours
  fidelity                every type of the sources, read back; writes docs/reference/types.md
  ci                      fmt, tidy, clippy, test, doc, deny, unused dependencies
  tidy                    layering, sizes, banned words, ARCHITECTURE.md's map
  services install        PostgreSQL and the Python environment, if missing
  services up|down|env    real PostgreSQL, MongoDB-protocol and S3 servers on 127.0.0.1
           [--name NAME]  another instance than `test`
           [--purge]      down: remove the instance's data too
  demo [up|down]          the whole story on generated data (see demo/)
  release [--portable]    target/release/polder, for processors like this one's; or for all
  rck [ARGS for mvn]      Iceberg's REST Compatibility Kit against `polder serve`
           [--catalog URL] first: its catalog in another database than a new SQLite one
  bench ingest            PostgreSQL to Iceberg against a plain drain and other loaders
           [--scale N] [--runs N] [--no-peers] [--spark] [--json]
  bench changes           runs after 1 % has changed, and after nothing has
           [--scale N] [--runs N] [--upsert] [--orgs N] [--json]
  bench documents         MongoDB to Iceberg against a raw drain and pymongoarrow
           [--documents N] [--runs N] [--json]
  bench validate          the audit of a load, and validations against the source's own digest query
           [--scale N] [--runs N] [--json] [--check]
  bench catalog           `polder serve` against Iceberg's reference server, up to 100,000 tables
           [--tables N]... [--seconds N] [--runs N] [--json] [--check]
  bench optimize          1,000 small files merged by `polder maintain optimize`, by Spark and by Trino
           [--files N] [--runs N] [--alone] [--json] [--check]
  bench trickle           1,000 tiny appends after maintenance, next to a table loaded at once
           [--appends N] [--rows N] [--runs N] [--json] [--check]
  bench erase             an org of 100,000 objects on S3 erased while another is worked for
           [--objects N] [--json] [--check]
  bench control           10,000 orgs in one configuration; how punctual schedules are
           [--orgs N] [--tables N] [--hourly N] [--window SECONDS] [--json]
  bench bootstrap         all rows of an org as one stream, next to PyIceberg
           [--rows N] [--runs N] [--json]
  bench query             TPC-H's queries on Iceberg tables, next to DuckDB and Trino
           [--scale N] [--runs N] [--memory-mb MB] [--json] [--check]
  bench airflow           Airflow parses the DAGs of 5,000 orgs, and one of them
           [--orgs N] [--tables N] [--runs N] [--json] [--check]
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["check"] => ci::check(),
        ["test"] => ci::test(),
        ["stress", rest @ ..] => ci::stress(rest),
        ["longer", rest @ ..] => ci::longer(rest),
        ["fidelity"] => ci::fidelity(),
        ["ci"] => ci::ci(),
        ["tidy"] => tidy::run(),
        ["services", rest @ ..] => services::command(rest),
        ["demo"] | ["demo", "up"] => demo::up(),
        ["demo", "down"] => demo::down(),
        ["release", rest @ ..] => release::command(rest),
        ["rck", rest @ ..] => rck::rck(rest),
        ["bench", "ingest", rest @ ..] => bench::ingest(rest),
        ["bench", "changes", rest @ ..] => bench::changes(rest),
        ["bench", "documents", rest @ ..] => bench::documents(rest),
        ["bench", "validate", rest @ ..] => bench::validate(rest),
        ["bench", "catalog", rest @ ..] => bench::catalog(rest),
        ["bench", "optimize", rest @ ..] => bench::optimize(rest),
        ["bench", "trickle", rest @ ..] => bench::trickle(rest),
        ["bench", "erase", rest @ ..] => bench::erase(rest),
        ["bench", "control", rest @ ..] => bench::control(rest),
        ["bench", "bootstrap", rest @ ..] => bench::bootstrap(rest),
        ["bench", "query", rest @ ..] => bench::query(rest),
        ["bench", "airflow", rest @ ..] => bench::airflow(rest),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("unknown command `{}`\n\n{HELP}", args.join(" "))),
    }
}
