//! The certificate of an erasure: what it says, and the one text of it that is signed. Signing and
//! verifying need keys, and are the control plane's.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::erasure::{AirflowDags, Inventory, Remains, Verification};
use crate::{Error, ErrorCode, Result};

/// What a certificate calls itself.
pub const KIND: &str = "polder.erasure/1";
/// The signature's algorithm (RFC 8032).
pub const ALGORITHM: &str = "ed25519";

/// What was done when an org left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`KIND`].
    pub kind: String,
    pub org: String,
    pub event_id: String,
    pub asked: Asked,
    /// RFC 3339, as all times here that are not in milliseconds.
    pub issued_at: String,
    /// The version of Polder.
    pub polder: String,
    pub deleted: Deleted,
    pub verification: Verification,
    /// What is still there, and why.
    pub remains: Vec<Remains>,
}

/// Who asked for the erasure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub by: String,
    /// `cli` or `webhook`.
    pub via: String,
    pub reason: Option<String>,
    pub at: String,
}

/// What is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deleted {
    /// The org's folder, as a location.
    pub folder: Option<String>,
    /// The first whole listing of it after the fence.
    pub found: Inventory,
    /// Later listings that found something, which went too.
    pub sweeps: Vec<Inventory>,
    /// Tables, views and namespaces that left the catalog.
    pub catalog_entries: u64,
    /// Rows that left the control store.
    pub store_rows: u64,
    /// Rows that left management tables, by table.
    pub management_rows: Vec<(String, u64)>,
    /// DAGs that left Airflow; absent where none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airflow: Option<AirflowDags>,
}

/// A certificate with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCertificate {
    pub certificate: Certificate,
    pub signature: Signature,
}

/// Of the UTF-8 bytes of [`Certificate::signed_text`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// [`ALGORITHM`].
    pub algorithm: String,
    /// 32 bytes in base64.
    pub public_key: String,
    /// 64 bytes in base64.
    pub value: String,
}

impl Certificate {
    /// The certificate as JSON without white space, its members sorted by name at every level (RFC
    /// 8785, as it has no other numbers than whole ones): the same whoever writes it.
    pub fn signed_text(&self) -> Result<String> {
        let value = serde_json::to_value(self).map_err(unwritable)?;
        let mut text = String::new();
        canonical(&value, &mut text)?;
        Ok(text)
    }
}

impl SignedCertificate {
    /// The document that is handed out.
    pub fn document(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).map_err(unwritable)? + "\n")
    }

    /// Reads a document that [`Self::document`] wrote.
    ///
    /// # Errors
    /// `spec.invalid` for anything else, down to its white space: what is not as it was handed out may
    /// say another thing to a person than to a program.
    pub fn parse(text: &str) -> Result<Self> {
        let parsed: Self = serde_json::from_str(text).map_err(|cause| {
            Error::new(ErrorCode::SpecInvalid, "this is not a certificate").caused_by(cause)
        })?;
        let certificate = &parsed.certificate;
        if certificate.kind != KIND || parsed.signature.algorithm != ALGORITHM {
            let message = format!("this is no certificate of kind {KIND}, signed with {ALGORITHM}");
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        if parsed.document()? != text {
            let message = "the file is not as the certificate was written";
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("it was changed or written anew by a program: get the original"));
        }
        Ok(parsed)
    }
}

fn unwritable(cause: serde_json::Error) -> Error {
    Error::new(ErrorCode::Internal, "a certificate cannot be written as JSON").caused_by(cause)
}

fn canonical(value: &Value, text: &mut String) -> Result<()> {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&serde_json::to_string(name).map_err(unwritable)?);
                text.push(':');
                canonical(value, text)?;
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                canonical(item, text)?;
            }
            text.push(']');
        }
        plain => text.push_str(&serde_json::to_string(plain).map_err(unwritable)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_sorted_and_nothing_else_is_between_them() {
        let value = json!({ "b": [1, {"z": null, "a": true}], "a": "é\"\n\u{1f}", "": -1 });
        let mut text = String::new();
        canonical(&value, &mut text).expect("text");
        // python3: json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert_eq!(text, "{\"\":-1,\"a\":\"é\\\"\\n\\u001f\",\"b\":[1,{\"a\":true,\"z\":null}]}");
    }
}
