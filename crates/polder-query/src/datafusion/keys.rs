//! Keys that a join has found on its smaller side → what is wanted of the larger one's rows.
//!
//! DataFusion's hash join hands a filter to the scan of its larger side while the query is planned, and
//! fills it in once it has read the smaller one: a list of keys, or their least and greatest. A predicate
//! made here lets all rows through for which the filter is true, and maybe others: the join decides. What
//! cannot be said of a column and constants alone is left out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, DynamicFilterPhysicalExpr, InListExpr, Literal,
};
use polder_core::{CmpOp, Field, LakeType, Predicate};

use super::filter::{literal, operator};

/// The most keys that are sent to a source.
pub(super) const KEYS_MAX: usize = 10_000;

/// How long filters are waited for. Of a join's partitions the last one fills its filter in, and lets the
/// others go on a moment before; a filter of other operators is complete only when all has been read.
const PATIENCE: Duration = Duration::from_millis(200);

/// Waits until the filters say all that they are going to, but not for long.
pub(super) async fn settled(filters: &[Arc<dyn PhysicalExpr>]) {
    let all = async {
        for filter in filters {
            if let Some(filter) = filter.as_any().downcast_ref::<DynamicFilterPhysicalExpr>() {
                filter.wait_complete().await;
            }
        }
    };
    // What has not been said by then is not asked for.
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

/// The conjunction of what the filters say at the moment of `columns`, which are those of the scan, in order.
pub(super) fn predicate(filters: &[Arc<dyn PhysicalExpr>], columns: &[Field]) -> Predicate {
    filters.iter().fold(Predicate::True, |all, filter| all.and(weaker(filter, columns)))
}

/// Whether the filter is one that is filled in while the query runs.
pub(super) fn is_dynamic(filter: &Arc<dyn PhysicalExpr>) -> bool {
    filter.as_any().is::<DynamicFilterPhysicalExpr>()
}

fn weaker(expr: &Arc<dyn PhysicalExpr>, columns: &[Field]) -> Predicate {
    let any = expr.as_any();
    if let Some(filter) = any.downcast_ref::<DynamicFilterPhysicalExpr>() {
        return filter.current().map_or(Predicate::True, |current| weaker(&current, columns));
    }
    if let Some(binary) = any.downcast_ref::<BinaryExpr>() {
        let (left, right) = (binary.left(), binary.right());
        return match binary.op() {
            Operator::And => both(weaker(left, columns), weaker(right, columns)),
            Operator::Or => one_of([left, right], columns),
            op => compare(left, *op, right, columns).unwrap_or(Predicate::True),
        };
    }
    if let Some(list) = any.downcast_ref::<InListExpr>() {
        return in_list(list, columns).unwrap_or(Predicate::True);
    }
    // One branch for each partition of the join's smaller side.
    if let Some(case) = any.downcast_ref::<CaseExpr>() {
        let branches = case.when_then_expr().iter().map(|(_, then)| then);
        return one_of(branches.chain(case.else_expr()), columns);
    }
    Predicate::True
}

/// Ranges beside a list of the same column's values say nothing more, and go.
fn both(a: Predicate, b: Predicate) -> Predicate {
    let covers = |list: &Predicate, other: &Predicate| match list {
        Predicate::In { column, .. } => other.columns().iter().all(|name| name == column),
        _ => false,
    };
    if covers(&b, &a) {
        b
    } else if covers(&a, &b) {
        a
    } else {
        a.and(b)
    }
}

fn one_of<'a>(
    branches: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    columns: &[Field],
) -> Predicate {
    let mut found: Option<Predicate> = None;
    for branch in branches.into_iter().filter(|branch| !is_false(branch)) {
        found = Some(match (found, weaker(branch, columns)) {
            (_, Predicate::True) => return Predicate::True,
            (None, other) => other,
            (Some(one), other) => either(one, other),
        });
    }
    // Where no row is wanted, the join asks for none.
    found.unwrap_or(Predicate::True)
}

fn either(a: Predicate, b: Predicate) -> Predicate {
    match (a, b) {
        (Predicate::In { column, values }, Predicate::In { column: other, values: more })
            if column == other && values.len() + more.len() <= KEYS_MAX =>
        {
            Predicate::In { column, values: [values, more].concat() }
        }
        (a, b) => Predicate::Or(Box::new(a), Box::new(b)),
    }
}

fn is_false(expr: &Arc<dyn PhysicalExpr>) -> bool {
    constant(expr).is_some_and(|value| *value == ScalarValue::Boolean(Some(false)))
}

fn compare(
    left: &Arc<dyn PhysicalExpr>,
    op: Operator,
    right: &Arc<dyn PhysicalExpr>,
    columns: &[Field],
) -> Option<Predicate> {
    let (field, op, value) = match (column(left, columns), column(right, columns)) {
        (Some(field), None) => (field, operator(op)?, constant(right)?),
        (None, Some(field)) => (field, operator(op.swap()?)?, constant(left)?),
        _ => return None,
    };
    // Not equal to anything is what no join says.
    let value = literal(value, &field.data_type).filter(|_| op != CmpOp::NotEq)?;
    Some(Predicate::Cmp { column: field.name.clone(), op, value })
}

fn in_list(list: &InListExpr, columns: &[Field]) -> Option<Predicate> {
    let field = column(list.expr(), columns).filter(|_| !list.negated())?;
    let (mut seen, mut values) = (HashSet::new(), Vec::new());
    for key in list.list() {
        let key = constant(key)?;
        // A null is equal to nothing.
        if !key.is_null() && seen.insert(key) {
            values.push(literal(key, &field.data_type)?);
        }
        if values.len() > KEYS_MAX {
            return None;
        }
    }
    let column = field.name.clone();
    (!values.is_empty()).then_some(Predicate::In { column, values })
}

/// A column of the scan. Texts meet those of the lake as views, which changes none.
fn column<'a>(expr: &Arc<dyn PhysicalExpr>, columns: &'a [Field]) -> Option<&'a Field> {
    let views = expr.as_any().downcast_ref::<CastExpr>();
    let views = views.filter(|cast| *cast.cast_type() == DataType::Utf8View);
    let bare = views.map_or(expr, CastExpr::expr);
    let column = bare.as_any().downcast_ref::<Column>()?;
    let field = columns.get(column.index()).filter(|field| field.name == column.name())?;
    (views.is_none() || field.data_type == LakeType::String).then_some(field)
}

fn constant(expr: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    expr.as_any().downcast_ref::<Literal>().map(Literal::value)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, StringViewArray};
    use datafusion::physical_expr::expressions::lit;
    use polder_core::Literal as Value;

    use super::*;

    fn columns() -> Vec<Field> {
        vec![
            Field::new("id", LakeType::Long),
            Field::new("x", LakeType::Double),
            Field::new("Name", LakeType::String),
        ]
    }

    fn col(name: &str, index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(name, index))
    }

    fn binary(
        left: Arc<dyn PhysicalExpr>,
        op: Operator,
        right: Arc<dyn PhysicalExpr>,
    ) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(left, op, right))
    }

    fn listed(column: Arc<dyn PhysicalExpr>, keys: ArrayRef) -> Arc<dyn PhysicalExpr> {
        Arc::new(InListExpr::try_new_from_array(column, keys, false).expect("a list"))
    }

    fn ids(keys: impl IntoIterator<Item = i64>) -> Arc<dyn PhysicalExpr> {
        listed(col("id", 0), Arc::new(Int64Array::from_iter_values(keys)))
    }

    /// As the join says it: least and greatest, and the list.
    fn range(low: i64, high: i64) -> Arc<dyn PhysicalExpr> {
        let low = binary(col("id", 0), Operator::GtEq, lit(low));
        binary(low, Operator::And, binary(col("id", 0), Operator::LtEq, lit(high)))
    }

    fn of(expr: Arc<dyn PhysicalExpr>) -> Predicate {
        let filter: Arc<dyn PhysicalExpr> =
            Arc::new(DynamicFilterPhysicalExpr::new(vec![col("id", 0)], expr));
        predicate(&[filter], &columns())
    }

    fn cmp(op: CmpOp, value: i64) -> Predicate {
        Predicate::Cmp { column: "id".to_owned(), op, value: Value::Long(value) }
    }

    fn keys(predicate: &Predicate) -> Vec<i64> {
        let Predicate::In { column, values } = predicate else { panic!("{predicate:?}") };
        assert_eq!(column, "id");
        let number = |value: &Value| match value {
            Value::Long(value) => *value,
            other => panic!("{other:?}"),
        };
        let mut keys: Vec<i64> = values.iter().map(number).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn a_list_is_sent_without_its_range_and_without_what_is_there_twice() {
        let list = Int64Array::from(vec![Some(5), None, Some(1), Some(5)]);
        let list = listed(col("id", 0), Arc::new(list));
        let said = of(binary(range(1, 5), Operator::And, list));
        assert_eq!(keys(&said), [1, 5]);
    }

    #[test]
    fn what_is_too_long_leaves_its_range() {
        let many = ids(0..=KEYS_MAX as i64);
        let expected = cmp(CmpOp::GtEq, 1).and(cmp(CmpOp::LtEq, 5));
        assert_eq!(of(binary(range(1, 5), Operator::And, many)), expected);
        assert_eq!(keys(&of(ids(0..KEYS_MAX as i64))).len(), KEYS_MAX);
    }

    #[test]
    fn partitions_of_the_smaller_side_are_put_together() {
        let partitioned = |last: Arc<dyn PhysicalExpr>| {
            let branch = |number: u64, then| (lit(ScalarValue::UInt64(Some(number))), then);
            let then = vec![branch(0, ids([7])), branch(1, ids([3, 9]))];
            let hash = Some(lit(ScalarValue::UInt64(Some(1))));
            Arc::new(CaseExpr::try_new(hash, then, Some(last)).expect("a case"))
        };
        assert_eq!(keys(&of(partitioned(lit(false)))), [3, 7, 9]);
        assert_eq!(of(partitioned(lit(true))), Predicate::True);
    }

    #[test]
    fn what_cannot_be_said_exactly_is_left_out() {
        let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let cases = [
            lit(true),
            listed(col("x", 1), doubles),
            listed(col("other", 0), Arc::new(Int64Array::from(vec![1]))),
            listed(col("id", 9), Arc::new(Int64Array::from(vec![1]))),
            listed(col("id", 0), Arc::new(Int64Array::from(vec![None::<i64>]))),
            binary(
                ids([1]),
                Operator::Or,
                listed(col("x", 1), Arc::new(Float64Array::from(vec![2.0]))),
            ),
            binary(col("id", 0), Operator::NotEq, lit(1_i64)),
        ];
        for expr in cases {
            assert_eq!(of(Arc::clone(&expr)), Predicate::True, "{expr}");
        }
        let name = of(listed(col("Name", 2), texts));
        let expected = Predicate::In {
            column: "Name".to_owned(),
            values: vec![Value::String("a".to_owned())],
        };
        assert_eq!(name, expected);
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["a"]));
        let cast = |name, at, to| Arc::new(CastExpr::new(col(name, at), to, None));
        let of_views = |column| of(listed(column, Arc::clone(&views)));
        assert_eq!(of_views(cast("Name", 2, DataType::Utf8View)), expected);
        assert_eq!(of_views(cast("id", 0, DataType::Utf8View)), Predicate::True);
        let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        assert_eq!(of(listed(cast("Name", 2, DataType::Int64), number)), Predicate::True);
    }
}
