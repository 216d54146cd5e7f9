//! The seam to SQL engines.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use futures::Stream;

use crate::spec::EngineKind;
use crate::{Authorized, Field, OrgId, Principal, Result, RunProgress};

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

/// A column on its way from a source's own SQL into a table.
#[derive(Clone, Debug)]
pub struct Carried {
    /// Name and type, as the table has them.
    pub field: Field,
    /// The statement gives it as a text of JSON: an array of a list's elements or of a struct's members.
    pub json: bool,
}

/// What somebody else is to read and where its rows go.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    pub org: &'a Authorized<OrgId>,
    /// The source, by its name in the configuration.
    pub source: &'a str,
    /// What the source is asked, in its own SQL. Its columns are `c1`, `c2`, … in the order of `columns`.
    pub statement: &'a str,
    /// The columns of the table that get values; others are null.
    pub columns: &'a [Carried],
    /// The org's table that takes the rows.
    pub table: &'a str,
    /// The size data files aim at, in megabytes.
    pub file_mb: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Rows written, as whoever wrote them counts.
    pub rows: u64,
    /// How the snapshot with the rows is found; there may be none if there were no rows.
    pub mark: SnapshotMark,
}

/// A refusal within [`Import::statement`]: an error message of the source with this text in it says that
/// the value of a column, whose number follows, is none of the lake's; 0 stands for the source itself,
/// which is not the one that the statement was made for.
pub const REFUSED: &str = "polder-refused-";

/// Somebody beside Polder who reads a source and writes its rows into a table, in a commit of their own.
#[async_trait]
pub trait Importer: fmt::Debug + Send + Sync {
    /// Has the source asked the statement, once, and adds its rows to the table. Dropping the future asks
    /// them to stop.
    ///
    /// # Errors
    /// `spec.invalid` for a table that they cannot find; `source.unrepresentable` and `source.failed` where
    /// the statement refuses (see [`REFUSED`]); `query.*` as of queries.
    async fn import(&self, import: Import<'_>, progress: &RunProgress) -> Result<Imported>;

    /// Ends every statement that names tables of the org, whoever asked for it and whether or not they still
    /// live, and waits until none is under way: for an org that is fenced, before its files go.
    ///
    /// # Errors
    /// `lake.unavailable` when they cannot be asked, or statements do not end; called again, it goes on.
    async fn stop(&self, org: &Authorized<OrgId>) -> Result<()>;
}
