//! Where things are: the checkout, cargo's target folder and what we keep below it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The checkout.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// Cargo's target folder. This program runs from `<target>/<profile>/`, whatever chose the folder:
/// the environment, cargo's configuration or the default.
pub(crate) fn target() -> PathBuf {
    let from_exe = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.into()));
    from_exe.unwrap_or_else(|| root().join("target"))
}

/// The Python environment with the servers, drivers and readers.
pub(crate) fn venv() -> PathBuf {
    target().join("venv")
}

/// A program of the Python environment.
pub(crate) fn venv_bin(program: &str) -> PathBuf {
    venv().join("bin").join(program)
}

/// The Python environment with Airflow, which pins much of what others need newer.
pub(crate) fn airflow() -> PathBuf {
    target().join("airflow")
}

/// The Python environment with what the benchmarks compare with.
pub(crate) fn peers() -> PathBuf {
    target().join("peers")
}

/// Trino, for the reader tests.
pub(crate) fn trino() -> PathBuf {
    target().join("trino")
}

/// What Spark needs for Iceberg, for the reader tests.
pub(crate) fn spark_jars() -> PathBuf {
    target().join("spark-jars")
}

/// Iceberg's reference REST catalog, for tests.
pub(crate) fn rest_jars() -> PathBuf {
    target().join("rest-jars")
}

/// An `OpenID` provider, for the reader tests.
pub(crate) fn oidc_provider() -> PathBuf {
    target().join("oidc-provider")
}

/// A JDK 17 where Debian puts one: Spark and Hadoop refuse newer ones. Without such a folder
/// programs find their own Java.
pub(crate) fn java_17() -> Option<PathBuf> {
    let entries = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let mut found = entries.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("java-17-openjdk"))
            && path.join("bin/javac").exists()
    });
    found.next()
}

/// The product's binary in a profile's folder (`debug`, `release`).
pub(crate) fn polder(profile: &str) -> PathBuf {
    target().join(profile).join("polder")
}
