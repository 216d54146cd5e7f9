//! The configuration's types: what `polder.toml` and `pipelines/*.yaml` say.
//!
//! One type per thing, used by the parser, the JSON Schema (`polder schema`) and the pipeline alike.
//! Parsing text, naming lines and resolving secrets is the control plane's work, not done here.

mod maintenance;
mod partition;
mod pipeline;
mod process;

pub use maintenance::{MaintenanceSpec, Period, RetentionSpec};
pub use partition::{PartitionField, Transform};
pub use pipeline::{
    CsvOptions, DeclaredType, FileFormat, Filter, FormatOptions, Mode, OnBadLine, OnDroppedColumn,
    OnSchemaChange, OnUnrepresentable, OrgSpec, PipelineFile, TablePatch, TableSpec, TemplateSpec,
};
pub use process::{
    Auth, CatalogConfig, FilesSource, GlueConfig, GovernanceConfig, LakeConfig, Limits,
    MongodbSource, PostgresSource, ProcessConfig, RestCatalogConfig, S3Config, ServeConfig,
    ServerConfig, SourceSpec, StorageConfig, StoreConfig,
};
