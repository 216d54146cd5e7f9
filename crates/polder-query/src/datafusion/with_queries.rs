//! WITH queries that use each other several times: the planner writes each out wherever it is used,
//! so that forty lines can become a plan of 2^40 parts. What that would be is counted here first.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{ObjectName, Query, Statement, Visit, Visitor};
use polder_core::{Error, ErrorCode, Result};

use super::version;

/// Tables in a query, those of WITH queries counted wherever they are used.
const TABLES_MAX: u64 = 20_000;

/// # Errors
/// `query.limit` for a statement whose WITH queries would be written out too often.
pub(super) fn check(statement: &Statement) -> Result<()> {
    let mut count = Count { tables: 0, of: &HashMap::new() };
    match statement.visit(&mut count) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            let message = format!("the query reads more than {TABLES_MAX} tables");
            Err(Error::new(ErrorCode::QueryLimit, message)
                .hint("WITH queries count wherever they are used: let them use each other less"))
        }
    }
}

struct Count<'a> {
    tables: u64,
    /// What each WITH query in scope stands for.
    of: &'a HashMap<String, u64>,
}

impl Count<'_> {
    fn add(&mut self, tables: u64) -> ControlFlow<()> {
        self.tables = self.tables.saturating_add(tables);
        if self.tables > TABLES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Visitor for Count<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let Some(with) = &query.with else { return ControlFlow::Continue(()) };
        let mut of = self.of.clone();
        for cte in &with.cte_tables {
            let mut count = Count { tables: 1, of: &of };
            cte.query.visit(&mut count)?;
            let tables = count.tables;
            of.insert(version::normal(&cte.alias.name), tables);
        }
        let mut count = Count { tables: 1, of: &of };
        query.body.visit(&mut count)?;
        let tables = count.tables;
        self.add(tables)
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = relation.0.last().and_then(|part| part.as_ident()).map(version::normal);
        self.add(name.and_then(|name| self.of.get(&name).copied()).unwrap_or(1))
    }
}
