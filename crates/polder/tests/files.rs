//! The whole way without any server: files on local disk into a lake on local disk.

use crate::project::Project;

const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";
const PIPELINE: &str = r#"
templates:
  t:
    tables:
      - { name: forecast, source: files, from: "{org}/forecast/*.csv", mode: append, partition: [month(day)] }
      - { name: note, source: files, from: "{org}/notes/*.jsonl", mode: append }
orgs:
  - { id: "a", template: t }
  - { id: "b", template: t }
"#;

fn project() -> Project {
    let project = Project::new(FILES, PIPELINE);
    project.write(
        "exports/a/forecast/1.csv",
        "id,day,amount\n1,2026-01-05,10.50\n2,2026-02-05,0.25\n",
    );
    project.write("exports/a/notes/1.jsonl", "{\"n\":1,\"who\":{\"name\":\"x\"}}\n{\"n\":2}\n");
    project.write("exports/b/forecast/1.csv", "id,day,amount\n7,2026-01-06,1.00\n");
    project.write("exports/b/notes/1.jsonl", "{\"n\":9,\"tags\":[\"p\",\"q\"]}\n");
    project
}

#[test]
fn each_org_gets_its_own_rows_and_a_second_run_only_what_is_new() {
    let project = project();
    let reports = project.run();
    assert_eq!(reports.len(), 4);
    assert!(reports.iter().all(|report| report["outcome"] == "full_refresh"), "{reports:?}");
    assert_eq!(project.number("SELECT count(*) FROM lake.org_a.forecast"), 2);
    assert_eq!(project.number("SELECT count(*) FROM lake.org_b.forecast"), 1);
    let sum = project.query("SELECT CAST(sum(amount) AS VARCHAR) AS s FROM org_a.forecast");
    assert_eq!(sum[0]["s"], "10.75");
    let name = project.query("SELECT who['name'] AS name FROM org_a.note WHERE n = 1");
    assert_eq!(name[0]["name"], "x");

    let outcomes = |reports: &[serde_json::Value]| -> Vec<String> {
        reports.iter().map(|r| r["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(outcomes(&project.run()), ["nothing_new"; 4]);
    project.write("exports/a/forecast/2.csv", "id,day,amount\n3,2026-02-06,1.25\n");
    assert_eq!(outcomes(&project.run()), ["append", "nothing_new", "nothing_new", "nothing_new"]);
    assert_eq!(project.number("SELECT count(*) FROM org_a.forecast"), 3);
    let before = "SELECT count(*) FROM org_a.forecast FOR VERSION AS OF 'v1'";
    assert_eq!(project.number(before), 2);
}

#[test]
fn a_bad_line_stops_its_table_alone_and_keeps_what_is_stored() {
    let project = project();
    project.run();
    project.write("exports/a/forecast/2.csv", "id,day,amount\n3,2026-02-06\n");
    project.write("exports/b/forecast/2.csv", "id,day,amount\n8,2026-02-06,2.00\n");
    let errors = project.fails(&["run"], 4);
    assert!(errors.contains("forecast/2.csv"), "{errors}");
    assert_eq!(project.number("SELECT count(*) FROM org_a.forecast"), 2);
    assert_eq!(project.number("SELECT count(*) FROM org_b.forecast"), 2);
}

#[test]
fn answers_come_in_four_formats() {
    let project = project();
    project.run();
    let sql = "SELECT id, amount FROM org_a.forecast ORDER BY id";
    assert_eq!(project.ok(&["query", sql, "--format", "csv"]), "id,amount\n1,10.50\n2,0.25\n");
    assert!(project.ok(&["query", sql]).contains("| 1  | 10.50  |"));
    let arrow = project.output(&["query", sql, "--format", "arrow"]).stdout;
    let rows: usize = arrow::ipc::reader::StreamReader::try_new(arrow.as_slice(), None)
        .unwrap()
        .map(|batch| batch.unwrap().num_rows())
        .sum();
    assert_eq!(rows, 2);
    let nested = project.ok(&["query", "SELECT tags FROM org_b.note", "--format", "csv"]);
    assert_eq!(nested, "tags\n\"[\"\"p\"\",\"\"q\"\"]\"\n");
    let errors = project.fails(&["query", "SELECT * FROM org_a.forecst"], 1);
    assert!(errors.contains("forecast"), "{errors}");
    let errors = project.fails(&["query", "DROP TABLE org_a.forecast"], 1);
    assert!(errors.contains("query.invalid"), "{errors}");
    let errors = project.fails(&["query", sql, "--rows-max", "1"], 1);
    assert!(errors.contains("query.limit"), "{errors}");
}

#[test]
fn a_pin_keeps_its_state_through_runs_and_expiry() {
    let project = project();
    project.run();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&project.ok(arguments)).expect("JSON")
    };
    let create = ["pin", "create", "model-1", "--org", "a", "--table", "forecast,note", "--json"];
    let made = json(&create);
    assert_eq!(made["tables"].as_array().expect("tables").len(), 2);
    let before = json(&["pin", "show", "model-1", "--org", "a", "--json"]);
    assert_eq!(before["tables"][0]["rows"], 2);
    assert_eq!(json(&create), made, "the same again is no change");
    project.write("exports/a/forecast/2.csv", "id,day,amount\n3,2026-02-06,1.25\n");
    project.run();
    for _ in 0..3 {
        project.run_with(&["--full-refresh"]);
    }
    project.ok(&["maintain", "expire", "--days", "0", "--versions", "1"]);
    let pinned = "SELECT count(*) FROM org_a.forecast FOR VERSION AS OF 'model-1'";
    assert_eq!(project.number(pinned), 2);
    assert_eq!(project.number("SELECT count(*) FROM org_a.forecast"), 3);
    let mut after = json(&["pin", "show", "model-1", "--org", "a", "--json"]);
    let mut before = before;
    for table in [&mut before, &mut after] {
        for table in table["tables"].as_array_mut().expect("tables") {
            table["metadata_location"].take();
        }
    }
    assert_eq!(before, after, "the same files, the same digest");
    // Another state under the same name would be another training set.
    let refused = project.fails(&create, 2);
    assert!(refused.contains("model-1"), "{refused}");
    project.fails(&["pin", "create", "v7", "--org", "a"], 2);
    let missing = project.fails(&["pin", "show", "model-2", "--org", "a"], 1);
    assert!(missing.contains("it has: model-1"), "{missing}");
    let pins = json(&["pin", "list", "--org", "a", "--json"]);
    assert_eq!(pins["pins"].as_array().expect("pins").len(), 2);
    project.ok(&["pin", "release", "model-1", "--org", "a"]);
    project.ok(&["maintain", "expire", "--days", "0", "--versions", "1"]);
    let gone = project.fails(&["query", pinned], 1);
    assert!(gone.contains("model-1"), "{gone}");
}
