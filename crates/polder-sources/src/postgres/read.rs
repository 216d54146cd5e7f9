//! Reading one split: the bytes of COPY into batches, as they are asked for.
//!
//! What a field means is decided in `columns`, how it is decoded in `decode`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use polder_core::{
    Batch, BatchStream, Error, ErrorCode, Predicate, Result, RunProgress, Split, Tally,
};
use tokio_postgres::CopyOutStream;

use super::catalog::Identity;
use super::columns::ColumnRead;
use super::decode::{Column, Refusal, Room, Rules, widths};
use super::frame::{Broken, Frames, Row, Rows, Sink};
use super::predicate::Judged;
use super::spares::{Reading, Spares};
use super::tls::CopyBytes;
use super::trace;

const BATCH_ROWS_MAX: usize = 64 * 1024;
/// Keeps the 32-bit offsets of strings far from their end, with the largest row of PostgreSQL (1 GB).
const BATCH_BYTES_MAX: usize = 512 << 20;

/// How many rows are decoded together, column by column: their bytes stay in the processor's
/// nearest caches.
const GROUP_ROWS_MAX: usize = 64;
const GROUP_BYTES_MAX: usize = 64 << 10;

/// What the splits of one plan share.
pub(super) struct Job {
    pub(super) columns: Vec<ColumnRead>,
    pub(super) schema: SchemaRef,
    /// The columns that name a row.
    pub(super) key: Vec<usize>,
    pub(super) table: Identity,
    /// The tables that are read beside it.
    pub(super) others: Vec<Identity>,
    pub(super) infinite_intervals: bool,
    pub(super) cursor_is_coarse: bool,
    pub(super) batch_bytes: usize,
    pub(super) progress: Arc<RunProgress>,
}

/// How the statement of a split takes another condition.
#[derive(Clone)]
pub(super) struct More {
    /// Whether it has conditions already.
    pub(super) conditional: bool,
    pub(super) judged: Arc<Judged>,
}

/// A split, and the session that sees the plan's snapshot.
pub(super) struct TableSplit {
    /// `None` when it is read again: then it is one of the others'.
    reading: Option<Reading>,
    spares: Arc<Spares>,
    /// Whether there are other sessions than its own.
    shared: bool,
    sql: String,
    /// `None` where the statement is more than rows of a table.
    more: Option<More>,
    describe: String,
    job: Arc<Job>,
    /// What was counted of it, by whichever read.
    tally: Arc<Tally>,
}

impl TableSplit {
    pub(super) fn new(
        reading: Reading,
        spares: &Arc<Spares>,
        (sql, describe): (String, String),
        job: Arc<Job>,
    ) -> Self {
        let (spares, tally) = (Arc::clone(spares), Arc::default());
        let shared = reading.is_shared();
        Self { reading: Some(reading), spares, shared, sql, more: None, describe, job, tally }
    }

    pub(super) fn with_more(self, more: More) -> Self {
        Self { more: Some(more), ..self }
    }

    /// The session to read with, which a split that is read again has to wait for.
    async fn reading(&mut self) -> Result<&mut Reading> {
        let reading = if let Some(reading) = self.reading.take() {
            reading
        } else {
            self.tally.take_back(&self.job.progress);
            self.spares.take().await.ok_or_else(|| {
                let message = "no connection is left that sees the state that is read";
                Error::new(ErrorCode::SourceUnavailable, message)
                    .detail(self.job.table.display.clone())
            })?
        };
        Ok(self.reading.insert(reading))
    }

    fn failed(&mut self, error: &tokio_postgres::Error) -> Error {
        let doing = format!("reading {}", self.job.table.display);
        match &mut self.reading {
            Some(reading) => {
                reading.session.set_busy(false);
                reading.session.failed(error, &doing)
            }
            None => Error::new(ErrorCode::Internal, format!("{doing} without a session")),
        }
    }
}

#[async_trait]
impl Split for TableSplit {
    fn describe(&self) -> String {
        self.describe.clone()
    }

    fn cursor_is_coarse(&self) -> bool {
        self.job.cursor_is_coarse
    }

    fn again(&self) -> Option<Box<dyn Split>> {
        let Self { spares, shared, sql, more, describe, job, tally, .. } = self;
        shared.then(|| {
            Box::new(Self {
                reading: None,
                spares: Arc::clone(spares),
                shared: true,
                sql: sql.clone(),
                more: more.clone(),
                describe: describe.clone(),
                job: Arc::clone(job),
                tally: Arc::clone(tally),
            }) as _
        })
    }

    async fn narrow(&mut self, predicate: &Predicate) -> Result<Option<String>> {
        let Some(More { conditional, judged }) = self.more.clone() else { return Ok(None) };
        let session = &self.reading().await?.session;
        let Some(condition) = judged.condition(session, predicate).await? else {
            return Ok(None);
        };
        let word = if conditional { "AND" } else { "WHERE" };
        self.sql = format!("{} {word} {condition}", self.sql);
        self.more = Some(More { conditional: true, judged });
        Ok(Some(condition))
    }

    fn read(self: Box<Self>) -> BatchStream {
        let reader = Reader {
            assembly: Assembly::new(Arc::clone(&self.job), Arc::clone(&self.tally)),
            frames: Frames::new(self.job.columns.len()),
            split: *self,
            copy: None,
            bytes: None,
        };
        Box::pin(stream::try_unfold(Some(Box::new(reader)), |reader| async move {
            match reader {
                Some(reader) => reader.next().await,
                None => Ok(None),
            }
        }))
    }
}

struct Reader {
    split: TableSplit,
    /// Once it was started.
    copy: Option<Pin<Box<CopyOutStream>>>,
    /// Its content, as long as it does not come through the driver.
    bytes: Option<CopyBytes>,
    frames: Frames,
    assembly: Assembly,
}

type Next = Option<(Batch, Option<Box<Reader>>)>;

impl Reader {
    async fn next(mut self: Box<Self>) -> Result<Next> {
        loop {
            if let Some(batch) = self.assembly.done.pop_front() {
                return Ok(Some((batch, Some(self))));
            }
            let Some(copy) = &mut self.copy else {
                self.start().await?;
                continue;
            };
            let (frames, assembly) = (&mut self.frames, &mut self.assembly);
            if let Some(bytes) = &mut self.bytes {
                if bytes.fill().await {
                    let fed = feed(frames, bytes, assembly);
                    fed.map_err(|stop| stop.into_error(&self.split.job))?;
                } else {
                    self.bytes = None;
                }
                continue;
            }
            match copy.next().await {
                Some(Ok(chunk)) => {
                    let fed = frames.feed(&chunk, 0..chunk.len(), assembly);
                    let fed = fed.and_then(|()| assembly.settle(&chunk));
                    fed.map_err(|stop| stop.into_error(&self.split.job))?;
                }
                Some(Err(error)) => return Err(self.split.failed(&error)),
                None => return self.end().await,
            }
        }
    }

    async fn start(&mut self) -> Result<()> {
        let split = &mut self.split;
        let sql = format!("COPY ({}) TO STDOUT (FORMAT binary)", split.sql);
        let job = Arc::clone(&split.job);
        let session = &mut split.reading().await?.session;
        job.table.check(session).await?;
        for other in &job.others {
            other.check(session).await?;
        }
        session.set_busy(true);
        let bytes = session.take_copy();
        let started = session.client()?.copy_out(&sql).await;
        let copy = started.map_err(|error| split.failed(&error))?;
        (self.copy, self.bytes) = (Some(Box::pin(copy)), bytes);
        Ok(())
    }

    async fn end(mut self) -> Result<Next> {
        let job = &self.split.job;
        self.frames.finish().map_err(|broken| Stop::from(broken).into_error(job))?;
        self.assembly.flush(&[]).map_err(|stop| stop.into_error(job))?;
        if let Some(mut reading) = self.split.reading.take() {
            reading.session.set_busy(false);
            reading.done().await;
        }
        // After a row's flush no more than this one is left.
        Ok(self.assembly.done.pop_front().map(|batch| (batch, None)))
    }
}

/// All that was read of a COPY.
fn feed(frames: &mut Frames, bytes: &mut CopyBytes, assembly: &mut Assembly) -> Result<(), Stop> {
    while let Some(piece) = bytes.piece() {
        frames.feed(bytes.buffer(), piece, assembly)?;
    }
    assembly.settle(bytes.buffer())
}

/// Why reading cannot go on, without the names it takes to say so.
pub(super) enum Stop {
    Column {
        index: usize,
        refusal: Refusal,
        /// Names the row.
        key: Option<String>,
    },
    Broken(Broken),
    /// Arrow's refusal of a batch: a null in a required column, for example.
    Batch(arrow::error::ArrowError),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Stop {
    fn into_error(self, job: &Job) -> Error {
        let table = &job.table.display;
        let (index, refusal, key) = match self {
            Self::Broken(Broken(what)) => {
                let message = format!("{table} cannot be read: {what}");
                return Error::new(ErrorCode::SourceMalformed, message);
            }
            Self::Batch(error) => {
                let message = format!("rows of {table} make no batch");
                return Error::new(ErrorCode::SourceMalformed, message).caused_by(error);
            }
            Self::Column { index, refusal, key } => (index, refusal, key),
        };
        let column = job.columns.get(index);
        let name = column.map(|column| column.field.name.clone()).unwrap_or_default();
        let types = column
            .map(|column| format!("{} read as {}", column.type_name, column.field.data_type))
            .unwrap_or_default();
        let row = key.map(|key| format!(", row {key}")).unwrap_or_default();
        let detail = format!("{table}, column {name:?}, {types}{row}");
        let malformed = |what: &str, hint: &str| {
            let message = format!("column {name:?} holds {what}");
            Error::new(ErrorCode::SourceMalformed, message).detail(&detail).hint(hint)
        };
        match refusal {
            Refusal::Unrepresentable(reason) => {
                let message = format!("column {name:?} holds a value that {reason}");
                Error::new(ErrorCode::SourceUnrepresentable, message).detail(&detail).hint(
                    "set the table's on_unrepresentable: null stores no value, clamp the nearest \
                     one the type has, text makes a string of such columns, error (the default) \
                     stops as now; or declare the column under `types`",
                )
            }
            Refusal::Malformed(what) => malformed(what, "report this as a bug"),
            Refusal::NotUtf8 { .. } => malformed(
                "text that is not UTF-8",
                "declare the column as binary under `types`, or leave it out with `columns`",
            ),
        }
    }
}

/// Rows becoming batches.
struct Assembly {
    job: Arc<Job>,
    columns: Vec<Column>,
    /// The last of the rows, not decoded yet: they lie in a buffer of the caller's.
    waiting: Rows,
    rows: usize,
    /// Arrow bytes of the rows so far, nearly.
    bytes: usize,
    /// Bytes of the texts among them that were written here.
    written: usize,
    /// Bytes of the rows so far as they came over the wire.
    wire: usize,
    /// Arrow bytes of a row's values of fixed size, and the wire bytes of the same.
    widths: (usize, usize),
    bytes_max: usize,
    done: VecDeque<Batch>,
    tally: Arc<Tally>,
}

impl Assembly {
    fn new(job: Arc<Job>, tally: Arc<Tally>) -> Self {
        let widths = job
            .columns
            .iter()
            .map(|column| widths(&column.field.data_type))
            .fold((0, size_of::<u16>()), |(arrow, wire), (a, w)| {
                (arrow + a, wire + size_of::<u32>() + w)
            });
        Self {
            columns: job.columns.iter().map(|read| column(&job, read, Room::default())).collect(),
            waiting: Rows::new(job.columns.len()),
            bytes_max: job.batch_bytes.clamp(1, BATCH_BYTES_MAX),
            job,
            rows: 0,
            bytes: 0,
            written: 0,
            wire: 0,
            widths,
            done: VecDeque::new(),
            tally,
        }
    }

    /// Ends the batch at hand, if it has rows. Those that wait lie in `buffer`.
    fn flush(&mut self, buffer: &[u8]) -> Result<(), Stop> {
        if self.rows == 0 {
            return Ok(());
        }
        self.settle(buffer)?;
        let rows = std::mem::take(&mut self.rows);
        let wire = std::mem::take(&mut self.wire);
        (self.bytes, self.written) = (0, 0);
        // The next batch will be much like this one, unless that is a single huge row.
        let bytes_max = self.bytes_max;
        let room = |full: &Column| {
            let Room { rows, bytes } = full.taken(rows);
            Room { rows, bytes: bytes.min(bytes_max) }
        };
        let pairs = self.job.columns.iter().zip(&self.columns);
        let next = pairs.map(|(read, full)| column(&self.job, read, room(full))).collect();
        let mut full = std::mem::replace(&mut self.columns, next).into_iter();
        let mut arrays = Vec::with_capacity(full.len());
        while let Some(mut column) = full.next() {
            let name = &self.job.columns[arrays.len()].field.name;
            self.tally.add_altered(&self.job.progress, name, column.take_altered());
            match column.finish() {
                Ok(array) => arrays.push(array),
                Err(refusal) => return Err(trace::unfinished(&self.job, arrays, refusal, full)),
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::clone(&self.job.schema);
        let records =
            RecordBatch::try_new_with_options(schema, arrays, &options).map_err(Stop::Batch)?;
        self.tally.add_read(&self.job.progress, rows as u64, wire as u64);
        self.done.push_back(Batch { records });
        Ok(())
    }
}

impl Sink for Assembly {
    type Error = Stop;

    #[inline]
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stop> {
        let bytes = self.widths.0 + row.size.saturating_sub(self.widths.1);
        let full = self.rows == BATCH_ROWS_MAX
            || self.bytes + bytes > self.bytes_max
            || self.written > self.bytes_max;
        if full && self.rows > 0 {
            self.flush(row.buffer)?;
        }
        self.rows += 1;
        self.bytes += bytes;
        self.wire += row.size;
        self.waiting.push(row);
        if self.waiting.count() == GROUP_ROWS_MAX || self.waiting.size() > GROUP_BYTES_MAX {
            self.settle(row.buffer)?;
        }
        Ok(())
    }

    /// Takes the rows that wait into the columns.
    fn settle(&mut self, buffer: &[u8]) -> Result<(), Stop> {
        for (index, column) in self.columns.iter_mut().enumerate() {
            let altered = column.altered();
            let taken = column.extend(self.waiting.column(buffer, index));
            if taken.is_err() || column.altered() > altered {
                trace::rows(&self.job, &self.waiting, buffer, index, taken)?;
            }
        }
        self.waiting.clear();
        self.written = self.columns.iter().map(Column::written).sum();
        Ok(())
    }
}

pub(super) fn column(job: &Job, read: &ColumnRead, room: Room) -> Column {
    let rules = Rules { policy: read.policy, infinite_intervals: job.infinite_intervals };
    Column::new(&read.field.data_type, read.written, rules, room)
}
