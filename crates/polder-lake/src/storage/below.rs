//! Everything below a folder of the lake: listed, counted and removed, whether any metadata names it
//! or not. For the end of an org; nothing else removes what it has not made.
//!
//! On local disk the folder is put out of the way first and a file takes its place: whoever still
//! writes there fails at once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use polder_core::{Error, ErrorCode, Inventory, Remains, Result};
use ring::digest::{Context, SHA256};
use uuid::Uuid;

use super::bucket::{Bucket, KEYS_MAX, Named};
use super::{FILE_SCHEME, Kind, Store, local, local_path};
use crate::error;

/// Requests that remove things, at the same time.
const REMOVALS_MAX: usize = 8;
/// What the folders are called that an org's folder was moved to.
const ASIDE: &str = ".erase-";
/// Times that a folder is moved away which somebody makes again and again.
const SEALS_MAX: u32 = 32;

/// What lies below a folder.
#[derive(Debug, Default)]
pub struct Below {
    items: Vec<Item>,
    /// Whether a bucket was asked for its versions too; `None` on local disk.
    pub versions_listed: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    /// Below the folder.
    key: String,
    kind: ItemKind,
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ItemKind {
    /// With its version, in a bucket that has them.
    Object(Option<String>),
    Marker(String),
    Upload(String),
}

impl Below {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Counts, and a digest that tells this listing from every other.
    pub fn inventory(&mut self) -> Inventory {
        self.items.sort_unstable();
        let mut inventory =
            Inventory { at_ms: Utc::now().timestamp_millis(), ..Inventory::default() };
        let mut lines: Vec<String> = Vec::with_capacity(self.items.len());
        for Item { key, kind, bytes } in &self.items {
            let version = match kind {
                ItemKind::Object(version) => {
                    inventory.objects += 1;
                    inventory.bytes += bytes;
                    version.clone().unwrap_or_default()
                }
                ItemKind::Marker(version) => {
                    inventory.delete_markers += 1;
                    format!("marker:{version}")
                }
                ItemKind::Upload(id) => {
                    inventory.uploads += 1;
                    format!("upload:{id}")
                }
            };
            lines.push(format!("{key}\t{version}\t{bytes}\n"));
        }
        lines.sort_unstable();
        let mut digest = Context::new(&SHA256);
        for line in &lines {
            digest.update(line.as_bytes());
        }
        inventory.sha256 = polder_core::digest::hex(digest.finish().as_ref());
        inventory
    }
}

impl Store {
    /// Keeps everybody from making files in a folder again, where the store can: on local disk.
    /// What is there is found by [`Self::below`] all the same.
    pub(crate) async fn seal(&self, folder: &str) -> Result<()> {
        let Kind::Local = self.inner.kind else { return Ok(()) };
        let folder = local_path(folder);
        blocking("close an org's folder", move || seal(&folder)).await
    }

    /// Lists everything below a folder: objects, their older versions, delete markers and unfinished
    /// uploads.
    ///
    /// # Errors
    /// `lake.failed` for a store to which a catalog hands out the keys.
    pub(crate) async fn below(&self, folder: &str) -> Result<Below> {
        match &self.inner.kind {
            Kind::Local => {
                let folder = local_path(folder);
                let items = blocking("list an org's folder", move || walk(&folder)).await?;
                Ok(Below { items, versions_listed: None })
            }
            Kind::S3 { bucket, .. } => {
                let api = self.bucket()?;
                let prefix = prefix(bucket, folder)?;
                let versioned = api.is_versioned().await?;
                let mut below = Below { items: Vec::new(), versions_listed: Some(versioned) };
                if versioned {
                    api.versions(&prefix, |named, bytes, marker| {
                        let version = named.version.unwrap_or_default();
                        let kind = if marker {
                            ItemKind::Marker(version)
                        } else {
                            ItemKind::Object(Some(version))
                        };
                        below.items.extend(item(&prefix, &named.key, kind, bytes));
                    })
                    .await?;
                } else {
                    let path = self.path(&format!("{folder}/"))?;
                    let mut listed = self.inner.objects.list(Some(&path));
                    let failed = |cause| error::storage("list an org's folder", cause);
                    while let Some(found) = listed.try_next().await.map_err(failed)? {
                        let kind = ItemKind::Object(None);
                        below.items.extend(item(
                            &prefix,
                            found.location.as_ref(),
                            kind,
                            found.size,
                        ));
                    }
                }
                api.uploads(&prefix, |key, id| {
                    below.items.extend(item(&prefix, &key, ItemKind::Upload(id), 0));
                })
                .await?;
                Ok(below)
            }
        }
    }

    /// Removes what was listed below a folder. Returns what the store keeps, and why.
    pub(crate) async fn remove_below(&self, folder: &str, below: &Below) -> Result<Vec<Remains>> {
        match &self.inner.kind {
            Kind::Local => {
                let folder = local_path(folder);
                blocking("remove an org's folder", move || remove(&folder)).await?;
                Ok(Vec::new())
            }
            Kind::S3 { bucket, .. } => {
                let api = self.bucket()?;
                let prefix = prefix(bucket, folder)?;
                let mut remains = remove_objects(api, &prefix, &below.items).await?;
                remains.extend(remove_uploads(api, &prefix, &below.items).await?);
                Ok(remains)
            }
        }
    }

    fn bucket(&self) -> Result<&Bucket> {
        match &self.inner.kind {
            Kind::S3 { api: Some(api), .. } => Ok(api),
            _ => Err(Error::new(
                ErrorCode::LakeFailed,
                "the lake has no keys of its own for its bucket: an org cannot be removed from it",
            )
            .hint("name access_key and secret_key under [storage.s3]")),
        }
    }
}

fn item(prefix: &str, key: &str, kind: ItemKind, bytes: u64) -> Option<Item> {
    // A server that lists more than it was asked for removes nothing of others.
    let key = key.strip_prefix(prefix)?.to_owned();
    Some(Item { key, kind, bytes })
}

/// What keys below the folder begin with.
fn prefix(bucket: &str, folder: &str) -> Result<String> {
    let key = folder.strip_prefix("s3://").and_then(|rest| rest.strip_prefix(bucket));
    let key = key.and_then(|rest| rest.strip_prefix('/')).filter(|key| !key.is_empty());
    let foreign = || Error::new(ErrorCode::LakeCorrupt, "an org's folder lies outside the lake");
    key.map(|key| format!("{key}/")).ok_or_else(|| foreign().detail(folder.to_owned()))
}

async fn remove_objects(api: &Bucket, prefix: &str, items: &[Item]) -> Result<Vec<Remains>> {
    let named: Vec<Named> = items
        .iter()
        .filter_map(|item| {
            let version = match &item.kind {
                ItemKind::Object(version) => version.clone(),
                ItemKind::Marker(version) => Some(version.clone()),
                ItemKind::Upload(_) => return None,
            };
            Some(Named { key: format!("{prefix}{}", item.key), version })
        })
        .collect();
    let chunks = named.chunks(KEYS_MAX).map(|chunk| api.delete(chunk));
    let done = futures::stream::iter(chunks.collect::<Vec<_>>()).buffer_unordered(REMOVALS_MAX);
    let kept: Vec<Vec<(String, String)>> = done.try_collect().await?;
    let remains = kept.into_iter().flatten().map(|(key, code)| Remains {
        what: format!("object {}", key.strip_prefix(prefix).unwrap_or(&key)),
        why: format!("the store does not remove it: {code} (an object lock, or a policy)"),
    });
    Ok(remains.collect())
}

async fn remove_uploads(api: &Bucket, prefix: &str, items: &[Item]) -> Result<Vec<Remains>> {
    let uploads = items.iter().filter_map(|item| match &item.kind {
        ItemKind::Upload(id) => Some((format!("{prefix}{}", item.key), id)),
        _ => None,
    });
    let aborts = uploads.map(|(key, id)| async move { api.abort(&key, id).await });
    let done = futures::stream::iter(aborts.collect::<Vec<_>>()).buffer_unordered(REMOVALS_MAX);
    done.try_collect::<Vec<()>>().await?;
    Ok(Vec::new())
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(error::join)?;
    done.map_err(|cause| error::io(what, cause))
}

/// Where the folder's files were put out of the way.
fn aside(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{ASIDE}{name}"))
}

/// Puts a file in the folder's place, and the folder aside.
fn seal(folder: &Path) -> io::Result<()> {
    let aside = aside(folder);
    for _ in 0..SEALS_MAX {
        match fs::symlink_metadata(folder) {
            Ok(found) if found.is_file() => return Ok(()),
            Ok(_) => {
                local::ensure_folder(&aside)?;
                match fs::rename(folder, aside.join(Uuid::new_v4().to_string())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match File::options().write(true).create_new(true).open(folder) {
            Ok(file) => {
                file.sync_all()?;
                return folder.parent().map_or(Ok(()), local::flush_folder);
            }
            // Somebody who still writes has made the folder again.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{FILE_SCHEME}{} comes back", folder.display())))
}

fn walk(folder: &Path) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    if fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir()) {
        walk_into(folder, folder, &mut items)?;
    }
    match fs::read_dir(aside(folder)) {
        Ok(moved) => {
            for moved in moved {
                let moved = moved?.path();
                walk_into(&moved, &moved, &mut items)?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(items)
}

fn walk_into(root: &Path, folder: &Path, items: &mut Vec<Item>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Links are removed, and not followed.
        let found = match entry.metadata() {
            // A writer's own clean-up was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        let path = entry.path();
        if found.is_dir() {
            walk_into(root, &path, items)?;
            continue;
        }
        let below = path.strip_prefix(root).unwrap_or(&path);
        let key = below.to_string_lossy().into_owned();
        items.push(Item { key, kind: ItemKind::Object(None), bytes: found.len() });
    }
    Ok(())
}

fn remove(folder: &Path) -> io::Result<()> {
    let gone = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    if fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir()) {
        gone(fs::remove_dir_all(folder))?;
    }
    gone(fs::remove_dir_all(aside(folder)))?;
    folder.parent().map_or(Ok(()), local::flush_folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_folder_takes_no_files_and_what_was_there_is_found_and_removed() {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("org");
        local::write_new(&folder.join("t/data/a"), b"one").expect("a");
        local::write_new(&folder.join("t/b"), b"three").expect("b");
        let before = walk(&folder).expect("before");
        seal(&folder).expect("sealed");
        seal(&folder).expect("again");
        local::write_new(&folder.join("t/data/late"), b"x").expect_err("nothing comes back");
        let mut items = walk(&folder).expect("listed");
        items.sort();
        let keys: Vec<_> = items.iter().map(|item| (item.key.as_str(), item.bytes)).collect();
        assert_eq!(keys, [("t/b", 5), ("t/data/a", 3)]);
        let digest = |items: Vec<Item>| Below { items, versions_listed: None }.inventory().sha256;
        assert_eq!(digest(before), digest(items), "where it lies makes no difference");
        remove(&folder).expect("removed");
        remove(&folder).expect("again");
        assert!(walk(&folder).expect("listed").is_empty());
        let left: Vec<_> = fs::read_dir(root.path()).expect("root").collect();
        assert_eq!(left.len(), 1, "the seal");
        assert_eq!(fs::metadata(&folder).expect("seal").len(), 0);
    }

    #[test]
    fn the_digest_is_of_the_sorted_lines() {
        let object =
            |key: &str, bytes| Item { key: key.to_owned(), kind: ItemKind::Object(None), bytes };
        let mut below =
            Below { items: vec![object("b", 2), object("a", 1)], versions_listed: None };
        let inventory = below.inventory();
        // printf 'a\t\t1\nb\t\t2\n' | sha256sum
        let expected = "0fa918e3cd3d841c55e580bae15fce2ea4f5b2b7c01420cadf962f8e881b966f";
        assert_eq!((inventory.objects, inventory.bytes), (2, 3));
        assert_eq!(inventory.sha256, expected);
    }

    #[test]
    fn keys_of_others_are_not_touched() {
        let kind = ItemKind::Object(None);
        assert!(item("lake/a/", "lake/ab/x", kind.clone(), 1).is_none());
        assert_eq!(item("lake/a/", "lake/a/x", kind, 1).expect("ours").key, "x");
        assert!(prefix("b", "s3://b/").is_err() && prefix("b", "s3://c/x").is_err());
        assert_eq!(prefix("b", "s3://b/x/y").expect("prefix"), "x/y/");
    }
}
