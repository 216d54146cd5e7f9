//! What applying pipeline files would do to the lake, and doing exactly that.

use std::collections::{BTreeMap, BTreeSet};

use polder_core::spec::{Mode, ProcessConfig, TableSpec};
use polder_core::{Error, ErrorCode, OrgId, Result};
use ring::digest;
use serde::Serialize;
use serde_json::Value;

use super::stored::{ORG, TEMPLATE, declare, next_revision, stored};
use super::tighten::{Keeps, less, tightened};
use super::undo::{self, Pending, Remember, Said, Undos};
use super::{Author, Desired, EffectiveOrg, OrgDocument, Templates, effective, pending, template};
use crate::audit::{self, Event};
use crate::config::{Declared, check_stored_template};
use crate::store::{Store, commit};

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
    /// What of its rows and states maintenance removes under the new settings, once the undo window is over.
    pub goes: Vec<String>,
    /// Rows in the lake now that the next run reads again; `None` where that is not known.
    pub rows_to_read: Option<u64>,
    /// Rows in the lake now.
    pub rows: Option<u64>,
    #[serde(skip)]
    pub(super) remember: Remember,
}

/// The difference between the desired state and what files say.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Of the state it starts from and all that it would store: 64 hex digits.
    pub hash: String,
    pub revision: i64,
    pub orgs_added: Vec<String>,
    pub orgs_removed: Vec<String>,
    /// Orgs that may take more or less of the machine than before, by their own limits or their template's.
    pub orgs_limited: Vec<String>,
    /// Orgs that stay as they are, because they or a template that they take cannot be read; and why.
    pub orgs_unreadable: Vec<Unreadable>,
    pub tables: Vec<PlannedTable>,
    pub destructive: usize,
    /// How long what tables keep less from now on can be taken back.
    pub undo_seconds: i64,
    /// What tables keep less since before, and can still be taken back.
    pub pending: Vec<Pending>,
    #[serde(skip)]
    documents: Vec<(&'static str, String, Option<String>)>,
}

/// An org that cannot be read, or of which a template cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    pub org: String,
    /// And what to do about it.
    pub why: String,
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
    let Compared { orgs_added, orgs_removed, orgs_limited, orgs_unreadable, tables } =
        compare(process, now, declared, lake)?;
    let mut documents = documents(now, declared)?;
    // What would become of their tables is not known.
    let stays = |org: &String| orgs_unreadable.iter().any(|unreadable| unreadable.org == *org);
    documents.retain(|(kind, id, _)| *kind != ORG || !stays(id));
    let mut plan = Plan {
        hash: String::new(),
        revision: now.revision,
        orgs_added,
        orgs_removed,
        orgs_limited,
        orgs_unreadable,
        destructive: tables.iter().filter(|table| table.destructive).count(),
        tables,
        undo_seconds: process.governance.undo_ms()? / 1000,
        pending: Vec::new(),
        documents,
    };
    plan.hash = hash(&plan)?;
    // It goes by time, and the hash does not.
    plan.pending = pending(process, now);
    Ok(plan)
}

/// What becomes of orgs and tables.
#[derive(Default)]
pub(super) struct Compared {
    orgs_added: Vec<String>,
    orgs_removed: Vec<String>,
    orgs_limited: Vec<String>,
    pub(super) orgs_unreadable: Vec<Unreadable>,
    pub(super) tables: Vec<PlannedTable>,
}

/// Compares the orgs one after the other: of ten thousand, two at a time are put together, from templates
/// that were put together once.
///
/// # Errors
/// `spec.*` if the state after it could not be read.
pub(super) fn compare(
    process: &ProcessConfig,
    now: &Desired,
    declared: &Declared,
    lake: &LakeFacts,
) -> Result<Compared> {
    let templates = now.templates();
    let next = templates_after(process, now, (declared, &templates))?;
    let mut found = Compared::default();
    for (id, document) in &now.orgs {
        let after = match unread(&next, now.declaring(declared, id).as_ref()) {
            None => after(process, now, (declared, &next), id)?,
            Some(why) => {
                found.orgs_unreadable.push(Unreadable { org: id.to_string(), why });
                continue;
            }
        };
        let before = match (unread(&templates, Some(document)), &after) {
            (None, _) => effective(process, &templates, id, document)?,
            (Some(_), Some(after)) => unknown(after),
            (Some(why), None) => {
                found.orgs_unreadable.push(Unreadable { org: id.to_string(), why });
                continue;
            }
        };
        if after.is_none() {
            found.orgs_removed.push(id.to_string());
        }
        if after.as_ref().is_some_and(|after| after.limits != before.limits) {
            found.orgs_limited.push(id.to_string());
        }
        let orgs = (Some(&before), after.as_ref());
        compare_tables(id, orgs, (lake, &now.undos), &mut found.tables);
    }
    for name in declared.orgs.keys() {
        let id: OrgId = name.parse()?;
        if now.orgs.contains_key(&id) {
            continue;
        }
        if let Some(why) = unread(&next, now.declaring(declared, &id).as_ref()) {
            found.orgs_unreadable.push(Unreadable { org: id.to_string(), why });
            continue;
        }
        let after = after(process, now, (declared, &next), &id)?;
        let orgs = (None, after.as_ref());
        compare_tables(&id, orgs, (lake, &now.undos), &mut found.tables);
        found.orgs_added.push(id.to_string());
    }
    Ok(found)
}

/// Why an org or its template cannot be read, if one cannot, and what to do about it.
fn unread(templates: &Templates, org: Option<&OrgDocument>) -> Option<String> {
    let error = org?.check(templates).err()?;
    let detail = error.detail_text().map_or_else(String::new, |detail| format!(": {detail}"));
    let hint = error.hint_text().map_or_else(String::new, |hint| format!("; {hint}"));
    Some(format!("{error}{detail}{hint}"))
}

/// An org of which nobody knows what it took: as if its tables had kept all rows.
pub(super) fn unknown(after: &EffectiveOrg) -> EffectiveOrg {
    let mut before = after.clone();
    for table in &mut before.tables {
        table.spec.retention = None;
    }
    before
}

/// The templates under other declared layers. What the API has said of one has to fit what the files say of
/// it, unless it did not fit before.
fn templates_after(
    process: &ProcessConfig,
    now: &Desired,
    (declared, before): (&Declared, &Templates),
) -> Result<Templates> {
    let documents = now.declaring_templates(declared);
    let templates = template::all(&documents);
    for name in declared.templates.keys().filter(|name| before.check(name).is_ok()) {
        templates.check(name)?;
    }
    for (name, spec) in templates.iter() {
        if documents.get(name).is_some_and(|document| document.adjusted.is_some()) {
            check_stored_template(process, name, spec)?;
        }
    }
    Ok(templates)
}

/// An org under other declared layers, with the templates under these. One that the API added may take a
/// template that the files have no more.
fn after(
    process: &ProcessConfig,
    now: &Desired,
    (declared, templates): (&Declared, &Templates),
    id: &OrgId,
) -> Result<Option<EffectiveOrg>> {
    let Some(next) = now.declaring(declared, id) else { return Ok(None) };
    let org = effective(process, templates, id, &next)?;
    let lost = org.template.as_ref().filter(|name| !templates.contains_key(*name));
    if let Some(name) = lost {
        let message = format!("org {id} takes template {name:?}, which would go");
        return Err(Error::new(ErrorCode::SpecUnknownName, message)
            .hint("keep the template, or give the org another one first"));
    }
    Ok(Some(org))
}

/// What a change of an org does to one of its tables, which the lake has with so many rows, if it has it at all;
/// `None` where it goes on as it is.
pub fn effect(
    name: &str,
    (before, after): (&EffectiveOrg, &EffectiveOrg),
    lake: Option<Option<u64>>,
) -> Option<PlannedTable> {
    let of_table = |org: &EffectiveOrg| EffectiveOrg {
        tables: org.table(name).cloned().into_iter().collect(),
        ..org.clone()
    };
    let org = &after.org;
    let facts = lake.map(|rows| ((org.clone(), name.to_owned()), rows)).into_iter().collect();
    let (before, after) = (of_table(before), of_table(after));
    let mut planned = Vec::new();
    let known = (&facts, &Undos::new());
    compare_tables(org, (Some(&before), Some(&after)), known, &mut planned);
    planned.pop()
}

/// The settings of a table that change, what goes by that, and what it kept.
#[derive(Default)]
struct Changed {
    settings: Vec<String>,
    goes: Vec<String>,
    remember: Remember,
}

impl Changed {
    /// Of a table that goes on, and kept what `kept` says.
    fn of(
        (before, after): (&TableSpec, &TableSpec),
        kept: impl FnOnce(&TableSpec) -> Keeps,
    ) -> Self {
        let goes = tightened(before, after);
        let remember =
            if goes.is_empty() { Remember::Nothing } else { Remember::Before(kept(before)) };
        Self { settings: differences(before, after), goes, remember }
    }

    /// Of a table that comes back, if it was there before.
    fn back(kept: Option<&Keeps>, after: &TableSpec) -> Self {
        let Some(kept) = kept else { return Self::default() };
        let goes = less(kept, &Keeps::of(after));
        let remember =
            if goes.is_empty() { Remember::Back } else { Remember::Before(kept.clone()) };
        Self { settings: Vec::new(), goes, remember }
    }
}

/// What becomes of one org's tables, of which the lake has some and some can be taken back.
pub(super) fn compare_tables(
    org: &OrgId,
    (before, after): (Option<&EffectiveOrg>, Option<&EffectiveOrg>),
    (lake, undos): (&LakeFacts, &Undos),
    planned: &mut Vec<PlannedTable>,
) {
    let active = |org: &EffectiveOrg, spec: &TableSpec| org.enabled && spec.enabled;
    let rows_of = |name: &str| lake.get(&(org.clone(), name.to_owned())).copied();
    let undo_of = |name: &str| undos.get(&(org.clone(), name.to_owned())).map(|undo| &undo.keeps);
    // What it kept until lately counts on.
    let kept = |spec: &TableSpec| match undo_of(&spec.name) {
        Some(earlier) => earlier.loosest(&Keeps::of(spec)),
        None => Keeps::of(spec),
    };
    let mut push = |name: &str, action, changed: Changed, read: Option<u64>| {
        let Changed { settings, goes, remember } = changed;
        planned.push(PlannedTable {
            org: org.to_string(),
            table: name.to_owned(),
            action,
            destructive: action == Action::Drop || !goes.is_empty(),
            settings,
            goes,
            rows_to_read: read,
            rows: rows_of(name).flatten(),
            remember,
        });
    };
    for table in before.map(|org| org.tables.as_slice()).unwrap_or_default() {
        let (name, spec) = (&table.spec.name, &table.spec);
        let Some((next, stays)) = after.and_then(|org| Some((org, org.table(name)?))) else {
            let remember = Remember::Left(kept(spec));
            push(name, Action::Drop, Changed { remember, ..Changed::default() }, None);
            continue;
        };
        let is = &stays.spec;
        let changed = Changed::of((spec, is), kept);
        let is_same = changed.settings.is_empty();
        // Also where every run from now on reloads it.
        let is_full = |spec: &TableSpec| spec.mode == Mode::FullRefresh;
        let reloads = !is_same && (spec.reads() != is.reads() || (is_full(is) && !is_full(spec)));
        let switched = before.is_some_and(|org| active(org, spec)) != active(next, is);
        if reloads && rows_of(name).is_some() {
            push(name, Action::Rewrite, changed, rows_of(name).flatten());
        } else if switched {
            push(name, Action::Switch, changed, None);
        } else if !is_same {
            push(name, Action::Change, changed, None);
        }
    }
    for table in after.map(|org| org.tables.as_slice()).unwrap_or_default() {
        let (name, spec) = (&table.spec.name, &table.spec);
        if before.is_none_or(|org| org.table(name).is_none()) {
            // A table that was dropped and comes back goes on from its own checkpoint.
            let there = rows_of(name).is_some();
            let action = if there { Action::Switch } else { Action::Create };
            push(name, action, Changed::back(undo_of(name), spec), None);
        }
    }
}

/// The settings in which two specs differ.
fn differences(before: &TableSpec, after: &TableSpec) -> Vec<String> {
    // Most tables are the same, and there may be many.
    if before == after {
        return Vec::new();
    }
    let fields = |spec: &TableSpec| match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    // Some are only written where they say something.
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    differ.cloned().collect()
}

/// The rows of the store that change, with their new declared layer.
fn documents(
    now: &Desired,
    next: &Declared,
) -> Result<Vec<(&'static str, String, Option<String>)>> {
    let mut changed = Vec::new();
    for (name, spec) in &next.templates {
        let text = stored(spec)?;
        let known = now.templates.get(name).and_then(|template| template.declared.as_ref());
        if known.map(stored).transpose()?.as_ref() != Some(&text) {
            changed.push((TEMPLATE, name.clone(), Some(text)));
        }
    }
    for (id, spec) in &next.orgs {
        let text = stored(spec)?;
        let known = now.orgs.get(&id.parse::<OrgId>()?).and_then(|org| org.declared.as_ref());
        if known.map(stored).transpose()?.as_ref() != Some(&text) {
            changed.push((ORG, id.clone(), Some(text)));
        }
    }
    // One that cannot be read stays for the orgs that take it: what would become of them is not known.
    let (said, read) = (now.declared_templates(), now.templates());
    let gone =
        said.filter(|(name, _)| !next.templates.contains_key(*name) && read.contains_key(*name));
    changed.extend(gone.map(|(name, _)| (TEMPLATE, name.clone(), None)));
    let said = now.orgs.iter().filter(|(_, org)| org.declared.is_some());
    let gone = said.filter(|(id, _)| !next.orgs.contains_key(id.as_str()));
    changed.extend(gone.map(|(id, _)| (ORG, id.to_string(), None)));
    // Whoever holds several rows takes them in this order.
    changed.sort_unstable();
    Ok(changed)
}

/// Written into the digest as it is made: the text of all tables of all orgs is long.
fn hash(plan: &Plan) -> Result<String> {
    struct Hashed(digest::Context);

    impl std::io::Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut hashed = Hashed(digest::Context::new(&digest::SHA256));
    serde_json::to_writer(&mut hashed, &(plan, &plan.documents)).map_err(|error| {
        Error::new(ErrorCode::Internal, "a plan cannot be written as JSON").caused_by(error)
    })?;
    Ok(polder_core::digest::hex(hashed.0.finish().as_ref()))
}

/// Carries out a plan: stores the declared layers it was made for, all or none, with the audit log's entry.
///
/// # Errors
/// `control.stale` if the desired state has changed since the plan was made.
pub async fn apply(store: &Store, plan: &Plan, author: &Author) -> Result<Applied> {
    let hash = plan.hash.clone();
    if plan.documents.is_empty() {
        return Ok(Applied { hash, revision: plan.revision, documents: 0 });
    }
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    if revision != plan.revision + 1 {
        return Err(Error::new(ErrorCode::ControlStale, "the desired state has changed since")
            .hint("look at the difference again: polder plan"));
    }
    for (kind, id, layer) in &plan.documents {
        declare(&mut transaction, revision, (*kind, id.as_str()), layer.clone(), author).await?;
    }
    let tables: Vec<_> = plan
        .tables
        .iter()
        .map(|one| (one.org.as_str(), one.table.as_str(), &one.remember))
        .collect();
    let undo_ms = plan.undo_seconds.saturating_mul(1000);
    let said = Said { who: &author.who, now_ms: store.now_ms(), undo_ms };
    undo::remember(&mut transaction, said, &tables).await?;
    let documents = plan.documents.len();
    let why = author.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let event = Event {
        who: author.who.clone(),
        action: "plan.apply".to_owned(),
        subject: Some(hash.clone()),
        outcome: "done".to_owned(),
        detail: Some(format!("{documents} documents, revision {revision}{why}")),
        org: None,
    };
    // Last: it holds the log's head.
    audit::append(&mut transaction, &event).await?;
    commit(transaction).await?;
    Ok(Applied { hash, revision, documents })
}
