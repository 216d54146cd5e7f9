//! What a changed source schema means for the lake table: pure rules.
//!
//! Compares two [`TableSchema`]s, says what to do under a policy, and which schema holds the rows of
//! both where one does. Nothing is applied here; the lake does that in the same commit as the data.

use std::collections::{HashMap, HashSet};
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

/// What a reload changes in the table's columns: all that the source lacks goes, whether its schema is
/// complete or not, and so does what the table had kept.
///
/// # Errors
/// `lake.schema_refused` if anything changes and the policy is [`OnSchemaChange::Freeze`].
pub fn reload(
    current: &TableSchema,
    incoming: &TableSchema,
    policy: OnSchemaChange,
) -> Result<Vec<SchemaChange>> {
    let rules = Rules { complete: true, drop: true, order: false };
    let mut merged = Merged { rules, changes: Vec::new(), exact: true };
    merged.columns(current, incoming);
    match policy {
        OnSchemaChange::Freeze if !merged.changes.is_empty() => Err(refused(&merged.changes)),
        _ => Ok(merged.changes),
    }
}

/// The same as [`continued`] of each column of a schema.
fn all_continued<'a>(current: &'a TableSchema, incoming: &TableSchema) -> Vec<Option<&'a Field>> {
    let mut by_name: HashMap<&str, &Field> = HashMap::new();
    let mut by_source: HashMap<i32, &Field> = HashMap::new();
    for old in &current.fields {
        by_name.entry(&old.name).or_insert(old);
        if let Some(id) = old.source_id {
            by_source.entry(id).or_insert(old);
        }
    }
    let found = incoming.fields.iter().map(|field| match field.source_id {
        Some(id) if !by_source.is_empty() => by_source.get(&id).copied(),
        _ => by_name.get(field.name.as_str()).copied(),
    });
    found.collect()
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
        let olds = all_continued(current, incoming);
        let mut fields = self.fields("", &current.fields, &incoming.fields, &olds);
        // What is reloaded gets the source's order anyway.
        if self.rules.order && self.exact {
            self.reorder(&mut fields, incoming, &olds);
        }
        fields
    }

    /// Brings the columns that go on into the source's order: each of their places gets the next of
    /// them, others stay in theirs.
    fn reorder(&mut self, fields: &mut [Field], incoming: &TableSchema, olds: &[Option<&Field>]) {
        let going_on = incoming.fields.iter().zip(olds).filter(|(_, old)| old.is_some());
        let order: Vec<&str> = going_on.map(|(field, _)| field.name.as_str()).collect();
        let names: HashSet<&str> = order.iter().copied().collect();
        let is_one = |field: &Field| names.contains(field.name.as_str());
        let present: Vec<Field> = fields.iter().filter(|field| is_one(field)).cloned().collect();
        if present.iter().map(|field| field.name.as_str()).eq(order.iter().copied()) {
            return;
        }
        self.changes.push(SchemaChange::Reordered);
        let mut by_name: HashMap<&str, &Field> = HashMap::new();
        for field in &present {
            by_name.entry(&field.name).or_insert(field);
        }
        let moved = order.iter().filter_map(|name| by_name.get(name).copied());
        for (place, field) in fields.iter_mut().filter(|field| is_one(field)).zip(moved) {
            *place = field.clone();
        }
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
        // By name, which is one column's at each level; the first counts where several go on from it.
        let mut successors: HashMap<&str, usize> = HashMap::new();
        for (index, old) in olds.iter().enumerate() {
            if let Some(old) = old {
                successors.entry(&old.name).or_insert(index);
            }
        }
        for old in current {
            match successors.get(old.name.as_str()).copied() {
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
            // Rows already stored have no value there.
            fields.push(Field { nullable: true, ..field.clone() });
        }
        // A column that is kept without its source may have another one's name.
        let mut names = HashSet::new();
        self.exact &= fields.iter().all(|field| names.insert(field.name.as_str()));
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
mod tests {
    use super::*;
    use crate::TextOf;

    /// A schema from `name type`, `#` and the source's id after the name, `!` after it if required.
    fn schema(text: &[&str]) -> TableSchema {
        let field = |text: &&str| {
            let (name, data_type) = text.split_once(' ').expect("a name and a type");
            let (name, required) =
                name.strip_suffix('!').map_or((name, false), |name| (name, true));
            let (name, id) = name.split_once('#').map_or((name, None), |(n, id)| (n, Some(id)));
            Field {
                source_id: id.map(|id| id.parse().expect("id")),
                nullable: !required,
                ..Field::new(name, data_type.parse().expect("type"))
            }
        };
        TableSchema::new(text.iter().map(field).collect())
    }

    fn shown(schema: &TableSchema) -> String {
        let field = |field: &Field| {
            let required = if field.nullable { "" } else { "!" };
            let retired = if field.retired { " (retired)" } else { "" };
            format!("{}{required} {}{retired}", field.name, field.data_type)
        };
        schema.fields.iter().map(field).collect::<Vec<_>>().join(", ")
    }

    fn words(changes: &[SchemaChange]) -> String {
        changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn outcome(
        current: &TableSchema,
        incoming: &TableSchema,
        complete: bool,
        policy: OnSchemaChange,
        on_dropped_column: OnDroppedColumn,
    ) -> String {
        match decide(current, incoming, complete, policy, on_dropped_column) {
            Ok(Evolution::Unchanged) => "unchanged".to_owned(),
            Ok(Evolution::InPlace { schema, changes }) => {
                format!("{} -> {}", words(&changes), shown(&schema))
            }
            Ok(Evolution::Refresh { changes }) => format!("refresh: {}", words(&changes)),
            Err(error) => format!("{}: {}", error.code(), error.detail_text().unwrap_or_default()),
        }
    }

    /// What a PostgreSQL table's change means under `refresh`, `evolve` and `freeze`.
    fn relational(current: &[&str], incoming: &[&str], expected: [&str; 3]) {
        let policies = [OnSchemaChange::Refresh, OnSchemaChange::Evolve, OnSchemaChange::Freeze];
        for (policy, expected) in policies.into_iter().zip(expected) {
            let (current, incoming) = (schema(current), schema(incoming));
            let found = outcome(&current, &incoming, true, policy, OnDroppedColumn::Keep);
            assert_eq!(found, expected, "{policy:?}");
        }
    }

    #[test]
    fn the_same_columns_change_nothing() {
        relational(&["id#1! long", "a#2 string"], &["id#1! long", "a#2 string"], ["unchanged"; 3]);
        // The table may hold nulls that the source no longer has.
        relational(&["id#1 long"], &["id#1! long"], ["unchanged"; 3]);
    }

    #[test]
    fn a_new_column_is_nullable_in_the_table() {
        relational(
            &["id#1 long"],
            &["id#1 long", "b#2! int"],
            [
                "refresh: added b int",
                "added b int -> id long, b int",
                "lake.schema_refused: added b int",
            ],
        );
    }

    #[test]
    fn a_rename_keeps_the_column() {
        relational(
            &["id#1 long", "a#2 string"],
            &["id#1 long", "b#2 string"],
            [
                "refresh: renamed a to b",
                "renamed a to b -> id long, b string",
                "lake.schema_refused: renamed a to b",
            ],
        );
        relational(
            &["a#1 long", "b#2 string"],
            &["b#1 long", "a#2 string"],
            [
                "refresh: renamed a to b, renamed b to a",
                "renamed a to b, renamed b to a -> b long, a string",
                "lake.schema_refused: renamed a to b, renamed b to a",
            ],
        );
    }

    #[test]
    fn a_dropped_column_is_kept_until_it_is_to_go() {
        let current = ["a#1! long", "b#2! string", "c#3 int"];
        let without = ["a#1! long", "c#3 int"];
        relational(
            &current,
            &without,
            [
                "refresh: dropped b",
                "dropped b -> a! long, b string (retired), c int",
                "lake.schema_refused: dropped b",
            ],
        );
        let (current, incoming) = (schema(&current), schema(&without));
        let evolve = |current, incoming, dropped| {
            outcome(current, incoming, true, OnSchemaChange::Evolve, dropped)
        };
        let (keep, drop) = (OnDroppedColumn::Keep, OnDroppedColumn::Drop);
        assert_eq!(evolve(&current, &incoming, drop), "dropped b -> a! long, c int");
        let Ok(Evolution::InPlace { schema: kept, .. }) =
            decide(&current, &incoming, true, OnSchemaChange::Evolve, keep)
        else {
            panic!("in place")
        };
        for policy in [OnSchemaChange::Refresh, OnSchemaChange::Evolve, OnSchemaChange::Freeze] {
            assert_eq!(
                outcome(&kept, &incoming, true, policy, keep),
                "unchanged",
                "once is enough"
            );
        }
        assert_eq!(evolve(&kept, &incoming, drop), "dropped b -> a! long, c int");
        // Another column under the name of the kept one: one table cannot have both.
        let again = schema(&["a#1! long", "c#3 int", "b#4 string"]);
        assert_eq!(evolve(&kept, &again, keep), "refresh: added b string");
        let renamed = schema(&["a#1! long", "b#3 int"]);
        assert_eq!(evolve(&kept, &renamed, keep), "refresh: renamed c to b");
        assert_eq!(
            evolve(&kept, &again, drop),
            "dropped b, added b string -> a! long, c int, b string"
        );
    }

    #[test]
    fn a_kept_column_may_come_back() {
        let evolve = |current: &TableSchema, incoming: &[&str]| {
            decide(current, &schema(incoming), true, OnSchemaChange::Evolve, OnDroppedColumn::Keep)
        };
        let Ok(Evolution::InPlace { schema: kept, .. }) =
            evolve(&schema(&["a long", "b string"]), &["a long"])
        else {
            panic!("in place")
        };
        let Ok(Evolution::InPlace { schema, changes }) = evolve(&kept, &["a long", "b string"])
        else {
            panic!("in place")
        };
        assert_eq!(
            (words(&changes), shown(&schema)),
            ("added b string".into(), "a long, b string".into())
        );
    }

    #[test]
    fn types_widen_as_iceberg_allows() {
        relational(
            &["i#1! int", "f#2 float", "d#3 decimal(10, 2)"],
            &["i#1 long", "f#2 double", "d#3 decimal(12, 2)"],
            [
                "refresh: i may now be null, changed i int to long, changed f float to double, \
                 changed d decimal(10, 2) to decimal(12, 2)",
                "i may now be null, changed i int to long, changed f float to double, \
                 changed d decimal(10, 2) to decimal(12, 2) -> i long, f double, d decimal(12, 2)",
                "lake.schema_refused: i may now be null, changed i int to long, changed f float to \
                 double, changed d decimal(10, 2) to decimal(12, 2)",
            ],
        );
        for (from, to) in [
            ("a#1 string", "a#1 int"),
            ("a#1 long", "a#1 int"),
            ("a#1 decimal(10, 2)", "a#1 decimal(10, 3)"),
            ("a#1 int", "a#1 double"),
            ("a#1 timestamp", "a#1 timestamptz"),
        ] {
            let change = format!("changed a {} to {}", &from[4..], &to[4..]);
            let (refresh, frozen) =
                (format!("refresh: {change}"), format!("lake.schema_refused: {change}"));
            relational(&[from], &[to], [&refresh, &refresh, &frozen]);
        }
    }

    #[test]
    fn order_follows_the_source_where_the_table_evolves() {
        relational(
            &["a#1 int", "b#2 int", "c#3 int"],
            &["c#3 int", "a#1 int", "d#4 int"],
            [
                "refresh: dropped b, added d int",
                "dropped b, added d int, the columns are in another order -> \
                 c int, b int (retired), a int, d int",
                "lake.schema_refused: dropped b, added d int",
            ],
        );
        relational(
            &["a#1 int", "b#2 int"],
            &["b#2 int", "a#1 int"],
            ["unchanged", "the columns are in another order -> b int, a int", "unchanged"],
        );
    }

    /// The outcome where schemas are inferred from rows.
    fn inferred(current: &TableSchema, incoming: &TableSchema, policy: OnSchemaChange) -> String {
        outcome(current, incoming, false, policy, OnDroppedColumn::Drop)
    }

    #[test]
    fn an_inferred_schema_may_lack_columns_and_narrow_types() {
        use OnSchemaChange::{Evolve, Freeze, Refresh};
        let current = &schema(&["id! long", "a string"]);
        for policy in [Refresh, Evolve, Freeze] {
            assert_eq!(inferred(current, &schema(&["id! int"]), policy), "unchanged");
            assert_eq!(inferred(current, &schema(&["a string", "id! int"]), policy), "unchanged");
        }
        for policy in [Refresh, Evolve] {
            let added = inferred(current, &schema(&["id! long", "n double"]), policy);
            assert_eq!(added, "added n double -> id! long, a string, n double");
            let without = inferred(current, &schema(&["a string"]), policy);
            assert_eq!(without, "id may now be null -> id long, a string");
            let wider = inferred(&schema(&["id int"]), &schema(&["id long"]), policy);
            assert_eq!(wider, "changed id int to long -> id long");
            let mixed = inferred(current, &schema(&["id! string"]), policy);
            assert_eq!(mixed, "refresh: changed id long to string");
        }
        let frozen = inferred(current, &schema(&["id long", "n int"]), Freeze);
        assert_eq!(frozen, "lake.schema_refused: id may now be null, added n int");
    }

    #[test]
    fn members_of_structs_and_lists_evolve_alike() {
        let members = |text: &[&str]| LakeType::Struct(schema(text).fields);
        let table = |of: LakeType| TableSchema::new(vec![Field::new("s", of)]);
        let old = || table(LakeType::list_of(members(&["a int", "b! string"])));
        let new = || table(LakeType::list_of(members(&["a long", "c! int"])));
        let changes = "changed s.element.a int to long, s.element.b may now be null, \
                       added s.element.c int";
        assert_eq!(
            inferred(&old(), &new(), OnSchemaChange::Refresh),
            format!("{changes} -> s list<struct<a: long, b: string, c: int>>"),
        );
        let Ok(Evolution::InPlace { schema, .. }) =
            decide(&old(), &new(), false, OnSchemaChange::Refresh, OnDroppedColumn::Keep)
        else {
            panic!("in place")
        };
        let LakeType::List(element) = &schema.fields[0].data_type else { panic!("a list") };
        let LakeType::Struct(members) = &element.data_type else { panic!("a struct") };
        assert!(members.iter().all(|member| member.nullable), "{members:?}");
        assert_eq!(
            outcome(&old(), &new(), true, OnSchemaChange::Evolve, OnDroppedColumn::Drop),
            "changed s.element.a int to long, dropped s.element.b, added s.element.c int -> \
             s list<struct<a: long, c: int>>",
        );
    }

    #[test]
    fn text_of_another_kind_is_another_type() {
        let list = |text_of: Option<TextOf>| {
            let element = Field { text_of, ..Field::new(LIST_ELEMENT, LakeType::String) };
            TableSchema::new(vec![Field::new("l", LakeType::List(Box::new(element)))])
        };
        let plain = |text_of: Option<TextOf>| {
            TableSchema::new(vec![Field { text_of, ..Field::new("a", LakeType::String) }])
        };
        let kinds = [None, Some(TextOf::Json), Some(TextOf::Decimal), Some(TextOf::ObjectId)];
        for complete in [true, false] {
            for (a, b) in kinds.iter().flat_map(|a| kinds.iter().map(move |b| (*a, *b))) {
                for (old, new) in [(list(a), list(b)), (plain(a), plain(b))] {
                    let found = outcome(
                        &old,
                        &new,
                        complete,
                        OnSchemaChange::Evolve,
                        OnDroppedColumn::Keep,
                    );
                    assert_eq!(found == "unchanged", a == b, "{found}");
                    assert_eq!(found.starts_with("refresh"), a != b, "{found}");
                }
            }
        }
    }

    #[test]
    fn a_reload_says_what_it_changes_unless_frozen() {
        let (current, incoming) = (schema(&["a#1 int"]), schema(&["b#1 long"]));
        let changes = reload(&current, &incoming, OnSchemaChange::Refresh).expect("changes");
        assert_eq!(words(&changes), "renamed a to b, changed b int to long");
        let error = reload(&current, &incoming, OnSchemaChange::Freeze).expect_err("frozen");
        assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
        reload(&current, &current, OnSchemaChange::Freeze).expect("nothing changes");
        let mut kept = schema(&["a#1 int", "fax#2 string"]);
        kept.fields[1].retired = true;
        let changes = reload(&kept, &current, OnSchemaChange::Refresh).expect("changes");
        assert_eq!(words(&changes), "dropped fax", "what was kept goes, and not in silence");
    }
}
