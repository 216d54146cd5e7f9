//! Keys for the store that the catalog hands out with its tables ("vended credentials").

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use iceberg::TableIdent;
use polder_core::{Error, ErrorCode, Result};
use serde::Deserialize;

use super::client::{Request, parse};
use super::documents::{Access, LoadedTable, Properties, StorageCredential};
use super::{CREDENTIALS, Server};
use crate::storage::{KeySource, Vended, VendedKeys};

/// The keys of one table, to be asked for anew before they expire.
#[derive(Clone, Debug)]
pub(super) struct TableKeys {
    server: Weak<Server>,
    ident: TableIdent,
    /// Where the table's files are.
    location: String,
    /// What announces the table, until its first commit.
    announcement: Option<Request>,
}

/// `LoadCredentialsResponse`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Credentials {
    storage_credentials: Vec<StorageCredential>,
}

impl TableKeys {
    pub(super) fn new(server: &Arc<Server>, ident: &TableIdent, location: &str) -> Self {
        let server = Arc::downgrade(server);
        Self { server, ident: ident.clone(), location: location.to_owned(), announcement: None }
    }

    /// For a table that is not there yet: what announces it gets its keys.
    pub(super) fn by(self, announcement: Request) -> Self {
        Self { announcement: Some(announcement), ..self }
    }
}

#[async_trait]
impl KeySource for TableKeys {
    async fn keys(&self) -> Result<Vec<VendedKeys>> {
        let what = "ask the catalog for the store's keys";
        let server = self.server.upgrade().ok_or_else(|| {
            Error::new(ErrorCode::Internal, "the catalog was closed before its files were")
        })?;
        if let Some(request) = &self.announcement {
            let answer = server.client.read(request).await?;
            if answer.status.is_success() {
                let table: LoadedTable = parse(what, &answer)?;
                return Ok(all(&table.access, &self.location));
            }
        } else if server.offers(CREDENTIALS, false) {
            let request = Request::get(server.paths.credentials(&self.ident)?).with_keys(true);
            let found: Option<Credentials> = server.client.find(what, &request).await?;
            if let Some(found) = found {
                return Ok(listed(&found.storage_credentials));
            }
        }
        let request = Request::get(server.paths.table(&self.ident)?).with_keys(true);
        let found: Option<LoadedTable> = server.client.find(what, &request).await?;
        Ok(found.map(|table| all(&table.access, &self.location)).unwrap_or_default())
    }
}

/// Takes over the keys that came with a table. They replace older ones for the same place.
pub(super) fn take(vended: &Vended, access: &Access, source: TableKeys) -> Result<()> {
    let keys = all(access, &source.location);
    let source: Arc<dyn KeySource> = Arc::new(source);
    vended.take(keys, &source)
}

/// What an answer has: for certain places, or else for the table.
fn all(access: &Access, location: &str) -> Vec<VendedKeys> {
    let named: Vec<VendedKeys> = match &access.storage_credentials {
        Some(credentials) => credentials
            .iter()
            .filter_map(|found| keys(&found.prefix, &found.config, &access.config))
            .collect(),
        None => Vec::new(),
    };
    if !named.is_empty() {
        return named;
    }
    keys(location, &access.config, &access.config).into_iter().collect()
}

fn listed(credentials: &[StorageCredential]) -> Vec<VendedKeys> {
    let none = Properties::new();
    credentials.iter().filter_map(|found| keys(&found.prefix, &found.config, &none)).collect()
}

/// The keys in a `config`, and what the table's own says of the store.
fn keys(prefix: &str, config: &Properties, table: &Properties) -> Option<VendedKeys> {
    let value = |key: &str| config.get(key).cloned().filter(|text| !text.is_empty());
    let either = |key: &str| value(key).or_else(|| table.get(key).cloned());
    Some(VendedKeys {
        prefix: prefix.to_owned(),
        access_key: value("s3.access-key-id")?,
        secret_key: value("s3.secret-access-key")?.into(),
        session_token: value("s3.session-token").map(Into::into),
        expires_at_ms: value("s3.session-token-expires-at-ms").and_then(|text| text.parse().ok()),
        endpoint: either("s3.endpoint"),
        region: either("s3.region").or_else(|| either("client.region")),
        path_style: either("s3.path-style-access").map(|text| text == "true"),
    })
}
