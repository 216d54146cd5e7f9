//! PostgreSQL's protocol: `psql`, drivers and BI tools ask the lake by SQL, for whom their key is.
//!
//! Every statement goes the way of `POST /v1/query`: the same callers, found anew for each statement, the
//! same pace, the same engine with the same limits, and an agent's caps. Nothing here decides what
//! somebody may see. Messages are `pgwire`'s; what is done about them is ours, so that a statement can be
//! cancelled while it computes, and no connection sees another's settings (ADR 0031).

mod cancel;
mod command;
mod connection;
mod decode;
mod encode;
mod extended;
mod failure;
mod frontend;
mod listing;
mod numeric;
mod query;
mod rows;
mod settings;
mod startup;
mod text;
mod tls;
mod types;
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::DataRow;
use polder_core::{Error, ErrorCode, Result};
use polder_query::postgres::PostgresCatalog;
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::api::Settings;
use super::clients::Clients;
use super::listen;
use cancel::Running;
use connection::Connection;
use failure::{Failure, state};
use wire::{Gone, Wire};

/// Connections at one time.
const CONNECTIONS_MAX: usize = 200;
/// How long a client may take to say who it is.
const STARTUP_MAX: Duration = Duration::from_secs(30);
/// How long to wait where the system gives no more connections.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The door, ready to listen.
pub(crate) struct Postgres {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    catalog: PostgresCatalog,
}

/// What all connections share.
struct Door {
    settings: Arc<Settings>,
    tls: Option<TlsAcceptor>,
    catalog: PostgresCatalog,
    running: Arc<Running>,
}

impl Postgres {
    /// Opens the socket. `tls` is a certificate's file and its key.
    ///
    /// # Errors
    /// `spec.invalid` for an address that others can reach while there is no certificate or nobody has to
    /// show who they are, for one that cannot be had, and for a certificate that cannot be used.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<(&Path, &SecretString)>,
        clients: &Clients,
    ) -> Result<Self> {
        let tls = tls.map(|(certificate, key)| tls::acceptor(certificate, key)).transpose()?;
        if tls.is_none() && !address.ip().is_loopback() {
            let message = format!("[server] postgres: {address} can be reached by others");
            return Err(Error::new(ErrorCode::SpecInvalid, message).hint(
                "passwords are keys, and come by TLS only: set [server.postgres_tls] certificate \
                 and key, or listen on 127.0.0.1",
            ));
        }
        let listener = listen(address, clients).await?;
        Ok(Self { listener, tls, catalog: PostgresCatalog::start()? })
    }

    /// The address that was got, with the port the system chose for port 0.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|cause| {
            Error::new(ErrorCode::Internal, "the socket has no address").caused_by(cause)
        })
    }

    /// Serves until `stop`, then lets running statements end.
    pub(super) async fn run(self, settings: Arc<Settings>, stop: CancellationToken) {
        let Self { listener, tls, catalog } = self;
        let running = Arc::new(Running::default());
        let door = Arc::new(Door { settings, tls, catalog, running });
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if connections.len() >= CONNECTIONS_MAX => refuse(&stream),
                Ok((stream, peer)) => {
                    let (door, stop) = (Arc::clone(&door), stop.clone());
                    connections.spawn(async move {
                        // A client that is gone has nothing to be told.
                        let _: std::result::Result<(), Gone> =
                            Box::pin(connected(&door, stream, peer, &stop)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection could not be taken: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Tells a client that there are too many, without waiting for it.
fn refuse(stream: &TcpStream) {
    let failure = Failure::new(state::TOO_MANY, "there are too many connections").fatal();
    let mut bytes = BytesMut::new();
    if failure.message().encode(&mut bytes).is_ok() {
        // Whoever does not hear it sees the end of the connection.
        let _ = stream.try_write(&bytes);
    }
}

async fn connected(
    door: &Door,
    stream: TcpStream,
    peer: SocketAddr,
    stop: &CancellationToken,
) -> std::result::Result<(), Gone> {
    stream.set_nodelay(true)?;
    let place = door.running.enter();
    let wire = Wire::new(Box::new(stream));
    let welcome = tokio::time::timeout(STARTUP_MAX, startup::welcome(door, wire, peer, &place));
    let visitor = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        visitor = welcome => visitor.unwrap_or(Err(Gone))?,
    };
    let Some(visitor) = visitor else { return Ok(()) };
    Connection::new(door, visitor, &place).serve(stop).await
}

/// A row of texts.
fn text_row(values: &[String]) -> DataRow {
    let mut data = BytesMut::new();
    for value in values {
        // Settings are short.
        data.put_i32(value.len() as i32);
        data.put_slice(value.as_bytes());
    }
    DataRow::new(data, values.len() as i16)
}
