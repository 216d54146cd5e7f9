//! Reads `polder.toml` and `pipelines/*.yaml` beside it, and says exactly where they are wrong.
//!
//! The types are `polder_core::spec`; nothing here talks to a source or the lake.

mod diagnose;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polder_core::spec::{OrgSpec, PipelineFile, ProcessConfig, TemplateSpec};
use polder_core::{Error, ErrorCode, OrgId, Result};
use serde::de::DeserializeOwned;

pub use resolve::OrgPipeline;
pub(crate) use resolve::{check_stored_table, check_stored_template, read_stored};

use crate::desired::{self, Desired};

use diagnose::Text;

/// The name of the process configuration.
pub const PROCESS_FILE: &str = "polder.toml";
/// The folder of pipeline files, beside the process configuration.
pub const PIPELINE_FOLDER: &str = "pipelines";

/// A configuration that was read and checked against itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of `polder.toml`, absolute: relative paths start here.
    pub base: PathBuf,
    pub process: ProcessConfig,
    /// What the files say, as one: the door to the desired state that lies in `pipelines/`.
    pub declared: Declared,
}

/// What pipeline files say.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    pub templates: BTreeMap<String, TemplateSpec>,
    /// By id.
    pub orgs: BTreeMap<String, OrgSpec>,
}

impl Config {
    /// Loads `polder.toml` from `file`, or from the working directory, and the pipelines beside it.
    ///
    /// # Errors
    /// `spec.*` with `file:line:column`, the offending text and, for a misspelt name, the nearest
    /// one.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let path = file.unwrap_or(Path::new(PROCESS_FILE));
        let text = Text::read(path).map_err(|error| {
            error.hint("run `polder init` to write one, or name it with --config FILE")
        })?;
        let process: ProcessConfig = parse_toml(&text)?;
        check_keys(&text, &process)?;
        check_rest_catalog(&text, &process)?;
        process.governance.undo_ms().map_err(|error| {
            let place = text.find(&["governance"], "undo");
            let located = text.error(error.code(), place, error.to_string());
            located.hint(error.hint_text().unwrap_or_default())
        })?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let base = std::path::absolute(folder.unwrap_or(Path::new("."))).map_err(|error| {
            Error::new(ErrorCode::SpecInvalid, "the configuration's folder cannot be found")
                .caused_by(error)
        })?;
        let folder = folder.unwrap_or(Path::new("")).join(PIPELINE_FOLDER);
        let declared = read_pipelines(&process, &folder)?;
        Ok(Self { base, process, declared })
    }

    /// Reads the pipelines of another folder in place of those beside `polder.toml`.
    ///
    /// # Errors
    /// As [`Self::load`]; `spec.invalid` for a folder that is not there.
    pub fn read_pipelines_of(&mut self, folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            let message = format!("{} is no folder", folder.display());
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("name the folder that holds the pipeline files: -f pipelines/"));
        }
        self.declared = read_pipelines(&self.process, folder)?;
        Ok(())
    }

    /// What runs would take if nothing but the files had a word: one pipeline per org, in order.
    ///
    /// # Errors
    /// None for files that [`Self::load`] has read.
    pub fn pipelines(&self) -> Result<Vec<OrgPipeline>> {
        desired::look(&self.process, &Desired::default(), &self.declared)
    }

    /// Whether the files have the org, and not as one that is switched off.
    pub fn declares(&self, org: &OrgId) -> bool {
        self.declared.orgs.get(org.as_str()).is_some_and(|org| org.enabled)
    }

    /// An address as it is used: a local path made absolute from the configuration's folder,
    /// anything with a scheme as it stands.
    pub fn address(&self, text: &str) -> String {
        if text.contains("://") {
            return text.to_owned();
        }
        clean(&self.base.join(text)).display().to_string()
    }

    /// A catalog's or store's address with `sqlite://` paths made absolute.
    pub fn database_url(&self, text: &str) -> String {
        match text.strip_prefix("sqlite://") {
            Some(path) => format!("sqlite://{}", clean(&self.base.join(path)).display()),
            None => text.to_owned(),
        }
    }
}

fn read_pipelines(process: &ProcessConfig, folder: &Path) -> Result<Declared> {
    let mut files = Vec::new();
    for path in pipeline_files(folder)? {
        let text = Text::read(&path)?;
        let file: PipelineFile = parse_yaml(&text)?;
        files.push((text, file));
    }
    resolve::check(process, &files)?;
    let mut declared = Declared::default();
    for (_, file) in files {
        declared.templates.extend(file.templates);
        declared.orgs.extend(file.orgs.into_iter().map(|org| (org.id.clone(), org)));
    }
    Ok(declared)
}

/// One key without the other would quietly be no key at all.
fn check_keys(text: &Text, process: &ProcessConfig) -> Result<()> {
    let (s3, glue) = (process.storage.s3.as_ref(), process.catalog.glue.as_ref());
    let s3 = s3.map(|s3| ("storage.s3", &s3.access_key, &s3.secret_key));
    let glue = glue.map(|glue| ("catalog.glue", &glue.access_key, &glue.secret_key));
    for (table, access_key, secret_key) in [s3, glue].into_iter().flatten() {
        let (named, missing) = match (access_key, secret_key) {
            (Some(_), None) => ("access_key", "secret_key"),
            (None, Some(_)) => ("secret_key", "access_key"),
            _ => continue,
        };
        let place = text.find(&[table], named);
        let message = format!("[{table}] has {named} but no {missing}");
        return Err(text.error(ErrorCode::SpecInvalid, place, message).hint(
            "name both, or neither: then the environment and the instance's profile are asked",
        ));
    }
    Ok(())
}

/// What is said of a REST catalog has to be of use, and say one thing.
fn check_rest_catalog(text: &Text, process: &ProcessConfig) -> Result<()> {
    let Some(rest) = &process.catalog.rest else { return Ok(()) };
    let invalid = |place, message: &str| {
        text.error(ErrorCode::SpecInvalid, place, format!("[catalog.rest] {message}"))
    };
    let address = &process.lake.catalog;
    let embedded = ["sqlite:", "postgres:", "postgresql:"];
    if embedded.iter().any(|scheme| address.starts_with(scheme)) {
        let place = text.find(&["lake"], "catalog");
        return Err(invalid(place, "is there, but [lake] catalog is the embedded catalog")
            .hint("write https://… as [lake] catalog, or leave [catalog.rest] out"));
    }
    if rest.credential.is_some() && rest.token.is_some() {
        let place = text.find(&["credential"], "token").or_else(|| text.find(&[], "token"));
        return Err(invalid(place, "has both credential and token")
            .hint("a credential gets tokens by itself: name one of the two"));
    }
    if rest.credential.is_none() && (rest.oauth2_server_uri.is_some() || rest.scope.is_some()) {
        let named = if rest.scope.is_some() { "scope" } else { "oauth2_server_uri" };
        let message = format!("has {named} but no credential");
        return Err(invalid(text.find(&["catalog"], named), &message)
            .hint("name a credential: credential = \"env:CATALOG_CREDENTIAL\""));
    }
    Ok(())
}

/// Removes `.` components, so that `./lake` and `lake` are one place.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

fn pipeline_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::SpecInvalid, "the pipelines folder cannot be read")
            .detail(folder.display().to_string())
            .caused_by(error)
    };
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse_toml<T: DeserializeOwned>(text: &Text) -> Result<T> {
    toml::from_str(&text.content).map_err(|error| {
        let place = error.span().map(|span| text.at_byte(span.start));
        diagnose::explain(text, place, error.message())
    })
}

fn parse_yaml<T: DeserializeOwned + Default>(text: &Text) -> Result<T> {
    if text.content.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
        return Ok(T::default());
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text.content, options).map_err(|error| {
        let place = error.location().map(|at| (at.line() as usize, at.column() as usize));
        let message = error.without_snippet().to_string();
        diagnose::explain(text, place, &message)
    })
}
