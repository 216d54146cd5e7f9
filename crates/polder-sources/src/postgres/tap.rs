//! The bytes of COPY, taken from the connection before the driver sees them.
//!
//! The driver makes an allocation, a message and two wake-ups of every few kilobytes, and a value of
//! every row; for narrow rows that costs more than decoding them. While a COPY runs, whoever decodes
//! reads the connection himself, in large pieces; all else (authentication, statements, errors, the
//! end of the COPY) stays the driver's. What is in the messages is not known here, only where they
//! begin (PostgreSQL manual, *Message Formats*: a tag, a length that counts itself, the content).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};
use tokio_util::either::Either;
use tokio_util::io::poll_read_buf;

/// Bytes read ahead for the driver.
const DRIVER_BYTES: usize = 8 << 10;
/// Bytes of a COPY read at once: they should stay in the processor's second cache.
const COPY_BYTES: usize = 128 << 10;

const COPY_DATA: u8 = b'd';
const COPY_OUT_RESPONSE: u8 = b'H';
const HEADER: usize = 5;

/// The driver's end of a connection. `S` is the plain socket, `T` the same under TLS.
pub(super) struct Tap<S, T>(Arc<Mutex<Line<S, T>>>);

/// Our end of a connection.
pub(super) struct Handle<S, T>(Arc<Mutex<Line<S, T>>>);

struct Line<S, T> {
    wire: Either<S, T>,
    reader: Reader,
    /// Read from the wire and not handed to the driver yet.
    ahead: BytesMut,
    /// How much of the driver's message at hand is still to come.
    left: usize,
    /// What the wire reported to us and is meant for the driver.
    failed: Option<io::Error>,
    /// The driver, when it waits for the end of a COPY.
    driver: Option<Waker>,
}

/// Who reads the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Driver,
    /// The driver, until a COPY begins.
    DriverUntilCopy,
    /// The driver, to the end of the message that begins a COPY.
    DriverLast,
    Us,
}

/// Both ends of a connection over `wire`.
pub(super) fn tap<S, T>(wire: Either<S, T>) -> (Tap<S, T>, Handle<S, T>) {
    let line = Arc::new(Mutex::new(Line {
        wire,
        reader: Reader::Driver,
        ahead: BytesMut::new(),
        left: 0,
        failed: None,
        driver: None,
    }));
    (Tap(Arc::clone(&line)), Handle(line))
}

fn lock<S, T>(line: &Mutex<Line<S, T>>) -> MutexGuard<'_, Line<S, T>> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tag and full size of the message at the beginning of `bytes`.
fn message(bytes: &[u8]) -> Option<(u8, usize)> {
    let [tag, a, b, c, d] = bytes.first_chunk::<HEADER>()?;
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    // A length below its own four bytes is for the driver to refuse.
    Some((*tag, 1 + length.max(4)))
}

impl<S, T> Line<S, T> {
    /// Gives the driver what is read ahead, to the message that begins a COPY and not further.
    fn hand(&mut self, out: &mut ReadBuf<'_>) {
        while self.reader != Reader::Us {
            if self.left == 0 {
                let Some((tag, size)) = message(&self.ahead) else { break };
                if tag == COPY_OUT_RESPONSE && self.reader == Reader::DriverUntilCopy {
                    self.reader = Reader::DriverLast;
                }
                self.left = size;
            }
            let count = self.left.min(self.ahead.len()).min(out.remaining());
            if count == 0 {
                break;
            }
            out.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            self.left -= count;
            if self.left == 0 && self.reader == Reader::DriverLast {
                self.reader = Reader::Us;
            }
        }
    }
}

impl<S, T> AsyncRead for Tap<S, T>
where
    S: AsyncRead + Unpin,
    T: AsyncRead + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut line = lock(&self.0);
        let (before, room) = (out.filled().len(), out.remaining());
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if line.reader == Reader::Us {
                line.driver = Some(cx.waker().clone());
                return Poll::Pending;
            }
            line.hand(out);
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = line.failed.take() {
                return Poll::Ready(Err(error));
            }
            let Line { wire, ahead, .. } = &mut *line;
            ahead.reserve(DRIVER_BYTES);
            if ready!(poll_read_buf(Pin::new(wire), cx, ahead))? == 0 {
                let count = ahead.len().min(room);
                out.put_slice(&ahead.split_to(count));
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S, T> AsyncWrite for Tap<S, T>
where
    S: AsyncWrite + Unpin,
    T: AsyncWrite + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut lock(&self.0).wire).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut lock(&self.0).wire).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).wire).poll_shutdown(cx)
    }
}

/// To the driver every connection of ours looks encrypted: it hands sockets only to what encrypts.
impl<S, T> TlsStream for Tap<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: TlsStream + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        match &lock(&self.0).wire {
            Either::Left(_) => ChannelBinding::none(),
            Either::Right(secure) => secure.channel_binding(),
        }
    }
}

impl<S, T> Handle<S, T> {
    /// Takes the content of the next COPY away from the driver. To be called before the statement is
    /// sent.
    pub(super) fn take_copy(&self) -> CopyBytes<S, T> {
        lock(&self.0).reader = Reader::DriverUntilCopy;
        CopyBytes {
            line: Arc::clone(&self.0),
            ahead: BytesMut::new(),
            at: 0,
            left: 0,
            taking: false,
            over: false,
        }
    }
}

/// The content of one COPY. Dropped before its end, it leaves the rest to the driver.
pub(super) struct CopyBytes<S, T> {
    line: Arc<Mutex<Line<S, T>>>,
    /// What was read; up to `at` it was given out.
    ahead: BytesMut,
    at: usize,
    /// How much of the message at hand is still to be given out.
    left: usize,
    /// Whether reading has begun.
    taking: bool,
    /// Whether another message than the COPY's content is next, or nothing.
    over: bool,
}

impl<S, T> CopyBytes<S, T> {
    /// What was read last.
    pub(super) fn buffer(&self) -> &[u8] {
        &self.ahead
    }

    /// The next piece of the content in [`Self::buffer`], if any is left.
    #[inline]
    pub(super) fn piece(&mut self) -> Option<Range<usize>> {
        while self.left == 0 {
            let (tag, size) = message(&self.ahead[self.at..])?;
            if tag != COPY_DATA {
                self.over = true;
                return None;
            }
            self.at += HEADER;
            self.left = size - HEADER;
        }
        let start = self.at;
        let count = self.left.min(self.ahead.len() - start);
        self.at += count;
        self.left -= count;
        (count > 0).then_some(start..start + count)
    }

    /// Lets the driver read again, from the first byte on that was not given out.
    fn release(&mut self) {
        let mut line = lock(&self.line);
        line.reader = Reader::Driver;
        if self.taking {
            self.taking = false;
            let mut rest = BytesMut::with_capacity(HEADER + self.ahead.len() - self.at);
            if self.left > 0 {
                // The driver needs a message with a beginning.
                rest.put_u8(COPY_DATA);
                rest.put_u32(self.left as u32 + 4);
            }
            rest.extend_from_slice(&self.ahead[self.at..]);
            line.ahead = rest;
        }
        self.over = true;
        if let Some(driver) = line.driver.take() {
            driver.wake();
        }
    }
}

impl<S, T> CopyBytes<S, T>
where
    S: AsyncRead + Unpin,
    T: AsyncRead + Unpin,
{
    /// Reads more; to be called when [`Self::piece`] has nothing left. `false`: the content is over or
    /// cannot be read, and the driver knows how it goes on.
    pub(super) async fn fill(&mut self) -> bool {
        if !self.over {
            self.ahead.advance(self.at);
            self.at = 0;
            poll_fn(|cx| self.poll_fill(cx)).await;
        }
        if self.over {
            self.release();
        }
        !self.over
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut line = lock(&self.line);
        if line.reader != Reader::Us {
            self.over = true;
            return Poll::Ready(());
        }
        if !self.taking {
            self.taking = true;
            self.ahead = std::mem::take(&mut line.ahead);
            if !self.ahead.is_empty() {
                return Poll::Ready(());
            }
        }
        self.ahead.reserve(COPY_BYTES);
        match ready!(poll_read_buf(Pin::new(&mut line.wire), cx, &mut self.ahead)) {
            Ok(0) => self.over = true,
            Ok(_) => {}
            Err(error) => {
                line.failed = Some(error);
                self.over = true;
            }
        }
        Poll::Ready(())
    }
}

impl<S, T> Drop for CopyBytes<S, T> {
    fn drop(&mut self) {
        if self.taking || !self.over {
            self.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    type Plain = Tap<DuplexStream, DuplexStream>;

    fn one(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len() as u32 + 4;
        [&[tag][..], &length.to_be_bytes(), content].concat()
    }

    /// The contents of the messages of COPY, and the tags of the others.
    fn parse(mut bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut copied, mut tags) = (Vec::new(), Vec::new());
        while let Some((tag, size)) = message(bytes) {
            let (whole, rest) = bytes.split_at(size);
            match tag {
                COPY_DATA => copied.extend_from_slice(&whole[HEADER..]),
                other => tags.push(other),
            }
            bytes = rest;
        }
        assert!(bytes.is_empty(), "messages are whole");
        (copied, tags)
    }

    /// What the driver gets to see of `sent`, which comes in pieces of at most `piece` bytes, and what
    /// we take of it: the content up to `bytes_max`, no more after that.
    async fn through(sent: Vec<u8>, piece: usize, bytes_max: usize) -> (Vec<u8>, Vec<u8>) {
        let (wire, mut server) = tokio::io::duplex(piece);
        let (driver, handle): (Plain, _) = tap(Either::Left(wire));
        let mut copy = handle.take_copy();
        let serve = async move { server.write_all(&sent).await.expect("send") };
        let drive = async move {
            let (mut driver, mut seen) = (driver, Vec::new());
            driver.read_to_end(&mut seen).await.expect("driver");
            seen
        };
        let take = async move {
            // The driver says so, by returning the stream of the COPY.
            while lock(&handle.0).reader != Reader::Us {
                tokio::task::yield_now().await;
            }
            let mut taken = Vec::new();
            while copy.fill().await {
                while taken.len() < bytes_max
                    && let Some(piece) = copy.piece()
                {
                    taken.extend_from_slice(&copy.buffer()[piece]);
                }
                if taken.len() >= bytes_max {
                    break;
                }
            }
            taken
        };
        let ((), seen, taken) = tokio::join!(serve, drive, take);
        (seen, taken)
    }

    fn sent(rows: &[Vec<u8>], notice: bool) -> Vec<u8> {
        let mut sent =
            [one(b'S', b"TimeZone\0UTC\0"), one(b'2', b""), one(b'H', &[1, 0, 0])].concat();
        for (number, row) in rows.iter().enumerate() {
            if notice && number == rows.len() / 2 {
                sent.extend(one(b'N', b"a notice in between"));
            }
            sent.extend(one(COPY_DATA, row));
        }
        [sent, one(b'c', b""), one(b'C', b"COPY 3\0"), one(b'Z', b"I")].concat()
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..20)
    }

    proptest! {
        #[test]
        fn every_byte_goes_to_one_of_both(
            rows in rows(),
            notice in any::<bool>(),
            piece in 1_usize..2_000,
            bytes_max in prop_oneof![Just(usize::MAX), 0_usize..4_000],
        ) {
            let notice = notice && !rows.is_empty();
            let content = rows.concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let (seen, taken) = runtime.block_on(through(sent(&rows, notice), piece, bytes_max));
            let (rest, tags) = parse(&seen);
            prop_assert_eq!(&[taken.clone(), rest.clone()].concat(), &content);
            let expected: &[u8] = if notice { b"S2HNcCZ" } else { b"S2HcCZ" };
            prop_assert_eq!(tags, expected);
            if bytes_max == usize::MAX && !notice {
                prop_assert!(rest.is_empty(), "{} bytes of content went to the driver", rest.len());
            }
        }
    }

    #[tokio::test]
    async fn without_a_copy_all_is_the_drivers() {
        let refused = [one(b'E', b"SERROR\0"), one(b'Z', b"E")].concat();
        let later = sent(&[vec![1; 50]], false);
        let (wire, mut server) = tokio::io::duplex(4096);
        let (mut driver, handle): (Plain, _) = tap(Either::Left(wire));
        let copy = handle.take_copy();
        server.write_all(&refused).await.expect("send");
        let mut seen = vec![0; refused.len()];
        driver.read_exact(&mut seen).await.expect("refusal");
        assert_eq!(seen, refused);
        drop(copy);
        server.write_all(&later).await.expect("send");
        drop(server);
        let mut rest = Vec::new();
        driver.read_to_end(&mut rest).await.expect("a COPY that nobody takes");
        assert_eq!(rest, later);
    }

    #[tokio::test]
    async fn a_connection_that_ends_ends_both() {
        let cut = &sent(&[vec![7; 300], vec![8; 300]], false)[..400];
        let (seen, taken) = through(cut.to_vec(), 64, usize::MAX).await;
        let begun = sent(&[], false).len() - 5 - 12 - 6;
        assert_eq!(taken.len(), 400 - begun - 2 * HEADER);
        assert_eq!(parse(&seen[..begun]).1, b"S2H");
        // The driver gets the beginning of the message that has no end, and refuses it.
        assert_eq!(seen.get(begun), Some(&COPY_DATA));
    }
}
