//! SQL expressions of the words that `polder_core::digest` gives rows, and of what they are made of.
//!
//! Only what the server can say exactly as the lake has it: a column whose values may have been altered
//! on their way has no expression. Who asks for them is in `digest`.

use polder_core::digest::{self, LONG};
use polder_core::spec::OnUnrepresentable;
use polder_core::{LakeType, Result};

use super::catalog::ColumnType;
use super::columns::{ColumnRead, has_odd_values, oid};
use super::connect::Session;
use super::written::Written;

/// How texts are turned into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// The server's bytes are the lake's.
    Same,
    /// The lake has them in UTF-8.
    Converted,
}

impl Encoding {
    /// `name`: what `getdatabaseencoding()` says.
    pub(super) fn of(name: &str) -> Self {
        if matches!(name, "UTF8" | "SQL_ASCII") { Self::Same } else { Self::Converted }
    }

    fn bytes(self, text: &str) -> String {
        match self {
            Self::Same => text.to_owned(),
            Self::Converted => format!("pg_catalog.convert_to({text}, 'UTF8')"),
        }
    }

    /// What a column is sent as in a record: an expression of the type that the column's lake type has there.
    pub(super) fn sent(self, column: &ColumnRead, origin: &ColumnType) -> Option<String> {
        let data_type = &column.field.data_type;
        let alters = matches!(column.policy, OnUnrepresentable::Null | OnUnrepresentable::Clamp);
        if alters && has_odd_values(data_type) {
            return None;
        }
        let value = &column.sql;
        let to = match data_type {
            LakeType::Boolean => "bool",
            LakeType::Int => "int4",
            LakeType::Long => "int8",
            LakeType::Float => "float4",
            LakeType::Double => "float8",
            LakeType::Date => "date",
            LakeType::Time => "time",
            LakeType::Timestamp => "timestamp",
            LakeType::Timestamptz => "timestamptz",
            LakeType::Uuid => "uuid",
            LakeType::Decimal { scale, .. } => return Some(of_scale(value, *scale, origin)),
            LakeType::String => {
                let text = text(value, column.written.is_none(), origin);
                return Some(if has_few_bytes(origin) { text } else { self.short(&text) });
            }
            LakeType::Binary => {
                let md5 = format!("pg_catalog.convert_to(pg_catalog.md5({value}), 'UTF8')");
                return Some(format!(
                    "CASE WHEN pg_catalog.octet_length({value}) > {LONG} THEN {md5} ELSE {value} END"
                ));
            }
            LakeType::Struct(_) => {
                return self.scalar(value, data_type, origin, column.written);
            }
            LakeType::List(element) => {
                let of_element = origin.element.as_deref().unwrap_or(origin);
                let element = self.scalar("u.e", &element.data_type, of_element, column.written)?;
                return Some(self.short(&format!(
                    "('a' || coalesce(pg_catalog.cardinality({value})::pg_catalog.text || ':' || \
                     (SELECT coalesce(pg_catalog.string_agg({element}, '' ORDER BY u.n), '') \
                     FROM pg_catalog.unnest({value}) WITH ORDINALITY AS u(e, n)), '-'))"
                )));
            }
        };
        Some(format!("({value})::pg_catalog.{to}"))
    }

    /// The text, or the MD5 of a long one.
    fn short(self, text: &str) -> String {
        let bytes = self.bytes(text);
        format!(
            "CASE WHEN pg_catalog.octet_length({bytes}) > {LONG} THEN pg_catalog.md5({bytes}) \
             ELSE {text} END"
        )
    }

    /// A value within a list or struct in the canonical form, a text that is never null.
    fn scalar(
        self,
        value: &str,
        data_type: &LakeType,
        origin: &ColumnType,
        written: Option<Written>,
    ) -> Option<String> {
        let sent = |letter: char, send: &str| {
            let hex = format!("pg_catalog.encode(pg_catalog.{send}({value}), 'hex')");
            Some(format!("'{letter}' || coalesce({hex}, '-')"))
        };
        let cast = |letter: char, send: &str, to: &str| {
            let value = format!("({value})::pg_catalog.{to}");
            let hex = format!("pg_catalog.encode(pg_catalog.{send}({value}), 'hex')");
            Some(format!("'{letter}' || coalesce({hex}, '-')"))
        };
        match data_type {
            LakeType::Boolean => sent('o', "boolsend"),
            LakeType::Int => cast('i', "int4send", "int4"),
            LakeType::Long => cast('l', "int8send", "int8"),
            LakeType::Float => sent('f', "float4send"),
            LakeType::Double => cast('g', "float8send", "float8"),
            LakeType::Date => sent('d', "date_send"),
            LakeType::Time => sent('t', "time_send"),
            LakeType::Timestamp => sent('p', "timestamp_send"),
            LakeType::Timestamptz => sent('z', "timestamptz_send"),
            LakeType::Uuid => sent('u', "uuid_send"),
            LakeType::Decimal { scale, .. } => {
                let exact = of_scale(value, *scale, origin);
                Some(format!("'n' || coalesce(({exact})::pg_catalog.text || ';', '-')"))
            }
            LakeType::String => {
                let text = text(value, written.is_none(), origin);
                let length =
                    format!("pg_catalog.octet_length({})::pg_catalog.text", self.bytes(&text));
                Some(format!("'s' || coalesce({length} || ':' || {text}, '-')"))
            }
            LakeType::Binary => Some(format!(
                "'b' || coalesce(pg_catalog.octet_length({value})::pg_catalog.text || ':' || \
                 pg_catalog.md5({value}), '-')"
            )),
            // The only struct a PostgreSQL column becomes is an interval.
            LakeType::Struct(_) => {
                let hex = format!("pg_catalog.encode(pg_catalog.interval_send({value}), 'hex')");
                let part =
                    |from: u8, length: u8| format!("pg_catalog.substr({hex}, {from}, {length})");
                let (months, days, micros) = (part(25, 8), part(17, 8), part(1, 16));
                Some(format!(
                    "'r' || coalesce('i' || {months} || 'i' || {days} || 'l' || {micros}, '-')"
                ))
            }
            LakeType::List(_) => None,
        }
    }
}

/// The word of columns that are sent as `sent` says, as `int8`.
pub(super) fn word(sent: &[String]) -> String {
    let record = format!("pg_catalog.record_send(ROW({}))", sent.join(", "));
    format!(
        "pg_catalog.hashtextextended(pg_catalog.encode({record}, 'hex') COLLATE pg_catalog.\"C\", 0)"
    )
}

/// The first version that has `hashtextextended`.
const HASH_VERSION: u32 = 11;

/// Whether the server's hash is the one that words are: servers whose numbers are big-endian have another.
pub(super) async fn has_words(session: &Session, doing: &str) -> Result<bool> {
    if session.major < HASH_VERSION {
        return Ok(false);
    }
    // "polder" in hexadecimal digits.
    let sql = "SELECT pg_catalog.hashtextextended('706f6c646572' COLLATE pg_catalog.\"C\", 0)";
    let word = session.text(sql, doing).await?;
    Ok(word.and_then(|word| word.parse().ok()) == Some(digest::word(b"polder") as i64))
}

/// A decimal with as many decimals as the lake has; of another value as it is, which is not the lake's.
fn of_scale(value: &str, scale: u8, origin: &ColumnType) -> String {
    /// What `numerictypmodin` in PostgreSQL's `numeric.c` adds, and the bits of the scale.
    const HEADER: i32 = 4;
    const SCALE: i32 = 0x7ff;
    let typed = origin.oid == oid::NUMERIC && origin.modifier >= HEADER;
    if typed && (origin.modifier - HEADER) & SCALE == i32::from(scale) {
        return format!("({value})::pg_catalog.numeric");
    }
    let rounded = format!("pg_catalog.round({value}, {scale})");
    format!("CASE WHEN {value} = {rounded} THEN {rounded} ELSE {value} END")
}

/// The value as text. `as_is`: as the server has it, and not as Polder writes it.
fn text(value: &str, as_is: bool, origin: &ColumnType) -> String {
    if as_is && origin.oid == oid::BPCHAR {
        // A cast would drop the blanks at the end.
        format!("pg_catalog.textin(pg_catalog.bpcharout({value}))")
    } else {
        format!("({value})::pg_catalog.text")
    }
}

/// Whether the type keeps texts below [`LONG`] bytes: `varchar(n)` and `char(n)` for small `n`.
fn has_few_bytes(origin: &ColumnType) -> bool {
    let limited = matches!(origin.oid, oid::BPCHAR | oid::VARCHAR);
    limited && (1..10_000).contains(&origin.modifier)
}

#[cfg(test)]
mod tests {
    use polder_core::Field;

    use super::*;

    fn column(data_type: LakeType, policy: OnUnrepresentable) -> ColumnRead {
        ColumnRead {
            field: Field::new("c", data_type),
            sql: "\"c\"".to_owned(),
            written: None,
            type_name: String::new(),
            policy,
        }
    }

    #[test]
    fn columns_whose_values_may_be_altered_have_no_form() {
        let origin = ColumnType { oid: 0, modifier: -1, is_enum: false, element: None };
        let form = |data_type, policy| Encoding::Same.sent(&column(data_type, policy), &origin);
        assert!(form(LakeType::Date, OnUnrepresentable::Clamp).is_none());
        assert!(form(LakeType::Date, OnUnrepresentable::Error).is_some());
        assert!(form(LakeType::Int, OnUnrepresentable::Null).is_some());
        let nested = LakeType::list_of(LakeType::list_of(LakeType::Int));
        assert!(form(nested, OnUnrepresentable::Error).is_none());
    }
}
