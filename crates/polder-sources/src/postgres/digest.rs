//! Digests computed by the server, over one snapshot and one connection.
//!
//! Which rows are settled (ADR 0017): those whose cursor is below the checkpoint's, and those whose
//! version is older than every transaction of the database that was open when the last run took its
//! snapshot (`horizon::oldest_writer`). Newer ones of transactions that were over by then count as pending.

use std::collections::BTreeMap;

use async_trait::async_trait;
use polder_core::validation::PENDING_MAX;
use polder_core::{
    DigestRequest, Digests, Error, ErrorCode, RangeDigest, ReadRequest, Result, RowDigest,
    TableSchema, keys,
};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::catalog::{self, Identity, Kind, Relation, Tree};
use super::columns::{self, ColumnRead};
use super::connect::{Server, Session};
use super::cursor::Cursor;
use super::names::{TableName, identifier};
use super::plan;
use super::select::Select;
use super::transactions;
use super::versions;
use super::words::{self, Encoding};

const DOING: &str = "computing digests";
/// Half the numbers of transactions there are: of two 32-bit numbers within it, one is the older.
const HALF: u64 = 1 << 31;

/// Fixes a snapshot to be asked for digests; `None` where a column has no exact expression.
pub(super) async fn digests(
    server: &Server,
    request: &DigestRequest,
) -> Result<Option<Box<dyn Digests>>> {
    let read = &request.read;
    let name = TableName::parse(&read.from, &read.org)?;
    let filter = plan::filter_sql(read, &name)?;
    let session = server.session(name.database.as_deref(), read).await?;
    // No horizon is asked for.
    let plain = ReadRequest { cursor: None, ..read.clone() };
    let (relation, _) = plan::enter(&session, &name, &plain).await?;
    bounds(&session, request).await?;
    let columns = columns::choose(&relation, read)?;
    let tree = catalog::tree(&session, relation.oid).await?;
    let encoding = session.text("SELECT pg_catalog.getdatabaseencoding()", DOING).await?;
    let encoding = Encoding::of(&encoding.unwrap_or_default());
    let exact = words::has_words(&session, DOING).await?;
    let sent = exact.then(|| sent(encoding, &relation, &columns)).flatten();
    let Some(sent) = sent else {
        session.close().await;
        return Ok(None);
    };
    let cursor = read.cursor.as_ref().map(|range| Cursor::of(&relation, &range.column));
    let cursor = cursor.transpose()?;
    let settled = settled(&session, request, &relation, &tree, cursor.as_ref()).await?;
    let snapshot = session.text("SELECT pg_catalog.pg_current_snapshot()", DOING).await?;
    let meaning = versions::meaning(&session, &relation, &tree).await?;
    let select = Select::new(&relation, &columns, Vec::new(), &tree);
    Ok(Some(Box::new(PostgresDigests {
        identity: relation.identity(),
        from: select.from(),
        within: select.conditions().to_vec(),
        schema: TableSchema::new(columns.iter().map(|column| column.field.clone()).collect()),
        sent,
        key: Vec::new(),
        key_word: String::new(),
        row_word: String::new(),
        column_words: Vec::new(),
        filter,
        settled,
        snapshot,
        meaning,
        cursor_is_coarse: cursor.is_some_and(|cursor| cursor.is_coarse()),
        session,
    })))
}

/// How much of the server the statements may take, and for how long each.
async fn bounds(session: &Session, request: &DigestRequest) -> Result<()> {
    // Beside the process of the session itself.
    let workers = request.parallel.get() - 1;
    let ms = request.statement_timeout.map_or(0, |time| time.as_millis().max(1));
    let ms = ms.min(i32::MAX as u128);
    let sql = format!(
        "SET LOCAL max_parallel_workers_per_gather = {workers}; SET LOCAL statement_timeout = {ms}"
    );
    session.run(&sql, DOING).await
}

fn sent(encoding: Encoding, relation: &Relation, columns: &[ColumnRead]) -> Option<Vec<String>> {
    let sent = |column: &ColumnRead| {
        let found = relation.columns.iter().find(|found| found.name == column.field.name);
        let origin = found.map_or_else(transactions::data_type, |found| found.data_type.clone());
        encoding.sent(column, &origin)
    };
    columns.iter().map(sent).collect()
}

/// The condition that a row is settled; `None` if no row can be told so.
async fn settled(
    session: &Session,
    request: &DigestRequest,
    relation: &Relation,
    tree: &Tree,
    cursor: Option<&Cursor>,
) -> Result<Option<String>> {
    let mut ways = Vec::new();
    if let (Some(cursor), Some(bound)) = (cursor, &request.settled_below) {
        cursor.check_encoding(session).await?;
        ways.extend(cursor.below(bound).map(|below| format!("coalesce({below}, false)")));
    }
    let versions = matches!(relation.kind, Kind::Table | Kind::Partitioned);
    if let Some(oldest) = request.settled_at.as_deref().and_then(oldest_open)
        && versions
        && !tree.written_elsewhere
    {
        let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
        let next = session.text(sql, DOING).await?;
        let next: Option<u64> = next.and_then(|next| next.parse().ok());
        // Of another server, or so long ago that numbers were used again.
        if next.is_some_and(|next| (oldest..oldest + HALF).contains(&next)) {
            let base = oldest.saturating_sub(HALF);
            ways.push(format!(
                "((xmin::pg_catalog.text::pg_catalog.int8 - {base}) & 4294967295) + {base} < {oldest}"
            ));
        }
    }
    Ok((!ways.is_empty()).then(|| format!("({})", ways.join(" OR "))))
}

/// The oldest transaction of the database that was open at a plan's snapshot, `xmin:xmax:xip,…/oldest`.
fn oldest_open(snapshot: &str) -> Option<u64> {
    snapshot.rsplit_once('/')?.1.parse().ok()
}

struct PostgresDigests {
    session: Session,
    identity: Identity,
    /// What follows `FROM`.
    from: String,
    /// The tables that the snapshot's tree has.
    within: Vec<String>,
    schema: TableSchema,
    /// What the schema's columns are sent as.
    sent: Vec<String>,
    key: Vec<String>,
    key_word: String,
    row_word: String,
    column_words: Vec<String>,
    filter: Option<String>,
    settled: Option<String>,
    snapshot: Option<String>,
    /// What numbers of row versions mean here; `None` where versions do not tell.
    meaning: Option<String>,
    cursor_is_coarse: bool,
}

impl PostgresDigests {
    fn sql(&self, columns: &str, conditions: impl IntoIterator<Item = String>) -> String {
        let conditions: Vec<String> = self.within.iter().cloned().chain(conditions).collect();
        let conditions =
            if conditions.is_empty() { "true".into() } else { conditions.join(" AND ") };
        format!("SELECT {columns} FROM {} WHERE {conditions}", self.from)
    }

    /// The org's settled rows.
    fn rows_settled(&self) -> impl Iterator<Item = String> {
        self.filter.clone().into_iter().chain(self.settled.clone())
    }

    fn range(&self, bits: u32) -> String {
        let (shift, mask) = (64 - bits, (1_u64 << bits) - 1);
        format!("(({} >> {shift}) & {mask})", self.key_word)
    }

    async fn ask(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.identity.check(&self.session).await?;
        self.session.set_busy(true);
        let rows = self.session.query_once(sql, parameters, DOING).await;
        self.session.set_busy(false);
        rows
    }

    fn row_digest(&self, row: &Row) -> RowDigest {
        let values: Vec<Option<String>> = row.get(2);
        let values = values.into_iter().map(|value| Some(value.unwrap_or_else(|| "null".into())));
        let named = self.key.iter().map(String::as_str).zip(values);
        let word: u64 = row.get::<_, i64>(1) as u64;
        RowDigest {
            key: row.get::<_, i64>(0) as u64,
            name: keys::name(named).unwrap_or_else(|| format!("row {word:016x}")),
            row: word,
            columns: row.get::<_, Vec<i64>>(3).into_iter().map(|word| word as u64).collect(),
        }
    }
}

#[async_trait]
impl Digests for PostgresDigests {
    fn schema(&self) -> &TableSchema {
        &self.schema
    }

    fn compare(&mut self, columns: &TableSchema, key: &[String]) -> Result<()> {
        let sent = |name: &String| {
            let at = self.schema.fields.iter().position(|field| field.name == *name);
            at.map(|at| self.sent[at].clone()).ok_or_else(|| {
                let message = format!("column {name:?} is compared and is not there");
                Error::new(ErrorCode::Internal, message)
            })
        };
        let of_row = columns.fields.iter().map(|field| sent(&field.name));
        let of_row = of_row.collect::<Result<Vec<_>>>()?;
        let of_key = key.iter().map(sent).collect::<Result<Vec<_>>>()?;
        self.key_word = words::word(if of_key.is_empty() { &of_row } else { &of_key });
        self.row_word = words::word(&of_row);
        self.column_words = of_row.into_iter().map(|column| words::word(&[column])).collect();
        self.key = key.to_vec();
        Ok(())
    }

    fn snapshot(&self) -> Option<String> {
        self.snapshot.clone()
    }

    fn has_common_point(&self) -> bool {
        self.settled.is_some()
    }

    fn cursor_is_coarse(&self) -> bool {
        self.cursor_is_coarse
    }

    async fn state(&mut self) -> Result<Option<String>> {
        let Some(meaning) = self.meaning.clone() else { return Ok(None) };
        let sql = self.sql(versions::COLUMNS, self.filter.clone());
        let rows = self.ask(&sql, &[]).await?;
        let name = |row: &Row| {
            let (rows, sum, oldest): (i64, &str, i64) = (row.get(0), row.get(1), row.get(2));
            let known = oldest >= versions::FIRST_TRANSACTION;
            known.then(|| format!("{meaning} {rows} rows {sum}"))
        };
        Ok(rows.first().and_then(name))
    }

    async fn pending(&mut self) -> Result<Vec<u64>> {
        let Some(settled) = &self.settled else { return Ok(Vec::new()) };
        let conditions = self.filter.clone().into_iter().chain([format!("NOT {settled}")]);
        let sql = self.sql(&self.key_word, conditions);
        let rows = self.ask(&format!("{sql} LIMIT {}", PENDING_MAX + 1), &[]).await?;
        Ok(rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect())
    }

    async fn ranges(&mut self, bits: u32) -> Result<BTreeMap<u64, RangeDigest>> {
        let columns = format!(
            "{}, pg_catalog.count(*), pg_catalog.sum({})::pg_catalog.text",
            self.range(bits),
            self.row_word
        );
        let sql = self.sql(&columns, self.rows_settled());
        let rows = self.ask(&format!("{sql} GROUP BY 1"), &[]).await?;
        let range = |row: &Row| {
            let sum: Option<i128> = row.get::<_, &str>(2).parse().ok();
            let sum = sum.ok_or_else(|| {
                Error::new(ErrorCode::SourceMalformed, "the server's sum of digests is no integer")
            })?;
            // Signed words have the sum of unsigned ones, modulo 2⁶⁴.
            let found = RangeDigest { rows: row.get::<_, i64>(1) as u64, sum: sum as u64 };
            Ok((row.get::<_, i64>(0) as u64, found))
        };
        rows.iter().map(range).collect()
    }

    async fn rows(&mut self, bits: u32, ranges: &[u64], rows_max: usize) -> Result<Vec<RowDigest>> {
        let names: Vec<String> =
            self.key.iter().map(|name| format!("{}::pg_catalog.text", identifier(name))).collect();
        let columns = format!(
            "{}, {}, ARRAY[{}]::pg_catalog.text[], ARRAY[{}]::pg_catalog.int8[]",
            self.key_word,
            self.row_word,
            names.join(", "),
            self.column_words.join(", ")
        );
        let in_ranges = format!("{} = ANY ($1::pg_catalog.int8[])", self.range(bits));
        let sql = self.sql(&columns, self.rows_settled().chain([in_ranges]));
        let ranges: Vec<i64> = ranges.iter().map(|range| *range as i64).collect();
        let rows = self.ask(&format!("{sql} LIMIT {rows_max}"), &[&ranges]).await?;
        Ok(rows.iter().map(|row| self.row_digest(row)).collect())
    }

    async fn foreign(&mut self, keys: &[u64]) -> Result<Vec<u64>> {
        let Some(filter) = &self.filter else { return Ok(Vec::new()) };
        let of_others = format!("{filter} IS NOT TRUE");
        let wanted = format!("{} = ANY ($1::pg_catalog.int8[])", self.key_word);
        let conditions = [of_others, wanted].into_iter().chain(self.settled.clone());
        let sql = self.sql(&self.key_word, conditions);
        let keys: Vec<i64> = keys.iter().map(|key| *key as i64).collect();
        let rows = self.ask(&sql, &[&keys]).await?;
        Ok(rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_end_with_the_oldest_open_transaction() {
        assert_eq!(oldest_open("795:801:795,799/799"), Some(799));
        assert_eq!(oldest_open("795:801:795,799"), None);
        assert_eq!(oldest_open("memory"), None);
    }
}
