//! What the server's catalog says about tables and their columns.
//!
//! What the lake makes of a PostgreSQL type is decided in `columns`.

use std::collections::HashMap;

use polder_core::{Error, ErrorCode, Result};
use tokio_postgres::Row;

use super::connect::Session;
use super::names::{TableName, display, identifier};

/// A table, view or the like.
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Whether tables inherit from it, which may allow nulls that it does not.
    has_heirs: bool,
    /// Whether partitions of it are foreign tables, where nobody enforces its NOT NULL.
    pub(super) has_foreign: bool,
    /// Whether row-level security hides rows from the role that reads.
    pub(super) row_security: bool,
    pub(super) rows: Option<u64>,
    pub(super) columns: Vec<Column>,
}

impl Relation {
    /// `"schema"."table"`, for SQL.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// The name as `from:` takes it.
    pub(super) fn display(&self) -> String {
        display(&self.schema, &self.name)
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { oid: self.oid, sql: self.sql(), display: self.display() }
    }
}

/// A table that is still to be the one of this name later.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    oid: u32,
    sql: String,
    /// Its name, for messages.
    pub(super) display: String,
}

impl Identity {
    /// Makes sure that the name still means the table, in whatever transaction: renaming a schema
    /// waits for no lock on its tables.
    ///
    /// # Errors
    /// `source.unavailable` if it does not.
    pub(super) async fn check(&self, session: &Session) -> Result<()> {
        let name = super::names::literal(&self.sql);
        let sql = format!("SELECT pg_catalog.to_regclass({name})::pg_catalog.oid");
        if session.text(&sql, DOING).await? == Some(self.oid.to_string()) {
            return Ok(());
        }
        let message = format!("{} was replaced by another table meanwhile", self.display);
        Err(Error::new(ErrorCode::SourceUnavailable, message).hint("try again"))
    }
}

/// Makes sure that the tables this transaction has locked are the ones its snapshot shows. A role
/// that may not lock has them locked by its first statement, after the snapshot; a TRUNCATE in
/// between would leave the snapshot with an empty table (PostgreSQL manual 13.6).
///
/// # Errors
/// `source.unavailable` if one was rewritten in between.
pub(super) async fn not_rewritten(session: &Session) -> Result<()> {
    // `relfilenode` is the snapshot's, the function's answer the present one. Tables of the
    // catalog that are 0 here (mapped) matter to nobody.
    let sql = "
        SELECT pg_catalog.min(c.relname::text)
        FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
        WHERE l.locktype = 'relation' AND l.pid = pg_catalog.pg_backend_pid()
          AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
                            WHERE d.datname = pg_catalog.current_database())
          AND c.relkind IN ('r', 'm') AND c.relfilenode <> 0
          AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)";
    let Some(table) = session.text(sql, DOING).await? else { return Ok(()) };
    let message = format!("table {table:?} was truncated or rewritten while the read began");
    Err(Error::new(ErrorCode::SourceUnavailable, message).hint("try again"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    Partitioned,
    View,
    Materialized,
    Foreign,
}

impl Kind {
    fn of(relkind: &str) -> Option<Self> {
        Some(match relkind {
            "r" => Self::Table,
            "p" => Self::Partitioned,
            "v" => Self::View,
            "m" => Self::Materialized,
            "f" => Self::Foreign,
            _ => return None,
        })
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Partitioned => "partitioned table",
            Self::View => "view",
            Self::Materialized => "materialized view",
            Self::Foreign => "foreign table",
        }
    }

    /// Whether its rows have a `ctid` that stays within one snapshot.
    pub(super) const fn has_blocks(self) -> bool {
        matches!(self, Self::Table | Self::Partitioned | Self::Materialized)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// `attnum`: never changes and is never used again.
    pub(super) number: i16,
    /// Never null, in any row that can be read.
    pub(super) required: bool,
    pub(super) data_type: ColumnType,
    /// As PostgreSQL writes the type, for messages.
    pub(super) type_name: String,
    /// Numbered by the server: identity or a sequence's default.
    pub(super) sequential: bool,
    /// The first column of an index.
    pub(super) indexed: bool,
}

/// A column's type below all domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnType {
    pub(super) oid: u32,
    /// `atttypmod`: what stands in parentheses, in a way of each type's own; −1 for nothing.
    pub(super) modifier: i32,
    pub(super) is_enum: bool,
    /// The element's type, if it is an array.
    pub(super) element: Option<Box<ColumnType>>,
}

const DOING: &str = "reading the catalog";

/// Which relations to look up.
enum Which<'a> {
    Named(&'a TableName),
    /// Everything of the database's own that can be read from, without partitions.
    All,
}

/// Finds a table by name.
///
/// # Errors
/// `source.not_found`, with the names that come nearest.
pub(super) async fn find(session: &Session, name: &TableName) -> Result<Relation> {
    let found = relations(session, &Which::Named(name)).await?.pop();
    match found {
        Some(relation) => Ok(relation),
        None => Err(not_found(session, name).await),
    }
}

/// Everything `discover` shows.
pub(super) async fn all(session: &Session) -> Result<Vec<Relation>> {
    relations(session, &Which::All).await
}

const RELATIONS: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relhassubclass,
           row_security_active(c.oid), c.reltuples::float8,
           c.relkind = 'p' AND EXISTS (
               SELECT 1 FROM pg_catalog.pg_partition_tree(c.oid) part
               JOIN pg_catalog.pg_class leaf ON leaf.oid = part.relid WHERE leaf.relkind = 'f')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')";

async fn relations(session: &Session, which: &Which<'_>) -> Result<Vec<Relation>> {
    let rows = match which {
        // Compared as text: as a `name` a parameter would be cut after 63 bytes, and might be the
        // name of another table then.
        Which::Named(name) => {
            let sql = format!("{RELATIONS} AND n.nspname = $1::text AND c.relname = $2::text");
            session.query(&sql, &[&name.schema, &name.table], DOING).await?
        }
        Which::All => {
            let sql = format!(
                "{RELATIONS} AND NOT c.relispartition AND n.nspname <> 'information_schema'
                   AND n.nspname !~ '^pg_' AND has_schema_privilege(n.oid, 'USAGE')
                   AND has_any_column_privilege(c.oid, 'SELECT')
                 ORDER BY n.nspname, c.relname"
            );
            session.query(&sql, &[], DOING).await?
        }
    };
    let mut relations: Vec<Relation> = rows.iter().filter_map(relation).collect();
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let mut columns = columns(session, &oids).await?;
    for relation in &mut relations {
        relation.columns = columns.remove(&relation.oid).unwrap_or_default();
        // Views and foreign tables promise nothing about nulls.
        let promises = match relation.kind {
            Kind::Table => !relation.has_heirs,
            Kind::Partitioned => !relation.has_foreign,
            Kind::View | Kind::Materialized | Kind::Foreign => false,
        };
        for column in &mut relation.columns {
            column.required &= promises;
        }
    }
    Ok(relations)
}

fn relation(row: &Row) -> Option<Relation> {
    let rows: f64 = row.get(6);
    Some(Relation {
        oid: row.get(0),
        schema: row.get(1),
        name: row.get(2),
        kind: Kind::of(row.get(3))?,
        has_heirs: row.get(4),
        has_foreign: row.get(7),
        row_security: row.get(5),
        // −1 before the first ANALYZE.
        rows: (rows >= 0.0).then_some(rows as u64),
        columns: Vec::new(),
    })
}

async fn columns(session: &Session, relations: &[u32]) -> Result<HashMap<u32, Vec<Column>>> {
    let types = Types::load(session, relations).await?;
    let rows = session
        .query(
            "SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod,
                pg_catalog.format_type(a.atttypid, a.atttypmod),
                a.attnotnull AND NOT EXISTS (
                    SELECT 1 FROM pg_catalog.pg_constraint k
                    WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND NOT k.convalidated
                      AND a.attnum = ANY (k.conkey)),
                a.attidentity <> '' OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%',
                EXISTS (
                    SELECT 1 FROM pg_catalog.pg_index i
                    WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indisvalid)
         FROM pg_catalog.pg_attribute a
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attrelid, a.attnum",
            &[&relations],
            DOING,
        )
        .await?;
    let mut columns: HashMap<u32, Vec<Column>> = HashMap::new();
    for row in &rows {
        columns.entry(row.get(0)).or_default().push(Column {
            number: row.get(1),
            name: row.get(2),
            data_type: types.resolve(row.get(3), row.get(4)),
            type_name: row.get(5),
            required: row.get(6),
            sequential: row.get::<_, Option<bool>>(7).unwrap_or(false),
            indexed: row.get(8),
        });
    }
    Ok(columns)
}

/// The types some tables use, down to the ones they are made of.
struct Types(HashMap<u32, TypeEntry>);

struct TypeEntry {
    kind: String,
    base: u32,
    base_modifier: i32,
    element: u32,
}

impl Types {
    async fn load(session: &Session, relations: &[u32]) -> Result<Self> {
        let rows = session
            .query(
                "WITH RECURSIVE used AS (
                 SELECT DISTINCT atttypid AS oid FROM pg_catalog.pg_attribute
                 WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped
                 UNION
                 SELECT inner_type.oid
                 FROM used JOIN pg_catalog.pg_type t ON t.oid = used.oid
                 JOIN pg_catalog.pg_type inner_type ON inner_type.oid = t.typbasetype
                   OR (inner_type.oid = t.typelem AND inner_type.typarray = t.oid))
             SELECT t.oid, t.typtype::text, t.typbasetype, t.typtypmod,
                    coalesce((SELECT e.oid FROM pg_catalog.pg_type e
                              WHERE e.oid = t.typelem AND e.typarray = t.oid), 0::oid)
             FROM used JOIN pg_catalog.pg_type t ON t.oid = used.oid",
                &[&relations],
                DOING,
            )
            .await?;
        let entry = |row: &Row| TypeEntry {
            kind: row.get(1),
            base: row.get(2),
            base_modifier: row.get(3),
            element: row.get(4),
        };
        Ok(Self(rows.iter().map(|row| (row.get(0), entry(row))).collect()))
    }

    /// Types do not contain themselves, so this ends.
    fn resolve(&self, oid: u32, modifier: i32) -> ColumnType {
        let plain = ColumnType { oid, modifier, is_enum: false, element: None };
        match self.0.get(&oid) {
            Some(entry) if entry.base != 0 => self.resolve(entry.base, entry.base_modifier),
            // An array column's modifier is its elements'.
            Some(entry) if entry.element != 0 => {
                let element = Some(Box::new(self.resolve(entry.element, modifier)));
                ColumnType { element, ..plain }
            }
            Some(entry) => ColumnType { is_enum: entry.kind == "e", ..plain },
            None => plain,
        }
    }
}

/// The primary keys of all tables, by table.
pub(super) async fn primary_keys(session: &Session) -> Result<HashMap<u32, Vec<String>>> {
    let rows = session
        .query(
            "SELECT i.indrelid, a.attname::text
         FROM pg_catalog.pg_index i
         CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
         WHERE i.indisprimary AND k.place <= i.indnkeyatts
         ORDER BY i.indrelid, k.place",
            &[],
            DOING,
        )
        .await?;
    let mut keys: HashMap<u32, Vec<String>> = HashMap::new();
    for row in &rows {
        keys.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(keys)
}

/// Whether a unique index of the table has no other columns than these.
pub(super) async fn is_unique(session: &Session, table: u32, key: &[String]) -> Result<bool> {
    let rows = session
        .query(
            "SELECT 1 FROM pg_catalog.pg_index i
         WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (
             SELECT 1 FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
             WHERE k.place <= i.indnkeyatts AND a.attname::text <> ALL ($2::text[]))
         LIMIT 1",
            &[&table, &key],
            DOING,
        )
        .await?;
    Ok(!rows.is_empty())
}

/// A table and the tables whose rows it shows as its own.
pub(super) struct Tree {
    pub(super) oids: Vec<u32>,
    pub(super) names: Vec<String>,
    /// Blocks of each.
    pub(super) blocks: Vec<u32>,
    pub(super) block_bytes: u64,
    /// Whether all of them can be read by ctid.
    pub(super) has_blocks: bool,
    /// Whether all of them were analysed, so that the planner's row counts mean something.
    pub(super) analysed: bool,
    /// Whether rows of some come from other transactions than this database's: a foreign table's,
    /// those before a materialized view's refresh, a publisher's.
    pub(super) written_elsewhere: bool,
    /// How many are foreign tables.
    pub(super) foreign: usize,
}

/// Looks up partitions, heirs and sizes.
pub(super) async fn tree(session: &Session, relation: u32) -> Result<Tree> {
    let rows = session.query(
        "WITH RECURSIVE tree AS (
             SELECT $1::oid AS oid
             UNION SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid)
         SELECT c.relname::text, c.relkind::text, c.reltuples::float8,
                coalesce(pg_catalog.pg_relation_size(c.oid), 0),
                pg_catalog.current_setting('block_size')::int8, c.oid,
                c.relkind IN ('f', 'm') OR EXISTS (
                    SELECT 1 FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid)
         FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid
         WHERE c.relkind <> 'p'",
        &[&relation],
        DOING,
    ).await?;
    let block_bytes = rows.first().map_or(8192, |row| row.get::<_, i64>(4)).max(1) as u64;
    let blocks = |row: &Row| (row.get::<_, i64>(3) as u64).div_ceil(block_bytes) as u32;
    let has_blocks = |row: &Row| Kind::of(row.get(1)).is_some_and(Kind::has_blocks);
    Ok(Tree {
        oids: rows.iter().map(|row| row.get(5)).collect(),
        names: rows.iter().map(|row| row.get(0)).collect(),
        blocks: rows.iter().map(blocks).collect(),
        block_bytes,
        has_blocks: rows.iter().all(has_blocks),
        analysed: rows.iter().all(|row| row.get::<_, f64>(2) >= 0.0),
        written_elsewhere: rows.iter().any(|row| row.get(6)),
        foreign: rows.iter().filter(|row| Kind::of(row.get(1)) == Some(Kind::Foreign)).count(),
    })
}

/// How many names to compare with a misspelt one.
const NAMES_MAX: i64 = 10_000;

async fn not_found(session: &Session, name: &TableName) -> Error {
    let error =
        Error::new(ErrorCode::SourceNotFound, format!("there is no table {}", name.display()));
    let sql = "SELECT n.nspname::text, c.relname::text
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema'
           AND n.nspname !~ '^pg_' AND has_schema_privilege(n.oid, 'USAGE') LIMIT $1";
    // Without names the error is less helpful, and still the one to report.
    let rows = session.query(sql, &[&NAMES_MAX], DOING).await.unwrap_or_default();
    let wanted = display(&name.schema, &name.table);
    let names: Vec<String> = rows.iter().map(|row| display(row.get(0), row.get(1))).collect();
    let nearest = nearest(&wanted, &names);
    error.hint(if nearest.is_empty() {
        "names are taken as they are written, upper case too; `polder discover` lists the \
                 tables the role can read"
            .to_owned()
    } else {
        format!("did you mean {}?", nearest.join(", "))
    })
}

/// Up to three names like `wanted`, best first.
pub(super) fn nearest<'a>(wanted: &str, names: &'a [String]) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let mut ranked: Vec<(f64, &str)> = names
        .iter()
        .map(|name| {
            (strsim::normalized_damerau_levenshtein(&wanted, &name.to_lowercase()), &**name)
        })
        .filter(|(likeness, _)| *likeness >= 0.65)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, base: u32, base_modifier: i32, element: u32) -> TypeEntry {
        TypeEntry { kind: kind.to_owned(), base, base_modifier, element }
    }

    #[test]
    fn domains_are_seen_through_inside_and_outside_of_arrays() {
        let types = Types(HashMap::from([
            (100, entry("d", 101, -1, 0)),
            (101, entry("d", 1700, 77, 0)),
            (1700, entry("b", 0, -1, 0)),
            (200, entry("b", 0, -1, 100)),
            (300, entry("e", 0, -1, 0)),
        ]));
        let numeric = types.resolve(100, -1);
        assert_eq!((numeric.oid, numeric.modifier), (1700, 77));
        assert_eq!(types.resolve(200, -1).element.as_deref(), Some(&numeric));
        assert!(types.resolve(300, -1).is_enum);
        assert_eq!(types.resolve(9999, 5).modifier, 5);
    }

    #[test]
    fn misspelt_names_find_their_like() {
        let names = ["public.opportunity", "public.Account", "crm.lead"].map(str::to_owned);
        assert_eq!(nearest("public.oportunity", &names), ["public.opportunity"]);
        assert_eq!(nearest("public.account", &names), ["public.Account"]);
        assert!(nearest("x.y", &names).is_empty());
    }
}
