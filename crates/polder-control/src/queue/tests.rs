//! The queue over a store of its own, by a clock that the tests turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use polder_core::Principal;
use polder_core::spec::{OrgLimits, ScheduleSpec, TableSpec};

use super::*;
use crate::clock::Clock;
use crate::desired::{EffectiveOrg, EffectiveTable};
use crate::schedule;
use crate::usage::{self, DAY_MS, Spent};

mod service;

struct Queue {
    store: Store,
    now: Arc<AtomicI64>,
}

async fn queue() -> Queue {
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let read = Arc::clone(&now);
    let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
    Queue { store: Store::in_memory().await.with_clock(clock), now }
}

fn order(tables: &[Asked]) -> Order<'_> {
    let asked_by = "test";
    Order { kind: JobKind::Ingest, tables, full_refresh: false, asked_by, traceparent: None }
}

fn org(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.parse().expect("id")).expect("org")
}

impl Queue {
    async fn submit(&self, id: &str, tables: &[&str]) -> Uuid {
        let asked = |table: &&str| Asked {
            table: (*table).to_owned(),
            source: "revdb".to_owned(),
            validate: false,
        };
        let tables: Vec<Asked> = tables.iter().map(asked).collect();
        submit(&self.store, &org(id), order(&tables)).await.expect("queued")
    }

    async fn claim(&self, owner: &str) -> Option<(QueuedRun, Lease)> {
        claim(&self.store, Claimer { owner, per_org: 9 }).await.expect("asked")
    }

    async fn finish(&self, lease: &Lease, outcome: Outcome) -> Ended {
        finish(&self.store, lease, outcome, Spent::default(), "{}").await.expect("recorded")
    }

    /// An ingestion that read so many rows.
    async fn read(&self, lease: &Lease, rows: u64) {
        let spent = Spent { rows, bytes: 10 * rows };
        let ended = finish(&self.store, lease, Outcome::Succeeded, spent, "{}").await;
        assert_eq!(ended.expect("recorded"), Ended::Done(RunState::Succeeded));
    }

    /// Lets time pass.
    fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    async fn states(&self, id: Uuid) -> Vec<RunState> {
        let runs = operation(&self.store, id).await.expect("operation");
        runs.iter().map(|run| run.state).collect()
    }
}

#[tokio::test]
async fn a_table_has_one_run_at_a_time_and_others_go_on() {
    let queue = queue().await;
    let first = queue.submit("1", &["a"]).await;
    let second = queue.submit("1", &["a", "b"]).await;
    queue.submit("2", &["a"]).await;
    let claim = || queue.claim("s");
    let (run, lease) = claim().await.expect("a of 1");
    assert_eq!((run.operation, run.table.as_str()), (first, "a"));
    let mut others = Vec::new();
    while let Some((run, _)) = claim().await {
        others.push(format!("{}/{}", run.org, run.table));
    }
    assert_eq!(others, ["2/a", "1/b"], "the second run of 1/a waits for the first");
    let ended = queue.finish(&lease, Outcome::Succeeded).await;
    assert_eq!(ended, Ended::Done(RunState::Succeeded));
    let (run, _) = claim().await.expect("now it may");
    assert_eq!((run.operation, run.table.as_str()), (second, "a"));
    assert_eq!(queue.states(first).await, [RunState::Succeeded]);
    assert_eq!(queue.states(second).await, [RunState::Running; 2]);
}

#[tokio::test]
async fn a_dead_servers_run_is_taken_up_and_its_late_word_does_not_count() {
    let queue = queue().await;
    let operation = queue.submit("1", &["a"]).await;
    let (run, old) = queue.claim("s1").await.expect("run");
    assert!(queue.claim("s2").await.is_none(), "it is held");
    assert_eq!(renew(&queue.store, &old).await.expect("renewed"), Renewed::Held);
    assert!(is_running(&queue.store, &org("1"), "a").await.expect("asked"));
    queue.pass(LEASE.as_millis() as i64 + 1);
    assert!(!is_running(&queue.store, &org("1"), "a").await.expect("asked"));
    let (again, new) = queue.claim("s2").await.expect("run");
    assert_eq!(again.run_id, run.run_id, "the same run");
    assert_eq!(renew(&queue.store, &old).await.expect("renewed"), Renewed::Lost);
    assert_eq!(queue.finish(&old, Outcome::Failed(ErrorCode::Internal)).await, Ended::Lost);
    assert_eq!(queue.states(operation).await, [RunState::Running]);
    let ended = queue.finish(&new, Outcome::Succeeded).await;
    assert_eq!(ended, Ended::Done(RunState::Succeeded));
    assert_eq!(queue.states(operation).await, [RunState::Succeeded]);
    assert!(queue.claim("s1").await.is_none());
}

#[tokio::test]
async fn a_stop_gives_runs_back_and_a_cancelled_one_ends() {
    let queue = queue().await;
    let operation = queue.submit("1", &["a", "b"]).await;
    let (run, lease) = queue.claim("s").await.expect("run");
    release(&queue.store, &lease).await.expect("given back");
    assert_eq!(queue.states(operation).await, [RunState::Queued; 2]);
    let (same, lease) = queue.claim("s").await.expect("run");
    assert_eq!(same.run_id, run.run_id);
    let foreign = cancel(&queue.store, &org("2"), run.run_id).await.expect_err("not theirs");
    assert_eq!(foreign.code(), ErrorCode::ControlNotFound);
    assert_eq!(renew(&queue.store, &lease).await.expect("renewed"), Renewed::Held);
    cancel(&queue.store, &org("1"), run.run_id).await.expect("asked to stop");
    assert_eq!(renew(&queue.store, &lease).await.expect("renewed"), Renewed::CancelWanted);
    queue.finish(&lease, Outcome::Cancelled).await;
    let late = cancel(&queue.store, &org("1"), run.run_id).await.expect_err("it ended");
    assert_eq!(late.code(), ErrorCode::ControlConflict);
    let runs = super::operation(&queue.store, operation).await.expect("operation");
    let waiting = runs.iter().find(|run| run.state == RunState::Queued).expect("one waits");
    let gone = cancel(&queue.store, &org("1"), waiting.run_id).await.expect("cancelled");
    assert_eq!(gone.state, RunState::Cancelled);
    assert!(queue.claim("s").await.is_none());
}

#[tokio::test]
async fn a_run_that_failed_for_now_is_tried_again_and_then_waits_for_a_person() {
    let queue = queue().await;
    let operation = queue.submit("1", &["a"]).await;
    let gone = Outcome::Failed(ErrorCode::LakeUnavailable);
    let mut ids = Vec::new();
    for attempt in 1..ATTEMPTS_MAX {
        let (run, lease) = queue.claim("s").await.expect("due");
        assert_eq!(run.failures, attempt - 1);
        ids.push(run.run_id);
        let Ended::Again(due) = queue.finish(&lease, gone).await else { panic!("again") };
        assert!(queue.claim("s").await.is_none(), "not before it is due");
        queue.pass(due - queue.store.now_ms());
    }
    let (run, lease) = queue.claim("s").await.expect("due");
    ids.push(run.run_id);
    ids.dedup();
    assert_eq!(ids.len(), 1, "under the same id");
    assert_eq!(queue.finish(&lease, gone).await, Ended::Done(RunState::Failed));
    queue.pass(1_000_000_000);
    assert!(queue.claim("s").await.is_none(), "it waits for a person");
    let foreign = retry(&queue.store, &org("2"), run.run_id).await.expect_err("not theirs");
    assert_eq!(foreign.code(), ErrorCode::ControlNotFound);
    let again = retry(&queue.store, &org("1"), run.run_id).await.expect("queued");
    assert_eq!((again.state, again.failures, again.report), (RunState::Queued, 0, None));
    let (_, lease) = queue.claim("s").await.expect("due");
    let early = retry(&queue.store, &org("1"), run.run_id).await.expect_err("it runs");
    assert_eq!(early.code(), ErrorCode::ControlConflict);
    let hopeless = Outcome::Failed(ErrorCode::SourceDenied);
    assert_eq!(queue.finish(&lease, hopeless).await, Ended::Done(RunState::Failed), "at once");
    assert_eq!(queue.states(operation).await, [RunState::Failed]);
}

#[tokio::test]
async fn a_run_that_takes_its_servers_with_it_is_ended() {
    let queue = queue().await;
    let operation = queue.submit("1", &["a"]).await;
    for _ in 0..DEATHS_MAX {
        assert!(queue.claim("s").await.is_some());
        queue.pass(LEASE.as_millis() as i64 + 1);
    }
    assert!(queue.claim("s").await.is_none());
    let runs = super::operation(&queue.store, operation).await.expect("operation");
    assert_eq!(runs[0].state, RunState::Failed);
    assert!(runs[0].report.as_deref().expect("why").contains("memory_mb"), "{runs:?}");
}

#[tokio::test]
async fn a_source_that_cannot_be_reached_is_left_alone_and_tried_by_one_run() {
    let queue = queue().await;
    queue.submit("1", &["a", "b", "c", "d", "e", "f", "g"]).await;
    let gone = Outcome::Failed(ErrorCode::SourceUnavailable);
    for _ in 0..BREAKER_FAILURES {
        let (_, lease) = queue.claim("s").await.expect("due");
        queue.finish(&lease, gone).await;
    }
    assert!(queue.claim("s").await.is_none(), "two wait that were never tried");
    queue.pass(rules::break_ms(BREAKER_FAILURES) + 1);
    let (_, probe) = queue.claim("s").await.expect("one tries");
    assert!(queue.claim("s").await.is_none(), "no other does meanwhile");
    queue.finish(&probe, gone).await;
    queue.pass(rules::break_ms(BREAKER_FAILURES) + 1);
    assert!(queue.claim("s").await.is_none(), "it is left alone for longer");
    queue.pass(rules::break_ms(BREAKER_FAILURES));
    let (_, probe) = queue.claim("s").await.expect("one tries");
    queue.finish(&probe, Outcome::Succeeded).await;
    assert!(queue.claim("s").await.is_some() && queue.claim("s").await.is_some(), "it is back");
}

#[tokio::test]
async fn what_is_paused_waits_and_the_rest_goes_on() {
    let queue = queue().await;
    let pausing = Pausing { who: "test", why: Some("moving house") };
    queue.submit("1", &["a", "b"]).await;
    queue.submit("2", &["a"]).await;
    pause(&queue.store, &org("1"), Some("a"), pausing).await.expect("paused");
    pause(&queue.store, &org("2"), None, pausing).await.expect("paused");
    let (run, _) = queue.claim("s").await.expect("due");
    assert_eq!((run.org.as_str(), run.table.as_str()), ("1", "b"));
    assert!(queue.claim("s").await.is_none());
    let paused = pauses(&queue.store, &org("1")).await.expect("pauses");
    assert_eq!(paused[0].table.as_deref(), Some("a"));
    resume(&queue.store, &org("2"), None).await.expect("resumed");
    let member = Principal::Org("1".parse().expect("id"));
    let denied = set_source_paused(&queue.store, &member, "revdb", true).await;
    assert_eq!(denied.expect_err("not theirs").code(), ErrorCode::ControlDenied);
    let set = |paused| set_source_paused(&queue.store, &Principal::Operator, "revdb", paused);
    set(true).await.expect("paused");
    assert!(queue.claim("s").await.is_none());
    set(false).await.expect("resumed");
    assert_eq!(queue.claim("s").await.expect("due").0.org.as_str(), "2");
    resume(&queue.store, &org("1"), Some("a")).await.expect("resumed");
    assert_eq!(queue.claim("s").await.expect("due").0.table, "a");
}

#[tokio::test]
async fn what_is_asked_under_a_condition_is_done_where_it_holds() {
    let queue = queue().await;
    let (store, own) = (&queue.store, org("1"));
    let operation = queue.submit("1", &["a"]).await;
    let (run, lease) = queue.claim("s").await.expect("run");
    let id = run.run_id;
    let stale = |_: &QueuedRun| Err(Error::new(ErrorCode::ControlStale, "it has changed"));
    let refused = cancel_if(store, &own, id, stale).await.expect_err("stale");
    assert_eq!(refused.code(), ErrorCode::ControlStale);
    assert_eq!(renew(store, &lease).await.expect("renewed"), Renewed::Held);
    queue.finish(&lease, Outcome::Failed(ErrorCode::SpecInvalid)).await;
    let refused = retry_if(store, &own, id, stale).await.expect_err("stale");
    assert_eq!(refused.code(), ErrorCode::ControlStale);
    assert_eq!(queue.states(operation).await, [RunState::Failed]);
    for (org, run) in [(&own, Uuid::now_v7()), (&org("2"), id)] {
        for asked in
            [cancel_if(store, org, run, stale).await, retry_if(store, org, run, stale).await]
        {
            assert_eq!(asked.expect_err("not there").code(), ErrorCode::ControlNotFound);
        }
    }
    let is_it = |now: &QueuedRun| {
        assert_eq!((now.run_id, now.state, now.failures), (id, RunState::Failed, 1));
        Ok(())
    };
    let again = retry_if(store, &own, id, is_it).await.expect("again");
    assert_eq!((again.state, again.failures), (RunState::Queued, 0));
    let ended = cancel_if(store, &own, id, |_| Ok(())).await.expect("cancelled");
    assert_eq!(ended.state, RunState::Cancelled);
    let late = cancel(store, &own, id).await.expect_err("it has ended");
    assert_eq!(late.code(), ErrorCode::ControlConflict);
}

#[tokio::test]
async fn no_org_holds_every_place_of_a_server() {
    let queue = queue().await;
    queue.submit("1", &["a", "b", "c"]).await;
    let two = Claimer { owner: "s", per_org: 2 };
    let claim = |claimer| claim(&queue.store, claimer);
    assert!(claim(two).await.expect("asked").is_some());
    assert!(claim(two).await.expect("asked").is_some());
    assert!(claim(two).await.expect("asked").is_none());
    let other = Claimer { owner: "another", per_org: 2 };
    assert!(claim(other).await.expect("asked").is_some(), "another server has places of its own");
}

#[tokio::test]
async fn a_server_takes_no_more_runs_of_an_org_than_its_room_is_for() {
    let queue = queue().await;
    queue.submit("1", &["a", "b", "c"]).await;
    queue.submit("2", &["a"]).await;
    let sql = "UPDATE polder_turns SET here_max = 1 WHERE org = '1'";
    sqlx::query(sql).execute(queue.store.pool()).await.expect("limited");
    let mut orgs = Vec::new();
    while let Some((run, _)) = queue.claim("s").await {
        orgs.push(run.org.to_string());
    }
    orgs.sort();
    assert_eq!(orgs, ["1", "2"], "the places are others'");
    assert!(queue.claim("another").await.is_some(), "another server has room of its own");
}

#[tokio::test]
async fn a_validation_follows_and_maintenance_waits_until_nothing_else_does() {
    let queue = queue().await;
    let asked = [Asked { table: "a".into(), source: "revdb".into(), validate: true }];
    let kept = [Asked { table: "b".into(), source: "revdb".into(), validate: false }];
    let maintain = Order { kind: JobKind::Maintain, ..order(&kept) };
    submit(&queue.store, &org("1"), maintain).await.expect("queued");
    queue.pass(1);
    submit(&queue.store, &org("2"), order(&asked)).await.expect("queued");
    let (run, lease) = queue.claim("s").await.expect("due");
    assert_eq!((run.table.as_str(), run.kind), ("a", JobKind::Ingest), "though it came later");
    queue.finish(&lease, Outcome::Succeeded).await;
    let (next, lease) = queue.claim("s").await.expect("due");
    assert_eq!((next.kind, next.operation), (JobKind::Validate, run.operation));
    queue.finish(&lease, Outcome::Succeeded).await;
    let (last, lease) = queue.claim("s").await.expect("due");
    assert_eq!(last.kind, JobKind::Maintain);
    queue.finish(&lease, Outcome::Succeeded).await;
    submit(&queue.store, &org("1"), maintain_of("c").order()).await.expect("queued");
    queue.pass(rules::IDLE_WAIT_MS);
    queue.submit("1", &["d"]).await;
    submit(&queue.store, &org("2"), maintain_of("e").order()).await.expect("queued");
    let (old, _) = queue.claim("s").await.expect("due");
    assert_eq!(old.table, "d", "of its own org, runs go first");
    let (old, _) = queue.claim("s").await.expect("due");
    assert_eq!(old.table, "c", "it waited for an hour");
}

/// Maintenance of one table.
struct MaintainOf([Asked; 1]);

fn maintain_of(table: &str) -> MaintainOf {
    MaintainOf([Asked { table: table.into(), source: "revdb".into(), validate: false }])
}

impl MaintainOf {
    fn order(&self) -> Order<'_> {
        Order { kind: JobKind::Maintain, ..order(&self.0) }
    }
}

#[tokio::test]
async fn a_run_and_what_follows_it_belong_to_the_trace_of_whoever_asked() {
    let queue = queue().await;
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let tables = [Asked { table: "a".into(), source: "revdb".into(), validate: true }];
    let order = Order { traceparent, ..order(&tables) };
    submit(&queue.store, &org("1"), order).await.expect("queued");
    let (run, first) = queue.claim("s").await.expect("run");
    assert_eq!(run.traceparent.as_deref(), traceparent);
    queue.finish(&first, Outcome::Succeeded).await;
    let (run, second) = queue.claim("s").await.expect("validation");
    assert_eq!((run.kind, run.traceparent.as_deref()), (JobKind::Validate, traceparent));
    assert_eq!((first.attempt(), second.attempt()), (1, 1));
    queue.pass(60_000);
    let (_, again) = queue.claim("s2").await.expect("its server is dead");
    assert_eq!(again.attempt(), 2);
}

#[tokio::test]
async fn a_store_of_an_earlier_version_gets_what_it_lacks() {
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("sqlite://{}", folder.path().join("c.db").display());
    let store = Store::open(&url).await.expect("store");
    for statement in [
        "DROP TABLE polder_turns",
        "DROP INDEX polder_queue_waiting",
        "DROP INDEX polder_queue_waiting_beside",
        "DROP INDEX polder_queue_of_table",
        "DROP INDEX polder_queue_due",
        "ALTER TABLE polder_queue DROP COLUMN due_ms",
        "ALTER TABLE polder_queue DROP COLUMN kind",
        "ALTER TABLE polder_queue DROP COLUMN progress",
        "ALTER TABLE polder_queue DROP COLUMN traceparent",
        "INSERT INTO polder_queue (run_id, operation, org, table_name, full_refresh, state,          enqueued_ms, fence, lease_until_ms, cancel_wanted, asked_by) VALUES          ('01977c2e-0000-7000-8000-000000000001', '01977c2e-0000-7000-8000-000000000002', '1', 'a',          0, 'queued', 1, 0, 0, 0, 'test')",
    ] {
        sqlx::query(statement).execute(store.pool()).await.expect(statement);
    }
    let store = Store::open(&url).await.expect("brought up to date");
    let claimer = Claimer { owner: "s", per_org: 1 };
    let (run, _) = claim(&store, claimer).await.expect("asked").expect("the old run");
    assert_eq!((run.table.as_str(), run.kind), ("a", JobKind::Ingest));
}

/// An org with limits of a day, and with the schedule of a table `s` if there is one.
fn limited(id: &str, limits: serde_json::Value, schedule: Option<ScheduleSpec>) -> EffectiveOrg {
    let spec = serde_json::json!({ "name": "s", "source": "revdb", "from": "s" });
    let spec: TableSpec = serde_json::from_value(spec).expect("spec");
    EffectiveOrg {
        org: org(id).get().clone(),
        revision: 1,
        name: None,
        template: None,
        groups: std::collections::BTreeMap::new(),
        limits: serde_json::from_value::<OrgLimits>(limits).expect("limits"),
        schedule: None,
        enabled: true,
        tables: vec![EffectiveTable { spec: TableSpec { schedule, ..spec }, adjusted: false }],
    }
}

async fn sync(store: &Store, orgs: &[EffectiveOrg]) {
    schedule::bring(store, orgs).await.expect("brought in");
}

#[tokio::test]
async fn who_has_had_the_rows_or_bytes_of_a_day_waits_for_the_next_and_others_go_on() {
    let queue = queue().await;
    let rows = limited("1", serde_json::json!({ "rows_per_day": 5 }), None);
    let bytes = limited("2", serde_json::json!({ "bytes_per_day": 50 }), None);
    sync(&queue.store, &[rows, bytes]).await;
    queue.submit("1", &["a", "b", "c"]).await;
    queue.submit("2", &["a", "b"]).await;
    queue.submit("3", &["a", "b"]).await;
    let mut begun = Vec::new();
    for _ in 0..3 {
        let (run, lease) = queue.claim("s").await.expect("due");
        begun.push(format!("{}/{}", run.org, run.table));
        queue.read(&lease, if run.org.as_str() == "1" { 4 } else { 5 }).await;
    }
    assert_eq!(begun, ["1/a", "2/a", "3/a"]);
    // Four of five rows: one more begins, and goes to its end though it reads more than there is left.
    let (run, under_way) = queue.claim("s").await.expect("due");
    assert_eq!((run.org.as_str(), run.table.as_str()), ("1", "b"));
    let (run, lease) = queue.claim("s").await.expect("due");
    assert_eq!((run.org.as_str(), run.table.as_str()), ("3", "b"), "2 has had its bytes");
    queue.read(&lease, 5).await;
    queue.read(&under_way, 40).await;
    assert!(queue.claim("s").await.is_none(), "1 has had its rows, 2 its bytes");
    let today = usage::day(queue.store.now_ms());
    let until = usage::waits_until_ms(&queue.store, &org("1")).await.expect("asked");
    assert_eq!(until, Some((today + 1) * DAY_MS));
    let free = usage::waits_until_ms(&queue.store, &org("3")).await.expect("asked");
    assert_eq!(free, None);
    let all = usage::limited(&queue.store, &Principal::Operator).await.expect("orgs");
    assert_eq!(all.iter().map(OrgId::as_str).collect::<Vec<_>>(), ["1", "2"]);
    let member = Principal::Org("1".parse().expect("id"));
    let denied = usage::limited(&queue.store, &member).await.expect_err("not theirs");
    assert_eq!(denied.code(), ErrorCode::ControlDenied);
    let used = usage::of_org(&queue.store, &org("1"), 1).await.expect("days");
    assert_eq!((used[0].runs, used[0].rows, used[0].bytes), (2, 44, 440));
    queue.pass((today + 1) * DAY_MS - 1 - queue.store.now_ms());
    assert!(queue.claim("s").await.is_none(), "the day's last moment");
    queue.pass(1);
    let mut begun = Vec::new();
    while let Some((run, _)) = queue.claim("s").await {
        begun.push(format!("{}/{}", run.org, run.table));
    }
    begun.sort_unstable();
    assert_eq!(begun, ["1/c", "2/b"], "they waited, and did not fail");
}

#[tokio::test]
async fn an_org_over_its_limit_is_validated_and_maintained_and_a_dead_servers_run_goes_on() {
    let queue = queue().await;
    let limits = serde_json::json!({ "rows_per_day": 1 });
    sync(&queue.store, &[limited("1", limits, None)]).await;
    queue.submit("1", &["a", "b", "c"]).await;
    let (_, lease) = queue.claim("s").await.expect("due");
    let (under_way, _) = queue.claim("s").await.expect("due");
    queue.read(&lease, 1).await;
    let kept = [Asked { table: "d".into(), source: "revdb".into(), validate: false }];
    for kind in [JobKind::Maintain, JobKind::Validate] {
        let order = Order { kind, ..order(&kept) };
        submit(&queue.store, &org("1"), order).await.expect("queued");
    }
    for kind in [JobKind::Validate, JobKind::Maintain] {
        let (run, lease) = queue.claim("s").await.expect("due");
        assert_eq!(run.kind, kind);
        queue.finish(&lease, Outcome::Succeeded).await;
    }
    assert!(queue.claim("s").await.is_none());
    let used = usage::of_org(&queue.store, &org("1"), 1).await.expect("days");
    assert_eq!((used[0].runs, used[0].rows), (3, 1));
    queue.pass(LEASE.as_millis() as i64 + 1);
    let (again, _) = queue.claim("s").await.expect("it had begun");
    assert_eq!(again.run_id, under_way.run_id);
    // Without the limit what waits goes on at once.
    sync(&queue.store, &[limited("1", serde_json::json!({}), None)]).await;
    assert_eq!(queue.claim("s").await.expect("due").0.table, "c");
}

#[tokio::test]
async fn schedules_of_an_org_over_its_limit_are_as_those_of_one_that_is_paused() {
    for (catch_up, queued, skipped) in [("latest", 1, 0), ("skip", 0, 1)] {
        let queue = queue().await;
        let schedule = serde_json::json!({ "cron": "@hourly", "catch_up": catch_up });
        let schedule: ScheduleSpec = serde_json::from_value(schedule).expect("schedule");
        let limits = serde_json::json!({ "rows_per_day": 1 });
        sync(&queue.store, &[limited("1", limits, Some(schedule))]).await;
        queue.submit("1", &["a"]).await;
        let (_, lease) = queue.claim("s").await.expect("due");
        queue.read(&lease, 1).await;
        queue.pass(2 * 3_600_000);
        let ticked = schedule::tick(&queue.store).await.expect("looked");
        assert_eq!(ticked, schedule::Ticked::default(), "nothing is queued, nothing is left out");
        queue.pass(DAY_MS);
        let ticked = schedule::tick(&queue.store).await.expect("looked");
        assert_eq!((ticked.queued, ticked.skipped), (queued, skipped), "{catch_up}");
    }
}

#[tokio::test]
async fn what_one_server_has_counted_holds_for_another() {
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("sqlite://{}", folder.path().join("c.db").display());
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let open = async || {
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        Queue {
            store: Store::open(&url).await.expect("store").with_clock(clock),
            now: Arc::clone(&now),
        }
    };
    let (one, two) = (open().await, open().await);
    let limits = serde_json::json!({ "rows_per_day": 3 });
    sync(&one.store, &[limited("1", limits, None)]).await;
    two.submit("1", &["a", "b", "c"]).await;
    let (_, first) = one.claim("one").await.expect("due");
    let (_, second) = two.claim("two").await.expect("due");
    one.read(&first, 2).await;
    two.read(&second, 2).await;
    assert!(one.claim("one").await.is_none() && two.claim("two").await.is_none());
    let used = usage::of_org(&one.store, &org("1"), 1).await.expect("days");
    assert_eq!((used[0].runs, used[0].rows), (2, 4));
    one.pass(DAY_MS);
    assert!(two.claim("two").await.is_some(), "another day");
}

/// By the claims themselves; the rule is in `rules.rs`.
#[tokio::test]
async fn an_org_of_three_times_the_weight_begins_three_times_as_many_runs() {
    let queue = queue().await;
    let heavy = limited("1", serde_json::json!({ "weight": 3 }), None);
    sync(&queue.store, &[heavy]).await;
    let names: Vec<String> = (0..20).map(|table| format!("t{table:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for id in ["1", "2"] {
        queue.submit(id, &names).await;
    }
    let mut of_heavy = 0;
    for _ in 0..20 {
        let (run, lease) = queue.claim("s").await.expect("many wait");
        of_heavy += usize::from(run.org.as_str() == "1");
        queue.finish(&lease, Outcome::Succeeded).await;
    }
    assert!((14..=16).contains(&of_heavy), "{of_heavy} of 20");
}

#[tokio::test]
async fn a_time_that_comes_while_the_last_run_goes_on_is_left_out_or_waits_once() {
    // What is queued at the second and third time: the first one's run has begun, and goes on.
    for (overlap, queued) in [("skip", [0, 0]), ("queue", [1, 0])] {
        let queue = queue().await;
        let schedule = serde_json::json!({ "cron": "@hourly", "overlap": overlap });
        let schedule: ScheduleSpec = serde_json::from_value(schedule).expect("schedule");
        sync(&queue.store, &[limited("1", serde_json::json!({}), Some(schedule))]).await;
        let time = async || {
            queue.pass(2 * 3_600_000);
            schedule::tick(&queue.store).await.expect("looked")
        };
        assert_eq!(time().await.queued, 1, "{overlap}");
        let (_, lease) = queue.claim("s").await.expect("due");
        for expect in queued {
            let ticked = time().await;
            assert_eq!((ticked.queued, ticked.skipped), (expect, 1 - expect), "{overlap}");
        }
        queue.finish(&lease, Outcome::Succeeded).await;
        let waits = queue.claim("s").await.is_some();
        assert_eq!(waits, overlap == "queue");
    }
}

/// What its hours have put off nobody takes before, unless somebody asks for it.
#[tokio::test]
async fn a_validation_that_is_put_off_waits_until_then_or_until_it_is_asked_for() {
    let queue = queue().await;
    let tables = [Asked { table: "a".into(), source: "revdb".into(), validate: true }];
    submit(&queue.store, &org("1"), order(&tables)).await.expect("queued");
    let (ingest, lease) = queue.claim("server").await.expect("a run");
    assert!(!ingest.off_peak);
    queue.finish(&lease, Outcome::Succeeded).await;
    let (follows, lease) = queue.claim("server").await.expect("its validation");
    assert_eq!((follows.kind, follows.off_peak), (JobKind::Validate, true));
    let until = queue.store.now_ms() + 7_200_000;
    postpone(&queue.store, &lease, until).await.expect("put off");
    assert!(queue.claim("server").await.is_none());
    let waiting = waiting(&queue.store, &org("1"), "a", JobKind::Validate).await.expect("read");
    let waiting = waiting.expect("it waits");
    assert_eq!((waiting.due_ms, waiting.started_ms, waiting.off_peak), (until, None, true));
    // A server that was away speaks for it no more.
    postpone(&queue.store, &lease, until * 2).await.expect("nothing");
    queue.now.store(until, Ordering::SeqCst);
    let (again, lease) = queue.claim("server").await.expect("it is time");
    assert_eq!(again.run_id, follows.run_id);
    let until = until + 7_200_000;
    postpone(&queue.store, &lease, until).await.expect("put off");
    at_once(&queue.store, &org("2"), again.run_id).await.expect("another org's");
    assert!(queue.claim("server").await.is_none());
    at_once(&queue.store, &org("1"), again.run_id).await.expect("asked for");
    let (asked, _) = queue.claim("server").await.expect("at once");
    assert_eq!((asked.run_id, asked.off_peak), (follows.run_id, false));
}
