//! Settings that have rows or states go which are there now: maintenance removes them once they cannot be taken
//! back any more (`undo.rs`), and nothing brings them back.

use chrono::{DateTime, Utc};
use polder_core::spec::{OrgSpec, RetentionSpec, TableSpec};
use serde::{Deserialize, Serialize};

use super::{Desired, Templates, base_tables};
use crate::config::Declared;

/// The settings of a table that decide what maintenance removes of its rows and states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeps {
    pub retention: Option<RetentionSpec>,
    pub keep_versions: usize,
    pub keep_snapshots_days: u32,
    pub keep_snapshots: usize,
}

impl Keeps {
    pub fn of(table: &TableSpec) -> Self {
        Self {
            retention: table.retention.clone(),
            keep_versions: table.maintenance.keep_versions,
            keep_snapshots_days: table.maintenance.keep_snapshots_days,
            keep_snapshots: table.maintenance.keep_snapshots,
        }
    }

    /// Gives a table these settings.
    pub fn put(&self, table: &mut TableSpec) {
        table.retention.clone_from(&self.retention);
        table.maintenance.keep_versions = self.keep_versions;
        table.maintenance.keep_snapshots_days = self.keep_snapshots_days;
        table.maintenance.keep_snapshots = self.keep_snapshots;
    }

    /// Settings under which nothing goes that stays under either.
    #[must_use]
    pub(super) fn loosest(&self, other: &Self) -> Self {
        let (one, two) = (self.retention.as_ref(), other.retention.as_ref());
        Self {
            retention: one.zip(two).and_then(|(one, two)| longest(one, two, Utc::now())),
            keep_versions: self.keep_versions.max(other.keep_versions),
            keep_snapshots_days: self.keep_snapshots_days.max(other.keep_snapshots_days),
            keep_snapshots: self.keep_snapshots.max(other.keep_snapshots),
        }
    }
}

/// A retention that lets no row and no state go which either keeps; `None` where only keeping all of them does
/// that, as rows have no one age.
fn longest(one: &RetentionSpec, two: &RetentionSpec, now: DateTime<Utc>) -> Option<RetentionSpec> {
    if one.column != two.column {
        return None;
    }
    let one_keeps_more = one.cutoff_micros(now) <= two.cutoff_micros(now);
    let (more, less) = if one_keeps_more { (one, two) } else { (two, one) };
    let mut longest = more.clone();
    if more.overdue_micros(now) > less.overdue_micros(now) {
        longest.within = less.within;
    }
    Some(longest)
}

/// What goes under another spec that stays under this one, in words. Empty where nothing does.
pub(super) fn tightened(before: &TableSpec, after: &TableSpec) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    less(&Keeps::of(before), &Keeps::of(after))
}

/// The same of the settings that decide it.
pub(super) fn less(was: &Keeps, is: &Keeps) -> Vec<String> {
    let mut goes: Vec<String> =
        retention(was.retention.as_ref(), is.retention.as_ref(), Utc::now()).into_iter().collect();
    let fewer = [
        ("keep_versions", was.keep_versions, is.keep_versions, "older versions"),
        (
            "keep_snapshots_days",
            was.keep_snapshots_days as usize,
            is.keep_snapshots_days as usize,
            "older states",
        ),
        ("keep_snapshots", was.keep_snapshots, is.keep_snapshots, "older states"),
    ];
    for (setting, was, is, what) in fewer.into_iter().filter(|(_, was, is, _)| is < was) {
        goes.push(format!("{setting}: {was} -> {is}: {what} are removed {WHEN}"));
    }
    goes
}

/// When what goes does.
const WHEN: &str = "by maintenance, after the undo window";

/// What goes by another retention.
pub(super) fn retention(
    before: Option<&RetentionSpec>,
    after: Option<&RetentionSpec>,
    now: DateTime<Utc>,
) -> Option<String> {
    let after = after?;
    let cutoff = DateTime::from_timestamp_micros(after.cutoff_micros(now));
    let day = cutoff.map_or_else(|| "that".to_owned(), |at| at.format("%Y-%m-%d").to_string());
    let rows = format!("rows with {} before {day} are removed", after.column);
    let was = match before {
        None => "for ever".to_owned(),
        Some(before) if before.column != after.column => {
            format!("{} by {}", before.keep, before.column)
        }
        Some(before) if after.cutoff_micros(now) > before.cutoff_micros(now) => {
            before.keep.to_string()
        }
        Some(before) if after.overdue_micros(now) > before.overdue_micros(now) => {
            let (was, is) = (before.within, after.within);
            return Some(format!(
                "retention: within {was} -> {is}: states that hold older rows are removed {WHEN}"
            ));
        }
        Some(_) => return None,
    };
    Some(format!("retention: {was} -> {}: {rows} {WHEN}", after.keep))
}

/// A spec with what another one would have go kept as it was.
fn loosened(before: &TableSpec, after: &mut TableSpec) {
    if retention(before.retention.as_ref(), after.retention.as_ref(), Utc::now()).is_some() {
        after.retention.clone_from(&before.retention);
    }
    let (was, is) = (&before.maintenance, &mut after.maintenance);
    is.keep_versions = is.keep_versions.max(was.keep_versions);
    is.keep_snapshots_days = is.keep_snapshots_days.max(was.keep_snapshots_days);
    is.keep_snapshots = is.keep_snapshots.max(was.keep_snapshots);
}

/// What files say, with what they tighten left as the state has it.
pub(super) fn loosen(now: &Desired, declared: &mut Declared) {
    let known: Templates =
        now.declared_templates().map(|(name, template)| (name.clone(), template.clone())).collect();
    for (name, template) in &mut declared.templates {
        let Some(before) = known.get(name) else { continue };
        loosen_tables(&before.tables, &mut template.tables);
    }
    let next: Templates = declared
        .templates
        .iter()
        .map(|(name, template)| (name.clone(), template.clone()))
        .collect();
    for (id, org) in &now.orgs {
        let (Some(before), Some(after)) = (&org.declared, declared.orgs.get_mut(id.as_str()))
        else {
            continue;
        };
        loosen_tables(&before.tables, &mut after.tables);
        if before.overrides == after.overrides && before.template == after.template {
            continue;
        }
        // What is still tighter is so by an override, or for want of one.
        let (was, is) = (before.template.as_deref(), after.template.as_deref());
        let was = base_tables(&known, was, Some(before), &before.groups);
        let is = base_tables(&next, is, Some(&*after), &after.groups);
        for table in is {
            let before_it = was.iter().find(|one| one.name == table.name);
            if before_it.is_some_and(|one| !tightened(one, &table).is_empty()) {
                take_back(before, after, &table.name);
            }
        }
    }
}

fn loosen_tables(before: &[TableSpec], after: &mut [TableSpec]) {
    for table in after {
        if let Some(before) = before.iter().find(|before| before.name == table.name) {
            loosened(before, table);
        }
    }
}

/// An override as it was, or none where there was none.
fn take_back(before: &OrgSpec, after: &mut OrgSpec, table: &str) {
    match before.overrides.get(table) {
        Some(patch) => after.overrides.insert(table.to_owned(), patch.clone()),
        None => after.overrides.remove(table),
    };
}
