//! A folder with a configuration, and the binary run in it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A temporary project. Its folder goes with it.
pub(crate) struct Project {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

/// A lake on local disk with SQLite; sources are appended.
pub(crate) const EMBEDDED: &str = r#"
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
"#;

impl Project {
    /// A project with `polder.toml` made of the embedded lake and these sources.
    pub(crate) fn new(sources: &str, pipeline: &str) -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() };
        project.write("polder.toml", &format!("{EMBEDDED}{sources}"));
        project.write("pipelines/test.yaml", pipeline);
        project
    }

    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polder"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that has to succeed; its stdout.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}\n{text}{errors}", output.status);
        text
    }

    /// Runs a command that has to fail with this code; its stderr.
    pub(crate) fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        errors
    }

    /// `polder run --json` that has to succeed: its reports, by org and table name.
    pub(crate) fn run(&self) -> Vec<Value> {
        self.run_with(&[])
    }

    /// [`Self::run`] with further arguments.
    pub(crate) fn run_with(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.ok(&[&["run", "--json"], arguments].concat());
        let document: Value = serde_json::from_str(&text).unwrap();
        let runs = document["runs"].as_array().unwrap();
        runs.iter().map(|run| run["report"].clone()).collect()
    }

    /// The rows of a query, as JSON objects.
    pub(crate) fn query(&self, sql: &str) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["query", sql, "--format", "json"])).unwrap()
    }

    /// The one integer a query answers with.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        let row = rows[0].as_object().unwrap();
        row.values().next().unwrap().as_i64().unwrap()
    }

    /// Files below the lake's folder whose name ends so.
    pub(crate) fn lake_files(&self, ending: &str) -> Vec<PathBuf> {
        fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
            let Ok(entries) = std::fs::read_dir(folder) else { return };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, ending, found);
                } else if path.to_string_lossy().ends_with(ending) {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path().join("lake"), ending, &mut found);
        found
    }
}
