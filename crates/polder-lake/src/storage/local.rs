//! Durable files on local disk: written under a temporary name in the same folder, flushed, then
//! linked to their name, which must be free, and the folder flushed. A power cut leaves the whole
//! file or a temporary one, never half of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// What temporary names begin with.
pub(super) const TEMPORARY: &str = ".tmp-";

/// Creates a folder with its parents, so that they survive a power cut.
pub(super) fn ensure_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        ensure_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    folder.parent().map_or(Ok(()), flush_folder)
}

pub(super) fn flush_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file that is being written. Dropping it before [`Self::finish`] removes it.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl NewFile {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        ensure_folder(folder)?;
        let temporary = folder.join(format!("{TEMPORARY}{}", Uuid::new_v4()));
        let file = File::options().write(true).create_new(true).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives the file its name. When this returns, the file survives a power cut.
    pub(super) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        match fs::hard_link(&self.temporary, &self.path) {
            Ok(()) => {}
            // Some file systems have no links. A rename could replace a file, so look first; our
            // names are unique, and nobody else writes them.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !self.path.exists() => {
                fs::rename(&self.temporary, &self.path)?;
            }
            Err(error) => return Err(error),
        }
        let flushed = self.path.parent().map_or(Ok(()), flush_folder);
        if flushed.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        flushed
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Finished or not, the temporary name is of no use any more. One that stays is found by
        // orphan removal.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a whole new file durably.
///
/// # Errors
/// `AlreadyExists` if there is a file of that name with another content.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    file.write(bytes)?;
    match file.finish() {
        Err(error)
            if error.kind() == io::ErrorKind::AlreadyExists
                && fs::read(path).is_ok_and(|found| found == bytes) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("folder");
        entries.map(|e| e.expect("entry").file_name().into_string().expect("utf-8")).collect()
    }

    #[test]
    fn a_file_appears_whole_and_replaces_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a/b/c");
        write_new(&path, b"one").expect("new");
        write_new(&path, b"one").expect("the same again");
        let error = write_new(&path, b"two").expect_err("another");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"one");
        assert_eq!(names(path.parent().expect("parent")), ["c"]);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let mut file = NewFile::create(&folder.path().join("x")).expect("create");
        file.write(b"half").expect("write");
        assert_eq!(names(folder.path()).len(), 1);
        drop(file);
        assert!(names(folder.path()).is_empty());
    }
}
