//! The embedded catalog as an Iceberg REST catalog offers it: every operation of the specification
//! as a function from a request to an answer or a [`Refusal`].
//!
//! It knows the documents (JSON) and the words of the protocol, and nothing of HTTP: routes, headers,
//! tokens and status codes are the binary's. Each call carries the principal on whose behalf it is
//! made; what an org may not see does not exist for it.

mod commit;
mod documents;
mod kept;
mod location;
mod namespaces;
mod purge;
mod refusal;
mod requirements;
mod storage;
mod tables;
mod transaction;
mod views;

use iceberg::{NamespaceIdent, TableIdent};
use polder_core::{Error, ErrorCode, OrgId, Principal};
use uuid::Uuid;

pub use documents::{
    CommitRequest, CreateNamespaceRequest, CreateTableRequest, CreateViewRequest, Identifier,
    Loaded, LoadedTable, LoadedView, NamespaceDocument, Page, Recall, RegisterRequest,
    RenameRequest, SnapshotMode, TransactionRequest, UpdatePropertiesRequest,
    UpdatePropertiesResponse,
};
pub use refusal::{Answer, Refusal, RefusalKind};

pub(crate) use self::location::Fence;
use super::SqlCatalog;
use super::names::namespace_text;
use super::sql::{Entry, EntryKind};
use crate::intake;
use crate::lake::org_folder;
use crate::settings::{CatalogSettings, LakeSettings, S3Settings};
use crate::storage::{Store, TokenService};

/// The folder below the warehouse for tables of namespaces without an org.
const SHARED_FOLDER: &str = "shared";
/// Commits tried when other writers keep being faster, if the requirements still hold each time.
const ATTEMPTS_MAX: u32 = 12;
/// The longest name; the database's column holds 255 characters.
const NAME_CHARS_MAX: usize = 200;

/// The catalog, as it is served.
#[derive(Debug)]
pub struct IcebergCatalog {
    catalog: SqlCatalog,
    store: Store,
    s3: Option<S3Settings>,
    tokens: Option<TokenService>,
}

impl IcebergCatalog {
    /// Opens the same catalog and store as [`crate::Lake::open`].
    ///
    /// # Errors
    /// `spec.invalid` for a catalog that others serve.
    pub async fn open(settings: &LakeSettings) -> polder_core::Result<Self> {
        let CatalogSettings::Sql(url) = &settings.catalog else {
            let message =
                "[lake] catalog is served elsewhere: `polder serve` offers the embedded one";
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("point other engines at the external catalog itself: the tables are there"));
        };
        let store = Store::open(settings)?;
        let catalog = SqlCatalog::open(url, store.clone()).await?;
        let tokens = settings.s3.as_ref().map(TokenService::open).transpose()?.flatten();
        Ok(Self { catalog, store, s3: settings.s3.clone(), tokens })
    }

    /// The namespace of these levels, if the principal may know of it.
    fn namespace(principal: &Principal, levels: &[String]) -> Answer<NamespaceIdent> {
        let valid = |level: &String| {
            let length = level.chars().count();
            (1..=NAME_CHARS_MAX).contains(&length) && !level.chars().any(char::is_control)
        };
        let ident = NamespaceIdent::from_vec(levels.to_vec())
            .map_err(|_| Refusal::invalid("Invalid namespace: it has no level"))?;
        if !levels.iter().all(valid) || namespace_text(&ident).chars().count() > NAME_CHARS_MAX {
            return Err(Refusal::invalid(format!(
                "Invalid namespace: use 1 to {NAME_CHARS_MAX} characters without control characters"
            )));
        }
        if may_see(principal, &ident) { Ok(ident) } else { Err(Refusal::no_namespace(&ident)) }
    }

    /// The names of the namespace's tables or views, in order; without tables that an engine is filling.
    async fn list(
        &self,
        principal: &Principal,
        namespace: &[String],
        kind: EntryKind,
    ) -> Answer<Vec<String>> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        let mut names = self.catalog.entries(&namespace_text(&namespace), kind).await?;
        // Whoever fills such a table was told its name.
        names.retain(|name| !name.starts_with(intake::PREFIX));
        Ok(names)
    }

    /// The identifier of a table or view that may be there. What the principal may not see is not.
    fn ident(
        principal: &Principal,
        namespace: &[String],
        name: &str,
        kind: EntryKind,
    ) -> Answer<TableIdent> {
        let ident = |namespace| TableIdent::new(namespace, name.to_owned());
        Self::namespace(principal, namespace).map(ident).map_err(|refusal| {
            if refusal.kind == RefusalKind::NoSuchNamespace {
                return Refusal::absent(kind, &format!("{}.{name}", namespace.join(".")));
            }
            refusal
        })
    }

    /// The row of a table or view.
    ///
    /// # Errors
    /// `NoSuchTable` or `NoSuchView`.
    async fn present(&self, ident: &TableIdent, kind: EntryKind) -> Answer<Entry> {
        let entry = self.catalog.entry(ident).await?;
        let absent = || Refusal::absent(kind, &refusal::show(ident));
        entry.filter(|entry| entry.kind == kind).ok_or_else(absent)
    }

    /// The identifier of a new table or view.
    fn new_ident(namespace: NamespaceIdent, name: &str) -> Answer<TableIdent> {
        let length = name.chars().count();
        if (1..=NAME_CHARS_MAX).contains(&length) && !name.chars().any(char::is_control) {
            return Ok(TableIdent::new(namespace, name.to_owned()));
        }
        Err(Refusal::invalid(format!(
            "Invalid name: use 1 to {NAME_CHARS_MAX} characters without control characters"
        )))
    }

    /// # Errors
    /// `NoSuchNamespace`.
    async fn require_namespace(&self, namespace: &NamespaceIdent) -> Answer<()> {
        match self.catalog.namespace_properties(&namespace_text(namespace)).await? {
            Some(_) => Ok(()),
            None => Err(Refusal::no_namespace(namespace)),
        }
    }

    /// Whether the name is free.
    ///
    /// # Errors
    /// `AlreadyExists`, in the words for whoever wants to create a `wanted`.
    async fn require_free(&self, ident: &TableIdent, wanted: EntryKind) -> Answer<()> {
        let Some(entry) = self.catalog.entry(ident).await? else { return Ok(()) };
        let shown = refusal::show(ident);
        Err(Refusal::exists(match (wanted, entry.kind) {
            (EntryKind::Table, EntryKind::Table) => format!("Table already exists: {shown}"),
            (EntryKind::View, EntryKind::View) => format!("View already exists: {shown}"),
            (_, EntryKind::View) => format!("View with same name already exists: {shown}"),
            (_, EntryKind::Table) => format!("Table with same name already exists: {shown}"),
        }))
    }

    /// Where the namespace's files have to lie.
    async fn fence(&self, namespace: &NamespaceIdent) -> Answer<Fence> {
        match org_at(namespace) {
            Some(org) => Fence::org(&org_folder(&self.catalog, self.store.root(), &org).await?),
            None => Fence::shared(self.store.root()),
        }
    }

    /// A location that nothing had before, inside the namespace's fence.
    async fn new_location(&self, namespace: &NamespaceIdent) -> Answer<String> {
        Ok(format!("{}/{}", self.folder(namespace).await?, Uuid::new_v4()))
    }

    /// The folder that a namespace's tables go into unless a client says otherwise.
    async fn folder(&self, namespace: &NamespaceIdent) -> Answer<String> {
        Ok(match org_at(namespace) {
            Some(org) => org_folder(&self.catalog, self.store.root(), &org).await?,
            None => format!("{}/{SHARED_FOLDER}", self.store.root()),
        })
    }
}

/// The org whose namespace this is, or is below.
fn org_at(namespace: &NamespaceIdent) -> Option<OrgId> {
    let levels: &[String] = namespace;
    OrgId::from_namespace(levels.first()?)
}

fn may_see(principal: &Principal, namespace: &NamespaceIdent) -> bool {
    match principal {
        Principal::Operator => true,
        principal => org_at(namespace).is_some_and(|org| principal.authorize(&org).is_ok()),
    }
}
