//! `polder serve` as a process: it starts, answers, refuses to be open to everybody, and stops.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use crate::http::Served;
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

#[test]
fn keys_are_made_listed_and_ended() {
    let project = Project::new("", "");
    let made = |arguments: &[&str]| -> Value {
        let text = project.ok(&[&["keys", "create", "--json"], arguments].concat());
        serde_json::from_str(&text).unwrap()
    };
    let operator = made(&["--role", "operator"]);
    let key = operator["key"].as_str().unwrap();
    assert!(key.starts_with("plk_") && key.starts_with(operator["id"].as_str().unwrap()));
    let errors = project.fails(&["keys", "create", "--role", "writer"], 2);
    assert!(errors.contains("--org 401"), "{errors}");
    let writer = made(&["--role", "writer", "--org", "401", "--expires", "2099-01-31"]);
    assert_eq!(writer["expires_at"], "2099-02-01T00:00:00.000Z");
    // Once there is a key, keys are asked for.
    let served = Served::start(&project);
    assert_eq!(served.call("", "GET", "/v1/orgs", "").status, 401);
    assert_eq!(served.call(key, "GET", "/v1/orgs", "").status, 200);
    let secret = writer["key"].as_str().unwrap();
    assert_eq!(served.call(secret, "GET", "/iceberg/v1/namespaces", "").status, 200);
    project.ok(&["keys", "revoke", writer["id"].as_str().unwrap()]);
    assert_eq!(served.call(secret, "GET", "/v1/orgs", "").status, 401, "at once");
    let listed = project.ok(&["keys", "list"]);
    assert!(listed.contains("revoked") && !listed.contains(key), "{listed}");
}

#[test]
fn who_may_be_nobody_is_said_and_checked() {
    let open = Project::new("[server]\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\n", "");
    open.ok(&["keys", "create", "--role", "operator"]);
    let served = Served::start(&open);
    assert_eq!(served.call("", "GET", "/v1/orgs", "").status, 200, "none means none");
    assert_eq!(served.call("plk_0_0", "GET", "/v1/orgs", "").status, 401, "a bad key is none");
    let errors = open.fails(&["serve", "--listen", "0.0.0.0:0"], 2);
    assert!(errors.contains("nobody has to authenticate"), "{errors}");
}

#[test]
fn an_issuer_is_named_before_anything_is_served() {
    let section =
        |issuer: &str| format!("[server.oidc]\nissuer = \"{issuer}\"\naudience = \"polder\"\n");
    let with = |auth: &str, section: &str| {
        Project::new(&format!("[server]\nauth = \"{auth}\"\n{section}"), "")
    };
    let cases = [
        ("oidc", String::new(), "there is no [server.oidc]"),
        ("keys", section("https://id.example"), "auth is not oidc"),
        ("oidc", section("http://id.example"), "issuer is no https:// address"),
        ("oidc", section("https://id.example/?a=b"), "has a query"),
    ];
    for (auth, section, expect) in cases {
        let errors = with(auth, &section).fails(&["serve"], 2);
        assert!(errors.contains(expect), "{errors}");
    }
}

/// A page of somebody else, in a browser on this machine.
#[test]
fn a_server_that_asks_for_no_key_answers_to_this_machine_alone() {
    let open = Project::new("[server]\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\n", "");
    let served = Served::start(&open);
    let status = |path: &str, headers: &str| {
        let answer =
            served.raw(&format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"));
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for path in ["/v1/orgs", "/iceberg/v1/config?warehouse=any", "/metrics"] {
        assert_eq!(status(path, "Host: localhost:7070\r\n"), "200", "{path}");
        let own = "Host: 127.0.0.1\r\nOrigin: http://[::1]:3000\r\n";
        assert_eq!(status(path, own), "200", "{path}");
        assert_eq!(status(path, "Host: evil.example:7070\r\n"), "403", "{path}");
        let page = "Host: 127.0.0.1:7070\r\nOrigin: https://evil.example\r\n";
        assert_eq!(status(path, page), "403", "{path}");
    }
    let form = "POST /v1/orgs/1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}";
    assert!(served.raw(form).starts_with("HTTP/1.1 415"));
}

const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";

fn table(name: &str) -> String {
    format!("      - {{ name: {name}, source: files, from: \"{name}.csv\" }}\n")
}

#[test]
fn files_are_planned_and_applied_as_they_were_shown() {
    let pipeline = |tables: &[&str]| {
        let tables: String = tables.iter().map(|name| table(name)).collect();
        format!("orgs:\n  - id: \"1\"\n    tables:\n{tables}")
    };
    let project = Project::new(FILES, &pipeline(&["a", "b"]));
    project.write("exports/a.csv", "id\n1\n2\n");
    project.write("exports/b.csv", "id\n1\n");
    let plan = || -> Value { serde_json::from_str(&project.ok(&["plan", "--json"])).unwrap() };
    let first = plan();
    assert_eq!(first["tables"][0]["action"], "create", "{first}");
    let hash = first["hash"].as_str().unwrap();
    let errors = project.fails(&["apply", "--plan", &"0".repeat(64)], 1);
    assert!(errors.contains("polder plan"), "{errors}");
    project.ok(&["apply", "--plan", hash]);
    assert_eq!(plan()["tables"], serde_json::json!([]));
    assert_eq!(project.run().len(), 2);
    // What the files drop is not run, and stays until somebody says so.
    project.write("pipelines/test.yaml", &pipeline(&["b"]));
    let output = project.output(&["run", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("1/a: not in the pipeline files"), "{said}");
    let left = plan();
    let dropped = &left["tables"][0];
    assert_eq!((&dropped["action"], &dropped["rows"]), (&"drop".into(), &2.into()), "{left}");
    let errors = project.fails(&["apply"], 1);
    assert!(errors.contains("--yes"), "{errors}");
    let errors = project.fails(&["apply", "--yes"], 1);
    assert!(errors.contains("--plan"), "it was not seen: {errors}");
    let hash = left["hash"].as_str().unwrap();
    project.ok(&["apply", "--plan", hash, "--yes", "--why", "not asked for any more"]);
    assert_eq!(plan()["tables"], serde_json::json!([]));
    assert_eq!(project.number("SELECT count(*) FROM org_1.a"), 2, "its rows stay");
    let verified: Value =
        serde_json::from_str(&project.ok(&["audit", "verify", "--json"])).unwrap();
    assert_eq!(verified["whole"], true, "{verified}");
    // Also what a run applies by itself.
    let log: Value = serde_json::from_str(&project.ok(&["audit", "list", "--json"])).unwrap();
    let applied = log.as_array().unwrap().iter().filter(|entry| entry["action"] == "plan.apply");
    let last = applied.clone().next_back().unwrap();
    assert!(applied.count() >= 2, "{log}");
    assert!(last["detail"].as_str().unwrap().ends_with(": not asked for any more"), "{last}");
    assert!(last["who"].as_str().unwrap().starts_with("cli:"), "{last}");
}
