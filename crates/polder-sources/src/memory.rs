//! Tables in memory as a source, for tests of what reads sources: as many splits as wished, a
//! failure where it hurts, rows that change between two reads.
//!
//! It applies cursor and projection but no filter: a table's rows belong to one org, and another
//! org's table is another name (`{org}` in `from`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, Scalar};
use arrow::array::{Date32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::cmp::gt_eq;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use futures::stream;
use polder_core::spec::Mode;
use polder_core::{
    Batch, BatchStream, Capabilities, CursorRange, CursorValue, Doubt, Error, ErrorCode, ReadPlan,
    ReadRequest, Result, RunProgress, Source, SourceTable, Split, TableSchema, Tally,
};

use crate::names::{self, nearest};

/// One table's rows and how reading them goes.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    pub schema: TableSchema,
    /// In the layout of [`TableSchema::to_arrow`].
    pub batches: Vec<RecordBatch>,
    /// Columns in which no two rows have the same values.
    pub key: Vec<String>,
    /// Splits fail with `source.unavailable` after this many batches of a plan were delivered.
    pub fail_after: Option<usize>,
    /// Splits that failed can be read again, and do not fail then.
    pub again: bool,
    pub cursor_ceiling: Option<CursorValue>,
    /// What a plan says of itself.
    pub doubts: Vec<Doubt>,
}

/// Named tables in memory.
#[derive(Debug)]
pub struct MemorySource {
    capabilities: Capabilities,
    tables: Mutex<BTreeMap<String, MemoryTable>>,
}

impl Default for MemorySource {
    fn default() -> Self {
        let capabilities = Capabilities { cursor: true, objects: false, complete_schema: true };
        Self { capabilities, tables: Mutex::default() }
    }
}

impl MemorySource {
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims other abilities, to try how they are dealt with.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Puts a table in place of the one with this name, if there is one.
    pub fn put(&self, name: &str, table: MemoryTable) {
        self.tables().insert(name.to_owned(), table);
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<String, MemoryTable>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, name: &str) -> Result<MemoryTable> {
        let tables = self.tables();
        tables.get(name).cloned().ok_or_else(|| {
            let missing =
                Error::new(ErrorCode::SourceNotFound, format!("there is no table {name}"));
            match nearest(name, tables.keys().map(String::as_str)) {
                Some(names) => missing.hint(format!("there is {names}")),
                None => missing,
            }
        })
    }
}

#[async_trait]
impl Source for MemorySource {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn check(&self) -> Result<String> {
        Ok(format!("{} tables in memory", self.tables().len()))
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        let tables = self.tables();
        let described = tables.iter().map(|(name, table)| SourceTable {
            name: name.clone(),
            kind: "table",
            schema: table.schema.clone(),
            key: table.key.clone(),
            cursors: Vec::new(),
            mode: Mode::FullRefresh,
            rows_estimated: Some(rows(&table.batches)),
        });
        Ok(described.collect())
    }

    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        schema.is_none().then(|| table.to_owned())
    }

    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        let table = self.table(&request.from.replace("{org}", request.org.as_str()))?;
        names::each_once(request.columns.as_deref())?;
        let schema = projected(&table.schema, request.columns.as_deref())?;
        let mut batches = Vec::with_capacity(table.batches.len());
        for batch in &table.batches {
            let wanted = match &request.cursor {
                Some(range) => from_bound(batch, range)?,
                None => batch.clone(),
            };
            if wanted.num_rows() > 0 {
                batches.push(project(&wanted, &schema)?);
            }
        }
        let rows = rows(&batches);
        let failing = Arc::new(Failing(Mutex::new(table.fail_after)));
        let count = request.splits_max.get().min(batches.len());
        let total = batches.len();
        let splits = (0..count).map(|part| {
            let range = part * total / count..(part + 1) * total / count;
            Box::new(MemorySplit {
                part,
                batches: batches[range].to_vec(),
                failing: failing.clone(),
                again: table.again,
                progress: request.progress.clone(),
                tally: Arc::default(),
            }) as Box<dyn Split>
        });
        Ok(ReadPlan {
            splits: splits.collect(),
            schema,
            snapshot: Some("memory".to_owned()),
            rows_estimated: Some(rows),
            cursor_ceiling: table.cursor_ceiling.clone(),
            cursor_floor: None,
            key_is_unique: !table.key.is_empty()
                && table.key.iter().all(|column| request.key.contains(column)),
            objects: BTreeMap::new(),
            doubts: table.doubts.clone(),
            warnings: Vec::new(),
        })
    }
}

fn rows(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

fn projected(schema: &TableSchema, columns: Option<&[String]>) -> Result<TableSchema> {
    let Some(columns) = columns else { return Ok(schema.clone()) };
    let field = |name: &String| {
        schema.field(name).cloned().ok_or_else(|| {
            Error::new(ErrorCode::SourceNotFound, format!("there is no column {name}"))
        })
    };
    Ok(TableSchema::new(columns.iter().map(field).collect::<Result<_>>()?))
}

fn project(batch: &RecordBatch, schema: &TableSchema) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = schema
        .fields
        .iter()
        .filter_map(|field| batch.column_by_name(&field.name).cloned())
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.to_arrow(), columns, &options).map_err(internal)
}

fn from_bound(batch: &RecordBatch, range: &CursorRange) -> Result<RecordBatch> {
    let Some(lower) = &range.lower else { return Ok(batch.clone()) };
    let column = batch.column_by_name(&range.column).ok_or_else(|| {
        Error::new(ErrorCode::SourceNotFound, format!("there is no column {}", range.column))
    })?;
    let bound: ArrayRef = match (lower, column.data_type()) {
        // A bound that a 32-bit column had fits it.
        (CursorValue::Int(value), DataType::Int32) => {
            Arc::new(Int32Array::from(vec![*value as i32]))
        }
        (CursorValue::Int(value), _) => Arc::new(Int64Array::from(vec![*value])),
        (CursorValue::Date(days), _) => Arc::new(Date32Array::from(vec![*days])),
        (CursorValue::Timestamp(micros) | CursorValue::Timestamptz(micros), data_type) => Arc::new(
            TimestampMicrosecondArray::from(vec![*micros]).with_data_type(data_type.clone()),
        ),
        (CursorValue::Text(text), _) => Arc::new(StringArray::from(vec![text.as_str()])),
    };
    let keep: BooleanArray = gt_eq(column, &Scalar::new(bound)).map_err(internal)?;
    // Nulls are false to the filter: rows without a cursor are read only without a bound.
    filter_record_batch(batch, &keep).map_err(internal)
}

/// Batches that may still be delivered before a failure, over all splits of a plan.
#[derive(Debug)]
struct Failing(Mutex<Option<usize>>);

impl Failing {
    fn next(&self) -> Result<()> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match left.as_mut() {
            Some(0) => Err(Error::new(ErrorCode::SourceUnavailable, "the source went away")),
            Some(batches) => {
                *batches -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

struct MemorySplit {
    part: usize,
    batches: Vec<RecordBatch>,
    failing: Arc<Failing>,
    again: bool,
    progress: Arc<RunProgress>,
    tally: Arc<Tally>,
}

impl Split for MemorySplit {
    fn describe(&self) -> String {
        format!("part {}", self.part)
    }

    fn again(&self) -> Option<Box<dyn Split>> {
        let Self { part, batches, progress, tally, .. } = self;
        self.again.then(|| {
            Box::new(Self {
                part: *part,
                batches: batches.clone(),
                failing: Arc::new(Failing(Mutex::new(None))),
                again: true,
                progress: progress.clone(),
                tally: tally.clone(),
            }) as _
        })
    }

    fn read(self: Box<Self>) -> BatchStream {
        let Self { batches, failing, progress, tally, .. } = *self;
        tally.take_back(&progress);
        Box::pin(stream::try_unfold(batches.into_iter(), move |mut batches| {
            let (failing, progress) = (failing.clone(), progress.clone());
            let tally = tally.clone();
            async move {
                let Some(records) = batches.next() else { return Ok(None) };
                failing.next()?;
                let bytes = records.get_array_memory_size() as u64;
                tally.add_read(&progress, records.num_rows() as u64, bytes);
                Ok(Some((Batch { records }, batches)))
            }
        }))
    }
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, "rows in memory do not fit their schema").caused_by(error)
}
