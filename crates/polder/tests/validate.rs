//! `polder validate` from outside, over files: exit codes, the document, and what is kept of it.

use serde_json::Value;

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
