//! Digests of a source that cannot compute them: its rows are read as a run reads them.
//!
//! What is kept of a row are two words. Rows are listed by a second read, of a later state; of a row that
//! has changed in between nothing is said but that it is there.

use std::collections::{BTreeMap, HashMap};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::TryStreamExt;
use polder_core::digest::Canonical;
use polder_core::validation::{PENDING_MAX, range_of};
use polder_core::{
    Checkpoint, CursorValue, DigestRequest, Digests, Error, ErrorCode, RangeDigest, ReadPlan,
    ReadRequest, Result, RowDigest, Source, TableSchema,
};

use super::lake::cursor_value;
use crate::ingest::conform::Conform;

/// Bytes that a row takes in memory.
const ROW_BYTES: usize = 16;

/// A source's rows, read into words.
pub(super) struct Streamed<'a> {
    source: &'a dyn Source,
    read: ReadRequest,
    settled_below: Option<CursorValue>,
    memory_bytes: usize,
    /// Of the first read, until it is read.
    plan: Option<ReadPlan>,
    schema: TableSchema,
    snapshot: Option<String>,
    /// The objects are those that the table was made of.
    same_objects: bool,
    coarse: bool,
    columns: TableSchema,
    key: Vec<String>,
    settled: Vec<(u64, u64)>,
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
        let DigestRequest { read, settled_below, .. } = request;
        let plan = source.plan(read.clone()).await?;
        Ok(Self {
            source,
            read,
            settled_below,
            memory_bytes,
            schema: plan.schema.clone(),
            snapshot: plan.snapshot.clone(),
            same_objects: source.capabilities().objects && plan.objects == checkpoint.objects,
            coarse: plan.splits.iter().any(|split| split.cursor_is_coarse()),
            plan: Some(plan),
            columns: TableSchema::default(),
            key: Vec::new(),
            settled: Vec::new(),
            pending: Vec::new(),
        })
    }

    fn cursor(&self) -> Option<&str> {
        self.read.cursor.as_ref().map(|range| range.column.as_str())
    }

    /// Reads the planned rows, once.
    async fn fill(&mut self) -> Result<()> {
        let Some(plan) = self.plan.take() else { return Ok(()) };
        let reading = Reading::new(&plan.schema, &self.columns)?;
        for split in plan.splits {
            let mut batches = split.read();
            while let Some(batch) = batches.try_next().await? {
                self.add(&reading.apply(&batch.records)?)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, records: &RecordBatch) -> Result<()> {
        let (mut key, mut row) = self.forms(records)?;
        let cursor = self.cursor().and_then(|name| records.column_by_name(name)).cloned();
        for index in 0..records.num_rows() {
            let word = row.row(index);
            let key = key.as_mut().map_or(word, |key| key.row(index));
            let value = cursor.as_ref().and_then(|array| cursor_value(array, index));
            if self.is_settled(value.as_ref()) {
                self.settled.push((key, word));
            } else if self.pending.len() <= PENDING_MAX {
                self.pending.push(key);
            }
        }
        if self.settled.len() * ROW_BYTES > self.memory_bytes {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                "the table is too large to be validated",
            )
            .hint("raise [limits] memory_mb"));
        }
        Ok(())
    }

    fn is_settled(&self, cursor: Option<&CursorValue>) -> bool {
        let Some(bound) = self.settled_below.as_ref().filter(|_| !self.same_objects) else {
            return true;
        };
        cursor.and_then(|cursor| cursor.compare(bound)) == Some(std::cmp::Ordering::Less)
    }

    fn forms(&self, records: &RecordBatch) -> Result<(Option<Canonical>, Canonical)> {
        let names = self.columns.fields.iter().map(|field| field.name.as_str());
        let row = Canonical::new(records, names)?;
        let key = self.key.iter().map(String::as_str);
        let key = (!self.key.is_empty()).then(|| Canonical::new(records, key)).transpose()?;
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

    fn cursor_is_coarse(&self) -> bool {
        self.coarse
    }

    async fn pending(&mut self) -> Result<Vec<u64>> {
        self.fill().await?;
        Ok(self.pending.clone())
    }

    async fn ranges(&mut self, bits: u32) -> Result<BTreeMap<u64, RangeDigest>> {
        self.fill().await?;
        let mut ranges: BTreeMap<u64, RangeDigest> = BTreeMap::new();
        for (key, word) in &self.settled {
            let range = ranges.entry(range_of(*key, bits)).or_default();
            range.rows += 1;
            range.sum = range.sum.wrapping_add(*word);
        }
        Ok(ranges)
    }

    async fn rows(&mut self, bits: u32, ranges: &[u64], rows_max: usize) -> Result<Vec<RowDigest>> {
        self.fill().await?;
        let mut left: HashMap<(u64, u64), usize> = HashMap::new();
        for (key, word) in &self.settled {
            if ranges.contains(&range_of(*key, bits)) {
                *left.entry((*key, *word)).or_default() += 1;
            }
        }
        let plan = self.source.plan(self.read.clone()).await?;
        let reading = Reading::new(&plan.schema, &self.columns)?;
        let mut rows = Vec::new();
        for split in plan.splits {
            let mut batches = split.read();
            while let Some(batch) = batches.try_next().await? {
                let records = reading.apply(&batch.records)?;
                let (mut key, mut row) = self.forms(&records)?;
                for index in 0..records.num_rows() {
                    let word = row.row(index);
                    let (name, key) = match &mut key {
                        Some(key) => (key.name(index), key.row(index)),
                        None => (format!("row {word:016x}"), word),
                    };
                    let Some(count) = left.get_mut(&(key, word)).filter(|count| **count > 0) else {
                        continue;
                    };
                    *count -= 1;
                    rows.push(RowDigest { key, name, row: word, columns: row.columns(index) });
                }
            }
        }
        // Rows that changed since the first read.
        for ((key, word), count) in left {
            let name = format!("key {key:016x}");
            let gone = RowDigest { key, name, row: word, columns: Vec::new() };
            rows.extend(std::iter::repeat_n(gone, count));
        }
        rows.truncate(rows_max);
        Ok(rows)
    }

    async fn foreign(&mut self, _keys: &[u64]) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }
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
