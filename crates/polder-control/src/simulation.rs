//! Scheduler and queue by a simulated clock: servers that die, stall and stop, runs that fail, people who
//! submit, cancel, pause and retry, all drawn from a seed. What runs here is the product's own code, SQL
//! included; only time, ids and the work itself are made up.
//!
//! `POLDER_SEEDS=100000` asks for more seeds than `make test` has; a failure names its seed.

mod fair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use polder_core::spec::{OrgLimits, ScheduleSpec, TableSpec};
use polder_core::{Authorized, ErrorCode, OrgId, Principal};
use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use crate::clock::Clock;
use crate::desired::{EffectiveOrg, EffectiveTable};
use crate::queue::{
    self, Asked, Claimer, Ended, JobKind, LEASE, Lease, Order, Outcome, Pausing, QueuedRun, Renewed,
};
use crate::runs::RunState;
use crate::schedule;
use crate::store::Store;
use crate::usage::{self, Spent};

const SEEDS: u64 = 1_000;
const ORGS: u64 = 4;
const TABLES: u64 = 3;
const SERVERS: usize = 3;
const PLACES: usize = 3;
const PER_ORG: usize = 2;
/// Runs of org 0 at the same time, over all servers.
const ORG_0_RUNS: usize = 2;
/// Rows of org 1 in a day.
const ORG_1_ROWS: u64 = 12;
const LEASE_MS: i64 = LEASE.as_millis() as i64;

/// Numbers from a seed: `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len() as u64) as usize]
    }

    /// Between nought and one.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A clock that the simulation turns.
fn clock() -> (Arc<AtomicI64>, Clock) {
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let (read, made) = (Arc::clone(&now), AtomicU64::new(0));
    let of_id = Arc::clone(&now);
    let id = move || {
        let count = made.fetch_add(1, Ordering::SeqCst);
        let mut rest = [0; 10];
        rest[2..].copy_from_slice(&count.to_be_bytes());
        let ms = of_id.load(Ordering::SeqCst) as u64;
        uuid::Builder::from_unix_timestamp_millis(ms, &rest).into_uuid()
    };
    (now, Clock::of(move || read.load(Ordering::SeqCst), id))
}

/// An attempt at a run, as the server that works on it sees it.
struct Attempt {
    run: QueuedRun,
    lease: Lease,
    ends_ms: i64,
    /// Until when the server may believe that the run is its own.
    held_until_ms: i64,
}

#[derive(Default)]
struct Server {
    /// Its name in leases; another one after each start.
    owner: String,
    attempts: Vec<Attempt>,
    /// It neither renews nor claims before, though it goes on working.
    stalled_until_ms: i64,
}

struct World {
    dice: Dice,
    now: Arc<AtomicI64>,
    store: Store,
    servers: Vec<Server>,
    starts: usize,
    submitted: usize,
    followed: usize,
    fired: usize,
    /// Runs that ended, each once.
    ended: BTreeMap<Uuid, RunState>,
    paused: BTreeSet<u64>,
    /// Rows of org 1, by day.
    spent: BTreeMap<i64, u64>,
}

fn org(id: u64) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.to_string().parse().expect("id")).expect("org")
}

fn order(kind: JobKind, tables: &[Asked]) -> Order<'_> {
    Order { kind, tables, full_refresh: false, asked_by: "x", traceparent: None }
}

fn table(name: &str, schedule: &serde_json::Value) -> EffectiveTable {
    let spec = json!({ "name": name, "source": "s", "from": name });
    let spec: TableSpec = serde_json::from_value(spec).expect("spec");
    let schedule: ScheduleSpec = serde_json::from_value(schedule.clone()).expect("schedule");
    EffectiveTable { spec: TableSpec { schedule: Some(schedule), ..spec }, adjusted: false }
}

impl World {
    async fn new(seed: u64) -> Self {
        let (now, clock) = clock();
        let store = Store::in_memory().await.with_clock(clock);
        let mut world = Self {
            dice: Dice(seed),
            now,
            store,
            servers: Vec::new(),
            starts: 0,
            submitted: 0,
            followed: 0,
            fired: 0,
            ended: BTreeMap::new(),
            paused: BTreeSet::new(),
            spent: BTreeMap::new(),
        };
        // It begins in the last hour of a day.
        let night = usage::next_day_ms(world.now()) - 1 - world.dice.below(3_600_000) as i64;
        world.now.store(night, Ordering::SeqCst);
        for _ in 0..SERVERS {
            let server = world.started();
            world.servers.push(server);
        }
        let orgs: Vec<EffectiveOrg> = (0..ORGS).map(|id| world.org(id)).collect();
        schedule::bring(&world.store, &orgs).await.expect("brought in");
        world
    }

    fn org(&mut self, id: u64) -> EffectiveOrg {
        let mut tables = Vec::new();
        for name in 0..TABLES {
            let schedule = json!({
                "cron": self.dice.of(&["*/5 * * * *", "*/15 * * * *", "@hourly"]),
                "jitter": self.dice.of(&["0s", "3m"]),
                "catch_up": self.dice.of(&["latest", "skip"]),
                "overlap": self.dice.of(&["skip", "queue"]),
                "validate": self.dice.of(&["never", "after_run"]),
                "maintain": "7,37 * * * *",
            });
            tables.push(table(&format!("t{name}"), &schedule));
        }
        let runs = (id == 0).then_some(ORG_0_RUNS as u32);
        EffectiveOrg {
            org: org(id).get().clone(),
            revision: 1,
            name: None,
            template: None,
            groups: std::collections::BTreeMap::new(),
            limits: OrgLimits {
                runs,
                weight: Some(1 + id as u32),
                rows_per_day: (id == 1).then_some(ORG_1_ROWS),
                ..OrgLimits::default()
            },
            schedule: None,
            enabled: true,
            tables,
        }
    }

    fn started(&mut self) -> Server {
        self.starts += 1;
        Server { owner: format!("server {}", self.starts), ..Server::default() }
    }

    fn now(&self) -> i64 {
        self.now.load(Ordering::SeqCst)
    }

    async fn step(&mut self) {
        // Mostly seconds; now and then everything was down for an hour or two.
        let pause = if self.dice.chance(2) { 5_400_000 } else { 20_000 };
        let wait = 500 + self.dice.below(pause) as i64;
        self.now.fetch_add(wait, Ordering::SeqCst);
        self.tick().await;
        self.somebody().await;
        for index in 0..self.servers.len() {
            self.server(index).await;
        }
        self.check().await;
    }

    /// Two servers look at the schedules at the same moment.
    async fn tick(&mut self) {
        let sql = "SELECT count(*) AS due FROM polder_schedules WHERE next_ms <= $1";
        let row = sqlx::query(sql).bind(self.now()).fetch_one(self.store.pool()).await;
        let due: i64 = row.expect("row").try_get("due").expect("due");
        let (one, two) = tokio::join!(schedule::tick(&self.store), schedule::tick(&self.store));
        let (one, two) = (one.expect("looked"), two.expect("looked"));
        let moved = one.queued + one.skipped + two.queued + two.skipped;
        assert!(moved as i64 <= due, "{moved} of {due} that were due: one was had twice");
        self.fired += one.queued + two.queued;
        let again = schedule::tick(&self.store).await.expect("looked");
        assert_eq!(again, schedule::Ticked::default(), "the moment is over");
    }

    /// People.
    async fn somebody(&mut self) {
        let id = self.dice.below(ORGS);
        let name = format!("t{}", self.dice.below(TABLES));
        match self.dice.below(12) {
            0..=3 => {
                let asked = [Asked { table: name, source: "s".into(), validate: false }];
                let kind = JobKind::ALL[self.dice.below(3) as usize];
                queue::submit(&self.store, &org(id), order(kind, &asked)).await.expect("queued");
                self.submitted += 1;
            }
            4 => {
                let pausing = Pausing { who: "x", why: None };
                queue::pause(&self.store, &org(id), None, pausing).await.expect("paused");
                self.paused.insert(id);
            }
            5 | 6 => {
                queue::resume(&self.store, &org(id), None).await.expect("resumed");
                self.paused.remove(&id);
            }
            7 => {
                let open: Vec<Uuid> = self.rows("queued").await;
                if let Some(run) = open.first() {
                    let org = self.owner_of(*run).await;
                    let cancelled = queue::cancel(&self.store, &org, *run).await.expect("it waits");
                    assert_eq!(cancelled.state, RunState::Cancelled);
                    self.end(*run, RunState::Cancelled);
                }
            }
            8 => {
                let failed: Vec<Uuid> = self.rows("failed").await;
                if let Some(run) = failed.first() {
                    let org = self.owner_of(*run).await;
                    queue::retry(&self.store, &org, *run).await.expect("again");
                    self.ended.remove(run);
                }
            }
            _ => {}
        }
    }

    async fn rows(&self, state: &str) -> Vec<Uuid> {
        let sql = "SELECT run_id FROM polder_queue WHERE state = $1 ORDER BY run_id DESC";
        let rows = sqlx::query(sql).bind(state).fetch_all(self.store.pool()).await.expect("rows");
        let id = |row: &sqlx::any::AnyRow| row.try_get::<String, _>("run_id").expect("id");
        rows.iter().map(|row| Uuid::parse_str(&id(row)).expect("id")).collect()
    }

    async fn owner_of(&self, run: Uuid) -> Authorized<OrgId> {
        let sql = "SELECT org FROM polder_queue WHERE run_id = $1";
        let row = sqlx::query(sql).bind(run.to_string()).fetch_one(self.store.pool()).await;
        let id: String = row.expect("row").try_get("org").expect("org");
        org(id.parse().expect("number"))
    }

    async fn server(&mut self, index: usize) {
        match self.dice.below(60) {
            // Killed: it says nothing more.
            0 | 1 => self.servers[index] = self.started(),
            // Stopped: it gives back what it has.
            2 => {
                for attempt in std::mem::take(&mut self.servers[index].attempts) {
                    queue::release(&self.store, &attempt.lease).await.expect("given back");
                }
                self.servers[index] = self.started();
            }
            3 => {
                let until = self.now() + self.dice.below(4 * LEASE_MS as u64) as i64;
                self.servers[index].stalled_until_ms = until;
            }
            _ => {}
        }
        let stalled = self.servers[index].stalled_until_ms > self.now();
        let mut kept = Vec::new();
        for mut attempt in std::mem::take(&mut self.servers[index].attempts) {
            if attempt.ends_ms <= self.now() {
                self.finish(attempt).await;
            } else if stalled {
                kept.push(attempt);
            } else {
                match queue::renew(&self.store, &attempt.lease).await.expect("renewed") {
                    Renewed::Lost => assert!(attempt.held_until_ms < self.now(), "it was held"),
                    Renewed::Held | Renewed::CancelWanted => {
                        attempt.held_until_ms = self.now() + LEASE_MS;
                        kept.push(attempt);
                    }
                }
            }
        }
        self.servers[index].attempts = kept;
        while !stalled && self.servers[index].attempts.len() < PLACES {
            let owner = self.servers[index].owner.clone();
            let Some((run, lease)) = self.claim(&owner).await else { break };
            self.took(index, run, lease);
        }
    }

    /// No ingestion is begun of an org that has had its rows of the day; one that was under way goes on.
    async fn claim(&self, owner: &str) -> Option<(QueuedRun, Lease)> {
        let had = self.spent.get(&usage::day(self.now())).copied().unwrap_or(0) >= ORG_1_ROWS;
        let under_way = if had { self.rows("running").await } else { Vec::new() };
        let claimer = Claimer { owner, per_org: PER_ORG };
        let (run, lease) = queue::claim(&self.store, claimer).await.expect("asked")?;
        if had && run.org.as_str() == "1" && run.kind == JobKind::Ingest {
            assert!(under_way.contains(&run.run_id), "org 1 has had its rows of the day");
        }
        Some((run, lease))
    }

    /// A server may only begin what nobody holds.
    fn took(&mut self, index: usize, run: QueuedRun, lease: Lease) {
        let now = self.now();
        let held = self.servers.iter().flat_map(|server| &server.attempts);
        let mut held = held.filter(|other| other.held_until_ms >= now);
        assert!(
            !held.any(|other| other.run.org == run.org && other.run.table == run.table),
            "{}/{} runs twice at one time",
            run.org,
            run.table
        );
        assert!(!self.ended.contains_key(&run.run_id), "it had ended");
        let ends_ms = now + self.dice.below(120_000) as i64;
        let held_until_ms = now + LEASE_MS;
        self.servers[index].attempts.push(Attempt { run, lease, ends_ms, held_until_ms });
    }

    async fn finish(&mut self, attempt: Attempt) {
        let outcome = match self.dice.below(20) {
            0..=2 => Outcome::Failed(ErrorCode::LakeUnavailable),
            3 => Outcome::Failed(ErrorCode::SourceDenied),
            4..=6 => Outcome::Failed(ErrorCode::SourceUnavailable),
            _ => Outcome::Succeeded,
        };
        let before = self.count().await;
        let rows = if attempt.run.kind == JobKind::Ingest { self.dice.below(4) } else { 0 };
        let spent = Spent { rows, bytes: 0 };
        let ended = queue::finish(&self.store, &attempt.lease, outcome, spent, "{}").await;
        let ended = ended.expect("told");
        self.followed += self.count().await - before;
        if ended == Ended::Done(RunState::Succeeded) && attempt.run.org.as_str() == "1" {
            *self.spent.entry(usage::day(self.now())).or_default() += rows;
        }
        match ended {
            Ended::Lost => assert!(attempt.held_until_ms < self.now(), "it was held"),
            Ended::Again(due) => assert!(due > self.now()),
            Ended::Done(state) => self.end(attempt.run.run_id, state),
        }
    }

    fn end(&mut self, run: Uuid, state: RunState) {
        let before = self.ended.insert(run, state);
        assert_eq!(before, None, "run {run} ended twice");
    }

    async fn count(&self) -> usize {
        let sql = "SELECT count(*) AS runs FROM polder_queue";
        let row = sqlx::query(sql).fetch_one(self.store.pool()).await.expect("row");
        row.try_get::<i64, _>("runs").expect("runs") as usize
    }

    /// No run is lost or made up, and no limit is passed.
    async fn check(&self) {
        assert_eq!(self.count().await, self.submitted + self.followed + self.fired);
        let sql = "SELECT org, owner, count(*) AS runs FROM polder_queue WHERE state = 'running' \
                   GROUP BY org, owner";
        let rows = sqlx::query(sql).fetch_all(self.store.pool()).await.expect("rows");
        let mut of_org_0 = 0;
        for row in &rows {
            let (org, runs): (String, i64) =
                (row.try_get("org").expect("org"), row.try_get("runs").expect("runs"));
            of_org_0 += if org == "0" { runs as usize } else { 0 };
        }
        assert!(of_org_0 <= ORG_0_RUNS, "{of_org_0} runs of org 0");
        let used = usage::of_org(&self.store, &org(1), 30).await.expect("days");
        let counted = used.iter().map(|used| used.rows).sum::<u64>();
        assert_eq!(counted, self.spent.values().sum::<u64>(), "rows of org 1");
    }

    /// Nothing goes wrong any more: what waits has to come to its end.
    async fn come_to_rest(&mut self) {
        for id in 0..ORGS {
            queue::resume(&self.store, &org(id), None).await.expect("resumed");
        }
        for server in &mut self.servers {
            server.stalled_until_ms = 0;
        }
        let orgs = (0..ORGS).map(|id| EffectiveOrg { tables: Vec::new(), ..self.org(id) });
        let orgs: Vec<EffectiveOrg> = orgs.collect();
        schedule::bring(&self.store, &orgs).await.expect("no schedules");
        // Whoever has had the rows of a day goes on with the next one.
        self.now.store(usage::next_day_ms(self.now()), Ordering::SeqCst);
        for _ in 0..400 {
            self.now.fetch_add(LEASE_MS / 2, Ordering::SeqCst);
            for index in 0..self.servers.len() {
                for attempt in std::mem::take(&mut self.servers[index].attempts) {
                    let before = self.count().await;
                    let (outcome, spent) = (Outcome::Succeeded, Spent::default());
                    let done = queue::finish(&self.store, &attempt.lease, outcome, spent, "{}");
                    let done = done.await.expect("told");
                    self.followed += self.count().await - before;
                    if let Ended::Done(state) = done {
                        self.end(attempt.run.run_id, state);
                    }
                }
                let owner = self.servers[index].owner.clone();
                while let Some((run, lease)) = self.claim(&owner).await {
                    self.took(index, run, lease);
                }
            }
            let open = self.rows("queued").await.len() + self.rows("running").await.len();
            if open == 0 {
                self.check().await;
                let all = self.submitted + self.followed + self.fired;
                let buried = self.rows("failed").await;
                let unknown = buried.iter().filter(|run| !self.ended.contains_key(run)).count();
                assert_eq!(self.ended.len() + unknown, all, "every run has ended, once");
                return;
            }
            // Nobody waits for half a day in a simulation.
            self.now.fetch_add(600_000, Ordering::SeqCst);
        }
        panic!("runs wait for ever: {:?}", self.rows("queued").await);
    }
}

/// Seeds in four parts, which tests run side by side.
async fn seeds(part: u64) {
    let asked = std::env::var("POLDER_SEEDS").ok().and_then(|text| text.parse().ok());
    let seeds: u64 = asked.unwrap_or(SEEDS);
    let mut runs = 0;
    for seed in (0..seeds).filter(|seed| seed % 4 == part) {
        let told = Told(seed);
        let mut world = World::new(seed).await;
        for _ in 0..40 {
            world.step().await;
        }
        world.come_to_rest().await;
        runs += world.ended.len();
        drop(told);
    }
    assert!(runs > seeds as usize, "the worlds are too quiet: {runs} runs");
}

/// Names the seed of a world that failed.
struct Told(u64);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "a test says which seed failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

#[tokio::test]
async fn no_run_is_lost_and_none_had_twice_by_seeds_of_part_0() {
    seeds(0).await;
}

#[tokio::test]
async fn no_run_is_lost_and_none_had_twice_by_seeds_of_part_1() {
    seeds(1).await;
}

#[tokio::test]
async fn no_run_is_lost_and_none_had_twice_by_seeds_of_part_2() {
    seeds(2).await;
}

#[tokio::test]
async fn no_run_is_lost_and_none_had_twice_by_seeds_of_part_3() {
    seeds(3).await;
}
