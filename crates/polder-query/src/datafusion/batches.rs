//! How many rows operators take at once.
//!
//! The more there are, the less each costs: of 32,768 TPC-H takes a tenth less time than of 8,192. But operators gather
//! so many before they go on, however long they are.

use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{LogicalPlan, TableScan};

use super::table::LakeTableProvider;

const ROWS: usize = 32 * 1024;
/// DataFusion's own default.
const ROWS_FEW: usize = 8 * 1024;
/// Bytes that a query may hold from which on batches are large.
const MEMORY_MIN: usize = 512 << 20;
/// Bytes of a row as it is stored, on average, up to which they are: a batch of such has 4 MB there, and some times as
/// many in memory.
const STORED_ROW_BYTES_MAX: u64 = 128;

/// For a plan of a query that may hold so much.
pub(super) fn rows(plan: &LogicalPlan, memory_bytes: usize) -> Result<usize> {
    let mut narrow = memory_bytes >= MEMORY_MIN;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            narrow &= stored_row_bytes(scan).is_some_and(|bytes| bytes <= STORED_ROW_BYTES_MAX);
        }
        Ok(if narrow { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(if narrow { ROWS } else { ROWS_FEW })
}

/// `None` of other tables than the lake's.
fn stored_row_bytes(scan: &TableScan) -> Option<u64> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.as_any().downcast_ref::<LakeTableProvider>()?.stored_row_bytes()
}
