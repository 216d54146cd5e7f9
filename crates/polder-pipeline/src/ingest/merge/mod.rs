//! `mode: merge`: one row for each key. What a run has read and staged takes the place of the rows
//! that the table has of the same keys.
//!
//! Rows are staged as they come, those aside that the table has already or that are marked as deleted.
//! Then keys and cursors of the staged files are read back: the newest row of each key stays, older
//! ones are deleted in their own file. Then the table's files that may hold one of the keys are read,
//! their key columns only, and the rows found there are deleted by their positions. What does not fit
//! into memory is done in parts, by a hash of the key.

mod gone;
mod keys;
mod stored;
mod winners;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::row::{RowConverter, SortField};
use futures::TryStreamExt;
use polder_core::spec::Mode;
use polder_core::{Result, TableSchema};
use polder_lake::{
    LakeTable, Placed, PlacedStream, Predicate, RowDelta, ScanFile, Stage, StagedFile,
};

pub(crate) use keys::Keys;

use super::copy::Failure;
use super::known::failed;
use super::{IngestReport, IngestRequest};
use gone::Gone;
use keys::{Bytes, Marked, Part};
use winners::{Counts, Place, Winners};

/// Parts that keys are divided into at most.
const PARTS_MAX: u64 = 4096;
/// Parts whose keys are named for the check of other writers' files.
const PARTS_NAMED_MAX: u64 = 16;
/// The part of a run's memory that keys may take.
const MEMORY_SHARE: usize = 4;

/// What the rows of a merge are told apart by, and those to be deleted.
pub(crate) struct Merging {
    keys: Arc<Keys>,
    gone: Gone,
    /// See [`polder_core::ReadPlan::key_is_unique`].
    unique: bool,
}

/// What a merge publishes, and what became of the keys.
pub(super) struct Merged {
    pub(super) delta: RowDelta,
    /// Of staged files of which no row stays.
    pub(super) rows_dropped: u64,
    counts: Counts,
}

impl Merging {
    /// `None` in other modes. `full`: no rows of the table stay.
    ///
    /// # Errors
    /// `spec.*` for a key or cursor that rows cannot be merged by.
    pub(super) fn of(
        request: &IngestRequest,
        schema: &TableSchema,
        unique: bool,
        full: bool,
    ) -> Result<Option<Arc<Self>>> {
        if request.table.mode != Mode::Merge {
            return Ok(None);
        }
        let keys = Arc::new(Keys::new(&request.table, schema)?);
        // Where nothing is to be deleted, no mark is of use.
        let gone = Gone::new(!(unique && full), bytes_max(request));
        Ok(Some(Arc::new(Self { keys, gone, unique })))
    }

    pub(super) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub(super) fn unique(&self) -> bool {
        self.unique
    }

    /// The batch without rows that are marked as deleted.
    ///
    /// # Errors
    /// `source.unrepresentable` for a row without a key; `source.failed` for more marked rows than
    /// memory has room for.
    pub(super) fn take(&self, records: RecordBatch) -> Result<RecordBatch> {
        self.keys.check(&records)?;
        self.gone.without(&self.keys, records)
    }
}

fn bytes_max(request: &IngestRequest) -> usize {
    request.limits.memory_bytes / MEMORY_SHARE
}

impl Merged {
    /// Says in the report what became of the keys; a full load is told by its rows.
    pub(super) fn reported(self, report: &mut IngestReport, full: bool) -> RowDelta {
        if !full {
            let Counts { inserted, updated, deleted } = self.counts;
            (report.rows_inserted, report.rows_updated) = (inserted, updated);
            report.rows_deleted = deleted;
        }
        self.delta
    }
}

/// One merge to work out, after all rows were staged.
pub(super) struct Merge<'a> {
    pub(super) request: &'a IngestRequest,
    pub(super) stage: &'a Stage,
    /// The table's after the run.
    pub(super) schema: &'a TableSchema,
    pub(super) merging: &'a Merging,
    /// No rows of the table stay.
    pub(super) full: bool,
    /// The keys of rows that the run has met unchanged.
    pub(super) read_again: HashSet<Bytes>,
}

/// A file, and the rows of it that go.
type Deleted = (ScanFile, Vec<u64>);

/// What one pass over the files has found.
#[derive(Default)]
struct Found {
    losers: Vec<Place>,
    /// The table's rows that go, by file.
    stored: BTreeMap<String, Deleted>,
    among: Option<Predicate>,
    counts: Counts,
}

impl Merge<'_> {
    /// # Errors
    /// `lake.*` when files cannot be read or written.
    pub(super) async fn work_out(self, files: Vec<StagedFile>) -> Result<Merged, Failure> {
        if self.full && self.merging.unique {
            let delta = RowDelta { files, deletes: Vec::new(), among: Predicate::True };
            return Ok(Merged { delta, rows_dropped: 0, counts: Counts::default() });
        }
        let table = if self.full { Ok(None) } else { self.stage.table() };
        let worked_out = match table {
            Ok(table) => self.find(&files, table.as_ref()).await,
            Err(error) => Err(error),
        };
        let found = match worked_out {
            Ok(found) => found,
            Err(error) => return Err(Failure { error, files }),
        };
        let Found { losers, stored, among, counts } = found;
        let (files, dead, losing) = sort_out(files, losers);
        let mut deletes: Vec<Deleted> = stored.into_values().collect();
        deletes.extend(losing);
        self.stage.drop_files(&dead).await;
        let rows_dropped = dead.iter().map(StagedFile::rows).sum();
        match self.stage.write_deletes_with(&deletes, &files).await {
            Ok(deletes) => {
                let delta = RowDelta { files, deletes, among: among.unwrap_or(Predicate::True) };
                Ok(Merged { delta, rows_dropped, counts })
            }
            Err(error) => Err(Failure { error, files }),
        }
    }

    /// In as many parts as memory asks for.
    async fn find(&self, files: &[StagedFile], table: Option<&LakeTable>) -> Result<Found> {
        let marked = self.merging.gone.take();
        let mut of = 1;
        loop {
            if let Some(mut all) = self.find_in(files, table, &marked, of).await? {
                // So many ranges say nothing any more.
                all.among.take_if(|_| of > PARTS_NAMED_MAX);
                return Ok(all);
            }
            of *= 2;
        }
    }

    /// In so many parts; `None` if one of them is too large.
    async fn find_in(
        &self,
        files: &[StagedFile],
        table: Option<&LakeTable>,
        marked: &Marked,
        of: u64,
    ) -> Result<Option<Found>> {
        let mut all = Found::default();
        for index in 0..of {
            match self.find_part(files, table, marked, Part { index, of }).await? {
                Some(found) => all.add(found),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// The next rows, unless the run was cancelled.
    async fn next(&self, rows: &mut PlacedStream) -> Result<Option<Placed>> {
        if self.request.cancel.is_cancelled() {
            return Err(super::cancelled());
        }
        rows.try_next().await
    }

    /// `None` if the part is too large.
    async fn find_part(
        &self,
        files: &[StagedFile],
        table: Option<&LakeTable>,
        marked: &Marked,
        part: Part,
    ) -> Result<Option<Found>> {
        let keys = &self.merging.keys;
        let mut winners = Winners::new(marked, part);
        for (number, file) in files.iter().enumerate() {
            let mut rows = self.stage.read_staged(file, Some(&keys.names()))?;
            while let Some(placed) = self.next(&mut rows).await? {
                let encoded = keys.encode(&placed.records)?;
                let rows = encoded.keys.iter().zip(&encoded.cursors).zip(placed.positions);
                for ((key, cursor), position) in rows.filter(|((key, _), _)| part.has(key.as_ref()))
                {
                    winners.add(key.as_ref(), cursor.as_ref(), (number, position));
                }
                if winners.bytes() > bytes_max(self.request) && part.of < PARTS_MAX {
                    return Ok(None);
                }
            }
        }
        self.end_ties(files, &mut winners).await?;
        let mut stored = BTreeMap::new();
        let mut among = None;
        if let Some(table) = table.filter(|_| !winners.is_empty()) {
            let stored_keys = stored::Stored::of(table, self.schema, keys)?;
            let filter = stored_keys.among(winners.keys())?;
            let mut rows = stored_keys.read(filter.clone()).await?;
            among = Some(filter);
            while let Some(placed) = self.next(&mut rows).await? {
                let encoded = keys.encode(&stored_keys.adapt(&placed.records)?)?;
                let rows = encoded.keys.iter().zip(&encoded.cursors).zip(&placed.positions);
                let goes = rows.filter_map(|((key, cursor), position)| {
                    let (key, cursor) = (key.as_ref(), cursor.as_ref());
                    winners.replaces(key, cursor, &self.read_again).then_some(*position)
                });
                let goes: Vec<u64> = goes.collect();
                if !goes.is_empty() {
                    let new = || (ScanFile::clone(&placed.file), Vec::new());
                    stored.entry(placed.file.path.clone()).or_insert_with(new).1.extend(goes);
                }
            }
        }
        let (losers, counts) = winners.finish();
        Ok(Some(Found { losers, stored, among, counts }))
    }

    /// Chooses among staged rows of one key and one cursor value: the greatest, compared column by
    /// column, so that the choice depends on nothing but the rows.
    async fn end_ties(&self, files: &[StagedFile], winners: &mut Winners) -> Result<()> {
        let tied = winners.tied();
        if tied.is_empty() {
            return Ok(());
        }
        let fields = self.schema.to_arrow();
        let fields = fields.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(fields.collect())
            .map_err(|error| failed("compare rows of this type", error))?;
        let mut greatest: HashMap<Bytes, (Bytes, Place)> = HashMap::new();
        let numbers: HashSet<usize> = tied.keys().map(|(number, _)| *number).collect();
        for (number, file) in files.iter().enumerate().filter(|(n, _)| numbers.contains(n)) {
            let mut rows = self.stage.read_staged(file, None)?;
            while let Some(placed) = self.next(&mut rows).await? {
                let compared = converter.convert_columns(placed.records.columns());
                let compared = compared.map_err(|error| failed("compare rows", error))?;
                for (row, position) in compared.iter().zip(placed.positions) {
                    let place = (number, position);
                    let Some(key) = tied.get(&place) else { continue };
                    let less = greatest.get(key).is_none_or(|(best, _)| **best < *row.as_ref());
                    if less {
                        greatest.insert(key.clone(), (row.as_ref().into(), place));
                    }
                }
            }
        }
        winners.choose(&greatest.into_iter().map(|(key, (_, place))| (key, place)).collect());
        Ok(())
    }
}

impl Found {
    fn add(&mut self, other: Self) {
        self.losers.extend(other.losers);
        for (path, (file, rows)) in other.stored {
            self.stored.entry(path).or_insert_with(|| (file, Vec::new())).1.extend(rows);
        }
        self.among = match (self.among.take(), other.among) {
            (Some(a), Some(b)) => Some(Predicate::Or(Box::new(a), Box::new(b))),
            (a, b) => a.or(b),
        };
        self.counts.add(other.counts);
    }
}

/// The files that have rows which stay, those that have none, and the rows that do not stay of the
/// former.
fn sort_out(
    files: Vec<StagedFile>,
    losers: Vec<Place>,
) -> (Vec<StagedFile>, Vec<StagedFile>, Vec<Deleted>) {
    let mut rows: HashMap<usize, Vec<u64>> = HashMap::new();
    for (number, row) in losers {
        rows.entry(number).or_default().push(row);
    }
    let (mut living, mut dead, mut losing) = (Vec::new(), Vec::new(), Vec::new());
    for (number, file) in files.into_iter().enumerate() {
        match rows.remove(&number) {
            Some(rows) if rows.len() as u64 == file.rows() => dead.push(file),
            Some(rows) => {
                losing.push((file.as_scanned(), rows));
                living.push(file);
            }
            None => living.push(file),
        }
    }
    (living, dead, losing)
}
