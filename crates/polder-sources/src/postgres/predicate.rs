//! A [`Predicate`] as an SQL condition: what the server can leave out.
//!
//! The condition is true for every row the predicate is true for, and for as few others as can be
//! said without doubt. Left out is what PostgreSQL judges differently from the lake: texts by their
//! collation (they are compared by bytes here), padded texts, floats, and every type that the lake
//! has as its text only.

use std::collections::BTreeMap;

use polder_core::spec::OnUnrepresentable;
use polder_core::{CmpOp, Error, ErrorCode, Literal, Predicate, ReadRequest, Result};

use super::catalog::{ColumnType, Relation};
use super::columns::{ColumnRead, oid};
use super::connect::Session;
use super::cursor::{days_text, micros_text};
use super::names::{identifier, literal};

/// The most values of an `IN`.
const IN_MAX: usize = 10_000;

/// The condition for the request's predicate; `None` if the server can leave nothing out.
///
/// # Errors
/// `source.not_found` for a column that the table does not have.
pub(super) async fn condition(
    session: &Session,
    relation: &Relation,
    columns: &[ColumnRead],
    request: &ReadRequest,
) -> Result<Option<String>> {
    let predicate = &request.predicate;
    if *predicate == Predicate::True || columns.iter().any(is_altered) {
        return Ok(None);
    }
    for name in predicate.columns() {
        if !relation.columns.iter().any(|column| column.name == name) {
            let message = format!("there is no column {name:?}");
            return Err(Error::new(ErrorCode::SourceNotFound, message).detail(relation.display()));
        }
    }
    Judged::of(relation, columns, request).condition(session, predicate).await
}

/// The columns that conditions may speak of, by name, and their types.
#[derive(Clone, Debug, Default)]
pub(super) struct Judged(BTreeMap<String, ColumnType>);

impl Judged {
    /// None where a value is altered on its way: it is another one here. Nor is a column whose type the
    /// spec declares.
    pub(super) fn of(relation: &Relation, columns: &[ColumnRead], request: &ReadRequest) -> Self {
        if columns.iter().any(is_altered) {
            return Self::default();
        }
        let own = relation.columns.iter();
        let own = own.filter(|column| !request.types.contains_key(&column.name));
        Self(own.map(|column| (column.name.clone(), column.data_type.clone())).collect())
    }

    /// The condition for a predicate; `None` if the server can leave nothing out.
    pub(super) async fn condition(
        &self,
        session: &Session,
        predicate: &Predicate,
    ) -> Result<Option<String>> {
        let texts = predicate.columns().iter().any(|name| self.0.get(*name).is_some_and(is_text));
        let unicode = texts && {
            let sql = "SELECT pg_catalog.getdatabaseencoding()";
            let encoding = session.text(sql, "asking for the database's encoding").await?;
            encoding.as_deref() == Some("UTF8")
        };
        let type_of = |name: &str| self.0.get(name);
        Ok(Conditions { type_of: &type_of, unicode }.of(predicate, true))
    }
}

fn is_altered(column: &ColumnRead) -> bool {
    column.policy != OnUnrepresentable::Error
}

fn is_text(data_type: &ColumnType) -> bool {
    data_type.element.is_none() && matches!(data_type.oid, oid::TEXT | oid::VARCHAR)
}

struct Conditions<'a> {
    type_of: &'a dyn Fn(&str) -> Option<&'a ColumnType>,
    /// Whether the server's texts are UTF-8, as the lake's.
    unicode: bool,
}

impl Conditions<'_> {
    /// True wherever the predicate is `wanted`; `None` for what cannot be said.
    fn of(&self, predicate: &Predicate, wanted: bool) -> Option<String> {
        match (predicate, wanted) {
            (Predicate::True, true) => None,
            (Predicate::True, false) => Some("false".to_owned()),
            (Predicate::Not(inner), wanted) => self.of(inner, !wanted),
            (Predicate::And(a, b), true) | (Predicate::Or(a, b), false) => {
                match (self.of(a, wanted), self.of(b, wanted)) {
                    (Some(a), Some(b)) => Some(format!("({a} AND {b})")),
                    (one, other) => one.or(other),
                }
            }
            (Predicate::Or(a, b), true) | (Predicate::And(a, b), false) => {
                Some(format!("({} OR {})", self.of(a, wanted)?, self.of(b, wanted)?))
            }
            (Predicate::IsNull(column), true) | (Predicate::IsNotNull(column), false) => {
                self.scalar(column).map(|column| format!("{column} IS NULL"))
            }
            (Predicate::IsNotNull(column), true) | (Predicate::IsNull(column), false) => {
                self.scalar(column).map(|column| format!("{column} IS NOT NULL"))
            }
            (Predicate::Cmp { column, op, value }, wanted) => {
                self.compare(column, if wanted { *op } else { op.negated() }, value)
            }
            (Predicate::In { column, values }, wanted) => self.one_of(column, values, wanted),
            (Predicate::StartsWith { column, prefix }, wanted) => {
                let data_type = (self.type_of)(column).filter(|found| is_text(found))?;
                let prefix = self.value(data_type, &Literal::String(prefix.clone()))?;
                let not = if wanted { "" } else { "NOT " };
                Some(format!("{not}pg_catalog.starts_with({}, {prefix})", identifier(column)))
            }
        }
    }

    /// A column of a type whose values are null only as a whole.
    fn scalar(&self, column: &str) -> Option<String> {
        let data_type = (self.type_of)(column)?;
        let known = matches!(
            data_type.oid,
            oid::BOOL
                | oid::INT2
                | oid::INT4
                | oid::INT8
                | oid::FLOAT4
                | oid::FLOAT8
                | oid::NUMERIC
                | oid::TEXT
                | oid::VARCHAR
                | oid::BPCHAR
                | oid::BYTEA
                | oid::UUID
                | oid::DATE
                | oid::TIME
                | oid::TIMESTAMP
                | oid::TIMESTAMPTZ
                | oid::JSON
                | oid::JSONB
        );
        known.then(|| identifier(column))
    }

    fn compare(&self, column: &str, op: CmpOp, value: &Literal) -> Option<String> {
        let data_type = (self.type_of)(column)?;
        let value = self.value(data_type, value)?;
        // What is equal by bytes is equal in every collation, and found by an index.
        let bytewise = is_text(data_type) && op != CmpOp::Eq;
        let collate = if bytewise { " COLLATE \"C\"" } else { "" };
        let sign = match op {
            CmpOp::Eq => "=",
            CmpOp::NotEq => "<>",
            CmpOp::Lt => "<",
            CmpOp::LtEq => "<=",
            CmpOp::Gt => ">",
            CmpOp::GtEq => ">=",
        };
        Some(format!("{}{collate} {sign} {value}", identifier(column)))
    }

    fn one_of(&self, column: &str, values: &[Literal], wanted: bool) -> Option<String> {
        let data_type = (self.type_of)(column)?;
        if values.is_empty() || values.len() > IN_MAX {
            return None;
        }
        let values = values.iter().map(|value| self.value(data_type, value));
        let values = values.collect::<Option<Vec<_>>>()?.join(", ");
        let collate = if is_text(data_type) && !wanted { " COLLATE \"C\"" } else { "" };
        let not = if wanted { "" } else { "NOT " };
        Some(format!("{}{collate} {not}IN ({values})", identifier(column)))
    }

    /// A constant that compares with the column as the lake compares.
    fn value(&self, column: &ColumnType, value: &Literal) -> Option<String> {
        if column.element.is_some() {
            return None;
        }
        Some(match (column.oid, value) {
            (oid::BOOL, Literal::Boolean(value)) => value.to_string(),
            (oid::INT2 | oid::INT4 | oid::INT8, Literal::Int(value)) => format!("({value})"),
            (oid::INT2 | oid::INT4 | oid::INT8, Literal::Long(value)) => {
                format!("'{value}'::pg_catalog.int8")
            }
            (oid::NUMERIC, Literal::Decimal { unscaled, scale, .. }) => {
                format!("'{}'::pg_catalog.numeric", decimal_text(*unscaled, *scale))
            }
            (oid::DATE, Literal::Date(days)) => {
                format!("'{}'::pg_catalog.date", days_text(*days)?)
            }
            (oid::TIMESTAMP, Literal::Timestamp(micros)) => {
                format!("'{}'::pg_catalog.timestamp", micros_text(*micros)?)
            }
            (oid::TIMESTAMPTZ, Literal::Timestamptz(micros)) => {
                format!("'{}+00'::pg_catalog.timestamptz", micros_text(*micros)?)
            }
            (oid::UUID, Literal::Uuid(value)) => format!("'{value}'::pg_catalog.uuid"),
            (oid::TEXT | oid::VARCHAR, Literal::String(text))
                if self.unicode && !text.contains('\0') =>
            {
                literal(text)
            }
            _ => return None,
        })
    }
}

/// `unscaled` divided by ten to the power of `scale`, in digits.
pub(super) fn decimal_text(unscaled: i128, scale: u8) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(predicate: &Predicate, unicode: bool) -> Option<String> {
        let scalar = |oid| ColumnType { oid, modifier: -1, is_enum: false, element: None };
        let array = ColumnType { element: Some(Box::new(scalar(oid::INT4))), ..scalar(1007) };
        let types = [
            ("i", scalar(oid::INT4)),
            ("n", scalar(oid::NUMERIC)),
            ("t", scalar(oid::TEXT)),
            ("c", scalar(oid::BPCHAR)),
            ("f", scalar(oid::FLOAT8)),
            ("at", scalar(oid::TIMESTAMPTZ)),
            ("a", array),
        ];
        let type_of = |name: &str| types.iter().find(|(own, _)| *own == name).map(|(_, t)| t);
        Conditions { type_of: &type_of, unicode }.of(predicate, true)
    }

    fn cmp(column: &str, op: CmpOp, value: Literal) -> Predicate {
        Predicate::Cmp { column: column.to_owned(), op, value }
    }

    fn text(value: &str) -> Literal {
        Literal::String(value.to_owned())
    }

    #[test]
    fn what_is_exact_is_said() {
        let decimal = Literal::Decimal { unscaled: -5, precision: 9, scale: 2 };
        let cases = [
            (cmp("i", CmpOp::Gt, Literal::Int(-7)), "\"i\" > (-7)"),
            (
                cmp("i", CmpOp::Eq, Literal::Long(1 << 40)),
                "\"i\" = '1099511627776'::pg_catalog.int8",
            ),
            (cmp("n", CmpOp::Lt, decimal), "\"n\" < '-0.05'::pg_catalog.numeric"),
            (cmp("t", CmpOp::Eq, text("O'Neil")), "\"t\" = 'O''Neil'"),
            (cmp("t", CmpOp::Lt, text("a")), "\"t\" COLLATE \"C\" < 'a'"),
            (
                cmp("at", CmpOp::GtEq, Literal::Timestamptz(0)),
                "\"at\" >= '1970-01-01 00:00:00.000000+00'::pg_catalog.timestamptz",
            ),
            (Predicate::IsNull("c".to_owned()), "\"c\" IS NULL"),
            (
                Predicate::StartsWith { column: "t".to_owned(), prefix: "x".to_owned() },
                "pg_catalog.starts_with(\"t\", 'x')",
            ),
        ];
        for (predicate, expected) in cases {
            assert_eq!(said(&predicate, true).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_not_exact_is_left_to_the_engine() {
        let above = cmp("i", CmpOp::Gt, Literal::Int(1));
        let unsaid = [
            cmp("c", CmpOp::Eq, text("a")),
            cmp("f", CmpOp::Gt, Literal::Double(1.0)),
            cmp("a", CmpOp::Eq, Literal::Int(1)),
            cmp("at", CmpOp::Gt, Literal::Timestamptz(i64::MIN)),
            cmp("t", CmpOp::Eq, text("a\0")),
            Predicate::IsNull("a".to_owned()),
        ];
        for unsaid in unsaid {
            assert_eq!(said(&unsaid, true), None, "{unsaid:?}");
            let both = above.clone().and(unsaid.clone());
            assert_eq!(said(&both, true).as_deref(), Some("\"i\" > (1)"), "{unsaid:?}");
            let either = Predicate::Or(Box::new(above.clone()), Box::new(unsaid.clone()));
            assert_eq!(said(&either, true), None, "{unsaid:?}");
            // Not (a and b) is true where only b is false: nothing may be left out for a's sake.
            assert_eq!(said(&Predicate::Not(Box::new(both)), true), None, "{unsaid:?}");
        }
        assert_eq!(said(&cmp("t", CmpOp::Eq, text("a")), false), None, "other encodings");
    }

    #[test]
    fn negation_goes_to_the_comparison() {
        let equal = cmp("t", CmpOp::Eq, text("a"));
        let not = Predicate::Not(Box::new(equal));
        assert_eq!(said(&not, true).as_deref(), Some("\"t\" COLLATE \"C\" <> 'a'"));
        let values = vec![Literal::Int(1), Literal::Int(2)];
        let not_in = Predicate::Not(Box::new(Predicate::In { column: "i".to_owned(), values }));
        assert_eq!(said(&not_in, true).as_deref(), Some("\"i\" NOT IN ((1), (2))"));
    }

    #[test]
    fn decimals_have_all_their_digits() {
        assert_eq!(decimal_text(12345, 2), "123.45");
        assert_eq!(decimal_text(-5, 3), "-0.005");
        assert_eq!(decimal_text(7, 0), "7");
        assert_eq!(decimal_text(i128::MIN + 1, 38), "-1.70141183460469231731687303715884105727");
    }
}
