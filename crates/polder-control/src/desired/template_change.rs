//! A template changes: what that would do to the lake, and doing exactly that.
//!
//! The orgs that take it are looked at in pages, so that no more of them is in memory at once than a page,
//! and a plan counts tables and names some. It holds for one revision of the desired state; its hash,
//! which people confirm, covers the change and what becomes of each table, and nothing of orgs that the
//! change does not touch.

use polder_core::spec::{ProcessConfig, TemplateSpec};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use ring::digest;

use super::plan::{compare_tables, unknown};
use super::stored::{
    ORG, ORGS, TEMPLATE, TEMPLATES, Written, next_revision, operators_alone, orgs_in, revision,
    stored, template_documents, templates_in, text, unreadable, write,
};
use super::template::{self, Damage, no_template};
use super::undo::{self, Remember, Said, Undos};
use super::{Action, Author, Change, EffectiveOrg, LakeFacts, PlannedTable, Templates, effective};
use crate::config::check_stored_template;
use crate::store::{Store, Transaction, commit};

/// Orgs that are looked at at a time.
const PAGE: usize = 100;
/// Tables that a plan names, at most.
const EXAMPLES_MAX: usize = 20;
/// Orgs that a refusal names, at most.
const NAMED_MAX: usize = 5;

/// Tables by what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub create: usize,
    pub rewrite: usize,
    pub change: usize,
    pub switch: usize,
    pub drop: usize,
}

impl Actions {
    fn count(&mut self, action: Action) {
        *match action {
            Action::Create => &mut self.create,
            Action::Rewrite => &mut self.rewrite,
            Action::Change => &mut self.change,
            Action::Switch => &mut self.switch,
            Action::Drop => &mut self.drop,
        } += 1;
    }
}

/// A change of a template, while the orgs are looked at that take it: [`Self::page`] until there is none,
/// [`Self::take`] for each of them, then [`Self::finish`].
pub struct TemplateChange<'a> {
    process: &'a ProcessConfig,
    /// All templates as they are, and as they would be.
    before: Templates,
    after: Templates,
    plan: TemplatePlan,
    /// Examples that are destructive, and others.
    examples: [Vec<PlannedTable>; 2],
    /// The org that was looked at last; `None` after the last page.
    last: Option<String>,
    digest: digest::Context,
}

/// What a change of a template would do.
#[derive(Clone, Debug)]
pub struct TemplatePlan {
    /// Of the change and of all that becomes of tables: 64 hex digits.
    pub hash: String,
    pub name: String,
    /// The template after it, and which doors speak of it then.
    pub spec: TemplateSpec,
    pub declared: bool,
    pub adjusted: bool,
    /// There was none of this name.
    pub new: bool,
    /// Orgs that take the template.
    pub orgs: usize,
    /// Those of them of which a table changes.
    pub orgs_changed: usize,
    /// Orgs whose limits change.
    pub orgs_limited: usize,
    pub actions: Actions,
    /// Tables that need an explicit yes.
    pub destructive: usize,
    /// Some of the tables, the destructive ones first; how many rows they have is not looked up.
    pub examples: Vec<PlannedTable>,
    /// How long what tables keep less from now on can be taken back.
    pub undo_seconds: i64,
    /// What has to be remembered of tables, by org and table.
    remember: Vec<(String, String, Remember)>,
    revision: i64,
    /// The template's row with its layers; `None` where it is there as it would be.
    documents: Option<(Option<String>, Option<String>)>,
}

/// An org of which the change touches something.
#[derive(Clone, Debug)]
pub struct ChangedOrg {
    before: EffectiveOrg,
    after: EffectiveOrg,
    /// What of its tables can be taken back.
    undos: Undos,
}

impl ChangedOrg {
    pub fn id(&self) -> &OrgId {
        &self.after.org
    }
}

impl<'a> TemplateChange<'a> {
    /// Begins to look. `decide` gets the template as it is and gives it as it is to be.
    ///
    /// # Errors
    /// `control.denied` for anybody but the operator; what `decide` refuses; `spec.*`.
    pub async fn begin(
        store: &Store,
        principal: &Principal,
        process: &'a ProcessConfig,
        name: &str,
        decide: impl FnOnce(Option<&TemplateSpec>) -> Result<TemplateSpec>,
    ) -> Result<Self> {
        operators_alone(principal)?;
        // The revision first: what is read after it is at least as new, and is not stored if it is newer.
        let revision = revision(store).await?;
        let mut documents = template_documents(store).await?;
        let before = template::all(&documents);
        let spec = decide(before.get(name)).map_err(|error| match before.check(name) {
            Err(unreadable) if error.code() == ErrorCode::ControlNotFound => unreadable,
            _ => error,
        })?;
        check_stored_template(process, name, &spec)?;
        let document = documents.entry(name.to_owned()).or_default();
        let new = !document.is_present();
        let adjusted = document.saying(name, &spec)?;
        let declared = document.declared.as_ref().map(stored).transpose()?;
        let was = document.adjusted.as_ref().map(stored).transpose()?;
        let is = adjusted.as_ref().map(stored).transpose()?;
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(stored(&(name, &declared, &was, &is))?.as_bytes());
        document.adjusted = adjusted;
        let damaged = std::mem::take(&mut document.damage) != Damage::default();
        let spec = document.spec(name)?.unwrap_or_default();
        let plan = TemplatePlan {
            hash: String::new(),
            name: name.to_owned(),
            spec,
            declared: declared.is_some(),
            adjusted: is.is_some(),
            new,
            orgs: 0,
            orgs_changed: 0,
            orgs_limited: 0,
            actions: Actions::default(),
            destructive: 0,
            examples: Vec::new(),
            undo_seconds: process.governance.undo_ms()? / 1000,
            remember: Vec::new(),
            revision,
            documents: (was != is || damaged).then_some((declared, is)),
        };
        let after = template::all(&documents);
        let (examples, last) = ([Vec::new(), Vec::new()], Some(String::new()));
        Ok(Self { process, before, after, plan, examples, last, digest })
    }

    /// The next orgs that take the template and of which it touches something; `None` once all were
    /// looked at.
    ///
    /// # Errors
    /// `spec.*` for an org that could not be read any more.
    pub async fn page(&mut self, store: &Store) -> Result<Option<Vec<ChangedOrg>>> {
        let Some(last) = self.last.take() else { return Ok(None) };
        let rows = sqlx::query(ORGS).bind(ORG).bind(&last).bind(PAGE as i64);
        let rows = rows.fetch_all(store.pool()).await.map_err(unreadable)?;
        if rows.len() == PAGE {
            self.last = rows.last().map(|row| text(row, "id")).transpose()?;
        }
        let mut changed = Vec::new();
        for (org, document) in orgs_in(&rows)? {
            if document.template() != Some(self.plan.name.as_str()) {
                continue;
            }
            self.plan.orgs += 1;
            // Nothing of it is known: whoever gives it anew sees what that does.
            if document.is_damaged() {
                continue;
            }
            let after = effective(self.process, &self.after, &org, &document)?;
            let before = match self.before.check(&self.plan.name) {
                Ok(()) => effective(self.process, &self.before, &org, &document)?,
                Err(_) => unknown(&after),
            };
            self.plan.orgs_limited += usize::from(before.limits != after.limits);
            if before.tables != after.tables {
                changed.push(ChangedOrg { before, after, undos: Undos::new() });
            }
        }
        let orgs: Vec<OrgId> = changed.iter().map(|org| org.id().clone()).collect();
        let undos = undo::of_orgs(store, &orgs).await?;
        for org in &mut changed {
            let own = undos.iter().filter(|((id, _), _)| id == org.id());
            org.undos = own.map(|(place, undo)| (place.clone(), undo.clone())).collect();
        }
        Ok(Some(changed))
    }

    /// Adds what becomes of an org's tables, where the lake has those that `lake` names.
    ///
    /// # Errors
    /// `internal` for what cannot be written as JSON.
    pub fn take(&mut self, changed: &ChangedOrg, lake: &LakeFacts) -> Result<()> {
        let mut planned = Vec::new();
        let ChangedOrg { before, after, undos } = changed;
        compare_tables(changed.id(), (Some(before), Some(after)), (lake, undos), &mut planned);
        self.plan.orgs_changed += usize::from(!planned.is_empty());
        for mut table in planned {
            let remember = std::mem::take(&mut table.remember);
            if remember != Remember::Nothing {
                self.plan.remember.push((table.org.clone(), table.table.clone(), remember));
            }
            // Not how many rows there are: each run changes that.
            let line = stored(&(&table.org, &table.table, table.action, &table.settings))?;
            self.digest.update(line.as_bytes());
            self.plan.actions.count(table.action);
            self.plan.destructive += usize::from(table.destructive);
            let examples = &mut self.examples[usize::from(!table.destructive)];
            if examples.len() < EXAMPLES_MAX {
                examples.push(table);
            }
        }
        Ok(())
    }

    pub fn finish(self) -> TemplatePlan {
        let [mut examples, others] = self.examples;
        examples.extend(others);
        examples.truncate(EXAMPLES_MAX);
        let hash = polder_core::digest::hex(self.digest.finish().as_ref());
        TemplatePlan { hash, examples, ..self.plan }
    }
}

/// Carries out a plan.
///
/// # Errors
/// `control.stale` if the desired state has changed since the plan was made.
pub async fn apply_template(store: &Store, plan: &TemplatePlan, author: &Author) -> Result<()> {
    let Some((declared, adjusted)) = &plan.documents else { return Ok(()) };
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    if revision != plan.revision + 1 {
        return Err(Error::new(ErrorCode::ControlStale, "the desired state has changed since")
            .hint("look at the difference again: ?dry_run=true"));
    }
    let written = Written {
        kind: TEMPLATE,
        id: &plan.name,
        declared: declared.clone(),
        adjusted: adjusted.clone(),
    };
    write(&mut transaction, revision, written, author).await?;
    let tables: Vec<_> = plan
        .remember
        .iter()
        .map(|(org, table, remember)| (org.as_str(), table.as_str(), remember))
        .collect();
    let undo_ms = plan.undo_seconds.saturating_mul(1000);
    let said = Said { who: &author.who, now_ms: store.now_ms(), undo_ms };
    undo::remember(&mut transaction, said, &tables).await?;
    commit(transaction).await
}

/// Takes out a template that the API made and no org takes. `check` gets it as it is, in the transaction
/// that takes it out.
///
/// # Errors
/// `control.denied` for anybody but the operator; `control.not_found`; `control.conflict` while orgs take
/// it, or files declare it; what `check` refuses.
pub async fn remove_template(
    store: &Store,
    principal: &Principal,
    name: &str,
    change: Change<'_>,
    check: impl FnOnce(&TemplateSpec) -> Result<()>,
) -> Result<()> {
    operators_alone(principal)?;
    let mut transaction = store.begin().await?;
    let revision = next_revision(&mut transaction).await?;
    let rows = sqlx::query(TEMPLATES).bind(TEMPLATE).fetch_all(&mut *transaction).await;
    let document = templates_in(&rows.map_err(unreadable)?)?.remove(name);
    let document = document.ok_or_else(|| no_template(name))?;
    // One that cannot be read goes too.
    check(&document.spec(name).ok().flatten().unwrap_or_default())?;
    let (orgs, named) = takers(&mut transaction, name).await?;
    let conflict = |message: String| Error::new(ErrorCode::ControlConflict, message);
    if orgs > 0 {
        let more = if orgs > named.len() { ", …" } else { "" };
        let take = if orgs == 1 { "org takes" } else { "orgs take" };
        let message = format!("{orgs} {take} template {name:?}: {}{more}", named.join(", "));
        return Err(conflict(message)
            .hint("give them another one first: PATCH /v1/orgs/{org} {\"template\": …}"));
    }
    if document.is_declared() {
        return Err(conflict(format!("pipeline files declare template {name:?}"))
            .hint("take it out of them, then: polder plan, polder apply"));
    }
    if change.dry_run {
        return Ok(());
    }
    let written = Written { kind: TEMPLATE, id: name, declared: None, adjusted: None };
    write(&mut transaction, revision, written, change.author).await?;
    commit(transaction).await
}

/// How many orgs take a template, and some of them.
async fn takers(transaction: &mut Transaction, name: &str) -> Result<(usize, Vec<String>)> {
    let (mut orgs, mut named) = (0, Vec::new());
    let mut last = String::new();
    loop {
        let rows = sqlx::query(ORGS).bind(ORG).bind(&last).bind(PAGE as i64);
        let rows = rows.fetch_all(&mut **transaction).await.map_err(unreadable)?;
        for (org, document) in orgs_in(&rows)? {
            if document.template() == Some(name) {
                orgs += 1;
                if named.len() < NAMED_MAX {
                    named.push(org.to_string());
                }
            }
        }
        match rows.last() {
            Some(row) if rows.len() == PAGE => last = text(row, "id")?,
            _ => return Ok((orgs, named)),
        }
    }
}
