//! Entity tags of orgs, tables, templates, runs, keys, pauses and sources: of what is shown of them, so that a
//! change elsewhere does not make them stale. `If-Match` is looked at in the transaction that changes the state.

use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
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
        Self(listed(headers, IF_MATCH))
    }

    /// # Errors
    /// `control.stale` if the state is at none of them.
    pub(super) fn check(&self, tag: &str) -> Result<()> {
        self.check_any(&[tag])
    }

    /// As [`Self::check`], of what has several tags, each of another part of it.
    ///
    /// # Errors
    /// `control.stale` if none of them is named.
    pub(super) fn check_any(&self, tags: &[&str]) -> Result<()> {
        let is_meant = |one: &String| one == "*" || tags.contains(&one.as_str());
        if self.0.as_ref().is_none_or(|named| named.iter().any(is_meant)) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::ControlStale, "it has changed since it was read")
            .hint("read it again, and send the ETag of that answer as If-Match"))
    }

    /// Whether just this tag was named.
    pub(super) fn names(&self, tag: &str) -> bool {
        self.0.iter().flatten().any(|one| one == tag)
    }
}

/// What a change demands of what may not be there yet: `If-Match`, and `If-None-Match: *` for "only if there
/// is none".
#[derive(Debug)]
pub(super) struct Conditions {
    wanted: IfMatch,
    unwanted: Option<Vec<String>>,
}

impl Conditions {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self { wanted: IfMatch::of(headers), unwanted: listed(headers, IF_NONE_MATCH) }
    }

    /// # Errors
    /// `control.stale` if the state, or that there is none, is not what was demanded.
    pub(super) fn check(&self, tag: Option<&str>) -> Result<()> {
        let Some(tag) = tag else {
            // `*` is any state that there is (RFC 9110, 13.1.1).
            return match self.wanted.0 {
                Some(_) => Err(Error::new(ErrorCode::ControlStale, "it is not there any more")
                    .hint("leave If-Match out to make it")),
                None => Ok(()),
            };
        };
        self.wanted.check(tag)?;
        // Compared weakly (RFC 9110, 13.1.2).
        let is_it = |one: &String| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag;
        if self.unwanted.iter().flatten().any(is_it) {
            return Err(Error::new(ErrorCode::ControlStale, "it is there already")
                .hint("leave If-None-Match out to change what is there"));
        }
        Ok(())
    }
}

fn listed(headers: &HeaderMap, name: HeaderName) -> Option<Vec<String>> {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        lists.flat_map(|list| list.split(',').map(|tag| tag.trim().to_owned())).collect();
    (!named.is_empty()).then_some(named)
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
        let headers = HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_static("\"b\""))]);
        let wanted = IfMatch::of(&headers);
        assert!(wanted.check_any(&["\"a\"", "\"b\""]).is_ok() && wanted.names("\"b\""));
        assert!(wanted.check_any(&[]).is_err() && !wanted.names("\"a\""));
    }

    #[test]
    fn what_is_to_be_made_is_not_there_and_what_is_to_be_changed_is() {
        let check = |name: HeaderName, value: &'static str, tag: Option<&str>| {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            Conditions::of(&headers).check(tag).is_ok()
        };
        assert!(Conditions::of(&HeaderMap::new()).check(None).is_ok());
        assert!(check(IF_NONE_MATCH, "*", None) && !check(IF_NONE_MATCH, "*", Some("\"a\"")));
        assert!(!check(IF_NONE_MATCH, "W/\"a\"", Some("\"a\"")));
        assert!(check(IF_NONE_MATCH, "\"b\"", Some("\"a\"")));
        assert!(check(IF_MATCH, "*", Some("\"a\"")) && !check(IF_MATCH, "*", None));
        assert!(!check(IF_MATCH, "\"b\"", Some("\"a\"")) && !check(IF_MATCH, "\"b\"", None));
    }
}
