//! An org leaves, as an operator sees it: by command, by webhook, by a process that is killed.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::project::Project;

const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";
const PIPELINE: &str = r#"
templates:
  t:
    tables:
      - { name: note, source: files, from: "{org}/*.jsonl", mode: append }
orgs:
  - { id: "a", template: t }
  - { id: "b", template: t }
"#;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn project(governance: &str) -> Project {
    let project = Project::new(&format!("{FILES}{governance}"), PIPELINE);
    for org in ["a", "b"] {
        for file in 0..8 {
            let text = format!("{{\"n\":{file},\"text\":\"row of {org}\"}}\n");
            project.write(&format!("exports/{org}/{file}.jsonl"), &text);
        }
    }
    project
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn an_org_leaves_for_good_and_its_certificate_says_so() {
    let project = project("[governance]\nbackups = [\"tape 7\"]\n");
    project.run();
    let asked = project.fails(&["churn", "--org", "a"], 2);
    assert!(asked.contains("add --yes"), "{asked}");
    assert_eq!(project.number("SELECT count(*) FROM lake.org_a.note"), 8);
    let unknown = project.fails(&["churn", "--org", "c", "--yes"], 2);
    assert!(unknown.contains("there is no org c"), "{unknown}");

    let certificate = project.ok(&["churn", "--org", "a", "--yes", "--by", "eve", "--json"]);
    assert_eq!(project.ok(&["churn", "--org", "a", "--yes"]), certificate, "once and for all");
    assert_eq!(project.ok(&["certificate", "show", "--org", "a"]), certificate);
    let document = json(&certificate);
    assert_eq!(document["certificate"]["asked"]["by"], "eve");
    assert!(document["certificate"]["deleted"]["found"]["objects"].as_u64().unwrap() >= 4);
    assert!(certificate.contains("tape 7"));
    let key = document["signature"]["public_key"].as_str().unwrap();
    project.write("a.json", &certificate);
    let whole = project.ok(&["certificate", "verify", "a.json", "--key", key]);
    assert!(whole.starts_with("the certificate is whole: org a"), "{whole}");
    project.write("b.json", &certificate.replacen("\"eve\"", "\"bob\"", 1));
    project.fails(&["certificate", "verify", "b.json"], 2);
    project.ok(&["certificate", "keygen", "--out", "other.pem"]);
    project.fails(&["certificate", "verify", "a.json", "--key", "other.pem.pub"], 2);
    project.fails(&["certificate", "keygen", "--out", "other.pem"], 2);

    let refused = project.fails(&["run"], 4);
    let advice = "take it out of pipelines/*.yaml";
    assert!(refused.contains("lake.fenced") && refused.contains(advice), "{refused}");
    let refused = project.fails(&["query", "SELECT count(*) FROM lake.org_a.note"], 1);
    assert!(refused.contains("lake.fenced"), "{refused}");
    project.fails(&["rollback", "--org", "a", "--table", "note", "--to", "v1"], 1);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_b.note"), 8);
    let tables = json(&project.ok(&["tables", "--json"]));
    assert!(tables.as_array().unwrap().iter().all(|table| table["org"] != "a"), "{tables}");
    let rows = project.query("SELECT org, certificate FROM lake.polder_management.erasures");
    assert_eq!((&rows[0]["org"], rows.len()), (&Value::from("a"), 1));
    assert_eq!(rows[0]["certificate"], certificate);

    project.fails(&["churn", "--org", "a", "--undo"], 2);
    project.ok(&["churn", "--org", "a", "--release"]);
    project.run();
    assert_eq!(project.number("SELECT count(*) FROM lake.org_a.note"), 8);
}

#[test]
fn a_hold_refuses_and_a_grace_period_can_be_undone() {
    let project = project("[governance]\ngrace = \"7d\"\n");
    project.run();
    project.fails(&["hold", "set", "--org", "a", "--table", "none", "--reason", "x"], 1);
    project
        .ok(&["hold", "set", "--org", "a", "--table", "note", "--reason", "case 7", "--by", "law"]);
    let held = project.fails(&["churn", "--org", "a", "--yes"], 1);
    assert!(held.contains("lake.held") && held.contains("held by law: case 7"), "{held}");
    let held = project.fails(&["maintain", "expire", "--versions", "1", "--org", "a"], 1);
    assert!(held.contains("polder hold release --org a --table note"), "{held}");
    for action in ["orphans", "metadata", "versions"] {
        let refused = project.fails(&["maintain", action, "--org", "a"], 1);
        assert!(refused.contains("legal hold"), "{action}: {refused}");
        project.ok(&["maintain", action, "--org", "a", "--dry-run"]);
    }
    let holds = json(&project.ok(&["hold", "list", "--json"]));
    assert_eq!(holds["holds"][0]["hold"]["reason"], "case 7");
    project.ok(&["hold", "release", "--org", "a", "--table", "note", "--reason", "settled"]);
    project.fails(&["hold", "release", "--org", "a", "--table", "note", "--reason", "x"], 2);
    let log = json(&project.ok(&["audit", "list", "--json"]));
    let said: Vec<(&str, &str)> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["outcome"].as_str().unwrap()))
        .collect();
    for expect in [
        ("hold.set", "done"),
        ("churn.take", "lake.held"),
        ("maintain", "lake.held"),
        ("hold.release", "done"),
        ("hold.release", "spec.unknown_name"),
    ] {
        assert!(said.contains(&expect), "{expect:?} {said:?}");
    }

    let waiting = json(&project.ok(&["churn", "--org", "a", "--yes", "--json"]));
    assert_eq!(waiting["state"], "waiting");
    project.fails(&["query", "SELECT count(*) FROM lake.org_a.note"], 1);
    let status = project.ok(&["churn", "--org", "a", "--status"]);
    assert!(status.contains("is fenced, and erased after"), "{status}");
    project.ok(&["churn", "--org", "a", "--undo"]);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_a.note"), 8);
    project.run();
    let certificate = project.ok(&["churn", "--org", "a", "--yes", "--now"]);
    assert_eq!(json(&certificate)["certificate"]["org"], "a");
}

#[test]
fn an_org_that_leaves_is_in_no_manifest_from_its_fence_on() {
    let project = project("[governance]\ngrace = \"7d\"\n");
    let orgs = || -> Vec<String> {
        let orgs = json(&project.ok(&["manifest"]))["orgs"].as_array().unwrap().clone();
        orgs.iter().map(|org| org["id"].as_str().unwrap().to_owned()).collect()
    };
    let before = orgs();
    project.run();
    project.ok(&["churn", "--org", "a", "--yes"]);
    let without: Vec<String> = before.iter().filter(|org| *org != "a").cloned().collect();
    assert_eq!(before.len(), without.len() + 1);
    assert_eq!(orgs(), without);
    project.ok(&["churn", "--org", "a", "--undo"]);
    assert_eq!(orgs(), before);
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_fenced() {
    for (governance, says) in [
        ("[governance]\ngrace = \"soon\"\n", "[governance] grace"),
        ("[governance]\nsigning_key = \"file:none.pem\"\n", "file:none.pem"),
        ("[governance]\nsigning_key = \"file:pipelines/test.yaml\"\n", "no Ed25519 private key"),
    ] {
        let project = project(governance);
        project.run();
        let refused = project.fails(&["churn", "--org", "a", "--yes"], 2);
        assert!(refused.contains(says), "{refused}");
        assert_eq!(project.number("SELECT count(*) FROM lake.org_a.note"), 8);
    }
}

/// Killed a little later each time, until one gets to the end. What is little, the time says that a run takes
/// which finds nothing new.
#[test]
fn an_erasure_that_is_killed_is_ended_by_the_next_process() {
    let project = project("");
    project.run();
    let began = Instant::now();
    project.run();
    let little = (began.elapsed() / 40).max(Duration::from_millis(4));
    let (mut killed, mut wait) = (0, little);
    let certificate = loop {
        let mut child = project.spawn(&["churn", "--org", "a", "--yes", "--event", "e1"]);
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() && began.elapsed() < wait {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break String::from_utf8(output.stdout).unwrap();
        }
        wait += little;
        assert!(killed < 1000, "{}", String::from_utf8_lossy(&output.stderr));
    };
    assert!(killed >= 5, "too fast to be killed: {killed}");
    project.write("a.json", &certificate);
    project.ok(&["certificate", "verify", "a.json"]);
    let found = &json(&certificate)["certificate"]["deleted"]["found"];
    assert!(found["objects"].as_u64().unwrap() >= 4, "{found}");
    let rows = project.query("SELECT event_id FROM lake.polder_management.erasures");
    assert_eq!(rows.len(), 1, "{rows:?}");
    project.run_only_b();
}

impl Project {
    /// Nothing of org a is in the lake, and org b is as it was.
    fn run_only_b(&self) {
        let seals = std::fs::read_dir(self.path().join("lake")).unwrap();
        let seals = seals.filter(|found| found.as_ref().unwrap().path().is_file()).count();
        assert_eq!(seals, 1, "an empty file in place of the folder");
        assert_eq!(self.number("SELECT count(*) FROM lake.org_b.note"), 8);
    }
}

/// `polder serve`, until dropped.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(project: &Project) -> Self {
        let mut child = project.spawn(&["serve", "--listen", "127.0.0.1:0"]);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("Iceberg REST catalog: http://").expect(&line);
        let address = address.strip_suffix("/iceberg").expect(&line).to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Status, and the document.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        write!(stream, "{text}\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    fn notify(&self, id: &str, age: i64, key: &[u8], body: &str) -> (u16, Value) {
        let time = (chrono::Utc::now().timestamp() - age).to_string();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
        let value = ring::hmac::sign(&key, format!("{id}.{time}.{body}").as_bytes());
        let signature = format!("v1,bm90IGl0 v1,{}", STANDARD.encode(value));
        let headers = [
            ("webhook-id", id),
            ("webhook-timestamp", &time),
            ("webhook-signature", &signature),
            ("content-type", "application/json"),
        ];
        self.ask("POST", "/v1/churn", &headers, body)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn webhook(grace: &str) -> Project {
    let governance = format!("[governance]\nwebhook_secret = \"env:CHURN_SECRET\"\n{grace}");
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    project(&governance).with_env("CHURN_SECRET", &secret)
}

const NOTICE: &str =
    r#"{"type":"org.churned","data":{"org":"a","asked_by":"billing","reason":"left"}}"#;

#[test]
fn a_notice_by_webhook_is_taken_once_and_only_from_who_knows_the_secret() {
    let project = webhook("");
    project.run();
    let served = Served::start(&project);
    assert_eq!(served.ask("POST", "/v1/churn", &[], NOTICE).0, 401);
    assert_eq!(served.notify("evt 1", 0, b"another secret..", NOTICE).0, 401);
    for age in [301 + 5, -301 - 5] {
        assert_eq!(served.notify("evt 1", age, SECRET, NOTICE).0, 401, "{age} s old");
    }
    assert_eq!(served.notify("evt 1", 0, SECRET, "{}").0, 422);
    let other = NOTICE.replace("\"a\"", "\"c\"");
    assert_eq!(served.notify("evt 1", 0, SECRET, &other).0, 404);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_a.note"), 8, "nothing has happened");

    let (status, taken) = served.notify("evt 1", 200, SECRET, NOTICE);
    assert_eq!((status, &taken["id"], &taken["org"]), (202, &"evt 1".into(), &"a".into()));
    project.fails(&["query", "SELECT count(*) FROM lake.org_a.note"], 1);
    assert_eq!(served.notify("evt 1", 0, SECRET, NOTICE).0, 202, "again");
    let (status, same) = served.notify("evt 2", 0, SECRET, NOTICE);
    assert_eq!((status, &same["id"]), (202, &"evt 1".into()), "the event in force");
    let theirs = NOTICE.replace("\"a\"", "\"b\"");
    assert_eq!(served.notify("evt 1", 0, SECRET, &theirs).0, 422, "an id of another org's event");
    let began = Instant::now();
    let done = loop {
        let (status, found) = served.ask("GET", "/v1/churn/evt%201", &[], "");
        assert_eq!(status, 200);
        if found["state"] == "erased" {
            break found;
        }
        assert!(began.elapsed() < Duration::from_mins(3), "{found}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(done["certificate"]["certificate"]["asked"]["via"], "webhook");
    assert_eq!(served.ask("GET", "/v1/churn/evt2", &[], "").0, 404);
    let certificate = project.ok(&["certificate", "show", "--org", "a"]);
    project.write("a.json", &certificate);
    project.ok(&["certificate", "verify", "a.json"]);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_b.note"), 8);
}

#[test]
fn the_served_catalog_refuses_fenced_orgs_and_what_is_held() {
    let project = webhook("grace = \"1h\"\n");
    project.run();
    let served = Served::start(&project);
    let table = |org: &str| format!("/iceberg/v1/namespaces/org_{org}/tables/note");
    let drop = format!("{}?purgeRequested=true", table("b"));
    project.ok(&["hold", "set", "--org", "b", "--reason", "case 7"]);
    let (status, refused) = served.ask("DELETE", &drop, &[], "");
    let message = refused["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(status == 403 && message.contains("legal hold"), "{status} {refused}");
    let snapshots =
        r#"{"requirements":[],"updates":[{"action":"remove-snapshots","snapshot-ids":[1]}]}"#;
    assert_eq!(served.ask("POST", &table("b"), &[], snapshots).0, 403);
    let held = NOTICE.replace("\"a\"", "\"b\"");
    assert_eq!(served.notify("evt b", 0, SECRET, &held).0, 409);
    assert_eq!(served.ask("GET", "/v1/churn/evt%20b", &[], "").0, 404, "it may come again");

    assert_eq!(served.ask("GET", &table("a"), &[], "").0, 200);
    assert_eq!(served.notify("evt a", 0, SECRET, NOTICE).1["state"], "waiting");
    let namespace = "/iceberg/v1/namespaces/org_a";
    let create = r#"{"name":"x","schema":{"type":"struct","schema-id":0,"fields":[]}}"#;
    let rename = r#"{"source":{"namespace":["org_a"],"name":"note"},"destination":{"namespace":["org_a"],"name":"n"}}"#;
    let properties = r#"{"updates":{"a":"b"},"removals":[]}"#;
    for (method, path, body) in [
        ("GET", table("a"), ""),
        ("DELETE", table("a"), ""),
        ("POST", table("a"), "{\"requirements\":[],\"updates\":[]}"),
        ("GET", namespace.to_owned(), ""),
        ("GET", format!("{namespace}/tables"), ""),
        ("GET", format!("{namespace}/views"), ""),
        ("POST", format!("{namespace}/tables"), create),
        ("POST", format!("{namespace}/properties"), properties),
        ("POST", "/iceberg/v1/tables/rename".to_owned(), rename),
        ("GET", format!("{}/credentials", table("a")), ""),
    ] {
        let (status, answer) = served.ask(method, &path, &[], body);
        assert_eq!(status, 403, "{method} {path}: {answer}");
    }
    let (_, listed) = served.ask("GET", "/iceberg/v1/namespaces", &[], "");
    assert_eq!(listed["namespaces"], serde_json::json!([["org_b"]]));
    project.ok(&["churn", "--org", "a", "--undo"]);
    assert_eq!(served.ask("GET", &table("a"), &[], "").0, 200);
}
