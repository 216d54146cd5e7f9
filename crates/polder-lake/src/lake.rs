//! The lake as a whole: opening it, finding orgs and tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use iceberg::{NamespaceIdent, TableIdent};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use uuid::Uuid;

use crate::catalog::{self, Catalog, Fenced, TableState};
use crate::error;
use crate::intake;
use crate::settings::LakeSettings;
use crate::stage::{Stage, StageRequest};
use crate::storage::{Store, lacks_conditions};
use crate::table::LakeTable;

/// The namespace property that holds the random id under which an org's files lie.
pub(crate) const ORG_UUID: &str = "polder.org-uuid";
/// Iceberg's namespace property for where other engines put new tables.
pub(crate) const LOCATION: &str = "location";
/// Beside the orgs' folders, which are uuids.
const AUDIT_HEAD: &str = "audit-log/head.json";
/// The longest table name; the catalog's column holds 255 characters.
const NAME_CHARS_MAX: usize = 200;

/// The lake. Cheap to clone; all clones share their connections.
#[derive(Clone, Debug)]
pub struct Lake {
    store: Store,
    catalog: Arc<Fenced>,
}

/// What is kept of the audit log, as it was read.
#[derive(Clone, Debug)]
pub struct AuditHead {
    bytes: Vec<u8>,
    version: UpdateVersion,
}

impl AuditHead {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Lake {
    /// Opens the lake, and creates the catalog's tables and the warehouse folder where absent.
    pub async fn open(settings: LakeSettings) -> Result<Self> {
        let store = Store::open(&settings)?;
        let catalog = catalog::open(&settings, &store).await?;
        Ok(Self::new(store, catalog))
    }

    /// A lake over any catalog.
    pub fn new(store: Store, catalog: Arc<dyn Catalog>) -> Self {
        Self { store, catalog: Arc::new(Fenced::new(catalog)) }
    }

    /// The orgs that have a namespace and that the principal may see, in order. Polder's own is none;
    /// those behind their fence are left out, as far as the catalog can tell.
    pub async fn orgs(&self, principal: &Principal) -> Result<Vec<OrgId>> {
        let namespaces = self.catalog.namespaces().await?;
        let mut orgs: Vec<OrgId> =
            namespaces.iter().filter_map(|name| OrgId::from_namespace(name)).collect();
        orgs.retain(|org| !org.is_management() && principal.authorize(org).is_ok());
        orgs.sort();
        Ok(orgs)
    }

    /// The names of the org's tables, in order; none for an org without a namespace. Those that another
    /// engine is filling for a run are left out.
    pub async fn tables(&self, org: &Authorized<OrgId>) -> Result<Vec<String>> {
        let mut names = self.catalog.tables(&org.get().namespace()).await?;
        names.retain(|name| !name.starts_with(intake::PREFIX));
        Ok(names)
    }

    /// The table as it is now; `None` if there is no such table.
    pub async fn table(&self, org: &Authorized<OrgId>, name: &str) -> Result<Option<LakeTable>> {
        match self.catalog.load(&ident(org.get(), name)).await? {
            Some(state) => LakeTable::new(org.get(), state, &self.store).map(Some),
            None => Ok(None),
        }
    }

    /// Prepares a new state of a table. Nothing of it is visible before [`Stage::commit`].
    ///
    /// # Errors
    /// `lake.not_found` for an append to a table that does not exist; `lake.schema_refused` for a
    /// schema that cannot become the table's.
    pub async fn stage(
        &self,
        org: &Authorized<OrgId>,
        name: &str,
        request: StageRequest,
    ) -> Result<Stage> {
        check_name(name)?;
        let ident = ident(org.get(), name);
        let base = self.catalog.load(&ident).await?;
        let new_location = match &base {
            Some(_) => None,
            None => Some(self.new_location(org.get()).await?),
        };
        let stage = Stage::begin(self, ident, base, new_location, request)?;
        stage.check_partitions().await?;
        if stage.base.is_none() {
            self.catalog.announce(&stage.ident, &stage.target.updates).await?;
        }
        Ok(stage)
    }

    /// Prepares a new state of a table that follows on exactly the state read: what was decided from
    /// `table`'s files holds for the stage's conflict checks.
    ///
    /// # Errors
    /// `lake.schema_refused` for a schema that cannot become the table's.
    pub fn stage_on(&self, table: &LakeTable, request: StageRequest) -> Result<Stage> {
        let base = table.state();
        Stage::begin(self, base.ident.clone(), Some(base), None, request)
    }

    /// The object store all files of the lake are in, for engines that read them themselves.
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        self.store.objects()
    }

    /// What the addresses in [`crate::ScanFile`] begin with: `file:///` or `s3://bucket`.
    pub fn store_url(&self) -> &str {
        self.store.url()
    }

    /// The path within [`Self::object_store`] of a file's address.
    ///
    /// # Errors
    /// `lake.corrupt` for an address in another store.
    pub fn object_path(&self, address: &str) -> Result<Path> {
        self.store.path(address)
    }

    /// What was last kept by [`Self::keep_audit_head`].
    ///
    /// # Errors
    /// `lake.unavailable`, `lake.failed`.
    pub async fn audit_head(&self) -> Result<Option<AuditHead>> {
        let path = self.audit_path()?;
        let objects = self.store.objects();
        let failed = |error| error::storage("read the audit log's checkpoint", error);
        match objects.get(&path).await {
            Ok(found) => {
                let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
                let bytes = found.bytes().await.map_err(failed)?.to_vec();
                Ok(Some(AuditHead { bytes, version: UpdateVersion { e_tag, version } }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Keeps a few bytes beside the tables' files, in place of those that were read `before`: how far the
    /// audit log went, out of reach of whoever can write to the control store alone. False if others were
    /// kept meanwhile, which stay.
    ///
    /// # Errors
    /// As [`Self::audit_head`].
    pub async fn keep_audit_head(
        &self,
        before: Option<&AuditHead>,
        bytes: Vec<u8>,
    ) -> Result<bool> {
        let (path, objects) = (self.audit_path()?, self.store.objects());
        let failed = |error| error::storage("write the audit log's checkpoint", error);
        let mode = before.map_or(PutMode::Create, |before| PutMode::Update(before.version.clone()));
        let options = PutOptions { mode, ..PutOptions::default() };
        match objects.put_opts(&path, bytes.clone().into(), options).await {
            Ok(_) => return Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => return Ok(false),
            Err(error) if lacks_conditions(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        // A store without conditional put, such as a disk: it is looked at once more.
        let now = self.audit_head().await?;
        if now.as_ref().map(AuditHead::bytes) != before.map(AuditHead::bytes) {
            return Ok(false);
        }
        objects.put(&path, bytes.into()).await.map_err(failed)?;
        Ok(true)
    }

    fn audit_path(&self) -> Result<Path> {
        self.store.path(&format!("{}/{AUDIT_HEAD}", self.store.root()))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn catalog(&self) -> &dyn Catalog {
        &*self.catalog
    }

    pub(crate) fn fences(&self) -> &Fenced {
        &self.catalog
    }

    pub(crate) async fn state(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        self.catalog.load(ident).await
    }

    /// A location no table ever had: `<warehouse>/<org uuid>/<table uuid>`, and the table's uuid.
    async fn new_location(&self, org: &OrgId) -> Result<(Uuid, String)> {
        let folder = org_folder(&*self.catalog, self.store.root(), org).await?;
        let table = Uuid::new_v4();
        Ok((table, format!("{folder}/{table}")))
    }
}

/// The folder that holds everything of an org: `<warehouse>/<org uuid>`. The org's namespace, which is
/// created where it is absent, remembers it.
pub(crate) async fn org_folder(catalog: &dyn Catalog, root: &str, org: &OrgId) -> Result<String> {
    let namespace = org.namespace();
    let lost = || {
        Error::new(ErrorCode::LakeCorrupt, "the org's namespace has no id for its files")
            .detail(namespace.clone())
    };
    let found = match catalog.namespace(&namespace).await? {
        Some(found) if found.contains_key(ORG_UUID) => found,
        _ => {
            catalog.ensure_namespace(&namespace, &org_properties(root)).await?;
            catalog.namespace(&namespace).await?.ok_or_else(lost)?
        }
    };
    let org_uuid: Uuid = found.get(ORG_UUID).and_then(|text| text.parse().ok()).ok_or_else(lost)?;
    let folder = format!("{root}/{org_uuid}");
    if !found.contains_key(LOCATION) {
        let location = BTreeMap::from([(LOCATION.to_owned(), folder.clone())]);
        catalog.ensure_namespace(&namespace, &location).await?;
    }
    Ok(folder)
}

/// What the namespace of a new org says of its files. Together, so that a catalog that wants tables
/// below their namespace's location can check that.
pub(crate) fn org_properties(root: &str) -> BTreeMap<String, String> {
    let chosen = Uuid::new_v4();
    BTreeMap::from([
        (ORG_UUID.to_owned(), chosen.to_string()),
        (LOCATION.to_owned(), format!("{root}/{chosen}")),
    ])
}

pub(crate) fn ident(org: &OrgId, name: &str) -> TableIdent {
    TableIdent::new(NamespaceIdent::new(org.namespace()), name.to_owned())
}

fn check_name(name: &str) -> Result<()> {
    if name.starts_with(intake::PREFIX) {
        let message =
            format!("{name:?} cannot be a table's name: Polder has such tables of its own");
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint(format!("use a name that does not begin with {:?}", intake::PREFIX)));
    }
    let length = name.chars().count();
    if (1..=NAME_CHARS_MAX).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::SpecInvalid, format!("{name:?} cannot be a table's name"))
        .hint(format!("use 1 to {NAME_CHARS_MAX} characters without control characters")))
}
