//! A folder per test, and files to put there.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use polder_core::spec::{CsvOptions, FileFormat, FormatOptions, OnBadLine, StorageConfig};
use polder_core::{ReadRequest, Result, SecretRef, SecretResolver};
use polder_sources::files::{FilesSource, Place};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

/// Secrets from the environment, for the servers' keys.
pub(super) struct Environment;

impl SecretResolver for Environment {
    fn resolve(&self, reference: &SecretRef) -> Result<SecretString> {
        let SecretRef::Env(name) = reference else { panic!("{reference} is not of a test") };
        let missing =
            format!("{name} is not set: run `cargo xtask services up` and set what it prints");
        Ok(std::env::var(name).expect(&missing).into())
    }
}

/// A folder with a place for files and one for rejected lines.
pub(super) struct Folder {
    dir: TempDir,
}

impl Folder {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        fs::create_dir(dir.path().join("files")).expect("folder");
        Self { dir }
    }

    /// With files, by key and content.
    pub(super) fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self::new();
        for (key, content) in files {
            folder.write(key, content);
        }
        folder
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.dir.path().join("files").join(key)
    }

    pub(super) fn write(&self, key: &str, content: impl AsRef<[u8]>) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, content).expect("file");
    }

    pub(super) fn source(&self) -> FilesSource {
        let base = self.dir.path();
        let place = Place::open("files", &StorageConfig::default(), &Environment, base);
        FilesSource::new("uploads", place.expect("place"), base)
    }

    /// The lines set aside for org 401, sorted by file and line.
    pub(super) fn rejects(&self) -> Vec<Value> {
        let mut lines = Vec::new();
        for file in fs::read_dir(self.dir.path().join("rejects/401")).into_iter().flatten() {
            let text = fs::read_to_string(file.expect("file").path()).expect("text");
            lines.extend(
                text.lines().map(|line| serde_json::from_str::<Value>(line).expect("json")),
            );
        }
        lines.sort_by_key(|line| (line["file"].to_string(), line["line"].as_u64()));
        lines
    }
}

pub(super) fn gzip(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_ref()).expect("gzip");
    encoder.finish().expect("gzip")
}

pub(super) fn zstd(content: impl AsRef<[u8]>) -> Vec<u8> {
    zstd::bulk::compress(content.as_ref(), 1).expect("zstd")
}

/// Short forms for the parts of a format that tests vary.
pub(super) trait VaryFormat {
    fn csv(self, options: CsvOptions) -> Self;
    fn reject(self) -> Self;
    fn format(self, format: FileFormat) -> Self;
}

impl VaryFormat for ReadRequest {
    fn csv(self, csv: CsvOptions) -> Self {
        Self { format: FormatOptions { csv, ..self.format }, ..self }
    }

    fn reject(self) -> Self {
        Self { format: FormatOptions { on_bad_line: OnBadLine::Reject, ..self.format }, ..self }
    }

    fn format(self, format: FileFormat) -> Self {
        Self { format: FormatOptions { format: Some(format), ..self.format }, ..self }
    }
}
