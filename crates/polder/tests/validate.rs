//! `polder validate` from outside, over files: exit codes, the document, and what is kept of it.

use serde_json::Value;

use crate::http::Served;
use crate::project::Project;

const SOURCE: &str = "[sources.uploads]\ntype = \"files\"\nurl = \"./uploads\"\n";
const PIPELINE: &str = "orgs:
  - id: \"1\"
    tables:
      - { name: deal, source: uploads, from: \"*.csv\", mode: append, key: [id] }
";

fn project() -> Project {
    let project = Project::new(SOURCE, PIPELINE);
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,1.50\n2,,2\n3,c,\n");
    project.run();
    project
}

fn report(project: &Project) -> (Option<i32>, Value) {
    let output = project.output(&["validate", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), document["validations"][0]["report"].clone())
}

fn verdict<'a>(report: &'a Value, check: &str) -> &'a str {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| found["check"] == check);
    found.unwrap_or_else(|| panic!("{check} of {report}"))["verdict"].as_str().unwrap()
}

#[test]
fn a_table_of_files_is_verified_and_its_verdict_is_kept() {
    let project = project();
    let (code, found) = report(&project);
    assert_eq!((code, &found["verdict"]), (Some(0), &"verified".into()), "{found}");
    for check in ["files", "tags", "schema", "content", "row_count", "duplicates", "values"] {
        assert_eq!(verdict(&found, check), "verified", "{found}");
    }
    let tables: Value = serde_json::from_str(&project.ok(&["tables", "--json"])).unwrap();
    assert_eq!(tables[0]["validation"]["verdict"], "verified", "{tables}");
    assert_eq!(tables[0]["validation"]["current"], true, "{tables}");
    assert!(project.ok(&["tables"]).contains("verified"));
    // Another object: nothing can be said of it before a run.
    project.write("uploads/b.csv", "id,name,amount\n4,d,4\n");
    let (code, found) = report(&project);
    assert_eq!((code, &found["verdict"]), (Some(3), &"stale".into()), "{found}");
    project.run();
    assert_eq!(report(&project).0, Some(0));
}

#[test]
fn a_deleted_data_file_is_a_failure_with_its_name() {
    let project = project();
    let file = project.lake_files(".parquet").remove(0);
    std::fs::remove_file(&file).unwrap();
    let (code, found) = report(&project);
    assert_eq!(code, Some(3));
    assert_eq!((&found["verdict"], verdict(&found, "files")), (&"failed".into(), "failed"));
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(found["checks"].to_string().contains(name), "{found}");
}

#[test]
fn a_table_that_was_never_loaded_is_an_error() {
    let project = Project::new(SOURCE, PIPELINE);
    let errors = project.fails(&["validate"], 1);
    assert!(errors.contains("never loaded"), "{errors}");
}

/// A table that is replaced by each run, with a policy and one check.
fn checked(policy: &str, sql: &str) -> Project {
    let pipeline = format!(
        "orgs:
  - id: \"1\"
    tables:
      - name: deal
        source: uploads
        from: \"*.csv\"
        key: [id]
        validation: {{ policy: {policy} }}
        checks:
          - {{ name: none below zero, sql: {sql:?}, expect: 0 rows }}
  - id: \"2\"
    tables:
      - {{ name: deal, source: uploads, from: \"*.csv\" }}
"
    );
    let project = Project::new(SOURCE, &pipeline);
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,1.50\n2,,2\n3,c,\n");
    project.run();
    project
}

const BELOW_ZERO: &str = "SELECT id, amount FROM deal WHERE amount < 0 ORDER BY id";

fn find<'a>(report: &'a Value, check: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| found["check"] == check);
    found.unwrap_or_else(|| panic!("{check} of {report}"))
}

#[test]
fn a_check_of_ones_own_is_asked_and_names_the_rows() {
    let project = checked("warn", BELOW_ZERO);
    let (_, found) = report(&project);
    assert_eq!(find(&found, "sql")["verdict"], "verified", "{found}");
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,-1.50\n2,,2\n3,c,-7\n");
    project.run();
    let (code, found) = report(&project);
    let check = find(&found, "sql");
    assert_eq!((code, &check["verdict"]), (Some(3), &"failed".into()), "{found}");
    assert_eq!((&check["name"], &check["observed"]), (&"none below zero".into(), &"2 rows".into()));
    assert_eq!(check["samples"], serde_json::json!(["id=1, amount=-1.50", "id=3, amount=-7.00"]));
    let kept = "SELECT name, verdict FROM polder_management.validation_results \
        WHERE org = '1' AND \"check\" = 'sql' AND verdict = 'failed'";
    assert_eq!(project.query(kept)[0]["name"], "none below zero");
    assert!(project.ok(&["tables"]).contains("failed"));
    assert!(project.ok(&["versions", "--org", "1"]).contains("failed"));
}

/// A check sees the org's own tables, and changes nothing.
#[test]
fn a_check_reads_the_own_tables_alone() {
    for sql in [
        "SELECT * FROM lake.org_2.deal",
        "SELECT * FROM org_2.deal",
        "SELECT * FROM uploads.\"*.csv\"",
        "SELECT * FROM polder_management.validation_results",
        "DELETE FROM deal",
        "CREATE TABLE other AS SELECT * FROM deal",
        "SELECT nothing FROM deal",
    ] {
        let project = checked("warn", sql);
        let (code, found) = report(&project);
        let check = find(&found, "sql");
        assert_eq!((code, &check["verdict"]), (Some(3), &"stale".into()), "{sql}: {found}");
        assert!(check["observed"].as_str().unwrap().starts_with("no answer: "), "{sql}: {check}");
        assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 3, "{sql}");
    }
}

#[test]
fn a_state_that_fails_its_checks_is_never_published() {
    let project = checked("block_publish", BELOW_ZERO);
    let cases = [
        ("id,name,amount\n1,Zoë,-1.50\n2,,2\n", "none below zero", "sql"),
        ("id,name,amount\n1,Zoë,1\n2,,2\n2,b,3\n", "id=2", "audit"),
    ];
    for (rows, said, check) in cases {
        project.write("uploads/a.csv", rows);
        let output = project.output(&["run", "--org", "1"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && errors.contains(said), "{errors}");
        assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 3, "the state before");
        let kept = format!(
            "SELECT observed FROM polder_management.validation_results \
             WHERE staged AND verdict = 'failed' AND \"check\" = '{check}'"
        );
        assert_eq!(project.query(&kept).len(), 1, "the evidence is kept: {check}");
    }
    // Of a state that nobody has seen no verdict is shown.
    assert!(!project.ok(&["tables"]).contains("failed"));
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,1\n");
    project.run();
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 1);
}

/// Under every policy.
#[test]
fn rows_of_one_key_are_never_published() {
    let project = checked("warn", BELOW_ZERO);
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,1\n2,,2\n1,b,3\n3,c,4\n3,c,4\n");
    let output = project.output(&["run", "--org", "1"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("id=1; id=3"), "{errors}");
    assert!(errors.contains("rows are there twice by (id)"), "{errors}");
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 3, "the state before");
    let kept = "SELECT sample_keys FROM polder_management.validation_results \
                WHERE staged AND verdict = 'failed' AND \"check\" = 'audit'";
    let kept = project.query(kept);
    assert_eq!(kept[0]["sample_keys"], serde_json::json!(["id=1", "id=3"]), "{kept:?}");
}

#[test]
fn a_table_that_is_found_wrong_goes_back_to_what_was_verified() {
    let project = checked("quarantine", BELOW_ZERO);
    assert_eq!(report(&project).0, Some(0));
    project.write("uploads/a.csv", "id,name,amount\n1,Zoë,-1.50\n");
    project.run();
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 1, "it is not blocked");
    let (code, found) = report(&project);
    assert_eq!((code, &found["verdict"]), (Some(3), &"failed".into()), "{found}");
    assert!(found["quarantine"]["to_snapshot"].is_i64(), "{found}");
    let kept_as = found["quarantine"]["kept_as"].as_str().unwrap();
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 3, "the verified state");
    let kept = format!("SELECT count(*) FROM org_1.deal FOR VERSION AS OF '{kept_as}'");
    assert_eq!(project.number(&kept), 1, "the other one stays");
    let tables: Value = serde_json::from_str(&project.ok(&["tables", "--json"])).unwrap();
    let own = tables.as_array().unwrap().iter().find(|table| table["org"] == "1").unwrap();
    assert_eq!(own["validation"]["verdict"], "verified", "{own}");
    assert_eq!(own["validation"]["current"], true, "{own}");
    // Without a state that was verified there is nowhere to go.
    let project = checked("quarantine", "SELECT id FROM deal");
    let (_, found) = report(&project);
    assert!(found["quarantine"].is_object(), "{found}");
    assert_eq!(found["quarantine"]["to_snapshot"], Value::Null, "{found}");
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 3);
}

/// Files tell by their names and tags that nothing has changed: they are not read again.
#[test]
fn what_was_proven_of_the_same_states_is_not_read_again() {
    let project = project();
    let proven = |found: &Value| {
        let observed = find(found, "values")["observed"].as_str().unwrap().to_owned();
        observed.starts_with("neither side changed")
    };
    let (code, found) = report(&project);
    assert_eq!((code, proven(&found)), (Some(0), false), "{found}");
    let (code, found) = report(&project);
    assert_eq!((code, proven(&found)), (Some(0), true), "{found}");
    project.write("uploads/b.csv", "id,name,amount\n4,d,4\n");
    project.run();
    let (code, found) = report(&project);
    assert_eq!((code, proven(&found)), (Some(0), false), "another state of both: {found}");
    let (code, found) = report(&project);
    assert_eq!((code, proven(&found)), (Some(0), true), "{found}");
    // The lake's side is looked at all the same.
    let rows = r#"SELECT "file_path" FROM lake.org_1."deal$files""#;
    let file = project.query(rows)[0]["file_path"].as_str().unwrap().to_owned();
    std::fs::remove_file(file.trim_start_matches("file://")).unwrap();
    let (code, found) = report(&project);
    assert_eq!((code, &find(&found, "files")["verdict"]), (Some(3), &"failed".into()), "{found}");
}

#[test]
fn a_spec_that_cannot_be_meant_is_refused_with_its_place() {
    let cases = [
        ("checks: [{ name: a, sql: \"\" }]", "has no SQL"),
        ("checks: [{ name: a, sql: x }, { name: a, sql: y }]", "twice"),
        ("checks: [{ name: a, sql: x, expect: nothing }]", "0 rows"),
        ("validation: { alerts: [ops] }", "does not exist"),
        ("validation: { policy: block }", "block_publish"),
        ("validation: { fresh_within: soon }", "30s, 12h, 7d"),
    ];
    for (setting, said) in cases {
        let pipeline = format!(
            "orgs:\n  - id: \"1\"\n    tables:\n      - {{ name: deal, source: uploads, \
             from: \"*.csv\", {setting} }}\n"
        );
        let project = Project::new(SOURCE, &pipeline);
        let errors = project.fails(&["tables"], 2);
        assert!(errors.contains(said), "{setting}: {errors}");
    }
    let alerts = |setting: &str| format!("{SOURCE}[alerts.ops]\n{setting}\n");
    let secret = "secret = \"env:HOOK_SECRET\"";
    let cases = [
        (format!("url = \"https://127.0.0.1/x\"\n{secret}"), "private network"),
        (format!("url = \"http://example.com/x\"\n{secret}"), "no https:// address"),
        ("url = \"https://example.com/x\"\nsecret = \"env:SHORT\"".to_owned(), "whsec_"),
    ];
    for (setting, said) in cases {
        let project = Project::new(&alerts(&setting), PIPELINE)
            .with_env("HOOK_SECRET", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
            .with_env("SHORT", "hunter2");
        let errors = project.fails(&["validate"], 2);
        assert!(errors.contains(said) && errors.contains("alerts.ops"), "{setting}: {errors}");
        assert!(!errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn a_server_validates_what_it_is_asked_to_and_keeps_the_reports() {
    let project = checked("warn", BELOW_ZERO);
    let key: Value =
        serde_json::from_str(&project.ok(&["keys", "create", "--role", "operator", "--json"]))
            .unwrap();
    let key = key["key"].as_str().unwrap();
    let served = Served::start(&project);
    let place = "/v1/orgs/1/tables/deal/validations";
    let asked = served.call(key, "POST", place, "");
    assert_eq!(asked.status, 202, "{}", asked.body);
    let ended = served.wait(key, asked.header("location"));
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let validation = &ended["runs"][0];
    assert_eq!((&validation["kind"], &validation["table"]), (&"validate".into(), &"deal".into()));
    assert_eq!(validation["report"]["verdict"], "verified");
    assert_eq!(find(&validation["report"], "sql")["verdict"], "verified");
    let table = served.call(key, "GET", "/v1/orgs/1/tables/deal", "").body;
    assert_eq!(table["validation"]["verdict"], "verified", "{table}");
    assert_eq!(table["validation"]["current"], true, "{table}");
    let versions = served.call(key, "GET", "/v1/orgs/1/tables/deal/versions", "").body;
    assert_eq!(versions["items"][0]["validation"]["verdict"], "verified", "{versions}");
    // One of the command line is in the list too, and first.
    assert_eq!(report(&project).0, Some(0));
    let page = served.call(key, "GET", &format!("{place}?limit=1"), "").body;
    assert_eq!(page["items"][0]["asked_by"], "cli", "{page}");
    let next = page["next_cursor"].as_str().unwrap();
    let page = served.call(key, "GET", &format!("{place}?limit=1&cursor={next}"), "").body;
    assert_eq!(page["items"][0]["id"], validation["id"], "{page}");
    assert_eq!(page["items"][0]["verdict"], "verified", "{page}");
    assert_eq!(page["next_cursor"], Value::Null);
    let own = format!("{place}/{}", validation["id"].as_str().unwrap());
    assert_eq!(served.call(key, "GET", &own, "").body["report"], validation["report"]);
    let other = own.replace("/orgs/1/", "/orgs/2/");
    assert_eq!(served.call(key, "GET", &other, "").status, 404, "another org's");
    assert_eq!(served.stop(), Some(0));
}
