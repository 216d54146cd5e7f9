//! What commands do with the files beside `polder.toml` when nobody said `polder apply`: what takes
//! nothing away is applied, and what does is left for that command.

use std::collections::BTreeMap;

use polder_core::spec::ProcessConfig;
use polder_core::{Principal, Result};
use serde::Serialize;

use super::{Action, Author, Desired, LakeFacts, apply, load, plan};
use crate::config::{Declared, OrgPipeline};
use crate::store::Store;

/// The desired state after the files were looked at.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What runs take: without what the files have dropped.
    pub pipelines: Vec<OrgPipeline>,
    /// What waits for `polder apply`.
    pub left: Vec<Left>,
}

/// A table that the files no longer name and the desired state still has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    pub org: String,
    pub table: String,
}

/// Applies what the files add and change, and says what they drop. Two processes that do it at once
/// store the same; whoever is second starts over.
///
/// # Errors
/// `spec.*`, `control.store`.
pub async fn settle(
    store: &Store,
    process: &ProcessConfig,
    declared: &Declared,
    author: &Author,
) -> Result<Settled> {
    const TRIES_MAX: usize = 5;
    let mut tries = 0;
    loop {
        let now = load(store, &Principal::Operator).await?;
        let added = plan(process, &now, &keeping(&now, declared), &LakeFacts::new())?;
        match apply(store, &added, author).await {
            Ok(_) => break,
            Err(error)
                if error.code() == polder_core::ErrorCode::ControlStale && tries < TRIES_MAX =>
            {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
    look(process, &load(store, &Principal::Operator).await?, declared)
}

/// The state that [`settle`] would lead to, without storing anything.
///
/// # Errors
/// `spec.*`
pub fn look(process: &ProcessConfig, now: &Desired, declared: &Declared) -> Result<Settled> {
    // A template that only the API's orgs take stays whatever the files say.
    let mut next = declared.clone();
    for (name, template) in &now.templates {
        next.templates.entry(name.clone()).or_insert_with(|| template.clone());
    }
    let dropped = plan(process, now, &next, &LakeFacts::new())?;
    let dropped = dropped.tables.into_iter().filter(|table| table.action == Action::Drop);
    let mut left: Vec<Left> =
        dropped.map(|table| Left { org: table.org, table: table.table }).collect();
    left.sort();
    let orgs = now.declaring(&next)?.effective(process)?;
    let enabled = orgs.iter().filter(|org| org.enabled);
    Ok(Settled { pipelines: enabled.map(super::EffectiveOrg::pipeline).collect(), left })
}

/// What the files say, with what the store has and they do not kept.
fn keeping(now: &Desired, declared: &Declared) -> Declared {
    let before = now.declared();
    let mut kept = declared.clone();
    for (name, template) in before.templates {
        let Some(next) = kept.templates.get_mut(&name) else {
            kept.templates.insert(name, template);
            continue;
        };
        let names: Vec<_> = next.tables.iter().map(|table| table.name.clone()).collect();
        next.tables.extend(template.tables.into_iter().filter(|t| !names.contains(&t.name)));
    }
    let templates: BTreeMap<_, _> = kept
        .templates
        .iter()
        .map(|(name, template)| {
            let names: Vec<_> = template.tables.iter().map(|table| table.name.clone()).collect();
            (name.clone(), names)
        })
        .collect();
    for (id, org) in before.orgs {
        // Another template takes the old one's tables away.
        let Some(next) = kept.orgs.get_mut(&id).filter(|next| next.template == org.template) else {
            kept.orgs.insert(id, org);
            continue;
        };
        let of_template = next.template.as_ref().and_then(|name| templates.get(name));
        let has = |next: &polder_core::spec::OrgSpec, name: &String| {
            next.tables.iter().any(|table| table.name == *name)
                || of_template.is_some_and(|names| names.contains(name))
        };
        let own: Vec<_> = org.tables.into_iter().filter(|table| !has(next, &table.name)).collect();
        next.tables.extend(own);
    }
    kept
}
