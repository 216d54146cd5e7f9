//! A lake whose catalog is elsewhere: one Polder serves, another loads, with OAuth2 client
//! credentials and with keys for S3 that the catalog hands out.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};

use crate::project::Project;

const SECRET: &str = "0123456789abcdef-loader";
const PIPELINE: &str = r#"
orgs:
  - id: "1"
    tables:
      - { name: "Umsätze 2026", source: files, from: "umsatz/*.csv", mode: append, partition: [month(day)] }
      - { name: note, source: files, from: "notes/*.jsonl", mode: full_refresh }
"#;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo xtask services up` and take over its environment")
    })
}

/// `polder serve` of a lake on S3, until dropped.
struct Served {
    _project: Project,
    child: Child,
    uri: String,
    warehouse: String,
}

impl Served {
    fn start() -> Self {
        let warehouse = format!("s3://polder-ready/external/{}", uuid::Uuid::new_v4());
        let project = Project::new("", "")
            .with_env("S3_ACCESS_KEY", &variable("S3_ACCESS_KEY"))
            .with_env("S3_SECRET_KEY", &variable("S3_SECRET_KEY"))
            .with_env("LOADER_SECRET", SECRET);
        project.write(
            "polder.toml",
            &format!(
                "[lake]\nwarehouse = \"{warehouse}\"\ncatalog = \"sqlite://./polder.db\"\n\
                 [store]\nurl = \"sqlite://./polder.db\"\n\
                 [storage.s3]\nendpoint = \"{}\"\npath_style = true\n\
                 access_key = \"env:S3_ACCESS_KEY\"\nsecret_key = \"env:S3_SECRET_KEY\"\n\
                 [serve.clients.loader]\nsecret = \"env:LOADER_SECRET\"\n",
                variable("POLDER_TEST_S3_ENDPOINT"),
            ),
        );
        let mut child = project.spawn(&["serve", "--listen", "127.0.0.1:0"]);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let uri = line.strip_prefix("Iceberg REST catalog: ").expect(&line).to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { _project: project, child, uri, warehouse }
    }

    /// A project that loads into this lake and knows neither its database nor its keys.
    fn loader(&self, credential: &str) -> Project {
        let files = "[sources.files]\ntype = \"files\"\nurl = \"./exports\"\n";
        let project = Project::new("", PIPELINE).with_env("LAKE_CREDENTIAL", credential);
        project.write(
            "polder.toml",
            &format!(
                "[lake]\nwarehouse = \"{}\"\ncatalog = \"{}\"\n\
                 [catalog.rest]\ncredential = \"env:LAKE_CREDENTIAL\"\n\
                 [store]\nurl = \"sqlite://./polder.db\"\n{files}",
                self.warehouse, self.uri,
            ),
        );
        project
            .write("exports/umsatz/1.csv", "id,day,amount\n1,2026-01-05,10.5\n2,2026-02-05,1.5\n");
        project.write("exports/notes/1.jsonl", "{\"n\":1}\n{\"n\":2}\n");
        project
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let script = format!("kill -TERM {}", self.child.id());
        let _ = Command::new("sh").args(["-c", &script]).status();
        let _ = self.child.wait();
    }
}

fn outcomes(reports: &[serde_json::Value]) -> Vec<&str> {
    reports.iter().map(|report| report["outcome"].as_str().unwrap()).collect()
}

#[test]
fn one_polder_loads_into_the_lake_that_another_one_serves() {
    let served = Served::start();
    let loader = served.loader(&format!("loader:{SECRET}"));
    assert_eq!(outcomes(&loader.run()), ["full_refresh"; 2]);
    let tenths = "SELECT CAST(sum(amount) * 10 AS BIGINT) FROM lake.org_1.\"Umsätze 2026\"";
    assert_eq!(loader.number(tenths), 120);
    assert_eq!(outcomes(&loader.run()), ["nothing_new", "full_refresh"]);
    loader.write("exports/umsatz/2.csv", "id,day,amount\n3,2026-02-06,4.0\n");
    loader.write("exports/notes/1.jsonl", "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    assert_eq!(outcomes(&loader.run()), ["append", "full_refresh"]);
    assert_eq!(loader.number(tenths), 160);
    assert_eq!(loader.number("SELECT count(*) FROM org_1.note"), 3);
    let tables = loader.ok(&["tables"]);
    assert!(tables.contains("Umsätze 2026") && tables.contains("note"), "{tables}");
    // Versions and maintenance go through the catalog as well.
    let versions = loader.ok(&["versions", "--org", "1", "--table", "note"]);
    assert!(versions.contains("v3"), "{versions}");
    loader.ok(&["rollback", "--org", "1", "--table", "note", "--to", "v1"]);
    assert_eq!(loader.number("SELECT count(*) FROM org_1.note"), 2);
    loader.ok(&["maintain", "expire", "--org", "1", "--days", "0"]);
    assert_eq!(loader.number("SELECT count(*) FROM org_1.note"), 2);
    // What it does not offer, and to whom it does not open.
    let errors = loader.fails(&["serve", "--listen", "127.0.0.1:0"], 2);
    assert!(errors.contains("[lake] catalog is served elsewhere"), "{errors}");
    let stranger = served.loader("loader:not-the-secret-at-all");
    let output = stranger.output(&["tables"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("[catalog.rest] credential"), "{errors}");
    assert!(!errors.contains("not-the-secret"), "{errors}");
}
