//! Orphans: files in an org's folder that nothing reaches, left by crashed runs, refused commits,
//! expiries that were cut off, and tables that were dropped.
//!
//! They are found by listing the folder first and asking the catalog then: what is older than the
//! window and unreached afterwards cannot become part of a table any more. They are moved to
//! `<org>/.quarantine/<time>/…`, from where they come back by [`Lake::restore_orphans`], or by
//! themselves if a table reaches them after all, and are deleted after a while.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use iceberg::{NamespaceIdent, TableIdent};
use object_store::path::Path;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};

use serde::Serialize;

use super::reach::reached;
use crate::catalog::{TableState, keeps_files, namespace_levels};
use crate::intake;
use crate::lake::{Lake, org_folder};
use crate::storage::Listed;

/// The folder of the org's quarantine.
const QUARANTINE: &str = ".quarantine";
/// Files moved or removed at the same time.
const MOVES_MAX: usize = 16;

/// What is taken for an orphan, and for how long it can come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanRequest {
    /// Files younger than this stay, whatever reaches them: a run may be about to. In milliseconds.
    pub older_than_ms: i64,
    /// Quarantined files are deleted after this. In milliseconds.
    pub purge_after_ms: i64,
    /// Only these tables' folders; the whole of the org's where there are none.
    pub tables: Vec<String>,
    /// Only count.
    pub dry_run: bool,
}

/// What was found, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Orphans {
    /// Files in the org's folder.
    pub listed: u64,
    /// Files that nothing reaches and that are too young to be called orphans.
    pub young: u64,
    /// Files moved to quarantine, and their bytes.
    pub quarantined: u64,
    pub quarantined_bytes: u64,
    /// Quarantined files that a table reaches after all, moved back.
    pub restored: u64,
    /// Quarantined files deleted for good, and their bytes.
    pub purged: u64,
    pub purged_bytes: u64,
    /// Files in quarantine afterwards.
    pub waiting: u64,
}

impl Lake {
    /// Moves an org's orphans to quarantine, and deletes those that have been there long enough.
    ///
    /// # Errors
    /// `lake.conflict` if tables came or went meanwhile; `lake.*` if anything that a table names
    /// cannot be read: then nothing is moved; `lake.held` while the org or a table of it is under legal
    /// hold.
    pub async fn orphans(
        &self,
        org: &Authorized<OrgId>,
        request: &OrphanRequest,
    ) -> Result<Orphans> {
        let Some(folder) = self.existing_folder(org.get()).await? else {
            return Ok(Orphans::default());
        };
        if !request.dry_run {
            self.check_hold(org, None, "removing orphan files").await?;
        }
        let now_ms = Utc::now().timestamp_millis();
        let since_ms = now_ms - request.older_than_ms;
        let listed = self.store().list(&folder).await?;
        let tables = self.tables_of(org.get()).await?;
        let mut reached_files = HashSet::new();
        for state in &tables {
            reached_files.extend(reached(self.store(), state, since_ms).await?);
        }
        if names(&self.tables_of(org.get()).await?) != names(&tables) {
            return Err(Error::new(ErrorCode::LakeConflict, "tables came or went meanwhile"));
        }
        let root = self.store().path(&folder)?;
        let (there, quarantine) = split(listed, &root)?;
        let mut orphans = Orphans { listed: there.len() as u64, ..Orphans::default() };
        let left = self.left_alone(&there, &tables, &root).await?;
        let asked = self.asked(request, &tables, org.get())?;
        let mut moves = Vec::new();
        for file in there {
            let stays = reached_files.contains(&file.path)
                || left.iter().any(|folder| file.path.prefix_matches(folder))
                || asked
                    .as_ref()
                    .is_some_and(|own| !own.iter().any(|f| file.path.prefix_matches(f)));
            if stays {
                continue;
            }
            if file.modified_ms >= since_ms {
                orphans.young += 1;
                continue;
            }
            orphans.quarantined += 1;
            orphans.quarantined_bytes += file.bytes;
            moves.push((file.path.clone(), quarantined(&root, now_ms, &file.path)?));
        }
        orphans.waiting = orphans.quarantined;
        let due_ms = now_ms - request.purge_after_ms;
        let (back, purged) = sort(&quarantine, &reached_files, due_ms, &mut orphans);
        if !request.dry_run {
            self.move_all(back, false).await?;
            self.move_all(moves, true).await?;
            self.remove_all(purged).await?;
        }
        Ok(orphans)
    }

    /// Moves everything in an org's quarantine back to where it was, but for files whose place is
    /// taken. Returns how many came back.
    ///
    /// # Errors
    /// `lake.*` when the store fails; called again, it goes on.
    pub async fn restore_orphans(&self, org: &Authorized<OrgId>) -> Result<u64> {
        let Some(folder) = self.existing_folder(org.get()).await? else { return Ok(0) };
        let root = self.store().path(&folder)?;
        let (there, quarantine) = split(self.store().list(&folder).await?, &root)?;
        let taken: HashSet<Path> = there.into_iter().map(|file| file.path).collect();
        let back = quarantine.into_iter().filter(|file| !taken.contains(&file.original));
        let back: Vec<(Path, Path)> = back.map(|file| (file.listed.path, file.original)).collect();
        let count = back.len() as u64;
        self.move_all(back, false).await?;
        Ok(count)
    }

    /// The org's folder, if it has one.
    async fn existing_folder(&self, org: &OrgId) -> Result<Option<String>> {
        match self.catalog().namespace(&org.namespace()).await? {
            Some(_) => org_folder(self.catalog(), self.store().root(), org).await.map(Some),
            None => Ok(None),
        }
    }

    /// Every table below the org's namespace.
    async fn tables_of(&self, org: &OrgId) -> Result<Vec<TableState>> {
        let own = org.namespace();
        let mut tables = Vec::new();
        for text in self.catalog().namespaces().await? {
            let levels = namespace_levels(&text);
            if levels.first() != Some(&own) {
                continue;
            }
            let namespace = NamespaceIdent::from_vec(levels)
                .map_err(|cause| crate::error::iceberg("understand a namespace's name", cause))?;
            for name in self.catalog().tables(&text).await? {
                let passing = name.starts_with(intake::PREFIX);
                let ident = TableIdent::new(namespace.clone(), name);
                match self.state(&ident).await? {
                    Some(state) => tables.push(state),
                    None if passing => {}
                    None => {
                        let message = "a table went or was renamed meanwhile";
                        return Err(
                            Error::new(ErrorCode::LakeConflict, message).detail(ident.to_string())
                        );
                    }
                }
            }
        }
        Ok(tables)
    }

    /// The folders that are not looked into: of tables that say that none of their files may be
    /// removed, of views, and of what may be tables that the catalog does not tell us of.
    async fn left_alone(
        &self,
        there: &[Listed],
        tables: &[TableState],
        root: &Path,
    ) -> Result<Vec<Path>> {
        let mut left = Vec::new();
        let mut known = Vec::new();
        for state in tables {
            let location = self.store().path(state.metadata.location())?;
            if keeps_files(&state.metadata) {
                left.push(location.clone());
            }
            known.push(location);
        }
        let mut metadata: BTreeMap<Path, Vec<&Path>> = BTreeMap::new();
        for file in there.iter().filter(|file| is_metadata(&file.path)) {
            if known.iter().any(|location| file.path.prefix_matches(location)) {
                continue;
            }
            if let Some((first, _)) = below(root, &file.path).and_then(|path| path.split_once('/'))
            {
                metadata.entry(under(root, first)?).or_default().push(&file.path);
            }
        }
        for (folder, files) in metadata {
            if !self.catalog().lists_all() || self.any_view(&files).await? {
                left.push(folder);
            }
        }
        Ok(left)
    }

    async fn any_view(&self, files: &[&Path]) -> Result<bool> {
        for file in files {
            let bytes = self.store().read_path(file).await?;
            let json: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
            // What cannot be read may be anything.
            if json.is_none_or(|json| json.get("table-uuid").is_none()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The folders of the tables asked for; `None` for all that there is.
    fn asked(
        &self,
        request: &OrphanRequest,
        tables: &[TableState],
        org: &OrgId,
    ) -> Result<Option<Vec<Path>>> {
        if request.tables.is_empty() {
            return Ok(None);
        }
        let own = NamespaceIdent::new(org.namespace());
        let wanted = tables.iter().filter(|state| {
            let name = state.ident.name();
            *state.ident.namespace() == own && request.tables.iter().any(|asked| asked == name)
        });
        wanted
            .map(|state| self.store().path(state.metadata.location()))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// `gone_is_done`: a file that is not there any more needs no moving.
    async fn move_all(&self, moves: Vec<(Path, Path)>, gone_is_done: bool) -> Result<()> {
        let under_way = futures::stream::iter(moves).map(|(from, to)| async move {
            match self.store().move_path(&from, &to).await {
                Err(error) if gone_is_done && error.code() == ErrorCode::LakeNotFound => Ok(()),
                done => done,
            }
        });
        under_way.buffer_unordered(MOVES_MAX).try_collect().await
    }

    async fn remove_all(&self, files: Vec<Path>) -> Result<()> {
        let removed = futures::stream::iter(files)
            .map(|path| async move { self.store().delete_path(&path).await });
        removed.buffer_unordered(MOVES_MAX).try_collect().await
    }
}

/// A file in quarantine.
struct Quarantined {
    listed: Listed,
    original: Path,
    /// When it came there, in milliseconds since the epoch.
    since_ms: i64,
}

/// Those of runs come and go: files of a new one are young, and an old one's files are not touched while it is
/// there.
fn names(tables: &[TableState]) -> BTreeSet<String> {
    let lasting = |state: &&TableState| !state.ident.name().starts_with(intake::PREFIX);
    tables.iter().filter(lasting).map(|state| state.ident.to_string()).collect()
}

pub(super) fn is_metadata(path: &Path) -> bool {
    path.filename()
        .is_some_and(|name| name.ends_with(".metadata.json") || name.ends_with(".gz.metadata.json"))
}

/// A path below the root, from there.
fn below<'a>(root: &Path, path: &'a Path) -> Option<&'a str> {
    path.as_ref().strip_prefix(root.as_ref())?.strip_prefix('/')
}

/// The inverse; the text is that of a path, which needs no encoding.
fn under(root: &Path, below: &str) -> Result<Path> {
    Path::parse(format!("{root}/{below}")).map_err(|cause| {
        Error::new(ErrorCode::LakeFailed, "a file has a name that cannot be moved")
            .detail(below)
            .caused_by(cause)
    })
}

fn split(listed: Vec<Listed>, root: &Path) -> Result<(Vec<Listed>, Vec<Quarantined>)> {
    let (mut there, mut quarantine) = (Vec::new(), Vec::new());
    for file in listed {
        let inside = below(root, &file.path).and_then(|below| below.strip_prefix(QUARANTINE));
        let Some(inside) = inside.and_then(|inside| inside.strip_prefix('/')) else {
            there.push(file);
            continue;
        };
        let parted = inside.split_once('/');
        if let Some((since_ms, original)) =
            parted.and_then(|(t, rest)| Some((t.parse().ok()?, rest)))
        {
            let original = under(root, original)?;
            quarantine.push(Quarantined { listed: file, original, since_ms });
        }
    }
    Ok((there, quarantine))
}

fn quarantined(root: &Path, now_ms: i64, path: &Path) -> Result<Path> {
    under(root, &format!("{QUARANTINE}/{now_ms}/{}", below(root, path).unwrap_or_default()))
}

/// What comes back from quarantine, and what is deleted.
fn sort(
    quarantine: &[Quarantined],
    reached: &HashSet<Path>,
    due_ms: i64,
    orphans: &mut Orphans,
) -> (Vec<(Path, Path)>, Vec<Path>) {
    let (mut back, mut purged) = (Vec::new(), Vec::new());
    for file in quarantine {
        if reached.contains(&file.original) {
            orphans.restored += 1;
            back.push((file.listed.path.clone(), file.original.clone()));
        } else if file.since_ms <= due_ms {
            orphans.purged += 1;
            orphans.purged_bytes += file.listed.bytes;
            purged.push(file.listed.path.clone());
        } else {
            orphans.waiting += 1;
        }
    }
    (back, purged)
}
