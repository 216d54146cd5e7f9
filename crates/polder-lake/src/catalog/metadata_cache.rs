//! Metadata by location, as text and parsed. Metadata files never change, so an entry is never wrong;
//! which file is current always comes from the catalog.
//!
//! Texts are kept compressed (LZ4's block format): expanding one takes microseconds, and reading its
//! file many times that, with a thread woken on the way.

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
    texts: Cache<String, Arc<[u8]>>,
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
                .weigher(move |location, text: &Arc<[u8]>| weight(location, text.len()))
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
        let bytes = lz4_flex::block::decompress_size_prepended(&self.texts.get(location)?);
        let text = String::from_utf8(bytes.ok()?).ok()?;
        RawValue::from_string(text).ok().map(Arc::from)
    }

    pub(super) fn put_text(&self, location: &str, text: &Arc<RawValue>) {
        let bytes = lz4_flex::block::compress_prepend_size(text.get().as_bytes());
        self.texts.insert(location.to_owned(), bytes.into());
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
        // Digits without a pattern: most of the bytes remain.
        let mut state = 1_u64;
        let digits = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'0' + ((state >> 33) % 10) as u8)
        });
        let long = format!("\"{}\"", digits.take(1024 * 1024).collect::<String>());
        let text: Arc<RawValue> = RawValue::from_string(long).expect("JSON").into();
        for number in 0..600 {
            cache.put_text(&number.to_string(), &text);
        }
        cache.texts.run_pending_tasks();
        let kept = cache.texts.weighted_size();
        assert!(kept <= TEXT_BYTES_MAX && kept > TEXT_BYTES_MAX / 2, "{kept} bytes");
    }

    #[test]
    fn a_text_comes_back_as_it_was_and_takes_less() {
        let cache = MetadataCache::default();
        let field = r#"{"id": 1, "name": "größe", "type": "decimal(18, 2)", "required":false}"#;
        let long = format!("[{}]", [field; 40].join(", "));
        for written in [long.as_str(), "{}", "1.0"] {
            let text: Arc<RawValue> =
                RawValue::from_string(written.to_owned()).expect("JSON").into();
            cache.put_text(written, &text);
            assert_eq!(cache.text(written).expect("kept").get(), written);
        }
        let kept = cache.texts.get(long.as_str()).expect("kept").len();
        assert!(kept < long.len() / 4, "{kept} of {} bytes", long.len());
        assert!(cache.text("another").is_none());
    }
}
