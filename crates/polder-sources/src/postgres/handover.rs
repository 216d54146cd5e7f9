//! The statement of a read that somebody else carries out over a connection of their own: Trino, by
//! `system.query` of its PostgreSQL connector, which sends it as it is.
//!
//! One statement sees one snapshot. It is no older than the plan's, as it is of the same server, which the
//! statement itself makes sure of. Settings of that session are not ours: where an expression, a filter or a
//! policy may depend on one, the statement looks at it first. What stands in a view depends on any of them,
//! so views are refused. What the lake's types do not have ends the statement, by [`polder_core::REFUSED`].
//!
//! The table's lock stays with the plan's session, so that no column changes until the rows are written. A
//! partition can be attached all the same, and a row moved there: then what was written is not kept.

use std::time::Duration;

use async_trait::async_trait;
use polder_core::{
    Carried, Error, ErrorCode, Handover, LakeType, REFUSED, ReadRequest, Result, Standing,
};

use super::catalog::{self, ColumnType, Identity, Kind, Relation};
use super::columns::{ColumnRead, oid};
use super::connect::{Server, Session};
use super::names::{TableName, identifier, literal};
use super::plan::{self, Prepared};
use super::select::Select;
use super::transactions;

const DOING: &str = "handing a read over";
/// The server's version from which the shortest text of a float is exact, with any `extra_float_digits` above 0.
const SHORTEST_FLOATS: u32 = 12;
/// Names of UTC, which Trino's server may have for its time zone.
const UTC: &str = "('UTC', 'Etc/UTC', 'Etc/UCT', 'UCT', 'Zulu', 'Etc/Zulu', 'Universal', 'Etc/Universal', \
     'GMT', 'Etc/GMT', 'Greenwich', 'Etc/Greenwich')";

/// How often it is looked who waits for the table, and how often somebody may be seen.
const WATCH: Duration = Duration::from_secs(2);
const WATCHES_MAX: u32 = 3;
/// A row where others wait for somebody who waits for this session's lock.
const QUEUED: &str = "SELECT 1 FROM pg_catalog.pg_locks AS changes JOIN pg_catalog.pg_locks AS others \
     ON others.relation = changes.relation AND others.database = changes.database \
     WHERE NOT changes.granted AND NOT others.granted AND others.pid <> changes.pid \
     AND pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(changes.pid)) LIMIT 1";

/// Object ids of more built-in types (PostgreSQL's `pg_type.dat`).
const MACADDR: u32 = 829;
const MACADDR8: u32 = 774;
const BIT: u32 = 1560;
const VARBIT: u32 = 1562;
const PG_LSN: u32 = 3220;
const TSVECTOR: u32 = 3614;
const INT4RANGE: u32 = 3904;
const NUMRANGE: u32 = 3906;
const INT8RANGE: u32 = 3926;

/// Fixes the table as it is, and says what has to be asked.
pub(super) async fn hand_over(server: &Server, request: &ReadRequest) -> Result<Handover> {
    let name = TableName::parse(&request.from, &request.org)?;
    let prepared = Box::pin(plan::prepare(server, request, &name)).await?;
    let Prepared { session, relation, columns, conditions, tree, cursor_is_coarse, plan, .. } =
        prepared;
    if !matches!(relation.kind, Kind::Table | Kind::Partitioned | Kind::Materialized)
        || tree.foreign > 0
    {
        let message = "engine: trino reads tables: what a view or a foreign table shows depends on the session";
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .detail(relation.display())
            .hint("read it with engine: embedded"));
    }
    // The filter is the first of them.
    if request.filter.is_some() && conditions.first().is_some_and(|filter| filter.contains('?')) {
        let message = "engine: trino cannot send a filter with a question mark";
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .detail(relation.display())
            .hint("its driver takes it for a parameter: use a function in the operator's place"));
    }
    let mut values = Vec::with_capacity(columns.len());
    let mut carried = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let number = index + 1;
        let (value, json) = carry(number, column, &origin(&relation, column))
            .ok_or_else(|| unlike(&relation, column))?;
        values.push(format!("{value} AS {}", identifier(&format!("c{number}"))));
        carried.push(Carried { field: column.field.clone(), json });
    }
    let place = Place::of(&session, &relation, request.filter.is_some(), &columns).await?;
    let select = Select::new(&relation, &columns, conditions, &tree);
    let conditions = match select.conditions() {
        [] => String::new(),
        all => format!(" WHERE {}", all.join(" AND ")),
    };
    // As an offset it is evaluated even where no row can pass the conditions.
    let offset = place.is_here();
    let statement =
        format!("SELECT {} FROM {}{conditions} OFFSET {offset}", values.join(", "), select.from());
    let tables = sorted(tree.oids);
    let standing =
        Box::new(Held { identity: relation.identity(), oid: relation.oid, tables, session });
    Ok(Handover { plan, cursor_is_coarse, statement, columns: carried, standing })
}

/// The table's lock, and the session that has it.
struct Held {
    session: Session,
    identity: Identity,
    oid: u32,
    /// The table, or its partitions, as they were planned.
    tables: Vec<u32>,
}

fn sorted(mut oids: Vec<u32>) -> Vec<u32> {
    oids.sort_unstable();
    oids
}

#[async_trait]
impl Standing for Held {
    /// Who comes to read or write stands in line behind an ALTER TABLE that waits for our lock: a reader that we
    /// wait for would do so for ever, and the source's own users for as long as the read takes.
    async fn disturbed(&self) -> Error {
        let mut seen = 0;
        loop {
            tokio::time::sleep(WATCH).await;
            match self.session.text(QUEUED, DOING).await {
                Ok(Some(_)) => seen += 1,
                Ok(None) => seen = 0,
                Err(error) => return error,
            }
            if seen > WATCHES_MAX {
                let message = "another session waits to change the table, and others wait for it";
                return Error::new(ErrorCode::SourceUnavailable, message)
                    .detail(self.identity.display.clone())
                    .hint("run again once the table is changed");
            }
        }
    }

    async fn release(self: Box<Self>) -> Result<()> {
        let Self { session, identity, oid, tables } = *self;
        // A connection that was lost in between has lost the lock.
        identity.check(&session).await?;
        // As they are now, not as the snapshot shows them.
        session.commit(DOING).await?;
        let now = sorted(catalog::tree(&session, oid).await?.oids);
        session.close().await;
        if now != tables {
            let message = format!("partitions of {} came or went meanwhile", identity.display);
            return Err(Error::new(ErrorCode::SourceUnavailable, message).hint("try again"));
        }
        Ok(())
    }
}

fn origin(relation: &Relation, column: &ColumnRead) -> ColumnType {
    let found = relation.columns.iter().find(|found| found.name == column.field.name);
    found.map_or_else(transactions::data_type, |found| found.data_type.clone())
}

fn unlike(relation: &Relation, column: &ColumnRead) -> Error {
    let message =
        format!("engine: trino cannot carry column {:?} as the lake has it", column.field.name);
    Error::new(ErrorCode::SpecInvalid, message)
        .detail(format!("{}: its type is {}", relation.display(), column.type_name))
        .hint("leave it out of `columns`, or read the table with engine: embedded")
}

/// What a session's answers depend on.
struct Place {
    /// An expression that tells servers and databases apart, and sessions that see other rows of the table.
    name: String,
    /// Its value here.
    here: String,
    /// Conditions on settings.
    settings: String,
}

impl Place {
    async fn of(
        session: &Session,
        relation: &Relation,
        is_filtered: bool,
        columns: &[ColumnRead],
    ) -> Result<Self> {
        // By name: its number is another one elsewhere.
        let secured = format!(
            "pg_catalog.row_security_active({}::pg_catalog.text)",
            literal(&relation.sql())
        );
        let is_secured = session.text(&format!("SELECT {secured}"), DOING).await?;
        // The words of a filter or a policy mean what they do by role, names' places and zone.
        let is_bound = is_filtered || is_secured.as_deref() == Some("t");
        let has_floats = columns
            .iter()
            .any(|of| matches!(of.field.data_type, LakeType::Float | LakeType::Double));
        // Before version 12 one digit more may be too few.
        let digits = if session.major < SHORTEST_FLOATS { 3 } else { 1 };
        let name = place(&secured, is_bound);
        let here = session.text(&format!("SELECT {name}"), DOING).await?.unwrap_or_default();
        Ok(Self { name, here, settings: settings(is_bound, has_floats.then_some(digits)) })
    }

    /// 0 here; ends the statement at any other place.
    fn is_here(&self) -> String {
        format!(
            "CASE WHEN {} = {}{} THEN 0 ELSE {} END",
            self.name,
            literal(&self.here),
            self.settings,
            refusal(0, "pg_catalog.current_database()", "int8"),
        )
    }
}

fn place(secured: &str, is_bound: bool) -> String {
    let names = if is_bound {
        ", ' ', CURRENT_USER::pg_catalog.text, ' ', pg_catalog.current_schemas(true)::pg_catalog.text"
    } else {
        ""
    };
    format!(
        "pg_catalog.concat(pg_catalog.current_database(), ' ', pg_catalog.encode(\
         pg_catalog.timestamptz_send(pg_catalog.pg_postmaster_start_time()), 'hex'), ' ', {secured}{names})"
    )
}

/// `digits`: the least `extra_float_digits` by which floats are sent as they are, for a driver that has them
/// sent as texts.
fn settings(is_bound: bool, digits: Option<u32>) -> String {
    let setting = |name: &str| format!(" AND pg_catalog.current_setting('{name}')");
    // The plan's session has the time zone by which a filter's words for times are meant.
    let zone = is_bound.then(|| format!("{} IN {UTC}", setting("TimeZone")));
    let digits = digits
        .map(|digits| format!("{}::pg_catalog.int4 >= {digits}", setting("extra_float_digits")));
    [zone, digits].into_iter().flatten().collect()
}

/// What no value of the type can be made of. It depends on `value`, so that it is not computed beforehand.
fn refusal(number: usize, value: &str, data_type: &str) -> String {
    format!(
        "pg_catalog.concat('{REFUSED}{number}', pg_catalog.left({value}::pg_catalog.text, 0))\
         ::pg_catalog.{data_type}"
    )
}

/// The expression of a column, and whether it is JSON; `None` for what cannot be carried exactly.
fn carry(number: usize, column: &ColumnRead, origin: &ColumnType) -> Option<(String, bool)> {
    let value = column.sql.as_str();
    let plain = |data_type: &str| Some((format!("({value})::pg_catalog.{data_type}"), false));
    let within = |condition: &str, data_type: &str| {
        let other = refusal(number, value, data_type);
        let value = format!(
            "CASE WHEN {condition} THEN {value} WHEN {value} IS NULL THEN NULL ELSE {other} END"
        );
        Some((value, false))
    };
    match &column.field.data_type {
        LakeType::Boolean => plain("bool"),
        LakeType::Int => plain("int4"),
        LakeType::Long => plain("int8"),
        LakeType::Float => plain("float4"),
        LakeType::Double => plain("float8"),
        LakeType::Uuid => plain("uuid"),
        LakeType::Binary => plain("bytea"),
        LakeType::Decimal { precision, scale } => {
            // NaN and infinity are above every number.
            let condition = format!(
                "{value} = pg_catalog.round({value}, {scale}) AND pg_catalog.abs({value}) < \
                 '1e{}'::pg_catalog.numeric",
                precision - scale
            );
            let (value, json) = within(&condition, "numeric")?;
            Some((format!("({value})::pg_catalog.numeric({precision}, {scale})"), json))
        }
        LakeType::Date => {
            let years = "BETWEEN '0001-01-01'::pg_catalog.date AND '9999-12-31'::pg_catalog.date";
            within(&format!("{value} {years}"), "date")
        }
        LakeType::Time => within(&format!("{value} < '24:00:00'::pg_catalog.time"), "time"),
        LakeType::Timestamp => within(&years(value, "", "timestamp"), "timestamp"),
        LakeType::Timestamptz => within(&years(value, "+00", "timestamptz"), "timestamptz"),
        LakeType::String => text(column, origin).map(|text| (text, false)),
        LakeType::List(element) => list(number, value, &element.data_type, origin),
        LakeType::Struct(_) => {
            (origin.oid == oid::INTERVAL).then(|| (interval(number, value), true))
        }
    }
}

fn years(value: &str, zone: &str, data_type: &str) -> String {
    format!(
        "{value} >= '0001-01-01 00:00:00{zone}'::pg_catalog.{data_type} AND \
         {value} < '10000-01-01 00:00:00{zone}'::pg_catalog.{data_type}"
    )
}

/// The text that a value's cast has whatever the session's settings are.
fn text(column: &ColumnRead, origin: &ColumnType) -> Option<String> {
    let value = &column.sql;
    // A cast would drop the blanks at the end.
    if origin.oid == oid::BPCHAR && *value == identifier(&column.field.name) {
        return Some(format!("CASE WHEN {value} IS NOT NULL THEN pg_catalog.concat({value}) END"));
    }
    has_one_text(origin).then(|| format!("({value})::pg_catalog.text"))
}

fn has_one_text(origin: &ColumnType) -> bool {
    origin.is_enum
        || matches!(
            origin.oid,
            oid::BOOL
                | oid::NAME
                | oid::INT2
                | oid::INT4
                | oid::INT8
                | oid::OID
                | oid::TEXT
                | oid::VARCHAR
                | oid::BPCHAR
                | oid::JSON
                | oid::JSONB
                | oid::NUMERIC
                | oid::INET
                | oid::CIDR
                | oid::UUID
                | oid::TIME
                | MACADDR
                | MACADDR8
                | BIT
                | VARBIT
                | PG_LSN
                | TSVECTOR
                | INT4RANGE
                | NUMRANGE
                | INT8RANGE
        )
}

fn list(
    number: usize,
    value: &str,
    element: &LakeType,
    origin: &ColumnType,
) -> Option<(String, bool)> {
    let of = origin.element.as_deref()?;
    let elements = match element {
        LakeType::Boolean | LakeType::Int | LakeType::Long => value.to_owned(),
        LakeType::String if of.oid != oid::BPCHAR && has_one_text(of) => {
            format!("({value})::pg_catalog.text[]")
        }
        _ => return None,
    };
    let other = refusal(number, value, "int4");
    let list = format!(
        "CASE WHEN pg_catalog.array_ndims({value}) > 1 OR pg_catalog.array_lower({value}, 1) <> 1 \
         THEN {other}::pg_catalog.text ELSE pg_catalog.to_json({elements})::pg_catalog.text END"
    );
    Some((list, true))
}

/// Months, days and microseconds, as the server has them.
fn interval(number: usize, value: &str) -> String {
    let part = |name: &str| format!("extract({name} FROM {value})::pg_catalog.int8");
    let (months, days) = (format!("{} * 12 + {}", part("year"), part("month")), part("day"));
    let micros = format!(
        "{} * 3600000000 + {} * 60000000 + {}",
        part("hour"),
        part("minute"),
        part("microseconds")
    );
    let other = refusal(number, value, "int4");
    format!(
        "CASE WHEN pg_catalog.isfinite({value}) \
         THEN pg_catalog.json_build_array({months}, {days}, {micros})::pg_catalog.text \
         WHEN {value} IS NULL THEN NULL ELSE {other}::pg_catalog.text END"
    )
}

#[cfg(test)]
mod tests {
    use polder_core::Field;
    use polder_core::spec::OnUnrepresentable;

    use super::*;

    fn of(oid: u32) -> ColumnType {
        ColumnType { oid, modifier: -1, is_enum: false, element: None }
    }

    fn carried(data_type: LakeType, sql: &str, origin: &ColumnType) -> Option<(String, bool)> {
        let column = ColumnRead {
            field: Field::new("c", data_type),
            sql: sql.to_owned(),
            written: None,
            type_name: String::new(),
            policy: OnUnrepresentable::Error,
        };
        carry(3, &column, origin)
    }

    #[test]
    fn values_that_the_lake_does_not_have_end_the_statement() {
        let decimal = LakeType::Decimal { precision: 18, scale: 2 };
        let (sql, json) = carried(decimal, "\"c\"", &of(oid::NUMERIC)).expect("decimal");
        assert!(!json && sql.ends_with("::pg_catalog.numeric(18, 2)"), "{sql}");
        assert!(sql.contains("< '1e16'") && sql.contains("'polder-refused-3'"), "{sql}");
        for data_type in
            [LakeType::Date, LakeType::Time, LakeType::Timestamp, LakeType::Timestamptz]
        {
            let (sql, _) = carried(data_type, "\"c\"", &of(oid::DATE)).expect("time");
            assert!(sql.contains("'polder-refused-3'") && sql.contains("IS NULL"), "{sql}");
        }
    }

    #[test]
    fn texts_that_settings_change_are_refused() {
        let text = |sql: &str, oid| carried(LakeType::String, sql, &of(oid)).map(|(sql, _)| sql);
        assert_eq!(text("\"c\"", oid::JSONB).as_deref(), Some("(\"c\")::pg_catalog.text"));
        assert_eq!(
            text("\"c\"", oid::BPCHAR).as_deref(),
            Some("CASE WHEN \"c\" IS NOT NULL THEN pg_catalog.concat(\"c\") END")
        );
        // Money, xml, tstzrange, and dates as texts.
        for oid in [790, 142, 3910, oid::DATE, oid::TIMESTAMPTZ, oid::BYTEA, oid::FLOAT8] {
            assert_eq!(text("\"c\"::pg_catalog.text", oid), None, "{oid}");
        }
    }

    #[test]
    fn lists_go_as_json_where_it_holds_every_value() {
        let list = |element: LakeType, oid| {
            let origin = ColumnType { element: Some(Box::new(of(oid))), ..of(0) };
            carried(LakeType::list_of(element), "\"c\"", &origin)
        };
        let (sql, json) = list(LakeType::String, oid::TEXT).expect("texts");
        assert!(json && sql.contains("to_json((\"c\")::pg_catalog.text[])"), "{sql}");
        assert!(list(LakeType::Long, oid::INT8).is_some());
        assert!(list(LakeType::Double, oid::FLOAT8).is_none());
        assert!(list(LakeType::Date, oid::DATE).is_none());
        assert!(list(LakeType::String, oid::BPCHAR).is_none());
    }

    #[test]
    fn another_place_ends_the_statement() {
        let here = "revdb 00 it's".to_owned();
        let place = Place { name: place("secured", true), here, settings: settings(true, Some(3)) };
        let offset = place.is_here();
        for text in [
            "CURRENT_USER",
            "current_schemas(true)",
            " = 'revdb 00 it''s' AND ",
            "'TimeZone') IN ('UTC'",
            "'extra_float_digits')::pg_catalog.int4 >= 3",
            "polder-refused-0",
        ] {
            assert!(offset.contains(text), "no {text} in {offset}");
        }
        assert_eq!(settings(false, None), "");
    }
}
