//! `polder query-process`: a process of `polder serve`, and nothing for people.

use std::path::PathBuf;

use clap::Args;
use polder_core::Result;

use super::serve::Signals;
use crate::app::App;
use crate::processes::child;

#[derive(Debug, Args)]
pub(crate) struct QueryProcess {
    /// Where queries spill: a folder that nobody else uses. It goes with the process.
    spill: PathBuf,
}

impl QueryProcess {
    pub(crate) async fn run(self, load: impl FnOnce() -> Result<App>) -> Result<u8> {
        // They are sent to all of a group. The server says when it is over: its running queries end first.
        let _signals = Signals::listen()?;
        child::run(load, self.spill).await
    }
}
