//! What is said to Glue, without a Glue. The catalog itself is tested on a server, in `tests/glue.rs`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{ListType, MapType, NestedField, PrimitiveType, Schema, StructType, Type};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use serde_json::{Value, json};

use super::documents::{self, Entry};
use crate::catalog::{TableState, apply};

const LOCATION: &str = "s3://bucket/lake/o/t";

fn field(id: i32, name: &str, kind: PrimitiveType) -> NestedField {
    NestedField::optional(id, name, Type::Primitive(kind))
}

fn schema(id: i32, fields: Vec<NestedField>) -> Schema {
    let fields = fields.into_iter().map(Arc::new);
    Schema::builder().with_schema_id(id).with_fields(fields).build().expect("schema")
}

fn state(base: Option<&TableState>, number: u32, updates: Vec<TableUpdate>) -> TableState {
    let namespace = NamespaceIdent::new("org_1".to_owned());
    TableState {
        ident: TableIdent::new(namespace, "t".to_owned()),
        metadata: Arc::new(apply(base, updates).expect("metadata")),
        metadata_location: format!("{LOCATION}/metadata/{number:05}.metadata.json"),
    }
}

fn first(fields: Vec<NestedField>) -> TableState {
    let updates = vec![
        TableUpdate::SetLocation { location: LOCATION.to_owned() },
        TableUpdate::AddSchema { schema: schema(0, fields) },
    ];
    state(None, 0, updates)
}

fn next(base: &TableState, fields: Vec<NestedField>) -> TableState {
    let updates = vec![
        TableUpdate::AddSchema { schema: schema(1, fields) },
        TableUpdate::SetCurrentSchema { schema_id: -1 },
    ];
    state(Some(base), 1, updates)
}

/// As Glue gives back what was put.
fn entry(input: &Value) -> Entry {
    let mut document = input.clone();
    document["VersionId"] = json!("7");
    document["DatabaseName"] = json!("org_1");
    Entry::new(document).expect("entry")
}

fn columns(input: &Value) -> Vec<(&str, &str)> {
    let columns = input["StorageDescriptor"]["Columns"].as_array().expect("columns");
    columns
        .iter()
        .map(|column| match (column["Name"].as_str(), column["Type"].as_str()) {
            (Some(name), Some(kind)) => (name, kind),
            _ => panic!("no column: {column}"),
        })
        .collect()
}

#[test]
fn a_new_table_is_found_by_other_engines() {
    let state = first(vec![field(1, "id", PrimitiveType::Long)]);
    let input = documents::table_input("t", None, &state);
    let expected = json!({
        "Name": "t",
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {
            "table_type": "ICEBERG",
            "metadata_location": "s3://bucket/lake/o/t/metadata/00000.metadata.json",
        },
        "StorageDescriptor": {
            "Location": LOCATION,
            "Columns": [{
                "Name": "id",
                "Type": "bigint",
                "Parameters": {
                    "iceberg.field.id": "1",
                    "iceberg.field.optional": "true",
                    "iceberg.field.current": "true",
                },
            }],
        },
    });
    assert_eq!(input, expected);
    assert_eq!(entry(&input).metadata_location, state.metadata_location);
    assert_eq!(entry(&input).version, "7");
}

#[test]
fn an_update_keeps_what_others_keep_with_the_table() {
    let state = first(vec![field(1, "id", PrimitiveType::Long)]);
    let mut there = documents::table_input("t", None, &state);
    there["Owner"] = json!("analysts");
    there["Retention"] = json!(3);
    there["LastAccessTime"] = Value::Null;
    there["CreatedBy"] = json!("arn:aws:iam::1:user/x");
    there["Parameters"]["classification"] = json!("crm");
    there["StorageDescriptor"]["AdditionalLocations"] = json!(["s3://other"]);
    there["StorageDescriptor"]["Columns"][0]["Comment"] = json!("made in the console");
    let with_more = vec![
        field(1, "key", PrimitiveType::Long),
        field(2, "id", PrimitiveType::String).with_doc("two\nlines"),
    ];
    let after = next(&state, with_more);
    let input = documents::table_input("t", Some(&entry(&there)), &after);
    assert_eq!((&input["Owner"], &input["Retention"]), (&json!("analysts"), &json!(3)));
    assert!(input.get("CreatedBy").is_none() && input.get("VersionId").is_none(), "{input}");
    assert!(input.get("LastAccessTime").is_none(), "{input}");
    let parameters = json!({
        "classification": "crm",
        "table_type": "ICEBERG",
        "metadata_location": after.metadata_location,
        "previous_metadata_location": state.metadata_location,
    });
    assert_eq!(input["Parameters"], parameters);
    let storage = &input["StorageDescriptor"];
    assert_eq!(storage["AdditionalLocations"], json!(["s3://other"]));
    assert_eq!(columns(&input), [("key", "bigint"), ("id", "string")]);
    assert_eq!(storage["Columns"][1]["Comment"], json!("two lines"), "the table's own comment");
    let same = documents::table_input("t", Some(&entry(&there)), &state);
    assert_eq!(same["StorageDescriptor"]["Columns"][0]["Comment"], json!("made in the console"));
}

#[test]
fn columns_of_earlier_schemas_follow_those_of_now() {
    let state =
        first(vec![field(1, "id", PrimitiveType::Long), field(2, "old", PrimitiveType::Date)]);
    let after = next(&state, vec![field(1, "id", PrimitiveType::Long)]);
    let input = documents::table_input("t", None, &after);
    assert_eq!(columns(&input), [("id", "bigint"), ("old", "date")]);
    let current = |at: usize| {
        input["StorageDescriptor"]["Columns"][at]["Parameters"]["iceberg.field.current"].clone()
    };
    assert_eq!((current(0), current(1)), (json!("true"), json!("false")));
}

#[test]
fn types_are_hives_and_what_glue_cannot_hold_is_left_out() {
    use PrimitiveType as P;
    let inner = |id, name: &str, kind| Arc::new(field(id, name, kind));
    let members = StructType::new(vec![inner(20, "a", P::Int), inner(21, "B c", P::Uuid)]);
    let list = ListType::new(inner(22, "element", P::Timestamptz));
    let key = Arc::new(NestedField::required(23, "key", Type::Primitive(P::String)));
    let map = MapType::new(key, inner(24, "value", P::Binary));
    let long = "x".repeat(256);
    let state = first(vec![
        field(1, "decimal", P::Decimal { precision: 18, scale: 2 }),
        field(2, "time", P::Time),
        field(3, "fixed", P::Fixed(4)),
        field(4, "flag", P::Boolean),
        field(5, "real", P::Float),
        NestedField::optional(6, "struct", Type::Struct(members)),
        NestedField::optional(7, "list", Type::List(list)),
        NestedField::optional(8, "map", Type::Map(map)),
        field(9, &long, P::Int),
        field(10, "two\nlines", P::Int),
        field(11, "Größe", P::Double),
        field(12, "FLAG", P::Int),
    ]);
    let input = documents::table_input("t", None, &state);
    let expected = [
        ("decimal", "decimal(18,2)"),
        ("time", "string"),
        ("fixed", "binary"),
        ("flag", "boolean"),
        ("real", "float"),
        ("struct", "struct<a:int,B c:string>"),
        ("list", "array<timestamp>"),
        ("map", "map<string,binary>"),
        ("Größe", "double"),
    ];
    assert_eq!(columns(&input), expected);
}

#[test]
fn tables_that_are_not_icebergs_are_refused() {
    for parameters in [json!(null), json!({}), json!({ "table_type": "DELTA" })] {
        let table = json!({ "Name": "t", "VersionId": "0", "Parameters": parameters });
        assert!(!documents::is_iceberg(&table), "{table}");
        let error = Entry::new(table).expect_err("refused");
        assert_eq!(error.code(), polder_core::ErrorCode::LakeFailed);
    }
    let parameters = json!({ "table_type": "iceberg", "metadata_location": "s3://b/x" });
    assert!(documents::is_iceberg(&json!({ "Name": "t", "Parameters": parameters })));
}

#[test]
fn a_database_keeps_what_it_has() {
    let there = json!({
        "Name": "org_1",
        "Description": "of the first org",
        "LocationUri": "",
        "Parameters": { "owner": "x" },
        "CreateTableDefaultPermissions": [],
        "TargetDatabase": null,
        "CreateTime": 1.5,
    });
    let mut properties = documents::properties(&there);
    let expected = [("comment", "of the first org"), ("owner", "x")];
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    assert_eq!(properties, pairs(&expected));
    properties.insert("location".to_owned(), "s3://b/o".to_owned());
    let input = documents::database_input("org_1", Some(&there), &properties);
    let expected = json!({
        "Name": "org_1",
        "Description": "of the first org",
        "LocationUri": "s3://b/o",
        "Parameters": { "owner": "x" },
        "CreateTableDefaultPermissions": [],
    });
    assert_eq!(input, expected);
}

#[test]
fn names_are_those_that_glue_does_not_change() {
    let cases = HashMap::from([
        ("opportunity", true),
        ("_1_a", true),
        ("Opportunity", false),
        ("größe", false),
        ("a-b", false),
        ("a.b", false),
        ("a b", false),
        ("", false),
    ]);
    for (name, expected) in cases {
        assert_eq!(documents::is_table_name(name), expected, "{name:?}");
        assert_eq!(documents::check_table_name(name).is_ok(), expected, "{name:?}");
        assert_eq!(documents::check_database_name(name).is_ok(), expected, "{name:?}");
    }
    assert!(documents::is_table_name(&"a".repeat(255)));
    assert!(!documents::is_table_name(&"a".repeat(256)));
    assert!(!documents::is_database_name(&"a".repeat(253)));
}
