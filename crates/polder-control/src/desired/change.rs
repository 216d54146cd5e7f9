//! One org's adjusted layer changes: the API's door.

use polder_core::spec::ProcessConfig;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};

use super::plan::{PlannedTable, compare_tables, unknown};
use super::stored::{
    ORG, TEMPLATE, TEMPLATES, Written, document, next_revision, stored, templates_of, unreadable,
    write,
};
use super::template::Damage;
use super::undo::{self, Said, Undos};
use super::{EffectiveOrg, LakeFacts, OrgDocument, OrgLayer, Templates, effective};
use crate::churn;
use crate::store::{Store, Transaction, commit};

/// Who changes something, and why.
#[derive(Clone, Debug)]
pub struct Author {
    pub who: String,
    pub why: Option<String>,
}

/// A change of one org.
pub struct Change<'a> {
    pub process: &'a ProcessConfig,
    pub author: &'a Author,
    /// Only say what would be.
    pub dry_run: bool,
    /// Also what takes tables out of pipelines, or has rows go.
    pub yes: bool,
}

impl Change<'_> {
    /// # Errors
    /// `control.conflict` for what is destructive and was not confirmed.
    fn check(&self, planned: &[PlannedTable]) -> Result<()> {
        let destructive = planned.iter().find(|table| table.destructive);
        let Some(table) = destructive.filter(|_| !self.yes) else { return Ok(()) };
        let what = match table.goes.as_slice() {
            [] => "it would leave the pipeline, and its rows would get no newer".to_owned(),
            goes => goes.join("; "),
        };
        let message = format!("table {:?} of org {}: {what}", table.table, table.org);
        Err(Error::new(ErrorCode::ControlConflict, message)
            .hint("if that is meant: the same request with ?yes=true"))
    }
}

/// An org as a change finds it.
pub struct Current<'a> {
    /// Its layers and what they make together; `None` for an org that is not there, and for one that cannot
    /// be read, which can only be given anew.
    pub org: Option<(&'a OrgDocument, &'a EffectiveOrg)>,
    pub templates: &'a Templates,
    /// What can be taken back.
    pub undos: &'a Undos,
}

impl Current<'_> {
    /// What the API has said so far.
    pub fn layer(&self) -> OrgLayer {
        self.org.and_then(|(document, _)| document.adjusted.clone()).unwrap_or_default()
    }
}

/// Changes what the API says of an org. `decide` gets the org as it is and gives its new adjusted
/// layer; it is called in the transaction that stores it, so that what it found holds.
///
/// # Errors
/// What `decide` refuses; `control.conflict` for what is destructive and was not confirmed; `spec.*` when
/// the org could not be read any more, or cannot be now and is not given anew; `lake.fenced` for an org that has
/// left or is leaving.
pub async fn change(
    store: &Store,
    org: &Authorized<OrgId>,
    change: Change<'_>,
    decide: impl FnOnce(Current<'_>) -> Result<OrgLayer>,
) -> Result<EffectiveOrg> {
    let id = org.get();
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    churn::check_none(&mut transaction, org).await?;
    let (stored_org, templates) = found(&mut transaction, id).await?;
    let present = stored_org.as_ref().filter(|org| org.is_present());
    let damaged = present.filter(|org| org.is_damaged());
    let before = match present.filter(|org| !org.is_damaged()) {
        Some(org) => Some(effective(change.process, &templates, id, org)?),
        None => None,
    };
    let now_ms = store.now_ms();
    let undos = undo::of_org(&mut transaction, org, now_ms).await?;
    let there = present.zip(before.as_ref());
    let current = Current { org: there, templates: &templates, undos: &undos };
    let layer = decide(current).map_err(|error| match damaged.map(OrgDocument::check_layers) {
        Some(Err(unread)) if error.code() == ErrorCode::ControlNotFound => unread,
        _ => error,
    })?;
    let declared = present.and_then(|org| org.declared.clone());
    let damage = Damage::default();
    let next = OrgDocument { revision, declared, adjusted: Some(layer), damage };
    let effective = effective(change.process, &templates, id, &next)?;
    if change.dry_run {
        return Ok(effective);
    }
    let mut planned = Vec::new();
    // What one took that could not be read is not known.
    let before = if damaged.is_some() { Some(unknown(&effective)) } else { before };
    let (orgs, known) = ((before.as_ref(), Some(&effective)), (&LakeFacts::new(), &undos));
    compare_tables(id, orgs, known, &mut planned);
    change.check(&planned)?;
    let written = Written {
        kind: ORG,
        id: id.as_str(),
        declared: next.declared.as_ref().map(stored).transpose()?,
        adjusted: next.adjusted.as_ref().map(stored).transpose()?,
    };
    write(&mut transaction, revision, written, change.author).await?;
    let tables: Vec<_> =
        planned.iter().map(|one| (id.as_str(), one.table.as_str(), &one.remember)).collect();
    let undo_ms = change.process.governance.undo_ms()?;
    let said = Said { who: &change.author.who, now_ms, undo_ms };
    undo::remember(&mut transaction, said, &tables).await?;
    commit(transaction).await?;
    Ok(effective)
}

/// An org's row, if there is one, and all templates, as the transaction finds them.
async fn found(
    transaction: &mut Transaction,
    id: &OrgId,
) -> Result<(Option<OrgDocument>, Templates)> {
    let row = sqlx::query(
        "SELECT revision, declared, adjusted FROM polder_desired WHERE kind = $1 AND id = $2",
    )
    .bind(ORG)
    .bind(id.as_str())
    .fetch_optional(&mut **transaction)
    .await
    .map_err(unreadable)?;
    let rows = sqlx::query(TEMPLATES)
        .bind(TEMPLATE)
        .fetch_all(&mut **transaction)
        .await
        .map_err(unreadable)?;
    Ok((row.as_ref().map(document).transpose()?, templates_of(&rows)?))
}
