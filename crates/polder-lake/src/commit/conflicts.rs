//! Which commits of others an action bears between the state it was made for and the present one.

use std::collections::HashSet;

use iceberg::spec::{DataContentType, DataFile, ManifestContentType};
use polder_core::Result;

use super::conflict;
use super::snapshot::{path_bounds, read_list};
use crate::catalog::TableState;
use crate::error;
use crate::scan::{self, ScanRequest};
use crate::stage::Stage;
use crate::table::LakeTable;
use crate::write::{StagedDeletes, StagedFile};
use polder_core::Predicate;

/// What becomes of the rows in the `untouched` files, and of equality deletes of them that came in
/// between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rows {
    /// They stay there, and such deletes apply.
    #[default]
    Stay,
    /// They go on in files of the same age: such deletes apply by age, and by partition.
    Copied,
    /// Newer ones take their place, to which such deletes do not apply.
    Replaced,
}

/// What must be true of the commits between the state an action was made for and the present one.
#[derive(Default)]
pub(super) struct Assumed {
    /// None has deleted rows of these data files.
    pub(super) untouched: HashSet<String>,
    pub(super) rows: Rows,
    /// None has removed one of these data files.
    pub(super) present: HashSet<String>,
    /// None has added a data file that may hold rows of these.
    pub(super) unmatched: Option<Predicate>,
}

impl Assumed {
    /// What a commit of these deletes assumes of the table's files.
    pub(super) fn of_deletes(deletes: &[StagedDeletes], files: &[StagedFile]) -> Self {
        let own: HashSet<_> = files.iter().map(StagedFile::location).collect();
        let others = deletes.iter().map(StagedDeletes::of).filter(|of| !own.contains(of));
        let referenced: HashSet<_> = others.map(str::to_owned).collect();
        Self { untouched: referenced.clone(), present: referenced, ..Self::default() }
    }

    /// Checks what was assumed, if commits have come in between.
    ///
    /// # Errors
    /// `lake.conflict` if one of them broke it.
    pub(super) async fn check(
        &self,
        stage: &Stage,
        base: &TableState,
        present: &TableState,
    ) -> Result<()> {
        if base.metadata.current_snapshot_id() == present.metadata.current_snapshot_id() {
            return Ok(());
        }
        let broken = |what: &str| Err(conflict().detail(what.to_owned()));
        let store = &stage.store();
        let file_io = store.file_io();
        let failed = |cause| error::iceberg("read a manifest", cause);
        let (mut old, mut base_number) = (HashSet::new(), 0);
        if let Some(snapshot) = base.metadata.current_snapshot() {
            // Not the table's last number: snapshots that were staged, or rolled back, when the action
            // began have higher ones than `main` had, and may have come into its history since.
            base_number = snapshot.sequence_number();
            let list = read_list(store, snapshot).await?;
            old.extend(list.into_iter().map(|manifest| manifest.manifest_path));
        }
        let Some(snapshot) = present.metadata.current_snapshot() else { return Ok(()) };
        let (mut missing, mut by_equality) = (self.present.clone(), false);
        for manifest in read_list(store, snapshot).await? {
            let deletes = manifest.content == ManifestContentType::Deletes;
            if deletes && old.contains(&manifest.manifest_path) || !deletes && missing.is_empty() {
                continue;
            }
            let loaded = manifest.load_manifest(&file_io).await.map_err(failed)?;
            let of_all = loaded.metadata().partition_spec().fields().is_empty();
            for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                missing.remove(entry.file_path());
                let newer = entry.sequence_number().is_none_or(|number| number > base_number);
                if deletes && newer && touches(entry.data_file(), &self.untouched) {
                    return broken("rows of its files were deleted");
                }
                by_equality |= deletes && newer && self.misses(entry.data_file(), of_all);
            }
        }
        if by_equality && (self.rows == Rows::Replaced || self.moves(stage, base).await?) {
            return broken("rows were deleted by equality that it puts elsewhere");
        }
        if !missing.is_empty() {
            return broken("files in which it deletes rows are gone");
        }
        match &self.unmatched {
            Some(filter) if new_match(stage, base, present, filter).await? => {
                broken("rows were added among those it replaces")
            }
            _ => Ok(()),
        }
    }

    /// Whether a delete file may leave out rows of the files, and not where these go; `of_all`: it is of
    /// the whole table, not of one partition (spec, *Scan Planning*).
    fn misses(&self, deletes: &DataFile, of_all: bool) -> bool {
        deletes.content_type() == DataContentType::EqualityDeletes
            && !self.untouched.is_empty()
            && match self.rows {
                Rows::Stay => false,
                Rows::Copied => !of_all,
                Rows::Replaced => true,
            }
    }

    /// Whether some of the files are partitioned by another spec than the stage's own.
    async fn moves(&self, stage: &Stage, base: &TableState) -> Result<bool> {
        let places = scan::places(base, stage.lake.store()).await?;
        let spec = stage.target.spec.spec_id();
        let mut files = self.untouched.iter().filter_map(|path| places.get(path));
        Ok(files.any(|place| place.spec_id != spec))
    }
}

/// Whether the table has files that may hold rows the filter matches and that it had not.
async fn new_match(
    stage: &Stage,
    base: &TableState,
    present: &TableState,
    filter: &Predicate,
) -> Result<bool> {
    let old = files(stage, base, Predicate::True).await?;
    Ok(files(stage, present, filter.clone()).await?.iter().any(|path| !old.contains(path)))
}

/// The data files of a state that may hold rows the filter matches.
async fn files(stage: &Stage, of: &TableState, filter: Predicate) -> Result<HashSet<String>> {
    let table = LakeTable::new(&stage.org()?, of.clone(), stage.lake.store())?;
    let scan = ScanRequest { snapshot: None, filter, columns: None };
    Ok(table.plan(scan).await?.files.into_iter().map(|file| file.path).collect())
}

/// Whether a delete file may delete rows of one of the data files.
fn touches(deletes: &DataFile, files: &HashSet<String>) -> bool {
    if files.is_empty() || deletes.content_type() != DataContentType::PositionDeletes {
        // Equality deletes are of no file: see `Rows`.
        return false;
    }
    if let Some(file) = deletes.referenced_data_file() {
        return files.contains(&file);
    }
    let Some((lower, upper)) = path_bounds(deletes) else { return true };
    // An upper bound may be cut short.
    files.iter().any(|file| *file >= lower && (*file <= upper || file.starts_with(&upper)))
}
