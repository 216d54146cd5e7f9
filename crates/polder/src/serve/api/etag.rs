//! Entity tags of orgs and tables: of what is shown of them, so that a change elsewhere does not
//! make them stale. `If-Match` is looked at in the transaction that changes the state.

use axum::http::header::{ETAG, IF_MATCH};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;

use crate::serve::clients::sha256;

/// The tag of a document.
pub(super) fn of(document: &impl Serialize) -> String {
    // What is shown can be written as JSON.
    let text = serde_json::to_vec(document).unwrap_or_default();
    format!("\"{}\"", &sha256(&text)[..32])
}

pub(super) fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}

/// The tags that a change is made for; all if the client named none.
#[derive(Debug)]
pub(super) struct IfMatch(Option<Vec<String>>);

impl IfMatch {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let lists = headers.get_all(IF_MATCH).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<String> =
            lists.flat_map(|list| list.split(',').map(|tag| tag.trim().to_owned())).collect();
        Self((!named.is_empty()).then_some(named))
    }

    /// # Errors
    /// `control.stale` if the state is at none of them.
    pub(super) fn check(&self, tag: &str) -> Result<()> {
        match &self.0 {
            Some(named) if !named.iter().any(|one| one == "*" || one == tag) => {
                Err(Error::new(ErrorCode::ControlStale, "it has changed since it was read")
                    .hint("read it again, and send the ETag of that answer as If-Match"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_state() {
        assert_eq!(of(&["a"]), of(&["a"]));
        assert_ne!(of(&["a"]), of(&["b"]));
        let check = |value: Option<&str>, tag: &str| {
            let headers =
                value.map(|text| (IF_MATCH, HeaderValue::from_str(text).expect("header")));
            IfMatch::of(&HeaderMap::from_iter(headers)).check(tag).is_ok()
        };
        assert!(check(None, "\"a\"") && check(Some("*"), "\"a\""));
        assert!(check(Some("\"b\", \"a\""), "\"a\"") && !check(Some("\"b\""), "\"a\""));
        // A weak tag says too little to change something by it (RFC 9110, 13.1.1).
        assert!(!check(Some("W/\"a\""), "\"a\""));
    }
}
