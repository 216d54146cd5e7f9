//! One document for each row of a table, with the rows of other tables that belong to it.
//!
//! What belongs to what is said by the table specs' `references`, and what nests where in `tree.rs`. Every
//! table is sorted by the entity's key, by the engine, which spills what does not fit; the sorted
//! tables are then walked through side by side, whatever their level. In memory are one document
//! and a part of a batch of each table.

use std::collections::{BTreeMap, HashMap, VecDeque};
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
use super::key::Key;
use super::manifest::{at_state, quoted};
use super::states::{LeftOut, State};
use super::token::Token;
use super::tree::{self, Branch, RELATED, Tree, key_of};

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

/// Leaves out the tables that nothing leads to from the entity, which comes first.
///
/// # Errors
/// `spec.invalid` for an entity that is none, and for a table that was asked for by name and does not
/// belong to it; as [`tree::grow`].
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
    states.insert(0, entity);
    let Tree { branches, left_out } = grown(states)?;
    let mut found: Vec<Option<State>> = states.drain(..).map(Some).collect();
    let mut told = Vec::new();
    for (at, error) in left_out {
        let Some(state) = found[at].take() else { continue };
        if named {
            return Err(error.within(state.name()));
        }
        let (table, why) = (state.name().to_owned(), error.message().to_owned());
        told.push(LeftOut { table, why });
    }
    states.extend(found[0].take());
    // A table that is nested at several places is there once.
    states.extend(branches.iter().filter_map(|branch| found[branch.table].take()));
    Ok(told)
}

fn grown(states: &[State]) -> Result<Tree> {
    tree::grow(&states.iter().map(State::shape).collect::<Vec<_>>())
}

/// Reads documents in the order of their keys.
pub(super) struct Entities {
    entity: String,
    root: Feed,
    branches: Vec<Branch>,
    /// The rows of each branch.
    feeds: Vec<Feed>,
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
        let Tree { branches, left_out } = grown(states)?;
        if !left_out.is_empty() {
            return Err(Error::new(ErrorCode::Internal, "tables that do not belong to the entity"));
        }
        let session = Session {
            // The org's own eyes: no text leads elsewhere.
            principal: Principal::Org(org.get().clone()),
            rows_max: None,
            // Whole MiB, in which the engine hands it out: together never more than there is, or two
            // bootstraps would wait for each other.
            memory_bytes_max: (context.memory_bytes / (branches.len() + 1)) >> 20 << 20,
            snapshots: BTreeMap::default(),
            pushdown: true,
        };
        let open = async |sql: String| {
            let found = context.engine.query(&sql, &session).await?;
            let key = found.schema.index_of(KEY).map_err(crate::answer::failed)?;
            Ok::<_, Error>(Feed { batches: found.batches, key, rest: None, rows: VecDeque::new() })
        };
        let mut feeds = Vec::new();
        for branch in &branches {
            let sql = nested(states, &branches, branch, token.since_us)?;
            feeds.push(open(sql).await?);
        }
        Ok(Self {
            entity: root.to_owned(),
            root: open(sorted(&states[0])?).await?,
            branches,
            feeds,
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
            let related = self.related(&key, &mut size).await;
            let related = related
                .map_err(|error| error.within(&format!("{} {}", self.entity, key.json())))?;
            if sent {
                continue;
            }
            let row = versions.pop().unwrap_or_default();
            let document = json!({
                "entity": self.entity,
                "key": key.json(),
                "row": row,
                "earlier": versions,
                "related": hung(&self.branches, related)?,
            });
            return Ok(Some(Document { key, line: format!("{document}\n").into_bytes() }));
        }
    }

    /// The rows of each branch that belong to an entity.
    async fn related(&mut self, key: &Key, size: &mut Size) -> Result<Vec<Vec<Value>>> {
        let mut related = Vec::with_capacity(self.feeds.len());
        for feed in &mut self.feeds {
            feed.skip_below(key).await?;
            related.push(feed.all(key, size).await?);
        }
        Ok(related)
    }
}

/// The rows of all branches, the deeper ones in the rows that they belong to.
fn hung(branches: &[Branch], mut rows: Vec<Vec<Value>>) -> Result<Map<String, Value>> {
    let mut related = Map::new();
    // What is nested in a branch comes behind it.
    for (at, branch) in branches.iter().enumerate().rev() {
        let own = std::mem::take(&mut rows[at]);
        match branch.within {
            None => {
                related.insert(branch.name.clone(), Value::Array(own));
            }
            Some(above) => hang(&mut rows[above], branch, own)?,
        }
    }
    Ok(related)
}

/// Puts rows into those that they belong to, in the order they are in. Of a row that is there in several
/// states the last has them.
fn hang(above: &mut [Value], branch: &Branch, rows: Vec<Value>) -> Result<()> {
    let name = |row: &Value, column: &str| match &row[column] {
        Value::Number(number) => number.as_i64().map(Key::Long),
        Value::String(text) => Some(Key::Text(text.clone())),
        _ => None,
    };
    let mut places = HashMap::new();
    for (at, row) in above.iter().enumerate() {
        if let Some(key) = name(row, &branch.link.above) {
            places.insert(key, at);
        }
    }
    let mut belong: HashMap<usize, Vec<Value>> = HashMap::new();
    for row in rows {
        let place = name(&row, &branch.link.own).and_then(|key| places.get(&key).copied());
        let place = place.ok_or_else(|| {
            let message = format!("a row of {:?} belongs to no row of its document", branch.name);
            Error::new(ErrorCode::Internal, message)
        })?;
        belong.entry(place).or_default().push(row);
    }
    for place in places.into_values() {
        let rows = Value::Array(belong.remove(&place).unwrap_or_default());
        above[place][RELATED][&branch.name] = rows;
    }
    Ok(())
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
    let key = quoted(key_of(&entity.shape())?);
    let spec = entity.spec.as_ref();
    let newest = spec.and_then(|spec| spec.cursor.as_deref()).or(entity.event_time());
    let newest = newest.filter(|column| entity.columns.field(column).is_some());
    let then = newest.map(|column| format!(", {}", quoted(column))).unwrap_or_default();
    let from = at_state(&entity.table, entity.snapshot.id);
    Ok(format!("SELECT *, {key} AS {} FROM {from} ORDER BY {}{then}", quoted(KEY), quoted(KEY)))
}

/// The rows of a branch, each with the key of the entity it belongs to, by that and by time. States of one
/// row at one time come in the order of the cursor.
fn nested(
    states: &[State],
    branches: &[Branch],
    branch: &Branch,
    since_us: Option<i64>,
) -> Result<String> {
    let key = quoted(KEY);
    let state = &states[branch.table];
    let spec = state.spec.as_ref();
    let keys = spec.into_iter().flat_map(|spec| spec.key.iter().map(String::as_str));
    let cursor = spec.and_then(|spec| spec.cursor.as_deref());
    let mut order = vec![key.clone()];
    for column in state.event_time().into_iter().chain(keys).chain(cursor) {
        let named = format!("c.{}", quoted(column));
        if state.columns.field(column).is_some() && !order.contains(&named) {
            order.push(named);
        }
    }
    Ok(format!(
        "SELECT c.*, r.{key} FROM {} AS c JOIN ({}) AS r ON c.{} = r.{} ORDER BY {}",
        rows(state, since_us)?,
        links(states, branches, branch, since_us)?,
        quoted(&branch.link.own),
        quoted(LINK),
        order.join(", "),
    ))
}

/// The rows of a table that documents have.
fn rows(state: &State, since_us: Option<i64>) -> Result<String> {
    let wanted = condition(&state.since(since_us))?;
    Ok(format!("(SELECT * FROM {}{wanted})", at_state(&state.table, state.snapshot.id)))
}

/// The keys of entities, each with the values by which rows of a branch belong to it: those of the rows
/// above, which belong to it in the same way.
fn links(
    states: &[State],
    branches: &[Branch],
    branch: &Branch,
    since_us: Option<i64>,
) -> Result<String> {
    let (key, column, above) = (quoted(KEY), quoted(LINK), quoted(&branch.link.above));
    let Some(parent) = branch.within.map(|at| &branches[at]) else {
        let entity = &states[0];
        let own = quoted(key_of(&entity.shape())?);
        let from = at_state(&entity.table, entity.snapshot.id);
        return Ok(format!("SELECT DISTINCT {own} AS {key}, {above} AS {column} FROM {from}"));
    };
    Ok(format!(
        "SELECT DISTINCT r.{key} AS {key}, p.{above} AS {column} FROM {} AS p JOIN ({}) AS r \
         ON p.{} = r.{column}",
        rows(&states[parent.table], since_us)?,
        links(states, branches, parent, since_us)?,
        quoted(&parent.link.own),
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

#[cfg(test)]
mod tests {
    use super::super::tree::Link;
    use super::*;

    fn branch(name: &str, within: Option<usize>, own: &str) -> Branch {
        let link = Link { above: "id".to_owned(), own: own.to_owned() };
        Branch { name: name.to_owned(), table: 0, within, link }
    }

    #[test]
    fn rows_are_in_those_they_belong_to_and_in_their_order() {
        let branches = [
            branch("call", None, "deal_id"),
            branch("mail", None, "deal_id"),
            branch("segment", Some(0), "call_id"),
            branch("note", Some(0), "call"),
            branch("word", Some(2), "segment"),
        ];
        let rows = vec![
            // The first call is there in two states.
            vec![json!({ "id": 1, "at": 1 }), json!({ "id": 2 }), json!({ "id": 1, "at": 3 })],
            vec![json!({ "id": "m" })],
            vec![
                json!({ "id": "b", "call_id": 2 }),
                json!({ "id": "a", "call_id": 1 }),
                json!({ "id": "c", "call_id": 2 }),
            ],
            Vec::new(),
            vec![json!({ "segment": "c", "text": "x" })],
        ];
        let related = hung(&branches, rows).expect("document");
        let segment = |id: &str, call: i64, words: Value| json!({ "id": id, "call_id": call, "related": { "word": words } });
        let call = |id: i64, segments: Value| json!({ "id": id, "related": { "segment": segments, "note": [] } });
        let mut last = call(1, json!([segment("a", 1, json!([]))]));
        last["at"] = json!(3);
        let word = json!([{ "segment": "c", "text": "x" }]);
        let second = call(2, json!([segment("b", 2, json!([])), segment("c", 2, word)]));
        let expect =
            json!({ "call": [{ "id": 1, "at": 1 }, second, last], "mail": [{ "id": "m" }] });
        assert_eq!(Value::Object(related), expect);
    }

    #[test]
    fn a_row_without_a_place_is_an_error() {
        let branches = [branch("call", None, "deal_id"), branch("segment", Some(0), "call_id")];
        for own in [json!(2), json!("1"), json!(null)] {
            let rows = vec![vec![json!({ "id": 1 })], vec![json!({ "call_id": own })]];
            let error = hung(&branches, rows).expect_err("it would be lost");
            assert_eq!(error.code(), ErrorCode::Internal);
        }
    }
}
