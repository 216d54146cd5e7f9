//! A way to the server on which values are swapped: for values that a server no longer takes, or
//! that the server of the tests does not.

use bson::Document;
use mongodb::options::ClientOptions;
use polder_sources::mongodb::MongodbSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::support::{Database, open, server_url};

/// What the server sends and what is shown instead, bytes of the same length.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Stands between source and server until it is dropped.
pub(super) struct Swap {
    port: u16,
    server: String,
    _connections: JoinSet<()>,
}

impl Swap {
    /// The elements of the first documents are shown as those of the second ones.
    pub(super) async fn new(pairs: &[(Document, Document)]) -> Self {
        let elements = pairs.iter().map(|(stored, shown)| (elements(stored), elements(shown)));
        Self::bytes(elements.collect()).await
    }

    /// The server's answers have an element under another name.
    pub(super) async fn renamed(from: &str, to: &str) -> Self {
        let name = |name: &str| [name.as_bytes(), &[0]].concat();
        Self::bytes(vec![(name(from), name(to))]).await
    }

    async fn bytes(pairs: Pairs) -> Self {
        for (stored, shown) in &pairs {
            assert_eq!(stored.len(), shown.len(), "bytes are swapped for as many");
        }
        let options = ClientOptions::parse(server_url()).await.expect("address");
        let server = options.hosts[0].to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("port").port();
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, server.clone(), pairs));
        Self { port, server, _connections: connections }
    }

    pub(super) fn source(&self, database: &Database) -> MongodbSource {
        let url = server_url().replace(&self.server, &format!("127.0.0.1:{}", self.port));
        let joint = if url.contains('?') { '&' } else { '?' };
        open(&format!("{url}{joint}directConnection=true"), &database.name)
    }
}

fn elements(document: &Document) -> Vec<u8> {
    let bytes = document.to_vec().expect("a document");
    bytes[4..bytes.len() - 1].to_vec()
}

async fn accept(listener: TcpListener, server: String, pairs: Pairs) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (requests, answers) = client.into_split();
        let server = TcpStream::connect(&server).await.expect("the server");
        let (from_server, to_server) = server.into_split();
        connections.spawn(pass(requests, to_server));
        connections.spawn(swap(from_server, answers, pairs.clone()));
    }
}

async fn pass(mut requests: OwnedReadHalf, mut to_server: OwnedWriteHalf) {
    copy(&mut requests, &mut to_server).await.ok();
}

/// Messages start with their length (MongoDB wire protocol, *Standard Message Header*).
async fn swap(mut from_server: OwnedReadHalf, mut answers: OwnedWriteHalf, pairs: Pairs) {
    while let Ok(length) = from_server.read_i32_le().await {
        let mut message = length.to_le_bytes().to_vec();
        message.resize(usize::try_from(length).expect("a length"), 0);
        if from_server.read_exact(&mut message[4..]).await.is_err() {
            return;
        }
        for (stored, shown) in &pairs {
            for start in 0..message.len().saturating_sub(stored.len()) {
                if message[start..].starts_with(stored) {
                    message[start..start + shown.len()].copy_from_slice(shown);
                }
            }
        }
        if answers.write_all(&message).await.is_err() {
            return;
        }
    }
}
