//! Whether the filters that a plan fills in while it runs reach the columns they mean.
//!
//! A join, or a sort of the first rows, hands such a filter to the plan beneath it, and from node to node it goes on to the
//! scans. DataFusion 53.1 looks its columns up by name in each node's input (`FilterRemapper`): where two columns
//! have one name there, the filter may land on the other one, and rows go missing (apache/datafusion#25244,
//! #25262, #25263, #25264, #25296). Plans in which that can be have no such filters.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{JoinType, Result};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};

/// DataFusion's rules, of which the one that hands such filters on looks first.
pub(super) fn rules() -> impl Iterator<Item = Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let of_ours = |rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>| match rule.name() {
        "FilterPushdown(Post)" => Arc::new(CertainFilters(rule)) as _,
        _ => rule,
    };
    PhysicalOptimizer::new().rules.into_iter().map(of_ours)
}

#[derive(Debug)]
struct CertainFilters(Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for CertainFilters {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if certain(&plan, false) {
            return self.0.optimize(plan, config);
        }
        let mut without = config.clone();
        without.optimizer.enable_join_dynamic_filter_pushdown = false;
        without.optimizer.enable_topk_dynamic_filter_pushdown = false;
        self.0.optimize(plan, &without)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

/// Whether every filter of the plan can only reach the columns it means. `beneath`: filters may come from above.
fn certain(plan: &Arc<dyn ExecutionPlan>, beneath: bool) -> bool {
    if beneath && !passes_by_name(plan) {
        return false;
    }
    let any = plan.as_any();
    let first_rows = any.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_some());
    let beneath = beneath || first_rows || any.is::<HashJoinExec>();
    plan.children().into_iter().all(|child| certain(child, beneath))
}

/// Whether a column's name means the same in what a node gives and in what it takes.
fn passes_by_name(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let given = plan.schema();
    if has_one_name_twice(&given) {
        return false;
    }
    let any = plan.as_any();
    if let Some(join) = any.downcast_ref::<HashJoinExec>() {
        return join_passes_by_name(join);
    }
    if let Some(aggregate) = any.downcast_ref::<AggregateExec>() {
        let taken = aggregate.input().schema();
        let groups = aggregate.group_expr().expr();
        return given.fields().iter().enumerate().all(|(at, field)| {
            let group = groups.get(at).and_then(|(expr, _)| named(expr));
            taken.index_of(field.name()).is_err() || group == Some(field.name().as_str())
        });
    }
    if any.is::<UnionExec>() || any.is::<InterleaveExec>() {
        let names = |schema: &Schema| -> Vec<_> {
            schema.fields().iter().map(|field| field.name().clone()).collect()
        };
        let own = names(&given);
        return plan.children().iter().all(|child| names(&child.schema()) == own);
    }
    true
}

/// Filters of the keys of one side go to the other one too where that only decides which rows are there: to the column of
/// the same name. And `NOT IN` has to see nulls that no filter lets through.
fn join_passes_by_name(join: &HashJoinExec) -> bool {
    let other = |(of, to): (&PhysicalExprRef, &PhysicalExprRef), schema: &Schema| {
        let Some(name) = named(of) else { return true };
        let Ok(found) = schema.index_of(name) else { return true };
        to.as_any().downcast_ref::<Column>().is_some_and(|column| column.index() == found)
    };
    let on = join.on().iter();
    match join.join_type() {
        JoinType::LeftSemi | JoinType::LeftAnti => {
            let right = join.right().schema();
            !join.null_aware && on.clone().all(|(left, key)| other((left, key), &right))
        }
        JoinType::RightSemi | JoinType::RightAnti => {
            let left = join.left().schema();
            on.clone().all(|(key, right)| other((right, key), &left))
        }
        _ => true,
    }
}

fn named(expr: &PhysicalExprRef) -> Option<&str> {
    expr.as_any().downcast_ref::<Column>().map(Column::name)
}

fn has_one_name_twice(schema: &Schema) -> bool {
    let mut names = HashSet::new();
    !schema.fields().iter().all(|field| names.insert(field.name()))
}
