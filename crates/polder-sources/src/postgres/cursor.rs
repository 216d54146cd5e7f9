//! The cursor column: which types can be one, how values compare, and the bound of a read.
//!
//! What is particular to `cursor: xmin`, which is no column, is in `transactions`. How far a cursor may
//! move is decided in `horizon`.

use polder_core::{CursorValue, Error, ErrorCode, Result};

use super::catalog::{ColumnType, Kind, Relation, Tree};
use super::columns::{self, oid};
use super::connect::Session;
use super::names::{identifier, literal};
use super::transactions;

/// 0001-01-01: the first day a lake column holds.
const FIRST_DAY: i32 = -719_162;
const DAY: i64 = 86_400_000_000;

/// How a cursor column's values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Int,
    Date,
    Timestamp,
    Timestamptz,
    /// Byte by byte.
    Text,
    Uuid,
    /// The transaction that wrote the row.
    Transaction,
}

impl Comparison {
    pub(super) fn of_type(data_type: &ColumnType) -> Option<Self> {
        Some(match data_type.oid {
            oid::INT2 | oid::INT4 | oid::INT8 => Self::Int,
            oid::DATE => Self::Date,
            oid::TIMESTAMP => Self::Timestamp,
            oid::TIMESTAMPTZ => Self::Timestamptz,
            oid::TEXT | oid::VARCHAR => Self::Text,
            oid::UUID => Self::Uuid,
            _ => return None,
        })
    }
}

/// A column by which new and changed rows are found.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    name: String,
    pub(super) comparison: Comparison,
    /// What a time is rounded to, in microseconds; 0 for the type's own precision.
    pub(super) rounding: i64,
    /// Never null.
    required: bool,
}

impl Cursor {
    /// # Errors
    /// `source.not_found` for an unknown column, `spec.invalid` for one that cannot be a cursor.
    pub(super) fn of(relation: &Relation, name: &str) -> Result<Self> {
        if transactions::are_cursor(relation, name)? {
            let comparison = Comparison::Transaction;
            return Ok(Self { name: name.to_owned(), comparison, rounding: 0, required: true });
        }
        let column = columns::find(relation, name, "cursor")?;
        let comparison = Comparison::of_type(&column.data_type).ok_or_else(|| {
            let message = format!("column {name:?} cannot be a cursor");
            Error::new(ErrorCode::SpecInvalid, message)
                .detail(format!("{}: its type is {}", relation.display(), column.type_name))
                .hint("a cursor is a timestamp, a date, an integer, text or a uuid")
        })?;
        let rounding = match (comparison, column.data_type.modifier) {
            (Comparison::Timestamp | Comparison::Timestamptz, digits @ 0..=5) => {
                10_i64.pow(6 - digits as u32)
            }
            _ => 0,
        };
        Ok(Self { name: name.to_owned(), comparison, rounding, required: column.required })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether its values are times, which the server's clock bounds.
    pub(super) fn follows_clock(&self) -> bool {
        matches!(
            self.comparison,
            Comparison::Timestamptz | Comparison::Timestamp | Comparison::Date
        )
    }

    /// Whether it is the transactions that wrote the rows.
    pub(super) fn is_by_transaction(&self) -> bool {
        self.comparison == Comparison::Transaction
    }

    /// # Errors
    /// `spec.invalid` where rows come from foreign tables, whose servers have transactions of their own.
    pub(super) fn check_tree(&self, tree: &Tree) -> Result<()> {
        if self.is_by_transaction() && tree.foreign > 0 {
            return Err(transactions::refused("some of its rows are in foreign tables"));
        }
        Ok(())
    }

    /// Whether a row can easily change twice within one of the cursor's values.
    pub(super) fn is_coarse(&self) -> bool {
        self.comparison == Comparison::Date || self.rounding > 0
    }

    /// A bound with everything at or above it.
    pub(super) fn least(&self) -> CursorValue {
        match self.comparison {
            Comparison::Int | Comparison::Transaction => CursorValue::Int(i64::MIN),
            Comparison::Date => CursorValue::Date(FIRST_DAY),
            Comparison::Timestamp => CursorValue::Timestamp(i64::from(FIRST_DAY) * DAY),
            Comparison::Timestamptz => CursorValue::Timestamptz(i64::from(FIRST_DAY) * DAY),
            Comparison::Text => CursorValue::Text(String::new()),
            Comparison::Uuid => CursorValue::Text(uuid::Uuid::nil().to_string()),
        }
    }

    /// The condition of an incremental read; `None` when everything is read. Rows without a value
    /// are always read: nothing says that they came before the bound.
    ///
    /// # Errors
    /// `spec.invalid` when the checkpoint's value is of another kind than the column.
    pub(super) fn condition(&self, lower: Option<&CursorValue>) -> Result<Option<String>> {
        let Some(lower) = lower.filter(|lower| **lower != self.least()) else { return Ok(None) };
        let Some(bound) = self.bound(lower) else {
            let message = format!("the checkpoint does not belong to the cursor {:?}", self.name);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail("its value is of another kind than the column")
                .hint("run once with --full-refresh after changing the cursor"));
        };
        let bound = format!("{} >= {bound}", self.sql());
        let column = identifier(&self.name);
        Ok(Some(if self.required { bound } else { format!("({bound} OR {column} IS NULL)") }))
    }

    /// The condition that a row's value is below a bound; `None` if it is of another kind, or nothing
    /// is below it.
    pub(super) fn below(&self, bound: &CursorValue) -> Option<String> {
        let bound = Some(bound).filter(|bound| **bound != self.least())?;
        self.bound(bound).map(|bound| format!("{} < {bound}", self.sql()))
    }

    /// The column as it is compared.
    fn sql(&self) -> String {
        let column = identifier(&self.name);
        match self.comparison {
            Comparison::Text => format!("{column} COLLATE \"C\""),
            Comparison::Transaction => transactions::NUMBER.to_owned(),
            _ => column,
        }
    }

    fn bound(&self, lower: &CursorValue) -> Option<String> {
        match (self.comparison, lower) {
            (Comparison::Int | Comparison::Transaction, CursorValue::Int(value)) => {
                Some(format!("({value})"))
            }
            (Comparison::Date, CursorValue::Date(days)) => {
                days_text(*days).map(|text| format!("'{text}'::pg_catalog.date"))
            }
            (Comparison::Timestamp, CursorValue::Timestamp(micros)) => {
                micros_text(*micros).map(|text| format!("'{text}'::pg_catalog.timestamp"))
            }
            (Comparison::Timestamptz, CursorValue::Timestamptz(micros)) => {
                micros_text(*micros).map(|text| format!("'{text}+00'::pg_catalog.timestamptz"))
            }
            (Comparison::Text, CursorValue::Text(text)) => {
                (!text.contains('\0')).then(|| literal(text))
            }
            (Comparison::Uuid, CursorValue::Text(text)) => {
                let uuid = text.parse::<uuid::Uuid>().ok()?;
                Some(format!("'{uuid}'::pg_catalog.uuid"))
            }
            _ => None,
        }
    }

    /// The highest value there is now, from `lower` on, for cursors that do not follow the clock
    /// (see `horizon`). Reads one entry of an index on the column, or the whole table without one.
    pub(super) async fn highest(
        &self,
        session: &Session,
        relation: &Relation,
        lower: Option<&CursorValue>,
    ) -> Result<Option<CursorValue>> {
        // What others wrote has no order here (see `horizon`).
        let foreign = matches!(relation.kind, Kind::Foreign | Kind::Materialized);
        if foreign || self.follows_clock() || self.is_by_transaction() {
            return Ok(None);
        }
        let doing = "looking for the cursor's highest value";
        let column = identifier(&self.name);
        let from = lower.and_then(|lower| self.bound(lower));
        let from = from.map(|bound| format!(" AND {} >= {bound}", self.sql())).unwrap_or_default();
        // A bare name after ORDER BY would mean the text.
        let sql = format!(
            "SELECT {column}::pg_catalog.text FROM {} AS t WHERE {column} IS NOT NULL{from} \
             ORDER BY t.{} DESC LIMIT 1",
            relation.sql(),
            self.sql(),
        );
        // In a transaction for its settings' sake.
        session.begin().await?;
        let highest = session.text(&sql, doing).await?;
        session.run("COMMIT", doing).await?;
        Ok(highest.and_then(|text| match self.comparison {
            Comparison::Int => text.parse().ok().map(CursorValue::Int),
            _ => Some(CursorValue::Text(text)),
        }))
    }

    /// Makes sure that the server's order of texts by bytes is the lake's, which is that of UTF-8.
    ///
    /// # Errors
    /// `spec.invalid` in databases of other encodings.
    pub(super) async fn check_encoding(&self, session: &Session) -> Result<()> {
        if self.comparison != Comparison::Text {
            return Ok(());
        }
        let sql = "SELECT pg_catalog.getdatabaseencoding()";
        let encoding = session.text(sql, "asking for the database's encoding").await?;
        let encoding = encoding.unwrap_or_default();
        if matches!(&*encoding, "UTF8" | "SQL_ASCII" | "LATIN1") {
            return Ok(());
        }
        let message = format!("the text column {:?} cannot be a cursor here", self.name);
        Err(Error::new(ErrorCode::SpecInvalid, message)
            .detail(format!("in the database's encoding {encoding} texts have another order"))
            .hint("use a timestamp, an integer or a uuid as cursor, or mode: full_refresh"))
    }
}

pub(super) fn days_text(days: i32) -> Option<String> {
    let date = chrono::NaiveDate::from_epoch_days(days)?;
    in_range(chrono::Datelike::year(&date)).then(|| date.format("%Y-%m-%d").to_string())
}

pub(super) fn micros_text(micros: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(micros)?;
    in_range(chrono::Datelike::year(&time))
        .then(|| time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

fn in_range(year: i32) -> bool {
    (1..=9999).contains(&year)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn cursor(comparison: Comparison, rounding: i64) -> Cursor {
        Cursor { name: "c".to_owned(), comparison, rounding, required: false }
    }

    #[test]
    fn rows_without_a_value_are_above_every_bound_but_the_least() {
        let cursor = cursor(Comparison::Int, 0);
        let bound = cursor.condition(Some(&CursorValue::Int(-7))).expect("bound");
        assert_eq!(bound.as_deref(), Some("(\"c\" >= (-7) OR \"c\" IS NULL)"));
        let required = Cursor { required: true, ..cursor.clone() };
        let bound = required.condition(Some(&CursorValue::Int(-7))).expect("bound");
        assert_eq!(bound.as_deref(), Some("\"c\" >= (-7)"));
        for lower in [None, Some(&cursor.least())] {
            assert_eq!(cursor.condition(lower).expect("no bound"), None);
        }
    }
}
