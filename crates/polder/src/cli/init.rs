//! `polder init`: a first configuration, from the database at hand where there is one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use polder_control::ProcessSecrets;
use polder_core::spec::{Mode, PostgresSource, SourceSpec, StorageConfig};
use polder_core::{Error, ErrorCode, LakeType, OrgId, Result, SecretRef, SourceTable};
use polder_sources::{Connections, Means};
use serde::Serialize;

use super::schema;
use crate::{exit, output};

/// The column by which the first pipeline keeps rows for half a year.
const CREATED_AT: &str = "created_at";
/// Tables the first pipeline lists at most.
const TABLES_MAX: usize = 200;

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The folder to write into.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The environment variable with the address of a PostgreSQL database. If it is set, the
    /// pipeline lists that database's tables.
    #[arg(long, value_name = "NAME", default_value = "REVDB_URL")]
    url_env: String,
    /// The org the tables belong to.
    #[arg(long, value_name = "ID", default_value = "1")]
    org: OrgId,
}

impl Init {
    pub(crate) async fn run(&self) -> Result<u8> {
        let process = self.folder.join("polder.toml");
        let pipeline = self.folder.join("pipelines/crm.yaml");
        for path in [&process, &pipeline] {
            if path.exists() {
                return Err(Error::new(
                    ErrorCode::SpecInvalid,
                    format!("{} exists already", path.display()),
                )
                .hint("choose another folder: polder init FOLDER"));
            }
        }
        let tables = self.discover().await?;
        write(&self.folder.join("schemas/polder.json"), &json(&schema::process()))?;
        write(&self.folder.join("schemas/pipelines.json"), &json(&schema::pipelines()))?;
        write(&process, &PROCESS.replace("REVDB_URL", &self.url_env))?;
        write(&pipeline, &self.pipeline(tables.as_deref()))?;
        let next = match &tables {
            Some(tables) => format!("{} tables found; next: polder run", tables.len()),
            None => format!(
                "next: export {}=postgres://user:password@host/database, put your tables into \
                 {}, then: polder check && polder run",
                self.url_env,
                pipeline.display(),
            ),
        };
        output::line(&format!("wrote {} and {}", process.display(), pipeline.display()));
        output::line(&next);
        Ok(exit::OK)
    }

    /// The tables of the database the variable names; `None` if it is not set.
    async fn discover(&self) -> Result<Option<Vec<SourceTable>>> {
        if std::env::var_os(&self.url_env).is_none() {
            return Ok(None);
        }
        let url = SecretRef::Env(self.url_env.clone());
        let spec = SourceSpec::Postgres(PostgresSource { url, max_connections: None });
        let secrets = ProcessSecrets::new(self.folder.clone());
        let means = Means {
            storage: &StorageConfig::default(),
            secrets: &secrets,
            base: &self.folder,
            connections: &Connections::new(),
        };
        let source = polder_sources::open("revdb", &spec, means)?;
        let mut tables = source.discover().await?;
        tables.truncate(TABLES_MAX);
        Ok(Some(tables))
    }

    fn pipeline(&self, tables: Option<&[SourceTable]>) -> String {
        let mut text = PIPELINE.to_owned();
        match tables {
            None => text.push_str(EXAMPLE),
            Some(tables) => {
                for table in tables {
                    text.push_str(&entry(table));
                }
                if tables.is_empty() {
                    text.truncate(text.trim_end().len());
                    text.push_str(" []\n");
                }
            }
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "orgs:\n  - {{ id: \"{}\", template: crm }}\n", self.org);
        text
    }
}

fn entry(table: &SourceTable) -> String {
    let name = table.name.rsplit('.').next().unwrap_or(&table.name).trim_matches('"');
    let mut text = format!("      - name: {}\n        source: revdb\n", quoted(name));
    let mut add = |key: &str, value: &str| {
        let _ = writeln!(text, "        {key}: {value}");
    };
    add("from", &quoted(&table.name));
    match table.cursors.first() {
        Some(cursor) if !table.key.is_empty() => {
            add("mode", if table.mode == Mode::Merge { "merge" } else { "append" });
            add("cursor", &quoted(cursor));
            let key: Vec<_> = table.key.iter().map(|column| quoted(column)).collect();
            add("key", &format!("[{}]", key.join(", ")));
        }
        _ => add("mode", "full_refresh"),
    }
    if is_dated(table) {
        add("retention", &format!("{{ column: {CREATED_AT}, keep: 6 months }}"));
    }
    text
}

/// Whether a column says by its name and type when a row came to be.
fn is_dated(table: &SourceTable) -> bool {
    let created = table.schema.field(CREATED_AT).map(|field| &field.data_type);
    matches!(created, Some(LakeType::Date | LakeType::Timestamp | LakeType::Timestamptz))
}

/// A YAML scalar, in JSON's quotes where it needs any.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let starts = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let word = !["true", "false", "null", "yes", "no", "on", "off"]
        .contains(&text.to_ascii_lowercase().as_str());
    if starts && word && text.chars().all(plain) { text.to_owned() } else { json(&text) }
}

fn json(value: &impl Serialize) -> String {
    // Schemas and strings: this cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::SpecInvalid, format!("{} cannot be written", path.display()))
            .caused_by(error)
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}

const PROCESS: &str = r#"#:schema schemas/polder.json
# Where the lake, the run records and the sources are. Secrets are references: env:NAME or file:PATH.

[lake]
warehouse = "./lake"                 # or "s3://bucket/prefix", with [storage.s3]
catalog = "sqlite://./polder.db"     # or "postgres://…"

[store]
url = "sqlite://./polder.db"

[sources.revdb]
type = "postgres"
url = "env:REVDB_URL"
"#;

const PIPELINE: &str = "# yaml-language-server: $schema=../schemas/pipelines.json
# A template is a set of tables; an org takes one, plus what it has differently.
# retention: rows older than that are neither read nor kept. Without the line they stay for ever.
templates:
  crm:
    tables:
";

const EXAMPLE: &str = "      - name: opportunity
        source: revdb
        from: public.opportunity
        filter: org_id = {org}          # {org} is bound as a value; leave out for one org's database
        mode: merge                     # full_refresh | append | merge
        cursor: updated_at
        key: [id]
        partition: [month(created_at)]
        retention: { column: created_at, keep: 6 months }
";
