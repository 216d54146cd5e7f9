//! Schedules, pauses, kinds of runs, retries, live progress and metrics of a `polder serve` as a process.

use std::io::Read;

use serde_json::{Value, json};

use crate::http::Served;
use crate::project::Project;

const PROCESS: &str = "
[server]
auth = \"none\"
[sources.files]
type = \"files\"
url = \"./exports\"
";
const PIPELINE: &str = "
templates:
  crm:
    schedule: { cron: \"0 3 1 1 *\", timezone: Europe/Amsterdam, validate: after_run, maintain: \"@yearly\" }
    tables:
      - { name: account, source: files, from: \"{org}/account.csv\", key: [id] }
      - { name: lead, source: files, from: \"{org}/lead.csv\", schedule: { cron: \"@hourly\" } }
orgs:
  - { id: \"1\", template: crm }
  - { id: \"2\", template: crm, schedule: { cron: \"0 5 * * *\" }, limits: { runs: 1, weight: 3 } }
";

fn project() -> Project {
    let project = Project::new(PROCESS, PIPELINE);
    project.write("exports/1/account.csv", "id,name\n1,Ann\n2,Bob\n");
    project
}

fn run(served: &Served, body: &Value) -> Value {
    let asked = served.call("", "POST", "/v1/orgs/1/runs", &body.to_string());
    assert_eq!(asked.status, 202, "{}", asked.body);
    served.wait("", asked.header("location"))
}

/// Until a schedule stands in the store: the scheduler looks once a second.
fn schedules(served: &Served, org: &str) -> Value {
    for _ in 0..600 {
        let answer = served.call("", "GET", &format!("/v1/orgs/{org}/schedules"), "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        if !answer.body["items"].as_array().unwrap().is_empty() {
            return answer.body;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("org {org} is not scheduled");
}

#[test]
fn the_next_run_is_shown_and_the_nearest_schedule_holds() {
    let project = project();
    let served = Served::start(&project);
    let one = schedules(&served, "1");
    let items = one["items"].as_array().unwrap();
    let found: Vec<_> = items.iter().map(|i| format!("{}/{}", i["table"], i["kind"])).collect();
    assert_eq!(
        found,
        ["\"account\"/\"ingest\"", "\"account\"/\"maintain\"", "\"lead\"/\"ingest\""]
    );
    let next = items[0]["next_run_at"].as_str().unwrap();
    assert!(next.ends_with("-01-01T02:00:00.000Z"), "three o'clock in Amsterdam: {next}");
    let hourly = items[2]["next_run_at"].as_str().unwrap();
    assert!(hourly.ends_with(":00:00.000Z") && hourly < next, "the table's own: {hourly}");
    let two = schedules(&served, "2");
    let next = two["items"][0]["next_run_at"].as_str().unwrap();
    assert!(next.ends_with("T05:00:00.000Z"), "the org's own: {next}");
    let table = served.call("", "GET", "/v1/orgs/1/tables/lead", "").body;
    assert_eq!(table["next_run_at"].as_str(), Some(hourly), "{table}");
    let org = served.call("", "GET", "/v1/orgs/2", "").body;
    let limits = json!({
        "runs": 1, "weight": 3, "rows_per_day": null, "bytes_per_day": null, "memory_mb": null,
        "connections": null,
    });
    assert_eq!(org["limits"], limits);
    let patch = |body: &str| served.call("", "PATCH", "/v1/orgs/2", body);
    assert_eq!(patch(r#"{"limits":{"runs":4}}"#).body["limits"]["runs"], 4);
    assert_eq!(patch(r#"{"limits":{"runs":0}}"#).status, 400);
    assert_eq!(patch(r#"{"limits":null}"#).body["limits"]["runs"], 1, "the files' word again");
    // A changed schedule holds from the next look on.
    let off = r#"{"schedule":{"cron":"0 4 29 2 *"}}"#;
    assert_eq!(served.call("", "PATCH", "/v1/orgs/1/tables/lead", off).status, 200);
    for _ in 0..600 {
        let table = served.call("", "GET", "/v1/orgs/1/tables/lead", "").body;
        if table["next_run_at"].as_str().unwrap().contains("-02-29T04:00") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the schedule did not change");
}

#[test]
fn a_run_is_followed_by_its_validation_and_a_table_can_be_maintained() {
    let project = project();
    let served = Served::start(&project);
    let operation = run(&served, &json!({ "tables": ["account"] }));
    assert_eq!(operation["status"], "succeeded", "{operation}");
    let runs = operation["runs"].as_array().unwrap();
    let kinds: Vec<_> = runs.iter().map(|run| run["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ingest", "validate"], "{operation}");
    assert_eq!(runs[1]["report"]["verdict"], "verified", "{operation}");
    let kept = run(&served, &json!({ "tables": ["account"], "kind": "maintain" }));
    assert_eq!(kept["status"], "succeeded", "{kept}");
    assert_eq!(kept["runs"][0]["report"]["actions"].as_array().unwrap().len(), 4, "{kept}");
    let place = "/v1/orgs/1/tables/account/maintenance";
    let page = served.call("", "GET", &format!("{place}?limit=3"), "").body;
    let next = page["next_cursor"].as_str().unwrap();
    let rest = served.call("", "GET", &format!("{place}?limit=3&cursor={next}"), "").body;
    let items = |page: &Value| page["items"].as_array().unwrap().clone();
    let items = [items(&page), items(&rest)].concat();
    assert_eq!((items.len(), &rest["next_cursor"]), (4, &Value::Null), "{rest}");
    let times: Vec<_> = items.iter().map(|item| item["started_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|one, other| one >= other), "{times:?}");
    let merged = items.iter().find(|item| item["action"] == "optimize");
    assert_eq!(merged.unwrap()["detail"]["files_written"], 0, "{items:?}");
    let other = served.call("", "GET", &place.replace("orgs/1", "orgs/2"), "").body;
    assert_eq!(other["items"], json!([]), "another org's");
    assert_eq!(served.stop(), Some(0));
    let verdicts = "SELECT count(*) FROM lake.polder_management.validation_results";
    assert!(project.number(verdicts) > 0);
    assert!(project.number("SELECT count(*) FROM lake.polder_management.maintenance_history") > 0);
}

/// By a server, by hand, and by a run; and at once for whoever means it.
#[test]
fn what_keeps_less_is_not_carried_out_while_it_can_be_taken_back() {
    let project = project();
    let served = Served::start(&project);
    for rows in ["1,Ann", "2,Bob", "3,Cid"] {
        project.write("exports/1/account.csv", &format!("id,name\n{rows}\n"));
        let done = run(&served, &json!({ "tables": ["account"], "full_refresh": true }));
        assert_eq!(done["status"], "succeeded", "{done}");
    }
    let table = "/v1/orgs/1/tables/account";
    let versions = || {
        let answer = served.call("", "GET", &format!("{table}/versions"), "");
        answer.body["items"].as_array().unwrap().len()
    };
    let keep = |number: u32| {
        let body = json!({ "maintenance": { "keep_versions": number, "keep_snapshots_days": 0 } });
        let said = served.call("", "PATCH", &format!("{table}?yes=true"), &body.to_string());
        assert_eq!(said.status, 200, "{}", said.body);
        said.body
    };
    let maintain = || run(&served, &json!({ "tables": ["account"], "kind": "maintain" }));
    keep(3);
    assert_eq!((maintain()["status"].as_str(), versions()), (Some("succeeded"), 3));
    assert_ne!(keep(1)["pending"], Value::Null);
    let kept = maintain();
    let pending = &kept["runs"][0]["report"]["pending"];
    assert!(pending["goes"].to_string().contains("keep_versions: 3 -> 1"), "{kept}");
    assert_eq!(versions(), 3, "by the server");
    let by_hand =
        project.ok(&["maintain", "versions", "--org", "1", "--table", "account", "--json"]);
    let by_hand: Value = serde_json::from_str(&by_hand).unwrap();
    assert_eq!((by_hand["pending"][0]["table"].as_str(), versions()), (Some("account"), 3));
    assert!(project.ok(&["undo"]).starts_with("1/account: keep_versions: 3 -> 1"));
    project.ok(&["undo", "--org", "1", "--table", "account", "--why", "a slip"]);
    let found = served.call("", "GET", table, "").body;
    let spec = &found["spec"]["maintenance"];
    assert_eq!((&spec["keep_versions"], &found["pending"]), (&json!(3), &Value::Null));
    project.fails(&["undo", "--org", "1", "--table", "account"], 1);
    keep(1);
    let now = ["maintain", "versions", "--org", "1", "--table", "account", "--now"];
    project.ok(&[&now[..], &["--dry-run"]].concat());
    assert_ne!(served.call("", "GET", table, "").body["pending"], Value::Null, "a trial");
    project.ok(&now);
    assert_eq!(versions(), 1);
    assert_eq!(served.call("", "GET", table, "").body["pending"], Value::Null);
    assert_eq!(served.stop(), Some(0));
}

#[test]
fn a_rollback_is_of_the_state_that_was_looked_at() {
    let project = project();
    let served = Served::start(&project);
    let reload = |rows: &str| {
        project.write("exports/1/account.csv", rows);
        let done = run(&served, &json!({ "tables": ["account"], "full_refresh": true }));
        assert_eq!(done["status"], "succeeded", "{done}");
    };
    reload("id,name\n1,Ann\n");
    reload("id,name\n1,Ann\n2,Bob\n");
    let table = "/v1/orgs/1/tables/account";
    let versions = served.call("", "GET", &format!("{table}/versions?limit=1"), "");
    assert_eq!(versions.body["items"][0]["version"], "v1", "{}", versions.body);
    let next = versions.body["next_cursor"].as_str().unwrap();
    let rest = served.call("", "GET", &format!("{table}/versions?cursor={next}"), "");
    assert_eq!(rest.body["items"][0]["version"], "v2", "{}", rest.body);
    assert_eq!(rest.body["next_cursor"], Value::Null, "{}", rest.body);
    let back = |tag: &str| {
        let path = format!("{table}/rollback");
        served.send(("POST", &path), &format!("If-Match: {tag}"), r#"{"to":"v1"}"#)
    };
    reload("id,name\n1,Ann\n3,Cid\n");
    let stale = back(versions.header("etag"));
    assert_eq!((stale.status, &stale.body["code"]), (412, &json!("control.stale")));
    let now = served.call("", "GET", &format!("{table}/versions"), "");
    let done = back(now.header("etag"));
    assert_eq!(done.status, 200, "{}", done.body);
    assert_eq!(back(now.header("etag")).status, 412, "it was rolled back since");
    let settings = served.call("", "GET", table, "");
    assert_eq!(settings.body["rows"], 1, "{}", settings.body);
    assert_eq!(back(settings.header("etag")).status, 200, "the settings are as they were");
}

#[test]
fn what_is_paused_waits_and_is_watched() {
    let project = project();
    let served = Served::start(&project);
    let paused = served.call("", "POST", "/v1/orgs/1/tables/account/pause", "");
    assert_eq!(paused.body["pauses"][0]["table"], "account", "{}", paused.body);
    assert_eq!(served.call("", "POST", "/v1/orgs/1/tables/nothing/pause", "").status, 404);
    assert_eq!(served.call("", "POST", "/v1/sources/nothing/pause", "").status, 422);
    let asked = served.call("", "POST", "/v1/orgs/1/runs", r#"{"tables":["account"]}"#);
    let place = asked.header("location").to_owned();
    let id = asked.body["runs"][0]["id"].as_str().unwrap().to_owned();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(served.call("", "GET", &place, "").body["status"], "queued");
    assert_eq!(served.call("", "POST", "/v1/sources/files/pause", "").body["paused"], true);
    assert_eq!(served.call("", "POST", "/v1/orgs/1/tables/account/resume", "").status, 200);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(served.call("", "GET", &place, "").body["status"], "queued", "its source is paused");
    let mut watching = served.begin(&format!(
        "GET /v1/orgs/1/runs/{id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ));
    let (mut seen, mut piece) = (Vec::<u8>::new(), [0_u8; 4096]);
    // What it says at first is of the run that waits.
    while !String::from_utf8_lossy(&seen).contains("event: progress") {
        let length = watching.read(&mut piece).unwrap();
        assert_ne!(length, 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..length]);
    }
    assert_eq!(served.call("", "POST", "/v1/sources/files/resume", "").body["paused"], false);
    watching.read_to_end(&mut seen).unwrap();
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("content-type: text/event-stream\r\n"), "{seen}");
    let (first, last) = (seen.find("event: progress"), seen.find("event: ended"));
    assert!(first.unwrap() < last.unwrap(), "{seen}");
    assert!(seen.contains(r#""status":"queued""#), "{seen}");
    assert!(seen.contains(r#""rows_written":2"#), "{seen}");
    assert_eq!(served.call("", "GET", "/v1/orgs/1/runs/nothing/events", "").status, 404);
    // A run is counted after its end is written down.
    let counted = r#"polder_runs_total{kind="ingest",outcome="succeeded"} 1"#;
    let metrics = (0..600).find_map(|_| {
        let metrics = served.call("", "GET", "/metrics", "");
        assert_eq!(metrics.status, 200);
        std::thread::sleep(std::time::Duration::from_millis(100));
        metrics.text.contains(counted).then_some(metrics)
    });
    let metrics = metrics.expect("it is counted");
    assert!(
        metrics.text.contains(r#"polder_source_blocked{source="files"} 0"#),
        "{}",
        metrics.text
    );
    assert_eq!(served.stop(), Some(0));
}

#[test]
fn a_run_that_failed_says_what_to_do_and_is_tried_again_when_told() {
    let project = project();
    let served = Served::start(&project);
    project.write("exports/1/lead.csv", "id,name\n1,Ann,too much\n");
    let failed = run(&served, &json!({ "tables": ["lead"] }));
    let one = &failed["runs"][0];
    assert_eq!((&one["status"], &one["failures"]), (&json!("failed"), &json!(1)), "{failed}");
    let id = one["id"].as_str().unwrap();
    let what = one["what_to_do"].as_str().unwrap();
    assert!(what.ends_with(&format!("then POST …/runs/{id}/retry")), "{what}");
    project.write("exports/1/lead.csv", "id,name\n1,Ann\n");
    let place = format!("/v1/orgs/1/runs/{id}/retry");
    let again = served.call("", "POST", &place, "");
    assert_eq!((again.status, &again.body["status"]), (202, &json!("queued")), "{}", again.body);
    let operation = format!("/v1/operations/{}", again.body["operation"].as_str().unwrap());
    assert_eq!(served.wait("", &operation)["status"], "succeeded");
    let late = served.call("", "POST", &place, "");
    assert_eq!((late.status, &late.body["code"]), (409, &json!("control.conflict")));
}

#[test]
fn metrics_are_the_operators_and_a_worker_needs_a_store_for_many() {
    let project =
        Project::new("[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n", PIPELINE);
    let made = |role: &[&str]| -> String {
        let text = project.ok(&[&["keys", "create", "--json", "--role"], role].concat());
        serde_json::from_str::<Value>(&text).unwrap()["key"].as_str().unwrap().to_owned()
    };
    let (operator, reader) = (made(&["operator"]), made(&["reader", "--org", "1"]));
    let served = Served::start(&project);
    for key in ["", "plk_0_0", &reader] {
        assert_eq!(served.call(key, "GET", "/metrics", "").status, 401);
    }
    assert_eq!(served.call(&operator, "GET", "/metrics", "").status, 200);
    let errors = project.fails(&["worker"], 2);
    assert!(errors.contains("SQLite") && errors.contains("postgres://"), "{errors}");
}

#[test]
fn who_has_had_the_rows_of_a_day_waits_and_is_told_until_when() {
    const LIMITED: &str = "
orgs:
  - id: \"1\"
    schedule: { cron: \"0 3 1 1 *\" }
    limits: { rows_per_day: 2, bytes_per_day: 50 GB }
    tables:
      - { name: account, source: files, from: \"{org}/account.csv\", key: [id] }
";
    let project = Project::new(PROCESS, LIMITED);
    project.write("exports/1/account.csv", "id,name\n1,Ann\n2,Bob\n");
    let served = Served::start(&project);
    assert_eq!(schedules(&served, "1")["limited_until"], Value::Null);
    let first = run(&served, &json!({ "tables": ["account"] }));
    assert_eq!(first["status"], "succeeded", "{first}");
    let asked = served.call("", "POST", "/v1/orgs/1/runs", r#"{"tables":["account"]}"#);
    assert_eq!(asked.status, 202, "{}", asked.body);
    let place = asked.header("location").to_owned();
    let id = asked.body["runs"][0]["id"].as_str().unwrap().to_owned();
    let validated = run(&served, &json!({ "tables": ["account"], "kind": "validate" }));
    assert_eq!(validated["status"], "succeeded", "{validated}");
    let waits = (0..600).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let run = served.call("", "GET", &format!("/v1/orgs/1/runs/{id}"), "").body;
        (!run["waits_until"].is_null()).then_some(run)
    });
    let waits = waits.expect("it waits for the next day");
    assert_eq!(waits["status"], "queued", "{waits}");
    let until = waits["waits_until"].as_str().unwrap();
    assert!(until.ends_with("T00:00:00.000Z"), "{waits}");
    let listed = schedules(&served, "1");
    assert_eq!(listed["limited_until"], until, "{listed}");
    assert_eq!(listed["items"][0]["limited"], true, "{listed}");
    let used = served.call("", "GET", "/v1/orgs/1/usage", "").body;
    let today = &used["items"][0];
    assert_eq!((&today["runs"], &today["rows"]), (&json!(2), &json!(2)), "{used}");
    assert!(today["bytes"].as_u64().unwrap() > 0, "{used}");
    assert_eq!(
        (&used["limits"]["rows_left"], &used["limits"]["reached"]),
        (&json!(0), &json!(true))
    );
    let metrics = served.call("", "GET", "/metrics", "").text;
    assert!(metrics.contains(r#"polder_org_limited{org="1"} 1"#), "{metrics}");
    let more = served.call("", "PATCH", "/v1/orgs/1", r#"{"limits":{"rows_per_day":1000}}"#);
    assert_eq!(more.status, 200, "{}", more.body);
    assert_eq!(served.wait("", &place)["status"], "succeeded");
    assert_eq!(served.stop(), Some(0));
}

/// A schedule's validations wait for the hours it gives them; whoever asks for one has it at once.
#[test]
fn validations_of_a_schedule_wait_for_its_hours() {
    let now = chrono::Utc::now();
    let hour = |hours: i64| (now + chrono::TimeDelta::hours(hours)).format("%H:00").to_string();
    let within = format!("validate: after_run, validate_within: \"{}-{}\"", hour(3), hour(5));
    let pipeline = PIPELINE.replace("validate: after_run", &within);
    let project = Project::new(PROCESS, &pipeline.replace("timezone: Europe/Amsterdam, ", ""));
    project.write("exports/1/account.csv", "id,name\n1,Ann\n2,Bob\n");
    let served = Served::start(&project);
    let asked =
        served.call("", "POST", "/v1/orgs/1/runs", &json!({ "tables": ["account"] }).to_string());
    assert_eq!(asked.status, 202, "{}", asked.body);
    let place = asked.header("location").to_owned();
    let waits = (0..600).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let operation = served.call("", "GET", &place, "").body;
        let follows = &operation["runs"][1];
        (!follows["waits_until"].is_null()).then(|| follows.clone())
    });
    let waits = waits.expect("the validation is put off");
    assert_eq!(
        (&waits["kind"], &waits["status"]),
        (&json!("validate"), &json!("queued")),
        "{waits}"
    );
    let until = waits["waits_until"].as_str().unwrap();
    assert!(until.ends_with(&format!("T{}:00.000Z", hour(3))), "{waits}");
    assert_eq!(waits["started_at"], Value::Null, "{waits}");
    let asked = served.call("", "POST", "/v1/orgs/1/tables/account/validations", "");
    assert_eq!(asked.status, 202, "{}", asked.body);
    let operation = served.wait("", asked.header("location"));
    assert_eq!(operation["runs"][1]["report"]["verdict"], "verified", "{operation}");
    assert_eq!(operation["runs"].as_array().unwrap().len(), 2, "none beside it: {operation}");
}
