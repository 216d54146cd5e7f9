//! The checkout's text files, read once for all checks.

use std::fs;
use std::path::Path;

use super::source::mask;
use crate::Result;

/// Folders that hold nothing written by hand.
const SKIPPED: [&str; 6] = [".git", ".venv", "target", "node_modules", "__pycache__", "dist"];

pub(super) struct File {
    /// Relative to the checkout, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    /// For Rust: the text with comments and literals blanked out, line for line.
    pub(super) code: String,
}

impl File {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let rust = is(path, "rs");
        let code = if rust { mask(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    pub(super) fn is(&self, extension: &str) -> bool {
        is(&self.path, extension)
    }
}

fn is(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// Every UTF-8 file below `root`, sorted by path. Lock files are a tool's, not ours.
pub(super) fn read(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let failed = |error| format!("cannot read {}: {error}", folder.display());
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                folders.push(entry.path());
            } else if kind.is_file() && !is(&name, "lock") {
                let bytes = fs::read(entry.path()).map_err(failed)?;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                let path = entry.path();
                let path = path.strip_prefix(root).unwrap_or(&path);
                files.push(File::new(&path.to_string_lossy(), &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
