//! Rows of many batches in one order, within a bound of memory: as many as fit are sorted and set aside
//! on disk as a run, and the runs are merged.
//!
//! Rows are compared in Arrow's row format, which orders texts and bytes by their bytes, and floats as
//! Iceberg asks (spec, *Sorting*): -NaN, -infinity, values, -0.0, 0.0, values, infinity, NaN. Runs are
//! files without names: gone when their last handle is, whatever ends the process.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{SortOptions, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::{Row, RowConverter, Rows, SortField as RowField};
use polder_core::spec::SortField;
use polder_core::{Error, ErrorCode, Result};

/// Runs merged into one.
const RUNS_MAX: usize = 32;
/// Rows of a sorted batch, at most, and its bytes, at least: there is one in memory of each run.
const CHUNK_ROWS_MAX: usize = 8192;
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// What a row takes beside itself and its key: its place.
const PLACE_BYTES: usize = size_of::<(usize, usize)>();

/// The columns that rows are sorted by.
pub(super) struct Keys {
    columns: Vec<usize>,
    converter: RowConverter,
}

impl Keys {
    /// # Errors
    /// `internal` for columns that are not there.
    pub(super) fn new(schema: &SchemaRef, sort: &[SortField]) -> Result<Self> {
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        for field in sort {
            let index = schema.index_of(&field.column).map_err(failed)?;
            let (descending, nulls_first) = (field.descending, field.nulls_first);
            let options = SortOptions { descending, nulls_first };
            let data_type = schema.field(index).data_type().clone();
            fields.push(RowField::new_with_options(data_type, options));
            columns.push(index);
        }
        Ok(Self { columns, converter: RowConverter::new(fields).map_err(failed)? })
    }

    fn of(&self, batch: &RecordBatch) -> Result<Rows> {
        let columns = self.columns.iter().map(|index| Arc::clone(batch.column(*index)));
        let columns: Vec<ArrayRef> = columns.collect();
        self.converter.convert_columns(&columns).map_err(failed)
    }
}

/// Takes rows in any order.
pub(super) struct Sorter {
    keys: Arc<Keys>,
    bytes_max: usize,
    waiting: Waiting,
    /// Runs at rest, those that were merged once, twice, … apart, so that each row is merged a few times.
    runs: Vec<Vec<Run>>,
}

impl Sorter {
    /// `bytes_max`: of rows in memory.
    pub(super) fn new(keys: Arc<Keys>, bytes_max: usize) -> Self {
        Self { keys, bytes_max, waiting: Waiting::default(), runs: Vec::new() }
    }

    /// # Errors
    /// `lake.failed` when there is no room for temporary files.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let keys = self.keys.of(&batch)?;
        self.waiting.bytes += batch.get_array_memory_size() + keys.size();
        self.waiting.bytes += batch.num_rows() * PLACE_BYTES;
        self.waiting.batches.push(batch);
        self.waiting.keys.push(keys);
        if self.waiting.bytes >= self.bytes_max { self.set_aside() } else { Ok(()) }
    }

    /// # Errors
    /// As [`Self::push`].
    pub(super) fn finish(mut self) -> Result<Sorted> {
        if self.runs.is_empty() {
            return Ok(Sorted::Memory(
                std::mem::take(&mut self.waiting).sorted(self.chunk_bytes()),
            ));
        }
        self.set_aside()?;
        let runs = std::mem::take(&mut self.runs).into_iter().flatten().collect();
        Ok(Sorted::Merged(Merge::of(runs, Arc::clone(&self.keys))?))
    }

    fn chunk_bytes(&self) -> usize {
        (self.bytes_max / RUNS_MAX).max(CHUNK_BYTES_MIN)
    }

    /// Makes a run of the rows in memory, and one of many runs.
    fn set_aside(&mut self) -> Result<()> {
        if self.waiting.batches.is_empty() {
            return Ok(());
        }
        let chunk_bytes = self.chunk_bytes();
        let mut sorted = std::mem::take(&mut self.waiting).sorted(chunk_bytes);
        let mut run = Run::write(sorted.chunk_rows, || sorted.next())?;
        drop(sorted);
        for level in 0.. {
            if level == self.runs.len() {
                self.runs.push(Vec::new());
            }
            self.runs[level].push(run);
            if self.runs[level].len() < RUNS_MAX {
                break;
            }
            let runs = std::mem::take(&mut self.runs[level]);
            let mut merge = Merge::of(runs, Arc::clone(&self.keys))?;
            run = Run::write(merge.chunk_rows, || merge.next())?;
        }
        Ok(())
    }
}

/// Rows in memory, in no order.
#[derive(Default)]
struct Waiting {
    batches: Vec<RecordBatch>,
    /// Of the rows of each batch.
    keys: Vec<Rows>,
    bytes: usize,
}

impl Waiting {
    fn sorted(self, chunk_bytes: usize) -> InMemory {
        let rows = self.keys.iter().map(Rows::num_rows).enumerate();
        let places = rows.flat_map(|(batch, rows)| (0..rows).map(move |row| (batch, row)));
        let mut places: Vec<(usize, usize)> = places.collect();
        let key = |(batch, row): (usize, usize)| self.keys[batch].row(row);
        places.sort_unstable_by(|a, b| key(*a).cmp(&key(*b)).then(a.cmp(b)));
        let chunk_rows = chunk_bytes * places.len() / self.bytes.max(1);
        let chunk_rows = chunk_rows.clamp(1, CHUNK_ROWS_MAX);
        InMemory { batches: self.batches, places, next: 0, chunk_rows }
    }
}

/// Rows in memory, in their order.
pub(super) struct InMemory {
    batches: Vec<RecordBatch>,
    places: Vec<(usize, usize)>,
    next: usize,
    chunk_rows: usize,
}

impl InMemory {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let end = self.places.len().min(self.next + self.chunk_rows);
        let places = &self.places[self.next..end];
        self.next = end;
        picked(&self.batches, places)
    }
}

/// The rows at these places; `None` for none.
fn picked(batches: &[RecordBatch], places: &[(usize, usize)]) -> Result<Option<RecordBatch>> {
    if places.is_empty() {
        return Ok(None);
    }
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, places).map(Some).map_err(failed)
}

/// Sorted rows on disk, in batches of so many rows.
struct Run {
    file: File,
    chunk_rows: usize,
}

impl Run {
    fn write(
        chunk_rows: usize,
        mut next: impl FnMut() -> Result<Option<RecordBatch>>,
    ) -> Result<Self> {
        let empty = || Error::new(ErrorCode::Internal, "a run without rows");
        let first = next()?.ok_or_else(empty)?;
        let file = BufWriter::new(tempfile::tempfile().map_err(|error| failed(error.into()))?);
        let mut writer = StreamWriter::try_new(file, &first.schema()).map_err(failed)?;
        writer.write(&first).map_err(failed)?;
        while let Some(batch) = next()? {
            writer.write(&batch).map_err(failed)?;
        }
        let file = writer.into_inner().map_err(failed)?.into_inner();
        let mut file = file.map_err(|error| failed(error.into()))?;
        file.rewind().map_err(|error| failed(error.into()))?;
        Ok(Self { file, chunk_rows })
    }
}

/// Rows in their order, batch by batch.
pub(super) enum Sorted {
    Memory(InMemory),
    Merged(Merge),
}

impl Sorted {
    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// `lake.failed` when a temporary file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        match self {
            Self::Memory(rows) => rows.next(),
            Self::Merged(rows) => rows.next(),
        }
    }
}

/// Runs becoming one.
pub(super) struct Merge {
    keys: Arc<Keys>,
    /// Each run at its next row, the least on top.
    cursors: BinaryHeap<Cursor>,
    /// Those that rows to come were picked from, and the present one of each run.
    batches: Vec<RecordBatch>,
    places: Vec<(usize, usize)>,
    chunk_rows: usize,
}

struct Cursor {
    /// Equal rows come in the order of their runs.
    run: usize,
    reader: StreamReader<BufReader<File>>,
    /// The present batch's place in [`Merge::batches`].
    batch: usize,
    keys: Rows,
    row: usize,
}

impl Merge {
    fn of(runs: Vec<Run>, keys: Arc<Keys>) -> Result<Self> {
        let chunk_rows = runs.iter().map(|run| run.chunk_rows).min().unwrap_or(1);
        let (cursors, batches, places) = (BinaryHeap::new(), Vec::new(), Vec::new());
        let mut merge = Self { keys, cursors, batches, places, chunk_rows };
        for (run, Run { file, .. }) in runs.into_iter().enumerate() {
            let reader = StreamReader::try_new(BufReader::new(file), None).map_err(failed)?;
            let keys = merge.keys.converter.empty_rows(0, 0);
            let mut cursor = Cursor { run, reader, batch: merge.batches.len(), keys, row: 0 };
            if let Some(batch) = cursor.load(&merge.keys)? {
                merge.batches.push(batch);
                merge.cursors.push(cursor);
            }
        }
        Ok(merge)
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.places.len() < self.chunk_rows {
            let Some(mut least) = self.cursors.peek_mut() else { break };
            self.places.push((least.batch, least.row));
            least.row += 1;
            if least.row < least.keys.num_rows() {
                continue;
            }
            if let Some(batch) = least.load(&self.keys)? {
                least.batch = self.batches.len();
                self.batches.push(batch);
            } else {
                drop(PeekMut::pop(least));
            }
        }
        let rows = picked(&self.batches, &self.places)?;
        self.places.clear();
        self.let_go();
        Ok(rows)
    }

    /// Keeps the batches that runs are at, and no others.
    fn let_go(&mut self) {
        let mut cursors = std::mem::take(&mut self.cursors).into_vec();
        let mut present = Vec::with_capacity(cursors.len());
        for cursor in &mut cursors {
            present.push(self.batches[cursor.batch].clone());
            cursor.batch = present.len() - 1;
        }
        self.batches = present;
        self.cursors = cursors.into();
    }
}

impl Cursor {
    /// Goes on to the run's next batch.
    fn load(&mut self, keys: &Keys) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.reader.next().transpose().map_err(failed)? else { return Ok(None) };
        self.keys = keys.of(&batch)?;
        self.row = 0;
        Ok(Some(batch))
    }

    /// `None` behind the last row.
    fn key(&self) -> Option<Row<'_>> {
        (self.row < self.keys.num_rows()).then(|| self.keys.row(self.row))
    }
}

/// The least row is the greatest cursor, as the heap has that on top.
impl Ord for Cursor {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key()).then(other.run.cmp(&self.run))
    }
}

impl PartialOrd for Cursor {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cursor {}

fn failed(error: ArrowError) -> Error {
    if !matches!(error, ArrowError::IoError(..)) {
        return Error::new(ErrorCode::Internal, "cannot sort rows").caused_by(error);
    }
    Error::new(ErrorCode::LakeFailed, "temporary storage failed")
        .detail(format!("in {}", std::env::temp_dir().display()))
        .hint("make room there, or point TMPDIR at a folder with room")
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, Float64Array, Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};
    use proptest::prelude::*;

    use super::*;

    type Given = (Option<i8>, Option<f64>, Option<String>);

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("f", DataType::Float64, true),
            Field::new("t", DataType::Utf8, true),
            Field::new("id", DataType::Int64, false),
        ]))
    }

    /// Rows with numbers of their own.
    fn batches(rows: &[Given], size: usize) -> Vec<RecordBatch> {
        let batch = |(number, rows): (usize, &[Given])| {
            let ids = (number * size..).take(rows.len()).map(|id| id as i64);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(rows.iter().map(|row| row.0.map(i64::from)).collect::<Int64Array>()),
                Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>()),
                Arc::new(rows.iter().map(|row| row.2.as_deref()).collect::<StringArray>()),
                Arc::new(Int64Array::from_iter_values(ids)),
            ];
            RecordBatch::try_new(schema(), columns).expect("batch")
        };
        rows.chunks(size).enumerate().map(batch).collect()
    }

    fn sort(texts: &[&str]) -> Vec<SortField> {
        texts.iter().map(|text| text.parse().expect("field")).collect()
    }

    fn sorted(batches: Vec<RecordBatch>, by: &[&str], bytes_max: usize) -> RecordBatch {
        let keys = Arc::new(Keys::new(&schema(), &sort(by)).expect("keys"));
        let mut sorter = Sorter::new(keys, bytes_max);
        for batch in batches {
            sorter.push(batch).expect("pushed");
        }
        let mut merge = sorter.finish().expect("finished");
        let mut found = Vec::new();
        while let Some(batch) = merge.next().expect("read") {
            assert!((1..=CHUNK_ROWS_MAX).contains(&batch.num_rows()));
            found.push(batch);
        }
        concat_batches(&schema(), &found).expect("one batch")
    }

    fn ids(batch: &RecordBatch) -> Vec<i64> {
        batch.column(3).as_primitive::<Int64Type>().values().to_vec()
    }

    fn float() -> impl Strategy<Value = f64> {
        let special = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0];
        prop_oneof![prop::sample::select(special.to_vec()), any::<f64>()]
    }

    /// By the spec's own words: nulls at their end, floats by Java's (and IEEE 754's) total order.
    fn expected(rows: &[Given]) -> Vec<i64> {
        let nulls = |of: Option<Ordering>, a: bool, b: bool| of.unwrap_or(a.cmp(&b));
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| {
            let (a, b) = (&rows[*a], &rows[*b]);
            let floats = a.1.zip(b.1).map(|(a, b)| b.total_cmp(&a));
            // f desc nulls last, t nulls last, n
            let texts = a.2.as_ref().zip(b.2.as_ref()).map(|(a, b)| a.as_bytes().cmp(b.as_bytes()));
            nulls(floats, a.1.is_none(), b.1.is_none())
                .then(nulls(texts, a.2.is_none(), b.2.is_none()))
                .then(a.0.cmp(&b.0))
        });
        order.into_iter().map(|row| row as i64).collect()
    }

    proptest! {
        /// However little memory there is, the rows are the same, in the order asked for.
        #[test]
        fn rows_come_in_order_and_none_is_lost_or_doubled(
            rows in prop::collection::vec(
                (any::<Option<i8>>(), prop::option::of(float()), any::<Option<String>>()), 1..300,
            ),
            size in 1..40_usize,
            bytes_max in prop::sample::select(vec![1, 4 << 10, 64 << 10, 64 << 20]),
        ) {
            let given = batches(&rows, size);
            let found = sorted(given.clone(), &["f desc nulls last", "t nulls last", "n"], bytes_max);
            let order = expected(&rows);
            prop_assert_eq!(found.num_rows(), rows.len());
            let key = |id: &i64| {
                let (n, f, t) = &rows[*id as usize];
                (*n, f.map(f64::to_bits), t.clone())
            };
            let keys = |ids: &[i64]| ids.iter().map(key).collect::<Vec<_>>();
            prop_assert_eq!(keys(&ids(&found)), keys(&order));
            // Each row is still the row of its number.
            let (floats, texts) = (found.column(1).as_primitive::<Float64Type>(), found.column(2));
            let texts = texts.as_string::<i32>();
            let mut seen = ids(&found);
            for (at, id) in seen.iter().enumerate() {
                let (_, float, text) = &rows[*id as usize];
                let found = floats.is_valid(at).then(|| floats.value(at).to_bits());
                prop_assert_eq!(found, float.map(f64::to_bits));
                prop_assert_eq!(texts.is_valid(at).then(|| texts.value(at)), text.as_deref());
            }
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..rows.len() as i64));
        }
    }

    #[test]
    fn more_runs_than_are_merged_at_once_are_merged_in_turns() {
        let rows: Vec<Given> =
            (0..2_000_i32).map(|n| (Some((n * 7_919 % 251 - 125) as i8), None, None)).collect();
        let keys = Arc::new(Keys::new(&schema(), &sort(&["n desc", "id"])).expect("keys"));
        let mut sorter = Sorter::new(keys, 1);
        for batch in batches(&rows, 1) {
            sorter.push(batch).expect("pushed");
        }
        let levels: Vec<usize> = sorter.runs.iter().map(Vec::len).collect();
        assert_eq!(levels, [2_000 % 32, 2_000 / 32 % 32, 2_000 / 32 / 32]);
        let found = sorted(batches(&rows, 1), &["n desc", "id"], 1);
        let mut order: Vec<i64> = (0..2_000).collect();
        order.sort_by_key(|id| (std::cmp::Reverse(rows[*id as usize].0), *id));
        assert_eq!(ids(&found), order);
    }

    #[test]
    fn nothing_sorted_is_nothing() {
        let keys = Arc::new(Keys::new(&schema(), &sort(&["n"])).expect("keys"));
        let mut sorter = Sorter::new(keys, 1 << 20);
        sorter.push(RecordBatch::new_empty(schema())).expect("pushed");
        assert!(sorter.finish().expect("finished").next().expect("read").is_none());
        assert!(Keys::new(&schema(), &sort(&["nope"])).is_err());
    }
}
