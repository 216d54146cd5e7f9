//! Commits whose answers are lost, and stores that fail: every acknowledged row once, no failure
//! reported for a commit that landed, no file removed that metadata names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{
    Catalog, CmpOp, CommitFailure, Lake, Literal, Predicate, ScanRequest, SqlCatalog, StageKind,
    Store, TableState,
};
use uuid::Uuid;

use crate::support::*;

/// What happens to one attempt to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The commit lands, its answer is lost.
    LandsUnanswered,
    /// Nothing is sent, and no answer comes.
    NotSent,
    /// The commit lands, the transport sends it again, and the client sees a conflict.
    LandsThenConflict,
    /// A definite refusal.
    Refused,
    /// The commit lands, its answer is lost, and the table cannot be read for a long time.
    LandsThenDark,
}

#[derive(Debug)]
struct Faulty {
    inner: SqlCatalog,
    /// The faults of the next attempts; none when used up.
    faults: Mutex<Vec<Fault>>,
    attempts: AtomicUsize,
    /// Loads that fail from now on.
    dark: AtomicUsize,
}

fn unknown() -> CommitFailure {
    CommitFailure::Unknown(Error::new(ErrorCode::LakeUnknownOutcome, "no answer"))
}

#[async_trait]
impl Catalog for Faulty {
    async fn namespaces(&self) -> Result<Vec<String>> {
        self.inner.namespaces().await
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.inner.namespace(name).await
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.inner.ensure_namespace(name, properties).await
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        self.inner.tables(namespace).await
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        let dark = self.dark.load(Ordering::SeqCst);
        if dark > 0 {
            self.dark.store(dark - 1, Ordering::SeqCst);
            return Err(Error::new(ErrorCode::LakeUnavailable, "the catalog is away"));
        }
        self.inner.load(ident).await
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.lock().expect("faults").pop().unwrap_or(Fault::None);
        let forward = || self.inner.commit(ident, requirements, updates);
        match fault {
            Fault::None => forward().await,
            Fault::LandsUnanswered => forward().await.and(Err(unknown())),
            Fault::NotSent => Err(unknown()),
            Fault::LandsThenConflict => {
                let conflict = Error::new(ErrorCode::LakeConflict, "409");
                forward().await.and(Err(CommitFailure::Conflict(conflict)))
            }
            Fault::Refused => {
                let refused = Error::new(ErrorCode::LakeFailed, "refused");
                Err(CommitFailure::Rejected(refused))
            }
            Fault::LandsThenDark => {
                self.dark.store(1_000, Ordering::SeqCst);
                forward().await.and(Err(unknown()))
            }
        }
    }
}

struct Faults {
    scratch: Scratch,
    lake: Lake,
    catalog: Arc<Faulty>,
}

impl Faults {
    async fn new() -> Self {
        let scratch = Scratch::new().await;
        let settings = Scratch::settings(&scratch.folder);
        let store = Store::open(&settings).expect("store");
        let inner = Scratch::catalog(&settings, store.clone()).await;
        let catalog = Arc::new(Faulty {
            inner,
            faults: Mutex::default(),
            attempts: AtomicUsize::new(0),
            dark: AtomicUsize::new(0),
        });
        let lake = Lake::new(store, Arc::clone(&catalog) as Arc<dyn Catalog>);
        Self { scratch, lake, catalog }
    }

    fn next(&self, faults: &[Fault]) {
        let mut faults = faults.to_vec();
        faults.reverse();
        *self.catalog.faults.lock().expect("faults") = faults;
        self.catalog.attempts.store(0, Ordering::SeqCst);
    }

    fn attempts(&self) -> usize {
        self.catalog.attempts.load(Ordering::SeqCst)
    }

    /// All files but the states of the table.
    fn files(&self) -> Vec<String> {
        let mut files = self.scratch.files("");
        files.retain(|path| !path.ends_with(".metadata.json"));
        files
    }

    /// The rows as another process sees them: the faulty catalog is not asked.
    async fn ids(&self) -> Vec<i64> {
        ids(&table(&self.scratch.lake, "t").await).await
    }
}

#[tokio::test]
async fn lost_answers_neither_double_nor_lose_rows() {
    use Fault::{LandsThenConflict, LandsUnanswered, NotSent};
    for kind in [StageKind::Append, StageKind::Replace] {
        let lake = Faults::new().await;
        let schema = id_and_text();
        // Creating is a commit as well.
        lake.next(&[LandsUnanswered]);
        run(&lake.lake, "t", request(StageKind::Replace, &schema), &[rows(0..1)])
            .await
            .expect("create");
        let cases: [(&[Fault], usize); 4] = [
            (&[LandsUnanswered], 1),
            (&[NotSent, NotSent], 3),
            (&[LandsThenConflict], 1),
            (&[NotSent, LandsUnanswered], 2),
        ];
        let mut expected = vec![0];
        // When the run stages, and when it publishes.
        let places =
            cases.into_iter().flat_map(|case| [(case, &[][..]), (case, &[Fault::None][..])]);
        for (number, ((faults, attempts), before)) in places.enumerate() {
            let faults = [before, faults].concat();
            lake.next(&faults);
            let id = number as i64 + 1;
            let done = run(&lake.lake, "t", request(kind, &schema), &[rows(id..id + 1)])
                .await
                .expect("landed");
            assert!(!done.already, "this very call made it");
            assert_eq!(lake.attempts(), attempts + 1, "{faults:?}");
            if kind == StageKind::Replace {
                expected.clear();
            }
            expected.push(id);
            assert_eq!(lake.ids().await, expected, "{kind:?} {faults:?}");
        }
        let versions = table(&lake.scratch.lake, "t").await.refs().len() - 1;
        assert_eq!(versions, if kind == StageKind::Replace { 9 } else { 1 });
    }
}

#[tokio::test]
async fn a_refused_commit_leaves_nothing_behind() {
    let lake = Faults::new().await;
    run(&lake.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let before = lake.files();
    // When it is staged, and when it is published: then it is taken out of the table again.
    for (faults, attempts) in [(&[Fault::Refused][..], 1), (&[Fault::None, Fault::Refused], 3)] {
        lake.next(faults);
        let more = request(StageKind::Append, &id_and_text());
        let error = run(&lake.lake, "t", more, &[rows(1..2)]).await.expect_err("refused");
        assert_eq!((error.code(), lake.attempts()), (ErrorCode::LakeFailed, attempts));
        assert_eq!((lake.files(), lake.ids().await), (before.clone(), vec![0]), "{faults:?}");
        assert_eq!(table(&lake.scratch.lake, "t").await.snapshots().len(), 1);
    }
}

#[tokio::test]
async fn an_outcome_that_cannot_be_learnt_is_said_so_and_found_later() {
    let lake = Faults::new().await;
    run(&lake.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let more = request(StageKind::Append, &id_and_text());
    lake.next(&[Fault::None, Fault::LandsThenDark]);
    let error = run(&lake.lake, "t", more.clone(), &[rows(1..2)]).await.expect_err("dark");
    assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome);
    assert!(error.retryable());
    assert_eq!(lake.ids().await, [0, 1], "it had landed, and its files are there");
    lake.catalog.dark.store(0, Ordering::SeqCst);
    let found = run(&lake.lake, "t", more, &[rows(1..2)]).await.expect("found");
    assert!(found.already);
    assert_eq!(lake.ids().await, [0, 1]);
}

#[tokio::test]
async fn unclear_attempts_that_never_land_end_as_unknown_and_keep_the_files() {
    let lake = Faults::new().await;
    run(&lake.lake, "t", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    lake.next(&[Fault::NotSent; 20]);
    let more = request(StageKind::Append, &id_and_text());
    let error = run(&lake.lake, "t", more.clone(), &[rows(0..1)]).await.expect_err("unknown");
    assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome);
    assert_eq!(lake.scratch.files(".parquet").len(), 1);
    lake.next(&[]);
    run(&lake.lake, "t", more, &[rows(0..1)]).await.expect("at last");
    assert_eq!(lake.ids().await, [0]);
}

#[tokio::test]
async fn a_missing_data_folder_is_an_error_and_not_an_empty_table() {
    let scratch = Scratch::new().await;
    run(&scratch.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let now = table(&scratch.lake, "t").await;
    for path in scratch.files(".metadata.json") {
        std::fs::remove_file(path).expect("remove");
    }
    let lake = Lake::open(Scratch::settings(&scratch.folder)).await.expect("lake");
    let error = lake.table(&org("401"), "t").await.expect_err("missing");
    assert_eq!(error.code(), ErrorCode::LakeCorrupt);
    for path in scratch.files(".avro") {
        std::fs::remove_file(path).expect("remove");
    }
    let scan = polder_lake::ScanRequest {
        snapshot: None,
        filter: polder_lake::Predicate::True,
        columns: None,
    };
    assert!(now.read(scan).await.is_err());
}

/// What a commit can do to a table of the ids 0 to 2 (`v1`), then 3 to 5 added.
#[derive(Clone, Copy, Debug)]
enum Change {
    AppendFiles,
    ReplaceTable,
    RewriteFiles,
    OverwriteFiles,
    DeleteFiles,
    RowDelta,
    Rollback,
}

const CHANGES: [Change; 7] = [
    Change::AppendFiles,
    Change::ReplaceTable,
    Change::RewriteFiles,
    Change::OverwriteFiles,
    Change::DeleteFiles,
    Change::RowDelta,
    Change::Rollback,
];

impl Change {
    /// The ids after the change.
    fn expected(self) -> &'static [i64] {
        match self {
            Self::AppendFiles => &[0, 1, 2, 3, 4, 5, 6],
            Self::ReplaceTable => &[6],
            Self::RewriteFiles => &[0, 1, 2, 3, 4, 5],
            Self::OverwriteFiles => &[3, 4, 5, 6],
            Self::DeleteFiles => &[3, 4, 5],
            Self::RowDelta => &[0, 2, 3, 4, 5, 6],
            Self::Rollback => &[0, 1, 2],
        }
    }

    async fn make(self, lake: &Lake) -> Result<()> {
        let schema = id_and_text();
        let now = table(lake, "t").await;
        let below_3 =
            Predicate::Cmp { column: "id".to_owned(), op: CmpOp::Lt, value: Literal::Long(3) };
        let scan = ScanRequest { snapshot: None, filter: below_3.clone(), columns: None };
        let first = now.plan(scan).await?.files;
        let old: Vec<String> = first.iter().map(|file| file.path.clone()).collect();
        let stage = || lake.stage_on(&now, request(StageKind::Files, &schema));
        match self {
            Self::AppendFiles | Self::ReplaceTable => {
                let appends = matches!(self, Self::AppendFiles);
                let kind = if appends { StageKind::Append } else { StageKind::Replace };
                run(lake, "t", request(kind, &schema), &[rows(6..7)]).await.map(drop)
            }
            Self::RewriteFiles => {
                let stage = stage()?;
                let files = written(&stage, &[rows(0..3)]).await;
                stage.rewrite_files(old, files).await.map(drop)
            }
            Self::OverwriteFiles => {
                let stage = stage()?;
                let files = written(&stage, &[rows(6..7)]).await;
                stage.overwrite_files(below_3, old, files).await.map(drop)
            }
            Self::DeleteFiles => stage()?.delete_files(old).await.map(drop),
            Self::RowDelta => {
                let stage = stage()?;
                let files = written(&stage, &[rows(6..7)]).await;
                let deletes = stage.write_deletes(&[(first[0].clone(), vec![1])]).await?;
                stage.row_delta(deletes, files).await.map(drop)
            }
            Self::Rollback => lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await.map(drop),
        }
    }
}

async fn before_a_change() -> Faults {
    let lake = Faults::new().await;
    let schema = id_and_text();
    run(&lake.lake, "t", request(StageKind::Replace, &schema), &[rows(0..3)])
        .await
        .expect("create");
    run(&lake.lake, "t", request(StageKind::Append, &schema), &[rows(3..6)]).await.expect("append");
    lake
}

#[tokio::test]
async fn every_change_is_made_once_whatever_becomes_of_the_answer() {
    use Fault::{LandsThenConflict, LandsUnanswered, NotSent};
    let cases: [&[Fault]; 5] =
        [&[], &[LandsUnanswered], &[NotSent], &[LandsThenConflict], &[NotSent, LandsUnanswered]];
    for change in CHANGES {
        for faults in cases {
            let lake = before_a_change().await;
            lake.next(faults);
            change.make(&lake.lake).await.expect("made");
            assert_eq!(lake.ids().await, change.expected(), "{change:?} {faults:?}");
            let snapshots = table(&lake.scratch.lake, "t").await.snapshots().len();
            let made = usize::from(!matches!(change, Change::Rollback));
            assert_eq!(snapshots, 2 + made, "{change:?} {faults:?}");
        }
    }
}

#[tokio::test]
async fn a_change_that_is_refused_leaves_no_file_and_one_of_unknown_outcome_all() {
    for change in CHANGES {
        let lake = before_a_change().await;
        let before = lake.files();
        // A run stages first.
        let runs = matches!(change, Change::AppendFiles | Change::ReplaceTable);
        let staged: &[Fault] = if runs { &[Fault::None] } else { &[] };
        lake.next(&[staged, &[Fault::Refused]].concat());
        let error = change.make(&lake.lake).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::LakeFailed, "{change:?}");
        assert_eq!(lake.files(), before, "{change:?}");
        assert_eq!(lake.ids().await, [0, 1, 2, 3, 4, 5], "{change:?}");
        lake.next(&[staged, &[Fault::LandsThenDark]].concat());
        let error = change.make(&lake.lake).await.expect_err("dark");
        assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome, "{change:?}");
        assert_eq!(lake.ids().await, change.expected(), "{change:?}: it had landed");
    }
}
