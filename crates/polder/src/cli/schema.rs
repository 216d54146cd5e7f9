//! `polder schema`: the JSON Schema of the configuration's files, and the API's description.

use clap::{Args, ValueEnum};
use polder_core::spec::{PipelineFile, ProcessConfig};

use crate::serve::api_description;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// Which file's schema.
    #[arg(value_enum, default_value = "pipelines")]
    file: SchemaFile,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemaFile {
    /// `pipelines/*.yaml`
    Pipelines,
    /// `polder.toml`
    Process,
    /// The API, as `OpenAPI` 3.1 describes it.
    Api,
}

impl Schema {
    pub(crate) fn run(&self) -> u8 {
        match self.file {
            SchemaFile::Pipelines => output::document(&pipelines()),
            SchemaFile::Process => output::document(&process()),
            SchemaFile::Api => output::document(&api_description()),
        }
        exit::OK
    }
}

/// The schema of `pipelines/*.yaml`.
pub(super) fn pipelines() -> schemars::Schema {
    schemars::schema_for!(PipelineFile)
}

/// The schema of `polder.toml`.
pub(super) fn process() -> schemars::Schema {
    schemars::schema_for!(ProcessConfig)
}
