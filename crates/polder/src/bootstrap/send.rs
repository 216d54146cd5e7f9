//! The stream of a bootstrap: the manifest at once, then rows as they are read, within the budget, with a
//! mark behind each part. Rows are decoded in a task of their own, a few batches ahead at most.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;
use tokio::sync::mpsc::{self, Receiver, channel};
use tokio::task::JoinSet;

use super::budget::{Budget, Spent};
use super::encode::{Encoder, Format, Rows as Encoded};
use super::entity::{Document, Entities};
use super::manifest::Manifest;
use super::rows::{Part, Rows};
use super::token::Token;

/// A mark is set behind so many rows or bytes.
const PART_ROWS: u64 = 1 << 16;
const PART_BYTES: u64 = 8 << 20;
/// Batches that are decoded ahead.
const AHEAD: usize = 4;
/// How long they wait for a client that does not read.
const STALLED_MAX: Duration = Duration::from_mins(2);

/// A body, piece by piece.
pub(crate) type ByteStream = BoxStream<'static, Result<Vec<u8>>>;

/// How to go on, and what was sent.
#[derive(Debug, Serialize)]
struct Mark<'a> {
    /// `resume=<next>` sends what follows; null where nothing does.
    next: Option<String>,
    /// The last mark: with it the answer is whole.
    end: bool,
    /// Rows (documents) and their bytes in this answer so far.
    rows: u64,
    bytes: u64,
    /// The budget that ended it: `rows_max`, `bytes_max`, `tokens_max`.
    stopped_by: Option<&'a str>,
}

enum Piece {
    Rows(Part),
    Document(Document),
}

/// What is sent, read ahead.
pub(super) struct Pieces {
    received: Receiver<Result<Piece>>,
    /// Ends the reading when it is dropped.
    reading: JoinSet<Result<()>>,
}

impl Pieces {
    pub(super) fn rows(mut rows: Rows) -> Self {
        let (sender, received) = channel(AHEAD);
        let mut reading: JoinSet<Result<()>> = JoinSet::new();
        reading.spawn(async move {
            while let Some(part) = rows.next().await.transpose() {
                if !handed_on(&sender, part.map(Piece::Rows)).await? {
                    break;
                }
            }
            Ok(())
        });
        Self { received, reading }
    }

    pub(super) fn entities(mut entities: Entities) -> Self {
        let (sender, received) = channel(AHEAD);
        let mut reading: JoinSet<Result<()>> = JoinSet::new();
        reading.spawn(async move {
            while let Some(document) = entities.next().await.transpose() {
                if !handed_on(&sender, document.map(Piece::Document)).await? {
                    break;
                }
            }
            Ok(())
        });
        Self { received, reading }
    }

    async fn next(&mut self) -> Result<Option<Piece>> {
        if let Some(piece) = self.received.recv().await {
            return piece.map(Some);
        }
        // The end of the channel is the end of the rows only if the reader came to it.
        while let Some(ended) = self.reading.join_next().await {
            ended.map_err(|cause| {
                Error::new(ErrorCode::Internal, "reading broke off").caused_by(cause)
            })??;
        }
        Ok(None)
    }
}

/// Hands a piece to whoever sends it; false if there is no more to be done.
///
/// # Errors
/// `query.limit` where nobody takes it for too long: sorted tables and their memory are not kept for
/// a client that has stopped reading.
async fn handed_on(sender: &mpsc::Sender<Result<Piece>>, piece: Result<Piece>) -> Result<bool> {
    let failed = piece.is_err();
    if let Ok(sent) = tokio::time::timeout(STALLED_MAX, sender.send(piece)).await {
        Ok(sent.is_ok() && !failed)
    } else {
        let message = format!("nobody took the rows for {} s", STALLED_MAX.as_secs());
        Err(Error::new(ErrorCode::QueryLimit, message).hint("go on with resume"))
    }
}

/// Sends one bootstrap.
pub(super) struct Sender {
    encoder: Encoder,
    spent: Spent,
    token: Token,
    tables: Vec<String>,
    pieces: Pieces,
    /// The table of the open part.
    open: Option<usize>,
    /// Rows and bytes at the last mark.
    marked: (u64, u64),
    ended: bool,
}

impl Sender {
    pub(super) fn start(
        format: Format,
        budget: Budget,
        manifest: &Manifest,
        (token, tables, pieces): (Token, Vec<String>, Pieces),
    ) -> Result<ByteStream> {
        let mut encoder = Encoder::new(format);
        let first = encoder.manifest(manifest)?;
        let sender = Self {
            encoder,
            spent: Spent::new(budget),
            token,
            tables,
            pieces,
            open: None,
            marked: (0, 0),
            ended: false,
        };
        let rest = futures::stream::try_unfold(sender, async |mut sender| {
            Ok(sender.next().await?.map(|bytes| (bytes, sender)))
        });
        let first = futures::stream::once(async { Ok(first) });
        Ok(first
            .chain(rest)
            .filter(|bytes| {
                let empty = bytes.as_ref().is_ok_and(Vec::is_empty);
                std::future::ready(!empty)
            })
            .boxed())
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        match self.pieces.next().await? {
            None => self.end(true).map(Some),
            Some(Piece::Rows(part)) => self.rows(part).map(Some),
            Some(Piece::Document(document)) => self.document(document).map(Some),
        }
    }

    fn rows(&mut self, Part { batch, place }: Part) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.open.is_some_and(|open| open != place.table) {
            bytes.extend(self.encoder.close()?);
        }
        self.open = Some(place.table);
        let Some(table) = self.tables.get(place.table).cloned() else {
            return Err(Error::new(ErrorCode::Internal, "rows of no table"));
        };
        let rows = self.encoder.prepare(&table, batch)?;
        let count = rows.count();
        let taken = self.take(&rows);
        if taken > 0 {
            bytes.extend(self.encoder.rows(&table, rows, taken)?);
        }
        let mut place = place;
        place.rows += taken as u64;
        self.token.move_to(place);
        self.after(bytes, taken == count)
    }

    fn document(&mut self, document: Document) -> Result<Vec<u8>> {
        let rows = Encoded::Lines { ends: vec![document.line.len()], text: document.line };
        let taken = self.take(&rows);
        let bytes = if taken > 0 {
            self.token.move_behind(document.key);
            self.encoder.rows("", rows, taken)?
        } else {
            Vec::new()
        };
        self.after(bytes, taken == 1)
    }

    fn take(&mut self, rows: &Encoded) -> usize {
        self.spent.take(rows.count(), |n| rows.bytes(n))
    }

    /// Sets a mark where one is due.
    fn after(&mut self, mut bytes: Vec<u8>, all: bool) -> Result<Vec<u8>> {
        if !all {
            bytes.extend(self.end(false)?);
            return Ok(bytes);
        }
        let (rows, sent) = self.marked;
        if self.spent.rows - rows >= PART_ROWS || self.spent.bytes - sent >= PART_BYTES {
            bytes.extend(self.mark(false, false)?);
        }
        Ok(bytes)
    }

    fn end(&mut self, complete: bool) -> Result<Vec<u8>> {
        self.ended = true;
        self.mark(true, complete)
    }

    fn mark(&mut self, end: bool, complete: bool) -> Result<Vec<u8>> {
        self.marked = (self.spent.rows, self.spent.bytes);
        let mark = Mark {
            next: (!complete).then(|| self.token.text()),
            end,
            rows: self.spent.rows,
            bytes: self.spent.bytes,
            stopped_by: self.spent.stopped_by,
        };
        self.open = None;
        self.encoder.mark(&mark, end)
    }
}
