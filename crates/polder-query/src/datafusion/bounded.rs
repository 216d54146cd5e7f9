//! Functions whose result is as large as an argument says: weighed before they are called.
//!
//! Constants are folded while a query is planned, and what a function returns is counted nowhere:
//! neither is within the memory that a query may hold. `repeat('a', 1000000000)` is refused here,
//! before a byte of it is made. All calls of a query share one allowance, in equal parts.

use std::any::Any;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ExpressionPlacement, LogicalPlan, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use polder_core::{Error, ErrorCode};

use super::series;

/// The part of a query's memory that its calls may make at the same time.
const PART: usize = 8;
/// What an item costs beside its bytes: where it is taken from, or where it begins.
const ITEM: u64 = 8;

/// The most that a call adds to its arguments, in bytes.
type Weigh = fn(&Arguments) -> u64;

/// By name; their aliases come with them.
const FUNCTIONS: [(&str, Weigh); 8] = [
    ("array_repeat", array_repeat),
    ("array_resize", array_resize),
    ("generate_series", series::weigh),
    ("lpad", pad),
    ("range", series::weigh),
    ("repeat", repeat),
    ("replace", replace),
    ("rpad", pad),
];

/// What the calls of one query may make.
#[derive(Debug)]
pub(super) struct Allowance {
    query: u64,
    call: AtomicU64,
}

impl Allowance {
    /// For a query that may hold `memory` bytes.
    pub(super) fn new(memory: usize, sql: &str) -> Self {
        let allowance = Self { query: (memory / PART) as u64, call: AtomicU64::new(0) };
        // Arguments of table functions are folded before there is a plan to count calls in.
        allowance.share(sql.matches('(').count());
        allowance
    }

    /// Divides it among the calls of `plan`; how many there are.
    pub(super) fn divide(&self, plan: &LogicalPlan) -> Result<usize> {
        let mut calls = 0;
        plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                expr.apply(|expr| {
                    calls += usize::from(is_bounded(expr));
                    Ok(TreeNodeRecursion::Continue)
                })
            })?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        self.share(calls);
        Ok(calls)
    }

    fn share(&self, calls: usize) {
        self.call.store(self.query / calls.max(1) as u64, Ordering::Relaxed);
    }

    fn check(&self, name: &str, bytes: u64) -> Result<()> {
        let allowed = self.call.load(Ordering::Relaxed);
        if bytes <= allowed {
            return Ok(());
        }
        let message = format!(
            "{name} may make {} in one call here, and is asked for up to {}",
            size(allowed),
            size(bytes)
        );
        let hint = match name {
            "generate_series" | "range" => {
                "ask for fewer values, or have them as rows: FROM generate_series(1, 1000000)"
            }
            _ => "ask for less, or call such functions less often in one query",
        };
        let error = Error::new(ErrorCode::QueryLimit, message).hint(hint);
        Err(DataFusionError::External(Box::new(error)))
    }
}

fn is_bounded(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.inner().as_any().is::<Bounded>())
}

fn size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    match bytes {
        0..KIB => format!("{bytes} bytes"),
        _ if bytes < KIB * KIB => format!("{} KiB", bytes / KIB),
        _ => format!("{} MiB", bytes / KIB / KIB),
    }
}

/// The functions of `state` that need bounds, with them.
pub(super) fn functions(state: &SessionState, allowance: &Arc<Allowance>) -> Vec<Arc<ScalarUDF>> {
    let bounded = FUNCTIONS.iter().filter_map(|(name, weigh)| {
        let inner = Arc::clone(state.scalar_functions().get(*name)?);
        let bounded = Bounded { inner, weigh: *weigh, allowance: Arc::clone(allowance) };
        Some(Arc::new(ScalarUDF::new_from_impl(bounded)))
    });
    bounded.collect()
}

/// A function that is weighed before it is called.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    weigh: Weigh,
    allowance: Arc<Allowance>,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Bounded {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arguments = Arguments::new(&args)?;
        let bytes = (self.weigh)(&arguments).saturating_add(arguments.copies());
        self.allowance.check(self.name(), bytes)?;
        self.inner.invoke_with_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn preimage(
        &self,
        args: &[Expr],
        lit_expr: &Expr,
        info: &SimplifyContext,
    ) -> Result<PreimageResult> {
        self.inner.preimage(args, lit_expr, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn conditional_arguments<'a>(
        &self,
        args: &'a [Expr],
    ) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(inputs)
    }

    fn propagate_constraints(
        &self,
        interval: &Interval,
        inputs: &[&Interval],
    ) -> Result<Option<Vec<Interval>>> {
        self.inner.propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        self.inner.placement(args)
    }
}

/// One argument of a call: a value for each row, or one for all of them.
pub(super) struct Argument {
    pub(super) values: ArrayRef,
    constant: bool,
}

impl Argument {
    pub(super) fn at(&self, row: usize) -> usize {
        if self.constant { 0 } else { row }
    }

    /// Where the value of `row` is, if there is one.
    pub(super) fn valid(&self, row: usize) -> Option<usize> {
        let index = self.at(row);
        (index < self.values.len() && self.values.is_valid(index)).then_some(index)
    }

    pub(super) fn number(&self, row: usize) -> Option<i64> {
        let index = self.valid(row)?;
        Some(self.values.as_primitive_opt::<Int64Type>()?.value(index))
    }

    /// A number of things; none where it is negative or null.
    fn count(&self, row: usize) -> u64 {
        self.number(row).and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
    }

    fn text(&self, row: usize) -> Option<&str> {
        let index = self.valid(row)?;
        match self.values.data_type() {
            DataType::Utf8 => Some(self.values.as_string::<i32>().value(index)),
            DataType::LargeUtf8 => Some(self.values.as_string::<i64>().value(index)),
            DataType::Utf8View => Some(self.values.as_string_view().value(index)),
            _ => None,
        }
    }

    /// The value of `row`, where it is a list.
    fn list(&self, row: usize) -> Option<ArrayRef> {
        let index = self.valid(row)?;
        match self.values.data_type() {
            DataType::List(_) => Some(self.values.as_list::<i32>().value(index)),
            DataType::LargeList(_) => Some(self.values.as_list::<i64>().value(index)),
            _ => None,
        }
    }

    /// Bytes that one more copy of the value takes.
    fn bytes(&self, row: usize) -> u64 {
        if let Some(width) = self.values.data_type().primitive_width() {
            return width as u64;
        }
        if let Some(text) = self.text(row) {
            return text.len() as u64;
        }
        if let Some(items) = self.list(row) {
            return held(&items).saturating_add((items.len() as u64).saturating_mul(ITEM));
        }
        let index = self.at(row);
        if index < self.values.len() { held(&self.values.slice(index, 1)) } else { 0 }
    }
}

fn held(values: &ArrayRef) -> u64 {
    let data = values.to_data();
    data.get_slice_memory_size().unwrap_or_else(|_| data.get_buffer_memory_size()) as u64
}

/// The arguments of a call.
pub(super) struct Arguments {
    pub(super) each: Vec<Argument>,
    rows: usize,
}

impl Arguments {
    fn new(args: &ScalarFunctionArgs) -> Result<Self> {
        let mut each = Vec::with_capacity(args.args.len());
        for value in &args.args {
            let constant = matches!(value, ColumnarValue::Scalar(_));
            each.push(Argument { values: value.to_array(1)?, constant });
        }
        let rows = if each.iter().all(|arg| arg.constant) { 1 } else { args.number_rows };
        Ok(Self { each, rows })
    }

    /// Constants beside columns are copied for each row by most functions.
    fn copies(&self) -> u64 {
        if self.each.iter().all(|arg| arg.constant) {
            return 0;
        }
        let long = |arg: &&Argument| arg.values.data_type().primitive_width().is_none();
        let constants = self.each.iter().filter(|arg| arg.constant).filter(long);
        constants.fold(0, |sum: u64, arg| {
            sum.saturating_add(arg.bytes(0).saturating_mul(self.rows as u64))
        })
    }

    /// The sum over all rows; nothing for rows without what `weigh` needs.
    pub(super) fn sum(&self, weigh: impl Fn(usize) -> Option<u64>) -> u64 {
        (0..self.rows).filter_map(weigh).fold(0, u64::saturating_add)
    }
}

fn repeat(args: &Arguments) -> u64 {
    let [text, count] = args.each.as_slice() else { return 0 };
    args.sum(|row| Some((text.text(row)?.len() as u64).saturating_mul(count.count(row))))
}

fn pad(args: &Arguments) -> u64 {
    let [text, length, fill @ ..] = args.each.as_slice() else { return 0 };
    args.sum(|row| {
        let text = text.text(row)?;
        let width = match fill.first() {
            Some(fill) if !fill.text(row)?.is_ascii() => 4,
            _ => 1,
        };
        let there = if text.is_ascii() { text.len() as u64 } else { 0 };
        Some(length.count(row).saturating_sub(there).saturating_mul(width))
    })
}

/// The text that is put in may be long, and often.
fn replace(args: &Arguments) -> u64 {
    let [text, from, to] = args.each.as_slice() else { return 0 };
    args.sum(|row| {
        let (text, from, to) = (text.text(row)?, from.text(row)?, to.text(row)?);
        let more = to.len().checked_sub(from.len()).filter(|more| *more > 0)?;
        Some((text.matches(from).count() as u64).saturating_mul(more as u64))
    })
}

fn array_repeat(args: &Arguments) -> u64 {
    let [value, count] = args.each.as_slice() else { return 0 };
    args.sum(|row| {
        let count = Some(count.count(row)).filter(|count| *count > 0)?;
        Some(value.bytes(row).saturating_add(ITEM).saturating_mul(count))
    })
}

fn array_resize(args: &Arguments) -> u64 {
    let [list, count, value @ ..] = args.each.as_slice() else { return 0 };
    let null = match list.values.data_type() {
        DataType::List(item) | DataType::LargeList(item) => {
            held(&new_null_array(item.data_type(), 1))
        }
        _ => return 0,
    };
    args.sum(|row| {
        let more = count.count(row).saturating_sub(list.list(row)?.len() as u64);
        let more = Some(more).filter(|more| *more > 0)?;
        let bytes = value.first().map_or(null, |value| value.bytes(row));
        Some(bytes.saturating_add(ITEM).saturating_mul(more))
    })
}
