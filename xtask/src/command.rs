//! Running other programs: announced, awaited and with a clear message when they fail.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, places};

/// A command that starts in the checkout and reads nothing from the terminal.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(places::root()).stdin(Stdio::null());
    command
}

/// Cargo, as the one that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(cargo);
    command.args(args);
    // Set by `cargo run` for this program; a child's build scripts must not see them change, or
    // what depends on them (`ring`, so nearly everything) is compiled again.
    for (name, _) in std::env::vars_os() {
        let of_our_package = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        if of_our_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Says what runs, runs it with our output, and fails when it does.
pub(crate) fn run(what: &str, command: &mut Command) -> Result {
    eprintln!("\n── {what}");
    quiet_status(what, command)
}

/// Runs with our output, without a headline.
pub(crate) fn quiet_status(what: &str, command: &mut Command) -> Result {
    let status = command.status().map_err(|error| not_started(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed ({status})")) }
}

/// Runs and returns what it printed; on failure the message holds what it said.
pub(crate) fn output(what: &str, command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(format!("{what} failed ({}):\n{}", output.status, said.trim_end()))
}

fn not_started(command: &Command, error: &std::io::Error) -> String {
    format!("cannot start {}: {error}", Path::new(command.get_program()).display())
}
