//! DataFusion's filters → the lake's predicates, for skipping manifests and files.
//!
//! A predicate made here may let more rows through than the filter (the filter itself stays above
//! the scan), never fewer. What cannot be said exactly is left out.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Like, Operator};
use polder_core::{LakeType, TableSchema};

use polder_lake::{CmpOp, Literal, Predicate};

/// The conjunction of what of `filters` the lake can evaluate on statistics.
pub(super) fn predicate(filters: &[Expr], schema: &TableSchema) -> Predicate {
    filters.iter().fold(Predicate::True, |all, filter| all.and(weaker(filter, schema)))
}

/// A predicate that is true wherever `expr` is: a conjunction may lose a part.
fn weaker(expr: &Expr, schema: &TableSchema) -> Predicate {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            weaker(left, schema).and(weaker(right, schema))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            match (weaker(left, schema), weaker(right, schema)) {
                (Predicate::True, _) | (_, Predicate::True) => Predicate::True,
                (left, right) => Predicate::Or(Box::new(left), Box::new(right)),
            }
        }
        other => exact(other, schema).unwrap_or(Predicate::True),
    }
}

/// A predicate that is true exactly where `expr` is, if there is one.
fn exact(expr: &Expr, schema: &TableSchema) -> Option<Predicate> {
    match expr {
        Expr::Column(_) => compare(expr, CmpOp::Eq, &ScalarValue::Boolean(Some(true)), schema),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            Some(exact(left, schema)?.and(exact(right, schema)?))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (left, right) = (exact(left, schema)?, exact(right, schema)?);
            Some(Predicate::Or(Box::new(left), Box::new(right)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
            (column, Expr::Literal(value, _)) => compare(column, operator(*op)?, value, schema),
            (Expr::Literal(value, _), column) => {
                compare(column, operator(op.swap()?)?, value, schema)
            }
            _ => None,
        },
        Expr::Not(inner) => Some(Predicate::Not(Box::new(exact(inner, schema)?))),
        Expr::IsNull(inner) => Some(Predicate::IsNull(column(inner, schema)?.0)),
        Expr::IsNotNull(inner) => Some(Predicate::IsNotNull(column(inner, schema)?.0)),
        Expr::InList(list) => in_list(list, schema),
        Expr::Between(between) => self::between(between, schema),
        Expr::Like(like) => starts_with(like, schema),
        _ => None,
    }
}

pub(super) fn operator(op: Operator) -> Option<CmpOp> {
    Some(match op {
        Operator::Eq => CmpOp::Eq,
        Operator::NotEq => CmpOp::NotEq,
        Operator::Lt => CmpOp::Lt,
        Operator::LtEq => CmpOp::LtEq,
        Operator::Gt => CmpOp::Gt,
        Operator::GtEq => CmpOp::GtEq,
        _ => return None,
    })
}

/// The name and type of a top-level column.
fn column<'a>(expr: &Expr, schema: &'a TableSchema) -> Option<(String, &'a LakeType)> {
    let Expr::Column(column) = expr else { return None };
    Some((column.name.clone(), &schema.field(&column.name)?.data_type))
}

fn compare(expr: &Expr, op: CmpOp, value: &ScalarValue, schema: &TableSchema) -> Option<Predicate> {
    let (column, data_type) = column(expr, schema)?;
    Some(Predicate::Cmp { column, op, value: literal(value, data_type)? })
}

fn in_list(list: &InList, schema: &TableSchema) -> Option<Predicate> {
    let (column, data_type) = column(&list.expr, schema)?;
    let value = |expr: &Expr| match expr {
        Expr::Literal(value, _) => literal(value, data_type),
        _ => None,
    };
    let values = list.list.iter().map(value).collect::<Option<Vec<_>>>()?;
    let is_in = Predicate::In { column, values };
    Some(if list.negated { Predicate::Not(Box::new(is_in)) } else { is_in })
}

fn between(between: &Between, schema: &TableSchema) -> Option<Predicate> {
    let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&*between.low, &*between.high) else {
        return None;
    };
    let low = compare(&between.expr, CmpOp::GtEq, low, schema)?;
    let high = compare(&between.expr, CmpOp::LtEq, high, schema)?;
    let inside = low.and(high);
    Some(if between.negated { Predicate::Not(Box::new(inside)) } else { inside })
}

/// `column LIKE 'prefix%'` without any other wildcard.
fn starts_with(like: &Like, schema: &TableSchema) -> Option<Predicate> {
    let (column, LakeType::String) = column(&like.expr, schema)? else { return None };
    let Expr::Literal(pattern, _) = &*like.pattern else { return None };
    let prefix = pattern.try_as_str()??.strip_suffix('%')?;
    let plain = !prefix.is_empty() && !prefix.contains(['%', '_', '\\']);
    if like.negated || like.case_insensitive || like.escape_char.is_some() || !plain {
        return None;
    }
    Some(Predicate::StartsWith { column, prefix: prefix.to_owned() })
}

/// A constant of exactly the column's type; null compares to nothing and is left out.
///
/// Floating-point columns are left out too: their bounds do not know NaN, see `may_prune`.
pub(super) fn literal(value: &ScalarValue, data_type: &LakeType) -> Option<Literal> {
    Some(match (value, data_type) {
        (ScalarValue::Boolean(Some(v)), LakeType::Boolean) => Literal::Boolean(*v),
        (ScalarValue::Int32(Some(v)), LakeType::Int) => Literal::Int(*v),
        (ScalarValue::Int64(Some(v)), LakeType::Long) => Literal::Long(*v),
        (ScalarValue::Decimal128(Some(v), precision, s1), LakeType::Decimal { scale: s2, .. })
            if u8::try_from(*s1) == Ok(*s2) =>
        {
            Literal::Decimal { unscaled: *v, precision: *precision, scale: *s2 }
        }
        (ScalarValue::Date32(Some(v)), LakeType::Date) => Literal::Date(*v),
        (ScalarValue::Time64Microsecond(Some(v)), LakeType::Time) => Literal::Time(*v),
        (ScalarValue::TimestampMicrosecond(Some(v), None), LakeType::Timestamp) => {
            Literal::Timestamp(*v)
        }
        (ScalarValue::TimestampMicrosecond(Some(v), Some(_)), LakeType::Timestamptz) => {
            Literal::Timestamptz(*v)
        }
        (value, LakeType::String) => Literal::String(value.try_as_str()??.to_owned()),
        (ScalarValue::FixedSizeBinary(16, Some(v)), LakeType::Uuid) => {
            Literal::Uuid(uuid::Uuid::from_slice(v).ok()?)
        }
        (
            ScalarValue::Binary(Some(v))
            | ScalarValue::BinaryView(Some(v))
            | ScalarValue::LargeBinary(Some(v)),
            LakeType::Binary,
        ) => Literal::Binary(v.clone()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::{col, lit};
    use polder_core::Field;

    use super::*;

    fn schema() -> TableSchema {
        TableSchema::new(vec![
            Field::new("id", LakeType::Long),
            Field::new("Name", LakeType::String),
            Field::new("x", LakeType::Double),
            Field::new("ok", LakeType::Boolean),
        ])
    }

    fn cmp(column: &str, op: CmpOp, value: i64) -> Predicate {
        Predicate::Cmp { column: column.to_owned(), op, value: Literal::Long(value) }
    }

    fn quoted(name: &str) -> Expr {
        Expr::Column(datafusion::common::Column::from_name(name))
    }

    #[test]
    fn what_is_not_exact_is_left_out() {
        let some = |p: Predicate| Box::new(p);
        let starts = Predicate::StartsWith { column: "Name".to_owned(), prefix: "ab".to_owned() };
        let cases = [
            (col("id").gt(lit(5_i64)), cmp("id", CmpOp::Gt, 5)),
            (lit(5_i64).gt(col("id")), cmp("id", CmpOp::Lt, 5)),
            (col("id").gt(lit(5_i32)), Predicate::True),
            (col("x").gt(lit(5.0)), Predicate::True),
            (col("x").is_null(), Predicate::IsNull("x".to_owned())),
            (col("id").gt(lit(5_i64)).and(col("x").gt(lit(1.0))), cmp("id", CmpOp::Gt, 5)),
            (col("id").gt(lit(5_i64)).or(col("x").gt(lit(1.0))), Predicate::True),
            (
                Expr::Not(Box::new(col("id").gt(lit(5_i64)).and(col("x").gt(lit(1.0))))),
                Predicate::True,
            ),
            (
                col("id").between(lit(1_i64), lit(2_i64)),
                Predicate::And(some(cmp("id", CmpOp::GtEq, 1)), some(cmp("id", CmpOp::LtEq, 2))),
            ),
            (quoted("Name").like(lit("ab%")), starts),
            (quoted("Name").like(lit("a_b%")), Predicate::True),
            (
                col("id").in_list(vec![lit(1_i64), lit(ScalarValue::Int64(None))], true),
                Predicate::True,
            ),
            (col("id").gt(lit(ScalarValue::Int64(None))), Predicate::True),
            (col("nowhere").gt(lit(5_i64)), Predicate::True),
        ];
        for (filter, expected) in cases {
            assert_eq!(predicate(std::slice::from_ref(&filter), &schema()), expected, "{filter}");
        }
    }
}
