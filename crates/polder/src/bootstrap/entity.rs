//! One document for each row of a table, with the rows of other tables that belong to it.
//!
//! What belongs to what is said by the table specs' `references`. A table is nested where a reference leads
//! from it to the entity, from the entity to it, or from both to a third one (e-mails and opportunities
//! of one account). Every table is sorted by the entity's key, by the engine, which spills what
//! does not fit; the sorted tables are then walked through side by side. In memory are one
//! document and a part of a batch of each table.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::{Stream, StreamExt};
use polder_core::{
    Authorized, CmpOp, Engine, Error, ErrorCode, Literal, OrgId, Predicate, Principal, Result,
    Session,
};
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::Bootstraps;
use super::key::{Key, Kind};
use super::manifest::{at_state, quoted};
use super::states::{LeftOut, State};
use super::token::Token;

/// The column that a sorted table has more: the key of the entity that a row belongs to.
const KEY: &str = "polder key";
const LINK: &str = "polder link";
/// Rows that become JSON at once.
const ROWS_AT_ONCE: usize = 256;
/// Rows and bytes that belong to one entity, at most.
const DOCUMENT_ROWS_MAX: usize = 100_000;
const DOCUMENT_BYTES_MAX: usize = 64 << 20;
/// How long a bootstrap may wait for others.
const WAITING_MAX: Duration = Duration::from_mins(1);

/// One entity as a line of JSON.
pub(super) struct Document {
    pub(super) key: Key,
    pub(super) line: Vec<u8>,
}

/// The columns by which rows of a table belong to the entity.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    entity: String,
    other: String,
}

/// Leaves out the tables that nothing leads to from the entity.
///
/// # Errors
/// `spec.invalid` for an entity that is none, and for a table that was asked for by name and does not
/// belong to it.
pub(super) fn keep_related(
    states: &mut Vec<State>,
    root: &str,
    named: bool,
) -> Result<Vec<LeftOut>> {
    let Some(at) = states.iter().position(|state| state.name() == root) else {
        let message = format!("the entity {root:?} is not among the tables");
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("say entity=<table>, and name the table in tables= as well"));
    };
    let entity = states.remove(at);
    key_of(&entity)?;
    let mut left_out = Vec::new();
    let mut kept = vec![entity];
    for state in states.drain(..) {
        if link(&kept[0], &state)?.is_some() {
            kept.push(state);
            continue;
        }
        let why = format!("no reference leads from it to {root}");
        if named {
            let message = format!("{}: {why}", state.name());
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("say it in its table spec: references: { opportunity_id: opportunity }"));
        }
        left_out.push(LeftOut { table: state.name().to_owned(), why });
    }
    *states = kept;
    Ok(left_out)
}

/// The one column that identifies an entity.
fn key_of(state: &State) -> Result<&str> {
    let key = state.spec.as_ref().map(|spec| spec.key.as_slice()).unwrap_or_default();
    let [column] = key else {
        let message = format!("table {:?} has no key of one column in its spec", state.name());
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint("say it there: key: [id]"));
    };
    kind(state, column)?;
    Ok(column)
}

fn kind(state: &State, column: &str) -> Result<Kind> {
    let found = state.columns.field(column);
    found.and_then(|field| Kind::of(&field.data_type)).ok_or_else(|| {
        let message = format!(
            "column {column:?} of table {:?} is not there, or is no int, long, string or uuid",
            state.name()
        );
        Error::new(ErrorCode::SpecInvalid, message).hint("entities are joined by such columns")
    })
}

/// How a table belongs to the entity, if it does.
fn link(entity: &State, other: &State) -> Result<Option<Link>> {
    let (Some(root), Some(spec)) = (&entity.spec, &other.spec) else { return Ok(None) };
    let to = |table: &str, references: &std::collections::BTreeMap<String, String>| {
        let columns = references.iter().filter(|(_, named)| *named == table);
        columns.map(|(column, _)| column.clone()).collect::<Vec<_>>()
    };
    let one = |mut columns: Vec<String>, from: &State, table: &str| match columns.len() {
        0 => Ok(None),
        1 => Ok(columns.pop()),
        _ => {
            let message = format!(
                "table {:?} refers to {table} by several columns: {}",
                from.name(),
                columns.join(", ")
            );
            Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("keep the one in `references` by which its rows belong to it"))
        }
    };
    let found = if let Some(column) = one(to(&root.name, &spec.references), other, &root.name)? {
        Link { entity: key_of(entity)?.to_owned(), other: column }
    } else if let Some(column) = one(to(&spec.name, &root.references), entity, &spec.name)? {
        Link { entity: column, other: key_of(other)?.to_owned() }
    } else {
        let shared = root.references.values().find(|table| !to(table, &spec.references).is_empty());
        let Some(table) = shared else { return Ok(None) };
        let entity_column = one(to(table, &root.references), entity, table)?;
        let other_column = one(to(table, &spec.references), other, table)?;
        match (entity_column, other_column) {
            (Some(entity), Some(other)) => Link { entity, other },
            _ => return Ok(None),
        }
    };
    if kind(entity, &found.entity)? != kind(other, &found.other)? {
        let message = format!(
            "column {:?} of {:?} and {:?} of {:?} are of different types",
            found.other,
            other.name(),
            found.entity,
            entity.name()
        );
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("declare one of them with `types`, or take the reference out"));
    }
    Ok(Some(found))
}

/// Reads documents in the order of their keys.
pub(super) struct Entities {
    entity: String,
    root: Feed,
    others: Vec<(String, Feed)>,
    after: Option<Key>,
    _turn: OwnedSemaphorePermit,
}

impl Entities {
    /// Starts the sorts. `states` are those that [`keep_related`] kept.
    ///
    /// # Errors
    /// `query.limit` where others take too long; `query.*`.
    pub(super) async fn open(
        context: &Bootstraps,
        org: &Authorized<OrgId>,
        states: &[State],
        root: &str,
        token: &Token,
    ) -> Result<Self> {
        let turn = tokio::time::timeout(WAITING_MAX, context.turns.clone().acquire_owned()).await;
        let turn = turn.ok().and_then(std::result::Result::ok).ok_or_else(|| {
            Error::new(ErrorCode::QueryLimit, "too many bootstraps by entity are running")
                .hint("try again later")
        })?;
        let Some((entity, others)) = states.split_first() else {
            return Err(Error::new(ErrorCode::Internal, "a bootstrap without tables"));
        };
        let session = Session {
            // The org's own eyes: no text leads elsewhere.
            principal: Principal::Org(org.get().clone()),
            rows_max: None,
            // Whole MiB, in which the engine hands it out: together never more than there is, or two
            // bootstraps would wait for each other.
            memory_bytes_max: (context.memory_bytes / states.len().max(1)) >> 20 << 20,
            snapshots: BTreeMap::default(),
            pushdown: true,
        };
        let open = async |sql: String| {
            let found = context.engine.query(&sql, &session).await?;
            let key = found.schema.index_of(KEY).map_err(crate::answer::failed)?;
            Ok::<_, Error>(Feed { batches: found.batches, key, rest: None, rows: VecDeque::new() })
        };
        let mut feeds = Vec::new();
        for other in others {
            let link = link(entity, other)?.ok_or_else(|| {
                Error::new(ErrorCode::SpecInvalid, "the references have changed")
                    .hint("begin again without resume")
            })?;
            let sql = nested(entity, other, &link, token.since_us)?;
            feeds.push((other.name().to_owned(), open(sql).await?));
        }
        Ok(Self {
            entity: root.to_owned(),
            root: open(sorted(entity)?).await?,
            others: feeds,
            after: token.after().cloned(),
            _turn: turn,
        })
    }

    /// The next document; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(key) = self.root.peek().await?.cloned() else { return Ok(None) };
            let mut size = Size::default();
            let mut versions = self.root.all(&key, &mut size).await?;
            let sent = self.after.as_ref().is_some_and(|after| key <= *after);
            let mut related = Map::new();
            for (name, feed) in &mut self.others {
                feed.skip_below(&key).await?;
                let rows = feed.all(&key, &mut size).await;
                let rows =
                    rows.map_err(|error| error.within(&format!("{} {}", self.entity, key.json())))?;
                related.insert(name.clone(), Value::Array(rows));
            }
            if sent {
                continue;
            }
            let row = versions.pop().unwrap_or_default();
            let document = json!({
                "entity": self.entity,
                "key": key.json(),
                "row": row,
                "earlier": versions,
                "related": related,
            });
            return Ok(Some(Document { key, line: format!("{document}\n").into_bytes() }));
        }
    }
}

/// The rows of a table in the order of the entities' keys.
struct Feed {
    batches: Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>,
    key: usize,
    rest: Option<RecordBatch>,
    rows: VecDeque<(Key, Value)>,
}

/// How large a document has become.
#[derive(Default)]
struct Size {
    rows: usize,
    bytes: usize,
}

impl Feed {
    async fn peek(&mut self) -> Result<Option<&Key>> {
        while self.rows.is_empty() {
            let batch = match self.rest.take() {
                Some(rest) => rest,
                None => match self.batches.next().await {
                    Some(batch) => batch?,
                    None => return Ok(None),
                },
            };
            let taken = batch.num_rows().min(ROWS_AT_ONCE);
            self.rest =
                (taken < batch.num_rows()).then(|| batch.slice(taken, batch.num_rows() - taken));
            let mut batch = batch.slice(0, taken);
            let keys = Key::column(&batch.remove_column(self.key))?;
            self.rows.extend(keys.into_iter().zip(crate::answer::objects(&batch)?));
        }
        Ok(self.rows.front().map(|(key, _)| key))
    }

    /// Rows of no entity, or of one that is past.
    async fn skip_below(&mut self, key: &Key) -> Result<()> {
        while self.peek().await?.is_some_and(|next| next < key) {
            self.rows.pop_front();
        }
        Ok(())
    }

    async fn all(&mut self, key: &Key, size: &mut Size) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        while self.peek().await?.is_some_and(|next| next == key) {
            let Some((_, row)) = self.rows.pop_front() else { break };
            size.rows += 1;
            size.bytes += row.to_string().len();
            if size.rows > DOCUMENT_ROWS_MAX || size.bytes > DOCUMENT_BYTES_MAX {
                let message = format!(
                    "more than {DOCUMENT_ROWS_MAX} rows or {} MiB belong to one entity",
                    DOCUMENT_BYTES_MAX >> 20
                );
                return Err(Error::new(ErrorCode::QueryLimit, message)
                    .hint("say since=, name fewer tables, or leave shape=entity out"));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// The entities' own rows: of a key that is there more than once, the newest comes last.
fn sorted(entity: &State) -> Result<String> {
    let key = quoted(key_of(entity)?);
    let spec = entity.spec.as_ref();
    let newest = spec.and_then(|spec| spec.cursor.as_deref()).or(entity.event_time());
    let newest = newest.filter(|column| entity.columns.field(column).is_some());
    let then = newest.map(|column| format!(", {}", quoted(column))).unwrap_or_default();
    let from = at_state(&entity.table, entity.snapshot.id);
    Ok(format!("SELECT *, {key} AS {} FROM {from} ORDER BY {}{then}", quoted(KEY), quoted(KEY)))
}

/// The rows of another table, each with the key of the entity it belongs to, by that and by time.
fn nested(entity: &State, other: &State, link: &Link, since_us: Option<i64>) -> Result<String> {
    let (key, column) = (quoted(KEY), quoted(LINK));
    let own = quoted(key_of(entity)?);
    let mut order = vec![key.clone()];
    let keys = other.spec.iter().flat_map(|spec| spec.key.iter().map(String::as_str));
    for column in other.event_time().into_iter().chain(keys) {
        if other.columns.field(column).is_some() {
            order.push(format!("c.{}", quoted(column)));
        }
    }
    let wanted = condition(&other.since(since_us))?;
    Ok(format!(
        "SELECT c.*, r.{key} FROM (SELECT * FROM {}{wanted}) AS c \
         JOIN (SELECT DISTINCT {own} AS {key}, {} AS {column} FROM {}) AS r \
         ON c.{} = r.{column} ORDER BY {}",
        at_state(&other.table, other.snapshot.id),
        quoted(&link.entity),
        at_state(&entity.table, entity.snapshot.id),
        quoted(&link.other),
        order.join(", "),
    ))
}

/// What [`State::since`] gives, as SQL: numbers of microseconds or days, so that nothing is rounded.
fn condition(predicate: &Predicate) -> Result<String> {
    let other = || Error::new(ErrorCode::Internal, "another condition than by time");
    match predicate {
        Predicate::True => Ok(String::new()),
        Predicate::Cmp { column, op: CmpOp::GtEq, value } => {
            let column = quoted(column);
            match value {
                Literal::Timestamp(us) | Literal::Timestamptz(us) => {
                    Ok(format!(" WHERE CAST({column} AS BIGINT) >= {us}"))
                }
                Literal::Date(days) => Ok(format!(" WHERE CAST({column} AS INT) >= {days}")),
                _ => Err(other()),
            }
        }
        _ => Err(other()),
    }
}
