//! The real servers that tests and the demo talk to: PostgreSQL, a MongoDB-protocol server, S3; for
//! tests also catalogs of others, Iceberg REST and AWS Glue.
//!
//! An instance is a named set of them, on free ports of 127.0.0.1, with its data in one folder.
//! Nothing here knows what is stored in them.

mod engines;
mod glue;
mod guard;
mod install;
mod mongo;
mod postgres;
mod rest;
mod s3;
mod state;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::command as program;
use crate::process::Process;
use crate::{Result, places};

pub(crate) use engines::install as install_engines;
pub(crate) use guard::Guard;
pub(crate) use install::{install, install_airflow, install_peers, install_wrk, postgres_bin};
pub(crate) use postgres::psql;
pub(crate) use rest::install as install_reference;
pub(crate) use s3::{ACCESS_KEY, SECRET_KEY};
use state::{Running, State};

/// The longest a server may take to answer, on a busy machine.
const READY_WAIT: Duration = Duration::from_mins(2);
/// The longest a server may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Postgres,
    Mongo,
    S3,
    Rest,
    Glue,
}

impl Server {
    const ALL: [Self; 5] = [Self::Postgres, Self::Mongo, Self::S3, Self::Rest, Self::Glue];

    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mongo => "mongo",
            Self::S3 => "s3",
            Self::Rest => "rest",
            Self::Glue => "glue",
        }
    }

    fn spawn(self, instance: &Instance) -> Result<Running> {
        match self {
            Self::Postgres => postgres::spawn(instance),
            Self::Mongo => mongo::spawn(instance),
            Self::S3 => s3::spawn(instance),
            Self::Rest => rest::spawn(instance),
            Self::Glue => glue::spawn(instance),
        }
    }

    /// Asks the server for something only a working one answers.
    fn probe(self, running: &Running) -> Result {
        match self {
            Self::Postgres => psql(&postgres::url(running.port, "postgres"), "SELECT 1").map(drop),
            Self::Mongo => mongo::probe(&mongo::url(running.port)),
            Self::S3 => s3::probe(running),
            Self::Rest => rest::probe(&rest::url(running.port)),
            Self::Glue => glue::probe(&glue::url(running.port)),
        }
    }

    /// The signal that makes the server stop in good order.
    fn stop_signal(self) -> &'static str {
        match self {
            Self::Postgres => "INT", // fast shutdown: does not wait for clients
            Self::Mongo | Self::Rest | Self::Glue => "TERM",
            // Its own way to stop waits half a minute for the rest of a cluster. What it has
            // acknowledged is in files; the kernel keeps those whatever happens to the process.
            Self::S3 => "KILL",
        }
    }
}

/// What `cargo xtask services …` does.
pub(crate) fn command(args: &[&str]) -> Result {
    let (verb, options) = args.split_first().ok_or("services: say install, up, down or env")?;
    let mut name = "test";
    let mut purge = false;
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match *option {
            "--name" => name = rest.next().ok_or("--name wants a name")?,
            "--purge" => purge = true,
            other => return Err(format!("services: unknown option {other}")),
        }
    }
    let instance = Instance::named(name)?;
    match *verb {
        "install" => install().and_then(|()| install_catalogs()),
        "up" => {
            install()?;
            if instance.has_catalogs() {
                install_catalogs()?;
            }
            instance.up_all()?;
            println!("{}", instance.exports()?);
            Ok(())
        }
        "down" if purge => instance.purge(),
        "down" => instance.down(),
        "env" => {
            println!("{}", instance.exports()?);
            Ok(())
        }
        "guard" => guard::watch(&instance, purge),
        other => Err(format!("services: unknown command {other}")),
    }
}

/// What the catalogs of others need, which only tests talk to.
pub(crate) fn install_catalogs() -> Result {
    rest::install()?;
    glue::install()
}

/// A named set of servers.
pub(crate) struct Instance {
    pub(crate) name: String,
    /// The instance's folder: state, logs, data.
    pub(crate) dir: PathBuf,
}

impl Instance {
    pub(crate) fn named(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("{name:?} is no instance name: use a-z, 0-9 and '-'"));
        }
        let dir = places::target().join("services").join(name);
        Ok(Self { name: name.to_owned(), dir })
    }

    /// Whether every server runs already.
    pub(crate) fn is_up(&self) -> bool {
        self.env().is_ok()
    }

    /// Whether catalogs of others are among its servers: the demo does without them.
    fn has_catalogs(&self) -> bool {
        self.name != "demo"
    }

    /// All its servers; see [`Self::up`].
    pub(crate) fn up_all(&self) -> Result {
        let others =
            |server: &Server| !matches!(server, Server::Rest | Server::Glue) || self.has_catalogs();
        self.up(&Server::ALL.into_iter().filter(others).collect::<Vec<_>>())
    }

    /// Starts what does not run yet and waits until all of it answers.
    pub(crate) fn up(&self, servers: &[Server]) -> Result {
        let _lock = self.lock()?;
        let mut state = State::load(&self.dir);
        let mut spawned = Vec::new();
        for &server in servers {
            let elsewhere = server == Server::Mongo && mongo::elsewhere(self).is_some();
            if elsewhere || state.running(server).is_some() {
                continue;
            }
            eprintln!("starting {} ({})", server.name(), self.name);
            state.set(server, &server.spawn(self)?);
            state.save(&self.dir)?;
            spawned.push(server);
        }
        for &server in servers {
            let Some(running) = state.running(server) else { continue };
            if let Err(error) = wait_ready(server, &running) {
                stop_all(&mut state, &spawned);
                state.save(&self.dir)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Stops what this instance started; data stays.
    pub(crate) fn down(&self) -> Result {
        if !self.dir.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut state = State::load(&self.dir);
        let mut failures = stop_all(&mut state, &Server::ALL);
        failures.extend(postgres::stop_stray(self).err());
        state.save(&self.dir)?;
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
    }

    /// Stops the servers and removes their data.
    pub(crate) fn purge(&self) -> Result {
        self.down()?;
        for dir in [postgres::folder(self), self.dir.clone()] {
            if dir.exists() {
                let failed = |error| format!("cannot remove {}: {error}", dir.display());
                fs::remove_dir_all(&dir).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The addresses, as tests and the demo read them from the environment.
    pub(crate) fn env(&self) -> Result<BTreeMap<&'static str, String>> {
        let state = State::load(&self.dir);
        let port = |server: Server| match state.running(server) {
            Some(running) => Ok(running.port),
            None => Err(format!(
                "{} of instance {} does not run; start it with `cargo xtask services up --name {}`",
                server.name(),
                self.name,
                self.name
            )),
        };
        let mongo = match mongo::elsewhere(self) {
            Some(url) => url,
            None => mongo::url(port(Server::Mongo)?),
        };
        let mut env = BTreeMap::from([
            ("POLDER_TEST_PG_URL", postgres::url(port(Server::Postgres)?, "postgres")),
            ("POLDER_TEST_MONGO_URL", mongo),
            ("POLDER_TEST_S3_ENDPOINT", s3::endpoint(port(Server::S3)?)),
            ("S3_ACCESS_KEY", ACCESS_KEY.to_owned()),
            ("S3_SECRET_KEY", SECRET_KEY.to_owned()),
            ("POLDER_VENV", places::venv().display().to_string()),
        ]);
        if self.has_catalogs() {
            let iceberg = state.running(Server::S3).and_then(|running| running.side_port);
            let iceberg = iceberg
                .ok_or("S3 runs without its Iceberg catalog: `cargo xtask services down` first")?;
            env.insert("POLDER_TEST_REST_URL", rest::url(port(Server::Rest)?));
            env.insert("POLDER_TEST_S3_REST_URL", s3::endpoint(iceberg));
            env.insert("POLDER_TEST_S3_TABLES", s3::TABLES.to_owned());
            env.insert("POLDER_TEST_GLUE_URL", glue::url(port(Server::Glue)?));
        }
        Ok(env)
    }

    /// The address of the server that speaks MongoDB's protocol, for an instance that may have no other.
    pub(crate) fn mongo_url(&self) -> Result<String> {
        let state = State::load(&self.dir);
        let running = state.running(Server::Mongo).ok_or("MongoDB's server does not run")?;
        Ok(mongo::url(running.port))
    }

    /// The PostgreSQL address of a database, for an instance that may have no other server.
    pub(crate) fn postgres_url(&self, database: &str) -> Result<String> {
        let state = State::load(&self.dir);
        let running = state.running(Server::Postgres).ok_or("PostgreSQL does not run")?;
        Ok(postgres::url(running.port, database))
    }

    /// The same of S3.
    pub(crate) fn s3_url(&self) -> Result<String> {
        let state = State::load(&self.dir);
        let running = state.running(Server::S3).ok_or("S3 does not run")?;
        Ok(s3::endpoint(running.port))
    }

    fn exports(&self) -> Result<String> {
        let quoted = |(key, value): (&str, String)| {
            format!("export {key}='{}'", value.replace('\'', r"'\''"))
        };
        Ok(self.env()?.into_iter().map(quoted).collect::<Vec<_>>().join("\n"))
    }

    /// One command at a time changes an instance. Released when dropped, also by a crash.
    fn lock(&self) -> Result<fs::File> {
        let path = self.dir.join("lock");
        let failed = |error| format!("cannot lock {}: {error}", path.display());
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let file = fs::File::create(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }
}

/// Stops the servers and forgets those that stopped. Returns what went wrong.
fn stop_all(state: &mut State, servers: &[Server]) -> Vec<String> {
    let mut failures = Vec::new();
    for &server in servers {
        let stopped = match state.running(server) {
            Some(running) => running.process.stop(server.stop_signal(), STOP_WAIT),
            None => Ok(()),
        };
        match stopped {
            Ok(()) => state.forget(server),
            Err(error) => failures.push(format!("{}: {error}", server.name())),
        }
    }
    failures
}

fn wait_ready(server: Server, running: &Running) -> Result {
    let deadline = Instant::now() + READY_WAIT;
    loop {
        let error = match server.probe(running) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let gone = !running.process.alive();
        if gone || Instant::now() > deadline {
            let what = if gone { "stopped right after its start" } else { "does not answer" };
            let (name, log) = (server.name(), running.log.display());
            let tail = tail(&running.log, 20);
            return Err(format!("{name} {what}: {error}\n\nThe end of {log}:\n{tail}"));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Free ports of 127.0.0.1, all different: they are held together and let go together.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        // Some servers put a second port 10,000 higher; stay where that exists.
        let bound = loop {
            let listener = TcpListener::bind("127.0.0.1:0");
            let listener = listener.map_err(|error| format!("no free port: {error}"))?;
            let number = listener.local_addr().map_err(|error| error.to_string())?.port();
            held.push(listener);
            if number < 55_000 {
                break number;
            }
            if held.len() > 1_000 {
                return Err("no free port below 55,000".to_owned());
            }
        };
        *port = bound;
    }
    Ok(ports)
}

/// Starts a server of its own process group (Ctrl-C in the terminal is not for it), its output in a
/// log file.
fn spawn_logged(command: &mut Command, log: &Path) -> Result<Process> {
    use std::os::unix::process::CommandExt;
    let failed = |error| format!("cannot write {}: {error}", log.display());
    let out = fs::File::create(log).map_err(failed)?;
    let err = out.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let child = command.spawn().map_err(|error| {
        format!("cannot start {}: {error}", Path::new(command.get_program()).display())
    })?;
    Process::of(child.id()).ok_or_else(|| format!("it stopped at once:\n{}", tail(log, 20)))
}

/// A short Python program in the environment of [`install`].
fn python(script: &str, args: &[&str]) -> Command {
    let mut command = program(places::venv_bin("python"));
    command.arg("-c").arg(script).args(args);
    command
}
