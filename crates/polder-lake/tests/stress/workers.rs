//! Who works on the table: writers with ids of their own, and those who change all of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, new_null_array};
use async_trait::async_trait;
use futures::TryStreamExt;
use polder_core::{ErrorCode, Field, LakeType, Result, TableSchema};
use polder_lake::{
    CmpOp, Gate, Lake, LakeTable, Literal, Predicate, RowDelta, ScanFile, ScanRequest,
    SnapshotInfo, Stage, StageKind, StageRequest, StagedFile,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::ledger::{Effect, Kind, Ledger};
use super::{PATIENCE, RETENTION, WRITERS, World};
use crate::faulty::catalog::Fault;
use crate::faulty::changes::staged;
use crate::support::*;

/// The ids of writer `n` are from `n` times this on.
const RANGE: i64 = 1_000_000;
/// One commit in so many meets a fault.
const FAULT_EVERY: u32 = 6;
const FAULTS: [Fault; 8] = [
    Fault::AfterSend,
    Fault::AnswerLost,
    Fault::ConflictAfterLanding,
    Fault::Error500Landed,
    Fault::Busy503,
    Fault::LateBeforeTheNext,
    Fault::LateAtTheEnd,
    Fault::Slow,
];
/// States that a rollback goes back at most.
const BACK_MAX: usize = 4;
/// Columns beside `id` and `text`.
const MORE_COLUMNS_MAX: usize = 4;
/// How often a merge is made anew on a newer state, as other runs are faster.
const MERGES_MAX: usize = 8;

pub(super) struct Worker {
    pub(super) world: Arc<World>,
    number: i64,
    next_id: i64,
    random: StdRng,
}

impl Worker {
    pub(super) fn new(world: &Arc<World>, number: i64) -> Self {
        let random = StdRng::seed_from_u64(number as u64);
        Self { world: Arc::clone(world), number, next_id: number * RANGE, random }
    }

    pub(super) fn lake(&self) -> &Lake {
        &self.world.lakes[self.number as usize % self.world.lakes.len()]
    }

    pub(super) async fn now(&self) -> LakeTable {
        let found = self.lake().table(&self.world.org, &self.world.table).await;
        found.expect("load").expect("table")
    }

    /// Until the time is up; on a busy machine, until there is something to judge.
    pub(super) fn goes_on(&self) -> bool {
        let (now, world) = (Instant::now(), &self.world);
        now < world.until || now < world.until + PATIENCE && !self.has_enough()
    }

    fn has_enough(&self) -> bool {
        self.world.ledger.acknowledged() >= WRITERS as usize
    }

    pub(super) async fn pause(&mut self, most_ms: u64) {
        let pause = self.random.random_range(most_ms / 2..=most_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn fresh(&mut self) -> Vec<i64> {
        let first = self.next_id;
        self.next_id += self.random.random_range(1..6);
        (first..self.next_id).collect()
    }

    /// A stage on the state, and perhaps a fault for whoever commits next.
    fn stage(&mut self, now: &LakeTable, kind: StageKind, id: Uuid) -> Result<Stage> {
        if self.world.faulty && self.random.random_ratio(1, FAULT_EVERY) {
            let catalogs = &self.world.catalogs;
            let fault = *FAULTS.choose(&mut self.random).expect("one");
            catalogs[self.number as usize % catalogs.len()].next(&[fault]);
        }
        let request = StageRequest { run_id: id, ..request(kind, &now.schema()) };
        self.lake().stage_on(now, request)
    }

    /// Rows of the ids, in the stage's files.
    async fn rows(&self, stage: &Stage, now: &LakeTable, ids: &[i64]) -> Result<Vec<StagedFile>> {
        let files = staged(stage, vec![rows_of(&now.schema(), ids)]).await?;
        self.world.ledger.staged(&files, ids);
        Ok(files)
    }

    /// Writes down how an attempt under an id ended; `true` if it was made.
    fn ended(&self, id: Uuid, outcome: Result<i64>) -> bool {
        match outcome {
            Ok(snapshot) => {
                self.world.ledger.acknowledge(id, snapshot);
                true
            }
            Err(error) => {
                let code = error.code();
                let unknown = self.world.faulty && code == ErrorCode::LakeUnknownOutcome;
                assert!(unknown || code == ErrorCode::LakeConflict, "{error:?}");
                if !unknown {
                    self.world.ledger.fail(id);
                }
                false
            }
        }
    }

    pub(super) async fn write(mut self) {
        while self.goes_on() {
            match self.random.random_range(0..10) {
                0..3 => self.append().await,
                3..8 => self.row_delta().await,
                8 => self.overwrite().await,
                _ => self.delete_file().await,
            }
            self.pause(60).await;
        }
    }

    async fn append(&mut self) {
        self.run(StageKind::Append, Kind::Change).await;
    }

    /// Full refreshes, now and then: the rows of everybody go.
    pub(super) async fn refresh(mut self) {
        while self.goes_on() || self.lacks(Kind::Refresh) {
            self.pause(4_000).await;
            self.run(StageKind::Replace, Kind::Refresh).await;
        }
    }

    /// Whether none was made yet, as where a catalog is slow and others always come first: once those
    /// have stopped it is.
    fn lacks(&self, kind: Kind) -> bool {
        self.world.ledger.made(kind) == 0 && Instant::now() < self.world.until + PATIENCE * 2
    }

    /// A run, tried until it is made. Only the last failure counts.
    async fn run(&mut self, how: StageKind, kind: Kind) {
        let (id, ids) = (Uuid::new_v4(), self.fresh());
        self.world.ledger.plan(id, Effect { kind, adds: ids.clone(), removes: Vec::new() });
        loop {
            let now = self.now().await;
            let outcome = match self.stage(&now, how, id) {
                Ok(stage) => self.commit_run(stage, &now, &ids).await,
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if error.retryable() && self.goes_on() => {}
                outcome => {
                    self.ended(id, outcome);
                    return;
                }
            }
        }
    }

    async fn commit_run(&self, stage: Stage, now: &LakeTable, ids: &[i64]) -> Result<i64> {
        let files = self.rows(&stage, now, ids).await?;
        let summary = summary(&files);
        Ok(stage.commit(files, &checkpoint(0), summary).await?.snapshot_id)
    }

    fn own_ids(&self) -> Predicate {
        let first = self.number * RANGE;
        bound(CmpOp::GtEq, first).and(bound(CmpOp::Lt, first + RANGE))
    }

    /// This writer's ids, and its files: those that hold no others' rows.
    async fn own(&self, now: &LakeTable) -> (BTreeSet<i64>, Vec<ScanFile>) {
        let columns = Some(vec!["id".into()]);
        let scan = ScanRequest { snapshot: None, filter: self.own_ids(), columns };
        let rows = async {
            let files = now.plan(scan.clone()).await?.files;
            let batches: Vec<RecordBatch> = now.read(scan).await?.try_collect().await?;
            Ok::<_, polder_core::Error>((files, batches))
        };
        // The state may have been rolled back and expired since it was loaded.
        let Ok((files, batches)) = rows.await else { return Default::default() };
        let ids = batches.iter().flat_map(|batch| longs(batch, "id")).collect();
        (ids, files)
    }

    /// A file of ours alone with the ids that are still in it; `None` if there is none.
    async fn own_file(&mut self, now: &LakeTable) -> Option<(ScanFile, Vec<i64>, Vec<i64>)> {
        let (ids, files) = self.own(now).await;
        let own = self.number * RANGE..(self.number + 1) * RANGE;
        let mut files = files.into_iter().filter_map(|file| {
            let all = self.world.ledger.ids_of(&file.path);
            all.iter().all(|id| own.contains(id)).then_some((file, all))
        });
        let (file, all) = files.next()?;
        let left = all.iter().copied().filter(|id| ids.contains(id)).collect();
        Some((file, all, left))
    }

    async fn row_delta(&mut self) {
        let now = self.now().await;
        let (id, adds) = (Uuid::new_v4(), self.fresh());
        let (deletes, removes) = self.some_to_delete(&now).await;
        self.world.ledger.plan(id, Effect { adds: adds.clone(), removes, ..Effect::default() });
        let outcome = async {
            let stage = self.stage(&now, StageKind::Files, id)?;
            let files = self.rows(&stage, &now, &adds).await?;
            match stage.write_deletes(&deletes).await {
                Ok(deletes) => {
                    self.world.ledger.deleted(id, &deletes);
                    Ok(stage.row_delta(deletes, files).await?.snapshot_id)
                }
                Err(error) => {
                    stage.abort(files).await;
                    Err(error)
                }
            }
        };
        let outcome = outcome.await;
        self.ended_on(&now, id, outcome).await;
    }

    /// Where rows of ours are that are to go, and their ids; none where there are none.
    async fn some_to_delete(&mut self, now: &LakeTable) -> (Vec<(ScanFile, Vec<u64>)>, Vec<i64>) {
        let (own, files) = self.own(now).await;
        let Some(file) = files.choose(&mut self.random) else { return Default::default() };
        // Any file may hold rows of ours, also a compacted one; only ours are deleted.
        let all = self.world.ledger.ids_of(&file.path);
        let found = all.iter().enumerate().filter(|(_, id)| own.contains(id)).take(2);
        let (positions, ids): (Vec<u64>, Vec<i64>) =
            found.map(|(position, id)| (position as u64, *id)).unzip();
        let deletes = (!positions.is_empty()).then(|| (file.clone(), positions));
        (deletes.into_iter().collect(), ids)
    }

    /// Runs that delete rows of theirs and add others, each looked at before it is published.
    pub(super) async fn merge(mut self) {
        while self.goes_on() || self.lacks(Kind::Merge) {
            for _ in 0..MERGES_MAX {
                if self.merge_once().await {
                    break;
                }
            }
            self.pause(150).await;
        }
    }

    /// `true` if it was made. What is deleted depends on the state, so each attempt is a run of its own.
    async fn merge_once(&mut self) -> bool {
        let now = self.now().await;
        let (id, adds) = (Uuid::new_v4(), self.fresh());
        let (deletes, removes) = self.some_to_delete(&now).await;
        let effect = Effect { kind: Kind::Merge, adds: adds.clone(), removes };
        self.world.ledger.plan(id, effect);
        let outcome = async {
            let stage = self.stage(&now, StageKind::Merge, id)?;
            let files = self.rows(&stage, &now, &adds).await?;
            let deletes = match stage.write_deletes(&deletes).await {
                Ok(deletes) => deletes,
                Err(error) => {
                    stage.abort(files).await;
                    return Err(error);
                }
            };
            self.world.ledger.deleted(id, &deletes);
            let (rows, among) = (summary(&files), self.own_ids());
            let delta = RowDelta { files, deletes, among };
            let gate = Adds { ledger: Arc::clone(&self.world.ledger) };
            let (start, gate) = (checkpoint(0), Some(&gate as &dyn Gate));
            let done = Box::pin(stage.commit_delta(delta, &start, rows, gate)).await?;
            Ok(done.snapshot_id)
        };
        let outcome = outcome.await;
        let made = outcome.is_ok();
        self.ended_on(&now, id, outcome).await;
        made
    }

    /// As [`Self::ended`]; a state that was rolled back and expired cannot be read any more either.
    async fn ended_on(&self, now: &LakeTable, id: Uuid, outcome: Result<i64>) {
        match outcome {
            Err(error) if may_be_gone(&error) && !self.is_current(now).await => {
                self.world.ledger.fail(id);
            }
            outcome => {
                self.ended(id, outcome);
            }
        }
    }

    pub(super) async fn is_current(&self, now: &LakeTable) -> bool {
        let id = now.current_snapshot().expect("current").id;
        self.now().await.current_snapshot().expect("current").id == id
    }

    async fn overwrite(&mut self) {
        let now = self.now().await;
        let Some((file, all, left)) = self.own_file(&now).await else { return };
        let (Some(first), Some(last)) = (all.iter().min(), all.iter().max()) else { return };
        let filter = bound(CmpOp::GtEq, *first).and(bound(CmpOp::LtEq, *last));
        let (id, adds) = (Uuid::new_v4(), self.fresh());
        self.world
            .ledger
            .plan(id, Effect { adds: adds.clone(), removes: left, ..Effect::default() });
        let outcome = async {
            let stage = self.stage(&now, StageKind::Files, id)?;
            let files = self.rows(&stage, &now, &adds).await?;
            Ok(stage.overwrite_files(filter, vec![file.path], files).await?.snapshot_id)
        };
        let outcome = outcome.await;
        self.ended_on(&now, id, outcome).await;
    }

    async fn delete_file(&mut self) {
        let now = self.now().await;
        let Some((file, _, left)) = self.own_file(&now).await else { return };
        let id = Uuid::new_v4();
        self.world.ledger.plan(id, Effect { removes: left, ..Effect::default() });
        let outcome = async {
            let stage = self.stage(&now, StageKind::Files, id)?;
            Ok(stage.delete_files(vec![file.path]).await?.snapshot_id)
        };
        let outcome = outcome.await;
        self.ended_on(&now, id, outcome).await;
    }

    pub(super) async fn compact(mut self) {
        while self.goes_on() {
            self.pause(150).await;
            let now = self.now().await;
            let id = Uuid::new_v4();
            let outcome = self.rewrite_some(&now, id).await;
            self.ended_on(&now, id, outcome).await;
        }
    }

    async fn rewrite_some(&mut self, now: &LakeTable, id: Uuid) -> Result<i64> {
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let files = now.plan(scan).await?.files;
        let chosen = files.choose_multiple(&mut self.random, 6);
        let paths: Vec<String> = chosen.map(|file| file.path.clone()).collect();
        let rows = now.read_files(&paths.iter().cloned().collect()).await?;
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        let ids: Vec<i64> = batches.iter().flat_map(in_order).collect();
        let stage = self.stage(now, StageKind::Files, id)?;
        let files = staged(&stage, batches).await?;
        self.world.ledger.staged(&files, &ids);
        Ok(stage.rewrite_files(paths, files).await?.snapshot_id)
    }

    pub(super) async fn expire(mut self) {
        while self.goes_on() {
            self.pause(300).await;
            let id = Uuid::new_v4();
            let done = self.lake().expire(&self.world.org, &self.world.table, &RETENTION, id).await;
            if let Err(error) = done {
                assert!(error.retryable(), "{error:?}");
            }
        }
    }

    pub(super) async fn change_schema(mut self) {
        let mut number = 0;
        while self.goes_on() {
            self.pause(500).await;
            let now = self.now().await;
            let mut columns = now.schema();
            if columns.fields.len() == 2 + MORE_COLUMNS_MAX {
                columns.fields.remove(2);
            } else {
                number += 1;
                columns.fields.push(Field::new(format!("c{number}"), LakeType::Long));
            }
            let id = Uuid::new_v4();
            self.world.ledger.plan(id, Effect::default());
            let request = StageRequest { run_id: id, ..request(StageKind::Append, &columns) };
            let outcome = async {
                let stage = self.lake().stage_on(&now, request)?;
                let done = stage.commit(Vec::new(), &checkpoint(0), summary(&[])).await?;
                Ok(done.snapshot_id)
            };
            let outcome = outcome.await;
            self.ended(id, outcome);
        }
    }

    pub(super) async fn roll_back(mut self) {
        while self.goes_on() {
            self.pause(3_000).await;
            let states = states_to_go_to(&self.now().await);
            let Some(to) = states.choose(&mut self.random) else { continue };
            let id = Uuid::new_v4();
            match self.lake().rollback(&self.world.org, &self.world.table, to, id).await {
                Ok(done) => {
                    if let Some(done) = done.done {
                        self.world.ledger.roll_back(done.from_snapshot);
                    }
                }
                Err(error) => {
                    let code = error.code();
                    let expired = code == ErrorCode::LakeNotFound;
                    assert!(expired || error.retryable(), "{error:?}");
                }
            }
        }
    }

    /// Opens states, and reads them again later: their rows do not change, nor go early.
    pub(super) async fn read(mut self) {
        let mut last_number = 0;
        while self.goes_on() {
            let now = self.now().await;
            let number = sequence_number(self.lake(), &now).await;
            assert!(number >= last_number, "the table went from {last_number} to {number}");
            last_number = number;
            let current = now.current_snapshot().expect("current");
            let wanted: Vec<i64> = self.world.ledger.rows(current.id).iter().copied().collect();
            for _ in 0..2 {
                match read_ids(&now).await {
                    Ok(found) => assert_eq!(found, wanted, "a state has the rows of its commits"),
                    Err(error) => {
                        assert!(may_be_gone(&error), "{error:?}");
                        let age = chrono::Utc::now().timestamp_millis() - current.timestamp_ms;
                        assert!(
                            age > RETENTION.history_ms,
                            "expired when it was {age} ms old: {error:?}"
                        );
                    }
                }
                self.pause(800).await;
            }
        }
    }
}

/// Lets a run pass whose staged rows are those that its commits add up to.
struct Adds {
    ledger: Arc<Ledger>,
}

#[async_trait]
impl Gate for Adds {
    async fn check(&self, staged: &LakeTable, snapshot: i64) -> Result<()> {
        // The state that it is on top of may have been rolled back and expired meanwhile.
        if let Ok(found) = ids_at(staged, Some(snapshot)).await {
            let wanted: Vec<i64> = self.ledger.rows(snapshot).iter().copied().collect();
            assert_eq!(found, wanted, "what is staged has the rows of its commits");
        }
        Ok(())
    }
}

fn bound(op: CmpOp, id: i64) -> Predicate {
    Predicate::Cmp { column: "id".to_owned(), op, value: Literal::Long(id) }
}

/// A few states back, and those before earlier rollbacks.
fn states_to_go_to(now: &LakeTable) -> Vec<String> {
    let snapshots: HashMap<i64, SnapshotInfo> =
        now.snapshots().into_iter().map(|found| (found.id, found)).collect();
    let parent = |child: &SnapshotInfo| snapshots.get(&child.parent?).cloned();
    let back = std::iter::successors(now.current_snapshot(), parent).skip(1).take(BACK_MAX);
    let mut states: Vec<String> = back.map(|state| state.id.to_string()).collect();
    let named = now.refs().into_iter().map(|found| found.name);
    states.extend(named.filter(|name| name.starts_with("before-rollback-")));
    states
}

/// Whether the error may be that of a state whose files are gone.
fn may_be_gone(error: &polder_core::Error) -> bool {
    !matches!(error.code(), ErrorCode::LakeConflict | ErrorCode::LakeUnknownOutcome)
}

async fn read_ids(table: &LakeTable) -> Result<Vec<i64>> {
    ids_at(table, None).await
}

/// The ids of a state, sorted.
pub(super) async fn ids_at(table: &LakeTable, snapshot: Option<i64>) -> Result<Vec<i64>> {
    let scan = ScanRequest { snapshot, filter: Predicate::True, columns: None };
    let batches: Vec<RecordBatch> = table.read(scan).await?.try_collect().await?;
    let mut ids: Vec<i64> = batches.iter().flat_map(in_order).collect();
    ids.sort_unstable();
    Ok(ids)
}

async fn sequence_number(lake: &Lake, table: &LakeTable) -> i64 {
    let path = lake.object_path(table.metadata_location()).expect("path");
    let found = object_store::ObjectStoreExt::get(&*lake.object_store(), &path).await;
    let bytes = found.expect("metadata").bytes().await.expect("bytes");
    let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    json["last-sequence-number"].as_i64().expect("a number")
}

fn in_order(batch: &RecordBatch) -> Vec<i64> {
    let ids = batch.column_by_name("id").expect("ids");
    let ids = ids.as_any().downcast_ref::<Int64Array>().expect("long");
    ids.iter().flatten().collect()
}

/// Rows of the ids in these columns; those beside `id` and `text` are null.
fn rows_of(columns: &TableSchema, ids: &[i64]) -> RecordBatch {
    let column = |field: &Field| -> ArrayRef {
        match field.name.as_str() {
            "id" => Arc::new(Int64Array::from(ids.to_vec())),
            "text" => {
                let text: Vec<String> = ids.iter().map(|id| format!("row {id}")).collect();
                Arc::new(StringArray::from(text))
            }
            _ => new_null_array(&field.data_type.to_arrow(), ids.len()),
        }
    };
    batch(columns, columns.fields.iter().map(column).collect())
}
