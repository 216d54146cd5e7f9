//! Rows that other engines have deleted by equality: of older data files, those that have the values of a
//! delete file's row in its columns, null like null (spec, *Equality Delete Files*).
//!
//! The `iceberg` crate (0.10.1) would make a filter `column != value` of them, by which every row goes that
//! has a null there, and every row of a file that was written before the column; and it may wait forever
//! for such deletes (apache/iceberg-rust#2873). So files come from it with these rows, which are left out
//! here. Which delete files concern a data file, the scan's plan says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::row::{RowConverter, SortField};
use futures::{StreamExt, TryStreamExt};
use iceberg::scan::{FileScanTask, FileScanTaskDeleteFile};
use iceberg::spec::{
    DataContentType, NestedField, NestedFieldRef, Schema, SchemaRef, TableMetadata,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use polder_core::{Error, ErrorCode, Result};
use tokio::sync::OnceCell;

use crate::error;
use crate::field_ids::{EXACT, field_id};
use crate::read::decode;
use crate::scan::BatchStream;
use crate::storage::Store;
use crate::table::LakeTable;

/// The digits of the widest decimal (spec, *Primitive Types*).
const DECIMAL_DIGITS_MAX: u8 = 38;

/// How a file of Parquet begins.
const PARQUET: &[u8] = b"PAR1";
const WAY_OUT: &str = "rewrite the table's files with that engine, or reload it: --full-refresh";

/// Whether rows of the task's file may have been deleted by equality.
pub(crate) fn concerns(task: &FileScanTask) -> bool {
    task.deletes.iter().any(by_equality)
}

fn by_equality(deletes: &FileScanTaskDeleteFile) -> bool {
    deletes.file_type == DataContentType::EqualityDeletes
}

/// The columns by which rows of the task's file may have been deleted, each once.
pub(crate) fn columns(task: &FileScanTask) -> Vec<i32> {
    let mut ids: Vec<i32> = Vec::new();
    for id in task.deletes.iter().filter(|file| by_equality(file)).flat_map(ids_of) {
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    ids
}

fn ids_of(deletes: &FileScanTaskDeleteFile) -> &[i32] {
    deletes.equality_ids.as_deref().unwrap_or_default()
}

/// The equality deletes of several data files. Each delete file is read once, when the first needs it.
#[derive(Debug)]
pub(crate) struct EqualityDeletes {
    store: Store,
    files: HashMap<String, OnceCell<Arc<Deleted>>>,
}

impl EqualityDeletes {
    pub(crate) fn of(store: &Store, tasks: &[FileScanTask]) -> Self {
        let files = tasks.iter().flat_map(|task| &task.deletes).filter(|file| by_equality(file));
        let files = files.map(|file| (file.file_path.clone(), OnceCell::new())).collect();
        Self { store: store.clone(), files }
    }

    async fn read(&self, files: &[FileScanTaskDeleteFile]) -> Result<Vec<Arc<Deleted>>> {
        let mut found = Vec::with_capacity(files.len());
        for file in files {
            let known = self
                .files
                .get(&file.file_path)
                .ok_or_else(|| Error::new(ErrorCode::Internal, "a delete file that no task has"))?;
            let read = async { Deleted::read(&self.store, file).await.map(Arc::new) };
            found.push(Arc::clone(known.get_or_try_init(|| read).await?));
        }
        Ok(found)
    }
}

/// Decodes one file as [`decode`] does, and leaves out the rows that are deleted by equality. `own`: the
/// task has the columns of the file itself.
///
/// # Errors
/// `lake.failed` where rows are deleted by what was never a column of the table; in the stream
/// `lake.corrupt` for a delete file that cannot be read, `lake.failed` for one that is not Parquet.
pub(crate) fn decode_living(
    table: &LakeTable,
    mut task: FileScanTask,
    own: bool,
    reader: Arc<EqualityDeletes>,
) -> Result<BatchStream> {
    let (asked, mut places) = (task.project_field_ids.len(), HashMap::new());
    let mut past = Vec::new();
    for id in columns(&task) {
        let known = task.project_field_ids.iter().position(|asked| *asked == id);
        if let Some(place) = known {
            places.insert(id, place);
            continue;
        }
        if task.schema.as_struct().field_by_id(id).is_none() {
            // It is in no struct either: rows are told by columns of the table alone.
            let message =
                "another engine has deleted rows by a column that the table does not have";
            let column = ever(table.metadata(), id).ok_or_else(|| refused(message, &task))?;
            if own && column.initial_default.is_none() {
                // Of a file that is older than the column, every row has a null there.
                continue;
            }
            past.push(column);
        }
        places.insert(id, task.project_field_ids.len());
        task.project_field_ids.push(id);
    }
    if !past.is_empty() {
        task.schema = with_columns(&task.schema, past)?;
    }
    let all = std::mem::take(&mut task.deletes);
    let (of_values, others): (Vec<_>, Vec<_>) = all.into_iter().partition(by_equality);
    task.deletes = others;
    let batches = decode(table.iceberg().reader_builder(), vec![task])?;
    let living = async move {
        let deleted = reader.read(&of_values).await?;
        let living = Living { deleted, places, asked };
        Ok::<_, Error>(batches.map(move |batch| living.of(&batch?)))
    };
    Ok(Box::pin(futures::stream::once(living).try_flatten()))
}

fn refused(message: &str, task: &FileScanTask) -> Error {
    Error::new(ErrorCode::LakeFailed, message).detail(task.data_file_path.clone()).hint(WAY_OUT)
}

/// A column as the table has it or had it last: one that was dropped still tells which rows are deleted
/// (spec, *Equality Delete Files*).
fn ever(metadata: &TableMetadata, id: i32) -> Option<NestedFieldRef> {
    let of = |schema: &SchemaRef| schema.as_struct().field_by_id(id).cloned();
    of(metadata.current_schema()).or_else(|| {
        let past = metadata.schemas_iter().filter(|schema| of(schema).is_some());
        past.max_by_key(|schema| schema.schema_id()).and_then(of)
    })
}

/// The schema with columns more, which may have the names of others and which files may lack.
fn with_columns(schema: &Schema, columns: Vec<NestedFieldRef>) -> Result<SchemaRef> {
    let columns = columns.into_iter().map(|column| {
        // No source has such a name.
        let name = format!("\0{}", column.id);
        Arc::new(NestedField { name, required: false, ..NestedField::clone(&column) })
    });
    let schema = schema.clone().into_builder().with_fields(columns).build();
    schema.map(Arc::new).map_err(|cause| error::iceberg("read what rows are deleted by", cause))
}

/// What leaves out a file's deleted rows.
struct Living {
    deleted: Vec<Arc<Deleted>>,
    /// Where a batch has the columns that tell rows.
    places: HashMap<i32, usize>,
    /// The columns that were asked for; those after them are for this alone.
    asked: usize,
}

impl Living {
    fn of(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let failed = |cause| error::arrow("leave out deleted rows", cause);
        let mut living = vec![true; batch.num_rows()];
        for deleted in &self.deleted {
            let column = |id: &i32| self.places.get(id).map(|place| batch.column(*place));
            let columns: Vec<Option<&ArrayRef>> = deleted.ids.iter().map(column).collect();
            deleted.leave_out(&columns, &mut living)?;
        }
        let batch = filter_record_batch(batch, &BooleanArray::from(living)).map_err(failed)?;
        let asked: Vec<usize> = (0..self.asked).collect();
        batch.project(&asked).map_err(failed)
    }
}

/// The rows of one delete file.
#[derive(Debug)]
struct Deleted {
    location: String,
    ids: Vec<i32>,
    /// Of the columns, as [`compared`].
    types: Vec<DataType>,
    converter: RowConverter,
    /// In the converter's form, in which equal rows, and no others, have the same bytes.
    rows: HashSet<Vec<u8>>,
}

impl Deleted {
    async fn read(store: &Store, file: &FileScanTaskDeleteFile) -> Result<Self> {
        let location = &*file.file_path;
        let failed = |what: &str| Error::new(ErrorCode::LakeCorrupt, what).detail(location);
        let unreadable = || failed("cannot read a file of equality deletes");
        let bytes = store.read(location).await?;
        if !bytes.starts_with(PARQUET) {
            let message = "another engine has deleted rows by a file that is not Parquet";
            return Err(Error::new(ErrorCode::LakeFailed, message).detail(location).hint(WAY_OUT));
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
            .map_err(|cause| unreadable().caused_by(cause))?;
        let ids = ids_of(file).to_vec();
        if ids.is_empty() {
            return Err(failed("a file of equality deletes names no columns"));
        }
        let columns = reader.schema().fields();
        let place = |id: &i32| columns.iter().position(|column| field_id(column) == Some(*id));
        let places: Option<Vec<usize>> = ids.iter().map(place).collect();
        let places = places.ok_or_else(|| failed("a file of equality deletes lacks a column"))?;
        let types: Vec<DataType> =
            places.iter().map(|place| compared(columns[*place].data_type())).collect();
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect())
            .map_err(|cause| unreadable().caused_by(cause))?;
        let mut deleted =
            Self { location: location.to_owned(), ids, types, converter, rows: HashSet::new() };
        let batches = reader.build().map_err(|cause| unreadable().caused_by(cause))?;
        for batch in batches {
            let batch = batch.map_err(|cause| unreadable().caused_by(cause))?;
            let columns: Vec<Option<&ArrayRef>> =
                places.iter().map(|place| Some(batch.column(*place))).collect();
            let rows = deleted.converted(&columns, batch.num_rows())?;
            for row in &rows {
                let row: &[u8] = row.as_ref();
                deleted.rows.insert(row.to_vec());
            }
        }
        Ok(deleted)
    }

    /// Rows in the form in which they are compared; an absent column is null.
    fn converted(&self, columns: &[Option<&ArrayRef>], rows: usize) -> Result<arrow::row::Rows> {
        let failed = |cause| error::arrow("compare rows with deleted ones", cause);
        let mut alike = Vec::with_capacity(columns.len());
        for (column, wanted) in columns.iter().zip(&self.types) {
            alike.push(match *column {
                None => new_null_array(wanted, rows),
                Some(column) if compared(column.data_type()) == *wanted => {
                    one_nan(cast_with_options(column, wanted, &EXACT).map_err(failed)?)
                }
                Some(column) => {
                    let found = column.data_type();
                    let message = format!(
                        "rows are deleted by values of {wanted}, where a column has {found}"
                    );
                    let error = Error::new(ErrorCode::LakeCorrupt, message);
                    return Err(error.detail(self.location.clone()));
                }
            });
        }
        self.converter.convert_columns(&alike).map_err(failed)
    }

    fn leave_out(&self, columns: &[Option<&ArrayRef>], living: &mut [bool]) -> Result<()> {
        let rows = self.converted(columns, living.len())?;
        for (row, lives) in rows.iter().zip(living) {
            let row: &[u8] = row.as_ref();
            *lives &= !self.rows.contains(row);
        }
        Ok(())
    }
}

/// The type in which values are compared: the widest that a column of the type may have come to have
/// (spec, *Schema Evolution*), in one layout.
fn compared(found: &DataType) -> DataType {
    match found {
        DataType::Int32 => DataType::Int64,
        DataType::Float32 => DataType::Float64,
        DataType::Decimal128(_, scale) => DataType::Decimal128(DECIMAL_DIGITS_MAX, *scale),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        DataType::Dictionary(_, values) => compared(values),
        other => other.clone(),
    }
}

/// With one NaN for all: they are equal to each other, and zeros of two signs are not, as Iceberg's Java
/// library compares them (`Double.compare`).
fn one_nan(column: ArrayRef) -> ArrayRef {
    let Some(floats) = column.as_primitive_opt::<Float64Type>() else { return column };
    let alike = |value: f64| if value.is_nan() { f64::NAN } else { value };
    Arc::new(floats.unary::<_, Float64Type>(alike))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Float64Array, Int32Array, Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
    use tempfile::TempDir;

    use super::*;
    use crate::settings::{CatalogSettings, LakeSettings};

    const NUMBER: i32 = 1;
    const TEXT: i32 = 2;

    fn batch(columns: Vec<(i32, ArrayRef)>) -> RecordBatch {
        let field = |(id, column): &(i32, ArrayRef)| {
            let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
            Field::new("c", column.data_type().clone(), true).with_metadata(id)
        };
        let fields: Vec<Field> = columns
            .iter()
            .enumerate()
            .map(|(place, column)| field(column).with_name(format!("c{place}")))
            .collect();
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("batch")
    }

    fn store(folder: &TempDir) -> Store {
        let store = Store::open(&LakeSettings {
            warehouse: folder.path().to_str().expect("utf-8").to_owned(),
            catalog: CatalogSettings::Sql(String::new().into()),
            s3: None,
        });
        store.expect("store")
    }

    /// A file of these bytes, as a scan's plan has it.
    async fn file_of_deletes(store: &Store, bytes: Vec<u8>, ids: &[i32]) -> FileScanTaskDeleteFile {
        let location = format!("{}/{}.parquet", store.root(), uuid::Uuid::new_v4());
        store.put_new(&location, bytes.into()).await.expect("put");
        FileScanTaskDeleteFile {
            file_path: location,
            file_size_in_bytes: 1,
            file_type: DataContentType::EqualityDeletes,
            partition_spec_id: 0,
            equality_ids: Some(ids.to_vec()),
        }
    }

    /// What a delete file of these rows deletes, in the columns given.
    async fn deleted(folder: &TempDir, rows: &RecordBatch, ids: &[i32]) -> Result<Arc<Deleted>> {
        let store = store(folder);
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).expect("writer");
        writer.write(rows).expect("write");
        let bytes = writer.into_inner().expect("a file");
        let file = file_of_deletes(&store, bytes, ids).await;
        Deleted::read(&store, &file).await.map(Arc::new)
    }

    fn numbers(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    fn narrow(values: &[Option<i32>]) -> ArrayRef {
        Arc::new(Int32Array::from(values.to_vec()))
    }

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    /// The numbers that are left of a data file's, in its first column.
    fn left(deleted: &Arc<Deleted>, places: &[(i32, usize)], rows: &RecordBatch) -> RecordBatch {
        let places = places.iter().copied().collect();
        let living = Living { deleted: vec![Arc::clone(deleted)], places, asked: 1 };
        living.of(rows).expect("living")
    }

    #[tokio::test]
    async fn a_row_goes_whose_values_are_all_those_of_a_deleted_one() {
        let folder = TempDir::new().expect("folder");
        let gone = batch(vec![
            (TEXT, texts(&[Some("a"), None, Some("b")])),
            (NUMBER, narrow(&[Some(1), Some(2), None])),
        ]);
        let deleted = deleted(&folder, &gone, &[NUMBER, TEXT]).await.expect("read");
        let rows = batch(vec![
            (NUMBER, numbers(&[Some(1), Some(1), Some(2), Some(2), None, None, Some(3)])),
            (TEXT, texts(&[Some("a"), Some("b"), None, Some("a"), Some("b"), None, Some("a")])),
        ]);
        let found = left(&deleted, &[(NUMBER, 0), (TEXT, 1)], &rows);
        assert_eq!(found.num_columns(), 1, "the other was there for the deletes");
        assert_eq!(found.column(0), &numbers(&[Some(1), Some(2), None, Some(3)]));
    }

    #[tokio::test]
    async fn a_null_is_no_other_value_and_an_absent_column_is_null() {
        let folder = TempDir::new().expect("folder");
        let rows = batch(vec![(NUMBER, numbers(&[Some(1), None]))]);
        let some = batch(vec![(TEXT, texts(&[Some("a")]))]);
        let some = deleted(&folder, &some, &[TEXT]).await.expect("read");
        assert_eq!(left(&some, &[], &rows).num_rows(), 2, "they have no text");
        let none = batch(vec![(TEXT, texts(&[None]))]);
        let none = deleted(&folder, &none, &[TEXT]).await.expect("read");
        assert_eq!(left(&none, &[], &rows).num_rows(), 0);
        let one = batch(vec![(NUMBER, numbers(&[Some(1)]))]);
        let one = deleted(&folder, &one, &[NUMBER]).await.expect("read");
        assert_eq!(left(&one, &[(NUMBER, 0)], &rows).column(0), &numbers(&[None]));
    }

    #[tokio::test]
    async fn floats_are_equal_as_java_compares_them() {
        let folder = TempDir::new().expect("folder");
        let other_nan = f32::from_bits(f32::NAN.to_bits() ^ (1 << 31) ^ 1);
        assert!(other_nan.is_nan());
        let gone: ArrayRef = Arc::new(Float32Array::from(vec![other_nan, -0.0, 0.5]));
        let deleted =
            deleted(&folder, &batch(vec![(NUMBER, gone)]), &[NUMBER]).await.expect("read");
        let values: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, 0.0, -0.0, 0.5, 1.5]));
        let found = left(&deleted, &[(NUMBER, 0)], &batch(vec![(NUMBER, values)]));
        let found = found.column(0).as_primitive::<Float64Type>();
        let bits: Vec<u64> = found.values().iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [0.0_f64.to_bits(), 1.5_f64.to_bits()]);
    }

    #[tokio::test]
    async fn a_delete_file_that_is_not_parquet_is_refused_by_name() {
        let folder = TempDir::new().expect("folder");
        let store = store(&folder);
        let file = file_of_deletes(&store, b"Obj\x01".to_vec(), &[NUMBER]).await;
        let error = Deleted::read(&store, &file).await.expect_err("Avro");
        assert_eq!(error.code(), ErrorCode::LakeFailed);
        assert!(error.to_string().contains("not Parquet"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--full-refresh")));
    }

    #[tokio::test]
    async fn a_delete_file_that_does_not_fit_is_refused() {
        let folder = TempDir::new().expect("folder");
        let gone = batch(vec![(NUMBER, texts(&[Some("1")]))]);
        for ids in [&[TEXT][..], &[]] {
            let error = deleted(&folder, &gone, ids).await.expect_err("no such column");
            assert_eq!(error.code(), ErrorCode::LakeCorrupt);
        }
        let gone = deleted(&folder, &gone, &[NUMBER]).await.expect("read");
        let rows = batch(vec![(NUMBER, numbers(&[Some(1)]))]);
        let places = HashMap::from([(NUMBER, 0)]);
        let living = Living { deleted: vec![gone], places, asked: 1 };
        assert_eq!(living.of(&rows).expect_err("text").code(), ErrorCode::LakeCorrupt);
    }
}
