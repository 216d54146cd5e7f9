//! Templates: what files say of them, and what the API says over it.
//!
//! As of an org, the API's word lies on top by table: settings that it never spoke of follow the files.
//! It is kept as what differs from them, so a template that is told to be what the files say is theirs
//! again.

use std::collections::BTreeMap;

use polder_core::spec::{TableSpec, TemplateSpec};
use polder_core::{Error, ErrorCode, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::{Templates, merge_patch, patched};
use crate::config::read_stored;

/// Templates by name, each with its layers.
pub type TemplateDocuments = BTreeMap<String, TemplateDocument>;

/// What the API has said of a template, over what the files say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateLayer {
    /// The whole schedule; null for none, whatever the files say.
    #[serde(deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Value>,
    /// All limits; null for none, whatever the files say.
    #[serde(deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub limits: Option<Value>,
    /// All groups.
    #[serde(deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub groups: Option<Value>,
    /// As an org's: merge patches by table, whole specs where nothing lies below, null where the table was
    /// taken out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Value>,
}

/// A null that was said is another thing than nothing.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A template as the store has it.
#[derive(Clone, Debug, Default)]
pub struct TemplateDocument {
    pub declared: Option<TemplateSpec>,
    pub adjusted: Option<TemplateLayer>,
    pub(super) damage: Damage,
}

/// Why layers of an org or a template cannot be read, such as those that a newer version of polder wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) declared: Option<String>,
    pub(super) adjusted: Option<String>,
}

impl TemplateDocument {
    /// A template that files no longer name and the API has taken out, or never spoke of, is history alone.
    pub(super) fn is_present(&self) -> bool {
        self.is_declared() || self.is_others()
    }

    /// Files speak of it.
    pub fn is_declared(&self) -> bool {
        self.declared.is_some() || self.damage.declared.is_some()
    }

    /// There is more of it than files that are applied have a word in.
    pub(super) fn is_others(&self) -> bool {
        self.adjusted.is_some() || self.damage != Damage::default()
    }

    /// The layers put together; `None` for what is history alone.
    ///
    /// # Errors
    /// `spec.invalid` where they do not fit, or one cannot be read.
    pub fn spec(&self, name: &str) -> Result<Option<TemplateSpec>> {
        let Damage { declared, adjusted } = &self.damage;
        if let Some(why) = declared.as_ref().or(adjusted.as_ref()) {
            return Err(invalid(name, why));
        }
        if !self.is_present() {
            return Ok(None);
        }
        let base = self.declared.clone().unwrap_or_default();
        let Some(layer) = &self.adjusted else { return Ok(Some(base)) };
        let read =
            |table: &str, document: Value| read_stored::<TableSpec>(&place(name, table), document);
        let tables = patched(base.tables, &layer.tables, read)?;
        let schedule = match &layer.schedule {
            Some(said) => read_stored(&format!("template {name}, schedule"), said.clone())?,
            None => base.schedule,
        };
        let limits = match &layer.limits {
            Some(said) => read_stored(&format!("template {name}, limits"), said.clone())?,
            None => base.limits,
        };
        let groups = match &layer.groups {
            Some(said) => read_stored(&format!("template {name}, groups"), said.clone())?,
            None => base.groups,
        };
        let tables = tables.into_iter().map(|table| table.spec).collect();
        Ok(Some(TemplateSpec { schedule, limits, groups, tables }))
    }

    /// The API's layer under which the template is just this; `None` where the files say it all.
    ///
    /// # Errors
    /// `spec.invalid` for what a merge patch cannot say.
    pub(super) fn saying(
        &self,
        name: &str,
        wanted: &TemplateSpec,
    ) -> Result<Option<TemplateLayer>> {
        let nothing = TemplateSpec::default();
        let below = self.declared.as_ref().unwrap_or(&nothing);
        let mut layer = TemplateLayer::default();
        if wanted.schedule != below.schedule {
            layer.schedule = Some(serde_json::to_value(&wanted.schedule).unwrap_or_default());
        }
        if wanted.limits != below.limits {
            layer.limits = Some(serde_json::to_value(&wanted.limits).unwrap_or_default());
        }
        if wanted.groups != below.groups {
            layer.groups = Some(serde_json::to_value(&wanted.groups).unwrap_or_default());
        }
        for table in &wanted.tables {
            let base = below.tables.iter().find(|base| base.name == table.name);
            let mut patch = between(&base.map(fields).unwrap_or_default(), &fields(table));
            patch.remove("name");
            if base.is_none() || !patch.is_empty() {
                layer.tables.insert(table.name.clone(), Value::Object(patch));
            }
        }
        let stays = |table: &TableSpec| wanted.tables.iter().any(|one| one.name == table.name);
        for gone in below.tables.iter().filter(|table| !stays(table)) {
            layer.tables.insert(gone.name.clone(), Value::Null);
        }
        let next = Self {
            declared: self.declared.clone(),
            adjusted: Some(layer.clone()),
            damage: Damage::default(),
        };
        let found = next.spec(name)?.unwrap_or_default();
        if let Some(lost) = wanted.tables.iter().find(|table| !found.tables.contains(table)) {
            let message = format!("table {:?} says null inside of a setting", lost.name);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail(place(name, &lost.name))
                .hint(
                    "it would be lost: in a filter of MongoDB write {\"$in\": [null]} for null",
                ));
        }
        let differs = layer != TemplateLayer::default() || self.declared.is_none();
        Ok(differs.then_some(layer))
    }
}

/// All templates with their layers put together. One that cannot be read stops only the orgs that take it.
pub(super) fn all(documents: &TemplateDocuments) -> Templates {
    let mut templates = Templates::default();
    for (name, document) in documents {
        templates.take(name.clone(), document.spec(name));
    }
    templates
}

/// A template after a merge patch (RFC 7396) of what is shown of it. Tables may be an object in which they
/// are named, each with a patch of its own or null, or a list, which takes the place of all.
///
/// # Errors
/// `spec.invalid` for what is no template after it; `spec.unknown_name` for a table to be taken out that is
/// not there.
pub fn patch_template(
    name: &str,
    now: &TemplateSpec,
    patch: &Map<String, Value>,
) -> Result<TemplateSpec> {
    let mut next = now.clone();
    for (field, said) in patch {
        match (field.as_str(), said) {
            ("schedule", said) => {
                let before = serde_json::to_value(&now.schedule).unwrap_or_default();
                let place = format!("template {name}, schedule");
                next.schedule = read_stored(&place, merge_patch(before, said))?;
            }
            ("limits", said) => {
                let before = serde_json::to_value(&now.limits).unwrap_or_default();
                let place = format!("template {name}, limits");
                next.limits = read_stored(&place, merge_patch(before, said))?;
            }
            ("groups", said) => {
                let before = serde_json::to_value(&now.groups).unwrap_or_default();
                let place = format!("template {name}, groups");
                let said: Option<_> = read_stored(&place, merge_patch(before, said))?;
                next.groups = said.unwrap_or_default();
            }
            ("tables", Value::Object(said)) => patch_tables(name, &mut next.tables, said)?,
            ("tables", Value::Array(_)) => {
                next.tables = read_stored(&format!("template {name}, tables"), said.clone())?;
            }
            ("tables", _) => {
                return Err(invalid(name, "tables is neither an object by name nor a list"));
            }
            (other, _) => {
                let message = format!("a template has no {other:?}");
                return Err(
                    invalid(name, &message).hint("it has schedule, limits, groups and tables")
                );
            }
        }
    }
    Ok(next)
}

fn patch_tables(
    template: &str,
    tables: &mut Vec<TableSpec>,
    said: &Map<String, Value>,
) -> Result<()> {
    for (name, patch) in said {
        let at = tables.iter().position(|table| table.name == *name);
        match (at, patch) {
            (Some(at), Value::Null) => drop(tables.remove(at)),
            (None, Value::Null) => {
                let message = format!("template {template:?} has no table {name:?} to take out");
                return Err(Error::new(ErrorCode::SpecUnknownName, message)
                    .hint("GET /v1/templates/{template} shows its tables"));
            }
            (at, Value::Object(settings)) => {
                if settings.get("name").is_some_and(|said| said.as_str() != Some(name.as_str())) {
                    return Err(invalid(template, "a table's name cannot be changed"));
                }
                let below = at.map_or_else(
                    || json!({ "name": name }),
                    |at| serde_json::to_value(&tables[at]).unwrap_or_default(),
                );
                let spec: TableSpec =
                    read_stored(&place(template, name), merge_patch(below, patch))?;
                match at {
                    Some(at) => tables[at] = spec,
                    None => tables.push(spec),
                }
            }
            _ => {
                let message = format!("table {name:?} is neither an object of settings nor null");
                return Err(invalid(template, &message));
            }
        }
    }
    Ok(())
}

fn invalid(template: &str, message: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, message).detail(format!("template {template}"))
}

fn place(template: &str, table: &str) -> String {
    format!("template {template}, table {table}")
}

fn fields(table: &TableSpec) -> Map<String, Value> {
    match serde_json::to_value(table) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The merge patch by which one object becomes another. Nulls are as what is not there.
fn between(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, value) in after.iter().filter(|(_, value)| !value.is_null()) {
        match (before.get(name), value) {
            (Some(same), value) if same == value => {}
            (Some(Value::Object(below)), Value::Object(value)) => {
                patch.insert(name.clone(), Value::Object(between(below, value)));
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for (name, _) in before.iter().filter(|(_, value)| !value.is_null()) {
        if after.get(name).is_none_or(Value::is_null) {
            patch.insert(name.clone(), Value::Null);
        }
    }
    patch
}

/// There is no such template, or none of the caller's.
pub fn no_template(name: &str) -> Error {
    Error::new(ErrorCode::ControlNotFound, format!("there is no template {name:?}"))
        .hint("GET /v1/templates lists the templates you may see")
}
