//! Skipping files: an Iceberg predicate that is true for *at least* the rows that a
//! [`Predicate`] wants, because Iceberg's file statistics leave NaN out and know no sign of zero.

use std::collections::HashMap;

use iceberg::expr::{Predicate as IcebergPredicate, Reference};
use iceberg::spec::{Datum, PrimitiveType};
use polder_core::{CmpOp, LakeType, Literal, Predicate};

/// The times of a day, in microseconds.
const DAY_MICROS: std::ops::Range<i64> = 0..86_400_000_000;
/// The most values of an [`Predicate::In`] that files are skipped by.
const IN_MAX: usize = 200;

/// The value in the column's type; `None` if it is of another type.
fn to_datum(literal: &Literal, column: &LakeType) -> Option<Datum> {
    Some(match (literal, column) {
        (Literal::Boolean(value), LakeType::Boolean) => Datum::bool(*value),
        (Literal::Int(value), LakeType::Int) => Datum::int(*value),
        (Literal::Int(value), LakeType::Long) => Datum::long(*value),
        (Literal::Long(value), LakeType::Long) => Datum::long(*value),
        (Literal::Long(value), LakeType::Int) => Datum::int(i32::try_from(*value).ok()?),
        (Literal::Float(value), LakeType::Float) => Datum::float(*value),
        (Literal::Float(value), LakeType::Double) => Datum::double(*value),
        (Literal::Double(value), LakeType::Double) => Datum::double(*value),
        (Literal::Decimal { unscaled, scale: own, .. }, LakeType::Decimal { precision, scale })
            if own == scale && unscaled.unsigned_abs() < 10_u128.pow(u32::from(*precision)) =>
        {
            let data_type = PrimitiveType::Decimal {
                precision: u32::from(*precision),
                scale: u32::from(*scale),
            };
            Datum::try_from_bytes(&unscaled.to_be_bytes(), data_type).ok()?
        }
        (Literal::Date(value), LakeType::Date) => Datum::date(*value),
        (Literal::Time(value), LakeType::Time) => Datum::time_micros(*value).ok()?,
        (Literal::Timestamp(value), LakeType::Timestamp) => Datum::timestamp_micros(*value),
        (Literal::Timestamptz(value), LakeType::Timestamptz) => Datum::timestamptz_micros(*value),
        (Literal::String(value), LakeType::String) => Datum::string(value),
        (Literal::Uuid(value), LakeType::Uuid) => Datum::uuid(*value),
        (Literal::Binary(value), LakeType::Binary) => Datum::binary(value.iter().copied()),
        _ => return None,
    })
}

/// An integer or decimal in the column's width, where it fits.
fn in_width_of(literal: &Literal, column: &LakeType) -> Literal {
    match (literal, column) {
        (Literal::Int(value), LakeType::Long) => Literal::Long(i64::from(*value)),
        (Literal::Long(value), LakeType::Int) => {
            i32::try_from(*value).map_or_else(|_| literal.clone(), Literal::Int)
        }
        (Literal::Decimal { unscaled, scale, .. }, LakeType::Decimal { precision, scale: own })
            if scale == own =>
        {
            Literal::Decimal { unscaled: *unscaled, precision: *precision, scale: *scale }
        }
        (other, _) => other.clone(),
    }
}

/// The next value of the type, downwards or upwards. `x < 5` is `x <= 4` to the crate too, but
/// its own way there overflows, and takes a decimal's scale for 0.
fn neighbour(literal: &Literal, step: i8) -> Neighbour {
    let int = |value: i32| value.checked_add(i32::from(step));
    let long = |value: i64| value.checked_add(i64::from(step));
    let next = match literal {
        Literal::Int(value) => int(*value).map(Literal::Int),
        Literal::Date(value) => int(*value).map(Literal::Date),
        Literal::Long(value) => long(*value).map(Literal::Long),
        Literal::Time(value) => {
            long(*value).filter(|next| DAY_MICROS.contains(next)).map(Literal::Time)
        }
        Literal::Timestamp(value) => long(*value).map(Literal::Timestamp),
        Literal::Timestamptz(value) => long(*value).map(Literal::Timestamptz),
        Literal::Decimal { unscaled, precision, scale } => {
            let most = 10_u128.pow(u32::from(*precision));
            let next = unscaled.checked_add(i128::from(step));
            let next = next.filter(|next| next.unsigned_abs() < most);
            next.map(|unscaled| Literal::Decimal { unscaled, precision: *precision, scale: *scale })
        }
        _ => return Neighbour::Unordered,
    };
    next.map_or(Neighbour::None, Neighbour::Value)
}

fn is_nan(literal: &Literal) -> bool {
    match literal {
        Literal::Float(value) => value.is_nan(),
        Literal::Double(value) => value.is_nan(),
        _ => false,
    }
}

/// See [`neighbour`].
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
        if floating && is_nan(value) {
            return match op {
                CmpOp::Eq | CmpOp::GtEq => reference.is_nan(),
                _ => IcebergPredicate::AlwaysTrue,
            };
        }
        let value = &in_width_of(value, &found.data_type);
        let Some(datum) = to_datum(value, &found.data_type) else {
            return IcebergPredicate::AlwaysTrue;
        };
        match (op, floating) {
            (CmpOp::Eq, _) => reference.equal_to(datum),
            // Iceberg's "not equal" holds for nulls; only more rows.
            (CmpOp::NotEq, _) => reference.is_not_null(),
            (CmpOp::Lt, false) => match neighbour(value, -1) {
                Neighbour::Value(value) => self.compare(column, CmpOp::LtEq, &value),
                Neighbour::Unordered => reference.less_than(datum),
                Neighbour::None => IcebergPredicate::AlwaysFalse,
            },
            (CmpOp::Gt, false) => match neighbour(value, 1) {
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
