//! `rate = 0.1`, `coalesce(rate, 0.0)`: decimals that meet doubles become doubles.
//!
//! Literals are decimals here, so that `amount > 0.1` is exact. Where one meets a `real` or a
//! `double`, PostgreSQL makes doubles of both (its manual, "Operator Type Resolution": `float8` is
//! the preferred numeric type). DataFusion 53.1 would make decimals of both instead, with 15
//! places, for which `1e-300` equals `0.0`.
//!
//! And `rate = 0` finds both zeros: to Arrow's comparisons, `-0.0` lies below `0.0`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue, plan_datafusion_err};
use datafusion::logical_expr::expr::{InList, InSubquery, ScalarFunction, SetComparison};
use datafusion::logical_expr::{
    Between, BinaryExpr, Case, Expr, ExprSchemable, Join, LogicalPlan, Operator, Projection,
    Subquery, Union, lit,
};
use datafusion::optimizer::AnalyzerRule;

use super::rewrite;

/// Before DataFusion makes the types of operands equal.
#[derive(Debug)]
pub(super) struct DoublesWithDecimals;

impl AnalyzerRule for DoublesWithDecimals {
    fn name(&self) -> &'static str {
        "doubles_with_decimals"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            rewrite::expressions(node, expression)?.transform_data(|node| match node {
                LogicalPlan::Union(union) => columns(union).map(Transformed::yes),
                LogicalPlan::Join(join) => keys(join).map(Transformed::yes),
                other => Ok(Transformed::no(other)),
            })
        })
        .data()
    }
}

/// Which of the types that meet are there.
#[derive(Clone, Copy, Default)]
struct Meeting {
    double: bool,
    decimal: bool,
}

impl Meeting {
    fn of(types: impl IntoIterator<Item = DataType>) -> Self {
        types.into_iter().fold(Self::default(), |met, found| Self {
            double: met.double || found.is_floating(),
            decimal: met.decimal || found.is_decimal(),
        })
    }

    fn is_mixed(self) -> bool {
        self.double && self.decimal
    }
}

fn expression(mut expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mut changed = match &mut expr {
        Expr::InSubquery(InSubquery { expr, subquery, .. })
        | Expr::SetComparison(SetComparison { expr, subquery, .. }) => {
            with_subquery(expr, subquery, schema)?
        }
        _ => false,
    };
    for mut operands in operands(&mut expr) {
        // An operand without a type is somebody else's error.
        let types = operands.iter().filter_map(|operand| operand.get_type(schema).ok());
        if Meeting::of(types).is_mixed() {
            changed = true;
            for operand in &mut operands {
                make_double(operand, schema)?;
            }
        }
    }
    let expr = if changed { Transformed::yes(expr) } else { Transformed::no(expr) };
    expr.transform_data(|expr| Ok(zeros(expr, schema)))
}

/// The groups of operands that DataFusion would give one type each. Arithmetic is not among them:
/// there DataFusion makes doubles itself.
fn operands(expr: &mut Expr) -> Vec<Vec<&mut Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(*op) => {
            vec![vec![left, right]]
        }
        Expr::InList(InList { expr, list, .. }) => {
            vec![list.iter_mut().chain([expr.as_mut()]).collect()]
        }
        Expr::Between(Between { expr, low, high, .. }) => vec![vec![expr, low, high]],
        Expr::ScalarFunction(ScalarFunction { args, .. }) => vec![args.iter_mut().collect()],
        Expr::Case(Case { expr, when_then_expr, else_expr }) => {
            let (mut compared, mut results) = (Vec::new(), Vec::new());
            for (when, then) in when_then_expr {
                compared.push(when.as_mut());
                results.push(then.as_mut());
            }
            compared.extend(expr.as_deref_mut());
            results.extend(else_expr.as_deref_mut());
            vec![compared, results]
        }
        _ => Vec::new(),
    }
}

fn compares(operator: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(operator, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// A decimal → the double nearest to it; anything else stays.
fn make_double(expr: &mut Expr, schema: &dyn ExprSchema) -> Result<()> {
    if !expr.get_type(schema).is_ok_and(|found| found.is_decimal()) {
        return Ok(());
    }
    let taken = std::mem::take(expr);
    *expr = match taken {
        Expr::Literal(value, metadata) => Expr::Literal(double(&value)?, metadata),
        other => other.cast_to(&DataType::Float64, schema)?,
    };
    Ok(())
}

/// The cast would divide by a power of ten, rounding twice; the parser rounds once.
fn double(decimal: &ScalarValue) -> Result<ScalarValue> {
    let text = match *decimal {
        ScalarValue::Decimal128(Some(value), precision, scale) => {
            Decimal128Type::format_decimal(value, precision, scale)
        }
        ScalarValue::Decimal256(Some(value), precision, scale) => {
            Decimal256Type::format_decimal(value, precision, scale)
        }
        _ => return decimal.cast_to(&DataType::Float64),
    };
    let value = text.parse().map_err(|_| plan_datafusion_err!("{text} is not a number"))?;
    Ok(ScalarValue::Float64(Some(value)))
}

/// A comparison of a double with a constant zero → one that takes `-0.0` and `0.0` as equal.
fn zeros(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    let is_double = |expr: &Expr| expr.get_type(schema).is_ok_and(|found| found.is_floating());
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if compares(op) && is_zero(&left) && is_double(&right) && !is_zero(&right) =>
        {
            Transformed::yes(with_zero(right, op.swap().unwrap_or(op)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if compares(op) && is_zero(&right) && is_double(&left) =>
        {
            Transformed::yes(with_zero(left, op))
        }
        Expr::InList(InList { expr, mut list, negated })
            if list.iter().any(is_zero) && is_double(&expr) =>
        {
            list.extend([lit(-0.0), lit(0.0)]);
            Transformed::yes(Expr::InList(InList { expr, list, negated }))
        }
        Expr::Between(Between { expr, negated, mut low, mut high }) if is_double(&expr) => {
            let zeros = [(&mut low, -0.0), (&mut high, 0.0)];
            for (bound, zero) in zeros.into_iter().filter(|(bound, _)| is_zero(bound)) {
                **bound = lit(zero);
            }
            Transformed::yes(Expr::Between(Between { expr, negated, low, high }))
        }
        other => Transformed::no(other),
    }
}

fn is_zero(expr: &Expr) -> bool {
    let Expr::Literal(value, _) = expr else { return false };
    let double = value.data_type().is_numeric().then(|| value.cast_to(&DataType::Float64));
    matches!(double, Some(Ok(ScalarValue::Float64(Some(0.0)))))
}

/// `expr op 0`.
fn with_zero(expr: Box<Expr>, op: Operator) -> Expr {
    let (least, greatest) = (Box::new(lit(-0.0)), Box::new(lit(0.0)));
    let between = |expr, negated| {
        Expr::Between(Between { expr, negated, low: least.clone(), high: greatest.clone() })
    };
    match op {
        Operator::Eq => between(expr, false),
        Operator::NotEq => between(expr, true),
        Operator::Lt | Operator::GtEq => {
            Expr::BinaryExpr(BinaryExpr { left: expr, op, right: least })
        }
        _ => Expr::BinaryExpr(BinaryExpr { left: expr, op, right: greatest }),
    }
}

/// `x IN (SELECT …)`, `x = ANY (SELECT …)`.
fn with_subquery(expr: &mut Expr, subquery: &mut Subquery, schema: &DFSchema) -> Result<bool> {
    let inner = Arc::clone(subquery.subquery.schema());
    let (Ok(outer), [field]) = (expr.get_type(schema), inner.fields().as_ref()) else {
        return Ok(false);
    };
    let mixed = Meeting::of([outer, field.data_type().clone()]).is_mixed();
    if mixed {
        make_double(expr, schema)?;
        subquery.subquery = with_doubles(&subquery.subquery, &[true])?;
    }
    Ok(mixed)
}

/// `SELECT … UNION ALL SELECT …`, by position.
fn columns(mut union: Union) -> Result<LogicalPlan> {
    let mixed: Vec<bool> = (0..union.schema.fields().len())
        .map(|column| {
            let types = union
                .inputs
                .iter()
                .filter_map(|input| Some(input.schema().fields().get(column)?.data_type().clone()));
            Meeting::of(types).is_mixed()
        })
        .collect();
    if mixed.contains(&true) {
        for input in &mut union.inputs {
            *input = with_doubles(input, &mixed)?;
        }
    }
    // Also without a change of ours: the inputs may have other types than when it was planned.
    Union::try_new_with_loose_types(union.inputs).map(LogicalPlan::Union)
}

/// The plan with doubles for the decimals of the columns that are marked.
fn with_doubles(plan: &Arc<LogicalPlan>, marked: &[bool]) -> Result<Arc<LogicalPlan>> {
    let schema = Arc::clone(plan.schema());
    let columns = schema.iter().zip(marked).map(|(field, marked)| {
        let mut column = Expr::from(field);
        if *marked {
            make_double(&mut column, schema.as_ref())?;
        }
        let (table, field) = field;
        Ok(match column {
            column @ Expr::Column(_) => column,
            cast => cast.alias_qualified(table.cloned(), field.name()),
        })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Projection::try_new(columns, Arc::clone(plan)).map(LogicalPlan::Projection).map(Arc::new)
}

/// `JOIN … USING`, `INTERSECT`, `EXCEPT`: pairs that have to be equal.
fn keys(mut join: Join) -> Result<LogicalPlan> {
    for (left, right) in &mut join.on {
        let types = [left.get_type(join.left.schema())?, right.get_type(join.right.schema())?];
        if Meeting::of(types).is_mixed() {
            make_double(left, join.left.schema().as_ref())?;
            make_double(right, join.right.schema().as_ref())?;
        }
    }
    Ok(LogicalPlan::Join(join))
}
