//! What a changed source schema means for the lake table: pure rules.
//!
//! Compares two [`TableSchema`]s, says what to do under a policy, and which schema holds the rows of
//! both where one does. Nothing is applied here; the lake does that in the same commit as the data.

use std::fmt;

use serde::Serialize;

use crate::schema::LIST_ELEMENT;
use crate::spec::{OnDroppedColumn, OnSchemaChange};
use crate::{Error, ErrorCode, Field, LakeType, Result, TableSchema};

/// One difference between the lake table's schema and the source's. Columns are named by their path:
/// `address.zip` is a member of a struct, `tags.element` what a list holds.
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
    /// The columns both have are in another order.
    Reordered,
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { column, data_type } => write!(f, "added {column} {data_type}"),
            Self::Dropped { column } => write!(f, "dropped {column}"),
            Self::Renamed { from, to } => write!(f, "renamed {from} to {to}"),
            Self::TypeChanged { column, from, to } => write!(f, "changed {column} {from} to {to}"),
            Self::NowNullable { column } => write!(f, "{column} may now be null"),
            Self::Reordered => f.write_str("the columns are in another order"),
        }
    }
}

/// What a run has to do about the differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evolution {
    /// The rows fit the table as it is.
    Unchanged,
    /// Give the table this schema in place and go on; old rows have null in new columns.
    InPlace { schema: TableSchema, changes: Vec<SchemaChange> },
    /// Reload everything under the source's schema as one new version.
    Refresh { changes: Vec<SchemaChange> },
}

/// Decides what a change means.
///
/// `complete` is [`crate::Capabilities::complete_schema`]. Where it is true the source's schema is
/// followed, and under `refresh` old rows are read again, as they may have values in a new column.
/// Where it is false the schema was inferred from the rows read: a missing column means nothing, and
/// a new one was in no earlier row. Then whatever one schema can hold exactly is taken in place.
///
/// In place goes what Iceberg's schema evolution does without touching a file (spec, *Schema
/// Evolution*) at every level of nesting: new nullable columns, renames, widened types, columns that
/// may be null now, another order, and columns the source has dropped, by `on_dropped_column`.
/// Everything else is a refresh.
///
/// # Errors
/// `lake.schema_refused` under [`OnSchemaChange::Freeze`], with every difference in the detail.
pub fn decide(
    current: &TableSchema,
    incoming: &TableSchema,
    complete: bool,
    policy: OnSchemaChange,
    on_dropped_column: OnDroppedColumn,
) -> Result<Evolution> {
    let evolve = policy == OnSchemaChange::Evolve;
    let rules = Rules {
        complete,
        drop: evolve && on_dropped_column == OnDroppedColumn::Drop,
        order: evolve && complete,
    };
    let mut merged = Merged { rules, changes: Vec::new(), exact: true };
    let fields = merged.columns(current, incoming);
    let Merged { changes, exact, .. } = merged;
    if changes.is_empty() {
        return Ok(Evolution::Unchanged);
    }
    match policy {
        OnSchemaChange::Freeze => Err(refused(&changes)),
        OnSchemaChange::Refresh if complete => Ok(Evolution::Refresh { changes }),
        OnSchemaChange::Refresh | OnSchemaChange::Evolve if !exact => {
            Ok(Evolution::Refresh { changes })
        }
        OnSchemaChange::Refresh | OnSchemaChange::Evolve => {
            Ok(Evolution::InPlace { schema: TableSchema::new(fields), changes })
        }
    }
}

/// What a reload changes in the table's columns.
///
/// # Errors
/// `lake.schema_refused` if something does and the policy is [`OnSchemaChange::Freeze`].
pub fn reload(
    current: &TableSchema,
    incoming: &TableSchema,
    complete: bool,
    policy: OnSchemaChange,
) -> Result<Vec<SchemaChange>> {
    let rules = Rules { complete, drop: false, order: false };
    let mut merged = Merged { rules, changes: Vec::new(), exact: true };
    merged.columns(current, incoming);
    match policy {
        OnSchemaChange::Freeze if !merged.changes.is_empty() => Err(refused(&merged.changes)),
        _ => Ok(merged.changes),
    }
}

/// The table's column that an incoming one continues: by the source's own id where both have one
/// (so that a rename is a rename, and a dropped and re-added column is a new one), else by name.
pub fn continued<'a>(current: &'a TableSchema, field: &Field) -> Option<&'a Field> {
    if field.source_id.is_some() && current.fields.iter().any(|old| old.source_id.is_some()) {
        return current.fields.iter().find(|old| old.source_id == field.source_id);
    }
    current.field(&field.name)
}

#[derive(Clone, Copy)]
struct Rules {
    complete: bool,
    /// Columns the source has dropped go from the table too.
    drop: bool,
    /// The source's order is followed.
    order: bool,
}

/// The making of the schema that holds the rows of both.
struct Merged {
    rules: Rules,
    changes: Vec<SchemaChange>,
    /// Whether there is one.
    exact: bool,
}

impl Merged {
    /// The table's columns as they go on, then the new ones.
    fn columns(&mut self, current: &TableSchema, incoming: &TableSchema) -> Vec<Field> {
        let olds: Vec<Option<&Field>> =
            incoming.fields.iter().map(|field| continued(current, field)).collect();
        let mut fields = self.fields("", &current.fields, &incoming.fields, &olds);
        let going_on: Vec<&Field> = current
            .fields
            .iter()
            .filter_map(|old| {
                let index = olds.iter().position(|found| *found == Some(old))?;
                incoming.fields.get(index)
            })
            .collect();
        let in_order: Vec<&Field> = incoming
            .fields
            .iter()
            .zip(&olds)
            .filter_map(|(field, old)| old.is_some().then_some(field))
            .collect();
        if self.rules.order && going_on != in_order {
            self.changes.push(SchemaChange::Reordered);
            // Each place of a column that goes on gets the next of them; others stay in theirs.
            let moved: Vec<Field> = in_order
                .iter()
                .filter_map(|new| fields.iter().find(|field| field.name == new.name).cloned())
                .collect();
            let places =
                fields.iter_mut().filter(|field| in_order.iter().any(|new| new.name == field.name));
            for (place, field) in places.zip(moved) {
                *place = field;
            }
        }
        fields
    }

    /// One level: `olds` has the counterpart of each incoming field.
    fn fields(
        &mut self,
        within: &str,
        current: &[Field],
        incoming: &[Field],
        olds: &[Option<&Field>],
    ) -> Vec<Field> {
        let mut fields = Vec::with_capacity(current.len().max(incoming.len()));
        for old in current {
            match olds.iter().position(|found| *found == Some(old)) {
                Some(index) => fields.push(self.field(within, old, &incoming[index])),
                None => fields.extend(self.missing(within, old)),
            }
        }
        for (field, old) in incoming.iter().zip(olds) {
            if old.is_some() {
                continue;
            }
            let (column, data_type) = (path(within, &field.name), field.data_type.clone());
            self.changes.push(SchemaChange::Added { column, data_type });
            // The name of a column that is kept without its source.
            self.exact &= !fields.iter().any(|other| other.name == field.name);
            // Rows already stored have no value there.
            fields.push(Field { nullable: true, ..field.clone() });
        }
        fields
    }

    /// What becomes of a column that the source does not have.
    fn missing(&mut self, within: &str, old: &Field) -> Option<Field> {
        let column = path(within, &old.name);
        if self.rules.complete {
            if !old.retired || self.rules.drop {
                self.changes.push(SchemaChange::Dropped { column });
            }
            let kept = Field { nullable: true, retired: true, ..old.clone() };
            return (!self.rules.drop).then_some(kept);
        }
        if !old.nullable {
            self.changes.push(SchemaChange::NowNullable { column });
        }
        Some(Field { nullable: true, ..old.clone() })
    }

    /// A field that goes on, with the marks it has in the source now.
    fn field(&mut self, within: &str, old: &Field, new: &Field) -> Field {
        let column = path(within, &new.name);
        if old.retired {
            let data_type = new.data_type.clone();
            self.changes.push(SchemaChange::Added { column: column.clone(), data_type });
        }
        if old.name != new.name {
            let (from, to) = (path(within, &old.name), column.clone());
            self.changes.push(SchemaChange::Renamed { from, to });
        }
        if new.nullable && !old.nullable {
            self.changes.push(SchemaChange::NowNullable { column: column.clone() });
        }
        let data_type = self.data_type(&column, old, new);
        Field { data_type, nullable: old.nullable || new.nullable, ..new.clone() }
    }

    fn data_type(&mut self, column: &str, old: &Field, new: &Field) -> LakeType {
        let (from, to) = (&old.data_type, &new.data_type);
        match (from, to) {
            (LakeType::List(a), LakeType::List(b)) => {
                let element = self.field(column, a, b);
                LakeType::List(Box::new(Field { name: LIST_ELEMENT.to_owned(), ..element }))
            }
            (LakeType::Struct(a), LakeType::Struct(b)) => {
                let olds: Vec<_> =
                    b.iter().map(|member| a.iter().find(|old| old.name == member.name)).collect();
                LakeType::Struct(self.fields(column, a, b, &olds))
            }
            _ if from == to && old.text_of == new.text_of => to.clone(),
            // The table can hold more already.
            _ if !self.rules.complete && to.promotes_to(from) && old.text_of == new.text_of => {
                from.clone()
            }
            _ => {
                self.exact &= from.promotes_to(to) && old.text_of == new.text_of;
                let (column, from) = (column.to_owned(), from.clone());
                self.changes.push(SchemaChange::TypeChanged { column, from, to: to.clone() });
                to.clone()
            }
        }
    }
}

fn path(within: &str, name: &str) -> String {
    if within.is_empty() { name.to_owned() } else { format!("{within}.{name}") }
}

fn refused(changes: &[SchemaChange]) -> Error {
    let list: Vec<_> = changes.iter().map(ToString::to_string).collect();
    Error::new(ErrorCode::LakeSchemaRefused, "the source's schema changed and the table is frozen")
        .detail(list.join(", "))
        .hint("set on_schema_change: refresh or evolve, or run once with --full-refresh")
}

#[cfg(test)]
mod tests;
