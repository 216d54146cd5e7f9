use super::*;
use crate::TextOf;

/// A schema from `name type`, `#` and the source's id after the name, `!` after it if required.
fn schema(text: &[&str]) -> TableSchema {
    let field = |text: &&str| {
        let (name, data_type) = text.split_once(' ').expect("a name and a type");
        let (name, required) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
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
        assert_eq!(outcome(&kept, &incoming, true, policy, keep), "unchanged", "once is enough");
    }
    assert_eq!(evolve(&kept, &incoming, drop), "dropped b -> a! long, c int");
    // Another column under the name of the kept one: one table cannot have both.
    let again = schema(&["a#1! long", "c#3 int", "b#4 string"]);
    assert_eq!(evolve(&kept, &again, keep), "refresh: added b string");
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
    let Ok(Evolution::InPlace { schema, changes }) = evolve(&kept, &["a long", "b string"]) else {
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
fn inferred(current: TableSchema, incoming: TableSchema, policy: OnSchemaChange) -> String {
    outcome(&current, &incoming, false, policy, OnDroppedColumn::Drop)
}

#[test]
fn an_inferred_schema_may_lack_columns_and_narrow_types() {
    use OnSchemaChange::{Evolve, Freeze, Refresh};
    let current = || schema(&["id! long", "a string"]);
    for policy in [Refresh, Evolve, Freeze] {
        assert_eq!(inferred(current(), schema(&["id! int"]), policy), "unchanged");
        assert_eq!(inferred(current(), schema(&["a string", "id! int"]), policy), "unchanged");
    }
    for policy in [Refresh, Evolve] {
        let added = inferred(current(), schema(&["id! long", "n double"]), policy);
        assert_eq!(added, "added n double -> id! long, a string, n double");
        let without = inferred(current(), schema(&["a string"]), policy);
        assert_eq!(without, "id may now be null -> id long, a string");
        let wider = inferred(schema(&["id int"]), schema(&["id long"]), policy);
        assert_eq!(wider, "changed id int to long -> id long");
        let mixed = inferred(current(), schema(&["id! string"]), policy);
        assert_eq!(mixed, "refresh: changed id long to string");
    }
    let frozen = inferred(current(), schema(&["id long", "n int"]), Freeze);
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
        inferred(old(), new(), OnSchemaChange::Refresh),
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
                let found =
                    outcome(&old, &new, complete, OnSchemaChange::Evolve, OnDroppedColumn::Keep);
                assert_eq!(found == "unchanged", a == b, "{found}");
                assert_eq!(found.starts_with("refresh"), a != b, "{found}");
            }
        }
    }
}

#[test]
fn a_reload_says_what_it_changes_unless_frozen() {
    let (current, incoming) = (schema(&["a#1 int"]), schema(&["b#1 long"]));
    let changes = reload(&current, &incoming, true, OnSchemaChange::Refresh).expect("changes");
    assert_eq!(words(&changes), "renamed a to b, changed b int to long");
    let error = reload(&current, &incoming, true, OnSchemaChange::Freeze).expect_err("frozen");
    assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
    reload(&current, &current, true, OnSchemaChange::Freeze).expect("nothing changes");
}
