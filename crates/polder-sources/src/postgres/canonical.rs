//! SQL expressions of the canonical form that `polder_core::digest` gives values.
//!
//! Only what the server can say exactly as the lake has it: a column whose values may have been altered
//! on their way has no expression. Who asks for them is in `digest`.

use polder_core::LakeType;
use polder_core::spec::OnUnrepresentable;

use super::catalog::ColumnType;
use super::columns::{ColumnRead, has_odd_values, oid};
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

    /// The word of a form, as `int8`.
    pub(super) fn word(self, form: &str) -> String {
        let bytes = self.bytes(form);
        format!(
            "('x' || pg_catalog.substr(pg_catalog.md5({bytes}), 1, 16))::bit(64)::pg_catalog.int8"
        )
    }

    /// The form of a column, a text that is never null. `origin`: the column's type at the source.
    pub(super) fn form(self, column: &ColumnRead, origin: &ColumnType) -> Option<String> {
        let alters = matches!(column.policy, OnUnrepresentable::Null | OnUnrepresentable::Clamp);
        if alters && has_odd_values(&column.field.data_type) {
            return None;
        }
        let LakeType::List(element) = &column.field.data_type else {
            return self.scalar(&column.sql, &column.field.data_type, origin, column.written);
        };
        let of_element = origin.element.as_deref().unwrap_or(origin);
        let element = self.scalar("u.e", &element.data_type, of_element, column.written)?;
        let list = &column.sql;
        Some(format!(
            "'a' || coalesce(pg_catalog.cardinality({list})::pg_catalog.text || ':' || \
             (SELECT coalesce(pg_catalog.string_agg({element}, '' ORDER BY u.n), '') \
             FROM pg_catalog.unnest({list}) WITH ORDINALITY AS u(e, n)), '-')"
        ))
    }

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
                // Values of another scale are printed as they are, and are not the lake's.
                let rounded = format!("pg_catalog.round({value}, {scale})");
                let exact =
                    format!("CASE WHEN {value} = {rounded} THEN {rounded} ELSE {value} END");
                Some(format!("'n' || coalesce(({exact})::pg_catalog.text || ';', '-')"))
            }
            LakeType::String => {
                let padded = origin.oid == oid::BPCHAR && written.is_none();
                // A cast would drop the blanks at the end.
                let text = if padded {
                    format!("CASE WHEN {value} IS NOT NULL THEN pg_catalog.concat({value}) END")
                } else {
                    format!("{value}::pg_catalog.text")
                };
                let bytes = self.bytes(&format!("({text})"));
                let length = format!("pg_catalog.octet_length({bytes})::pg_catalog.text");
                Some(format!("'s' || coalesce({length} || ':' || ({text}), '-')"))
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
        let form = |data_type, policy| Encoding::Same.form(&column(data_type, policy), &origin);
        assert!(form(LakeType::Date, OnUnrepresentable::Clamp).is_none());
        assert!(form(LakeType::Date, OnUnrepresentable::Error).is_some());
        assert!(form(LakeType::Int, OnUnrepresentable::Null).is_some());
        let nested = LakeType::list_of(LakeType::list_of(LakeType::Int));
        assert!(form(nested, OnUnrepresentable::Error).is_none());
    }
}
