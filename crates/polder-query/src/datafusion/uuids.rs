//! `id = '550e8400-e29b-41d4-a716-446655440000'`: texts compared with uuid columns.
//!
//! A uuid column is sixteen bytes to Arrow, and DataFusion compares no text with that. Constants
//! become uuids here, while the query is planned, so that they prune files too. Other texts do not:
//! a text column joined with a uuid column stays an error.

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue, plan_datafusion_err};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Between, Expr, ExprSchemable, LogicalPlan};
use datafusion::optimizer::AnalyzerRule;

use super::rewrite;

const UUID: DataType = DataType::FixedSizeBinary(16);

/// Comparisons, before their types are checked.
#[derive(Debug)]
pub(super) struct UuidComparisons;

impl ExprPlanner for UuidComparisons {
    fn plan_binary_op(
        &self,
        mut expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        if is_uuid(&expr.left, schema) {
            expr.right = constant(expr.right)?;
        } else if is_uuid(&expr.right, schema) {
            expr.left = constant(expr.left)?;
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// `IN` and `BETWEEN`, before their types are made equal.
#[derive(Debug)]
pub(super) struct UuidLists;

impl AnalyzerRule for UuidLists {
    fn name(&self) -> &'static str {
        "uuid_lists"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| rewrite::expressions(node, list)).data()
    }
}

fn list(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::InList(InList { expr, list, negated }) if is_uuid(&expr, schema) => {
            let list = list.into_iter().map(constant).collect::<Result<Vec<_>>>()?;
            Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
        }
        Expr::Between(between) if is_uuid(&between.expr, schema) => {
            let low = Box::new(constant(*between.low)?);
            let high = Box::new(constant(*between.high)?);
            Ok(Transformed::yes(Expr::Between(Between { low, high, ..between })))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn is_uuid(expr: &Expr, schema: &dyn ExprSchema) -> bool {
    matches!(expr, Expr::Column(_)) && expr.get_type(schema).is_ok_and(|found| found == UUID)
}

/// A constant text → the uuid it spells; anything else stays.
fn constant(expr: Expr) -> Result<Expr> {
    let Expr::Literal(value, metadata) = &expr else { return Ok(expr) };
    let Some(Some(text)) = value.try_as_str() else { return Ok(expr) };
    let uuid = uuid::Uuid::try_parse(text.trim())
        .map_err(|_| plan_datafusion_err!("{text:?} is not a uuid"))?;
    let bytes = ScalarValue::FixedSizeBinary(16, Some(uuid.as_bytes().to_vec()));
    Ok(Expr::Literal(bytes, metadata.clone()))
}
