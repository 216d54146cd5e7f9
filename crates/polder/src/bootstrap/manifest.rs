//! What a bootstrap fixes, for whoever reads its rows.

use std::collections::BTreeMap;

use polder_core::{Authorized, OrgId, Result};
use polder_lake::{Lake, LakeTable};
use polder_pipeline::verdicts;
use serde::Serialize;
use utoipa::ToSchema;

use super::states::{Chosen, LeftOut, State};
use super::token::Token;
use crate::output::rfc3339;

/// One state of an org's tables.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Manifest {
    pub(crate) org: String,
    /// How the states of different tables belong together.
    consistent: Chosen,
    /// Rows of earlier events are left out, RFC 3339.
    #[schema(format = "date-time")]
    since: Option<String>,
    /// The table whose rows are documents, with what belongs to them; null for rows as they are.
    entity: Option<String>,
    /// In the order in which their rows are sent.
    pub(crate) tables: Vec<TableState>,
    /// Tables of the org that are not among them.
    left_out: Vec<LeftOut>,
    /// Sends from here on: `resume=<token>`.
    pub(crate) token: String,
}

impl Manifest {
    /// The tables and their snapshots, for the audit log.
    pub(crate) fn names(&self) -> String {
        let name = |state: &TableState| format!("{} at {}", state.table, state.snapshot_id);
        self.tables.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// One table at one state.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TableState {
    table: String,
    namespace: String,
    description: Option<String>,
    pub(crate) snapshot_id: i64,
    /// Reads exactly this state in SQL.
    from: String,
    /// When the state was written, RFC 3339.
    #[schema(format = "date-time")]
    updated_at: String,
    age_seconds: u64,
    /// Rows of the whole state, whatever `since` leaves out; null where another engine did not say.
    rows: Option<u64>,
    /// How far the table has read its source, where it is the current state and says so.
    read_up_to: Option<String>,
    key: Vec<String>,
    /// Columns that name a row of another table by its key.
    references: BTreeMap<String, String>,
    /// The column that says when what a row tells of happened; null: `since` leaves out nothing here.
    event_time: Option<String>,
    columns: Vec<DocumentedColumn>,
    /// What the last validation said; null where there was none.
    verdict: Option<LastVerdict>,
}

/// A column, and what it holds.
#[derive(Debug, Serialize, ToSchema)]
struct DocumentedColumn {
    name: String,
    /// In Iceberg's notation.
    #[serde(rename = "type")]
    data_type: String,
    nullable: bool,
    doc: Option<String>,
}

/// What the last validation of a table said.
#[derive(Debug, Serialize, ToSchema)]
struct LastVerdict {
    /// `verified`, `warning`, `stale` or `failed`.
    verdict: String,
    /// RFC 3339.
    #[schema(format = "date-time")]
    at: String,
    /// It was said of this very state.
    of_this_state: bool,
}

/// Writes down what was chosen.
pub(super) async fn write(
    lake: &Lake,
    org: &Authorized<OrgId>,
    states: &[State],
    (token, left_out, consistent): (&Token, Vec<LeftOut>, Chosen),
) -> Result<Manifest> {
    let said = verdicts(lake, Some((org, None))).await?;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let mut tables = Vec::with_capacity(states.len());
    for state in states {
        let of_table = said.get(&(org.get().to_string(), state.name().to_owned()));
        let said_last = of_table.and_then(|said| said.of(Some(state.snapshot.id)));
        let verdict = said_last.map(|(last, of_this_state)| LastVerdict {
            verdict: last.verdict.as_str().to_owned(),
            at: rfc3339(last.at_ms),
            of_this_state,
        });
        tables.push(table(state, verdict, now_ms)?);
    }
    Ok(Manifest {
        org: org.get().to_string(),
        consistent,
        since: token.since_us.map(|us| rfc3339(us.div_euclid(1000))),
        entity: token.entity.clone(),
        tables,
        left_out,
        token: token.text(),
    })
}

fn table(state: &State, verdict: Option<LastVerdict>, now_ms: i64) -> Result<TableState> {
    let spec = state.spec.as_ref();
    let written = state.table.column_docs(state.snapshot.id)?;
    let doc = |name: &str| {
        let said = spec.and_then(|spec| spec.docs.get(name));
        said.or_else(|| written.get(name)).cloned()
    };
    let columns = state.columns.fields.iter().map(|field| DocumentedColumn {
        doc: doc(&field.name),
        data_type: field.data_type.to_string(),
        nullable: field.nullable,
        name: field.name.clone(),
    });
    let columns = columns.collect();
    let current = state.table.current_snapshot().is_some_and(|now| now.id == state.snapshot.id);
    let checkpoint = if current { state.table.checkpoint()? } else { None };
    let read_up_to = checkpoint.and_then(|checkpoint| checkpoint.cursor);
    Ok(TableState {
        table: state.name().to_owned(),
        namespace: state.table.org().namespace(),
        description: spec.and_then(|spec| spec.description.clone()),
        snapshot_id: state.snapshot.id,
        from: at_state(&state.table, state.snapshot.id),
        updated_at: rfc3339(state.snapshot.timestamp_ms),
        age_seconds: (now_ms - state.snapshot.timestamp_ms).max(0) as u64 / 1000,
        rows: state.snapshot.rows,
        read_up_to: read_up_to.map(|mark| mark.to_string()),
        key: spec.map(|spec| spec.key.clone()).unwrap_or_default(),
        references: spec.map(|spec| spec.references.clone()).unwrap_or_default(),
        event_time: state.event_time().map(str::to_owned),
        columns,
        verdict,
    })
}

/// A table's name as SQL takes it, whatever is in it.
pub(crate) fn name_in_sql(table: &LakeTable) -> String {
    format!("lake.{}.{}", quoted(&table.org().namespace()), quoted(table.name()))
}

/// What reads one state in SQL.
pub(super) fn at_state(table: &LakeTable, snapshot: i64) -> String {
    format!("{} FOR VERSION AS OF {snapshot}", name_in_sql(table))
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
