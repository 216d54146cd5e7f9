//! Nothing secret is in what the binary leaves behind or says: every secret of a configuration is a text that is
//! in nothing else, and is looked for in the store, the lake, the lines of all commands, and the audit log.

use std::path::Path;

use serde_json::Value;

use crate::http::Served;
use crate::project::Project;

/// Secrets by the variable that has them. Nobody listens on port 9.
const SECRETS: [(&str, &str); 8] = [
    ("CANARY_SOURCE", "postgres://reader:canary-pg-71c2@127.0.0.1:9/crm?connect_timeout=1"),
    (
        "CANARY_MONGO",
        "mongodb://reader:canary-mongo-83aa@127.0.0.1:9/?serverSelectionTimeoutMS=500",
    ),
    ("CANARY_S3_KEY", "canary-s3-key-55d0"),
    ("CANARY_S3_SECRET", "canary-s3-secret-9b1e"),
    ("CANARY_CLIENT", "canary-client-secret-0f44"),
    ("CANARY_ALERT", "whsec_Y2FuYXJ5LWFsZXJ0LTdkN2QtN2Q3ZA=="),
    ("CANARY_WEBHOOK", "whsec_Y2FuYXJ5LXdlYmhvb2stMTIzNDU2Nzg="),
    ("CANARY_HEADER", "Bearer canary-header-c0de"),
];
/// What must be found nowhere.
const CANARIES: [&str; 8] = [
    "canary-pg-71c2",
    "canary-mongo-83aa",
    "canary-s3-key-55d0",
    "canary-s3-secret-9b1e",
    "canary-client-secret-0f44",
    "Y2FuYXJ5LWFsZXJ0LTdkN2QtN2Q3ZA",
    "Y2FuYXJ5LXdlYmhvb2stMTIzNDU2Nzg",
    "canary-header-c0de",
];
const SECTIONS: &str = r#"
[storage.s3]
endpoint = "http://127.0.0.1:9"
access_key = "env:CANARY_S3_KEY"
secret_key = "env:CANARY_S3_SECRET"
[sources.crm]
type = "postgres"
url = "env:CANARY_SOURCE"
[sources.talk]
type = "mongodb"
url = "env:CANARY_MONGO"
database = "talk"
[sources.files]
type = "files"
url = "./exports"
[serve.clients.trino]
secret = "env:CANARY_CLIENT"
[alerts.desk]
url = "https://127.0.0.1:9/alert"
private = true
secret = "env:CANARY_ALERT"
[governance]
webhook_secret = "env:CANARY_WEBHOOK"
[telemetry]
url = "http://127.0.0.1:9/v1/traces"
private = true
headers = { authorization = "env:CANARY_HEADER" }
"#;
const PIPELINE: &str = r#"
orgs:
  - id: "1"
    tables:
      - { name: account, source: files, from: "{org}/account.csv" }
      - { name: opportunity, source: crm, from: public.opportunity, filter: "org_id = {org}" }
      - { name: thread, source: talk, from: threads, filter: { org_id: "{org}" } }
"#;

/// More than anybody asks for.
const ALL_LINES: &str = "debug,polder=trace";

fn check(place: &str, text: &str) {
    for canary in CANARIES {
        assert!(!text.contains(canary), "{canary} is in {place}");
    }
}

fn check_files(folder: &Path, looked: &mut usize) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_files(&path, looked);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            check(&path.display().to_string(), &String::from_utf8_lossy(&bytes));
            *looked += 1;
        }
    }
}

#[test]
fn no_secret_is_in_store_lake_lines_or_exports() {
    let mut project = Project::new(SECTIONS, PIPELINE);
    for (name, value) in SECRETS {
        project = project.with_env(name, value);
    }
    project.write("exports/1/account.csv", "id,name\n1,a\n2,b\n");
    let mut said = Vec::new();
    let mut all = |arguments: &[&str]| {
        let output = project.command(arguments).env("POLDER_LOG", ALL_LINES).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        check(&format!("{arguments:?}"), &text);
        said.push(text.clone());
        text
    };
    let made = all(&["keys", "create", "--role", "operator", "--json"]);
    let begin = made.find('{').unwrap();
    let made: Value =
        serde_json::Deserializer::from_str(&made[begin..]).into_iter().next().unwrap().unwrap();
    let key = made["key"].as_str().unwrap().to_owned();
    // Sources that do not answer are named in errors; one table is loaded.
    for arguments in [
        &["check"][..],
        &["plan", "--json"],
        &["run", "--table", "account"],
        &["run", "--json"],
        &["discover", "crm"],
        &["discover", "talk"],
        &["query", "SELECT * FROM crm.public.opportunity"],
        &["query", "SELECT * FROM talk.threads"],
        &["validate", "--json"],
        &["manifest"],
    ] {
        all(arguments);
    }
    let served = Served::start_into(&project, "serve.log", ALL_LINES);
    let unreachable = r#"{"tables":["opportunity","thread"]}"#;
    check("the answer", &served.call(&key, "POST", "/v1/orgs/1/runs", unreachable).text);
    let run = served.call(&key, "POST", "/v1/orgs/1/runs", r#"{"tables":["account"]}"#);
    let ended = served.wait(&key, run.header("location"));
    check("the operation", &ended.to_string());
    for path in ["/v1/sources", "/v1/orgs/1/runs", "/v1/sources/crm/tables", "/metrics"] {
        check(path, &served.call(&key, "GET", path, "").text);
    }
    let runs = served.call(&key, "GET", "/v1/orgs/1/runs", "");
    for run in runs.body["items"].as_array().unwrap() {
        let path = format!("/v1/orgs/1/runs/{}/logs", run["id"].as_str().unwrap());
        check(&path, &served.call(&key, "GET", &path, "").text);
    }
    let wrong = "grant_type=client_credentials&client_id=trino&client_secret=no-such-secret";
    let kind = "Content-Type: application/x-www-form-urlencoded";
    served.send(("POST", "/iceberg/v1/oauth/tokens"), kind, wrong);
    assert_eq!(served.stop(), Some(0));
    let export = all(&["audit", "export"]);
    assert!(export.contains("POST /v1/orgs/{org}/runs"), "{export}");
    let mut looked = 0;
    // With the server's lines.
    check_files(project.path(), &mut looked);
    assert!(looked > 10, "{looked} files");
    assert!(said.iter().any(|text| text.contains("127.0.0.1:9") || text.contains("source.")));
    // The operator's key was shown once, and is kept nowhere.
    let store = std::fs::read(project.path().join("polder.db")).unwrap();
    assert!(!String::from_utf8_lossy(&store).contains(&key));
}
