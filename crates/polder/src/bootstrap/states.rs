//! Which states of which tables: all of one moment, while runs go on.
//!
//! Tables are loaded one after the other, and a run may publish in between. So they are loaded twice:
//! what did not change from the first to the last load was true all at once in between. Where tables
//! change too often for that, the states are those that were current when the last load began, by the
//! tables' own histories.

use std::collections::HashMap;

use chrono::Utc;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, ErrorCode, LakeType, OrgId, Result, TableSchema};
use polder_lake::{CmpOp, Lake, LakeTable, Literal, Predicate, SnapshotInfo};
use serde::Serialize;
use utoipa::ToSchema;

use super::token::Token;
use super::tree::Shape;
use super::{AsOf, Wanted};

/// Loads of all tables until the states count as those of a time.
const LOADS_MAX: usize = 4;
const DAY_US: i64 = 86_400_000_000;

/// One table at one state.
pub(super) struct State {
    pub(super) table: LakeTable,
    pub(super) snapshot: SnapshotInfo,
    /// The columns of that state.
    pub(super) columns: TableSchema,
    /// None for a table that has left the pipeline.
    pub(super) spec: Option<TableSpec>,
}

/// How the states of different tables belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Chosen {
    /// All were the current ones at one moment: seen by loading them twice.
    AtOnce,
    /// Tables changed all the while: all were current when the request came, by their histories.
    ByHistory,
    /// What was current at the time asked for.
    AsOf,
    /// What the pin names.
    Pin,
    /// What the token names.
    Token,
}

/// A table that is not among the states.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LeftOut {
    pub(super) table: String,
    pub(super) why: String,
}

pub(super) struct States {
    pub(super) found: Vec<State>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) chosen: Chosen,
}

type Specs = HashMap<String, TableSpec>;

impl State {
    fn new(table: LakeTable, snapshot: SnapshotInfo, specs: &mut Specs) -> Result<Self> {
        let (columns, _) = table.schema_at(Some(snapshot.id))?;
        let spec = specs.remove(table.name());
        Ok(Self { table, snapshot, columns, spec })
    }

    pub(super) fn name(&self) -> &str {
        self.table.name()
    }

    pub(super) fn shape(&self) -> Shape<'_> {
        Shape { name: self.name(), spec: self.spec.as_ref(), columns: &self.columns }
    }

    /// The column that says when what a row tells of happened, if this state has one that is a time.
    pub(super) fn event_time(&self) -> Option<&str> {
        let spec = self.spec.as_ref()?;
        let named = spec.event_time.as_deref().or(spec.cursor.as_deref())?;
        let is_time = |data_type: &LakeType| {
            matches!(data_type, LakeType::Timestamptz | LakeType::Timestamp | LakeType::Date)
        };
        self.columns.field(named).filter(|field| is_time(&field.data_type)).map(|_| named)
    }

    /// Rows of events at or after a time, in microseconds since the epoch; all of a table that has
    /// no event time. A time without a zone counts as UTC, a date as its first moment.
    pub(super) fn since(&self, since_us: Option<i64>) -> Predicate {
        let (Some(us), Some(column)) = (since_us, self.event_time()) else {
            return Predicate::True;
        };
        let value = match self.columns.field(column).map(|field| &field.data_type) {
            Some(LakeType::Timestamp) => Literal::Timestamp(us),
            Some(LakeType::Date) => {
                let days = us.div_euclid(DAY_US) + i64::from(us.rem_euclid(DAY_US) > 0);
                Literal::Date(i32::try_from(days).unwrap_or(i32::MAX))
            }
            _ => Literal::Timestamptz(us),
        };
        Predicate::Cmp { column: column.to_owned(), op: CmpOp::GtEq, value }
    }
}

/// The states that are wanted.
pub(super) async fn find(
    lake: &Lake,
    org: &Authorized<OrgId>,
    specs: Vec<TableSpec>,
    wanted: &Wanted,
) -> Result<States> {
    let names = match &wanted.tables {
        Some(names) => names.clone(),
        None => lake.tables(org).await?,
    };
    let specs: Specs = specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
    let asked_for = wanted.tables.is_some();
    let (tables, found, chosen): (_, Vec<Result<SnapshotInfo>>, _) = match &wanted.as_of {
        AsOf::Now => at_once(lake, org, &names).await?,
        AsOf::Time(ms) => {
            let tables = load(lake, org, &names).await?;
            let found = tables.iter().map(|table| table.snapshot_at(*ms)).collect();
            (tables, found, Chosen::AsOf)
        }
        AsOf::Pin(pin) => {
            let tables = load(lake, org, &names).await?;
            let found: Vec<_> = tables.iter().map(|table| pinned(table, pin)).collect();
            if found.iter().all(Result::is_err) {
                let message = format!("org {} has no pin {pin:?}", org.get());
                return Err(Error::new(ErrorCode::LakeNotFound, message)
                    .hint("the operator makes pins: polder pin create NAME --org ID"));
            }
            (tables, found, Chosen::Pin)
        }
    };
    gather((tables, found, chosen), specs, asked_for)
}

/// The states that were found; those that were not are an error where tables were named.
fn gather(
    (tables, found, chosen): (Vec<LakeTable>, Vec<Result<SnapshotInfo>>, Chosen),
    mut specs: Specs,
    named: bool,
) -> Result<States> {
    let (mut states, mut left_out) = (Vec::new(), Vec::new());
    for (table, snapshot) in tables.into_iter().zip(found) {
        match snapshot {
            Ok(snapshot) => states.push(State::new(table, snapshot, &mut specs)?),
            Err(error) if named || error.code() != ErrorCode::LakeNotFound => return Err(error),
            Err(error) => {
                let (table, why) = (table.name().to_owned(), error.message().to_owned());
                left_out.push(LeftOut { table, why });
            }
        }
    }
    if states.is_empty() {
        return Err(Error::new(ErrorCode::LakeNotFound, "there is no table with rows")
            .hint("the first run makes them"));
    }
    Ok(States { found: states, left_out, chosen })
}

/// The states of a token, in its order.
pub(super) async fn again(
    lake: &Lake,
    org: &Authorized<OrgId>,
    specs: Vec<TableSpec>,
    token: &Token,
) -> Result<Vec<State>> {
    let mut specs: Specs = specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
    let names: Vec<String> = token.tables.iter().map(|(name, _)| name.clone()).collect();
    let tables = load(lake, org, &names).await?;
    let mut states = Vec::new();
    for (table, (_, id)) in tables.into_iter().zip(&token.tables) {
        let snapshot = table.snapshot(*id).ok_or_else(|| {
            let message = format!("the state of table {:?} has expired", table.name());
            Error::new(ErrorCode::LakeNotFound, message)
                .hint("begin again without resume; a pin keeps states for as long as it is there")
        })?;
        states.push(State::new(table, snapshot, &mut specs)?);
    }
    Ok(states)
}

async fn load(lake: &Lake, org: &Authorized<OrgId>, names: &[String]) -> Result<Vec<LakeTable>> {
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        if let Some(table) = lake.table(org, name).await? {
            tables.push(table);
        } else {
            let message = format!("the lake has no table {name:?} of org {}", org.get());
            let there = lake.tables(org).await?.join(", ");
            return Err(Error::new(ErrorCode::LakeNotFound, message)
                .hint(format!("its tables are: {there}")));
        }
    }
    Ok(tables)
}

type Found = (Vec<LakeTable>, Vec<Result<SnapshotInfo>>, Chosen);

async fn at_once(lake: &Lake, org: &Authorized<OrgId>, names: &[String]) -> Result<Found> {
    let current =
        |tables: &[LakeTable]| tables.iter().map(LakeTable::current_snapshot).collect::<Vec<_>>();
    let mut tables = load(lake, org, names).await?;
    let mut asked_ms = 0;
    for _ in 0..LOADS_MAX {
        asked_ms = Utc::now().timestamp_millis();
        let before = current(&tables);
        tables = load(lake, org, names).await?;
        let ids = |states: &[Option<SnapshotInfo>]| {
            states.iter().map(|state| state.as_ref().map(|found| found.id)).collect::<Vec<_>>()
        };
        if ids(&before) == ids(&current(&tables)) {
            let found = tables.iter().map(present).collect();
            return Ok((tables, found, Chosen::AtOnce));
        }
    }
    let found = tables.iter().map(|table| table.snapshot_at(asked_ms)).collect();
    Ok((tables, found, Chosen::ByHistory))
}

fn present(table: &LakeTable) -> Result<SnapshotInfo> {
    table.current_snapshot().ok_or_else(|| {
        let message = format!("table {:?} has no rows yet", table.name());
        Error::new(ErrorCode::LakeNotFound, message).hint("load it first")
    })
}

fn pinned(table: &LakeTable, pin: &str) -> Result<SnapshotInfo> {
    let found = table.pins().into_iter().find(|found| found.name == pin);
    found.map(|found| found.snapshot).ok_or_else(|| {
        let message = format!("table {:?} has no pin {pin:?}", table.name());
        Error::new(ErrorCode::LakeNotFound, message).hint("leave the table out")
    })
}
