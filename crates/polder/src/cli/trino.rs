//! `polder trino catalogs`: what Trino needs to see the lake and the sources under the names they have
//! here, and what it needs to hold each org to its own schema and its limits.
//!
//! No secret is written: Trino puts environment variables into its files by itself (`${ENV:NAME}`).

mod rules;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use polder_control::churn;
use polder_core::spec::{GlueConfig, ProcessConfig, RestCatalogConfig, S3Config, SourceSpec};
use polder_core::{Error, ErrorCode, Result, SecretRef};
use polder_lake::CatalogSettings;
use polder_sources::postgres::{Place, PostgresSource};
use serde_json::json;

use self::rules::{Names, Rules};
use super::manifest;
use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Trino {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write Trino's catalog files: `lake`, and one for each source; with `--etc` its access rules and
    /// resource groups, too.
    Catalogs(Catalogs),
}

#[derive(Debug, Args)]
struct Catalogs {
    /// The folder for the files: Trino's `etc/catalog`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where Trino reaches `polder serve`; `http://` and `[serve] listen` when absent.
    #[arg(long, value_name = "URL")]
    serve: Option<String>,
    /// Write access rules and resource groups of the orgs as well, into this folder: Trino's `etc`.
    #[arg(long, value_name = "DIR", requires = "operator")]
    etc: Option<PathBuf>,
    /// A user of Trino who may do everything; may be given several times.
    #[arg(long, value_name = "USER", requires = "etc")]
    operator: Vec<String>,
    /// How an org's user is named in Trino; `{org}` stands for the org's id.
    #[arg(long, value_name = "PATTERN", default_value = "org_{org}")]
    org_user: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Trino {
    pub(crate) async fn run(&self, app: App) -> Result<u8> {
        let Command::Catalogs(catalogs) = &self.command;
        match &catalogs.etc {
            None => catalogs.run(&app, Vec::new()),
            Some(etc) => {
                let app = app.looked().await?;
                let rules = catalogs.rules(&app, etc).await?;
                catalogs.run(&app, rules)
            }
        }
    }
}

/// Partitions that a load by Trino may have at once, where it has those.
const PARTITIONS_MAX: &str = "2000";
/// Said with the rules, every time.
const NO_AUTHENTICATION: &str =
    "the rules mean nothing where Trino asks nobody who they are: switch its authentication on";

/// The lines of one catalog.
type Properties = Vec<(String, String)>;

/// The catalogs, by name, and what whoever starts Trino has to know.
#[derive(Debug, Default)]
struct Written {
    files: BTreeMap<String, Properties>,
    /// Environment variables of Trino, and where their values come from.
    environment: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Catalogs {
    /// The files of rules and what stands in them. An org that leaves has no rule, and so may nothing.
    async fn rules(&self, app: &App, etc: &Path) -> Result<Vec<(PathBuf, String)>> {
        let leaving = churn::leaving(&app.store().await?).await?;
        let stays = app.pipelines.iter().filter(|org| !leaving.contains(org.org.as_str()));
        let names = Names { operators: &self.operator, org_user: &self.org_user };
        Rules::of(stays, &names, &app.config.process.limits)?.files(etc)
    }

    /// Writes the catalogs, and these files beside.
    fn run(&self, app: &App, rules: Vec<(PathBuf, String)>) -> Result<u8> {
        let process = &app.config.process;
        let mut written = Written::default();
        let settings = app.lake_settings()?;
        let served = self.serve.clone().unwrap_or(format!("http://{}", process.serve.listen));
        let mut lake = written.lake(process, &settings.catalog, &served);
        lake.extend(written.storage(process.storage.s3.as_ref(), &settings.warehouse));
        written.files.insert("lake".to_owned(), lake);
        for (name, source) in &process.sources {
            check_name(name)?;
            match source {
                SourceSpec::Postgres(spec) => {
                    let place = PostgresSource::open(name, app.secret(&spec.url)?)?.place();
                    let lines = written.postgres(name, &place);
                    written.files.insert(name.clone(), lines);
                }
                SourceSpec::Mongodb(spec) => {
                    let url = written.secret(&spec.url, &format!("{name}_url"));
                    let lines = [("connector.name", "mongodb"), ("mongodb.connection-url", &url)];
                    written.files.insert(name.clone(), lines.map(owned).into());
                }
                SourceSpec::Files(_) => written.notes.push(format!(
                    "{name}: left out, as Trino reads files through a metastore only; query the \
                     lake tables made from them"
                )),
            }
        }
        if !rules.is_empty() {
            written.notes.push(NO_AUTHENTICATION.to_owned());
        }
        let paths = written.save(&self.out, rules)?;
        self.report(&written, &paths);
        Ok(exit::OK)
    }

    fn report(&self, written: &Written, paths: &[PathBuf]) {
        if self.json {
            output::document(&json!({
                "files": paths,
                "environment": written.environment,
                "notes": written.notes,
            }));
            return;
        }
        for path in paths {
            output::line(&path.display().to_string());
        }
        for (name, from) in &written.environment {
            output::note(&format!("Trino needs the environment variable {name}: {from}"));
        }
        for note in &written.notes {
            output::note(note);
        }
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// A catalog's name is a file's name and an identifier.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name != "lake" && !name.is_empty() && name.chars().all(plain) {
        return Ok(());
    }
    let message = format!("source {name:?} cannot be a catalog of Trino");
    Err(Error::new(ErrorCode::SpecInvalid, message)
        .hint("name it with lower-case letters, digits and '_', and not \"lake\""))
}

impl Written {
    fn lake(
        &mut self,
        process: &ProcessConfig,
        catalog: &CatalogSettings,
        served: &str,
    ) -> Properties {
        let mut lines = vec![owned(("connector.name", "iceberg"))];
        match catalog {
            CatalogSettings::Sql(_) => {
                lines.push(owned(("iceberg.catalog.type", "rest")));
                let uri = format!("{}/iceberg", served.trim_end_matches('/'));
                lines.push(owned(("iceberg.rest-catalog.uri", &uri)));
                if !process.serve.clients.is_empty() {
                    let from = "`<client id>:<secret>` of a client in [serve.clients]";
                    let credential = self.variable("POLDER_TRINO_CREDENTIAL", from);
                    lines.extend(oauth2(&credential, "catalog"));
                }
            }
            CatalogSettings::Rest(rest) => {
                let config = process.catalog.rest.clone().unwrap_or_default();
                lines.extend(self.rest(&rest.uri, &config));
            }
            CatalogSettings::Glue(glue) => {
                lines.push(owned(("iceberg.catalog.type", "glue")));
                lines.push(owned(("hive.metastore.glue.region", &glue.region)));
                if let Some(config) = &process.catalog.glue {
                    lines.extend(self.glue(config));
                }
            }
        }
        if process.trino.as_ref().is_some_and(|trino| trino.ingest) {
            lines.push(owned(("iceberg.max-partitions-per-writer", PARTITIONS_MAX)));
        }
        lines
    }

    fn rest(&mut self, uri: &str, config: &RestCatalogConfig) -> Properties {
        let mut lines =
            vec![owned(("iceberg.catalog.type", "rest")), owned(("iceberg.rest-catalog.uri", uri))];
        if let Some(warehouse) = &config.warehouse {
            lines.push(owned(("iceberg.rest-catalog.warehouse", warehouse)));
        }
        if let Some(credential) = &config.credential {
            let credential = self.secret(credential, "lake_credential");
            lines.extend(oauth2(&credential, config.scope.as_deref().unwrap_or("catalog")));
            if let Some(server) = &config.oauth2_server_uri {
                lines.push(owned(("iceberg.rest-catalog.oauth2.server-uri", server)));
            }
        } else if let Some(token) = &config.token {
            let token = self.secret(token, "lake_token");
            lines.push(owned(("iceberg.rest-catalog.security", "OAUTH2")));
            lines.push(owned(("iceberg.rest-catalog.oauth2.token", &token)));
        }
        lines
    }

    fn glue(&mut self, config: &GlueConfig) -> Properties {
        let mut lines = Properties::new();
        if let Some(endpoint) = &config.endpoint {
            lines.push(owned(("hive.metastore.glue.endpoint-url", endpoint)));
        }
        if let Some(id) = &config.catalog_id {
            lines.push(owned(("hive.metastore.glue.catalogid", id)));
        }
        let keys = [
            ("hive.metastore.glue.aws-access-key", &config.access_key, "glue_access_key"),
            ("hive.metastore.glue.aws-secret-key", &config.secret_key, "glue_secret_key"),
        ];
        for (key, reference, name) in keys {
            lines
                .extend(reference.as_ref().map(|found| (key.to_owned(), self.secret(found, name))));
        }
        lines
    }

    /// How Trino gets at the files.
    fn storage(&mut self, s3: Option<&S3Config>, warehouse: &str) -> Properties {
        if !warehouse.starts_with("s3://") {
            self.notes
                .push("lake: its files are on this machine's disk; so has Trino to be".to_owned());
            return vec![owned(("fs.hadoop.enabled", "true"))];
        }
        let mut lines = vec![owned(("fs.native-s3.enabled", "true"))];
        let Some(s3) = s3 else { return lines };
        lines.push(owned(("s3.region", &s3.region)));
        if let Some(endpoint) = &s3.endpoint {
            lines.push(owned(("s3.endpoint", endpoint)));
        }
        if s3.path_style {
            lines.push(owned(("s3.path-style-access", "true")));
        }
        let keys = [
            ("s3.aws-access-key", &s3.access_key, "s3_access_key"),
            ("s3.aws-secret-key", &s3.secret_key, "s3_secret_key"),
        ];
        for (key, reference, name) in keys {
            lines
                .extend(reference.as_ref().map(|found| (key.to_owned(), self.secret(found, name))));
        }
        lines
    }

    fn postgres(&mut self, name: &str, place: &Place) -> Properties {
        let mode = if place.verified { "?sslmode=verify-full" } else { "" };
        let mut lines = vec![
            owned(("connector.name", "postgresql")),
            owned(("connection-url", &format!("jdbc:postgresql://{}{mode}", place.address))),
        ];
        if let Some(user) = &place.user {
            lines.push(owned(("connection-user", user)));
        }
        if place.password {
            let variable = format!("POLDER_{}_PASSWORD", name.to_ascii_uppercase());
            let from = format!("the password in the address of source {name}");
            lines.push(owned(("connection-password", &self.variable(&variable, &from))));
        }
        lines
    }

    /// A reference of ours as one of Trino's.
    fn secret(&mut self, reference: &SecretRef, name: &str) -> String {
        match reference {
            SecretRef::Env(variable) => self.variable(variable, "as Polder has it"),
            other => {
                let variable = format!("POLDER_{}", name.to_ascii_uppercase());
                self.variable(&variable, &format!("the content of {other}"))
            }
        }
    }

    fn variable(&mut self, name: &str, from: &str) -> String {
        self.environment.insert(name.to_owned(), from.to_owned());
        format!("${{ENV:{name}}}")
    }

    /// Writes the catalogs and the other files, all of them or none that a line could break out of.
    fn save(&self, folder: &Path, others: Vec<(PathBuf, String)>) -> Result<Vec<PathBuf>> {
        let failed = |path: &Path, cause: std::io::Error| {
            let message = "a folder for Trino's files cannot be made";
            Error::new(ErrorCode::SpecInvalid, message)
                .detail(path.display().to_string())
                .caused_by(cause)
        };
        let texts = self.files.iter().map(|(name, lines)| {
            let text = text(lines).map_err(|error| error.within(&format!("catalog {name}")))?;
            Ok((folder.join(format!("{name}.properties")), text))
        });
        let mut texts = texts.collect::<Result<Vec<_>>>()?;
        texts.extend(others);
        let folders = texts.iter().filter_map(|(path, _)| path.parent()).chain([folder]);
        for folder in folders {
            std::fs::create_dir_all(folder).map_err(|cause| failed(folder, cause))?;
        }
        let mut paths = Vec::new();
        for (path, text) in texts {
            // In one step: Trino may be reading the rules.
            manifest::write(&path, &text)?;
            paths.push(path);
        }
        Ok(paths)
    }
}

fn oauth2(credential: &str, scope: &str) -> Properties {
    [
        ("iceberg.rest-catalog.security", "OAUTH2"),
        ("iceberg.rest-catalog.oauth2.credential", credential),
        ("iceberg.rest-catalog.oauth2.scope", scope),
    ]
    .map(owned)
    .into()
}

/// A Java properties file.
///
/// # Errors
/// `spec.invalid` for a value that would not stay on its line.
fn text(lines: &Properties) -> Result<String> {
    let mut text = String::from("# Written by `polder trino catalogs`.\n");
    for (key, value) in lines {
        if value.chars().any(char::is_control) {
            let message = format!("the value of {key} has control characters");
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        // Writing to a string cannot fail. A backslash escapes in such files.
        let _ = writeln!(text, "{key}={}", value.replace('\\', "\\\\"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_named_and_never_written() {
        let mut written = Written::default();
        let place = Place {
            address: "db:5432/crm".to_owned(),
            user: Some("reader".to_owned()),
            password: true,
            verified: true,
        };
        let lines = text(&written.postgres("revdb", &place)).expect("text");
        assert!(
            lines.contains("connection-url=jdbc:postgresql://db:5432/crm?sslmode=verify-full\n")
        );
        assert!(lines.contains("connection-password=${ENV:POLDER_REVDB_PASSWORD}\n"), "{lines}");
        let file = SecretRef::File("/run/key".to_owned());
        assert_eq!(written.secret(&file, "s3_secret_key"), "${ENV:POLDER_S3_SECRET_KEY}");
        assert_eq!(written.environment["POLDER_S3_SECRET_KEY"], "the content of file:/run/key");
    }

    #[test]
    fn a_value_cannot_add_a_line() {
        let lines = vec![owned(("connection-user", "a\nfs.hadoop.enabled=true"))];
        assert_eq!(text(&lines).expect_err("a line").code(), ErrorCode::SpecInvalid);
        for name in ["lake", "../x", "A", "", "a.b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("revdb_2").expect("plain");
    }
}
