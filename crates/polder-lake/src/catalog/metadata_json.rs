//! Table and view metadata as JSON text, its lists in their order.

use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

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

/// The content of a metadata file.
pub(super) fn text(metadata: &impl Serialize) -> Result<Box<RawValue>> {
    to_raw_value(&ordered(metadata)?).map_err(failed)
}

/// The same, to be put into another document.
pub(super) fn ordered(metadata: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(metadata).map_err(failed)?;
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

fn failed(cause: serde_json::Error) -> Error {
    Error::new(ErrorCode::Internal, "the metadata cannot be written as JSON").caused_by(cause)
}
