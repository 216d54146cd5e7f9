//! Queries of `polder serve` in processes of their own: whatever one does is an error of that query, and the next one is
//! answered.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Answer, Served};
use crate::project::Project;

/// Nine million million rows, none of which is sent.
const ENDLESS: &str = "SELECT sum(a.value % 7 + b.value % 3) AS n \
                       FROM generate_series(1, 3000000) a, generate_series(1, 3000000) b";
const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";
const ORGS: &str = "orgs:
  - id: \"401\"
    tables:
      - { name: deal, source: files, from: \"401.csv\" }
  - id: \"402\"
    tables:
      - { name: deal, source: files, from: \"402.csv\" }
";

/// A server that anybody on this machine may ask.
fn open(processes: usize, limits: &str) -> Project {
    let server = format!("[server]\nauth = \"none\"\nquery_processes = {processes}\n");
    Project::new(&format!("{server}{limits}"), "")
}

fn ask(served: &Served, key: &str, sql: &str) -> Answer {
    served.call(key, "POST", "/v1/query", &json!({ "sql": sql }).to_string())
}

fn answers(served: &Served) {
    let answer = ask(served, "", "SELECT 1 AS n");
    assert_eq!(answer.body["rows"], json!([[1]]), "{}", answer.text);
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Before them is the name, which may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn lives(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// Its processes, also those that nobody has waited for.
fn children(served: &Served) -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, parent)| parent == served.id())).collect()
}

/// How long processes have computed, in ticks of a hundredth of a second (proc(5), `utime` and `stime`).
fn ticks(pids: &BTreeSet<u32>) -> u64 {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let [user, system] = [11, 12].map(|at| fields.get(at)?.parse::<u64>().ok());
        Some(user? + system?)
    };
    pids.iter().filter_map(of).sum()
}

fn until(seconds: u64, what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(seconds), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn counted(served: &Served, event: &str, count: usize) -> bool {
    let page = served.call("", "GET", "/metrics", "").text;
    let line = format!("polder_query_processes_total{{event=\"{event}\"}} {count}");
    page.lines().any(|found| found == line)
}

/// A query that is under way, until what is returned is dropped.
fn begin(served: &Served, sql: &str) -> TcpStream {
    let body = json!({ "sql": sql }).to_string();
    served.begin(&format!(
        "POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[test]
fn a_query_that_exhausts_the_memory_is_an_error_of_that_query() {
    // The engine's own limit, which is far away, is not what is tested.
    let limits = "[limits]\nquery_memory_mb = 50000\nquery_process_memory_mb = 200\n";
    let project = open(2, limits);
    let served = Served::start(&project);
    answers(&served);
    let bombs = [
        "SELECT length(repeat('x', 1500000000)) AS n",
        "SELECT array_length(array_agg(value)) AS n FROM generate_series(1, 1000000000)",
    ];
    for (at, bomb) in bombs.into_iter().enumerate() {
        let answer = ask(&served, "", bomb);
        assert_eq!(answer.body["code"], "query.limit", "{bomb}: {}", answer.text);
        assert!(answer.text.contains("the query ended its process"), "{}", answer.text);
        answers(&served);
        until(60, "it was counted", || counted(&served, "crashed", at + 1));
    }
    until(60, "there are two again", || children(&served).len() == 2);
}

#[test]
fn a_query_of_thousands_of_terms_leaves_the_server_as_it_was() {
    let project = open(2, "");
    let served = Served::start(&project);
    let chain =
        |terms: usize, term: &str| format!("SELECT {}value AS n FROM range(1)", term.repeat(terms));
    for sql in [chain(4_900, "value + "), chain(4_900, "value * "), chain(5_100, "value + ")] {
        let answer = ask(&served, "", &sql);
        let code = answer.body["code"].as_str().unwrap_or("none");
        assert!(["none", "query.limit", "query.invalid"].contains(&code), "{}", answer.text);
        answers(&served);
    }
}

#[test]
fn a_client_that_hangs_up_ends_its_query_and_the_process_of_it() {
    let project = open(1, "");
    let served = Served::start(&project);
    answers(&served);
    let before = children(&served);
    assert_eq!(before.len(), 1);
    let had = ticks(&before);
    let client = begin(&served, ENDLESS);
    until(60, "it computes", || ticks(&before) > had + 50);
    assert_eq!(children(&served), before, "it computes");
    drop(client);
    until(30, "its process is gone", || children(&served).is_disjoint(&before));
    answers(&served);
    let both = || counted(&served, "cancelled", 1) && counted(&served, "started", 2);
    until(60, "both are counted", both);
}

#[test]
fn a_server_that_is_killed_leaves_no_process_behind() {
    let project = open(2, "");
    let served = Served::start(&project);
    answers(&served);
    until(60, "both are there", || children(&served).len() == 2);
    let processes = children(&served);
    let had = ticks(&processes);
    let _client = begin(&served, ENDLESS);
    until(60, "one computes", || ticks(&processes) > had + 20);
    served.kill();
    until(60, "they are gone", || !processes.iter().any(|pid| lives(*pid)));
}

/// A message of PostgreSQL's protocol.
fn tell(stream: &mut TcpStream, kind: Option<u8>, body: &[u8]) {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend_from_slice(body);
    stream.write_all(&message).unwrap();
}

/// What the server says until it is ready for more.
fn hear(stream: &mut TcpStream) -> String {
    let mut said = String::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let [kind, length @ ..] = head;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut body).unwrap();
        said.push_str(&String::from_utf8_lossy(&body));
        if kind == b'Z' {
            return said;
        }
    }
}

#[test]
fn a_timeout_of_postgresqls_protocol_ends_the_process_too() {
    let project = Project::new("[server]\nquery_processes = 1\npostgres = \"127.0.0.1:0\"\n", "");
    let made = project.ok(&["keys", "create", "--role", "operator", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let mut served = Served::start(&project);
    let mut client = TcpStream::connect(served.postgres()).unwrap();
    let start = [&196_608_u32.to_be_bytes()[..], b"user\0ann\0database\0lake\0\0"].concat();
    tell(&mut client, None, &start);
    tell(&mut client, Some(b'p'), format!("{}\0", made["key"].as_str().unwrap()).as_bytes());
    hear(&mut client);
    let mut query = |sql: &str| {
        tell(&mut client, Some(b'Q'), format!("{sql}\0").as_bytes());
        hear(&mut client)
    };
    assert!(query("SELECT 40 + 2 AS n").contains("42"));
    let before = children(&served);
    assert_eq!(before.len(), 1);
    query("SET statement_timeout = 700");
    let said = query(ENDLESS);
    assert!(said.contains("57014"), "{said}");
    until(30, "its process is gone", || children(&served).is_disjoint(&before));
    query("SET statement_timeout = 0");
    assert!(query("SELECT 40 + 2 AS n").contains("42"));
}

#[test]
fn orgs_share_processes_and_see_their_own_rows_alone() {
    let project = Project::new(&format!("[server]\nquery_processes = 2\n{FILES}"), ORGS);
    project.write("exports/401.csv", "id,owner\n1,ann-1\n2,ann-1\n");
    project.write("exports/402.csv", "id,owner\n1,bob-2\n2,bob-2\n3,bob-2\n");
    project.run();
    let key = |org: &str| -> String {
        let made = project.ok(&["keys", "create", "--role", "reader", "--org", org, "--json"]);
        let made: Value = serde_json::from_str(&made).unwrap();
        made["key"].as_str().unwrap().to_owned()
    };
    let orgs = [
        (key("401"), json!([[2, "ann-1", "ann-1"]]), "lake.org_402.deal"),
        (key("402"), json!([[3, "bob-2", "bob-2"]]), "lake.org_401.deal"),
    ];
    let served = Served::start(&project);
    until(60, "both are there", || children(&served).len() == 2);
    let before = children(&served);
    thread::scope(|scope| {
        for at in 0..20 {
            let (served, (key, rows, foreign)) = (&served, &orgs[at % 2]);
            scope.spawn(move || {
                for _ in 0..3 {
                    let sql = "SELECT count(*), min(owner), max(owner) FROM deal";
                    let answer = ask(served, key, sql);
                    assert_eq!(&answer.body["rows"], rows, "{}", answer.text);
                    let refused = ask(served, key, &format!("SELECT * FROM {foreign}"));
                    assert!(refused.status >= 400, "{}", refused.text);
                    assert!(!refused.text.contains("ann-1") && !refused.text.contains("bob-2"));
                }
            });
        }
    });
    assert_eq!(children(&served), before, "each has answered for both");
}

#[test]
fn answers_and_errors_are_those_of_a_server_without_processes() {
    let statements = [
        "SELECT 1 AS a, 'x' AS \"B c\", 0.10 AS d, NULL AS e, timestamp '2026-01-31 12:00:00' AS t",
        "SELECT value, [value, NULL] AS l FROM range(3) ORDER BY value",
        "SELECT value FROM range(20000) ORDER BY value LIMIT 9000",
        "SELECT 1 AS n WHERE false",
        "SELECT nothing FROM range(3)",
        "SELECT * FROM lake.org_1.nothing",
        "SELEC 1",
        "SELECT 1 / (value - value) FROM range(3)",
        "SELECT value FROM range(200000)",
        "INSERT INTO a VALUES (1)",
    ];
    let project = open(0, "");
    let told = |by_processes: bool| -> Vec<(u16, Value)> {
        let served = Served::start(&project);
        let told = statements.iter().map(|sql| {
            let answer = ask(&served, "", sql);
            (answer.status, answer.body)
        });
        let told = told.collect();
        assert_ne!(children(&served).is_empty(), by_processes);
        told
    };
    let alone = told(false);
    assert!(alone.iter().any(|(status, _)| *status == 200));
    let file = project.path().join("polder.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    project.write("polder.toml", &text.replace("query_processes = 0", "query_processes = 2"));
    for ((sql, expected), told) in statements.iter().zip(alone).zip(told(true)) {
        assert_eq!(told, expected, "{sql}");
    }
}
