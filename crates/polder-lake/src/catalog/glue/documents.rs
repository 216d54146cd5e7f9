//! What Glue keeps of a table and of a database, and what of it is Iceberg's.
//!
//! A table is found by its parameters `table_type` and `metadata_location`. Its columns are shown to
//! people (the console, Athena's list) in Hive's types; engines read them from the metadata file. The
//! names of parameters are those of Iceberg's own Glue catalog.

use std::collections::{BTreeMap, HashSet};

use iceberg::spec::{NestedField, PrimitiveType, SchemaRef, TableMetadata, Type};
use polder_core::{Error, ErrorCode, Result};
use serde_json::{Map, Value, json};

use crate::catalog::TableState;

/// The longest name of a table and of a database, in bytes (Athena's documentation, *Name databases,
/// tables, and columns*).
const TABLE_NAME_MAX: usize = 255;
const DATABASE_NAME_MAX: usize = 252;
/// The most a column holds (Glue's API reference, *Column*): bytes of name and comment, characters of
/// its type.
const COLUMN_TEXT_MAX: usize = 255;
const COLUMN_TYPE_MAX: usize = 131_072;
const DESCRIPTION_MAX: usize = 2_048;

const TABLE_TYPE: &str = "table_type";
const METADATA_LOCATION: &str = "metadata_location";
const PREVIOUS_METADATA_LOCATION: &str = "previous_metadata_location";
/// Iceberg's properties that have a place of their own in Glue.
const LOCATION: &str = "location";
const COMMENT: &str = "comment";

/// What a table or database has that an update has to repeat, or lose.
const TABLE_KEPT: [&str; 6] =
    ["Owner", "Description", "LastAccessTime", "LastAnalyzedTime", "Retention", "PartitionKeys"];
const DATABASE_KEPT: [&str; 4] =
    ["Description", "CreateTableDefaultPermissions", "TargetDatabase", "FederatedDatabase"];

type Document = Map<String, Value>;

/// A table as Glue has it.
#[derive(Debug)]
pub(super) struct Entry {
    document: Document,
    /// Moves with every update.
    pub(super) version: String,
    pub(super) metadata_location: String,
}

impl Entry {
    /// # Errors
    /// `lake.failed` for a table that is not Iceberg's.
    pub(super) fn new(document: Value) -> Result<Self> {
        let Value::Object(document) = document else { return Err(not_understood("a table")) };
        let name = text(&document, "Name").unwrap_or_default().to_owned();
        let location = iceberg_parameter(&document, METADATA_LOCATION).ok_or_else(|| {
            Error::new(ErrorCode::LakeFailed, format!("{name:?} in AWS Glue is no Iceberg table"))
                .hint("remove or rename that table or view, or give the lake's table another name")
        })?;
        let metadata_location = location.to_owned();
        let version = text(&document, "VersionId").ok_or_else(|| not_understood("a table"))?;
        Ok(Self { version: version.to_owned(), metadata_location, document })
    }
}

/// Whether a listed table is Iceberg's.
pub(super) fn is_iceberg(document: &Value) -> bool {
    document.as_object().is_some_and(|table| iceberg_parameter(table, METADATA_LOCATION).is_some())
}

/// A parameter of a table, if the table is Iceberg's.
fn iceberg_parameter<'a>(table: &'a Document, name: &str) -> Option<&'a str> {
    let parameters = table.get("Parameters")?.as_object()?;
    let kind = text(parameters, TABLE_TYPE)?;
    if kind.eq_ignore_ascii_case("iceberg") { text(parameters, name) } else { None }
}

fn text<'a>(document: &'a Document, name: &str) -> Option<&'a str> {
    document.get(name)?.as_str()
}

fn kept(document: &Document, names: &[&str]) -> Document {
    let found = names.iter().filter_map(|name| document.get_key_value(*name));
    let found = found.filter(|(_, value)| !value.is_null());
    found.map(|(name, value)| (name.clone(), value.clone())).collect()
}

pub(super) fn not_understood(what: &str) -> Error {
    Error::new(ErrorCode::LakeCorrupt, format!("what AWS Glue says of {what} cannot be understood"))
        .hint("check [catalog.glue] endpoint")
}

/// The table that `next` makes of what is there. What other engines keep with the table stays.
pub(super) fn table_input(name: &str, entry: Option<&Entry>, next: &TableState) -> Value {
    let nothing = Document::new();
    let before = entry.map_or(&nothing, |entry| &entry.document);
    let object = |name: &str| before.get(name).and_then(Value::as_object).cloned();
    let mut input = kept(before, &TABLE_KEPT);
    if let Some(comment) = next.metadata.properties().get(COMMENT) {
        input.insert("Description".to_owned(), json!(cut(comment, DESCRIPTION_MAX)));
    }
    let mut parameters = object("Parameters").unwrap_or_default();
    let mut set = |name: &str, value: &str| parameters.insert(name.to_owned(), json!(value));
    set(TABLE_TYPE, "ICEBERG");
    set(METADATA_LOCATION, &next.metadata_location);
    if let Some(entry) = entry {
        set(PREVIOUS_METADATA_LOCATION, &entry.metadata_location);
    }
    let mut storage = object("StorageDescriptor").unwrap_or_default();
    let comments = comments(&storage);
    storage.insert("Location".to_owned(), json!(next.metadata.location()));
    storage.insert("Columns".to_owned(), columns(&next.metadata, &comments));
    input.insert("Name".to_owned(), json!(name));
    input.insert("TableType".to_owned(), json!("EXTERNAL_TABLE"));
    input.insert("Parameters".to_owned(), Value::Object(parameters));
    input.insert("StorageDescriptor".to_owned(), Value::Object(storage));
    Value::Object(input)
}

/// The comments of columns, which may have been made in Glue.
fn comments(storage: &Document) -> BTreeMap<String, String> {
    let columns = storage.get("Columns").and_then(Value::as_array).into_iter().flatten();
    let comment = |column: &Value| {
        let column = column.as_object()?;
        Some((text(column, "Name")?.to_owned(), text(column, "Comment")?.to_owned()))
    };
    columns.filter_map(comment).collect()
}

/// The columns of the current schema, then those that only earlier ones have; each name once. What
/// Glue cannot hold is left out: nothing is read by them.
fn columns(metadata: &TableMetadata, comments: &BTreeMap<String, String>) -> Value {
    let current = metadata.current_schema();
    let mut earlier: Vec<_> = metadata.schemas_iter().collect();
    earlier.retain(|schema| schema.schema_id() != current.schema_id());
    earlier.sort_by_key(|schema| schema.schema_id());
    let mut names = HashSet::new();
    let mut columns = Vec::new();
    let fields = |schema: &SchemaRef| schema.as_struct().fields().to_vec();
    let now = fields(current).into_iter().map(|field| (field, true));
    let past = earlier.into_iter().flat_map(fields).map(|field| (field, false));
    for (field, is_current) in now.chain(past) {
        let kind = hive_type(&field.field_type);
        let fits = field.name.len() <= COLUMN_TEXT_MAX
            && kind.len() <= COLUMN_TYPE_MAX
            && !field.name.chars().chain(kind.chars()).any(char::is_control);
        // Glue and Athena compare names in lower case.
        if fits && names.insert(field.name.to_lowercase()) {
            columns.push(column(&field, &kind, is_current, comments.get(&field.name)));
        }
    }
    Value::Array(columns)
}

fn column(field: &NestedField, kind: &str, is_current: bool, known: Option<&String>) -> Value {
    let mut column = json!({
        "Name": field.name,
        "Type": kind,
        "Parameters": {
            "iceberg.field.id": field.id.to_string(),
            "iceberg.field.optional": (!field.required).to_string(),
            "iceberg.field.current": is_current.to_string(),
        },
    });
    if let Some(comment) = field.doc.as_ref().or(known) {
        let line: String = comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        column["Comment"] = json!(cut(&line, COLUMN_TEXT_MAX));
    }
    column
}

/// The beginning of a text, at a character's end.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Hive's name of the nearest type.
fn hive_type(iceberg: &Type) -> String {
    match iceberg {
        Type::Primitive(primitive) => match primitive {
            PrimitiveType::Boolean => "boolean".to_owned(),
            PrimitiveType::Int => "int".to_owned(),
            PrimitiveType::Long => "bigint".to_owned(),
            PrimitiveType::Float => "float".to_owned(),
            PrimitiveType::Double => "double".to_owned(),
            PrimitiveType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
            PrimitiveType::Date => "date".to_owned(),
            PrimitiveType::Timestamp
            | PrimitiveType::Timestamptz
            | PrimitiveType::TimestampNs
            | PrimitiveType::TimestamptzNs => "timestamp".to_owned(),
            PrimitiveType::Time | PrimitiveType::String | PrimitiveType::Uuid => {
                "string".to_owned()
            }
            PrimitiveType::Fixed(_) | PrimitiveType::Binary => "binary".to_owned(),
        },
        Type::Struct(members) => {
            let members = members.fields().iter();
            let members: Vec<String> = members
                .map(|member| format!("{}:{}", member.name, hive_type(&member.field_type)))
                .collect();
            format!("struct<{}>", members.join(","))
        }
        Type::List(list) => format!("array<{}>", hive_type(&list.element_field.field_type)),
        Type::Map(map) => {
            let (key, value) = (&map.key_field.field_type, &map.value_field.field_type);
            format!("map<{},{}>", hive_type(key), hive_type(value))
        }
    }
}

/// A database's properties, as Iceberg's namespaces have them.
pub(super) fn properties(database: &Value) -> BTreeMap<String, String> {
    let parameters = database.get("Parameters").and_then(Value::as_object).into_iter().flatten();
    let mut properties: BTreeMap<String, String> = parameters
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    for (name, field) in [(LOCATION, "LocationUri"), (COMMENT, "Description")] {
        let value = database.get(field).and_then(Value::as_str);
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            properties.insert(name.to_owned(), value.to_owned());
        }
    }
    properties
}

/// The database with these properties; whatever else it has stays.
pub(super) fn database_input(
    name: &str,
    database: Option<&Value>,
    properties: &BTreeMap<String, String>,
) -> Value {
    let before = database.and_then(Value::as_object);
    let mut input = before.map(|before| kept(before, &DATABASE_KEPT)).unwrap_or_default();
    let mut parameters = Document::new();
    for (key, value) in properties {
        let field = match key.as_str() {
            LOCATION => "LocationUri",
            COMMENT => "Description",
            _ => {
                parameters.insert(key.clone(), json!(value));
                continue;
            }
        };
        input.insert(field.to_owned(), json!(value));
    }
    input.insert("Name".to_owned(), json!(name));
    input.insert("Parameters".to_owned(), Value::Object(parameters));
    Value::Object(input)
}

/// Glue folds names to lower case, so that `Abc` and `abc` would be one table (and two orgs one
/// database); Athena and Iceberg's own Glue catalog take no other characters than these.
pub(super) fn is_name(name: &str, bytes_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(plain)
}

pub(super) fn is_table_name(name: &str) -> bool {
    is_name(name, TABLE_NAME_MAX)
}

pub(super) fn is_database_name(name: &str) -> bool {
    is_name(name, DATABASE_NAME_MAX)
}

/// # Errors
/// `spec.invalid` for a name that Glue would change, or that engines would not find there.
pub(super) fn check_table_name(name: &str) -> Result<()> {
    if is_table_name(name) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::SpecInvalid, format!("AWS Glue has no table by the name {name:?}"))
        .hint(format!(
            "name the table with at most {TABLE_NAME_MAX} lower-case letters (a-z), digits and '_'; \
             `name:` in the pipeline may differ from the source table's"
        )))
}

/// # Errors
/// `spec.invalid` as for tables.
pub(super) fn check_database_name(name: &str) -> Result<()> {
    if is_database_name(name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::SpecInvalid,
        format!("AWS Glue has no database by the name {name:?}"),
    )
    .hint("give the org an id of lower-case letters (a-z), digits and '_'"))
}
