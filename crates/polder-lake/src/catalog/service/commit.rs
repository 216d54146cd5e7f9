//! Commits: requirements checked, updates applied, the new metadata written, the pointer swapped.
//! When another writer was faster the whole is done again on the newer state, as long as the
//! requirements hold there: they, and not the file a client happened to read, say what it relies on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iceberg::spec::{FormatVersion, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::Principal;
use rand::Rng;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::documents::{CommitRequest, LoadedTable, to_value};
use super::refusal::{Answer, Refusal, RefusalKind, show};
use super::requirements;
use super::{ATTEMPTS_MAX, IcebergCatalog};
use crate::catalog::CommitFailure;
use crate::catalog::metadata_files::next_metadata_file;
use crate::catalog::sql::{EntryKind, Swap};

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
}

/// A commit that only the swap is missing of.
#[derive(Debug)]
pub(super) struct Prepared {
    /// `None` if the updates change nothing.
    pub(super) swap: Option<Swap>,
    pub(super) after: LoadedTable,
    /// Metadata files that the table's log no longer names and the table wants removed.
    pub(super) expired: Vec<String>,
}

impl Change {
    pub(super) fn parse(ident: TableIdent, request: CommitRequest) -> Answer<Self> {
        let requirements = requirements::parse(request.requirements)?;
        let updates = request.updates.into_iter().map(parse_update).collect::<Answer<_>>()?;
        let creates = requirements::creates(&requirements)?;
        Ok(Self { ident, requirements, updates, creates })
    }
}

impl IcebergCatalog {
    /// Commits to a table, or creates it from a staged creation.
    ///
    /// # Errors
    /// `CommitFailed` when a requirement does not hold; `Validation` for updates the table cannot
    /// take; `CommitStateUnknown` when the database's answer was lost: the commit may have been made.
    pub async fn commit_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        request: CommitRequest,
    ) -> Answer<LoadedTable> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        let change = Change::parse(ident, request)?;
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
            let swaps: Vec<Swap> = prepared.iter().filter_map(|one| one.swap.clone()).collect();
            match self.swap(&swaps).await {
                Ok(()) => return Ok(self.committed(prepared).await),
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
                    let swaps = prepared.into_iter().filter_map(|one: Prepared| one.swap);
                    self.discard(&swaps.collect::<Vec<_>>()).await;
                    return Err(refusal);
                }
            }
        }
        Ok(prepared)
    }

    /// Swaps; what was certainly not swapped is removed again.
    pub(super) async fn swap(&self, swaps: &[Swap]) -> Result<(), CommitFailure> {
        if swaps.is_empty() {
            return Ok(());
        }
        let done = self.catalog.swap_all(swaps).await;
        if let Err(CommitFailure::Conflict(_) | CommitFailure::Rejected(_)) = done {
            self.discard(swaps).await;
        }
        done
    }

    /// Removes metadata files that nothing names. One that stays is found by orphan removal.
    async fn discard(&self, swaps: &[Swap]) {
        let files = swaps.iter().map(|swap| swap.to.clone()).collect();
        let _ = self.store.delete(files).await;
    }

    async fn committed(&self, prepared: Vec<Prepared>) -> Vec<LoadedTable> {
        let mut tables = Vec::with_capacity(prepared.len());
        for one in prepared {
            // The commit is made; old files that stay are found by orphan removal.
            let _ = self.store.delete(one.expired).await;
            tables.push(one.after);
        }
        tables
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
        let from = base.metadata_location.clone();
        let builder = TableMetadata::clone(&base.metadata).into_builder(from.clone());
        let built = apply(builder, change.updates.clone())?;
        if built.changes.is_empty() {
            return Ok(Prepared { swap: None, after: base, expired: Vec::new() });
        }
        let fence = self.fence(&ident.namespace).await?;
        fence.check_table(&built.metadata)?;
        let drop_old = built.metadata.properties().get(DELETE_OLD_METADATA);
        let expired = if drop_old.is_some_and(|value| value == "true") {
            let old = built.expired_metadata_logs.into_iter().map(|entry| entry.metadata_file);
            old.filter(|location| fence.check(location).is_ok()).collect()
        } else {
            Vec::new()
        };
        self.write_table(ident, from, built.metadata, expired).await
    }

    async fn prepare_new(&self, change: &Change) -> Answer<Prepared> {
        let ident = &change.ident;
        self.require_namespace(&ident.namespace).await?;
        let first = first_state(&change.updates)?;
        let built = apply(first.into_builder(None), change.updates.clone())?;
        self.fence(&ident.namespace).await?.check_table(&built.metadata)?;
        self.write_table(ident, None, built.metadata, Vec::new()).await
    }

    /// Writes the metadata file of a table's next state.
    pub(super) async fn write_table(
        &self,
        ident: &TableIdent,
        from: Option<String>,
        metadata: TableMetadata,
        expired: Vec<String>,
    ) -> Answer<Prepared> {
        let to = metadata_file(from.as_deref(), metadata.location(), metadata.properties());
        self.write_json(&to, &metadata).await?;
        let swap = Swap { ident: ident.clone(), kind: EntryKind::Table, from, to: to.clone() };
        let after = LoadedTable { metadata_location: Some(to), metadata: Arc::new(metadata) };
        Ok(Prepared { swap: Some(swap), after, expired })
    }

    /// Writes a metadata file, durably, before anything leads to it.
    pub(super) async fn write_json(&self, location: &str, content: &impl Serialize) -> Answer<()> {
        let bytes = to_value(content)?.to_string();
        Ok(self.store.put_new(location, Bytes::from(bytes)).await?)
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
