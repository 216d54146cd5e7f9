//! Everything Polder reads from: PostgreSQL, MongoDB, files, and memory for tests.
//!
//! [`open`] is the one place where a configured source meets its implementation. Each implementation
//! passes [`conformance`]. Nothing here knows of runs, checkpoints' storage or the lake.

mod blocking;
pub mod conformance;
mod document;
pub mod files;
pub mod memory;
pub mod mongodb;
mod names;
pub mod postgres;
mod values;

use std::path::Path;
use std::sync::Arc;

use polder_core::spec::{SourceSpec, StorageConfig};
use polder_core::{Result, SecretResolver, Source, keys};

/// Makes a configured source, without connecting to it.
///
/// `base` is the folder of `polder.toml`: relative paths of the configuration start there, and lines
/// of files set aside (`on_bad_line: reject`) are written below it.
///
/// # Errors
/// `spec.secret` for a secret that cannot be resolved; `spec.invalid` for an address that is none.
pub fn open(
    name: &str,
    spec: &SourceSpec,
    storage: &StorageConfig,
    secrets: &dyn SecretResolver,
    base: &Path,
) -> Result<Arc<dyn Source>> {
    Ok(match spec {
        SourceSpec::Postgres(spec) => {
            Arc::new(postgres::PostgresSource::open(name, secrets.resolve(&spec.url)?)?)
        }
        SourceSpec::Mongodb(spec) => {
            let url = secrets.resolve(&spec.url)?;
            Arc::new(mongodb::MongodbSource::new(name, url, &spec.database))
        }
        SourceSpec::Files(spec) => {
            let place = files::Place::open(&spec.url, storage, secrets, base)?;
            Arc::new(files::FilesSource::new(name, place, base))
        }
    })
}
