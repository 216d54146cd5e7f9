//! Parts of a plan that are there several times, computed once: a WITH query that is used twice is written out twice
//! by the planner.
//!
//! Only aggregations of the lake's tables are: their rows are few, as a rule, and come of many. The first part of the
//! query that asks for them has them computed and kept, the others read what is kept. Where they are too many
//! to be kept, each part computes them for itself, as it would have done.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayData, RecordBatch};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, Statistics, TableReference, internal_err};
use datafusion::datasource::{TableType, provider_as_source, source_as_provider};
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, lit};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    displayable,
};
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::table::LakeTableProvider;

/// Nodes of a plan. In larger ones nothing is looked for.
const NODES_MAX: usize = 1_000;
/// What all shared rows of a query may take of its memory: one of so many parts.
const MEMORY_PART: usize = 4;

/// The optimized plan of a query that may hold so much, with one table in the place of each part that it has several times.
pub(super) fn share(plan: LogicalPlan, memory_bytes: usize) -> Result<LogicalPlan> {
    let plan = plan.transform_up(|node| Ok(without_constants(node))).data()?;
    let mut counts: HashMap<LogicalPlan, usize> = HashMap::new();
    let mut nodes = 0;
    plan.apply(|node| {
        nodes += 1;
        // Each of its rounds would execute the plan of a place once more.
        if nodes > NODES_MAX || matches!(node, LogicalPlan::RecursiveQuery(_)) {
            nodes = usize::MAX;
            return Ok(TreeNodeRecursion::Stop);
        }
        if is_aggregate(node) {
            *counts.entry(node.clone()).or_default() += 1;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    counts.retain(|node, count| *count > 1 && is_lasting(node));
    let left = Arc::new(AtomicUsize::new(memory_bytes / MEMORY_PART));
    while nodes <= NODES_MAX && !counts.is_empty() {
        let mut places: HashMap<LogicalPlan, (Arc<SharedTable>, usize)> = HashMap::new();
        let shared = plan.clone().transform_down(|node| {
            if !is_aggregate(&node) || !counts.contains_key(&node) {
                return Ok(Transformed::no(node));
            }
            let number = places.len() + 1;
            let (table, count) = places.entry(node.clone()).or_insert_with(|| {
                let left = Arc::clone(&left);
                let table = SharedTable { plan: node.clone(), number, left, rows: OnceCell::new() };
                (Arc::new(table), 0)
            });
            *count += 1;
            Ok(Transformed::new(scan(table), true, TreeNodeRecursion::Jump))
        });
        // A part of a larger part may have one place of its own.
        let all = counts.len();
        counts.retain(|node, _| places.get(node).is_none_or(|(_, count)| *count > 1));
        if counts.len() == all {
            return shared.data();
        }
    }
    Ok(plan)
}

/// DataFusion leaves constants behind in scans where it takes a subquery apart, which make equal parts differ.
fn without_constants(node: LogicalPlan) -> Transformed<LogicalPlan> {
    match node {
        LogicalPlan::TableScan(mut scan) if scan.filters.contains(&lit(true)) => {
            scan.filters.retain(|filter| *filter != lit(true));
            Transformed::yes(LogicalPlan::TableScan(scan))
        }
        other => Transformed::no(other),
    }
}

fn is_aggregate(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Aggregate(_))
}

/// Whether the part gives the same rows whenever it is computed, and reads the lake alone: an answer of a source is
/// read by whom it was asked for.
fn is_lasting(part: &LogicalPlan) -> bool {
    let mut lasting = true;
    let walked = part.apply(|node| {
        let known = match node {
            LogicalPlan::TableScan(scan) => source_as_provider(&scan.source)
                .is_ok_and(|provider| provider.as_any().is::<LakeTableProvider>()),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Union(_) => true,
            _ => false,
        };
        lasting &= known && !node.expressions().iter().any(Expr::is_volatile);
        Ok(if lasting { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && lasting
}

fn scan(table: &Arc<SharedTable>) -> LogicalPlan {
    LogicalPlan::TableScan(TableScan {
        table_name: TableReference::bare(format!("shared {}", table.number)),
        source: provider_as_source(Arc::clone(table) as _),
        projection: None,
        projected_schema: Arc::clone(table.plan.schema()),
        filters: Vec::new(),
        fetch: None,
    })
}

/// A part of the plan as a table.
#[derive(Debug)]
struct SharedTable {
    plan: LogicalPlan,
    /// Of the parts of the statement.
    number: usize,
    /// Bytes that the statement's shared rows may still take.
    left: Arc<AtomicUsize>,
    rows: OnceCell<Arc<Rows>>,
}

impl SharedTable {
    async fn planned(&self, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        state.query_planner().create_physical_plan(&self.plan, state).await
    }
}

#[async_trait]
impl TableProvider for SharedTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(self.plan.schema().inner())
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(state) = state.as_any().downcast_ref::<SessionState>() else {
            return internal_err!("a plan is made by another session than DataFusion's");
        };
        let own = self.planned(state).await?;
        let rows = self.rows.get_or_try_init(|| {
            self.planned(state).map_ok(|plan| Rows::new(plan, Arc::clone(&self.left)))
        });
        let rows = Arc::clone(rows.await?);
        // They are the same part's; but one that was planned otherwise has its rows elsewhere.
        if rows.partitions != own.output_partitioning().partition_count() {
            return Ok(own);
        }
        Ok(Arc::new(SharedScan { number: self.number, rows, own }))
    }
}

/// The rows of a part, once they are computed.
#[derive(Debug)]
struct Rows {
    /// Taken when they begin to be.
    plan: Mutex<Option<Arc<dyn ExecutionPlan>>>,
    partitions: usize,
    left: Arc<AtomicUsize>,
    /// `None` where they are not to be had.
    kept: OnceCell<Option<Vec<Kept>>>,
}

/// Those of one partition.
#[derive(Debug)]
struct Kept {
    batches: Arc<[RecordBatch]>,
    _memory: MemoryReservation,
}

impl Rows {
    fn new(plan: Arc<dyn ExecutionPlan>, left: Arc<AtomicUsize>) -> Arc<Self> {
        let partitions = plan.output_partitioning().partition_count();
        Arc::new(Self { plan: Mutex::new(Some(plan)), partitions, left, kept: OnceCell::new() })
    }

    /// Those of a partition; `None` where they are too many to be kept, or who computed them gave up.
    async fn of(
        &self,
        partition: usize,
        context: &Arc<TaskContext>,
    ) -> Result<Option<Arc<[RecordBatch]>>> {
        let kept = self.kept.get_or_try_init(|| async {
            let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner).take();
            match plan {
                Some(plan) => keep(&plan, context, &self.left).await,
                None => Ok(None),
            }
        });
        let kept = kept.await?.as_ref().and_then(|kept| kept.get(partition));
        Ok(kept.map(|kept| Arc::clone(&kept.batches)))
    }
}

/// Computes all partitions; `None` where they do not fit into what is `left` of the memory.
async fn keep(
    plan: &Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
    left: &Arc<AtomicUsize>,
) -> Result<Option<Vec<Kept>>> {
    let mut tasks = JoinSet::new();
    for partition in 0..plan.output_partitioning().partition_count() {
        let mut rows = plan.execute(partition, Arc::clone(context))?;
        let memory = MemoryConsumer::new("shared rows").register(context.memory_pool());
        let left = Arc::clone(left);
        tasks.spawn(async move {
            let (mut batches, mut seen) = (Vec::new(), HashSet::new());
            while let Some(batch) = rows.try_next().await? {
                let more = batch.columns().iter().map(|column| bytes(&column.to_data(), &mut seen));
                let more = more.sum();
                let take = |left: usize| left.checked_sub(more);
                let allowed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
                if !allowed || memory.try_grow(more).is_err() {
                    return Ok(None);
                }
                batches.push(batch);
            }
            Ok::<_, DataFusionError>(Some((
                partition,
                Kept { batches: batches.into(), _memory: memory },
            )))
        });
    }
    let mut kept = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let one = joined.map_err(|cause| DataFusionError::ExecutionJoin(Box::new(cause)))?;
        match one? {
            Some(one) => kept.push(one),
            None => return Ok(None),
        }
    }
    kept.sort_by_key(|(partition, _)| *partition);
    Ok(Some(kept.into_iter().map(|(_, kept)| kept).collect()))
}

/// The bytes of an array's buffers, but for those that were seen: batches may be slices of one.
fn bytes(array: &ArrayData, seen: &mut HashSet<usize>) -> usize {
    let nulls = array.nulls().map(NullBuffer::buffer);
    let mut new = |buffer: &&Buffer| seen.insert(buffer.data_ptr().as_ptr() as usize);
    let own =
        array.buffers().iter().chain(nulls).filter(&mut new).map(Buffer::capacity).sum::<usize>();
    own + array.child_data().iter().map(|child| bytes(child, seen)).sum::<usize>()
}

/// One place where a part's rows are read.
#[derive(Debug)]
struct SharedScan {
    number: usize,
    rows: Arc<Rows>,
    /// The part, for this place alone.
    own: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for SharedScan {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match format {
            DisplayFormatType::TreeRender => write!(f, "part={number}"),
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "SharedScan: part={number}, computed once:")?;
                let part = displayable(self.own.as_ref()).indent(false).to_string();
                part.trim_end().lines().try_for_each(|line| write!(f, "\n| {line}"))
            }
        }
    }
}

impl ExecutionPlan for SharedScan {
    fn name(&self) -> &'static str {
        "SharedScan"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.own.properties()
    }

    /// None: what is done to one place would not be to the others.
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        self.own.partition_statistics(partition)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let (rows, own) = (Arc::clone(&self.rows), Arc::clone(&self.own));
        let batches = stream::once(async move {
            let Some(batches) = rows.of(partition, &context).await? else {
                return own.execute(partition, context);
            };
            let schema = own.schema();
            let kept = stream::iter(0..batches.len()).map(move |at| Ok(batches[at].clone()));
            Ok(Box::pin(RecordBatchStreamAdapter::new(schema, kept)) as _)
        });
        let batches = batches.try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.own.schema(), batches)))
    }
}
