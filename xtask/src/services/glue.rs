//! AWS Glue for the tests: moto from the Python environment, behind a gate of ours
//! (`interop/glue_server.py`). The demo has none.

use super::install::more_packages;
use super::state::Running;
use super::{Instance, free_ports, python, spawn_logged};
use crate::command::{command, output};
use crate::{Result, places};

const LIST: &str = "
import sys, boto3, botocore.config
config = botocore.config.Config(connect_timeout=2, read_timeout=10, retries={'max_attempts': 1})
boto3.client(
    'glue', endpoint_url=sys.argv[1], region_name='us-east-1', config=config,
    aws_access_key_id='ready', aws_secret_access_key='ready',
).get_databases()
";

pub(super) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

pub(super) fn probe(url: &str) -> Result {
    output("Glue's list of databases", &mut python(LIST, &[url])).map(drop)
}

/// The Python environment itself is there already.
pub(super) fn install() -> Result {
    more_packages("installing Glue's stand-in", &["glue.txt"])
}

pub(super) fn spawn(instance: &Instance) -> Result<Running> {
    let [port] = free_ports()?;
    let mut server = command(places::venv_bin("python"));
    server.args(["interop/glue_server.py", "--port", &port.to_string()]);
    server.env("PYTHONDONTWRITEBYTECODE", "1");
    let log = instance.dir.join("glue.log");
    Ok(Running { process: spawn_logged(&mut server, &log)?, port, side_port: None, log })
}
