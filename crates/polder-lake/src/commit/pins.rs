//! Pins: a tag that keeps one state of a table for as long as somebody needs it.
//!
//! A pin is an Iceberg tag without an age, under the name it was given: expiry keeps what it leads to,
//! and every engine can read it by that name. Nothing else remembers it.

use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};

use super::{Action, Failure, Prepared, no_table, point};
use crate::catalog::TableState;
use crate::lake::{Lake, ident};
use crate::table::{is_reserved, references, was_published};

impl Lake {
    /// Names a snapshot of a table, one that is or was the table's state, so that it is kept. False if
    /// it had that name already.
    ///
    /// # Errors
    /// - `spec.invalid` for a name that a pin cannot have, or that stands for another state of the
    ///   table, or for a branch.
    /// - `lake.not_found` for an unknown table or snapshot.
    /// - `lake.unknown_outcome` as for [`crate::Stage::commit`].
    pub async fn pin(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        name: &str,
        snapshot: i64,
    ) -> Result<bool> {
        check_pin_name(name)?;
        let mut action = SetTag { table, name, snapshot };
        self.committed(org, table, &mut action).await
    }

    /// Takes a pin's name away; what it kept goes with the next expiry. False if there was none.
    ///
    /// # Errors
    /// As for [`Self::pin`].
    pub async fn release_pin(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        name: &str,
    ) -> Result<bool> {
        check_pin_name(name)?;
        let mut action = RemoveTag { table, name };
        self.committed(org, table, &mut action).await
    }

    async fn committed<A: Action<Done = bool>>(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        action: &mut A,
    ) -> Result<bool> {
        let done = super::commit(self, &ident(org.get(), table), action).await;
        done.map(|(changed, _)| changed).map_err(|Failure { error, .. }| error)
    }
}

const NAME_MAX: usize = 100;

/// # Errors
/// `spec.invalid` for a name that is not plain, or that Polder gives itself.
fn check_pin_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    // Digits alone would be taken for a snapshot's id.
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    if begins && !number && name.len() <= NAME_MAX && name.chars().all(plain) && !is_reserved(name)
    {
        return Ok(());
    }
    Err(Error::new(ErrorCode::SpecInvalid, format!("{name:?} cannot be a pin's name")).hint(
        "use up to 100 letters, digits, '-', '_' and '.', such as model-2026-11; not a version's \
         name (v3), a number or a branch's name",
    ))
}

struct SetTag<'a> {
    table: &'a str,
    name: &'a str,
    snapshot: i64,
}

impl Action for SetTag<'_> {
    type Done = bool;

    fn find(&self, present: &TableState, sent: bool) -> Option<bool> {
        let refs = references(&present.metadata).ok()?;
        let found = refs.get(self.name).filter(|found| !found.is_branch())?;
        (found.snapshot_id == self.snapshot).then_some(sent)
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let metadata = &present.ok_or_else(|| no_table(self.table))?.metadata;
        if let Some(found) = references(metadata)?.get(self.name) {
            let what = if found.is_branch() { "a branch" } else { "another state" };
            let message = format!("{:?} is the name of {what} of {:?}", self.name, self.table);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("take another name, or release the pin first"));
        }
        let there = metadata.snapshot_by_id(self.snapshot).is_some();
        if there && was_published(metadata, self.snapshot)? {
            return Ok(());
        }
        let message = format!("table {:?} has no published state {}", self.table, self.snapshot);
        Err(Error::new(ErrorCode::LakeNotFound, message)
            .hint("`polder versions` lists the states there are"))
    }

    async fn prepare(&mut self, _present: Option<&TableState>) -> Result<Prepared<bool>> {
        let tag = SnapshotRetention::Tag { max_ref_age_ms: None };
        Ok(Prepared { updates: vec![point(self.name, self.snapshot, tag)], done: true })
    }

    fn branch(&self) -> Option<&str> {
        Some(self.name)
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}

struct RemoveTag<'a> {
    table: &'a str,
    name: &'a str,
}

impl Action for RemoveTag<'_> {
    type Done = bool;

    fn find(&self, present: &TableState, sent: bool) -> Option<bool> {
        let refs = references(&present.metadata).ok()?;
        (!refs.contains_key(self.name)).then_some(sent)
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let metadata = &present.ok_or_else(|| no_table(self.table))?.metadata;
        if references(metadata)?.get(self.name).is_some_and(SnapshotReference::is_branch) {
            let message = format!("{:?} is a branch of {:?} and no pin", self.name, self.table);
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        Ok(())
    }

    async fn prepare(&mut self, _present: Option<&TableState>) -> Result<Prepared<bool>> {
        let ref_name = self.name.to_owned();
        Ok(Prepared { updates: vec![TableUpdate::RemoveSnapshotRef { ref_name }], done: true })
    }

    fn branch(&self) -> Option<&str> {
        Some(self.name)
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
