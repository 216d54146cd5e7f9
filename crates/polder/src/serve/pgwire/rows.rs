//! The rows of one statement on their way to a client, and what ends them early: a cancel request, a
//! timeout, what an agent may have.

use std::pin::Pin;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::{Stream, StreamExt};
use pgwire::messages::data::RowDescription;
use polder_core::{QueryStream, Result as EngineResult};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::encode::{self, Encoder};
use super::failure::{Failure, Outcome};
use super::wire::{Gone, Wire};
use crate::caps::Caps;

/// Rows between two looks at whether they are still wanted.
const LOOK_ROWS: u64 = 256;

/// Whether a statement may go on.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) cancel: CancellationToken,
    /// When it is too late, and how long that was.
    pub(super) deadline: Option<(Instant, Duration)>,
}

impl Watch {
    /// Does work as long as it may go on. What is dropped then is cancelled.
    pub(super) async fn over<T>(&self, work: impl Future<Output = T>) -> Outcome<T> {
        let late = async {
            match self.deadline {
                Some((at, after)) => {
                    tokio::time::sleep_until(at).await;
                    after
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Failure::canceled()),
            after = late => Err(Failure::timed_out(after)),
            done = work => Ok(done),
        }
    }

    fn look(&self) -> Outcome<()> {
        match self.deadline {
            _ if self.cancel.is_cancelled() => Err(Failure::canceled()),
            Some((at, after)) if Instant::now() >= at => Err(Failure::timed_out(after)),
            _ => Ok(()),
        }
    }
}

/// How many rows went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// These were the last.
    All(u64),
    /// There may be more.
    More,
}

/// An answer that is being sent.
pub(super) struct Rows {
    encoder: Encoder,
    batches: Pin<Box<dyn Stream<Item = EngineResult<RecordBatch>> + Send>>,
    /// A batch, and which of its rows is next.
    current: Option<(encode::Rows, usize)>,
    bytes: usize,
    caps: Option<Caps>,
    /// When an agent's answer is too late.
    until: Option<Instant>,
}

impl Rows {
    /// # Errors
    /// For formats that do not fit the columns.
    pub(super) fn new(
        found: QueryStream,
        formats: &[i16],
        (caps, begun): (Option<Caps>, Instant),
    ) -> Outcome<Self> {
        let encoder = Encoder::new(&found.schema, formats)?;
        let until = caps.map(|caps| begun + caps.time_max);
        Ok(Self { encoder, batches: found.batches, current: None, bytes: 0, caps, until })
    }

    pub(super) fn described(&self) -> RowDescription {
        RowDescription::new(self.encoder.described())
    }

    /// Sends rows: all, or as many as are wanted.
    pub(super) async fn send(
        &mut self,
        wire: &mut Wire,
        rows_max: Option<u64>,
        watch: &Watch,
    ) -> Result<Outcome<Sent>, Gone> {
        let mut sent = 0;
        loop {
            while let Some((rows, at)) = &mut self.current {
                if *at == rows.rows {
                    self.current = None;
                    break;
                }
                if rows_max == Some(sent) {
                    return Ok(Ok(Sent::More));
                }
                let row = match self.encoder.row(rows, *at) {
                    Ok(row) => row,
                    Err(error) => return Ok(Err(error.into())),
                };
                self.bytes += row.len();
                if let Some(caps) = self.caps.filter(|caps| self.bytes > caps.bytes_max) {
                    return Ok(Err(caps.too_large().into()));
                }
                wire.row(row, self.encoder.width()).await?;
                *at += 1;
                sent += 1;
                if sent % LOOK_ROWS == 0
                    && let Err(failure) = watch.look()
                {
                    return Ok(Err(failure));
                }
            }
            match self.next(watch).await {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(Sent::All(sent))),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }

    /// Takes the next batch; false if there is none.
    async fn next(&mut self, watch: &Watch) -> Outcome<bool> {
        let batch = match (self.until, self.caps) {
            (Some(until), Some(caps)) => {
                let waiting = tokio::time::timeout_at(until, self.batches.next());
                watch.over(waiting).await?.map_err(|_| Failure::from(caps.too_long()))?
            }
            _ => watch.over(self.batches.next()).await?,
        };
        let Some(batch) = batch else { return Ok(false) };
        self.current = Some((self.encoder.prepare(&batch?)?, 0));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use tokio::io::AsyncReadExt;

    use super::*;

    fn numbers(caps: Option<Caps>) -> Rows {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![Arc::new(Int64Array::from_iter_values(0..1_000))],
        );
        let batch = batch.expect("batch");
        let batches = futures::stream::iter([Ok(batch.clone()), Ok(batch)]).boxed();
        let found = QueryStream { schema, batches };
        Rows::new(found, &[], (caps, Instant::now())).expect("rows")
    }

    fn watch() -> Watch {
        Watch { cancel: CancellationToken::new(), deadline: None }
    }

    fn wire() -> (Wire, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        (Wire::new(Box::new(ours)), theirs)
    }

    #[tokio::test]
    async fn a_portal_goes_on_where_it_was_left() {
        let ((mut wire, mut client), mut rows) = (wire(), numbers(None));
        for _ in 0..2 {
            let sent = rows.send(&mut wire, Some(900), &watch()).await.expect("there");
            assert_eq!(sent, Ok(Sent::More));
        }
        let sent = rows.send(&mut wire, Some(900), &watch()).await.expect("there");
        assert_eq!(sent, Ok(Sent::All(200)));
        wire.flush().await.expect("there");
        drop(wire);
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.expect("read");
        let (mut at, mut rows) = (0, 0);
        while at < bytes.len() {
            assert_eq!(bytes[at], b'D');
            let length: [u8; 4] = bytes[at + 1..at + 5].try_into().expect("four");
            at += 1 + u32::from_be_bytes(length) as usize;
            rows += 1;
        }
        assert_eq!(rows, 2_000);
    }

    #[tokio::test]
    async fn rows_end_when_they_are_not_wanted_any_more() {
        let (mut wire, _client) = wire();
        let over = watch();
        over.cancel.cancel();
        let sent = numbers(None).send(&mut wire, None, &over).await.expect("there");
        assert_eq!(sent, Err(Failure::canceled()));
        let second = Duration::from_secs(1);
        let late = Watch { deadline: Some((Instant::now(), second)), ..watch() };
        let sent = numbers(None).send(&mut wire, None, &late).await.expect("there");
        assert_eq!(sent, Err(Failure::timed_out(second)));
    }

    #[tokio::test]
    async fn an_agent_has_no_more_than_its_caps() {
        let (mut wire, _client) = wire();
        let few = Caps { bytes_max: 100, ..Caps::AGENT };
        let sent = numbers(Some(few)).send(&mut wire, None, &watch()).await.expect("there");
        assert_eq!(sent.expect_err("too large").state, "54000");
        let late = Caps { time_max: Duration::ZERO, ..Caps::AGENT };
        let schema = Arc::new(Schema::empty());
        let found = QueryStream { schema, batches: futures::stream::pending().boxed() };
        let mut rows = Rows::new(found, &[], (Some(late), Instant::now())).expect("rows");
        let sent = rows.send(&mut wire, None, &watch()).await.expect("there");
        assert_eq!(sent.expect_err("too late").state, "54000");
    }
}
