//! Opens what commands work with: the configuration, the lake, the store, the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_control::audit::{self, Event};
use polder_control::certificate::SigningKey;
use polder_control::desired::{self, Author, Desired, Left, Pending};
use polder_control::{Config, OrgPipeline, ProcessSecrets, Store};
use polder_core::erasure::Span;
use polder_core::spec::{
    EngineKind, GlueConfig, RestCatalogConfig, S3Config, SourceSpec, TableSpec,
};
use polder_core::{
    Error, ErrorCode, Importer, Optimizer, Principal, Result, SecretRef, SecretResolver, Source,
};
use polder_lake::{CatalogSettings, GlueSettings, Lake, LakeSettings, RestSettings, S3Settings};
use polder_query::{OpenSource, TrinoEngine, TrinoSettings};
use polder_sources::{Connections, Means};
use secrecy::{ExposeSecret, SecretString};

use crate::airflow::Airflow;
use crate::eraser::{Eraser, Key};
use crate::room::Room;
use crate::worker::Elsewhere;

/// The signing key, where none is configured: beside the store.
const KEY_FILE: &str = "signing-key.pem";
/// How long runs of an org that leaves may take to stop, unless the configuration says so.
const DRAIN: Duration = Duration::from_secs(30);

/// The configuration and the means to open what it names.
pub(crate) struct App {
    pub(crate) config: Config,
    /// What runs take, one pipeline per org, for commands that go over all of them; empty until it was asked
    /// for. Servers ask the store for one org at a time.
    pub(crate) pipelines: Vec<OrgPipeline>,
    /// What the files drop, or have go, and `polder apply` has not.
    pub(crate) left: Vec<Left>,
    /// What tables keep less and can still be taken back: `pipelines` keep it.
    pub(crate) pending: Vec<Pending>,
    /// What the runs of this process hold.
    pub(crate) room: Arc<Room>,
    /// What it has open to its sources.
    pub(crate) connections: Arc<Connections>,
    /// The configuration's file, as it was named.
    pub(crate) file: Option<PathBuf>,
    secrets: ProcessSecrets,
}

impl App {
    /// Reads the configuration; opens nothing yet.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        let config = Config::load(file)?;
        let secrets = ProcessSecrets::new(config.base.clone());
        let limits = &config.process.limits;
        let room = Arc::new(Room::new(limits.clone(), limits.runs_of_org()));
        let connections = Connections::new();
        let (pipelines, left, pending) = (Vec::new(), Vec::new(), Vec::new());
        let file = file.map(Path::to_owned);
        Ok(Self { config, pipelines, left, pending, room, connections, file, secrets })
    }

    /// The same with the pipelines of the desired state, into which the files are applied as far as
    /// that takes nothing away.
    pub(crate) async fn settled(self) -> Result<Self> {
        let now = self.apply_files().await?;
        self.look(&now)
    }

    /// As [`Self::settled`] for a server, which holds neither the pipelines nor what the files say.
    pub(crate) async fn served(mut self) -> Result<Self> {
        let now = self.apply_files().await?;
        let declared = std::mem::take(&mut self.config.declared);
        self.left = desired::left(&self.config.process, &now, &declared)?;
        Ok(self)
    }

    /// The same with the pipelines of the desired state, as [`Self::settled`] would have them;
    /// nothing is stored.
    pub(crate) async fn looked(self) -> Result<Self> {
        let now = desired::load(&self.store().await?, &Principal::Operator).await?;
        self.look(&now)
    }

    /// The same with the pipelines that the files alone would have.
    pub(crate) fn by_files(mut self) -> Result<Self> {
        self.pipelines = self.config.pipelines()?;
        Ok(self)
    }

    async fn apply_files(&self) -> Result<Desired> {
        let store = self.store().await?;
        let author = author(Some("files beside polder.toml".to_owned()));
        let config = &self.config;
        desired::settle(&store, &config.process, &config.declared, &author).await
    }

    fn look(mut self, now: &Desired) -> Result<Self> {
        let Config { process, declared, .. } = &self.config;
        self.left = desired::left(process, now, declared)?;
        self.pending = desired::pending(process, now);
        self.pipelines = desired::look(process, now, declared)?;
        Ok(self)
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

    /// Who keeps the tables' metadata, by the address's scheme.
    fn catalog(&self) -> Result<CatalogSettings> {
        let address = self.database(&self.config.process.lake.catalog)?;
        let (rest, glue) = {
            let catalog = &self.config.process.catalog;
            (catalog.rest.as_ref(), catalog.glue.as_ref())
        };
        let text = address.expose_secret();
        let region = text.strip_prefix("glue://");
        let http = text.starts_with("https://") || text.starts_with("http://");
        let useless = |section: &str, scheme: &str| {
            let message =
                format!("[{section}] is there, but [lake] catalog is no {scheme} address");
            Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint(format!("write catalog = \"{scheme}…\", or remove [{section}]")))
        };
        if glue.is_some() && region.is_none() {
            return useless("catalog.glue", "glue://");
        }
        if rest.is_some() && !http {
            return useless("catalog.rest", "https://");
        }
        Ok(match region {
            Some(region) => CatalogSettings::Glue(self.glue(region, glue)?),
            None if http => CatalogSettings::Rest(self.rest(text, rest)?),
            None => CatalogSettings::Sql(address),
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

    /// Writes the audit log's entry of what a command did, or of why it did not.
    ///
    /// # Errors
    /// What the command failed with; `control.store` where it did not and the entry cannot be written.
    pub(crate) async fn noted<T>(&self, event: Event, done: Result<T>) -> Result<T> {
        let outcome = done.as_ref().map_or_else(|error| error.code().as_str(), |_| "done");
        let event = Event { who: author(None).who, outcome: outcome.to_owned(), ..event };
        let written = match self.store().await {
            Ok(store) => audit::record(&store, &event).await,
            Err(error) => Err(error),
        };
        let done = done?;
        written?;
        Ok(done)
    }

    /// Whether the store is a file, which serves one process.
    pub(crate) fn store_is_a_file(&self) -> Result<bool> {
        let url = self.database(&self.config.process.store.url)?;
        Ok(url.expose_secret().starts_with("sqlite:"))
    }

    /// What takes orgs out of lake and store.
    pub(crate) async fn eraser(&self) -> Result<Eraser> {
        let governance = &self.config.process.governance;
        let span = |name: &str, text: &Option<String>, default: Duration| match text {
            Some(text) => {
                let span: Result<Span> = text.parse();
                span.map(|Span(span)| span)
                    .map_err(|error| error.within(&format!("[governance] {name}")))
            }
            None => Ok(default),
        };
        let importer = self.trino()?.map(|trino| -> Arc<dyn Importer> { trino });
        Ok(Eraser {
            importer,
            grace: span("grace", &governance.grace, Duration::ZERO)?,
            drain: span("drain", &governance.drain, DRAIN)?,
            lake: self.lake().await?,
            store: self.store().await?,
            key: self.signing_key()?,
            backups: governance.backups.clone(),
            airflow: Airflow::open(self)?,
        })
    }

    /// The key that signs certificates, or where it is once it is needed.
    fn signing_key(&self) -> Result<Key> {
        if let Some(reference) = &self.config.process.governance.signing_key {
            return Ok(Key::Given(Arc::new(SigningKey::parse(&self.secret(reference)?)?)));
        }
        let store = self.database(&self.config.process.store.url)?;
        let beside = store.expose_secret().strip_prefix("sqlite://").map(Path::new);
        let folder = beside.and_then(Path::parent).unwrap_or(&self.config.base);
        Ok(Key::In(folder.join(KEY_FILE)))
    }

    /// One source by its name in the configuration.
    pub(crate) fn source(&self, name: &str) -> Result<Arc<dyn Source>> {
        let sources = &self.config.process.sources;
        let spec = sources.get(name).ok_or_else(|| {
            let names: Vec<_> = sources.keys().map(String::as_str).collect();
            Error::new(ErrorCode::SpecUnknownName, format!("there is no source {name:?}"))
                .hint(format!("polder.toml has: {}", names.join(", ")))
        })?;
        let means = Means {
            storage: &self.config.process.storage,
            secrets: &self.secrets,
            base: &self.config.base,
            connections: &self.connections,
        };
        polder_sources::open(name, spec, means)
            .map_err(|error| error.within(&format!("source {name}")))
    }

    /// The Trino of `[trino]`, which is not called yet.
    pub(crate) fn trino(&self) -> Result<Option<Arc<TrinoEngine>>> {
        let Some(trino) = &self.config.process.trino else { return Ok(None) };
        let settings = TrinoSettings {
            url: trino.url.clone(),
            user: trino.user.clone(),
            password: self.optional_secret(trino.password.as_ref())?,
            catalog: trino.catalog.clone(),
        };
        Ok(Some(Arc::new(TrinoEngine::new(settings)?)))
    }

    /// The same for whoever asks it by name.
    pub(crate) fn named_trino(&self) -> Result<Arc<TrinoEngine>> {
        self.trino()?.ok_or_else(no_trino)
    }

    /// Who carries out `optimize` of the table; this process where there is none.
    pub(crate) fn optimizer(
        &self,
        table: &TableSpec,
        trino: Option<&Arc<TrinoEngine>>,
    ) -> Result<Option<Arc<dyn Optimizer>>> {
        match self.config.process.engine(table.engine) {
            EngineKind::Embedded => Ok(None),
            EngineKind::Trino => {
                let trino: Arc<dyn Optimizer> = trino.cloned().ok_or_else(no_trino)?;
                Ok(Some(trino))
            }
        }
    }

    /// Who carries out runs beside this process, as `[trino]` says.
    pub(crate) fn elsewhere(&self, trino: Option<&Arc<TrinoEngine>>) -> Option<Elsewhere> {
        let process = &self.config.process;
        let config = process.trino.as_ref().filter(|config| config.ingest)?;
        let sources = process.sources.iter();
        // It reads no others; a table that names it nevertheless is told so.
        let readable = sources.filter(|(_, spec)| matches!(spec, SourceSpec::Postgres(_)));
        let by_default = readable.map(|(name, _)| name.clone()).filter(|_| config.default);
        let importer: Arc<dyn Importer> = trino.cloned()?;
        Some(Elsewhere { importer, by_default: Arc::new(by_default.collect()) })
    }

    /// Opens sources by name, later, for queries that name them.
    pub(crate) fn source_opener(&self) -> OpenSource {
        let (process, base) = (self.config.process.clone(), self.config.base.clone());
        let secrets = ProcessSecrets::new(base.clone());
        let connections = Arc::clone(&self.connections);
        Arc::new(move |name| {
            let Some(spec) = process.sources.get(name) else { return Ok(None) };
            let means = Means {
                storage: &process.storage,
                secrets: &secrets,
                base: &base,
                connections: &connections,
            };
            let opened = polder_sources::open(name, spec, means);
            opened.map(Some).map_err(|error| error.within(&format!("source {name}")))
        })
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

    fn rest(&self, uri: &str, rest: Option<&RestCatalogConfig>) -> Result<RestSettings> {
        let rest = rest.cloned().unwrap_or_default();
        Ok(RestSettings {
            uri: uri.to_owned(),
            warehouse: rest.warehouse,
            credential: self.optional_secret(rest.credential.as_ref())?,
            token: self.optional_secret(rest.token.as_ref())?,
            oauth2_server_uri: rest.oauth2_server_uri,
            scope: rest.scope,
        })
    }

    fn s3(&self, s3: &S3Config) -> Result<S3Settings> {
        Ok(S3Settings {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key: self.optional_secret(s3.access_key.as_ref())?,
            secret_key: self.optional_secret(s3.secret_key.as_ref())?,
            path_style: s3.path_style,
            role_arn: s3.role_arn.clone(),
            sts_endpoint: s3.sts_endpoint.clone(),
        })
    }

    /// Glue in the region named, or else in the one of the AWS environment.
    fn glue(&self, region: &str, glue: Option<&GlueConfig>) -> Result<GlueSettings> {
        let region = match region {
            "" => glue_region_of_environment()?,
            named => named.to_owned(),
        };
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !region.chars().all(is_part) {
            let message = format!("{region:?} is no region of AWS");
            return Err(Error::new(ErrorCode::SpecInvalid, message).hint(
                "write [lake] catalog = \"glue://eu-west-1\", with nothing after the region",
            ));
        }
        Ok(GlueSettings {
            region,
            endpoint: glue.and_then(|glue| glue.endpoint.clone()),
            catalog_id: glue.and_then(|glue| glue.catalog_id.clone()),
            access_key: self.optional_secret(glue.and_then(|glue| glue.access_key.as_ref()))?,
            secret_key: self.optional_secret(glue.and_then(|glue| glue.secret_key.as_ref()))?,
        })
    }

    fn optional_secret(&self, reference: Option<&SecretRef>) -> Result<Option<SecretString>> {
        reference.map(|reference| self.secrets.resolve(reference)).transpose()
    }

    /// An address of somebody else's, which may be a reference as it may hold a secret.
    pub(crate) fn address(&self, text: &str) -> Result<SecretString> {
        if text.starts_with("env:") || text.starts_with("file:") {
            return self.secrets.resolve(&text.parse()?);
        }
        Ok(SecretString::from(text))
    }

    /// A catalog's or store's address, which may be a reference as it may hold a password.
    fn database(&self, text: &str) -> Result<SecretString> {
        if text.starts_with("env:") || text.starts_with("file:") {
            return self.secrets.resolve(&text.parse()?);
        }
        Ok(SecretString::from(self.config.database_url(text)))
    }
}

/// What asks for a Trino that the configuration does not have.
pub(crate) fn no_trino() -> Error {
    Error::new(ErrorCode::SpecInvalid, "polder.toml has no [trino]")
        .hint("name the coordinator there: [trino] url = \"https://…\"")
}

/// Whoever runs this process, as changes remember it.
pub(crate) fn author(why: Option<String>) -> Author {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    Author { who: format!("cli:{}", user.as_deref().unwrap_or("operator")), why }
}

/// Where AWS's own tools look for a region.
fn glue_region_of_environment() -> Result<String> {
    let named = |name: &str| std::env::var(name).ok().filter(|region| !region.is_empty());
    named("AWS_REGION").or_else(|| named("AWS_DEFAULT_REGION")).ok_or_else(|| {
        Error::new(ErrorCode::SpecInvalid, "[lake] catalog names no region for AWS Glue")
            .hint("write glue://eu-west-1, or set AWS_REGION")
    })
}
