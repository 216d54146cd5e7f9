//! What a person meets first: help, a fresh configuration, mistakes in it.

use serde_json::Value;

use crate::project::Project;

const FILES: &str = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";

#[test]
fn init_writes_a_configuration_that_names_its_schemas_and_is_not_overwritten() {
    let project = Project::new("", "");
    project.ok(&["init", "fresh"]);
    let read = |name: &str| std::fs::read_to_string(project.path().join(name)).unwrap();
    assert!(read("fresh/polder.toml").starts_with("#:schema schemas/polder.json"));
    let pipeline = read("fresh/pipelines/crm.yaml");
    assert!(pipeline.starts_with("# yaml-language-server: $schema=../schemas/pipelines.json"));
    let schema: Value = serde_json::from_str(&read("fresh/schemas/pipelines.json")).unwrap();
    assert!(schema["properties"]["templates"].is_object());
    let errors = project.fails(&["init", "fresh"], 2);
    assert!(errors.contains("exists already"), "{errors}");
    // Without the variable there is no database yet: the check says which variable to set.
    let errors = project.fails(&["--config", "fresh/polder.toml", "check"], 2);
    assert!(errors.contains("export REVDB_URL="), "{errors}");
}

#[test]
fn mistakes_name_file_line_and_column() {
    let project = Project::new(FILES, "orgs:\n  - { id: \"1\", templat: crm }\n");
    let errors = project.fails(&["run"], 2);
    assert!(errors.contains("pipelines/test.yaml:2:"), "{errors}");
    assert!(errors.contains("did you mean `template`?"), "{errors}");
    let elsewhere = project.fails(&["--config", "none/polder.toml", "run"], 2);
    assert!(elsewhere.contains("polder init"), "{elsewhere}");
}

#[test]
fn names_on_the_command_line_are_checked() {
    let pipeline =
        "orgs:\n  - id: \"1\"\n    tables: [{ name: t, source: files, from: \"*.csv\" }]\n";
    let project = Project::new(FILES, pipeline);
    let errors = project.fails(&["run", "--org", "2"], 2);
    assert!(errors.contains("orgs with one: 1"), "{errors}");
    let errors = project.fails(&["run", "--table", "x"], 2);
    assert!(errors.contains("there is: t"), "{errors}");
    let errors = project.fails(&["discover", "nope"], 2);
    assert!(errors.contains("polder.toml has: files"), "{errors}");
}

#[test]
fn a_lake_in_glue_is_configured_as_a_whole() {
    let project =
        Project::new("", "").with_env("AWS_REGION", "").with_env("AWS_DEFAULT_REGION", "");
    let lake = |catalog: &str, more: &str| {
        let lake = format!("[lake]\nwarehouse = \"./lake\"\ncatalog = \"{catalog}\"\n");
        project.write("polder.toml", &format!("{lake}[store]\nurl = \"sqlite://./p.db\"\n{more}"));
    };
    lake("sqlite://./p.db", "[catalog.glue]\ncatalog_id = \"1\"\n");
    let errors = project.fails(&["tables"], 2);
    assert!(errors.contains("[lake] catalog is no glue:// address"), "{errors}");
    lake("glue://", "");
    let errors = project.fails(&["tables"], 2);
    assert!(errors.contains("names no region") && errors.contains("AWS_REGION"), "{errors}");
    lake("glue://eu-west-1/polder", "");
    let errors = project.fails(&["tables"], 2);
    assert!(errors.contains("\"eu-west-1/polder\" is no region"), "{errors}");
    lake(
        "glue://eu-west-1",
        "[catalog.glue]\naccess_key = \"env:NOT_SET\"\nsecret_key = \"env:X\"",
    );
    let errors = project.fails(&["tables"], 2);
    assert!(errors.contains("NOT_SET"), "{errors}");
    // Nobody is asked: other engines reach Glue by themselves.
    lake("glue://eu-west-1", "");
    let errors = project.fails(&["serve"], 2);
    assert!(errors.contains("point other engines at the external catalog itself"), "{errors}");
}

/// The configuration's shape is public: a change of it shows in a diff of these files.
#[test]
fn the_committed_schemas_are_those_of_the_binary() {
    let project = Project::new("", "");
    for (name, which) in [("polder", "process"), ("pipelines", "pipelines")] {
        // Relative: the working directory of a test is its package, wherever it was compiled.
        let path = format!("../../demo/schemas/{name}.json");
        let committed = std::fs::read_to_string(&path).unwrap();
        let hint = format!("cargo run -p polder -- schema {which} > demo/schemas/{name}.json");
        assert_eq!(committed, project.ok(&["schema", which]), "changed on purpose? {hint}");
    }
}

#[test]
fn schemas_and_version_are_printed() {
    let project = Project::new("", "");
    let pipelines: Value = serde_json::from_str(&project.ok(&["schema"])).unwrap();
    assert!(pipelines["$defs"]["TableSpec"]["properties"]["cursor"].is_object());
    let process: Value = serde_json::from_str(&project.ok(&["schema", "process"])).unwrap();
    assert!(process["properties"]["lake"].is_object());
    assert!(project.ok(&["version"]).contains("datafusion 53"));
}
