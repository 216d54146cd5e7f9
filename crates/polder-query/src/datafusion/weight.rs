//! How large a logical plan becomes: refused before the optimizer meets it.
//!
//! A short text can describe a huge plan: `WITH` queries are copied into every place that names
//! them, and an expression over a subquery's columns is replaced by the expression over their
//! definitions when filters move down. Both can double with every level.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan};
use polder_core::{Error, ErrorCode, Result};

use super::error::planning;

/// Nodes of a plan with everything copied in. The largest TPC-DS query has some 300.
const NODES_MAX: usize = 2_000;
/// Nodes of an expression with the definitions of its columns put in.
const EXPRESSION_MAX: u64 = 200_000;

/// # Errors
/// `query.limit` for a plan that would take too long to optimize.
pub(super) fn check(plan: &LogicalPlan) -> Result<()> {
    let mut nodes = 0;
    plan.apply_with_subqueries(|_| {
        nodes += 1;
        Ok(if nodes > NODES_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })
    .map_err(planning)?;
    if nodes > NODES_MAX {
        return Err(Error::new(ErrorCode::QueryLimit, "the query's plan is too large")
            .hint("WITH queries count once for every place that names them: name fewer"));
    }
    columns(plan).map_err(planning).map(|_| ())
}

/// The weight of each output column's definition.
fn columns(plan: &LogicalPlan) -> Result<Vec<u64>, DataFusionError> {
    let inputs = plan.inputs();
    let mut within = Vec::with_capacity(inputs.len());
    for input in &inputs {
        within.push(columns(input)?);
    }
    let mut defined = Vec::new();
    for expr in plan.expressions() {
        let weight = weigh(&expr, &inputs, &within)?;
        if weight > EXPRESSION_MAX {
            let error = Error::new(ErrorCode::QueryLimit, "an expression becomes too large")
                .hint("columns of subqueries that are used several times multiply: use fewer");
            return Err(DataFusionError::External(Box::new(error)));
        }
        defined.push(weight);
    }
    let outputs = plan.schema().fields().len();
    let passed = within.concat();
    let heaviest = passed.iter().chain(&defined).copied().max().unwrap_or(1);
    Ok(match plan {
        LogicalPlan::Projection(_) => defined,
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Join(_)
            if passed.len() == outputs =>
        {
            passed
        }
        LogicalPlan::TableScan(_) | LogicalPlan::EmptyRelation(_) => vec![1; outputs],
        _ => vec![heaviest; outputs],
    })
}

fn weigh(
    expr: &Expr,
    inputs: &[&LogicalPlan],
    within: &[Vec<u64>],
) -> Result<u64, DataFusionError> {
    let mut weight: u64 = 0;
    expr.apply(|node| {
        let own = match node {
            Expr::Column(column) => inputs
                .iter()
                .zip(within)
                .find_map(|(input, weights)| {
                    weights.get(input.schema().maybe_index_of_column(column)?).copied()
                })
                .unwrap_or(1),
            Expr::ScalarSubquery(inner) => heaviest(&inner.subquery)?,
            Expr::InSubquery(inner) => heaviest(&inner.subquery.subquery)?,
            Expr::Exists(inner) => heaviest(&inner.subquery.subquery)?,
            _ => 1,
        };
        weight = weight.saturating_add(own);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(weight)
}

fn heaviest(plan: &LogicalPlan) -> Result<u64, DataFusionError> {
    Ok(columns(plan)?.into_iter().max().unwrap_or(1))
}
