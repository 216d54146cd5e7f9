//! Everything Polder reads from: PostgreSQL, MongoDB, files, and memory for tests.
//!
//! [`open`] is the one place where a configured source meets its implementation. Each implementation
//! passes [`conformance`]. Nothing here knows of runs, checkpoints' storage or the lake.

mod backoff;
mod blocking;
pub mod conformance;
mod connections;
mod document;
pub mod files;
pub mod memory;
pub mod mongodb;
mod names;
pub mod postgres;
pub mod shares;
mod values;

use std::path::Path;
use std::sync::Arc;

use polder_core::spec::{SourceSpec, StorageConfig};
use polder_core::{Result, SecretResolver, Source, keys};

pub use connections::Connections;

/// What sources are opened with.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    pub storage: &'a StorageConfig,
    pub secrets: &'a dyn SecretResolver,
    /// The folder of `polder.toml`: relative paths of the configuration start there, and lines of files
    /// set aside (`on_bad_line: reject`) are written below it.
    pub base: &'a Path,
    /// Those of the process, among which the source's are counted.
    pub connections: &'a Arc<Connections>,
}

/// Makes a configured source, without connecting to it.
///
/// # Errors
/// `spec.secret` for a secret that cannot be resolved; `spec.invalid` for an address that is none.
pub fn open(name: &str, spec: &SourceSpec, means: Means<'_>) -> Result<Arc<dyn Source>> {
    let Means { storage, secrets, base, connections } = means;
    Ok(match spec {
        SourceSpec::Postgres(spec) => {
            let source = postgres::PostgresSource::open(name, secrets.resolve(&spec.url)?)?;
            Arc::new(source.within(connections, spec.max_connections))
        }
        SourceSpec::Mongodb(spec) => {
            let url = secrets.resolve(&spec.url)?;
            let source = mongodb::MongodbSource::new(name, url, &spec.database);
            Arc::new(source.within(connections, spec.max_connections))
        }
        SourceSpec::Files(spec) => {
            let place = files::Place::open(&spec.url, storage, secrets, base)?;
            Arc::new(files::FilesSource::new(name, place, base))
        }
    })
}
