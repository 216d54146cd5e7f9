//! [`TableSchema`] ↔ Iceberg schema, and which column keeps which field id.
//!
//! Field ids are what data files are read by, so the one rule that matters is here: a column that
//! continues keeps its id, a new one gets an id that no column of the table ever had.

mod order;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{
    DataType, Field as ArrowField, FieldRef, Fields, Schema as ArrowSchema, SchemaRef,
};
use iceberg::spec::{
    ListType, NestedField, NestedFieldRef, PartitionSpec, PrimitiveType, Schema, StructType,
    TableMetadata, Transform as IcebergTransform, Type, UnboundPartitionSpec,
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use polder_core::spec::{PartitionField, Transform};
use polder_core::{Error, ErrorCode, Field, LakeType, Result, TableSchema};

pub(crate) use order::{sort_fields, sort_order};

use crate::error;

/// The first field id of a new table.
const FIRST_ID: i32 = 1;

/// The columns of an Iceberg schema, without the marks only [`TableSchema`] has.
///
/// # Errors
/// `lake.failed` for types we never write (maps, nanoseconds, fixed), as another engine may have.
pub(crate) fn table_schema(schema: &Schema) -> Result<TableSchema> {
    fields_of(schema.as_struct().fields()).map(TableSchema::new)
}

fn fields_of(fields: &[NestedFieldRef]) -> Result<Vec<Field>> {
    fields.iter().map(|field| field_of(field)).collect()
}

fn field_of(field: &NestedField) -> Result<Field> {
    let data_type = lake_type(&field.field_type).map_err(|error| error.detail(&field.name))?;
    Ok(Field { nullable: !field.required, ..Field::new(&field.name, data_type) })
}

/// The lake's type of an Iceberg type.
pub(crate) fn lake_type(data_type: &Type) -> Result<LakeType> {
    Ok(match data_type {
        Type::Primitive(primitive) => match primitive {
            PrimitiveType::Boolean => LakeType::Boolean,
            PrimitiveType::Int => LakeType::Int,
            PrimitiveType::Long => LakeType::Long,
            PrimitiveType::Float => LakeType::Float,
            PrimitiveType::Double => LakeType::Double,
            PrimitiveType::Decimal { precision, scale } => {
                LakeType::Decimal { precision: *precision as u8, scale: *scale as u8 }
            }
            PrimitiveType::Date => LakeType::Date,
            PrimitiveType::Time => LakeType::Time,
            PrimitiveType::Timestamp => LakeType::Timestamp,
            PrimitiveType::Timestamptz => LakeType::Timestamptz,
            PrimitiveType::String => LakeType::String,
            PrimitiveType::Uuid => LakeType::Uuid,
            PrimitiveType::Binary => LakeType::Binary,
            PrimitiveType::TimestampNs | PrimitiveType::TimestamptzNs | PrimitiveType::Fixed(_) => {
                return Err(unsupported(data_type));
            }
        },
        Type::Struct(members) => LakeType::Struct(fields_of(members.fields())?),
        Type::List(list) => LakeType::List(Box::new(field_of(&list.element_field)?)),
        Type::Map(_) => return Err(unsupported(data_type)),
    })
}

fn unsupported(data_type: &Type) -> Error {
    let kind = match data_type {
        Type::Map(_) => "map".to_owned(),
        other => other.to_string(),
    };
    Error::new(ErrorCode::LakeFailed, format!("a column of type {kind} cannot be read here"))
        .hint("another engine wrote this table; leave the column out there")
}

fn primitive(data_type: &LakeType) -> Option<PrimitiveType> {
    Some(match data_type {
        LakeType::Boolean => PrimitiveType::Boolean,
        LakeType::Int => PrimitiveType::Int,
        LakeType::Long => PrimitiveType::Long,
        LakeType::Float => PrimitiveType::Float,
        LakeType::Double => PrimitiveType::Double,
        LakeType::Decimal { precision, scale } => {
            PrimitiveType::Decimal { precision: (*precision).into(), scale: (*scale).into() }
        }
        LakeType::Date => PrimitiveType::Date,
        LakeType::Time => PrimitiveType::Time,
        LakeType::Timestamp => PrimitiveType::Timestamp,
        LakeType::Timestamptz => PrimitiveType::Timestamptz,
        LakeType::String => PrimitiveType::String,
        LakeType::Uuid => PrimitiveType::Uuid,
        LakeType::Binary => PrimitiveType::Binary,
        LakeType::List(_) | LakeType::Struct(_) => return None,
    })
}

/// The table a new schema follows on.
pub(crate) struct Base<'a> {
    pub(crate) schema: &'a Schema,
    /// The same columns with their source ids.
    pub(crate) marks: &'a TableSchema,
    /// The highest field id the table ever used.
    pub(crate) last_column_id: i32,
}

/// The Iceberg schema of a new content: columns that continue keep their ids, by the source's own id
/// where both sides have one, else by name, and if the type is the same or one Iceberg may promote.
///
/// # Errors
/// `lake.schema_refused` for what Iceberg or Parquet cannot hold.
pub(crate) fn replace(new: &TableSchema, base: Option<&Base<'_>>) -> Result<Schema> {
    check(&new.fields, "")?;
    let mut ids = Ids { next: base.map_or(FIRST_ID, |base| base.last_column_id + 1) };
    let old = match base {
        Some(base) => counterparts(new, base),
        None => vec![None; new.fields.len()],
    };
    build(ids.assign(&new.fields, &old), [])
}

/// The Iceberg schema of the same rows and more (spec, *Schema Evolution*): columns that go on keep
/// their ids whatever their names and places, new ones get ids that no column ever had, and what is
/// not in `new` is dropped.
///
/// # Errors
/// `lake.schema_refused` for what would not hold the rows that are there: a required column that is
/// new or was not required, a type that is not a wider one.
pub(crate) fn evolve(new: &TableSchema, base: &Base<'_>) -> Result<Schema> {
    check(&new.fields, "")?;
    let old = identities(new, base);
    for (field, old) in new.fields.iter().zip(&old) {
        goes_on(field, old.as_deref(), &field.name)?;
    }
    let kept: HashSet<i32> = old.iter().flatten().map(|field| field.id).collect();
    let identifiers: Vec<i32> =
        base.schema.identifier_field_ids().filter(|id| kept.contains(id)).collect();
    let mut ids = Ids { next: base.last_column_id + 1 };
    build(ids.assign(&new.fields, &old), identifiers)
}

/// Checks that rows written for `old` can be read as `new`.
fn goes_on(new: &Field, old: Option<&NestedField>, path: &str) -> Result<()> {
    let refused = |what: String| {
        Error::new(ErrorCode::LakeSchemaRefused, "the table's rows do not fit the new columns")
            .detail(what)
            .hint("reload the table: run once with --full-refresh")
    };
    let Some(old) = old else {
        if new.nullable {
            return Ok(());
        }
        return Err(refused(format!("new column {path:?} is required")));
    };
    if !old.required && !new.nullable {
        return Err(refused(format!("column {path:?} became required")));
    }
    match (&*old.field_type, &new.data_type) {
        (Type::Struct(members), LakeType::Struct(fields)) => fields.iter().try_for_each(|field| {
            let member = members.field_by_name(&field.name);
            goes_on(field, member.map(|member| &**member), &format!("{path}.{}", field.name))
        }),
        (Type::List(list), LakeType::List(element)) => {
            goes_on(element, Some(&list.element_field), &format!("{path}.element"))
        }
        (from, to) if lake_type(from).is_ok_and(|from| from.promotes_to(to)) => Ok(()),
        (from, to) => Err(refused(format!("column {path:?} became {to} from {from}"))),
    }
}

/// Same type and nullability at every level; source ids and other marks aside.
fn same_column(a: &Field, b: &Field) -> bool {
    a.nullable == b.nullable && same_type(&a.data_type, &b.data_type)
}

fn same_type(a: &LakeType, b: &LakeType) -> bool {
    match (a, b) {
        (LakeType::List(a), LakeType::List(b)) => same_column(a, b),
        (LakeType::Struct(a), LakeType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.name == b.name && same_column(a, b))
        }
        (a, b) => a == b,
    }
}

/// `schema` with the marks (source ids and the like) of `marks`, where both mean the same column.
pub(crate) fn with_marks(mut schema: TableSchema, marks: Option<TableSchema>) -> TableSchema {
    let Some(marks) = marks else { return schema };
    let marks: HashMap<&str, &Field> =
        marks.fields.iter().map(|field| (field.name.as_str(), field)).collect();
    for field in &mut schema.fields {
        if let Some(marked) = marks.get(field.name.as_str())
            && same_column(field, marked)
        {
            *field = (*marked).clone();
        }
    }
    schema
}

/// What Parquet or Iceberg has no way to write.
fn check(fields: &[Field], within: &str) -> Result<()> {
    let refused = |what: &str| {
        Error::new(ErrorCode::LakeSchemaRefused, format!("{what} cannot be stored"))
            .detail(if within.is_empty() { "the table" } else { within }.to_owned())
    };
    if fields.is_empty() {
        return Err(refused("a struct or table without columns"));
    }
    let mut names = HashSet::new();
    for field in fields {
        if !names.insert(field.name.as_str()) {
            return Err(refused("two columns of the same name"));
        }
        let path =
            if within.is_empty() { field.name.clone() } else { format!("{within}.{}", field.name) };
        check_type(&field.data_type, &path)?;
    }
    Ok(())
}

fn check_type(data_type: &LakeType, path: &str) -> Result<()> {
    match data_type {
        LakeType::Struct(members) => check(members, path),
        LakeType::List(element) => check_type(&element.data_type, &format!("{path}.element")),
        _ => Ok(()),
    }
}

/// The old column under whose id each new one may go on.
fn counterparts(new: &TableSchema, base: &Base<'_>) -> Vec<Option<NestedFieldRef>> {
    let found = new.fields.iter().zip(identities(new, base));
    found.map(|(field, old)| old.filter(|old| continues(old, field))).collect()
}

/// The old column that each new one is to the source, whatever its type.
fn identities(new: &TableSchema, base: &Base<'_>) -> Vec<Option<NestedFieldRef>> {
    let old = base.schema.as_struct();
    let by_source: HashMap<i32, &str> = base
        .marks
        .fields
        .iter()
        .filter_map(|field| Some((field.source_id?, field.name.as_str())))
        .collect();
    let mut taken = HashSet::new();
    new.fields
        .iter()
        .map(|field| {
            let name = match field.source_id {
                Some(id) if !by_source.is_empty() => by_source.get(&id).copied()?,
                _ => field.name.as_str(),
            };
            let found = old.field_by_name(name)?;
            taken.insert(found.id).then(|| Arc::clone(found))
        })
        .collect()
}

/// Whether a new column may go on under the id of an old one.
fn continues(old: &NestedField, new: &Field) -> bool {
    match (&*old.field_type, &new.data_type) {
        (Type::Struct(_), LakeType::Struct(_)) | (Type::List(_), LakeType::List(_)) => true,
        (old, new) => lake_type(old).is_ok_and(|old| old.promotes_to(new)),
    }
}

struct Ids {
    next: i32,
}

impl Ids {
    fn take(&mut self) -> i32 {
        let id = self.next;
        self.next += 1;
        id
    }

    /// Gives ids level by level, as Iceberg's own assignment for new tables does: the fields of one
    /// level first, then what is nested in them.
    fn assign(&mut self, fields: &[Field], old: &[Option<NestedFieldRef>]) -> Vec<NestedFieldRef> {
        let ids: Vec<i32> =
            old.iter().map(|old| old.as_ref().map_or_else(|| self.take(), |old| old.id)).collect();
        let fields = fields.iter().zip(old).zip(ids);
        fields
            .map(|((field, old), id)| {
                let data_type = self.nested(&field.data_type, old.as_ref());
                NestedField::new(id, &field.name, data_type, !field.nullable).into()
            })
            .collect()
    }

    fn nested(&mut self, data_type: &LakeType, old: Option<&NestedFieldRef>) -> Type {
        match data_type {
            LakeType::Struct(members) => {
                let old = match old.map(|old| &*old.field_type) {
                    Some(Type::Struct(old)) => Some(old),
                    _ => None,
                };
                let counterpart = |field: &Field| {
                    let found = old?.field_by_name(&field.name)?;
                    continues(found, field).then(|| Arc::clone(found))
                };
                let old: Vec<_> = members.iter().map(counterpart).collect();
                Type::Struct(StructType::new(self.assign(members, &old)))
            }
            LakeType::List(element) => {
                let old = match old.map(|old| &*old.field_type) {
                    Some(Type::List(old)) if continues(&old.element_field, element) => {
                        Some(&old.element_field)
                    }
                    _ => None,
                };
                let id = old.map_or_else(|| self.take(), |old| old.id);
                let data_type = self.nested(&element.data_type, old);
                let field = NestedField::list_element(id, data_type, !element.nullable);
                Type::List(ListType::new(field.into()))
            }
            scalar => match primitive(scalar) {
                Some(primitive) => Type::Primitive(primitive),
                None => unreachable!("lists and structs are handled above"),
            },
        }
    }
}

fn build(
    fields: Vec<NestedFieldRef>,
    identifiers: impl IntoIterator<Item = i32>,
) -> Result<Schema> {
    let schema = Schema::builder().with_fields(fields).with_identifier_field_ids(identifiers);
    schema.build().map_err(|cause| {
        Error::new(ErrorCode::LakeSchemaRefused, "these columns cannot be one Iceberg table")
            .hint("two paths may have the same name: a column \"a.b\" and a member b of struct a")
            .caused_by(cause)
    })
}

/// The Arrow layout of a table with `PARQUET:field_id` on every field, nested ones included.
pub(crate) fn arrow_schema(columns: &TableSchema, schema: &Schema) -> SchemaRef {
    Arc::new(ArrowSchema::new(arrow_fields(&columns.fields, schema.as_struct().fields())))
}

fn arrow_fields(fields: &[Field], ids: &[NestedFieldRef]) -> Fields {
    fields.iter().zip(ids).map(|(field, id)| FieldRef::new(arrow_field(field, id))).collect()
}

fn arrow_field(field: &Field, id: &NestedField) -> ArrowField {
    let data_type = match (&field.data_type, &*id.field_type) {
        (LakeType::Struct(members), Type::Struct(ids)) => {
            DataType::Struct(arrow_fields(members, ids.fields()))
        }
        (LakeType::List(element), Type::List(ids)) => {
            DataType::List(Arc::new(arrow_field(element, &ids.element_field)))
        }
        (scalar, _) => scalar.to_arrow(),
    };
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.id.to_string())]);
    ArrowField::new(&field.name, data_type, field.nullable).with_metadata(metadata)
}

/// The Iceberg spec of a table's partition fields.
///
/// # Errors
/// `spec.unknown_name` for a column that is not there; `spec.invalid` for a transform that the
/// column's type does not have.
pub(crate) fn partition_spec(
    fields: &[PartitionField],
    schema: &Schema,
) -> Result<UnboundPartitionSpec> {
    let mut spec = UnboundPartitionSpec::builder();
    let mut names = HashSet::new();
    for field in fields {
        let column = schema.as_struct().field_by_name(&field.column).ok_or_else(|| {
            let message = format!("partition field {field}: there is no such column");
            Error::new(ErrorCode::SpecUnknownName, message)
                .detail(format!("column {:?}", field.column))
        })?;
        let transform = iceberg_transform(field.transform);
        let not_for_type = |cause| {
            let message = format!("partition field {field}: not for this column's type");
            Error::new(ErrorCode::SpecInvalid, message)
                .detail(format!("column {:?} is {}", field.column, column.field_type))
                .caused_by(cause)
        };
        let result = transform.result_type(&column.field_type).map_err(not_for_type)?;
        if result == Type::Primitive(PrimitiveType::Uuid) {
            // The crate's manifest writer has no way to write such a partition value.
            let message = format!("partition field {field}: uuids cannot be partition values");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint(format!("use bucket(16, {})", field.column)));
        }
        let name = partition_name(field, schema, &names);
        names.insert(name.clone());
        spec = spec
            .add_partition_field(column.id, name, transform)
            .map_err(|cause| error::iceberg("build the partition spec", cause))?;
    }
    Ok(spec.build())
}

fn iceberg_transform(transform: Transform) -> IcebergTransform {
    match transform {
        Transform::Identity => IcebergTransform::Identity,
        Transform::Year => IcebergTransform::Year,
        Transform::Month => IcebergTransform::Month,
        Transform::Day => IcebergTransform::Day,
        Transform::Hour => IcebergTransform::Hour,
        Transform::Bucket(buckets) => IcebergTransform::Bucket(buckets),
        Transform::Truncate(width) => IcebergTransform::Truncate(width),
    }
}

/// How a table's new files are partitioned, in our words; transforms we never make are left out.
pub(crate) fn partition_fields(metadata: &TableMetadata) -> Vec<PartitionField> {
    fields_of_spec(metadata.default_partition_spec(), metadata.current_schema())
}

/// How the files of one spec are partitioned, under the columns' present names.
pub(crate) fn fields_of_spec(spec: &PartitionSpec, schema: &Schema) -> Vec<PartitionField> {
    let fields = spec.fields().iter();
    fields
        .filter_map(|field| {
            let transform = match field.transform {
                IcebergTransform::Identity => Transform::Identity,
                IcebergTransform::Year => Transform::Year,
                IcebergTransform::Month => Transform::Month,
                IcebergTransform::Day => Transform::Day,
                IcebergTransform::Hour => Transform::Hour,
                IcebergTransform::Bucket(buckets) => Transform::Bucket(buckets),
                IcebergTransform::Truncate(width) => Transform::Truncate(width),
                IcebergTransform::Void | IcebergTransform::Unknown => return None,
            };
            let column = schema.field_by_id(field.source_id)?.name.clone();
            Some(PartitionField { transform, column })
        })
        .collect()
}

/// Names as the Java library gives them (`created_at_month`); a column of that name gets the
/// partition field a number.
fn partition_name(field: &PartitionField, schema: &Schema, taken: &HashSet<String>) -> String {
    let column = &field.column;
    let name = match field.transform {
        Transform::Identity => return column.clone(),
        Transform::Year => format!("{column}_year"),
        Transform::Month => format!("{column}_month"),
        Transform::Day => format!("{column}_day"),
        Transform::Hour => format!("{column}_hour"),
        Transform::Bucket(buckets) => format!("{column}_bucket_{buckets}"),
        Transform::Truncate(width) => format!("{column}_trunc_{width}"),
    };
    let free = |name: &String| schema.field_by_name(name).is_none() && !taken.contains(name);
    let numbered = (2..).map(|number| format!("{name}_{number}"));
    std::iter::once(name.clone()).chain(numbered).find(free).unwrap_or(name)
}

#[cfg(test)]
mod tests;
