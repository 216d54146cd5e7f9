//! DataFusion's expressions in the core's words: an allow-list.
//!
//! Types have been made equal by DataFusion before; whether they are exact is judged by the core
//! ([`Term::data_type`]).

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction as Call, InList};
use datafusion::logical_expr::{Between, BinaryExpr, Case, Cast, Expr, Like, Operator};
use polder_core::subplan::{Aggregate, AggregateFunction, Arithmetic, Term};
use polder_core::{CmpOp, LakeType, Literal};

use super::super::filter;

/// Expressions over the columns of one input.
pub(super) struct Terms<'a> {
    schema: &'a DFSchema,
    /// Columns before the first of the input.
    before: usize,
}

impl<'a> Terms<'a> {
    pub(super) fn of(schema: &'a DFSchema) -> Self {
        Self::after(schema, 0)
    }

    pub(super) fn after(schema: &'a DFSchema, before: usize) -> Self {
        Self { schema, before }
    }

    pub(super) fn term(&self, expr: &Expr) -> Option<Term> {
        Some(match expr {
            Expr::Alias(alias) => return self.term(&alias.expr),
            Expr::Column(column) => {
                Term::Column(self.before + self.schema.maybe_index_of_column(column)?)
            }
            Expr::Literal(value, _) if value.is_null() => {
                Term::Null(lake_type(&value.data_type())?)
            }
            Expr::Literal(value, _) => Term::Constant(constant(value)?),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => self.binary(left, *op, right)?,
            Expr::Not(inner) => not(self.term(inner)?),
            Expr::IsNull(inner) | Expr::IsUnknown(inner) => Term::IsNull(self.boxed(inner)?),
            Expr::IsNotNull(inner) | Expr::IsNotUnknown(inner) => {
                not(Term::IsNull(self.boxed(inner)?))
            }
            Expr::IsTrue(inner) => Term::Is(self.boxed(inner)?, true),
            Expr::IsFalse(inner) => Term::Is(self.boxed(inner)?, false),
            Expr::IsNotTrue(inner) => not(Term::Is(self.boxed(inner)?, true)),
            Expr::IsNotFalse(inner) => not(Term::Is(self.boxed(inner)?, false)),
            Expr::Between(between) => self.between(between)?,
            Expr::InList(list) => self.in_list(list)?,
            Expr::Like(like) => self.like(like)?,
            Expr::Case(case) => self.case(case)?,
            Expr::Cast(Cast { expr, data_type }) => {
                Term::Widened(self.boxed(expr)?, lake_type(data_type)?)
            }
            _ => return None,
        })
    }

    fn boxed(&self, expr: &Expr) -> Option<Box<Term>> {
        self.term(expr).map(Box::new)
    }

    fn binary(&self, left: &Expr, op: Operator, right: &Expr) -> Option<Term> {
        let (left, right) = (self.boxed(left)?, self.boxed(right)?);
        let compare = |op, left, right| Term::Compare { op, left, right };
        let arithmetic = |op, left, right| Term::Arithmetic { op, left, right };
        Some(match op {
            Operator::And => Term::And(left, right),
            Operator::Or => Term::Or(left, right),
            Operator::Eq => compare(CmpOp::Eq, left, right),
            Operator::NotEq => compare(CmpOp::NotEq, left, right),
            Operator::Lt => compare(CmpOp::Lt, left, right),
            Operator::LtEq => compare(CmpOp::LtEq, left, right),
            Operator::Gt => compare(CmpOp::Gt, left, right),
            Operator::GtEq => compare(CmpOp::GtEq, left, right),
            Operator::IsDistinctFrom => Term::Distinct(left, right),
            Operator::IsNotDistinctFrom => not(Term::Distinct(left, right)),
            Operator::Plus => arithmetic(Arithmetic::Add, left, right),
            Operator::Minus => arithmetic(Arithmetic::Subtract, left, right),
            Operator::Multiply => arithmetic(Arithmetic::Multiply, left, right),
            _ => return None,
        })
    }

    fn between(&self, between: &Between) -> Option<Term> {
        let low = self.binary(&between.expr, Operator::GtEq, &between.low)?;
        let high = self.binary(&between.expr, Operator::LtEq, &between.high)?;
        let inside = Term::And(Box::new(low), Box::new(high));
        Some(if between.negated { not(inside) } else { inside })
    }

    /// Nulls among the values have a meaning of their own, and are left to the engine.
    fn in_list(&self, InList { expr, list, negated }: &InList) -> Option<Term> {
        let value = |expr: &Expr| match expr {
            Expr::Literal(value, _) => constant(value),
            _ => None,
        };
        let values = list.iter().map(value).collect::<Option<Vec<_>>>()?;
        let within = Term::In { term: self.boxed(expr)?, values };
        Some(if *negated { not(within) } else { within })
    }

    fn like(&self, like: &Like) -> Option<Term> {
        let Expr::Literal(pattern, _) = &*like.pattern else { return None };
        let Literal::String(pattern) = constant(pattern)? else { return None };
        if like.case_insensitive || like.escape_char.is_some() {
            return None;
        }
        let like_it = Term::Like { term: self.boxed(&like.expr)?, pattern };
        Some(if like.negated { not(like_it) } else { like_it })
    }

    fn case(&self, Case { expr, when_then_expr, else_expr }: &Case) -> Option<Term> {
        let mut whens = Vec::with_capacity(when_then_expr.len());
        for (when, then) in when_then_expr {
            let when = match expr {
                Some(expr) => self.binary(expr, Operator::Eq, when)?,
                None => self.term(when)?,
            };
            whens.push((when, self.term(then)?));
        }
        let otherwise = match else_expr {
            Some(otherwise) => Some(self.boxed(otherwise)?),
            None => None,
        };
        Some(Term::Case { whens, otherwise })
    }
}

fn not(term: Term) -> Term {
    Term::Not(Box::new(term))
}

/// A call of one of the five functions; others, and calls with an order, are left to the engine.
pub(super) fn aggregate(expr: &Expr, from: &Terms<'_>) -> Option<Aggregate> {
    let call = match expr {
        Expr::Alias(alias) => return aggregate(&alias.expr, from),
        Expr::AggregateFunction(call) => call,
        _ => return None,
    };
    let Call { func, params } = call;
    let [argument] = params.args.as_slice() else { return None };
    if !params.order_by.is_empty() || params.null_treatment.is_some() {
        return None;
    }
    let function = match func.name() {
        "count" => AggregateFunction::Count,
        "sum" => AggregateFunction::Sum,
        "min" => AggregateFunction::Min,
        "max" => AggregateFunction::Max,
        "avg" => AggregateFunction::Average,
        _ => return None,
    };
    let argument = match (function, argument) {
        (AggregateFunction::Count, Expr::Literal(value, _)) if !value.is_null() => None,
        // Of integers it is an average of doubles.
        (AggregateFunction::Average, Expr::Cast(Cast { expr, data_type: DataType::Float64 })) => {
            Some(from.term(expr)?)
        }
        (_, argument) => Some(from.term(argument)?),
    };
    let filter = match &params.filter {
        Some(filter) => Some(from.term(filter)?),
        None => None,
    };
    Some(Aggregate { function, argument, distinct: params.distinct, filter })
}

fn constant(value: &ScalarValue) -> Option<Literal> {
    filter::literal(value, &lake_type(&value.data_type())?)
}

/// The scalar type of the lake that is this one in Arrow.
fn lake_type(data_type: &DataType) -> Option<LakeType> {
    Some(match data_type {
        DataType::Boolean => LakeType::Boolean,
        DataType::Int32 => LakeType::Int,
        DataType::Int64 => LakeType::Long,
        DataType::Decimal128(precision, scale) => {
            let (precision, scale) = (*precision, u8::try_from(*scale).ok()?);
            return (scale <= precision).then_some(LakeType::Decimal { precision, scale });
        }
        DataType::Date32 => LakeType::Date,
        DataType::Time64(TimeUnit::Microsecond) => LakeType::Time,
        DataType::Timestamp(TimeUnit::Microsecond, None) => LakeType::Timestamp,
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if **zone == *"+00:00" => {
            LakeType::Timestamptz
        }
        DataType::Utf8 => LakeType::String,
        DataType::FixedSizeBinary(16) => LakeType::Uuid,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};
    use datafusion::prelude::{cast, col, lit, lower};

    use super::*;

    fn schema() -> DFSchema {
        let fields = vec![
            Field::new("id", DataType::Int32, true),
            Field::new("big", DataType::Int64, true),
            Field::new("words", DataType::Utf8, true),
            Field::new("ratio", DataType::Float64, true),
        ];
        DFSchema::try_from(Schema::new(fields)).expect("names differ")
    }

    #[test]
    fn only_what_means_the_same_is_said() {
        let schema = schema();
        let types = [LakeType::Int, LakeType::Long, LakeType::String, LakeType::Double];
        let cases = [
            (col("id").eq(lit(1_i32)), true),
            (cast(col("id"), DataType::Int64).eq(col("big")), true),
            (cast(col("big"), DataType::Int32).eq(col("id")), false),
            (col("words").like(lit("a_b%")), true),
            (col("words").like(lit("a\\%")), false),
            (col("words").ilike(lit("a%")), false),
            (lower(col("words")).eq(lit("a")), false),
            (col("ratio").gt(lit(1.0)), false),
            (col("ratio").is_null(), true),
            (col("big") + lit(1_i64), false),
            (cast(col("id"), DataType::Int64) + lit(1_i64), true),
            (col("id").in_list(vec![lit(1_i32), lit(ScalarValue::Int32(None))], false), false),
            (col("id").between(lit(1_i32), lit(2_i32)), true),
            (col("id") / lit(2_i32), false),
            (col("nowhere").eq(lit(1_i32)), false),
        ];
        for (expr, expected) in cases {
            let term = Terms::of(&schema).term(&expr);
            let exact = term.and_then(|term| term.data_type(&types)).is_some();
            assert_eq!(exact, expected, "{expr}");
        }
    }
}
