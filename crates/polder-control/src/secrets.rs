//! Resolves secret references from the process's environment and files. Values are never logged,
//! printed or kept longer than the call that needs them.

use std::path::PathBuf;

use polder_core::{Error, ErrorCode, Result, SecretRef, SecretResolver};
use secrecy::SecretString;

/// Secrets of this process: `env:` from its environment, `file:` relative to the configuration's
/// folder.
#[derive(Clone, Debug)]
pub struct ProcessSecrets {
    base: PathBuf,
}

impl ProcessSecrets {
    /// `base`: the folder relative `file:` references start from.
    pub fn new(base: PathBuf) -> Self {
        Self { base }
    }
}

impl SecretResolver for ProcessSecrets {
    fn resolve(&self, reference: &SecretRef) -> Result<SecretString> {
        let value = match reference {
            SecretRef::Env(name) => std::env::var(name).map_err(|_| {
                unresolved(reference, "the environment variable is not set")
                    .hint(format!("set it: export {name}=…"))
            })?,
            SecretRef::File(path) => {
                let path = self.base.join(path);
                std::fs::read_to_string(&path).map_err(|error| {
                    unresolved(reference, "the file cannot be read")
                        .detail(path.display().to_string())
                        .caused_by(error)
                })?
            }
            other => return Err(unresolved(other, "this kind of reference is not known")),
        };
        let value = value.trim_end_matches(['\r', '\n']);
        if value.is_empty() {
            return Err(unresolved(reference, "the value is empty"));
        }
        Ok(SecretString::from(value))
    }
}

fn unresolved(reference: &SecretRef, why: &str) -> Error {
    Error::new(ErrorCode::SpecSecret, format!("the secret {reference} cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn files_lose_only_their_last_newline_and_missing_ones_say_so() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("key"), " a b \n").expect("write");
        let secrets = ProcessSecrets::new(folder.path().to_owned());
        let value = secrets.resolve(&SecretRef::File("key".into())).expect("value");
        assert_eq!(value.expose_secret(), " a b ");
        let error = secrets.resolve(&SecretRef::File("none".into())).expect_err("missing");
        assert!(error.message().contains("file:none"));
        let error = secrets.resolve(&SecretRef::Env("POLDER_NO_SUCH".into())).expect_err("missing");
        assert_eq!(error.hint_text(), Some("set it: export POLDER_NO_SUCH=…"));
    }
}
