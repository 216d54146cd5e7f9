//! A name for the row versions that a statement sees: another one as soon as any of them is another (ADR 0028).
//!
//! A version is known by its table, its place in it and the transaction that wrote it, and never changes. So
//! the same set of those is the same rows, with the same values, as long as these numbers mean the same: on one
//! server since its start, in one file of each table, within half of the numbers of transactions, and with the
//! same columns and labels of enumerations.

use polder_core::Result;

use super::catalog::{Kind, Relation, Tree};
use super::connect::Session;

const DOING: &str = "naming the state of a table";
/// The first version whose hash of a place takes a seed.
const HASH_VERSION: u32 = 14;
/// Transactions before this number are none (`FirstNormalTransactionId`): versions of a server that was upgraded
/// from one before 9.4 may have lost their own.
pub(super) const FIRST_TRANSACTION: i64 = 3;
/// How many rows there are, the sum of a hash of each version, and the least transaction.
pub(super) const COLUMNS: &str = "pg_catalog.count(*), coalesce(pg_catalog.sum(pg_catalog.hashtidextended(ctid, \
     (tableoid::pg_catalog.int8 << 32) | xmin::pg_catalog.text::pg_catalog.int8)), 0)::pg_catalog.text, \
     coalesce(pg_catalog.min(xmin::pg_catalog.text::pg_catalog.int8), 3)";

/// What the numbers of the table's row versions mean, in a word; `None` where versions do not tell: in views
/// and foreign tables, where others write, in tables that are no heaps, where a column is computed as it is
/// read, and where what a value is read as is not in the row alone (`regclass`, `money`, composite types).
///
/// The filter may be any: what is named is which rows it lets pass.
pub(super) async fn meaning(
    session: &Session,
    relation: &Relation,
    tree: &Tree,
) -> Result<Option<String>> {
    let versions = matches!(relation.kind, Kind::Table | Kind::Partitioned);
    if !versions || tree.written_elsewhere || session.major < HASH_VERSION {
        return Ok(None);
    }
    let oids = tree.oids.iter().chain([&relation.oid]).map(ToString::to_string);
    let oids = format!("ANY ('{{{}}}'::pg_catalog.oid[])", oids.collect::<Vec<_>>().join(","));
    // 2 is the heap (`HEAP_TABLE_AM_OID`), 'v' a column that is computed as it is read.
    let sql = format!(
        "SELECT pg_catalog.md5(pg_catalog.concat_ws('|', pg_catalog.pg_postmaster_start_time(),
             pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8
                 / 2147483648,
             (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', c.oid,
                     pg_catalog.pg_relation_filenode(c.oid)), ',' ORDER BY c.oid)
                 FROM pg_catalog.pg_class c WHERE c.oid = {oids}),
             (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', a.attrelid, a.attnum, a.xmin), ','
                     ORDER BY a.attrelid, a.attnum)
                 FROM pg_catalog.pg_attribute a WHERE a.attrelid = {oids}),
             (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', e.oid, e.xmin), ',' ORDER BY e.oid)
                 FROM pg_catalog.pg_enum e)))
         WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class c
                 WHERE c.oid = {oids} AND c.relkind = 'r' AND c.relam <> 2)
             AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid = {oids} AND a.attgenerated = 'v')
             AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                 JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                 JOIN pg_catalog.pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
                 LEFT JOIN pg_catalog.pg_type e ON e.oid = b.typelem
                 WHERE a.attrelid = {oids} AND a.attnum > 0 AND NOT a.attisdropped
                     AND (b.typtype = 'c' OR e.typtype = 'c'
                         OR (b.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
                             AND b.typname::pg_catalog.text ~ '^_?(reg|money|aclitem)')))"
    );
    session.text(&sql, DOING).await
}
