//! `cursor: xmin`: rows are found by the number of the transaction that wrote them as they are, for tables
//! in which nothing else tells when a row was changed.
//!
//! The number is the server's own, whoever writes. It is no column of the source; the lake table has it as
//! one. No index knows it, so that every run scans the table.
//!
//! The argument: a snapshot shows all that transactions below its `xmin` have committed, as none of them
//! is under way any more; so the mark never passes that. A row that appears later was written by a
//! transaction at or above it, and keeps that number: subtransactions have higher ones than theirs, and
//! who freezes or moves a row, or locks it, does not change the number. Those of other databases write
//! none of the table's rows: what was the oldest of this database before the snapshot was taken bounds the
//! mark just as well (`horizon::oldest_writer`), and the higher of the two counts. The mark moves there even
//! where no row has so high a number: what was restored is of one transaction, and would be read again and
//! again. Neither privileges nor
//! a standby are in the way: a snapshot holds every transaction there is, prepared ones too.

use polder_core::spec::OnUnrepresentable;
use polder_core::{CursorValue, Error, ErrorCode, Field, LakeType, Result};

use super::catalog::{ColumnType, Kind, Relation};
use super::columns::{ColumnRead, oid};
use super::connect::Session;

/// The name, in the table spec and in the lake table.
pub(super) const XMIN: &str = "xmin";
/// `attnum` of the system column (PostgreSQL's `sysattr.h`).
const COLUMN: i32 = -2;
/// A transaction's number in 64 bits, of the 32 that a row has. It is the highest one below the end of
/// the read's snapshot that ends in these 32 bits, as every row that is seen was written before. So it is
/// never below the true one. Above it, by a multiple of 2³², is that of a row that was frozen before its
/// number was given out again: such a row is read once more. The numbers below 3 are of no transaction
/// (`transam.h`): rows of the server's beginning, and those frozen before version 9.4.
pub(super) const NUMBER: &str = "(CASE WHEN xmin::pg_catalog.text::pg_catalog.int8 < 3 \
     THEN xmin::pg_catalog.text::pg_catalog.int8 \
     ELSE (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())\
     ::pg_catalog.text::pg_catalog.int8 - 1) \
     - (((SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())\
     ::pg_catalog.text::pg_catalog.int8 - 1) \
     - xmin::pg_catalog.text::pg_catalog.int8) & 4294967295) END)";
const DOING: &str = "asking which server it is";

/// Whether the cursor of this name is the transactions. No column of a table can have the name; one of a
/// view can.
///
/// # Errors
/// `spec.invalid` for what is no table.
pub(super) fn are_cursor(relation: &Relation, name: &str) -> Result<bool> {
    if name != XMIN || relation.columns.iter().any(|column| column.name == name) {
        return Ok(false);
    }
    if matches!(relation.kind, Kind::Table | Kind::Partitioned) {
        return Ok(true);
    }
    Err(refused(&format!("{} is a {}", relation.display(), relation.kind.as_str())))
}

/// The error of a source table whose rows other systems number, or nobody.
pub(super) fn refused(detail: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, "cursor: xmin is for tables alone")
        .detail(detail)
        .hint("name a column that tells when a row was changed, or use mode: full_refresh")
}

/// The number as a column of the read.
pub(super) fn column() -> ColumnRead {
    ColumnRead {
        field: Field::new(XMIN, LakeType::Long).required().with_source_id(COLUMN),
        sql: NUMBER.to_owned(),
        written: None,
        type_name: "xid".to_owned(),
        policy: OnUnrepresentable::Error,
    }
}

/// The type of [`NUMBER`].
pub(super) fn data_type() -> ColumnType {
    ColumnType { oid: oid::INT8, modifier: -1, is_enum: false, element: None }
}

/// The server's own name, which its copies at the level of files share; `None` where the role may not ask.
pub(super) async fn server(session: &Session) -> Result<Option<String>> {
    let may =
        "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')";
    if session.text(may, DOING).await?.as_deref() != Some("t") {
        return Ok(None);
    }
    let sql = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
    session.text(sql, DOING).await
}

/// A state of the source: `server@xmin:xmax:xip,…/oldest`.
pub(super) struct State {
    pub(super) server: Option<String>,
    /// `pg_current_snapshot()`.
    pub(super) snapshot: String,
    /// What `horizon::oldest_writer` said before.
    pub(super) oldest: String,
}

impl State {
    /// Its name.
    pub(super) fn name(&self) -> String {
        let Self { server, snapshot, oldest } = self;
        match server {
            Some(server) => format!("{server}@{snapshot}/{oldest}"),
            None => format!("{snapshot}/{oldest}"),
        }
    }

    /// How far the mark may move. `lower` and `known`: the mark as it is, and the state it comes from.
    ///
    /// # Errors
    /// `spec.invalid` where the mark counts another server's transactions.
    pub(super) fn ceiling(
        &self,
        lower: Option<&CursorValue>,
        known: Option<&str>,
    ) -> Result<CursorValue> {
        let mut bounds = self.snapshot.split(':').map(str::parse::<i64>);
        let (Some(Ok(xmin)), Some(Ok(xmax))) = (bounds.next(), bounds.next()) else {
            let message = "the server's snapshot cannot be read";
            return Err(Error::new(ErrorCode::SourceMalformed, message).detail(&*self.snapshot));
        };
        let before = known.and_then(|known| known.split_once('@')).map(|(server, _)| server);
        let moved = before.zip(self.server.as_deref()).is_some_and(|(before, now)| before != now);
        if moved || matches!(lower, Some(CursorValue::Int(lower)) if *lower > xmax) {
            let message = "the checkpoint counts the transactions of another server";
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail("the source was moved, or taken back to an earlier state")
                .hint("run once with --full-refresh"));
        }
        let oldest = self.oldest.parse().unwrap_or(xmin);
        Ok(CursorValue::Int(xmin.max(oldest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(snapshot: &str, oldest: &str) -> State {
        let server = Some("7".to_owned());
        State { server, snapshot: snapshot.to_owned(), oldest: oldest.to_owned() }
    }

    #[test]
    fn the_mark_stays_below_what_is_under_way() {
        let cases = [
            ("795:795:", "795", 795),
            ("795:801:795,799", "795", 795),
            // Those below are of other databases.
            ("795:801:795,799", "799", 799),
            // One of ours was there at the look, and over at the snapshot.
            ("801:801:", "795", 801),
            ("4294967300:4294967310:4294967300", "4294967305", 4_294_967_305),
        ];
        for (snapshot, oldest, expected) in cases {
            let found = state(snapshot, oldest).ceiling(None, None).expect("ceiling");
            assert_eq!(found, CursorValue::Int(expected), "{snapshot}/{oldest}");
        }
        let odd = state("1", "1").ceiling(None, None).expect_err("no end");
        assert_eq!(odd.code(), ErrorCode::SourceMalformed);
    }

    #[test]
    fn a_mark_of_another_server_is_refused() {
        let now = state("795:801:795", "795");
        assert_eq!(now.name(), "7@795:801:795/795");
        let mark = CursorValue::Int(700);
        for known in [None, Some("690:700:690/690"), Some("7@690:700:690/690")] {
            assert!(now.ceiling(Some(&mark), known).is_ok(), "{known:?}");
        }
        let moved = now.ceiling(Some(&mark), Some("8@690:700:690/690")).expect_err("another");
        assert_eq!(moved.code(), ErrorCode::SpecInvalid);
        assert!(moved.hint_text().expect("hint").contains("--full-refresh"));
        let back = now.ceiling(Some(&CursorValue::Int(802)), None).expect_err("taken back");
        assert_eq!(back.code(), ErrorCode::SpecInvalid);
        let unnamed = State { server: None, ..now };
        assert_eq!(unnamed.name(), "795:801:795/795");
        assert!(unnamed.ceiling(Some(&mark), Some("8@1:2:/1")).is_ok());
    }
}
