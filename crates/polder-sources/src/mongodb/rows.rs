//! Parts of a query that are some documents of one collection, as rows.
//!
//! Their condition is said to the server as a whole or not at all: nobody filters again what it makes of them.

use std::collections::BTreeMap;

use bson::{Document, doc};
use polder_core::subplan::Term;
use polder_core::{CmpOp, Field, LakeType, Literal, Predicate, SubPlan};

use super::pushed;
use crate::document::{Inference, Scalars};

/// Some documents of one collection, as rows.
pub(super) struct Rows<'a> {
    known: &'a Inference,
    pub(super) from: &'a str,
    /// The collection's columns that the query looks at.
    pub(super) read: &'a [Field],
    pub(super) columns: Vec<Field>,
    /// A stage that leaves out all other documents, if any are left out.
    pub(super) matching: Option<Document>,
    /// The columns whose values are compared.
    pub(super) compared: BTreeMap<String, Scalars>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(part: &'a SubPlan, known: &'a Inference) -> Option<Self> {
        let (from, read, columns, predicate) = plain(part)?;
        let mut rows =
            Self { known, from, read, columns, matching: None, compared: BTreeMap::new() };
        if predicate != Predicate::True {
            let pushed = pushed::push_whole(&predicate, known)?;
            rows.matching = Some(doc! { "$match": pushed.filter });
            rows.compared = pushed.compared;
        }
        Some(rows)
    }

    /// The column that a term is.
    pub(super) fn column(&self, term: &Term) -> Option<Field> {
        column(term, &self.columns)
    }

    /// Whether the rows cannot be read with this column.
    pub(super) fn is_refused(&self, field: &Field) -> bool {
        self.known.is_refused(&field.name)
    }

    /// A column that the server compares as SQL does, and what it holds.
    pub(super) fn scalar(&self, term: &Term) -> Option<(Field, Scalars)> {
        let field = self.column(term)?;
        let kind = self.known.scalars(&field.name)?;
        pushed::is_plain(&field.name).then_some((field, kind))
    }
}

/// A collection's name, the columns read of it, and the columns and the condition of these rows.
type Plain<'a> = (&'a str, &'a [Field], Vec<Field>, Predicate);

fn plain(part: &SubPlan) -> Option<Plain<'_>> {
    match part {
        // Its own predicate is only part of the condition above it.
        SubPlan::Table { from, columns, .. } => {
            Some((from.as_str(), columns.as_slice(), columns.clone(), Predicate::True))
        }
        SubPlan::Filter { input, condition } => {
            let (from, read, columns, before) = plain(input)?;
            let condition = predicate(condition, &columns)?;
            Some((from, read, columns, before.and(condition)))
        }
        SubPlan::Project { input, terms } => {
            let (from, read, columns, predicate) = plain(input)?;
            let columns = terms.iter().map(|term| column(term, &columns)).collect::<Option<_>>()?;
            Some((from, read, columns, predicate))
        }
        _ => None,
    }
}

/// The column that a term is, an integer perhaps wider than it was.
fn column(term: &Term, columns: &[Field]) -> Option<Field> {
    match term {
        Term::Column(index) => columns.get(*index).cloned(),
        Term::Widened(term, LakeType::Long) => {
            let field = column(term, columns)?;
            let integers = matches!(field.data_type, LakeType::Int | LakeType::Long);
            integers.then_some(Field { data_type: LakeType::Long, ..field })
        }
        _ => None,
    }
}

/// The condition as one on the collection's columns, true for the same rows.
fn predicate(term: &Term, columns: &[Field]) -> Option<Predicate> {
    let named = |term: &Term| column(term, columns).map(|field| field.name);
    let is = |column: String, value: bool| Predicate::Cmp {
        column,
        op: CmpOp::Eq,
        value: Literal::Boolean(value),
    };
    Some(match term {
        Term::Column(_) => is(named(term)?, true),
        Term::Compare { op, left, right } => match (&**left, &**right) {
            (left, Term::Constant(value)) => {
                Predicate::Cmp { column: named(left)?, op: *op, value: value.clone() }
            }
            _ => return None,
        },
        Term::And(left, right) => predicate(left, columns)?.and(predicate(right, columns)?),
        Term::Or(left, right) => {
            let (left, right) = (predicate(left, columns)?, predicate(right, columns)?);
            Predicate::Or(Box::new(left), Box::new(right))
        }
        Term::Not(inner) => Predicate::Not(Box::new(predicate(inner, columns)?)),
        Term::IsNull(inner) => Predicate::IsNull(named(inner)?),
        Term::Is(inner, value) => {
            let column = named(inner)?;
            Predicate::IsNotNull(column.clone()).and(is(column, *value))
        }
        Term::In { term, values } => Predicate::In { column: named(term)?, values: values.clone() },
        Term::Like { term, pattern } => {
            let prefix = pattern.strip_suffix('%')?;
            if prefix.is_empty() || prefix.contains(['%', '_', '\\']) {
                return None;
            }
            Predicate::StartsWith { column: named(term)?, prefix: prefix.to_owned() }
        }
        _ => return None,
    })
}
