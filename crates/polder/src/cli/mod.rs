//! The command line: one module a command.

mod apply;
mod audit;
mod certificate;
mod check;
mod churn;
mod discover;
mod export;
mod hold;
mod init;
mod keys;
mod maintain;
mod manifest;
mod mcp;
mod pin;
mod query;
mod query_process;
mod rollback;
mod run;
mod schema;
mod selection;
mod serve;
mod tables;
mod trino;
mod undo;
mod validate;
mod versions;
mod worker;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use polder_core::Result;

pub(crate) use churn::document as churn_document;

pub(crate) use query::{bootstraps, engine, engine_in, flat};

use crate::app::App;
use crate::telemetry::{self, Telemetry};
use crate::{exit, output};

/// A data lake for companies that serve many orgs: PostgreSQL, MongoDB and files into per-org
/// Iceberg tables, and SQL over them.
#[derive(Debug, Parser)]
#[command(name = "polder", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The process configuration; pipelines are read from `pipelines/` beside it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first configuration into a folder.
    Init(init::Init),
    /// Check the configuration and everything it names, changing nothing.
    Check(check::Check),
    /// Print the JSON Schema of the configuration, for editors.
    Schema(schema::Schema),
    /// List the tables a source offers, with columns, keys and cursor candidates.
    Discover(discover::Discover),
    /// Say what the pipeline files would change, in terms of the lake.
    Plan(apply::PlanFiles),
    /// Carry out what `polder plan` said.
    Apply(apply::ApplyFiles),
    /// List settings by which rows or states are going to go, and take them back.
    Undo(undo::Undo),
    /// Bring lake tables up to date with their sources.
    Run(run::Run),
    /// Prove that lake tables equal their sources, and keep what was found.
    Validate(validate::Validate),
    /// List the lake's tables.
    Tables(tables::Tables),
    /// List the published versions of an org's tables.
    Versions(versions::Versions),
    /// Make an older version of a table the current one.
    Rollback(rollback::Rollback),
    /// Keep states of tables under a name, for training that can be repeated.
    Pin(pin::Pin),
    /// Write a pin's rows in the form that others train from.
    Export(export::Export),
    /// Look after tables between runs.
    Maintain(maintain::Maintain),
    /// Write down which tables there are, for an orchestrator (Airflow).
    Manifest(manifest::Manifest),
    /// Answer one SQL query over the lake and the sources.
    Query(query::Query),
    /// Answer the queries of a server, which starts it.
    #[command(hide = true)]
    QueryProcess(query_process::QueryProcess),
    /// Write what Trino needs to see the lake and the sources.
    Trino(trino::Trino),
    /// Serve the lake to an agent: the Model Context Protocol over stdin and stdout.
    Mcp(mcp::Mcp),
    /// Make, list, revoke and rotate the keys of the API.
    Keys(keys::Keys),
    /// Look at the audit log, and verify that it is whole.
    Audit(audit::Audit),
    /// Serve the API at /v1 and the Iceberg REST catalog at /iceberg, and carry out queued runs.
    Serve(serve::Serve),
    /// Carry out queued runs beside `polder serve`, which keeps its store in PostgreSQL.
    Worker(worker::Worker),
    /// Fence an org that leaves, erase everything of it and print the certificate.
    Churn(churn::Churn),
    /// Verify and show certificates of erasures, and make the key that signs them.
    Certificate(certificate::Certificate),
    /// Keep an org, or a table of it, from being removed, for legal reasons.
    Hold(hold::Hold),
    /// Print the version, and those of the formats and engines inside.
    Version,
}

/// Carries out the command and says with which code to exit.
pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    let load = || App::load(arguments.config.as_deref());
    if !arguments.command.is_watched() {
        telemetry::print();
    }
    match arguments.command {
        Command::Init(init) => init.run().await,
        Command::Check(check) => Box::pin(check.run(load)).await,
        Command::Schema(schema) => Ok(schema.run()),
        Command::Discover(discover) => discover.run(&load()?).await,
        Command::Plan(plan) => Box::pin(plan.run(load()?)).await,
        Command::Apply(apply) => Box::pin(apply.run(load()?)).await,
        Command::Undo(undo) => Box::pin(undo.run(&load()?)).await,
        Command::Run(run) => watched(load()?, |app| Box::pin(run.run(app))).await,
        Command::Validate(validate) => Box::pin(validate.run(&load()?.looked().await?)).await,
        Command::Tables(tables) => tables.run(&load()?).await,
        Command::Versions(versions) => versions.run(&load()?).await,
        Command::Rollback(rollback) => rollback.run(&load()?).await,
        Command::Pin(pin) => pin.run(&load()?).await,
        Command::Export(export) => Box::pin(export.run(&load()?)).await,
        Command::Maintain(maintain) => Box::pin(maintain.run(&load()?.looked().await?)).await,
        Command::Manifest(manifest) => manifest.run(&load()?.looked().await?).await,
        Command::Query(query) => Box::pin(query.run(&load()?)).await,
        Command::QueryProcess(process) => Box::pin(process.run(load)).await,
        Command::Trino(trino) => Box::pin(trino.run(load()?)).await,
        Command::Mcp(mcp) => Box::pin(mcp.run(load()?)).await,
        Command::Serve(serve) => watched(load()?, |app| Box::pin(serve.run(app))).await,
        Command::Worker(worker) => watched(load()?, |app| Box::pin(worker::run(worker, app))).await,
        Command::Keys(keys) => keys.run(&load()?).await,
        Command::Audit(audit) => Box::pin(audit.run(&load()?)).await,
        Command::Churn(churn) => Box::pin(churn.run(&load()?)).await,
        Command::Certificate(certificate) => certificate.run(load).await,
        Command::Hold(hold) => hold.run(&load()?).await,
        Command::Version => {
            output::line(&format!("polder {}", env!("CARGO_PKG_VERSION")));
            output::line(&format!("iceberg format 2, arrow {}", arrow::ARROW_VERSION));
            output::line(&format!("datafusion {}", polder_query::DATAFUSION_VERSION));
            Ok(exit::OK)
        }
    }
}

impl Command {
    /// Whether it has runs or requests, of which there are logs and traces.
    const fn is_watched(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Serve(_) | Self::Worker(_))
    }
}

/// Carries out such a command.
async fn watched<F>(app: App, work: impl FnOnce(App) -> F) -> Result<u8>
where
    F: Future<Output = Result<u8>>,
{
    let telemetry = Telemetry::begin(&app)?;
    let ended = work(app).await;
    telemetry.end().await;
    ended
}
