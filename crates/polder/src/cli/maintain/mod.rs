//! `polder maintain`: what is done to tables between runs.

mod sentence;

use std::num::NonZeroUsize;
use std::sync::Arc;

use chrono::Utc;
use clap::{Args, Subcommand};
use polder_control::OrgPipeline;
use polder_control::audit::Event;
use polder_control::desired::{self, Left, Pending};
use polder_core::spec::{OrgLimits, TableSpec};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::{Lake, OrphanRequest};
use polder_pipeline::{
    MaintainLimits, MaintainReport, MaintainRequest, Maintenance, maintain, sweep,
};
use polder_query::TrinoEngine;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::selection::Selection;
use crate::{exit, output};

const DAY_MS: i64 = 86_400_000;
/// Bins of files rewritten at the same time, at most: each reads and writes in memory of its own.
const WORKERS_MAX: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Maintain {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Merge small files, apply deletes, and rewrite old files into the present partitions.
    Optimize(Optimize),
    /// Rewrite old files into the partitions that the pipelines ask for, and nothing else.
    Repartition(Common),
    /// Remove old versions and snapshots, and the files that only they reached.
    #[command(alias = "expire")]
    Versions(Versions),
    /// Remove old snapshots without a name; versions stay.
    Snapshots(Snapshots),
    /// Remove rows that are older than their table keeps.
    Retention(Common),
    /// Move files that no table reaches to quarantine, and delete those that were there long enough.
    Orphans(Orphans),
    /// Remove metadata files of earlier states, and merge manifests where many are small.
    Metadata(Metadata),
    /// Everything, in the right order; without a selection of the management tables too.
    All(All),
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    selection: Selection,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Also what can still be taken back, by `[governance] undo`: afterwards it cannot.
    #[arg(long)]
    now: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Optimize {
    #[command(flatten)]
    common: Common,
    /// The size files aim at, in megabytes, whatever the pipelines say.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=512))]
    target_mb: Option<u64>,
    /// Rewrite files too that are only not in their table's order, whatever the pipelines say.
    #[arg(long)]
    sort: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
struct Versions {
    #[command(flatten)]
    common: Common,
    /// Keep so many of the latest versions, whatever the pipelines say; the current one is kept
    /// beside them.
    #[arg(long, value_name = "N")]
    versions: Option<usize>,
    /// Keep the states that have no name for so many days, whatever the pipelines say: queries that
    /// opened one have as long.
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
}

#[derive(Debug, Args)]
struct Snapshots {
    #[command(flatten)]
    common: Common,
    /// As for `versions`.
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// Keep so many of the latest states, whatever their age and the pipelines say.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
}

#[derive(Debug, Args)]
struct Metadata {
    #[command(flatten)]
    common: Common,
    /// Keep so many metadata files of earlier states, whatever the pipelines say.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    keep: Option<u16>,
}

#[derive(Debug, Args)]
struct Windows {
    /// Leave files that are younger than so many days: runs may be about to need them.
    #[arg(long, value_name = "DAYS", default_value_t = 3)]
    older_than: u32,
    /// Delete quarantined files after so many days; until then `--restore` brings them back.
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    purge_after: u32,
}

#[derive(Debug, Args)]
struct Orphans {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    windows: Windows,
    /// Move everything in quarantine back to where it was.
    #[arg(long, conflicts_with_all = ["dry_run", "older_than", "purge_after", "table"])]
    restore: bool,
}

#[derive(Debug, Args)]
struct All {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    windows: Windows,
}

impl Maintain {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        match &self.command {
            Command::Optimize(Optimize { common, target_mb, sort }) => {
                let policy = |table: &mut TableSpec| {
                    set(&mut table.maintenance.target_file_mb, *target_mb);
                    table.maintenance.sort_files |= *sort;
                };
                common.run(app, &[Maintenance::Optimize], &policy, None).await
            }
            Command::Repartition(common) => {
                common.run(app, &[Maintenance::Repartition], &|_| {}, None).await
            }
            Command::Retention(common) => {
                common.run(app, &[Maintenance::Retention], &|_| {}, None).await
            }
            Command::Versions(Versions { common, versions, days }) => {
                let policy = |table: &mut TableSpec| {
                    set(&mut table.maintenance.keep_versions, *versions);
                    set(&mut table.maintenance.keep_snapshots_days, *days);
                };
                common.run(app, &[Maintenance::Versions], &policy, None).await
            }
            Command::Snapshots(Snapshots { common, days, count }) => {
                let policy = |table: &mut TableSpec| {
                    set(&mut table.maintenance.keep_snapshots_days, *days);
                    set(&mut table.maintenance.keep_snapshots, *count);
                };
                common.run(app, &[Maintenance::Snapshots], &policy, None).await
            }
            Command::Metadata(Metadata { common, keep }) => {
                let policy = |table: &mut TableSpec| {
                    set(&mut table.maintenance.keep_metadata_files, keep.map(usize::from));
                };
                common.run(app, &[Maintenance::Metadata], &policy, None).await
            }
            Command::All(All { common, windows }) => {
                common.run(app, &Maintenance::ALL, &|_| {}, Some(windows)).await
            }
            Command::Orphans(orphans) if orphans.restore => orphans.restore(app).await,
            Command::Orphans(Orphans { common, windows, .. }) => {
                common.run(app, &[], &|_| {}, Some(windows)).await
            }
        }
    }
}

fn set<T>(policy: &mut T, asked: Option<T>) {
    if let Some(asked) = asked {
        *policy = asked;
    }
}

/// What is done to each table.
struct Doing<'a> {
    actions: &'a [Maintenance],
    /// Puts what the command line says over a table's own policy.
    policy: &'a (dyn Fn(&mut TableSpec) + Sync),
    limits: MaintainLimits,
    /// For tables that it optimizes.
    trino: Option<Arc<TrinoEngine>>,
}

impl Common {
    /// Carries the actions out on every table selected, and then looks for its orphans if asked.
    async fn run(
        &self,
        app: &App,
        actions: &[Maintenance],
        policy: &(dyn Fn(&mut TableSpec) + Sync),
        orphans: Option<&Windows>,
    ) -> Result<u8> {
        let unsettled = |left: &&Left| !left.goes.is_empty() || left.unreadable.is_some();
        for left in app.left.iter().filter(unsettled) {
            output::note(&left.sentence());
        }
        let lake = app.lake().await?;
        let mut pipelines = self.selection.pipelines(&app.pipelines)?;
        let pending = self.pending(app, &mut pipelines).await?;
        if actions.len() > 1 && self.selection.is_everything() {
            pipelines.push(own_tables(&lake).await?);
        }
        let doing = Doing { actions, policy, limits: limits(app), trino: app.trino()? };
        let stop = doing.limits.cancel.clone();
        let mut signal = std::pin::pin!(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                output::note("stopping after the files in hand");
                stop.cancel();
            }
            std::future::pending::<()>().await;
        });
        let mut documents = Vec::new();
        for pipeline in &pipelines {
            let work = async {
                let mut done = Box::pin(self.tables(app, &lake, pipeline, &doing)).await?;
                if let Some(windows) = orphans {
                    done.push(self.orphans(&lake, pipeline, windows).await?);
                }
                Ok::<_, Error>(done)
            };
            let done = tokio::select! {
                done = Box::pin(work) => done,
                () = &mut signal => unreachable!("the signal's future never ends"),
            };
            let mut done = if self.dry_run {
                done?
            } else {
                app.noted(self.event(&pipeline.org, actions, orphans.is_some()), done).await?
            };
            documents.append(&mut done);
        }
        if self.json {
            output::document(&json!({ "tables": documents, "pending": pending }));
        }
        Ok(exit::OK)
    }

    /// What of the selected tables can still be taken back, and is left until it cannot. With `--now` it cannot any
    /// more: runs must not bring back what is about to go.
    async fn pending<'a>(
        &self,
        app: &'a App,
        pipelines: &mut [OrgPipeline],
    ) -> Result<Vec<&'a Pending>> {
        let mut found = Vec::new();
        if app.pending.is_empty() {
            return Ok(found);
        }
        let store = app.store().await?;
        for pending in &app.pending {
            let own = pipelines.iter_mut().find(|own| own.org.as_str() == pending.org);
            let tables = own.map(|own| own.tables.as_mut_slice()).unwrap_or_default();
            let Some(table) = tables.iter_mut().find(|table| table.name == pending.table) else {
                continue;
            };
            if !self.now {
                output::note(&pending.sentence());
                found.push(pending);
                continue;
            }
            pending.keeps.put(table);
            if !self.dry_run {
                let org = Principal::Operator.authorize(&pending.org.parse()?)?;
                desired::end_undo(&store, &org, &pending.table).await?;
            }
        }
        Ok(found)
    }

    /// What the audit log has of the maintenance of an org.
    fn event(&self, org: &OrgId, actions: &[Maintenance], orphans: bool) -> Event {
        let mut names: Vec<String> =
            actions.iter().map(|action| action.as_str().to_owned()).collect();
        names.extend(orphans.then(|| "orphans".to_owned()));
        names.extend(self.now.then(|| "--now".to_owned()));
        let tables = self.selection.tables();
        Event {
            action: "maintain".to_owned(),
            org: Some(org.to_string()),
            subject: (!tables.is_empty()).then(|| tables.join(" ")),
            detail: Some(names.join(" ")),
            ..Event::default()
        }
    }

    async fn tables(
        &self,
        app: &App,
        lake: &Lake,
        pipeline: &OrgPipeline,
        doing: &Doing<'_>,
    ) -> Result<Vec<Value>> {
        let Doing { actions, policy, limits, trino } = doing;
        let mut limits = limits.clone();
        if let Some(mb) = pipeline.limits.memory_mb {
            limits.memory_bytes = limits.memory_bytes.min((mb as usize) << 20);
        }
        let org = Principal::Operator.authorize(&pipeline.org)?;
        let mut documents = Vec::new();
        for table in &pipeline.tables {
            if actions.is_empty() || lake.table(&org, &table.name).await?.is_none() {
                continue;
            }
            let mut table = table.clone();
            policy(&mut table);
            let optimizer = app.optimizer(&table, trino.as_ref())?;
            for action in *actions {
                let request = MaintainRequest {
                    org: org.clone(),
                    table: table.clone(),
                    action: *action,
                    now: Utc::now(),
                    limits: limits.clone(),
                    optimizer: optimizer.clone(),
                    progress: Arc::default(),
                    dry_run: self.dry_run,
                };
                let report = Box::pin(maintain(lake, &request)).await?;
                documents.push(self.told(&report));
            }
        }
        Ok(documents)
    }

    async fn orphans(
        &self,
        lake: &Lake,
        pipeline: &OrgPipeline,
        windows: &Windows,
    ) -> Result<Value> {
        let org = Principal::Operator.authorize(&pipeline.org)?;
        let request = OrphanRequest {
            older_than_ms: i64::from(windows.older_than) * DAY_MS,
            purge_after_ms: i64::from(windows.purge_after) * DAY_MS,
            tables: self.selection.tables().to_vec(),
            dry_run: self.dry_run,
        };
        let report = Box::pin(sweep(lake, &org, &request)).await?;
        Ok(self.told(&report))
    }

    /// Says what was done, if nobody waits for JSON; the JSON.
    fn told(&self, report: &MaintainReport) -> Value {
        if !self.json {
            output::line(&sentence::of(report));
        }
        let mut document = report.done.document();
        if document.is_null() {
            document = json!({});
        }
        document["org"] = json!(report.org);
        document["table"] = json!(report.table);
        document["action"] = json!(report.action);
        document["dry_run"] = json!(report.dry_run);
        document["id"] = json!(report.id);
        document["duration_ms"] = json!(report.duration_ms);
        document["before"] = json!(report.before);
        document["after"] = json!(report.after);
        document
    }
}

impl Orphans {
    async fn restore(&self, app: &App) -> Result<u8> {
        let lake = app.lake().await?;
        let mut documents = Vec::new();
        for pipeline in self.common.selection.pipelines(&app.pipelines)? {
            let org = Principal::Operator.authorize(&pipeline.org)?;
            let restored = lake.restore_orphans(&org).await;
            let event = Event {
                action: "maintain".to_owned(),
                org: Some(pipeline.org.to_string()),
                detail: Some("orphans restored".to_owned()),
                ..Event::default()
            };
            let restored = app.noted(event, restored).await?;
            if !self.common.json {
                output::line(&format!("{}: {restored} files came back", pipeline.org));
            }
            documents.push(json!({ "org": pipeline.org.as_str(), "restored": restored }));
        }
        if self.common.json {
            output::document(&json!({ "orgs": documents }));
        }
        Ok(exit::OK)
    }
}

/// The management tables, as a pipeline that nobody has to write.
async fn own_tables(lake: &Lake) -> Result<OrgPipeline> {
    let org = OrgId::management();
    let mut tables = Vec::new();
    let authorized = Principal::Operator.authorize(&org)?;
    for name in lake.tables(&authorized).await? {
        let Some(table) = lake.table(&authorized, &name).await? else { continue };
        let spec = json!({ "name": name, "source": "polder", "from": name });
        let spec: TableSpec = serde_json::from_value(spec).map_err(|cause| {
            Error::new(ErrorCode::Internal, "a management table has no spec").caused_by(cause)
        })?;
        tables.push(TableSpec { partition: table.partition(), ..spec });
    }
    Ok(OrgPipeline { org, name: None, limits: OrgLimits::default(), tables })
}

fn limits(app: &App) -> MaintainLimits {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    MaintainLimits {
        memory_bytes: app.config.process.limits.memory_mb << 20,
        workers: NonZeroUsize::new(cores.min(WORKERS_MAX)).unwrap_or(NonZeroUsize::MIN),
        cancel: CancellationToken::new(),
    }
}
