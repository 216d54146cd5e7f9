//! Sixteen writers, merges, full refreshes, a compactor, expiry, pins, schema changes, rollbacks and the
//! upkeep of metadata on one table at once, through several clients of its catalog. Every state that
//! anybody reads has the rows that the commits it is made of add up to.
//!
//! `POLDER_STRESS_SECONDS` says for how long; `cargo xtask stress` runs it for minutes.

mod ledger;
mod upkeep;
mod workers;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_core::retention::Retention;
use polder_core::{Authorized, LakeType, OrgId};
use polder_lake::{Lake, LakeTable, OrphanRequest, StageKind};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::ledger::{Kind, Ledger, Recorder};
use self::upkeep::PIN;
use self::workers::Worker;
use crate::between::Through;
use crate::conformance::new_org;
use crate::faulty::catalog::FaultyCatalog;
use crate::faulty::check::{self, Checked};
use crate::faulty::{Connect, Place, files, sqlite};
use crate::support::*;

const SECONDS: u64 = 8;
/// How much longer a busy machine may take until every writer can have committed once.
const PATIENCE: Duration = Duration::from_mins(3);
const WRITERS: i64 = 16;
/// Clients of the catalog, as of so many processes.
const CLIENTS: usize = 4;
/// What a reader has opened stays at least so long.
pub(crate) const RETENTION: Retention =
    Retention { versions: 1, history_ms: 3_000, history_min: 2 };
/// Nothing is too young to be an orphan.
const AT_ONCE_MS: i64 = -10_000;
/// Metadata files that a table remembers.
pub(crate) const METADATA_LOG_MAX: usize = 100;

/// One table, and all that goes on with it.
pub(crate) struct World {
    lakes: Vec<Lake>,
    catalogs: Vec<Arc<FaultyCatalog>>,
    org: Authorized<OrgId>,
    table: String,
    ledger: Arc<Ledger>,
    until: Instant,
    /// Whether the catalog loses answers.
    faulty: bool,
    _folder: Option<TempDir>,
}

impl World {
    async fn new(connect: &Connect, place: &Place, faulty: bool) -> Self {
        let seconds = std::env::var("POLDER_STRESS_SECONDS").ok();
        let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("seconds"));
        let (store, folder) = place.store();
        let (mut lakes, mut catalogs, ledger) = (Vec::new(), Vec::new(), Arc::default());
        for _ in 0..CLIENTS {
            let catalog = Arc::new(FaultyCatalog::new(connect(store.clone()).await));
            let inner = Through::catalog(&catalog);
            let recorder = Arc::new(Recorder { inner, ledger: Arc::clone(&ledger) });
            lakes.push(Lake::new(store.clone(), Through::catalog(&recorder)));
            catalogs.push(catalog);
        }
        // Of its own, as its folder is looked through in the end.
        let (org, table) = (new_org(), format!("t{}", Uuid::new_v4().simple()));
        let columns = schema(&[("id", LakeType::Long), ("text", LakeType::String)]);
        let create = request(StageKind::Replace, &columns);
        run_of(&lakes[0], (&org, &table), create, &[]).await.expect("create");
        let until = Instant::now() + Duration::from_secs(seconds);
        Self { lakes, catalogs, org, table, ledger, until, faulty, _folder: folder }
    }

    /// Everybody at once, until the time is up.
    async fn run(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        for number in 0..WRITERS {
            let worker = Worker::new(self, number);
            tasks.spawn(worker.write());
        }
        tasks.spawn(Worker::new(self, 100).compact());
        tasks.spawn(Worker::new(self, 101).expire());
        tasks.spawn(Worker::new(self, 102).change_schema());
        tasks.spawn(Worker::new(self, 103).roll_back());
        for number in 104..107 {
            tasks.spawn(Worker::new(self, number).read());
        }
        tasks.spawn(Worker::new(self, 107).merge());
        tasks.spawn(Worker::new(self, 108).refresh());
        tasks.spawn(Worker::new(self, 109).pin());
        tasks.spawn(Worker::new(self, 110).tidy_metadata());
        tasks.join_all().await;
    }

    /// What must be true when all is quiet.
    async fn settle(&self) {
        for catalog in &self.catalogs {
            catalog.next(&[]);
            catalog.settle().await;
        }
        let lake = &self.lakes[0];
        self.release_pins().await;
        let now = self.now().await;
        let main = now.current_snapshot().expect("current").id;
        let wanted: Vec<i64> = self.ledger.rows(main).iter().copied().collect();
        assert_eq!(ids(&now).await, wanted, "every acknowledged row once");
        self.ledger.settle(main);
        let none = Retention { history_ms: -1, ..RETENTION };
        lake.expire(&self.org, &self.table, &none, Uuid::new_v4()).await.expect("expire");
        let (checked, left) = self.left().await;
        let strange: Vec<&String> =
            left.iter().filter(|file| !self.ledger.may_leave(file)).collect();
        assert!(strange.is_empty(), "only whose answer was lost leaves files: {strange:?}");
        self.remove_orphans(&wanted).await;
        let commits = self.ledger.acknowledged();
        assert!(commits >= WRITERS as usize, "{commits} commits");
        let (merges, refreshes) = (self.ledger.made(Kind::Merge), self.ledger.made(Kind::Refresh));
        assert!(merges > 0 && refreshes > 0, "{merges} merges, {refreshes} refreshes");
        if std::env::var("POLDER_STRESS_SECONDS").is_ok() {
            let (rows, number) = (wanted.len(), checked.metadata.last_sequence_number());
            let faults = if self.faulty { "faulty" } else { "plain" };
            let report = format!(
                "{faults}: {commits} commits acknowledged ({merges} merges, {refreshes} refreshes), \
                 {number} snapshots, {rows} rows, {} files left\n",
                left.len()
            );
            std::io::stderr().write_all(report.as_bytes()).expect("stderr");
        }
    }
}

impl World {
    async fn now(&self) -> LakeTable {
        table_of(&self.lakes[0], &self.org, &self.table).await
    }

    /// What the table reaches, and the files that it does not, but for those of its earlier states: it
    /// remembers some of them, and the files of others wait for their age.
    async fn left(&self) -> (Checked, BTreeSet<String>) {
        let (lake, now) = (&self.lakes[0], self.now().await);
        let checked = check::check(lake, &now).await;
        let mut left = files(lake, now.location()).await;
        left.retain(|file| !checked.files.contains(file) && !self.ledger.was_state(file));
        // Where answers are lost nobody may have seen a state, and servers leave those they refused.
        left.retain(|file| !self.faulty || !file.ends_with(".metadata.json"));
        (checked, left)
    }

    /// Orphan removal takes all that the table does not reach, and nothing else.
    async fn remove_orphans(&self, wanted: &[i64]) {
        let lake = &self.lakes[0];
        let request = OrphanRequest {
            older_than_ms: AT_ONCE_MS,
            purge_after_ms: RETENTION.history_ms,
            tables: Vec::new(),
            dry_run: false,
        };
        lake.orphans(&self.org, &request).await.expect("orphans");
        let now = self.now().await;
        let reached = check::check(lake, &now).await.files;
        let mut left = files(lake, now.location()).await;
        left.retain(|file| !reached.contains(file));
        assert!(left.is_empty(), "orphan removal leaves nothing: {left:?}");
        assert_eq!(ids(&now).await, wanted, "and takes no row");
    }

    /// Pins whose answer was lost may have come after they were released.
    async fn release_pins(&self) {
        let lake = &self.lakes[0];
        for found in self.now().await.refs() {
            if found.name.starts_with(PIN) {
                lake.release_pin(&self.org, &self.table, &found.name).await.expect("released");
            }
        }
    }
}

/// All of it over one kind of catalog.
pub(crate) async fn hold_all(connect: &Connect, place: &Place, faulty: bool) {
    let world = Arc::new(World::new(connect, place, faulty).await);
    world.run().await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_table_lose_and_double_nothing() {
    let folder = TempDir::new().expect("folder");
    hold_all(&sqlite(&folder), &Place::Memory, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_they_when_the_catalog_loses_answers() {
    let folder = TempDir::new().expect("folder");
    hold_all(&sqlite(&folder), &Place::Memory, true).await;
}
