//! The desired state's rows. Who may read or change them is decided by the callers' types.

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Desired, OrgDocument, Templates};
use crate::store::{Store, Transaction, failed};

pub(super) const ORG: &str = "org";
pub(super) const TEMPLATE: &str = "template";

/// One state an org or template had.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryEntry {
    pub revision: i64,
    pub who: String,
    pub why: Option<String>,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// The layers as JSON, empty where there was none.
    pub declared: Option<serde_json::Value>,
    pub adjusted: Option<serde_json::Value>,
}

/// The whole state. For the operator: it spans orgs.
///
/// # Errors
/// `control.denied` for anybody else; `control.store`.
pub async fn load(store: &Store, principal: &Principal) -> Result<Desired> {
    if *principal != Principal::Operator {
        let message = "only the operator may see every org at once";
        return Err(Error::new(ErrorCode::ControlDenied, message));
    }
    // The revision first: what is read after it is at least as new, and a plan made of newer rows
    // is refused when it is applied to the older revision.
    let revision = head(store).await?;
    let rows = sqlx::query("SELECT kind, id, revision, declared, adjusted FROM polder_desired")
        .fetch_all(store.pool())
        .await
        .map_err(unreadable)?;
    let mut desired = Desired { revision, ..Desired::default() };
    for row in &rows {
        let (kind, id) = (text(row, "kind")?, text(row, "id")?);
        if kind == TEMPLATE {
            if let Some(spec) = json(row, "declared")? {
                desired.templates.insert(id, spec);
            }
        } else {
            desired.orgs.insert(id.parse()?, document(row)?);
        }
    }
    desired.orgs.retain(|_, org| org.declared.is_some() || org.adjusted.is_some());
    Ok(desired)
}

async fn head(store: &Store) -> Result<i64> {
    let row = sqlx::query("SELECT revision FROM polder_desired_head WHERE id = 1")
        .fetch_one(store.pool())
        .await
        .map_err(unreadable)?;
    row.try_get("revision").map_err(unreadable)
}

/// One org's layers and all templates; `None` for an org that the desired state lacks.
pub async fn org(
    store: &Store,
    org: &Authorized<OrgId>,
) -> Result<Option<(OrgDocument, Templates)>> {
    let row = sqlx::query(
        "SELECT revision, declared, adjusted FROM polder_desired WHERE kind = $1 AND id = $2",
    )
    .bind(ORG)
    .bind(org.get().as_str())
    .fetch_optional(store.pool())
    .await
    .map_err(unreadable)?;
    let Some(found) = row.as_ref().map(document).transpose()?.filter(present) else {
        return Ok(None);
    };
    Ok(Some((found, templates(store).await?)))
}

/// The orgs that the principal may see, in order, after `after`, at most `limit`; and the templates.
pub async fn orgs(
    store: &Store,
    principal: &Principal,
    after: &str,
    limit: usize,
) -> Result<(Vec<(OrgId, OrgDocument)>, Templates)> {
    let rows = sqlx::query(
        "SELECT id, revision, declared, adjusted FROM polder_desired \
         WHERE kind = $1 AND id > $2 ORDER BY id",
    );
    let mut found = Vec::new();
    let rows = match principal {
        Principal::Operator => {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = sqlx::query(
                "SELECT id, revision, declared, adjusted FROM polder_desired \
                 WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3",
            );
            rows.bind(ORG).bind(after).bind(limit).fetch_all(store.pool()).await
        }
        _ => rows.bind(ORG).bind(after).fetch_all(store.pool()).await,
    };
    for row in &rows.map_err(unreadable)? {
        let id: OrgId = text(row, "id")?.parse()?;
        if principal.authorize(&id).is_err() {
            continue;
        }
        let document = document(row)?;
        if present(&document) && found.len() < limit {
            found.push((id, document));
        }
    }
    Ok((found, templates(store).await?))
}

/// Every state of an org, oldest first.
pub async fn history(store: &Store, org: &Authorized<OrgId>) -> Result<Vec<HistoryEntry>> {
    let rows = sqlx::query(
        "SELECT revision, who, why, at_ms, declared, adjusted FROM polder_desired_history \
         WHERE kind = $1 AND id = $2 ORDER BY revision",
    )
    .bind(ORG)
    .bind(org.get().as_str())
    .fetch_all(store.pool())
    .await
    .map_err(unreadable)?;
    rows.iter()
        .map(|row| {
            Ok(HistoryEntry {
                revision: row.try_get("revision").map_err(unreadable)?,
                who: text(row, "who")?,
                why: row.try_get("why").map_err(unreadable)?,
                at_ms: row.try_get("at_ms").map_err(unreadable)?,
                declared: json(row, "declared")?,
                adjusted: json(row, "adjusted")?,
            })
        })
        .collect()
}

async fn templates(store: &Store) -> Result<Templates> {
    let rows = sqlx::query("SELECT id, declared FROM polder_desired WHERE kind = $1")
        .bind(TEMPLATE)
        .fetch_all(store.pool())
        .await
        .map_err(unreadable)?;
    templates_of(&rows)
}

pub(super) fn templates_of(rows: &[AnyRow]) -> Result<Templates> {
    let mut templates = Templates::new();
    for row in rows {
        if let Some(spec) = json(row, "declared")? {
            templates.insert(text(row, "id")?, spec);
        }
    }
    Ok(templates)
}

/// An org that files no longer name and the API never spoke of is history alone.
fn present(document: &OrgDocument) -> bool {
    document.declared.is_some() || document.adjusted.is_some()
}

pub(super) fn document(row: &AnyRow) -> Result<OrgDocument> {
    Ok(OrgDocument {
        revision: row.try_get("revision").map_err(unreadable)?,
        declared: json(row, "declared")?,
        adjusted: json(row, "adjusted")?,
    })
}

pub(super) fn text(row: &AnyRow, column: &str) -> Result<String> {
    row.try_get(column).map_err(unreadable)
}

fn json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<Option<T>> {
    let text: Option<String> = row.try_get(column).map_err(unreadable)?;
    let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
    parsed.map_err(|error| {
        Error::new(ErrorCode::ControlStore, "a document of the desired state cannot be read")
            .hint("the store was written by a newer version of polder")
            .caused_by(error)
    })
}

pub(super) fn unreadable(error: sqlx::Error) -> Error {
    failed("the desired state cannot be read", error)
}

/// One row's new state.
pub(super) struct Written<'a> {
    pub(super) kind: &'static str,
    pub(super) id: &'a str,
    pub(super) declared: Option<String>,
    pub(super) adjusted: Option<String>,
}

/// Stores a row's new state under a revision, and its history.
pub(super) async fn write(
    transaction: &mut Transaction,
    revision: i64,
    row: Written<'_>,
    who: &str,
    why: Option<&str>,
) -> Result<()> {
    let failed = |error| failed("the desired state cannot be changed", error);
    sqlx::query(
        "INSERT INTO polder_desired (kind, id, revision, declared, adjusted) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (kind, id) DO UPDATE SET \
         revision = excluded.revision, declared = excluded.declared, adjusted = excluded.adjusted",
    )
    .bind(row.kind)
    .bind(row.id)
    .bind(revision)
    .bind(row.declared.clone())
    .bind(row.adjusted.clone())
    .execute(&mut **transaction)
    .await
    .map_err(failed)?;
    sqlx::query(
        "INSERT INTO polder_desired_history \
         (kind, id, revision, declared, adjusted, who, why, at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(row.kind)
    .bind(row.id)
    .bind(revision)
    .bind(row.declared)
    .bind(row.adjusted)
    .bind(who)
    .bind(why)
    .bind(chrono::Utc::now().timestamp_millis())
    .execute(&mut **transaction)
    .await
    .map_err(failed)?;
    Ok(())
}

/// A document as it is stored.
pub(super) fn stored(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|error| {
        Error::new(ErrorCode::Internal, "a document of the desired state cannot be written")
            .caused_by(error)
    })
}

/// Takes the next revision. From here to the end of the transaction nobody else changes the state.
pub(super) async fn next_revision(transaction: &mut Transaction) -> Result<i64> {
    let row = sqlx::query(
        "UPDATE polder_desired_head SET revision = revision + 1 WHERE id = 1 RETURNING revision",
    )
    .fetch_one(&mut **transaction)
    .await
    .map_err(|error| failed("the desired state cannot be changed", error))?;
    row.try_get("revision").map_err(unreadable)
}
