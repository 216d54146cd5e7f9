//! Entity tags of tables: the metadata file a table is at, which is another one after every commit,
//! together with how much of it was asked for.

use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use polder_lake::service::SnapshotMode;

use crate::serve::clients::sha256;

/// The tag of a table at a metadata file.
pub(super) fn of(metadata_location: &str, mode: SnapshotMode) -> String {
    format!("\"{}\"", sha256(format!("{mode:?}\n{metadata_location}").as_bytes()))
}

/// Adds the tag to an answer that holds the table.
pub(super) fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}

/// Whether the client has the state with this tag already (RFC 9110, 13.1.2: weak comparison).
pub(super) fn client_has(headers: &HeaderMap, tag: impl FnOnce() -> String) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut named = lists.flat_map(|list| list.split(',').map(str::trim)).peekable();
    if named.peek().is_none() {
        return false;
    }
    let tag = tag();
    named.any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_state_in_one_mode() {
        let tag = of("file:///a/1.json", SnapshotMode::All);
        assert_eq!(tag, of("file:///a/1.json", SnapshotMode::All));
        assert_ne!(tag, of("file:///a/2.json", SnapshotMode::All));
        assert_ne!(tag, of("file:///a/1.json", SnapshotMode::Refs));
        let has = |value: &str| {
            let value = HeaderValue::from_str(value).expect("header");
            client_has(&HeaderMap::from_iter([(IF_NONE_MATCH, value)]), || tag.clone())
        };
        assert!(has(&tag) && has(&format!("\"x\", W/{tag}")) && has("*"));
        assert!(!has("\"x\"") && !client_has(&HeaderMap::new(), || tag.clone()));
    }
}
