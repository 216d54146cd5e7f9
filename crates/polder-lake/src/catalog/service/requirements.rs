//! What a commit asks to be still so, checked with the words of Iceberg's own catalogs.

use iceberg::TableRequirement;
use iceberg::spec::{TableMetadata, ViewMetadata};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::refusal::{Answer, Refusal};

/// Parses the requirements of a table commit.
pub(super) fn parse(requirements: Vec<Value>) -> Answer<Vec<TableRequirement>> {
    requirements
        .into_iter()
        .map(|value| {
            serde_json::from_value(value).map_err(|cause| {
                Refusal::invalid(format!("Cannot parse update requirement: {cause}"))
            })
        })
        .collect()
}

/// Whether the commit creates its table.
///
/// # Errors
/// `IllegalArgument` if it asks for something of a table that is not to be there.
pub(super) fn creates(requirements: &[TableRequirement]) -> Answer<bool> {
    if !requirements.contains(&TableRequirement::NotExist) {
        return Ok(false);
    }
    let other = requirements.iter().find(|found| **found != TableRequirement::NotExist);
    match other {
        None => Ok(true),
        Some(other) => Err(Refusal::invalid(format!("Invalid create requirements: {other:?}"))),
    }
}

/// Checks every requirement against the table as it is.
pub(super) fn check(base: &TableMetadata, requirements: &[TableRequirement]) -> Answer<()> {
    requirements.iter().try_for_each(|requirement| check_one(base, requirement))
}

fn check_one(base: &TableMetadata, requirement: &TableRequirement) -> Answer<()> {
    use TableRequirement as R;
    match requirement {
        R::NotExist => Err(Refusal::requirement("table already exists")),
        R::UuidMatch { uuid } => {
            // The order of the two follows Iceberg's text, which names the table's own first.
            same("UUID does not match: expected", &base.uuid(), uuid)
        }
        R::RefSnapshotIdMatch { r#ref, snapshot_id } => check_ref(base, r#ref, *snapshot_id),
        R::LastAssignedFieldIdMatch { last_assigned_field_id: id } => {
            same("last assigned field id changed: expected id", id, &base.last_column_id())
        }
        R::CurrentSchemaIdMatch { current_schema_id: id } => {
            same("current schema changed: expected id", id, &base.current_schema_id())
        }
        R::LastAssignedPartitionIdMatch { last_assigned_partition_id: id } => {
            same("last assigned partition id changed: expected id", id, &base.last_partition_id())
        }
        R::DefaultSpecIdMatch { default_spec_id: id } => same(
            "default partition spec changed: expected id",
            id,
            &base.default_partition_spec_id(),
        ),
        R::DefaultSortOrderIdMatch { default_sort_order_id: id } => {
            same("default sort order changed: expected id", id, &base.default_sort_order_id())
        }
    }
}

fn same<T: PartialEq + std::fmt::Display>(text: &str, expected: &T, found: &T) -> Answer<()> {
    if expected == found {
        return Ok(());
    }
    Err(Refusal::requirement(format!("{text} {expected} != {found}")))
}

fn check_ref(base: &TableMetadata, name: &str, expected: Option<i64>) -> Answer<()> {
    let found = base.snapshot_for_ref(name).map(|snapshot| snapshot.snapshot_id());
    // The metadata does not say which it is without being taken apart; only the text needs it.
    let kind = || {
        let json = serde_json::to_value(base).unwrap_or_default();
        if json["refs"][name]["type"] == "tag" { "tag" } else { "branch" }
    };
    match (expected, found) {
        (None, Some(_)) => {
            Err(Refusal::requirement(format!("{} {name} was created concurrently", kind())))
        }
        (Some(expected), None) => Err(Refusal::requirement(format!(
            "branch or tag {name} is missing, expected {expected}"
        ))),
        (Some(expected), Some(found)) if expected != found => {
            let kind = kind();
            Err(Refusal::requirement(format!(
                "{kind} {name} has changed: expected id {expected} != {found}"
            )))
        }
        _ => Ok(()),
    }
}

/// The one requirement the specification has for views.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum ViewRequirement {
    #[serde(rename = "assert-view-uuid")]
    Uuid { uuid: Uuid },
}

/// Checks the requirements of a view commit.
pub(super) fn check_view(base: &ViewMetadata, requirements: &[Value]) -> Answer<()> {
    for value in requirements {
        let ViewRequirement::Uuid { uuid } =
            ViewRequirement::deserialize(value).map_err(|cause| {
                Refusal::invalid(format!("Cannot parse update requirement: {cause}"))
            })?;
        same("view UUID does not match: expected", &base.uuid(), &uuid)?;
    }
    Ok(())
}
