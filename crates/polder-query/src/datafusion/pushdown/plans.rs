//! DataFusion's plans in the core's words, as far as they mean the same.
//!
//! Each part's types are compared with those that DataFusion gives its columns: what the core would type
//! in another way is not said at all.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::NullEquality;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{
    Aggregate, FetchType, Filter, Join, JoinType, Limit, LogicalPlan, Projection, SkipType, Sort,
    SortExpr, TableScan,
};
use polder_core::subplan::{JoinKind, Order, Term};
use polder_core::{CmpOp, Field, LakeType, Learnt, Source, SubPlan};

use super::super::filter;
use super::super::source::SourceTable;
use super::terms::{Terms, aggregate};

/// A part of a plan that one source may answer.
pub(super) struct Part {
    pub(super) plan: SubPlan,
    /// Those of its columns.
    pub(super) types: Vec<LakeType>,
    /// The columns as the plan above knows them.
    pub(super) schema: SchemaRef,
    /// What was learnt before of its table, if it has one.
    pub(super) learnt: Option<Arc<Learnt>>,
    pub(super) source: Arc<dyn Source>,
    /// The source's.
    pub(super) name: String,
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.plan, &self.schema) == (&other.name, &other.plan, &other.schema)
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// What a source may answer of this node: the node itself or, of a node that keeps the first rows, its
/// input with no more rows than are kept.
pub(super) fn part(node: &LogicalPlan) -> Option<Part> {
    let (said, of) = match node {
        LogicalPlan::Sort(sort) => (first(sort)?, &*sort.input),
        LogicalPlan::Limit(limit) if is_ordered(&limit.input) => return None,
        LogicalPlan::Limit(limit) => {
            let (skip, fetch) = bounds(limit)?;
            (some(&limit.input, skip.checked_add(fetch)?)?, &*limit.input)
        }
        node if is_ordered(node) => return None,
        node => (said(node)?, node),
    };
    let parts = said.plan.parts();
    let worth = parts.iter().any(|part| {
        matches!(part, SubPlan::Join { .. } | SubPlan::Aggregate { .. } | SubPlan::First { .. })
    });
    if !worth {
        return None;
    }
    Some(Part {
        types: said.plan.columns()?,
        schema: Arc::clone(of.schema().inner()),
        plan: said.plan,
        learnt: said.learnt,
        source: said.source,
        name: said.name,
    })
}

/// Whether the node's rows come in an order that what is above may rely on.
fn is_ordered(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Projection(projection) => is_ordered(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_ordered(&alias.input),
        LogicalPlan::Filter(filter) => is_ordered(&filter.input),
        LogicalPlan::Limit(limit) => is_ordered(&limit.input),
        _ => false,
    }
}

/// A plan in the core's words, and whose tables it has.
struct Said {
    plan: SubPlan,
    learnt: Option<Arc<Learnt>>,
    source: Arc<dyn Source>,
    name: String,
}

impl Said {
    fn within(self, wrap: impl FnOnce(Box<SubPlan>) -> SubPlan) -> Self {
        Self { plan: wrap(Box::new(self.plan)), ..self }
    }
}

/// `None` for what would not mean the same. An order is not kept.
fn said(node: &LogicalPlan) -> Option<Said> {
    let said = match node {
        LogicalPlan::TableScan(scan) => table(scan)?,
        LogicalPlan::SubqueryAlias(alias) => said(&alias.input)?,
        LogicalPlan::Filter(Filter { predicate, input, .. }) => {
            let condition = Terms::of(input.schema()).term(predicate)?;
            said(input)?.within(|input| SubPlan::Filter { input, condition })
        }
        LogicalPlan::Projection(Projection { expr, input, .. }) => {
            let from = Terms::of(input.schema());
            let terms = expr.iter().map(|expr| from.term(expr)).collect::<Option<_>>()?;
            said(input)?.within(|input| SubPlan::Project { input, terms })
        }
        LogicalPlan::Join(node) => join(node)?,
        LogicalPlan::Aggregate(Aggregate { input, group_expr, aggr_expr, .. }) => {
            let from = Terms::of(input.schema());
            let keys = group_expr.iter().map(|expr| from.term(expr)).collect::<Option<_>>()?;
            let aggregates =
                aggr_expr.iter().map(|expr| aggregate(expr, &from)).collect::<Option<_>>()?;
            said(input)?.within(|input| SubPlan::Aggregate { input, keys, aggregates })
        }
        LogicalPlan::Sort(sort) => first(sort)?,
        LogicalPlan::Limit(limit) => match bounds(limit)? {
            (0, fetch) => some(&limit.input, fetch)?,
            _ => return None,
        },
        _ => return None,
    };
    let (types, fields) = (said.plan.columns()?, node.schema().fields());
    let same = types.iter().zip(fields).all(|(of, field)| of.to_arrow() == *field.data_type());
    (same && types.len() == fields.len()).then_some(said)
}

/// A table of a source with what of its filters the source may see: the whole filter is above it.
fn table(scan: &TableScan) -> Option<Said> {
    let provider = source_as_provider(&scan.source).ok()?;
    let table = provider.as_any().downcast_ref::<SourceTable>()?;
    let all = || (0..table.columns.fields.len()).collect();
    let wanted: Vec<usize> = scan.projection.clone().unwrap_or_else(all);
    let columns = wanted.iter().map(|index| table.columns.fields.get(*index).cloned());
    Some(Said {
        plan: SubPlan::Table {
            from: table.from.clone(),
            columns: columns.collect::<Option<Vec<Field>>>()?,
            predicate: filter::predicate(&scan.filters, &table.columns),
        },
        learnt: table.learnt.clone(),
        source: Arc::clone(&table.source),
        name: table.name.clone(),
    })
}

/// Rows that have a partner by equal values; all pairs would be more than the tables are.
fn join(node: &Join) -> Option<Said> {
    let kind = match node.join_type {
        JoinType::Inner => JoinKind::Inner,
        JoinType::Left => JoinKind::Left,
        _ => return None,
    };
    if node.on.is_empty() || node.null_equality != NullEquality::NullEqualsNothing {
        return None;
    }
    let left_terms = Terms::of(node.left.schema());
    let right_terms = Terms::after(node.right.schema(), node.left.schema().fields().len());
    let mut conditions = Vec::with_capacity(node.on.len() + 1);
    for (left, right) in &node.on {
        let (left, right) = (left_terms.term(left)?, right_terms.term(right)?);
        let (left, right) = (Box::new(left), Box::new(right));
        conditions.push(Term::Compare { op: CmpOp::Eq, left, right });
    }
    if let Some(filter) = &node.filter {
        conditions.push(Terms::of(&node.schema).term(filter)?);
    }
    let both = |all: Term, one: Term| Term::And(Box::new(all), Box::new(one));
    let condition = conditions.into_iter().reduce(both)?;
    let (left, right) = (said(&node.left)?, said(&node.right)?);
    (left.name == right.name).then(|| {
        let right = Box::new(right.plan);
        let joined = left.within(|left| SubPlan::Join { left, right, kind, condition });
        Said { learnt: None, ..joined }
    })
}

/// As many rows as an order keeps, in whatever order.
fn first(sort: &Sort) -> Option<Said> {
    let rows = sort.fetch? as u64;
    let from = Terms::of(sort.input.schema());
    let key = |key: &SortExpr| {
        let (descending, nulls_first) = (!key.asc, key.nulls_first);
        Some(Order { term: from.term(&key.expr)?, descending, nulls_first })
    };
    let order = sort.expr.iter().map(key).collect::<Option<_>>()?;
    let first = said(&sort.input)?.within(|input| SubPlan::First { input, order, rows });
    // Its keys too have to be exact.
    first.plan.columns().map(|_| first)
}

/// Any rows, as many at most.
fn some(input: &LogicalPlan, rows: u64) -> Option<Said> {
    let order = Vec::new();
    Some(said(input)?.within(|input| SubPlan::First { input, order, rows }))
}

/// How many rows are left out and how many come; `None` where all come.
fn bounds(limit: &Limit) -> Option<(u64, u64)> {
    match (limit.get_skip_type().ok()?, limit.get_fetch_type().ok()?) {
        (SkipType::Literal(skip), FetchType::Literal(Some(fetch))) => {
            Some((skip as u64, fetch as u64))
        }
        _ => None,
    }
}
