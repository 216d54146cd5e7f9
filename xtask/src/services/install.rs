//! Installs what the tests need and a machine may lack: PostgreSQL, Maven, the Python environment.
//!
//! A second call finds everything in place and does nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::postgres::is_root;
use crate::command::{command, output, run};
use crate::{Result, places};

/// Makes the machine ready for `services up`.
pub(crate) fn install() -> Result {
    if postgres_bin().is_err() {
        install_postgres()?;
        postgres_bin()?;
    }
    if command("mvn").arg("--version").output().is_err() {
        apt_install("Maven and a JDK 17", &["maven", "openjdk-17-jdk-headless"])?;
    }
    if !python_can_make_environments() {
        apt_install("Python's venv module", &["python3", "python3-venv"])?;
    }
    python_environment()
}

/// The load generator of `bench catalog`; nothing else needs it.
pub(crate) fn install_wrk() -> Result {
    if command("wrk").arg("--version").output().is_ok() {
        return Ok(());
    }
    apt_install("wrk", &["wrk"])
}

/// The folder of PostgreSQL's server programs: `pg_config`'s, else the newest of the distribution's.
pub(crate) fn postgres_bin() -> Result<PathBuf> {
    let has_server = |bin: &Path| bin.join("initdb").exists();
    let configured = output("pg_config", Command::new("pg_config").arg("--bindir"));
    if let Some(bin) = configured.ok().map(PathBuf::from).filter(|bin| has_server(bin)) {
        return Ok(bin);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, bin)| has_server(bin))
        .max();
    let (_, bin) = newest.ok_or("PostgreSQL's server programs are not installed")?;
    Ok(bin)
}

fn install_postgres() -> Result {
    // Debian's package creates and starts a cluster of its own unless told otherwise. Leave the
    // setting alone where the machine's owner already has PostgreSQL's tools.
    let settings = Path::new("/etc/postgresql-common/createcluster.conf");
    if !settings.exists() {
        apt_install("PostgreSQL's common files", &["postgresql-common"])?;
        let script = "echo 'create_main_cluster = false' >> \"$0\"";
        let mut append = as_root("sh")?;
        run("no cluster of the distribution's", append.args(["-c", script]).arg(settings))?;
    }
    apt_update()?;
    let pinned = command("apt-cache").args(["show", "postgresql-15"]).output();
    let has_15 = pinned.is_ok_and(|output| output.status.success());
    let package = if has_15 { "postgresql-15" } else { "postgresql" };
    apt_install("PostgreSQL", &[package])
}

fn apt_update() -> Result {
    run("apt-get update", as_root("apt-get")?.args(["update", "-qq"]))
}

fn apt_install(what: &str, packages: &[&str]) -> Result {
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!(
            "{what} is missing and this machine has no apt-get: install {} yourself",
            packages.join(" ")
        ));
    }
    apt_update()?;
    let mut install = as_root("apt-get")?;
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    run(&format!("apt-get install {}", packages.join(" ")), &mut install)
}

/// A command with root's rights.
fn as_root(program: &str) -> Result<Command> {
    let mut command = if is_root() {
        command(program)
    } else if Path::new("/usr/bin/sudo").exists() {
        let mut sudo = command("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", program]);
        sudo
    } else {
        return Err(format!("`{program}` needs root's rights, and there is no sudo"));
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn python_can_make_environments() -> bool {
    let probe = command("python3").args(["-c", "import venv, ensurepip"]).output();
    probe.is_ok_and(|output| output.status.success())
}

/// `<target>/venv` with exactly what `interop/requirements.txt` says, rebuilt when that changes.
fn python_environment() -> Result {
    let list = places::root().join("interop/requirements.txt");
    environment("the Python environment (about 800 MB)", &places::venv(), &list)
}

/// `<target>/airflow`, an environment of Airflow's own: it pins much of what others need newer.
pub(crate) fn install_airflow() -> Result {
    let list = places::root().join("python/airflow-provider-polder/requirements.txt");
    environment("Airflow (about 350 MB)", &places::airflow(), &list)
}

/// `<target>/peers`, an environment of what the benchmarks compare with.
pub(crate) fn install_peers() -> Result {
    let list = places::root().join("xtask/bench/requirements.txt");
    environment("the benchmarks' peers (about 500 MB)", &places::peers(), &list)
}

/// A Python environment with exactly what a list says, rebuilt when that changes.
fn environment(what: &str, folder: &Path, list: &Path) -> Result {
    let failed = |error| format!("cannot read {}: {error}", list.display());
    let wanted = fs::read_to_string(list).map_err(failed)?;
    let (python, stamp) = (folder.join("bin/python"), folder.join("polder-requirements.txt"));
    let works = command(&python).args(["-c", ""]).output().is_ok_and(|out| out.status.success());
    if works && fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut create = command("python3");
    create.args(["-m", "venv", "--clear"]).arg(folder).env_remove("PYTHONHOME");
    run(&format!("creating {what}"), &mut create)?;
    pip_install(&format!("installing {what}"), &python, &[list])?;
    fs::write(&stamp, wanted).map_err(|error| format!("cannot write {}: {error}", stamp.display()))
}

/// What more lists of `interop/` name, the last of them being the one that is wanted, together with
/// the environment's own list, so that nothing replaces a version that is pinned there. Gone with the
/// environment when that is rebuilt, and then installed again.
pub(super) fn more_packages(what: &str, lists: &[&str]) -> Result {
    let folder = places::root().join("interop");
    let lists: Vec<PathBuf> = lists.iter().map(|list| folder.join(list)).collect();
    let mut wanted = String::new();
    for list in &lists {
        let failed = |error| format!("cannot read {}: {error}", list.display());
        wanted += &fs::read_to_string(list).map_err(failed)?;
    }
    let name = lists.last().and_then(|list| list.file_name()).unwrap_or_default();
    let stamp = places::venv().join("polder-lists").join(name);
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let rest = folder.join("requirements.txt");
    let all: Vec<&Path> = lists.iter().chain([&rest]).map(PathBuf::as_path).collect();
    pip_install(what, &places::venv_bin("python"), &all)?;
    let failed = |error| format!("cannot write {}: {error}", stamp.display());
    fs::create_dir_all(places::venv().join("polder-lists")).map_err(failed)?;
    fs::write(&stamp, wanted).map_err(failed)
}

/// Installs what the files list into the environment of this Python, all of it or nothing.
fn pip_install(what: &str, python: &Path, lists: &[&Path]) -> Result {
    let mut install = command(python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    for list in lists {
        install.arg("-r").arg(list);
    }
    install.env_remove("PYTHONPATH");
    run(what, &mut install)
}
