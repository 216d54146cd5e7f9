//! The seam to SQL engines.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use futures::Stream;

use crate::spec::EngineKind;
use crate::{Authorized, OrgId, Principal, Result, RunProgress};

/// For whom and within which limits a query runs.
#[derive(Clone, Debug)]
pub struct Session {
    /// Decides which orgs' namespaces exist for the query.
    pub principal: Principal,
    /// The most rows to return; more is an error of code `query.limit`. `None`: no limit.
    pub rows_max: Option<u64>,
    /// Bytes of memory the query's operators may hold.
    pub memory_bytes_max: usize,
    /// Tables that are read as they were at a snapshot where the statement names no version: for a
    /// principal of one org, by the table's name.
    pub snapshots: BTreeMap<String, i64>,
    /// Whether a source answers the parts of a query that it can answer exactly; otherwise its tables
    /// are read, columns that only the rows tell are learnt anew, and all is computed here. The rows are the
    /// same.
    pub pushdown: bool,
}

/// The rows of a query. Dropping it cancels the query.
pub struct QueryStream {
    pub schema: SchemaRef,
    pub batches: Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>,
}

/// What a statement takes and gives, before it is started.
#[derive(Clone, Debug)]
pub struct Description {
    /// The types of `$1`, `$2`, … as far as the statement says them.
    pub parameters: Vec<Option<DataType>>,
    pub schema: SchemaRef,
}

/// Something that answers SQL.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Plans and starts one read-only statement.
    ///
    /// # Errors
    /// `query.invalid` for SQL that cannot be planned or that is not a query; `lake.not_found` for a
    /// snapshot or tag that does not exist.
    async fn query(&self, sql: &str, session: &Session) -> Result<QueryStream>;

    /// Plans a statement that may have parameters (`$1`, `$2`, …), and starts nothing.
    ///
    /// # Errors
    /// As [`Self::query`].
    async fn describe(&self, sql: &str, session: &Session) -> Result<Description>;
}

/// What the snapshot says of itself that an [`Optimizer`] has committed: a key of its summary, and the
/// value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMark {
    pub key: &'static str,
    pub value: String,
}

/// Somebody beside Polder who merges a table's files, in a commit of their own.
#[async_trait]
pub trait Optimizer: fmt::Debug + Send + Sync {
    /// Who it is, for reports.
    fn kind(&self) -> EngineKind;

    /// Merges the org's files of the table that are smaller than `target_mb`, up to about that size, and
    /// says by which mark the snapshot is found; there is none where nothing was to be merged. Dropping
    /// the future asks them to stop.
    ///
    /// # Errors
    /// `lake.conflict` when another writer was first; `query.*` as of queries.
    async fn optimize(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        target_mb: u64,
        progress: &RunProgress,
    ) -> Result<SnapshotMark>;
}
