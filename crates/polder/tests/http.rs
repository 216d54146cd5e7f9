//! Just enough HTTP to call a server that a test started.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command};

use serde_json::Value;

use crate::project::Project;

/// `polder serve`, until it is dropped.
pub(crate) struct Served {
    child: Child,
    address: String,
    // Held open: a server that writes to a closed pipe would stop.
    _lines: BufReader<ChildStderr>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Value,
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
            if let Some(rest) = line.strip_prefix("API: http://") {
                break rest.split_once("/v1").unwrap().0.to_owned();
            }
        };
        Self { child, address, _lines: lines }
    }

    pub(crate) fn call(&self, key: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n{body}",
            self.address
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Answer { status, head: head.to_owned(), body }
    }

    /// Polls an operation until it has ended; its status.
    pub(crate) fn wait(&self, key: &str, place: &str) -> Value {
        for _ in 0..600 {
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
