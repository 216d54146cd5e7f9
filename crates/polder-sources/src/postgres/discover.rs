//! What a database offers to be read, with the columns that suggest themselves as cursor.

use polder_core::spec::Mode;
use polder_core::{Field, Result, SourceTable, TableSchema};

use super::catalog::{self, Column, Kind, Relation};
use super::columns::natural;
use super::connect::Session;
use super::cursor::Comparison;
use super::transactions::XMIN;

/// Tables, partitioned tables, views and the like that the role can read from.
pub(super) async fn tables(session: &Session) -> Result<Vec<SourceTable>> {
    session.begin().await?;
    let relations = catalog::all(session).await?;
    let mut keys = catalog::primary_keys(session).await?;
    let tables = relations.into_iter().map(|relation| {
        let key = keys.remove(&relation.oid).unwrap_or_default();
        let (cursors, mode) = cursors(&relation, &key);
        SourceTable {
            name: relation.display(),
            kind: relation.kind.as_str(),
            schema: schema(&relation),
            cursors,
            mode,
            key,
            rows_estimated: relation.rows,
        }
    });
    Ok(tables.collect())
}

fn schema(relation: &Relation) -> TableSchema {
    let field = |column: &Column| {
        let field = Field::new(&column.name, natural(&column.data_type))
            .with_source_id(i32::from(column.number));
        if column.required { field.required() } else { field }
    };
    TableSchema::new(relation.columns.iter().map(field).collect())
}

/// The columns that can serve as cursor, best first: when a row was changed, when it was created,
/// the number it got, the transaction that wrote it. And the mode that suits the best of them.
fn cursors(relation: &Relation, key: &[String]) -> (Vec<String>, Mode) {
    let mut ranked: Vec<(Rank, &str)> = relation
        .columns
        .iter()
        .filter_map(|column| rank(column, key).map(|rank| (rank, &*column.name)))
        .collect();
    ranked.sort();
    // Without a key it would be of little use: every run scans the table.
    let by_transaction = !key.is_empty() && has_transactions(relation);
    let mode = match ranked.first() {
        Some((best, _)) if !key.is_empty() && best.purpose == IS_CHANGED => Mode::Merge,
        Some(_) if !key.is_empty() => Mode::Append,
        None if by_transaction => Mode::Merge,
        _ => Mode::FullRefresh,
    };
    let names = ranked.into_iter().map(|(_, name)| name).chain(by_transaction.then_some(XMIN));
    (names.map(str::to_owned).collect(), mode)
}

/// Whether all of its rows were written by transactions of the database.
fn has_transactions(relation: &Relation) -> bool {
    match relation.kind {
        Kind::Table => true,
        Kind::Partitioned => !relation.has_foreign,
        Kind::View | Kind::Materialized | Kind::Foreign => false,
    }
}

/// Smaller is better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    purpose: u8,
    nullable: bool,
    not_indexed: bool,
    coarse: u8,
    number: i16,
}

/// The purpose of a column that tells when a row was changed.
const IS_CHANGED: u8 = 0;
const CHANGED: [&str; 6] = ["updat", "modif", "chang", "last_mod", "touched", "systemmodstamp"];
const CREATED: [&str; 5] = ["creat", "insert", "added", "ingest", "loaded"];

fn rank(column: &Column, key: &[String]) -> Option<Rank> {
    let name = column.name.to_lowercase();
    let like = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let comparison = Comparison::of_type(&column.data_type)?;
    let (purpose, coarse) = match comparison {
        Comparison::Timestamptz | Comparison::Timestamp | Comparison::Date => {
            let coarse = match comparison {
                Comparison::Timestamptz => 0,
                Comparison::Timestamp => 1,
                _ => 2,
            };
            let purpose = match () {
                () if like(&CHANGED) => IS_CHANGED,
                () if like(&CREATED) => 1,
                () => return None,
            };
            (purpose, coarse)
        }
        Comparison::Int if column.sequential || (key.len() == 1 && key[0] == column.name) => (2, 3),
        Comparison::Int | Comparison::Text | Comparison::Uuid | Comparison::Transaction => {
            return None;
        }
    };
    Some(Rank {
        purpose,
        nullable: !column.required,
        not_indexed: !column.indexed,
        coarse,
        number: column.number,
    })
}
