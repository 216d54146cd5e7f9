//! `polder export`: a pin's rows in the form that others train from.

mod sagemaker;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use serde_json::json;

use crate::app::App;
use crate::{exit, output};

use sagemaker::Channels;

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write channels of Amazon SageMaker's training input: manifests, and Parquet where files need it.
    Sagemaker(Sagemaker),
}

#[derive(Debug, Args)]
struct Sagemaker {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// The pin whose states are exported.
    #[arg(long, value_name = "NAME")]
    pin: String,
    /// Only these tables; all that the pin names without.
    #[arg(long, alias = "tables", value_name = "NAME", value_delimiter = ',')]
    table: Vec<String>,
    /// The form of the channels.
    #[arg(long, value_enum, default_value = "manifest")]
    form: Form,
    /// Only these columns (all forms); an augmented manifest needs them said, 16 at most.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    columns: Vec<String>,
    /// The folder to write to, which is made.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Where the folder's content will be copied to: <s3://bucket/path>/.
    #[arg(long, value_name = "ADDRESS")]
    prefix: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// `S3DataType` of SageMaker's `S3DataSource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// `ManifestFile`: a list of objects. The lake's own files where they are the rows as they are.
    Manifest,
    /// `AugmentedManifestFile`: a line of JSON a row.
    Augmented,
    /// `S3Prefix`: everything below a prefix is Parquet.
    Prefix,
}

impl Export {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let Command::Sagemaker(wanted) = &self.command;
        let lake = app.lake().await?;
        let org = Principal::Operator.authorize(&wanted.org)?;
        let mut tables = Vec::new();
        for name in lake.tables(&org).await? {
            let chosen = wanted.table.is_empty() || wanted.table.contains(&name);
            let table = if chosen { lake.table(&org, &name).await? } else { None };
            let Some(table) = table else { continue };
            let pin = table.pins().into_iter().find(|pin| pin.name == wanted.pin);
            tables.extend(pin.map(|pin| (table, pin.snapshot.id)));
        }
        let there = |name: &String| tables.iter().any(|(table, _)| table.name() == name);
        let missing = wanted.table.iter().find(|name| !there(name));
        if tables.is_empty() || missing.is_some() {
            let of = missing.map(|name| format!(" of table {name:?}")).unwrap_or_default();
            let message = format!("org {} has no pin {:?}{of}", wanted.org, wanted.pin);
            return Err(Error::new(ErrorCode::LakeNotFound, message)
                .hint("`polder pin list --org ID` lists them"));
        }
        let channels = Channels::new(wanted.form, &wanted.columns, &wanted.to, &wanted.prefix)?;
        let mut written = Vec::new();
        for (table, snapshot) in &tables {
            let channel = channels.write(table, *snapshot).await;
            written
                .push(channel.map_err(|error| error.within(&format!("table {}", table.name())))?);
        }
        let file = channels.finish(&written)?;
        let tables: Vec<_> = written.iter().map(|channel| channel.told.clone()).collect();
        if wanted.json {
            output::document(&json!({
                "pin": wanted.pin, "org": wanted.org.as_str(), "channels": file, "tables": tables,
            }));
        } else {
            for told in tables {
                output::line(&told.to_string());
            }
            output::note(&format!("copy {} to {}", wanted.to.display(), wanted.prefix));
        }
        Ok(exit::OK)
    }
}
