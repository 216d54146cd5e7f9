//! From batches to the bytes of Parquet files, within a bound of memory. Computes only: what is ready
//! is taken away by the caller.
//!
//! One file is open per partition. Rows of a partition are kept as they are until there are enough
//! to be worth encoding; when all writers of a stage together hold too much, the largest row group is
//! ended early.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use bytes::Bytes;
use iceberg::spec::Struct;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::properties::WriterProperties;
use polder_core::{Error, ErrorCode, Result};

use super::StagedFile;
use super::dictionary;
use super::extremes::Extremes;
use super::file::FileWriter;
use super::layout::Layout;
use super::metrics::{self, Finished, NanCounts};
use super::partition::Slice;
use crate::error;

/// Encoded bytes of a row group; at some 30 bytes a row this is about a million rows.
const ROW_GROUP_BYTES: u64 = 32 << 20;
/// Bytes of a row group's rows in memory: however well they compress, a reader's batch, which is of one
/// row group, has to stay below the end of 32-bit offsets, with the largest row beside.
const ROW_GROUP_ARROW_BYTES: usize = 512 << 20;
/// Column chunks of one file. Until the footer is written, each takes about a kilobyte: with thousands of
/// columns, more than their values.
const CHUNKS_MAX: usize = 1 << 16;
/// Rows of a partition are encoded once they have this many bytes.
const WAITING_BYTES: usize = 1 << 20;
/// The same for a table without partitions, if memory and files are large: see `super::file`.
const WAITING_BYTES_ALONE: usize = 16 << 20;
/// Partitions one writer has open files in: a year of days. The binary raises its limit of open
/// files for it.
const FILES_OPEN_MAX: usize = 512;
/// Partition values in one writer. More of them mean a file for every few rows.
const PARTITIONS_MAX: usize = 20_000;

/// The memory all writers of a stage share.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    used: AtomicUsize,
    writers: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: AtomicUsize::new(0), writers: AtomicUsize::new(0) }
    }

    pub(super) fn join(&self) {
        self.writers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.writers.fetch_sub(1, Ordering::Relaxed);
    }

    /// What one writer may hold when all hold as much as they may.
    pub(super) fn share(&self) -> usize {
        self.bytes_max / self.writers.load(Ordering::Relaxed).max(1)
    }

    fn exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max
    }

    fn replace(&self, before: usize, now: usize) {
        self.used.fetch_add(now, Ordering::Relaxed);
        self.used.fetch_sub(before, Ordering::Relaxed);
    }
}

/// What the encoder has made.
#[derive(Debug)]
pub(super) enum Ready {
    /// The next bytes of a file.
    Bytes { location: String, bytes: Bytes },
    /// A file is complete.
    Closed(Box<StagedFile>),
}

#[derive(Debug)]
pub(super) struct Encoder {
    layout: Arc<Layout>,
    budget: Arc<Budget>,
    /// The writer's number in its stage, and the number of its next file.
    number: usize,
    next_file: usize,
    /// The order that rows come in, by its id.
    order: Option<i32>,
    partitions: HashMap<Box<[u8]>, Partition>,
    files_open: usize,
    /// The settings of this writer's files, once a first one began with enough rows to tell.
    properties: Option<WriterProperties>,
    /// Bytes counted in the budget for this writer.
    held: usize,
    ready: Vec<Ready>,
}

#[derive(Debug)]
struct Partition {
    values: Struct,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    open: Option<OpenFile>,
    /// Bytes of this partition in [`Encoder::held`].
    held: usize,
}

#[derive(Debug)]
struct OpenFile {
    location: String,
    writer: FileWriter,
    /// Bytes in memory of the rows of the row group at hand.
    arrow_bytes: usize,
    nans: NanCounts,
    /// Of the rows handed to the file, by field id.
    nulls: HashMap<i32, u64>,
    /// Of the same rows.
    extremes: Extremes,
}

impl Encoder {
    pub(super) fn new(
        layout: Arc<Layout>,
        budget: Arc<Budget>,
        number: usize,
        order: Option<i32>,
    ) -> Self {
        Self {
            layout,
            budget,
            number,
            next_file: 0,
            order,
            partitions: HashMap::new(),
            files_open: 0,
            properties: None,
            held: 0,
            ready: Vec::new(),
        }
    }

    pub(super) fn take_ready(&mut self) -> Vec<Ready> {
        std::mem::take(&mut self.ready)
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        let Some(partitioner) = &layout.partitioner else {
            let all = Slice { key: Box::default(), values: Struct::empty(), rows: batch.clone() };
            // A file's size is known, and its end decided, only by what is encoded.
            let of_file = layout.target_file_bytes as usize / 8;
            let waiting_max = WAITING_BYTES_ALONE.min(of_file).min(self.budget.share() / 4);
            return self.take(all, waiting_max);
        };
        for slice in partitioner.split(batch)? {
            self.take(slice, WAITING_BYTES)?;
        }
        Ok(())
    }

    /// Completes the file at `location`.
    pub(super) fn close(&mut self, location: &str) -> Result<()> {
        let is_it = |partition: &Partition| {
            partition.open.as_ref().is_some_and(|open| open.location == location)
        };
        let found = self.partitions.iter().find(|(_, partition)| is_it(partition));
        if let Some(key) = found.map(|(key, _)| key.clone()) {
            self.close_partition(&key)?;
        }
        Ok(())
    }

    pub(super) fn close_all(&mut self) -> Result<()> {
        let keys: Vec<Box<[u8]>> = self.partitions.keys().cloned().collect();
        for key in keys {
            self.close_partition(&key)?;
        }
        Ok(())
    }

    /// Adds rows to their partition, and encodes them if `waiting_max` bytes are waiting there.
    fn take(&mut self, slice: Slice, waiting_max: usize) -> Result<()> {
        if self.partitions.len() >= PARTITIONS_MAX && !self.partitions.contains_key(&slice.key) {
            let message = format!("the rows have more than {PARTITIONS_MAX} partition values");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("partition more coarsely: month(c) for day(c), bucket(16, c) for c"));
        }
        let key = slice.key;
        let partition = self.partitions.entry(key.clone()).or_insert_with(|| Partition {
            values: slice.values,
            waiting: Vec::new(),
            waiting_bytes: 0,
            open: None,
            held: 0,
        });
        partition.waiting_bytes += slice.rows.get_array_memory_size();
        partition.waiting.push(slice.rows);
        if partition.waiting_bytes >= waiting_max {
            self.encode(&key)?;
        }
        self.recount(&key);
        self.relieve()
    }

    /// Encodes the waiting rows of a partition; ends row groups and files that are large enough.
    fn encode(&mut self, key: &[u8]) -> Result<()> {
        let Some(partition) = self.partitions.get_mut(key) else { return Ok(()) };
        let waiting_bytes = std::mem::take(&mut partition.waiting_bytes);
        let waiting = std::mem::take(&mut partition.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        if partition.open.is_none() {
            let location = self.layout.location(self.number, self.next_file);
            self.next_file += 1;
            self.files_open += 1;
            if self.properties.is_none() {
                self.properties = dictionary::properties(&self.layout.properties, &waiting);
            }
            let properties = self.properties.as_ref().unwrap_or(&self.layout.properties);
            partition.open = Some(OpenFile::new(&self.layout, location, properties.clone())?);
        }
        let Some(open) = &mut partition.open else { return Ok(()) };
        open.writer.write(&waiting).map_err(encoding)?;
        for rows in &waiting {
            open.nans.add(&self.layout.floats, rows);
            metrics::add_nulls(&mut open.nulls, rows, &self.layout.arrow);
            open.extremes.add(rows, &self.layout.arrow);
        }
        open.arrow_bytes += waiting_bytes;
        let target = self.layout.target_file_bytes;
        // The writer of a column keeps its least and greatest value whole until the row group ends.
        let huge = waiting_bytes as u64 > ROW_GROUP_BYTES;
        // What is in progress is not compressed yet: a file's size is known by whole row groups.
        if huge
            || open.arrow_bytes >= ROW_GROUP_ARROW_BYTES
            || open.writer.in_progress_bytes() as u64 >= target.min(ROW_GROUP_BYTES)
        {
            open.end_row_group()?;
        }
        let file_bytes = (open.writer.bytes_written() + open.writer.in_progress_bytes()) as u64;
        let full = file_bytes >= target || open.writer.chunks() >= CHUNKS_MAX;
        self.ready.extend(open.bytes_made());
        if full {
            self.close_partition(key)?;
        }
        Ok(())
    }

    fn close_partition(&mut self, key: &[u8]) -> Result<()> {
        if self.partitions.get(key).is_some_and(|partition| !partition.waiting.is_empty()) {
            self.encode(key)?;
        }
        let Some(partition) = self.partitions.get_mut(key) else { return Ok(()) };
        if let Some(mut open) = partition.open.take() {
            self.files_open -= 1;
            let (metadata, tail) = open.writer.finish().map_err(encoding)?;
            self.ready.extend(open.bytes_made());
            let data_file = metrics::data_file(
                &self.layout,
                Finished {
                    location: open.location,
                    size_bytes: open.writer.bytes_written() as u64,
                    metadata,
                    nans: open.nans,
                    nulls: open.nulls,
                    extremes: open.extremes,
                    partition: partition.values.clone(),
                    order: self.order,
                },
            )?;
            self.ready.push(Ready::Closed(Box::new(StagedFile { data_file, tail: Some(tail) })));
        }
        self.recount(key);
        Ok(())
    }

    fn recount(&mut self, key: &[u8]) {
        let Some(partition) = self.partitions.get_mut(key) else { return };
        let encoding = partition.open.as_ref().map_or(0, |open| open.writer.memory_bytes());
        let now = partition.waiting_bytes + encoding;
        self.budget.replace(partition.held, now);
        self.held = self.held + now - partition.held;
        partition.held = now;
    }

    /// Ends row groups, largest first, while all writers together hold too much and this one at
    /// least its share; closes files while too many are open.
    fn relieve(&mut self) -> Result<()> {
        while self.budget.exceeded() && self.held >= self.budget.share() {
            let largest = self.partitions.iter().max_by_key(|(_, partition)| partition.held);
            let Some(key) = largest.filter(|(_, p)| p.held > 0).map(|(key, _)| key.clone()) else {
                break;
            };
            self.encode(&key)?;
            let alone = self.partitions.len() == 1;
            let mut full = false;
            if let Some(open) = self.partitions.get_mut(&key).and_then(|p| p.open.as_mut()) {
                if alone && open.writer.is_mostly_columns() {
                    self.recount(&key);
                    break;
                }
                open.end_row_group()?;
                full = open.writer.chunks() >= CHUNKS_MAX;
                self.ready.extend(open.bytes_made());
            }
            if full {
                self.close_partition(&key)?;
            }
            self.recount(&key);
        }
        while self.files_open > FILES_OPEN_MAX {
            let written = |partition: &Partition| {
                partition.open.as_ref().map(|open| open.writer.bytes_written())
            };
            let fullest = self.partitions.iter().max_by_key(|(_, partition)| written(partition));
            let Some(key) = fullest.map(|(key, _)| key.clone()) else { break };
            self.close_partition(&key)?;
        }
        Ok(())
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.budget.replace(self.held, 0);
    }
}

impl OpenFile {
    fn new(layout: &Layout, location: String, properties: WriterProperties) -> Result<Self> {
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_parquet_schema(layout.parquet.clone());
        let arrow = Arc::clone(&layout.arrow);
        let writer = FileWriter::new(arrow, options);
        Ok(Self {
            location,
            writer: writer.map_err(encoding)?,
            arrow_bytes: 0,
            nans: NanCounts::default(),
            nulls: HashMap::new(),
            extremes: Extremes::default(),
        })
    }

    fn end_row_group(&mut self) -> Result<()> {
        self.arrow_bytes = 0;
        self.writer.flush().map_err(encoding)
    }

    fn bytes_made(&mut self) -> Option<Ready> {
        let bytes = self.writer.take_bytes();
        let location = self.location.clone();
        (!bytes.is_empty()).then(|| Ready::Bytes { location, bytes: bytes.into() })
    }
}

fn encoding(cause: parquet::errors::ParquetError) -> Error {
    error::parquet("encode rows as Parquet", cause)
}
