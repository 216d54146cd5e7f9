//! What was done to a table, commit by commit, and the rows that any of its states must have.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::Result;
use polder_lake::{Catalog, CommitFailure, StagedFile, TableState};
use uuid::Uuid;

use crate::between::Between;

/// What a commit does to the ids.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect {
    pub(super) adds: Vec<i64>,
    pub(super) removes: Vec<i64>,
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
    /// Of every snapshot that was ever sent: its parent, and whose it is.
    snapshots: HashMap<i64, (Option<i64>, Option<Uuid>)>,
    rows: HashMap<i64, Arc<BTreeSet<i64>>>,
    acknowledged: HashMap<Uuid, i64>,
    failed: HashSet<Uuid>,
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
                    next = inner.snapshots[&snapshot].0;
                }
            }
            for (id, snapshot) in &inner.acknowledged {
                assert!(
                    reached.contains(snapshot),
                    "{id} was acknowledged as {snapshot}, and is lost"
                );
            }
            for snapshot in reached {
                let whose = inner.snapshots[&snapshot].1;
                let failed = whose.is_some_and(|id| inner.failed.contains(&id));
                assert!(!failed, "{whose:?} failed, and {snapshot} is there");
            }
        });
    }
}

impl Inner {
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
            next = self.snapshots.get(&id).unwrap_or_else(|| panic!("{id} was never sent")).0;
        }
        for id in chain.into_iter().rev() {
            let mut own = BTreeSet::clone(&rows);
            let whose = self.snapshots[&id].1;
            let effect =
                whose.and_then(|whose| self.effects.get(&whose)).cloned().unwrap_or_default();
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

/// Writes down every snapshot that is sent to the catalog behind it.
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
            let known = (snapshot.parent_snapshot_id(), whose);
            // Attempts of one commit share an id; the last that is sent is the one that can land.
            self.ledger.with(|inner| inner.snapshots.insert(snapshot.snapshot_id(), known));
        }
        self.inner.commit(ident, requirements, updates).await
    }
}
