//! Opens what commands work with: the configuration, the lake, the store, the sources.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use polder_control::{Config, ProcessSecrets, Store};
use polder_core::spec::S3Config;
use polder_core::{Error, ErrorCode, Result, SecretRef, SecretResolver, Source};
use polder_lake::{CatalogSettings, Lake, LakeSettings, RestSettings, S3Settings};
use secrecy::{ExposeSecret, SecretString};

/// The configuration and the means to open what it names.
pub(crate) struct App {
    pub(crate) config: Config,
    secrets: ProcessSecrets,
}

impl App {
    /// Reads the configuration; opens nothing yet.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        let config = Config::load(file)?;
        let secrets = ProcessSecrets::new(config.base.clone());
        Ok(Self { config, secrets })
    }

    pub(crate) async fn lake(&self) -> Result<Lake> {
        Lake::open(self.lake_settings()?).await
    }

    /// Where tables and their catalog are.
    pub(crate) fn lake_settings(&self) -> Result<LakeSettings> {
        let lake = &self.config.process.lake;
        let s3 = self.config.process.storage.s3.as_ref();
        Ok(LakeSettings {
            warehouse: self.config.address(&lake.warehouse),
            catalog: self.catalog()?,
            s3: s3.map(|s3| self.s3(s3)).transpose()?,
        })
    }

    /// The value a reference leads to.
    pub(crate) fn secret(&self, reference: &SecretRef) -> Result<SecretString> {
        self.secrets.resolve(reference)
    }

    pub(crate) async fn store(&self) -> Result<Store> {
        let url = self.database(&self.config.process.store.url)?;
        Store::open(url.expose_secret()).await
    }

    /// One source by its name in the configuration.
    pub(crate) fn source(&self, name: &str) -> Result<Arc<dyn Source>> {
        let sources = &self.config.process.sources;
        let spec = sources.get(name).ok_or_else(|| {
            let names: Vec<_> = sources.keys().map(String::as_str).collect();
            Error::new(ErrorCode::SpecUnknownName, format!("there is no source {name:?}"))
                .hint(format!("polder.toml has: {}", names.join(", ")))
        })?;
        let storage = &self.config.process.storage;
        polder_sources::open(name, spec, storage, &self.secrets, &self.config.base)
            .map_err(|error| error.within(&format!("source {name}")))
    }

    /// Every source that any of these names mentions, once each.
    pub(crate) fn sources<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, Arc<dyn Source>>> {
        let mut sources = BTreeMap::new();
        for name in names {
            if !sources.contains_key(name) {
                sources.insert(name.to_owned(), self.source(name)?);
            }
        }
        Ok(sources)
    }

    fn catalog(&self) -> Result<CatalogSettings> {
        let address = self.database(&self.config.process.lake.catalog)?;
        let text = address.expose_secret();
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(CatalogSettings::Rest(self.rest(text)?));
        }
        Ok(CatalogSettings::Sql(address))
    }

    fn rest(&self, uri: &str) -> Result<RestSettings> {
        let rest = self.config.process.catalog.rest.clone().unwrap_or_default();
        let resolve = |reference: &Option<SecretRef>| {
            reference.as_ref().map(|reference| self.secrets.resolve(reference)).transpose()
        };
        Ok(RestSettings {
            uri: uri.to_owned(),
            warehouse: rest.warehouse,
            credential: resolve(&rest.credential)?,
            token: resolve(&rest.token)?,
            oauth2_server_uri: rest.oauth2_server_uri,
            scope: rest.scope,
        })
    }

    fn s3(&self, s3: &S3Config) -> Result<S3Settings> {
        let resolve = |key: &Option<SecretRef>| {
            key.as_ref().map(|reference| self.secrets.resolve(reference)).transpose()
        };
        Ok(S3Settings {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key: resolve(&s3.access_key)?,
            secret_key: resolve(&s3.secret_key)?,
            path_style: s3.path_style,
        })
    }

    /// A catalog's or store's address, which may be a reference as it may hold a password.
    fn database(&self, text: &str) -> Result<SecretString> {
        if text.starts_with("env:") || text.starts_with("file:") {
            return self.secrets.resolve(&text.parse()?);
        }
        Ok(SecretString::from(self.config.database_url(text)))
    }
}
