//! What keeps less can be taken back for a while: what a table kept before stands in the store with until when
//! maintenance and runs go by the looser of that and what the table keeps now.
//!
//! A table that leaves its pipelines stands there as long as it is out of them: if it comes back and is to keep
//! less, that is tightening as any other. Nothing is removed here.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use polder_core::spec::{ProcessConfig, TableSpec};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::tighten::{Keeps, less, retention};
use super::{Current, Desired, EffectiveOrg, OrgLayer, effective, patch_after};
use crate::store::{Store, Transaction, failed, places};

/// Until a table comes back.
const NEVER: i64 = i64::MAX;
/// Rows that are written by one statement.
const BATCH: usize = 100;
const COLUMNS: &str = "org, table_name, keeps, until_ms, who";

/// What tables kept that keep less now, or left their pipelines, by org and table.
pub type Undos = BTreeMap<(OrgId, String), Undo>;

/// What a table kept, and until when that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    pub keeps: Keeps,
    /// Milliseconds since the epoch.
    pub until_ms: i64,
    /// Who has it keep less, or took it out.
    pub who: String,
}

/// Settings of a table that are not carried out yet, and can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub org: String,
    pub table: String,
    /// What maintenance is going to remove.
    pub goes: Vec<String>,
    /// When it begins to, RFC 3339.
    pub until: String,
    /// Who has it keep less.
    pub who: String,
    /// What the table is to keep then.
    #[serde(skip)]
    pub keeps: Keeps,
}

impl Pending {
    /// What waits, for people.
    pub fn sentence(&self) -> String {
        let Self { org, table, goes, until, who, .. } = self;
        format!(
            "{org}/{table}: {} - not before {until}; {who} said so, and until then `polder undo \
             --org {org} --table {table}` takes it back",
            goes.join("; ")
        )
    }
}

impl Undo {
    /// Has runs and maintenance of a table keep what it kept.
    pub fn hold(&self, table: &mut TableSpec) {
        self.keeps.loosest(&Keeps::of(table)).put(table);
    }

    /// What of the table's settings waits, if anything does.
    pub fn pending(&self, org: &OrgId, table: &TableSpec) -> Option<Pending> {
        let keeps = Keeps::of(table);
        let goes = less(&self.keeps, &keeps);
        let until = DateTime::from_timestamp_millis(self.until_ms)
            .map_or_else(String::new, |at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
        (!goes.is_empty()).then(|| Pending {
            org: org.to_string(),
            table: table.name.clone(),
            goes,
            until,
            who: self.who.clone(),
            keeps,
        })
    }
}

/// What has to be remembered of a table whose settings change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Remember {
    #[default]
    Nothing,
    /// It kept this, and is to keep less.
    Before(Keeps),
    /// It kept this, and leaves its pipelines.
    Left(Keeps),
    /// It comes back, and keeps no less than it did.
    Back,
}

/// Everything that waits in a state, in order.
pub fn pending(process: &ProcessConfig, now: &Desired) -> Vec<Pending> {
    let templates = now.templates();
    let (mut found, mut last) = (Vec::new(), None::<EffectiveOrg>);
    for ((org, table), undo) in now.undos.iter().filter(|(_, undo)| undo.until_ms != NEVER) {
        if last.as_ref().is_none_or(|last| last.org != *org) {
            let document = now.orgs.get(org);
            // An org that cannot be read is told of elsewhere, and nothing is done for it.
            last = document.and_then(|org_is| effective(process, &templates, org, org_is).ok());
        }
        let effective = last.as_ref().filter(|last| last.org == *org);
        let table = effective.and_then(|effective| effective.table(table));
        found.extend(table.and_then(|table| undo.pending(org, &table.spec)));
    }
    found
}

/// An org's layer with a table that keeps again what it kept, whichever door had it keep less.
///
/// # Errors
/// `control.not_found`; `control.conflict` where nothing waits.
pub fn undone(current: &Current<'_>, org: &OrgId, table: &str) -> Result<OrgLayer> {
    let found = current.org.and_then(|(_, effective)| effective.table(table));
    let spec = &found
        .ok_or_else(|| {
            Error::new(ErrorCode::ControlNotFound, format!("org {org} has no table {table:?}"))
        })?
        .spec;
    let is = Keeps::of(spec);
    let undo = current.undos.get(&(org.clone(), table.to_owned()));
    let was = undo.map(|undo| &undo.keeps).filter(|was| !less(was, &is).is_empty());
    let was = was.ok_or_else(|| {
        let message = format!("nothing of table {table:?} of org {org} waits to be carried out");
        Error::new(ErrorCode::ControlConflict, message)
            .hint("what keeps less can be taken back until [governance] undo is over")
    })?;
    let goes = retention(was.retention.as_ref(), is.retention.as_ref(), chrono::Utc::now());
    let kept = if goes.is_some() { &was.retention } else { &is.retention };
    let patch = json!({
        "retention": kept,
        "maintenance": {
            "keep_versions": was.keep_versions.max(is.keep_versions),
            "keep_snapshots_days": was.keep_snapshots_days.max(is.keep_snapshots_days),
            "keep_snapshots": was.keep_snapshots.max(is.keep_snapshots),
        },
    });
    let mut layer = current.layer();
    let before = layer.tables.remove(table).unwrap_or_else(|| Value::Object(Map::new()));
    layer.tables.insert(table.to_owned(), patch_after(before, &patch));
    Ok(layer)
}

/// What a table kept that keeps less now, while it can be taken back.
pub async fn undo_of(store: &Store, org: &Authorized<OrgId>, table: &str) -> Result<Option<Undo>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_undo WHERE org = $1 AND table_name = $2 AND until_ms > $3"
    );
    let row = sqlx::query(&sql).bind(org.get().as_str()).bind(table).bind(store.now_ms());
    let row = row.fetch_optional(store.pool()).await.map_err(wrong)?;
    Ok(row.as_ref().map(read).transpose()?.map(|(_, undo)| undo))
}

/// Has what a table is to keep hold from now on: it cannot be taken back any more.
pub async fn end_undo(store: &Store, org: &Authorized<OrgId>, table: &str) -> Result<()> {
    let sql = "DELETE FROM polder_undo WHERE org = $1 AND table_name = $2 AND until_ms <> $3";
    let gone = sqlx::query(sql).bind(org.get().as_str()).bind(table).bind(NEVER);
    gone.execute(store.pool()).await.map(drop).map_err(wrong)
}

/// Of all orgs. For the operator.
pub(super) async fn all(store: &Store) -> Result<Undos> {
    let sql = format!("SELECT {COLUMNS} FROM polder_undo WHERE until_ms > $1");
    let rows = sqlx::query(&sql).bind(store.now_ms()).fetch_all(store.pool()).await;
    rows.map_err(wrong)?.iter().map(read).collect()
}

/// Of some orgs. For the operator.
pub(super) async fn of_orgs(store: &Store, orgs: &[OrgId]) -> Result<Undos> {
    if orgs.is_empty() {
        return Ok(Undos::new());
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_undo WHERE org IN ({}) AND until_ms > ${}",
        places(orgs.len()),
        orgs.len() + 1
    );
    let mut query = sqlx::query(&sql);
    for org in orgs {
        query = query.bind(org.as_str());
    }
    let rows = query.bind(store.now_ms()).fetch_all(store.pool()).await;
    rows.map_err(wrong)?.iter().map(read).collect()
}

/// Of one org, as the transaction finds it.
pub(super) async fn of_org(
    transaction: &mut Transaction,
    org: &Authorized<OrgId>,
    now_ms: i64,
) -> Result<Undos> {
    let sql = format!("SELECT {COLUMNS} FROM polder_undo WHERE org = $1 AND until_ms > $2");
    let rows = sqlx::query(&sql).bind(org.get().as_str()).bind(now_ms);
    let rows = rows.fetch_all(&mut **transaction).await;
    rows.map_err(wrong)?.iter().map(read).collect()
}

fn read(row: &AnyRow) -> Result<((OrgId, String), Undo)> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(wrong);
    let keeps = serde_json::from_str(&text("keeps")?).map_err(|error| {
        Error::new(ErrorCode::ControlStore, "what a table kept cannot be read")
            .hint("the store was written by a newer version of polder")
            .caused_by(error)
    })?;
    let until_ms = row.try_get("until_ms").map_err(wrong)?;
    let place = (text("org")?.parse()?, text("table_name")?);
    Ok((place, Undo { keeps, until_ms, who: text("who")? }))
}

/// Who has tables keep less, when, and for how long it can be taken back.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) who: &'a str,
    pub(super) now_ms: i64,
    pub(super) undo_ms: i64,
}

/// Remembers what becomes of tables in the transaction that stores it.
pub(super) async fn remember(
    transaction: &mut Transaction,
    said: Said<'_>,
    tables: &[(&str, &str, &Remember)],
) -> Result<()> {
    if tables.iter().all(|(.., remember)| **remember == Remember::Nothing) {
        return Ok(());
    }
    let over = sqlx::query("DELETE FROM polder_undo WHERE until_ms <= $1").bind(said.now_ms);
    over.execute(&mut **transaction).await.map_err(wrong)?;
    let mut rows = Vec::new();
    for &(org, table, remember) in tables {
        match remember {
            Remember::Nothing => {}
            Remember::Left(keeps) => rows.push((org, table, keeps, NEVER)),
            Remember::Before(keeps) if said.undo_ms > 0 => {
                rows.push((org, table, keeps, said.now_ms.saturating_add(said.undo_ms)));
            }
            Remember::Before(_) | Remember::Back => {
                let sql = "DELETE FROM polder_undo WHERE org = $1 AND table_name = $2";
                let gone = sqlx::query(sql).bind(org).bind(table).execute(&mut **transaction);
                gone.await.map_err(wrong)?;
            }
        }
    }
    for some in rows.chunks(BATCH) {
        write(transaction, some, said.who).await?;
    }
    Ok(())
}

async fn write(
    transaction: &mut Transaction,
    rows: &[(&str, &str, &Keeps, i64)],
    who: &str,
) -> Result<()> {
    let values: Vec<String> = (0..rows.len())
        .map(|row| {
            let place = |column: usize| format!("${}", row * 5 + column + 1);
            format!("({})", (0..5).map(place).collect::<Vec<_>>().join(", "))
        })
        .collect();
    let sql = format!(
        "INSERT INTO polder_undo ({COLUMNS}) VALUES {} \
         ON CONFLICT (org, table_name) DO UPDATE SET keeps = excluded.keeps, \
         until_ms = excluded.until_ms, who = excluded.who",
        values.join(", ")
    );
    let mut query = sqlx::query(&sql);
    for (org, table, keeps, until_ms) in rows {
        query = query.bind(*org).bind(*table).bind(super::stored::stored(keeps)?);
        query = query.bind(*until_ms).bind(who);
    }
    query.execute(&mut **transaction).await.map(drop).map_err(wrong)
}

fn wrong(error: sqlx::Error) -> Error {
    failed("what tables kept cannot be read or remembered", error)
}
