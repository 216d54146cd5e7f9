//! A table's metadata as tables, under Trino's names: `"opportunity$snapshots"`, `$history`,
//! `$refs`, `$files`, `$partitions`; and the history's answer to "which snapshot was current at this
//! time".

mod files;
mod partitions;
mod texts;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, MapBuilder, MapFieldNames, RecordBatch, StringArray,
    StringBuilder, TimestampMicrosecondArray,
};
use datafusion::catalog::{MemTable, TableProvider};
use polder_core::{Error, ErrorCode, Result};

use super::error::planning;
use polder_lake::{LakeTable, RefKind, SnapshotInfo, Summary};

/// Which of a table's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Snapshots,
    History,
    Refs,
    Files,
    Partitions,
}

impl Kind {
    /// Whether it is of one state, which a version clause names.
    pub(super) fn is_of_state(self) -> bool {
        matches!(self, Self::Files | Self::Partitions)
    }
}

/// `opportunity$files` → the table's name and which metadata.
pub(super) fn split(name: &str) -> Option<(&str, Kind)> {
    let (base, kind) = name.rsplit_once('$')?;
    let kind = match kind {
        "snapshots" => Kind::Snapshots,
        "history" => Kind::History,
        "refs" => Kind::Refs,
        "files" => Kind::Files,
        "partitions" => Kind::Partitions,
        _ => return None,
    };
    Some((base, kind))
}

/// The metadata table; `snapshot` matters to those of one state only.
pub(super) async fn table(
    table: &LakeTable,
    kind: Kind,
    snapshot: Option<i64>,
) -> Result<Arc<dyn TableProvider>> {
    let columns = match kind {
        Kind::Snapshots => snapshots(table)?,
        Kind::History => history(table),
        Kind::Refs => refs(table),
        Kind::Files => files::columns(&table.metrics(snapshot).await?)?,
        Kind::Partitions => partitions::columns(&table.metrics(snapshot).await?)?,
    };
    let batch = RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| planning(error.into()))?;
    let memory = MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(planning)?;
    Ok(Arc::new(memory))
}

type Columns = Vec<(&'static str, ArrayRef, bool)>;

fn snapshots(table: &LakeTable) -> Result<Columns> {
    let all = table.snapshots();
    let recorded = all.iter().map(|snapshot| table.recorded(snapshot.id).unzip());
    let (lists, summaries): (Vec<Option<String>>, Vec<Option<Summary>>) = recorded.unzip();
    let run = |s: &SnapshotInfo| s.run_id.map(|id| id.to_string());
    let refs = |s: &SnapshotInfo| s.refs.join(", ");
    Ok(vec![
        ("committed_at", times(all.iter().map(|s| s.timestamp_ms)), false),
        ("snapshot_id", Arc::new(Int64Array::from_iter_values(all.iter().map(|s| s.id))), false),
        ("parent_id", Arc::new(all.iter().map(|s| s.parent).collect::<Int64Array>()), true),
        ("operation", texts(all.iter().map(|s| Some(s.operation.clone()))), false),
        ("manifest_list", texts(lists.into_iter()), true),
        ("summary", self::summaries(&summaries)?, true),
        ("rows", counts(all.iter().map(|s| s.rows)), true),
        ("files", counts(all.iter().map(|s| s.files)), true),
        ("run_id", texts(all.iter().map(run)), true),
        ("refs", texts(all.iter().map(|s| Some(refs(s)))), false),
    ])
}

fn summaries(all: &[Option<Summary>]) -> Result<ArrayRef> {
    let mut maps = MapBuilder::new(Some(map_names()), StringBuilder::new(), StringBuilder::new());
    for summary in all {
        for (key, value) in summary.iter().flatten() {
            maps.keys().append_value(key);
            maps.values().append_value(value);
        }
        maps.append(summary.is_some()).map_err(|error| planning(error.into()))?;
    }
    Ok(Arc::new(maps.finish()))
}

/// What Iceberg calls the parts of a map.
fn map_names() -> MapFieldNames {
    MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() }
}

fn history(table: &LakeTable) -> Columns {
    let all = table.history();
    let snapshots = table.snapshots();
    let parent = |id: i64| snapshots.iter().find(|s| s.id == id).and_then(|s| s.parent);
    let ancestors = ancestors(table);
    vec![
        ("made_current_at", times(all.iter().map(|(ms, _)| *ms)), false),
        (
            "snapshot_id",
            Arc::new(Int64Array::from_iter_values(all.iter().map(|(_, id)| *id))),
            false,
        ),
        (
            "parent_id",
            Arc::new(all.iter().map(|(_, id)| parent(*id)).collect::<Int64Array>()),
            true,
        ),
        (
            "is_current_ancestor",
            Arc::new(
                all.iter().map(|(_, id)| Some(ancestors.contains(id))).collect::<BooleanArray>(),
            ),
            false,
        ),
    ]
}

fn ancestors(table: &LakeTable) -> Vec<i64> {
    let snapshots = table.snapshots();
    let mut ancestors = Vec::new();
    let mut next = table.current_snapshot().map(|s| s.id);
    while let Some(id) = next.filter(|id| !ancestors.contains(id)) {
        ancestors.push(id);
        next = snapshots.iter().find(|s| s.id == id).and_then(|s| s.parent);
    }
    ancestors
}

fn refs(table: &LakeTable) -> Columns {
    let all = table.refs();
    vec![
        ("name", texts(all.iter().map(|r| Some(r.name.clone()))), false),
        ("type", texts(all.iter().map(|r| Some(kind(r.kind)))), false),
        (
            "snapshot_id",
            Arc::new(Int64Array::from_iter_values(all.iter().map(|r| r.snapshot_id))),
            false,
        ),
    ]
}

fn kind(kind: RefKind) -> String {
    let name = match kind {
        RefKind::Branch => "BRANCH",
        RefKind::Tag => "TAG",
    };
    name.to_owned()
}

fn times(milliseconds: impl Iterator<Item = i64>) -> ArrayRef {
    let micros = milliseconds.map(|ms| ms.saturating_mul(1000));
    Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("+00:00"))
}

fn counts(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(values.map(|v| v.and_then(|v| i64::try_from(v).ok())).collect::<Int64Array>())
}

fn texts(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

/// The snapshot that was the table's current one at `ms` (milliseconds since the epoch).
pub(super) fn at(table: &LakeTable, ms: i64) -> Result<i64> {
    let history = table.history();
    let found = history.iter().rev().find(|(since, _)| *since <= ms).map(|(_, id)| *id);
    found.ok_or_else(|| {
        Error::new(ErrorCode::LakeNotFound, "the table had no data yet at that time")
            .hint("\"<table>$history\" shows since when each snapshot was current")
    })
}
