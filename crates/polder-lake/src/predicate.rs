//! What rows are wanted: for skipping files, and exactly.
//!
//! [`Predicate`] has SQL's meaning: a row is wanted if the predicate is true, not if it is null.
//! Floats compare as Arrow and PostgreSQL do: NaN is equal to itself and above everything.
//! [`pruning`] turns it into an Iceberg predicate that is true for *at least* those rows, because
//! Iceberg's file statistics leave NaN out and know no sign of zero; [`matches`](Predicate::matches)
//! decides row by row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, Scalar, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::kernels::cmp;
use arrow::compute::{and_kleene, cast, is_not_null, is_null, not, or_kleene, starts_with};
use iceberg::expr::{Predicate as IcebergPredicate, Reference};
use iceberg::spec::{Datum, PrimitiveType};
use polder_core::{Error, ErrorCode, LakeType, Result};
use uuid::Uuid;

use crate::error;

/// A condition on top-level columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    True,
    And(Box<Predicate>, Box<Predicate>),
    Or(Box<Predicate>, Box<Predicate>),
    Not(Box<Predicate>),
    Cmp {
        column: String,
        op: CmpOp,
        value: Literal,
    },
    In {
        column: String,
        values: Vec<Literal>,
    },
    IsNull(String),
    IsNotNull(String),
    /// Of a string column.
    StartsWith {
        column: String,
        prefix: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    Eq,
    NotEq,
    Lt,
    LtEq,
    Gt,
    GtEq,
}

/// A value of a scalar [`LakeType`], in its Arrow representation. It has to be of the column's type;
/// integers and decimals may be of a narrower one.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Boolean(bool),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    Decimal {
        unscaled: i128,
        precision: u8,
        scale: u8,
    },
    /// Days since the epoch.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds.
    Timestamp(i64),
    /// Microseconds since the epoch, UTC.
    Timestamptz(i64),
    String(String),
    Uuid(Uuid),
    Binary(Vec<u8>),
}

/// The times of a day, in microseconds.
const DAY_MICROS: std::ops::Range<i64> = 0..86_400_000_000;
/// The most values of an [`Predicate::In`] that files are skipped by.
const IN_MAX: usize = 200;

impl Predicate {
    /// Both; [`Predicate::True`] disappears.
    #[must_use]
    pub fn and(self, other: Predicate) -> Self {
        match (self, other) {
            (Self::True, other) | (other, Self::True) => other,
            (a, b) => Self::And(Box::new(a), Box::new(b)),
        }
    }

    /// The columns it looks at.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Self::True => Vec::new(),
            Self::And(a, b) | Self::Or(a, b) => [a.columns(), b.columns()].concat(),
            Self::Not(inner) => inner.columns(),
            Self::Cmp { column, .. }
            | Self::In { column, .. }
            | Self::IsNull(column)
            | Self::IsNotNull(column)
            | Self::StartsWith { column, .. } => vec![column],
        }
    }

    /// For each row: wanted, not wanted, or null.
    ///
    /// # Errors
    /// `query.invalid` for a column that the batch lacks or a literal of another type.
    pub fn matches(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        let failed = |cause| error::arrow("evaluate a filter", cause);
        Ok(match self {
            Self::True => BooleanArray::from(vec![true; batch.num_rows()]),
            Self::And(a, b) => {
                and_kleene(&a.matches(batch)?, &b.matches(batch)?).map_err(failed)?
            }
            Self::Or(a, b) => or_kleene(&a.matches(batch)?, &b.matches(batch)?).map_err(failed)?,
            Self::Not(inner) => not(&inner.matches(batch)?).map_err(failed)?,
            Self::IsNull(column) => is_null(column_of(batch, column)?).map_err(failed)?,
            Self::IsNotNull(column) => is_not_null(column_of(batch, column)?).map_err(failed)?,
            Self::Cmp { column, op, value } => {
                compare(column_of(batch, column)?, *op, value, column)?
            }
            Self::In { column, values } => {
                let array = column_of(batch, column)?;
                let mut any = BooleanArray::from(vec![false; batch.num_rows()]);
                for value in values {
                    let equal = compare(array, CmpOp::Eq, value, column)?;
                    any = or_kleene(&any, &equal).map_err(failed)?;
                }
                any
            }
            Self::StartsWith { column, prefix } => {
                let array = cast(column_of(batch, column)?, &arrow::datatypes::DataType::Utf8)
                    .map_err(failed)?;
                starts_with(&array, &StringArray::new_scalar(prefix)).map_err(failed)?
            }
        })
    }
}

fn column_of<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(column).ok_or_else(|| unknown(column))
}

fn unknown(column: &str) -> Error {
    Error::new(ErrorCode::QueryInvalid, format!("there is no column {column:?} to filter by"))
}

fn compare(array: &ArrayRef, op: CmpOp, value: &Literal, column: &str) -> Result<BooleanArray> {
    let literal = cast(&value.to_array(), array.data_type()).map_err(|_| mistyped(column))?;
    if literal.is_null(0) {
        return Err(mistyped(column));
    }
    let literal = Scalar::new(literal);
    let compared = match op {
        CmpOp::Eq => cmp::eq(array, &literal),
        CmpOp::NotEq => cmp::neq(array, &literal),
        CmpOp::Lt => cmp::lt(array, &literal),
        CmpOp::LtEq => cmp::lt_eq(array, &literal),
        CmpOp::Gt => cmp::gt(array, &literal),
        CmpOp::GtEq => cmp::gt_eq(array, &literal),
    };
    compared.map_err(|cause| error::arrow("evaluate a filter", cause))
}

fn mistyped(column: &str) -> Error {
    let message = format!("column {column:?} is compared with a value of another type");
    Error::new(ErrorCode::QueryInvalid, message)
}

impl Literal {
    fn to_array(&self) -> ArrayRef {
        match self {
            Self::Boolean(value) => Arc::new(BooleanArray::from(vec![*value])),
            Self::Int(value) => Arc::new(Int32Array::from(vec![*value])),
            Self::Long(value) => Arc::new(Int64Array::from(vec![*value])),
            Self::Float(value) => Arc::new(Float32Array::from(vec![*value])),
            Self::Double(value) => Arc::new(Float64Array::from(vec![*value])),
            Self::Decimal { unscaled, precision, scale } => {
                let array = Decimal128Array::from(vec![*unscaled]);
                match array.with_precision_and_scale(*precision, *scale as i8) {
                    Ok(array) => Arc::new(array),
                    // Null stands for a literal that no column of its type can hold.
                    Err(_) => new_null_array(&arrow::datatypes::DataType::Null, 1),
                }
            }
            Self::Date(value) => Arc::new(Date32Array::from(vec![*value])),
            Self::Time(value) => Arc::new(Time64MicrosecondArray::from(vec![*value])),
            Self::Timestamp(value) => Arc::new(TimestampMicrosecondArray::from(vec![*value])),
            Self::Timestamptz(value) => {
                Arc::new(TimestampMicrosecondArray::from(vec![*value]).with_timezone("+00:00"))
            }
            Self::String(value) => Arc::new(StringArray::from(vec![value.as_str()])),
            Self::Uuid(value) => {
                let bytes = value.as_bytes().to_vec();
                Arc::new(FixedSizeBinaryArray::new(16, bytes.into(), None))
            }
            Self::Binary(value) => Arc::new(BinaryArray::from(vec![value.as_slice()])),
        }
    }

    /// The value in the column's type; `None` if it is of another type.
    fn to_datum(&self, column: &LakeType) -> Option<Datum> {
        Some(match (self, column) {
            (Self::Boolean(value), LakeType::Boolean) => Datum::bool(*value),
            (Self::Int(value), LakeType::Int) => Datum::int(*value),
            (Self::Int(value), LakeType::Long) => Datum::long(*value),
            (Self::Long(value), LakeType::Long) => Datum::long(*value),
            (Self::Long(value), LakeType::Int) => Datum::int(i32::try_from(*value).ok()?),
            (Self::Float(value), LakeType::Float) => Datum::float(*value),
            (Self::Float(value), LakeType::Double) => Datum::double(*value),
            (Self::Double(value), LakeType::Double) => Datum::double(*value),
            (
                Self::Decimal { unscaled, scale: own, .. },
                LakeType::Decimal { precision, scale },
            ) if own == scale && unscaled.unsigned_abs() < 10_u128.pow(u32::from(*precision)) => {
                let data_type = PrimitiveType::Decimal {
                    precision: u32::from(*precision),
                    scale: u32::from(*scale),
                };
                Datum::try_from_bytes(&unscaled.to_be_bytes(), data_type).ok()?
            }
            (Self::Date(value), LakeType::Date) => Datum::date(*value),
            (Self::Time(value), LakeType::Time) => Datum::time_micros(*value).ok()?,
            (Self::Timestamp(value), LakeType::Timestamp) => Datum::timestamp_micros(*value),
            (Self::Timestamptz(value), LakeType::Timestamptz) => Datum::timestamptz_micros(*value),
            (Self::String(value), LakeType::String) => Datum::string(value),
            (Self::Uuid(value), LakeType::Uuid) => Datum::uuid(*value),
            (Self::Binary(value), LakeType::Binary) => Datum::binary(value.iter().copied()),
            _ => return None,
        })
    }

    /// An integer or decimal in the column's width, where it fits.
    fn in_width_of(&self, column: &LakeType) -> Self {
        match (self, column) {
            (Self::Int(value), LakeType::Long) => Self::Long(i64::from(*value)),
            (Self::Long(value), LakeType::Int) => {
                i32::try_from(*value).map_or_else(|_| self.clone(), Self::Int)
            }
            (
                Self::Decimal { unscaled, scale, .. },
                LakeType::Decimal { precision, scale: own },
            ) if scale == own => {
                Self::Decimal { unscaled: *unscaled, precision: *precision, scale: *scale }
            }
            (other, _) => other.clone(),
        }
    }

    /// The next value of the type, downwards or upwards. `x < 5` is `x <= 4` to the crate too, but
    /// its own way there overflows, and takes a decimal's scale for 0.
    fn neighbour(&self, step: i8) -> Neighbour {
        let int = |value: i32| value.checked_add(i32::from(step));
        let long = |value: i64| value.checked_add(i64::from(step));
        let next = match self {
            Self::Int(value) => int(*value).map(Self::Int),
            Self::Date(value) => int(*value).map(Self::Date),
            Self::Long(value) => long(*value).map(Self::Long),
            Self::Time(value) => {
                long(*value).filter(|next| DAY_MICROS.contains(next)).map(Self::Time)
            }
            Self::Timestamp(value) => long(*value).map(Self::Timestamp),
            Self::Timestamptz(value) => long(*value).map(Self::Timestamptz),
            Self::Decimal { unscaled, precision, scale } => {
                let most = 10_u128.pow(u32::from(*precision));
                let next = unscaled.checked_add(i128::from(step));
                let next = next.filter(|next| next.unsigned_abs() < most);
                next.map(|unscaled| Self::Decimal {
                    unscaled,
                    precision: *precision,
                    scale: *scale,
                })
            }
            _ => return Neighbour::Unordered,
        };
        next.map_or(Neighbour::None, Neighbour::Value)
    }

    fn is_nan(&self) -> bool {
        match self {
            Self::Float(value) => value.is_nan(),
            Self::Double(value) => value.is_nan(),
            _ => false,
        }
    }
}

/// See [`Literal::neighbour`].
enum Neighbour {
    Value(Literal),
    /// There is none: this is the last.
    None,
    /// Values of the type do not follow one upon the other.
    Unordered,
}

/// A column whose statistics may be trusted to skip files.
#[derive(Clone, Debug)]
pub(crate) struct Prunable {
    /// Its name in the schema that files are skipped by.
    pub(crate) name: String,
    pub(crate) data_type: LakeType,
}

/// A predicate that files can be skipped by: false only where `predicate` is not true for any row.
/// `columns` are those it may look at, by their names in `predicate`; whatever it says of others is
/// taken for true.
pub(crate) fn pruning(
    predicate: &Predicate,
    columns: &HashMap<String, Prunable>,
) -> IcebergPredicate {
    Pruning { columns }.of(predicate, true)
}

struct Pruning<'a> {
    columns: &'a HashMap<String, Prunable>,
}

impl Pruning<'_> {
    /// `wanted` is false below an odd number of `Not`s.
    fn of(&self, predicate: &Predicate, wanted: bool) -> IcebergPredicate {
        match (predicate, wanted) {
            (Predicate::True, true) => IcebergPredicate::AlwaysTrue,
            (Predicate::True, false) => IcebergPredicate::AlwaysFalse,
            (Predicate::Not(inner), wanted) => self.of(inner, !wanted),
            (Predicate::And(a, b), true) | (Predicate::Or(a, b), false) => {
                self.of(a, wanted).and(self.of(b, wanted))
            }
            (Predicate::Or(a, b), true) | (Predicate::And(a, b), false) => {
                self.of(a, wanted).or(self.of(b, wanted))
            }
            (Predicate::IsNull(column), true) | (Predicate::IsNotNull(column), false) => {
                self.about(column, Reference::is_null)
            }
            (Predicate::IsNotNull(column), true) | (Predicate::IsNull(column), false) => {
                self.about(column, Reference::is_not_null)
            }
            (Predicate::Cmp { column, op, value }, wanted) => {
                self.compare(column, if wanted { *op } else { op.negated() }, value)
            }
            (Predicate::In { column, values }, true) if values.len() <= IN_MAX => values
                .iter()
                .map(|value| self.compare(column, CmpOp::Eq, value))
                .reduce(IcebergPredicate::or)
                .unwrap_or(IcebergPredicate::AlwaysFalse),
            (Predicate::StartsWith { column, prefix }, true) => self.prefix(column, prefix),
            (Predicate::In { .. } | Predicate::StartsWith { .. }, _) => {
                IcebergPredicate::AlwaysTrue
            }
        }
    }

    fn about(&self, column: &str, is: fn(Reference) -> IcebergPredicate) -> IcebergPredicate {
        let found = self.columns.get(column);
        found.map_or(IcebergPredicate::AlwaysTrue, |found| is(Reference::new(&found.name)))
    }

    fn compare(&self, column: &str, op: CmpOp, value: &Literal) -> IcebergPredicate {
        let Some(found) = self.columns.get(column) else { return IcebergPredicate::AlwaysTrue };
        let floating = matches!(found.data_type, LakeType::Float | LakeType::Double);
        let reference = Reference::new(&found.name);
        if floating && value.is_nan() {
            return match op {
                CmpOp::Eq | CmpOp::GtEq => reference.is_nan(),
                _ => IcebergPredicate::AlwaysTrue,
            };
        }
        let value = &value.in_width_of(&found.data_type);
        let Some(datum) = value.to_datum(&found.data_type) else {
            return IcebergPredicate::AlwaysTrue;
        };
        match (op, floating) {
            (CmpOp::Eq, _) => reference.equal_to(datum),
            // Iceberg's "not equal" holds for nulls; only more rows.
            (CmpOp::NotEq, _) => reference.is_not_null(),
            (CmpOp::Lt, false) => match value.neighbour(-1) {
                Neighbour::Value(value) => self.compare(column, CmpOp::LtEq, &value),
                Neighbour::Unordered => reference.less_than(datum),
                Neighbour::None => IcebergPredicate::AlwaysFalse,
            },
            (CmpOp::Gt, false) => match value.neighbour(1) {
                Neighbour::Value(value) => self.compare(column, CmpOp::GtEq, &value),
                Neighbour::Unordered => reference.greater_than(datum),
                Neighbour::None => IcebergPredicate::AlwaysFalse,
            },
            // −0.0 is below 0.0 row by row, but not in the statistics.
            (CmpOp::Lt | CmpOp::LtEq, _) => reference.less_than_or_equal_to(datum),
            (CmpOp::GtEq, false) => reference.greater_than_or_equal_to(datum),
            // NaN is above everything row by row, and not in the statistics.
            (CmpOp::Gt | CmpOp::GtEq, true) => {
                let nan = Reference::new(&found.name).is_nan();
                reference.greater_than_or_equal_to(datum).or(nan)
            }
        }
    }

    /// Strings from the prefix up to, and not with, the first one behind all that begin with it.
    fn prefix(&self, column: &str, prefix: &str) -> IcebergPredicate {
        let value = Literal::String(prefix.to_owned());
        let from = self.compare(column, CmpOp::GtEq, &value);
        match crate::write::string_after(prefix) {
            Some(end) => from.and(self.compare(column, CmpOp::Lt, &Literal::String(end))),
            None => from,
        }
    }
}

impl CmpOp {
    fn negated(self) -> Self {
        match self {
            Self::Eq => Self::NotEq,
            Self::NotEq => Self::Eq,
            Self::Lt => Self::GtEq,
            Self::LtEq => Self::Gt,
            Self::Gt => Self::LtEq,
            Self::GtEq => Self::Lt,
        }
    }
}
