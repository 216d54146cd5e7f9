//! What commands do with the files beside `polder.toml` when nobody said `polder apply`: what takes
//! nothing away is applied, and what does - tables or rows - is left for that command.

use std::collections::{BTreeMap, BTreeSet};

use polder_core::spec::{GroupSpec, ProcessConfig};
use polder_core::{OrgId, Principal, Result};
use serde::Serialize;

use super::plan::{Unreadable, compare};
use super::tighten::loosen;
use super::{
    Author, Desired, LakeFacts, OrgDocument, PlannedTable, TemplateDocument, apply, effective,
    load, plan, template,
};
use crate::config::{Declared, OrgPipeline};
use crate::store::Store;

/// A table that the files no longer name and the desired state still has, or one of which their settings
/// would have rows go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    pub org: String,
    pub table: String,
    /// What would go of its rows and states; nothing where the table itself would leave.
    pub goes: Vec<String>,
    /// Why nothing is known of the whole org's tables, of which none is named then, and what to do about it.
    pub unreadable: Option<String>,
}

impl Left {
    /// What was left, and what to do about it.
    pub fn sentence(&self) -> String {
        let Self { org, table, goes, unreadable } = self;
        if let Some(why) = unreadable {
            return format!(
                "org {org}: {why}; until then nothing of it runs, and files change nothing of it"
            );
        }
        if goes.is_empty() {
            return format!(
                "{org}/{table}: not in the pipeline files any more, and not run; `polder plan` and \
                 `polder apply` take it out of the pipeline for good"
            );
        }
        format!(
            "{org}/{table}: {} - this is left for `polder plan` and `polder apply`",
            goes.join("; ")
        )
    }
}

/// Applies what the files add and change; the desired state after it. Two processes that do it at once
/// store the same; whoever is second starts over.
///
/// # Errors
/// `spec.*`, `control.store`.
pub async fn settle(
    store: &Store,
    process: &ProcessConfig,
    declared: &Declared,
    author: &Author,
) -> Result<Desired> {
    const TRIES_MAX: usize = 5;
    let mut tries = 0;
    loop {
        let now = load(store, &Principal::Operator).await?;
        let kept = keeping(process, &now, declared)?;
        let added = plan(process, &now, &kept, &LakeFacts::new())?;
        if added.is_empty() {
            return Ok(now);
        }
        match apply(store, &added, author).await {
            Ok(_) => return load(store, &Principal::Operator).await,
            Err(error)
                if error.code() == polder_core::ErrorCode::ControlStale && tries < TRIES_MAX =>
            {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the files drop and have go, and what therefore waits for `polder apply`.
///
/// # Errors
/// `spec.*`
pub fn left(process: &ProcessConfig, now: &Desired, declared: &Declared) -> Result<Vec<Left>> {
    let next = with_templates_of(now, declared);
    let compared = compare(process, now, &next, &LakeFacts::new())?;
    let waiting = compared.tables.into_iter().filter(|table| table.destructive);
    let of_table =
        |PlannedTable { org, table, goes, .. }| Left { org, table, goes, unreadable: None };
    let of_org = |Unreadable { org, why }| Left {
        org,
        table: String::new(),
        goes: Vec::new(),
        unreadable: Some(why),
    };
    let mut left: Vec<Left> = waiting.map(of_table).collect();
    left.extend(compared.orgs_unreadable.into_iter().map(of_org));
    left.sort();
    Ok(left)
}

/// What runs take of the state, without what the files have dropped, and with what they tighten as it was: one
/// pipeline per org. What can be taken back is as it was, too. Of an org that cannot be read, or whose template
/// cannot, there is none.
///
/// # Errors
/// `spec.*`
pub fn look(
    process: &ProcessConfig,
    now: &Desired,
    declared: &Declared,
) -> Result<Vec<OrgPipeline>> {
    let next = holding(process, now, with_templates_of(now, declared))?;
    let mut ids: BTreeSet<OrgId> = now.orgs.keys().cloned().collect();
    for id in next.orgs.keys() {
        ids.insert(id.parse()?);
    }
    let templates = template::all(&now.declaring_templates(&next));
    let mut pipelines = Vec::new();
    for id in &ids {
        let Some(document) = now.declaring(&next, id) else { continue };
        if document.check(&templates).is_err() {
            continue;
        }
        let org = effective(process, &templates, id, &document)?;
        if org.enabled {
            let mut pipeline = org.pipeline();
            for table in &mut pipeline.tables {
                let place = (id.clone(), table.name.clone());
                if let Some(undo) = now.undos.get(&place) {
                    undo.hold(table);
                }
            }
            pipelines.push(pipeline);
        }
    }
    Ok(pipelines)
}

/// A template that only the API's orgs take stays whatever the files say.
fn with_templates_of(now: &Desired, declared: &Declared) -> Declared {
    let mut next = declared.clone();
    for (name, template) in now.declared_templates() {
        next.templates.entry(name.clone()).or_insert_with(|| template.clone());
    }
    next
}

/// What the files say, with what the store has and they do not kept.
fn keeping(process: &ProcessConfig, now: &Desired, declared: &Declared) -> Result<Declared> {
    let mut kept = declared.clone();
    for (name, template) in now.declared_templates() {
        let Some(next) = kept.templates.get_mut(name) else {
            kept.templates.insert(name.clone(), template.clone());
            continue;
        };
        let names: Vec<_> = next.tables.iter().map(|table| table.name.clone()).collect();
        let is_gone = |name: &String| !names.contains(name);
        let gone = template.tables.iter().filter(|table| is_gone(&table.name));
        next.tables.extend(gone.cloned());
        // Where their group was off they do not begin to run because it goes.
        for (group, spec) in &template.groups {
            let own = spec.tables.iter().filter(|name| is_gone(name));
            let own: Vec<String> = own.cloned().collect();
            if !own.is_empty() {
                let empty = || GroupSpec { tables: Vec::new(), ..spec.clone() };
                next.groups.entry(group.clone()).or_insert_with(empty).tables.extend(own);
            }
        }
    }
    let templates: BTreeMap<_, _> = kept
        .templates
        .iter()
        .map(|(name, template)| {
            let names: Vec<_> = template.tables.iter().map(|table| table.name.clone()).collect();
            (name.clone(), names)
        })
        .collect();
    for (id, org) in &now.orgs {
        let Some(org) = &org.declared else { continue };
        let known = kept.orgs.get_mut(id.as_str());
        // Another template takes the old one's tables away.
        let Some(next) = known.filter(|next| next.template == org.template) else {
            kept.orgs.insert(id.to_string(), org.clone());
            continue;
        };
        let of_template = next.template.as_ref().and_then(|name| templates.get(name));
        let has = |next: &polder_core::spec::OrgSpec, name: &String| {
            next.tables.iter().any(|table| table.name == *name)
                || of_template.is_some_and(|names| names.contains(name))
        };
        let own = org.tables.iter().filter(|table| !has(next, &table.name));
        let own: Vec<_> = own.cloned().collect();
        next.tables.extend(own);
    }
    holding(process, now, kept)
}

/// What the files say as far as no rows and states go by it. Settings that tighten are as they were; where that
/// is not enough, as when a table moves into a template or an org takes another one, the whole orgs and the
/// templates that they take are, and in the end everything is.
fn holding(process: &ProcessConfig, now: &Desired, mut next: Declared) -> Result<Declared> {
    loosen(now, &mut next);
    let tightened = tightened_orgs(process, now, &next)?;
    if tightened.is_empty() {
        return Ok(next);
    }
    for org in tightened {
        let known = now.orgs.get(&org.parse::<OrgId>()?);
        // One that cannot be read stays so, and its template is not held back for it.
        if known.is_some_and(OrgDocument::is_damaged) {
            next.orgs.remove(&org);
            continue;
        }
        let before = known.and_then(|org| org.declared.clone());
        let after = next.orgs.get(&org);
        let taken = [&before, &after.cloned()].map(|org| org.as_ref()?.template.clone());
        for name in taken.into_iter().flatten() {
            match now.templates.get(&name) {
                Some(TemplateDocument { declared: Some(known), .. }) => {
                    next.templates.insert(name, known.clone());
                }
                // One that cannot be read stays so, and others are not held back for it.
                Some(document) if document.is_declared() => drop(next.templates.remove(&name)),
                _ => {}
            }
        }
        match before {
            Some(before) => drop(next.orgs.insert(org, before)),
            None => drop(next.orgs.remove(&org)),
        }
    }
    if tightened_orgs(process, now, &next)?.is_empty() {
        return Ok(next);
    }
    let orgs =
        now.orgs.iter().filter_map(|(id, org)| Some((id.to_string(), org.declared.clone()?)));
    let templates = now.declared_templates().map(|(name, spec)| (name.clone(), spec.clone()));
    Ok(Declared { templates: templates.collect(), orgs: orgs.collect() })
}

/// The orgs of which rows or states would go.
fn tightened_orgs(
    process: &ProcessConfig,
    now: &Desired,
    next: &Declared,
) -> Result<BTreeSet<String>> {
    let compared = compare(process, now, next, &LakeFacts::new())?.tables.into_iter();
    Ok(compared.filter(|table| !table.goes.is_empty()).map(|table| table.org).collect())
}
