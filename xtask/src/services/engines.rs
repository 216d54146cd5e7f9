//! The engines that the reader tests start themselves: those of `interop/engines.txt` in the Python
//! environment; Trino, and what Spark needs for Iceberg, from Maven Central into the target folder; an
//! `OpenID` provider from npm.

use std::fs;
use std::path::Path;

use super::install::more_packages;
use crate::command::{command, run};
use crate::{Result, places};

/// The newest on Maven Central.
const TRINO: &str = "476";
/// What the tests need; all 60 are 900 MB. The geospatial one is no option: others refer to it.
const TRINO_PLUGINS: [&str; 8] = [
    "geospatial",
    "iceberg",
    "memory",
    "mongodb",
    "postgresql",
    "resource-group-managers",
    "spooling-filesystem",
    "tpch",
];
const SPARK_JARS: [&str; 2] = [
    "org.apache.iceberg:iceberg-spark-runtime-4.0_2.13:1.11.0",
    "org.apache.iceberg:iceberg-aws-bundle:1.11.0",
];

/// Makes the Python environment's engines, `<target>/trino` and `<target>/spark-jars` unless they are
/// there. The environment itself is there already.
pub(crate) fn install() -> Result {
    // Together with the servers' packages, so that no engine replaces a version that is pinned there.
    more_packages("installing the Python engines (about 1.2 GB)", &["glue.txt", "engines.txt"])?;
    let jars = places::spark_jars();
    installed(&jars, &SPARK_JARS.join("\n"), || {
        SPARK_JARS.iter().try_for_each(|artifact| fetch("Iceberg for Spark", artifact, &jars))
    })?;
    install_oidc_provider()?;
    let trino = places::trino();
    let wanted = format!("{TRINO} {}", TRINO_PLUGINS.join(" "));
    installed(&trino, &wanted, || install_trino(&trino))
}

/// Has a folder made anew unless it was made for the same `wanted`.
pub(super) fn installed(folder: &Path, wanted: &str, make: impl FnOnce() -> Result) -> Result {
    let stamp = folder.join("polder-versions.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let failed = |error| format!("cannot prepare {}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    make()?;
    fs::write(&stamp, wanted).map_err(failed)
}

fn fetch(what: &str, artifact: &str, folder: &Path) -> Result {
    let mut maven = command("mvn");
    maven.args(["-B", "-q", "dependency:copy"]).arg(format!("-Dartifact={artifact}"));
    maven.arg(format!("-DoutputDirectory={}", folder.display()));
    run(&format!("fetching {what} ({artifact})"), &mut maven)
}

/// `<target>/oidc-provider`: exactly what `interop/oidc/package-lock.json` says, without running any
/// package's scripts.
fn install_oidc_provider() -> Result {
    let (from, to) = (places::root().join("interop/oidc"), places::oidc_provider());
    let failed = |error| format!("cannot prepare {}: {error}", to.display());
    let wanted = fs::read_to_string(from.join("package-lock.json")).map_err(failed)?;
    installed(&to, &wanted, || {
        for list in ["package.json", "package-lock.json"] {
            fs::copy(from.join(list), to.join(list)).map_err(failed)?;
        }
        let mut npm = command("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
            .current_dir(&to);
        run("fetching the OpenID provider", &mut npm)
    })
}

fn install_trino(home: &Path) -> Result {
    let failed = |error| format!("cannot prepare {}: {error}", home.display());
    fetch("Trino, 820 MB", &format!("io.trino:trino-server:{TRINO}:tar.gz"), home)?;
    let archive = home.join(format!("trino-server-{TRINO}.tar.gz"));
    let mut unpack = command("tar");
    unpack.arg("-xzf").arg(&archive).args(["--strip-components=1", "-C"]).arg(home);
    run("unpacking Trino", &mut unpack)?;
    fs::remove_file(&archive).map_err(failed)?;
    prune(&home.join("plugin")).map_err(failed)
}

fn prune(plugins: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(plugins)? {
        let entry = entry?;
        if !TRINO_PLUGINS.iter().any(|kept| entry.file_name() == *kept) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
