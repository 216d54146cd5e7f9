//! Rolling back: `main` moves to an older state, whose schema, partition spec and checkpoint come
//! with it, in one commit. The state before stays in the table under a tag, so that the way back is a
//! rollback too.

use std::collections::{BTreeMap, HashMap};

use chrono::Utc;
use iceberg::TableUpdate;
use iceberg::spec::{
    Snapshot, SnapshotRef, SnapshotReference, SnapshotRetention, SortOrder, TableMetadata,
};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use uuid::Uuid;

use super::snapshot::read_list;
use super::{Action, Failure, Prepared, main_to, no_table, point};
use crate::catalog::TableState;
use crate::error;
use crate::lake::{Lake, ident};
use crate::table::{
    At, LakeTable, Properties, Rollback, json, last_run, references, run_of, snapshot_checkpoint,
    spec_id, was_published,
};

/// Rollbacks remembered in a table's properties, newest last.
const ROLLBACKS_MAX: usize = 20;
/// What the tags of states before a rollback begin with.
pub(crate) const KEPT_AS: &str = "before-rollback-";

/// The outcome of a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The snapshot that is the current one now.
    pub snapshot_id: i64,
    /// What was done; `None` if the table was in that state already.
    pub done: Option<Rollback>,
}

impl Lake {
    /// Makes an older state of a table the current one: a version (`v3`), another tag, or a
    /// snapshot's id. One commit, visible to every engine at once.
    ///
    /// Later runs read on from the checkpoint of that state, or reload the table where the state does
    /// not say what it is. Committing twice with one `id` rolls back once.
    ///
    /// # Errors
    /// - `lake.not_found` for an unknown table or state, naming those there are.
    /// - `lake.schema_refused` if the table cannot be partitioned as it was then.
    /// - `lake.unknown_outcome` as for [`crate::Stage::commit`].
    pub async fn rollback(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        to: &str,
        id: Uuid,
    ) -> Result<RolledBack> {
        let ident = ident(org.get(), table);
        let mut action = MoveMain { lake: self, org: org.get(), table, to, id, from: None };
        let done = super::commit(self, &ident, &mut action).await;
        done.map(|(done, _)| done).map_err(|Failure { error, .. }| error)
    }

    /// As [`Self::rollback`], if the snapshot `from` is the current one.
    ///
    /// # Errors
    /// `lake.conflict` if another one is.
    pub async fn rollback_from(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        (from, to): (i64, &str),
        id: Uuid,
    ) -> Result<RolledBack> {
        let ident = ident(org.get(), table);
        let mut action = MoveMain { lake: self, org: org.get(), table, to, id, from: Some(from) };
        let done = super::commit(self, &ident, &mut action).await;
        done.map(|(done, _)| done).map_err(|Failure { error, .. }| error)
    }
}

struct MoveMain<'a> {
    lake: &'a Lake,
    org: &'a OrgId,
    table: &'a str,
    to: &'a str,
    id: Uuid,
    /// The snapshot that has to be the current one.
    from: Option<i64>,
}

impl MoveMain<'_> {
    /// The snapshot to go back to.
    fn target<'t>(&self, present: &'t TableState) -> Result<&'t SnapshotRef> {
        let table = LakeTable::new(self.org, present.clone(), self.lake.store())?;
        let id = table.resolve(self.to)?;
        let metadata = &present.metadata;
        let found = metadata.snapshot_by_id(id).ok_or_else(|| {
            Error::new(ErrorCode::LakeCorrupt, "a reference leads to no snapshot")
        })?;
        if run_of(found).is_some() && !was_published(metadata, id)? {
            let message = format!("{:?} was never published", self.to);
            return Err(Error::new(ErrorCode::LakeNotFound, message)
                .detail(format!("table {}", self.table))
                .hint("`polder versions` lists the states there are"));
        }
        Ok(found)
    }

    /// The partition spec that new files had when the snapshot was the current one.
    async fn spec(&self, metadata: &TableMetadata, snapshot: &Snapshot) -> Result<i32> {
        if let Some(id) = spec_id(snapshot) {
            return Ok(id);
        }
        // Another engine's: as its newest files are.
        let store = self.lake.store().of_table(metadata.location());
        let list = read_list(&store, snapshot).await?;
        let newest = list.iter().max_by_key(|manifest| manifest.sequence_number);
        let default = metadata.default_partition_spec_id();
        Ok(newest.map_or(default, |manifest| manifest.partition_spec_id))
    }
}

impl Action for MoveMain<'_> {
    type Done = RolledBack;

    fn find(&self, present: &TableState, _sent: bool) -> Option<RolledBack> {
        let rollbacks = Properties(present.metadata.properties()).rollbacks();
        let done = rollbacks.into_iter().find(|rollback| rollback.id == self.id);
        if let Some(done) = done {
            return Some(RolledBack { snapshot_id: done.to_snapshot, done: Some(done) });
        }
        let target = self.target(present).ok()?.snapshot_id();
        let there = present.metadata.current_snapshot_id() == Some(target);
        there.then_some(RolledBack { snapshot_id: target, done: None })
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let present = present.ok_or_else(|| no_table(self.table))?;
        if self.from.is_some() && self.from != present.metadata.current_snapshot_id() {
            return Err(super::conflict());
        }
        self.target(present).map(drop)
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<RolledBack>> {
        let present = present.ok_or_else(|| no_table(self.table))?;
        let metadata = &present.metadata;
        let target = self.target(present)?;
        let refs = references(metadata)?;
        let mut updates = shape(metadata, target, self.spec(metadata, target).await?)?;
        updates.push(main_to(target.snapshot_id(), &refs));
        let from = metadata.current_snapshot_id().unwrap_or(target.snapshot_id());
        let kept_as = kept_as(&refs, from);
        if !refs.contains_key(&kept_as) {
            updates.push(point(&kept_as, from, SnapshotRetention::Tag { max_ref_age_ms: None }));
        }
        let done = Rollback {
            id: self.id,
            at_ms: Utc::now().timestamp_millis(),
            to: self.to.to_owned(),
            from_snapshot: from,
            to_snapshot: target.snapshot_id(),
            kept_as,
        };
        updates.extend(properties(metadata, target, &done)?);
        let done = RolledBack { snapshot_id: target.snapshot_id(), done: Some(done) };
        Ok(Prepared { updates, done })
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The tag that keeps the state before, and what was the history of `main` until then: one that an earlier
/// rollback gave it, or a new one. Versions and tags of others may go before queries have ended, and keep
/// no history.
fn kept_as(refs: &BTreeMap<String, SnapshotReference>, from: i64) -> String {
    let tags = refs.iter().filter(|(_, found)| !found.is_branch());
    let mut own = tags.filter_map(|(name, found)| Some((name, name.strip_prefix(KEPT_AS)?, found)));
    let numbers = own.clone().filter_map(|(_, number, _)| number.parse().ok());
    let next = numbers.max().unwrap_or(0_u64).saturating_add(1);
    let there =
        own.find(|(_, number, found)| found.snapshot_id == from && number.parse::<u64>().is_ok());
    there.map_or_else(|| format!("{KEPT_AS}{next}"), |(name, ..)| name.clone())
}

/// What gives the table the schema and the partitions of the snapshot.
fn shape(metadata: &TableMetadata, target: &SnapshotRef, spec: i32) -> Result<Vec<TableUpdate>> {
    let failed = |cause| error::iceberg("find a snapshot's schema", cause);
    let schema = target.schema(metadata).map_err(failed)?;
    let fields = metadata.partition_spec_by_id(spec).map(|spec| spec.fields()).unwrap_or_default();
    if let Some(lost) = fields.iter().find(|field| schema.field_by_id(field.source_id).is_none()) {
        return Err(Error::new(
            ErrorCode::LakeSchemaRefused,
            format!("the table was partitioned by {:?} and had no such column", lost.name),
        )
        .hint("reload the table instead: run once with --full-refresh"));
    }
    Ok(vec![
        // A sort order that another engine set may name a column that was not there yet.
        TableUpdate::AddSortOrder { sort_order: SortOrder::unsorted_order() },
        TableUpdate::SetDefaultSortOrder { sort_order_id: -1 },
        TableUpdate::SetCurrentSchema { schema_id: schema.schema_id() },
        TableUpdate::SetDefaultSpec { spec_id: spec },
    ])
}

/// The properties that belong to the rows, as they were, and the rollback itself.
///
/// Where the state does not say what they were, there are none: the next run reloads the table.
fn properties(
    metadata: &TableMetadata,
    target: &SnapshotRef,
    done: &Rollback,
) -> Result<Vec<TableUpdate>> {
    let own = Properties(metadata.properties());
    let mut rollbacks = own.rollbacks();
    rollbacks.push(done.clone());
    rollbacks.drain(..rollbacks.len().saturating_sub(ROLLBACKS_MAX));
    let mut set = HashMap::from([(Properties::ROLLBACKS.to_owned(), json(&rollbacks)?)]);
    let mut removals = Vec::new();
    let marks = own.marks();
    let marked = last_run(metadata, target).and_then(|run| marks.of(run)).cloned();
    let checkpoint = snapshot_checkpoint(metadata, target);
    if let (Some((run, columns)), Some(checkpoint)) = (marked, checkpoint) {
        set.extend(marks.put(run, columns).properties()?);
        set.insert(Properties::CHECKPOINT.to_owned(), checkpoint.to_owned());
        set.insert(Properties::CHECKPOINT_AT.to_owned(), At::of(target).to_string());
    } else {
        set.extend([marks.archived()?]);
        let gone = [Properties::SCHEMA, Properties::MARKED_BY, Properties::CHECKPOINT];
        removals.extend(gone.map(str::to_owned));
        removals.push(Properties::CHECKPOINT_AT.to_owned());
    }
    let mut updates = vec![TableUpdate::SetProperties { updates: set }];
    if !removals.is_empty() {
        updates.push(TableUpdate::RemoveProperties { removals });
    }
    Ok(updates)
}
