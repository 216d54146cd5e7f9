//! References to secrets. The values never stand in a configuration, and resolving them (reading
//! the environment or a file) is not done here.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorCode, Result};

/// Where a secret is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretRef {
    /// `env:NAME`: the environment variable.
    Env(String),
    /// `file:PATH`: the file's content, without a trailing newline.
    File(String),
}

/// Turns a reference into its value. Implemented by the control plane.
pub trait SecretResolver: Send + Sync {
    /// # Errors
    /// `spec.secret`, naming the reference and never the value.
    fn resolve(&self, reference: &SecretRef) -> Result<SecretString>;
}

impl std::str::FromStr for SecretRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            // The text itself is not repeated: somebody may have pasted the secret.
            _ => Err(Error::new(ErrorCode::SpecSecret, "a secret has to be a reference")
                .hint("write env:NAME or file:PATH and put the value there")),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| {
            serde::de::Error::custom(format!("{error}; {}", error.hint_text().unwrap_or_default()))
        })
    }
}

impl schemars::JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(env|file):.+$",
            "description": "A reference to a secret: env:NAME or file:PATH. Never the value itself."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_references_are_taken_and_a_pasted_secret_is_not_repeated() {
        assert_eq!("env:X".parse::<SecretRef>().expect("env"), SecretRef::Env("X".into()));
        assert_eq!("file:/a:b".parse::<SecretRef>().expect("file").to_string(), "file:/a:b");
        for bad in ["hunter2", "env:", "postgres://u:hunter2@h/db", ""] {
            let error = bad.parse::<SecretRef>().expect_err("refused");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
