//! Filters of several conditions, which look at a row only while it may still pass.
//!
//! For a chain of ANDs, DataFusion 53.1 copies the few rows that are left, all their columns, before each further condition,
//! and spreads its answers over all rows again after it. Here conditions that cost least see all rows, first; once few rows are
//! left, the others see these alone, of the columns they read, and the answers are spread once.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::FilterBuilder;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, ScalarValue, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// Of how many rows one may be left for the further conditions to see such rows alone: copying has its price.
const LEFT_ONE_OF: usize = 5;

/// The rule that has filters of several conditions computed in this way. It is the last: others know filters as DataFusion has
/// them.
#[derive(Debug)]
pub(super) struct Conditions;

impl PhysicalOptimizerRule for Conditions {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| match node.as_any().downcast_ref::<FilterExec>() {
            Some(filter) if are_several(filter.predicate()) => {
                Ok(Transformed::yes(Arc::new(ConditionsExec::new(filter)?) as _))
            }
            _ => Ok(Transformed::no(node)),
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "Conditions"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Not if one of them may say something else each time.
fn are_several(predicate: &Arc<dyn PhysicalExpr>) -> bool {
    split_conjunction(predicate).len() > 1 && !is_volatile(predicate)
}

/// A filter that is shown as DataFusion has it, and has the properties that follow from its predicate.
#[derive(Debug)]
struct ConditionsExec {
    shown: Arc<FilterExec>,
    computed: FilterExec,
}

impl ConditionsExec {
    fn new(filter: &FilterExec) -> Result<Self> {
        let all_of = AllOf::new(filter.predicate(), filter.input().schema());
        let shown = Arc::new(FilterExecBuilder::from(filter).build()?);
        let computed = FilterExecBuilder::from(filter).with_predicate(Arc::new(all_of)).build()?;
        Ok(Self { shown, computed })
    }
}

impl DisplayAs for ConditionsExec {
    fn fmt_as(&self, kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown.fmt_as(kind, out)
    }
}

impl ExecutionPlan for ConditionsExec {
    fn name(&self) -> &'static str {
        "FilterExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.shown.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.shown.children()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.shown.maintains_input_order()
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = FilterExecBuilder::from(&*self.shown).with_input(children.swap_remove(0));
        Ok(Arc::new(Self::new(&filter.build()?)?))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.computed.execute(partition, context)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.computed.metrics()
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        self.shown.partition_statistics(partition)
    }

    fn fetch(&self) -> Option<usize> {
        self.shown.fetch()
    }
}

/// A filter's predicate: which rows all conditions are true for. A null counts as false.
#[derive(Debug)]
struct AllOf {
    predicate: Arc<dyn PhysicalExpr>,
    input: SchemaRef,
    /// In the order in which they are asked.
    conditions: Vec<Condition>,
}

#[derive(Debug)]
struct Condition {
    expr: Arc<dyn PhysicalExpr>,
    may_fail: bool,
    /// Columns that this one or a later one reads.
    read: HashSet<usize>,
}

impl AllOf {
    fn new(predicate: &Arc<dyn PhysicalExpr>, input: SchemaRef) -> Self {
        let mut ordered: Vec<_> =
            split_conjunction(predicate).into_iter().map(Arc::clone).collect();
        ordered.sort_by_key(|condition| compared_bytes(condition, &input).unwrap_or(usize::MAX));
        let mut read = HashSet::new();
        let mut conditions: Vec<_> = ordered
            .into_iter()
            .rev()
            .map(|expr| {
                read.extend(collect_columns(&expr).iter().map(Column::index));
                let may_fail = compared_bytes(&expr, &input).is_none();
                Condition { expr, may_fail, read: read.clone() }
            })
            .collect();
        conditions.reverse();
        Self { predicate: Arc::clone(predicate), input, conditions }
    }

    /// Which rows pass.
    fn passing(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        let none = || Ok(BooleanBuffer::new_unset(batch.num_rows()));
        let mut left = BooleanBuffer::new_set(batch.num_rows());
        // Each time rows were left behind: which stayed, and these.
        let mut few: Vec<(BooleanBuffer, RecordBatch)> = Vec::new();
        for (at, condition) in self.conditions.iter().enumerate() {
            let count = if at == 0 { left.len() } else { left.count_set_bits() };
            if count == 0 {
                return none();
            }
            // One that may fail sees no row that is out, from the time on that rows are left behind.
            let exact = !few.is_empty() && condition.may_fail && count < left.len();
            if exact || count <= left.len() / LEFT_ONE_OF {
                let rows = few.last().map_or(batch, |(_, rows)| rows);
                let rows = copied(rows, &left, &condition.read)?;
                few.push((left, rows));
                left = BooleanBuffer::new_set(count);
            }
            let rows = few.last().map_or(batch, |(_, rows)| rows);
            match condition.expr.evaluate(rows)? {
                ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => {}
                ColumnarValue::Scalar(_) => return none(),
                ColumnarValue::Array(answers) => {
                    left = &left & &truths(as_boolean_array(&answers)?);
                }
            }
        }
        Ok(few.into_iter().rfold(left, |left, (all, _)| spread(&left, &all)))
    }
}

/// Bytes of a value, of a condition that compares a column of numbers, dates or times with another one or a constant: few
/// cost less, and nothing can fail.
fn compared_bytes(condition: &Arc<dyn PhysicalExpr>, input: &Schema) -> Option<usize> {
    let comparison = condition.as_any().downcast_ref::<BinaryExpr>()?;
    let bytes = |operand: &Arc<dyn PhysicalExpr>| {
        let any = operand.as_any();
        if !any.is::<Column>() && !any.is::<Literal>() {
            return None;
        }
        operand.data_type(input).ok()?.primitive_width()
    };
    let bytes = bytes(comparison.left())?.max(bytes(comparison.right())?);
    matches!(
        comparison.op(),
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
    )
    .then_some(bytes)
}

fn truths(answers: &BooleanArray) -> BooleanBuffer {
    match answers.nulls() {
        Some(known) => answers.values() & known.inner(),
        None => answers.values().clone(),
    }
}

/// The rows that are left, with anything in columns that are not read.
fn copied(batch: &RecordBatch, left: &BooleanBuffer, read: &HashSet<usize>) -> Result<RecordBatch> {
    let left = BooleanArray::new(left.clone(), None);
    let filter = FilterBuilder::new(&left).optimize().build();
    let columns = batch.columns().iter().enumerate().map(|(at, column)| {
        if read.contains(&at) { filter.filter(column) } else { Ok(column.slice(0, filter.count())) }
    });
    let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Of the rows in `all`, which are numbered as they come there, those in `chosen`: by their places among all rows.
fn spread(chosen: &BooleanBuffer, all: &BooleanBuffer) -> BooleanBuffer {
    let mut spread = BooleanBufferBuilder::new(all.len());
    spread.append_n(all.len(), false);
    for (number, place) in all.set_indices().enumerate() {
        if chosen.value(number) {
            spread.set_bit(place, true);
        }
    }
    spread.finish()
}

impl PhysicalExpr for AllOf {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn data_type(&self, _input: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _input: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(self.passing(batch)?, None))))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.predicate]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self::new(&children[0], Arc::clone(&self.input))))
    }

    fn fmt_sql(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.predicate.fmt_sql(out)
    }
}

impl fmt::Display for AllOf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.predicate.fmt(out)
    }
}

impl PartialEq for AllOf {
    fn eq(&self, other: &Self) -> bool {
        self.predicate.eq(&other.predicate)
    }
}

impl Eq for AllOf {}

impl Hash for AllOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.predicate.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Int64Array, StringViewArray};
    use datafusion::physical_expr::conjunction;
    use datafusion::physical_expr::expressions::{NotExpr, col, is_null, like, lit};
    use proptest::prelude::*;

    use super::*;

    fn rows(values: &[(Option<i32>, Option<i128>, Option<u8>)]) -> RecordBatch {
        let dates = values.iter().map(|row| row.0).collect::<Date32Array>();
        let amounts = values.iter().map(|row| row.1).collect::<Decimal128Array>();
        let texts = values.iter().map(|row| row.2.map(|n| format!("number {n}, a long text")));
        RecordBatch::try_from_iter_with_nullable([
            ("text", Arc::new(texts.collect::<StringViewArray>()) as ArrayRef, true),
            ("amount", Arc::new(amounts) as ArrayRef, true),
            ("date", Arc::new(dates) as ArrayRef, true),
        ])
        .expect("a batch")
    }

    /// One of several conditions, of which some cost more than others.
    fn condition(which: usize, limit: i32, schema: &Schema) -> Arc<dyn PhysicalExpr> {
        let column = |name| col(name, schema).expect("a column");
        let compared = |left, op, right| Arc::new(BinaryExpr::new(left, op, right)) as Arc<_>;
        let date = |days| lit(ScalarValue::Date32(Some(days)));
        let amount = |value| lit(ScalarValue::Decimal128(Some(value), 38, 10));
        match which {
            0 => compared(column("date"), Operator::GtEq, date(limit)),
            1 => compared(column("date"), Operator::Lt, date(limit + 20)),
            2 => compared(column("amount"), Operator::NotEq, amount(limit.into())),
            3 => {
                let pattern = lit(ScalarValue::Utf8View(Some("%1%".into())));
                like(false, false, column("text"), pattern, schema).expect("a pattern")
            }
            4 => Arc::new(NotExpr::new(is_null(column("amount")).expect("a condition"))),
            5 => compared(
                compared(column("date"), Operator::Eq, date(limit)),
                Operator::Or,
                compared(column("amount"), Operator::Gt, amount(limit.into())),
            ),
            6 => lit(true),
            7 => lit(ScalarValue::Boolean(None)),
            _ => lit(limit < 50),
        }
    }

    proptest! {
        #[test]
        fn rows_pass_that_the_predicate_is_true_for(
            values in prop::collection::vec(
                (prop::option::weighted(0.9, 0..100), prop::option::weighted(0.9, 0..100_i128), prop::option::of(0..30_u8)),
                0..300,
            ),
            chosen in prop::collection::vec((0..12_usize, 0..100), 2..6),
        ) {
            let batch = rows(&values);
            // The first ones, which leave few rows, more often than the others.
            let chosen = chosen.iter().map(|&(which, limit)| condition(which.saturating_sub(3), limit, &batch.schema()));
            let predicate = conjunction(chosen);
            let expected = predicate.evaluate(&batch).and_then(|value| value.into_array(batch.num_rows()));
            let expected = truths(as_boolean_array(&expected.expect("it evaluates")).expect("truth values"));
            let passing = AllOf::new(&predicate, batch.schema()).passing(&batch).expect("it evaluates");
            prop_assert_eq!(passing.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_costs_least_is_asked_first() {
        let schema = rows(&[]).schema();
        let predicate = conjunction([3, 2, 5, 1].map(|which| condition(which, 7, &schema)));
        let all = AllOf::new(&predicate, Arc::clone(&schema));
        let asked = all.conditions.iter().map(|condition| condition.expr.to_string());
        let expected = [1, 2, 3, 5].map(|which| condition(which, 7, &schema).to_string());
        assert_eq!(asked.collect::<Vec<_>>(), expected);
        assert_eq!(all.to_string(), predicate.to_string(), "it is shown as it was asked");
    }

    /// Rows that earlier conditions leave out are not computed with: here they would be an error.
    #[test]
    fn few_rows_are_seen_alone() {
        let numbers: ArrayRef = Arc::new((0..100).collect::<Int64Array>());
        let batch = RecordBatch::try_from_iter([("n", numbers)]).expect("a batch");
        let compared = |left, op, right| Arc::new(BinaryExpr::new(left, op, right)) as Arc<_>;
        let n = || col("n", &batch.schema()).expect("a column");
        let below_10 = || compared(n(), Operator::Lt, lit(10_i64));
        let quotient =
            |by| compared(compared(lit(100_i64), Operator::Divide, by), Operator::Eq, lit(20_i64));
        let is_5 = || quotient(n());
        let odd = compared(compared(n(), Operator::Modulo, lit(2_i64)), Operator::Eq, lit(1_i64));
        let by_odd = quotient(compared(
            n(),
            Operator::Multiply,
            compared(n(), Operator::Modulo, lit(2_i64)),
        ));
        let cases = [
            vec![is_5(), compared(n(), Operator::GtEq, lit(5_i64)), below_10()],
            // The second one leaves out the zero, among rows that are few already.
            vec![below_10(), compared(n(), Operator::NotEq, lit(0_i64)), is_5()],
            // So does one that may fail itself.
            vec![odd, by_odd, below_10()],
        ];
        for (at, conditions) in cases.into_iter().enumerate() {
            let predicate = conjunction(conditions);
            let passing = AllOf::new(&predicate, batch.schema()).passing(&batch);
            let passing = passing.expect("no zero is left").set_indices().collect::<Vec<_>>();
            assert_eq!(passing, [5], "{at}");
        }
        let all = is_5().evaluate(&batch);
        assert!(all.is_err(), "it divides by zero");
    }
}
