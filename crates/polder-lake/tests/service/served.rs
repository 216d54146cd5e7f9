//! The catalog that `polder serve` offers, as a catalog of others: the built binary, over HTTP, on local disk.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use polder_lake::{CatalogSettings, LakeSettings, RestSettings};
use tempfile::TempDir;

use super::rest::connect;
use crate::faulty::Place;
use crate::support::*;
use crate::{faults, stress};

/// What the server says before its address.
const ADDRESS: &str = "Iceberg REST catalog: ";
/// Looks for it, a tenth of a second apart: the machine may be busy.
const LOOKS_MAX: usize = 1_800;

/// The binary. Cargo builds it with the tests of the workspace, before it runs any, and puts it beside
/// them; `POLDER_BIN` names another one.
fn binary() -> OsString {
    if let Some(named) = std::env::var_os("POLDER_BIN") {
        return named;
    }
    let own = std::env::current_exe().expect("this test's own file");
    let built = own.parent().and_then(Path::parent).expect("target/<profile>/deps").join("polder");
    assert!(built.exists(), "{} is not built: run `cargo build --workspace`", built.display());
    built.into_os_string()
}

/// `polder serve` with a catalog in SQLite, until dropped.
pub(super) struct Served {
    folder: TempDir,
    server: Child,
    pub(super) uri: String,
}

impl Served {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let warehouse = Scratch::settings(&folder).warehouse;
        let config = format!(
            "[lake]\nwarehouse = \"{warehouse}\"\ncatalog = \"sqlite://catalog.db\"\n\n\
             [store]\nurl = \"sqlite://store.db\"\n"
        );
        std::fs::write(folder.path().join("polder.toml"), config).expect("configuration");
        let said = folder.path().join("said");
        let mut command = Command::new(binary());
        command.current_dir(folder.path()).args(["serve", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&said).expect("a file for what it says"));
        let child = command.spawn().expect("polder serve");
        let mut served = Self { folder, server: child, uri: String::new() };
        for _ in 0..LOOKS_MAX {
            let text = std::fs::read_to_string(&said).expect("what it says");
            let mut whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(uri) = whole.find_map(|line| line.strip_prefix(ADDRESS)) {
                uri.clone_into(&mut served.uri);
                return served;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("polder serve does not start: {}", std::fs::read_to_string(&said).expect("said"));
    }

    fn rest(&self) -> RestSettings {
        RestSettings { uri: self.uri.clone(), ..RestSettings::default() }
    }

    /// It takes an org's tables in its own warehouse alone.
    pub(super) fn place(&self) -> Place {
        let catalog = CatalogSettings::Rest(self.rest());
        let settings = LakeSettings { catalog, ..Scratch::settings(&self.folder) };
        Place::Warehouse(Box::new(settings))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whatever the test has come to.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_through_our_own_served_catalog_are_exact() {
    let served = Served::start();
    faults::hold_sample(&connect(served.rest()), &served.place()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_through_our_own_served_catalog_lose_and_double_nothing() {
    let served = Served::start();
    stress::hold_all(&connect(served.rest()), &served.place(), true).await;
}
