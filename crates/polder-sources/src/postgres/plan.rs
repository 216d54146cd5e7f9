//! Planning a read: one snapshot of the source, the statement, and its splits.
//!
//! All splits' sessions are opened here and import the snapshot at once, so that none depends on
//! another one's life. Reading is done in `read`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use polder_core::progress::Stage;
use polder_core::spec::{Filter, OnUnrepresentable};
use polder_core::{Error, ErrorCode, ReadPlan, ReadRequest, Result, RunProgress, TableSchema};

use super::catalog::{self, Identity, Kind, Relation, Tree};
use super::columns::{self, ColumnRead};
use super::connect::{Server, Session};
use super::cursor::Cursor;
use super::doubts;
use super::filter;
use super::horizon::{self, Horizon};
use super::names::TableName;
use super::predicate;
use super::read::Job;
use super::select::Select;
use super::transactions::{self, State};

/// Tables below this size are not worth a second connection.
const SPLIT_BYTES_MIN: u64 = 8 << 20;
/// How long a lock is waited for before the run says so.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// TID range scans came with this version; before it a ctid condition reads the whole table.
const TID_RANGE_VERSION: u32 = 14;
/// So did infinite intervals; before it their bits are those of a long one.
pub(super) const INFINITE_INTERVALS_VERSION: u32 = 17;
const DOING: &str = "planning the read";

/// Fixes a snapshot and says what reading it will bring.
pub(super) async fn plan(server: &Server, request: &ReadRequest) -> Result<ReadPlan> {
    let name = TableName::parse(&request.from, &request.org)?;
    let prepared = Box::pin(prepare(server, request, &name)).await?;
    let Prepared { session, relation, columns, conditions, tree, outlook, mut plan, .. } = prepared;
    let select = Select::new(&relation, &columns, conditions, &tree);
    let wanted = splits_wanted(&session, request, &select, &tree, &outlook);
    let (identity, major) = (relation.identity(), session.major);
    let helpers = Helpers { server, name: &name, identity: &identity, request };
    let sessions = helpers.join(session, wanted, &mut plan.warnings).await?;
    let job = Job {
        key: columns::numbers(&columns, &request.key),
        columns: columns.clone(),
        schema: plan.schema.to_arrow(),
        table: identity.clone(),
        others: Vec::new(),
        infinite_intervals: major >= INFINITE_INTERVALS_VERSION,
        cursor_is_coarse: prepared.cursor_is_coarse,
        batch_bytes: request.batch_bytes,
        progress: Arc::clone(&request.progress),
    };
    plan.splits = select.splits(sessions, &tree.blocks, job, request);
    Ok(plan)
}

/// A read that is planned, but for its splits: one session with the snapshot.
pub(super) struct Prepared {
    pub(super) session: Session,
    pub(super) relation: Relation,
    pub(super) columns: Vec<ColumnRead>,
    /// What rows have to fulfil.
    pub(super) conditions: Vec<String>,
    pub(super) tree: Tree,
    outlook: Outlook,
    pub(super) cursor_is_coarse: bool,
    /// Without splits.
    pub(super) plan: ReadPlan,
}

/// Takes the lock and the snapshot, and finds out what they hold.
pub(super) async fn prepare(
    server: &Server,
    request: &ReadRequest,
    name: &TableName,
) -> Result<Prepared> {
    let filter = filter_sql(request, name)?;
    let session = server.session(name.database.as_deref(), request).await?;
    let oldest = horizon::oldest_writer(&session).await?;
    let (relation, seen) = enter(&session, name, request).await?;
    let columns = columns::choose(&relation, request)?;
    let cursor = match &request.cursor {
        Some(range) => Some(Cursor::of(&relation, &range.column)?),
        None => None,
    };
    let mut warnings: Vec<String> = policies(&relation).into_iter().collect();
    let tree = catalog::tree(&session, relation.oid).await?;
    if let Some(cursor) = &cursor {
        cursor.check_tree(&tree)?;
    }
    let mut conditions = conditions(request, filter, cursor.as_ref())?;
    conditions.extend(predicate::condition(&session, &relation, &columns, request).await?);
    let outlook = {
        let select = Select::new(&relation, &columns, conditions.clone(), &tree);
        // The first statement that locks what LOCK did not.
        Outlook::of(&session, &select, &tree).await?
    };
    catalog::not_rewritten(&session).await?;
    let mut open = Vec::new();
    let lower = request.cursor.as_ref().and_then(|range| range.lower.as_ref());
    let mut cursor_ceiling = None;
    if let (Some(cursor), Some(seen)) = (&cursor, seen) {
        let seen = seen.and(&Horizon::observe(&session).await?);
        open = seen.doubts(cursor);
        cursor_ceiling = Some(seen.ceiling(cursor, lower, tree.written_elsewhere, &mut warnings));
    }
    let key_is_unique = key_is_unique(&session, request, &relation, &tree).await?;
    let ambiguous = !key_is_unique && !request.key.is_empty();
    let doubts = doubts::of_catalog(&session, &relation, &tree, cursor.as_ref(), ambiguous).await?;
    let by_transaction = cursor.as_ref().is_some_and(Cursor::is_by_transaction);
    let state = state(&session, oldest, by_transaction).await?;
    if let Some(state) = state.as_ref().filter(|_| by_transaction) {
        let known = request.snapshot_read.as_deref();
        cursor_ceiling = Some(state.ceiling(lower, known)?);
    }
    let plan = ReadPlan {
        splits: Vec::new(),
        schema: TableSchema::new(columns.iter().map(|column| column.field.clone()).collect()),
        snapshot: state.map(|state| state.name()),
        rows_estimated: outlook.rows,
        // A snapshot says more than the rows do: many may be of the last transaction.
        cursor_floor: cursor_ceiling.clone().filter(|_| by_transaction),
        cursor_ceiling,
        key_is_unique,
        objects: BTreeMap::new(),
        doubts: [doubts, open].concat(),
        warnings,
    };
    let cursor_is_coarse = cursor.is_some_and(|cursor| cursor.is_coarse());
    Ok(Prepared { session, relation, columns, conditions, tree, outlook, cursor_is_coarse, plan })
}

/// The state that is read, which a validation will ask for: see `digest`.
async fn state(
    session: &Session,
    oldest: Option<String>,
    by_transaction: bool,
) -> Result<Option<State>> {
    let snapshot = session.text("SELECT pg_catalog.pg_current_snapshot()", DOING).await?;
    let server = if by_transaction { transactions::server(session).await? } else { None };
    Ok(snapshot.zip(oldest).map(|(snapshot, oldest)| State { server, snapshot, oldest }))
}

/// A warning of policies that hide rows.
fn policies(relation: &Relation) -> Option<String> {
    let table = relation.display();
    relation.row_security.then(|| {
        format!(
            "row-level security is active on {table}: only the rows its policies show to the role \
             are read"
        )
    })
}

/// Whether an index vouches for the key: of the table named, as those of its heirs know nothing of
/// each other. Clamped values may be equal although the source's are not.
pub(super) async fn key_is_unique(
    session: &Session,
    request: &ReadRequest,
    relation: &Relation,
    tree: &Tree,
) -> Result<bool> {
    let one_index = relation.kind == Kind::Partitioned || tree.oids.len() <= 1;
    if request.key.is_empty()
        || !one_index
        || request.on_unrepresentable == OnUnrepresentable::Clamp
    {
        return Ok(false);
    }
    catalog::is_unique(session, relation.oid, &request.key).await
}

pub(super) fn filter_sql(request: &ReadRequest, name: &TableName) -> Result<Option<String>> {
    match &request.filter {
        None => Ok(None),
        Some(Filter::Sql(text)) => filter::compile(text, &request.org).map(Some),
        Some(Filter::Document(_)) => {
            Err(Error::new(ErrorCode::SpecInvalid, "the filter is not SQL")
                .detail(name.display())
                .hint("write a condition as text: filter: org_id = {org}"))
        }
    }
}

/// Begins the transaction that reads the table and takes its snapshot. Returns the table as that
/// snapshot has it and, for incremental reads, the transactions that were open before.
pub(super) async fn enter(
    session: &Session,
    name: &TableName,
    request: &ReadRequest,
) -> Result<(Relation, Option<Horizon>)> {
    let found = catalog::find(session, name).await?;
    let seen = match &request.cursor {
        Some(range) => {
            let cursor = Cursor::of(&found, &range.column)?;
            cursor.check_encoding(session).await?;
            // Of transactions' numbers the snapshot itself tells how far they may move.
            if cursor.is_by_transaction() {
                None
            } else {
                Some(Horizon::before(session, &found, &cursor, range.lower.as_ref()).await?)
            }
        }
        None => None,
    };
    session.begin().await?;
    lock(session, name, found.kind, &request.progress).await?;
    // This query takes the snapshot.
    let relation = catalog::find(session, name).await?;
    if relation.oid == found.oid {
        return Ok((relation, seen));
    }
    let message = format!("{} was replaced by another table meanwhile", name.display());
    Err(Error::new(ErrorCode::SourceUnavailable, message).hint("try again"))
}

/// Takes the lock that reading takes anyway before the snapshot is taken: a TRUNCATE or a rewriting
/// ALTER TABLE that commits in between would leave an old snapshot with an empty table (PostgreSQL
/// manual 13.6). What cannot be locked like that is locked by its first statement.
pub(super) async fn lock(
    session: &Session,
    name: &TableName,
    kind: Kind,
    progress: &RunProgress,
) -> Result<()> {
    if !matches!(kind, Kind::Table | Kind::Partitioned | Kind::View) {
        return Ok(());
    }
    session.run("SAVEPOINT polder", "preparing to lock the table").await?;
    let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", name.sql());
    let doing = format!("locking {} for reading", name.display());
    let locked = {
        let mut locked = std::pin::pin!(session.run(&sql, &doing));
        if let Ok(locked) = tokio::time::timeout(LOCK_PATIENCE, &mut locked).await {
            locked
        } else {
            progress.wait_for(format!("a lock on {} that another session holds", name.display()));
            let locked = locked.await;
            progress.enter(Stage::Planning);
            locked
        }
    };
    match locked {
        Ok(()) => {}
        // A role that may read some columns only may not lock; whether it may read is still to come.
        Err(error) if error.code() == ErrorCode::SourceDenied => {
            session.run("ROLLBACK TO SAVEPOINT polder", &doing).await?;
        }
        Err(error) => return Err(error),
    }
    // Snapshots are not exported from inside a savepoint.
    session.run("RELEASE SAVEPOINT polder", &doing).await
}

fn conditions(
    request: &ReadRequest,
    filter: Option<String>,
    cursor: Option<&Cursor>,
) -> Result<Vec<String>> {
    let mut conditions: Vec<String> = filter.into_iter().collect();
    if let (Some(cursor), Some(range)) = (cursor, &request.cursor) {
        conditions.extend(cursor.condition(range.lower.as_ref())?);
    }
    Ok(conditions)
}

/// What the server's planner expects of the statement.
struct Outlook {
    rows: Option<u64>,
    /// Whether the table is read from end to end, so that ranges share the work.
    scans: bool,
}

impl Outlook {
    async fn of(session: &Session, select: &Select<'_>, tree: &Tree) -> Result<Self> {
        let sql = format!("EXPLAIN (FORMAT JSON) {}", select.whole());
        let plan = session.text(&sql, DOING).await?.unwrap_or_default();
        let plan: serde_json::Value = serde_json::from_str(&plan).map_err(|error| {
            Error::new(ErrorCode::SourceMalformed, "the server's plan cannot be read")
                .caused_by(error)
        })?;
        let top = &plan[0]["Plan"];
        let known = select.kind() == Kind::View || tree.analysed;
        Ok(Self {
            rows: known.then(|| top["Plan Rows"].as_u64()).flatten(),
            scans: scans(top, &tree.names),
        })
    }
}

/// Whether a sequential scan of one of the tables is part of the plan.
fn scans(node: &serde_json::Value, tables: &[String]) -> bool {
    let of_table = |node: &serde_json::Value| {
        node["Relation Name"].as_str().is_some_and(|name| tables.iter().any(|table| table == name))
    };
    if node["Node Type"] == "Seq Scan" && of_table(node) {
        return true;
    }
    node["Plans"].as_array().is_some_and(|nodes| nodes.iter().any(|node| scans(node, tables)))
}

fn splits_wanted(
    session: &Session,
    request: &ReadRequest,
    select: &Select<'_>,
    tree: &Tree,
    outlook: &Outlook,
) -> usize {
    let by_blocks = select.kind().has_blocks() && tree.has_blocks;
    if !by_blocks || !outlook.scans || session.major < TID_RANGE_VERSION {
        return 1;
    }
    let blocks: u64 = tree.blocks.iter().map(|&blocks| u64::from(blocks)).sum();
    let worth = (blocks * tree.block_bytes / SPLIT_BYTES_MIN).max(1);
    request.splits_max.get().min(worth as usize)
}

/// How the second and later splits get their sessions.
struct Helpers<'a> {
    server: &'a Server,
    name: &'a TableName,
    identity: &'a Identity,
    request: &'a ReadRequest,
}

impl Helpers<'_> {
    /// Opens sessions with the first one's snapshot until there are `wanted`, or as many as may be open.
    /// What else keeps them from it costs speed only, so it ends in a warning.
    async fn join(
        &self,
        first: Session,
        wanted: usize,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Session>> {
        if wanted < 2 {
            return Ok(vec![first]);
        }
        let standby = first.text("SELECT pg_catalog.pg_is_in_recovery()", DOING).await?;
        if standby.as_deref() == Some("t") {
            warnings.push(
                "the source is a standby, which cannot share a snapshot: the table is read over one \
                 connection"
                    .to_owned(),
            );
            return Ok(vec![first]);
        }
        let snapshot = first.text("SELECT pg_catalog.pg_export_snapshot()", DOING).await?;
        let snapshot = snapshot.unwrap_or_default();
        let mut sessions = vec![first];
        while sessions.len() < wanted {
            let database = self.name.database.as_deref();
            let Some(opened) = self.server.another(database, self.request).await else { break };
            let joined = match opened {
                Ok(session) => self.joined(session, &snapshot).await,
                Err(error) => Err(error),
            };
            match joined {
                Ok(session) => sessions.push(session),
                Err(error) => {
                    let count = sessions.len();
                    warnings.push(format!("read over {count} of {wanted} connections: {error}"));
                    break;
                }
            }
        }
        Ok(sessions)
    }

    async fn joined(&self, session: Session, snapshot: &str) -> Result<Session> {
        session.begin().await?;
        // A lock that is queued behind an ALTER TABLE, which waits for the first session's, would
        // never come: hence the timeout. The table is locked now, not when the split is read, for
        // the same reason.
        let sql = format!(
            "SET TRANSACTION SNAPSHOT {}; SET LOCAL lock_timeout = '5s'; SELECT 1 FROM {} LIMIT 0; \
             SET LOCAL lock_timeout = 0",
            super::names::literal(snapshot),
            self.name.sql()
        );
        session.run(&sql, "joining the snapshot").await?;
        self.identity.check(&session).await?;
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_scans_of_the_table_itself_are_shared() {
        let tables = ["t_1".to_owned()];
        let scan = |table: &str| json!({"Node Type": "Seq Scan", "Relation Name": table});
        assert!(scans(&scan("t_1"), &tables));
        assert!(scans(&json!({"Node Type": "Append", "Plans": [scan("t_1")]}), &tables));
        assert!(!scans(&scan("other"), &tables));
        assert!(!scans(&json!({"Node Type": "Index Scan", "Relation Name": "t_1"}), &tables));
    }
}
