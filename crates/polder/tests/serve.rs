//! `polder serve` as a process: it starts, answers, refuses to be open to everybody, and stops.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::project::Project;

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_starts_answers_and_stops_when_asked() {
    let project = Project::new("", "");
    for signal in ["TERM", "INT"] {
        let mut child = project.spawn(&["serve", "--listen", "127.0.0.1:0"]);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("Iceberg REST catalog: http://").expect(&line);
        let address = address.strip_suffix("/iceberg").expect(&line);
        assert!(get(address, "/healthz").ends_with("ok\n"));
        let config = get(address, "/iceberg/v1/config?warehouse=any");
        assert!(config.starts_with("HTTP/1.1 200") && config.contains("\"endpoints\""));
        assert!(get(address, "/iceberg/v1/nothing").starts_with("HTTP/1.1 404"));
        let script = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_server_others_can_reach_needs_clients() {
    let open = Project::new("", "");
    let refused = open.output(&["serve", "--listen", "0.0.0.0:0"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("nobody has to authenticate") && said.contains("[serve.clients"),
        "{said}"
    );

    let short = "[serve.clients.a]\nsecret = \"env:SHORT_SECRET\"\n";
    let project = Project::new(short, "").with_env("SHORT_SECRET", "hunter2");
    let refused = project.output(&["serve"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("client a has less than") && !said.contains("hunter2"), "{said}");
}
