//! What users see when something is wrong with the source or the spec.

use bson::doc;
use polder_core::spec::{SourceSpec, StorageConfig};
use polder_core::{ErrorCode, Result, SecretRef, SecretResolver, Source};
use polder_sources::{Connections, Means};
use secrecy::SecretString;
use serde_json::json;

use super::support::{Database, open};
use crate::reading::{Vary, refused, request};

#[tokio::test]
async fn errors_say_what_to_do() {
    let database = Database::new().await;
    database.insert("emails", vec![doc! { "a": 1_i32 }]).await;
    let source = database.source();
    let cases = [
        (request("email"), ErrorCode::SourceNotFound, "emails"),
        (request("zzz"), ErrorCode::SourceNotFound, "polder discover"),
        (request("emails").columns(&["a", "a"]), ErrorCode::SpecInvalid, "columns"),
        (request("emails").filter("org = {org}"), ErrorCode::SpecInvalid, "filter: {"),
        (request("emails").matching(json!({ "$oid": "x" })), ErrorCode::SpecInvalid, ""),
        (request("emails").matching(json!({ "a": { "$near": 1 } })), ErrorCode::SourceFailed, ""),
        (request("emails").matching(json!({ "$nor": 1 })), ErrorCode::SourceFailed, ""),
    ];
    for (request, code, hint) in cases {
        let place = format!("{:?} {:?}", request.from, request.filter);
        let error = refused(&source, request).await;
        assert_eq!(error.code(), code, "{place}: {error:?}");
        assert!(error.hint_text().unwrap_or_default().contains(hint), "{place}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_may_be_back_later() {
    let url = "mongodb://u:hunter2@127.0.0.1:1/?serverSelectionTimeoutMS=300";
    let source = open(url, "conversations");
    for error in [
        source.check().await.expect_err("nobody listens"),
        source.discover().await.expect_err("nobody listens"),
        refused(&source, request("emails")).await,
    ] {
        assert_eq!(error.code(), ErrorCode::SourceUnavailable);
        assert!(error.retryable() && error.hint_text().is_some());
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_not_repeated() {
    for url in ["mongodb://u:hunter2@", "postgres://u:hunter2@h/db", "mongodb://u:hunter2@h:x/"] {
        let error = open(url, "d").check().await.expect_err("no address");
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{error:?}");
        assert!(error.message().contains("conversations"), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

struct Given(&'static str);

impl SecretResolver for Given {
    fn resolve(&self, _: &SecretRef) -> Result<SecretString> {
        Ok(self.0.into())
    }
}

#[tokio::test]
async fn the_configuration_opens_it() {
    let spec = json!({ "type": "mongodb", "url": "env:URL", "database": "conversations" });
    let spec: SourceSpec = serde_json::from_value(spec).expect("spec");
    let secrets = Given("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300");
    let means = Means {
        storage: &StorageConfig::default(),
        secrets: &secrets,
        base: std::path::Path::new("."),
        connections: &Connections::new(),
    };
    let source = polder_sources::open("chat", &spec, means);
    let error = source.expect("opened").check().await.expect_err("nobody listens");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
}
