//! The desired state: which org takes which tables, and how. One state with two doors.
//!
//! Every org and template has two layers in the store. The *declared* one is what pipeline files
//! said when they were last applied; the *adjusted* one is what the API has said since, and lies on
//! top, setting by setting. Applying files replaces declared layers and leaves adjusted ones alone, so
//! neither door undoes what came in by the other. Every change has a revision and stays in the history
//! with who made it, when and why (ADR 0015).

mod change;
mod plan;
mod settle;
mod stored;
mod template;
mod template_change;
#[cfg(test)]
mod tests;
mod tighten;
mod undo;

use std::collections::BTreeMap;
use std::ops::Deref;

use polder_core::spec::{OrgLimits, OrgSpec, ProcessConfig, ScheduleSpec, TableSpec, TemplateSpec};
use polder_core::{Error, ErrorCode, OrgId, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Declared, OrgPipeline, check_stored_table};
use template::Damage;

pub use change::{Author, Change, Current, change};
pub use plan::{Action, Applied, LakeFacts, Plan, PlannedTable, Unreadable, apply, effect, plan};
pub use settle::{Left, left, look, settle};
pub use stored::{
    HistoryEntry, history, load, org, orgs, revision, template_documents, template_history,
};
pub(crate) use stored::{PRESENT, changed, template_changed, templates};
pub use template::{
    TemplateDocument, TemplateDocuments, TemplateLayer, no_template, patch_template,
};
pub use template_change::{
    Actions, ChangedOrg, TemplateChange, TemplatePlan, apply_template, remove_template,
};
pub use tighten::Keeps;
pub use undo::{Pending, Undo, Undos, end_undo, pending, undo_of, undone};

/// Templates by name, with their layers put together; and why those that cannot be read are not among them.
#[derive(Clone, Debug, Default)]
pub struct Templates {
    read: BTreeMap<String, TemplateSpec>,
    unreadable: BTreeMap<String, String>,
}

impl Templates {
    /// Adds a template, or why it cannot be read; nothing of one that is history alone.
    fn take(&mut self, name: String, spec: Result<Option<TemplateSpec>>) {
        match spec {
            Ok(Some(spec)) => drop(self.read.insert(name, spec)),
            Ok(None) => {}
            Err(error) => drop(self.unreadable.insert(name, error.to_string())),
        }
    }

    /// # Errors
    /// `spec.invalid` for a template that cannot be read: the orgs that take it stop, and no others.
    fn check(&self, name: &str) -> Result<()> {
        let Some(why) = self.unreadable.get(name) else { return Ok(()) };
        Err(Error::new(ErrorCode::SpecInvalid, format!("template {name:?} cannot be read"))
            .detail(why.clone())
            .hint("give it anew: PUT /v1/templates/{template}, or polder apply"))
    }
}

impl FromIterator<(String, TemplateSpec)> for Templates {
    fn from_iter<I: IntoIterator<Item = (String, TemplateSpec)>>(read: I) -> Self {
        Self { read: read.into_iter().collect(), unreadable: BTreeMap::new() }
    }
}

impl Deref for Templates {
    type Target = BTreeMap<String, TemplateSpec>;

    fn deref(&self) -> &Self::Target {
        &self.read
    }
}

/// What the API has said of an org, over what the files say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrgLayer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Groups of its template that it switches on or off.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<OrgLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// JSON merge patches (RFC 7396) of table specs, by table; whole specs where nothing lies below,
    /// `null` where the table was taken out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Value>,
}

/// An org as the store has it.
#[derive(Clone, Debug, Default)]
pub struct OrgDocument {
    /// The revision that changed it last.
    pub revision: i64,
    pub declared: Option<OrgSpec>,
    pub adjusted: Option<OrgLayer>,
    damage: Damage,
}

impl OrgDocument {
    /// The name of the template that the org takes.
    pub fn template(&self) -> Option<&str> {
        let said = self.adjusted.as_ref().and_then(|layer| layer.template.as_deref());
        said.or_else(|| self.declared.as_ref()?.template.as_deref())
    }

    /// Groups that the org switches on or off: the API's word over the files'.
    pub fn groups(&self) -> BTreeMap<String, bool> {
        let mut groups = self.declared.as_ref().map(|org| org.groups.clone()).unwrap_or_default();
        groups.extend(self.adjusted.iter().flat_map(|layer| layer.groups.clone()));
        groups
    }

    pub fn name(&self) -> Option<&str> {
        let said = self.adjusted.as_ref().and_then(|layer| layer.name.as_deref());
        said.or_else(|| self.declared.as_ref()?.name.as_deref())
    }

    pub fn is_enabled(&self) -> bool {
        let said = self.adjusted.as_ref().and_then(|layer| layer.enabled);
        said.or_else(|| Some(self.declared.as_ref()?.enabled)).unwrap_or(true)
    }

    /// An org that files no longer name and the API never spoke of is history alone.
    pub fn is_present(&self) -> bool {
        self.declared.is_some() || self.adjusted.is_some() || self.is_damaged()
    }

    /// A layer of it cannot be read, such as one that a newer version of polder wrote.
    fn is_damaged(&self) -> bool {
        self.damage != Damage::default()
    }

    /// # Errors
    /// `spec.invalid` for an org of which a layer cannot be read: it stops, and no others.
    fn check_layers(&self) -> Result<()> {
        let Damage { declared, adjusted } = &self.damage;
        let Some(why) = declared.as_ref().or(adjusted.as_ref()) else { return Ok(()) };
        // Files say nothing of what the API has said.
        let hint = if adjusted.is_some() {
            "give it anew: POST /v1/orgs, by an operator"
        } else {
            "give it anew: polder apply with files that name it, or POST /v1/orgs, by an operator"
        };
        Err(Error::new(ErrorCode::SpecInvalid, "what the store has of the org cannot be read")
            .detail(why.clone())
            .hint(hint))
    }

    /// # Errors
    /// `spec.invalid` for an org of which a layer, or the template, cannot be read.
    fn check(&self, templates: &Templates) -> Result<()> {
        self.check_layers()?;
        self.template().map_or(Ok(()), |name| templates.check(name))
    }
}

/// The whole desired state at one revision.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    pub revision: i64,
    pub templates: TemplateDocuments,
    pub orgs: BTreeMap<OrgId, OrgDocument>,
    /// What can be taken back, and what tables kept that left their pipelines.
    pub undos: Undos,
}

/// What an org takes, with all layers put together.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveOrg {
    pub org: OrgId,
    pub revision: i64,
    pub name: Option<String>,
    pub template: Option<String>,
    /// Its template's groups, and whether they are on.
    pub groups: BTreeMap<String, bool>,
    /// Its own, over its template's.
    pub limits: OrgLimits,
    /// When its tables run that say nothing of it: the org's own word, or its template's.
    pub schedule: Option<ScheduleSpec>,
    pub enabled: bool,
    /// In the template's order, then the org's own; tables that are switched off too.
    pub tables: Vec<EffectiveTable>,
}

/// A table spec, and by which doors it came.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveTable {
    pub spec: TableSpec,
    /// The API has said something of it.
    pub adjusted: bool,
}

impl EffectiveOrg {
    pub fn table(&self, name: &str) -> Option<&EffectiveTable> {
        self.tables.iter().find(|table| table.spec.name == name)
    }

    /// What runs take of it: nothing of an org that is switched off.
    pub fn pipeline(&self) -> OrgPipeline {
        let enabled = self.tables.iter().filter(|table| self.enabled && table.spec.enabled);
        OrgPipeline {
            org: self.org.clone(),
            name: self.name.clone(),
            limits: self.limits.clone(),
            tables: enabled.map(|table| table.spec.clone()).collect(),
        }
    }
}

impl Desired {
    /// Every template with its layers put together. One that cannot be read stops only the orgs that take it.
    pub fn templates(&self) -> Templates {
        template::all(&self.templates)
    }

    /// What files have said of templates, as the store remembers it.
    fn declared_templates(&self) -> impl Iterator<Item = (&String, &TemplateSpec)> {
        let templates = self.templates.iter();
        templates.filter_map(|(name, document)| Some((name, document.declared.as_ref()?)))
    }

    /// The templates under other declared layers, the adjusted ones as they are.
    fn declaring_templates(&self, declared: &Declared) -> TemplateDocuments {
        let mut templates = TemplateDocuments::new();
        for (name, document) in self.templates.iter().filter(|(_, one)| one.is_others()) {
            let next = TemplateDocument { declared: None, ..document.clone() };
            templates.insert(name.clone(), next);
        }
        for (name, spec) in &declared.templates {
            let next = templates.entry(name.clone()).or_default();
            next.declared = Some(spec.clone());
            next.damage.declared = None;
        }
        templates
    }

    /// An org under other declared layers, its adjusted one as it is; `None` where neither speaks of it. A
    /// declared one that cannot be read stays where files have none to take its place.
    fn declaring(&self, declared: &Declared, id: &OrgId) -> Option<OrgDocument> {
        let mut next = self.orgs.get(id).cloned().unwrap_or_default();
        next.declared = declared.orgs.get(id.as_str()).cloned();
        if next.declared.is_some() {
            next.damage.declared = None;
        }
        next.is_present().then_some(next)
    }
}

/// Puts an org's layers together: template, the files' overrides and own tables, the API's word.
///
/// # Errors
/// `spec.*`.
pub fn effective(
    process: &ProcessConfig,
    templates: &Templates,
    org: &OrgId,
    document: &OrgDocument,
) -> Result<EffectiveOrg> {
    let nothing = OrgLayer::default();
    let adjusted = document.adjusted.as_ref().unwrap_or(&nothing);
    let declared = document.declared.as_ref();
    let template = document.template();
    document.check(templates)?;
    let read = |name: &str, table: Value| {
        check_stored_table(process, &format!("org {org}, table {name}"), table)
    };
    let switched = document.groups();
    let base = base_tables(templates, template, declared, &switched);
    let mut tables = patched(base, &adjusted.tables, read)?;
    let own = adjusted.schedule.clone().or_else(|| declared?.schedule.clone());
    let schedule = own.or_else(|| templates.get(template?)?.schedule.clone());
    for table in tables.iter_mut().filter(|table| table.spec.schedule.is_none()) {
        table.spec.schedule.clone_from(&schedule);
    }
    let own = adjusted.limits.as_ref().or_else(|| declared?.limits.as_ref());
    let below = template.and_then(|name| templates.get(name)?.limits.as_ref());
    let limits = match (own, below) {
        (Some(own), Some(below)) => own.over(below),
        (own, below) => own.or(below).cloned().unwrap_or_default(),
    };
    Ok(EffectiveOrg {
        org: org.clone(),
        revision: document.revision,
        name: document.name().map(str::to_owned),
        template: template.map(str::to_owned),
        groups: template.map(|name| groups(templates, name, &switched)).unwrap_or_default(),
        limits,
        schedule,
        enabled: document.is_enabled(),
        tables,
    })
}

/// Tables under merge patches, by name. A patch below which nothing lies any more and that is no whole
/// spec is left out: its table went from below.
fn patched(
    base: Vec<TableSpec>,
    patches: &BTreeMap<String, Value>,
    read: impl Fn(&str, Value) -> Result<TableSpec>,
) -> Result<Vec<EffectiveTable>> {
    let mut tables = Vec::new();
    for spec in base {
        let Some(patch) = patches.get(&spec.name) else {
            tables.push(EffectiveTable { spec, adjusted: false });
            continue;
        };
        if patch.is_null() {
            continue;
        }
        let merged = merge_patch(serde_json::to_value(&spec).unwrap_or_default(), patch);
        tables.push(EffectiveTable { spec: read(&spec.name, merged)?, adjusted: true });
    }
    for (name, patch) in patches {
        let whole = patch.get("source").is_some() && patch.get("from").is_some();
        if !whole || tables.iter().any(|table| table.spec.name == *name) {
            continue;
        }
        let mut own = Value::Object(Map::from_iter([("name".to_owned(), name.clone().into())]));
        own = merge_patch(own, patch);
        tables.push(EffectiveTable { spec: read(name, own)?, adjusted: true });
    }
    Ok(tables)
}

/// A template's groups, and whether an org has them on that switches them so.
fn groups(
    templates: &Templates,
    template: &str,
    switched: &BTreeMap<String, bool>,
) -> BTreeMap<String, bool> {
    let Some(template) = templates.get(template) else { return BTreeMap::new() };
    let is_on = |name: &String| Some((name.clone(), template.has_group(name, switched)?));
    template.groups.keys().filter_map(is_on).collect()
}

/// The tables below what the API says of each, for an org that switches groups so.
pub fn base_tables(
    templates: &Templates,
    template: Option<&str>,
    declared: Option<&OrgSpec>,
    switched: &BTreeMap<String, bool>,
) -> Vec<TableSpec> {
    let template = template.and_then(|name| templates.get(name));
    let mut tables = template.map(|t| t.tables_for(switched)).unwrap_or_default();
    if let Some(declared) = declared {
        for table in &mut tables {
            if let Some(patch) = declared.overrides.get(&table.name) {
                *table = patch.apply(table);
            }
        }
        let own = declared.tables.iter();
        let own: Vec<_> =
            own.filter(|own| tables.iter().all(|table| table.name != own.name)).cloned().collect();
        tables.extend(own);
    }
    tables
}

/// RFC 7396.
pub fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let below = target.remove(name).unwrap_or_default();
            target.insert(name.clone(), merge_patch(below, value));
        }
    }
    Value::Object(target)
}

/// One patch that does what `first` and then `second` do.
pub fn patch_after(first: Value, second: &Value) -> Value {
    match (first, second) {
        (Value::Object(mut first), Value::Object(second)) => {
            for (name, value) in second {
                let below = first.remove(name).unwrap_or_default();
                first.insert(name.clone(), patch_after(below, value));
            }
            Value::Object(first)
        }
        (_, second) => second.clone(),
    }
}
