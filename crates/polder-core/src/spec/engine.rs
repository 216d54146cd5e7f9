//! Who works on a table: `engine:` of a table spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who merges a table's files, and fills them where `[trino] ingest` says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Polder itself, in this process.
    #[default]
    Embedded,
    /// The Trino of `[trino]`.
    Trino,
}
