//! The filter and projection of one read, built as BSON values and never as text.

use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use polder_core::spec::Filter;
use polder_core::{CursorRange, CursorValue, Error, ErrorCode, OrgId, Result};
use serde_json::{Map, Value};

use crate::document::UNNAMED;

const ORG: &str = "{org}";

/// The spec's filter and the cursor's lower bound, both of which have to hold.
pub(super) fn filter(
    filter: Option<&Filter>,
    cursor: Option<&CursorRange>,
    org: &OrgId,
) -> Result<Document> {
    let spec = match filter {
        None => Document::new(),
        Some(Filter::Document(map)) => {
            let bound = bind_org(&Value::Object(map.clone()), org);
            match Bson::try_from(bound) {
                Ok(Bson::Document(document)) => document,
                Ok(_) => return Err(invalid("it is a wrapped value, not a filter")),
                Err(error) => return Err(invalid("it is not extended JSON").caused_by(error)),
            }
        }
        Some(Filter::Sql(_)) => {
            return Err(
                invalid("it is text").hint("write it as a map: `filter: { org: \"{org}\" }`")
            );
        }
    };
    let bound = cursor.and_then(|range| Some((range, range.lower.as_ref()?)));
    Ok(match bound {
        None => spec,
        Some((range, lower)) if spec.is_empty() => at_least(&range.column, lower),
        Some((range, lower)) => doc! { "$and": [spec, at_least(&range.column, lower)] },
    })
}

/// Replaces `{org}` in string values; names of fields and operators stay as they are written.
fn bind_org(value: &Value, org: &OrgId) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(ORG, org.as_str())),
        Value::Array(values) => values.iter().map(|value| bind_org(value, org)).collect(),
        Value::Object(map) => {
            let bound = map.iter().map(|(name, value)| (name.clone(), bind_org(value, org)));
            Value::Object(bound.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// The names MongoDB has for the types of values that are there, without null.
pub(super) const TYPES: [&str; 20] = [
    "minKey",
    "double",
    "string",
    "object",
    "array",
    "binData",
    "undefined",
    "objectId",
    "bool",
    "date",
    "regex",
    "dbPointer",
    "javascript",
    "symbol",
    "javascriptWithScope",
    "int",
    "timestamp",
    "long",
    "decimal",
    "maxKey",
];

/// The documents whose cursor is at or above the bound, and those whose cursor is of a type that
/// does not compare with it: MongoDB compares within one type and would pass them over for ever.
/// Whoever reads them sees that the column is no cursor.
fn at_least(column: &str, lower: &CursorValue) -> Document {
    // Dates have milliseconds: rounding down only reads a little more again.
    let date = |micros: i64| Bson::DateTime(DateTime::from_millis(micros.div_euclid(1000)));
    let at = |value: Bson| doc! { column: { "$gte": value } };
    let (mut any, compared): (Vec<Document>, &[&str]) = match lower {
        CursorValue::Int(value) => {
            (vec![at(Bson::Int64(*value))], &["int", "long", "double", "decimal"])
        }
        CursorValue::Date(days) => (vec![at(date(i64::from(*days) * 86_400_000_000))], &["date"]),
        CursorValue::Timestamp(micros) | CursorValue::Timestamptz(micros) => {
            (vec![at(date(*micros))], &["date"])
        }
        CursorValue::Text(text) => match ObjectId::parse_str(text) {
            // 24 hex digits are an ObjectId's text, but may be a string's too.
            Ok(id) => (vec![at(id.into()), at(text.into())], &["objectId", "string"]),
            Err(_) => (vec![at(text.into())], &["string"]),
        },
    };
    any.push(of_other_types(column, compared));
    doc! { "$or": any }
}

/// The documents with a value in the column that is of none of these types. An array always is one,
/// whatever it holds.
pub(super) fn of_other_types(column: &str, types: &[&str]) -> Document {
    let others: Vec<_> = TYPES.into_iter().filter(|name| !types.contains(name)).collect();
    doc! { column: { "$type": others } }
}

/// Whether a read can follow its cursor, as far as the spec tells.
pub(super) fn check_cursor(cursor: Option<&CursorRange>, columns: Option<&[String]>) -> Result<()> {
    let Some(CursorRange { column, .. }) = cursor else { return Ok(()) };
    if column.is_empty() || column.contains(['.', '$']) {
        let message = format!("{column:?} cannot be a cursor");
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("choose a member at the top of the documents, without dots in its name"));
    }
    if columns.is_some_and(|columns| !columns.contains(column)) {
        let message = format!("the cursor {column:?} is not among the columns");
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("add it to `columns`: its values say how far the table was read"));
    }
    Ok(())
}

/// The columns the server is asked for; `None` for all of them.
pub(super) fn projection(columns: Option<&[String]>) -> Option<Document> {
    let columns = columns?;
    // Such names mean paths and operators in a projection. Then everything is read, and what was
    // not asked for is left out here. A member without a name has another one there.
    let odd = |name: &String| name.contains(['.', '$']) || name.is_empty() || name == UNNAMED;
    if columns.is_empty() || columns.iter().any(odd) {
        return None;
    }
    let mut projection: Document =
        columns.iter().map(|name| (name.clone(), Bson::Int32(1))).collect();
    if !columns.iter().any(|name| name == "_id") {
        projection.insert("_id", 0);
    }
    Some(projection)
}

/// The collection, with `{org}` replaced. An org's id has no character that means anything in a name.
pub(super) fn collection(from: &str, org: &OrgId) -> Result<String> {
    let name = from.replace(ORG, org.as_str());
    if name.is_empty() || name.contains(['$', '\0']) {
        return Err(Error::new(ErrorCode::SpecInvalid, format!("{name:?} is not a collection")));
    }
    Ok(name)
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, "the table's filter is no MongoDB filter").detail(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org() -> OrgId {
        "401".parse().expect("org")
    }

    fn check(json: &str, lower: Option<CursorValue>, expected: &Document) {
        let Value::Object(map) = serde_json::from_str(json).expect("json") else {
            panic!("not a map")
        };
        let range = CursorRange { column: "at".into(), lower };
        let filter = filter(Some(&Filter::Document(map)), Some(&range), &org()).expect("filter");
        assert_eq!(filter, *expected);
    }

    #[test]
    fn the_org_is_bound_in_values_only() {
        check(r#"{"org": "{org}"}"#, None, &doc! { "org": "401" });
        check(r#"{"{org}": 1}"#, None, &doc! { "{org}": 1 });
        check(r#"{"o": {"$in": ["x-{org}"]}}"#, None, &doc! { "o": { "$in": ["x-401"] } });
        check(r#"{"o": {"$numberInt": "{org}"}}"#, None, &doc! { "o": 401 });
    }

    /// `any` of these, or a value of a type that does not compare with them.
    fn or_other(mut any: Vec<Document>, compared: &[&str]) -> Document {
        let others: Vec<_> = TYPES.into_iter().filter(|name| !compared.contains(name)).collect();
        any.push(doc! { "at": { "$type": others } });
        doc! { "$or": any }
    }

    #[test]
    fn bounds_have_the_type_of_the_stored_values() {
        let date = |millis| doc! { "at": { "$gte": DateTime::from_millis(millis) } };
        let expected = or_other(vec![date(-1)], &["date"]);
        check("{}", Some(CursorValue::Timestamptz(-1)), &expected);
        check("{}", Some(CursorValue::Timestamp(-1)), &expected);
        check("{}", Some(CursorValue::Date(1)), &or_other(vec![date(86_400_000)], &["date"]));
        let numbers = ["int", "long", "double", "decimal"];
        let seven = or_other(vec![doc! { "at": { "$gte": 7_i64 } }], &numbers);
        let both = doc! { "$and": [{ "org": "401" }, seven] };
        check(r#"{"org": "{org}"}"#, Some(CursorValue::Int(7)), &both);
        let text = or_other(vec![doc! { "at": { "$gte": "x" } }], &["string"]);
        check("{}", Some(CursorValue::Text("x".into())), &text);
        let hex = "0123456789abcdef01234567";
        let id = ObjectId::parse_str(hex).expect("id");
        let either = vec![doc! { "at": { "$gte": id } }, doc! { "at": { "$gte": hex } }];
        let either = or_other(either, &["objectId", "string"]);
        check("{}", Some(CursorValue::Text(hex.into())), &either);
    }

    #[test]
    fn cursors_are_members_at_the_top_that_are_read() {
        let cursor = |column: &str| CursorRange { column: column.into(), lower: None };
        let columns = ["a".to_owned()];
        assert!(check_cursor(Some(&cursor("a")), Some(&columns)).is_ok());
        for (column, columns) in [("b", Some(&columns[..])), ("a.b", None), ("$a", None)] {
            let error = check_cursor(Some(&cursor(column)), columns).expect_err(column);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
        }
    }

    #[test]
    fn sql_is_refused_and_projections_leave_the_id_out() {
        let error = filter(Some(&Filter::Sql("1=1".into())), None, &org()).expect_err("sql");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
        let columns = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(projection(Some(&columns(&["a"]))), Some(doc! { "a": 1, "_id": 0 }));
        assert_eq!(projection(Some(&columns(&["_id"]))), Some(doc! { "_id": 1 }));
        assert_eq!(projection(Some(&columns(&["a.b"]))), None);
        assert_eq!(projection(Some(&columns(&["_unnamed"]))), None);
    }
}
