//! The bytes of one connection: messages in, messages out, and the change to TLS.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::DataRow;
use pgwire::messages::response::NoticeResponse;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio_rustls::TlsAcceptor;

use super::failure::{Failure, Outcome};
use super::frontend::{Asked, asked};

/// The longest first message, and the longest message after it: a statement with its parameters.
const OPENING_BYTES_MAX: usize = 10_000;
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that are held back so that they go out together.
const OUT_BYTES: usize = 64 * 1024;
/// How long a client may take to read what it asked for.
const WRITE_MAX: Duration = Duration::from_mins(5);

/// What bytes come and go by.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The connection is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// A connection.
pub(super) struct Wire {
    stream: BufReader<Box<dyn Stream>>,
    out: BytesMut,
    /// The longest message that is read.
    bytes_max: usize,
    /// By TLS.
    pub(super) secure: bool,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        let stream = BufReader::new(stream);
        Self { stream, out: BytesMut::new(), bytes_max: OPENING_BYTES_MAX, secure: false }
    }

    /// Goes on by TLS.
    ///
    /// # Errors
    /// [`Gone`] also where bytes came before it began, which nobody has vouched for.
    pub(super) async fn secured(self, tls: &TlsAcceptor) -> Result<Self, Gone> {
        if !self.stream.buffer().is_empty() {
            return Err(Gone);
        }
        let stream = tls.accept(self.stream.into_inner()).await?;
        Ok(Self { secure: true, ..Self::new(Box::new(stream)) })
    }

    /// From now on messages may be long: somebody has shown who they are.
    pub(super) fn trust(&mut self) {
        self.bytes_max = MESSAGE_BYTES_MAX;
    }

    /// The first message, without its length; `None` for one that is too long for any client.
    pub(super) async fn opening(&mut self) -> Result<Option<Bytes>, Gone> {
        self.body().await
    }

    /// The next message.
    pub(super) async fn asked(&mut self) -> Result<Outcome<Asked>, Gone> {
        let kind = self.stream.read_u8().await?;
        let Some(body) = self.body().await? else {
            let message = format!("a message has {} bytes at most", self.bytes_max);
            return Ok(Err(Failure::new("54000", message).fatal()));
        };
        Ok(asked(kind, body))
    }

    async fn body(&mut self) -> Result<Option<Bytes>, Gone> {
        let length = self.stream.read_i32().await?;
        let length = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
        let Some(length) = length.filter(|length| *length <= self.bytes_max) else {
            return Ok(None);
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Some(Bytes::from(body)))
    }

    /// One byte that is no message: whether TLS can be had.
    pub(super) async fn answer(&mut self, byte: u8) -> Result<(), Gone> {
        self.out.put_u8(byte);
        self.flush().await
    }

    /// Puts a message behind those that wait.
    pub(super) fn put(&mut self, message: &impl Message) {
        let begin = self.out.len();
        if let Err(error) = message.encode(&mut self.out) {
            // Longer than the protocol has numbers for. Half a message would spoil those after it.
            self.out.truncate(begin);
            tracing::error!("a message was not sent: {error}");
        }
    }

    /// The same for a row; sends once there is enough.
    pub(super) async fn row(&mut self, data: BytesMut, columns: usize) -> Result<(), Gone> {
        // PostgreSQL's tables have 1,600 columns at most, and the protocol 65,535.
        let columns = u16::try_from(columns).map_err(|_| Gone)?;
        self.put(&DataRow::new(data, columns.cast_signed()));
        if self.out.len() >= OUT_BYTES { self.flush().await } else { Ok(()) }
    }

    pub(super) fn fail(&mut self, failure: &Failure) {
        self.put(&failure.message());
    }

    /// Tells of what was harmless, and not done.
    pub(super) fn warn(&mut self, state: &str, message: &str) {
        let fields = [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', state), (b'M', message)];
        let fields = fields.map(|(code, text)| (code, text.to_owned()));
        self.put(&NoticeResponse::new(fields.into()));
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        let out = self.out.split();
        let sending = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(WRITE_MAX, sending).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Gone),
        }
    }
}
