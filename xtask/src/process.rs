//! Processes that outlive the command that started them, named so that a reused pid is never taken
//! for ours.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::command::output;

/// A pid together with the moment the kernel started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    /// Clock ticks after boot (`/proc/<pid>/stat`, field 22).
    started_ticks: u64,
}

impl Process {
    /// The process that has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started_ticks: start_of(&stat)? })
    }

    pub(crate) fn alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }

    /// Sends the signal and waits until the process is gone; after `wait` it is killed.
    pub(crate) fn stop(&self, signal: &str, wait: Duration) -> Result {
        for signal in [signal, "KILL"] {
            if !self.alive() {
                return Ok(());
            }
            // The shell has `kill` built in; the standard library has no such call.
            let script = format!("kill -{signal} {}", self.pid);
            if let Err(error) = output("kill", Command::new("sh").args(["-c", &script]))
                && self.alive()
            {
                return Err(error);
            }
            let deadline = Instant::now() + wait;
            while self.alive() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(50));
            }
        }
        if self.alive() { Err(format!("process {} does not stop", self.pid)) } else { Ok(()) }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "pid": self.pid, "started_ticks": self.started_ticks })
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let pid = u32::try_from(value["pid"].as_u64()?).ok()?;
        Some(Self { pid, started_ticks: value["started_ticks"].as_u64()? })
    }
}

/// Field 22, unless the process is a zombie. The second field is the name in parentheses, which may
/// itself hold spaces and parentheses, so count from the last one.
fn start_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_field_22_and_zombies_are_dead() {
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_of(&format!("9 (a) b) S {tail}")), Some(777));
        assert_eq!(start_of(&format!("9 (x) Z {tail}")), None);
        assert_eq!(start_of("9 (x"), None);
    }

    #[test]
    fn a_process_is_alive_until_it_stops() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let process = Process::of(child.id()).expect("it runs");
        assert_eq!(Process::from_json(&process.to_json()).as_ref(), Some(&process));
        assert!(process.alive());
        let stranger = Process { started_ticks: process.started_ticks + 1, ..process.clone() };
        assert!(!stranger.alive(), "a reused pid is not ours");
        process.stop("TERM", Duration::from_mins(1)).expect("stops");
        assert!(!process.alive());
        child.wait().expect("reaped");
    }
}
