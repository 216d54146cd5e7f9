//! The eight things a commit can do to a table, each made once and checkable by its ids.

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use polder_core::retention::Retention;
use polder_core::{Authorized, OrgId, Result};
use polder_lake::{
    CmpOp, Lake, LakeTable, Literal, Predicate, ScanFile, ScanRequest, Stage, StageKind,
    StageRequest, StagedFile,
};
use uuid::Uuid;

use super::Ground;
use crate::support::*;

/// What a commit can do to the table of [`Before`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AppendFiles,
    ReplaceTable,
    RewriteFiles,
    OverwriteFiles,
    DeleteFiles,
    RowDelta,
    Rollback,
    ExpireSnapshots,
}

pub(crate) const CHANGES: [Change; 8] = [
    Change::AppendFiles,
    Change::ReplaceTable,
    Change::RewriteFiles,
    Change::OverwriteFiles,
    Change::DeleteFiles,
    Change::RowDelta,
    Change::Rollback,
    Change::ExpireSnapshots,
];

/// Everything but the latest version and the present state goes.
pub(crate) const RETENTION: Retention = Retention { versions: 1, history_ms: -1, history_min: 1 };
/// The ids before a change.
pub(crate) const IDS: [i64; 5] = [0, 1, 2, 3, 5];

/// A table whose first version, `v1`, had the ids 90 to 92; the second has two files, of the ids 0 to
/// 2 and 3 to 5, and 4 is deleted by its position.
pub(crate) struct Before {
    org: Authorized<OrgId>,
    table: LakeTable,
    files: Vec<ScanFile>,
    first: ScanFile,
}

impl Before {
    pub(crate) async fn make(ground: &Ground) -> Self {
        let (lake, name) = (&ground.lake, ground.table.as_str());
        let schema = id_and_text();
        let runs =
            [(StageKind::Replace, 90..93), (StageKind::Replace, 0..3), (StageKind::Append, 3..6)];
        for (kind, ids) in runs {
            let request = request(kind, &schema);
            run_of(lake, (&ground.org, name), request, &[rows(ids)]).await.expect("run");
        }
        let now = ground.now().await;
        let second = only_file(&now, CmpOp::GtEq).await;
        let stage = lake.stage_on(&now, files_request()).expect("stage");
        let deletes = stage.write_deletes(&[(second, vec![1])]).await.expect("deletes");
        stage.row_delta(deletes, Vec::new()).await.expect("deleted");
        let table = ground.now().await;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let files = table.plan(scan).await.expect("plan").files;
        let first = only_file(&table, CmpOp::Lt).await;
        Self { org: ground.org.clone(), table, files, first }
    }

    /// Files as a rewrite takes them: their addresses and their rows.
    async fn all(&self) -> Result<(Vec<String>, Vec<RecordBatch>)> {
        let paths: Vec<String> = self.files.iter().map(|file| file.path.clone()).collect();
        let rows = self.table.read_files(&paths.iter().cloned().collect()).await?;
        Ok((paths, rows.try_collect().await?))
    }
}

fn files_request() -> StageRequest {
    request(StageKind::Files, &id_and_text())
}

fn than_3(op: CmpOp) -> Predicate {
    Predicate::Cmp { column: "id".to_owned(), op, value: Literal::Long(3) }
}

async fn only_file(table: &LakeTable, op: CmpOp) -> ScanFile {
    let scan = ScanRequest { snapshot: None, filter: than_3(op), columns: None };
    let mut files = table.plan(scan).await.expect("plan").files;
    assert_eq!(files.len(), 1);
    files.remove(0)
}

/// The rows in files, or the error; its files are gone then.
pub(crate) async fn staged(stage: &Stage, batches: Vec<RecordBatch>) -> Result<Vec<StagedFile>> {
    let mut writer = stage.writer();
    for batch in batches {
        writer.write(batch).await?;
    }
    writer.finish().await
}

impl Change {
    /// Whether it is a run, which stages before it publishes: two commits.
    pub(crate) fn stages(self) -> bool {
        matches!(self, Self::AppendFiles | Self::ReplaceTable)
    }

    /// The ids after the change.
    pub(crate) fn expected(self) -> &'static [i64] {
        match self {
            Self::AppendFiles => &[0, 1, 2, 3, 5, 6],
            Self::ReplaceTable => &[6],
            Self::RewriteFiles | Self::ExpireSnapshots => &IDS,
            Self::OverwriteFiles => &[3, 5, 6],
            Self::DeleteFiles => &[3, 5],
            Self::RowDelta => &[0, 2, 3, 5, 6],
            Self::Rollback => &[90, 91, 92],
        }
    }

    /// The snapshots after the change.
    pub(crate) fn snapshots(self) -> usize {
        match self {
            Self::Rollback => 4,
            // The second version and the present state.
            Self::ExpireSnapshots => 2,
            _ => 5,
        }
    }

    /// The delete files after the change.
    pub(crate) fn delete_files(self) -> usize {
        match self {
            Self::ReplaceTable | Self::RewriteFiles | Self::Rollback => 0,
            Self::RowDelta => 2,
            _ => 1,
        }
    }

    /// Makes the change under an id. Returns whether it had been made before.
    pub(crate) async fn make(self, lake: &Lake, before: &Before, id: Uuid) -> Result<bool> {
        let (org, name) = (&before.org, before.table.name());
        let stage = || lake.stage_on(&before.table, StageRequest { run_id: id, ..files_request() });
        match self {
            Self::AppendFiles | Self::ReplaceTable => {
                let appends = self == Self::AppendFiles;
                let kind = if appends { StageKind::Append } else { StageKind::Replace };
                let request = StageRequest { run_id: id, ..request(kind, &id_and_text()) };
                let stage = lake.stage(org, name, request).await?;
                let files = staged(&stage, vec![rows(6..7)]).await?;
                let summary = summary(&files);
                Ok(stage.commit(files, &checkpoint(6), summary).await?.already)
            }
            Self::RewriteFiles => {
                let (old, rows) = before.all().await?;
                let stage = stage()?;
                let files = staged(&stage, rows).await?;
                Ok(stage.rewrite_files(old, files).await?.already)
            }
            Self::OverwriteFiles => {
                let stage = stage()?;
                let files = staged(&stage, vec![rows(6..7)]).await?;
                let old = vec![before.first.path.clone()];
                Ok(stage.overwrite_files(than_3(CmpOp::Lt), old, files).await?.already)
            }
            Self::DeleteFiles => {
                Ok(stage()?.delete_files(vec![before.first.path.clone()]).await?.already)
            }
            Self::RowDelta => {
                let stage = stage()?;
                let files = staged(&stage, vec![rows(6..7)]).await?;
                match stage.write_deletes(&[(before.first.clone(), vec![1])]).await {
                    Ok(deletes) => Ok(stage.row_delta(deletes, files).await?.already),
                    Err(error) => {
                        stage.abort(files).await;
                        Err(error)
                    }
                }
            }
            Self::Rollback => lake.rollback(org, name, "v1", id).await.map(|_| false),
            Self::ExpireSnapshots => lake.expire(org, name, &RETENTION, id).await.map(|_| false),
        }
    }
}
