//! Sixteen writers, a compactor, expiry, schema changes and rollbacks on one table at once, through
//! several clients of its catalog. Every state that anybody reads has the rows that the commits it is
//! made of add up to.
//!
//! `POLDER_STRESS_SECONDS` says for how long.

mod ledger;
mod workers;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_core::LakeType;
use polder_core::retention::Retention;
use polder_lake::{Lake, StageKind};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::ledger::{Ledger, Recorder};
use self::workers::Worker;
use crate::between::Through;
use crate::faulty::catalog::FaultyCatalog;
use crate::faulty::{Connect, Place, check, files, sqlite};
use crate::support::*;

const SECONDS: u64 = 8;
/// How much longer a busy machine may take until every writer can have committed once.
const PATIENCE: Duration = Duration::from_mins(1);
const WRITERS: i64 = 16;
/// Clients of the catalog, as of so many processes.
const CLIENTS: usize = 4;
/// What a reader has opened stays at least so long.
pub(crate) const RETENTION: Retention =
    Retention { versions: 1, history_ms: 3_000, history_min: 2 };
/// Metadata files that a table remembers.
const METADATA_LOG_MAX: usize = 100;

/// One table, and all that goes on with it.
pub(crate) struct World {
    lakes: Vec<Lake>,
    catalogs: Vec<Arc<FaultyCatalog>>,
    table: String,
    ledger: Arc<Ledger>,
    until: Instant,
    /// Whether the catalog loses answers.
    faulty: bool,
    _folder: Option<TempDir>,
}

impl World {
    async fn new(connect: &Connect, place: Place, faulty: bool) -> Self {
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
        let table = format!("t{}", Uuid::new_v4().simple());
        let columns = schema(&[("id", LakeType::Long), ("text", LakeType::String)]);
        run(&lakes[0], &table, request(StageKind::Replace, &columns), &[]).await.expect("create");
        let until = Instant::now() + Duration::from_secs(seconds);
        Self { lakes, catalogs, table, ledger, until, faulty, _folder: folder }
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
        tasks.join_all().await;
    }

    /// What must be true when all is quiet.
    async fn settle(&self) {
        for catalog in &self.catalogs {
            catalog.next(&[]);
            catalog.settle().await;
        }
        let lake = &self.lakes[0];
        let now = table(lake, &self.table).await;
        let main = now.current_snapshot().expect("current").id;
        let wanted: Vec<i64> = self.ledger.rows(main).iter().copied().collect();
        assert_eq!(ids(&now).await, wanted, "every acknowledged row once");
        self.ledger.settle(main);
        let none = Retention { history_ms: -1, ..RETENTION };
        lake.expire(&org("401"), &self.table, &none, Uuid::new_v4()).await.expect("expire");
        let checked = check::check(lake, &self.table).await;
        let mut left = files(lake, now.location()).await;
        left.retain(|file| !checked.files.contains(file));
        if checked.metadata.metadata_log().len() == METADATA_LOG_MAX {
            left.retain(|file| !file.ends_with(".metadata.json"));
        }
        assert!(self.faulty || left.is_empty(), "nothing is left behind: {left:?}");
        let commits = self.ledger.acknowledged();
        assert!(commits >= WRITERS as usize, "{commits} commits");
        if std::env::var("POLDER_STRESS_SECONDS").is_ok() {
            let (rows, number) = (wanted.len(), checked.metadata.last_sequence_number());
            let faults = if self.faulty { "faulty" } else { "plain" };
            let report = format!(
                "{faults}: {commits} commits acknowledged, {number} snapshots, {rows} rows, {} files left\n",
                left.len()
            );
            std::io::stderr().write_all(report.as_bytes()).expect("stderr");
        }
    }
}

/// All of it over one kind of catalog.
pub(crate) async fn hold_all(connect: &Connect, place: Place, faulty: bool) {
    let world = Arc::new(World::new(connect, place, faulty).await);
    world.run().await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_table_lose_and_double_nothing() {
    let folder = TempDir::new().expect("folder");
    hold_all(&sqlite(&folder), Place::Memory, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_they_when_the_catalog_loses_answers() {
    let folder = TempDir::new().expect("folder");
    hold_all(&sqlite(&folder), Place::Memory, true).await;
}
