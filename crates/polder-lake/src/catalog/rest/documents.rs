//! The JSON documents of the Iceberg REST specification (`rest-catalog-open-api.yaml`, 1.11) that a
//! client sends and gets. Fields that servers leave out or send as `null` are empty.

use std::collections::{BTreeMap, HashMap};

use iceberg::spec::{Schema, TableMetadata, UnboundPartitionSpec};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

pub(super) type Properties = BTreeMap<String, String>;

/// Takes `null` for nothing, and a number or truth value for its text.
fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Properties, D::Error> {
    let found: Option<BTreeMap<String, Value>> = Option::deserialize(deserializer)?;
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let found = found.unwrap_or_default().into_iter();
    Ok(found.filter_map(|(key, value)| Some((key, text(value)?))).collect())
}

/// `CatalogConfig`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default, deserialize_with = "properties")]
    pub(super) defaults: Properties,
    #[serde(default, deserialize_with = "properties")]
    pub(super) overrides: Properties,
    #[serde(default)]
    pub(super) endpoints: Option<Vec<String>>,
}

/// `ListNamespacesResponse`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Namespaces {
    #[serde(default)]
    pub(super) namespaces: Option<Vec<Vec<String>>>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

/// `ListTablesResponse`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Tables {
    #[serde(default)]
    pub(super) identifiers: Option<Vec<Identifier>>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identifier {
    pub(super) namespace: Vec<String>,
    pub(super) name: String,
}

/// `CreateNamespaceRequest`, and what answers it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Namespace {
    #[serde(default)]
    pub(super) namespace: Vec<String>,
    #[serde(default, deserialize_with = "properties")]
    pub(super) properties: Properties,
}

/// `UpdateNamespacePropertiesRequest`.
#[derive(Debug, Serialize)]
pub(super) struct UpdateProperties {
    pub(super) removals: Vec<String>,
    pub(super) updates: Properties,
}

/// `LoadTableResult`, and `CommitTableResponse`, which has a part of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LoadedTable {
    /// Absent of a table that is not there yet.
    #[serde(default)]
    pub(super) metadata_location: Option<String>,
    pub(super) metadata: TableMetadata,
    #[serde(flatten)]
    pub(super) access: Access,
}

/// How to reach the files of a table.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Access {
    #[serde(default, deserialize_with = "properties")]
    pub(super) config: Properties,
    #[serde(default)]
    pub(super) storage_credentials: Option<Vec<StorageCredential>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StorageCredential {
    pub(super) prefix: String,
    #[serde(default, deserialize_with = "properties")]
    pub(super) config: Properties,
}

/// `CreateTableRequest`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CreateTable<'a> {
    pub(super) name: &'a str,
    pub(super) location: &'a str,
    pub(super) schema: &'a Schema,
    pub(super) partition_spec: UnboundPartitionSpec,
    pub(super) stage_create: bool,
    pub(super) properties: HashMap<String, String>,
}

/// `CommitTableRequest`.
#[derive(Debug, Serialize)]
pub(super) struct Commit {
    pub(super) identifier: Identifier,
    pub(super) requirements: Vec<Value>,
    pub(super) updates: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_leave_out_is_empty() {
        let config: Config = serde_json::from_str(r#"{"defaults": null}"#).expect("config");
        assert!(config.defaults.is_empty() && config.endpoints.is_none());
        let text = r#"{"overrides": {"prefix": "a", "clients": 4, "x": true, "y": null}}"#;
        let config: Config = serde_json::from_str(text).expect("config");
        let found: Vec<_> =
            config.overrides.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("clients", "4"), ("prefix", "a"), ("x", "true")]);
        let access: Access = serde_json::from_str(r#"{"config": null}"#).expect("access");
        assert!(access.config.is_empty() && access.storage_credentials.is_none());
        let text = r#"{"namespaces": [["a"]], "next-page-token": null}"#;
        let listed: Namespaces = serde_json::from_str(text).expect("list");
        assert_eq!((listed.namespaces.expect("one").len(), listed.next_page_token), (1, None));
    }
}
