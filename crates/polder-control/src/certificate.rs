//! The keys that sign certificates, and the signatures (Ed25519, RFC 8032).
//!
//! Keys are PEM files of the usual kinds (PKCS#8, RFC 8410), so that any other program makes, keeps
//! and uses them as well.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use polder_core::certificate::{ALGORITHM, Certificate, Signature, SignedCertificate};
use polder_core::{Error, ErrorCode, Result};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use secrecy::{ExposeSecret, SecretString};

/// What stands before the 32 bytes of a private key (RFC 8410, 7) and of a public one (4).
const PRIVATE: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const KEY_BYTES: usize = 32;

/// A private key. It is never printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// A key from its PEM text, or from the base64 within it.
    ///
    /// # Errors
    /// `spec.secret` for anything else.
    pub fn parse(text: &SecretString) -> Result<Self> {
        let unusable = || {
            Error::new(ErrorCode::SpecSecret, "the signing key is no Ed25519 private key")
                .hint("make one: polder certificate keygen")
        };
        let bytes = decoded(text.expose_secret()).ok_or_else(unusable)?;
        // Newer files have the public key after the private one.
        let inner = bytes.windows(4).position(|four| four == [0x04, 0x22, 0x04, 0x20]);
        let seed = match inner {
            Some(at) if bytes.first() == Some(&0x30) => bytes.get(at + 4..at + 4 + KEY_BYTES),
            _ if bytes.len() == KEY_BYTES => Some(&bytes[..]),
            _ => None,
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.ok_or_else(unusable)?);
        Ok(Self { pair: pair.map_err(|_| unusable())? })
    }

    /// The public key, 32 bytes in base64.
    pub fn public_key(&self) -> String {
        STANDARD.encode(self.pair.public_key().as_ref())
    }

    /// The public key as a PEM file.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &[&PUBLIC[..], self.pair.public_key().as_ref()].concat())
    }

    /// Signs a certificate.
    pub fn sign(&self, certificate: Certificate) -> Result<SignedCertificate> {
        let value = self.pair.sign(certificate.signed_text()?.as_bytes());
        let signature = Signature {
            algorithm: ALGORITHM.to_owned(),
            public_key: self.public_key(),
            value: STANDARD.encode(value.as_ref()),
        };
        Ok(SignedCertificate { certificate, signature })
    }
}

/// Writes a new private key into a file that only its owner reads. A file that is there stays.
///
/// # Errors
/// `spec.invalid` if the file is there or cannot be made.
pub fn write_new_key(path: &Path) -> Result<SigningKey> {
    match new_key(path) {
        Ok(key) => Ok(key),
        Err(error) => Err(Error::new(ErrorCode::SpecInvalid, "the signing key cannot be written")
            .detail(path.display().to_string())
            .hint("choose a file that is not there yet; a key is never replaced")
            .caused_by(error)),
    }
}

/// The key in a file, which is made where it is absent; true if it was.
///
/// # Errors
/// `spec.secret` for a file that cannot be read or is no key.
pub fn key_in(path: &Path) -> Result<(SigningKey, bool)> {
    match new_key(path) {
        Ok(key) => Ok((key, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(path).map_err(|cause| {
                Error::new(ErrorCode::SpecSecret, "the signing key cannot be read")
                    .detail(path.display().to_string())
                    .caused_by(cause)
            })?;
            Ok((SigningKey::parse(&SecretString::from(text))?, false))
        }
        Err(error) => Err(Error::new(ErrorCode::SpecSecret, "no signing key can be made")
            .detail(path.display().to_string())
            .hint("name one under [governance] signing_key")
            .caused_by(error)),
    }
}

/// Whole or not at all, and never in place of another.
fn new_key(path: &Path) -> io::Result<SigningKey> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut seed = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut seed).map_err(|_| io::Error::other("no randomness"))?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
    let pair = pair.map_err(|_| io::Error::other("no key"))?;
    let text = SecretString::from(pem("PRIVATE KEY", &[&PRIVATE[..], &seed].concat()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut options = fs::File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.expose_secret().as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)
    })();
    let _ = fs::remove_file(&temporary);
    written.map(|()| SigningKey { pair })
}

/// Checks a document's signature. With `key` (base64, or a PEM public key), also that it is that key's.
/// Without, the document is whole; who signed it is for the reader to know.
///
/// # Errors
/// `spec.invalid`, saying what is wrong.
pub fn verify(document: &str, key: Option<&str>) -> Result<SignedCertificate> {
    let signed = SignedCertificate::parse(document)?;
    let invalid = |message: &str| Error::new(ErrorCode::SpecInvalid, message.to_owned());
    let named = STANDARD.decode(&signed.signature.public_key).ok();
    let named = named.filter(|key| key.len() == KEY_BYTES);
    let named = named.ok_or_else(|| invalid("the certificate names no Ed25519 public key"))?;
    if let Some(key) = key {
        let expected = public_key(key)?;
        if expected != named {
            return Err(invalid("the certificate was signed with another key")
                .detail(format!("it names {}", signed.signature.public_key)));
        }
    }
    let value = STANDARD.decode(&signed.signature.value);
    let value = value.map_err(|_| invalid("the certificate has no signature"))?;
    let text = signed.certificate.signed_text()?;
    let found = UnparsedPublicKey::new(&ED25519, &named).verify(text.as_bytes(), &value);
    found.map_err(|_| invalid("the signature is not of this certificate"))?;
    Ok(signed)
}

/// The 32 bytes of a public key in base64 or PEM.
fn public_key(text: &str) -> Result<Vec<u8>> {
    let mut bytes = decoded(text).unwrap_or_default();
    if bytes.starts_with(&PUBLIC) {
        bytes.drain(..PUBLIC.len());
    }
    if bytes.len() == KEY_BYTES {
        return Ok(bytes);
    }
    Err(Error::new(ErrorCode::SpecInvalid, "this is no Ed25519 public key")
        .hint("give its base64 text, or the .pub file that `polder certificate keygen` wrote"))
}

fn pem(kind: &str, bytes: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(bytes))
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
    STANDARD.decode(lines.collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use polder_core::certificate::{Asked, Deleted, KIND};
    use polder_core::{Inventory, Remains, Verification};
    use serde_json::Value;

    use super::*;

    fn certificate() -> Certificate {
        let found =
            Inventory { objects: 3, bytes: 99, sha256: "ab".into(), ..Inventory::default() };
        Certificate {
            kind: KIND.into(),
            org: "401".into(),
            event_id: "e1".into(),
            asked: Asked {
                by: "eve".into(),
                via: "cli".into(),
                reason: Some("contract ended".into()),
                at: "2026-11-26T12:00:00Z".into(),
            },
            issued_at: "2026-11-26T12:00:01Z".into(),
            polder: "0.1.0".into(),
            deleted: Deleted {
                folder: Some("s3://b/x".into()),
                found: found.clone(),
                sweeps: vec![found],
                catalog_entries: 2,
                store_rows: 5,
                management_rows: vec![("validation_results".into(), 4)],
                airflow: None,
            },
            verification: Verification {
                at_ms: 1,
                versions_listed: Some(true),
                objects: 0,
                catalog_entries: 0,
                management_rows: 0,
                airflow_dags: None,
            },
            remains: vec![Remains { what: "this entry".into(), why: "audit".into() }],
        }
    }

    fn key() -> (tempfile::TempDir, SigningKey) {
        let folder = tempfile::tempdir().expect("folder");
        let key = write_new_key(&folder.path().join("key.pem")).expect("key");
        (folder, key)
    }

    #[test]
    fn a_key_is_its_owners_and_never_replaced() {
        let (folder, key) = key();
        let path = folder.path().join("key.pem");
        let permissions = fs::metadata(&path).expect("file").permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        write_new_key(&path).expect_err("there");
        let (again, made) = key_in(&path).expect("again");
        assert_eq!((again.public_key(), made), (key.public_key(), false));
        let (_, made) = key_in(&folder.path().join("deep/other.pem")).expect("made");
        assert!(made);
        for bad in ["", "hunter2", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            let error = SigningKey::parse(&SecretString::from(bad)).expect_err(bad);
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        assert_eq!(format!("{key:?}"), "SigningKey");
    }

    /// RFC 8032, 7.1, test 1: its key, and the signature of a text we know to be right by it.
    #[test]
    fn keys_are_those_of_the_standard() {
        let seed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
        let key = SigningKey::parse(&SecretString::from(seed)).expect("seed");
        assert_eq!(key.public_key(), "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        let pem = key.public_pem();
        assert!(pem.contains("MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="));
    }

    #[test]
    fn any_change_is_noticed() {
        let (_folder, key) = key();
        let document = key.sign(certificate()).expect("signed").document().expect("document");
        verify(&document, None).expect("whole");
        verify(&document, Some(&key.public_key())).expect("ours");
        verify(&document, Some(&key.public_pem())).expect("ours, as PEM");
        // Every value of the document, changed; every member, left out or doubled.
        let value: Value = serde_json::from_str(&document).expect("JSON");
        let mut paths = Vec::new();
        walk(&value, "", &mut paths);
        assert!(paths.len() > 40, "{paths:?}");
        for path in &paths {
            let mut changed = value.clone();
            let at = changed.pointer_mut(path).expect(path);
            *at = match &*at {
                Value::String(text) => Value::String(format!("{text}x")),
                Value::Number(number) => (number.as_i64().expect("whole") + 1).into(),
                Value::Bool(truth) => (!truth).into(),
                Value::Null => "x".into(),
                Value::Array(items) => items.iter().chain([&Value::Null]).cloned().collect(),
                Value::Object(_) => Value::Null,
            };
            let text = serde_json::to_string_pretty(&changed).expect("text") + "\n";
            verify(&text, None).expect_err(path);
        }
        // Every single byte.
        for index in 0..document.len() {
            let mut bytes = document.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                verify(&text, None).expect_err("one bit");
            }
        }
        let doubled =
            document.replacen("\"org\": \"401\"", "\"org\": \"402\",\n    \"org\": \"401\"", 1);
        let edits = [
            (doubled, "a member twice"),
            (document.replace("  ", " "), "white space"),
            (document.trim_end().to_owned(), "cut off"),
            (format!("{document}\n"), "longer"),
            (document.replacen("401", "4\\u00301", 1), "the same value, written otherwise"),
        ];
        for (text, what) in edits {
            assert_ne!(text, document, "{what}");
            verify(&text, None).expect_err(what);
        }
    }

    #[test]
    fn another_key_is_noticed_where_the_right_one_is_given() {
        let ((_one, key), (_two, other)) = (key(), key());
        let mut forged = certificate();
        forged.deleted.found.objects = 1;
        let document = other.sign(forged).expect("signed").document().expect("document");
        verify(&document, None).expect("it is whole");
        let error = verify(&document, Some(&key.public_key())).expect_err("not ours");
        assert!(error.message().contains("another key"));
        verify(&document, Some("short")).expect_err("no key");
        // The right key's name over another's signature.
        let mut mixed = other.sign(certificate()).expect("signed");
        mixed.signature.public_key = key.public_key();
        verify(&mixed.document().expect("document"), None).expect_err("mixed");
    }

    fn walk(value: &Value, at: &str, paths: &mut Vec<String>) {
        if !at.is_empty() {
            paths.push(at.to_owned());
        }
        match value {
            Value::Object(members) => {
                members
                    .iter()
                    .for_each(|(name, value)| walk(value, &format!("{at}/{name}"), paths));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| walk(value, &format!("{at}/{index}"), paths));
            }
            _ => {}
        }
    }
}
