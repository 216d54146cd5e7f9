//! What `pg_catalog` has to say of the lake: the tables that a query of the same session lists. So it can
//! show nothing that the session could not read.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::DataType;
use futures::TryStreamExt;
use polder_core::{Engine, Error, ErrorCode, Principal, Result, Session};
use polder_query::postgres::{Column, Listed};

use super::types::Kind;

const COLUMNS: &str = "SELECT table_schema, table_name, column_name, data_type, is_nullable \
                       FROM information_schema.columns \
                       WHERE table_schema <> 'information_schema' \
                       ORDER BY table_schema, table_name, ordinal_position";

/// The namespace in which the engine looks bare names up for somebody, if there is one.
pub(super) fn default_schema(principal: &Principal) -> Option<String> {
    match principal {
        Principal::Org(org) => Some(org.namespace()),
        Principal::Member { orgs, .. } => match orgs.as_slice() {
            [org] => Some(org.namespace()),
            _ => None,
        },
        _ => None,
    }
}

/// The tables of a session, with their columns.
///
/// # Errors
/// As a query of `information_schema`.
pub(super) async fn tables(engine: &dyn Engine, session: &Session) -> Result<Arc<Vec<Listed>>> {
    let session = Session { rows_max: None, ..session.clone() };
    let mut found = engine.query(COLUMNS, &session).await?;
    let mut tables: Vec<Listed> = Vec::new();
    while let Some(batch) = found.batches.try_next().await? {
        take(&batch, &mut tables)?;
    }
    Ok(Arc::new(tables))
}

fn take(batch: &RecordBatch, tables: &mut Vec<Listed>) -> Result<()> {
    let texts: Vec<_> = batch.columns().iter().filter_map(AsArray::as_string_opt::<i32>).collect();
    let [schemas, names, columns, types, nullable] = texts[..] else {
        let message = "information_schema.columns is not what it should be";
        return Err(Error::new(ErrorCode::Internal, message));
    };
    for at in 0..batch.num_rows() {
        let (schema, name) = (schemas.value(at), names.value(at));
        let is_same = |last: &&mut Listed| last.schema == schema && last.name == name;
        let column = column(columns.value(at), types.value(at), nullable.value(at) == "YES");
        if let Some(last) = tables.last_mut().filter(is_same) {
            last.columns.push(column);
            continue;
        }
        let (schema, name) = (schema.to_owned(), name.to_owned());
        tables.push(Listed { schema, name, columns: vec![column] });
    }
    Ok(())
}

fn column(name: &str, data_type: &str, nullable: bool) -> Column {
    // The engine writes types so that they are read back, but for what fields say besides. One that is
    // not is JSON on the wire too.
    let kind = match without_metadata(data_type).parse::<DataType>() {
        Ok(known) => Kind::of(&known),
        Err(_) => Kind::of(&DataType::Struct(arrow::datatypes::Fields::empty())),
    };
    let (oid, length, modifier) = (kind.oid, kind.length, kind.modifier);
    Column { name: name.to_owned(), nullable, oid, length, modifier }
}

/// A type's text without the metadata of its fields: `List(Int64, metadata: {"a": "b"})`.
fn without_metadata(data_type: &str) -> String {
    const BEGIN: &str = ", metadata: {";
    let (mut plain, mut rest) = (String::with_capacity(data_type.len()), data_type);
    while let Some((before, after)) = rest.split_once(BEGIN) {
        plain.push_str(before);
        let (mut quoted, mut escaped) = (false, false);
        let end = after.find(|letter| {
            let ends = letter == '}' && !quoted;
            quoted ^= letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        });
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, TimeUnit};

    use super::*;

    #[test]
    fn types_are_read_back_as_they_were_written() {
        let list = |of| {
            let metadata = [
                ("PARQUET:field_id".to_owned(), "7".to_owned()),
                ("a".to_owned(), "\"}".to_owned()),
            ];
            let field = Field::new("element", of, true).with_metadata(metadata.into());
            DataType::List(Arc::new(field))
        };
        let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
        let point = DataType::Struct(vec![Field::new("x", DataType::Int32, true)].into());
        for data_type in [
            DataType::Boolean,
            DataType::Int32,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal128(12, 2),
            DataType::Utf8,
            DataType::Binary,
            DataType::FixedSizeBinary(16),
            DataType::Date32,
            DataType::Time64(TimeUnit::Microsecond),
            DataType::Timestamp(TimeUnit::Microsecond, None),
            zoned.clone(),
            list(DataType::Int64),
            list(zoned),
            point.clone(),
            list(point),
        ] {
            let (kind, text) = (Kind::of(&data_type), data_type.to_string());
            let column = column("c", &text, true);
            assert_eq!((column.oid, column.modifier), (kind.oid, kind.modifier), "{text}");
        }
    }
}
