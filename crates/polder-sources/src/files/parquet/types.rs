//! Parquet's types in the lake's words, and how the types of two files meet.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{
    DataType, Field as ArrowField, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampNanosecondType,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::errors::Result as ParquetResult;
use parquet::schema::types::SchemaDescriptor;
use polder_core::schema::LIST_ELEMENT;
use polder_core::spec::OnUnrepresentable;
use polder_core::{Error, ErrorCode, Field, LakeType, ReadRequest, Result};

use super::super::object::{Input, Slice};
use super::broken;

/// A column of a file.
pub(super) struct Column {
    pub(super) field: Field,
    /// All of it is null and its type is not told: any type will do.
    pub(super) untyped: bool,
}

/// The columns of a file that are wanted: all if `wanted` is absent.
pub(super) fn columns(
    metadata: &ArrowReaderMetadata,
    wanted: Option<&[String]>,
    key: &str,
) -> Result<Vec<Column>> {
    let schema = metadata.parquet_schema();
    let mut columns = Vec::new();
    for (root, field) in metadata.schema().fields().iter().enumerate() {
        if is_left_out(wanted, field.name()) {
            continue;
        }
        let first =
            (0..schema.num_columns()).find(|leaf| schema.get_column_root_idx(*leaf) == root);
        let mut leaves = Leaves { schema, next: first.unwrap_or_default() };
        let field = leaves.field(field).map_err(|unsupported| {
            let Unsupported { column, data_type } = unsupported;
            let message = format!("file {key} has column {column} of a type the lake has not");
            Error::new(ErrorCode::SourceUnrepresentable, message)
                .detail(data_type)
                .hint("choose the other columns with `columns:`")
        })?;
        let untyped = *metadata.schema().field(root).data_type() == DataType::Null;
        columns.push(Column { field, untyped });
    }
    Ok(columns)
}

fn is_left_out(wanted: Option<&[String]>, name: &str) -> bool {
    wanted.is_some_and(|wanted| !wanted.iter().any(|column| column == name))
}

struct Unsupported {
    column: String,
    data_type: String,
}

/// Goes over an Arrow schema in the order of the file's leaf columns, to see what Arrow hides.
struct Leaves<'a> {
    schema: &'a SchemaDescriptor,
    next: usize,
}

impl Leaves<'_> {
    fn field(&mut self, field: &ArrowField) -> std::result::Result<Field, Unsupported> {
        Ok(Field::new(field.name(), self.data_type(field)?))
    }

    fn data_type(&mut self, field: &ArrowField) -> std::result::Result<LakeType, Unsupported> {
        Ok(match field.data_type() {
            DataType::List(element)
            | DataType::LargeList(element)
            | DataType::FixedSizeList(element, _) => LakeType::list_of(self.data_type(element)?),
            // The lake has no maps: entries in the file's order.
            DataType::Map(entries, _) => LakeType::list_of(self.data_type(entries)?),
            DataType::Struct(members) => LakeType::Struct(
                members
                    .iter()
                    .map(|member| self.field(member))
                    .collect::<std::result::Result<_, _>>()?,
            ),
            leaf => {
                let column = self.schema.column(self.next);
                self.next += 1;
                let uuid = matches!(column.logical_type_ref(), Some(LogicalType::Uuid));
                scalar(leaf, uuid).ok_or_else(|| Unsupported {
                    column: field.name().clone(),
                    data_type: leaf.to_string(),
                })?
            }
        })
    }
}

fn scalar(data_type: &DataType, uuid: bool) -> Option<LakeType> {
    let decimal = |precision: u8, scale: i8| {
        let scale = u8::try_from(scale).ok()?;
        Some(LakeType::Decimal { precision, scale })
    };
    match data_type {
        DataType::Boolean => Some(LakeType::Boolean),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            Some(LakeType::Int)
        }
        DataType::Int64 | DataType::UInt32 => Some(LakeType::Long),
        DataType::UInt64 => decimal(20, 0),
        DataType::Float16 | DataType::Float32 => Some(LakeType::Float),
        DataType::Float64 => Some(LakeType::Double),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => decimal(*precision, *scale),
        // A `Decimal256` has more digits than a decimal of the lake: their text.
        DataType::Decimal256(..)
        | DataType::Null
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => Some(LakeType::String),
        DataType::FixedSizeBinary(16) if uuid => Some(LakeType::Uuid),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => Some(LakeType::Binary),
        DataType::Date32 => Some(LakeType::Date),
        DataType::Time32(_) | DataType::Time64(_) => Some(LakeType::Time),
        DataType::Timestamp(_, None) => Some(LakeType::Timestamp),
        DataType::Timestamp(_, Some(_)) => Some(LakeType::Timestamptz),
        _ => None,
    }
}

/// The type that holds every value of both exactly.
pub(super) fn merge(a: &LakeType, b: &LakeType) -> Option<LakeType> {
    match (a, b) {
        (a, b) if a.promotes_to(b) => Some(b.clone()),
        (a, b) if b.promotes_to(a) => Some(a.clone()),
        (
            LakeType::Decimal { precision: p1, scale: s1 },
            LakeType::Decimal { precision: p2, scale: s2 },
        ) => {
            let scale = *s1.max(s2);
            let precision = (p1 - s1).max(p2 - s2) + scale;
            (precision <= 38).then_some(LakeType::Decimal { precision, scale })
        }
        (LakeType::List(a), LakeType::List(b)) => {
            let element = merge(&a.data_type, &b.data_type)?;
            Some(LakeType::List(Box::new(Field::new(LIST_ELEMENT, element))))
        }
        (LakeType::Struct(a), LakeType::Struct(b)) => {
            let mut members = a.clone();
            for field in b {
                match members.iter_mut().find(|member| member.name == field.name) {
                    Some(member) => {
                        let data_type = merge(&member.data_type, &field.data_type)?;
                        *member = Field::new(&field.name, data_type);
                    }
                    None => members.push(Field::new(&field.name, field.data_type.clone())),
                }
            }
            Some(LakeType::Struct(members))
        }
        _ => None,
    }
}

/// The metadata with the old 96-bit timestamps read as microseconds: as nanoseconds, years outside
/// 1677 to 2262 would wrap around.
pub(super) fn with_micros(metadata: &ArrowReaderMetadata) -> ParquetResult<ArrowReaderMetadata> {
    let wide = wide_timestamps(metadata);
    if wide.is_empty() {
        return Ok(metadata.clone());
    }
    let fields = metadata.schema().fields().iter().enumerate().map(|(root, field)| {
        // Within lists and structs they are refused, or left out.
        let whole = matches!(field.data_type(), DataType::Timestamp(..));
        if whole && wide.iter().any(|(number, _)| *number == root) {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
            Arc::new(field.as_ref().clone().with_data_type(micros))
        } else {
            field.clone()
        }
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_schema(schema);
    ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)
}

/// The top-level columns of 96-bit timestamps: number of the column and of its leaf.
fn wide_timestamps(metadata: &ArrowReaderMetadata) -> Vec<(usize, usize)> {
    let schema = metadata.parquet_schema();
    (0..schema.num_columns())
        .filter(|leaf| schema.column(*leaf).physical_type() == PhysicalType::INT96)
        .map(|leaf| (schema.get_column_root_idx(leaf), leaf))
        .collect()
}

/// Looks whether 96-bit timestamps have digits below the microsecond, which the lake has not, by
/// reading them in both units.
pub(super) fn exact_wide_timestamps(
    input: &Input,
    slice: &Slice,
    metadata: &ArrowReaderMetadata,
    request: &ReadRequest,
) -> Result<()> {
    let schema = metadata.parquet_schema();
    let name = |root: usize| schema.root_schema().get_fields()[root].name();
    let mut wide = wide_timestamps(metadata);
    wide.retain(|(root, _)| !is_left_out(request.columns.as_deref(), name(*root)));
    let refused = |root: usize, why: &str| {
        let message = format!("file {} column {}: {why}", input.object.key, name(root));
        Error::new(ErrorCode::SourceUnrepresentable, message)
    };
    for (root, leaf) in wide {
        if schema.column(leaf).path().parts().len() > 1 {
            return Err(refused(root, "96-bit timestamps within lists and structs are not read")
                .hint("choose the other columns with `columns:`"));
        }
        if request.on_unrepresentable == OnUnrepresentable::Clamp {
            continue;
        }
        let open = |metadata: ArrowReaderMetadata| {
            ParquetRecordBatchReaderBuilder::new_with_metadata(slice.clone(), metadata)
                .with_projection(ProjectionMask::leaves(schema, [leaf]))
                .build()
        };
        let micros = with_micros(metadata).and_then(open).map_err(|e| broken(input, e))?;
        let nanos = open(metadata.clone()).map_err(|e| broken(input, e))?;
        for (micros, nanos) in micros.zip(nanos) {
            let micros = micros.map_err(|error| broken(input, error))?;
            let nanos = nanos.map_err(|error| broken(input, error))?;
            let micros = micros.column(0).as_primitive_opt::<TimestampMicrosecondType>();
            let nanos = nanos.column(0).as_primitive_opt::<TimestampNanosecondType>();
            let (Some(micros), Some(nanos)) = (micros, nanos) else {
                return Err(refused(root, "it is read as an unexpected type"));
            };
            // The nanoseconds wrap around, and so does the difference: it is exact all the same.
            let below = |(micro, nano): (Option<i64>, Option<i64>)| {
                nano.unwrap_or(0) != micro.unwrap_or(0).wrapping_mul(1000)
            };
            if micros.iter().zip(nanos).any(below) {
                return Err(refused(root, "a timestamp has digits below the microsecond")
                    .hint("set `on_unrepresentable: clamp` to cut them off"));
            }
        }
    }
    Ok(())
}
