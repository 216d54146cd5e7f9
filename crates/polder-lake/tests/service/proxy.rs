//! A way to a server on which connections break: before a request has arrived, before its answer comes, or
//! in the middle of either. It speaks as much of HTTP/1.1 as it takes to tell where that is.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SLOW: Duration = Duration::from_millis(200);
/// Looks for what is still on its way.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than any client of the tests waits for an answer.
const SILENCE: Duration = Duration::from_mins(2);
/// How long what is last comes after the others.
const AFTER: Duration = Duration::from_secs(1);

/// What becomes of a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    /// It is answered, after a while.
    Slow,
    /// The connection ends, and the server never hears of it.
    Unsent,
    /// The server gets half of it, and both connections end.
    Torn,
    /// It is carried out, and the connection ends without an answer.
    Unanswered,
    /// It is carried out, and the connection ends in the middle of the answer.
    Cut,
    /// The connection ends, and the server gets the request so many milliseconds later.
    Late(u64),
    /// The connection ends, and the server gets the request when all others that were planned have come.
    Last,
    /// It is carried out, and the connection stays, without a word.
    Silent,
    /// It is answered with these bytes, and the server never hears of it.
    Answered(&'static str),
}

/// What is known of a request when its fate is chosen.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Without its query.
    pub(super) path: String,
    /// The lines of its head, in lower case.
    pub(super) head: String,
    /// Whether it waits to be the last: as long as its fate is that.
    pub(super) waits: bool,
}

/// Listens on a port of its own until the test's process ends.
pub(super) struct Proxy {
    /// `host:port`
    pub(super) address: String,
    /// Requests that the server has yet to get or to answer, after the client has been left.
    late: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of a server at `host:port`.
    pub(super) fn start(
        server: &str,
        choose: impl Fn(&Asked) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("address").to_string();
        let late = Arc::<AtomicUsize>::default();
        let (server, choose, counted) = (server.to_owned(), Arc::new(choose), Arc::clone(&late));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let (server, late) = (server.clone(), Arc::clone(&counted));
                let choose = Arc::clone(&choose);
                std::thread::spawn(move || pass(client, &server, &*choose, &late));
            }
        });
        Self { address, late }
    }

    /// Waits until nothing is on its way any more.
    pub(super) async fn settle(&self) {
        while self.late.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A request or an answer, as it comes.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    /// `None` at the end of the connection. Answers to HEAD have no body, whatever their head says.
    fn read(from: &mut impl BufRead, bodiless: bool) -> Option<Self> {
        let (mut head, mut body) = (Vec::new(), Vec::new());
        let (mut length, mut chunked) = (0, false);
        loop {
            let start = head.len();
            if from.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&head[start..]).trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((line.as_str(), ""));
            match name {
                "content-length" => length = value.trim().parse().ok()?,
                "transfer-encoding" => chunked = value.trim() == "chunked",
                _ => {}
            }
        }
        if !bodiless && chunked {
            read_chunks(from, &mut body)?;
        } else if !bodiless {
            body.resize(length, 0);
            from.read_exact(&mut body).ok()?;
        }
        Some(Self { head, body })
    }

    fn asked(&self) -> Option<Asked> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let mut words = head.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let path = target.split('?').next()?.to_owned();
        Some(Asked { method, path, head: head.to_ascii_lowercase(), waits: false })
    }

    /// All of it, in one write: what is sent in pieces waits for acknowledgements.
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.body].concat()
    }

    /// Its head and half of its body; half of the head if that is all.
    fn half(&self) -> Vec<u8> {
        if self.body.is_empty() {
            return self.head[..self.head.len() / 2].to_vec();
        }
        [self.head.as_slice(), &self.body[..self.body.len() / 2]].concat()
    }
}

/// Chunks as they are, with their lengths, up to the last (RFC 9112, section 7.1); without trailers.
fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Option<()> {
    loop {
        let start = body.len();
        from.read_until(b'\n', body).ok()?;
        let line = String::from_utf8_lossy(&body[start..]).into_owned();
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        let data = body.len();
        // And the end of the line.
        body.resize(data + size + 2, 0);
        from.read_exact(&mut body[data..]).ok()?;
        if size == 0 {
            return Some(());
        }
    }
}

/// The server's answer; each request has a connection of its own.
fn answer(server: &str, request: &Message, method: &str) -> Option<Message> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(&request.bytes()).ok()?;
    Message::read(&mut BufReader::new(stream), method == "HEAD")
}

/// Waits as long as a request is to be late.
fn wait(fate: Fate, choose: &dyn Fn(&Asked) -> Fate, asked: &Asked) {
    if let Fate::Late(after_ms) = fate {
        std::thread::sleep(Duration::from_millis(after_ms));
        return;
    }
    let (waiting, began) = (Asked { waits: true, ..asked.clone() }, Instant::now());
    while choose(&waiting) == Fate::Last && began.elapsed() < SILENCE {
        std::thread::sleep(LOOK);
    }
    std::thread::sleep(AFTER);
}

/// Passes one connection's requests on until one of them breaks it.
fn pass(
    mut client: TcpStream,
    server: &str,
    choose: &dyn Fn(&Asked) -> Fate,
    late: &AtomicUsize,
) -> Option<()> {
    client.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(client.try_clone().ok()?);
    loop {
        let request = Message::read(&mut reader, false)?;
        let asked = request.asked()?;
        match choose(&asked) {
            Fate::Passes => {}
            Fate::Slow => std::thread::sleep(SLOW),
            Fate::Unsent => return None,
            Fate::Torn => {
                let mut stream = TcpStream::connect(server).ok()?;
                return stream.write_all(&request.half()).ok();
            }
            Fate::Unanswered => {
                answer(server, &request, &asked.method)?;
                return None;
            }
            Fate::Cut => {
                let answer = answer(server, &request, &asked.method)?;
                return client.write_all(&answer.half()).ok();
            }
            fate @ (Fate::Late(_) | Fate::Last) => {
                late.fetch_add(1, Ordering::SeqCst);
                // The reader has the other half of the socket.
                let left = client.shutdown(Shutdown::Both);
                wait(fate, choose, &asked);
                let answer = answer(server, &request, &asked.method);
                late.fetch_sub(1, Ordering::SeqCst);
                return left.ok().and(answer).map(drop);
            }
            Fate::Silent => {
                answer(server, &request, &asked.method)?;
                std::thread::sleep(SILENCE);
                return None;
            }
            Fate::Answered(text) => {
                client.write_all(text.as_bytes()).ok()?;
                continue;
            }
        }
        let answer = answer(server, &request, &asked.method)?;
        client.write_all(&answer.bytes()).ok()?;
    }
}
