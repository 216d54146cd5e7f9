//! What a client needs to reach a table's files on S3.
//!
//! The account's keys open every org's files, so only the operator's clients are handed them. A
//! client of one org gets its requests signed one by one instead (`sign.rs`), each after a look at
//! the object it is for.

use axum::http::HeaderMap;
use polder_core::Principal;
use polder_lake::service::{Answer, LoadedTable};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::Shared;
use super::names::{Target, encode_path};

/// How the client would like to reach the files, best first.
const DELEGATION: &str = "x-iceberg-access-delegation";

/// The `config` of an answer that holds a table, and its `storage-credentials`.
pub(super) struct Access {
    pub(super) config: Value,
    pub(super) credentials: Vec<Value>,
}

impl Access {
    /// For a lake on local disk there is nothing to say.
    pub(super) fn of(
        shared: &Shared,
        principal: &Principal,
        headers: &HeaderMap,
        target: &Target,
        table: &LoadedTable,
    ) -> Answer<Self> {
        let mut config = Map::new();
        let mut credentials = Vec::new();
        if let Some((s3, _)) = shared.catalog.s3() {
            if let Some(endpoint) = &s3.endpoint {
                config.insert("s3.endpoint".to_owned(), json!(endpoint));
            }
            if !s3.region.is_empty() {
                config.insert("s3.region".to_owned(), json!(s3.region));
                config.insert("client.region".to_owned(), json!(s3.region));
            }
            let path_style = s3.path_style.to_string();
            config.insert("s3.path-style-access".to_owned(), json!(path_style));
            let virtual_host = (!s3.path_style).to_string();
            config.insert("s3.force-virtual-addressing".to_owned(), json!(virtual_host));
            let keys = keys(shared).filter(|_| *principal == Principal::Operator);
            match wanted(headers) {
                Some(Delegation::Vended) if keys.is_some() => {
                    let keys = keys.unwrap_or_default();
                    let prefix = table.location()?;
                    credentials.push(json!({ "prefix": prefix, "config": keys }));
                    config.extend(keys);
                }
                // Also for whoever asked for keys and may not have them.
                Some(_) => sign(&mut config, target),
                None => {}
            }
        }
        Ok(Self { config: Value::Object(config), credentials })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delegation {
    Vended,
    Signed,
}

/// The first way the client names that is known here.
fn wanted(headers: &HeaderMap) -> Option<Delegation> {
    let listed = headers.get(DELEGATION)?.to_str().ok()?;
    listed.split(',').find_map(|word| match word.trim() {
        "vended-credentials" => Some(Delegation::Vended),
        "remote-signing" => Some(Delegation::Signed),
        _ => None,
    })
}

/// The account's own keys, if it has been given any.
pub(super) fn keys(shared: &Shared) -> Option<Map<String, Value>> {
    let (s3, _) = shared.catalog.s3()?;
    let (access, secret) = s3.access_key.as_ref().zip(s3.secret_key.as_ref())?;
    Some(Map::from_iter([
        ("s3.access-key-id".to_owned(), json!(access.expose_secret())),
        ("s3.secret-access-key".to_owned(), json!(secret.expose_secret())),
    ]))
}

/// Tells the client to have its requests signed. The address is relative to the catalog's own, which
/// only the client knows for certain.
fn sign(config: &mut Map<String, Value>, target: &Target) {
    let endpoint = format!("{}/sign", encode_path(target));
    config.insert("s3.remote-signing-enabled".to_owned(), json!("true"));
    config.insert("s3.signer.endpoint".to_owned(), json!(endpoint));
    config.insert("signer.endpoint".to_owned(), json!(endpoint));
}
