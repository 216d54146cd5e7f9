//! An external Iceberg REST catalog (specification 1.11): Lakekeeper, Polaris, Nessie, and others.
//!
//! The server checks requirements and writes metadata files; here is only its client. A new table is
//! announced (`stage-create`) before its first commit, as Iceberg's own client does: some servers
//! begin tables that were not with a schema of their own. Reads are
//! repeated while it does not answer. A commit is one request that nothing sends twice; what its
//! answer, or the lack of one, means is in [`failure`]. Where the lake has no keys of its own for the
//! store, the catalog is asked for them ([`keys`]).

mod address;
mod auth;
mod client;
mod commit;
mod documents;
mod ending;
mod failure;
mod keys;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;

use self::address::Paths;
use self::auth::Auth;
use self::client::{Client, Exchange, Request, parse};
use self::documents::{Config, LoadedTable, Namespace, Namespaces, Tables, UpdateProperties};
use self::keys::TableKeys;
use super::names::{namespace_levels, namespace_text};
use super::{Catalog, CommitFailure, TableState};
use crate::settings::RestSettings;
use crate::storage::{Store, Vended};

/// Times that a namespace is created anew after a failure of the server, and the pause in between,
/// which grows.
const CREATE_TRIES_MAX: u32 = 5;
const CREATE_PAUSE: Duration = Duration::from_millis(100);

/// Pages of a listing, of at least one name each. A server that sends more is broken.
const PAGES_MAX: usize = 100_000;
/// What a server has to offer for its tables to be written.
const COMMIT: &str = "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}";
const CREDENTIALS: &str = "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}/credentials";

/// See the module.
#[derive(Debug)]
pub struct RestCatalog {
    server: Arc<Server>,
    /// Where keys go that the catalog hands out.
    vended: Option<Vended>,
    /// Tables that the catalog was told of, and that are not there yet.
    announced: Mutex<HashSet<TableIdent>>,
}

/// The server and what it said of itself.
#[derive(Debug)]
struct Server {
    client: Client,
    paths: Paths,
    /// What it offers; `None` if it does not say.
    endpoints: Option<HashSet<String>>,
}

impl RestCatalog {
    /// Asks the catalog for its configuration.
    ///
    /// # Errors
    /// `spec.*` for settings that cannot be used; `lake.*` if the catalog is not to be had.
    pub async fn open(settings: &RestSettings, store: &Store) -> Result<Self> {
        let secret = settings.credential.is_some() || settings.token.is_some();
        let base = address::parse("[lake] catalog", &settings.uri, secret)?;
        let exchange = Exchange::new()?;
        let client = Client::new(exchange.clone(), Auth::new(settings, &base, exchange)?);
        let mut url = address::below(&base, "v1/config")?;
        if let Some(warehouse) = &settings.warehouse {
            url.query_pairs_mut().append_pair("warehouse", warehouse);
        }
        let what = "read the catalog's configuration";
        let found: Option<Config> = client.find(what, &Request::get(url)).await?;
        let Config { defaults, mut overrides, endpoints } = found.ok_or_else(|| {
            Error::new(ErrorCode::LakeNotFound, "the catalog has no such warehouse")
                .hint("check [catalog.rest] warehouse and [lake] catalog")
        })?;
        let base = match overrides.remove("uri") {
            Some(uri) => address::parse("the address that the catalog gives", &uri, secret)?,
            None => base,
        };
        // Neither has a setting here, so that the server's defaults are as good as its overrides.
        let mut value = |key: &str| overrides.remove(key).or_else(|| defaults.get(key).cloned());
        let paths = Paths::new(base, value("prefix"), value("namespace-separator"));
        let endpoints = endpoints.map(|listed| listed.into_iter().collect());
        let server = Arc::new(Server { client, paths, endpoints });
        Ok(Self { server, vended: store.vended(), announced: Mutex::default() })
    }

    /// Reads a listing page by page.
    async fn pages<T: DeserializeOwned>(
        &self,
        what: &str,
        url: &Url,
        mut take: impl FnMut(T) -> Option<String>,
    ) -> Result<()> {
        let mut token = String::new();
        for _ in 0..PAGES_MAX {
            let mut page = url.clone();
            // Empty for the first page: it says that pages are understood.
            page.query_pairs_mut().append_pair("pageToken", &token);
            let request = Request::get(page);
            let Some(found) = self.server.client.find(what, &request).await? else { return Ok(()) };
            match take(found).filter(|next| !next.is_empty()) {
                Some(next) if next != token => token = next,
                Some(_) => break,
                None => return Ok(()),
            }
        }
        Err(Error::new(ErrorCode::LakeCorrupt, format!("cannot {what}: the listing has no end")))
    }

    /// Creates a namespace, unless somebody was faster.
    async fn create(
        &self,
        namespace: &NamespaceIdent,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        let what = "create a namespace in the catalog";
        let url = self.server.paths.namespaces()?;
        let mut new = Namespace { namespace: namespace.to_vec(), properties: properties.clone() };
        let mut tries = 0;
        loop {
            tries += 1;
            let request = Request::post(url.clone(), &new)?;
            // Sending it again does no harm.
            let answer = self.server.client.read(&request).await?;
            match answer.status {
                StatusCode::CONFLICT => return Ok(()),
                status if status.is_success() => return Ok(()),
                // Another Polder sets its properties itself, and takes none.
                StatusCode::BAD_REQUEST if !new.properties.is_empty() => new.properties.clear(),
                // SeaweedFS's answer while another client creates the same namespace.
                StatusCode::INTERNAL_SERVER_ERROR if tries < CREATE_TRIES_MAX => {
                    tokio::time::sleep(CREATE_PAUSE * tries).await;
                }
                _ => return Err(failure::error(what, &answer)),
            }
        }
    }

    async fn properties(&self, namespace: &NamespaceIdent) -> Result<Option<Namespace>> {
        let request = Request::get(self.server.paths.namespace(namespace)?);
        self.server.client.find("read a namespace of the catalog", &request).await
    }

    /// Takes over the keys that came with a table.
    fn take_keys(&self, ident: &TableIdent, table: &LoadedTable) -> Result<()> {
        let Some(vended) = &self.vended else { return Ok(()) };
        let source = TableKeys::new(&self.server, ident, table.metadata.location());
        keys::take(vended, &table.access, source)
    }

    fn state(&self, ident: &TableIdent, table: LoadedTable) -> Result<TableState> {
        self.take_keys(ident, &table)?;
        let metadata_location = table.metadata_location.ok_or_else(|| {
            let message = "the catalog does not say where a table's metadata is";
            Error::new(ErrorCode::LakeCorrupt, message).detail(ident.to_string())
        })?;
        Ok(TableState {
            ident: ident.clone(),
            metadata: Arc::new(table.metadata),
            metadata_location,
        })
    }

    /// Takes back a new table that the server made otherwise than it was told to: the files of its
    /// first snapshot would be read wrong.
    async fn take_back(&self, ident: &TableIdent) -> Result<()> {
        let request = Request::delete(self.server.paths.table(ident)?);
        let answer = self.server.client.read(&request).await?;
        if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(failure::error("drop a table", &answer))
    }
}

impl RestCatalog {
    /// A refusal, or the conflict behind it: servers refuse what names a snapshot that is gone meanwhile,
    /// or brings one that was made for an earlier state, as they refuse nonsense.
    async fn explained(
        &self,
        failure: CommitFailure,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> CommitFailure {
        let CommitFailure::Rejected(_) = &failure else { return failure };
        let Ok(Some(present)) = self.load(ident).await else { return failure };
        let holds = super::check(Some(&present), requirements)
            .and_then(|()| super::check_sequence(Some(&present), updates))
            .and_then(|()| super::check_names(Some(&present), updates));
        holds.err().unwrap_or(failure)
    }

    fn announced(&self) -> MutexGuard<'_, HashSet<TableIdent>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Whether the server offers an endpoint; `silent` if it does not say what it offers.
    fn offers(&self, endpoint: &str, silent: bool) -> bool {
        self.endpoints.as_ref().map_or(silent, |listed| listed.contains(endpoint))
    }
}

impl Server {
    /// Sets and removes properties of a namespace that is there.
    async fn change_properties(
        &self,
        namespace: &NamespaceIdent,
        updates: BTreeMap<String, String>,
        removals: Vec<String>,
    ) -> Result<()> {
        let update = UpdateProperties { removals, updates };
        let request = Request::post(self.paths.properties(namespace)?, &update)?;
        let answer = self.client.read(&request).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(failure::error("set properties of a namespace", &answer))
    }
}

fn levels(name: &str) -> Result<NamespaceIdent> {
    NamespaceIdent::from_vec(namespace_levels(name)).map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, "a namespace without a name").caused_by(cause)
    })
}

#[async_trait]
impl Catalog for RestCatalog {
    async fn namespaces(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let url = self.server.paths.namespaces()?;
        self.pages("list the catalog's namespaces", &url, |page: Namespaces| {
            let levels = page.namespaces.unwrap_or_default().into_iter();
            let idents = levels.filter_map(|levels| NamespaceIdent::from_vec(levels).ok());
            names.extend(idents.map(|ident| namespace_text(&ident)));
            page.next_page_token
        })
        .await?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let found = self.properties(&levels(name)?).await?;
        Ok(found.map(|namespace| namespace.properties))
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        let ident = levels(name)?;
        let lacking = |there: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let absent = properties.iter().filter(|(key, _)| !there.contains_key(*key));
            absent.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        if self.properties(&ident).await?.is_none() {
            self.create(&ident, properties).await?;
        }
        let gone = || Error::new(ErrorCode::LakeNotFound, format!("namespace {name:?} is gone"));
        let mut there = self.properties(&ident).await?;
        for tries in 1..CREATE_TRIES_MAX {
            if there.is_some() {
                break;
            }
            // SeaweedFS refuses what another client creates, and shows it a moment later.
            tokio::time::sleep(CREATE_PAUSE * tries).await;
            self.create(&ident, properties).await?;
            there = self.properties(&ident).await?;
        }
        let there = there.ok_or_else(gone)?.properties;
        let updates = lacking(&there);
        if updates.is_empty() {
            return Ok(());
        }
        self.server.change_properties(&ident, updates, Vec::new()).await?;
        let there = self.properties(&ident).await?.ok_or_else(gone)?.properties;
        if lacking(&there).is_empty() {
            return Ok(());
        }
        let message = "the catalog does not keep the properties of namespaces";
        Err(Error::new(ErrorCode::LakeFailed, message)
            .detail(name.to_owned())
            .hint("Polder notes there where an org's files are: it needs another catalog"))
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let url = self.server.paths.tables(&levels(namespace)?)?;
        self.pages("list the catalog's tables", &url, |page: Tables| {
            names.extend(page.identifiers.unwrap_or_default().into_iter().map(|found| found.name));
            page.next_page_token
        })
        .await?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn lists_all(&self) -> bool {
        false
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        let request =
            Request::get(self.server.paths.table(ident)?).with_keys(self.vended.is_some());
        match self.server.client.find("load a table", &request).await? {
            Some(table) => self.state(ident, table).map(Some),
            None => Ok(None),
        }
    }

    async fn announce(&self, ident: &TableIdent, updates: &[TableUpdate]) -> Result<()> {
        let document = commit::announcement(ident, updates)?;
        let request = Request::post(self.server.paths.tables(&ident.namespace)?, &document)?;
        let request = request.with_keys(self.vended.is_some());
        // Nothing is made by it, so that sending it again does no harm.
        let answer = self.server.client.read(&request).await?;
        if answer.status == StatusCode::CONFLICT {
            let message = "another run created the table meanwhile";
            return Err(Error::new(ErrorCode::LakeConflict, message).detail(ident.to_string()));
        }
        if !answer.status.is_success() {
            return Err(failure::error("announce a new table", &answer));
        }
        if let Some(vended) = &self.vended {
            let table: LoadedTable = parse("announce a new table", &answer)?;
            let source = TableKeys::new(&self.server, ident, document.location).by(request);
            keys::take(vended, &table.access, source)?;
        }
        self.announced().insert(ident.clone());
        Ok(())
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        if !self.server.offers(COMMIT, true) {
            let error = Error::new(ErrorCode::LakeFailed, "the catalog takes no commits");
            return Err(CommitFailure::Rejected(error.hint("its list of endpoints has none")));
        }
        let mut base = None;
        if commit::creates(requirements) {
            if !self.announced().remove(ident) {
                self.announce(ident, &updates).await.map_err(failure::of_announcement)?;
                self.announced().remove(ident);
            }
        } else if commit::needs_base(&updates) {
            base = self.load(ident).await.map_err(CommitFailure::Rejected)?;
            // Others may have been there: what the changes lead to is asked of the state they are for.
            super::check(base.as_ref(), requirements)?;
            super::check_sequence(base.as_ref(), &updates)?;
            super::check_names(base.as_ref(), &updates)?;
        }
        let asked = updates.clone();
        let (document, new) = commit::document(ident, base.as_ref(), requirements, updates)?;
        let url = self.server.paths.table(ident).map_err(CommitFailure::Rejected)?;
        let request = Request::post(url, &document).map_err(CommitFailure::Rejected)?;
        let request = request.with_keys(self.vended.is_some());
        let answer = self.server.client.send(&request).await.map_err(failure::of_lost_commit)?;
        if !answer.status.is_success() {
            let failure = failure::of_commit(&answer);
            return Err(self.explained(failure, ident, requirements, &asked).await);
        }
        // It is made. An answer that cannot be read is like a lost one: the table says what is true.
        let table: LoadedTable = parse("commit", &answer).map_err(failure::unknown)?;
        if let Some(new) = new.filter(|new| !commit::is_as_sent(&table.metadata, new)) {
            self.take_back(ident).await.map_err(failure::unknown)?;
            let message = "the catalog makes tables otherwise than it is told to";
            return Err(CommitFailure::Rejected(
                Error::new(ErrorCode::LakeFailed, message)
                    .detail(format!("{ident}, which was to be at {}", new.location()))
                    .hint("it has to keep a new table's uuid, location, field ids and partitions"),
            ));
        }
        self.state(ident, table).map_err(failure::unknown)
    }

    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        self.server.change_properties(&levels(name)?, set.clone(), remove.to_vec()).await
    }

    async fn content(&self, name: &str) -> Result<Vec<String>> {
        let listed = self.listed_below(&levels(name)?).await?;
        let entries = listed.tables.iter().chain(&listed.views).map(ToString::to_string);
        Ok(entries.chain(listed.namespaces.iter().map(namespace_text)).collect())
    }

    async fn forget(&self, ident: &TableIdent) -> Result<()> {
        self.drop_table(ident).await
    }

    async fn clear(&self, name: &str) -> Result<()> {
        self.drop_below(&levels(name)?).await
    }
}
