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
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNodeRewriter};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue, plan_datafusion_err};
use datafusion::logical_expr::expr::{InList, InSubquery, ScalarFunction, SetComparison};
use datafusion::logical_expr::{
    Between, BinaryExpr, Case, Expr, ExprSchemable, Join, LogicalPlan, Operator, Projection,
    Subquery, Union, lit,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercionRewriter;

use super::rewrite;

/// The functions whose arguments get one type.
const OF_ONE_TYPE: [&str; 7] =
    ["coalesce", "greatest", "least", "make_array", "nullif", "nvl", "nvl2"];

/// Makes the types of operands equal, as DataFusion does, but for doubles with decimals.
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
    expr.transform_data(|expr| zeros(expr, schema))?
        // Here and not only later: `CASE … THEN 1 ELSE 0.5 END` is a decimal from now on.
        .transform_data(|expr| TypeCoercionRewriter::new(schema).f_up(expr))
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
        Expr::ScalarFunction(ScalarFunction { func, args })
            if OF_ONE_TYPE.contains(&func.name()) =>
        {
            vec![args.iter_mut().collect()]
        }
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
fn zeros(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let double = |expr: &Expr| expr.get_type(schema).ok().filter(DataType::is_floating);
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) => {
            match (double(&left), double(&right)) {
                (Some(of), _) if is_zero(&right) => {
                    Transformed::yes(with_zero(left, op, &Zeros::new(&of)?))
                }
                (_, Some(of)) if is_zero(&left) => {
                    let op = op.swap().unwrap_or(op);
                    Transformed::yes(with_zero(right, op, &Zeros::new(&of)?))
                }
                _ => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
            }
        }
        Expr::InList(mut within) if within.list.iter().any(is_zero) => {
            let Some(of) = double(&within.expr) else {
                return Ok(Transformed::no(Expr::InList(within)));
            };
            let Zeros { least, greatest } = Zeros::new(&of)?;
            within.list.extend([least, greatest]);
            Transformed::yes(Expr::InList(within))
        }
        Expr::Between(mut between) => {
            let of = double(&between.expr);
            let (low, high) = (is_zero(&between.low), is_zero(&between.high));
            if let Some(of) = of.filter(|_| low || high) {
                let Zeros { least, greatest } = Zeros::new(&of)?;
                between.low = if low { Box::new(least) } else { between.low };
                between.high = if high { Box::new(greatest) } else { between.high };
                return Ok(Transformed::yes(Expr::Between(between)));
            }
            Transformed::no(Expr::Between(between))
        }
        other => Transformed::no(other),
    })
}

fn is_zero(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) if value.data_type().is_numeric() => {
            let double = value.cast_to(&DataType::Float64);
            matches!(double, Ok(ScalarValue::Float64(Some(0.0))))
        }
        Expr::Cast(cast) => cast.data_type.is_numeric() && is_zero(&cast.expr),
        _ => false,
    }
}

/// `-0.0` and `0.0` of one type.
struct Zeros {
    least: Expr,
    greatest: Expr,
}

impl Zeros {
    fn new(of: &DataType) -> Result<Self> {
        let zero = |value| ScalarValue::Float64(Some(value)).cast_to(of).map(lit::<ScalarValue>);
        Ok(Self { least: zero(-0.0)?, greatest: zero(0.0)? })
    }
}

/// `expr op 0`.
fn with_zero(expr: Box<Expr>, op: Operator, Zeros { least, greatest }: &Zeros) -> Expr {
    let (low, high) = (Box::new(least.clone()), Box::new(greatest.clone()));
    match op {
        Operator::Eq => Expr::Between(Between { expr, negated: false, low, high }),
        Operator::NotEq => Expr::Between(Between { expr, negated: true, low, high }),
        Operator::IsNotDistinctFrom => {
            Expr::IsTrue(Box::new(Expr::Between(Between { expr, negated: false, low, high })))
        }
        Operator::IsDistinctFrom => {
            Expr::IsNotTrue(Box::new(Expr::Between(Between { expr, negated: false, low, high })))
        }
        Operator::Lt | Operator::GtEq => {
            Expr::BinaryExpr(BinaryExpr { left: expr, op, right: low })
        }
        _ => Expr::BinaryExpr(BinaryExpr { left: expr, op, right: high }),
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
    // The planner gave the union the types of its first input; plans above see the right ones.
    let union = Union::try_new_with_loose_types(union.inputs)?;
    TypeCoercionRewriter::coerce_union(union)
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
