//! Parquet files to batches: the schema from the files' own, values as they are.
//!
//! Files of one table may have different columns; a column's types have to agree or widen without
//! loss. Embedded Arrow schemas are ignored: what counts is what any Parquet reader sees.

mod conform;
mod types;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use polder_core::{Error, ErrorCode, Field, ReadRequest, Result, TableSchema};

use self::conform::Conform;
use super::Learnt;
use super::object::{Input, Slice, changed};
use crate::blocking::Batches;

const ROWS_MAX: u64 = 65_536;

/// A column and the first file that told its type.
struct Found<'a> {
    column: types::Column,
    key: &'a str,
}

/// What reading needs to know beside the files.
pub(super) struct ParquetFormat {
    request: ReadRequest,
}

impl ParquetFormat {
    pub(super) fn new(request: &ReadRequest) -> Self {
        Self { request: request.clone() }
    }

    /// The schema all files share, and the number of their rows, from their footers.
    pub(super) fn learn(&self, inputs: &[Input]) -> Result<Learnt> {
        let mut found: Vec<Found<'_>> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut rows = 0;
        for input in inputs {
            let slice = input.open()?;
            let metadata = metadata(input, &slice)?;
            rows += metadata.metadata().file_metadata().num_rows().unsigned_abs();
            types::exact_wide_timestamps(input, &slice, &metadata, &self.request)?;
            let (wanted, key) = (self.request.columns.as_deref(), input.object.key.as_str());
            for column in types::columns(&metadata, wanted, key)? {
                if let Some(number) = numbers.get(&column.field.name) {
                    self.add(&mut found[*number], Found { column, key })?;
                } else {
                    numbers.insert(column.field.name.clone(), found.len());
                    found.push(Found { column, key });
                }
            }
        }
        let schema = super::select(self.schema(found), self.request.columns.as_deref())?;
        Ok(Learnt { schema, rows: Some(rows), warnings: Vec::new() })
    }

    /// Takes another file's column into account; a declared type stands above what files say.
    fn add<'a>(&self, old: &mut Found<'a>, new: Found<'a>) -> Result<()> {
        let name = &new.column.field.name;
        if new.column.untyped {
            return Ok(());
        }
        if old.column.untyped {
            *old = new;
            return Ok(());
        }
        let (present, data_type) = (&mut old.column.field.data_type, &new.column.field.data_type);
        match types::merge(present, data_type) {
            Some(merged) => *present = merged,
            None if self.request.types.contains_key(name) => {}
            None => {
                let message = format!("files have different types for column {name}");
                return Err(Error::new(ErrorCode::SourceMalformed, message)
                    .detail(format!("{present} in {}, {data_type} in {}", old.key, new.key))
                    .hint(format!("declare the type: `types: {{ {name}: string }}`")));
            }
        }
        Ok(())
    }

    /// The lake's columns first, then new ones; declared types stand above both.
    fn schema(&self, found: Vec<Found<'_>>) -> TableSchema {
        let known = self.request.known_schema.as_ref();
        let mut fields: Vec<Field> = known.map_or_else(Vec::new, |known| known.fields.clone());
        let numbers = fields.iter().enumerate().map(|(number, field)| (field.name.clone(), number));
        let numbers: HashMap<String, usize> = numbers.collect();
        // Each name was found once.
        for types::Column { field, untyped } in found.into_iter().map(|found| found.column) {
            match numbers.get(&field.name) {
                Some(_) if untyped => {}
                Some(number) => {
                    let old = &mut fields[*number];
                    let merged = types::merge(&old.data_type, &field.data_type);
                    *old = Field::new(&field.name, merged.unwrap_or(field.data_type));
                }
                None => fields.push(field),
            }
        }
        for field in &mut fields {
            if let Some(declared) = self.request.types.get(&field.name) {
                *field = Field::new(&field.name, declared.clone());
            }
        }
        TableSchema::new(fields)
    }

    /// Reads the files' rows in a schema.
    pub(super) fn read(
        self: Arc<Self>,
        inputs: Vec<Input>,
        schema: &TableSchema,
    ) -> ParquetBatches {
        let (inputs, schema) = (inputs.into(), schema.clone());
        ParquetBatches { format: self, inputs, schema, file: None }
    }

    fn open(&self, input: Input, schema: &TableSchema) -> Result<ParquetFile> {
        let slice = input.open()?;
        let metadata = metadata(&input, &slice)?;
        let metadata = types::with_micros(&metadata).map_err(|error| broken(&input, error))?;
        let wanted: HashSet<&str> = schema.fields.iter().map(|field| field.name.as_str()).collect();
        let roots: Vec<usize> = metadata
            .parquet_schema()
            .root_schema()
            .get_fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| wanted.contains(field.name()))
            .map(|(number, _)| number)
            .collect();
        let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
        let groups = metadata.metadata().row_groups();
        let rows: u64 = groups.iter().map(|group| group.num_rows().unsigned_abs()).sum();
        let bytes: u64 = groups.iter().map(|group| group.total_byte_size().unsigned_abs()).sum();
        let row_bytes = (bytes / rows.max(1)).max(1);
        let batch_rows = (self.request.batch_bytes as u64 / row_bytes).clamp(1, ROWS_MAX);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(slice.clone(), metadata)
            .with_projection(mask)
            .with_batch_size(batch_rows as usize)
            .build()
            .map_err(|error| broken(&input, error))?;
        Ok(ParquetFile { input, slice, reader, rows })
    }
}

fn metadata(input: &Input, slice: &Slice) -> Result<ArrowReaderMetadata> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::load(slice, options).map_err(|error| broken(input, error))
}

fn broken(input: &Input, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let message = format!("file {} is not a Parquet file this reads", input.object.key);
    Error::new(ErrorCode::SourceMalformed, message).caused_by(error)
}

/// One file being read.
struct ParquetFile {
    input: Input,
    slice: Slice,
    reader: ParquetRecordBatchReader,
    rows: u64,
}

/// The rows of some files.
pub(super) struct ParquetBatches {
    format: Arc<ParquetFormat>,
    inputs: VecDeque<Input>,
    schema: TableSchema,
    file: Option<ParquetFile>,
}

impl Batches for ParquetBatches {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.file.is_none() {
                let Some(input) = self.inputs.pop_front() else { return Ok(None) };
                self.file = Some(self.format.open(input, &self.schema)?);
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            match file.reader.next().transpose().map_err(|error| broken(&file.input, error))? {
                Some(batch) if batch.num_rows() > 0 => {
                    let rows = batch.num_rows() as u64;
                    // The file's bytes, spread over its rows.
                    let bytes = file.input.object.size * rows / file.rows.max(1);
                    let batch = conform(&batch, &self.schema, &self.format.request, &file.input)?;
                    self.format.request.progress.add_read(rows, bytes.max(1));
                    return Ok(Some(batch));
                }
                Some(_) => {}
                None => {
                    file.input.unchanged(&file.slice)?;
                    self.file = None;
                }
            }
        }
    }
}

/// A file's batch in the plan's layout.
fn conform(
    batch: &RecordBatch,
    schema: &TableSchema,
    request: &ReadRequest,
    input: &Input,
) -> Result<RecordBatch> {
    let layout = schema.to_arrow();
    let mut conform = Conform::new(request, batch);
    let names = batch.schema_ref().fields().iter().map(|field| field.name().as_str());
    let arrays: HashMap<&str, &ArrayRef> = names.zip(batch.columns()).collect();
    let columns = schema.fields.iter().zip(layout.fields()).map(|(field, target)| {
        match arrays.get(field.name.as_str()) {
            Some(array) => conform.column(array, field),
            None => Ok(new_null_array(target.data_type(), batch.num_rows())),
        }
    });
    let columns: Vec<_> = columns.collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(layout, columns, &options)
        .map_err(|error| changed(&input.object.key).caused_by(error))
}
