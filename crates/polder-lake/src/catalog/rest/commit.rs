//! A commit as one request: `updateTable` of the specification.

use std::collections::HashMap;

use iceberg::spec::{FormatVersion, PartitionSpec, Schema, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::documents::{Commit, CreateTable, Identifier};
use crate::catalog::{CommitFailure, TableState, apply};
use crate::table::references;

/// Whether the commit makes the table.
pub(super) fn creates(requirements: &[TableRequirement]) -> bool {
    requirements.contains(&TableRequirement::NotExist)
}

/// Whether the request can be made only for a known state of the table.
pub(super) fn needs_base(updates: &[TableUpdate]) -> bool {
    updates
        .iter()
        .any(|update| reshapes(update) || matches!(update, TableUpdate::RemoveSnapshots { .. }))
}

fn reshapes(update: &TableUpdate) -> bool {
    matches!(
        update,
        TableUpdate::AddSchema { .. }
            | TableUpdate::AddSpec { .. }
            | TableUpdate::AddSortOrder { .. }
    )
}

/// The request's document, and of a new table what it will be.
pub(super) fn document(
    ident: &TableIdent,
    base: Option<&TableState>,
    requirements: &[TableRequirement],
    mut updates: Vec<TableUpdate>,
) -> Result<(Commit, Option<TableMetadata>), CommitFailure> {
    let creates = creates(requirements);
    if creates {
        updates = in_order(updates);
    }
    let mut requirements = requirements.to_vec();
    requirements.extend(names_stay(base, &updates)?);
    let preview = if creates || updates.iter().any(reshapes) {
        Some(apply(base, updates.clone()).map_err(CommitFailure::Rejected)?)
    } else {
        None
    };
    if let Some(base) = base {
        updates = without_known_shapes(updates, &base.metadata);
    }
    let mut sent = values(&updates)?;
    if let Some(preview) = &preview {
        with_field_ids(&mut sent, preview.default_partition_spec());
    }
    let commit = Commit {
        identifier: Identifier { namespace: ident.namespace.to_vec(), name: ident.name.clone() },
        requirements: values(&requirements)?,
        updates: sent,
    };
    Ok((commit, preview.filter(|_| creates)))
}

fn values(items: &[impl Serialize]) -> Result<Vec<Value>, CommitFailure> {
    items.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(|cause| {
        let error = Error::new(ErrorCode::Internal, "a commit cannot be written as JSON");
        CommitFailure::Rejected(error.caused_by(cause))
    })
}

/// The changes that make a table, in the order in which Iceberg's own client sends them: servers
/// build the table from them one by one.
fn in_order(mut updates: Vec<TableUpdate>) -> Vec<TableUpdate> {
    let upgrade = |update: &TableUpdate| matches!(update, TableUpdate::UpgradeFormatVersion { .. });
    if !updates.iter().any(upgrade) {
        updates.push(TableUpdate::UpgradeFormatVersion { format_version: FormatVersion::V2 });
    }
    updates.sort_by_key(|update| match update {
        TableUpdate::AssignUuid { .. } => 0,
        TableUpdate::UpgradeFormatVersion { .. } => 1,
        TableUpdate::AddSchema { .. } => 2,
        TableUpdate::SetCurrentSchema { .. } => 3,
        TableUpdate::AddSpec { .. } => 4,
        TableUpdate::SetDefaultSpec { .. } => 5,
        TableUpdate::AddSortOrder { .. } => 6,
        TableUpdate::SetDefaultSortOrder { .. } => 7,
        TableUpdate::SetLocation { .. } => 8,
        TableUpdate::SetProperties { .. } => 9,
        _ => 10,
    });
    updates
}

/// A schema, spec or sort order that the table has had is named by its id and not added again:
/// Iceberg's own server does not take it for the one that was added last.
fn without_known_shapes(updates: Vec<TableUpdate>, base: &TableMetadata) -> Vec<TableUpdate> {
    const LAST: i32 = -1;
    let (mut schema, mut spec, mut order) = (LAST, LAST, i64::from(LAST));
    let mut kept = Vec::with_capacity(updates.len());
    for mut update in updates {
        match &mut update {
            TableUpdate::AddSchema { schema: added } => {
                let mut known = base.schemas_iter().filter(|known| same_schema(known, added));
                schema = known.next().map_or(LAST, |known| known.schema_id());
                if schema != LAST {
                    continue;
                }
            }
            TableUpdate::AddSpec { spec: added } => {
                let mut known = base.partition_specs_iter().filter(|known| same_spec(known, added));
                spec = known.next().map_or(LAST, |known| known.spec_id());
                if spec != LAST {
                    continue;
                }
            }
            TableUpdate::AddSortOrder { sort_order: added } => {
                let mut known =
                    base.sort_orders_iter().filter(|known| known.fields == added.fields);
                order = known.next().map_or(i64::from(LAST), |known| known.order_id);
                if order != i64::from(LAST) {
                    continue;
                }
            }
            TableUpdate::SetCurrentSchema { schema_id } if *schema_id == LAST => {
                *schema_id = schema;
            }
            TableUpdate::SetDefaultSpec { spec_id } if *spec_id == LAST => *spec_id = spec,
            TableUpdate::SetDefaultSortOrder { sort_order_id }
                if *sort_order_id == i64::from(LAST) =>
            {
                *sort_order_id = order;
            }
            _ => {}
        }
        kept.push(update);
    }
    kept
}

fn same_schema(known: &Schema, added: &Schema) -> bool {
    known.as_struct() == added.as_struct()
        && known.identifier_field_ids().eq(added.identifier_field_ids())
}

fn same_spec(known: &PartitionSpec, added: &UnboundPartitionSpec) -> bool {
    known.fields().len() == added.fields().len()
        && known.fields().iter().zip(added.fields()).all(|(known, added)| {
            known.source_id == added.source_id
                && known.transform == added.transform
                && known.name == added.name
        })
}

/// Partition fields with the ids that the staged files have; otherwise each server would choose.
/// Iceberg's own server does not take a spec without an id; it gives it another.
fn with_field_ids(updates: &mut [Value], spec: &PartitionSpec) {
    for update in updates.iter_mut().filter(|update| update["action"] == "add-spec") {
        let sent = &mut update["spec"];
        if sent["spec-id"].is_null() {
            sent["spec-id"] = json!(spec.spec_id());
        }
        let fields = sent["fields"].as_array_mut().into_iter().flatten();
        for (sent, known) in fields.zip(spec.fields()) {
            if sent["field-id"].is_null() {
                sent["field-id"] = json!(known.field_id);
            }
        }
    }
}

/// What keeps branches and tags from going with a snapshot that is removed, which servers allow.
///
/// A name that appears on such a snapshot between this look and the commit is not seen.
fn names_stay(
    base: Option<&TableState>,
    updates: &[TableUpdate],
) -> Result<Vec<TableRequirement>, CommitFailure> {
    let removes = |update: &TableUpdate| matches!(update, TableUpdate::RemoveSnapshots { .. });
    let Some(base) = base.filter(|_| updates.iter().any(removes)) else { return Ok(Vec::new()) };
    let named = references(&base.metadata).map_err(CommitFailure::Rejected)?;
    let same = |(name, found): (String, iceberg::spec::SnapshotReference)| {
        TableRequirement::RefSnapshotIdMatch { r#ref: name, snapshot_id: Some(found.snapshot_id) }
    };
    Ok(named.into_iter().map(same).collect())
}

/// Whether a server made a new table as it was told to.
pub(super) fn is_as_sent(made: &TableMetadata, sent: &TableMetadata) -> bool {
    let place = |metadata: &TableMetadata| metadata.location().trim_end_matches('/').to_owned();
    made.uuid() == sent.uuid()
        && place(made) == place(sent)
        && made.format_version() == sent.format_version()
        && made.current_schema_id() == sent.current_schema_id()
        && made.default_partition_spec_id() == sent.default_partition_spec_id()
        && made.current_schema().as_struct() == sent.current_schema().as_struct()
        && made.default_partition_spec().fields() == sent.default_partition_spec().fields()
        && made.current_snapshot_id() == sent.current_snapshot_id()
}

/// The request that announces a new table.
///
/// # Errors
/// `internal` if the updates make no table.
pub(super) fn announcement<'a>(
    ident: &'a TableIdent,
    updates: &'a [TableUpdate],
) -> Result<CreateTable<'a>> {
    let (mut schema, mut location, mut spec) = (None, None, None);
    for update in updates {
        match update {
            TableUpdate::AddSchema { schema: found } => schema = Some(found),
            TableUpdate::SetLocation { location: found } => location = Some(found.as_str()),
            TableUpdate::AddSpec { spec: found } => spec = Some(found),
            _ => {}
        }
    }
    let incomplete = || Error::new(ErrorCode::Internal, "a new table without a schema or location");
    let spec = spec.cloned().unwrap_or_default();
    Ok(CreateTable {
        name: &ident.name,
        location: location.ok_or_else(incomplete)?,
        schema: schema.ok_or_else(incomplete)?,
        // Iceberg's own server takes no spec without an id.
        partition_spec: spec.with_spec_id(0),
        stage_create: true,
        properties: HashMap::new(),
    })
}
