//! Carries actions out on a table and on its model, and compares the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::optimize::{Aim, FileCost, plan};
use polder_core::retention::Retention;
use polder_core::spec::PartitionField;
use polder_core::{ErrorCode, Result, TableSchema};
use polder_lake::{
    CmpOp, LakeTable, Literal, MetadataRequest, OrphanRequest, Placed, Predicate, RowDelta,
    ScanFile, ScanRequest, Stage, StageKind, StageRequest,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::model::{Column, ID, Kind, Model, Row, State, Value, table_schema};
use super::{Action, Step};
use crate::between::Through;
use crate::faulty::catalog::Fault;
use crate::faulty::changes::staged;
use crate::faulty::{Ground, sqlite};
use crate::support::*;

/// No clock is as wrong as that.
const SOON_MS: i64 = 10_000;

pub(super) struct History {
    ground: Ground,
    model: Model,
    partition: Vec<PartitionField>,
    next_row: i64,
    next_column: i32,
    /// The last run that was made, and what it asked for.
    last_run: Option<StageRequest>,
    /// Columns that files were ever partitioned by.
    partitioned_by: BTreeSet<i32>,
    /// A run has died since orphans were removed.
    crashed: bool,
    /// The table remembers few metadata files: every commit leaves one behind.
    forgets: bool,
    tags: usize,
    _folder: TempDir,
}

/// What a run does to the table, once its stage is there.
struct Run {
    kind: StageKind,
    columns: Vec<Column>,
    rows: usize,
    partition: Vec<PartitionField>,
}

fn pick<T>(items: &[T], which: u8) -> Option<&T> {
    items.get(usize::from(which).checked_rem(items.len())?)
}

impl History {
    pub(super) async fn begin() -> Self {
        let folder = TempDir::new().expect("folder");
        let ground = Ground::new(&sqlite(&folder)).await;
        let mut history = Self {
            ground,
            model: Model::default(),
            partition: Vec::new(),
            next_row: 0,
            next_column: 4,
            last_run: None,
            partitioned_by: BTreeSet::new(),
            crashed: false,
            forgets: false,
            tags: 0,
            _folder: folder,
        };
        let appended = history.request(StageKind::Append, &table_schema(&first_columns()));
        let stage = history.ground.lake.stage(&org("401"), &history.ground.table, appended).await;
        assert_eq!(stage.expect_err("no table").code(), ErrorCode::LakeNotFound);
        let run = Run {
            kind: StageKind::Replace,
            columns: first_columns(),
            rows: 5,
            partition: Vec::new(),
        };
        history.run(run, false).await;
        history
    }

    fn request(&self, kind: StageKind, schema: &TableSchema) -> StageRequest {
        StageRequest { partition: self.partition.clone(), ..request(kind, schema) }
    }

    async fn now(&self) -> LakeTable {
        table(&self.ground.clean, &self.ground.table).await
    }

    fn fresh(&mut self, rows: usize) -> Vec<i64> {
        let first = self.next_row;
        self.next_row += rows as i64;
        (first..self.next_row).collect()
    }

    pub(super) async fn step(&mut self, step: &Step) {
        self.ground.catalog.next(&[step.fault]);
        let refused = step.fault == Fault::Refused;
        match &step.action {
            Action::Overtaken { by } => self.overtaken(by, refused).await,
            Action::OvertakenRewrite { files, by } => {
                self.overtaken_rewrite(*files, by, refused).await;
            }
            action => self.act(action, refused).await,
        }
        self.ground.catalog.settle().await;
        self.ground.catalog.next(&[]);
    }

    async fn act(&mut self, action: &Action, refused: bool) {
        match *action {
            Action::RowDelta { file, rows } => self.row_delta(file, rows.into(), refused).await,
            Action::Merge { file, rows } => self.merge(file, rows.into(), refused).await,
            Action::Overwrite { file, rows } => self.overwrite(file, rows.into(), refused).await,
            Action::DeleteFile { file } => self.delete_file(file, refused).await,
            Action::Rewrite { files } => self.rewrite(files, refused).await,
            Action::Rollback { to } => self.roll_back(to, refused).await,
            Action::Expire { versions, history } => {
                self.expire(versions.into(), history.into(), refused).await;
            }
            Action::Optimize => self.optimize(refused).await,
            Action::Metadata => self.metadata(refused).await,
            Action::Tag { of } => self.tag(of).await,
            Action::Pin { of } => self.pin(of, refused).await,
            Action::Unpin { which } => self.unpin(which, refused).await,
            Action::Crash { rows } => self.crash(rows.into()).await,
            Action::Orphans { restore } => self.orphans(restore).await,
            Action::Again => self.again().await,
            Action::Overtaken { .. } | Action::OvertakenRewrite { .. } => {}
            _ => {
                let run = self.planned(action);
                self.run(run, refused).await;
            }
        }
    }

    /// What the actions that are runs ask for.
    fn planned(&mut self, action: &Action) -> Run {
        let mut columns = self.model.now().columns;
        let (mut kind, mut partition) = (StageKind::Append, self.partition.clone());
        // The first column has the ids and stays as it is.
        let others = 1..columns.len();
        let mut rows = 3;
        let other = |which: u8| others.clone().nth(usize::from(which) % others.len().max(1));
        match *action {
            Action::Append { rows: more } => rows = more,
            Action::Replace { rows: new, columns: taken } => {
                (kind, rows) = (StageKind::Replace, new);
                columns.truncate(1 + usize::from(taken) % columns.len());
                columns.push(self.new_column(taken));
                partition.clear();
            }
            Action::AddColumn { kind, rows: more } => {
                columns.push(self.new_column(kind));
                rows = more;
            }
            Action::DropColumn { which } => {
                if let Some(which) = other(which) {
                    let gone = columns.remove(which).name;
                    partition.retain(|field| field.column != gone);
                }
            }
            Action::RenameColumn { which } => {
                if let Some(which) = other(which) {
                    self.next_column += 1;
                    let name = format!("r{}", self.next_column);
                    let own = partition.iter_mut().filter(|by| by.column == columns[which].name);
                    own.for_each(|by| by.column.clone_from(&name));
                    columns[which].name = name;
                }
            }
            Action::WidenColumn { which, rows: more } => {
                rows = more;
                if let Some(which) = other(which).filter(|which| columns[*which].kind == Kind::Int)
                {
                    columns[which].kind = Kind::Long;
                }
            }
            Action::MoveColumn { which } => {
                if let Some(which) = other(which) {
                    let moved = columns.remove(which);
                    columns.push(moved);
                }
            }
            Action::Repartition { how, rows: more } => {
                rows = more;
                let last = &columns[columns.len() - 1].name;
                let of_last = format!("bucket(2, {last})");
                let choices = ["", "bucket(3, id)", "truncate(10, id)", &of_last];
                let how = choices[usize::from(how) % choices.len()];
                partition.clear();
                partition.extend((!how.is_empty()).then(|| how.parse().expect("field")));
            }
            _ => {}
        }
        Run { kind, columns, rows: rows.into(), partition }
    }

    fn new_column(&mut self, kind: u8) -> Column {
        self.next_column += 1;
        let kind = [Kind::Int, Kind::Long, Kind::Text][usize::from(kind) % 3];
        Column::new(self.next_column, kind)
    }

    async fn run(&mut self, run: Run, refused: bool) {
        let request = StageRequest {
            partition: run.partition.clone(),
            ..self.request(run.kind, &table_schema(&run.columns))
        };
        let stage = self.ground.lake.stage(&org("401"), &self.ground.table, request.clone()).await;
        let stage = match stage {
            Ok(stage) => stage,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::LakeSchemaRefused, "{error:?}");
                let now = self.model.now().columns;
                let mut lost = now.iter().filter(|old| run.columns.iter().all(|c| c.id != old.id));
                let partitioned = |old: &Column| self.partitioned_by.contains(&old.id);
                assert!(lost.any(partitioned), "{error:?}: no file is partitioned by what goes");
                return;
            }
        };
        let rows = self.fresh(run.rows);
        let done = self.commit_run(stage, &run.columns, &rows).await;
        if refused {
            assert_eq!(done.expect_err("refused").code(), ErrorCode::LakeFailed);
            return;
        }
        self.made(run, request, &rows, done.expect("made"));
    }

    /// Takes a run that was made over into the model.
    fn made(
        &mut self,
        run: Run,
        request: StageRequest,
        rows: &[i64],
        (snapshot, version): (i64, Option<String>),
    ) {
        let by = |column: &&Column| run.partition.iter().any(|field| field.column == column.name);
        self.partitioned_by.extend(run.columns.iter().filter(by).map(|column| column.id));
        let base = match run.kind {
            StageKind::Replace => State::new(run.columns),
            _ => self.model.now().under(run.columns),
        };
        self.model.commit(snapshot, base.with(rows.iter().copied()));
        let tagged = (run.kind == StageKind::Replace).then(|| self.model.tag_version());
        assert_eq!(version, tagged);
        self.partition = run.partition;
        self.last_run = Some(request);
    }

    async fn commit_run(
        &self,
        stage: Stage,
        columns: &[Column],
        rows: &[i64],
    ) -> Result<(i64, Option<String>)> {
        let new = State::new(columns.to_vec()).with(rows.iter().copied());
        let files = staged(&stage, batches_of(&new)).await?;
        let summary = summary(&files);
        let done = stage.commit(files, &checkpoint(self.next_row), summary).await?;
        assert!(!done.already);
        Ok((done.snapshot_id, done.version))
    }

    async fn again(&mut self) {
        let Some(request) = self.last_run.clone() else { return };
        let stage = self.ground.lake.stage(&org("401"), &self.ground.table, request.clone()).await;
        // Its columns may not fit any more after a rollback.
        let Ok(stage) = stage else { return };
        let columns = request.schema.to_arrow();
        let files = staged(&stage, vec![RecordBatch::new_empty(columns)]).await.expect("staged");
        let done = stage.commit(files, &checkpoint(0), summary(&[])).await.expect("found");
        assert!(done.already, "a run is made once");
    }

    /// An append that began before another action: it is made on top of changes of files, and refused
    /// when rows or columns came or went.
    async fn overtaken(&mut self, by: &Action, refused: bool) {
        let columns = self.model.now().columns;
        let request = self.request(StageKind::Append, &table_schema(&columns));
        let table = self.ground.table.clone();
        let stage = self.ground.lake.stage(&org("401"), &table, request.clone()).await;
        let stage = stage.expect("stage");
        let before = self.model.main;
        let rows = self.fresh(2);
        self.act(by, refused).await;
        let moved = self.model.main != before;
        let files = matches!(
            by,
            Action::RowDelta { .. }
                | Action::Overwrite { .. }
                | Action::DeleteFile { .. }
                | Action::Rewrite { .. }
                | Action::Optimize
                | Action::Metadata
        );
        self.ground.catalog.next(&[]);
        match self.commit_run(stage, &columns, &rows).await {
            Ok(done) => {
                assert!(!moved || files, "{by:?} has changed the rows it was told apart from");
                let partition = self.partition.clone();
                let run = Run { kind: StageKind::Append, columns, rows: 2, partition };
                self.made(run, request, &rows, done);
            }
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}");
                assert!(moved && !files, "{by:?} disturbs no run");
            }
        }
    }

    /// A rewrite that began before another action: it is made if its files are as they were, and
    /// refused otherwise. No row comes back, and none goes.
    async fn overtaken_rewrite(&mut self, chosen: u8, by: &Action, refused: bool) {
        let (now, stage, files) = self.files().await;
        let old = some_of(&files, chosen);
        let batches = ids_in(&now, &old).await.0;
        let before = self.model.main;
        self.act(by, refused).await;
        self.ground.catalog.next(&[]);
        let new = staged(&stage, batches).await.expect("staged");
        match stage.rewrite_files(old, new).await {
            Ok(done) => self.model.commit(done.snapshot_id, self.model.now()),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}");
                assert_ne!(self.model.main, before, "{by:?} disturbs no rewrite");
            }
        }
    }

    /// Every other row of a file goes, and others come.
    async fn merge(&mut self, file: u8, rows: usize, refused: bool) {
        let mut wanted = self.model.now();
        let request = self.request(StageKind::Merge, &table_schema(&wanted.columns));
        let table = self.ground.table.clone();
        let stage = self.ground.lake.stage(&org("401"), &table, request.clone()).await;
        let stage = stage.expect("stage");
        let mut deletes = Vec::new();
        if let Some((file, positions, gone)) = self.every_other(file).await {
            deletes = stage.write_deletes(&[(file, positions)]).await.expect("deletes");
            wanted = wanted.without(&gone);
        }
        let rows = self.fresh(rows);
        let new = State::new(wanted.columns.clone()).with(rows.iter().copied());
        let files = staged(&stage, batches_of(&new)).await.expect("staged");
        let summary = summary(&files);
        let delta = RowDelta { files, deletes, among: Predicate::True };
        let start = checkpoint(self.next_row);
        let done = Box::pin(stage.commit_delta(delta, &start, summary, None)).await;
        if refused {
            assert_eq!(done.expect_err("refused").code(), ErrorCode::LakeFailed);
            return;
        }
        let done = done.expect("made");
        assert_eq!((done.already, done.version), (false, None));
        self.model.commit(done.snapshot_id, wanted.with(rows));
        self.last_run = Some(request);
    }

    /// A file, the places of every other row that is left in it, and their ids; `None` if there is no
    /// such row.
    async fn every_other(&self, which: u8) -> Option<(ScanFile, Vec<u64>, Vec<i64>)> {
        let now = table(&self.ground.lake, &self.ground.table).await;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let files = now.plan(scan.clone()).await.expect("plan").files;
        let file = pick(&files, which)?.clone();
        let placed = now.read_placed(scan).await.expect("read");
        let placed: Vec<Placed> = placed.try_collect().await.expect("rows");
        let own = placed.iter().filter(|rows| rows.file.path == file.path);
        let rows = own.flat_map(|rows| rows.positions.iter().copied().zip(ids_of(&rows.records)));
        let (positions, ids): (Vec<u64>, Vec<i64>) = rows.step_by(2).unzip();
        (!positions.is_empty()).then_some((file, positions, ids))
    }

    /// A stage of changes of files, on the present state.
    async fn files(&self) -> (LakeTable, Stage, Vec<ScanFile>) {
        let now = table(&self.ground.lake, &self.ground.table).await;
        let request = self.request(StageKind::Files, &now.schema());
        let stage = self.ground.lake.stage_on(&now, request).expect("stage");
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let files = now.plan(scan).await.expect("plan").files;
        (now, stage, files)
    }

    /// Takes a change of files over into the model.
    fn changed(&mut self, done: Result<polder_lake::FilesCommitted>, refused: bool, state: State) {
        if refused {
            assert_eq!(done.expect_err("refused").code(), ErrorCode::LakeFailed);
            return;
        }
        let done = done.expect("made");
        assert!(!done.already);
        self.model.commit(done.snapshot_id, state);
    }

    async fn row_delta(&mut self, file: u8, rows: usize, refused: bool) {
        let (now, stage, files) = self.files().await;
        let whole: Vec<ScanFile> = files.into_iter().filter(|file| !file.has_deletes).collect();
        let rows = self.fresh(rows);
        let mut wanted = self.model.now();
        let mut deletes = Vec::new();
        if let Some(file) = pick(&whole, file) {
            let ids = ids_in(&now, std::slice::from_ref(&file.path)).await.1;
            let gone = ids.iter().enumerate().filter(|(at, _)| at % 2 == 0);
            let (positions, gone): (Vec<u64>, Vec<i64>) =
                gone.map(|(at, id)| (at as u64, *id)).unzip();
            deletes = stage.write_deletes(&[(file.clone(), positions)]).await.expect("deletes");
            wanted = wanted.without(&gone);
        }
        let new = State::new(wanted.columns.clone()).with(rows.iter().copied());
        let added = staged(&stage, batches_of(&new)).await.expect("staged");
        let done = stage.row_delta(deletes, added).await;
        self.changed(done, refused, wanted.with(rows));
    }

    async fn overwrite(&mut self, file: u8, rows: usize, refused: bool) {
        let (now, stage, files) = self.files().await;
        let Some(file) = pick(&files, file) else { return };
        let old = vec![file.path.clone()];
        let gone = ids_in(&now, &old).await.1;
        let bound = |op, id: Option<&i64>| Predicate::Cmp {
            column: "id".to_owned(),
            op,
            value: Literal::Long(id.copied().unwrap_or_default()),
        };
        let filter =
            bound(CmpOp::GtEq, gone.iter().min()).and(bound(CmpOp::LtEq, gone.iter().max()));
        let rows = self.fresh(rows);
        let wanted = self.model.now().without(&gone);
        let new = State::new(wanted.columns.clone()).with(rows.iter().copied());
        let added = staged(&stage, batches_of(&new)).await.expect("staged");
        let done = stage.overwrite_files(filter, old, added).await;
        self.changed(done, refused, wanted.with(rows));
    }

    async fn delete_file(&mut self, file: u8, refused: bool) {
        let (now, stage, files) = self.files().await;
        let Some(file) = pick(&files, file) else { return };
        let gone = ids_in(&now, std::slice::from_ref(&file.path)).await.1;
        let done = stage.delete_files(vec![file.path.clone()]).await;
        let wanted = self.model.now().without(&gone);
        self.changed(done, refused, wanted);
    }

    async fn rewrite(&mut self, chosen: u8, refused: bool) {
        let (now, stage, files) = self.files().await;
        let old = some_of(&files, chosen);
        let batches = ids_in(&now, &old).await.0;
        let new = staged(&stage, batches).await.expect("staged");
        let done = stage.rewrite_files(old.clone(), new).await;
        let wanted = self.model.now();
        self.changed(done, refused, wanted);
        if !refused {
            let left = self.ground.check().await;
            assert!(
                left.delete_files == 0 || old.len() < files.len(),
                "no delete outlives its file"
            );
        }
    }

    async fn optimize(&mut self, refused: bool) {
        let now = table(&self.ground.lake, &self.ground.table).await;
        let files = now.files(&self.partition, &[]).await.expect("files");
        let costs: Vec<FileCost> = files.files().iter().map(|file| file.cost).collect();
        let bins = plan(&costs, &Aim { commit_bytes: 1 << 30, ..Aim::at(256 << 10) });
        if bins.is_empty() && files.dead_deletes().is_empty() {
            return;
        }
        let request = self.request(StageKind::Files, &now.schema());
        let stage = self.ground.lake.stage_on(&now, request).expect("stage");
        let mut rows = Vec::new();
        for bin in &bins {
            let stream = files.read(&bin.files, Predicate::True).expect("read");
            rows.extend(stream.try_collect::<Vec<_>>().await.expect("rows"));
        }
        let old = bins.iter().flat_map(|bin| &bin.files);
        let old = old.map(|at| files.files()[*at].path.clone());
        let old = old.chain(files.dead_deletes().iter().cloned()).collect();
        let new = staged(&stage, rows).await.expect("staged");
        let done = stage.rewrite_files(old, new).await;
        let wanted = self.model.now();
        self.changed(done, refused, wanted);
    }

    async fn metadata(&mut self, refused: bool) {
        let request = MetadataRequest { files: 3, older_than_ms: -SOON_MS, dry_run: false };
        let (lake, table) = (&self.ground.lake, &self.ground.table);
        let done = lake.tidy_metadata(&org("401"), table, &request).await;
        match done {
            // It commits nothing if there is nothing to change.
            Err(error) => assert!(refused && error.code() == ErrorCode::LakeFailed, "{error:?}"),
            Ok(done) => assert!(done.manifests_after <= done.manifests_before),
        }
        self.forgets = true;
        self.ground.catalog.settle().await;
        let now = self.now().await.current_snapshot().map(|found| found.id);
        if let Some(merged) = now.filter(|id| Some(*id) != self.model.main) {
            self.model.commit(merged, self.model.now());
        }
    }

    async fn tag(&mut self, of: u8) {
        let kept = self.model.kept();
        let of = *pick(&kept, of).expect("a state");
        let name = format!("tag-{}", self.tags);
        self.tags += 1;
        let retention = SnapshotRetention::Tag { max_ref_age_ms: None };
        let reference = SnapshotReference::new(of, retention);
        let update = TableUpdate::SetSnapshotRef { ref_name: name.clone(), reference };
        let namespace = NamespaceIdent::new("org_401".to_owned());
        let ident = TableIdent::new(namespace, self.ground.table.clone());
        self.ground.catalog.next(&[]);
        let catalog = Through::catalog(&self.ground.catalog);
        catalog.commit(&ident, &[], vec![update]).await.expect("tagged");
        self.model.tags.insert(name, of);
    }

    async fn pin(&mut self, of: u8, refused: bool) {
        let kept = self.model.kept();
        let of = *pick(&kept, of).expect("a state");
        let name = format!("pin-{}", self.tags);
        self.tags += 1;
        let (lake, table) = (&self.ground.lake, &self.ground.table);
        match lake.pin(&org("401"), table, &name, of).await {
            Ok(_) => assert_eq!(self.model.tags.insert(name, of), None),
            Err(error) => assert!(refused && error.code() == ErrorCode::LakeFailed, "{error:?}"),
        }
    }

    async fn unpin(&mut self, which: u8, refused: bool) {
        let pins = self.model.tags.keys().filter(|name| name.starts_with("pin-"));
        let pins: Vec<String> = pins.cloned().collect();
        let Some(name) = pick(&pins, which) else { return };
        let (lake, table) = (&self.ground.lake, &self.ground.table);
        match lake.release_pin(&org("401"), table, name).await {
            Ok(_) => assert!(self.model.tags.remove(name).is_some()),
            Err(error) => assert!(refused && error.code() == ErrorCode::LakeFailed, "{error:?}"),
        }
    }

    async fn crash(&mut self, rows: usize) {
        let columns = self.model.now().columns;
        let request = self.request(StageKind::Append, &table_schema(&columns));
        let table = self.ground.table.clone();
        let stage = self.ground.lake.stage(&org("401"), &table, request).await.expect("stage");
        let first = 1_000_000;
        let new = State::new(columns).with(first..first + rows as i64);
        staged(&stage, batches_of(&new)).await.expect("staged");
        self.crashed = true;
    }

    async fn orphans(&mut self, restore: bool) {
        self.ground.catalog.settle().await;
        let lost = self.ground.orphans().await;
        assert!(self.crashed || self.forgets || lost.is_empty(), "{lost:?}");
        let request = OrphanRequest {
            older_than_ms: -SOON_MS,
            purge_after_ms: -SOON_MS,
            tables: Vec::new(),
            dry_run: false,
        };
        let lake = &self.ground.lake;
        let found = lake.orphans(&org("401"), &request).await.expect("orphans");
        assert_eq!((found.quarantined, found.purged), (lost.len() as u64, 0));
        if restore {
            let back = lake.restore_orphans(&org("401")).await.expect("restored");
            assert_eq!(back, lost.len() as u64);
            assert_eq!(self.ground.orphans().await, lost, "all is where it was");
            let found = lake.orphans(&org("401"), &request).await.expect("orphans");
            assert_eq!(found.quarantined, lost.len() as u64);
        }
        let found = lake.orphans(&org("401"), &request).await.expect("orphans");
        assert_eq!((found.quarantined, found.purged), (0, lost.len() as u64));
        assert_eq!(self.ground.orphans().await, [].into());
        self.crashed = false;
    }

    async fn roll_back(&mut self, to: u8, refused: bool) {
        let kept = self.model.kept();
        let to = *pick(&kept, to).expect("a state");
        let named = self.model.tags.iter().find(|(_, snapshot)| **snapshot == to);
        let name = named.map_or_else(|| to.to_string(), |(name, _)| name.clone());
        let (lake, table) = (&self.ground.lake, &self.ground.table);
        let done = lake.rollback(&org("401"), table, &name, Uuid::new_v4()).await;
        let done = match done {
            Err(error) if error.code() == ErrorCode::LakeSchemaRefused => return,
            Err(error) => {
                assert!(refused && error.code() == ErrorCode::LakeFailed, "{error:?}");
                return;
            }
            Ok(done) => done,
        };
        assert_eq!(done.snapshot_id, to);
        match done.done {
            None => assert_eq!(self.model.main, Some(to), "it was there already"),
            Some(done) => self.model.roll_back(to, &done.kept_as),
        }
        self.partition = self.now().await.partition();
        self.remark().await;
    }

    /// Where the table does not know its marks any more, columns go by their names, and the next run
    /// reloads it.
    async fn remark(&mut self) {
        if self.now().await.schema().fields[0].source_id.is_some() {
            return;
        }
        let run = self.planned(&Action::Replace { rows: 2, columns: 1 });
        self.ground.catalog.next(&[]);
        self.run(run, false).await;
    }

    async fn expire(&mut self, versions: usize, history: usize, refused: bool) {
        let retention = Retention { versions, history_ms: -1, history_min: history };
        let (lake, table) = (&self.ground.lake, &self.ground.table);
        let planned = lake.expiry(&org("401"), table, &retention).await.expect("planned");
        let done = lake.expire(&org("401"), table, &retention, Uuid::new_v4()).await;
        let nothing = planned.names.is_empty() && planned.snapshots.is_empty();
        if refused && !nothing {
            assert_eq!(done.expect_err("refused").code(), ErrorCode::LakeFailed);
            return;
        }
        let before = self.model.states.len();
        let names = self.model.expire(versions, history);
        let done = done.expect("expired");
        assert_eq!(done.names, names);
        assert_eq!(done.snapshots, before - self.model.states.len());
    }

    /// The table is as the model.
    pub(super) async fn check(&self) {
        let now = self.now().await;
        assert_eq!(now.current_snapshot().map(|found| found.id), self.model.main);
        let present = self.model.now();
        let schema = table_schema(&present.columns);
        assert_eq!(now.schema(), schema);
        assert_eq!(state_of(&present.columns, &read(&now, Predicate::True).await), present);
        let snapshots: BTreeSet<i64> = now.snapshots().iter().map(|found| found.id).collect();
        assert_eq!(snapshots, self.model.states.keys().copied().collect());
        for (snapshot, state) in &self.model.states {
            let rows = read_at(&now, Some(*snapshot), Predicate::True).await;
            assert_eq!(state_of(&state.columns, &rows), *state, "{snapshot}");
        }
        let mut refs: BTreeMap<String, i64> =
            now.refs().into_iter().map(|found| (found.name, found.snapshot_id)).collect();
        assert_eq!(refs.remove("main"), self.model.main);
        assert_eq!(refs, self.model.tags);
        let files = now.files(&self.partition, &[]).await.expect("files");
        let live = files.files().iter().map(|file| file.cost.rows - file.cost.deleted_rows);
        assert_eq!(live.sum::<u64>(), present.rows.len() as u64, "deletes lie at their files");
        for filter in filters(&present) {
            let found = longs(&read(&now, filter.clone()).await, "id");
            assert_eq!(found, present.matching(&filter), "{filter:?}");
        }
    }

    /// And its files are as they have to be, with none left over.
    pub(super) async fn end(&mut self) {
        if self.crashed || self.forgets {
            self.orphans(false).await;
        }
        assert_eq!(self.ground.orphans().await, [].into());
    }
}

fn first_columns() -> Vec<Column> {
    vec![Column::new(ID, Kind::Long), Column::new(2, Kind::Int), Column::new(3, Kind::Text)]
}

/// The rows of files, and their ids in order.
async fn ids_in(table: &LakeTable, files: &[String]) -> (Vec<RecordBatch>, Vec<i64>) {
    let stream = table.read_files(&files.iter().cloned().collect()).await.expect("read");
    let batches: Vec<RecordBatch> = stream.try_collect().await.expect("rows");
    let ids = batches.iter().flat_map(ids_of).collect();
    (batches, ids)
}

/// The ids of rows, in their order.
fn ids_of(batch: &RecordBatch) -> Vec<i64> {
    let ids = batch.column_by_name("id").expect("ids");
    ids.as_any().downcast_ref::<Int64Array>().expect("long").values().to_vec()
}

/// The paths of some of the files.
fn some_of(files: &[ScanFile], chosen: u8) -> Vec<String> {
    let chosen = files.iter().enumerate().filter(|(at, _)| chosen >> (at % 8) & 1 == 1);
    chosen.map(|(_, file)| file.path.clone()).collect()
}

/// A state's rows, in batches of a few.
fn batches_of(state: &State) -> Vec<RecordBatch> {
    let values = |id: i32| state.rows.values().map(move |row| row.get(&id).cloned());
    let number = |value: Option<Value>| match value? {
        Value::Number(number) => Some(number),
        Value::Text(text) => panic!("{text} is no number"),
    };
    let text = |value: Option<Value>| match value? {
        Value::Text(text) => Some(text),
        Value::Number(number) => panic!("{number} is no text"),
    };
    let array = |column: &Column| -> ArrayRef {
        match column.kind {
            Kind::Long => Arc::new(values(column.id).map(number).collect::<Int64Array>()),
            Kind::Int => {
                let narrow = |value| Some(number(value)? as i32);
                Arc::new(values(column.id).map(narrow).collect::<Int32Array>())
            }
            Kind::Text => Arc::new(values(column.id).map(text).collect::<StringArray>()),
        }
    };
    let columns = state.columns.iter().map(array).collect();
    let all = batch(&table_schema(&state.columns), columns);
    let starts = (0..all.num_rows()).step_by(4);
    starts.map(|start| all.slice(start, (all.num_rows() - start).min(4))).collect()
}

/// The state that rows are of.
fn state_of(columns: &[Column], rows: &RecordBatch) -> State {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let schema = rows.schema();
    let found: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(found, names);
    let mut state = State::new(columns.to_vec());
    for at in 0..rows.num_rows() {
        let mut row = Row::new();
        for (column, array) in columns.iter().zip(rows.columns()) {
            if array.is_valid(at) {
                row.insert(column.id, value_at(column.kind, array, at));
            }
        }
        let Some(Value::Number(id)) = row.get(&ID) else { panic!("a row without an id") };
        let id = *id;
        assert!(state.rows.insert(id, row).is_none(), "row {id} is there twice");
    }
    state
}

fn value_at(kind: Kind, array: &ArrayRef, at: usize) -> Value {
    let any = array.as_any();
    match kind {
        Kind::Long => Value::Number(any.downcast_ref::<Int64Array>().expect("long").value(at)),
        Kind::Int => {
            Value::Number(i64::from(any.downcast_ref::<Int32Array>().expect("int").value(at)))
        }
        Kind::Text => {
            Value::Text(any.downcast_ref::<StringArray>().expect("text").value(at).to_owned())
        }
    }
}

/// Filters on every column, with values that are there and some that are not.
fn filters(state: &State) -> Vec<Predicate> {
    let mut filters = Vec::new();
    let middle = state.rows.keys().nth(state.rows.len() / 2).copied().unwrap_or(7);
    let id =
        |op, value| Predicate::Cmp { column: "id".to_owned(), op, value: Literal::Long(value) };
    filters.push(id(CmpOp::Eq, middle));
    filters.push(id(CmpOp::Lt, middle));
    for (number, column) in state.columns.iter().skip(1).enumerate() {
        let name = column.name.clone();
        let value = column.value(middle).unwrap_or_else(|| match column.kind {
            Kind::Text => Value::Text("ab".to_owned()),
            _ => Value::Number(3),
        });
        let value = match value {
            Value::Number(value) if column.kind == Kind::Int => Literal::Int(value as i32),
            Value::Number(value) => Literal::Long(value),
            Value::Text(text) => {
                let prefix = text.chars().take(3).collect();
                filters.push(Predicate::StartsWith { column: name.clone(), prefix });
                Literal::String(text)
            }
        };
        let ops = [CmpOp::Eq, CmpOp::NotEq, CmpOp::Lt, CmpOp::LtEq, CmpOp::Gt, CmpOp::GtEq];
        let op = ops[number % ops.len()];
        let cmp = Predicate::Cmp { column: name.clone(), op, value: value.clone() };
        filters.push(Predicate::Not(Box::new(cmp.clone())));
        filters.push(Predicate::Or(Box::new(cmp.clone()), Box::new(id(CmpOp::Gt, middle))));
        filters.push(cmp.and(Predicate::IsNotNull(name.clone())));
        filters.push(Predicate::In { column: name.clone(), values: vec![value] });
        filters.push(Predicate::IsNull(name));
    }
    filters
}
