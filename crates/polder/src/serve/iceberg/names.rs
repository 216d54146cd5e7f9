//! Names in request paths: levels of a namespace joined by the unit separator, percent-encoded.
//!
//! They are read from the path as it was sent. Java's client writes a space as `+` (and a plus sign
//! as `%2B`), others write `%20`; both are understood here.

use std::borrow::Cow;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use polder_lake::service::{Answer, Refusal};

use super::Shared;
use super::reply::Failure;

/// Between the levels of a namespace (specification, *namespace-separator*).
pub(super) const SEPARATOR: char = '\u{1F}';

/// What the path names.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: Vec<String>,
    /// The table or view; empty where the path names none.
    pub(super) name: String,
}

impl FromRequestParts<Shared> for Target {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        Ok(Self::parse(parts.uri.path())?)
    }
}

impl Target {
    /// `…/namespaces/<namespace>[/tables/<name>…]`.
    pub(super) fn parse(path: &str) -> Answer<Self> {
        let mut segments = path.split('/').skip_while(|segment| *segment != "namespaces").skip(1);
        let namespace = levels(&decode(segments.next().unwrap_or_default())?);
        let name = segments.nth(1).map(decode).transpose()?.unwrap_or_default();
        Ok(Self { namespace, name })
    }
}

/// The table's path below the catalog's address: `v1/namespaces/…/tables/…`.
pub(super) fn encode_path(target: &Target) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let namespace = encode(&target.namespace.join(&SEPARATOR.to_string()));
    format!("v1/namespaces/{namespace}/tables/{}", encode(&target.name))
}

/// The levels of a namespace, which come as one text.
pub(super) fn levels(text: &str) -> Vec<String> {
    text.split(SEPARATOR).map(str::to_owned).collect()
}

fn decode(segment: &str) -> Answer<String> {
    let spaced = segment.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| Refusal::invalid("Invalid name: not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_once() {
        for (path, namespace, name) in [
            ("/v1/namespaces/ns/tables/t", vec!["ns"], "t"),
            ("/v1/namespaces/a%1Fb", vec!["a", "b"], ""),
            ("/v1/namespaces/a%1Fb/views/v", vec!["a", "b"], "v"),
            ("/v1/namespaces/n+s/tables/t%2Bu%20v/metrics", vec!["n s"], "t+u v"),
            ("/v1/namespaces/a%2Fb/tables/..%2F..", vec!["a/b"], "../.."),
            ("/v1/namespaces/%2541/tables/%252e", vec!["%41"], "%2e"),
            ("/v1/namespaces/namespaces/tables/tables", vec!["namespaces"], "tables"),
        ] {
            let target = Target::parse(path).expect(path);
            if !target.name.is_empty() {
                let again = Target::parse(&format!("/{}", encode_path(&target))).expect(path);
                assert_eq!((&again.namespace, &again.name), (&target.namespace, &target.name));
            }
            assert_eq!(
                (target.namespace, target.name.as_str()),
                (namespace.into_iter().map(str::to_owned).collect(), name)
            );
        }
        assert!(Target::parse("/v1/namespaces/%FF").is_err());
    }
}
