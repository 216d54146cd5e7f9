//! What an instance has running, as a small JSON file between two commands.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Server;
use crate::Result;
use crate::process::Process;

/// One running server.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) port: u16,
    /// The port of something else it offers.
    pub(crate) side_port: Option<u16>,
    pub(crate) log: PathBuf,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    servers: Map<String, Value>,
}

impl State {
    /// The state on disk; an absent or damaged file means that nothing runs.
    pub(crate) fn load(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join("state.json")).unwrap_or_default();
        let servers = serde_json::from_str(&text).unwrap_or_default();
        Self { servers }
    }

    pub(crate) fn save(&self, dir: &Path) -> Result {
        let path = dir.join("state.json");
        let text = format!("{:#}\n", Value::Object(self.servers.clone()));
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// The server, if it still runs.
    pub(crate) fn running(&self, server: Server) -> Option<Running> {
        let value = self.servers.get(server.name())?;
        let running = Running {
            process: Process::from_json(value)?,
            port: u16::try_from(value["port"].as_u64()?).ok()?,
            side_port: value["side-port"].as_u64().and_then(|port| u16::try_from(port).ok()),
            log: value["log"].as_str()?.into(),
        };
        running.process.alive().then_some(running)
    }

    pub(crate) fn set(&mut self, server: Server, running: &Running) {
        let mut value = running.process.to_json();
        value["port"] = json!(running.port);
        value["side-port"] = json!(running.side_port);
        value["log"] = json!(running.log);
        self.servers.insert(server.name().to_owned(), value);
    }

    pub(crate) fn forget(&mut self, server: Server) {
        self.servers.remove(server.name());
    }
}
