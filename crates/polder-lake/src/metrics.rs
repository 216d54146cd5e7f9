//! What the manifests of a state say of its data files: counts and bounds of columns, places in the
//! partitions. The files themselves are not read, nor is what deletes take from them counted.

use std::collections::{BTreeMap, HashMap, HashSet};

use iceberg::spec::{
    DataFile, Datum, Literal as IcebergLiteral, ManifestContentType, NestedField, PartitionField,
    PrimitiveLiteral, Schema, Struct, Transform,
};
use polder_core::{LakeType, Literal, Result};
use uuid::Uuid;

use crate::commit::read_list;
use crate::error;
use crate::schema;
use crate::table::LakeTable;

/// The data files of a state, and what their numbers and values belong to.
#[derive(Clone, Debug)]
pub struct StateMetrics {
    /// The fields of all partition specs the table has had, of columns that are there still.
    pub partition: Vec<MetricField>,
    /// The top-level columns of scalar types that are not themselves what new files are partitioned by.
    pub columns: Vec<MetricField>,
    /// Where files lie: the partition's values by the ids of `partition`, without nulls.
    pub places: Vec<BTreeMap<i32, Literal>>,
    /// In the order of their addresses.
    pub files: Vec<FileMetrics>,
}

/// A column or a field of the partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricField {
    pub id: i32,
    pub name: String,
    pub data_type: LakeType,
}

/// What a manifest says of a data file. Maps are by the ids of columns, nested ones too, and empty where the
/// writer said nothing.
#[derive(Clone, Debug)]
pub struct FileMetrics {
    /// The file's full address.
    pub path: String,
    pub size_bytes: u64,
    /// Rows in the file, before deletes.
    pub rows: u64,
    pub column_bytes: BTreeMap<i32, u64>,
    /// Values, with those that are null or NaN.
    pub value_counts: BTreeMap<i32, u64>,
    pub null_counts: BTreeMap<i32, u64>,
    pub nan_counts: BTreeMap<i32, u64>,
    /// At most the least, and at least the greatest value; of the columns that the state has still, in
    /// their present types.
    pub lower_bounds: BTreeMap<i32, Literal>,
    pub upper_bounds: BTreeMap<i32, Literal>,
    /// Among [`StateMetrics::places`].
    pub place: usize,
}

impl LakeTable {
    /// What the manifests of a state say of its data files; `None` for the table as it is now.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown snapshot; `lake.corrupt` for metadata that names a file outside
    /// the org's storage; `lake.*` when a manifest cannot be read.
    pub async fn metrics(&self, snapshot: Option<i64>) -> Result<StateMetrics> {
        let failed = |cause| error::iceberg("read a manifest", cause);
        let schema = self.iceberg_schema(snapshot)?;
        let metadata = self.metadata();
        let partition = self.partition_columns(&schema)?;
        let columns = self.plain_columns(&schema)?;
        let mut found = StateMetrics { partition, columns, places: Vec::new(), files: Vec::new() };
        let id = snapshot.or(metadata.current_snapshot_id());
        let Some(state) = id.and_then(|id| metadata.snapshot_by_id(id)) else { return Ok(found) };
        let store = self.store();
        let file_io = store.file_io();
        let mut numbers: HashMap<(Vec<i32>, Struct), usize> = HashMap::new();
        for manifest in read_list(store, state).await? {
            if manifest.content != ManifestContentType::Data {
                continue;
            }
            let loaded = manifest.load_manifest(&file_io).await.map_err(failed)?;
            let spec = metadata.partition_spec_by_id(manifest.partition_spec_id);
            let fields = spec.map(|spec| spec.fields()).unwrap_or_default();
            for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                let file = entry.data_file();
                store.path(file.file_path())?;
                let place = numbered(file.partition(), fields, &schema, &mut numbers, &mut found);
                found.files.push(file_metrics(file, &schema, place));
            }
        }
        found.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn partition_columns(&self, schema: &Schema) -> Result<Vec<MetricField>> {
        let mut specs: Vec<_> = self.metadata().partition_specs_iter().collect();
        specs.sort_by_key(|spec| spec.spec_id());
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for field in specs.into_iter().flat_map(|spec| spec.fields()) {
            let Some(source) = schema.field_by_id(field.source_id) else { continue };
            if !seen.insert(field.field_id) {
                continue;
            }
            let result = field.transform.result_type(&source.field_type);
            let result = result.map_err(|cause| error::iceberg("read a partition spec", cause))?;
            let data_type = schema::lake_type(&result)?;
            found.push(MetricField { id: field.field_id, name: field.name.clone(), data_type });
        }
        Ok(found)
    }

    fn plain_columns(&self, schema: &Schema) -> Result<Vec<MetricField>> {
        let spec = self.metadata().default_partition_spec();
        let identity = spec.fields().iter().filter(|field| field.transform == Transform::Identity);
        let places: HashSet<i32> = identity.map(|field| field.source_id).collect();
        let fields = schema.as_struct().fields().iter();
        let plain = fields
            .filter(|field| field.field_type.is_primitive() && !places.contains(&field.id))
            .map(|field| {
                let data_type = schema::lake_type(&field.field_type)?;
                Ok(MetricField { id: field.id, name: field.name.clone(), data_type })
            });
        plain.collect()
    }
}

/// The number of a place, which specs of the same fields share.
fn numbered(
    values: &Struct,
    fields: &[PartitionField],
    schema: &Schema,
    numbers: &mut HashMap<(Vec<i32>, Struct), usize>,
    found: &mut StateMetrics,
) -> usize {
    let ids: Vec<i32> = fields.iter().map(|field| field.field_id).collect();
    *numbers.entry((ids, values.clone())).or_insert_with(|| {
        let mut known = BTreeMap::new();
        for (field, literal) in fields.iter().zip(values.iter()) {
            let source = schema.field_by_id(field.source_id);
            let data_type = source.and_then(|source| result(field.transform, source));
            let Some(IcebergLiteral::Primitive(literal)) = literal else { continue };
            if let Some(value) = data_type.and_then(|data_type| value(literal, &data_type)) {
                known.insert(field.field_id, value);
            }
        }
        found.places.push(known);
        found.places.len() - 1
    })
}

/// The type of a partition field over this column.
fn result(transform: Transform, source: &NestedField) -> Option<LakeType> {
    let result = transform.result_type(&source.field_type).ok()?;
    schema::lake_type(&result).ok()
}

fn file_metrics(file: &DataFile, schema: &Schema, place: usize) -> FileMetrics {
    let counts = |of: &HashMap<i32, u64>| of.iter().map(|(id, count)| (*id, *count)).collect();
    let bounds = |of: &HashMap<i32, Datum>| {
        let bound = |(id, bound): (&i32, &Datum)| {
            let data_type = schema::lake_type(&schema.field_by_id(*id)?.field_type).ok()?;
            Some((*id, value(bound.literal(), &data_type)?))
        };
        of.iter().filter_map(bound).collect()
    };
    FileMetrics {
        path: file.file_path().to_owned(),
        size_bytes: file.file_size_in_bytes(),
        rows: file.record_count(),
        column_bytes: counts(file.column_sizes()),
        value_counts: counts(file.value_counts()),
        null_counts: counts(file.null_value_counts()),
        nan_counts: counts(file.nan_value_counts()),
        lower_bounds: bounds(file.lower_bounds()),
        upper_bounds: bounds(file.upper_bounds()),
        place,
    }
}

/// A value as one of the column's present type, which the column may have been widened to since.
fn value(literal: &PrimitiveLiteral, data_type: &LakeType) -> Option<Literal> {
    use PrimitiveLiteral as P;
    Some(match (literal, data_type) {
        (P::Boolean(value), LakeType::Boolean) => Literal::Boolean(*value),
        (P::Int(value), LakeType::Int) => Literal::Int(*value),
        (P::Int(value), LakeType::Long) => Literal::Long(i64::from(*value)),
        (P::Long(value), LakeType::Long) => Literal::Long(*value),
        (P::Float(value), LakeType::Float) => Literal::Float(value.0),
        (P::Float(value), LakeType::Double) => Literal::Double(f64::from(value.0)),
        (P::Double(value), LakeType::Double) => Literal::Double(value.0),
        (P::Int128(value), LakeType::Decimal { precision, scale }) => {
            Literal::Decimal { unscaled: *value, precision: *precision, scale: *scale }
        }
        (P::Int(value), LakeType::Date) => Literal::Date(*value),
        (P::Long(value), LakeType::Time) => Literal::Time(*value),
        (P::Long(value), LakeType::Timestamp) => Literal::Timestamp(*value),
        (P::Long(value), LakeType::Timestamptz) => Literal::Timestamptz(*value),
        (P::String(value), LakeType::String) => Literal::String(value.clone()),
        (P::UInt128(value), LakeType::Uuid) => Literal::Uuid(Uuid::from_u128(*value)),
        (P::Binary(value), LakeType::Binary) => Literal::Binary(value.clone()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_take_the_columns_present_type_or_are_left_out() {
        let decimal = LakeType::Decimal { precision: 12, scale: 2 };
        let cases = [
            (PrimitiveLiteral::Int(7), LakeType::Int, Some(Literal::Int(7))),
            (PrimitiveLiteral::Int(7), LakeType::Long, Some(Literal::Long(7))),
            (PrimitiveLiteral::Int(7), LakeType::Date, Some(Literal::Date(7))),
            (PrimitiveLiteral::Long(7), LakeType::Int, None),
            (PrimitiveLiteral::Long(7), LakeType::Timestamp, Some(Literal::Timestamp(7))),
            (
                PrimitiveLiteral::Int128(7),
                decimal,
                Some(Literal::Decimal { unscaled: 7, precision: 12, scale: 2 }),
            ),
            (PrimitiveLiteral::String("a".to_owned()), LakeType::Uuid, None),
            (PrimitiveLiteral::UInt128(7), LakeType::Uuid, Some(Literal::Uuid(Uuid::from_u128(7)))),
        ];
        for (literal, data_type, expected) in cases {
            assert_eq!(value(&literal, &data_type), expected, "{literal:?} as {data_type}");
        }
    }
}
