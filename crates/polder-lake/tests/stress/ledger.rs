//! What was done to a table, commit by commit, and the rows that any of its states must have.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::Result;
use polder_lake::{Catalog, CommitFailure, StagedDeletes, StagedFile, TableState};
use uuid::Uuid;

use crate::between::Between;

/// What a commit does to the ids.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect {
    pub(super) kind: Kind,
    pub(super) adds: Vec<i64>,
    /// Of a refresh, all ids of the state before are, and none is named.
    pub(super) removes: Vec<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Change,
    /// A run that adds rows and deletes rows.
    Merge,
    /// A run whose rows take the place of all others.
    Refresh,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the run or commit that has it, registered before it is tried.
    effects: HashMap<Uuid, Effect>,
    /// The ids in each file, in the order of its rows.
    files: HashMap<String, Vec<i64>>,
    /// Whose every snapshot is that was ever sent. Attempts of one commit share an id.
    sent: HashMap<i64, Option<Uuid>>,
    /// The metadata files that were ever the table's.
    states: HashSet<String>,
    /// The parents of those that landed, as states of the table have them. Which attempt lands is not
    /// known when it is sent: after a rollback, a late one may again be on top of `main`.
    parents: HashMap<i64, Option<i64>>,
    rows: HashMap<i64, Arc<BTreeSet<i64>>>,
    acknowledged: HashMap<Uuid, i64>,
    failed: HashSet<Uuid>,
    /// Commits of which an answer was lost.
    unclear: HashSet<Uuid>,
    /// Whose a delete file is, by its name, and the metadata files of a commit, by what is theirs alone
    /// in their names. Data files have their run's id in theirs.
    owners: HashMap<String, Uuid>,
    /// What `main` was before each rollback.
    rolled_back: Vec<i64>,
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().expect("ledger"))
    }

    pub(super) fn plan(&self, id: Uuid, effect: Effect) {
        self.with(|inner| inner.effects.insert(id, effect));
    }

    pub(super) fn staged(&self, files: &[StagedFile], ids: &[i64]) {
        assert!(files.len() <= 1, "one writer, one partition, few rows");
        self.with(|inner| {
            let file = files.iter().map(|file| (file.location().to_owned(), ids.to_vec()));
            inner.files.extend(file);
        });
    }

    /// Delete files that are written for a commit.
    pub(super) fn deleted(&self, id: Uuid, deletes: &[StagedDeletes]) {
        self.with(|inner| {
            let names = deletes.iter().map(|file| name(file.location()).to_owned());
            inner.owners.extend(names.map(|name| (name, id)));
        });
    }

    /// Whether a file was written for a commit of which an answer was lost: until it is certain that
    /// nothing can name it, it stays, and whoever could tell may be gone by then.
    pub(super) fn may_leave(&self, file: &str) -> bool {
        self.with(|inner| inner.owner(file).is_some_and(|owner| inner.unclear.contains(&owner)))
    }

    pub(super) fn ids_of(&self, file: &str) -> Vec<i64> {
        self.with(|inner| inner.files.get(file).cloned()).expect("a file of ours")
    }

    pub(super) fn acknowledge(&self, id: Uuid, snapshot: i64) {
        let before = self.with(|inner| inner.acknowledged.insert(id, snapshot));
        assert_eq!(before, None, "acknowledged once");
    }

    pub(super) fn fail(&self, id: Uuid) {
        self.with(|inner| inner.failed.insert(id));
    }

    pub(super) fn roll_back(&self, from: i64) {
        self.with(|inner| inner.rolled_back.push(from));
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.with(|inner| inner.acknowledged.len())
    }

    /// How many of the kind were acknowledged.
    pub(super) fn made(&self, kind: Kind) -> usize {
        self.with(|inner| {
            let of_kind = |id: &&Uuid| inner.effects.get(*id).is_some_and(|did| did.kind == kind);
            inner.acknowledged.keys().filter(of_kind).count()
        })
    }

    fn saw(&self, state: &TableState) {
        self.with(|inner| {
            inner.states.insert(state.metadata_location.clone());
            for found in state.metadata.snapshots() {
                let (id, parent) = (found.snapshot_id(), found.parent_snapshot_id());
                let known = *inner.parents.entry(id).or_insert(parent);
                assert_eq!(known, parent, "{id} landed once");
            }
        });
    }

    pub(super) fn was_state(&self, file: &str) -> bool {
        self.with(|inner| inner.states.contains(file))
    }

    /// The ids of a state: those of its parent, less and more.
    pub(super) fn rows(&self, snapshot: i64) -> Arc<BTreeSet<i64>> {
        self.with(|inner| inner.rows(snapshot))
    }

    /// Everything acknowledged is in `main` or was rolled back, and nothing that failed is anywhere.
    pub(super) fn settle(&self, main: i64) {
        self.with(|inner| {
            let mut heads = inner.rolled_back.clone();
            heads.push(main);
            let mut reached = HashSet::new();
            for head in heads {
                let mut next = Some(head);
                while let Some(snapshot) = next.filter(|snapshot| reached.insert(*snapshot)) {
                    next = inner.parents[&snapshot];
                }
            }
            for (id, snapshot) in &inner.acknowledged {
                assert!(
                    reached.contains(snapshot),
                    "{id} was acknowledged as {snapshot}, and is lost"
                );
            }
            for snapshot in reached {
                let whose = inner.sent[&snapshot];
                let failed = whose.is_some_and(|id| inner.failed.contains(&id));
                assert!(!failed, "{whose:?} failed, and {snapshot} is there");
            }
        });
    }
}

/// The last part of an address.
fn name(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
}

/// What is a commit's alone in the name of a manifest (`<unique>-m0.avro`) or of a manifest list
/// (`snap-<snapshot>-<attempt>-<unique>.avro`).
fn unique(name: &str) -> Option<&str> {
    const LENGTH: usize = 36;
    let stem = name.strip_suffix(".avro")?;
    match stem.strip_prefix("snap-") {
        Some(list) => list.get(list.len().checked_sub(LENGTH)?..),
        None => stem.get(..LENGTH),
    }
}

impl Inner {
    fn owner(&self, file: &str) -> Option<Uuid> {
        let name = name(file);
        match unique(name) {
            Some(unique) => self.owners.get(unique).copied(),
            None => self.owners.get(name).copied().or_else(|| name.get(..36)?.parse().ok()),
        }
    }

    /// Those whose snapshots an update is about.
    fn concerned(&self, update: &TableUpdate) -> Vec<Uuid> {
        let snapshots = match update {
            TableUpdate::AddSnapshot { snapshot } => vec![snapshot.snapshot_id()],
            TableUpdate::SetSnapshotRef { reference, .. } => vec![reference.snapshot_id],
            TableUpdate::RemoveSnapshots { snapshot_ids } => snapshot_ids.clone(),
            _ => Vec::new(),
        };
        snapshots.iter().filter_map(|id| *self.sent.get(id)?).collect()
    }

    fn rows(&mut self, snapshot: i64) -> Arc<BTreeSet<i64>> {
        let mut chain = Vec::new();
        let mut rows = Arc::default();
        let mut next = Some(snapshot);
        while let Some(id) = next {
            if let Some(known) = self.rows.get(&id) {
                rows = Arc::clone(known);
                break;
            }
            chain.push(id);
            next = *self.parents.get(&id).unwrap_or_else(|| panic!("{id} was in no state"));
        }
        for id in chain.into_iter().rev() {
            let whose = self.sent[&id];
            let effect =
                whose.and_then(|whose| self.effects.get(&whose)).cloned().unwrap_or_default();
            let mut own = match effect.kind {
                Kind::Refresh => BTreeSet::new(),
                Kind::Change | Kind::Merge => BTreeSet::clone(&rows),
            };
            for gone in effect.removes {
                assert!(own.remove(&gone), "{whose:?} removed {gone}, which was not there");
            }
            for new in effect.adds {
                assert!(own.insert(new), "{whose:?} added {new} a second time");
            }
            rows = Arc::new(own);
            self.rows.insert(id, Arc::clone(&rows));
        }
        rows
    }
}

/// Writes down every snapshot that is sent to the catalog behind it, and every one that is there.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) inner: Arc<dyn Catalog>,
    pub(super) ledger: Arc<Ledger>,
}

#[async_trait]
impl Between for Recorder {
    fn inner(&self) -> &dyn Catalog {
        &*self.inner
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        let found = self.inner.load(ident).await?;
        if let Some(found) = &found {
            self.ledger.saw(found);
        }
        Ok(found)
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        for update in &updates {
            let TableUpdate::AddSnapshot { snapshot } = update else { continue };
            let said = &snapshot.summary().additional_properties;
            let id = |key: &str| said.get(key).and_then(|id| id.parse().ok());
            let whose = id("polder.run-id").or_else(|| id("polder.commit-id"));
            self.ledger.with(|inner| {
                inner.sent.insert(snapshot.snapshot_id(), whose);
                let unique = unique(name(snapshot.manifest_list()));
                inner.owners.extend(unique.map(str::to_owned).zip(whose));
            });
        }
        let concerned: Vec<Uuid> = self
            .ledger
            .with(|inner| updates.iter().flat_map(|update| inner.concerned(update)).collect());
        let outcome = self.inner.commit(ident, requirements, updates).await;
        match &outcome {
            Ok(landed) => self.ledger.saw(landed),
            Err(CommitFailure::Unknown(_)) => {
                self.ledger.with(|inner| inner.unclear.extend(concerned));
            }
            Err(_) => {}
        }
        outcome
    }
}
