//! Parts of a query that a source answers by itself.
//!
//! The optimized plan is walked from the top. The largest parts whose tables are all of one source, and
//! that [`plans`] can say in the core's words, are offered to it, if they join, aggregate or keep the
//! first rows; a scan is not bettered by anything else. What the source prepares takes the part's place;
//! where it declines, the walk goes on below. An order is never left to a source: the rows that a part
//! keeps of one are ordered here once more.

mod plans;
mod terms;

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, TableReference};
use datafusion::datasource::{TableType, provider_as_source};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Limit, LogicalPlan, Sort, TableScan};
use datafusion::physical_plan::ExecutionPlan;
use polder_core::{AnswerRequest, Field, TableSchema};

use self::plans::Part;
use super::error::planning;
use super::source::{SourceScan, request};

/// Nodes of a plan. In larger ones nothing is looked for: each may be looked at once a level.
const NODES_MAX: usize = 1_000;

/// The plan with what sources answer in the place of its parts.
///
/// # Errors
/// What [`polder_core::Source::answer`] says.
pub(super) async fn push(plan: LogicalPlan) -> polder_core::Result<LogicalPlan> {
    if size(&plan).map_err(planning)? > NODES_MAX {
        return Ok(plan);
    }
    let mut asked: Vec<Asked> = Vec::new();
    loop {
        let mut walk = Walk { asked: &mut asked, wanted: Vec::new() };
        let pushed = plan.clone().transform_down(|node| Ok(walk.visit(node))).map_err(planning)?;
        let wanted = walk.wanted;
        if wanted.is_empty() {
            return Ok(pushed.data);
        }
        for part in wanted {
            let answer = ask(&part).await?;
            asked.push(Asked { part, answer, taken: false });
        }
        for one in &mut asked {
            one.taken = false;
        }
    }
}

fn size(plan: &LogicalPlan) -> Result<usize> {
    let mut nodes = 0;
    plan.apply(|_| {
        nodes += 1;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(nodes)
}

/// A part and what its source said; `None` if it declined.
struct Asked {
    part: Part,
    answer: Option<Arc<dyn ExecutionPlan>>,
    /// By a place in the plan: an answer is read once, and equal parts are asked for one by one.
    taken: bool,
}

/// One walk over the plan.
struct Walk<'a> {
    asked: &'a mut [Asked],
    /// Parts that nobody has been asked for yet.
    wanted: Vec<Part>,
}

impl Walk<'_> {
    fn visit(&mut self, node: LogicalPlan) -> Transformed<LogicalPlan> {
        let Some(part) = plans::part(&node) else { return Transformed::no(node) };
        let known = self.asked.iter_mut().find(|one| !one.taken && one.part == part);
        let Some(known) = known else {
            self.wanted.push(part);
            return Transformed::new(node, false, TreeNodeRecursion::Jump);
        };
        known.taken = true;
        let Some(answer) = &known.answer else { return Transformed::no(node) };
        let scan = |schema: &DFSchemaRef| Arc::new(scan(&part, answer, schema));
        let replaced = match node {
            LogicalPlan::Sort(sort) => {
                let input = scan(sort.input.schema());
                LogicalPlan::Sort(Sort { input, ..sort })
            }
            LogicalPlan::Limit(limit) => {
                let input = scan(limit.input.schema());
                LogicalPlan::Limit(Limit { input, ..limit })
            }
            other => self::scan(&part, answer, other.schema()),
        };
        Transformed::new(replaced, true, TreeNodeRecursion::Jump)
    }
}

/// Has the part's source prepare its answer.
async fn ask(part: &Part) -> polder_core::Result<Option<Arc<dyn ExecutionPlan>>> {
    let fields = part.schema.fields().iter().zip(&part.types).map(|(field, data_type)| {
        let made = Field::new(field.name(), data_type.clone());
        if field.is_nullable() { made } else { made.required() }
    });
    let request = AnswerRequest {
        part: part.plan.clone(),
        schema: TableSchema::new(fields.collect()),
        learnt: part.learnt.clone(),
        read: request("", NonZeroUsize::MIN),
    };
    let answer = part.source.answer(request).await.map_err(|error| error.within(&part.name))?;
    Ok(answer.map(|answer| {
        let positions = (0..part.types.len()).collect();
        let (schema, splits) = (Arc::clone(&part.schema), vec![answer.split]);
        let scan = SourceScan::new(&part.name, schema, positions, splits, answer.rows_estimated);
        Arc::new(scan.answering(answer.statement)) as Arc<dyn ExecutionPlan>
    }))
}

/// The answer as a table, with the columns that the plan above knows.
fn scan(part: &Part, answer: &Arc<dyn ExecutionPlan>, schema: &DFSchemaRef) -> LogicalPlan {
    let table = AnswerTable { schema: Arc::clone(&part.schema), answer: Arc::clone(answer) };
    LogicalPlan::TableScan(TableScan {
        table_name: TableReference::bare(part.name.clone()),
        source: provider_as_source(Arc::new(table)),
        projection: None,
        projected_schema: Arc::clone(schema),
        filters: Vec::new(),
        fetch: None,
    })
}

/// What a source answered, in the place of a table.
#[derive(Debug)]
struct AnswerTable {
    schema: SchemaRef,
    answer: Arc<dyn ExecutionPlan>,
}

#[async_trait]
impl TableProvider for AnswerTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::clone(&self.answer))
    }
}
