//! `"t$partitions"`: the files of a state added up by where they lie, with the least and greatest values
//! of columns. Counts are of files: rows that deletes take are among them, as Trino counts them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, StructArray, new_empty_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::ScalarValue;
use polder_core::{LakeType, Literal, Result};
use polder_lake::{FileMetrics, MetricField, StateMetrics};

use super::super::error::planning;
use super::{Columns, counts};

/// `partition` is there for tables that are, or were, partitioned, and `data` for those with columns of
/// scalar types beside.
pub(super) fn columns(state: &StateMetrics) -> Result<Columns> {
    let mut all = Vec::with_capacity(state.places.len());
    for place in &state.places {
        all.push(Partition::new(place, state.columns.len()));
    }
    for file in &state.files {
        if let Some(partition) = all.get_mut(file.place) {
            partition.add(file, &state.columns)?;
        }
    }
    let mut columns = Columns::new();
    if !state.partition.is_empty() {
        columns.push(("partition", places(&all, &state.partition)?, false));
    }
    columns.push(("record_count", counts(all.iter().map(|found| Some(found.rows))), false));
    columns.push(("file_count", counts(all.iter().map(|found| Some(found.files))), false));
    columns.push(("total_size", counts(all.iter().map(|found| Some(found.bytes))), false));
    if !state.columns.is_empty() {
        columns.push(("data", data(&all, &state.columns)?, false));
    }
    Ok(columns)
}

struct Partition<'a> {
    place: &'a BTreeMap<i32, Literal>,
    rows: u64,
    files: u64,
    bytes: u64,
    /// One a column.
    columns: Vec<Extent>,
}

/// What is known of a column's values in all files so far.
struct Extent {
    least: Bound,
    greatest: Bound,
    /// `None` once a file did not say.
    nulls: Option<u64>,
    nans: Option<u64>,
}

enum Bound {
    /// Of files that hold nothing but nulls.
    Nothing,
    Known(ScalarValue),
    /// A file with values has no bound.
    Unknown,
}

impl<'a> Partition<'a> {
    fn new(place: &'a BTreeMap<i32, Literal>, columns: usize) -> Self {
        let extent = || Extent {
            least: Bound::Nothing,
            greatest: Bound::Nothing,
            nulls: Some(0),
            nans: Some(0),
        };
        let columns = std::iter::repeat_with(extent).take(columns).collect();
        Self { place, rows: 0, files: 0, bytes: 0, columns }
    }

    fn add(&mut self, file: &FileMetrics, columns: &[MetricField]) -> Result<()> {
        self.rows += file.rows;
        self.files += 1;
        self.bytes += file.size_bytes;
        for (column, extent) in columns.iter().zip(&mut self.columns) {
            extent.add(file, column)?;
        }
        Ok(())
    }
}

impl Extent {
    fn add(&mut self, file: &FileMetrics, column: &MetricField) -> Result<()> {
        let nulls = file.null_counts.get(&column.id).copied();
        if nulls != Some(file.rows) {
            let bound = |of: &BTreeMap<i32, Literal>| {
                let bound = of.get(&column.id);
                bound.map(|bound| scalar(Some(bound), &column.data_type)).transpose()
            };
            self.least.extend(bound(&file.lower_bounds)?, Ordering::Less);
            self.greatest.extend(bound(&file.upper_bounds)?, Ordering::Greater);
        }
        let sum = |(known, more): (u64, u64)| known.saturating_add(more);
        self.nulls = self.nulls.zip(nulls).map(sum);
        self.nans = self.nans.zip(file.nan_counts.get(&column.id).copied()).map(sum);
        Ok(())
    }

    fn is_unknown(&self) -> bool {
        self.nulls.is_none() && self.least.value().is_none() && self.greatest.value().is_none()
    }
}

impl Bound {
    /// Takes `other` where it is `beyond` what is known.
    fn extend(&mut self, other: Option<ScalarValue>, beyond: Ordering) {
        let Some(other) = other else {
            *self = Self::Unknown;
            return;
        };
        match self {
            Self::Nothing => *self = Self::Known(other),
            Self::Known(known) if other.partial_cmp(known) == Some(beyond) => *known = other,
            Self::Known(_) | Self::Unknown => {}
        }
    }

    fn value(&self) -> Option<&ScalarValue> {
        match self {
            Self::Known(value) => Some(value),
            Self::Nothing | Self::Unknown => None,
        }
    }
}

/// A row of each partition's values, null where its files are of a spec without the field.
fn places(all: &[Partition<'_>], fields: &[MetricField]) -> Result<ArrayRef> {
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let values = all.iter().map(|found| scalar(found.place.get(&field.id), &field.data_type));
        let values = array(values.collect::<Result<_>>()?, &field.data_type.to_arrow())?;
        columns.push((field.name.as_str(), values));
    }
    row(columns, None)
}

/// A row of each column's least and greatest value and its counts.
fn data(all: &[Partition<'_>], fields: &[MetricField]) -> Result<ArrayRef> {
    let mut columns = Vec::with_capacity(fields.len());
    for (index, field) in fields.iter().enumerate() {
        let extents: Vec<&Extent> =
            all.iter().filter_map(|found| found.columns.get(index)).collect();
        let known = extents.iter().map(|extent| !extent.is_unknown()).collect::<Vec<bool>>();
        let members = vec![
            ("min", bounds(extents.iter().map(|extent| &extent.least), &field.data_type)?),
            ("max", bounds(extents.iter().map(|extent| &extent.greatest), &field.data_type)?),
            ("null_count", numbers(extents.iter().map(|extent| extent.nulls))),
            ("nan_count", numbers(extents.iter().map(|extent| extent.nans))),
        ];
        columns.push((field.name.as_str(), row(members, Some(NullBuffer::from(known)))?));
    }
    row(columns, None)
}

fn bounds<'a>(of: impl Iterator<Item = &'a Bound>, data_type: &LakeType) -> Result<ArrayRef> {
    let null = scalar(None, data_type)?;
    let values = of.map(|bound| bound.value().unwrap_or(&null).clone()).collect();
    array(values, &data_type.to_arrow())
}

fn numbers(of: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(of.map(|count| i64::try_from(count?).ok()).collect::<Int64Array>())
}

fn row(columns: Vec<(&str, ArrayRef)>, known: Option<NullBuffer>) -> Result<ArrayRef> {
    let field =
        |(name, column): &(&str, ArrayRef)| Field::new(*name, column.data_type().clone(), true);
    let fields = columns.iter().map(field).collect::<Fields>();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let row = StructArray::try_new(fields, columns, known);
    Ok(Arc::new(row.map_err(|error| planning(error.into()))?))
}

fn array(values: Vec<ScalarValue>, data_type: &DataType) -> Result<ArrayRef> {
    if values.is_empty() {
        return Ok(new_empty_array(data_type));
    }
    ScalarValue::iter_to_array(values).map_err(planning)
}

/// A value of a column of this type.
fn scalar(value: Option<&Literal>, data_type: &LakeType) -> Result<ScalarValue> {
    let Some(value) = value else {
        return ScalarValue::try_new_null(&data_type.to_arrow()).map_err(planning);
    };
    Ok(match value {
        Literal::Boolean(value) => ScalarValue::Boolean(Some(*value)),
        Literal::Int(value) => ScalarValue::Int32(Some(*value)),
        Literal::Long(value) => ScalarValue::Int64(Some(*value)),
        Literal::Float(value) => ScalarValue::Float32(Some(*value)),
        Literal::Double(value) => ScalarValue::Float64(Some(*value)),
        Literal::Decimal { unscaled, precision, scale } => {
            ScalarValue::Decimal128(Some(*unscaled), *precision, *scale as i8)
        }
        Literal::Date(days) => ScalarValue::Date32(Some(*days)),
        Literal::Time(micros) => ScalarValue::Time64Microsecond(Some(*micros)),
        Literal::Timestamp(micros) => ScalarValue::TimestampMicrosecond(Some(*micros), None),
        Literal::Timestamptz(micros) => {
            ScalarValue::TimestampMicrosecond(Some(*micros), Some("+00:00".into()))
        }
        Literal::String(value) => ScalarValue::Utf8(Some(value.clone())),
        Literal::Uuid(value) => ScalarValue::FixedSizeBinary(16, Some(value.as_bytes().to_vec())),
        Literal::Binary(value) => ScalarValue::Binary(Some(value.clone())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: u64, nulls: Option<u64>, bounds: Option<(i64, i64)>) -> FileMetrics {
        let of = |bound: Option<i64>| {
            bound.map(|bound| (1, Literal::Long(bound))).into_iter().collect::<BTreeMap<_, _>>()
        };
        FileMetrics {
            path: "file:///f".to_owned(),
            size_bytes: 10,
            rows,
            column_bytes: BTreeMap::new(),
            value_counts: BTreeMap::new(),
            null_counts: nulls.map(|nulls| (1, nulls)).into_iter().collect(),
            nan_counts: BTreeMap::new(),
            lower_bounds: of(bounds.map(|(low, _)| low)),
            upper_bounds: of(bounds.map(|(_, high)| high)),
            place: 0,
        }
    }

    fn extent(files: &[FileMetrics]) -> (Option<i64>, Option<i64>, Option<u64>) {
        let place = BTreeMap::new();
        let mut partition = Partition::new(&place, 1);
        let column = MetricField { id: 1, name: "n".to_owned(), data_type: LakeType::Long };
        for file in files {
            partition.add(file, std::slice::from_ref(&column)).expect("added");
        }
        let number = |bound: &Bound| match bound.value() {
            Some(ScalarValue::Int64(number)) => *number,
            _ => None,
        };
        let extent = &partition.columns[0];
        (number(&extent.least), number(&extent.greatest), extent.nulls)
    }

    #[test]
    fn what_one_file_does_not_say_is_not_known_of_all() {
        let whole = || file(3, Some(1), Some((1, 5)));
        let cases = [
            (vec![whole(), file(2, Some(0), Some((-7, 2)))], (Some(-7), Some(5), Some(1))),
            (vec![whole(), file(2, Some(2), None)], (Some(1), Some(5), Some(3))),
            (vec![whole(), file(2, Some(0), None)], (None, None, Some(1))),
            (vec![file(2, Some(0), None), whole()], (None, None, Some(1))),
            (vec![whole(), file(2, None, Some((9, 9)))], (Some(1), Some(9), None)),
            (vec![file(2, Some(2), None)], (None, None, Some(2))),
        ];
        for (files, expected) in cases {
            assert_eq!(extent(&files), expected, "{files:?}");
        }
    }
}
