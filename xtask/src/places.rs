//! Where things are: the checkout, cargo's target folder and what we keep below it.

use std::env;
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

/// The product's binary in a profile's folder (`debug`, `release`).
pub(crate) fn polder(profile: &str) -> PathBuf {
    target().join(profile).join("polder")
}
