//! Points of a run at which tests have it die, fail or wait, to see what is left.
//!
//! `POLDER_FAIL_AT` names the point and what happens there, once in a process: `staged=kill` (SIGKILL),
//! `staged=error`, or `staged=delay:FILE`, which makes the file and goes on when it is gone. Builds
//! without debug assertions, such as releases, have none of it.

use polder_core::Result;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The source's state is fixed; nothing is written.
    Planned,
    /// A split is read to its end.
    SplitRead,
    /// All rows are in data files, which no metadata names.
    Written,
    /// The new state is on the branch `staging`.
    Staged,
    /// What is staged was read back and found right.
    Audited,
    /// Readers have the new state.
    Published,
    /// The end of the run is recorded; nobody was told.
    Reported,
}

impl Point {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::SplitRead => "split_read",
            Self::Written => "written",
            Self::Staged => "staged",
            Self::Audited => "audited",
            Self::Published => "published",
            Self::Reported => "reported",
        }
    }
}

/// Says that a run has come to a point.
///
/// # Errors
/// `internal` where a test asks for it.
#[cfg(not(debug_assertions))]
#[inline]
pub fn reach(_point: Point) -> std::future::Ready<Result<()>> {
    std::future::ready(Ok(()))
}

/// Says that a run has come to a point.
///
/// # Errors
/// `internal` where a test asks for it.
#[cfg(debug_assertions)]
pub async fn reach(point: Point) -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static REACHED: AtomicBool = AtomicBool::new(false);
    let Some(action) = asked::action(point) else { return Ok(()) };
    if REACHED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    asked::act(point, &action).await
}

#[cfg(debug_assertions)]
mod asked {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use polder_core::{Error, ErrorCode, Result};

    use super::Point;

    const VARIABLE: &str = "POLDER_FAIL_AT";
    const LOOK: Duration = Duration::from_millis(20);
    /// 60 seconds: whoever should have removed the file is gone.
    const LOOKS_MAX: u32 = 3000;

    /// What is to happen at the point, if anything.
    pub(super) fn action(point: Point) -> Option<String> {
        let asked = std::env::var(VARIABLE).ok()?;
        let (at, action) = asked.split_once('=')?;
        (at == point.as_str()).then(|| action.to_owned())
    }

    pub(super) async fn act(point: Point, action: &str) -> Result<()> {
        let place = point.as_str();
        let failed = |what: &str| {
            Err(Error::new(ErrorCode::Internal, format!("{VARIABLE}: {what} at {place}")))
        };
        match action.split_once(':') {
            None if action == "error" => failed("an error was asked for"),
            None if action == "kill" => {
                // Ourselves, as the shell's parent: no code runs after it.
                Command::new("sh").args(["-c", "kill -KILL $PPID"]).status().ok();
                std::process::abort();
            }
            Some(("delay", file)) if std::fs::write(file, place).is_ok() => {
                for _ in 0..LOOKS_MAX {
                    if !Path::new(file).exists() {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                }
                failed("nobody removed the file")
            }
            _ => failed("what is asked for cannot be done"),
        }
    }
}
