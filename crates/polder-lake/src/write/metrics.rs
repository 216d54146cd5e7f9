//! What a manifest says of a data file: counts and bounds per column, from the Parquet footer.
//!
//! The crate's own collection skips row groups whose statistics are marked inexact, so that a file's
//! bounds come from its other row groups and filters lose rows in every engine. Here an inexact
//! statistic is what it is, a bound; and a row group whose values have none leaves the file without.
//! Columns inside lists get sizes only: no reader can use more.

use std::cmp::Ordering;
use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, SchemaRef};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PrimitiveType, Schema,
    Struct,
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use polder_core::{Error, ErrorCode, Result};

use super::bounds::{binary_above, binary_below, string_above, string_below};
use super::extremes::Extremes;
use super::layout::Layout;

/// A complete Parquet file.
pub(super) struct Finished {
    pub(super) location: String,
    pub(super) size_bytes: u64,
    pub(super) metadata: ParquetMetaData,
    pub(super) nans: NanCounts,
    /// Of the rows as they were handed over, by the field ids of columns that hold single values.
    pub(super) nulls: HashMap<i32, u64>,
    /// Of the same rows.
    pub(super) extremes: Extremes,
    pub(super) partition: Struct,
    /// The order of its rows, by its id.
    pub(super) order: Option<i32>,
}

/// The manifest's entry of a file.
pub(super) fn data_file(layout: &Layout, file: Finished) -> Result<DataFile> {
    let columns = columns(&file.metadata);
    let groups = file.metadata.row_groups().iter();
    let split_offsets = groups.filter_map(|group| group.columns().first());
    let split_offsets = split_offsets.map(|column| column.byte_range().0 as i64).collect();
    check_nulls(&null_counts(&file.metadata), &file.nulls)?;
    file.extremes.check(&columns)?;
    let flat = |of: fn(&Column) -> u64| -> HashMap<i32, u64> {
        let flat = columns.iter().filter(|(_, column)| !column.repeated);
        flat.map(|(id, column)| (*id, of(column))).collect()
    };
    let floats = layout.floats.iter().map(|float| float.field_id);
    let (lower, upper) = bounds_of(&columns, &layout.iceberg);
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(file.location)
        .file_format(DataFileFormat::Parquet)
        .partition(file.partition)
        .partition_spec_id(layout.spec_id)
        .record_count(file.metadata.file_metadata().num_rows() as u64)
        .file_size_in_bytes(file.size_bytes)
        .column_sizes(columns.iter().map(|(id, column)| (*id, column.bytes)).collect())
        .value_counts(flat(|column| column.values))
        .null_value_counts(flat(|column| column.nulls))
        .nan_value_counts(floats.map(|id| (id, file.nans.of(id))).collect())
        .lower_bounds(lower)
        .upper_bounds(upper)
        .split_offsets(Some(split_offsets));
    if let Some(order) = file.order {
        builder.sort_order_id(order);
    }
    builder.build().map_err(|cause| {
        Error::new(ErrorCode::Internal, "cannot describe a data file").caused_by(cause)
    })
}

/// Lower and upper bounds by field id.
pub(crate) type Bounds = (HashMap<i32, Datum>, HashMap<i32, Datum>);

/// The bounds of columns that are in no list, as a file's footer has them.
pub(crate) fn bounds(metadata: &ParquetMetaData, schema: &Schema) -> Bounds {
    bounds_of(&columns(metadata), schema)
}

fn bounds_of(columns: &HashMap<i32, Column>, schema: &Schema) -> Bounds {
    let (mut lower, mut upper) = (HashMap::new(), HashMap::new());
    for (id, column) in columns.iter().filter(|(_, column)| !column.repeated) {
        let field = schema.field_by_id(*id);
        let Some(data_type) = field.and_then(|field| field.field_type.as_primitive_type()) else {
            continue;
        };
        lower.extend(column.lower(data_type).map(|datum| (*id, datum)));
        upper.extend(column.upper(data_type).map(|datum| (*id, datum)));
    }
    (lower, upper)
}

/// The leaf columns of a file, by field id.
pub(super) fn columns(metadata: &ParquetMetaData) -> HashMap<i32, Column> {
    let mut columns: HashMap<i32, Column> = HashMap::new();
    for chunk in metadata.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let info = chunk.column_descr().self_type().get_basic_info();
        if info.has_id() {
            columns.entry(info.id()).or_default().add(chunk);
        }
    }
    columns
}

/// The nulls of each column that is in no list, by field id, as a file's footer counts them.
pub(crate) fn null_counts(metadata: &ParquetMetaData) -> HashMap<i32, u64> {
    let columns = columns(metadata).into_iter().filter(|(_, column)| !column.repeated);
    columns.map(|(id, column)| (id, column.nulls)).collect()
}

/// Counts the nulls of columns that hold single values.
pub(super) fn add_nulls(counts: &mut HashMap<i32, u64>, batch: &RecordBatch, schema: &SchemaRef) {
    for (array, field) in batch.columns().iter().zip(schema.fields()) {
        let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY).and_then(|id| id.parse().ok());
        if let Some(id) = id.filter(|_| !field.data_type().is_nested()) {
            *counts.entry(id).or_default() += array.null_count() as u64;
        }
    }
}

/// The file has the nulls of the rows it was made of.
fn check_nulls(found: &HashMap<i32, u64>, handed: &HashMap<i32, u64>) -> Result<()> {
    for (id, nulls) in handed {
        if found.get(id).is_some_and(|found| found != nulls) {
            let message = "a data file has other nulls than the rows it was made of";
            return Err(Error::new(ErrorCode::LakeAuditFailed, message)
                .detail(format!("field {id}: {} nulls, {nulls} handed over", found[id]))
                .hint("nothing was published; please report this"));
        }
    }
    Ok(())
}

/// One leaf column over all row groups.
#[derive(Default)]
pub(super) struct Column {
    pub(super) bytes: u64,
    pub(super) values: u64,
    pub(super) nulls: u64,
    pub(super) repeated: bool,
    pub(super) min: Bound,
    pub(super) max: Bound,
}

#[derive(Default, Clone, PartialEq)]
pub(super) enum Bound {
    /// No value yet.
    #[default]
    None,
    Value(Value),
    /// There are values whose bound is not known.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(super) enum Value {
    Boolean(bool),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    /// A decimal stored as bytes.
    Unscaled(i128),
    Bytes(Vec<u8>),
}

impl Column {
    fn add(&mut self, chunk: &ColumnChunkMetaData) {
        self.repeated = chunk.column_descr().max_rep_level() > 0;
        self.bytes += chunk.compressed_size() as u64;
        self.values += chunk.num_values() as u64;
        let statistics = chunk.statistics();
        let nulls = statistics.and_then(Statistics::null_count_opt).unwrap_or(0);
        self.nulls += nulls;
        if nulls == chunk.num_values() as u64 {
            return;
        }
        let (min, max) = statistics.map_or((None, None), |found| values(found, chunk));
        // The writer leaves NaN out of its statistics: without any, all values of a float are NaN.
        let float = matches!(statistics, Some(Statistics::Float(_) | Statistics::Double(_)));
        self.min.merge(min, Ordering::Less, float);
        self.max.merge(max, Ordering::Greater, float);
    }

    fn lower(&self, data_type: &PrimitiveType) -> Option<Datum> {
        let Bound::Value(value) = &self.min else { return None };
        let bytes = match (value, data_type) {
            (Value::Bytes(bytes), PrimitiveType::String) => {
                string_below(std::str::from_utf8(bytes).ok()?).into_bytes()
            }
            (Value::Bytes(bytes), PrimitiveType::Binary) => binary_below(bytes),
            (other, _) => other.to_bytes(data_type),
        };
        Datum::try_from_bytes(&bytes, data_type.clone()).ok()
    }

    fn upper(&self, data_type: &PrimitiveType) -> Option<Datum> {
        let Bound::Value(value) = &self.max else { return None };
        let bytes = match (value, data_type) {
            (Value::Bytes(bytes), PrimitiveType::String) => {
                string_above(std::str::from_utf8(bytes).ok()?)?.into_bytes()
            }
            (Value::Bytes(bytes), PrimitiveType::Binary) => binary_above(bytes)?,
            (other, _) => other.to_bytes(data_type),
        };
        Datum::try_from_bytes(&bytes, data_type.clone()).ok()
    }
}

impl Bound {
    fn merge(&mut self, found: Option<Value>, better: Ordering, may_lack: bool) {
        *self = match (std::mem::take(self), found) {
            (Self::Unknown, _) => Self::Unknown,
            (known, None) if may_lack => known,
            (_, None) => Self::Unknown,
            (Self::None, Some(value)) => Self::Value(value),
            (Self::Value(known), Some(value)) => match value.partial_cmp(&known) {
                Some(order) if order == better => Self::Value(value),
                Some(_) => Self::Value(known),
                None => Self::Unknown,
            },
        };
    }
}

/// The least and greatest value of a chunk, or bounds of them.
fn values(found: &Statistics, chunk: &ColumnChunkMetaData) -> (Option<Value>, Option<Value>) {
    macro_rules! both {
        ($statistics:expr, $value:expr) => {
            ($statistics.min_opt().map($value), $statistics.max_opt().map($value))
        };
    }
    let decimal = chunk.column_descr().type_precision() > 0;
    let bytes = |data: &[u8]| {
        if decimal { unscaled(data).map(Value::Unscaled) } else { Some(Value::Bytes(data.into())) }
    };
    match found {
        Statistics::Boolean(found) => both!(found, |value| Value::Boolean(*value)),
        Statistics::Int32(found) => both!(found, |value| Value::Int(*value)),
        Statistics::Int64(found) => both!(found, |value| Value::Long(*value)),
        Statistics::Float(found) => both!(found, |value| Value::Float(*value)),
        Statistics::Double(found) => both!(found, |value| Value::Double(*value)),
        Statistics::Int96(_) => (None, None),
        Statistics::ByteArray(_) | Statistics::FixedLenByteArray(_) => {
            (found.min_bytes_opt().and_then(bytes), found.max_bytes_opt().and_then(bytes))
        }
    }
}

/// A big-endian two's complement of at most 16 bytes.
fn unscaled(bytes: &[u8]) -> Option<i128> {
    let negative = bytes.first()? & 0x80 != 0;
    let mut wide = if negative { [0xFF; 16] } else { [0; 16] };
    let start = wide.len().checked_sub(bytes.len())?;
    wide[start..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(wide))
}

impl Value {
    /// Iceberg's single-value serialisation.
    fn to_bytes(&self, data_type: &PrimitiveType) -> Vec<u8> {
        let decimal = matches!(data_type, PrimitiveType::Decimal { .. });
        match self {
            Self::Boolean(value) => vec![u8::from(*value)],
            Self::Int(value) if decimal => i128::from(*value).to_be_bytes().to_vec(),
            Self::Long(value) if decimal => i128::from(*value).to_be_bytes().to_vec(),
            Self::Int(value) => value.to_le_bytes().to_vec(),
            Self::Long(value) => value.to_le_bytes().to_vec(),
            Self::Float(value) => value.to_le_bytes().to_vec(),
            Self::Double(value) => value.to_le_bytes().to_vec(),
            Self::Unscaled(value) => value.to_be_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// A float column that is not inside a list, as the path to it.
#[derive(Debug)]
pub(super) struct FloatColumn {
    pub(super) field_id: i32,
    path: Vec<usize>,
}

pub(super) fn float_columns(schema: &SchemaRef) -> Vec<FloatColumn> {
    let mut found = Vec::new();
    for (index, field) in schema.fields().iter().enumerate() {
        find_floats(field, vec![index], &mut found);
    }
    found
}

fn find_floats(field: &Field, path: Vec<usize>, found: &mut Vec<FloatColumn>) {
    match field.data_type() {
        DataType::Float32 | DataType::Float64 => {
            let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY);
            if let Some(field_id) = id.and_then(|id| id.parse().ok()) {
                found.push(FloatColumn { field_id, path });
            }
        }
        DataType::Struct(members) => {
            for (index, member) in members.iter().enumerate() {
                find_floats(member, [&path[..], &[index]].concat(), found);
            }
        }
        _ => {}
    }
}

/// NaNs per float column, by field id.
#[derive(Debug, Default)]
pub(super) struct NanCounts {
    counts: HashMap<i32, u64>,
}

impl NanCounts {
    pub(super) fn add(&mut self, columns: &[FloatColumn], batch: &RecordBatch) {
        for column in columns {
            let Some((first, rest)) = column.path.split_first() else { continue };
            let mut array = batch.column(*first);
            let mut valid = array.nulls().cloned();
            for index in rest {
                array = array.as_struct().column(*index);
                // Below a null struct there is no value, whatever the child holds there.
                valid = NullBuffer::union(valid.as_ref(), array.nulls());
            }
            *self.counts.entry(column.field_id).or_default() += nans(array, valid.as_ref());
        }
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        self.counts.values().any(|count| *count > 0)
    }

    fn of(&self, field_id: i32) -> u64 {
        self.counts.get(&field_id).copied().unwrap_or(0)
    }
}

fn nans(array: &dyn Array, valid: Option<&NullBuffer>) -> u64 {
    let is_valid = |row: usize| valid.is_none_or(|valid| valid.is_valid(row));
    let count = match array.data_type() {
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            values.iter().enumerate().filter(|(row, v)| v.is_nan() && is_valid(*row)).count()
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            values.iter().enumerate().filter(|(row, v)| v.is_nan() && is_valid(*row)).count()
        }
        _ => 0,
    };
    count as u64
}
