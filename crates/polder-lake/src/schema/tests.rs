//! Which column keeps which field id, in tables of cases.

use super::*;

fn columns(text: &[(&str, LakeType, Option<i32>)]) -> TableSchema {
    let fields = text.iter().map(|(name, data_type, source_id)| Field {
        source_id: *source_id,
        ..Field::new(*name, data_type.clone())
    });
    TableSchema::new(fields.collect())
}

/// `name:id` of every field, nested ones in brackets.
fn ids(schema: &Schema) -> String {
    fn level(fields: &[NestedFieldRef]) -> String {
        let fields = fields.iter().map(|field| {
            let nested = match &*field.field_type {
                Type::Struct(members) => format!("[{}]", level(members.fields())),
                Type::List(list) => format!("[{}]", level(&[Arc::clone(&list.element_field)])),
                _ => String::new(),
            };
            format!("{}:{}{nested}", field.name, field.id)
        });
        fields.collect::<Vec<_>>().join(" ")
    }
    level(schema.as_struct().fields())
}

fn struct_of(members: &[(&str, LakeType)]) -> LakeType {
    LakeType::Struct(members.iter().map(|(name, t)| Field::new(*name, t.clone())).collect())
}

fn replaced(old: &TableSchema, last: i32, new: &TableSchema) -> String {
    let schema = replace(old, None).expect("old");
    let base = Base { schema: &schema, marks: old, last_column_id: last };
    ids(&replace(new, Some(&base)).expect("new"))
}

#[test]
fn a_new_table_numbers_level_by_level() {
    use LakeType::{Int, String};
    let nested = struct_of(&[("x", Int), ("y", LakeType::list_of(Int))]);
    let schema =
        columns(&[("s", nested, None), ("l", LakeType::list_of(Int), None), ("z", String, None)]);
    let schema = replace(&schema, None).expect("schema");
    assert_eq!(ids(&schema), "s:1[x:4 y:5[element:6]] l:2[element:7] z:3");
}

#[test]
fn columns_that_continue_keep_their_ids() {
    use LakeType::{Int, Long, String};
    let old = columns(&[("a", Int, Some(1)), ("b", String, Some(2)), ("c", Int, Some(3))]);
    let cases = [
        (columns(&[("a", Int, Some(1)), ("b", String, Some(2))]), "a:1 b:2", "dropped"),
        (columns(&[("b2", String, Some(2)), ("a", Long, Some(1))]), "b2:2 a:1", "renamed, widened"),
        (columns(&[("a", Int, Some(9)), ("b", String, Some(2))]), "a:11 b:2", "dropped, re-added"),
        (columns(&[("a", String, Some(1))]), "a:11", "another type"),
        (columns(&[("a", Int, None), ("d", Int, None)]), "a:1 d:11", "by name"),
        (columns(&[("b", Int, Some(1)), ("a", String, Some(2))]), "b:1 a:2", "swapped names"),
    ];
    for (new, expected, case) in cases {
        assert_eq!(replaced(&old, 10, &new), expected, "{case}");
    }
}

#[test]
fn nested_fields_continue_by_name() {
    use LakeType::{Int, Long, String};
    let old = columns(&[("s", struct_of(&[("x", Int), ("y", String)]), None)]);
    let new = columns(&[("s", struct_of(&[("y", String), ("x", Long), ("z", Int)]), None)]);
    assert_eq!(replaced(&old, 3, &new), "s:1[y:3 x:2 z:4]");
    let list = columns(&[("s", LakeType::list_of(Int), None)]);
    assert_eq!(replaced(&old, 3, &list), "s:4[element:5]");
    let text = columns(&[("s", LakeType::list_of(String), None)]);
    assert_eq!(replaced(&list, 2, &text), "s:1[element:3]");
}

/// What `new` is on top of `old`, whose highest id ever was 10.
fn evolved(old: &TableSchema, new: &TableSchema) -> Result<String> {
    let schema = replace(old, None).expect("old");
    let base = Base { schema: &schema, marks: old, last_column_id: 10 };
    evolve(new, &base).map(|schema| ids(&schema))
}

#[test]
fn ids_stay_with_the_columns_that_evolve() {
    use LakeType::{Int, Long, String};
    let old = columns(&[
        ("a", Int, Some(1)),
        ("b", String, Some(2)),
        ("s", LakeType::list_of(struct_of(&[("x", Int), ("y", String)])), Some(3)),
    ]);
    let cases = [
        (columns(&[("a", Int, Some(1)), ("n", Long, Some(4))]), "a:1 n:11", "added, dropped"),
        (columns(&[("b", Long, Some(1)), ("a", String, Some(2))]), "b:1 a:2", "swapped, widened"),
        (columns(&[("b", Int, Some(5)), ("a", Int, Some(1))]), "b:11 a:1", "dropped, re-added"),
        (columns(&[("b", String, None), ("a", Int, None)]), "b:2 a:1", "by name, reordered"),
        (
            columns(&[("t", LakeType::list_of(struct_of(&[("y", String), ("z", Int)])), Some(3))]),
            "t:3[element:4[y:6 z:11]]",
            "renamed, members changed",
        ),
    ];
    for (new, expected, case) in cases {
        assert_eq!(evolved(&old, &new).expect(case), expected, "{case}");
    }
}

#[test]
fn what_old_rows_do_not_have_is_refused() {
    use LakeType::{Double, Int, Long, String};
    let nested = |member: Field| columns(&[("s", LakeType::Struct(vec![member]), None)]);
    let required = |name: &str| TableSchema::new(vec![Field::new(name, Int).required()]);
    let cases = [
        (columns(&[("a", Int, None)]), required("a"), "column \"a\" became required"),
        (columns(&[("a", Int, None)]), required("b"), "new column \"b\" is required"),
        (
            columns(&[("a", Long, Some(1))]),
            columns(&[("b", Int, Some(1))]),
            "column \"b\" became int from long",
        ),
        (
            nested(Field::new("x", Int)),
            nested(Field::new("x", Double)),
            "column \"s.x\" became double from int",
        ),
        (
            columns(&[("s", LakeType::list_of(Int), None)]),
            columns(&[("s", LakeType::list_of(String), None)]),
            "column \"s.element\" became string from int",
        ),
        (
            nested(Field::new("x", Int)),
            nested(Field::new("y", Int).required()),
            "new column \"s.y\" is required",
        ),
    ];
    for (old, new, expected) in cases {
        let error = evolved(&old, &new).expect_err(expected);
        assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
        assert_eq!(error.detail_text(), Some(expected));
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    use LakeType::Int;
    let refused = [
        columns(&[]),
        columns(&[("s", LakeType::Struct(vec![]), None)]),
        columns(&[("l", LakeType::list_of(LakeType::Struct(vec![])), None)]),
        columns(&[("a", Int, None), ("a", Int, None)]),
        columns(&[("a.b", Int, None), ("a", struct_of(&[("b", Int)]), None)]),
    ];
    for schema in refused {
        let error = replace(&schema, None).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::LakeSchemaRefused);
    }
}

#[test]
fn every_type_survives_iceberg_and_back() {
    let schema = columns(&[
        ("b", LakeType::Boolean, None),
        ("d", LakeType::Decimal { precision: 38, scale: 10 }, None),
        ("u", LakeType::Uuid, None),
        ("t", LakeType::Timestamptz, None),
        ("s", struct_of(&[("i", LakeType::interval())]), None),
        ("l", LakeType::list_of(LakeType::Binary), None),
    ]);
    let iceberg = replace(&schema, None).expect("iceberg");
    assert_eq!(table_schema(&iceberg).expect("back"), schema);
    let arrow = arrow_schema(&schema, &iceberg);
    let DataType::List(element) = arrow.field(5).data_type() else { panic!("list") };
    assert_eq!(element.metadata()[PARQUET_FIELD_ID_META_KEY], "11");
}

#[test]
fn partition_fields_are_named_as_elsewhere_and_checked() {
    let columns = columns(&[
        ("at", LakeType::Timestamptz, None),
        ("at_month", LakeType::Int, None),
        ("name", LakeType::String, None),
    ]);
    let schema = replace(&columns, None).expect("schema");
    let parse = |text: &str| text.parse::<PartitionField>().expect(text);
    let fields = [parse("month(at)"), parse("name"), parse("bucket(4, name)")];
    let spec = partition_spec(&fields, &schema).expect("spec");
    let names: Vec<_> = spec.fields().iter().map(|field| field.name.as_str()).collect();
    assert_eq!(names, ["at_month_2", "name", "name_bucket_4"]);
    let error = partition_spec(&[parse("month(name)")], &schema).expect_err("type");
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
    let error = partition_spec(&[parse("day(nope)")], &schema).expect_err("name");
    assert_eq!(error.code(), ErrorCode::SpecUnknownName);
}
