//! Digests of a source that cannot compute them: its rows are read as a run reads them, several splits at a time.
//!
//! What is kept of a row are two words. Rows are listed by a second read, of a later state; of a row that
//! has changed in between nothing is said but that it is there. Rows of others are looked for by reads of their
//! own, and only if the lake has rows that the source has not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::TryStreamExt;
use polder_core::digest::Records;
use polder_core::validation::{PENDING_MAX, range_of};
use polder_core::{
    Checkpoint, CursorValue, DigestRequest, Digests, Error, ErrorCode, RangeDigest, ReadPlan,
    ReadRequest, Result, RowDigest, Source, Split, TableSchema,
};
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

use super::lake::cursor_value;
use crate::ingest::conform::Conform;

/// Bytes that a row takes in memory.
const ROW_BYTES: usize = 16;

/// A source's rows, read into words.
pub(super) struct Streamed<'a> {
    source: &'a dyn Source,
    read: ReadRequest,
    /// Splits that are read at the same time.
    parallel: NonZeroUsize,
    settled_below: Option<CursorValue>,
    memory_bytes: usize,
    /// How long a read may take.
    time_max: Option<Duration>,
    /// Of the first read, until it is read.
    plan: Option<ReadPlan>,
    schema: TableSchema,
    snapshot: Option<String>,
    /// The objects are those that the table was made of.
    same_objects: bool,
    coarse: bool,
    columns: TableSchema,
    key: Vec<String>,
    words: Words,
}

/// What is kept of rows.
#[derive(Default)]
struct Words {
    /// The key's and the row's.
    settled: Vec<(u64, u64)>,
    /// The key's.
    pending: Vec<u64>,
}

impl<'a> Streamed<'a> {
    /// Plans the read; `checkpoint` is the table's.
    ///
    /// # Errors
    /// As [`Source::plan`].
    pub(super) async fn plan(
        source: &'a dyn Source,
        request: DigestRequest,
        checkpoint: &Checkpoint,
        memory_bytes: usize,
    ) -> Result<Self> {
        let DigestRequest { read, settled_below, statement_timeout, parallel, .. } = request;
        let plan = source.plan(read.clone()).await?;
        Ok(Self {
            source,
            read,
            parallel,
            settled_below,
            memory_bytes,
            time_max: statement_timeout,
            schema: plan.schema.clone(),
            snapshot: plan.snapshot.clone(),
            same_objects: source.capabilities().objects && plan.objects == checkpoint.objects,
            coarse: plan.splits.iter().any(|split| split.cursor_is_coarse()),
            plan: Some(plan),
            columns: TableSchema::default(),
            key: Vec::new(),
            words: Words::default(),
        })
    }

    /// Reads the planned rows, once.
    async fn fill(&mut self) -> Result<()> {
        let time_max = self.time_max;
        within(time_max, self.read_planned()).await
    }

    async fn read_planned(&mut self) -> Result<()> {
        let Some(plan) = self.plan.take() else { return Ok(()) };
        let digester = self.digester(&plan.schema, &self.columns)?;
        let left = Arc::new(AtomicUsize::new(self.memory_bytes / ROW_BYTES));
        let read = |split| words(split, Arc::clone(&digester), Arc::clone(&left));
        for part in in_parallel(plan.splits, self.parallel, read).await? {
            self.words.settled.extend(part.settled);
            self.words.pending.extend(part.pending);
        }
        self.words.pending.truncate(PENDING_MAX + 1);
        Ok(())
    }

    /// Makes words of these columns of a plan's batches.
    fn digester(&self, read: &TableSchema, columns: &TableSchema) -> Result<Arc<Digester>> {
        let cursor = self.read.cursor.as_ref().map(|range| range.column.clone());
        Ok(Arc::new(Digester {
            reading: Reading::new(read, columns)?,
            columns: columns.fields.iter().map(|field| field.name.clone()).collect(),
            key: self.key.clone(),
            cursor,
            settled_below: self.settled_below.clone().filter(|_| !self.same_objects),
        }))
    }

    async fn list(&mut self, bits: u32, ranges: &[u64], rows_max: usize) -> Result<Vec<RowDigest>> {
        let mut left = Left::new();
        for (key, word) in &self.words.settled {
            if ranges.contains(&range_of(*key, bits)) {
                *left.entry((*key, *word)).or_default() += 1;
            }
        }
        let plan = self.source.plan(self.read.clone()).await?;
        let digester = self.digester(&plan.schema, &self.columns)?;
        let left = Arc::new(Mutex::new(left));
        let read = |split| listed(split, Arc::clone(&digester), Arc::clone(&left));
        let parts = in_parallel(plan.splits, self.parallel, read).await?;
        let mut rows: Vec<RowDigest> = parts.into_iter().flatten().collect();
        // Rows that changed since the first read.
        for ((key, word), count) in left.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            let name = format!("key {key:016x}");
            let gone = RowDigest { key, name, row: word, columns: Vec::new() };
            rows.extend(std::iter::repeat_n(gone, count));
        }
        rows.truncate(rows_max);
        Ok(rows)
    }

    /// Those of the keys that others' settled rows have: the table is read without its filter, and what is the
    /// org's own by then is left out.
    async fn of_others(&mut self, keys: &[u64]) -> Result<Vec<u64>> {
        let wanted: HashSet<u64> = keys.iter().copied().collect();
        let of_all = ReadRequest { filter: None, ..self.only_keys() };
        let found = self.settled_keys(of_all, wanted).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let of_org = self.only_keys();
        let own = self.settled_keys(of_org, found.clone()).await?;
        Ok(found.difference(&own).copied().collect())
    }

    /// The columns that tell rows apart, and whether they are settled.
    fn only_keys(&self) -> ReadRequest {
        let mut read = self.read.clone();
        if self.key.is_empty() {
            return read;
        }
        let mut columns = self.key.clone();
        let cursor = read.cursor.as_ref().map(|range| range.column.clone());
        columns.extend(cursor.filter(|cursor| !self.key.contains(cursor)));
        read.types.retain(|name, _| columns.contains(name));
        if let Some(known) = &mut read.known_schema {
            known.fields.retain(|field| columns.contains(&field.name));
        }
        read.columns = Some(columns);
        read
    }

    /// Those of the wanted keys that settled rows of such a read have. None where the rows of others do not fit
    /// the table's columns: then they cannot be compared with its rows.
    async fn settled_keys(
        &mut self,
        read: ReadRequest,
        wanted: HashSet<u64>,
    ) -> Result<HashSet<u64>> {
        let plan = match self.source.plan(read.clone()).await {
            Err(error) if !error.retryable() => {
                let (org, from) = (&read.org, &read.from);
                tracing::warn!(%org, from, "rows of other orgs cannot be told: {error}");
                return Ok(HashSet::new());
            }
            plan => plan?,
        };
        let compared = |name: &String| read.columns.as_ref().is_none_or(|c| c.contains(name));
        let columns = self.columns.fields.iter().filter(|field| compared(&field.name));
        let columns = TableSchema::new(columns.cloned().collect());
        let Ok(digester) = self.digester(&plan.schema, &columns) else {
            return Ok(HashSet::new());
        };
        let wanted = Arc::new(wanted);
        let read = |split| keys_of(split, Arc::clone(&digester), Arc::clone(&wanted));
        let parts = in_parallel(plan.splits, self.parallel, read).await?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// Rows to be listed, by the words of key and row, and how many of each.
type Left = HashMap<(u64, u64), usize>;

/// Reads splits, so many at the same time.
///
/// # Errors
/// The first error of any; the others are stopped.
async fn in_parallel<T, F>(
    splits: Vec<Box<dyn Split>>,
    most: NonZeroUsize,
    read: impl Fn(Box<dyn Split>) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let mut left = splits.into_iter();
    let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
    loop {
        while tasks.len() < most.get() {
            let Some(split) = left.next() else { break };
            tasks.spawn(read(split).in_current_span());
        }
        let Some(joined) = tasks.join_next().await else { return Ok(done) };
        done.push(joined.map_err(panicked)??);
    }
}

fn panicked(error: JoinError) -> Error {
    Error::new(ErrorCode::Internal, "a reader of the validation panicked").caused_by(error)
}

/// `left`: for how many more rows there is room.
async fn words(
    split: Box<dyn Split>,
    digester: Arc<Digester>,
    left: Arc<AtomicUsize>,
) -> Result<Words> {
    let mut words = Words::default();
    let mut batches = split.read();
    while let Some(batch) = batches.try_next().await? {
        let before = words.settled.len();
        digester.add(&batch.records, &mut words)?;
        let added = words.settled.len() - before;
        let take = |left: usize| left.checked_sub(added);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                "the table is too large to be validated",
            )
            .hint("raise [limits] memory_mb, or memory_mb of the org's limits if it has one"));
        }
    }
    Ok(words)
}

async fn listed(
    split: Box<dyn Split>,
    digester: Arc<Digester>,
    left: Arc<Mutex<Left>>,
) -> Result<Vec<RowDigest>> {
    let mut rows = Vec::new();
    let mut batches = split.read();
    while let Some(batch) = batches.try_next().await? {
        digester.list(&batch.records, &left, &mut rows)?;
    }
    Ok(rows)
}

async fn keys_of(
    split: Box<dyn Split>,
    digester: Arc<Digester>,
    wanted: Arc<HashSet<u64>>,
) -> Result<HashSet<u64>> {
    let (mut found, mut words) = (HashSet::new(), Words::default());
    let mut batches = split.read();
    while let Some(batch) = batches.try_next().await? {
        digester.add(&batch.records, &mut words)?;
        found
            .extend(words.settled.drain(..).map(|(key, _)| key).filter(|key| wanted.contains(key)));
        words.pending.clear();
    }
    Ok(found)
}

/// Makes words of a plan's batches.
struct Digester {
    reading: Reading,
    columns: Vec<String>,
    key: Vec<String>,
    cursor: Option<String>,
    /// `None` where all rows are settled.
    settled_below: Option<CursorValue>,
}

impl Digester {
    fn add(&self, records: &RecordBatch, words: &mut Words) -> Result<()> {
        let records = self.reading.apply(records)?;
        let (mut key, mut row) = self.forms(&records)?;
        let cursor = self.cursor.as_ref().and_then(|name| records.column_by_name(name)).cloned();
        for index in 0..records.num_rows() {
            let word = row.row(index);
            let key = key.as_mut().map_or(word, |key| key.row(index));
            let value = cursor.as_ref().and_then(|array| cursor_value(array, index));
            if self.is_settled(value.as_ref()) {
                words.settled.push((key, word));
            } else if words.pending.len() <= PENDING_MAX {
                words.pending.push(key);
            }
        }
        Ok(())
    }

    /// Adds the batch's rows that are to be listed.
    fn list(
        &self,
        records: &RecordBatch,
        left: &Mutex<Left>,
        rows: &mut Vec<RowDigest>,
    ) -> Result<()> {
        let records = self.reading.apply(records)?;
        let (mut key, mut row) = self.forms(&records)?;
        for index in 0..records.num_rows() {
            let word = row.row(index);
            let key_word = key.as_mut().map_or(word, |key| key.row(index));
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(count) = left.get_mut(&(key_word, word)).filter(|count| **count > 0) else {
                continue;
            };
            *count -= 1;
            drop(left);
            let name =
                key.as_ref().map_or_else(|| format!("row {word:016x}"), |key| key.name(index));
            let columns = row.columns(index);
            rows.push(RowDigest { key: key_word, name, row: word, columns });
        }
        Ok(())
    }

    fn is_settled(&self, cursor: Option<&CursorValue>) -> bool {
        let Some(bound) = &self.settled_below else { return true };
        cursor.and_then(|cursor| cursor.compare(bound)) == Some(std::cmp::Ordering::Less)
    }

    fn forms(&self, records: &RecordBatch) -> Result<(Option<Records>, Records)> {
        let row = Records::new(records, self.columns.iter().map(String::as_str))?;
        let key = self.key.iter().map(String::as_str);
        let key = (!self.key.is_empty()).then(|| Records::new(records, key)).transpose()?;
        Ok((key, row))
    }
}

#[async_trait]
impl Digests for Streamed<'_> {
    fn schema(&self) -> &TableSchema {
        &self.schema
    }

    fn compare(&mut self, columns: &TableSchema, key: &[String]) -> Result<()> {
        self.columns = columns.clone();
        self.key = key.to_vec();
        Ok(())
    }

    fn snapshot(&self) -> Option<String> {
        self.snapshot.clone()
    }

    fn has_common_point(&self) -> bool {
        self.same_objects || self.settled_below.is_some()
    }

    fn is_as_read(&self) -> bool {
        self.same_objects
    }

    fn cursor_is_coarse(&self) -> bool {
        self.coarse
    }

    async fn state(&mut self) -> Result<Option<String>> {
        let objects = self.source.capabilities().objects;
        Ok(self.snapshot.clone().filter(|_| objects))
    }

    async fn pending(&mut self) -> Result<Vec<u64>> {
        self.fill().await?;
        Ok(self.words.pending.clone())
    }

    async fn ranges(&mut self, bits: u32) -> Result<BTreeMap<u64, RangeDigest>> {
        self.fill().await?;
        let mut ranges: BTreeMap<u64, RangeDigest> = BTreeMap::new();
        for (key, word) in &self.words.settled {
            let range = ranges.entry(range_of(*key, bits)).or_default();
            range.rows += 1;
            range.sum = range.sum.wrapping_add(*word);
        }
        Ok(ranges)
    }

    async fn rows(&mut self, bits: u32, ranges: &[u64], rows_max: usize) -> Result<Vec<RowDigest>> {
        self.fill().await?;
        within(self.time_max, self.list(bits, ranges, rows_max)).await
    }

    async fn foreign(&mut self, keys: &[u64]) -> Result<Vec<u64>> {
        if self.read.filter.is_none() {
            return Ok(Vec::new());
        }
        within(self.time_max, self.of_others(keys)).await
    }
}

/// Waits for a read, not for longer than it may take.
async fn within<T>(time_max: Option<Duration>, read: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(time_max) = time_max else { return read.await };
    tokio::time::timeout(time_max, read).await.unwrap_or_else(|_| {
        let message = format!("reading the source took longer than {} s", time_max.as_secs());
        Err(Error::new(ErrorCode::SourceFailed, message)
            .hint("`validation: { statement_timeout: … }` of the table spec allows it more time"))
    })
}

/// Brings batches of a plan into the columns that are compared.
struct Reading {
    /// Their places in the plan's schema.
    places: Vec<usize>,
    conform: Conform,
}

impl Reading {
    fn new(read: &TableSchema, columns: &TableSchema) -> Result<Self> {
        let place = |name: &str| read.fields.iter().position(|field| field.name == name);
        let places: Vec<usize> =
            columns.fields.iter().filter_map(|field| place(&field.name)).collect();
        let fields = places.iter().map(|place| read.fields[*place].clone()).collect();
        Ok(Self { places, conform: Conform::new(&TableSchema::new(fields), columns)? })
    }

    fn apply(&self, records: &RecordBatch) -> Result<RecordBatch> {
        let chosen = records.project(&self.places).map_err(|error| {
            Error::new(ErrorCode::Internal, "columns cannot be chosen").caused_by(error)
        })?;
        self.conform.apply(chosen)
    }
}
