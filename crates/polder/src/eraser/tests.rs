//! Orgs that leave while they are worked for: nothing of theirs is left or comes back.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use polder_control::{runs, usage};
use polder_core::erasure::Hold;
use polder_core::spec::{Limits, OrgLimits, TableSpec};
use polder_core::{Field, LakeType, RunProgress, SignedCertificate, Source, TableSchema};
use polder_lake::{CatalogSettings, LakeSettings};
use polder_query::{DataFusionEngine, DataFusionSettings};
use polder_sources::memory::{MemorySource, MemoryTable};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ErasureStep::{Catalog, Forget, List, Look, Remove, Verify};
use super::*;
use crate::airflow::tests::{StandIn, signing_in};
use crate::room::Room;
use crate::worker::{How, Job, Watched, Worker};

/// What nothing may be left of.
const CANARY: &str = "canary-of-org-401-";

struct Scratch {
    folder: TempDir,
    source: Arc<MemorySource>,
}

impl Scratch {
    fn new() -> Self {
        let source = Arc::new(MemorySource::new());
        for (id, word) in [("401", CANARY), ("402", "row of org 402 ")] {
            let fields = vec![
                Field::new("id", LakeType::Long).required(),
                Field::new("text", LakeType::String),
            ];
            let schema = TableSchema::new(fields);
            let texts: Vec<String> = (0..20).map(|n| format!("{word}{n}")).collect();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(0..20)),
                Arc::new(StringArray::from(texts)),
            ];
            let batches = vec![RecordBatch::try_new(schema.to_arrow(), columns).unwrap()];
            let key = vec!["id".to_owned()];
            let table = MemoryTable { schema, batches, key, ..MemoryTable::default() };
            source.put(&format!("t_{id}"), table);
        }
        Self { folder: tempfile::tempdir().unwrap(), source }
    }

    /// The lake as a process of its own opens it.
    async fn lake(&self) -> Lake {
        let path = self.folder.path().display();
        let settings = LakeSettings {
            warehouse: format!("{path}/lake"),
            catalog: CatalogSettings::Sql(format!("sqlite://{path}/catalog.db").into()),
            s3: None,
        };
        Lake::open(settings).await.unwrap()
    }

    async fn store(&self) -> Store {
        let url = format!("sqlite://{}/polder.db", self.folder.path().display());
        Store::open(&url).await.unwrap()
    }

    async fn eraser(&self) -> Eraser {
        Eraser {
            lake: self.lake().await,
            store: self.store().await,
            key: Key::In(self.folder.path().join("key.pem")),
            grace: Duration::ZERO,
            drain: Duration::from_mins(1),
            backups: vec!["nightly copies, kept 30 days".into()],
            airflow: None,
            importer: None,
        }
    }

    async fn worker(&self) -> Worker {
        let source: Arc<dyn Source> = Arc::clone(&self.source) as _;
        let lake = self.lake().await;
        let settings = DataFusionSettings {
            memory_bytes: 16 << 20,
            threads: 1,
            spill_dir: self.folder.path().to_owned(),
        };
        let limits =
            Limits { runs: 1, splits: 1, memory_mb: 16, query_memory_mb: 16, ..Limits::default() };
        Worker {
            engine: Arc::new(DataFusionEngine::new(&lake, settings).unwrap()),
            elsewhere: None,
            lake,
            store: self.store().await,
            sources: Arc::new(BTreeMap::from([("memory".to_owned(), source)])),
            room: Arc::new(Room::new(limits, 1)),
            cancel: CancellationToken::new(),
        }
    }

    /// Every file that has a text in it, in its name too.
    fn found(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        scan(self.folder.path(), text.as_bytes(), &mut found);
        found
    }
}

fn scan(folder: &Path, text: &[u8], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scan(&path, text, found);
            continue;
        }
        // SQLite's files of the moment come and go.
        let bytes = std::fs::read(&path).unwrap_or_default();
        let name = path.display().to_string();
        if bytes.windows(text.len()).any(|part| part == text) {
            found.push(name);
        }
    }
}

fn org(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.parse().unwrap()).unwrap()
}

fn table() -> TableSpec {
    let spec = json!({ "name": "t", "source": "memory", "from": "t_{org}", "key": ["id"] });
    serde_json::from_value(spec).unwrap()
}

async fn run(worker: &Worker, id: &str) -> Result<()> {
    let how = How { full_refresh: true, dry_run: false };
    let limits = OrgLimits::default();
    let job = Job::Ingest { org: org(id), limits, table: table(), how };
    let progress = Arc::new(RunProgress::default());
    let mut outcome = None;
    worker.run(vec![Watched { job, progress }], |ended| outcome = Some(ended.outcome)).await;
    outcome.unwrap().map(drop)
}

fn notice(event: &str) -> Notice {
    Notice {
        event_id: event.into(),
        asked_by: "eve".into(),
        via: "cli",
        reason: Some("contract ended".into()),
        grace_ms: 0,
    }
}

async fn state_of(lake: &Lake, id: &str) -> (Vec<String>, String) {
    let tables = lake.tables(&org(id)).await.unwrap();
    let table = lake.table(&org(id), "t").await.unwrap().unwrap();
    (tables, table.metadata_location().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_that_leaves_is_gone_and_the_others_are_as_they_were() {
    let scratch = Scratch::new();
    let (worker, eraser) = (scratch.worker().await, scratch.eraser().await);
    for id in ["401", "401", "402"] {
        run(&worker, id).await.unwrap();
    }
    eraser.lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await.unwrap();
    assert!(!scratch.found(CANARY).is_empty(), "the search finds what is there");
    let other = state_of(&eraser.lake, "402").await;
    let folder = eraser.lake.org_folder(&org("401")).await.unwrap().unwrap();

    let days = usage::of_org(&eraser.store, &org("401"), 9).await.unwrap().len() as u64;
    assert!(days > 0, "what it used is known");
    let taken = eraser.take(&org("401"), &notice("e1")).await.unwrap();
    assert_eq!(taken.state, ChurnState::Waiting);
    assert_eq!(run(&worker, "401").await.unwrap_err().code(), ErrorCode::LakeFenced);
    let done = eraser.carry_out("e1").await.unwrap();
    assert_eq!(done.state, ChurnState::Erased);
    let document = done.certificate.unwrap();
    let signed = polder_control::certificate::verify(&document, None).unwrap();
    let certificate = &signed.certificate;
    let found = &certificate.deleted.found;
    assert!(found.objects >= 10 && found.bytes > 1000, "{found:?}");
    assert_eq!(certificate.deleted.catalog_entries, 1);
    assert_eq!(certificate.deleted.store_rows, 2 + days, "two runs, and what they took");
    assert_eq!((certificate.verification.objects, certificate.deleted.sweeps.len()), (0, 0));
    assert!(certificate.remains.iter().any(|one| one.what == "nightly copies, kept 30 days"));

    assert_eq!(scratch.found(CANARY), Vec::<String>::new());
    let path = folder.strip_prefix("file://").unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 0, "the seal");
    assert_eq!(state_of(&eraser.lake, "402").await, other);
    run(&worker, "402").await.unwrap();
    assert!(runs::latest(&eraser.store, &org("401"), 9).await.unwrap().is_empty());
    let erasures = eraser.lake.management_table(&Principal::Operator, "erasures").await.unwrap();
    assert_eq!(erasures.unwrap().current_snapshot().unwrap().rows, Some(1));
    let again = eraser.carry_out("e1").await.unwrap();
    assert_eq!(again.certificate.unwrap(), document, "once and for all");

    // The id is nobody's until it is released, and then another's with another folder.
    assert_eq!(run(&worker, "401").await.unwrap_err().code(), ErrorCode::LakeFenced);
    eraser.release(&org("401")).await.unwrap();
    run(&worker, "401").await.unwrap();
    assert_ne!(eraser.lake.org_folder(&org("401")).await.unwrap().unwrap(), folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_may_come_back_as_long_as_nothing_is_erased() {
    let scratch = Scratch::new();
    let (worker, mut eraser) = (scratch.worker().await, scratch.eraser().await);
    run(&worker, "401").await.unwrap();
    let before = state_of(&eraser.lake, "401").await;
    eraser.grace = Duration::from_hours(1);
    let later = Notice { grace_ms: 3_600_000, ..notice("e1") };
    eraser.take(&org("401"), &later).await.unwrap();
    assert!(churn::due(&eraser.store).await.unwrap().is_empty());
    let error = eraser.lake.table(&org("401"), "t").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LakeFenced);
    let undone = eraser.undo(&org("401")).await.unwrap();
    assert_eq!(undone.state, ChurnState::Undone);
    eraser.undo(&org("401")).await.unwrap();
    assert_eq!(state_of(&eraser.lake, "401").await, before);
    run(&worker, "401").await.unwrap();
    assert_eq!(eraser.carry_out("e1").await.unwrap().state, ChurnState::Undone, "not any more");
    eraser.take(&org("401"), &notice("e2")).await.unwrap();
    eraser.carry_out("e2").await.unwrap();
    assert_eq!(eraser.undo(&org("401")).await.unwrap_err().code(), ErrorCode::SpecInvalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_keeps_an_org_and_the_refusal_says_so() {
    let scratch = Scratch::new();
    let (worker, eraser) = (scratch.worker().await, scratch.eraser().await);
    run(&worker, "401").await.unwrap();
    let lake = &eraser.lake;
    let hold = |table: Option<&str>| Hold {
        table: table.map(str::to_owned),
        reason: "case 7".into(),
        set_by: "counsel".into(),
        set_ms: 1,
    };
    for table in [None, Some("t")] {
        lake.hold(&org("401"), &hold(table)).await.unwrap();
        let error = eraser.take(&org("401"), &notice("e1")).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::LakeHeld);
        assert!(error.detail_text().unwrap().contains("counsel: case 7"));
        run(&worker, "401").await.unwrap();
        let retention =
            polder_core::retention::Retention { versions: 1, history_ms: -1, history_min: 1 };
        let error = lake.expire(&org("401"), "t", &retention, Uuid::new_v4()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::LakeHeld);
        assert_eq!(lake.holds(&org("401")).await.unwrap(), [hold(table)]);
        assert!(lake.release_hold(&org("401"), table).await.unwrap());
        assert!(!lake.release_hold(&org("401"), table).await.unwrap());
    }
    lake.hold(&org("401"), &hold(Some("no"))).await.unwrap_err();
    lake.hold(&org("402"), &hold(None)).await.unwrap_err();
    eraser.take(&org("401"), &notice("e1")).await.unwrap();
    let error = lake.hold(&org("401"), &hold(None)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LakeFenced, "too late");
    assert!(lake.holds(&org("401")).await.unwrap().is_empty());
    eraser.carry_out("e1").await.unwrap();
}

/// Whatever process ends after whichever step, the next one goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_may_be_done_twice_and_by_another_process() {
    let scratch = Scratch::new();
    let (worker, eraser) = (scratch.worker().await, scratch.eraser().await);
    for id in ["401", "402"] {
        run(&worker, id).await.unwrap();
    }
    eraser.take(&org("401"), &notice("e1")).await.unwrap();
    churn::turn(&eraser.store, "e1", (ChurnState::Waiting, ChurnState::Erasing)).await.unwrap();
    let mut erasure = Erasure::default();
    let mut steps = Vec::new();
    while erasure.step != ErasureStep::Done {
        steps.push(erasure.step);
        // Done, and the process ended before it was written down.
        let lake = scratch.lake().await;
        erase_step(&lake, &org("401"), erasure.clone()).await.unwrap();
        erasure = erase_step(&scratch.lake().await, &org("401"), erasure).await.unwrap();
        churn::save(&eraser.store, "e1", &erasure).await.unwrap();
    }
    assert_eq!(steps, [Look, Catalog, List, Remove, Forget, Verify]);
    let found = erasure.found.clone().unwrap();
    let done = eraser.carry_out("e1").await.unwrap();
    let signed = SignedCertificate::parse(&done.certificate.unwrap()).unwrap();
    assert_eq!(signed.certificate.deleted.found, found);
    assert_eq!(scratch.found(CANARY), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn dags_leave_airflow_with_their_org_before_it_is_certified() {
    let scratch = Scratch::new();
    let (worker, mut eraser) = (scratch.worker().await, scratch.eraser().await);
    run(&worker, "401").await.unwrap();
    let mut tasks = JoinSet::new();
    let (airflow, url) = StandIn::start(&mut tasks).await;
    for id in ["401", "402"] {
        airflow.has(&format!("polder_{id}_ingest"), &["polder", &format!("org:{id}")]);
    }
    // Nobody listens there.
    eraser.airflow = Some(signing_in("http://127.0.0.1:9", "pw"));
    eraser.take(&org("401"), &notice("e1")).await.unwrap();
    let away = eraser.carry_out("e1").await.unwrap_err();
    assert_eq!(away.code(), ErrorCode::ControlOrchestrator);
    assert_eq!(scratch.found(CANARY), Vec::<String>::new(), "the lake does not wait for it");
    let waits = churn::find(&eraser.store, "e1").await.unwrap().unwrap();
    assert_eq!((waits.state, waits.certificate), (ChurnState::Erasing, None));

    eraser.airflow = Some(signing_in(&url, "pw"));
    let done = eraser.carry_out("e1").await.unwrap();
    let certificate = SignedCertificate::parse(&done.certificate.unwrap()).unwrap().certificate;
    let gone = certificate.deleted.airflow.unwrap();
    assert_eq!(gone.dags, ["polder_401_ingest"]);
    assert!(gone.url.starts_with(&url));
    assert_eq!(certificate.verification.airflow_dags, Some(0));
    let named = certificate.remains.iter().filter(|one| one.what.contains("Airflow")).count();
    assert_eq!(named, 2, "its audit log, and the files that DAGs are made from");
    assert_eq!(airflow.ids(), ["polder_402_ingest"]);
}

/// Races of runs with an erasure; `POLDER_RACES` asks for more.
fn races() -> u64 {
    std::env::var("POLDER_RACES").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_back_in_races_of_runs_with_an_erasure() {
    let written = AtomicUsize::new(0);
    for race in 0..races() {
        let scratch = Scratch::new();
        // Each as another process would: connections and caches of their own.
        let (worker, eraser) = (scratch.worker().await, scratch.eraser().await);
        run(&worker, "402").await.unwrap();
        let other = state_of(&eraser.lake, "402").await;
        if race % 5 > 0 {
            run(&worker, "401").await.unwrap();
        } else {
            // Leaves while its first run makes its namespace.
            assert!(!eraser.lake.knows(&org("401")).await.unwrap());
        }
        let mut workers = JoinSet::new();
        let first = Arc::new(tokio::sync::Notify::new());
        for _ in 0..2 {
            let (worker, ran) = (scratch.worker().await, Arc::clone(&first));
            workers.spawn(async move {
                let mut runs = 0;
                loop {
                    match run(&worker, "401").await {
                        Ok(()) => {
                            runs += 1;
                            ran.notify_one();
                        }
                        Err(error) if error.code() == ErrorCode::LakeFenced => return runs,
                        // Of two runs of one table, one may lose.
                        Err(error) if error.retryable() => {}
                        Err(error) => panic!("race {race}: {error:?}"),
                    }
                }
            });
        }
        if race % 5 > 0 && race % 3 > 0 {
            // However busy the machine is, runs are under way.
            tokio::time::timeout(Duration::from_mins(1), first.notified()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(race * 7 % 40)).await;
        eraser.take(&org("401"), &notice("e1")).await.unwrap();
        let done = eraser.carry_out("e1").await.unwrap();
        while let Some(runs) = workers.join_next().await {
            written.fetch_add(runs.unwrap(), Ordering::Relaxed);
        }
        SignedCertificate::parse(&done.certificate.unwrap()).unwrap();
        assert_eq!(scratch.found(CANARY), Vec::<String>::new(), "race {race}");
        assert!(runs::latest(&eraser.store, &org("401"), 9).await.unwrap().is_empty());
        let entries = eraser.lake.org_entries(&org("401")).await.unwrap();
        assert_eq!(entries.count, 0, "race {race}");
        assert!(eraser.lake.org_files(&org("401")).await.unwrap().is_empty(), "race {race}");
        assert_eq!(state_of(&eraser.lake, "402").await, other, "race {race}");
    }
    let written = written.into_inner();
    assert!(written as u64 > races() * 2 / 5, "the runs were never in the way: {written}");
}
