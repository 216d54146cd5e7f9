//! The configuration's types: what `polder.toml` and `pipelines/*.yaml` say.
//!
//! One type per thing, used by the parser, the JSON Schema (`polder schema`) and the pipeline alike.
//! Parsing text, naming lines and resolving secrets is the control plane's work, not done here.

mod bytes;
mod engine;
mod external;
mod maintenance;
mod partition;
mod pipeline;
mod process;
mod schedule;
mod sort;
mod validation;

pub use bytes::ByteCount;
pub use engine::EngineKind;
pub use maintenance::{MaintenanceSpec, Period, RetentionSpec};
pub use partition::{PartitionField, Transform};
pub use pipeline::{
    CsvOptions, DeclaredType, FileFormat, Filter, FormatOptions, GroupSpec, Mode, OnBadLine,
    OnDroppedColumn, OnSchemaChange, OnUnrepresentable, OrgSpec, PipelineFile, TablePatch,
    TableSpec, TemplateSpec,
};
pub use process::{
    AirflowConfig, AlertSpec, Auth, CatalogConfig, FilesSource, GlueConfig, GovernanceConfig,
    LakeConfig, Limits, MongodbSource, OidcConfig, PostgresSource, ProcessConfig, RateLimit,
    RestCatalogConfig, S3Config, ServeConfig, ServerConfig, SourceSpec, StorageConfig, StoreConfig,
    TelemetryConfig, TlsConfig, TrinoConfig,
};
pub use schedule::{
    CatchUp, CronText, Hours, Jitter, OrgLimits, Overlap, ScheduleSpec, TimeZone, ValidateWhen,
};
pub use sort::SortField;
pub use validation::{Expectation, SqlCheck, ValidationPolicy, ValidationSpec};
