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
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use polder_core::spec::{OrgSpec, ProcessConfig, TableSpec, TemplateSpec};
use polder_core::{OrgId, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Declared, OrgPipeline, check_stored_table};

pub use change::{Author, Change, Current, change};
pub use plan::{Action, Applied, LakeFacts, Plan, PlannedTable, apply, plan};
pub use settle::{Left, Settled, look, settle};
pub use stored::{HistoryEntry, history, load, org, orgs};

/// Templates by name.
pub type Templates = BTreeMap<String, TemplateSpec>;

/// What the API has said of an org, over what the files say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrgLayer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
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
}

/// The whole desired state at one revision.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    pub revision: i64,
    pub templates: Templates,
    pub orgs: BTreeMap<OrgId, OrgDocument>,
}

/// What an org takes, with all layers put together.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveOrg {
    pub org: OrgId,
    pub revision: i64,
    pub name: Option<String>,
    pub template: Option<String>,
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
            tables: enabled.map(|table| table.spec.clone()).collect(),
        }
    }
}

impl Desired {
    /// Every org with its layers put together, in order.
    ///
    /// # Errors
    /// `spec.*` for a table that cannot be read under this process's configuration.
    pub fn effective(&self, process: &ProcessConfig) -> Result<Vec<EffectiveOrg>> {
        let one = |(id, document)| effective(process, &self.templates, id, document);
        self.orgs.iter().map(one).collect()
    }

    /// The state with other declared layers, the adjusted ones as they are.
    fn declaring(&self, declared: &Declared) -> Result<Self> {
        let mut orgs = self.orgs.clone();
        for document in orgs.values_mut() {
            document.declared = None;
        }
        for (id, spec) in &declared.orgs {
            orgs.entry(id.parse()?).or_default().declared = Some(spec.clone());
        }
        orgs.retain(|_, document| document.declared.is_some() || document.adjusted.is_some());
        Ok(Self { revision: self.revision, templates: declared.templates.clone(), orgs })
    }

    /// What files have said, as the store remembers it.
    fn declared(&self) -> Declared {
        let said = |(id, document): (&OrgId, &OrgDocument)| {
            Some((id.as_str().to_owned(), document.declared.clone()?))
        };
        Declared {
            templates: self.templates.clone(),
            orgs: self.orgs.iter().filter_map(said).collect(),
        }
    }
}

/// Puts an org's layers together: template, the files' overrides and own tables, the API's word.
///
/// A patch below which nothing lies any more and that is no whole spec is left out: its table went
/// from the template.
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
    let template = adjusted.template.clone().or_else(|| declared?.template.clone());
    let mut tables = Vec::new();
    for base in base_tables(templates, template.as_deref(), declared) {
        let Some(patch) = adjusted.tables.get(&base.name) else {
            tables.push(EffectiveTable { spec: base, adjusted: false });
            continue;
        };
        if patch.is_null() {
            continue;
        }
        let place = place(org, &base.name);
        let patched = merge_patch(serde_json::to_value(&base).unwrap_or_default(), patch);
        let spec = check_stored_table(process, &place, patched)?;
        tables.push(EffectiveTable { spec, adjusted: true });
    }
    for (name, patch) in &adjusted.tables {
        let whole = patch.get("source").is_some() && patch.get("from").is_some();
        if !whole || tables.iter().any(|table| table.spec.name == *name) {
            continue;
        }
        let mut own = Value::Object(Map::from_iter([("name".to_owned(), name.clone().into())]));
        own = merge_patch(own, patch);
        let spec = check_stored_table(process, &place(org, name), own)?;
        tables.push(EffectiveTable { spec, adjusted: true });
    }
    Ok(EffectiveOrg {
        org: org.clone(),
        revision: document.revision,
        name: adjusted.name.clone().or_else(|| declared?.name.clone()),
        template,
        enabled: adjusted.enabled.or_else(|| Some(declared?.enabled)).unwrap_or(true),
        tables,
    })
}

/// The tables below the API's layer.
pub fn base_tables(
    templates: &Templates,
    template: Option<&str>,
    declared: Option<&OrgSpec>,
) -> Vec<TableSpec> {
    let template = template.and_then(|name| templates.get(name));
    let mut tables: Vec<TableSpec> = template.map(|t| t.tables.clone()).unwrap_or_default();
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

fn place(org: &OrgId, table: &str) -> String {
    format!("org {org}, table {table}")
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
