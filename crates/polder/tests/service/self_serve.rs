//! docs/how-to/self-serve.md, step by step: an operator, a data scientist, two orgs.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::Database;
use crate::http::{Answer, Served};
use crate::project::Project;

const PIPELINE: &str = "
templates:
  crm:
    tables:
      - name: opportunity
        source: revdb
        from: public.opportunity
        filter: org_id = {org}
        mode: append
        cursor: updated_at
";
const SERVER: &str = "
[server]
listen = \"127.0.0.1:7070\"
auth = \"keys\"
[sources.revdb]
type = \"postgres\"
url = \"env:REVDB_URL\"
";
const ROWS: &str = "
CREATE TABLE opportunity (id int PRIMARY KEY, org_id text NOT NULL, amount numeric(12, 2),
    updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE lead (lead_id int PRIMARY KEY, org_id text NOT NULL, changed_at timestamptz NOT NULL
    DEFAULT now());
INSERT INTO opportunity SELECT n, CASE WHEN n % 3 = 0 THEN '402' ELSE '401' END, n FROM
    generate_series(1, 300) n;
INSERT INTO lead SELECT n, CASE WHEN n <= 7 THEN '401' ELSE '402' END FROM generate_series(1, 50) n;
";

fn set_up() -> (Database, Project) {
    let database = Database::new();
    database.sql(ROWS);
    let project = Project::new(SERVER, PIPELINE).with_env("REVDB_URL", &database.url());
    (database, project)
}

/// The same with the control store in PostgreSQL.
fn set_up_store() -> (Database, Database, Project) {
    let (database, project) = set_up();
    let store = Database::new();
    let file = project.path().join("polder.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("url = \"sqlite://./polder.db\"", "url = \"env:STORE_URL\"");
    std::fs::write(&file, text).unwrap();
    let project = project.with_env("STORE_URL", &store.url());
    (database, store, project)
}

/// The key that `polder keys create` shows.
fn key(project: &Project, arguments: &[&str]) -> String {
    shown(&project.ok(&[&["keys", "create", "--json"], arguments].concat()))
}

#[test]
fn the_page_works_step_by_step() {
    let (_database, project) = set_up();
    follow_the_page(&project);
}

#[test]
fn the_page_works_with_a_store_in_postgresql() {
    let (_database, _store, project) = set_up_store();
    follow_the_page(&project);
}

/// The page's commands that are not done yet, and what its words stand for.
struct Page {
    commands: VecDeque<Vec<String>>,
    words: Vec<(&'static str, String)>,
}

/// The commands of a page's `sh` blocks, in words, as a shell takes them apart.
fn commands(page: &str) -> VecDeque<Vec<String>> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let mut found = VecDeque::new();
    for (block, _) in blocks {
        let lines = block.replace("\\\n", " ");
        found.extend(lines.lines().map(words).filter(|words| !words.is_empty()));
    }
    found
}

fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), letter) if open == letter => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, '#') if word.is_empty() => break,
            (None, ' ') if word.is_empty() => {}
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, letter) => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

impl Page {
    fn new() -> Self {
        let page = include_str!("../../../../docs/how-to/self-serve.md");
        Self { commands: commands(page), words: Vec::new() }
    }

    /// From here on, `word` stands for this.
    fn know(&mut self, word: &'static str, meaning: &str) {
        self.words.push((word, meaning.to_owned()));
    }

    fn next(&mut self, program: &str) -> Vec<String> {
        let command = self.commands.pop_front().expect("the page has no more commands");
        assert_eq!(command[0], program, "{command:?}");
        let meant = |text: &String| {
            let known = self.words.iter();
            known.fold(text.clone(), |text, (word, meaning)| text.replace(word, meaning))
        };
        command[1..].iter().map(meant).collect()
    }

    /// The page's next command, which is one of `polder`.
    fn polder(&mut self, project: &Project) -> String {
        let arguments = self.next("polder");
        project.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The page's next command, which is a request with `curl`.
    fn curl(&mut self, served: &Served) -> Answer {
        let arguments = self.next("curl");
        let (mut method, mut path, mut header, mut body) = (None, "", "", "");
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-i" | "-N" => {}
                "-X" => method = rest.next(),
                "-H" => header = rest.next().unwrap(),
                "--json" => body = rest.next().unwrap(),
                url => path = url.strip_prefix("http://127.0.0.1:7070").unwrap(),
            }
        }
        let usual = if body.is_empty() { "GET" } else { "POST" };
        assert!(!header.contains('$') && !path.contains(['<', '$']), "{arguments:?}");
        served.send((method.map_or(usual, String::as_str), path), header, body)
    }
}

/// The key that an answer holds.
fn shown(text: &str) -> String {
    let made: Value = serde_json::from_str(text).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

fn follow_the_page(project: &Project) {
    let mut page = Page::new();
    let operator = shown(&page.polder(project));
    page.know("$OPERATOR", &operator);
    assert_eq!(page.next("polder"), ["serve"]);
    let served = Served::start(project);
    let made = page.curl(&served);
    assert_eq!((made.status, made.header("location")), (201, "/v1/orgs/401"), "{}", made.body);
    let other = r#"{"id":"402","template":"crm"}"#;
    assert_eq!(served.call(&operator, "POST", "/v1/orgs", other).status, 201);
    let admin = shown(&page.polder(project));
    page.know("$ADMIN", &admin);
    let made = page.curl(&served);
    assert_eq!(made.status, 201, "{}", made.body);
    let writer = made.body["key"].as_str().unwrap().to_owned();
    page.know("$WRITER", &writer);
    add_the_table(&mut page, &served);
    run_the_table(&mut page, &served);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_401.opportunity"), 200);
    let foreign = "SELECT count(*) FROM lake.org_401.opportunity WHERE org_id <> '401'";
    assert_eq!(project.number(foreign), 0);
    let refused = page.curl(&served);
    assert_eq!((refused.status, &refused.body["code"]), (404, &json!("control.not_found")));
    see_no_other_org(&served, &writer);
    change_the_template(&mut page, &served, &writer);
    for _ in 0..2 {
        page.polder(project);
    }
    let states = page.curl(&served);
    assert!(states.body["items"][0]["revision"].is_i64(), "{}", states.body);
    assert!(page.commands.is_empty(), "not tried: {:?}", page.commands);
    assert_eq!(served.stop(), Some(0));
    look_back(project);
}

fn add_the_table(page: &mut Page, served: &Served) {
    let dry = page.curl(served);
    assert_eq!((dry.status, &dry.body["dry_run"]), (200, &json!(true)), "{}", dry.body);
    let made = page.curl(served);
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["spec"], dry.body["spec"]);
    assert_eq!(made.body["spec"]["key"], json!(["id"]), "from the primary key");
    assert_eq!(made.body["spec"]["cursor"], "updated_at");
    let best = &made.body["resolved"]["cursors"][0];
    assert_eq!((&best["column"], &best["rank"]), (&json!("updated_at"), &json!(1)));
    assert!(best["reason"].as_str().unwrap().contains("moment in time"), "{best}");
}

fn run_the_table(page: &mut Page, served: &Served) {
    let asked = page.curl(served);
    assert_eq!(asked.status, 202, "{}", asked.body);
    let place = asked.header("location");
    page.know("<id>", place.strip_prefix("/v1/operations/").unwrap());
    page.know("<run>", asked.body["runs"][0]["id"].as_str().unwrap());
    // Until the run has ended.
    let watched = page.curl(served);
    assert_eq!(watched.header("content-type"), "text/event-stream", "{}", watched.text);
    assert!(watched.text.contains("event: ended"), "{}", watched.text);
    let operation = page.curl(served).body;
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(operation["runs"][0]["report"]["rows_written"], 200);
    let table = page.curl(served).body;
    assert_eq!((&table["rows"], &table["version"]), (&json!(200), &json!("v1")), "{table}");
    let counted = page.curl(served);
    assert_eq!((counted.status, &counted.body["rows"]), (200, &json!([[200]])), "{}", counted.body);
}

/// Nobody can tell org 402 from one that is not there; it has no rows of its own yet either.
fn see_no_other_org(served: &Served, writer: &str) {
    for org in ["402", "999"] {
        let refused = served.call(writer, "GET", &format!("/v1/orgs/{org}"), "");
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!("control.not_found")));
    }
    let foreign = r#"{"tables":["opportunity"]}"#;
    assert_eq!(served.call(writer, "POST", "/v1/orgs/402/runs", foreign).status, 404);
    let sql = r#"{"sql":"SELECT count(*) FROM lake.org_402.opportunity"}"#;
    assert_eq!(served.call(writer, "POST", "/v1/query", sql).status, 400);
    let sample = served.call(writer, "GET", "/v1/orgs/401/tables/opportunity/sample?rows=3", "");
    assert_eq!(sample.body["rows"].as_array().unwrap().len(), 3, "{}", sample.body);
    let namespace = "/iceberg/v1/namespaces";
    let seen = served.call(writer, "GET", namespace, "").body.to_string();
    assert!(seen.contains("org_401"), "{seen}");
    assert_eq!(served.call(writer, "GET", &format!("{namespace}/org_402"), "").status, 404);
    assert_eq!(served.call("plk_no_key", "GET", namespace, "").status, 401);
}

/// Another template for all who take it: seen first, then made.
fn change_the_template(page: &mut Page, served: &Served, writer: &str) {
    let dry = page.curl(served);
    assert_eq!((dry.status, &dry.body["plan"]["change"]), (200, &json!(2)), "{}", dry.body);
    page.know("$HASH", dry.body["plan"]["hash"].as_str().unwrap());
    assert_eq!(page.curl(served).status, 200);
    let table = served.call(writer, "GET", "/v1/orgs/401/tables/opportunity", "");
    assert_eq!(table.body["spec"]["description"], "What may be sold");
}

/// What the audit log has of it, and the same state in the same folder without a server.
fn look_back(project: &Project) {
    let verified = project.ok(&["audit", "verify", "--json"]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(verified["whole"], true, "{verified}");
    assert!(verified["checkpoint"]["seq"].as_i64().unwrap() >= 7, "{verified}");
    let log = project.ok(&["audit", "list"]);
    assert!(log.contains("POST /v1/orgs/{org}/runs") && log.contains("control.not_found"), "{log}");
    // The same state in the same folder, without a server.
    let reports = project.run_with(&["--org", "401"]);
    assert_eq!((reports.len(), &reports[0]["outcome"]), (1, &json!("nothing_new")));
    let orgs = project.run_with(&["--org", "402"]);
    assert_eq!(orgs[0]["rows_written"], 100);
}

#[test]
fn a_table_that_no_template_has_takes_the_orgs_filter() {
    let (_database, project) = set_up();
    let operator = key(&project, &["--role", "operator"]);
    let served = Served::start(&project);
    let acme = r#"{"id":"401","template":"crm"}"#;
    assert_eq!(served.call(&operator, "POST", "/v1/orgs", acme).status, 201);
    let writer = key(&project, &["--role", "writer", "--org", "401"]);
    let offered = served.call(&writer, "GET", "/v1/sources/revdb/tables", "").body;
    let tables = offered.as_array().unwrap();
    let lead = tables.iter().find(|table| table["name"] == "public.lead").unwrap();
    let best = &lead["cursors"][0];
    assert_eq!((&best["column"], &best["rank"]), (&json!("changed_at"), &json!(1)), "{lead}");
    assert!(best["reason"].as_str().unwrap().contains("moment in time"), "{lead}");
    assert_eq!(
        (lead.get("partition"), &lead["rows_estimated"]),
        (Some(&Value::Null), &Value::Null)
    );
    let wide = r#"{"name":"lead","filter":"true"}"#;
    let refused = served.call(&writer, "POST", "/v1/orgs/401/tables", wide);
    assert_eq!((refused.status, &refused.body["code"]), (403, &json!("control.denied")));
    let made = served.call(&writer, "POST", "/v1/orgs/401/tables", r#"{"name":"lead"}"#);
    assert_eq!(made.status, 201, "{}", made.body);
    let spec = &made.body["spec"];
    assert_eq!((&spec["from"], &spec["filter"]), (&json!("public.lead"), &json!("org_id = {org}")));
    assert_eq!((&spec["mode"], &spec["key"]), (&json!("append"), &json!(["lead_id"])));
    let asked = served.call(&writer, "POST", "/v1/orgs/401/runs", r#"{"tables":["lead"]}"#);
    let operation = served.wait(&writer, asked.header("location"));
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(project.number("SELECT count(*) FROM lake.org_401.lead"), 7);
}

#[test]
fn a_killed_servers_run_is_taken_up_by_the_next_and_nothing_is_there_twice() {
    let (database, _store, project) = set_up_store();
    let operator = key(&project, &["--role", "operator"]);
    let served = Served::start(&project);
    let acme = r#"{"id":"401","template":"crm"}"#;
    assert_eq!(served.call(&operator, "POST", "/v1/orgs", acme).status, 201);
    // The run waits for this lock, and its server dies.
    let mut blocker = database.session();
    blocker.run("BEGIN; LOCK TABLE opportunity IN ACCESS EXCLUSIVE MODE;");
    let body = r#"{"tables":["opportunity"]}"#;
    let asked = served.call(&operator, "POST", "/v1/orgs/401/runs", body);
    let place = asked.header("location").to_owned();
    for attempt in 0.. {
        let status = served.call(&operator, "GET", &place, "").body["status"].clone();
        if status == "running" {
            break;
        }
        assert!(attempt < 1_200, "{status}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    served.kill();
    blocker.run("COMMIT;");
    let next = Served::start(&project);
    let operation = next.wait(&operator, &place);
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(project.number("SELECT count(*) FROM lake.org_401.opportunity"), 200);
}
