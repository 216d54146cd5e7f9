//! `polder maintain`: what is done to tables between runs.

use clap::{Args, Subcommand};
use polder_core::retention::Retention;
use polder_core::{Principal, Result};
use polder_pipeline::{RepartitionReport, RepartitionRequest, repartition};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

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
    /// Remove old versions and snapshots, and the files that only they reached.
    Expire(Expire),
}

#[derive(Debug, Args)]
struct Expire {
    #[command(flatten)]
    selection: Selection,
    /// Keep so many of the latest versions; the current one is kept beside them.
    #[arg(long, value_name = "N", default_value_t = 2)]
    versions: usize,
    /// Keep the states that have no name for so many days: queries that opened one have as long.
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    days: u32,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
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
        match &self.command {
            Command::Repartition(repartition) => repartition.run(app).await,
            Command::Expire(expire) => expire.run(app).await,
        }
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

const DAY_MS: i64 = 86_400_000;

impl Expire {
    async fn run(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let retention = Retention {
            versions: self.versions,
            history_ms: i64::from(self.days) * DAY_MS,
            history_min: 1,
        };
        let mut documents = Vec::new();
        for pipeline in self.selection.pipelines(&app.config.pipelines)? {
            let org = Principal::Operator.authorize(&pipeline.org)?;
            for table in &pipeline.tables {
                let name = &table.name;
                if lake.table(&org, name).await?.is_none() {
                    continue;
                }
                let (names, snapshots, files) = if self.dry_run {
                    let expiry = lake.expiry(&org, name, &retention).await?;
                    (expiry.names, expiry.snapshots.len(), None)
                } else {
                    let done = lake.expire(&org, name, &retention, Uuid::new_v4()).await?;
                    (done.names, done.snapshots, Some(done.files))
                };
                if !self.json {
                    let of = format!("{}.{name}", org.get());
                    output::line(&expired(&of, &names, snapshots, files));
                }
                documents.push(json!({
                    "org": org.get().as_str(),
                    "table": name,
                    "dry_run": self.dry_run,
                    "names": names,
                    "snapshots": snapshots,
                    "files": files,
                }));
            }
        }
        if self.json {
            output::document(&json!({ "tables": documents }));
        }
        Ok(exit::OK)
    }
}

/// `files`: how many were removed; `None` if nothing was.
fn expired(of: &str, names: &[String], snapshots: usize, files: Option<usize>) -> String {
    if snapshots == 0 && names.is_empty() && files.is_none_or(|files| files == 0) {
        return format!("{of}: nothing to remove");
    }
    let listed = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    match files {
        Some(files) => format!("{of}: {snapshots} snapshots{listed} and {files} files removed"),
        None => format!("{of}: {snapshots} snapshots{listed} would be removed"),
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
