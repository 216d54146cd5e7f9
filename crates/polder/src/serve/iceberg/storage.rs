//! What a client needs to reach a table's files on S3.
//!
//! With a role (`[storage.s3] role_arn`) every client is handed keys that open one table for an hour.
//! Without, the account's own keys open every org's files, so only the operator's clients are handed
//! them; a client of one org gets its requests signed one by one instead (`sign.rs`), each after a look
//! at the object it is for.

use axum::http::HeaderMap;
use polder_core::{Principal, Right};
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
    pub(super) async fn of(
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
            let wanted = wanted(headers);
            let keys = match wanted {
                Some(Delegation::Vended) => keys(shared, principal, target, table).await?,
                _ => None,
            };
            if let Some(keys) = keys {
                let prefix = table.location()?;
                credentials.push(json!({ "prefix": prefix, "config": keys }));
                config.extend(keys);
            } else if wanted.is_some() {
                // Also for whoever asked for keys and may not have them.
                sign(&mut config, target);
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

/// Keys for a table's files, if the client may have any.
pub(super) async fn keys(
    shared: &Shared,
    principal: &Principal,
    target: &Target,
    table: &LoadedTable,
) -> Answer<Option<Map<String, Value>>> {
    // Keys write as well as read: readers have their requests signed.
    if !principal.role().has(Right::Write) {
        return Ok(None);
    }
    if let Some(keys) = shared.catalog.table_keys(table).await? {
        let expires = keys.expires_at.timestamp_millis().to_string();
        let refresh = format!("{}/credentials", encode_path(target));
        return Ok(Some(Map::from_iter([
            ("s3.access-key-id".to_owned(), json!(keys.access_key)),
            ("s3.secret-access-key".to_owned(), json!(keys.secret_key.expose_secret())),
            ("s3.session-token".to_owned(), json!(keys.token.expose_secret())),
            ("s3.session-token-expires-at-ms".to_owned(), json!(expires)),
            ("client.refresh-credentials-endpoint".to_owned(), json!(refresh)),
        ])));
    }
    // The account's own, if it has been given any.
    let account = shared.catalog.s3().filter(|_| *principal == Principal::Operator);
    let own = account.and_then(|(s3, _)| s3.access_key.as_ref().zip(s3.secret_key.as_ref()));
    Ok(own.map(|(access, secret)| {
        Map::from_iter([
            ("s3.access-key-id".to_owned(), json!(access.expose_secret())),
            ("s3.secret-access-key".to_owned(), json!(secret.expose_secret())),
        ])
    }))
}

/// Whether the client is to get keys that end, so that it needs an answer with new ones.
pub(super) fn hands_out_keys(shared: &Shared, headers: &HeaderMap) -> bool {
    shared.catalog.hands_out_keys() && wanted(headers) == Some(Delegation::Vended)
}

/// Tells the client to have its requests signed. The address is relative to the catalog's own, which
/// only the client knows for certain.
fn sign(config: &mut Map<String, Value>, target: &Target) {
    let endpoint = format!("{}/sign", encode_path(target));
    config.insert("s3.remote-signing-enabled".to_owned(), json!("true"));
    config.insert("s3.signer.endpoint".to_owned(), json!(endpoint));
    config.insert("signer.endpoint".to_owned(), json!(endpoint));
}
