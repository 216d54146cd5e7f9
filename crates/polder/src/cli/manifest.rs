//! `polder manifest`: what an orchestrator has to know of the pipelines, as one document. It says
//! which tables there are, when they run and within which limits, never where rows come from or how a
//! source is reached.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use polder_control::{OrgPipeline, churn};
use polder_core::spec::{CronText, Mode, OrgLimits, ScheduleSpec, TimeZone};
use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;
use serde_json::json;

use crate::app::App;
use crate::serve::sha256;
use crate::{exit, output};

/// Raised when a reader of the last format would misunderstand the document.
const FORMAT: u32 = 1;

#[derive(Debug, Args)]
pub(crate) struct Manifest {
    /// Write this file, in one step, and leave it alone where it says the same already.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With --out: print one JSON document about the file. Without, the manifest is printed, as JSON.
    #[arg(long)]
    json: bool,
}

/// The part of the document that its hash is of.
#[derive(Serialize)]
struct Content<'a> {
    limits: Limits,
    orgs: Vec<Org<'a>>,
}

#[derive(Serialize)]
struct Limits {
    runs: usize,
}

#[derive(Serialize)]
struct Org<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a OrgLimits>,
    tables: Vec<Table<'a>>,
}

/// When all of an org's tables run.
#[derive(PartialEq, Serialize)]
struct Schedule<'a> {
    ingest: &'a CronText,
    #[serde(skip_serializing_if = "Option::is_none")]
    validate: Option<&'a CronText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maintain: Option<&'a CronText>,
    timezone: TimeZone,
}

#[derive(Serialize)]
struct Table<'a> {
    name: &'a str,
    source: &'a str,
    mode: Mode,
}

impl Manifest {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let leaving = churn::leaving(&app.store().await?).await?;
        let content = content(app, &leaving);
        let (hash, text) = document(&content)?;
        let Some(path) = &self.out else {
            output::line(text.trim_end());
            return Ok(exit::OK);
        };
        let changed = write(path, &text)?;
        let tables: usize = content.orgs.iter().map(|org| org.tables.len()).sum();
        let orgs = content.orgs.len();
        if self.json {
            output::document(&json!({
                "file": path, "hash": hash, "orgs": orgs, "tables": tables, "changed": changed,
            }));
        } else {
            let what = if changed { "written" } else { "unchanged" };
            let path = path.display();
            output::note(&format!("{path} {what}: {orgs} orgs, {tables} tables, {hash}"));
        }
        Ok(exit::OK)
    }
}

/// Orgs that leave are none that an orchestrator has to know.
fn content<'a>(app: &'a App, leaving: &HashSet<String>) -> Content<'a> {
    let limits = Limits { runs: app.config.process.limits.runs };
    let stays = |pipeline: &&OrgPipeline| !leaving.contains(pipeline.org.as_str());
    Content { limits, orgs: app.pipelines.iter().filter(stays).map(org).collect() }
}

fn org(pipeline: &OrgPipeline) -> Org<'_> {
    let tables = pipeline.tables.iter().map(|table| Table {
        name: &table.name,
        source: &table.source,
        mode: table.mode,
    });
    let limits = Some(&pipeline.limits).filter(|limits| **limits != OrgLimits::default());
    Org {
        id: pipeline.org.as_str(),
        name: pipeline.name.as_deref(),
        schedule: schedule(pipeline),
        limits,
        tables: tables.collect(),
    }
}

/// The times that all tables of the org have; `None` where they differ.
fn schedule(pipeline: &OrgPipeline) -> Option<Schedule<'_>> {
    let mut times = pipeline.tables.iter().map(|table| table.schedule.as_ref().map(times));
    let first = times.next()??;
    times.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn times(spec: &ScheduleSpec) -> Schedule<'_> {
    Schedule {
        ingest: &spec.cron,
        validate: spec.validate_at.as_ref(),
        maintain: spec.maintain.as_ref(),
        timezone: spec.timezone,
    }
}

/// The hash and the document: one org a line, so that a change is seen as one.
fn document(content: &Content<'_>) -> Result<(String, String)> {
    let failed = |cause: serde_json::Error| {
        Error::new(ErrorCode::Internal, "the manifest cannot be written as JSON").caused_by(cause)
    };
    let hash = format!("sha256:{}", sha256(&serde_json::to_vec(content).map_err(failed)?));
    let limits = serde_json::to_string(&content.limits).map_err(failed)?;
    let orgs = content.orgs.iter().map(serde_json::to_string);
    let orgs = orgs.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let orgs = if orgs.is_empty() { String::new() } else { format!("\n{}\n", orgs.join(",\n")) };
    let head = format!("{{\"format\":{FORMAT},\"hash\":\"{hash}\",\"limits\":{limits}");
    Ok((hash, format!("{head},\"orgs\":[{orgs}]}}\n")))
}

/// Puts the text in the file's place: readers see the old one or the new one, whole. False where it
/// was there already.
///
/// # Errors
/// `spec.invalid` for a file that cannot be written.
pub(super) fn write(path: &Path, text: &str) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let replace = || {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    replace().map_err(|cause| {
        // Not there if it could not be made; then this fails too, and says nothing new.
        drop(std::fs::remove_file(&beside));
        Error::new(ErrorCode::SpecInvalid, format!("{} cannot be written", path.display()))
            .hint("name a file in a folder that is there and may be written to")
            .caused_by(cause)
    })?;
    Ok(true)
}
