//! The rows of `pg_catalog` that say which tables there are: made of the names that a session listed.
//!
//! Types, operators and whatever else is the same in every PostgreSQL is `datafusion-pg-catalog`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int16Array, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
    new_null_array,
};
use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, ScalarValue};

/// Where PostgreSQL's own objects end.
const OIDS_FROM: u32 = 16_384;
/// Namespaces that every database has, by PostgreSQL's oids.
const SYSTEM_NAMESPACES: [(&str, i32); 2] = [("pg_catalog", 11), ("information_schema", 13_000)];
/// The owner of everything.
const OWNER: i32 = 10;

/// What a session may see, for `pg_catalog`.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub database: String,
    pub user: String,
    /// In which bare table names are looked up.
    pub schema: Option<String>,
    /// What `version()` says.
    pub version: String,
    pub tables: Vec<Listed>,
}

/// A table.
#[derive(Clone, Debug)]
pub struct Listed {
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
}

/// A column, with its type by PostgreSQL's numbers.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub nullable: bool,
    pub oid: u32,
    /// Bytes of a value; -1 for those of any length.
    pub length: i16,
    pub modifier: i32,
}

/// The oids of what is shown. They follow from the names, so that they are the same in the next query.
struct Oids {
    of: BTreeMap<(String, Option<String>), i32>,
}

impl Oids {
    fn new(shown: &Shown) -> Self {
        let mut names = BTreeSet::new();
        for table in &shown.tables {
            names.insert((table.schema.clone(), None));
            names.insert((table.schema.clone(), Some(table.name.clone())));
        }
        let (mut of, mut taken) = (BTreeMap::new(), BTreeSet::new());
        for name in names {
            let mut oid = hash(&name.0, name.1.as_deref());
            while !taken.insert(oid) {
                oid = if oid == i32::MAX { OIDS_FROM.cast_signed() } else { oid + 1 };
            }
            of.insert(name, oid);
        }
        Self { of }
    }

    fn namespace(&self, schema: &str) -> i32 {
        self.of.get(&(schema.to_owned(), None)).copied().unwrap_or_default()
    }

    fn table(&self, table: &Listed) -> i32 {
        let name = (table.schema.clone(), Some(table.name.clone()));
        self.of.get(&name).copied().unwrap_or_default()
    }
}

/// FNV-1a, above PostgreSQL's own oids and below the sign.
fn hash(schema: &str, table: Option<&str>) -> i32 {
    let bytes = schema.bytes().chain([0]).chain(table.unwrap_or_default().bytes());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (OIDS_FROM + hash % (i32::MAX.cast_unsigned() - OIDS_FROM)).cast_signed()
}

/// The rows of a table of `pg_catalog` with these columns; `None` for one that is not ours.
pub(super) fn rows(name: &str, schema: &SchemaRef, shown: &Shown) -> Option<Result<RecordBatch>> {
    let columns = match name {
        "pg_namespace" => namespaces(shown),
        "pg_class" => classes(shown),
        "pg_attribute" => attributes(shown),
        "pg_database" => databases(shown),
        "pg_tables" => tables(shown),
        "pg_roles" => roles(shown),
        _ => return None,
    };
    Some(filled(schema, columns))
}

/// Columns by name, all of one length.
struct Columns {
    rows: usize,
    known: Vec<(&'static str, ArrayRef)>,
}

impl Columns {
    fn new(rows: usize) -> Self {
        Self { rows, known: Vec::new() }
    }

    fn texts<'a>(mut self, name: &'static str, values: impl Iterator<Item = &'a str>) -> Self {
        self.known.push((name, Arc::new(values.map(Some).collect::<StringArray>())));
        self
    }

    fn numbers(mut self, name: &'static str, values: impl Iterator<Item = i32>) -> Self {
        self.known.push((name, Arc::new(values.collect::<Int32Array>())));
        self
    }

    fn smalls(mut self, name: &'static str, values: impl Iterator<Item = i16>) -> Self {
        self.known.push((name, Arc::new(values.collect::<Int16Array>())));
        self
    }

    fn flags(mut self, name: &'static str, values: impl Iterator<Item = bool>) -> Self {
        self.known.push((name, Arc::new(values.map(Some).collect::<BooleanArray>())));
        self
    }
}

/// A batch of this schema: what is not known is null, or nothing.
fn filled(schema: &SchemaRef, columns: Columns) -> Result<RecordBatch> {
    let Columns { rows, known } = columns;
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let found = known.iter().find(|(name, _)| name == field.name());
        arrays.push(match found {
            Some((_, array)) => Arc::clone(array),
            None if field.is_nullable() => new_null_array(field.data_type(), rows),
            None => ScalarValue::new_default(field.data_type())?.to_array_of_size(rows)?,
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
}

fn namespaces(shown: &Shown) -> Columns {
    let oids = Oids::new(shown);
    let names: BTreeSet<&str> = shown.tables.iter().map(|table| table.schema.as_str()).collect();
    let own = names.iter().map(|name| (*name, oids.namespace(name)));
    let all: Vec<_> = SYSTEM_NAMESPACES.into_iter().chain(own).collect();
    Columns::new(all.len())
        .numbers("oid", all.iter().map(|(_, oid)| *oid))
        .texts("nspname", all.iter().map(|(name, _)| *name))
        .numbers("nspowner", all.iter().map(|_| OWNER))
}

fn classes(shown: &Shown) -> Columns {
    let (oids, tables) = (Oids::new(shown), &shown.tables);
    Columns::new(tables.len())
        .numbers("oid", tables.iter().map(|table| oids.table(table)))
        .texts("relname", tables.iter().map(|table| table.name.as_str()))
        .numbers("relnamespace", tables.iter().map(|table| oids.namespace(&table.schema)))
        .numbers("relowner", tables.iter().map(|_| OWNER))
        .texts("relpersistence", tables.iter().map(|_| "p"))
        .texts("relkind", tables.iter().map(|_| "r"))
        .texts("relreplident", tables.iter().map(|_| "n"))
        .flags("relispopulated", tables.iter().map(|_| true))
        .smalls("relnatts", tables.iter().map(|table| small(table.columns.len())))
}

fn attributes(shown: &Shown) -> Columns {
    let oids = Oids::new(shown);
    let all: Vec<(i32, i16, &Column)> = shown
        .tables
        .iter()
        .flat_map(|table| {
            let oid = oids.table(table);
            let columns = table.columns.iter().enumerate();
            columns.map(move |(at, column)| (oid, small(at + 1), column))
        })
        .collect();
    Columns::new(all.len())
        .numbers("attrelid", all.iter().map(|(oid, ..)| *oid))
        .texts("attname", all.iter().map(|(.., column)| column.name.as_str()))
        .numbers("atttypid", all.iter().map(|(.., column)| column.oid.cast_signed()))
        .numbers("attstattarget", all.iter().map(|_| -1))
        .smalls("attlen", all.iter().map(|(.., column)| column.length))
        .smalls("attnum", all.iter().map(|(_, number, _)| *number))
        .numbers("attcacheoff", all.iter().map(|_| -1))
        .numbers("atttypmod", all.iter().map(|(.., column)| column.modifier))
        .flags("attbyval", all.iter().map(|(.., column)| (1..=8).contains(&column.length)))
        .texts("attalign", all.iter().map(|_| "i"))
        .texts("attstorage", all.iter().map(|(.., c)| if c.length < 0 { "x" } else { "p" }))
        .flags("attnotnull", all.iter().map(|(.., column)| !column.nullable))
        .flags("attislocal", all.iter().map(|_| true))
}

fn databases(shown: &Shown) -> Columns {
    let one = || std::iter::once(());
    Columns::new(1)
        .numbers("oid", one().map(|()| hash(&shown.database, None)))
        .texts("datname", one().map(|()| shown.database.as_str()))
        .numbers("datdba", one().map(|()| OWNER))
        // UTF-8.
        .numbers("encoding", one().map(|()| 6))
        .texts("datlocprovider", one().map(|()| "c"))
        .texts("datcollate", one().map(|()| "C"))
        .texts("datctype", one().map(|()| "C"))
        .flags("datallowconn", one().map(|()| true))
        .numbers("datconnlimit", one().map(|()| -1))
}

fn tables(shown: &Shown) -> Columns {
    let tables = &shown.tables;
    Columns::new(tables.len())
        .texts("schemaname", tables.iter().map(|table| table.schema.as_str()))
        .texts("tablename", tables.iter().map(|table| table.name.as_str()))
        .texts("tableowner", tables.iter().map(|_| shown.user.as_str()))
}

fn roles(shown: &Shown) -> Columns {
    let one = || std::iter::once(());
    Columns::new(1)
        .texts("rolname", one().map(|()| shown.user.as_str()))
        .flags("rolsuper", one().map(|()| false))
        .flags("rolinherit", one().map(|()| true))
        .flags("rolcanlogin", one().map(|()| true))
        .numbers("rolconnlimit", one().map(|()| -1))
        .numbers("oid", one().map(|()| OWNER))
}

fn small(number: usize) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(schema: &str, name: &str) -> Listed {
        Listed { schema: schema.to_owned(), name: name.to_owned(), columns: Vec::new() }
    }

    #[test]
    fn an_oid_stays_when_other_tables_come() {
        let few = Shown { tables: vec![listed("org_1", "b")], ..Shown::default() };
        let mut more = few.clone();
        more.tables.extend([listed("org_1", "a"), listed("org_2", "b")]);
        let (before, after) = (Oids::new(&few), Oids::new(&more));
        assert_eq!(before.table(&few.tables[0]), after.table(&few.tables[0]));
        assert_eq!(before.namespace("org_1"), after.namespace("org_1"));
        let all: BTreeSet<_> = after.of.values().collect();
        assert_eq!(all.len(), 5);
        assert!(all.iter().all(|oid| **oid >= OIDS_FROM.cast_signed()));
    }
}
