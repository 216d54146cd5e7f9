//! The seam to table metadata: namespaces, tables, and one compare-and-swap, which is the Iceberg
//! REST commit itself (requirements, updates).
//!
//! Every implementation passes one suite (`tests/conformance.rs`).
//!
//! A catalog knows nothing of runs and retries: [`crate::Stage::commit`] does.

mod clock;
mod fenced;
mod glue;
mod metadata_cache;
mod metadata_files;
mod metadata_json;
mod names;
mod rest;
pub mod service;
mod sql;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::{FormatVersion, PartitionSpec, SortOrder, TableMetadata, TableMetadataBuilder};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};

use clock::Ahead;
pub(crate) use fenced::{FENCED, Fenced, fenced};
pub use glue::GlueCatalog;
pub(crate) use metadata_files::parse_metadata;
pub(crate) use names::namespace_levels;
pub use rest::RestCatalog;
pub use sql::SqlCatalog;

use crate::error;
use crate::settings::{CatalogSettings, LakeSettings};
use crate::storage::Store;
use crate::table::references;

/// A table as one metadata file says it is.
#[derive(Clone, Debug)]
pub struct TableState {
    pub ident: TableIdent,
    pub metadata: Arc<TableMetadata>,
    pub metadata_location: String,
}

/// Why a commit gave no new state.
#[derive(Debug)]
pub enum CommitFailure {
    /// Definitely not made: the table is not as the requirements say, or somebody was faster.
    Conflict(Error),
    /// Definitely not made. Trying again helps only if the error says so.
    Rejected(Error),
    /// Nobody knows yet whether it was made: the answer was lost. Nothing may be cleaned up.
    Unknown(Error),
}

/// Where table names lead to metadata files.
#[async_trait]
pub trait Catalog: Debug + Send + Sync {
    async fn namespaces(&self) -> Result<Vec<String>>;

    /// The properties of a namespace; `None` if there is no such namespace.
    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>>;

    /// Creates a namespace, or adds to it the properties it lacks. A property that is there keeps its
    /// value: of two callers at the same time, the first wins, and both see the winner's value next.
    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()>;

    async fn tables(&self, namespace: &str) -> Result<Vec<String>>;

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>>;

    /// Whether [`Self::tables`] names every table there is, so that a folder without one is nobody's.
    fn lists_all(&self) -> bool;

    /// Told before the first file of a table that is not there yet is written, with what the table's
    /// first commit will bring. An external catalog may want to know of the table beforehand, and hands
    /// out the store's keys now if it has them.
    async fn announce(&self, ident: &TableIdent, updates: &[TableUpdate]) -> Result<()> {
        let _ = (ident, updates);
        Ok(())
    }

    /// Checks the requirements against the table's present state and swaps in the state the updates
    /// lead to, all or nothing. [`TableRequirement::NotExist`] creates the table.
    ///
    /// One attempt: nothing is sent twice.
    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure>;

    /// The namespaces with a fence that a listing is to leave out, where the catalog can tell without
    /// asking for each.
    async fn fenced(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Fences a namespace, which is made where it is absent, in the name of `event`. The first event
    /// wins; returns which one it is.
    async fn fence(&self, name: &str, event: &str) -> Result<String> {
        self.ensure_namespace(name, &BTreeMap::from([(FENCED.to_owned(), event.to_owned())]))
            .await?;
        let mut found = self.namespace(name).await?.unwrap_or_default();
        found.remove(FENCED).ok_or_else(|| {
            let message = "the catalog does not keep the mark of a fence";
            Error::new(ErrorCode::LakeFailed, message).detail(name.to_owned())
        })
    }

    /// Sets and removes properties of a namespace that is there, behind a fence or not.
    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()>;

    /// Tables, views and namespaces in a namespace and below it, each by a text that names it.
    async fn content(&self, name: &str) -> Result<Vec<String>>;

    /// Takes the name of a table out of the catalog, if it is there, and leaves every file.
    async fn forget(&self, ident: &TableIdent) -> Result<()>;

    /// Takes all that [`Self::content`] lists out of the catalog, and leaves every file. The namespace
    /// itself stays.
    async fn clear(&self, name: &str) -> Result<()>;
}

/// Opens the catalog that the settings name.
pub(crate) async fn open(settings: &LakeSettings, store: &Store) -> Result<Arc<dyn Catalog>> {
    Ok(match &settings.catalog {
        CatalogSettings::Sql(url) => Arc::new(SqlCatalog::open(url, store.clone()).await?),
        CatalogSettings::Glue(glue) => Arc::new(GlueCatalog::open(glue, store.clone()).await?),
        CatalogSettings::Rest(rest) => Arc::new(RestCatalog::open(rest, store).await?),
    })
}

/// The metadata that updates lead to.
///
/// For a new table (`base` is `None`) the updates have to bring a location and a schema.
pub(crate) fn apply(base: Option<&TableState>, updates: Vec<TableUpdate>) -> Result<TableMetadata> {
    let failed = |cause| error::iceberg("apply the changes to the table", cause);
    let ahead = base.and_then(|base| Ahead::of(&base.metadata));
    let mut builder = match base {
        Some(base) => {
            let location = Some(base.metadata_location.clone());
            let state = match &ahead {
                Some(ahead) => ahead.as_of_now()?,
                None => TableMetadata::clone(&base.metadata),
            };
            state.into_builder(location)
        }
        None => new_table(&updates).map_err(failed)?,
    };
    for update in updates {
        builder = update.apply(builder).map_err(failed)?;
    }
    let built = builder.build().map_err(failed)?.metadata;
    match ahead {
        Some(ahead) => ahead.with_times(&built),
        None => Ok(built),
    }
}

/// A builder for the first state of a table, with the field ids its schema brings.
fn new_table(updates: &[TableUpdate]) -> iceberg::Result<TableMetadataBuilder> {
    let missing = |what: &str| {
        iceberg::Error::new(iceberg::ErrorKind::DataInvalid, format!("a new table needs a {what}"))
    };
    let schema = updates.iter().find_map(|update| match update {
        TableUpdate::AddSchema { schema } => Some(schema.clone()),
        _ => None,
    });
    let location = updates.iter().find_map(|update| match update {
        TableUpdate::SetLocation { location } => Some(location.clone()),
        _ => None,
    });
    // Given here already, so that the table does not begin with an unpartitioned spec it never uses.
    let spec = updates.iter().find_map(|update| match update {
        TableUpdate::AddSpec { spec } => Some(spec.clone()),
        _ => None,
    });
    TableMetadataBuilder::new(
        schema.ok_or_else(|| missing("schema"))?,
        spec.unwrap_or_else(|| PartitionSpec::unpartition_spec().into_unbound()),
        SortOrder::unsorted_order(),
        location.ok_or_else(|| missing("location"))?,
        FormatVersion::V2,
        HashMap::new(),
    )
}

/// Somebody else's commit came between reading the table and changing it.
fn outrun() -> Error {
    Error::new(ErrorCode::LakeConflict, "another writer changed the table first")
}

/// Checks requirements as the spec says.
pub(crate) fn check(
    base: Option<&TableState>,
    requirements: &[TableRequirement],
) -> Result<(), CommitFailure> {
    for requirement in requirements {
        if let Err(cause) = requirement.check(base.map(|base| &*base.metadata)) {
            let conflict = Error::new(ErrorCode::LakeConflict, "the table was changed meanwhile");
            return Err(CommitFailure::Conflict(conflict.caused_by(cause)));
        }
    }
    Ok(())
}

/// Checks that the snapshots that come were made for the table's present state, whichever branch moved
/// since (spec, *Sequence Numbers*): made anew, they can be taken.
pub(crate) fn check_sequence(
    base: Option<&TableState>,
    updates: &[TableUpdate],
) -> Result<(), CommitFailure> {
    let last = base.map_or(0, |base| base.metadata.last_sequence_number());
    let stale = |update: &TableUpdate| match update {
        TableUpdate::AddSnapshot { snapshot } => snapshot.sequence_number() <= last,
        _ => false,
    };
    if updates.iter().any(stale) {
        let message = "the table has got another snapshot meanwhile";
        return Err(CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, message)));
    }
    Ok(())
}

/// Checks that names and snapshots go together: that no branch or tag is to lead to a snapshot that was
/// expired meanwhile, and that none would go because its snapshot does. Applying the updates would drop
/// it in silence, also one that was made after whoever expires the snapshots had looked.
pub(crate) fn check_names(
    base: Option<&TableState>,
    updates: &[TableUpdate],
) -> Result<(), CommitFailure> {
    let conflict = |message: String| {
        Err(CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, message)))
    };
    let added = updates.iter().filter_map(|update| match update {
        TableUpdate::AddSnapshot { snapshot } => Some(snapshot.snapshot_id()),
        _ => None,
    });
    let added: HashSet<i64> = added.collect();
    let there = |id: i64| {
        added.contains(&id) || base.is_some_and(|base| base.metadata.snapshot_by_id(id).is_some())
    };
    for update in updates {
        if let TableUpdate::SetSnapshotRef { ref_name, reference } = update
            && !there(reference.snapshot_id)
        {
            return conflict(format!("{ref_name} was to lead to a snapshot that is gone"));
        }
    }
    let gone: HashSet<i64> = updates
        .iter()
        .filter_map(|update| match update {
            TableUpdate::RemoveSnapshots { snapshot_ids } => Some(snapshot_ids),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let Some(base) = base.filter(|_| !gone.is_empty()) else { return Ok(()) };
    let named = references(&base.metadata).map_err(CommitFailure::Rejected)?;
    let removed = |name: &str| {
        updates.iter().any(|update| match update {
            TableUpdate::RemoveSnapshotRef { ref_name } => ref_name == name,
            TableUpdate::SetSnapshotRef { ref_name, reference } => {
                ref_name == name && !gone.contains(&reference.snapshot_id)
            }
            _ => false,
        })
    };
    match named.iter().find(|(name, found)| gone.contains(&found.snapshot_id) && !removed(name)) {
        None => Ok(()),
        Some((name, _)) => conflict(format!("{name} names a snapshot that was to go")),
    }
}

/// Whether the table says that none of its files may be removed.
pub(crate) fn keeps_files(metadata: &TableMetadata) -> bool {
    metadata.properties().get("gc.enabled").is_some_and(|value| value == "false")
}
