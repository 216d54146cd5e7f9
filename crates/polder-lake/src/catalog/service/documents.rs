//! The JSON documents of the Iceberg REST specification (`rest-catalog-open-api.yaml`, 1.11).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{Schema, SortOrder, UnboundPartitionSpec, ViewMetadata, ViewVersion};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use uuid::Uuid;

use super::refusal::{Answer, Refusal};
use crate::catalog::metadata_json;

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
    /// As its file has it.
    pub(super) metadata: Arc<RawValue>,
}

/// What becomes of a request for a table.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// The client has the state of this metadata file already.
    Unchanged {
        metadata_location: String,
    },
    Table(LoadedTable),
}

/// By what an answer that holds a table is given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recall {
    /// The metadata file it was made of.
    File(String),
    /// The metadata of a staged creation, as text.
    Staged(String),
}

/// The part of a table's metadata that says where its files are.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Places {
    pub(super) table_uuid: Uuid,
    pub(super) location: String,
    #[serde(default)]
    pub(super) properties: HashMap<String, String>,
}

/// `LoadTableResult` of the specification.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct LoadTableResult<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_location: Option<&'a str>,
    metadata: &'a RawValue,
    config: &'a Value,
    #[serde(skip_serializing_if = "<[Value]>::is_empty")]
    storage_credentials: &'a [Value],
}

impl LoadedTable {
    /// What to keep in order to give the same answer again ([`super::IcebergCatalog::table_again`]).
    pub fn recall(&self) -> Recall {
        match &self.metadata_location {
            Some(location) => Recall::File(location.clone()),
            None => Recall::Staged(self.metadata.get().to_owned()),
        }
    }

    /// The place all the table's files lie below, unless its properties say otherwise.
    pub fn location(&self) -> Answer<String> {
        Ok(self.places()?.location)
    }

    /// Where the table's files are, by its metadata.
    pub(super) fn places(&self) -> Answer<Places> {
        serde_json::from_str(self.metadata.get()).map_err(not_metadata)
    }

    /// The answer's document as JSON text; `config` tells the client how to reach the files, with the
    /// credentials beside it.
    pub fn document(
        &self,
        mode: SnapshotMode,
        config: &Value,
        credentials: &[Value],
    ) -> Answer<Vec<u8>> {
        let referenced;
        let metadata = match mode {
            SnapshotMode::All => &*self.metadata,
            SnapshotMode::Refs => {
                let mut metadata =
                    serde_json::from_str(self.metadata.get()).map_err(not_metadata)?;
                keep_referenced(&mut metadata);
                referenced = to_raw_value(&metadata).map_err(not_metadata)?;
                &*referenced
            }
        };
        let document = LoadTableResult {
            metadata_location: self.metadata_location.as_deref(),
            metadata,
            config,
            storage_credentials: credentials,
        };
        serde_json::to_vec(&document).map_err(not_metadata)
    }
}

pub(super) fn not_metadata(cause: serde_json::Error) -> Refusal {
    let message = "the table's metadata cannot be understood";
    let error = polder_core::Error::new(polder_core::ErrorCode::LakeCorrupt, message);
    error.caused_by(cause).into()
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
            "metadata": metadata_json::ordered(&*self.metadata)?,
            "config": {},
        }))
    }
}

/// One page of a listing.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What to ask the next page with; `None` on the last one.
    pub next: Option<String>,
}
