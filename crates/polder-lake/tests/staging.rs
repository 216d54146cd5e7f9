//! Write – audit – publish: what is on the branch `staging` and what readers of `main` see, audits
//! that fail, and `main` moving meanwhile.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::retention::Retention;
use polder_core::{Error, ErrorCode, Field, LakeType, Result};
use polder_lake::{
    Catalog, CommitFailure, Lake, Predicate, RefKind, ScanRequest, SqlCatalog, StageKind,
    StageRequest, Store, TableState,
};
use uuid::Uuid;

use crate::between::{Between, Through};
use crate::faulty::{check, files};
use crate::support::*;

type Hook = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// The embedded catalog, with something to do after the next commit has landed.
struct Watched {
    inner: SqlCatalog,
    hook: Mutex<Option<Hook>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

#[async_trait]
impl Between for Watched {
    fn inner(&self) -> &dyn Catalog {
        &self.inner
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let done = self.inner.commit(ident, requirements, updates).await?;
        let hook = self.hook.lock().expect("hook").take();
        if let Some(hook) = hook {
            hook().await;
        }
        Ok(done)
    }
}

/// A lake whose commits are watched, and the same lake as everybody else sees it.
struct Watch {
    scratch: Scratch,
    lake: Lake,
    catalog: Arc<Watched>,
}

/// A lake whose commits are watched.
async fn watched(scratch: &Scratch) -> (Lake, Arc<Watched>) {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let inner = Scratch::catalog(&settings, store.clone()).await;
    let catalog = Arc::new(Watched { inner, hook: Mutex::default() });
    (Lake::new(store, Through::catalog(&catalog)), catalog)
}

impl Watch {
    async fn new() -> Self {
        let scratch = Scratch::new().await;
        let (lake, catalog) = watched(&scratch).await;
        Self { scratch, lake, catalog }
    }

    /// A table with the ids 0 to 2.
    async fn with_table() -> Self {
        let watch = Self::new().await;
        run(&watch.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..3)])
            .await
            .expect("create");
        watch
    }

    /// What happens after the next commit: when a run has staged and not yet published.
    fn once_staged<F>(&self, hook: impl FnOnce(Lake) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let lake = self.scratch.lake.clone();
        *self.catalog.hook.lock().expect("hook") = Some(Box::new(move || hook(lake).boxed()));
    }

    async fn ids(&self) -> Vec<i64> {
        ids(&table(&self.scratch.lake, "t").await).await
    }

    async fn names(&self) -> Vec<String> {
        let refs = table(&self.scratch.lake, "t").await.refs();
        refs.into_iter().map(|found| found.name).collect()
    }
}

fn append() -> StageRequest {
    request(StageKind::Append, &id_and_text())
}

/// The ids that a branch, tag or snapshot has.
async fn ids_at(lake: &Lake, version: &str) -> Vec<i64> {
    let now = table(lake, "t").await;
    let snapshot = Some(now.resolve(version).expect("a version"));
    longs(&read_at(&now, snapshot, Predicate::True).await, "id")
}

#[tokio::test]
async fn until_it_is_audited_a_state_is_on_the_branch_staging_alone() {
    let watch = Watch::with_table().await;
    watch.once_staged(|lake| async move {
        let now = table(&lake, "t").await;
        assert_eq!(ids(&now).await, [0, 1, 2], "readers of main see the old rows");
        assert_eq!(now.schema().fields.len(), 2, "and the old columns");
        assert_eq!(now.partition(), []);
        let staging = now.refs().into_iter().find(|found| found.name == "staging");
        assert_eq!(staging.expect("staging").kind, RefKind::Branch);
        assert_eq!(ids_at(&lake, "staging").await, [0, 1, 2, 3]);
        assert_eq!(now.run_ids().len(), 1, "the run has not published");
    });
    let mut columns = id_and_text();
    columns.fields.push(Field::new("more", LakeType::Long));
    let more: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let mut values = rows(3..4).columns().to_vec();
    values.push(more);
    let partition = vec!["more".parse().expect("partition")];
    let request = StageRequest { partition, ..request(StageKind::Append, &columns) };
    let done = run(&watch.lake, "t", request, &[batch(&columns, values)]).await.expect("append");
    let now = table(&watch.scratch.lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3]);
    assert_eq!((now.schema().fields.len(), now.partition().len()), (3, 1));
    assert_eq!(now.current_snapshot().map(|found| found.id), Some(done.snapshot_id));
    assert_eq!(watch.names().await, ["main", "v1"], "staging is gone");
}

#[tokio::test]
async fn a_first_load_is_an_empty_table_until_it_is_published() {
    let watch = Watch::new().await;
    watch.once_staged(|lake| async move {
        let now = table(&lake, "t").await;
        assert_eq!((ids(&now).await, now.current_snapshot()), (vec![], None));
        assert_eq!(now.checkpoint().expect("checkpoint"), None);
        assert_eq!(ids_at(&lake, "staging").await, [0, 1, 2]);
    });
    let request = request(StageKind::Replace, &id_and_text());
    let done = run(&watch.lake, "t", request, &[rows(0..3)]).await.expect("create");
    assert_eq!(done.version.as_deref(), Some("v1"));
    assert_eq!((watch.ids().await, watch.names().await), (vec![0, 1, 2], names(&["main", "v1"])));
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What happens to the newest data file of the warehouse between writing and publishing.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Removed,
    CutShort,
    Longer,
    /// Of the same length, with a footer that says nothing.
    Footer,
    /// Of the same length, with a footer that says other extremes of the texts.
    Extremes,
    ManifestRemoved,
    ListRemoved,
}

const DAMAGES: [Damage; 7] = [
    Damage::Removed,
    Damage::CutShort,
    Damage::Longer,
    Damage::Footer,
    Damage::Extremes,
    Damage::ManifestRemoved,
    Damage::ListRemoved,
];

fn damage(damage: Damage, path: &str) {
    let bytes = std::fs::read(path).expect("a file");
    let changed = match damage {
        Damage::Removed | Damage::ManifestRemoved | Damage::ListRemoved => {
            return std::fs::remove_file(path).expect("remove");
        }
        Damage::CutShort => bytes[..bytes.len() - 1].to_vec(),
        Damage::Longer => [bytes.as_slice(), b"x"].concat(),
        Damage::Footer => {
            let (rest, end) = bytes.split_at(bytes.len() - 8);
            let length = u32::from_le_bytes(end[..4].try_into().expect("four bytes")) as usize;
            let (data, footer) = rest.split_at(rest.len() - length);
            [data, &vec![0; footer.len()], end].concat()
        }
        Damage::Extremes => {
            let (rest, end) = bytes.split_at(bytes.len() - 8);
            let length = u32::from_le_bytes(end[..4].try_into().expect("four bytes")) as usize;
            let (data, footer) = rest.split_at(rest.len() - length);
            let mut footer = footer.to_vec();
            let places: Vec<usize> =
                (0..footer.len()).filter(|at| footer[*at..].starts_with(b"row 3")).collect();
            assert!(!places.is_empty(), "the footer has the extremes");
            for at in places {
                footer[at..at + 5].copy_from_slice(b"row 9");
            }
            [data, &footer, end].concat()
        }
    };
    std::fs::write(path, changed).expect("write");
}

#[tokio::test]
async fn a_failed_audit_publishes_nothing_and_leaves_nothing() {
    for kind in [StageKind::Append, StageKind::Replace] {
        for case in DAMAGES {
            let watch = Watch::with_table().await;
            let before = watch.scratch.files("");
            let (files, all) = (before.clone(), watch.scratch.folder.path().join("lake"));
            watch.once_staged(move |_| async move {
                let mut new = files_below(&all);
                new.retain(|path| !files.contains(path));
                let target = new.iter().find(|path| match case {
                    Damage::ManifestRemoved => path.ends_with("-m0.avro"),
                    Damage::ListRemoved => path.contains("/snap-"),
                    _ => path.ends_with(".parquet"),
                });
                damage(case, target.expect("a new file"));
            });
            let request = request(kind, &id_and_text());
            let error = run(&watch.lake, "t", request, &[rows(3..4)]).await.expect_err("audit");
            assert_eq!(error.code(), ErrorCode::LakeAuditFailed, "{case:?}: {error}");
            assert_eq!(watch.ids().await, [0, 1, 2], "{case:?}");
            assert_eq!(watch.names().await, ["main", "v1"], "{case:?}");
            assert_eq!(table(&watch.scratch.lake, "t").await.snapshots().len(), 1, "{case:?}");
            let mut after = watch.scratch.files("");
            after.retain(|path| !path.ends_with(".metadata.json"));
            let kept: Vec<_> =
                before.into_iter().filter(|path| !path.ends_with(".metadata.json")).collect();
            assert_eq!(after, kept, "{case:?}");
        }
    }
}

/// Another commit of `main` while a run is audited is borne as before: the snapshot is made anew on
/// top of it.
#[tokio::test]
async fn a_run_is_staged_anew_when_main_moves_meanwhile() {
    for kind in [StageKind::Append, StageKind::Replace] {
        let watch = Watch::with_table().await;
        watch.once_staged(|lake| async move {
            let now = table(&lake, "t").await;
            let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
            let old = now.plan(scan).await.expect("plan").files;
            let old = old.into_iter().map(|file| file.path).collect();
            let stage = lake.stage_on(&now, request(StageKind::Files, &id_and_text()));
            let stage = stage.expect("stage");
            let files = written(&stage, &[rows(0..3)]).await;
            stage.rewrite_files(old, files).await.expect("a rewrite");
        });
        let mut columns = id_and_text();
        columns.fields.push(Field::new("more", LakeType::Long));
        let mut values = rows(3..4).columns().to_vec();
        values.push(Arc::new(Int64Array::from(vec![7])));
        let request = request(kind, &columns);
        let done = run(&watch.lake, "t", request, &[batch(&columns, values)]).await.expect("run");
        let now = table(&watch.scratch.lake, "t").await;
        let expected: &[i64] = if kind == StageKind::Replace { &[3] } else { &[0, 1, 2, 3] };
        assert_eq!(ids(&now).await, expected, "{kind:?}");
        assert_eq!(now.current_snapshot().map(|found| found.id), Some(done.snapshot_id));
        assert_eq!(now.snapshots().len(), 3, "{kind:?}: the run has one snapshot");
        assert!(!watch.names().await.contains(&"staging".to_owned()));
    }
}

/// Two runs of one table: whoever publishes first wins, and the other learns of it.
#[tokio::test]
async fn of_two_runs_that_are_staged_at_the_same_time_one_publishes() {
    let watch = Watch::with_table().await;
    watch.once_staged(|lake| async move {
        run(&lake, "t", append(), &[rows(10..11)]).await.expect("the faster run");
    });
    let error = run(&watch.lake, "t", append(), &[rows(3..4)]).await.expect_err("the slower run");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(watch.ids().await, [0, 1, 2, 10]);
    assert_eq!(watch.names().await, ["main", "v1"]);
    assert_eq!(table(&watch.scratch.lake, "t").await.snapshots().len(), 2);
}

/// Two processes that take the same run for theirs, both alive: what one publishes, the other does not
/// take away, and what the other has staged goes.
#[tokio::test]
async fn what_another_attempt_of_the_run_publishes_is_left_to_it() {
    let watch = Watch::with_table().await;
    let (second, second_catalog) = watched(&watch.scratch).await;
    let run_id = Uuid::new_v4();
    let attempt = move |lake: Lake| async move {
        run(&lake, "t", StageRequest { run_id, ..append() }, &[rows(3..4)]).await
    };
    let (staged, seen) = tokio::sync::oneshot::channel();
    let (go_on, told) = tokio::sync::oneshot::channel();
    watch.once_staged(|_| async move {
        staged.send(()).expect("somebody waits");
        told.await.expect("a word");
    });
    let (ended, outcome) = tokio::sync::oneshot::channel();
    let first = watch.lake.clone();
    let mut attempts = tokio::task::JoinSet::new();
    attempts.spawn(async move { ended.send(attempt(first).await).expect("somebody waits") });
    seen.await.expect("staged");
    // The second one has staged too when the first one goes on, to the end.
    let hook = move || async move {
        go_on.send(()).expect("the first one waits");
        let done = outcome.await.expect("an end").expect("published");
        assert!(!done.already);
    };
    *second_catalog.hook.lock().expect("hook") = Some(Box::new(move || hook().boxed()));
    let done = attempt(second).await.expect("it is published");
    assert!(done.already, "by the first one");
    assert_eq!(watch.ids().await, [0, 1, 2, 3]);
    assert_eq!(watch.names().await, ["main", "v1"]);
    assert_eq!(table(&watch.scratch.lake, "t").await.snapshots().len(), 2);
    let lake = &watch.scratch.lake;
    let reached = check::check(lake, &table(lake, "t").await).await.files;
    let mut left = files(lake, table(lake, "t").await.location()).await;
    left.retain(|file| !reached.contains(file) && !file.ends_with(".metadata.json"));
    assert!(left.is_empty(), "{left:?}");
}

/// An attempt that is made after another was killed publishes, and the other's files go.
#[tokio::test]
async fn the_files_of_an_attempt_that_was_killed_go_once_the_run_is_published() {
    let watch = Watch::with_table().await;
    let request = StageRequest { run_id: Uuid::new_v4(), ..append() };
    let (staged, seen) = tokio::sync::oneshot::channel();
    watch.once_staged(|_| async move {
        staged.send(()).expect("somebody waits");
        std::future::pending::<()>().await;
    });
    let (lake, same) = (watch.lake.clone(), request.clone());
    let mut killed = tokio::task::JoinSet::new();
    killed.spawn(async move { run(&lake, "t", same, &[rows(3..4)]).await.map(drop) });
    seen.await.expect("staged");
    killed.shutdown().await;
    let parquet = watch.scratch.files(".parquet").len();
    let during = watch.scratch.folder.path().join("lake");
    watch.once_staged(move |_| async move {
        let files = files_below(&during);
        let there = files.iter().filter(|path| path.ends_with(".parquet")).count();
        assert_eq!(there, parquet + 1, "it may yet be alive");
    });
    let done = run(&watch.lake, "t", request, &[rows(3..4)]).await.expect("the next attempt");
    assert!(!done.already);
    assert_eq!(watch.ids().await, [0, 1, 2, 3]);
    assert_eq!(watch.scratch.files(".parquet").len(), parquet, "the killed one's went");
    assert_eq!(table(&watch.scratch.lake, "t").await.snapshots().len(), 2);
}

/// A run that is killed between staging and publishing, and what remains of it.
#[tokio::test]
async fn a_killed_run_leaves_main_alone_and_stays_for_a_day() {
    let watch = Watch::with_table().await;
    let (staged, seen) = tokio::sync::oneshot::channel();
    watch.once_staged(|_| async move {
        staged.send(()).expect("somebody waits");
        std::future::pending::<()>().await;
    });
    let lake = watch.lake.clone();
    let mut killed = tokio::task::JoinSet::new();
    killed.spawn(async move { run(&lake, "t", append(), &[rows(3..4)]).await.map(drop) });
    seen.await.expect("staged");
    killed.shutdown().await;
    assert_eq!(watch.ids().await, [0, 1, 2]);
    assert_eq!(watch.names().await, ["main", "staging", "v1"]);

    let org = org("401");
    let lake = &watch.scratch.lake;
    let staging = table(lake, "t").await.resolve("staging").expect("staging");
    for to in ["staging".to_owned(), staging.to_string()] {
        let error = lake.rollback(&org, "t", &to, Uuid::new_v4()).await.expect_err("unpublished");
        assert_eq!(error.code(), ErrorCode::LakeNotFound);
    }
    let retention = Retention { versions: 2, history_ms: i64::MAX, history_min: 1 };
    let kept = lake.expire(&org, "t", &retention, Uuid::new_v4()).await.expect("expire");
    assert_eq!(kept.snapshots, 0, "it may still be audited");

    run(lake, "t", append(), &[rows(4..5)]).await.expect("the next run");
    assert_eq!(watch.ids().await, [0, 1, 2, 4]);
    assert_eq!(watch.names().await, ["main", "v1"]);
    // Nothing names it any more; for a day nobody knows that its run is gone.
    let all = Retention { history_ms: -1, ..retention };
    let parquet = watch.scratch.files(".parquet").len();
    let kept = lake.expire(&org, "t", &all, Uuid::new_v4()).await.expect("expire");
    assert_eq!((kept.snapshots, watch.scratch.files(".parquet").len()), (0, parquet));
    assert!(table(lake, "t").await.snapshots().iter().any(|found| found.id == staging));
    assert_eq!(watch.ids().await, [0, 1, 2, 4]);
}

/// What an expiry has to leave to a staged snapshot goes with that one, whether another takes its place
/// or it is withdrawn.
#[tokio::test]
async fn what_only_an_unpublished_snapshot_reached_goes_with_it() {
    const NONE: Retention = Retention { versions: 1, history_ms: -1, history_min: 1 };
    for withdrawn in [false, true] {
        let watch = Watch::with_table().await;
        run(&watch.lake, "t", append(), &[rows(3..4)]).await.expect("append");
        watch.once_staged(move |lake| async move {
            // The staged snapshot has the appended file's manifest, and soon no other one has.
            let now = table(&lake, "t").await;
            let request = request(StageKind::Files, &id_and_text());
            let stage = lake.stage_on(&now, request).expect("stage");
            let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
            let old = now.plan(scan).await.expect("plan").files;
            let old: Vec<String> = old.into_iter().map(|file| file.path).collect();
            let files = written(&stage, &[rows(0..4)]).await;
            stage.rewrite_files(old, files).await.expect("rewrite");
            if withdrawn {
                // What the staged run has found new may not be new any more.
                run(&lake, "t", append(), &[rows(8..9)]).await.expect("append");
            }
            lake.expire(&org("401"), "t", &NONE, Uuid::new_v4()).await.expect("expire");
        });
        let done = run(&watch.lake, "t", append(), &[rows(4..5)]).await;
        assert_eq!(done.is_err(), withdrawn, "{done:?}");
        let lake = &watch.scratch.lake;
        lake.expire(&org("401"), "t", &NONE, Uuid::new_v4()).await.expect("expire");
        let reached = check::check(lake, &table(lake, "t").await).await.files;
        let mut left = files(lake, table(lake, "t").await.location()).await;
        left.retain(|file| !reached.contains(file) && !file.ends_with(".metadata.json"));
        assert!(left.is_empty(), "withdrawn: {withdrawn}, {left:?}");
    }
}

/// Refuses all commits of a run but the two of staging, between which others change the table.
struct Contended {
    inner: SqlCatalog,
    others: Lake,
    commits: AtomicUsize,
}

impl fmt::Debug for Contended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contended").finish_non_exhaustive()
    }
}

#[async_trait]
impl Between for Contended {
    fn inner(&self) -> &dyn Catalog {
        &self.inner
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        match self.commits.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let done = self.inner.commit(ident, requirements, updates).await;
                let now = table(&self.others, "t").await;
                let stage = self.others.stage_on(&now, request(StageKind::Files, &id_and_text()));
                let stage = stage.expect("stage");
                let files = written(&stage, &[rows(10..11)]).await;
                stage.append_files(files).await.expect("another engine");
                done
            }
            1 => {
                run(&self.others, "t", append(), &[rows(11..12)]).await.expect("another run");
                self.inner.commit(ident, requirements, updates).await
            }
            _ => {
                let busy = Error::new(ErrorCode::LakeConflict, "somebody is always faster");
                Err(CommitFailure::Conflict(busy))
            }
        }
    }
}

/// A snapshot that cannot be withdrawn stays until it expires; what a later attempt of the run has
/// written, and no state has, does not.
#[tokio::test]
async fn what_never_landed_goes_even_if_what_did_cannot_be_withdrawn() {
    let scratch = Scratch::new().await;
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let inner = Scratch::catalog(&settings, store.clone()).await;
    let others = scratch.lake.clone();
    run(&others, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..3)])
        .await
        .expect("create");
    let catalog = Arc::new(Contended { inner, others, commits: AtomicUsize::new(0) });
    let lake = Lake::new(store, Through::catalog(&catalog));
    let error = run(&lake, "t", append(), &[rows(3..4)]).await.expect_err("contended");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert!(catalog.commits.load(Ordering::Relaxed) > 2, "it tried to withdraw");
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 10, 11]);
    assert_eq!(now.snapshots().len(), 4, "one of them is not published");
    let reached = check::check(&scratch.lake, &now).await.files;
    let mut left = files(&scratch.lake, now.location()).await;
    left.retain(|file| !reached.contains(file));
    assert!(left.is_empty(), "{left:?}");
}
