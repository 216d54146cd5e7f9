//! A server that speaks MongoDB's protocol: SecantusDB from the Python environment.
//!
//! It is a beta. `POLDER_TEST_MONGO_URL` names a real mongod that takes its place.

use std::env;
use std::fs;

use super::state::Running;
use super::{Instance, free_ports, python, spawn_logged};
use crate::command::{command, output};
use crate::{Result, places};

const PING: &str = "
import sys, pymongo
client = pymongo.MongoClient(sys.argv[1], serverSelectionTimeoutMS=3000)
client.admin.command('ping')
";

/// The address of a server that somebody else runs. For tests, which make databases of their own:
/// the demo drops and refills one, so it always has its own server.
pub(super) fn elsewhere(instance: &Instance) -> Option<String> {
    let url = env::var("POLDER_TEST_MONGO_URL").ok().filter(|url| !url.is_empty());
    url.filter(|_| instance.name == "test")
}

pub(super) fn url(port: u16) -> String {
    format!("mongodb://127.0.0.1:{port}/")
}

pub(super) fn probe(url: &str) -> Result {
    output("MongoDB ping", &mut python(PING, &[url])).map(drop)
}

pub(super) fn spawn(instance: &Instance) -> Result<Running> {
    let data = instance.dir.join("mongo");
    fs::create_dir_all(&data).map_err(|error| format!("cannot create the data folder: {error}"))?;
    let [port] = free_ports()?;
    let mut server = command(places::venv_bin("secantusd-py"));
    server.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--log-level", "WARNING"]);
    server.arg("--storage-path").arg(&data).current_dir(&instance.dir);
    let log = instance.dir.join("mongo.log");
    let process = spawn_logged(&mut server, &log)?;
    Ok(Running { process, port, side_port: None, log })
}
