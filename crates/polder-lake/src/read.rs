//! Reading the rows of planned files, in the layout of the schema asked for.
//!
//! Decoding is the `iceberg` crate's; what is wanted is decided here once more, row by row, so that
//! the answer does not depend on how well files are skipped.
//!
//! The crate reads files of an earlier schema too, unless a list or struct is among the columns that
//! have evolved, or a column of some types is new: it cannot fill these, nor rearrange what is nested.
//! Such files are read in the schema of their own footer, and brought into the table's layout here.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{Schema as ArrowSchema, SchemaRef};
use futures::{StreamExt, TryStreamExt};
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::scan::FileScanTask;
use iceberg::spec::{
    DataContentType, PrimitiveType, Schema, SchemaRef as IcebergSchemaRef, Transform, Type,
};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use polder_core::{Error, ErrorCode, Predicate, Result};

use crate::equality::{self, EqualityDeletes};
use crate::error;
use crate::field_ids::{check_readable, field_id, read_as};
use crate::scan::{BatchStream, Layout, ScanRequest};
use crate::storage::Store;
use crate::table::LakeTable;

/// Files of a table read at the same time.
pub(crate) const FILES_MAX: usize = 2;
const BATCH_BYTES: u64 = 256 << 10;
const BATCH_ROWS_MIN: usize = 64;
const BATCH_ROWS_MAX: usize = 8192;
/// The file's own address as a column (spec, *Reserved Field IDs*).
const FILE_ID: i32 = 2_147_483_646;
/// Bytes at the end of a file that hold most footers.
const FOOTER_BYTES: u64 = 64 << 10;
/// The same of large files, which have many row groups.
const FOOTER_BYTES_MAX: u64 = 512 << 10;

impl LakeTable {
    pub(crate) fn read_tasks(
        &self,
        scan: ScanRequest,
        tasks: Vec<FileScanTask>,
    ) -> Result<BatchStream> {
        let Layout { ids: layout, plain, wanted } = self.layout(&scan)?;
        let schema = self.iceberg_schema(scan.snapshot)?;
        let ids: Option<Vec<i32>> = layout.fields().iter().map(|field| field_id(field)).collect();
        let ids = ids.ok_or_else(|| Error::new(ErrorCode::Internal, "a column without an id"))?;
        let told = tasks.iter().flat_map(equality::columns);
        let batches = if self.evolved(&schema, ids.iter().copied().chain(told)) {
            self.read_evolved(tasks, schema, layout)
        } else {
            self.read_alike(tasks, &schema, &ids, &scan.filter)?
        };
        let finish = Finish { layout: plain, filter: scan.filter, wanted };
        let batches = batches
            .map(move |batch| finish.apply(&batch?))
            .try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        Ok(Box::pin(batches))
    }

    /// Whether a wanted column of those that the crate cannot fill was absent from an earlier schema, or
    /// another.
    fn evolved(&self, schema: &Schema, mut ids: impl Iterator<Item = i32>) -> bool {
        ids.any(|id| {
            let Some(field) = schema.field_by_id(id) else { return false };
            !fills(&field.field_type)
                && self.metadata().schemas_iter().any(|past| {
                    past.field_by_id(field.id)
                        .is_none_or(|past| past.field_type != field.field_type)
                })
        })
    }

    /// Reads files by the crate alone.
    fn read_alike(
        &self,
        tasks: Vec<FileScanTask>,
        iceberg_schema: &IcebergSchemaRef,
        ids: &[i32],
        filter: &Predicate,
    ) -> Result<BatchStream> {
        let by_row_groups = filter
            .columns()
            .into_iter()
            .filter_map(|name| iceberg_schema.as_struct().field_by_name(name))
            .all(|field| skips_row_groups(&field.field_type));
        let tasks = tasks.into_iter().map(|task| {
            // Skipping row groups by the predicate is only right in the schema it was made for, and
            // only possible for some types.
            let same = task.schema.schema_id() == iceberg_schema.schema_id();
            let predicate = task.predicate.filter(|_| same && by_row_groups);
            let schema = Arc::clone(iceberg_schema);
            FileScanTask { schema, project_field_ids: ids.to_vec(), predicate, ..task }
        });
        self.decode(tasks.collect(), false)
    }

    /// Files with rows that are deleted by equality are decoded one by one. `own`: the tasks have the
    /// columns of their own files.
    fn decode(&self, tasks: Vec<FileScanTask>, own: bool) -> Result<BatchStream> {
        let (told, others): (Vec<_>, Vec<_>) = tasks.into_iter().partition(equality::concerns);
        let others = decode(self.iceberg().reader_builder(), others)?;
        if told.is_empty() {
            return Ok(others);
        }
        let deletes = Arc::new(EqualityDeletes::of(self.store(), &told));
        let table = self.clone();
        let living = futures::stream::iter(told).map(move |task| {
            let batches = equality::decode_living(&table, task, own, Arc::clone(&deletes));
            futures::stream::once(std::future::ready(batches)).try_flatten().boxed()
        });
        Ok(Box::pin(futures::stream::select(others, living.flatten_unordered(FILES_MAX))))
    }

    /// Reads each file in its own schema.
    fn read_evolved(
        &self,
        tasks: Vec<FileScanTask>,
        schema: IcebergSchemaRef,
        layout: SchemaRef,
    ) -> BatchStream {
        let table = self.clone();
        let batches = futures::stream::iter(tasks).map(move |task| {
            let (table, schema, layout) = (table.clone(), Arc::clone(&schema), Arc::clone(&layout));
            let batches = async move {
                let own = own_schema(table.store(), &task).await?;
                table.read_own(task, own, schema, layout)
            };
            futures::stream::once(batches).try_flatten().boxed()
        });
        Box::pin(batches.flatten_unordered(FILES_MAX))
    }

    fn read_own(
        &self,
        task: FileScanTask,
        own: Option<Schema>,
        schema: IcebergSchemaRef,
        layout: SchemaRef,
    ) -> Result<BatchStream> {
        let ids: Vec<i32> = layout.fields().iter().filter_map(|field| field_id(field)).collect();
        let constant = |id: i32| {
            let spec = task.partition_spec.iter().flat_map(|spec| spec.fields());
            let mut identity = spec.filter(|field| field.transform == Transform::Identity);
            identity.any(|field| field.source_id == id)
        };
        let has = |own: &Schema, id: i32| own.as_struct().field_by_id(id).is_some();
        // A file that other engines wrote may leave out what its partition says; only the crate knows
        // that value.
        let told = equality::columns(&task);
        let own =
            own.filter(|own| !ids.iter().chain(&told).any(|id| !has(own, *id) && constant(*id)));
        let Some(own) = own else {
            let task = FileScanTask { schema, project_field_ids: ids, predicate: None, ..task };
            return self.decode(vec![task], false);
        };
        let mut found: Vec<i32> = ids.into_iter().filter(|id| has(&own, *id)).collect();
        if found.is_empty() {
            // Any column tells how many rows there are.
            found.extend(own.as_struct().fields().first().map(|field| field.id));
        }
        let task = FileScanTask {
            schema: Arc::new(own),
            project_field_ids: found,
            predicate: None,
            ..task
        };
        let batches = self.decode(vec![task], true)?;
        Ok(Box::pin(batches.map(move |batch| adapt(&batch?, &layout))))
    }
}

/// Decodes files, with the columns in the order asked for.
///
/// Where a file has the columns in another order, the crate takes those of equal types for renamed
/// ones, and mixes up their values (`RecordBatchTransformer::compare_schemas`); so it takes a file's only
/// column for one that the file lacks. A column more than any file has makes it go by their ids.
pub(crate) fn decode(
    reader: ArrowReaderBuilder,
    mut tasks: Vec<FileScanTask>,
) -> Result<BatchStream> {
    let failed = |cause| error::iceberg("read the table's rows", cause);
    for task in tasks.iter_mut().filter(|task| !task.project_field_ids.is_empty()) {
        task.project_field_ids.push(FILE_ID);
    }
    let reader = reader.with_batch_size(batch_rows(&tasks));
    // Of small files, the crate's usual hint would read half of each twice.
    let largest = tasks.iter().map(|task| task.file_size_in_bytes).max().unwrap_or(0);
    let footer_bytes = (largest / 16).clamp(FOOTER_BYTES, FOOTER_BYTES_MAX);
    let reader = reader.with_metadata_size_hint(footer_bytes as usize);
    let reader = reader.with_data_file_concurrency_limit(FILES_MAX).build();
    let read = move |tasks: Vec<FileScanTask>| -> Result<BatchStream> {
        let tasks = futures::stream::iter(tasks.into_iter().map(Ok)).boxed();
        let batches = reader.clone().read(tasks).map_err(failed)?.stream();
        Ok(Box::pin(batches.map_err(failed).map_ok(without_file)))
    };
    let smallest = tasks.iter().enumerate().min_by_key(|(_, task)| task.file_size_in_bytes);
    match smallest.map(|(index, _)| index) {
        Some(first) if tasks.len() > 1 && tasks.iter().any(|task| !task.deletes.is_empty()) => {
            let first = tasks.swap_remove(first);
            Ok(with_deletes_first(first, tasks, read))
        }
        _ => read(tasks),
    }
}

/// Reads one file with the position deletes of all files, and the others from its first rows on, when
/// these deletes are there.
///
/// Of two files that are begun together, one waits for the deletes that the other is loading, and the
/// crate may lose the word that they are loaded (`notify_waiters` before `notified`, mended after
/// 0.10.1 by apache/iceberg-rust#2859): the read would never end.
fn with_deletes_first(
    mut first: FileScanTask,
    others: Vec<FileScanTask>,
    read: impl Fn(Vec<FileScanTask>) -> Result<BatchStream> + Send + 'static,
) -> BatchStream {
    let mut known: HashSet<String> =
        first.deletes.iter().map(|deletes| deletes.file_path.clone()).collect();
    for deletes in others.iter().flat_map(|task| &task.deletes) {
        let by_position = deletes.file_type == DataContentType::PositionDeletes;
        if by_position && known.insert(deletes.file_path.clone()) {
            first.deletes.push(deletes.clone());
        }
    }
    let batches = async move {
        let mut first = read(vec![first])?;
        let begun = futures::stream::iter(first.next().await).chain(first);
        Ok::<_, Error>(futures::stream::select(begun, read(others)?))
    };
    Box::pin(futures::stream::once(batches).try_flatten())
}

/// Rows of a batch: some [`BATCH_BYTES`] of the files' own bytes, which are several times as many in
/// memory.
fn batch_rows(tasks: &[FileScanTask]) -> usize {
    let bytes: u64 = tasks.iter().map(|task| task.file_size_in_bytes).sum();
    let rows: u64 = tasks.iter().filter_map(|task| task.record_count).sum();
    let rows = rows.saturating_mul(BATCH_BYTES) / bytes.max(1);
    (rows as usize).clamp(BATCH_ROWS_MIN, BATCH_ROWS_MAX)
}

/// Takes the column of [`FILE_ID`] off again.
fn without_file(mut batch: RecordBatch) -> RecordBatch {
    let added = batch.schema().fields().last().is_some_and(|last| field_id(last) == Some(FILE_ID));
    if added {
        batch.remove_column(batch.num_columns() - 1);
    }
    batch
}

/// The columns of a data file as its footer has them; `None` if they have no field ids.
async fn own_schema(store: &Store, task: &FileScanTask) -> Result<Option<Schema>> {
    let path = &task.data_file_path;
    let failed = |cause: ParquetError| {
        Error::new(ErrorCode::LakeCorrupt, "cannot read a data file's footer")
            .detail(path.clone())
            .caused_by(cause)
    };
    let footer = footer(store, path, task.file_size_in_bytes).await?.map_err(failed)?;
    let columns = parquet_to_arrow_schema(footer.file_metadata().schema_descr(), None);
    let columns: ArrowSchema = columns.map_err(failed)?;
    Ok(iceberg::arrow::arrow_schema_to_schema(&columns).ok())
}

/// The footer of a Parquet file; the inner error says that its bytes are none.
pub(crate) async fn footer(
    store: &Store,
    path: &str,
    size: u64,
) -> Result<std::result::Result<ParquetMetaData, ParquetError>> {
    let mut reader = ParquetMetaDataReader::new();
    let mut bytes = FOOTER_BYTES;
    loop {
        let end = store.read_range(path, size.saturating_sub(bytes)..size).await?;
        match reader.try_parse_sized(&end, size) {
            Ok(()) => return Ok(reader.finish()),
            Err(ParquetError::NeedMoreData(needed)) if needed as u64 > bytes => {
                bytes = needed as u64;
            }
            Err(cause) => return Ok(Err(cause)),
        }
    }
}

/// Brings a batch in a file's own columns into the layout, by field ids.
fn adapt(batch: &RecordBatch, layout: &SchemaRef) -> Result<RecordBatch> {
    let failed = |cause| error::arrow("bring a batch into the table's layout", cause);
    let found = batch.schema();
    let rows = batch.num_rows();
    let column = |wanted: &Arc<arrow::datatypes::Field>| {
        let id = field_id(wanted);
        match found.fields().iter().position(|field| field_id(field) == id) {
            Some(index) => {
                check_readable(found.field(index), wanted)?;
                read_as(batch.column(index), found.field(index), wanted).map_err(failed)
            }
            None if wanted.is_nullable() => Ok(new_null_array(wanted.data_type(), rows)),
            None => {
                let message = format!("a data file lacks the required column {:?}", wanted.name());
                Err(Error::new(ErrorCode::LakeCorrupt, message))
            }
        }
    };
    let columns = layout.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(layout), columns, &options).map_err(failed)
}

/// The types of which the crate's reader makes nulls for a file without the column
/// (`create_primitive_array_repeated`).
fn fills(data_type: &Type) -> bool {
    use PrimitiveType::{Binary, Fixed, Time, Uuid};
    match data_type {
        Type::Primitive(primitive) => !matches!(primitive, Time | Uuid | Fixed(_) | Binary),
        _ => false,
    }
}

/// The types that the crate's reader can compare with a row group's statistics.
fn skips_row_groups(data_type: &Type) -> bool {
    use PrimitiveType::{Boolean, Date, Double, Float, Int, Long, String, Timestamp, Timestamptz};
    matches!(
        data_type,
        Type::Primitive(
            Boolean | Int | Long | Float | Double | Date | Timestamp | Timestamptz | String
        )
    )
}

/// To the rows and columns asked for, without field ids.
pub(crate) struct Finish {
    pub(crate) layout: SchemaRef,
    pub(crate) filter: Predicate,
    pub(crate) wanted: usize,
}

impl Finish {
    pub(crate) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let failed = |cause| error::arrow("bring a batch into the lake's layout", cause);
        let columns = batch.columns().iter().zip(self.layout.fields());
        let columns = columns
            .map(|(column, field)| cast(column, field.data_type()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let layout = Arc::clone(&self.layout);
        let batch = RecordBatch::try_new_with_options(layout, columns, &options).map_err(failed)?;
        let batch = match &self.filter {
            Predicate::True => batch,
            filter => filter_record_batch(&batch, &filter.matches(&batch)?).map_err(failed)?,
        };
        if batch.num_columns() == self.wanted {
            return Ok(batch);
        }
        batch.project(&(0..self.wanted).collect::<Vec<_>>()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;
    use iceberg::scan::FileScanTaskDeleteFile;
    use iceberg::spec::DataFileFormat;

    use super::*;

    fn task(path: &str, deletes: &[(&str, DataContentType)]) -> FileScanTask {
        let deletes = deletes.iter().map(|(path, file_type)| {
            FileScanTaskDeleteFile::builder()
                .with_file_path((*path).to_owned())
                .with_file_size_in_bytes(1)
                .with_file_type(*file_type)
                .with_partition_spec_id(0)
                .build()
        });
        FileScanTask::builder()
            .with_file_size_in_bytes(1)
            .with_start(0)
            .with_length(0)
            .with_record_count(Some(1))
            .with_data_file_path(path.to_owned())
            .with_data_file_format(DataFileFormat::Parquet)
            .with_schema(Arc::new(Schema::builder().build().expect("schema")))
            .with_project_field_ids(Vec::new())
            .with_case_sensitive(true)
            .with_deletes(deletes.collect())
            .build()
    }

    /// The files whose reading began, each with its deletes.
    type Begun = Arc<Mutex<Vec<(String, Vec<String>)>>>;

    fn noting(begun: &Begun) -> impl Fn(Vec<FileScanTask>) -> Result<BatchStream> + Send + 'static {
        let begun = Arc::clone(begun);
        move |tasks| {
            let begun = Arc::clone(&begun);
            let batches = futures::stream::iter(tasks).then(move |task| {
                let deletes = task.deletes.into_iter().map(|deletes| deletes.file_path).collect();
                begun.lock().expect("begun").push((task.data_file_path, deletes));
                tokio::task::yield_now().map(|()| {
                    let rows = RecordBatchOptions::new().with_row_count(Some(1));
                    let none = Arc::new(ArrowSchema::empty());
                    Ok(RecordBatch::try_new_with_options(none, Vec::new(), &rows).expect("batch"))
                })
            });
            Ok(Box::pin(batches))
        }
    }

    #[tokio::test]
    async fn one_file_is_read_with_the_position_deletes_of_all_before_the_others() {
        use DataContentType::{EqualityDeletes, PositionDeletes};
        let begun = Begun::default();
        let others = vec![
            task("b", &[("1", PositionDeletes), ("2", PositionDeletes)]),
            task("c", &[("2", PositionDeletes), ("3", EqualityDeletes)]),
        ];
        let first = task("a", &[("1", PositionDeletes)]);
        let mut batches = with_deletes_first(first, others, noting(&begun));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let a: (String, Vec<String>) = ("a".to_owned(), names(&["1", "2"]));
        assert!(futures::poll!(batches.next()).is_pending());
        assert_eq!(*begun.lock().expect("begun"), std::slice::from_ref(&a), "no other has begun");
        let rows: Vec<RecordBatch> = batches.try_collect().await.expect("rows");
        assert_eq!(rows.len(), 3);
        let (b, c) = (names(&["1", "2"]), names(&["2", "3"]));
        assert_eq!(*begun.lock().expect("begun"), [a, ("b".to_owned(), b), ("c".to_owned(), c)]);
    }
}
