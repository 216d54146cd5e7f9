//! Checks every name that templates, overrides and orgs mention, and what tables are to be.

use std::collections::{BTreeMap, BTreeSet};

use polder_core::spec::{
    EngineKind, Mode, OrgLimits, OrgSpec, PipelineFile, ProcessConfig, SourceSpec, TableSpec,
    TemplateSpec,
};
use polder_core::{Error, ErrorCode, OrgId, Result};
use serde::de::DeserializeOwned;

use super::diagnose::{Text, nearest, suggest};

/// What one org takes: its enabled tables, in order.
#[derive(Clone, Debug)]
pub struct OrgPipeline {
    pub org: OrgId,
    /// The org's name for people.
    pub name: Option<String>,
    pub limits: OrgLimits,
    pub tables: Vec<TableSpec>,
}

type Templates<'a> = BTreeMap<&'a str, (&'a Text, &'a TemplateSpec)>;

/// Checks what the files say: every template, and every org as it would be. Nothing is put together for
/// longer than it is looked at: there may be many orgs.
pub(super) fn check(process: &ProcessConfig, files: &[(Text, PipelineFile)]) -> Result<()> {
    let templates = templates(process, files)?;
    let mut orgs = BTreeSet::new();
    for (text, file) in files {
        for spec in &file.orgs {
            if !orgs.insert(check_org(process, &templates, text, spec)?) {
                let place = text.find(&["orgs"], &spec.id);
                let message = format!("org {:?} stands twice", spec.id);
                return Err(text.error(ErrorCode::SpecInvalid, place, message));
            }
        }
    }
    Ok(())
}

fn templates<'a>(
    process: &ProcessConfig,
    files: &'a [(Text, PipelineFile)],
) -> Result<Templates<'a>> {
    let mut templates = Templates::new();
    for (text, file) in files {
        for (name, template) in &file.templates {
            if templates.insert(name, (text, template)).is_some() {
                let place = text.find(&["templates"], name);
                let message = format!("template {name:?} stands twice");
                return Err(text.error(ErrorCode::SpecInvalid, place, message));
            }
            let who = format!("template {name}");
            check_limits(text, &["templates", name], &who, template.limits.as_ref())?;
            for table in &template.tables {
                check_table(process, text, &["templates", name], table)?;
            }
            check_unique(text, template.tables.iter())?;
            check_groups(text, &["templates", name], template)?;
        }
    }
    Ok(templates)
}

/// Tables that are as the template has them were checked there.
fn check_org(
    process: &ProcessConfig,
    templates: &Templates<'_>,
    text: &Text,
    spec: &OrgSpec,
) -> Result<OrgId> {
    let org: OrgId = spec.id.parse().map_err(|error: Error| {
        let located = text.error(error.code(), text.find(&["orgs"], &spec.id), error.to_string());
        located.hint(error.hint_text().unwrap_or_default())
    })?;
    check_limits(text, &["orgs", &spec.id], &format!("org {org}"), spec.limits.as_ref())?;
    let nothing = TemplateSpec::default();
    let template = match &spec.template {
        Some(name) => template_of(templates, text, spec, name)?,
        None => &nothing,
    };
    if let Some(name) = spec.groups.keys().find(|name| !template.groups.contains_key(*name)) {
        let place = text.find(&["orgs", &spec.id, "groups"], name);
        let message = format!("org {org} switches group {name:?}, which its template lacks");
        let names = template.groups.keys().map(String::as_str);
        return Err(text
            .error(ErrorCode::SpecUnknownName, place, message)
            .hint(suggest(name, names)));
    }
    let template = &template.tables;
    if let Some(name) =
        spec.overrides.keys().find(|name| !template.iter().any(|t| t.name == **name))
    {
        let place = text.find(&["orgs", &spec.id, "overrides"], name);
        let message = format!("org {org} overrides table {name:?}, which its template lacks");
        let names = template.iter().map(|table| table.name.as_str());
        return Err(text
            .error(ErrorCode::SpecUnknownName, place, message)
            .hint(suggest(name, names)));
    }
    for table in template {
        if let Some(patch) = spec.overrides.get(&table.name) {
            check_table(process, text, &["orgs", &spec.id], &patch.apply(table))?;
        }
    }
    for table in &spec.tables {
        check_table(process, text, &["orgs", &spec.id], table)?;
    }
    check_unique(text, template.iter().chain(&spec.tables))?;
    Ok(org)
}

/// # Errors
/// As [`OrgLimits::check`], with where they stand.
fn check_limits(text: &Text, after: &[&str], who: &str, limits: Option<&OrgLimits>) -> Result<()> {
    let Some(Err(error)) = limits.map(OrgLimits::check) else { return Ok(()) };
    let place = text.find(after, "limits");
    let located = text.error(error.code(), place, format!("{who}: {error}"));
    Err(located.hint(error.hint_text().unwrap_or_default()))
}

/// Names that groups mention are the template's tables, each once.
fn check_groups(text: &Text, within: &[&str], template: &TemplateSpec) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (group, spec) in &template.groups {
        let place = |table: &str| {
            let mut after = within.to_vec();
            after.extend(["groups", group.as_str()]);
            text.find(&after, table)
        };
        for name in &spec.tables {
            if !template.tables.iter().any(|table| table.name == *name) {
                let message =
                    format!("group {group:?} has table {name:?}, which its template lacks");
                let names = template.tables.iter().map(|table| table.name.as_str());
                return Err(text
                    .error(ErrorCode::SpecUnknownName, place(name), message)
                    .hint(suggest(name, names)));
            }
            if !seen.insert(name) {
                let message = format!("table {name:?} is in two groups, or twice in one");
                return Err(text
                    .error(ErrorCode::SpecInvalid, place(name), message)
                    .hint("give each table one group at most"));
            }
        }
    }
    Ok(())
}

fn template_of<'a>(
    templates: &Templates<'a>,
    text: &Text,
    spec: &OrgSpec,
    name: &str,
) -> Result<&'a TemplateSpec> {
    if let Some((_, template)) = templates.get(name) {
        return Ok(template);
    }
    let place = text.find(&["orgs", &spec.id], name);
    let message = format!("org {} takes template {name:?}, which does not exist", spec.id);
    Err(text
        .error(ErrorCode::SpecUnknownName, place, message)
        .hint(suggest(name, templates.keys().copied())))
}

fn check_unique<'a>(text: &Text, tables: impl Iterator<Item = &'a TableSpec>) -> Result<()> {
    let mut names = BTreeSet::new();
    for table in tables {
        if !names.insert(&table.name) {
            let message = format!("table {:?} stands twice in one pipeline", table.name);
            let place = text.find(&[], &table.name);
            return Err(text.error(ErrorCode::SpecInvalid, place, message));
        }
    }
    Ok(())
}

fn check_table(
    process: &ProcessConfig,
    text: &Text,
    within: &[&str],
    table: &TableSpec,
) -> Result<()> {
    let invalid = |value: &str, message: String| {
        let mut after = within.to_vec();
        after.push(&table.name);
        // A table that came from another file's template is not found here; then the file is named.
        text.error(ErrorCode::SpecInvalid, text.find(&after, value), message)
    };
    let name = &table.name;
    if name.is_empty()
        || name.len() > 255
        || name.chars().any(|c| c.is_control() || c == '$' || c == '@')
    {
        return Err(invalid(name, format!("{name:?} cannot name a lake table"))
            .hint("use 1 to 255 characters, no control characters, '$' or '@'"));
    }
    let Some(source) = process.sources.get(&table.source) else {
        let message =
            format!("table {name:?} reads source {:?}, which does not exist", table.source);
        let names = process.sources.keys().map(String::as_str);
        return Err(invalid(&table.source, message).hint(format!(
            "{} (sources are defined in polder.toml)",
            suggest(&table.source, names)
        )));
    };
    check_mode(&invalid, source, table)?;
    check_maintenance(&invalid, table)?;
    if table.engine == Some(EngineKind::Trino) && process.trino.is_none() {
        let message = format!("table {name:?} has engine: trino, but polder.toml has no [trino]");
        return Err(invalid("trino", message)
            .hint("name the coordinator there: [trino] url = \"https://…\""));
    }
    check_validation(&invalid, process, table)?;
    if let Some(columns) = &table.columns {
        let used = table.key.iter().chain(&table.cursor).chain(&table.deleted_at);
        let used = used.chain(table.partition.iter().map(|field| &field.column));
        let used = used.chain(table.sort.iter().flatten().map(|field| &field.column));
        let used = used.chain(table.retention.iter().map(|retention| &retention.column));
        let used = used.chain(&table.event_time).chain(table.references.keys());
        for column in used {
            if !columns.contains(column) {
                let message =
                    format!("table {name:?} uses column {column:?}, which `columns` leaves out");
                let hint = nearest(column, columns.iter().map(String::as_str)).map_or_else(
                    || format!("add {column:?} to `columns`"),
                    |near| format!("did you mean {near:?}?"),
                );
                return Err(invalid(column, message).hint(hint));
            }
        }
    }
    Ok(())
}

fn check_merge(
    invalid: &dyn Fn(&str, String) -> Error,
    files: bool,
    table: &TableSpec,
) -> Result<()> {
    let name = &table.name;
    if files {
        let message = format!("table {name:?} merges files, whose rows have no cursor");
        return Err(
            invalid("merge", message).hint("use mode: append for new files, or mode: full_refresh")
        );
    }
    if table.key.is_empty() {
        return Err(invalid("merge", format!("table {name:?} merges but has no key"))
            .hint("name the columns that identify a row: key: [id]"));
    }
    if table.cursor.is_none() {
        return Err(invalid("merge", format!("table {name:?} merges but has no cursor"))
            .hint("name the column by which changed rows are found: cursor: updated_at"));
    }
    if let Some(column) = table.deleted_at.as_ref().filter(|column| table.key.contains(*column)) {
        let message = format!("table {name:?} has {column:?} as key and as deleted_at");
        return Err(invalid(column, message)
            .hint("a row is deleted where deleted_at is not null, and its key never is"));
    }
    Ok(())
}

fn check_maintenance(invalid: &dyn Fn(&str, String) -> Error, table: &TableSpec) -> Result<()> {
    let (name, own) = (&table.name, &table.maintenance);
    if !(16..=512).contains(&own.target_file_mb) {
        let message = format!("table {name:?} aims at files of {} MB", own.target_file_mb);
        return Err(invalid("target_file_mb", message).hint("write 16 to 512; 128 is usual"));
    }
    let sort = table.sort.as_deref().unwrap_or_default();
    for (index, field) in sort.iter().enumerate() {
        let column = &field.column;
        if sort[..index].iter().any(|other| other.column == *column) {
            return Err(invalid(column, format!("table {name:?} is sorted by {column:?} twice"))
                .hint("name each column of `sort` once, the most significant first"));
        }
    }
    if own.keep_snapshots == 0 || own.keep_metadata_files == 0 {
        let message = format!("table {name:?} would keep nothing of its own state");
        return Err(invalid("maintenance", message)
            .hint("keep_snapshots and keep_metadata_files are 1 or more"));
    }
    Ok(())
}

fn check_validation(
    invalid: &dyn Fn(&str, String) -> Error,
    process: &ProcessConfig,
    table: &TableSpec,
) -> Result<()> {
    let name = &table.name;
    for alert in table.validation.alerts.iter().flatten() {
        if !process.alerts.contains_key(alert) {
            let message = format!("table {name:?} alerts {alert:?}, which does not exist");
            let names = process.alerts.keys().map(String::as_str);
            return Err(invalid(alert, message)
                .hint(format!("{} (alerts are defined in polder.toml)", suggest(alert, names))));
        }
    }
    for (index, check) in table.checks.iter().enumerate() {
        let own = &check.name;
        if own.is_empty() || own.chars().count() > 100 || own.chars().any(char::is_control) {
            return Err(invalid(own, format!("table {name:?} has a check named {own:?}"))
                .hint("a check's name has 1 to 100 characters, no control characters"));
        }
        if table.checks[..index].iter().any(|other| other.name == *own) {
            return Err(invalid(own, format!("table {name:?} has check {own:?} twice"))
                .hint("give each check a name of its own"));
        }
        if check.sql.trim().is_empty() {
            return Err(invalid(own, format!("check {own:?} of table {name:?} has no SQL"))
                .hint(format!("write sql: SELECT * FROM {name} WHERE …, expect: 0 rows")));
        }
    }
    Ok(())
}

/// A table spec of the desired state, read from its document and checked as one of a file is.
///
/// # Errors
/// `spec.*`, with the table's `place` as detail.
pub(crate) fn check_stored_table(
    process: &ProcessConfig,
    place: &str,
    document: serde_json::Value,
) -> Result<TableSpec> {
    let table: TableSpec = read_stored(place, document)?;
    let text = Text { path: place.into(), content: String::new() };
    check_table(process, &text, &[], &table)?;
    Ok(table)
}

/// A template of the desired state, checked as one of a file is.
///
/// # Errors
/// `spec.*`, with the template's name as detail.
pub(crate) fn check_stored_template(
    process: &ProcessConfig,
    name: &str,
    template: &TemplateSpec,
) -> Result<()> {
    let text = Text { path: format!("template {name}").into(), content: String::new() };
    if let Some(limits) = &template.limits {
        limits.check().map_err(|error| error.within(&format!("template {name}")))?;
    }
    for table in &template.tables {
        check_table(process, &text, &[], table)?;
    }
    check_unique(&text, template.tables.iter())?;
    check_groups(&text, &[], template)
}

/// A part of the desired state, read from its document.
///
/// # Errors
/// `spec.invalid` with its `place` as detail.
pub(crate) fn read_stored<T: DeserializeOwned>(
    place: &str,
    document: serde_json::Value,
) -> Result<T> {
    serde_json::from_value(document)
        .map_err(|error| super::diagnose::explain_value(place, &error.to_string()))
}

fn check_mode(
    invalid: &dyn Fn(&str, String) -> Error,
    source: &SourceSpec,
    table: &TableSpec,
) -> Result<()> {
    let name = &table.name;
    let files = matches!(source, SourceSpec::Files(_));
    if table.mode == Mode::Append && table.cursor.is_none() && !files {
        return Err(invalid("append", format!("table {name:?} appends but has no cursor"))
            .hint("name the column by which new and changed rows are found: cursor: updated_at"));
    }
    if table.mode == Mode::Merge {
        check_merge(invalid, files, table)?;
    } else if table.deleted_at.is_some() {
        let message = format!("table {name:?} has deleted_at, which only a merge goes by");
        return Err(invalid("deleted_at", message).hint("set mode: merge, or leave it out"));
    }
    if files && table.cursor.is_some() {
        return Err(invalid("cursor", format!("table {name:?} reads files, which have no cursor"))
            .hint("leave cursor out: new files are found by name and etag"));
    }
    match (&table.filter, source) {
        (Some(polder_core::spec::Filter::Document(_)), SourceSpec::Postgres(_)) => {
            Err(invalid("filter", format!("table {name:?} has a filter document for PostgreSQL"))
                .hint("write an SQL condition as text: filter: org_id = {org}"))
        }
        (Some(polder_core::spec::Filter::Sql(_)), SourceSpec::Mongodb(_)) => {
            Err(invalid("filter", format!("table {name:?} has an SQL condition for MongoDB"))
                .hint("write a filter document: filter: { org: \"{org}\" }"))
        }
        (Some(_), SourceSpec::Files(_)) => {
            Err(invalid("filter", format!("table {name:?} has a filter, but files have none"))
                .hint("choose the files by their names: from: \"{org}/….csv\""))
        }
        _ => Ok(()),
    }
}
