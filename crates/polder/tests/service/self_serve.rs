//! docs/how-to/self-serve.md, step by step: an operator, a data scientist, two orgs.

use serde_json::{Value, json};

use super::Database;
use crate::http::Served;
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
    let text = project.ok(&[&["keys", "create", "--json"], arguments].concat());
    let made: Value = serde_json::from_str(&text).unwrap();
    made["key"].as_str().unwrap().to_owned()
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

fn follow_the_page(project: &Project) {
    let operator = key(project, &["--role", "operator"]);
    let served = Served::start(project);
    let acme = r#"{"id":"401","name":"Acme","template":"crm"}"#;
    assert_eq!(served.call(&operator, "POST", "/v1/orgs", acme).status, 201);
    let other = r#"{"id":"402","template":"crm"}"#;
    assert_eq!(served.call(&operator, "POST", "/v1/orgs", other).status, 201);
    let writer = key(project, &["--role", "writer", "--org", "401", "--expires", "90d"]);

    let name = r#"{"name":"opportunity"}"#;
    let dry = served.call(&writer, "POST", "/v1/orgs/401/tables?dry_run=true", name);
    assert_eq!((dry.status, &dry.body["dry_run"]), (200, &json!(true)));
    let made = served.call(&writer, "POST", "/v1/orgs/401/tables", name);
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["spec"], dry.body["spec"]);
    assert_eq!(made.body["spec"]["key"], json!(["id"]), "from the primary key");
    assert_eq!(made.body["spec"]["cursor"], "updated_at");
    let best = &made.body["resolved"]["cursors"][0];
    assert_eq!((&best["column"], &best["rank"]), (&json!("updated_at"), &json!(1)));
    assert!(best["reason"].as_str().unwrap().contains("moment in time"), "{best}");

    let asked = served.call(&writer, "POST", "/v1/orgs/401/runs", r#"{"tables":["opportunity"]}"#);
    assert_eq!(asked.status, 202, "{}", asked.body);
    let operation = served.wait(&writer, asked.header("location"));
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(operation["runs"][0]["report"]["rows_written"], 200);
    let table = served.call(&writer, "GET", "/v1/orgs/401/tables/opportunity", "");
    assert_eq!((&table.body["rows"], &table.body["version"]), (&json!(200), &json!("v1")));
    assert_eq!(project.number("SELECT count(*) FROM lake.org_401.opportunity"), 200);
    let foreign = "SELECT count(*) FROM lake.org_401.opportunity WHERE org_id <> '401'";
    assert_eq!(project.number(foreign), 0);
    let sample = served.call(&writer, "GET", "/v1/orgs/401/tables/opportunity/sample?rows=3", "");
    assert_eq!(sample.body["rows"].as_array().unwrap().len(), 3, "{}", sample.body);

    // Nobody can tell org 402 from one that is not there; it has no rows of its own yet either.
    for org in ["402", "999"] {
        let refused = served.call(&writer, "GET", &format!("/v1/orgs/{org}"), "");
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!("control.not_found")));
    }
    let foreign = r#"{"tables":["opportunity"]}"#;
    assert_eq!(served.call(&writer, "POST", "/v1/orgs/402/runs", foreign).status, 404);
    let namespace = "/iceberg/v1/namespaces";
    let seen = served.call(&writer, "GET", namespace, "").body.to_string();
    assert!(seen.contains("org_401"), "{seen}");
    assert_eq!(served.call(&writer, "GET", &format!("{namespace}/org_402"), "").status, 404);
    assert_eq!(served.call("plk_no_key", "GET", namespace, "").status, 401);
    assert_eq!(served.stop(), Some(0));

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
        assert!(attempt < 100, "{status}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    served.kill();
    blocker.run("COMMIT;");
    let next = Served::start(&project);
    let operation = next.wait(&operator, &place);
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(project.number("SELECT count(*) FROM lake.org_401.opportunity"), 200);
}
