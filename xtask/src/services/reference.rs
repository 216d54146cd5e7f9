//! Iceberg's own REST catalog server, to be measured beside ours. Its classes and what they need are
//! dependencies of the compatibility kit (`interop/rck/pom.xml`), so they come with the kit's.

use std::fs;
use std::path::PathBuf;

use crate::command::{command, run};
use crate::{Result, places};

/// Fetches the classes; returns the file that holds their class path. Maven is there already.
pub(crate) fn install() -> Result<PathBuf> {
    let folder = places::target().join("reference");
    let failed = |error| format!("cannot create {}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let path = folder.join("classpath");
    let mut maven = command("mvn");
    maven.args(["-B", "-q", "dependency:build-classpath", "--file", "interop/rck/pom.xml"]);
    maven.arg(format!("-Dmdep.outputFile={}", path.display()));
    run("Iceberg's reference server", &mut maven)?;
    Ok(path)
}
