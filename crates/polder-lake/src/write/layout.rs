//! What all files of one stage have in common: schemas, Parquet settings, partitioning, names.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use iceberg::spec::SchemaRef as IcebergSchemaRef;
use parquet::arrow::ArrowSchemaConverter;
use parquet::basic::{Compression, LogicalType, Type as PhysicalType, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::{SchemaDescriptor, Type as ParquetType, TypePtr};
use polder_core::{Error, ErrorCode, Result};
use uuid::Uuid;

use super::file::COLUMNS_MANY;
use super::metrics::{FloatColumn, float_columns};
use super::partition::Partitioner;
use crate::error;
use crate::schema;
use crate::stage::{StageRequest, Target};
use crate::storage::Store;

/// 1 is the fastest; 3 saves some 5 % of the size for half as much CPU again.
const ZSTD_LEVEL: i32 = 1;
/// Bytes of statistics kept per value in the Parquet footer, so that a row with a huge text does not
/// make a huge footer. Cut values are still bounds, marked as inexact, and [`super::metrics`] knows.
pub(super) const STATISTICS_BYTES: usize = 64;

#[derive(Debug)]
pub(crate) struct Layout {
    pub(super) store: Store,
    /// With field ids at every level.
    pub(super) arrow: SchemaRef,
    pub(super) iceberg: IcebergSchemaRef,
    pub(super) parquet: SchemaDescriptor,
    pub(super) properties: WriterProperties,
    pub(super) partitioner: Option<Partitioner>,
    pub(super) spec_id: i32,
    pub(super) floats: Vec<FloatColumn>,
    pub(super) target_file_bytes: u64,
    /// Data files' addresses begin with this; it is unique to the stage.
    prefix: String,
}

impl Layout {
    pub(crate) fn new(request: &StageRequest, target: &Target, store: Store) -> Result<Self> {
        let arrow = schema::arrow_schema(&request.schema, &target.schema);
        let parquet = parquet_schema(&arrow)?;
        let partitioner = Partitioner::new(&target.spec, &target.schema)?;
        let zstd = ZstdLevel::try_new(ZSTD_LEVEL)
            .map_err(|cause| error::parquet("set the compression", cause))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(zstd))
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_statistics_truncate_length(Some(STATISTICS_BYTES))
            .set_created_by(concat!("polder ", env!("CARGO_PKG_VERSION")).to_owned());
        let properties = with_small_writers(properties, &parquet).build();
        let stage = Uuid::new_v4();
        Ok(Self {
            store,
            floats: float_columns(&arrow),
            arrow,
            iceberg: Arc::clone(&target.schema),
            parquet,
            properties,
            partitioner,
            spec_id: target.spec.spec_id(),
            target_file_bytes: request.target_file_bytes,
            prefix: format!("{}/data/{}-{stage}", target.location, request.run_id),
        })
    }

    /// A new data file's address. No name or value of anybody is part of it.
    pub(super) fn location(&self, writer: usize, file: usize) -> String {
        format!("{}-{writer:03}-{file:05}.parquet", self.prefix)
    }

    /// Batches are checked by their schema: Arrow has checked their columns against it, nulls in
    /// required columns included.
    pub(super) fn check(&self, batch: &RecordBatch) -> Result<()> {
        let given = batch.schema_ref();
        let same_count = given.fields().len() == self.arrow.fields().len();
        let mut pairs = given.fields().iter().zip(self.arrow.fields());
        let differs = pairs.find(|(given, own)| {
            given.name() != own.name()
                || (given.is_nullable() && !own.is_nullable())
                || !same_layout(given.data_type(), own.data_type())
        });
        match differs {
            None if same_count => Ok(()),
            other => {
                let what = other.map_or_else(
                    || "another number of columns".to_owned(),
                    |(given, own)| {
                        let (name, is, wants) = (own.name(), given.data_type(), own.data_type());
                        format!("column {name:?} is {is}, the table has {wants}")
                    },
                );
                Err(Error::new(ErrorCode::Internal, "a batch is not in the table's layout")
                    .detail(what))
            }
        }
    }
}

/// Without dictionaries for all but texts and bytes, where there are many columns. The `parquet` crate (58)
/// makes a table of 4,096 places for each such dictionary, some 70 kB, before its first value: of 10,000
/// columns, 700 MB for each writer. Those of texts begin empty.
fn with_small_writers(
    mut properties: WriterPropertiesBuilder,
    parquet: &SchemaDescriptor,
) -> WriterPropertiesBuilder {
    if parquet.num_columns() < COLUMNS_MANY {
        return properties;
    }
    for column in parquet.columns() {
        if column.physical_type() != PhysicalType::BYTE_ARRAY {
            properties = properties.set_column_dictionary_enabled(column.path().clone(), false);
        }
    }
    properties
}

/// Equal but for metadata.
fn same_layout(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| {
                    a.name() == b.name()
                        && a.is_nullable() == b.is_nullable()
                        && same_layout(a.data_type(), b.data_type())
                })
        }
        (DataType::List(a), DataType::List(b)) => {
            a.is_nullable() == b.is_nullable() && same_layout(a.data_type(), b.data_type())
        }
        (a, b) => a == b,
    }
}

/// The Parquet schema of the Arrow one, with uuids marked as such: Arrow has no type for them, and
/// without the mark other engines show bytes.
fn parquet_schema(arrow: &SchemaRef) -> Result<SchemaDescriptor> {
    let failed = |cause| error::parquet("make the Parquet schema", cause);
    let plain = ArrowSchemaConverter::new().convert(arrow).map_err(failed)?;
    let root = plain.root_schema();
    let fields = root.get_fields().iter().map(with_uuids);
    let fields = fields.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let root = ParquetType::group_type_builder(root.name()).with_fields(fields).build();
    Ok(SchemaDescriptor::new(Arc::new(root.map_err(failed)?)))
}

fn with_uuids(field: &TypePtr) -> parquet::errors::Result<TypePtr> {
    let info = field.get_basic_info();
    let id = info.has_id().then(|| info.id());
    if field.is_group() {
        let fields = field.get_fields().iter().map(with_uuids);
        let group = ParquetType::group_type_builder(field.name())
            .with_repetition(info.repetition())
            .with_converted_type(info.converted_type())
            .with_logical_type(info.logical_type_ref().cloned())
            .with_id(id)
            .with_fields(fields.collect::<Result<Vec<_>, _>>()?);
        return Ok(Arc::new(group.build()?));
    }
    let ParquetType::PrimitiveType { physical_type, type_length: 16, .. } = &**field else {
        return Ok(Arc::clone(field));
    };
    // Wide decimals have 16 bytes too, and a logical type.
    let bytes = *physical_type == PhysicalType::FIXED_LEN_BYTE_ARRAY;
    if !bytes || info.logical_type_ref().is_some() {
        return Ok(Arc::clone(field));
    }
    let uuid = ParquetType::primitive_type_builder(field.name(), *physical_type)
        .with_repetition(info.repetition())
        .with_length(16)
        .with_logical_type(Some(LogicalType::Uuid))
        .with_id(id);
    Ok(Arc::new(uuid.build()?))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};
    use parquet::schema::types::ColumnPath;

    use super::*;

    #[test]
    fn thousands_of_columns_have_dictionaries_for_texts_alone() {
        let dictionaries = |columns: usize| {
            let types = [DataType::Utf8, DataType::Int64, DataType::FixedSizeBinary(16)];
            let field = |n: usize| Field::new(format!("c{n}"), types[n % 3].clone(), true);
            let schema = Schema::new((0..columns).map(field).collect::<Vec<_>>());
            let parquet = parquet_schema(&Arc::new(schema)).expect("schema");
            let properties = with_small_writers(WriterProperties::builder(), &parquet).build();
            [0, 1, 2, columns - 1]
                .map(|n| properties.dictionary_enabled(&ColumnPath::new(vec![format!("c{n}")])))
        };
        assert_eq!(dictionaries(999), [true; 4]);
        assert_eq!(dictionaries(1_600), [true, false, false, true], "the last one is a text");
    }
}
