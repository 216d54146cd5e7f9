//! One org's adjusted layer changes: the API's door.

use polder_core::spec::ProcessConfig;
use polder_core::{Authorized, OrgId, Result};

use super::stored::{
    ORG, TEMPLATE, Written, document, next_revision, stored, templates_of, unreadable, write,
};
use super::{EffectiveOrg, OrgDocument, OrgLayer, Templates, effective};
use crate::store::{Store, commit};

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
}

/// An org as a change finds it.
pub struct Current<'a> {
    /// Its layers and what they make together; `None` for an org that is not there.
    pub org: Option<(&'a OrgDocument, &'a EffectiveOrg)>,
    pub templates: &'a Templates,
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
/// What `decide` refuses; `spec.*` when the org could not be read any more.
pub async fn change(
    store: &Store,
    org: &Authorized<OrgId>,
    change: Change<'_>,
    decide: impl FnOnce(Current<'_>) -> Result<OrgLayer>,
) -> Result<EffectiveOrg> {
    let id = org.get();
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    let row = sqlx::query(
        "SELECT revision, declared, adjusted FROM polder_desired WHERE kind = $1 AND id = $2",
    )
    .bind(ORG)
    .bind(id.as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(unreadable)?;
    let rows = sqlx::query("SELECT id, declared FROM polder_desired WHERE kind = $1")
        .bind(TEMPLATE)
        .fetch_all(&mut *transaction)
        .await
        .map_err(unreadable)?;
    let templates = templates_of(&rows)?;
    let stored_org = row.as_ref().map(document).transpose()?;
    let present =
        stored_org.as_ref().filter(|org| org.declared.is_some() || org.adjusted.is_some());
    let before = match present {
        Some(org) => Some(effective(change.process, &templates, id, org)?),
        None => None,
    };
    let current = Current { org: present.zip(before.as_ref()), templates: &templates };
    let layer = decide(current)?;
    let declared = present.and_then(|org| org.declared.clone());
    let next = OrgDocument { revision, declared, adjusted: Some(layer) };
    let effective = effective(change.process, &templates, id, &next)?;
    if change.dry_run {
        return Ok(effective);
    }
    let written = Written {
        kind: ORG,
        id: id.as_str(),
        declared: next.declared.as_ref().map(stored).transpose()?,
        adjusted: next.adjusted.as_ref().map(stored).transpose()?,
    };
    let Author { who, why } = change.author;
    write(&mut transaction, revision, written, who, why.as_deref()).await?;
    commit(transaction).await?;
    Ok(effective)
}
