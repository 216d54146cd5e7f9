//! The rows of a run, decoded again from its staged data files: they are those that were handed to the
//! writers, and none is there twice.
//!
//! Row groups are decoded side by side. Columns that a file has as dictionaries are not taken apart: a text is
//! hashed once for each dictionary, and the others are numbers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::{Buf, Bytes, buf::Reader};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use polder_core::digest::{Hashes, Records};
use polder_core::{Content, Error, ErrorCode, Result};
use tokio::sync::Mutex;

use super::apart::{Apart, HEAPS, repeated};
use super::audit::failed;
use crate::error;
use crate::field_ids::field_id;
use crate::read::footer;
use crate::schema;
use crate::stage::{RunSummary, Stage};
use crate::write::StagedFile;

/// Row groups decoded side by side, at most.
const GROUPS_AT_ONCE: usize = 4;
/// Bytes of memory for each of them: a row group as it is stored, and what is decoded of it at a time.
const GROUP_BYTES: usize = 64 << 20;
/// Values of a batch, and bytes of them: as a file has them before compression, and texts and bytes as long as each is.
const BATCH_VALUES: usize = 1 << 17;
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS_MAX: usize = 1 << 12;
/// Keys that are looked at again, whether they are equal or only their hashes.
const LOOKED_AT_MAX: usize = 100;
/// Rows whose keys are named in an error.
const NAMED_MAX: usize = 10;

/// Reads the files' rows back and compares them with what the run says of them; nothing where it says
/// nothing.
///
/// # Errors
/// `lake.audit_failed` for other rows, for two of one key, or a file that cannot be decoded; `lake.*` when the store
/// cannot be read.
pub(super) async fn check(stage: &Stage, files: &[StagedFile], run: &RunSummary) -> Result<()> {
    let Some(expected) = run.content else { return Ok(()) };
    let layout = schema::arrow_schema(&stage.request.schema, &stage.target.schema);
    let index = |name: &String| layout.index_of(name);
    let unique = run.unique.iter().map(index).collect::<std::result::Result<Vec<usize>, _>>();
    let mut unique =
        unique.map_err(|cause| error::arrow("find the columns that tell rows apart", cause))?;
    // In the table's order, as parts of rows are read.
    unique.sort_unstable();
    unique.dedup();
    let reading = ReadBack { stage, files, layout };
    let found = reading.rows(expected.rows, &unique).await?;
    if found.content != expected {
        return Err(failed("the data files hold other rows than were written")
            .detail(format!("{expected} written, {} read back", found.content)));
    }
    if found.repeated.is_empty() {
        return Ok(());
    }
    let mut repeated: Vec<u64> = found.repeated.into_iter().collect();
    repeated.sort_unstable();
    repeated.truncate(LOOKED_AT_MAX);
    let repeated = Arc::new(repeated.into_iter().collect());
    let names = reading.names(&unique, &repeated).await?;
    if names.is_empty() {
        // Keys that differ have had one hash.
        return Ok(());
    }
    let columns = run.unique.join(", ");
    let message =
        format!("the audit before publishing failed: rows are there twice by ({columns})");
    Err(Error::new(ErrorCode::LakeAuditFailed, message).detail(names.join("; ")).hint(
        "nothing was published; give `key` the columns that tell rows apart in the source, or mend its rows; if rows \
         changed while they were read without a snapshot, run again",
    ))
}

/// Part of the rows.
enum Group {
    Own(RowGroup),
    /// A whole file, of another engine.
    Foreign(Box<StagedFile>),
}

/// A row group of a file that is laid out as the stage's own are.
struct RowGroup {
    file: String,
    metadata: ArrowReaderMetadata,
    number: usize,
}

/// Whether they come in one order, with one type and id each.
fn same_columns(found: &SchemaRef, layout: &SchemaRef) -> bool {
    let alike = |found: &Field, own: &Field| {
        field_id(found) == field_id(own) && found.data_type() == own.data_type()
    };
    found.fields().len() == layout.fields().len()
        && found.fields().iter().zip(layout.fields()).all(|(found, own)| alike(found, own))
}

struct ReadBack<'a> {
    stage: &'a Stage,
    files: &'a [StagedFile],
    layout: SchemaRef,
}

/// What is still to be read. Footers are in memory while row groups of theirs are.
struct Queue<'a> {
    files: std::slice::Iter<'a, StagedFile>,
    groups: VecDeque<Group>,
}

/// What was read.
#[derive(Default)]
struct Found {
    content: Content,
    /// Hashes of keys that several rows have; of many some.
    repeated: HashSet<u64>,
}

impl ReadBack<'_> {
    /// Reads all rows once. Where the hashes of what tells them apart do not fit into memory, once more in these columns
    /// for each other part of the hashes.
    async fn rows(&self, rows: u64, unique: &[usize]) -> Result<Found> {
        let memory = self.stage.request.memory_bytes.max(1) as u64;
        let hashes = rows.saturating_mul(size_of::<u64>() as u64 * 2);
        let parts = (hashes / memory + 1).min(HEAPS as u64) as usize;
        let own = rows as usize / self.at_once();
        let tallies = self.read(None, true, || Tally::new(unique, (0, parts), own)).await?;
        let contents = tallies.iter().map(|tally| tally.content);
        let content = contents.fold(Content::default(), Content::and);
        let mut found = Found { content, repeated: HashSet::new() };
        if unique.is_empty() {
            return Ok(found);
        }
        let apart = tallies.into_iter().map(|tally| tally.apart).collect();
        found.repeated = repeated(apart, self.at_once()).await?;
        for part in 1..parts {
            if found.repeated.len() >= LOOKED_AT_MAX {
                break;
            }
            let apart = self.read(Some(unique), true, || OfPart::new((part, parts), own)).await?;
            let apart = apart.into_iter().map(|part| part.apart).collect();
            found.repeated.extend(repeated(apart, self.at_once()).await?);
        }
        Ok(found)
    }

    /// The keys of some hashes that several rows have, by name.
    async fn names(&self, unique: &[usize], hashes: &Arc<HashSet<u64>>) -> Result<Vec<String>> {
        let make = || Namer { hashes: Arc::clone(hashes), rows: HashMap::new() };
        let mut rows: HashMap<(u64, String), u64> = HashMap::new();
        for named in self.read(Some(unique), false, make).await? {
            for (key, count) in named.rows {
                *rows.entry(key).or_default() += count;
            }
        }
        let twice = rows.into_iter().filter(|(_, count)| *count > 1);
        let mut names: Vec<String> = twice.map(|((_, name), _)| name).collect();
        names.sort();
        names.truncate(NAMED_MAX);
        Ok(names)
    }

    /// Shows the rows to what `make` makes: one for each row group that is decoded at a time. `columns`: all if absent;
    /// `stored`: texts may be left as they are stored.
    async fn read<T: See>(
        &self,
        columns: Option<&[usize]>,
        stored: bool,
        make: impl Fn() -> T,
    ) -> Result<Vec<T>> {
        let queue = Mutex::new(Queue { files: self.files.iter(), groups: VecDeque::new() });
        let queue = &queue;
        let readers = (0..self.at_once()).map(|_| {
            let mut see = make();
            async move {
                while let Some(group) = self.next(queue).await? {
                    see = self.see(group, columns, stored, see).await?;
                }
                Ok::<T, Error>(see)
            }
        });
        futures::future::try_join_all(readers).await
    }

    async fn next(&self, queue: &Mutex<Queue<'_>>) -> Result<Option<Group>> {
        let mut queue = queue.lock().await;
        loop {
            if let Some(group) = queue.groups.pop_front() {
                return Ok(Some(group));
            }
            let Some(file) = queue.files.next() else { return Ok(None) };
            queue.groups = self.grouped(file).await?;
        }
    }

    async fn grouped(&self, file: &StagedFile) -> Result<VecDeque<Group>> {
        let name = file.location();
        let failed = |cause| undecodable(name, cause);
        let footer = footer(&self.stage.store(), name, file.size_bytes()).await?;
        let footer = Arc::new(footer.map_err(failed)?);
        let metadata = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new());
        let metadata = metadata.map_err(failed)?;
        if !same_columns(metadata.schema(), &self.layout) {
            return Ok([Group::Foreign(Box::new(file.clone()))].into());
        }
        let group = |number| {
            let (file, metadata) = (name.to_owned(), metadata.clone());
            Group::Own(RowGroup { file, metadata, number })
        };
        Ok((0..metadata.metadata().num_row_groups()).map(group).collect())
    }

    fn at_once(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let fits = self.stage.request.memory_bytes / GROUP_BYTES;
        cores.min(fits).clamp(1, GROUPS_AT_ONCE)
    }

    async fn see<T: See>(
        &self,
        group: Group,
        columns: Option<&[usize]>,
        stored: bool,
        mut see: T,
    ) -> Result<T> {
        match group {
            Group::Own(group) => {
                let rows = self.open(&group).await?;
                let (file, columns) = (group.file.clone(), columns.map(<[usize]>::to_vec));
                let decode = move || {
                    let columns = columns.as_deref();
                    match rows {
                        Rows::File(file) => group.decode(file, columns, stored, &mut see)?,
                        Rows::Span(span) => group.decode(span, columns, stored, &mut see)?,
                    }
                    Ok(see)
                };
                let decoded = tokio::task::spawn_blocking(decode).await;
                decoded.map_err(|cause| {
                    // The crate trusts what pages say of themselves.
                    let broken = || ParquetError::General("decoding it stopped".to_owned());
                    if cause.is_panic() { undecodable(&file, broken()) } else { error::join(cause) }
                })?
            }
            Group::Foreign(file) => {
                let name = |column: &usize| self.layout.field(*column).name().clone();
                let columns = columns.map(|columns| columns.iter().map(name).collect::<Vec<_>>());
                let mut rows = self.stage.read_file(&file.as_scanned(), columns.as_deref())?;
                while let Some(batch) = rows.try_next().await.map_err(unread)? {
                    see.batch(&batch)?;
                }
                Ok(see)
            }
        }
    }

    async fn open(&self, group: &RowGroup) -> Result<Rows> {
        if let Some(file) = self.stage.store().local_file(&group.file)? {
            return Ok(Rows::File(file));
        }
        let (mut start, mut end) = (u64::MAX, 0);
        for chunk in group.stored().columns() {
            let place = place(chunk).ok_or_else(|| {
                let cause = ParquetError::General("a column lies nowhere".to_owned());
                undecodable(&group.file, cause)
            })?;
            (start, end) = (start.min(place.start), end.max(place.end));
        }
        if end <= start {
            return Ok(Rows::Span(Span { start: 0, bytes: Bytes::new() }));
        }
        let bytes = self.stage.store().read_range(&group.file, start..end).await?;
        Ok(Rows::Span(Span { start, bytes }))
    }
}

impl RowGroup {
    fn stored(&self) -> &RowGroupMetaData {
        self.metadata.metadata().row_group(self.number)
    }

    fn decode(
        &self,
        rows: impl ChunkReader + 'static,
        columns: Option<&[usize]>,
        stored: bool,
        see: &mut impl See,
    ) -> Result<()> {
        let failed = |cause| undecodable(&self.file, cause);
        let mut metadata = self.metadata.clone();
        if stored {
            let options =
                ArrowReaderOptions::new().with_schema(as_stored(metadata.schema(), self.stored()));
            let footer = Arc::clone(metadata.metadata());
            metadata = ArrowReaderMetadata::try_new(footer, options).map_err(failed)?;
        }
        let all = ProjectionMask::all();
        let mask = columns.map_or(all, |columns| {
            ProjectionMask::roots(metadata.parquet_schema(), columns.iter().copied())
        });
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(rows, metadata)
            .with_row_groups(vec![self.number])
            .with_batch_size(batch_rows(self.stored()))
            .with_projection(mask)
            .build()
            .map_err(failed)?;
        for batch in batches {
            see.batch(&batch.map_err(|cause| failed(cause.into()))?)?;
        }
        Ok(())
    }
}

/// Where the rows of a row group are read.
enum Rows {
    /// Page by page.
    File(File),
    Span(Span),
}

/// Part of a file in memory.
struct Span {
    start: u64,
    bytes: Bytes,
}

impl Length for Span {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Span {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let length = self.len().saturating_sub(start) as usize;
        Ok(self.get_bytes(start, length)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let from = start.checked_sub(self.start).map(|from| from as usize);
        match from.and_then(|from| Some(from..from.checked_add(length)?)) {
            Some(range) if range.end <= self.bytes.len() => Ok(self.bytes.slice(range)),
            _ => Err(ParquetError::EOF("a page lies outside its row group".to_owned())),
        }
    }
}

/// Takes the rows of a part.
trait See: Send + 'static {
    fn batch(&mut self, records: &RecordBatch) -> Result<()>;
}

/// The columns, with texts left where they are: in dictionaries where all pages of the row group have them so, and
/// in the pages otherwise.
fn as_stored(schema: &SchemaRef, group: &RowGroupMetaData) -> SchemaRef {
    let mut leaf = 0;
    let field = |field: &Arc<Field>| {
        let first = leaf;
        leaf += leaves(field.data_type());
        let stored = match field.data_type() {
            DataType::Utf8 if is_coded(group, first) => {
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
            }
            DataType::Utf8 => DataType::Utf8View,
            _ => return Arc::clone(field),
        };
        Arc::new(field.as_ref().clone().with_data_type(stored))
    };
    let fields: Vec<_> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(members) => members.iter().map(|member| leaves(member.data_type())).sum(),
        DataType::List(element) => leaves(element.data_type()),
        _ => 1,
    }
}

fn is_coded(group: &RowGroupMetaData, leaf: usize) -> bool {
    group.columns().get(leaf).is_some_and(|chunk| {
        let coded = [Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY];
        chunk.dictionary_page_offset().is_some()
            && chunk
                .page_encoding_stats_mask()
                .is_some_and(|mask| coded.iter().any(|of| mask.is_only(*of)))
    })
}

/// Where a column's pages lie, by the footer of whoever has written them.
fn place(chunk: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let start = u64::try_from(start).ok()?;
    Some(start..start.checked_add(u64::try_from(chunk.compressed_size()).ok()?)?)
}

fn batch_rows(group: &RowGroupMetaData) -> usize {
    let rows = usize::try_from(group.num_rows()).unwrap_or(0).max(1);
    let of_row = |count: i64| usize::try_from(count).unwrap_or(0).div_ceil(rows).max(1);
    let chunks = || group.columns().iter();
    // Lists have many values a row.
    let values: usize = chunks().map(|chunk| of_row(chunk.num_values())).sum();
    // What a dictionary has once, rows may have each.
    let bytes = |chunk: &ColumnChunkMetaData| {
        let apart = chunk.unencoded_byte_array_data_bytes().unwrap_or(0);
        of_row(chunk.uncompressed_size().max(apart))
    };
    let bytes: usize = chunks().map(bytes).sum();
    (BATCH_VALUES / values.max(1)).min(BATCH_BYTES / bytes.max(1)).clamp(1, BATCH_ROWS_MAX)
}

/// Counts and digests rows in all columns, and looks at what tells them apart.
struct Tally {
    unique: Vec<usize>,
    content: Content,
    hashes: Hashes,
    of_unique: Hashes,
    apart: Apart,
}

impl Tally {
    fn new(unique: &[usize], part: (usize, usize), rows: usize) -> Self {
        // Without columns nothing is kept.
        let rows = if unique.is_empty() { 0 } else { rows };
        Self {
            unique: unique.to_vec(),
            content: Content::default(),
            hashes: Hashes::default(),
            of_unique: Hashes::default(),
            apart: Apart::new(part, rows),
        }
    }
}

impl See for Tally {
    fn batch(&mut self, records: &RecordBatch) -> Result<()> {
        let count = records.num_rows();
        let hashes = self.hashes.of(records.columns(), count)?;
        let digest = hashes.iter().fold(0_u64, |sum, hash| sum.wrapping_add(*hash));
        self.content = self.content.and(Content { rows: count as u64, digest });
        if self.unique.len() == records.num_columns() {
            self.apart.add(&hashes);
        } else if !self.unique.is_empty() {
            let columns: Vec<_> =
                self.unique.iter().map(|at| records.column(*at).clone()).collect();
            let hashes = self.of_unique.of(&columns, count)?;
            self.apart.add(&hashes);
        }
        Ok(())
    }
}

/// Looks at what tells rows apart in a part of their hashes; the rows have these columns alone.
struct OfPart {
    hashes: Hashes,
    apart: Apart,
}

impl OfPart {
    fn new(part: (usize, usize), rows: usize) -> Self {
        Self { hashes: Hashes::default(), apart: Apart::new(part, rows) }
    }
}

impl See for OfPart {
    fn batch(&mut self, records: &RecordBatch) -> Result<()> {
        let hashes = self.hashes.of(records.columns(), records.num_rows())?;
        self.apart.add(&hashes);
        Ok(())
    }
}

/// Names the rows of some hashes.
struct Namer {
    hashes: Arc<HashSet<u64>>,
    rows: HashMap<(u64, String), u64>,
}

impl See for Namer {
    fn batch(&mut self, records: &RecordBatch) -> Result<()> {
        let hashes = Hashes::default().of(records.columns(), records.num_rows())?;
        let schema = records.schema();
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let mut forms = Records::new(records, names)?;
        for (row, hash) in hashes.iter().enumerate() {
            if self.hashes.contains(hash) {
                *self.rows.entry((forms.row(row), forms.name(row))).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// Rows that were written and cannot be read: the store may only be away.
fn unread(error: Error) -> Error {
    if error.retryable() {
        return error;
    }
    failed("a data file cannot be read back").caused_by(error)
}

fn undecodable(file: &str, cause: ParquetError) -> Error {
    failed("a data file cannot be read back").detail(file.to_owned()).caused_by(cause)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BinaryArray, Int32Array, ListArray};
    use arrow::datatypes::Int32Type;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn rows_at_once(column: ArrayRef) -> usize {
        let batch = RecordBatch::try_from_iter([("a", column)]).expect("a batch");
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        batch_rows(writer.close().expect("a file").row_group(0))
    }

    #[test]
    fn batches_are_small_in_memory_whatever_is_stored() {
        assert_eq!(rows_at_once(Arc::new(Int32Array::from_iter_values(0..5_000))), BATCH_ROWS_MAX);
        // A few kilobytes in the file, half a gigabyte in all.
        let blobs: Vec<Vec<u8>> = (0..5).map(|byte| vec![byte; 100_000]).collect();
        let repeated = (0..5_000).map(|row| &blobs[row % 5]);
        let rows = rows_at_once(Arc::new(BinaryArray::from_iter_values(repeated)));
        assert!((5..=10).contains(&rows), "{rows} rows of 100,000 bytes");
        let lists = (0..500).map(|_| Some((0..1_000).map(Some)));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        let rows = rows_at_once(Arc::new(lists));
        assert!((100..=131).contains(&rows), "{rows} rows of 1,000 values");
    }
}
