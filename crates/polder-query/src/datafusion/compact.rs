//! Rows that a join keeps, with their own texts alone.
//!
//! Texts are views of pieces of memory (`views.rs`), and what a join gives of a few rows still has all pieces of the rows it took
//! them from. Whoever keeps many such batches keeps every piece, and counts it for each of them: a query over some hundred
//! megabytes was out of memory by gigabytes. So texts are copied where a join keeps rows, unless most of their pieces is theirs.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, GenericByteViewArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{ByteViewType, DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;

/// How many times its texts' bytes a column may hold.
const HELD_TIMES: usize = 2;
/// Bytes that are not worth copying for.
const HELD_MIN: usize = 64 * 1024;
/// A text of up to so many bytes is in its view (Arrow columnar format, *Variable-size Binary View Layout*).
const INLINE_BYTES: u32 = 12;

/// The rule that puts a [`CompactExec`] below each join, on the side whose rows it keeps.
#[derive(Debug)]
pub(super) struct CompactJoins;

impl PhysicalOptimizerRule for CompactJoins {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let any = node.as_any();
            let keeps = any.is::<HashJoinExec>()
                || any.is::<NestedLoopJoinExec>()
                || any.is::<CrossJoinExec>();
            let kept = node.children().first().filter(|_| keeps).copied().cloned();
            let Some(kept) = kept.filter(|kept| has_views(&kept.schema())) else {
                return Ok(Transformed::no(node));
            };
            let mut children: Vec<_> = node.children().into_iter().map(Arc::clone).collect();
            // Below the gathering, each partition copies its own.
            children[0] = if kept.as_any().is::<CoalescePartitionsExec>() {
                let inner = compact(Arc::clone(kept.children()[0]));
                kept.with_new_children(vec![inner])?
            } else {
                compact(kept)
            };
            node.with_new_children(children).map(Transformed::yes)
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "CompactJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn has_views(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| is_view(field.data_type()))
}

fn is_view(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::BinaryView)
}

fn compact(input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    Arc::new(CompactExec { input })
}

/// Its input's rows, with copies of texts that hold much more memory than they have bytes.
#[derive(Debug)]
struct CompactExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for CompactExec {
    fn fmt_as(&self, _kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CompactExec")
    }
}

impl ExecutionPlan for CompactExec {
    fn name(&self) -> &'static str {
        "CompactExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(compact(children.swap_remove(0)))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        let schema = rows.schema();
        let rows = rows.map(|batch| compacted(batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        self.input.partition_statistics(partition)
    }
}

fn compacted(batch: RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = batch.columns().iter().map(own).collect();
    if columns.iter().zip(batch.columns()).all(|(own, held)| Arc::ptr_eq(own, held)) {
        return Ok(batch);
    }
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

fn own(column: &ArrayRef) -> ArrayRef {
    let own = match column.data_type() {
        DataType::Utf8View => copied(column.as_string_view()),
        DataType::BinaryView => copied(column.as_binary_view()),
        _ => None,
    };
    own.unwrap_or_else(|| Arc::clone(column))
}

/// `None` where most of what it holds is needed.
fn copied<T: ByteViewType>(values: &GenericByteViewArray<T>) -> Option<ArrayRef> {
    let held: usize = values.data_buffers().iter().map(Buffer::capacity).sum();
    if held <= HELD_MIN {
        return None;
    }
    let lengths = values.views().iter().map(|view| *view as u32);
    let needed: usize =
        lengths.filter(|length| *length > INLINE_BYTES).map(|length| length as usize).sum();
    (held > HELD_TIMES * needed).then(|| Arc::new(values.gc()) as _)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, StringViewArray};

    use super::*;

    #[test]
    fn few_rows_of_many_hold_their_own_texts() {
        let texts: StringViewArray = (0..10_000)
            .map(|n| (n % 3 > 0).then(|| format!("text number {n} is not short")))
            .collect();
        let all: ArrayRef = Arc::new(texts);
        let batch =
            RecordBatch::try_from_iter_with_nullable([("text", all, true)]).expect("a batch");
        let same = compacted(batch.clone()).expect("whole");
        assert!(Arc::ptr_eq(same.column(0), batch.column(0)), "most of it is needed");
        let few = compacted(batch.slice(500, 20)).expect("few");
        assert_eq!(few, batch.slice(500, 20));
        let held = |batch: &RecordBatch| batch.column(0).get_buffer_memory_size();
        assert!(held(&few) < 2_000 && held(&batch.slice(500, 20)) > 200_000);
    }
}
