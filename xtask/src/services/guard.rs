//! Stops an instance when the command that started it ends, however it ends.
//!
//! The guard is a process of its own that reads from a pipe whose other end only the command holds.
//! Ctrl-C, a crash or `kill -9` close the pipe; the guard then takes the servers down.

use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use super::Instance;
use crate::Result;
use crate::command::command;

pub(crate) struct Guard {
    child: Option<Child>,
}

impl Guard {
    /// From now on the instance lives no longer than the returned value.
    pub(crate) fn start(instance: &Instance, purge: bool) -> Result<Self> {
        let exe = env::current_exe().map_err(|error| format!("where am I? {error}"))?;
        let mut guard = command(exe);
        guard.args(["services", "guard", "--name", &instance.name]);
        if purge {
            guard.arg("--purge");
        }
        guard.stdin(Stdio::piped()).process_group(0);
        let child = guard.spawn().map_err(|error| format!("cannot start the guard: {error}"))?;
        Ok(Self { child: Some(child) })
    }

    /// Takes the instance down and waits for it.
    pub(crate) fn stop(mut self) -> Result {
        self.finish()
    }

    fn finish(&mut self) -> Result {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let status = child.wait().map_err(|error| format!("the guard: {error}"))?;
        if status.success() { Ok(()) } else { Err("the services did not stop in order".to_owned()) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("xtask: {error}");
        }
    }
}

/// The guard's own life: wait for the end of the pipe, then stop the instance.
pub(super) fn watch(instance: &Instance, purge: bool) -> Result {
    // Nobody writes to the pipe: reading returns only at its end.
    let read = io::stdin().read_to_end(&mut Vec::new());
    eprintln!("stopping the {} services", instance.name);
    if purge {
        instance.purge()?;
    } else {
        instance.down()?;
    }
    read.map(drop).map_err(|error| format!("the guard's pipe: {error}"))
}
