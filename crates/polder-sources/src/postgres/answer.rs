//! A part of a query answered by the server: its tables of one snapshot, one statement, one split.
//!
//! How the part is written is known in `relational`. A value that the lake does not have must not
//! become a part of an answer unseen, as `NaN` would become a part of a count: the statement fails at a
//! row that reading the table would have failed at.

use futures::StreamExt;
use polder_core::{
    Answer, AnswerRequest, BatchStream, Error, ErrorCode, Field, LakeType, ReadRequest, Result,
    Split, SubPlan, TableSchema,
};
use tokio_postgres::Column;

use super::catalog::{self, ColumnType, Identity, Kind, Relation};
use super::columns::{self, ColumnRead, oid};
use super::connect::{Server, Session};
use super::names::{TableName, identifier};
use super::plan::{self, INFINITE_INTERVALS_VERSION};
use super::predicate;
use super::read::{Job, TableSplit};
use super::relational::{self, Cell, Kept, Statement};
use super::select::Select;
use super::spares::Spares;

const DOING: &str = "preparing a part of a query";
/// `invalid_text_representation`: only the guards of [`guard`] make such an error in an answer.
const OUTSIDE: &str = "SQLSTATE 22P02";
/// `numeric_value_out_of_range`: only sums do.
const OVERFLOW: &str = "SQLSTATE 22003";

/// Prepares the statement; `None` where it would not be exact.
pub(super) async fn answer(server: &Server, request: &AnswerRequest) -> Result<Option<Answer>> {
    let types: Vec<LakeType> =
        request.schema.fields.iter().map(|field| field.data_type.clone()).collect();
    let Some(reads) = reads(request)?.filter(|_| request.part.columns() == Some(types)) else {
        return Ok(None);
    };
    let session = server.session(None, &request.read).await?;
    let encoding = session.text("SELECT pg_catalog.getdatabaseencoding()", DOING).await?;
    let relations = enter(&session, &reads).await?;
    let mut tables = Vec::with_capacity(reads.len());
    for ((_, read), relation) in reads.iter().zip(&relations) {
        match table(&session, relation, read).await? {
            Some(statement) if encoding.as_deref() == Some("UTF8") => tables.push(statement),
            _ => {
                session.close().await;
                return Ok(None);
            }
        }
    }
    let Some(statement) = relational::statement(&request.part, &tables) else {
        session.close().await;
        return Ok(None);
    };
    if !has_types(&session, &statement, &request.schema).await? {
        session.close().await;
        return Ok(None);
    }
    let rows_estimated = rows(&session, &statement.sql).await?;
    // A role that may not lock has its tables locked by now.
    catalog::not_rewritten(&session).await?;
    let asked = format!("sql={}", statement.sql);
    let split = split(session, request, statement, &relations);
    Ok(split.map(|split| Answer { split, rows_estimated, statement: asked }))
}

/// A request for each of the part's tables; `None` if one has no column, or is of another database.
fn reads(request: &AnswerRequest) -> Result<Option<Vec<(TableName, ReadRequest)>>> {
    let mut reads = Vec::new();
    for part in request.part.parts() {
        let SubPlan::Table { from, columns, predicate } = part else { continue };
        let name = TableName::parse(from, &request.read.org)?;
        if name.database.is_some() {
            return Ok(None);
        }
        let read = ReadRequest {
            from: from.clone(),
            predicate: predicate.clone(),
            columns: Some(columns.iter().map(|field| field.name.clone()).collect()),
            known_schema: Some(TableSchema::new(columns.clone())),
            ..request.read.clone()
        };
        reads.push((name, read));
    }
    let some = !reads.is_empty() && !request.schema.fields.is_empty();
    Ok(some.then_some(reads))
}

/// Begins the transaction that reads the tables, and returns them as its snapshot has them. All are
/// locked before the snapshot is taken (see [`plan::lock`]).
async fn enter(session: &Session, reads: &[(TableName, ReadRequest)]) -> Result<Vec<Relation>> {
    let mut found = Vec::with_capacity(reads.len());
    for (name, _) in reads {
        found.push(catalog::find(session, name).await?);
    }
    session.begin().await?;
    for ((name, read), relation) in reads.iter().zip(&found) {
        plan::lock(session, name, relation.kind, &read.progress).await?;
    }
    let mut relations = Vec::with_capacity(reads.len());
    for ((name, _), before) in reads.iter().zip(&found) {
        let relation = catalog::find(session, name).await?;
        if relation.oid != before.oid {
            return Err(changed(&relation));
        }
        relations.push(relation);
    }
    Ok(relations)
}

fn changed(relation: &Relation) -> Error {
    let message = format!("{} changed while the query was planned", relation.display());
    Error::new(ErrorCode::SourceUnavailable, message).hint("try again")
}

/// What reads a table; `None` for one whose rows are not the server's own.
async fn table(
    session: &Session,
    relation: &Relation,
    read: &ReadRequest,
) -> Result<Option<Statement>> {
    let tree = catalog::tree(session, relation.oid).await?;
    if relation.kind == Kind::Foreign || tree.foreign > 0 {
        return Ok(None);
    }
    let columns = columns::choose(relation, read)?;
    let is: Vec<_> = columns.iter().map(|column| &column.field.data_type).collect();
    let expected = read.known_schema.iter().flat_map(|schema| &schema.fields);
    if is != expected.map(|field| &field.data_type).collect::<Vec<_>>() {
        return Err(changed(relation));
    }
    let conditions: Vec<String> =
        predicate::condition(session, relation, &columns, read).await?.into_iter().collect();
    let select = Select::new(relation, &columns, conditions, &tree);
    let mut conditions = select.conditions().to_vec();
    let (mut sql, mut cells, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for column in &columns {
        let found = relation.columns.iter().find(|found| found.name == column.field.name);
        let kept = found.map_or(Kept::Nothing, |found| kept(&found.data_type, column));
        sql.push(expression(column, kept));
        cells.push(Cell { kept, written: column.written, type_name: column.type_name.clone() });
        if kept == Kept::Values {
            held.extend(holds(column).map(|holds| (holds, &*column.field.name)));
        }
    }
    conditions.extend(guard(&conditions, &held));
    let mut sql = relational::select(&sql, &select.from());
    if !conditions.is_empty() {
        sql = format!("{sql} WHERE {}", conditions.join(" AND "));
    }
    Ok(Some(Statement { sql, cells }))
}

/// What of a column is the same to the query engine.
fn kept(data_type: &ColumnType, column: &ColumnRead) -> Kept {
    if data_type.element.is_some() {
        return Kept::Nothing;
    }
    match data_type.oid {
        oid::NUMERIC if matches!(column.field.data_type, LakeType::Decimal { .. }) => Kept::Values,
        oid::BOOL
        | oid::INT2
        | oid::INT4
        | oid::INT8
        | oid::TEXT
        | oid::VARCHAR
        | oid::DATE
        | oid::TIME
        | oid::TIMESTAMP
        | oid::TIMESTAMPTZ
        | oid::UUID => Kept::Values,
        oid::NUMERIC
        | oid::FLOAT4
        | oid::FLOAT8
        | oid::BPCHAR
        | oid::BYTEA
        | oid::JSON
        | oid::JSONB => Kept::Nulls,
        _ => Kept::Nothing,
    }
}

/// Values that are compared are of the type itself: no domain, no `varchar`, no 16 bits, no collation.
fn expression(column: &ColumnRead, kept: Kept) -> String {
    match (kept, relational::type_name(&column.field.data_type)) {
        (Kept::Values, Some("text")) => {
            format!("({}::pg_catalog.text COLLATE \"C\")", identifier(&column.field.name))
        }
        (Kept::Values, Some(of)) => {
            format!("({}::pg_catalog.{of})", identifier(&column.field.name))
        }
        _ => column.sql.clone(),
    }
}

/// The condition that the lake has a column's value; `None` if it has every one.
fn holds(column: &ColumnRead) -> Option<String> {
    let name = identifier(&column.field.name);
    Some(match &column.field.data_type {
        LakeType::Decimal { precision, scale } => {
            let most = predicate::decimal_text(10_i128.pow(u32::from(*precision)) - 1, *scale);
            format!("{name} BETWEEN '-{most}'::pg_catalog.numeric AND '{most}'::pg_catalog.numeric")
        }
        LakeType::Date => format!(
            "{name} BETWEEN '0001-01-01'::pg_catalog.date AND '9999-12-31'::pg_catalog.date"
        ),
        LakeType::Time => format!("{name} < '24:00:00'::pg_catalog.time"),
        LakeType::Timestamp => format!(
            "{name} BETWEEN '0001-01-01 00:00:00'::pg_catalog.timestamp \
             AND '9999-12-31 23:59:59.999999'::pg_catalog.timestamp"
        ),
        LakeType::Timestamptz => format!(
            "{name} BETWEEN '0001-01-01 00:00:00+00'::pg_catalog.timestamptz \
             AND '9999-12-31 23:59:59.999999+00'::pg_catalog.timestamptz"
        ),
        _ => return None,
    })
}

/// A condition that is true, and fails at a row that fulfils all `conditions` and has a value that the
/// lake has not. The order is kept by CASE alone (PostgreSQL manual 4.2.14).
fn guard(conditions: &[String], held: &[(String, &str)]) -> Option<String> {
    let all = held.iter().map(|(holds, _)| format!("coalesce({holds}, true)"));
    let all = all.collect::<Vec<_>>().join(" AND ");
    let (_, name) = held.first()?;
    // No constant: it would fail while the statement is planned.
    let fails = format!("pg_catalog.concat('outside ', {})::pg_catalog.bool", identifier(name));
    let guard = format!("CASE WHEN {all} THEN true ELSE {fails} END");
    Some(if conditions.is_empty() {
        guard
    } else {
        format!("CASE WHEN {} THEN {guard} ELSE false END", conditions.join(" AND "))
    })
}

/// Whether the server gives the statement's columns the types that are decoded. It also finds here what
/// else is wrong with the statement.
async fn has_types(session: &Session, statement: &Statement, schema: &TableSchema) -> Result<bool> {
    let prepared = session.client()?.prepare(&statement.sql).await;
    let prepared = prepared.map_err(|error| session.failed(&error, DOING))?;
    let columns = prepared.columns();
    let right = |((cell, field), column): ((&Cell, &Field), &Column)| {
        let name = relational::type_name(&field.data_type);
        cell.kept != Kept::Values || Some(column.type_().name()) == name
    };
    let same = columns.len() == schema.fields.len();
    Ok(same && statement.cells.iter().zip(&schema.fields).zip(columns).all(right))
}

/// How many rows the server's planner expects.
async fn rows(session: &Session, sql: &str) -> Result<Option<u64>> {
    let plan = session.text(&format!("EXPLAIN (FORMAT JSON) {sql}"), DOING).await?;
    let plan: Option<serde_json::Value> = plan.and_then(|plan| serde_json::from_str(&plan).ok());
    Ok(plan.and_then(|plan| plan[0]["Plan"]["Plan Rows"].as_u64()))
}

fn split(
    session: Session,
    request: &AnswerRequest,
    statement: Statement,
    relations: &[Relation],
) -> Option<Box<dyn Split>> {
    let (first, others) = relations.split_first()?;
    let column = |(cell, field): (Cell, &Field)| ColumnRead {
        field: field.clone(),
        sql: String::new(),
        written: cell.written,
        type_name: cell.type_name,
        policy: request.read.on_unrepresentable,
    };
    let columns = statement.cells.into_iter().zip(&request.schema.fields).map(column).collect();
    let describe = relations.iter().map(Relation::display).collect::<Vec<_>>().join(", ");
    let job = Job {
        columns,
        schema: request.schema.to_arrow(),
        key: Vec::new(),
        table: first.identity(),
        others: others.iter().map(Relation::identity).collect::<Vec<Identity>>(),
        infinite_intervals: session.major >= INFINITE_INTERVALS_VERSION,
        cursor_is_coarse: false,
        batch_bytes: request.read.batch_bytes,
        progress: request.read.progress.clone(),
    };
    let (spares, readings) = Spares::of(vec![session]);
    let reading = readings.into_iter().next()?;
    let split = TableSplit::new(reading, &spares, (statement.sql, describe), job.into());
    Some(Box::new(AnswerSplit(split)))
}

struct AnswerSplit(TableSplit);

impl Split for AnswerSplit {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn read(self: Box<Self>) -> BatchStream {
        let tables = self.0.describe();
        let batches = Box::new(self.0).read();
        Box::pin(batches.map(move |batch| batch.map_err(|error| meant(error, &tables))))
    }
}

/// What the server's refusal of a value means here.
fn meant(error: Error, tables: &str) -> Error {
    let detail = error.detail_text().unwrap_or_default();
    if detail.contains(OUTSIDE) {
        let message = "a number, date or time among the rows has no place in the lake's types";
        return Error::new(ErrorCode::SourceUnrepresentable, message).detail(tables).hint(
            "NaN, infinity, and years outside 1 to 9999: leave such rows out in WHERE; a query \
             without pushdown names column and row",
        );
    }
    if detail.contains(OVERFLOW) {
        return Error::new(ErrorCode::SourceUnrepresentable, "a sum does not fit its type")
            .detail(tables)
            .hint("cast what is summed up to decimal(20, 0)");
    }
    error
}

#[cfg(test)]
mod tests {
    use polder_core::spec::OnUnrepresentable;

    use super::*;

    fn column(name: &str, data_type: LakeType) -> ColumnRead {
        ColumnRead {
            field: Field::new(name, data_type),
            sql: identifier(name),
            written: None,
            type_name: String::new(),
            policy: OnUnrepresentable::Error,
        }
    }

    #[test]
    fn guards_look_only_at_rows_that_are_read() {
        let amount = column("amount", LakeType::Decimal { precision: 4, scale: 2 });
        let holds = holds(&amount).expect("decimals have NaN");
        let between =
            "\"amount\" BETWEEN '-99.99'::pg_catalog.numeric AND '99.99'::pg_catalog.numeric";
        assert_eq!(holds, between);
        let held = [(holds, "amount")];
        let fails = "CASE WHEN coalesce(\"amount\" BETWEEN '-99.99'::pg_catalog.numeric AND \
                     '99.99'::pg_catalog.numeric, true) THEN true \
                     ELSE pg_catalog.concat('outside ', \"amount\")::pg_catalog.bool END";
        assert_eq!(guard(&[], &held).as_deref(), Some(fails));
        let within = format!("CASE WHEN id > 5 THEN {fails} ELSE false END");
        assert_eq!(guard(&["id > 5".to_owned()], &held), Some(within));
        assert_eq!(guard(&["id > 5".to_owned()], &[]), None);
        assert_eq!(super::holds(&column("id", LakeType::Long)), None);
    }
}
