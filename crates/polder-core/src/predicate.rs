//! What rows are wanted, of a lake table or of a source.
//!
//! [`Predicate`] has SQL's meaning: a row is wanted if the predicate is true, not if it is null.
//! Floats compare as Arrow and PostgreSQL do: NaN is equal to itself and above everything.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, Scalar, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::kernels::cmp;
use arrow::compute::{and_kleene, cast, is_not_null, is_null, not, or_kleene, starts_with};
use arrow::error::ArrowError;
use uuid::Uuid;

use crate::{Error, ErrorCode, Result};

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

/// A value of a scalar [`LakeType`](crate::LakeType), in its Arrow representation. It has to be of the column's type;
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
    compared.map_err(failed)
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
}

impl CmpOp {
    /// What is true where this is false, if neither side is null.
    #[must_use]
    pub fn negated(self) -> Self {
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

fn failed(cause: ArrowError) -> Error {
    Error::new(ErrorCode::Internal, "cannot evaluate a filter").caused_by(cause)
}
