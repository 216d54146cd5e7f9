//! Metadata files, for catalogs that keep a pointer to the present one: reading them, and writing the
//! next one before the pointer moves.

use std::sync::Arc;

use bytes::Bytes;
use iceberg::spec::TableMetadata;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::metadata_cache::MetadataCache;
use super::{CommitFailure, TableState, metadata_json};
use crate::storage::Store;

#[derive(Debug)]
pub(super) struct MetadataFiles {
    store: Store,
    cache: MetadataCache,
}

/// A state that is written, and that no pointer leads to yet.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) state: TableState,
    text: Arc<RawValue>,
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
        let metadata = if let Some(metadata) = self.cache.parsed(&location) {
            metadata
        } else {
            let text = self.text_at(&location).await?;
            let parsed = serde_json::from_str(text.get());
            let parsed = parsed.map_err(|cause| not_understood(&location).caused_by(cause))?;
            let metadata = Arc::new(parsed);
            self.cache.put_parsed(&location, &metadata, text.get().len());
            metadata
        };
        Ok(TableState { ident: ident.clone(), metadata, metadata_location: location })
    }

    /// The metadata as its file has it.
    pub(super) async fn text_at(&self, location: &str) -> Result<Arc<RawValue>> {
        if let Some(text) = self.cache.text(location) {
            return Ok(text);
        }
        let bytes = self.store.read_small(location).await.map_err(missing_metadata)?;
        let text: Arc<RawValue> = parse_json::<Box<RawValue>>(&bytes, location)?.into();
        self.cache.put_text(location, &text);
        Ok(text)
    }

    /// The metadata of a file that is there. A copy may outlive its file, and a table whose file is
    /// gone is not one to work with.
    pub(super) async fn text_now(&self, location: &str) -> Result<Arc<RawValue>> {
        match self.cache.text(location) {
            Some(text) => {
                self.store.check_there(location).await.map_err(missing_metadata)?;
                Ok(text)
            }
            None => self.text_at(location).await,
        }
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
    ) -> Result<Next, CommitFailure> {
        super::check(base, requirements)?;
        super::check_sequence(base, &updates)?;
        super::check_names(base, &updates)?;
        let metadata = super::apply(base, updates).map_err(CommitFailure::Rejected)?;
        let from = base.map(|base| base.metadata_location.as_str());
        let location = next_metadata_file(from, &format!("{}/metadata", metadata.location()));
        let text: Arc<RawValue> =
            metadata_json::text(&metadata).map_err(CommitFailure::Rejected)?.into();
        self.write(&location, &text).await.map_err(CommitFailure::Rejected)?;
        let (ident, metadata) = (ident.clone(), Arc::new(metadata));
        Ok(Next { state: TableState { ident, metadata, metadata_location: location }, text })
    }

    /// Writes a new metadata file. When this returns, it survives a power cut.
    pub(super) async fn write(&self, location: &str, text: &RawValue) -> Result<()> {
        self.store.put_new(location, Bytes::copy_from_slice(text.get().as_bytes())).await
    }

    /// The state that the pointer leads to now.
    pub(super) fn keep(&self, next: Next) -> TableState {
        let Next { state, text } = next;
        self.remember(&state.metadata_location, &state.metadata, &text);
        state
    }

    /// Keeps metadata that was just committed, for whoever asks for it next.
    pub(super) fn remember(
        &self,
        location: &str,
        metadata: &Arc<TableMetadata>,
        text: &Arc<RawValue>,
    ) {
        self.cache.put_parsed(location, metadata, text.get().len());
        self.cache.put_text(location, text);
    }

    /// Removes files that no pointer leads to or ever will. One that stays is found by orphan removal.
    pub(super) async fn discard(&self, locations: Vec<String>) {
        let _ = self.store.delete(locations).await;
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
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8], location: &str) -> Result<T> {
    const GZIP: [u8; 2] = [0x1F, 0x8B];
    let parsed = if bytes.starts_with(&GZIP) {
        serde_json::from_reader(flate2::read::GzDecoder::new(bytes))
    } else {
        serde_json::from_slice(bytes)
    };
    parsed.map_err(|cause| not_understood(location).caused_by(cause))
}

/// The metadata that a file holds.
///
/// # Errors
/// `lake.corrupt` if it cannot be understood.
pub(crate) fn parse_metadata(bytes: &[u8], location: &str) -> Result<TableMetadata> {
    parse_json(bytes, location)
}

fn not_understood(location: &str) -> Error {
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata cannot be understood").detail(location)
}

fn missing_metadata(error: Error) -> Error {
    if error.code() != ErrorCode::LakeNotFound {
        return error;
    }
    Error::new(ErrorCode::LakeCorrupt, "the table's metadata file is missing").caused_by(error)
}
