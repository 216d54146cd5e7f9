//! Commits: requirements checked, updates applied, the new metadata written, the pointer swapped.
//! When another writer was faster the whole is done again on the newer state, as long as the
//! requirements hold there: they, and not the file a client happened to read, say what it relies on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::{FormatVersion, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::Principal;
use rand::Rng;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::documents::{CommitRequest, LoadedTable};
use super::kept::Keeper;
use super::refusal::{Answer, Refusal, RefusalKind, show};
use super::requirements;
use super::tables::missing;
use super::{ATTEMPTS_MAX, IcebergCatalog};
use crate::catalog::clock::Ahead;
use crate::catalog::metadata_files::next_metadata_file;
use crate::catalog::sql::{EntryKind, Swap};
use crate::catalog::{CommitFailure, check_names, metadata_json};
use crate::hold;

/// The pause before another attempt; a random part is left off.
const PAUSE: Duration = Duration::from_millis(40);
/// Where partition field ids begin (spec, *Partition Evolution*).
const PARTITION_IDS_FROM: i32 = 1000;
const DELETE_OLD_METADATA: &str = "write.metadata.delete-after-commit.enabled";

/// A table commit, understood.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) ident: TableIdent,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
    creates: bool,
    keeper: Keeper,
}

/// Whether an update lets files go that a state of the table has.
const fn removes_snapshots(update: &TableUpdate) -> bool {
    matches!(update, TableUpdate::RemoveSnapshots { .. } | TableUpdate::RemoveSnapshotRef { .. })
}

/// A commit that only the swap is missing of.
#[derive(Debug)]
enum Prepared {
    /// The updates change nothing.
    Nothing(LoadedTable),
    Change {
        written: Written,
        /// Metadata files that the table's log no longer names and the table wants removed.
        expired: Vec<String>,
    },
}

/// A table's next state in its file, and the swap that leads to it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) swap: Swap,
    metadata: Arc<TableMetadata>,
    text: Arc<RawValue>,
}

impl Prepared {
    fn swap(&self) -> Option<&Swap> {
        match self {
            Self::Nothing(_) => None,
            Self::Change { written, .. } => Some(&written.swap),
        }
    }
}

impl Change {
    pub(super) fn parse(
        principal: &Principal,
        ident: TableIdent,
        request: CommitRequest,
    ) -> Answer<Self> {
        let requirements = requirements::parse(request.requirements)?;
        let updates = request.updates.into_iter().map(parse_update).collect::<Answer<_>>()?;
        let creates = requirements::creates(&requirements)?;
        Ok(Self { ident, requirements, updates, creates, keeper: Keeper::of(principal) })
    }
}

impl IcebergCatalog {
    /// Commits to a table, or creates it from a staged creation.
    ///
    /// # Errors
    /// `CommitFailed` when a requirement does not hold; `Validation` for updates the table cannot
    /// take; `Forbidden` for locations outside the namespace's storage, and for properties that Polder
    /// keeps; `CommitStateUnknown` when the database's answer was lost: the commit may have been made.
    pub async fn commit_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        request: CommitRequest,
    ) -> Answer<LoadedTable> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        let change = Change::parse(principal, ident, request)?;
        let mut done = self.commit_all(std::slice::from_ref(&change)).await?;
        done.pop().ok_or_else(|| Refusal::invalid("Invalid commit: no change"))
    }

    /// Carries out all changes, or none.
    pub(super) async fn commit_all(&self, changes: &[Change]) -> Answer<Vec<LoadedTable>> {
        let mut last = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                let part = rand::rng().random_range(0.3..1.0);
                tokio::time::sleep(PAUSE.mul_f64(part)).await;
            }
            let prepared = self.prepare_all(changes).await?;
            let swaps: Vec<Swap> = prepared.iter().filter_map(Prepared::swap).cloned().collect();
            match self.catalog.swap_new(&swaps).await {
                Ok(()) => return Ok(self.all_committed(prepared).await),
                Err(CommitFailure::Conflict(cause)) => last = Some(cause),
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(last.map_or_else(
            || Refusal::invalid("Invalid commit: no change"),
            |cause| CommitFailure::Conflict(cause).into(),
        ))
    }

    async fn prepare_all(&self, changes: &[Change]) -> Answer<Vec<Prepared>> {
        let mut prepared = Vec::with_capacity(changes.len());
        for change in changes {
            match self.prepare(change).await {
                Ok(one) => prepared.push(one),
                Err(refusal) => {
                    let swaps = prepared.iter().filter_map(Prepared::swap).cloned();
                    self.catalog.discard(&swaps.collect::<Vec<_>>()).await;
                    return Err(refusal);
                }
            }
        }
        Ok(prepared)
    }

    async fn all_committed(&self, prepared: Vec<Prepared>) -> Vec<LoadedTable> {
        let mut tables = Vec::with_capacity(prepared.len());
        for one in prepared {
            tables.push(match one {
                Prepared::Nothing(table) => table,
                Prepared::Change { written, expired } => {
                    // The commit is made; old files that stay are found by orphan removal.
                    let _ = self.store.delete(expired).await;
                    self.committed(written)
                }
            });
        }
        tables
    }

    /// The table whose pointer was swapped.
    pub(super) fn committed(&self, written: Written) -> LoadedTable {
        let Written { swap, metadata, text } = written;
        self.catalog.files.remember(&swap.to, &metadata, &text);
        LoadedTable { metadata_location: Some(swap.to), metadata: text }
    }

    async fn prepare(&self, change: &Change) -> Answer<Prepared> {
        let ident = &change.ident;
        let base = match self.catalog.entry(ident).await? {
            Some(entry) if entry.kind == EntryKind::View && change.creates => {
                let message = format!("View with same name already exists: {}", show(ident));
                return Err(Refusal::exists(message));
            }
            Some(entry) if entry.kind == EntryKind::Table => {
                Some(self.table_at(ident, entry.metadata_location).await?)
            }
            _ => None,
        };
        let Some(base) = base else {
            if change.creates {
                return self.prepare_new(change).await;
            }
            return Err(Refusal::absent(EntryKind::Table, &show(ident)));
        };
        requirements::check(&base.metadata, &change.requirements)?;
        if change.updates.iter().any(removes_snapshots) {
            hold::check_table(&self.catalog, ident, "removing snapshots").await?;
        }
        check_names(Some(&base), &change.updates)?;
        let from = base.metadata_location.clone();
        let ahead = Ahead::of(&base.metadata);
        let state = match &ahead {
            Some(ahead) => ahead.as_of_now()?,
            None => TableMetadata::clone(&base.metadata),
        };
        let mut built = apply(state.into_builder(Some(from.clone())), change.updates.clone())?;
        if built.changes.is_empty() {
            let text =
                self.catalog.files.text_at(&from).await.map_err(|error| missing(error, &from))?;
            let table = LoadedTable { metadata_location: Some(from), metadata: text };
            return Ok(Prepared::Nothing(table));
        }
        if let Some(ahead) = &ahead {
            built.metadata = ahead.with_times(&built.metadata)?;
        }
        let fence = self.fence(&ident.namespace).await?;
        fence.check_table(&built.metadata)?;
        change.keeper.check(&base.metadata, &built.metadata, &change.updates)?;
        let drop_old = built.metadata.properties().get(DELETE_OLD_METADATA);
        let expired = if drop_old.is_some_and(|value| value == "true") {
            let old = built.expired_metadata_logs.into_iter().map(|entry| entry.metadata_file);
            old.filter(|location| fence.check(location).is_ok()).collect()
        } else {
            Vec::new()
        };
        let written = self.write_table(ident, Some(from), built.metadata).await?;
        Ok(Prepared::Change { written, expired })
    }

    async fn prepare_new(&self, change: &Change) -> Answer<Prepared> {
        let ident = &change.ident;
        self.require_namespace(&ident.namespace).await?;
        let first = first_state(&change.updates)?;
        let updates = change.keeper.without_kept(change.updates.clone());
        let built = apply(first.into_builder(None), updates)?;
        self.fence(&ident.namespace).await?.check_table(&built.metadata)?;
        change.keeper.check_snapshots(None, &built.metadata)?;
        let written = self.write_table(ident, None, built.metadata).await?;
        Ok(Prepared::Change { written, expired: Vec::new() })
    }

    /// Writes the metadata file of a table's next state.
    pub(super) async fn write_table(
        &self,
        ident: &TableIdent,
        from: Option<String>,
        metadata: TableMetadata,
    ) -> Answer<Written> {
        let to = metadata_file(from.as_deref(), metadata.location(), metadata.properties());
        let text: Arc<RawValue> = metadata_json::text(&metadata)?.into();
        // Durably, before anything leads to it.
        self.catalog.files.write(&to, &text).await?;
        let swap = Swap { ident: ident.clone(), kind: EntryKind::Table, from, to };
        Ok(Written { swap, metadata: Arc::new(metadata), text })
    }
}

/// The next metadata file, where the properties of the table or view want it.
pub(super) fn metadata_file(
    base: Option<&str>,
    location: &str,
    properties: &HashMap<String, String>,
) -> String {
    let folder = match properties.get("write.metadata.path") {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{location}/metadata"),
    };
    next_metadata_file(base, &folder)
}

fn parse_update(mut value: Value) -> Answer<TableUpdate> {
    // Names that clients before 1.0 used.
    if let Some(fields) = value.as_object_mut() {
        for (old, new) in [("updated", "updates"), ("removed", "removals")] {
            if !fields.contains_key(new)
                && let Some(found) = fields.remove(old)
            {
                fields.insert(new.to_owned(), found);
            }
        }
    }
    serde_json::from_value(value)
        .map_err(|cause| Refusal::invalid(format!("Cannot parse metadata update: {cause}")))
}

fn apply(
    mut builder: iceberg::spec::TableMetadataBuilder,
    updates: Vec<TableUpdate>,
) -> Answer<iceberg::spec::TableMetadataBuildResult> {
    for update in updates {
        let snapshot = matches!(update, TableUpdate::AddSnapshot { .. });
        builder = update.apply(builder).map_err(|cause| {
            let text = cause.message();
            let stale = text.contains("older than last sequence") || text.contains("is behind");
            if snapshot && stale {
                // The client computed these from an older state; with a newer one it can succeed.
                let message = format!("Validation failed, please retry: {text}");
                return Refusal::new(RefusalKind::CommitFailed, message);
            }
            Refusal::validation(&cause)
        })?;
    }
    builder.build().map_err(|cause| Refusal::validation(&cause))
}

/// The state before the first commit of a staged creation. The crate's builder would give the
/// fields new ids, which the client's files may already use; so it begins as a document.
fn first_state(updates: &[TableUpdate]) -> Answer<TableMetadata> {
    let missing = |what: &str| Refusal::invalid(format!("Cannot create table without {what}"));
    let schema = updates.iter().find_map(|update| match update {
        TableUpdate::AddSchema { schema } => Some(schema),
        _ => None,
    });
    let schema = schema.ok_or_else(|| missing("a schema"))?;
    let last_column_id = schema.highest_field_id();
    let mut schema = json!(schema);
    schema["schema-id"] = Value::from(0);
    let location = updates.iter().find_map(|update| match update {
        TableUpdate::SetLocation { location } => Some(location.trim_end_matches('/').to_owned()),
        _ => None,
    });
    let version = updates.iter().find_map(|update| match update {
        TableUpdate::UpgradeFormatVersion { format_version } => Some(*format_version),
        _ => None,
    });
    let spec = updates.iter().find_map(|update| match update {
        TableUpdate::AddSpec { spec } => Some(spec),
        _ => None,
    });
    let (spec, last_partition_id) = first_spec(spec);
    let document = json!({
        "format-version": version.unwrap_or(FormatVersion::V2),
        "table-uuid": Uuid::now_v7(),
        "location": location.ok_or_else(|| missing("a location"))?,
        "last-sequence-number": 0,
        "last-updated-ms": chrono::Utc::now().timestamp_millis(),
        "last-column-id": last_column_id,
        "schema": &schema,
        "schemas": [&schema],
        "current-schema-id": 0,
        "partition-spec": spec["fields"],
        "partition-specs": [spec],
        "default-spec-id": 0,
        "last-partition-id": last_partition_id,
        "sort-orders": [SortOrder::unsorted_order()],
        "default-sort-order-id": 0,
        "properties": {},
        "snapshots": [],
        "next-row-id": 0,
    });
    serde_json::from_value(document)
        .map_err(|cause| Refusal::invalid(format!("Cannot create table: {cause}")))
}

/// The first partition spec as spec 0, with field ids where it has none, and the highest of them.
fn first_spec(spec: Option<&UnboundPartitionSpec>) -> (Value, i32) {
    let mut last = PARTITION_IDS_FROM - 1;
    let fields = spec.map(UnboundPartitionSpec::fields).unwrap_or_default();
    let fields: Vec<Value> = fields
        .iter()
        .map(|field| {
            let id = field.field_id.unwrap_or(last + 1);
            last = last.max(id);
            json!({
                "source-id": field.source_id,
                "field-id": id,
                "name": field.name,
                "transform": field.transform,
            })
        })
        .collect();
    (json!({ "spec-id": 0, "fields": fields }), last)
}
