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

    /// The same file, for asking the disk to take what was written so far.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
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

    /// A file whose bytes go elsewhere: to a device that fails in its own way.
    fn on_device(device: &str, path: &Path) -> NewFile {
        let file = NewFile::create(path).expect("create");
        let mut file = std::mem::ManuallyDrop::new(file);
        NewFile {
            file: File::options().write(true).open(device).expect("device"),
            temporary: std::mem::take(&mut file.temporary),
            path: std::mem::take(&mut file.path),
        }
    }

    #[test]
    fn a_disk_that_fails_leaves_no_file_under_the_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        // Full when it is written.
        let mut file = on_device("/dev/full", &path);
        let error = file.write(b"rows").expect_err("no space");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(file);
        assert!(names(folder.path()).is_empty());
        // What cannot be flushed.
        let mut file = on_device("/dev/null", &path);
        file.write(b"rows").expect("taken");
        file.finish().expect_err("it is on no disk");
        assert!(names(folder.path()).is_empty());
        // What cannot get its name.
        let mut file = NewFile::create(&path).expect("create");
        file.write(b"rows").expect("write");
        fs::remove_file(&file.temporary).expect("remove");
        file.finish().expect_err("it is gone");
        assert!(names(folder.path()).is_empty());
        // The process dies before it has its name: what it leaves is in nobody's way.
        let mut file = NewFile::create(&path).expect("create");
        file.write(b"half").expect("write");
        std::mem::forget(file);
        write_new(&path, b"rows").expect("another process");
        assert_eq!(fs::read(&path).expect("read"), b"rows");
        let mut left = names(folder.path());
        left.retain(|name| name.starts_with(TEMPORARY));
        assert_eq!(left.len(), 1, "until orphan removal finds it");
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
