//! The desired state's rows. Who may read or change them is decided by the callers' types.

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::template::{Damage, TemplateDocument, TemplateDocuments};
use super::{Author, Desired, OrgDocument, Templates, undo};
use crate::store::{Store, Transaction, failed, places};

pub(super) const ORG: &str = "org";
pub(super) const TEMPLATE: &str = "template";
/// As [`OrgDocument::is_present`].
pub(crate) const PRESENT: &str = "(declared IS NOT NULL OR adjusted IS NOT NULL)";
/// All templates.
pub(super) const TEMPLATES: &str =
    "SELECT id, declared, adjusted FROM polder_desired WHERE kind = $1";
/// So many orgs after one, in order; as [`PRESENT`] says, none that are history alone.
pub(super) const ORGS: &str = "SELECT id, revision, declared, adjusted FROM polder_desired \
                               WHERE kind = $1 AND id > $2 \
                               AND (declared IS NOT NULL OR adjusted IS NOT NULL) \
                               ORDER BY id LIMIT $3";

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
    operators_alone(principal)?;
    // The revision first: what is read after it is at least as new, and a plan made of newer rows
    // is refused when it is applied to the older revision.
    let revision = revision(store).await?;
    let rows = sqlx::query("SELECT kind, id, revision, declared, adjusted FROM polder_desired")
        .fetch_all(store.pool())
        .await
        .map_err(unreadable)?;
    let undos = undo::all(store).await?;
    let mut desired = Desired { revision, undos, ..Desired::default() };
    for row in &rows {
        let (kind, id) = (text(row, "kind")?, text(row, "id")?);
        if kind == TEMPLATE {
            desired.templates.insert(id, template_document(row));
        } else {
            desired.orgs.insert(id.parse()?, document(row)?);
        }
    }
    desired.templates.retain(|_, template| template.is_present());
    desired.orgs.retain(|_, org| org.is_present());
    Ok(desired)
}

/// # Errors
/// `control.denied` for anybody else.
pub(super) fn operators_alone(principal: &Principal) -> Result<()> {
    if *principal == Principal::Operator {
        return Ok(());
    }
    let message = "only the operator may see every org at once";
    Err(Error::new(ErrorCode::ControlDenied, message))
}

/// The revision of the desired state now.
pub async fn revision(store: &Store) -> Result<i64> {
    let row = sqlx::query("SELECT revision FROM polder_desired_head WHERE id = 1")
        .fetch_one(store.pool())
        .await
        .map_err(unreadable)?;
    row.try_get("revision").map_err(unreadable)
}

/// Whether a template changed, came or went after a revision.
pub(crate) async fn template_changed(store: &Store, since: i64) -> Result<bool> {
    let sql = "SELECT 1 AS one FROM polder_desired WHERE kind = $1 AND revision > $2 LIMIT 1";
    let row = sqlx::query(sql).bind(TEMPLATE).bind(since).fetch_optional(store.pool()).await;
    Ok(row.map_err(unreadable)?.is_some())
}

/// Orgs that changed behind a place (a revision, and an org of it) and up to a revision, in the order in
/// which they did, at most `limit`. Those of which nothing is said any more are there too. For the operator:
/// it spans orgs.
///
/// # Errors
/// `control.denied` for anybody else; `control.store`.
pub(crate) async fn changed(
    store: &Store,
    principal: &Principal,
    (revision, id): (i64, &str),
    until: i64,
    limit: usize,
) -> Result<Vec<(OrgId, OrgDocument)>> {
    operators_alone(principal)?;
    let rows = sqlx::query(
        "SELECT id, revision, declared, adjusted FROM polder_desired \
         WHERE kind = $1 AND (revision, id) > ($2, $3) AND revision <= $4 \
         ORDER BY revision, id LIMIT $5",
    );
    let rows = rows.bind(ORG).bind(revision).bind(id).bind(until).bind(number(limit));
    orgs_in(&rows.fetch_all(store.pool()).await.map_err(unreadable)?)
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
    let Some(found) = row.as_ref().map(document).transpose()?.filter(OrgDocument::is_present)
    else {
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
    let found = match principal {
        Principal::Operator => {
            let rows = sqlx::query(ORGS).bind(ORG).bind(after).bind(number(limit));
            orgs_in(&rows.fetch_all(store.pool()).await.map_err(unreadable)?)?
        }
        Principal::Org(own) => named(store, std::slice::from_ref(own), after, limit).await?,
        Principal::Member { orgs, .. } => named(store, orgs, after, limit).await?,
        _ => Vec::new(),
    };
    let own = found.into_iter().filter(|(id, _)| principal.authorize(id).is_ok()).collect();
    Ok((own, templates(store).await?))
}

/// Those of these orgs that are there, in order, after `after`, at most `limit`: somebody's few among all
/// the others.
async fn named(
    store: &Store,
    orgs: &[OrgId],
    after: &str,
    limit: usize,
) -> Result<Vec<(OrgId, OrgDocument)>> {
    const CHUNK: usize = 200;
    let mut orgs: Vec<&OrgId> = orgs.iter().filter(|org| org.as_str() > after).collect();
    orgs.sort_unstable();
    orgs.dedup();
    let mut found = Vec::new();
    for some in orgs.chunks(CHUNK) {
        if found.len() >= limit {
            break;
        }
        let sql = format!(
            "SELECT id, revision, declared, adjusted FROM polder_desired \
             WHERE id IN ({}) AND kind = 'org' AND {PRESENT}",
            places(some.len())
        );
        let mut query = sqlx::query(&sql);
        for org in some {
            query = query.bind(org.as_str());
        }
        let mut of_some = orgs_in(&query.fetch_all(store.pool()).await.map_err(unreadable)?)?;
        of_some.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        found.extend(of_some);
    }
    found.truncate(limit);
    Ok(found)
}

/// The states of an org after a revision (from the first where there is none), oldest first, at most `limit`.
pub async fn history(
    store: &Store,
    org: &Authorized<OrgId>,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<HistoryEntry>> {
    states(store, (ORG, org.get().as_str()), (after, limit)).await
}

/// The states of a template after a revision, oldest first, at most so many. For the operator: it tells who
/// works for other orgs.
///
/// # Errors
/// `control.denied` for anybody else; `control.store`.
pub async fn template_history(
    store: &Store,
    principal: &Principal,
    name: &str,
    page: (Option<i64>, usize),
) -> Result<Vec<HistoryEntry>> {
    operators_alone(principal)?;
    states(store, (TEMPLATE, name), page).await
}

async fn states(
    store: &Store,
    (kind, id): (&str, &str),
    (after, limit): (Option<i64>, usize),
) -> Result<Vec<HistoryEntry>> {
    let rows = sqlx::query(
        "SELECT revision, who, why, at_ms, declared, adjusted FROM polder_desired_history \
         WHERE kind = $1 AND id = $2 AND revision > $3 ORDER BY revision LIMIT $4",
    )
    .bind(kind)
    .bind(id)
    .bind(after.unwrap_or(i64::MIN))
    .bind(number(limit))
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

/// Every template with its layers. They are no org's: which of them a caller may see is the caller's to
/// decide, by the orgs that take them.
pub async fn template_documents(store: &Store) -> Result<TemplateDocuments> {
    let rows =
        sqlx::query(TEMPLATES).bind(TEMPLATE).fetch_all(store.pool()).await.map_err(unreadable)?;
    templates_in(&rows)
}

/// Every template with its layers put together. One that cannot be read stops only the orgs that take it.
pub(crate) async fn templates(store: &Store) -> Result<Templates> {
    let rows = sqlx::query(TEMPLATES).bind(TEMPLATE).fetch_all(store.pool()).await;
    templates_of(&rows.map_err(unreadable)?)
}

/// The templates of rows of [`TEMPLATES`].
pub(super) fn templates_in(rows: &[AnyRow]) -> Result<TemplateDocuments> {
    let mut found = TemplateDocuments::new();
    for row in rows {
        let document = template_document(row);
        if document.is_present() {
            found.insert(text(row, "id")?, document);
        }
    }
    Ok(found)
}

/// The same with their layers put together.
pub(super) fn templates_of(rows: &[AnyRow]) -> Result<Templates> {
    let mut found = Templates::default();
    for row in rows {
        let name = text(row, "id")?;
        let spec = template_document(row).spec(&name);
        found.take(name, spec);
    }
    Ok(found)
}

fn template_document(row: &AnyRow) -> TemplateDocument {
    let (declared, adjusted, damage) = layers(row);
    TemplateDocument { declared, adjusted, damage }
}

/// The declared layer of a row and the adjusted one. One that cannot be read is that org's, or that template's,
/// matter alone.
fn layers<D, A>(row: &AnyRow) -> (Option<D>, Option<A>, Damage)
where
    D: DeserializeOwned,
    A: DeserializeOwned,
{
    let why = |error: &Error| {
        let causes = [vec![error.to_string()], error.causes()].concat();
        Some(causes.join(": "))
    };
    let (declared, adjusted) = (json(row, "declared"), json(row, "adjusted"));
    let damage = Damage {
        declared: declared.as_ref().err().and_then(why),
        adjusted: adjusted.as_ref().err().and_then(why),
    };
    (declared.unwrap_or_default(), adjusted.unwrap_or_default(), damage)
}

/// The orgs of rows, such as those of [`ORGS`].
pub(super) fn orgs_in(rows: &[AnyRow]) -> Result<Vec<(OrgId, OrgDocument)>> {
    let one = |row: &AnyRow| -> Result<(OrgId, OrgDocument)> {
        Ok((text(row, "id")?.parse()?, document(row)?))
    };
    rows.iter().map(one).collect()
}

fn number(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn document(row: &AnyRow) -> Result<OrgDocument> {
    let revision = row.try_get("revision").map_err(unreadable)?;
    let (declared, adjusted, damage) = layers(row);
    Ok(OrgDocument { revision, declared, adjusted, damage })
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
    author: &Author,
) -> Result<()> {
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
    .map_err(unchanged)?;
    remember(transaction, revision, row, author).await
}

/// Stores a row's new declared layer under a revision, and its history. The adjusted one stays as it is.
pub(super) async fn declare(
    transaction: &mut Transaction,
    revision: i64,
    (kind, id): (&'static str, &str),
    declared: Option<String>,
    author: &Author,
) -> Result<()> {
    let written = sqlx::query(
        "INSERT INTO polder_desired (kind, id, revision, declared) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (kind, id) DO UPDATE SET \
         revision = excluded.revision, declared = excluded.declared RETURNING adjusted",
    )
    .bind(kind)
    .bind(id)
    .bind(revision)
    .bind(declared.clone())
    .fetch_one(&mut **transaction)
    .await
    .map_err(unchanged)?;
    let adjusted = written.try_get("adjusted").map_err(unreadable)?;
    remember(transaction, revision, Written { kind, id, declared, adjusted }, author).await
}

async fn remember(
    transaction: &mut Transaction,
    revision: i64,
    row: Written<'_>,
    author: &Author,
) -> Result<()> {
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
    .bind(author.who.as_str())
    .bind(author.why.as_deref())
    .bind(chrono::Utc::now().timestamp_millis())
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(unchanged)
}

fn unchanged(error: sqlx::Error) -> Error {
    failed("the desired state cannot be changed", error)
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
    .map_err(unchanged)?;
    row.try_get("revision").map_err(unreadable)
}
