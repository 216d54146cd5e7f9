//! The loops of development: `check` (quick, no server), `test` (everything), `ci` (what must pass).

use std::env;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::command::{cargo, command, run};
use crate::services::{self, Guard, Instance};
use crate::{Result, places, rck, tidy};

/// Tests that need servers, and those that hold every commit to every fault, which take a minute.
const NOT_QUICK: [&str; 4] = ["service::", "faults::", "stress::", "histories::"];

/// How long `stress` goes on where nothing is said.
const STRESS_SECONDS: u64 = 180;
/// The tests that go on for as long as one likes: over the embedded catalogs, and over those of others.
const STRESS: [&str; 2] = ["stress::", "many_writers"];

/// Random histories of a table, and races of an erasure with runs, of `longer`.
const HISTORIES: u64 = 10_000;
const RACES: u64 = 500;

/// The reader tests, side by side in three processes: each waits for servers and engines for part of its time.
/// `interop/conftest.py` says what stays together, and comes first.
const READERS: [&str; 4] =
    ["interop", "--numprocesses=3", "--dist=loadscope", "--no-loadscope-reorder"];

/// Every type of the sources and what becomes of each value.
const FIDELITY: [&str; 3] = [
    "interop/test_fidelity.py",
    "interop/test_fidelity_mongodb.py",
    "interop/test_fidelity_page.py",
];

/// Tidy, clippy and every quick test that needs no server.
pub(crate) fn check() -> Result {
    tidy::run()?;
    clippy()?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast", "--"]);
    tests.args(NOT_QUICK.into_iter().flat_map(|name| ["--skip", name]));
    run("quick tests without a server", &mut tests)
}

/// Everything that shows the product works, with the servers it needs.
pub(crate) fn test() -> Result {
    services::install()?;
    services::install_engines()?;
    services::install_airflow()?;
    with_servers(tests)
}

/// The fidelity suite alone, which also writes the page it proves.
pub(crate) fn fidelity() -> Result {
    services::install()?;
    with_servers(|instance| {
        let mut python = command(places::venv_bin("python"));
        python.envs(instance.env()?).env("POLDER_FIDELITY_PAGE", "write");
        readers(&mut python, &FIDELITY)
    })
}

/// `stress [--seconds N]`: many writers of one table, on every catalog, for so long each.
pub(crate) fn stress(args: &[&str]) -> Result {
    let seconds = match args {
        [] => STRESS_SECONDS,
        ["--seconds", seconds] => {
            seconds.parse().map_err(|_| format!("--seconds {seconds} is no number of seconds"))?
        }
        _ => return Err("stress takes --seconds N, and nothing else".to_owned()),
    };
    services::install()?;
    with_servers(|instance| {
        let mut tests = cargo(&["test", "--workspace", "--no-fail-fast", "--"]);
        tests.args(STRESS).arg("--nocapture");
        tests.envs(instance.env()?).env("POLDER_STRESS_SECONDS", seconds.to_string());
        run(&format!("many writers of one table, for {seconds} s each"), &mut tests)
    })
}

/// `longer [--histories N] [--races N]`: tests that need no server and are as long as one likes.
pub(crate) fn longer(args: &[&str]) -> Result {
    let (mut histories, mut races) = (HISTORIES, RACES);
    for pair in args.chunks(2) {
        let asked = match pair {
            ["--histories", _] => &mut histories,
            ["--races", _] => &mut races,
            _ => return Err("longer takes --histories N and --races N".to_owned()),
        };
        let number = pair[1];
        *asked = number.parse().map_err(|_| format!("{} {number} is no number", pair[0]))?;
    }
    // Histories that were not tried before.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let test = |name: &str, variable: &str, number: u64| {
        let mut tests = cargo(&["test", "--workspace", "--no-fail-fast", "--", name]);
        tests.env(variable, number.to_string()).env("PROPTEST_RNG_SEED", seed.to_string());
        run(&format!("{name} of {number}, seed {seed}"), &mut tests)
    };
    let histories = test("random_histories_go_as_the_model_says", "PROPTEST_CASES", histories);
    histories.and(test("nothing_comes_back_in_races", "POLDER_RACES", races))
}

fn with_servers(work: impl FnOnce(&Instance) -> Result) -> Result {
    services::install_catalogs()?;
    let instance = Instance::named("test")?;
    // Servers that were up before stay up; others end with us, however we end.
    let guard = if instance.is_up() { None } else { Some(Guard::start(&instance, true)?) };
    let outcome = instance.up_all().and_then(|()| work(&instance));
    let stopped = guard.map_or(Ok(()), Guard::stop);
    outcome.and(stopped)
}

fn tests(instance: &Instance) -> Result {
    let env = instance.env()?;
    let with_env = |mut command: Command| {
        command.envs(&env);
        command
    };
    // The runners all run, so that one summary tells everything that is wrong.
    let rust = run("Rust tests", &mut with_env(cargo(&["test", "--workspace", "--no-fail-fast"])));
    let readers = readers(&mut with_env(command(places::venv_bin("python"))), &READERS);
    let airflow = airflow_provider();
    let kit = rck::rck(&[]);
    println!("\n── summary");
    let all = [
        ("Rust tests", &rust),
        ("reader tests", &readers),
        ("Airflow provider", &airflow),
        ("Iceberg REST kit", &kit),
    ];
    for (what, outcome) in all {
        println!("{what}: {}", if outcome.is_ok() { "passed" } else { "FAILED" });
    }
    rust.and(readers).and(airflow).and(kit)
}

/// The provider's own tests, in Airflow's environment; `interop/` has those that need the binary.
fn airflow_provider() -> Result {
    let mut python = command(places::airflow().join("bin/python"));
    python.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    python.arg("python/airflow-provider-polder/tests").env("PYTHONDONTWRITEBYTECODE", "1");
    run("tests of the Airflow provider", &mut python)
}

/// Other engines against lakes that the binary made, and lakes that they made through it.
fn readers(python: &mut Command, tests: &[&str]) -> Result {
    run("building polder", &mut cargo(&["build", "--package", "polder"]))?;
    python.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).args(tests);
    python.env("POLDER_BIN", places::polder("debug")).env("TRINO_HOME", places::trino());
    python.env("SPARK_JARS", places::spark_jars()).env("PYTHONDONTWRITEBYTECODE", "1");
    python.env("POLDER_OIDC_PROVIDER", places::oidc_provider());
    python.env("REST_JARS", places::rest_jars());
    python.env("POLDER_AIRFLOW", places::airflow().join("bin/python"));
    if let Some(java) = places::java_17() {
        python.env("JAVA_HOME", java);
    }
    run("reader tests (DuckDB, PyIceberg, Polars, Daft, Spark, Trino, Airflow)", python)
}

/// What must pass before a change lands.
pub(crate) fn ci() -> Result {
    run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    clippy()?;
    test()?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    installed("cargo-deny", "0.20.2")?;
    let checks = ["deny", "--workspace", "check", "licenses", "bans", "sources"];
    run("licences, bans, sources", &mut cargo(&checks))?;
    installed("cargo-machete", "0.9.2")?;
    run("unused dependencies", &mut cargo(&["machete"]))
}

fn clippy() -> Result {
    let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run("clippy", &mut cargo(&args))
}

/// Installs a cargo subcommand unless it is there.
fn installed(tool: &str, version: &str) -> Result {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|dir| dir.join(tool).exists()) {
        return Ok(());
    }
    let mut install = cargo(&["install", "--locked", "--version", version, tool]);
    // Built beside our own target folder, not in it: it is thrown away.
    run(&format!("installing {tool} {version}"), install.env_remove("CARGO_TARGET_DIR"))
}
