//! Metadata files, for catalogs that keep a pointer to the present one: reading them, and writing the
//! next one before the pointer moves.

use std::sync::Arc;

use bytes::Bytes;
use iceberg::spec::TableMetadata;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use uuid::Uuid;

use super::metadata_cache::MetadataCache;
use super::{CommitFailure, TableState};
use crate::storage::Store;

#[derive(Debug)]
pub(super) struct MetadataFiles {
    store: Store,
    cache: MetadataCache,
}

impl MetadataFiles {
    pub(super) fn new(store: Store) -> Self {
        Self { store, cache: MetadataCache::default() }
    }

    /// The table as the metadata file says it is.
    ///
    /// # Errors
    /// `lake.corrupt` for a file that is missing or cannot be understood.
    pub(super) async fn state_at(
        &self,
        ident: &TableIdent,
        location: String,
    ) -> Result<TableState> {
        let metadata = if let Some(metadata) = self.cache.get(&location) {
            metadata
        } else {
            let bytes = self.store.read(&location).await.map_err(missing_metadata)?;
            let metadata = parse_metadata(&bytes, &location)?;
            self.cache.put(&location, Arc::new(metadata))
        };
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
    }

    /// Checks the requirements and writes the metadata that the updates lead to. The file is there
    /// and survives a power cut when this returns, and no pointer leads to it yet: either
    /// [`Self::keep`] or [`Self::discard`] what it gives, or leave it where nobody knows.
    pub(super) async fn write_next(
        &self,
        ident: &TableIdent,
        base: Option<&TableState>,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        super::check(base, requirements)?;
        super::check_sequence(base, &updates)?;
        super::check_names(base, &updates)?;
        let metadata = super::apply(base, updates).map_err(CommitFailure::Rejected)?;
        let from = base.map(|base| base.metadata_location.as_str());
        let location = next_metadata_file(from, &format!("{}/metadata", metadata.location()));
        let bytes = serde_json::to_vec(&metadata).map_err(|cause| {
            let error = Error::new(ErrorCode::Internal, "cannot serialise the table's metadata");
            CommitFailure::Rejected(error.caused_by(cause))
        })?;
        self.store.put_new(&location, Bytes::from(bytes)).await.map_err(CommitFailure::Rejected)?;
        let metadata = Arc::new(metadata);
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
    }

    /// The state that the pointer leads to now.
    pub(super) fn keep(&self, next: TableState) -> TableState {
        let metadata = self.cache.put(&next.metadata_location, next.metadata);
        TableState { metadata, ..next }
    }

    /// Removes a file that no pointer leads to or ever will. If it stays, orphan removal finds it.
    pub(super) async fn discard(&self, next: TableState) {
        let _ = self.store.delete(vec![next.metadata_location]).await;
    }
}

/// `<folder>/<version>-<uuid>.metadata.json`, as Iceberg's own catalogs name it: one version after
/// `base`.
pub(super) fn next_metadata_file(base: Option<&str>, folder: &str) -> String {
    let version = base
        .and_then(|base| base.rsplit('/').next()?.split('-').next()?.parse().ok())
        .map_or(0, |version: u64| version + 1);
    format!("{folder}/{version:05}-{}.metadata.json", Uuid::new_v4())
}

/// Metadata files of other engines may be compressed (spec, *Appendix D*: `write.metadata.compression-codec`).
pub(super) fn parse_metadata(bytes: &[u8], location: &str) -> Result<TableMetadata> {
    const GZIP: [u8; 2] = [0x1F, 0x8B];
    let not_understood = || {
        Error::new(ErrorCode::LakeCorrupt, "the table's metadata cannot be understood")
            .detail(location)
    };
    let parsed = if bytes.starts_with(&GZIP) {
        serde_json::from_reader(flate2::read::GzDecoder::new(bytes))
    } else {
        serde_json::from_slice(bytes)
    };
    parsed.map_err(|cause| not_understood().caused_by(cause))
}

fn missing_metadata(error: Error) -> Error {
    if error.code() != ErrorCode::LakeNotFound {
        return error;
    }
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata file is missing").caused_by(error)
}
