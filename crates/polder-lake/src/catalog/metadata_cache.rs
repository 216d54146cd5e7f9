//! Parsed metadata by location. Metadata files never change, so an entry is never wrong; which file
//! is current always comes from the catalog.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use iceberg::spec::TableMetadata;

/// Files remembered. The oldest leaves first.
const ENTRIES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct MetadataCache {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_location: HashMap<String, Arc<TableMetadata>>,
    order: VecDeque<String>,
}

impl MetadataCache {
    pub(super) fn get(&self, location: &str) -> Option<Arc<TableMetadata>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_location.get(location).cloned()
    }

    /// Remembers and returns the metadata.
    pub(super) fn put(&self, location: &str, metadata: Arc<TableMetadata>) -> Arc<TableMetadata> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.by_location.insert(location.to_owned(), Arc::clone(&metadata));
        if known.is_none() {
            entries.order.push_back(location.to_owned());
        }
        while entries.order.len() > ENTRIES_MAX {
            if let Some(oldest) = entries.order.pop_front() {
                entries.by_location.remove(&oldest);
            }
        }
        metadata
    }
}
