//! PostgreSQL from the distribution's package, as a cluster of our own.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::install::postgres_bin;
use super::state::Running;
use super::{Instance, STOP_WAIT, Server, free_ports};
use crate::command::{command, output};
use crate::process::Process;
use crate::{Result, places};

/// The address of a database. The server listens on 127.0.0.1 alone and trusts it.
pub(crate) fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

/// Runs one SQL text and returns its rows, columns separated by `|`.
pub(crate) fn psql(url: &str, sql: &str) -> Result<String> {
    let mut psql = command(postgres_bin()?.join("psql"));
    output("psql", psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-Atq", "-d", url, "-c", sql]))
}

/// The cluster's folder. PostgreSQL refuses to run as root, and its own user cannot enter root's
/// home, so for root the data goes below the system's temporary folder.
pub(super) fn folder(instance: &Instance) -> PathBuf {
    if !is_root() {
        return instance.dir.join("postgres");
    }
    let target = places::target();
    let mut hasher = DefaultHasher::new();
    target.hash(&mut hasher);
    let root = places::root();
    let checkout = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("polder-{checkout}-{:08x}-{}", hasher.finish() as u32, instance.name);
    env::temp_dir().join(name)
}

pub(super) fn spawn(instance: &Instance) -> Result<Running> {
    let folder = folder(instance);
    let (data, log) = (folder.join("data"), folder.join("postgres.log"));
    make_folder(&folder)?;
    if !data.join("PG_VERSION").exists() {
        let mut initdb = as_postgres(&postgres_bin()?.join("initdb"));
        initdb.arg("-D").arg(&data);
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]);
        output("initdb", &mut initdb)?;
    }
    stop_stray(instance)?;
    let [port] = free_ports()?;
    let mut start = as_postgres(&postgres_bin()?.join("pg_ctl"));
    start.arg("-D").arg(&data).arg("-l").arg(&log);
    start.args(["-w", "-t", "60", "-o", &settings(&instance.name, port), "start"]);
    output("pg_ctl start", &mut start)
        .map_err(|error| format!("{error}\n\nThe end of its log:\n{}", super::tail(&log, 20)))?;
    let process = postmaster(&data).ok_or("PostgreSQL stopped right after its start")?;
    Ok(Running { process, port, side_port: None, log })
}

/// The server that runs on this data folder, by the file it keeps there.
fn postmaster(data: &Path) -> Option<Process> {
    let file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = file.lines().next()?.trim().parse().ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = String::from_utf8_lossy(&arguments).contains(&*data.to_string_lossy());
    if ours { Process::of(pid) } else { None }
}

/// Stops a server that started while the command that started it was interrupted.
pub(super) fn stop_stray(instance: &Instance) -> Result {
    match postmaster(&folder(instance).join("data")) {
        Some(process) => process.stop(Server::Postgres.stop_signal(), STOP_WAIT),
        None => Ok(()),
    }
}

fn settings(instance: &str, port: u16) -> String {
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        // TCP alone: a socket's path below a long target folder would be too long.
        "unix_socket_directories=".to_owned(),
        // Tests beside each other have pools of their own, dozens at a time.
        "max_connections=400".to_owned(),
    ];
    let more: &[&str] = match instance {
        // Load as fast as possible, then hold still while we measure.
        "bench" => &[
            "fsync=off",
            "full_page_writes=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "max_wal_size=8GB",
            "shared_buffers=1GB",
            "maintenance_work_mem=256MB",
            "autovacuum=off",
        ],
        "demo" => &["wal_level=logical", "synchronous_commit=off"],
        // Test data need not survive a power cut.
        _ => &["wal_level=logical", "fsync=off", "full_page_writes=off"],
    };
    settings.extend(more.iter().map(|&setting| setting.to_owned()));
    settings.iter().map(|setting| format!("-c {setting}")).collect::<Vec<_>>().join(" ")
}

fn make_folder(folder: &Path) -> Result {
    let mut install = command("install");
    install.args(["-d", "-m", "700"]);
    if is_root() {
        install.args(["-o", "postgres"]);
    }
    output("creating PostgreSQL's folder", install.arg(folder)).map(drop)
}

/// A command as the user PostgreSQL runs as, in a folder that user can enter.
fn as_postgres(program: &Path) -> Command {
    let mut command = if is_root() { command("runuser") } else { command(program) };
    if is_root() {
        command.args(["-u", "postgres", "--"]).arg(program);
    }
    command.current_dir("/");
    command
}

pub(super) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
