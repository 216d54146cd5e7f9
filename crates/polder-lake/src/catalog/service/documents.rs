//! The JSON documents of the Iceberg REST specification (`rest-catalog-open-api.yaml`, 1.11).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{
    Schema, SortOrder, TableMetadata, UnboundPartitionSpec, ViewMetadata, ViewVersion,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refusal::{Answer, Refusal};

/// `{"namespace": […], "name": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identifier {
    pub namespace: Vec<String>,
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct CreateNamespaceRequest {
    pub namespace: Vec<String>,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
pub struct NamespaceDocument {
    pub namespace: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub struct UpdatePropertiesRequest {
    #[serde(default)]
    pub removals: Vec<String>,
    #[serde(default)]
    pub updates: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
pub struct UpdatePropertiesResponse {
    pub updated: Vec<String>,
    pub removed: Vec<String>,
    pub missing: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CreateTableRequest {
    pub name: String,
    pub location: Option<String>,
    pub(super) schema: Schema,
    pub(super) partition_spec: Option<UnboundPartitionSpec>,
    pub(super) write_order: Option<SortOrder>,
    #[serde(default)]
    pub stage_create: bool,
    #[serde(default)]
    pub properties: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegisterRequest {
    pub name: String,
    pub metadata_location: String,
    #[serde(default)]
    pub overwrite: bool,
}

#[derive(Debug, Deserialize)]
pub struct RenameRequest {
    pub source: Identifier,
    pub destination: Identifier,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CreateViewRequest {
    pub name: String,
    pub location: Option<String>,
    pub(super) schema: Schema,
    pub(super) view_version: ViewVersion,
    #[serde(default)]
    pub properties: HashMap<String, String>,
}

/// A commit to a table or a view. Requirements and updates are parsed one by one, so that a refusal
/// names the one that is not understood.
#[derive(Debug, Deserialize)]
pub struct CommitRequest {
    pub identifier: Option<Identifier>,
    #[serde(default)]
    pub(super) requirements: Vec<Value>,
    #[serde(default)]
    pub(super) updates: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransactionRequest {
    pub table_changes: Vec<CommitRequest>,
}

/// Which snapshots a loaded table lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    #[default]
    All,
    /// Those that a branch or tag names.
    Refs,
}

/// A table as a client gets it.
#[derive(Clone, Debug)]
pub struct LoadedTable {
    /// Absent for a staged creation, which no file holds yet.
    pub metadata_location: Option<String>,
    pub(super) metadata: Arc<TableMetadata>,
}

impl LoadedTable {
    /// The place all the table's files lie below, unless its properties say otherwise.
    pub fn location(&self) -> &str {
        self.metadata.location()
    }

    /// `LoadTableResult` of the specification; `config` tells the client how to reach the files.
    pub fn document(&self, mode: SnapshotMode, config: &Value) -> Answer<Value> {
        let mut metadata = to_value(&*self.metadata)?;
        if mode == SnapshotMode::Refs {
            keep_referenced(&mut metadata);
        }
        let mut document = json!({ "metadata": metadata, "config": config });
        if let Some(location) = &self.metadata_location {
            document["metadata-location"] = Value::from(location.as_str());
        }
        Ok(document)
    }
}

/// Takes out the snapshots that no branch or tag names. The log stays, as in Iceberg's own catalogs.
fn keep_referenced(metadata: &mut Value) {
    let referenced: Vec<i64> = metadata["refs"]
        .as_object()
        .into_iter()
        .flat_map(|refs| refs.values())
        .filter_map(|found| found["snapshot-id"].as_i64())
        .collect();
    if let Some(snapshots) = metadata["snapshots"].as_array_mut() {
        snapshots.retain(|found| {
            found["snapshot-id"].as_i64().is_some_and(|id| referenced.contains(&id))
        });
    }
}

/// A view as a client gets it.
#[derive(Clone, Debug)]
pub struct LoadedView {
    pub metadata_location: String,
    pub(super) metadata: Arc<ViewMetadata>,
}

impl LoadedView {
    /// `LoadViewResult` of the specification.
    pub fn document(&self) -> Answer<Value> {
        Ok(json!({
            "metadata-location": self.metadata_location,
            "metadata": to_value(&*self.metadata)?,
            "config": {},
        }))
    }
}

/// Lists in metadata, and the field by which they grow. The crate keeps them in hash maps; clients
/// compare them as lists, oldest first.
const ORDERED: [(&str, &str); 6] = [
    ("schemas", "schema-id"),
    ("partition-specs", "spec-id"),
    ("sort-orders", "order-id"),
    ("statistics", "snapshot-id"),
    ("partition-statistics", "snapshot-id"),
    ("versions", "version-id"),
];

/// Metadata as JSON, its lists in their order.
pub(super) fn to_value(metadata: &impl Serialize) -> Answer<Value> {
    let mut value = serde_json::to_value(metadata).map_err(|cause| {
        let error = polder_core::Error::new(
            polder_core::ErrorCode::Internal,
            "the metadata cannot be written as JSON",
        );
        Refusal::from(error.caused_by(cause))
    })?;
    for (list, field) in ORDERED {
        if let Some(items) = value.get_mut(list).and_then(Value::as_array_mut) {
            items.sort_by_key(|item| item[field].as_i64());
        }
    }
    if let Some(snapshots) = value.get_mut("snapshots").and_then(Value::as_array_mut) {
        // Format 1 has no sequence numbers.
        snapshots.sort_by_key(|found| {
            (found["sequence-number"].as_i64(), found["timestamp-ms"].as_i64())
        });
    }
    Ok(value)
}

/// One page of a listing.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What to ask the next page with; `None` on the last one.
    pub next: Option<String>,
}
