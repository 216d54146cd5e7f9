//! `polder maintain`: what is done to tables between runs.

use clap::{Args, Subcommand};
use polder_core::{Principal, Result};
use polder_pipeline::{RepartitionReport, RepartitionRequest, repartition};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::selection::Selection;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Maintain {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Rewrite old files into the partitions that the pipelines ask for.
    Repartition(Repartition),
}

#[derive(Debug, Args)]
struct Repartition {
    #[command(flatten)]
    selection: Selection,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Maintain {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let Command::Repartition(repartition) = &self.command;
        repartition.run(app).await
    }
}

impl Repartition {
    async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let pipelines = self.selection.pipelines(&app.config.pipelines)?;
        let tables = pipelines
            .iter()
            .flat_map(|pipeline| pipeline.tables.iter().map(|table| (&pipeline.org, table)));
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let mut signal = std::pin::pin!(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                output::note("stopping after the files in hand");
                stop.cancel();
            }
            std::future::pending::<()>().await;
        });
        let mut reports = Vec::new();
        for (org, table) in tables {
            let org = Principal::Operator.authorize(org)?;
            if lake.table(&org, &table.name).await?.is_none() {
                continue;
            }
            let request = RepartitionRequest {
                org,
                table: table.name.clone(),
                partition: table.partition.clone(),
                memory_bytes: app.config.process.limits.memory_mb << 20,
                cancel: cancel.clone(),
            };
            let report = tokio::select! {
                report = Box::pin(repartition(&lake, &request)) => report?,
                () = &mut signal => unreachable!("the signal's future never ends"),
            };
            if !self.json {
                output::line(&sentence(&report));
            }
            reports.push(report);
        }
        if self.json {
            output::document(&json!({ "tables": reports }));
        }
        Ok(exit::OK)
    }
}

fn sentence(report: &RepartitionReport) -> String {
    let of = format!("{}.{}", report.org, report.table);
    if report.commits == 0 {
        return format!("{of}: every file is in its partition");
    }
    format!(
        "{of}: {} files ({}) became {} ({}), {} rows, {} commits, {:.1} s",
        output::number(report.files_replaced as u64),
        output::bytes(report.bytes_read),
        output::number(report.files_written as u64),
        output::bytes(report.bytes_written),
        output::number(report.rows),
        report.commits,
        report.duration_ms as f64 / 1000.0,
    )
}
