//! The lake's side: the table's rows as digests, with the newest row of each key alone where a key may
//! return.
//!
//! Keys are held in memory, as words; where they would take too much, the table is read in several
//! passes, each for a part of the words.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use futures::TryStreamExt;
use polder_core::digest::{Records, content};
use polder_core::validation::range_of;
use polder_core::{Content, CursorValue, Error, ErrorCode, RangeDigest, Result, RowDigest};
use polder_lake::{BatchStream, LakeTable, Predicate, ScanRequest};

/// Bytes that a key takes in memory, about.
const KEY_BYTES: u64 = 96;

/// How the table's rows are told apart and digested.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    /// The columns of a row's word, in their order.
    pub(crate) columns: Vec<String>,
    /// Some of them; all if empty.
    pub(crate) key: Vec<String>,
    /// The column by which of several rows of a key the newest is found; `None` where a key is there
    /// once.
    pub(crate) cursor: Option<String>,
    /// Whether a row can change within one value of the cursor.
    pub(crate) coarse: bool,
    pub(crate) bits: u32,
    /// Keys that are left out.
    pub(crate) pending: Arc<HashSet<u64>>,
    /// The state that is read; `None` for the table as it is now.
    pub(crate) snapshot: Option<i64>,
}

impl Compared {
    async fn read(&self, table: &LakeTable, columns: Option<Vec<String>>) -> Result<BatchStream> {
        table.read(ScanRequest { snapshot: self.snapshot, filter: Predicate::True, columns }).await
    }

    /// Rows that are read, as far as the state says.
    fn rows(&self, table: &LakeTable) -> u64 {
        let found = match self.snapshot {
            Some(id) => table.snapshots().into_iter().find(|info| info.id == id),
            None => table.current_snapshot(),
        };
        found.and_then(|info| info.rows).unwrap_or(0)
    }
}

/// The table in digests.
#[derive(Debug, Default)]
pub(crate) struct LakeDigests {
    /// All of its rows, in all of its columns.
    pub(crate) content: Content,
    pub(crate) ranges: BTreeMap<u64, RangeDigest>,
    /// Keys that are there more often than they may be, and how many rows too many there are.
    pub(crate) repeated: HashSet<u64>,
    pub(crate) repeated_rows: u64,
}

/// Reads the table's rows and digests them.
///
/// # Errors
/// As [`LakeTable::read`].
pub(crate) async fn digests(
    table: &LakeTable,
    compared: &Compared,
    memory_bytes: usize,
) -> Result<LakeDigests> {
    // Without columns to compare all rows are one to it: nothing grows with them.
    let rows = if compared.columns.is_empty() { 0 } else { compared.rows(table) };
    let passes = (rows * KEY_BYTES / (memory_bytes as u64).max(1)) + 1;
    let mut all = LakeDigests::default();
    for number in 0..passes {
        let first = number == 0;
        // The content is that of all columns.
        let columns = (!first).then(|| compared.columns.clone());
        let mut pass = Pass::new(compared.clone(), number, passes, first);
        let mut batches = compared.read(table, columns).await?;
        while let Some(batch) = batches.try_next().await? {
            pass = blocking(move || pass.add(&batch)).await?;
        }
        pass.end(&mut all);
    }
    Ok(all)
}

/// Computes away from the threads that wait.
async fn blocking<T: Send + 'static>(
    compute: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(compute).await;
    done.map_err(|error| Error::new(ErrorCode::Internal, "digesting failed").caused_by(error))?
}

/// What is remembered of a key.
#[derive(Default)]
struct Newest {
    cursor: Option<CursorValue>,
    rows: u64,
    sum: u64,
}

struct Pass {
    compared: Compared,
    number: u64,
    passes: u64,
    /// Whether the content is computed too.
    first: bool,
    content: Content,
    newest: HashMap<u64, Newest>,
    /// The words of keys with their cursors, where a key may return.
    states: HashSet<u64>,
    repeated: HashSet<u64>,
    repeated_rows: u64,
}

impl Pass {
    fn new(compared: Compared, number: u64, passes: u64, first: bool) -> Self {
        Self {
            compared,
            number,
            passes,
            first,
            content: Content::default(),
            newest: HashMap::new(),
            states: HashSet::new(),
            repeated: HashSet::new(),
            repeated_rows: 0,
        }
    }

    fn add(mut self, records: &RecordBatch) -> Result<Self> {
        if self.first {
            let rows = records.num_rows() as u64;
            self.content = self.content.and(Content { rows, digest: content(records)? });
        }
        let mut rows = Rows::new(&self.compared, records)?;
        for row in 0..records.num_rows() {
            let key = rows.key(row);
            let part = (u128::from(key) * u128::from(self.passes)) >> 64;
            if part as u64 == self.number {
                self.add_row(&mut rows, row, key);
            }
        }
        Ok(self)
    }

    fn add_row(&mut self, rows: &mut Rows, row: usize, key: u64) {
        let word = rows.forms.row(row);
        let cursor = rows.cursor(row);
        if self.compared.cursor.is_some() && !self.compared.key.is_empty() {
            let state = rows.state(row, key, self.compared.coarse.then_some(word));
            if !self.states.insert(state) {
                self.repeat(key);
            }
        }
        let known = self.newest.entry(key).or_default();
        if known.rows > 0 && newer(known.cursor.as_ref(), cursor.as_ref()) {
            return;
        }
        if newer(cursor.as_ref(), known.cursor.as_ref()) {
            *known = Newest { cursor, ..Newest::default() };
        }
        known.rows += 1;
        known.sum = known.sum.wrapping_add(word);
        let twice = known.rows > 1 && self.compared.cursor.is_none();
        if twice && !self.compared.key.is_empty() {
            self.repeat(key);
        }
    }

    fn repeat(&mut self, key: u64) {
        self.repeated.insert(key);
        self.repeated_rows += 1;
    }

    fn end(self, all: &mut LakeDigests) {
        if self.first {
            all.content = self.content;
        }
        for (key, newest) in self.newest {
            if self.compared.pending.contains(&key) {
                continue;
            }
            let range = all.ranges.entry(range_of(key, self.compared.bits)).or_default();
            range.rows += newest.rows;
            range.sum = range.sum.wrapping_add(newest.sum);
        }
        all.repeated.extend(self.repeated);
        all.repeated_rows += self.repeated_rows;
    }
}

/// The rows of a batch.
struct Rows {
    forms: Records,
    /// Of the key alone; the row's if it has none.
    key: Option<Records>,
    cursor: Option<(Records, arrow::array::ArrayRef)>,
}

impl Rows {
    fn new(compared: &Compared, records: &RecordBatch) -> Result<Self> {
        let names = |names: &[String]| -> Result<Records> {
            Records::new(records, names.iter().map(String::as_str))
        };
        let cursor = match &compared.cursor {
            Some(cursor) => {
                let array = records
                    .column_by_name(cursor)
                    .cloned()
                    .ok_or_else(|| Error::new(ErrorCode::Internal, "a batch lacks the cursor"))?;
                Some((Records::new(records, [cursor.as_str()])?, array))
            }
            None => None,
        };
        Ok(Self {
            forms: names(&compared.columns)?,
            key: (!compared.key.is_empty()).then(|| names(&compared.key)).transpose()?,
            cursor,
        })
    }

    fn key(&mut self, row: usize) -> u64 {
        match &mut self.key {
            Some(key) => key.row(row),
            None => self.forms.row(row),
        }
    }

    fn name(&mut self, row: usize) -> String {
        match &self.key {
            Some(key) => key.name(row),
            None => format!("row {:016x}", self.forms.row(row)),
        }
    }

    fn cursor(&self, row: usize) -> Option<CursorValue> {
        self.cursor.as_ref().and_then(|(_, array)| cursor_value(array, row))
    }

    /// The word of key and cursor, and of the row where these do not tell its states apart.
    fn state(&mut self, row: usize, key: u64, word: Option<u64>) -> u64 {
        let cursor = self.cursor.as_mut().map_or(0, |(form, _)| form.row(row));
        let mut state = key.rotate_left(17) ^ cursor;
        if let Some(word) = word {
            state = state.rotate_left(17) ^ word;
        }
        state
    }
}

/// One value of a cursor column; `None` for null.
pub(super) fn cursor_value(array: &dyn Array, row: usize) -> Option<CursorValue> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Int32 => CursorValue::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => CursorValue::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => CursorValue::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            match zone {
                Some(_) => CursorValue::Timestamptz(micros),
                None => CursorValue::Timestamp(micros),
            }
        }
        DataType::Utf8 => CursorValue::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::FixedSizeBinary(16) => {
            let bytes = array.as_fixed_size_binary().value(row);
            CursorValue::Text(uuid::Uuid::from_slice(bytes).ok()?.to_string())
        }
        _ => return None,
    })
}

/// Which rows to list.
pub(super) struct Wanted {
    pub(super) ranges: HashSet<u64>,
    pub(super) keys: HashSet<u64>,
    pub(super) rows_max: usize,
}

/// The newest rows of the ranges and keys wanted, pending keys left out of the ranges.
///
/// # Errors
/// As [`LakeTable::read`].
pub(super) async fn list(
    table: &LakeTable,
    compared: &Compared,
    wanted: Wanted,
) -> Result<Vec<RowDigest>> {
    let mut listing =
        Listing { compared: compared.clone(), wanted, rows: BTreeMap::new(), count: 0 };
    let mut batches = compared.read(table, Some(compared.columns.clone())).await?;
    while let Some(batch) = batches.try_next().await? {
        listing = blocking(move || listing.add(&batch)).await?;
    }
    Ok(listing.rows.into_values().flat_map(|(_, rows)| rows).collect())
}

struct Listing {
    compared: Compared,
    wanted: Wanted,
    rows: BTreeMap<u64, (Option<CursorValue>, Vec<RowDigest>)>,
    count: usize,
}

impl Listing {
    fn wants(&self, key: u64) -> bool {
        let in_range = self.wanted.ranges.contains(&range_of(key, self.compared.bits));
        (in_range && !self.compared.pending.contains(&key)) || self.wanted.keys.contains(&key)
    }

    fn add(mut self, records: &RecordBatch) -> Result<Self> {
        let mut rows = Rows::new(&self.compared, records)?;
        for row in 0..records.num_rows() {
            let key = rows.key(row);
            if !self.wants(key) || self.count >= self.wanted.rows_max {
                continue;
            }
            let found = RowDigest {
                key,
                name: rows.name(row),
                row: rows.forms.row(row),
                columns: rows.forms.columns(row),
            };
            self.count += 1;
            self.keep(rows.cursor(row), found);
        }
        Ok(self)
    }

    fn keep(&mut self, cursor: Option<CursorValue>, row: RowDigest) {
        match self.rows.entry(row.key) {
            Entry::Vacant(place) => {
                place.insert((cursor, vec![row]));
            }
            Entry::Occupied(mut place) if newer(cursor.as_ref(), place.get().0.as_ref()) => {
                place.insert((cursor, vec![row]));
            }
            Entry::Occupied(mut place) => {
                if !newer(place.get().0.as_ref(), cursor.as_ref()) {
                    place.get_mut().1.push(row);
                }
            }
        }
    }
}

/// Whether one cursor value is above another; null is below all.
fn newer(one: Option<&CursorValue>, other: Option<&CursorValue>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.compare(other) == Some(std::cmp::Ordering::Greater),
        (Some(_), None) => true,
        (None, _) => false,
    }
}
