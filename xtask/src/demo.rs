//! The whole story on generated data: start servers, fill them, ingest, change, ingest again, ask.
//!
//! The data comes from `demo/*.py`, the configuration from `demo/polder.toml` and
//! `demo/pipelines/`, the questions from `demo/questions/`; nothing of the story is in here.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::command::{cargo, command, output, quiet_status, run};
use crate::services::{self, Guard, Instance};
use crate::{Result, places};

/// The endpoint that `demo/polder.toml` names, replaced by the one that was started.
const ENDPOINT: &str = "http://127.0.0.1:8333";

pub(crate) fn up() -> Result {
    let started = Instant::now();
    services::install()?;
    run("building polder", &mut cargo(&["build", "--package", "polder"]))?;
    let instance = Instance::named("demo")?;
    let guard = Guard::start(&instance, false)?;
    eprintln!("\n── starting the servers");
    instance.up_all()?;
    let demo = Demo::prepare(&instance)?;
    demo.tell()?;
    println!("\nFrom start to answers: {} s.", started.elapsed().as_secs());
    demo.show_around();
    if io::stdin().is_terminal() && env::var("DEMO_EXIT").as_deref() != Ok("1") {
        println!("\nEverything stays up until Ctrl-C; `make demo-down` then removes the data.");
        loop {
            thread::park(); // Ctrl-C ends this process, and with it the guard stops the servers.
        }
    }
    guard.stop()
}

pub(crate) fn down() -> Result {
    Instance::named("demo")?.purge()?;
    let work = work_folder();
    if work.exists() {
        let failed = |error| format!("cannot remove {}: {error}", work.display());
        fs::remove_dir_all(&work).map_err(failed)?;
    }
    println!("The demo's servers are stopped and its data is gone.");
    Ok(())
}

/// Where the demo's configuration and catalog live.
fn work_folder() -> PathBuf {
    places::target().join("demo")
}

/// Copies the files of one folder.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

struct Demo {
    work: PathBuf,
    s3_endpoint: String,
    env: BTreeMap<&'static str, String>,
}

impl Demo {
    /// A fresh work folder with the configuration; the servers run.
    fn prepare(instance: &Instance) -> Result<Self> {
        let mut env = instance.env()?;
        let mut take = |key: &str| env.remove(key).ok_or_else(|| format!("{key} is not set"));
        let (mongo, s3_endpoint) =
            (take("POLDER_TEST_MONGO_URL")?, take("POLDER_TEST_S3_ENDPOINT")?);
        env.insert("REVDB_URL", instance.postgres_url("revdb")?);
        env.insert("CONVERSATIONS_URL", mongo);
        env.retain(|key, _| !key.starts_with("POLDER_"));
        let demo = Self { work: work_folder(), s3_endpoint, env };
        demo.write_work_folder()
            .map_err(|error| format!("cannot write {}: {error}", demo.work.display()))?;
        Ok(demo)
    }

    fn write_work_folder(&self) -> io::Result<()> {
        let from = places::root().join("demo");
        if self.work.exists() {
            fs::remove_dir_all(&self.work)?;
        }
        fs::create_dir_all(&self.work)?;
        let config = fs::read_to_string(from.join("polder.toml"))?;
        if !config.contains(ENDPOINT) {
            return Err(io::Error::other(format!("demo/polder.toml does not name {ENDPOINT}")));
        }
        let config = config.replace(ENDPOINT, &self.s3_endpoint);
        fs::write(self.work.join("polder.toml"), config)?;
        for folder in ["pipelines", "schemas"] {
            copy_files(&from.join(folder), &self.work.join(folder))?;
        }
        let exports = self.env.iter().map(|(key, value)| format!("export {key}='{value}'\n"));
        fs::write(self.work.join("env"), exports.collect::<String>())
    }

    fn tell(&self) -> Result {
        run("filling the sources: a CRM in PostgreSQL, conversations, uploads", &mut self.fill())?;
        run("polder check", self.polder().arg("check"))?;
        run("polder run: everything, for the first time", self.polder().arg("run"))?;
        let before = self.snapshot("401", "opportunity")?;
        run("a day later: new rows, changed rows, a new column", self.fill().arg("--mutate"))?;
        run("polder run: what changed", self.polder().arg("run"))?;
        self.ask(&before)
    }

    fn fill(&self) -> Command {
        let mut python = command(places::venv_bin("python"));
        python.arg("demo/generate.py").envs(&self.env).env("PYTHONDONTWRITEBYTECODE", "1");
        python.args(["--postgres", &self.env["REVDB_URL"]]);
        python.args(["--mongo", &self.env["CONVERSATIONS_URL"], "--s3", &self.s3_endpoint]);
        python
    }

    fn polder(&self) -> Command {
        let mut polder = command(places::polder("debug"));
        polder.current_dir(&self.work).envs(&self.env);
        polder
    }

    /// The id of a table's current snapshot.
    fn snapshot(&self, org: &str, table: &str) -> Result<String> {
        let text = output("polder tables", self.polder().args(["tables", "--json"]))?;
        let listed: Value = serde_json::from_str(&text)
            .map_err(|error| format!("`polder tables --json` printed no JSON: {error}"))?;
        let mut found = listed.as_array().into_iter().flatten();
        let found = found.find(|row| row["org"] == org && row["table"] == table);
        let id = found.and_then(|row| row["snapshot_id"].as_i64());
        id.map(|id| id.to_string())
            .ok_or_else(|| format!("`polder tables --json` does not list {table} of org {org}"))
    }

    /// Runs every question file; its first line is the question in words.
    fn ask(&self, before: &str) -> Result {
        let folder = places::root().join("demo/questions");
        let failed = |error| format!("cannot read {}: {error}", folder.display());
        let entries = fs::read_dir(&folder).map_err(failed)?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).map_err(failed)?;
            let (question, sql) = text.split_once('\n').unwrap_or_default();
            println!("\n── {}", question.trim_start_matches("-- "));
            let sql = sql.replace("{before}", before);
            quiet_status("polder query", self.polder().args(["query", &sql]))?;
        }
        Ok(())
    }

    fn show_around(&self) {
        let (work, env) = (self.work.display(), &self.env);
        println!("\nWhere things are");
        println!("  PostgreSQL        {}", env["REVDB_URL"]);
        println!("  MongoDB protocol  {}", env["CONVERSATIONS_URL"]);
        println!("  S3                {} (buckets `exports` and `lake`)", self.s3_endpoint);
        println!("  configuration     {work}");
        println!("\nAsk something yourself:");
        println!("  cd {work} && . ./env");
        println!(
            "  {} query 'SELECT count(*) FROM lake.org_401.email'",
            places::polder("debug").display()
        );
    }
}
