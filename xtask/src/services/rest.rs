//! Apache Iceberg's reference REST catalog (`interop/rest/ReferenceServer.java`): another
//! implementation that the lake has to work with, and that ours is measured beside.

use std::fs;

use super::engines::installed;
use super::state::Running;
use super::{Instance, free_ports, python, spawn_logged};
use crate::command::{command, output, run};
use crate::{Result, places};

const CONFIGURATION: &str = "
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + '/v1/config', timeout=5).read()
";

/// Makes `<target>/rest-jars`: the server is part of the compatibility kit, so the jars are those.
pub(crate) fn install() -> Result {
    let pom = places::root().join("interop/rck/pom.xml");
    let failed = |error| format!("cannot read {}: {error}", pom.display());
    let wanted = fs::read_to_string(&pom).map_err(failed)?;
    let jars = places::rest_jars();
    installed(&jars, &wanted, || {
        let mut maven = command("mvn");
        maven.args(["-B", "-q", "dependency:copy-dependencies", "-DincludeScope=test"]);
        maven.arg("--file").arg(&pom).arg(format!("-DoutputDirectory={}", jars.display()));
        maven.arg(format!("-Drck.build={}", places::target().join("rck/build").display()));
        run("fetching Iceberg's reference catalog (125 MB)", &mut maven)
    })
}

pub(super) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

pub(super) fn probe(url: &str) -> Result {
    output("REST catalog", &mut python(CONFIGURATION, &[url])).map(drop)
}

pub(super) fn spawn(instance: &Instance) -> Result<Running> {
    let data = instance.dir.join("rest");
    fs::create_dir_all(&data).map_err(|error| format!("cannot create the data folder: {error}"))?;
    let [port] = free_ports()?;
    let java = places::java_17().map_or_else(|| "java".into(), |home| home.join("bin/java"));
    let mut server = command(java);
    server.args(["-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]);
    server.arg(places::rest_jars().join("*"));
    server.args(["interop/rest/ReferenceServer.java", &port.to_string()]);
    // Its commits wait for one another instead of failing.
    server.arg(format!("jdbc:sqlite:{}/catalog.db?busy_timeout=30000", data.display()));
    server.arg(format!("file://{}/warehouse", data.display())).args(["reference", "1"]);
    let log = instance.dir.join("rest.log");
    let process = spawn_logged(&mut server, &log)?;
    Ok(Running { process, port, side_port: None, log })
}
