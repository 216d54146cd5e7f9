//! The statement of a read, and how it is cut into splits by block.
//!
//! Which snapshot the splits see is decided in `plan`.

use std::sync::Arc;

use polder_core::{ReadRequest, Split};

use super::catalog::{Kind, Relation, Tree};
use super::columns::ColumnRead;
use super::connect::Session;
use super::predicate::Judged;
use super::read::{Job, More, TableSplit};
use super::spares::{Reading, Spares};

/// The statement, but for the split's own range.
pub(super) struct Select<'a> {
    relation: &'a Relation,
    columns: &'a [ColumnRead],
    conditions: Vec<String>,
    /// Whether the table alone is read, without tables that may become its heirs.
    alone: bool,
}

impl<'a> Select<'a> {
    /// Rows that fulfil all of the conditions, of the tables that the snapshot's tree has: the
    /// server would also read a partition or an heir that is attached later, and with it rows that
    /// were stored elsewhere when the snapshot was taken.
    pub(super) fn new(
        relation: &'a Relation,
        columns: &'a [ColumnRead],
        mut conditions: Vec<String>,
        tree: &Tree,
    ) -> Self {
        let alone = relation.kind == Kind::Table && tree.oids == [relation.oid];
        if !alone && matches!(relation.kind, Kind::Table | Kind::Partitioned) {
            let oids: Vec<String> = tree.oids.iter().map(ToString::to_string).collect();
            conditions.push(format!("tableoid = ANY ('{{{}}}'::pg_catalog.oid[])", oids.join(",")));
        }
        Self { relation, columns, conditions, alone }
    }

    /// The statement that reads all splits.
    pub(super) fn whole(&self) -> String {
        self.sql(None)
    }

    pub(super) fn kind(&self) -> Kind {
        self.relation.kind
    }

    /// What follows `FROM`.
    pub(super) fn from(&self) -> String {
        let only = if self.alone { "ONLY " } else { "" };
        format!("{only}{}", self.relation.sql())
    }

    /// What rows have to fulfil.
    pub(super) fn conditions(&self) -> &[String] {
        &self.conditions
    }

    fn sql(&self, range: Option<Range>) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|column| &*column.sql).collect();
        let conditions: Vec<String> =
            self.conditions.iter().cloned().chain(range.and_then(Range::condition)).collect();
        let mut sql = format!("SELECT {} FROM {}", columns.join(", "), self.from());
        if !conditions.is_empty() {
            sql.push_str(" WHERE ");
            sql.push_str(&conditions.join(" AND "));
        }
        sql
    }

    /// One split for each session, as far as the blocks go.
    pub(super) fn splits(
        &self,
        sessions: Vec<Session>,
        blocks: &[u32],
        job: Job,
        request: &ReadRequest,
    ) -> Vec<Box<dyn Split>> {
        let judged = Arc::new(Judged::of(self.relation, self.columns, request));
        let cuts = cuts(blocks, sessions.len());
        let firsts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().map(Some).chain(std::iter::once(None));
        let ranges = firsts.zip(ends).map(|(first, end)| Range { first, end });
        let job = Arc::new(job);
        let (spares, readings) = Spares::of(sessions);
        let split = |(reading, range): (Reading, Range)| {
            let describe = format!("{} {}", self.relation.display(), range.describe());
            let (sql, job) = (self.sql(Some(range)), Arc::clone(&job));
            let conditional = !self.conditions.is_empty() || range.condition().is_some();
            let more = More { conditional, judged: Arc::clone(&judged) };
            Box::new(TableSplit::new(reading, &spares, (sql, describe), job).with_more(more)) as _
        };
        // Sessions left over, if there are fewer ranges, are closed here.
        readings.into_iter().zip(ranges).map(split).collect()
    }
}

/// Blocks `[first, end)`; open-ended without `end`, as the table may have grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    end: Option<u32>,
}

impl Range {
    fn condition(self) -> Option<String> {
        let from =
            (self.first > 0).then(|| format!("ctid >= '({},0)'::pg_catalog.tid", self.first));
        let to = self.end.map(|end| format!("ctid < '({end},0)'::pg_catalog.tid"));
        match (from, to) {
            (Some(from), Some(to)) => Some(format!("{from} AND {to}")),
            (from, to) => from.or(to),
        }
    }

    fn describe(self) -> String {
        match self.end {
            Some(end) => format!("ctid [{}, {end})", self.first),
            None if self.first == 0 => "whole".to_owned(),
            None => format!("ctid [{}, …)", self.first),
        }
    }
}

/// Cuts tables of so many blocks at the same block numbers, so that each of `parts` ranges holds
/// about as many blocks over all tables. Returns the cuts, ascending; fewer for tiny tables.
fn cuts(blocks: &[u32], parts: usize) -> Vec<u32> {
    let total: u64 = blocks.iter().map(|&size| u64::from(size)).sum();
    let below = |cut: u32| blocks.iter().map(|&size| u64::from(size.min(cut))).sum::<u64>();
    let largest = blocks.iter().copied().max().unwrap_or(0);
    let mut cuts = Vec::new();
    for part in 1..parts as u64 {
        let share = total * part / parts as u64;
        let (mut low, mut high) = (0, largest);
        while low < high {
            let middle = low + (high - low) / 2;
            if below(middle) < share { low = middle + 1 } else { high = middle }
        }
        if low > cuts.last().copied().unwrap_or(0) && low < largest {
            cuts.push(low);
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_balance_tables_of_all_sizes() {
        assert_eq!(cuts(&[1000], 4), [250, 500, 750]);
        assert_eq!(cuts(&[1000, 10], 2), [495]);
        assert_eq!(cuts(&[100, 100, 100], 2), [50]);
        assert_eq!(cuts(&[1], 4), [0_u32; 0]);
        assert_eq!(cuts(&[], 4), [0_u32; 0]);
        assert_eq!(cuts(&[2], 4), [1]);
        assert_eq!(cuts(&[u32::MAX, u32::MAX], 2), [u32::MAX / 2 + 1]);
    }

    #[test]
    fn ranges_leave_no_gap() {
        let range = |first, end| Range { first, end }.condition();
        assert_eq!(range(0, None), None);
        assert_eq!(range(0, Some(7)).expect("end"), "ctid < '(7,0)'::pg_catalog.tid");
        assert_eq!(range(7, None).expect("first"), "ctid >= '(7,0)'::pg_catalog.tid");
        assert_eq!(
            range(7, Some(9)).expect("both"),
            "ctid >= '(7,0)'::pg_catalog.tid AND ctid < '(9,0)'::pg_catalog.tid"
        );
    }
}
