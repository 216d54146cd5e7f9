//! Arrays of one layout read as another, matched by Iceberg field id at every level of nesting (spec,
//! *Column Projection*): a renamed column, one that was added later, a widened type, a struct with
//! other members.
//!
//! A pair of types that Iceberg does not allow is an error, never a silent cast.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::error::ArrowError;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use polder_core::{Error, ErrorCode, Result};

/// Casts that fail where a value does not fit.
pub(crate) const EXACT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// The field id in an Arrow field's metadata, where Parquet's reader and writer keep it.
pub fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

/// Checks that values of `found` can be read as `wanted`, both with field ids inside.
///
/// # Errors
/// `lake.corrupt` if they cannot: no evolution that Iceberg allows makes one of the other.
pub fn check_readable(found: &Field, wanted: &Field) -> Result<()> {
    let refused = |what: String| Err(Error::new(ErrorCode::LakeCorrupt, what));
    match (found.data_type(), wanted.data_type()) {
        (from, to) if from == to => Ok(()),
        (DataType::Struct(from), DataType::Struct(to)) => {
            to.iter().try_for_each(|member| match from.iter().find(|f| same_id(f, member)) {
                Some(source) => check_readable(source, member),
                None if member.is_nullable() => Ok(()),
                None => {
                    refused(format!("a data file lacks the required member {:?}", member.name()))
                }
            })
        }
        (DataType::List(from), DataType::List(to)) => check_readable(from, to),
        (from, to) if widens(from, to) => Ok(()),
        (from, to) => refused(format!(
            "a data file has column {:?} as {from}, the table as {to}",
            wanted.name(),
        )),
    }
}

/// Wider, or the same values in another layout.
fn widens(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Int32, DataType::Int64)
        | (DataType::Float32, DataType::Float64)
        | (
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View,
            DataType::Utf8 | DataType::Utf8View,
        )
        | (
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView,
            DataType::Binary | DataType::BinaryView,
        ) => true,
        (DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)) => s1 == s2 && p1 <= p2,
        // The same instants under another spelling of UTC.
        (DataType::Timestamp(u1, Some(_)), DataType::Timestamp(u2, Some(_))) => u1 == u2,
        _ => false,
    }
}

fn same_id(a: &Field, b: &Field) -> bool {
    field_id(a).is_some() && field_id(a) == field_id(b)
}

/// Gives `array`, whose field passed [`check_readable`], the layout of `to`.
///
/// # Errors
/// Arrow's, if values do not fit: a null where `to` has none.
pub fn read_as(array: &ArrayRef, from: &Field, to: &Field) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to.data_type() {
        return Ok(Arc::clone(array));
    }
    match (from.data_type(), to.data_type()) {
        (DataType::Struct(found), DataType::Struct(wanted)) => {
            let array = array.as_struct();
            let member = |member: &FieldRef| match found.iter().position(|f| same_id(f, member)) {
                Some(index) => read_as(array.column(index), &found[index], member),
                None => Ok(new_null_array(member.data_type(), array.len())),
            };
            let members = wanted.iter().map(member).collect::<Result<Vec<_>, _>>()?;
            let nulls = array.nulls().cloned();
            let length = array.len();
            let made = StructArray::try_new_with_length(wanted.clone(), members, nulls, length)?;
            Ok(Arc::new(made))
        }
        (DataType::List(found), DataType::List(wanted)) => {
            let array = array.as_list::<i32>();
            let values = read_as(array.values(), found, wanted)?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(Arc::clone(wanted), offsets, values, nulls)?))
        }
        _ => cast_with_options(array, to.data_type(), &EXACT),
    }
}
