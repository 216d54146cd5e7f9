//! Metadata by location, as text and parsed. Metadata files never change, so an entry is never wrong;
//! which file is current always comes from the catalog.

use std::sync::Arc;

use iceberg::spec::TableMetadata;
use moka::sync::Cache;
use serde_json::value::RawValue;

/// What texts may take. What was not used for long leaves first.
const TEXT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What parsed metadata may take, by the estimate below.
const PARSED_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Memory of parsed metadata for each byte of its text: schemas keep several maps of their fields.
const PARSED_TO_TEXT: usize = 10;
/// What an entry takes beside its content, about.
const ENTRY_BYTES: usize = 256;

#[derive(Debug)]
pub(super) struct MetadataCache {
    texts: Cache<String, Arc<RawValue>>,
    parsed: Cache<String, Parsed>,
}

#[derive(Clone, Debug)]
struct Parsed {
    metadata: Arc<TableMetadata>,
    text_bytes: usize,
}

impl Default for MetadataCache {
    fn default() -> Self {
        let weight = |location: &String, bytes: usize| {
            u32::try_from(location.len() + bytes + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        Self {
            texts: Cache::builder()
                .max_capacity(TEXT_BYTES_MAX)
                .weigher(move |location, text: &Arc<RawValue>| weight(location, text.get().len()))
                .build(),
            parsed: Cache::builder()
                .max_capacity(PARSED_BYTES_MAX)
                .weigher(move |location, parsed: &Parsed| {
                    weight(location, parsed.text_bytes * PARSED_TO_TEXT)
                })
                .build(),
        }
    }
}

impl MetadataCache {
    pub(super) fn text(&self, location: &str) -> Option<Arc<RawValue>> {
        self.texts.get(location)
    }

    pub(super) fn put_text(&self, location: &str, text: &Arc<RawValue>) {
        self.texts.insert(location.to_owned(), Arc::clone(text));
    }

    pub(super) fn parsed(&self, location: &str) -> Option<Arc<TableMetadata>> {
        self.parsed.get(location).map(|found| found.metadata)
    }

    pub(super) fn put_parsed(
        &self,
        location: &str,
        metadata: &Arc<TableMetadata>,
        text_bytes: usize,
    ) {
        let parsed = Parsed { metadata: Arc::clone(metadata), text_bytes };
        self.parsed.insert(location.to_owned(), parsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_within_their_bound() {
        let cache = MetadataCache::default();
        let long = format!("\"{}\"", "x".repeat(1024 * 1024));
        let text: Arc<RawValue> = RawValue::from_string(long).expect("JSON").into();
        for number in 0..400 {
            cache.put_text(&number.to_string(), &text);
        }
        cache.texts.run_pending_tasks();
        let kept = cache.texts.weighted_size();
        assert!(kept <= TEXT_BYTES_MAX && kept > TEXT_BYTES_MAX / 2, "{kept} bytes");
    }
}
