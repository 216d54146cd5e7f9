//! Rows that a join is going to drop, left out as soon as they are decoded.
//!
//! A join hands a filter to the scan of its larger side, which it fills in once it has read the smaller one; a sort of the
//! first rows hands on one that it narrows as it goes. Where the scan's rows are aggregated, or joined with others,
//! before they come there, most of that work is for rows that the filter would have left out. Parquet's own filtering
//! while decoding is no way to do it: it costs more than it saves where many rows pass. Here a filter is given up, for
//! the rest of a file, once it lets too many through, or cannot be told.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr_common::physical_expr::{
    snapshot_generation, snapshot_physical_expr,
};
use futures::{FutureExt, StreamExt};

/// Rows by which a filter is judged.
const TRIED_ROWS: usize = 32 * 1024;
/// Of how many rows one may pass: copying those that do has its price.
const PASSING_ONE_OF: usize = 4;

/// An opener whose rows pass `filters`, which speak of the table's columns; all of these if there is no
/// `projection`. Passed over are filters of columns that are not read, and of anything computed: a cast may fail for
/// a row that another filter would have taken away.
pub(super) fn around(
    opener: Arc<dyn FileOpener>,
    filters: &[Arc<dyn PhysicalExpr>],
    projection: Option<&ProjectionExprs>,
) -> Arc<dyn FileOpener> {
    let of_columns = |filter: &&Arc<dyn PhysicalExpr>| filter.children().into_iter().all(is_column);
    let filters = filters.iter().filter(of_columns).filter_map(|filter| match projection {
        None => Some(Arc::clone(filter)),
        Some(projection) => projected(filter, projection),
    });
    let filters: Vec<_> = filters.collect();
    if filters.is_empty() { opener } else { Arc::new(Sifting { opener, filters }) }
}

fn is_column(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.as_any().is::<Column>()
}

/// The filter by the columns that a projection gives.
fn projected(
    filter: &Arc<dyn PhysicalExpr>,
    projection: &ProjectionExprs,
) -> Option<Arc<dyn PhysicalExpr>> {
    let mut lacks = false;
    let by_place = Arc::clone(filter).transform_up(|expr| {
        let Some(column) = expr.as_any().downcast_ref::<Column>() else {
            return Ok(Transformed::no(expr));
        };
        let place = projection
            .iter()
            .position(|one| one.expr.as_any().downcast_ref::<Column>() == Some(column));
        let Some(place) = place else {
            lacks = true;
            return Ok(Transformed::no(expr));
        };
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), place)) as _))
    });
    by_place.data().ok().filter(|_| !lacks)
}

struct Sifting {
    opener: Arc<dyn FileOpener>,
    /// By the columns of its batches.
    filters: Vec<Arc<dyn PhysicalExpr>>,
}

impl FileOpener for Sifting {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let opened = self.opener.open(file)?;
        let mut sieves: Vec<_> = self.filters.iter().map(Sieve::new).collect();
        Ok(async move {
            let batches = opened.await?.map(move |batch| {
                Ok(sieves.iter_mut().fold(batch?, |batch, sieve| sieve.pass(batch)))
            });
            Ok(batches.boxed())
        }
        .boxed())
    }
}

/// One filter on the rows of one file.
struct Sieve {
    filter: Arc<dyn PhysicalExpr>,
    /// What it says at the moment, and when that was asked for; `None` while it says nothing.
    now: Option<Arc<dyn PhysicalExpr>>,
    generation: Option<u64>,
    rows: usize,
    passed: usize,
}

impl Sieve {
    fn new(filter: &Arc<dyn PhysicalExpr>) -> Self {
        Self { filter: Arc::clone(filter), now: None, generation: None, rows: 0, passed: 0 }
    }

    fn pass(&mut self, batch: RecordBatch) -> RecordBatch {
        if self.rows >= TRIED_ROWS && self.passed > self.rows / PASSING_ONE_OF {
            return batch;
        }
        match self.passing(&batch) {
            Ok(Some(passing)) => {
                self.rows += batch.num_rows();
                self.passed += passing.num_rows();
                passing
            }
            Ok(None) => batch,
            // A join does without.
            Err(_) => {
                (self.rows, self.passed) = (usize::MAX, usize::MAX);
                batch
            }
        }
    }

    /// `None` while the filter says nothing.
    fn passing(&mut self, batch: &RecordBatch) -> Result<Option<RecordBatch>> {
        let generation = Some(snapshot_generation(&self.filter));
        if generation != self.generation {
            let now = snapshot_physical_expr(Arc::clone(&self.filter))?;
            self.now = (!now.as_any().is::<Literal>()).then_some(now);
            self.generation = generation;
        }
        let Some(now) = &self.now else { return Ok(None) };
        let passing = now.evaluate(batch)?.into_array(batch.num_rows())?;
        // A null is not true.
        Ok(Some(filter_record_batch(batch, as_boolean_array(&passing)?)?))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{
        BinaryExpr, CastExpr, DynamicFilterPhysicalExpr, lit,
    };
    use datafusion::physical_expr::projection::ProjectionExpr;

    use super::*;

    fn col(name: &str, index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(name, index))
    }

    fn below(column: Arc<dyn PhysicalExpr>, limit: i64) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(column, Operator::Lt, lit(limit)))
    }

    fn rows(from: i64, count: i64) -> RecordBatch {
        let numbers = (from..from + count).map(|n| (n % 7 != 0).then_some(n));
        let numbers: ArrayRef = Arc::new(numbers.collect::<Int64Array>());
        RecordBatch::try_from_iter([("n", numbers)]).expect("a batch")
    }

    #[test]
    fn rows_pass_what_the_filter_says_by_then() {
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![col("n", 0)], lit(true)));
        let mut sieve = Sieve::new(&(Arc::clone(&filter) as _));
        let mut passed = |from| sieve.pass(rows(from, 100)).num_rows();
        assert_eq!(passed(0), 100, "nothing is said yet");
        filter.update(below(col("n", 0), 10)).expect("filled in");
        assert_eq!(passed(0), 8, "ten, but for two nulls");
        assert_eq!(passed(100), 0);
        filter.update(below(col("n", 0), 104)).expect("filled in");
        assert_eq!(passed(100), 4, "100 to 103: none is a seventh");
    }

    #[test]
    fn a_filter_that_most_rows_pass_is_given_up() {
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![col("n", 0)], lit(true)));
        filter.update(below(col("n", 0), i64::MAX)).expect("filled in");
        let mut sieve = Sieve::new(&(Arc::clone(&filter) as _));
        let batch = rows(0, TRIED_ROWS as i64);
        assert!(sieve.pass(batch.clone()).num_rows() < batch.num_rows());
        assert_eq!(sieve.pass(batch.clone()), batch, "nulls too");
    }

    struct Nothing;

    impl FileOpener for Nothing {
        fn open(&self, _file: PartitionedFile) -> Result<FileOpenFuture> {
            unreachable!("no file is opened")
        }
    }

    #[test]
    fn filters_are_of_columns_that_are_read() {
        let exprs = [("b", 1), ("a", 0)]
            .map(|(name, index)| ProjectionExpr { expr: col(name, index), alias: name.to_owned() });
        let projection = ProjectionExprs::from(exprs.to_vec());
        let dynamic = |child| -> Arc<dyn PhysicalExpr> {
            Arc::new(DynamicFilterPhysicalExpr::new(vec![child], lit(true)))
        };
        let moved = projected(&dynamic(col("a", 0)), &projection).expect("it is read");
        assert_eq!(moved.children(), [&col("a", 1)]);
        assert!(projected(&dynamic(col("c", 2)), &projection).is_none());
        let cast = CastExpr::new(col("a", 0), arrow::datatypes::DataType::Int32, None);
        let opener: Arc<dyn FileOpener> = Arc::new(Nothing);
        let same = around(Arc::clone(&opener), &[dynamic(Arc::new(cast))], None);
        assert!(Arc::ptr_eq(&same, &opener), "a cast may fail");
        let sifting = around(Arc::clone(&opener), &[dynamic(col("a", 0))], Some(&projection));
        assert!(!Arc::ptr_eq(&sifting, &opener));
    }
}
