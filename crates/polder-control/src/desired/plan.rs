//! What applying pipeline files would do to the lake, and doing exactly that.

use std::collections::BTreeMap;

use polder_core::spec::{ProcessConfig, TableSpec};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use ring::digest;
use serde::Serialize;
use serde_json::Value;

use super::stored::{ORG, TEMPLATE, Written, next_revision, stored, write};
use super::{Author, Desired, EffectiveOrg, load};
use crate::config::Declared;
use crate::store::{Store, commit};

/// The settings that decide which rows and columns are read: a run after a change of one reloads
/// the table.
const READS: [&str; 8] =
    ["source", "from", "filter", "cursor", "columns", "types", "format", "on_unrepresentable"];

/// What becomes of a lake table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The first run makes it.
    Create,
    /// The next run reloads it as a new version; the version before stays.
    Rewrite,
    /// It goes on as it is, with other settings.
    Change,
    /// Runs stop, or go on again; its rows stay.
    Switch,
    /// It leaves the pipeline. Its rows stay in the lake, and are never brought up to date again.
    Drop,
}

/// What the plan needs to know of the lake: rows of the tables there are.
pub type LakeFacts = BTreeMap<(OrgId, String), Option<u64>>;

/// One table's part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedTable {
    pub org: String,
    pub table: String,
    pub action: Action,
    /// Needs an explicit yes.
    pub destructive: bool,
    /// The settings that change.
    pub settings: Vec<String>,
    /// Rows in the lake now that the next run reads again; `None` where that is not known.
    pub rows_to_read: Option<u64>,
    /// Rows in the lake now.
    pub rows: Option<u64>,
}

/// The difference between the desired state and what files say.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Of the state it starts from and all that it would store: 64 hex digits.
    pub hash: String,
    pub revision: i64,
    pub orgs_added: Vec<String>,
    pub orgs_removed: Vec<String>,
    pub tables: Vec<PlannedTable>,
    pub destructive: usize,
    #[serde(skip)]
    documents: Vec<(&'static str, String, Option<String>)>,
}

impl Plan {
    /// Whether the store would change at all.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }
}

/// What was carried out.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    pub hash: String,
    /// The desired state's revision now.
    pub revision: i64,
    pub documents: usize,
}

/// Compares the desired state with what files say, in terms of the lake.
///
/// # Errors
/// `spec.*` if the state after it could not be read.
pub fn plan(
    process: &ProcessConfig,
    now: &Desired,
    declared: &Declared,
    lake: &LakeFacts,
) -> Result<Plan> {
    let next = now.declaring(declared)?;
    let (before, after) = (by_org(now.effective(process)?), by_org(next.effective(process)?));
    check_templates(&after, &next)?;
    let mut tables = Vec::new();
    for (org, state) in &before {
        compare(org, Some(state), after.get(org), lake, &mut tables);
    }
    for (org, state) in after.iter().filter(|(org, _)| !before.contains_key(*org)) {
        compare(org, None, Some(state), lake, &mut tables);
    }
    let missing = |from: &BTreeMap<OrgId, EffectiveOrg>, of: &BTreeMap<OrgId, EffectiveOrg>| {
        of.keys().filter(|org| !from.contains_key(*org)).map(ToString::to_string).collect()
    };
    let documents = documents(&now.declared(), declared)?;
    let mut plan = Plan {
        hash: String::new(),
        revision: now.revision,
        orgs_added: missing(&before, &after),
        orgs_removed: missing(&after, &before),
        destructive: tables.iter().filter(|table| table.destructive).count(),
        tables,
        documents,
    };
    plan.hash = hash(&plan)?;
    Ok(plan)
}

fn by_org(orgs: Vec<EffectiveOrg>) -> BTreeMap<OrgId, EffectiveOrg> {
    orgs.into_iter().map(|org| (org.org.clone(), org)).collect()
}

/// An org that the API added may take a template that the files have no more.
fn check_templates(after: &BTreeMap<OrgId, EffectiveOrg>, next: &Desired) -> Result<()> {
    for org in after.values() {
        let lost = org.template.as_ref().filter(|name| !next.templates.contains_key(*name));
        if let Some(name) = lost {
            let message = format!("org {} takes template {name:?}, which would go", org.org);
            return Err(Error::new(ErrorCode::SpecUnknownName, message)
                .hint("keep the template, or give the org another one first"));
        }
    }
    Ok(())
}

fn compare(
    org: &OrgId,
    before: Option<&EffectiveOrg>,
    after: Option<&EffectiveOrg>,
    lake: &LakeFacts,
    planned: &mut Vec<PlannedTable>,
) {
    let active = |org: &EffectiveOrg, spec: &TableSpec| org.enabled && spec.enabled;
    let rows_of = |name: &str| lake.get(&(org.clone(), name.to_owned())).copied();
    let mut push = |name: &str, action, settings, read: Option<u64>| {
        planned.push(PlannedTable {
            org: org.to_string(),
            table: name.to_owned(),
            action,
            destructive: action == Action::Drop,
            settings,
            rows_to_read: read,
            rows: rows_of(name).flatten(),
        });
    };
    for table in before.map(|org| org.tables.as_slice()).unwrap_or_default() {
        let (name, spec) = (&table.spec.name, &table.spec);
        let Some((next, kept)) = after.and_then(|org| Some((org, org.table(name)?))) else {
            push(name, Action::Drop, Vec::new(), None);
            continue;
        };
        let settings = differences(spec, &kept.spec);
        let reads = |setting: &String| READS.contains(&setting.as_str());
        let switched = before.is_some_and(|org| active(org, spec)) != active(next, &kept.spec);
        if settings.iter().any(reads) && rows_of(name).is_some() {
            push(name, Action::Rewrite, settings, rows_of(name).flatten());
        } else if switched {
            push(name, Action::Switch, settings, None);
        } else if !settings.is_empty() {
            push(name, Action::Change, settings, None);
        }
    }
    for table in after.map(|org| org.tables.as_slice()).unwrap_or_default() {
        let name = &table.spec.name;
        if before.is_none_or(|org| org.table(name).is_none()) {
            // A table that was dropped and comes back goes on from its own checkpoint.
            let there = rows_of(name).is_some();
            push(name, if there { Action::Switch } else { Action::Create }, Vec::new(), None);
        }
    }
}

/// The settings in which two specs differ.
fn differences(before: &TableSpec, after: &TableSpec) -> Vec<String> {
    let fields = |spec: &TableSpec| match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    let differ = after.iter().filter(|(name, value)| before.get(*name) != Some(*value));
    differ.map(|(name, _)| name.clone()).collect()
}

/// The rows of the store that change, with their new declared layer.
fn documents(
    now: &Declared,
    next: &Declared,
) -> Result<Vec<(&'static str, String, Option<String>)>> {
    let mut changed = Vec::new();
    for (name, spec) in &next.templates {
        let text = stored(spec)?;
        if now.templates.get(name).map(stored).transpose()?.as_ref() != Some(&text) {
            changed.push((TEMPLATE, name.clone(), Some(text)));
        }
    }
    for (id, spec) in &next.orgs {
        let text = stored(spec)?;
        if now.orgs.get(id).map(stored).transpose()?.as_ref() != Some(&text) {
            changed.push((ORG, id.clone(), Some(text)));
        }
    }
    let gone = now.templates.keys().filter(|name| !next.templates.contains_key(*name));
    changed.extend(gone.map(|name| (TEMPLATE, name.clone(), None)));
    let gone = now.orgs.keys().filter(|id| !next.orgs.contains_key(*id));
    changed.extend(gone.map(|id| (ORG, id.clone(), None)));
    Ok(changed)
}

fn hash(plan: &Plan) -> Result<String> {
    let text = stored(&(plan, &plan.documents))?;
    Ok(polder_core::digest::hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
}

/// Carries out a plan: stores the declared layers it was made for, all or none.
///
/// # Errors
/// `control.stale` if the desired state has changed since the plan was made.
pub async fn apply(store: &Store, plan: &Plan, author: &Author) -> Result<Applied> {
    let hash = plan.hash.clone();
    if plan.documents.is_empty() {
        return Ok(Applied { hash, revision: plan.revision, documents: 0 });
    }
    let adjusted = load(store, &Principal::Operator).await?.orgs;
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    if revision != plan.revision + 1 {
        return Err(Error::new(ErrorCode::ControlStale, "the desired state has changed since")
            .hint("look at the difference again: polder plan"));
    }
    for (kind, id, declared) in &plan.documents {
        let layer = if *kind == ORG { adjusted.get(&id.parse::<OrgId>()?) } else { None };
        let layer = layer.and_then(|org| org.adjusted.as_ref());
        let written = Written {
            kind,
            id,
            declared: declared.clone(),
            adjusted: layer.map(stored).transpose()?,
        };
        write(&mut transaction, revision, written, &author.who, author.why.as_deref()).await?;
    }
    commit(transaction).await?;
    Ok(Applied { hash, revision, documents: plan.documents.len() })
}
