//! Just enough HTTP to call a server that a test started.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;

use crate::project::Project;

/// `polder serve`, until it is dropped.
pub(crate) struct Served {
    child: Child,
    address: String,
    // Held open: a server that writes to a closed pipe would stop.
    lines: Option<BufReader<ChildStderr>>,
}

/// Where the door is that speaks PostgreSQL's protocol, by a line of the server's.
fn postgres(line: &str) -> Option<String> {
    let (address, _) = line.strip_prefix("SQL: postgresql://")?.split_once("/lake")?;
    Some(address.to_owned())
}

/// Where the API is, by a line of the server's.
fn address(line: &str) -> Option<String> {
    let (address, _) = line.strip_prefix("API: http://")?.split_once("/v1")?;
    Some(address.to_owned())
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Value,
    /// The body as it came.
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value).unwrap_or_default()
    }
}

impl Served {
    pub(crate) fn start(project: &Project) -> Self {
        let mut child = project.spawn(&["serve", "--listen", "127.0.0.1:0"]);
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended: {seen}");
            seen.push_str(&line);
            if let Some(found) = address(&line) {
                break found;
            }
        };
        Self { child, address, lines: Some(lines) }
    }

    /// The same with its lines in a file of the project: however many there are.
    pub(crate) fn start_into(project: &Project, file: &str, lines: &str) -> Self {
        let path = project.path().join(file);
        let mut command = project.command(&["serve", "--listen", "127.0.0.1:0"]);
        command.env("POLDER_LOG", lines).stdout(Stdio::null());
        let mut child = command.stderr(File::create(&path).unwrap()).spawn().unwrap();
        for _ in 0..1_800 {
            let text = std::fs::read_to_string(&path).unwrap();
            if let Some(address) = text.lines().find_map(address) {
                return Self { child, address, lines: None };
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it does not start: {}", std::fs::read_to_string(&path).unwrap());
    }

    /// Where it speaks PostgreSQL's protocol; it says so once, after the API's address.
    pub(crate) fn postgres(&mut self) -> String {
        let lines = self.lines.as_mut().unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
            if let Some(found) = postgres(&line) {
                return found;
            }
        }
    }

    pub(crate) fn call(&self, key: &str, method: &str, path: &str, body: &str) -> Answer {
        self.send((method, path), &format!("Authorization: Bearer {key}"), body)
    }

    /// A request with one header of its own.
    pub(crate) fn send(&self, (method, path): (&str, &str), header: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             {header}\r\n{kind}Content-Length: {length}\r\n\r\n{body}",
            self.address
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (head, text) = (head.to_owned(), body.to_owned());
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Answer { status, head, body, text }
    }

    /// What is answered to a request as it stands.
    pub(crate) fn raw(&self, request: &str) -> String {
        let mut stream = self.begin(request);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Sends a request as it stands, and leaves the answer to come.
    pub(crate) fn begin(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Polls an operation until it has ended; its status.
    pub(crate) fn wait(&self, key: &str, place: &str) -> Value {
        for _ in 0..1_800 {
            let answer = self.call(key, "GET", place, "");
            assert_eq!(answer.status, 200, "{}", answer.body);
            if !["queued", "running"].contains(&answer.body["status"].as_str().unwrap()) {
                return answer.body;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{place} does not end");
    }

    /// Ends it without a word, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop; its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let script = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
