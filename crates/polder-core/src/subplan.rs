//! A part of a query that one source can answer by itself.
//!
//! A small algebra with the query engine's meaning, and no more than what can have the same meaning
//! at a source: exact types, three-valued logic, texts by their bytes, decimals without rounding, no
//! arithmetic that may overflow. Columns go by their position. Which of it a source answers is the
//! source's to say; how SQL becomes this is the query engine's.

use crate::{CmpOp, Field, LakeType, Literal, Predicate};

/// Digits of a decimal whose sum cannot pass 38 before ten thousand million rows.
const SUM_DIGITS_MAX: u8 = 28;
/// What a sum adds to the digits of its argument, and an average to digits and scale.
const SUM_DIGITS: u8 = 10;
const AVERAGE_DIGITS: u8 = 4;
const DECIMAL_DIGITS_MAX: u8 = 38;

/// Rows made of a source's tables.
#[derive(Clone, Debug, PartialEq)]
pub enum SubPlan {
    /// Columns of a table, and all rows for which `predicate` is true; others may be there too.
    Table { from: String, columns: Vec<Field>, predicate: Predicate },
    /// The rows for which `condition` is true.
    Filter { input: Box<SubPlan>, condition: Term },
    /// A column for each term.
    Project { input: Box<SubPlan>, terms: Vec<Term> },
    /// The columns of `left`, then those of `right`; so count the columns of `condition`.
    Join { left: Box<SubPlan>, right: Box<SubPlan>, kind: JoinKind, condition: Term },
    /// A row for each value of the keys, null among them; one row if there are no keys.
    Aggregate { input: Box<SubPlan>, keys: Vec<Term>, aggregates: Vec<Aggregate> },
    /// As many rows at most: the first of the order, any of those that are equal in it.
    First { input: Box<SubPlan>, order: Vec<Order>, rows: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinKind {
    Inner,
    /// Rows of the left side without a partner stay, with nulls for the right side's columns.
    Left,
}

/// A value for each row.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// The input's column at this position.
    Column(usize),
    Constant(Literal),
    Null(LakeType),
    Compare {
        op: CmpOp,
        left: Box<Term>,
        right: Box<Term>,
    },
    /// `IS DISTINCT FROM`: never null.
    Distinct(Box<Term>, Box<Term>),
    And(Box<Term>, Box<Term>),
    Or(Box<Term>, Box<Term>),
    Not(Box<Term>),
    IsNull(Box<Term>),
    /// `IS TRUE`, `IS FALSE`: never null.
    Is(Box<Term>, bool),
    In {
        term: Box<Term>,
        values: Vec<Literal>,
    },
    /// With `%` and `_`, and nothing that escapes them.
    Like {
        term: Box<Term>,
        pattern: String,
    },
    /// The first value whose condition is true; null if there is none and no `otherwise`.
    Case {
        whens: Vec<(Term, Term)>,
        otherwise: Option<Box<Term>>,
    },
    /// Of integers that cannot leave their type, or decimals whose result has all its digits.
    Arithmetic {
        op: Arithmetic,
        left: Box<Term>,
        right: Box<Term>,
    },
    /// As a type that has every value of the term's own.
    Widened(Box<Term>, LakeType),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
}

/// A value for each group of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    pub function: AggregateFunction,
    /// Of which nulls do not count; `None`: rows.
    pub argument: Option<Term>,
    /// Each value once.
    pub distinct: bool,
    /// Only the rows for which this is true.
    pub filter: Option<Term>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateFunction {
    Count,
    Sum,
    Min,
    Max,
    /// Of `int`: the double nearest to the sum divided by the count. Of decimals: four places more than
    /// the argument has, what comes after them cut off.
    Average,
}

/// One key of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub term: Term,
    pub descending: bool,
    pub nulls_first: bool,
}

impl SubPlan {
    /// The types of its columns; `None` if a part of it has no exact meaning.
    pub fn columns(&self) -> Option<Vec<LakeType>> {
        match self {
            Self::Table { columns, .. } => {
                Some(columns.iter().map(|field| field.data_type.clone()).collect())
            }
            Self::Filter { input, condition } => {
                let columns = input.columns()?;
                condition.is_condition(&columns).then_some(columns)
            }
            Self::Project { input, terms } => {
                let columns = input.columns()?;
                terms.iter().map(|term| term.data_type(&columns)).collect()
            }
            Self::Join { left, right, condition, .. } => {
                let columns = [left.columns()?, right.columns()?].concat();
                condition.is_condition(&columns).then_some(columns)
            }
            Self::Aggregate { input, keys, aggregates } => {
                let columns = input.columns()?;
                let keys = keys.iter().map(|key| key.comparable(&columns));
                let values = aggregates.iter().map(|aggregate| aggregate.data_type(&columns));
                keys.chain(values).collect()
            }
            Self::First { input, order, .. } => {
                let columns = input.columns()?;
                let ordered = order.iter().all(|key| key.term.comparable(&columns).is_some());
                ordered.then_some(columns)
            }
        }
    }

    /// The parts it is made of, itself first.
    pub fn parts(&self) -> Vec<&SubPlan> {
        let mut parts = vec![self];
        match self {
            Self::Table { .. } => {}
            Self::Filter { input, .. }
            | Self::Project { input, .. }
            | Self::Aggregate { input, .. }
            | Self::First { input, .. } => parts.extend(input.parts()),
            Self::Join { left, right, .. } => {
                parts.extend(left.parts());
                parts.extend(right.parts());
            }
        }
        parts
    }
}

impl Term {
    /// Its type, of these columns; `None` if it has no exact meaning.
    pub fn data_type(&self, columns: &[LakeType]) -> Option<LakeType> {
        let boolean = |holds: bool| holds.then_some(LakeType::Boolean);
        match self {
            Self::Column(index) => columns.get(*index).cloned(),
            Self::Constant(value) => constant_type(value),
            Self::Null(data_type) => Some(data_type.clone()),
            Self::Compare { left, right, .. } | Self::Distinct(left, right) => {
                let (left, right) = (left.comparable(columns)?, right.comparable(columns)?);
                boolean(are_alike(&left, &right))
            }
            Self::And(left, right) | Self::Or(left, right) => {
                boolean(left.is_condition(columns) && right.is_condition(columns))
            }
            Self::Not(term) | Self::Is(term, _) => boolean(term.is_condition(columns)),
            Self::IsNull(term) => boolean(term.data_type(columns).is_some()),
            Self::In { term, values } => {
                let of = term.comparable(columns)?;
                let alike =
                    |value| constant_type(value).is_some_and(|found| are_alike(&of, &found));
                boolean(!values.is_empty() && values.iter().all(alike))
            }
            Self::Like { term, pattern } => {
                let text = term.data_type(columns)? == LakeType::String;
                boolean(text && !pattern.contains('\\'))
            }
            Self::Case { whens, otherwise } => {
                // Each value once: values may be nested deeply.
                let ((_, first), others) = whens.split_first()?;
                let of = first.comparable(columns)?;
                let same = |term: &Self| term.data_type(columns).as_ref() == Some(&of);
                let exact = whens.iter().all(|(when, _)| when.is_condition(columns))
                    && others.iter().all(|(_, then)| same(then))
                    && otherwise.as_deref().is_none_or(same);
                exact.then_some(of)
            }
            Self::Arithmetic { op, left, right } => self.arithmetic(*op, left, right, columns),
            Self::Widened(term, to) => {
                let from = term.data_type(columns)?;
                widens(&from, to).then(|| to.clone())
            }
        }
    }

    fn is_condition(&self, columns: &[LakeType]) -> bool {
        self.data_type(columns) == Some(LakeType::Boolean)
    }

    /// Its type, if values of it compare alike everywhere. Floats do not: two zeros are one value to
    /// PostgreSQL and two to Arrow.
    fn comparable(&self, columns: &[LakeType]) -> Option<LakeType> {
        self.data_type(columns).filter(|found| match found {
            LakeType::Boolean
            | LakeType::Int
            | LakeType::Long
            | LakeType::Decimal { .. }
            | LakeType::Date
            | LakeType::Time
            | LakeType::Timestamp
            | LakeType::Timestamptz
            | LakeType::String
            | LakeType::Uuid => true,
            LakeType::Float
            | LakeType::Double
            | LakeType::Binary
            | LakeType::List(_)
            | LakeType::Struct(_) => false,
        })
    }

    fn arithmetic(
        &self,
        op: Arithmetic,
        left: &Self,
        right: &Self,
        columns: &[LakeType],
    ) -> Option<LakeType> {
        match (left.data_type(columns)?, right.data_type(columns)?) {
            (LakeType::Int, LakeType::Int) => {
                within(self.range(columns)?, &LakeType::Int).then_some(LakeType::Int)
            }
            (LakeType::Long, LakeType::Long) => {
                within(self.range(columns)?, &LakeType::Long).then_some(LakeType::Long)
            }
            (
                LakeType::Decimal { precision: p1, scale: s1 },
                LakeType::Decimal { precision: p2, scale: s2 },
            ) => {
                let (precision, scale) = match op {
                    Arithmetic::Add | Arithmetic::Subtract => {
                        let scale = s1.max(s2);
                        (scale + (p1 - s1).max(p2 - s2) + 1, scale)
                    }
                    Arithmetic::Multiply => (p1 + p2 + 1, s1 + s2),
                };
                let whole = precision <= DECIMAL_DIGITS_MAX;
                whole.then_some(LakeType::Decimal { precision, scale })
            }
            _ => None,
        }
    }

    /// The least and the greatest that an integer may be.
    fn range(&self, columns: &[LakeType]) -> Option<(i128, i128)> {
        match self {
            Self::Constant(Literal::Int(value)) => Some((i128::from(*value), i128::from(*value))),
            Self::Constant(Literal::Long(value)) => Some((i128::from(*value), i128::from(*value))),
            Self::Widened(term, LakeType::Long) => term.range(columns),
            Self::Arithmetic { op, left, right } => {
                let ((a, b), (c, d)) = (left.range(columns)?, right.range(columns)?);
                Some(match op {
                    Arithmetic::Add => (a.checked_add(c)?, b.checked_add(d)?),
                    Arithmetic::Subtract => (a.checked_sub(d)?, b.checked_sub(c)?),
                    Arithmetic::Multiply => {
                        let corners = [(a, c), (a, d), (b, c), (b, d)];
                        let products = corners.map(|(one, other)| one.checked_mul(other));
                        let products = products.into_iter().collect::<Option<Vec<_>>>()?;
                        (*products.iter().min()?, *products.iter().max()?)
                    }
                })
            }
            other => integers(&other.data_type(columns)?),
        }
    }
}

impl Aggregate {
    /// Its type, of these columns; `None` if it has no exact meaning.
    pub fn data_type(&self, columns: &[LakeType]) -> Option<LakeType> {
        if self.filter.as_ref().is_some_and(|filter| !filter.is_condition(columns)) {
            return None;
        }
        let Some(argument) = &self.argument else {
            let rows = self.function == AggregateFunction::Count && !self.distinct;
            return rows.then_some(LakeType::Long);
        };
        if self.function == AggregateFunction::Count {
            let argument = if self.distinct {
                argument.comparable(columns)
            } else {
                argument.data_type(columns)
            };
            return argument.map(|_| LakeType::Long);
        }
        let of = argument.comparable(columns).filter(|_| !self.distinct)?;
        match (self.function, of) {
            (AggregateFunction::Sum, LakeType::Long) => Some(LakeType::Long),
            (AggregateFunction::Sum, LakeType::Decimal { precision, scale })
                if precision <= SUM_DIGITS_MAX =>
            {
                Some(LakeType::Decimal { precision: precision + SUM_DIGITS, scale })
            }
            (AggregateFunction::Average, LakeType::Int) => Some(LakeType::Double),
            (AggregateFunction::Average, LakeType::Decimal { precision, scale })
                if precision <= SUM_DIGITS_MAX - AVERAGE_DIGITS =>
            {
                let (precision, scale) = (precision + AVERAGE_DIGITS, scale + AVERAGE_DIGITS);
                Some(LakeType::Decimal { precision, scale })
            }
            (
                AggregateFunction::Min | AggregateFunction::Max,
                of @ (LakeType::Int
                | LakeType::Long
                | LakeType::Decimal { .. }
                | LakeType::Date
                | LakeType::Time
                | LakeType::Timestamp
                | LakeType::Timestamptz
                | LakeType::String),
            ) => Some(of),
            _ => None,
        }
    }
}

fn constant_type(value: &Literal) -> Option<LakeType> {
    Some(match value {
        Literal::Boolean(_) => LakeType::Boolean,
        Literal::Int(_) => LakeType::Int,
        Literal::Long(_) => LakeType::Long,
        Literal::Decimal { precision, scale, .. } if scale <= precision => {
            LakeType::Decimal { precision: *precision, scale: *scale }
        }
        Literal::Date(_) => LakeType::Date,
        Literal::Time(_) => LakeType::Time,
        Literal::Timestamp(_) => LakeType::Timestamp,
        Literal::Timestamptz(_) => LakeType::Timestamptz,
        Literal::String(_) => LakeType::String,
        Literal::Uuid(_) => LakeType::Uuid,
        Literal::Decimal { .. } | Literal::Float(_) | Literal::Double(_) | Literal::Binary(_) => {
            return None;
        }
    })
}

/// Whether values of the two compare with each other.
fn are_alike(left: &LakeType, right: &LakeType) -> bool {
    let decimals = matches!((left, right), (LakeType::Decimal { .. }, LakeType::Decimal { .. }));
    left == right || decimals
}

/// Whether `to` has every value of `from`.
fn widens(from: &LakeType, to: &LakeType) -> bool {
    let decimal_has = |digits: u8| match to {
        LakeType::Decimal { precision, scale } => precision - scale >= digits,
        _ => false,
    };
    match (from, to) {
        (LakeType::Int, LakeType::Long) => true,
        (LakeType::Int, LakeType::Decimal { .. }) => decimal_has(10),
        (LakeType::Long, LakeType::Decimal { .. }) => decimal_has(19),
        (
            LakeType::Decimal { precision, scale: from_scale },
            LakeType::Decimal { scale: to_scale, .. },
        ) => to_scale >= from_scale && decimal_has(precision - from_scale),
        (from, to) => from == to,
    }
}

fn integers(data_type: &LakeType) -> Option<(i128, i128)> {
    match data_type {
        LakeType::Int => Some((i128::from(i32::MIN), i128::from(i32::MAX))),
        LakeType::Long => Some((i128::from(i64::MIN), i128::from(i64::MAX))),
        _ => None,
    }
}

fn within((least, greatest): (i128, i128), data_type: &LakeType) -> bool {
    integers(data_type).is_some_and(|(low, high)| least >= low && greatest <= high)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [LakeType; 6] = [
        LakeType::Int,
        LakeType::Long,
        LakeType::Decimal { precision: 12, scale: 2 },
        LakeType::Double,
        LakeType::String,
        LakeType::Decimal { precision: 38, scale: 10 },
    ];

    fn column(index: usize) -> Term {
        Term::Column(index)
    }

    fn decimal(precision: u8, scale: u8) -> LakeType {
        LakeType::Decimal { precision, scale }
    }

    #[test]
    fn what_may_round_or_overflow_has_no_type() {
        let add = |left, right| Term::Arithmetic { op: Arithmetic::Add, left, right };
        let times = |left, right| Term::Arithmetic { op: Arithmetic::Multiply, left, right };
        let long = |value| Box::new(Term::Constant(Literal::Long(value)));
        let wide = || Box::new(Term::Widened(column(0).into(), LakeType::Long));
        let is = |left, right| Term::Compare { op: CmpOp::Eq, left, right };
        let cases = [
            (add(wide(), long(1)), Some(LakeType::Long)),
            (add(column(1).into(), long(1)), None),
            (add(column(0).into(), column(0).into()), None),
            (times(wide(), wide()), Some(LakeType::Long)),
            (times(Box::new(times(wide(), wide())), wide()), None),
            (add(column(2).into(), column(2).into()), Some(decimal(13, 2))),
            (times(column(2).into(), column(2).into()), Some(decimal(25, 4))),
            (times(column(2).into(), column(5).into()), None),
            (add(column(3).into(), column(3).into()), None),
            (is(column(0).into(), column(1).into()), None),
            (is(wide(), column(1).into()), Some(LakeType::Boolean)),
            (is(column(2).into(), column(5).into()), Some(LakeType::Boolean)),
            (is(column(3).into(), column(3).into()), None),
            (Term::IsNull(column(3).into()), Some(LakeType::Boolean)),
            (Term::Widened(column(0).into(), decimal(10, 0)), Some(decimal(10, 0))),
            (Term::Widened(column(1).into(), decimal(10, 0)), None),
            (Term::Widened(column(2).into(), decimal(12, 3)), None),
            (Term::Widened(column(2).into(), decimal(13, 3)), Some(decimal(13, 3))),
            (Term::Column(9), None),
        ];
        for (term, expected) in cases {
            assert_eq!(term.data_type(&COLUMNS), expected, "{term:?}");
        }
    }

    #[test]
    fn aggregates_are_of_exact_types() {
        use AggregateFunction::{Average, Count, Max, Sum};
        let cases = [
            (Count, 3, Some(LakeType::Long)),
            (Sum, 1, Some(LakeType::Long)),
            (Sum, 2, Some(decimal(22, 2))),
            (Sum, 3, None),
            (Sum, 5, None),
            (Average, 0, Some(LakeType::Double)),
            (Average, 1, None),
            (Average, 2, Some(decimal(16, 6))),
            (Average, 3, None),
            (Max, 4, Some(LakeType::String)),
            (Max, 3, None),
        ];
        for (function, index, expected) in cases {
            let argument = Some(Term::Column(index));
            let aggregate = Aggregate { function, argument, distinct: false, filter: None };
            assert_eq!(aggregate.data_type(&COLUMNS), expected, "{aggregate:?}");
        }
    }
}
