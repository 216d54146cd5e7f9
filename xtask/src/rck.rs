//! Apache Iceberg's REST Compatibility Kit against `polder serve` (`interop/rck/pom.xml`).
//!
//! The kit names locations below `/tmp` in its own code and leaves its files there, so that folder is
//! the warehouse of the server under test. Its catalog is new for each run; what the run adds to
//! `/tmp` is removed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{cargo, command, run};
use crate::process::Process;
use crate::{Result, places};

/// Where the kit puts tables.
const WAREHOUSE: &str = "/tmp";
/// Where the server under test keeps its catalog, beside its configuration.
const CATALOG: &str = "sqlite://catalog.db";
/// Folders the kit and the server make there.
const LEFT_BEHIND: [&str; 4] = ["ns", "newdb", "shared", "audit-log"];
/// Where a server writes down how far its audit log goes: one that finds another log's does not end well.
const CHECKPOINT: &str = "audit-log/head.json";
/// The kit of Iceberg 1.11.0: what runs, and how much of it Apache's own server skips.
const TESTS: u32 = 157;
const SKIPPED_MAX: u32 = 12;
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(30);
/// So much of what it has printed is shown if it does not end well.
const LAST_LINES: usize = 20;
/// What the server prints before its address.
const ADDRESS: &str = "Iceberg REST catalog: ";

/// Builds the server, runs the whole kit against it, and holds the outcome to the numbers above.
/// `--catalog URL` names the database of the server's catalog, which has to be empty; without, it is
/// a new one in SQLite. With more arguments, which go to Maven, the numbers are only printed.
pub(crate) fn rck(args: &[&str]) -> Result {
    run("building polder", &mut cargo(&["build", "--package", "polder"]))?;
    let (catalog, args) = match args {
        ["--catalog", url, rest @ ..] => (*url, rest),
        all => (CATALOG, all),
    };
    let work = places::target().join("rck");
    let existing: Vec<PathBuf> = left_behind().filter(|path| path.exists()).collect();
    forget_checkpoint()?;
    let server = Server::start(&work, catalog)?;
    let outcome = maven(&work, &server.uri, args);
    let stopped = server.stop();
    for path in left_behind().filter(|path| !existing.contains(path) && path.exists()) {
        let failed = |error| format!("cannot remove {}: {error}", path.display());
        fs::remove_dir_all(&path).map_err(failed)?;
    }
    let summary = Summary::read(&work.join("build/surefire-reports"))?;
    println!(
        "\nIceberg REST Compatibility Kit: {} run, {} failures, {} errors, {} skipped",
        summary.tests, summary.failures, summary.errors, summary.skipped
    );
    outcome.and(stopped)?;
    if args.is_empty() { summary.check() } else { Ok(()) }
}

fn left_behind() -> impl Iterator<Item = PathBuf> {
    LEFT_BEHIND.iter().map(|name| Path::new(WAREHOUSE).join(name))
}

/// Removes the checkpoint of a run that was cut off, whose control store is gone.
fn forget_checkpoint() -> Result {
    let path = Path::new(WAREHOUSE).join(CHECKPOINT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

fn maven(work: &Path, uri: &str, args: &[&str]) -> Result {
    let mut maven = command("mvn");
    maven.args(["-B", "-q", "test", "--file", "interop/rck/pom.xml"]);
    maven.arg(format!("-Drck.uri={uri}/"));
    maven.arg(format!("-Drck.build={}", work.join("build").display()));
    maven.args(args);
    if let Some(java) = places::java_17() {
        maven.env("JAVA_HOME", java);
    }
    run("Iceberg REST Compatibility Kit", &mut maven)
}

struct Server {
    child: Child,
    /// What it has printed.
    log: PathBuf,
    uri: String,
}

impl Server {
    fn start(work: &Path, catalog: &str) -> Result<Self> {
        let failed = |error| format!("cannot prepare {}: {error}", work.display());
        if work.exists() {
            fs::remove_dir_all(work).map_err(failed)?;
        }
        fs::create_dir_all(work).map_err(failed)?;
        let config = format!(
            "[lake]\nwarehouse = \"{WAREHOUSE}\"\ncatalog = \"{catalog}\"\n\n\
             [store]\nurl = \"sqlite://store.db\"\n"
        );
        fs::write(work.join("polder.toml"), config).map_err(failed)?;
        let log = work.join("serve.log");
        let output = File::create(&log).map_err(failed)?;
        let mut serve = Command::new(places::polder("debug"));
        serve.current_dir(work).args(["serve", "--listen", "127.0.0.1:0"]);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = serve.spawn().map_err(|error| format!("cannot start polder: {error}"))?;
        let mut server = Self { child, log, uri: String::new() };
        let deadline = Instant::now() + START_MAX;
        while Instant::now() < deadline {
            let text = fs::read_to_string(&server.log).unwrap_or_default();
            let address = text.lines().find_map(|line| line.strip_prefix(ADDRESS));
            if let Some(address) = address.filter(|_| text.ends_with('\n')) {
                address.clone_into(&mut server.uri);
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(100));
        }
        let said = fs::read_to_string(&server.log).unwrap_or_default();
        server.stop()?;
        Err(format!("polder serve did not start:\n{said}"))
    }

    fn stop(mut self) -> Result {
        let stopped = match Process::of(self.child.id()) {
            Some(process) => process.stop("TERM", STOP_MAX),
            None => Ok(()),
        };
        let status = self.child.wait().map_err(|error| format!("polder serve: {error}"))?;
        stopped?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        Err(format!("polder serve ended with {status}:\n{last}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends it where `stop` was not reached; it has ended otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `JUnit`'s reports add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    tests: u32,
    failures: u32,
    errors: u32,
    skipped: u32,
}

impl Summary {
    fn read(folder: &Path) -> Result<Self> {
        let failed = |error| format!("no reports of the kit in {}: {error}", folder.display());
        let mut summary = Self::default();
        for entry in fs::read_dir(folder).map_err(failed)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "xml") {
                summary.add(&fs::read_to_string(path).map_err(failed)?);
            }
        }
        Ok(summary)
    }

    /// Adds the numbers of a report's first element, `<testsuite … tests="3" …>`.
    fn add(&mut self, report: &str) {
        let Some((_, rest)) = report.split_once("<testsuite ") else { return };
        let head = rest.split_once('>').map_or(rest, |(head, _)| head);
        let number = |name: &str| {
            let value = head.split_once(&format!(" {name}=\""))?.1.split_once('"')?.0;
            value.parse::<u32>().ok()
        };
        self.tests += number("tests").unwrap_or(0);
        self.failures += number("failures").unwrap_or(0);
        self.errors += number("errors").unwrap_or(0);
        self.skipped += number("skipped").unwrap_or(0);
    }

    fn check(&self) -> Result {
        let good = self.tests == TESTS
            && self.failures == 0
            && self.errors == 0
            && self.skipped <= SKIPPED_MAX;
        if good {
            return Ok(());
        }
        Err(format!("the kit has to run {TESTS} tests and skip at most {SKIPPED_MAX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let mut summary = Summary::default();
        let report = |numbers: &str| {
            format!("<?xml version=\"1.0\"?>\n<testsuite xmlns=\"x\" name=\"a\" {numbers}>\n<p/>")
        };
        summary.add(&report("time=\"1.5\" tests=\"99\" errors=\"0\" skipped=\"7\" failures=\"1\""));
        summary.add(&report("tests=\"58\" errors=\"0\" skipped=\"5\" failures=\"0\""));
        summary.add("<nothing/>");
        assert_eq!(summary, Summary { tests: 157, failures: 1, errors: 0, skipped: 12 });
        assert!(summary.check().is_err());
        assert!(Summary { failures: 0, ..summary }.check().is_ok());
    }
}
