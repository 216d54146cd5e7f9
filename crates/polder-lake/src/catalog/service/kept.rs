//! The properties that Polder keeps in tables: how far the rows have read their source, which runs have
//! committed, which versions there are. They begin with `polder.` and change with Polder's commits.
//!
//! Another Polder that works through the served catalog does so as the operator, and so may change
//! them. A client of an org may send them back as they are; others would lead runs astray.

use std::collections::HashMap;

use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, TableMetadata};
use polder_core::Principal;
use serde_json::Value;

use super::namespaces::OWN_PREFIX;
use super::refusal::{Answer, Refusal, RefusalKind};

/// On whose behalf properties change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    Operator,
    Client,
}

impl Keeper {
    pub(super) const fn of(principal: &Principal) -> Self {
        match principal {
            Principal::Operator => Self::Operator,
            _ => Self::Client,
        }
    }

    /// Checks that a client's commit leaves the properties as they are. One that replaces the whole
    /// table may drop them: the next run loads it anew.
    ///
    /// # Errors
    /// `Forbidden`, naming the property.
    pub(super) fn check(
        self,
        before: &TableMetadata,
        after: &TableMetadata,
        updates: &[TableUpdate],
    ) -> Answer<()> {
        let replaces = updates.iter().any(|update| match update {
            TableUpdate::RemoveSnapshotRef { ref_name } => ref_name == MAIN_BRANCH,
            _ => false,
        });
        self.check_properties(before, after, replaces)?;
        self.check_snapshots(Some(before), after)
    }

    /// The same of a metadata file that takes the place of a table's own.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn check_whole(self, before: &TableMetadata, after: &TableMetadata) -> Answer<()> {
        self.check_properties(before, after, true)?;
        self.check_snapshots(Some(before), after)
    }

    /// Checks that what snapshots say of Polder's runs is Polder's own word.
    ///
    /// # Errors
    /// `Forbidden`, naming what a client's snapshot says.
    pub(super) fn check_snapshots(
        self,
        before: Option<&TableMetadata>,
        after: &TableMetadata,
    ) -> Answer<()> {
        if self == Self::Operator {
            return Ok(());
        }
        let known = |id: i64| before.and_then(|before| before.snapshot_by_id(id));
        for snapshot in after.snapshots() {
            let said = &snapshot.summary().additional_properties;
            let Some(key) = said.keys().find(|key| is_kept(key)) else { continue };
            let same = known(snapshot.snapshot_id());
            if same.is_none_or(|same| same.summary() != snapshot.summary()) {
                return Err(Refusal::new(
                    RefusalKind::Forbidden,
                    format!(
                        "{key} in the summary of snapshot {} is kept by Polder: a client of an org \
                         cannot set it. Leave out what begins with {OWN_PREFIX:?}",
                        snapshot.snapshot_id()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_properties(
        self,
        before: &TableMetadata,
        after: &TableMetadata,
        replaces: bool,
    ) -> Answer<()> {
        if self == Self::Operator {
            return Ok(());
        }
        let (before, after) = (before.properties(), after.properties());
        let set =
            after.iter().find(|(key, value)| is_kept(key) && before.get(*key) != Some(*value));
        let removed = before.keys().find(|key| is_kept(key) && !after.contains_key(*key));
        match set.map(|(key, _)| key).or(removed.filter(|_| !replaces)) {
            None => Ok(()),
            Some(key) => Err(Refusal::new(
                RefusalKind::Forbidden,
                format!(
                    "Property {key} is kept by Polder: a client of an org cannot set or remove it. \
                     Leave out what begins with {OWN_PREFIX:?}, or load the table anew"
                ),
            )),
        }
    }

    /// A new table of a client has none, also if the client copied them from another one.
    pub(super) fn drop_kept(self, properties: &mut HashMap<String, String>) {
        if self == Self::Client {
            properties.retain(|key, _| !is_kept(key));
        }
    }

    /// The same of a whole metadata document; false if there was nothing to drop.
    pub(super) fn drop_from(self, document: &mut Value) -> bool {
        if self == Self::Operator {
            return false;
        }
        let clean = |texts: Option<&mut Value>| {
            let Some(texts) = texts.and_then(Value::as_object_mut) else { return false };
            let before = texts.len();
            texts.retain(|key, _| !is_kept(key));
            texts.len() < before
        };
        let mut dropped = clean(document.get_mut("properties"));
        let snapshots = document.get_mut("snapshots").and_then(Value::as_array_mut);
        for snapshot in snapshots.into_iter().flatten() {
            dropped |= clean(snapshot.get_mut("summary"));
        }
        dropped
    }

    /// The same of the updates that make a table.
    pub(super) fn without_kept(self, mut updates: Vec<TableUpdate>) -> Vec<TableUpdate> {
        for update in &mut updates {
            if let TableUpdate::SetProperties { updates: properties } = update {
                self.drop_kept(properties);
            }
        }
        updates
    }
}

fn is_kept(key: &str) -> bool {
    key.starts_with(OWN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_table_of_a_client_has_none() {
        let properties = || {
            let keys = ["polder.checkpoint", "polder", "comment"];
            HashMap::from(keys.map(|key| (key.to_owned(), "1".to_owned())))
        };
        let set = || vec![TableUpdate::SetProperties { updates: properties() }];
        let org = "1".parse().expect("org");
        let mut left = properties();
        left.remove("polder.checkpoint");
        let client = Keeper::of(&Principal::Org(org));
        assert_eq!(client.without_kept(set()), [TableUpdate::SetProperties { updates: left }]);
        assert_eq!(Keeper::of(&Principal::Operator).without_kept(set()), set());
    }

    #[test]
    fn a_document_of_a_client_loses_what_is_kept_of_the_table_and_of_its_snapshots() {
        let document = || {
            serde_json::json!({
                "properties": { "polder.checkpoint": "{}", "comment": "c" },
                "snapshots": [{ "summary": { "operation": "append", "polder.run-id": "r" } }],
            })
        };
        let org = "1".parse().expect("org");
        let (mut theirs, mut ours) = (document(), document());
        assert!(Keeper::of(&Principal::Org(org)).drop_from(&mut theirs));
        assert_eq!(
            theirs,
            serde_json::json!({
                "properties": { "comment": "c" },
                "snapshots": [{ "summary": { "operation": "append" } }],
            })
        );
        assert!(!Keeper::Client.drop_from(&mut theirs), "nothing is left to drop");
        assert!(!Keeper::Operator.drop_from(&mut ours));
        assert_eq!(ours, document());
    }
}
