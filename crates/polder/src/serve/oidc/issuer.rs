//! The issuer over HTTP: what it says of itself, and its keys.
//!
//! Only the configured address and the one its document names are called: redirects are not followed,
//! no proxy is asked. Answers have a time and a size.

use std::net::IpAddr;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Result};
use reqwest::header::{ACCEPT, CACHE_CONTROL, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use super::keys::KeySet;

/// How long one call may take.
pub(super) const CALL_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// How long keys are taken for the newest where the issuer does not say; and the bounds of what it says.
const AGE: Duration = Duration::from_mins(5);
const AGE_MIN: Duration = Duration::from_mins(1);
const AGE_MAX: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(super) struct Issuer {
    client: Client,
    keys: Url,
}

/// Keys, and for how long they are the newest.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    pub(super) age: Duration,
}

/// What of the discovery document is of use.
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Reads what the issuer says of itself (`OpenID` Connect Discovery 1.0).
    ///
    /// # Errors
    /// `spec.invalid` for an address that cannot be an issuer's, and an issuer that calls itself
    /// otherwise; `control.issuer` when it does not answer as one.
    pub(super) async fn discover(issuer: &str) -> Result<Self> {
        let address = checked("issuer", issuer)?;
        if address.query().is_some() || address.fragment().is_some() {
            return Err(invalid("issuer has a query or a fragment"));
        }
        let tls = address.scheme() == "https";
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .https_only(tls)
            .timeout(CALL_MAX)
            .user_agent(concat!("polder/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| {
                Error::new(ErrorCode::Internal, "issuers cannot be called").caused_by(cause)
            })?;
        let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let place: Url = place.parse().map_err(|_| invalid("issuer is no address"))?;
        let (_, document) = get(&client, &place).await?;
        let said: Discovered = serde_json::from_slice(&document)
            .map_err(|_| unavailable(&place, "is no OpenID configuration"))?;
        if said.issuer != issuer {
            return Err(invalid("issuer calls itself otherwise in its own configuration")
                .detail(place.as_str())
                .hint("write it exactly as the provider does, down to the last slash"));
        }
        let keys = checked("the issuer's jwks_uri", &said.jwks_uri)?;
        if tls && keys.scheme() != "https" {
            return Err(invalid("the issuer's jwks_uri is no https:// address"));
        }
        Ok(Self { client, keys })
    }

    /// # Errors
    /// `control.issuer`, also where there is no key of use.
    pub(super) async fn keys(&self) -> Result<Fetched> {
        let (headers, document) = get(&self.client, &self.keys).await?;
        let keys = KeySet::parse(&document).map_err(|why| unavailable(&self.keys, why))?;
        if keys.is_empty() {
            let message = "the OpenID provider has no key that tokens could be signed with";
            return Err(Error::new(ErrorCode::ControlIssuer, message)
                .hint("RSA, P-256, P-384 and Ed25519 keys that have a kid are of use"));
        }
        Ok(Fetched { keys, age: age(&headers) })
    }
}

/// An address that may be called: by TLS, or on this machine.
fn checked(what: &str, text: &str) -> Result<Url> {
    let url: Url = text.parse().map_err(|_| invalid(&format!("{what} is no address")))?;
    let host = url.host_str().ok_or_else(|| invalid(&format!("{what} names no host")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(&format!("{what} has a user or a password")));
    }
    let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let local = host == "localhost" || literal.is_some_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if local => Ok(url),
        _ => Err(invalid(&format!("{what} is no https:// address"))
            .hint("http:// is for issuers on a loopback address alone")),
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("[server.oidc] {what}"))
}

fn unavailable(place: &Url, why: &str) -> Error {
    Error::new(ErrorCode::ControlIssuer, format!("the OpenID provider: {place} {why}"))
        .hint("see whether [server.oidc] issuer is right, and the provider runs")
}

async fn get(client: &Client, place: &Url) -> Result<(HeaderMap, Vec<u8>)> {
    let broken =
        |cause: reqwest::Error| unavailable(place, "cannot be read").caused_by(cause.without_url());
    let asked = client.get(place.clone()).header(ACCEPT, "application/json");
    let mut answer = asked.send().await.map_err(broken)?;
    if answer.status() != StatusCode::OK {
        return Err(unavailable(place, &format!("answers {}", answer.status())));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(broken)? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(unavailable(place, "answers too much"));
        }
        body.extend_from_slice(&part);
    }
    Ok((answer.headers().clone(), body))
}

/// What `Cache-Control: max-age` says, within bounds: a key that was withdrawn is to go soon.
fn age(headers: &HeaderMap) -> Duration {
    let text = headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let seconds = text.unwrap_or_default().split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("max-age");
        value.trim().parse().ok().filter(|_: &u64| named)
    });
    seconds.map_or(AGE, Duration::from_secs).clamp(AGE_MIN, AGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_newest_for_as_long_as_the_issuer_says_within_bounds() {
        let cases = [
            ("", AGE),
            ("no-store", AGE),
            ("public, max-age=600", Duration::from_mins(10)),
            ("Max-Age=0", AGE_MIN),
            ("max-age=999999999, must-revalidate", AGE_MAX),
            ("max-age=soon", AGE),
        ];
        for (said, expect) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, said.parse().expect(said));
            assert_eq!(age(&headers), expect, "{said}");
        }
    }

    #[test]
    fn issuers_are_called_by_tls_or_on_this_machine() {
        for good in
            ["https://id.example", "http://127.0.0.1:3000", "http://[::1]:1/a", "http://localhost"]
        {
            assert!(checked("issuer", good).is_ok(), "{good}");
        }
        let bad = [
            "id.example",
            "http://id.example",
            "http://10.0.0.1",
            "http://localhost.example",
            "ftp://127.0.0.1",
            "https://user:hunter2@id.example",
        ];
        for bad in bad {
            let error = checked("issuer", bad).expect_err(bad);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
