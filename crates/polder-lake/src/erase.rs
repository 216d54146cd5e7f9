//! The end of an org: its fence, and the removal of everything it has in the lake, in steps that can
//! each be done again.
//!
//! What decides that an org goes, and in which order the steps are done, is not here (ADR 0019).

use std::collections::BTreeMap;

use futures::TryStreamExt;
use iceberg::{NamespaceIdent, TableIdent};
use polder_core::retention::Retention;
use polder_core::spec::{PartitionField, Transform};
use polder_core::{Authorized, Error, ErrorCode, ORG_COLUMN, OrgId, Principal, Remains, Result};
use uuid::Uuid;

use crate::catalog::{Catalog, FENCED};
use crate::lake::{LOCATION, Lake, ORG_UUID};
use crate::scan::{ScanFile, ScanRequest};
use crate::stage::{StageKind, StageRequest};
use crate::storage::Below;
use crate::table::LakeTable;
use polder_core::{CmpOp, Literal, Predicate};

/// The table in which erasures themselves are recorded; its rows stay.
pub(crate) const ERASURES: &str = "erasures";
/// Tries to take files out of a management table while others write to it.
const TRIES_MAX: u32 = 8;
/// Everything but the present state goes.
const NO_HISTORY: Retention = Retention { versions: 0, history_ms: -1, history_min: 1 };

/// What an org has in the catalog.
#[derive(Debug, Default)]
pub struct OrgEntries {
    /// Tables, views and namespaces below its own.
    pub count: u64,
    /// Tables whose files lie outside the org's folder, which stay.
    pub elsewhere: Vec<Remains>,
}

impl Lake {
    /// Fences an org: from when this returns nothing commits to its tables any more, and nothing reads
    /// them a second later. The first event wins; returns which one it is.
    ///
    /// # Errors
    /// `lake.held` for an org with a legal hold.
    pub async fn fence(&self, org: &Authorized<OrgId>, event: &str) -> Result<String> {
        let what = "fencing and erasing it";
        self.check_hold(org, None, what).await?;
        let by = self.catalog().fence(&org.get().namespace(), event).await;
        // Of a fence and a hold that are set at the same time, each sees the other or one does. Also of a
        // fence whose setting failed afterwards: it may be there.
        if let Err(error) = self.check_hold(org, None, what).await {
            let held = error.code() == ErrorCode::LakeHeld;
            if held && self.fenced_by(org).await?.as_deref() == Some(event) {
                self.lift_fence(org).await?;
            }
            return Err(error);
        }
        by
    }

    /// The event that has fenced an org; `None` for an org that is open.
    pub async fn fenced_by(&self, org: &Authorized<OrgId>) -> Result<Option<String>> {
        let found = self.catalog().namespace(&org.get().namespace()).await?;
        Ok(found.unwrap_or_default().remove(FENCED))
    }

    /// # Errors
    /// `lake.fenced` for an org that has left or is leaving.
    pub async fn check_open(&self, org: &Authorized<OrgId>) -> Result<()> {
        match self.fenced_by(org).await? {
            None => Ok(()),
            Some(_) => Err(crate::catalog::fenced(org.get())),
        }
    }

    /// Whether the catalog knows the org at all.
    pub async fn knows(&self, org: &Authorized<OrgId>) -> Result<bool> {
        Ok(self.catalog().namespace(&org.get().namespace()).await?.is_some())
    }

    /// Opens an org again from which nothing was removed.
    pub async fn lift_fence(&self, org: &Authorized<OrgId>) -> Result<()> {
        self.drop_marks(org, &[FENCED]).await
    }

    /// Lets an id whose org was erased be used anew: the next org of that id gets another folder.
    pub async fn release_id(&self, org: &Authorized<OrgId>) -> Result<()> {
        self.require_fence(org).await?;
        // The fence last: until then nobody chooses a folder.
        self.drop_marks(org, &[ORG_UUID, LOCATION]).await?;
        self.drop_marks(org, &[FENCED]).await
    }

    async fn drop_marks(&self, org: &Authorized<OrgId>, keys: &[&str]) -> Result<()> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        self.catalog().change_namespace(&org.get().namespace(), &BTreeMap::new(), &keys).await
    }

    /// The folder of an org, if it ever had one.
    pub async fn org_folder(&self, org: &Authorized<OrgId>) -> Result<Option<String>> {
        let found = self.catalog().namespace(&org.get().namespace()).await?.unwrap_or_default();
        let Some(text) = found.get(ORG_UUID) else { return Ok(None) };
        // What goes into a path is a uuid and nothing else.
        let uuid: Uuid = text.parse().map_err(|cause| {
            Error::new(ErrorCode::LakeCorrupt, "the id of an org's files is no uuid")
                .detail(org.get().namespace())
                .caused_by(cause)
        })?;
        Ok(Some(format!("{}/{uuid}", self.store().root())))
    }

    /// What the catalog has of a fenced org.
    ///
    /// # Errors
    /// `control.denied` for an org that is not fenced; this goes for all that follows.
    pub async fn org_entries(&self, org: &Authorized<OrgId>) -> Result<OrgEntries> {
        self.require_fence(org).await?;
        let namespace = org.get().namespace();
        let content = self.behind().content(&namespace).await?;
        let mut found = OrgEntries { count: content.len() as u64, ..OrgEntries::default() };
        let Some(folder) = self.org_folder(org).await? else { return Ok(found) };
        let below = format!("{folder}/");
        for name in self.behind().tables(&namespace).await? {
            let ident = TableIdent::new(NamespaceIdent::new(namespace.clone()), name);
            // Of a table that cannot be read, nobody knows more than that its name goes.
            let Ok(Some(state)) = self.behind().load(&ident).await else { continue };
            let places = [state.metadata.location(), &state.metadata_location];
            if let Some(place) = places.into_iter().find(|place| !place.starts_with(&below)) {
                found.elsewhere.push(Remains {
                    what: format!("files of table {} at {place}", ident.name),
                    why: "they lie outside the org's folder: another system put them there".into(),
                });
            }
        }
        Ok(found)
    }

    /// Takes everything of a fenced org out of the catalog, and closes its folder. Its namespace stays,
    /// with nothing but the fence and the id of its files.
    pub async fn clear_catalog(&self, org: &Authorized<OrgId>) -> Result<()> {
        self.require_fence(org).await?;
        self.check_hold(org, None, "erasing it").await?;
        let namespace = org.get().namespace();
        self.behind().clear(&namespace).await?;
        let kept = [FENCED, ORG_UUID, LOCATION, "exists"];
        let found = self.behind().namespace(&namespace).await?.unwrap_or_default();
        let mut others: Vec<String> = found.into_keys().collect();
        others.retain(|key| !kept.contains(&key.as_str()));
        self.behind().change_namespace(&namespace, &BTreeMap::new(), &others).await?;
        match self.org_folder(org).await? {
            Some(folder) => self.store().seal(&folder).await,
            None => Ok(()),
        }
    }

    /// Lists everything in the folder of a fenced org.
    pub async fn org_files(&self, org: &Authorized<OrgId>) -> Result<Below> {
        self.require_fence(org).await?;
        match self.org_folder(org).await? {
            Some(folder) => self.store().below(&folder).await,
            None => Ok(Below::default()),
        }
    }

    /// Removes what was listed in the folder of a fenced org. Returns what the store keeps.
    pub async fn remove_org_files(
        &self,
        org: &Authorized<OrgId>,
        files: &Below,
    ) -> Result<Vec<Remains>> {
        self.require_fence(org).await?;
        self.check_hold(org, None, "erasing it").await?;
        match self.org_folder(org).await? {
            Some(folder) => self.store().remove_below(&folder, files).await,
            None => Ok(Vec::new()),
        }
    }

    /// Removes the rows of a fenced org from the management tables, and their older snapshots with
    /// their files. Returns how many rows went, by table.
    ///
    /// # Errors
    /// `lake.failed` for a table with files that are not partitioned by org.
    pub async fn forget(&self, org: &Authorized<OrgId>) -> Result<Vec<(String, u64)>> {
        self.require_fence(org).await?;
        let own = Principal::Operator.authorize(&OrgId::management())?;
        let mut forgotten = Vec::new();
        for name in self.tables(&own).await? {
            if name == ERASURES {
                continue;
            }
            let rows = self.forget_in(&own, &name, org.get()).await?;
            if rows > 0 {
                forgotten.push((name, rows));
            }
        }
        Ok(forgotten)
    }

    /// Rows of the org in management tables, those about erasures aside.
    pub async fn management_rows(&self, org: &Authorized<OrgId>) -> Result<u64> {
        let own = Principal::Operator.authorize(&OrgId::management())?;
        let mut rows = 0;
        for name in self.tables(&own).await? {
            if name != ERASURES
                && let Some(table) = self.table(&own, &name).await?
            {
                rows += rows_of(&table, org.get()).await?;
            }
        }
        Ok(rows)
    }

    async fn forget_in(&self, own: &Authorized<OrgId>, name: &str, org: &OrgId) -> Result<u64> {
        let mut forgotten = 0;
        for _ in 0..TRIES_MAX {
            let Some(table) = self.table(own, name).await? else { return Ok(forgotten) };
            let files = files_of(&table, org).await?;
            if files.is_empty() {
                // Also after an interruption: what was committed then is expired now.
                self.expire(own, name, &NO_HISTORY, Uuid::new_v4()).await?;
                return Ok(forgotten);
            }
            check_partitions(&table).await?;
            let rows: u64 = files.iter().filter_map(|file| file.rows).sum();
            let stage = self.stage_on(&table, request(&table))?;
            let paths = files.into_iter().map(|file| file.path).collect();
            match stage.forget_files(paths).await {
                Ok(_) => forgotten += rows,
                Err(error) if error.code() == ErrorCode::LakeConflict => {}
                Err(error) => return Err(error),
            }
        }
        let message = format!("rows of the org keep coming to management table {name}");
        Err(Error::new(ErrorCode::LakeConflict, message))
    }

    /// The catalog behind its fences.
    fn behind(&self) -> &dyn Catalog {
        self.fences().behind()
    }

    async fn require_fence(&self, org: &Authorized<OrgId>) -> Result<()> {
        if self.fenced_by(org).await?.is_some() {
            return Ok(());
        }
        let message = format!("org {} is not fenced: nothing of it is erased", org.get());
        Err(Error::new(ErrorCode::ControlDenied, message))
    }
}

fn of_org(org: &OrgId) -> Predicate {
    Predicate::Cmp {
        column: ORG_COLUMN.to_owned(),
        op: CmpOp::Eq,
        value: Literal::String(org.as_str().to_owned()),
    }
}

/// The files that may hold rows of the org: as long as files are partitioned by org, all of their rows.
async fn files_of(table: &LakeTable, org: &OrgId) -> Result<Vec<ScanFile>> {
    let scan = ScanRequest { snapshot: None, filter: of_org(org), columns: None };
    Ok(table.plan(scan).await?.files)
}

async fn rows_of(table: &LakeTable, org: &OrgId) -> Result<u64> {
    let columns = Some(vec![ORG_COLUMN.to_owned()]);
    let scan = ScanRequest { snapshot: None, filter: of_org(org), columns };
    let mut rows = table.read(scan).await?;
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows() as u64;
    }
    Ok(count)
}

fn by_org() -> Vec<PartitionField> {
    vec![PartitionField { transform: Transform::Identity, column: ORG_COLUMN.to_owned() }]
}

async fn check_partitions(table: &LakeTable) -> Result<()> {
    if table.files_partitioned_otherwise(&by_org()).await?.is_empty() {
        return Ok(());
    }
    let message = format!("management table {} has files of several orgs", table.name());
    Err(Error::new(ErrorCode::LakeFailed, message)
        .hint("another engine wrote them: rewrite them partitioned by org"))
}

fn request(table: &LakeTable) -> StageRequest {
    StageRequest {
        run_id: Uuid::new_v4(),
        schema: table.schema().clone(),
        partition: by_org(),
        sort: None,
        kind: StageKind::Files,
        // Nothing is written.
        target_file_bytes: 1,
        memory_bytes: 0,
    }
}
