//! A catalog's server whose answers a test decides, and which remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How many requests of this method and path came before.
    pub(crate) before: usize,
}

impl Asked {
    /// `POST /v1/…`
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Json(u16, Value),
    /// Status, further header lines, body.
    Raw(u16, String, String),
    /// The connection breaks instead.
    Broken,
}

/// Iceberg's error model.
pub(crate) fn refusal(status: u16, kind: &str) -> Reply {
    let error = serde_json::json!({ "message": "so it is", "type": kind, "code": status });
    Reply::Json(status, serde_json::json!({ "error": error }))
}

/// Listens on a port of its own until the test's process ends.
pub(crate) struct Stub {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    pub(crate) fn start(reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (reply, remembered) = (Arc::new(reply), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (reply, remembered) = (Arc::clone(&reply), Arc::clone(&remembered));
                std::thread::spawn(move || answer(stream, &*reply, &remembered));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("asked").clone()
    }

    /// Requests whose line begins so.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.asked().iter().filter(|asked| asked.line().starts_with(line)).count()
    }
}

fn answer(
    stream: TcpStream,
    reply: &dyn Fn(&Asked) -> Reply,
    remembered: &Mutex<Vec<Asked>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (method, rest) = line.split_once(' ')?;
    let (path, _) = rest.split_once(' ')?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let asked = {
        let mut all = remembered.lock().expect("asked");
        let same = |asked: &&Asked| asked.method == method && asked.path == path;
        let asked = Asked {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: String::from_utf8(body).ok()?,
            before: all.iter().filter(same).count(),
        };
        all.push(asked.clone());
        asked
    };
    let (status, head, body) = match reply(&asked) {
        Reply::Json(status, value) => (status, String::new(), value.to_string()),
        Reply::Raw(status, head, body) => (status, head, body),
        Reply::Broken => return None,
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{head}\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()
}
