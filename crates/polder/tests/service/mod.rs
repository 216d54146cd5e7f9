//! Against a real PostgreSQL: incremental runs, late commits, schema changes, kills.

mod asked;
mod collections;
mod evolution;
mod external;
mod federation;
mod kill;
mod limits;
mod merge;
mod postgres;
mod pushdown;
mod self_serve;
mod validation;
mod workers;

use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::project::Project;

/// A database of a test's own, dropped at its end.
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    pub(crate) fn new() -> Self {
        let server = std::env::var("POLDER_TEST_PG_URL").expect(
            "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let name = format!("polder_{}", uuid::Uuid::new_v4().simple());
        let database = Self { server, name };
        psql(&database.server, &format!("CREATE DATABASE {}", database.name));
        database
    }

    /// The server's address with this database's name.
    pub(crate) fn url(&self) -> String {
        let (base, _) = self.server.rsplit_once('/').unwrap();
        format!("{base}/{}", self.name)
    }

    /// Runs SQL; what it prints, unaligned.
    pub(crate) fn sql(&self, text: &str) -> String {
        psql(&self.url(), text)
    }

    /// A session that stays open and takes SQL line by line.
    pub(crate) fn session(&self) -> Session {
        let child = Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &self.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql");
        Session { child }
    }

    /// A project that reads this database into org 1.
    pub(crate) fn project(&self, tables: &str) -> Project {
        let source = "[sources.revdb]\ntype = \"postgres\"\nurl = \"env:REVDB_URL\"\n";
        Project::new(source, &pipeline(tables)).with_env("REVDB_URL", &self.url())
    }
}

/// The tables of org 1.
pub(crate) fn pipeline(tables: &str) -> String {
    format!("orgs:\n  - id: \"1\"\n    tables:\n{tables}")
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = Command::new("psql").args(["-X", "-q", "-c", &drop, &self.server]).status();
    }
}

fn psql(url: &str, text: &str) -> String {
    let output = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, url])
        .output()
        .expect("psql is installed with PostgreSQL");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An open `psql`.
pub(crate) struct Session {
    child: Child,
}

impl Session {
    /// Runs SQL and waits until it is done.
    pub(crate) fn run(&mut self, text: &str) {
        use std::io::{BufRead, BufReader};
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{text}\n\\echo done").unwrap();
        let stdout = self.child.stdout.as_mut().unwrap();
        for line in BufReader::with_capacity(1, stdout).lines() {
            if line.unwrap() == "done" {
                return;
            }
        }
        panic!("the session ended early");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
