//! Lines that cannot be read: an error, or a line in the reject file.
//!
//! A reject file holds one JSON object a line: file, line, reason and the line itself (`raw`, or
//! `raw_hex` where it is not UTF-8). It holds the org's data and lies in the org's own folder. A run
//! that is repeated writes a file of its own.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::Utc;
use polder_core::digest;
use polder_core::spec::OnBadLine;
use polder_core::{Error, ErrorCode, Result, RunProgress};
use serde_json::{Value, json};

/// A run that sets more lines aside than this has the wrong format.
const REJECTS_MAX: u64 = 1_000_000;

/// Where one read's bad lines go.
#[derive(Debug)]
pub(super) struct BadLines {
    policy: OnBadLine,
    path: PathBuf,
    progress: Arc<RunProgress>,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    file: Option<BufWriter<File>>,
    lines: u64,
}

/// A line of a file and what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BadLine<'a> {
    pub(super) file: &'a str,
    pub(super) line: u64,
    pub(super) reason: &'a str,
    pub(super) raw: &'a [u8],
}

impl BadLines {
    /// `folder` is the org's; `name` starts the file's name.
    pub(super) fn new(
        policy: OnBadLine,
        folder: &Path,
        name: &str,
        progress: Arc<RunProgress>,
    ) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let file = format!("{name}-{}-{}.jsonl", Utc::now().format("%Y%m%dT%H%M%SZ"), &unique[..8]);
        Self { policy, path: folder.join(file), progress, written: Mutex::default() }
    }

    /// The error that names a bad line, if the policy is to stop.
    pub(super) fn refuse(&self, bad: BadLine<'_>) -> Result<()> {
        match self.policy {
            OnBadLine::Reject => Ok(()),
            OnBadLine::Error => {
                let message = format!("file {} line {}: {}", bad.file, bad.line, bad.reason);
                Err(Error::new(ErrorCode::SourceMalformed, message).hint(
                    "correct the file, or set `format: { on_bad_line: reject }` to set such lines \
                     aside",
                ))
            }
        }
    }

    /// Stops, or writes the line to the reject file and counts it.
    pub(super) fn reject(&self, bad: BadLine<'_>) -> Result<()> {
        self.refuse(bad)?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.lines += 1;
        if written.lines > REJECTS_MAX {
            return Err(Error::new(ErrorCode::SourceMalformed, "too many lines cannot be read")
                .detail(format!("the limit is {REJECTS_MAX}, reached in file {}", bad.file))
                .hint("check the table's `format`"));
        }
        self.write(&mut written, bad).map_err(|error| {
            Error::new(ErrorCode::SourceFailed, "the reject file cannot be written")
                .detail(self.path.display().to_string())
                .caused_by(error)
        })?;
        self.progress.add_rejected(bad.file, 1);
        Ok(())
    }

    fn write(&self, written: &mut Written, bad: BadLine<'_>) -> std::io::Result<()> {
        let file = if let Some(file) = &mut written.file {
            file
        } else {
            fs::create_dir_all(self.path.parent().unwrap_or(&self.path))?;
            written.file.insert(BufWriter::new(File::create_new(&self.path)?))
        };
        let raw = bad.raw.trim_ascii_end();
        let mut entry = json!({ "file": bad.file, "line": bad.line, "reason": bad.reason });
        match std::str::from_utf8(raw) {
            Ok(text) => entry["raw"] = Value::from(text),
            Err(_) => entry["raw_hex"] = Value::from(digest::hex(raw)),
        }
        writeln!(file, "{entry}")?;
        // A line that is counted is on disk, whatever happens next.
        file.flush()
    }
}
