//! `POST …/tables/{table}/sign`: signs one request to S3 for a client that has no keys (AWS
//! Signature Version 4), if the object is the table's.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::Uri;
use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use polder_lake::S3Settings;
use polder_lake::service::{Answer, Refusal, RefusalKind};
use ring::hmac;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;

use super::names::Target;
use super::reply::{Reply, ok, parse};
use super::{As, Shared, may_write};
use crate::serve::clients::sha256;

/// What AWS leaves as it is in a canonical URI, beside letters and digits.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');
/// Query parameters of reading, writing and listing objects. Others reach what lies around an object:
/// who may read it, tags, retention.
const PARAMETERS: [&str; 13] = [
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "list-type",
    "max-keys",
    "partNumber",
    "prefix",
    "start-after",
    "uploadId",
    "uploads",
    "versionId",
    "x-id",
];
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

#[derive(Debug, Deserialize)]
pub(super) struct SignRequest {
    region: String,
    uri: String,
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, Vec<String>>,
}

pub(super) async fn sign(
    State(shared): State<Shared>,
    As(principal): As,
    target: Target,
    body: Bytes,
) -> Reply {
    let mut request: SignRequest = parse(&body)?;
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        may_write(&principal)?;
    }
    let Some((s3, bucket)) = shared.catalog.s3() else {
        let message = "Requests are signed for lakes on S3 only";
        return Err(Refusal::new(RefusalKind::UnsupportedOperation, message).into());
    };
    let place = Place::of(&request, s3, bucket)?;
    let (namespace, name) = (&target.namespace, &target.name);
    shared.catalog.check_object(&principal, namespace, name, &place.location).await?;
    let (Some(access), Some(secret)) = (&s3.access_key, &s3.secret_key) else {
        let message = "The lake's S3 account has no keys to sign with";
        return Err(Refusal::new(RefusalKind::UnsupportedOperation, message).into());
    };
    let signer = Signer {
        access: access.expose_secret(),
        secret: secret.expose_secret(),
        region: if s3.region.is_empty() { &request.region } else { &s3.region },
        now: Utc::now(),
    };
    signer.sign(&request.method, &place, &mut request.headers);
    Ok(ok(&json!({ "uri": request.uri, "headers": request.headers })))
}

/// A request's address, taken apart.
#[derive(Debug)]
struct Place {
    host: String,
    /// Decoded.
    path: String,
    /// Decoded pairs, in order.
    query: Vec<(String, String)>,
    /// `s3://bucket/key` of the object, or of the prefix that is listed.
    location: String,
}

impl Place {
    fn of(request: &SignRequest, s3: &S3Settings, bucket: &str) -> Answer<Self> {
        let refused =
            |why: &str| Refusal::new(RefusalKind::Forbidden, format!("Not signed: {why}"));
        let uri: Uri =
            request.uri.parse().map_err(|_| Refusal::invalid("Invalid request: not an address"))?;
        let authority = uri.authority().map(|found| found.as_str().to_ascii_lowercase());
        let host = authority.unwrap_or_default();
        let path = decode(uri.path())?;
        let query = pairs(uri.query().unwrap_or_default())?;
        let in_path = |path: &str| {
            let rest = path.strip_prefix('/')?.strip_prefix(bucket)?;
            rest.strip_prefix('/').or(rest.is_empty().then_some("")).map(str::to_owned)
        };
        let key = hosts(s3).into_iter().find_map(|own| {
            if host == own {
                in_path(&path)
            } else if host == format!("{bucket}.{own}") {
                path.strip_prefix('/').map(str::to_owned)
            } else {
                None
            }
        });
        let key = key.ok_or_else(|| refused("the request is for another store"))?;
        let of = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let key = match (request.method.as_str(), key.as_str()) {
            ("GET", "") => of("prefix").cloned().unwrap_or_default(),
            ("GET" | "HEAD" | "PUT" | "DELETE", key) if !key.is_empty() => key.to_owned(),
            // Multipart uploads; not the deletion of many, whose keys are in its body.
            ("POST", key) if !key.is_empty() && of("delete").is_none() => key.to_owned(),
            _ => return Err(refused("this kind of request is not")),
        };
        if query.iter().any(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
            return Err(refused("this kind of request is not"));
        }
        // A copy reads another object under the same signature.
        if request.headers.keys().any(|name| name.to_ascii_lowercase().contains("copy-source")) {
            return Err(refused("copies are not"));
        }
        let location = format!("s3://{bucket}/{key}");
        Ok(Self { host, path, query, location })
    }
}

/// The hosts under which the account's buckets are.
fn hosts(s3: &S3Settings) -> Vec<String> {
    if let Some(endpoint) = &s3.endpoint {
        let rest = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        return vec![rest.split('/').next().unwrap_or_default().to_ascii_lowercase()];
    }
    let region = &s3.region;
    vec![format!("s3.{region}.amazonaws.com"), "s3.amazonaws.com".to_owned()]
}

fn decode(text: &str) -> Answer<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| Refusal::invalid("Invalid key: not UTF-8"))
}

fn pairs(query: &str) -> Answer<Vec<(String, String)>> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let mut pairs = parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect::<Answer<Vec<_>>>()?;
    pairs.sort();
    Ok(pairs)
}

struct Signer<'a> {
    access: &'a str,
    secret: &'a str,
    region: &'a str,
    now: DateTime<Utc>,
}

impl Signer<'_> {
    /// Adds the signature, and what it is over, to the headers. AWS, *Signature Version 4: Create a
    /// signed request*.
    fn sign(&self, method: &str, place: &Place, headers: &mut BTreeMap<String, Vec<String>>) {
        let time = self.now.format("%Y%m%dT%H%M%SZ").to_string();
        let date = &time[..8];
        let given = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("x-amz-content-sha256"))
            .and_then(|(_, values)| values.first().cloned());
        let payload = given.unwrap_or_else(|| UNSIGNED.to_owned());
        headers.retain(|name, _| {
            !["authorization", "x-amz-date", "x-amz-content-sha256"]
                .contains(&name.to_ascii_lowercase().as_str())
        });
        headers.insert("x-amz-date".to_owned(), vec![time.clone()]);
        headers.insert("x-amz-content-sha256".to_owned(), vec![payload.clone()]);
        let mut signed = BTreeMap::from([("host".to_owned(), place.host.clone())]);
        for (name, values) in headers.iter() {
            let name = name.to_ascii_lowercase();
            if name.starts_with("x-amz-") {
                let values: Vec<&str> = values.iter().map(|value| value.trim()).collect();
                signed.insert(name, values.join(","));
            }
        }
        let names = signed.keys().map(String::as_str).collect::<Vec<_>>().join(";");
        let lines: Vec<String> =
            signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let lines = lines.concat();
        let path = utf8_percent_encode(&place.path, PATH);
        let encode = |text: &str| utf8_percent_encode(text, QUERY).to_string();
        let query: Vec<String> = place
            .query
            .iter()
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect();
        let query = query.join("&");
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let first = format!("AWS4{}", self.secret);
        let key = [date, self.region, "s3", "aws4_request", &text]
            .iter()
            .fold(first.into_bytes(), |key, part| mac(&key, part));
        let (access, signature) = (self.access, polder_core::digest::hex(&key));
        headers.insert(
            "Authorization".to_owned(),
            vec![format!(
                "AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, \
                 Signature={signature}"
            )],
        );
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn request(method: &str, uri: &str) -> SignRequest {
        SignRequest {
            region: "us-east-1".to_owned(),
            uri: uri.to_owned(),
            method: method.to_owned(),
            headers: BTreeMap::new(),
        }
    }

    fn aws() -> S3Settings {
        S3Settings { region: "us-east-1".to_owned(), ..S3Settings::default() }
    }

    /// An example of AWS's documentation (*Authenticating Requests: Using the Authorization Header*).
    #[test]
    fn a_signature_is_that_of_the_documentation() {
        let signer = Signer {
            access: "AKIAIOSFODNN7EXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            now: DateTime::from_timestamp(1_369_353_600, 0).expect("time"),
        };
        let uri = "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J";
        let place = Place::of(&request("GET", uri), &aws(), "examplebucket").expect("place");
        let sha = ("x-amz-content-sha256".to_owned(), vec![EMPTY.to_owned()]);
        let mut headers = BTreeMap::from([sha]);
        signer.sign("GET", &place, &mut headers);
        assert_eq!(
            headers["Authorization"],
            ["AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/\
              aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, \
              Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"]
        );
    }

    #[test]
    fn the_object_is_found_in_either_style_of_address_and_nowhere_else() {
        let own = S3Settings { endpoint: Some("http://127.0.0.1:8333".to_owned()), ..aws() };
        for (s3, method, uri, expected) in [
            (&own, "GET", "http://127.0.0.1:8333/b/a/x%20y", Some("s3://b/a/x y")),
            (&own, "PUT", "http://b.127.0.0.1:8333/a/x", Some("s3://b/a/x")),
            (&own, "GET", "http://127.0.0.1:8333/b?list-type=2&prefix=a%2F", Some("s3://b/a/")),
            (&own, "POST", "http://127.0.0.1:8333/b/a/x?uploads", Some("s3://b/a/x")),
            (&aws(), "GET", "https://b.s3.us-east-1.amazonaws.com/a", Some("s3://b/a")),
            (&aws(), "GET", "https://s3.us-east-1.amazonaws.com/b/a", Some("s3://b/a")),
            (&own, "GET", "http://127.0.0.1:8333/bb/a", None),
            (&own, "GET", "http://127.0.0.1:9000/b/a", None),
            (&own, "GET", "http://other/b/a", None),
            (&own, "POST", "http://127.0.0.1:8333/b?delete", None),
            (&own, "PUT", "http://127.0.0.1:8333/b", None),
            (&own, "PUT", "http://127.0.0.1:8333/b/a/x?acl", None),
            (&aws(), "GET", "https://b.s3.us-east-1.amazonaws.com.evil.example/a", None),
        ] {
            let place = Place::of(&request(method, uri), s3, "b");
            assert_eq!(
                place.ok().map(|place| place.location).as_deref(),
                expected,
                "{method} {uri}"
            );
        }
        let mut copy = request("PUT", "http://127.0.0.1:8333/b/a/x");
        copy.headers.insert("X-Amz-Copy-Source".to_owned(), vec!["/b/other".to_owned()]);
        assert!(Place::of(&copy, &own, "b").is_err());
    }
}
