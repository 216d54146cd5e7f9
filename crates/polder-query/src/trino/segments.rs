//! Rows that Trino hands out in segments (its client protocol, *Spooling protocol*): JSON, compressed, some in the
//! page, others at an address of the storage they were spooled to, to be acknowledged once they are read.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polder_core::{Error, ErrorCode, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::client::PAGE_BYTES_MAX;

/// What Trino may choose from, the best first.
pub(super) const ENCODINGS: &str = "json+zstd, json";

/// The segments of a page.
#[derive(Debug, Deserialize)]
pub(super) struct Encoded {
    pub(super) encoding: String,
    pub(super) segments: Vec<Segment>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Segment {
    Inline { data: String, metadata: Metadata },
    Spooled(Spooled),
}

/// Where a segment is. Its headers may have the key that it is encrypted with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spooled {
    pub(super) uri: String,
    #[serde(default)]
    pub(super) ack_uri: Option<String>,
    #[serde(default)]
    headers: Option<HashMap<String, Vec<String>>>,
    pub(super) metadata: Metadata,
}

impl fmt::Debug for Spooled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Spooled").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

impl Spooled {
    /// What its requests have to say.
    pub(super) fn headers(&self) -> Result<HeaderMap> {
        let all = self.headers.iter().flatten();
        let each = all.flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        each.map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("a header"))?;
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong("a header"))?;
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect()
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    rows_count: u64,
    /// Absent where it is not compressed.
    #[serde(default)]
    uncompressed_size: Option<usize>,
}

impl Metadata {
    /// # Errors
    /// `query.failed` for bytes that are not what the page says of them.
    pub(super) fn rows(self, encoding: &str, bytes: &[u8]) -> Result<Vec<Vec<Value>>> {
        let rows = match (encoding, self.uncompressed_size) {
            ("json" | "json+zstd", None) => read(bytes)?,
            ("json+zstd", Some(size)) if size <= PAGE_BYTES_MAX => {
                let plain = zstd::bulk::decompress(bytes, size);
                let plain = plain.map_err(|_| wrong("zstd"))?;
                if plain.len() != size {
                    return Err(wrong("its length"));
                }
                read(&plain)?
            }
            ("json+zstd", Some(_)) => {
                let message =
                    format!("rows that Trino has spooled are over {} MB", PAGE_BYTES_MAX >> 20);
                return Err(Error::new(ErrorCode::QueryLimit, message)
                    .hint("lower protocol.spooling.max-segment-size"));
            }
            _ => return Err(wrong("its encoding").detail(encoding.to_owned())),
        };
        if rows.len() as u64 != self.rows_count {
            let counts = format!("{} of {} rows", rows.len(), self.rows_count);
            return Err(wrong("its rows").detail(counts));
        }
        Ok(rows)
    }
}

/// The bytes of a segment that is in its page.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| wrong("base64"))
}

fn read(text: &[u8]) -> Result<Vec<Vec<Value>>> {
    // The cause would quote what stands there.
    serde_json::from_slice(text).map_err(|_| wrong("JSON"))
}

fn wrong(what: &str) -> Error {
    Error::new(
        ErrorCode::QueryFailed,
        format!("a segment of Trino's rows is not as its page says: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(rows: u64, size: Option<usize>) -> Metadata {
        Metadata { rows_count: rows, uncompressed_size: size }
    }

    #[test]
    fn rows_are_as_many_as_was_said() {
        let text = b"[[1],[9007199254740993]]";
        let compressed = zstd::bulk::compress(text, 1).expect("zstd");
        let expected = [vec![json!(1)], vec![json!(9_007_199_254_740_993_i64)]];
        let plain = metadata(2, None);
        assert_eq!(plain.rows("json", text).expect("rows"), expected);
        assert_eq!(plain.rows("json+zstd", text).expect("too short to be compressed"), expected);
        let packed = metadata(2, Some(text.len()));
        assert_eq!(packed.rows("json+zstd", &compressed).expect("rows"), expected);
        let wrong = [
            metadata(1, None).rows("json", text),
            metadata(3, Some(text.len())).rows("json+zstd", &compressed),
            metadata(2, Some(text.len() + 1)).rows("json+zstd", &compressed),
            metadata(2, Some(text.len() - 1)).rows("json+zstd", &compressed),
            packed.rows("json+zstd", text),
            packed.rows("json+lz4", text),
            plain.rows("json", &text[..20]),
        ];
        for (at, outcome) in wrong.into_iter().enumerate() {
            assert_eq!(outcome.expect_err("not as said").code(), ErrorCode::QueryFailed, "{at}");
        }
        let huge = metadata(2, Some(PAGE_BYTES_MAX + 1)).rows("json+zstd", &compressed);
        assert_eq!(huge.expect_err("too large").code(), ErrorCode::QueryLimit);
    }

    #[test]
    fn keys_are_not_shown() {
        let page = json!({ "encoding": "json", "segments": [{
            "type": "spooled", "uri": "http://s3/secret?signature", "ackUri": "http://t/ack",
            "headers": { "x-key": ["secret"] }, "metadata": { "rowsCount": 1 },
        }] });
        let encoded: Encoded = serde_json::from_value(page).expect("segments");
        let Segment::Spooled(spooled) = &encoded.segments[0] else { panic!("spooled") };
        assert_eq!(spooled.headers().expect("headers")["x-key"], "secret");
        assert!(!format!("{encoded:?} {:?}", spooled.headers()).contains("secret"));
    }
}
