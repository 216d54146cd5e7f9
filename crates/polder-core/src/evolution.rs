//! What a changed source schema means for the lake table: pure rules.
//!
//! Compares two [`TableSchema`]s and says what to do under a policy. Nothing is applied here; the
//! lake does that in the same commit as the data.

use std::fmt;

use serde::Serialize;

use crate::spec::OnSchemaChange;
use crate::{Error, ErrorCode, Field, LakeType, Result, TableSchema};

/// One difference between the lake table's schema and the source's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChange {
    Added {
        column: String,
        data_type: LakeType,
    },
    Dropped {
        column: String,
    },
    Renamed {
        from: String,
        to: String,
    },
    TypeChanged {
        column: String,
        from: LakeType,
        to: LakeType,
    },
    /// A required column may now be null.
    NowNullable {
        column: String,
    },
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { column, data_type } => write!(f, "added {column} {data_type}"),
            Self::Dropped { column } => write!(f, "dropped {column}"),
            Self::Renamed { from, to } => write!(f, "renamed {from} to {to}"),
            Self::TypeChanged { column, from, to } => write!(f, "changed {column} {from} to {to}"),
            Self::NowNullable { column } => write!(f, "{column} may now be null"),
        }
    }
}

/// What a run has to do about the differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evolution {
    /// The rows fit the table as it is.
    Unchanged,
    /// Take these columns into the table in place and go on; old rows have null there.
    InPlace { schema: TableSchema, changes: Vec<SchemaChange> },
    /// Reload everything under the source's schema as one new version.
    Refresh { changes: Vec<SchemaChange> },
}

/// Decides what a change means.
///
/// `complete` is [`crate::Capabilities::complete_schema`]: where a schema is inferred from the rows
/// read, a missing column means nothing, and a new one was in no earlier row, so it is taken in
/// place without reloading. `evolve` is applied in place where that is exact (new nullable columns)
/// and as a refresh where it is not.
///
/// # Errors
/// `lake.schema_refused` under [`OnSchemaChange::Freeze`], with every difference in the detail.
pub fn decide(
    current: &TableSchema,
    incoming: &TableSchema,
    complete: bool,
    policy: OnSchemaChange,
) -> Result<Evolution> {
    let changes = differences(current, incoming, complete);
    if changes.is_empty() {
        return Ok(Evolution::Unchanged);
    }
    let only_added = changes.iter().all(|change| matches!(change, SchemaChange::Added { .. }));
    match policy {
        OnSchemaChange::Freeze => Err(refused(&changes)),
        OnSchemaChange::Refresh if complete || !only_added => Ok(Evolution::Refresh { changes }),
        OnSchemaChange::Evolve if !only_added => Ok(Evolution::Refresh { changes }),
        OnSchemaChange::Refresh | OnSchemaChange::Evolve => {
            Ok(Evolution::InPlace { schema: with_added(current, incoming), changes })
        }
    }
}

/// The differences that matter for rows of `incoming` entering a table of `current`, in the order
/// of the incoming columns, then what is gone.
pub fn differences(
    current: &TableSchema,
    incoming: &TableSchema,
    complete: bool,
) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    for field in &incoming.fields {
        let Some(old) = counterpart(current, field) else {
            let (column, data_type) = (field.name.clone(), field.data_type.clone());
            changes.push(SchemaChange::Added { column, data_type });
            continue;
        };
        if old.name != field.name {
            changes.push(SchemaChange::Renamed { from: old.name.clone(), to: field.name.clone() });
        }
        if !fits(&field.data_type, &old.data_type, complete) || field.text_of != old.text_of {
            let (from, to) = (old.data_type.clone(), field.data_type.clone());
            changes.push(SchemaChange::TypeChanged { column: field.name.clone(), from, to });
        } else if field.nullable && !old.nullable {
            changes.push(SchemaChange::NowNullable { column: field.name.clone() });
        }
    }
    if complete {
        let gone = current.fields.iter().filter(|old| {
            !incoming.fields.iter().any(|field| counterpart(current, field) == Some(*old))
        });
        changes.extend(gone.map(|old| SchemaChange::Dropped { column: old.name.clone() }));
    } else {
        let missing = current
            .fields
            .iter()
            .filter(|old| !old.nullable && incoming.field(&old.name).is_none());
        changes.extend(missing.map(|old| SchemaChange::NowNullable { column: old.name.clone() }));
    }
    changes
}

/// The table's column that an incoming one continues: by the source's own id where both have one
/// (so that a rename is a rename, and a dropped and re-added column is a new one), else by name.
fn counterpart<'a>(current: &'a TableSchema, field: &Field) -> Option<&'a Field> {
    if field.source_id.is_some() && current.fields.iter().any(|old| old.source_id.is_some()) {
        return current.fields.iter().find(|old| old.source_id == field.source_id);
    }
    current.field(&field.name)
}

/// Whether values of `incoming` can be stored in a column of `current` without loss and without
/// changing the column. A source with a complete schema has to match exactly, so that a narrower
/// source type is followed too.
fn fits(incoming: &LakeType, current: &LakeType, complete: bool) -> bool {
    if complete {
        return same_shape(incoming, current);
    }
    match (incoming, current) {
        (LakeType::List(a), LakeType::List(b)) => {
            fits(&a.data_type, &b.data_type, complete)
                && a.text_of == b.text_of
                && (b.nullable || !a.nullable)
        }
        (LakeType::Struct(a), LakeType::Struct(b)) => {
            a.iter().all(|field| {
                b.iter().any(|old| {
                    old.name == field.name
                        && fits(&field.data_type, &old.data_type, complete)
                        && old.text_of == field.text_of
                        && (old.nullable || !field.nullable)
                })
            }) && b.iter().all(|old| old.nullable || a.iter().any(|field| field.name == old.name))
        }
        (a, b) => a.promotes_to(b),
    }
}

/// Equality that ignores source ids, which only top-level columns have.
fn same_shape(a: &LakeType, b: &LakeType) -> bool {
    match (a, b) {
        (LakeType::List(a), LakeType::List(b)) => {
            a.nullable == b.nullable
                && a.text_of == b.text_of
                && same_shape(&a.data_type, &b.data_type)
        }
        (LakeType::Struct(a), LakeType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(x, y)| {
                    x.name == y.name
                        && x.nullable == y.nullable
                        && x.text_of == y.text_of
                        && same_shape(&x.data_type, &y.data_type)
                })
        }
        (a, b) => a == b,
    }
}

fn with_added(current: &TableSchema, incoming: &TableSchema) -> TableSchema {
    let mut schema = current.clone();
    for field in &incoming.fields {
        if counterpart(current, field).is_none() {
            // Rows already stored have no value there.
            schema.fields.push(Field { nullable: true, ..field.clone() });
        }
    }
    schema
}

fn refused(changes: &[SchemaChange]) -> Error {
    let list: Vec<_> = changes.iter().map(ToString::to_string).collect();
    Error::new(ErrorCode::LakeSchemaRefused, "the source's schema changed and the table is frozen")
        .detail(list.join(", "))
        .hint("set on_schema_change: refresh or evolve, or run once with --full-refresh")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TextOf;

    fn schema(fields: &[(&str, LakeType, Option<i32>)]) -> TableSchema {
        TableSchema::new(
            fields
                .iter()
                .map(|(name, data_type, id)| Field {
                    source_id: *id,
                    ..Field::new(*name, data_type.clone())
                })
                .collect(),
        )
    }

    fn check(incoming: &TableSchema, complete: bool, policy: OnSchemaChange, expected: &str) {
        let current = schema(&[("id", LakeType::Long, Some(1)), ("a", LakeType::String, Some(2))]);
        let outcome = match decide(&current, incoming, complete, policy) {
            Ok(Evolution::Unchanged) => "unchanged".to_owned(),
            Ok(Evolution::InPlace { schema, changes }) => {
                format!("in place to {} columns: {}", schema.fields.len(), words(&changes))
            }
            Ok(Evolution::Refresh { changes }) => format!("refresh: {}", words(&changes)),
            Err(error) => format!("{}: {}", error.code(), error.detail_text().unwrap_or_default()),
        };
        assert_eq!(outcome, expected);
    }

    fn words(changes: &[SchemaChange]) -> String {
        changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_relational_source_is_followed_exactly() {
        use LakeType::{Int, Long, String};
        use OnSchemaChange::{Evolve, Freeze, Refresh};
        let same = schema(&[("id", Long, Some(1)), ("a", String, Some(2))]);
        check(&same, true, Freeze, "unchanged");
        let added = schema(&[("id", Long, Some(1)), ("a", String, Some(2)), ("b", Int, Some(3))]);
        check(&added, true, Refresh, "refresh: added b int");
        check(&added, true, Evolve, "in place to 3 columns: added b int");
        check(&added, true, Freeze, "lake.schema_refused: added b int");
        let renamed = schema(&[("id", Long, Some(1)), ("b", String, Some(2))]);
        check(&renamed, true, Refresh, "refresh: renamed a to b");
        let replaced = schema(&[("id", Long, Some(1)), ("a", String, Some(3))]);
        check(&replaced, true, Refresh, "refresh: added a string, dropped a");
        let narrowed = schema(&[("id", Int, Some(1)), ("a", String, Some(2))]);
        check(&narrowed, true, Evolve, "refresh: changed id long to int");
    }

    #[test]
    fn an_inferred_schema_may_lack_columns_and_narrow_types() {
        use LakeType::{Double, Int, Long, String};
        use OnSchemaChange::Refresh;
        check(&schema(&[("id", Int, None)]), false, Refresh, "unchanged");
        let added = schema(&[("id", Long, None), ("n", Double, None)]);
        check(&added, false, Refresh, "in place to 3 columns: added n double");
        let mixed = schema(&[("id", String, None)]);
        check(&mixed, false, Refresh, "refresh: changed id long to string");
        let json = TableSchema::new(vec![Field::new("id", Long), Field::text("a", TextOf::Json)]);
        check(&json, false, Refresh, "refresh: changed a string to string");
    }

    #[test]
    fn nested_members_may_be_missing_but_not_new() {
        let nested = |names: &[&str]| {
            LakeType::Struct(names.iter().map(|n| Field::new(*n, LakeType::Int)).collect())
        };
        assert!(fits(&nested(&["a"]), &nested(&["a", "b"]), false));
        assert!(!fits(&nested(&["a", "c"]), &nested(&["a", "b"]), false));
        assert!(!fits(&nested(&["a"]), &nested(&["a", "b"]), true));
    }
    #[test]
    fn nested_text_of_another_kind_is_another_type() {
        let list = |text_of: Option<TextOf>| {
            let element = Field { text_of, ..Field::new("element", LakeType::String) };
            LakeType::List(Box::new(element))
        };
        let member = |text_of: Option<TextOf>| {
            LakeType::Struct(vec![Field { text_of, ..Field::new("a", LakeType::String) }])
        };
        for complete in [true, false] {
            for of in [None, Some(TextOf::Json)] {
                assert!(fits(&list(of), &list(of), complete));
                assert!(fits(&member(of), &member(of), complete));
                assert!(!fits(&list(of), &list(Some(TextOf::Decimal)), complete));
                assert!(!fits(&member(of), &member(Some(TextOf::ObjectId)), complete));
            }
        }
    }
}
