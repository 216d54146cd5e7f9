//! The seam to outside systems: everything a source has to offer to be read into the lake.
//!
//! A source knows nothing of runs, checkpoints' storage or Iceberg. Adding one touches four places:
//! its folder in `polder-sources`, one [`crate::spec::SourceSpec`] variant, one wiring line, one
//! line of the conformance suite (docs/how-to/add-a-source.md).

use std::any::Any;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::Stream;
use serde::Serialize;

use crate::checkpoint::ObjectState;
use crate::spec::{Filter, FormatOptions, Mode, OnUnrepresentable};
use crate::{
    Carried, CursorValue, Doubt, Error, ErrorCode, LakeType, OrgId, Predicate, Result, RunProgress,
    SubPlan, TableSchema,
};

/// What a source can do, as data: the pipeline branches on these and never on the source's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Reads rows from a lower bound of a cursor column.
    pub cursor: bool,
    /// Tracks objects (files), so that a later read skips those already read.
    pub objects: bool,
    /// The plan's schema is the whole truth: a column missing from it is gone from the source. False
    /// where the schema is inferred from the rows read, which may lack a column by chance.
    pub complete_schema: bool,
}

/// A table (collection, set of files) a source offers, for `discover`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceTable {
    /// The name as `from:` of a table spec takes it.
    pub name: String,
    /// `table`, `view`, `partitioned table`, `collection`, `files`, …
    pub kind: &'static str,
    /// The columns; empty where finding them would mean reading the data.
    pub schema: TableSchema,
    /// The primary key's columns, if there is one.
    pub key: Vec<String>,
    /// Columns that can serve as cursor, best first.
    pub cursors: Vec<String>,
    /// What suits the table: `merge` where it has a key and its best cursor tells when a row was
    /// changed, `append` where it only tells when a row came.
    pub mode: Mode,
    pub rows_estimated: Option<u64>,
}

/// The lower bound of an incremental read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorRange {
    pub column: String,
    /// Rows with `column >= lower` are read; `None` reads all. Rows whose cursor is null may be read
    /// with any bound: they are recognised like the others.
    pub lower: Option<CursorValue>,
}

/// How many connections a read may have to its source, and how long it waits for the first of them. A
/// source without any, such as files, goes by the splits alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most that the org has to the source at one time, over all its reads in this process; `None`:
    /// as many as the source has for all.
    pub of_org: Option<u32>,
    /// How long the first one is waited for; `None`: for any time. Whoever may hold some already, as a
    /// query of several tables does, has to give up some time.
    pub patience: Option<Duration>,
}

/// One read of one source table for one org.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    pub org: OrgId,
    /// `from:` of the table spec, `{org}` not yet replaced: the source binds or quotes it itself,
    /// as only it knows how.
    pub from: String,
    pub filter: Option<Filter>,
    /// Rows for which this is not true may be left out. It speaks of the source's columns, by name. A
    /// source leaves out what it can tell exactly, and reads the rest: whoever asks filters again.
    pub predicate: Predicate,
    /// The columns to read, in this order; `None` for all.
    pub columns: Option<Vec<String>>,
    pub cursor: Option<CursorRange>,
    /// What [`ReadPlan::snapshot`] said at the read that the cursor's bound comes from.
    pub snapshot_read: Option<String>,
    /// The columns that identify a row, if the spec says so: rows are named by them in errors and in
    /// the run's report.
    pub key: Vec<String>,
    /// Objects read earlier; they are left out unless their etag changed.
    pub objects_read: BTreeMap<String, ObjectState>,
    /// The lake table's present schema. A source that infers starts from it, so that a column keeps
    /// its type where the new values fit.
    pub known_schema: Option<TableSchema>,
    /// Types declared in the spec, by column.
    pub types: BTreeMap<String, LakeType>,
    pub on_unrepresentable: OnUnrepresentable,
    pub format: FormatOptions,
    /// The most splits to read at once.
    pub splits_max: NonZeroUsize,
    /// The size a batch aims at, in bytes of Arrow data.
    pub batch_bytes: usize,
    pub connections: ConnectionLimits,
    /// Where the source counts what it delivers ([`RunProgress::add_read`]) and says what it does.
    pub progress: Arc<RunProgress>,
}

/// The outcome of planning: a fixed state of the source, cut into splits.
///
/// All splits of one plan see the same state of the source, however long they take. Dropping the
/// plan and its splits releases whatever holds that state (an exported snapshot, a spill file).
pub struct ReadPlan {
    /// The columns every batch will have, in [`TableSchema::to_arrow`]'s layout.
    pub schema: TableSchema,
    /// The source's name for the state that is read, for the run's report.
    pub snapshot: Option<String>,
    pub splits: Vec<Box<dyn Split>>,
    pub rows_estimated: Option<u64>,
    /// The next checkpoint's cursor must not pass this: the start of the oldest transaction that
    /// could still commit rows with an earlier cursor value; the request's own bound, or a value
    /// below all, where the cursor must not move. `None`: no such bound.
    pub cursor_ceiling: Option<CursorValue>,
    /// All rows below this are in the state that is read, and none can come: the next checkpoint's cursor
    /// moves there, whatever values were seen. `None`: it moves with these alone.
    pub cursor_floor: Option<CursorValue>,
    /// Whether the source vouches that no two rows have the same values in the request's key.
    pub key_is_unique: bool,
    /// The next checkpoint's objects, if all splits are read.
    pub objects: BTreeMap<String, ObjectState>,
    /// Why rows may be missed, now or by a read that begins where this one ends, or be there twice. What
    /// they mean for a table of some mode: [`crate::Assurance::of`].
    pub doubts: Vec<Doubt>,
    /// Things the reader of the run's report should know.
    pub warnings: Vec<String>,
}

/// A read that somebody else carries out, over a connection of their own.
pub struct Handover {
    /// Without splits. What it says of the cursor holds for every later state too.
    pub plan: ReadPlan,
    /// See [`Split::cursor_is_coarse`].
    pub cursor_is_coarse: bool,
    /// One statement in the source's own SQL: it reads one state, no older than the plan's, and fails
    /// rather than change a value, or be asked of another source.
    pub statement: String,
    /// What it gives, in its order: the plan's columns.
    pub columns: Vec<Carried>,
    pub standing: Box<dyn Standing>,
}

/// Keeps a source table as it was planned: no column of it changes, and it stays the table of its name.
#[async_trait]
pub trait Standing: Send + Sync {
    /// Ends when the table cannot be kept any longer: whoever reads it may be waiting for somebody who waits
    /// to change it. Says why.
    async fn disturbed(&self) -> Error;

    /// Lets go of the table.
    ///
    /// # Errors
    /// `source.unavailable` if it may have changed meanwhile.
    async fn release(self: Box<Self>) -> Result<()>;
}

/// Digests of the rows that a read would bring, computed where the rows are.
#[derive(Clone, Debug)]
pub struct DigestRequest {
    /// Which rows and columns; the cursor's bound does not count, its column does.
    pub read: ReadRequest,
    /// Rows whose cursor is below this are settled.
    pub settled_below: Option<CursorValue>,
    /// Rows are settled, too, that nobody has written since this state ([`ReadPlan::snapshot`]).
    pub settled_at: Option<String>,
    /// How long one statement may take at the source; `None` for any time.
    pub statement_timeout: Option<Duration>,
    /// Processes of the source that work on one statement.
    pub parallel: NonZeroUsize,
}

/// Digests of the settled rows whose key's word is in one range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeDigest {
    pub rows: u64,
    /// The sum of the rows' words, modulo 2⁶⁴.
    pub sum: u64,
}

/// One row as digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDigest {
    /// The word of its key.
    pub key: u64,
    /// The key for people, as [`crate::keys::name`] makes it.
    pub name: String,
    /// The word of the row.
    pub row: u64,
    /// A word for each column that is compared.
    pub columns: Vec<u64>,
}

/// One state of a source table in digests, whose words are those of [`crate::digest`].
///
/// Rows are *settled* or *pending*: see [`DigestRequest`]. Without either of its two bounds all rows
/// are settled, and [`Self::has_common_point`] is false.
#[async_trait]
pub trait Digests: Send {
    /// The columns of the source now, as [`ReadPlan::schema`] has them.
    fn schema(&self) -> &TableSchema;

    /// Makes words of these columns from now on, in this order, and tells rows apart by the key (by all
    /// of them if it is empty, as it is to begin with). To be called before anything is asked.
    ///
    /// # Errors
    /// `internal` for a column that is not there.
    fn compare(&mut self, columns: &TableSchema, key: &[String]) -> Result<()>;

    /// The source's name for the state.
    fn snapshot(&self) -> Option<String>;

    /// Whether it can be told which rows the table must have.
    fn has_common_point(&self) -> bool;

    /// Whether the source is known to be as the table's runs have read it, so that no row is gone from it.
    fn is_as_read(&self) -> bool {
        false
    }

    /// A name for the rows that the request means, pending ones too: another one as soon as any of them is
    /// another, whatever did it. `None` where the source has no such name.
    async fn state(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    /// See [`Split::cursor_is_coarse`].
    fn cursor_is_coarse(&self) -> bool;

    /// The words of the pending rows' keys.
    async fn pending(&mut self) -> Result<Vec<u64>>;

    /// The settled rows by ranges of their keys' words: those that begin with the same `bits` bits.
    async fn ranges(&mut self, bits: u32) -> Result<BTreeMap<u64, RangeDigest>>;

    /// The settled rows of some ranges, `rows_max` at most.
    async fn rows(&mut self, bits: u32, ranges: &[u64], rows_max: usize) -> Result<Vec<RowDigest>>;

    /// Which of these keys are settled rows that the filter leaves out: of other orgs. None where the
    /// source cannot tell.
    async fn foreign(&mut self, keys: &[u64]) -> Result<Vec<u64>>;
}

/// A part of a query to be answered where its tables are.
#[derive(Clone, Debug)]
pub struct AnswerRequest {
    pub part: SubPlan,
    /// The columns the answer has to have, by position: their names are for messages.
    pub schema: TableSchema,
    /// What was learnt before of the part's table, where only its rows tell the columns and it has one table.
    pub learnt: Option<Arc<Learnt>>,
    /// Whose read it is, how large its batches and how many its connections are. Tables and columns are
    /// the part's.
    pub read: ReadRequest,
}

/// An answer that is ready to be read: one state of all its tables.
pub struct Answer {
    /// Its batches have the columns of [`AnswerRequest::schema`], in its layout.
    pub split: Box<dyn Split>,
    pub rows_estimated: Option<u64>,
    /// What the source was asked, for people: `sql=…`.
    pub statement: String,
}

/// What reading all rows of a table has told of its columns, where only the rows tell them.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// The columns, as [`ReadPlan::schema`] had them.
    pub schema: TableSchema,
    pub rows: u64,
    /// Columns and nested fields that are remembered: how much room this takes.
    pub paths: usize,
    /// The source's own: by what it recognises a row that tells something new.
    pub found: Arc<dyn Any + Send + Sync>,
}

/// A read of some rows and columns of a table whose columns were learnt before.
#[derive(Clone, Debug)]
pub struct PartRequest {
    /// Rows for which `read.predicate` is not true may be left out, and columns are wanted by name.
    pub read: ReadRequest,
    pub learnt: Arc<Learnt>,
    /// Rows that are enough, whichever they are.
    pub limit: Option<u64>,
}

/// A read of a part of a table.
pub struct PartPlan {
    /// Its columns are those of [`Learnt::schema`], of the same types.
    pub plan: ReadPlan,
    /// What the source was asked, for people.
    pub statement: String,
}

/// A part of a plan that can be read on its own.
#[async_trait]
pub trait Split: Send {
    /// The split in words, for logs: `ctid [0, 5000)`.
    fn describe(&self) -> String;

    /// Whether a row can easily change twice within one value of the cursor (a date, whole seconds),
    /// so that key and cursor do not tell its states apart.
    fn cursor_is_coarse(&self) -> bool {
        false
    }

    /// The split once more, for when its read breaks off: of the same state, and with the same rows. What
    /// the read that broke off has counted is taken back when this one begins. `None` if it can be read
    /// once only.
    fn again(&self) -> Option<Box<dyn Split>> {
        None
    }

    /// Leaves out more rows, as [`ReadRequest::predicate`] does, by what was not known yet when the read was
    /// planned. To be called before it is read; says what the source will be asked besides, for people, and
    /// `None` if the source can leave out nothing by it.
    async fn narrow(&mut self, _predicate: &Predicate) -> Result<Option<String>> {
        Ok(None)
    }

    /// The same rows for another reader beside this one, who counts nothing twice by it. `None` if they
    /// can be read once only.
    fn share(&self) -> Option<Box<dyn Split>> {
        None
    }

    /// Starts reading. The stream ends after the last row or with the first error; dropping it
    /// cancels the read at the source.
    fn read(self: Box<Self>) -> BatchStream;
}

/// Some rows, in the plan's layout.
#[derive(Clone, Debug)]
pub struct Batch {
    pub records: RecordBatch,
}

/// A stream of batches, in the source's own pace: the next batch is made when it is asked for.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<Batch>> + Send>>;

/// An outside system that can be read into the lake.
#[async_trait]
pub trait Source: Send + Sync {
    fn capabilities(&self) -> Capabilities;

    /// Connects and looks for what the source needs; returns a line on what was found (a server
    /// version, a bucket).
    async fn check(&self) -> Result<String>;

    /// The tables this source offers.
    async fn discover(&self) -> Result<Vec<SourceTable>>;

    /// What [`ReadRequest::from`] says for the table that SQL calls `<source>.<schema>.<table>`, or
    /// `<source>.<table>` without `schema`; `None` if such names lead nowhere in this source.
    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String>;

    /// Fixes a state of the source and says what reading it will bring.
    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan>;

    /// As [`Self::plan`], for somebody else who carries the read out.
    ///
    /// # Errors
    /// As [`Self::plan`]; `spec.invalid` where the source, or a column, cannot be read like that.
    async fn hand_over(&self, _request: ReadRequest) -> Result<Handover> {
        let message = "engine: trino reads PostgreSQL only";
        Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("take `engine: trino` out of the table, or [trino] ingest out of polder.toml"))
    }

    /// As [`Self::plan`], of all rows and columns; and what they have told of the columns, for
    /// [`Self::plan_part`]. `None` where that cannot be used, or there was nothing to learn.
    ///
    /// # Errors
    /// As [`Self::plan`].
    async fn learn(&self, request: ReadRequest) -> Result<(ReadPlan, Option<Learnt>)> {
        Ok((self.plan(request).await?, None))
    }

    /// Plans a read of a part of a table by what was learnt of its columns. `None` if it has been looked
    /// at and a row tells something else, or the source cannot be asked for a part: then all rows have to
    /// be read.
    ///
    /// # Errors
    /// As [`Self::plan`].
    async fn plan_part(&self, _request: PartRequest) -> Result<Option<PartPlan>> {
        Ok(None)
    }

    /// What [`ReadPlan::doubts`] of such a read may say, as far as it can be told without planning it:
    /// nothing of what is open at the moment, but what the role may not see at all.
    ///
    /// # Errors
    /// `source.not_found` for a table or column that is not there.
    async fn doubts(&self, _request: &ReadRequest) -> Result<Vec<Doubt>> {
        Ok(Vec::new())
    }

    /// Fixes a state of the source to be asked for digests. `None` where the source cannot compute
    /// them exactly as [`crate::digest`] does: then its rows have to be read.
    async fn digest(&self, _request: DigestRequest) -> Result<Option<Box<dyn Digests>>> {
        Ok(None)
    }

    /// Prepares the answer to a part of a query. `None` where the source does not answer exactly as the
    /// query engine would: then its tables are read.
    ///
    /// # Errors
    /// `source.unavailable` if reading the tables would fail, too, or they have changed meanwhile.
    async fn answer(&self, _request: AnswerRequest) -> Result<Option<Answer>> {
        Ok(None)
    }
}
