//! The manifest: what it says, and when its file changes.

use serde_json::{Value, json};

use crate::project::Project;

const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n[limits]\nruns = 3\n";
const PIPELINE: &str = r#"
templates:
  crm:
    tables:
      - { name: forecast, source: files, from: "{org}/*.csv", mode: append }
      - { name: quota, source: files, from: "{org}/*.jsonl" }
orgs:
  - { id: "401", name: Acme, template: crm }
  - { id: "402", template: crm, overrides: { quota: { enabled: false } } }
  - { id: "403", template: crm, enabled: false }
"#;

#[test]
fn the_manifest_lists_what_runs() {
    let project = Project::new(FILES, PIPELINE);
    let manifest: Value = serde_json::from_str(&project.ok(&["manifest"])).unwrap();
    let forecast = json!({ "name": "forecast", "source": "files", "mode": "append" });
    let quota = json!({ "name": "quota", "source": "files", "mode": "full_refresh" });
    let expected = json!([
        { "id": "401", "name": "Acme", "tables": [forecast, quota] },
        { "id": "402", "tables": [forecast] },
    ]);
    assert_eq!(manifest["orgs"], expected);
    assert_eq!((&manifest["format"], &manifest["limits"]), (&json!(1), &json!({ "runs": 3 })));
    // An empty configuration has a manifest too.
    project.write("pipelines/test.yaml", "");
    let empty: Value = serde_json::from_str(&project.ok(&["manifest"])).unwrap();
    assert_eq!(empty["orgs"], json!([]));
    assert_ne!(empty["hash"], manifest["hash"]);
}

const TIMED: &str = r#"
templates:
  crm:
    limits: { weight: 3 }
    schedule: external
    tables:
      - { name: forecast, source: files, from: "{org}/*.csv", mode: append }
      - { name: quota, source: files, from: "{org}/*.jsonl" }
orgs:
  - { id: "401", template: crm, limits: { runs: 2, memory_mb: 64 } }
  - id: "402"
    template: crm
    schedule: { cron: "5 4 * * *", timezone: Europe/Amsterdam, maintain: "@daily", jitter: 5m }
  - { id: "403", template: crm, overrides: { quota: { schedule: { cron: "@hourly" } } } }
"#;

#[test]
fn the_manifest_says_when_and_within_which_limits() {
    let project = Project::new(FILES, TIMED);
    let manifest: Value = serde_json::from_str(&project.ok(&["manifest"])).unwrap();
    let orgs = manifest["orgs"].as_array().unwrap();
    assert_eq!(orgs[0]["schedule"], json!({ "ingest": "external", "timezone": "UTC" }));
    assert_eq!(orgs[0]["limits"], json!({ "runs": 2, "weight": 3, "memory_mb": 64 }));
    let timed = json!({
        "ingest": "5 4 * * *", "maintain": "0 0 * * *", "timezone": "Europe/Amsterdam",
    });
    assert_eq!(orgs[1]["schedule"], timed);
    assert_eq!(orgs[1]["limits"], json!({ "runs": null, "weight": 3 }));
    // Tables that differ have no time together.
    assert_eq!(orgs[2].get("schedule"), None);
}

#[test]
fn a_file_is_replaced_when_it_would_say_something_else_and_never_by_a_broken_configuration() {
    let project = Project::new(FILES, PIPELINE);
    let write = || -> Value {
        let text = project.ok(&["manifest", "--out", "manifest.json", "--json"]);
        serde_json::from_str(&text).unwrap()
    };
    let read = || std::fs::read_to_string(project.path().join("manifest.json")).unwrap();
    let first = write();
    assert_eq!((&first["orgs"], &first["tables"]), (&json!(2), &json!(3)));
    assert_eq!(read(), project.ok(&["manifest"]));
    let changed = |written: &Value| written["changed"].as_bool().unwrap();
    // What Airflow does not see is no change.
    project.write("pipelines/test.yaml", &PIPELINE.replace("*.jsonl", "*.ndjson"));
    let second = write();
    assert_eq!((changed(&first), changed(&second)), (true, false));
    assert_eq!(first["hash"], second["hash"]);

    let before = read();
    project.write("pipelines/test.yaml", &PIPELINE.replace("template: crm,", "template: crn,"));
    project.fails(&["manifest", "--out", "manifest.json"], 2);
    assert_eq!(read(), before);
    project.write("pipelines/test.yaml", &PIPELINE.replace("name: quota", "name: target"));
    project.fails(&["manifest", "--out", "manifest.json"], 2); // the override's name is gone
    project.write("pipelines/test.yaml", &PIPELINE.replace("quota", "target"));
    let third = write();
    assert!(changed(&third));
    assert_ne!(third["hash"], first["hash"]);

    let errors = project.fails(&["manifest", "--out", "none/manifest.json"], 2);
    assert!(errors.contains("none/manifest.json cannot be written"), "{errors}");
    let leftovers = std::fs::read_dir(project.path()).unwrap().flatten();
    let mut leftovers = leftovers.filter(|e| e.file_name().to_string_lossy().starts_with('.'));
    assert!(leftovers.next().is_none());
}
