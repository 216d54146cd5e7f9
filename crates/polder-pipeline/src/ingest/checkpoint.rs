//! What a run leaves for the next one: how far the table has read its source, and what it holds by then.

use std::collections::BTreeMap;

use polder_core::checkpoint::ObjectState;
use polder_core::spec::Mode;
use polder_core::{Checkpoint, Content, CursorValue};

use super::copy::Copied;
use super::{IngestReport, IngestRequest};

/// How far the cursor may move, and how far it moves in any case.
type Bounds = (Option<CursorValue>, Option<CursorValue>);

/// The checkpoint of a run that began from `base` and has copied what it read.
pub(super) fn after(
    request: &IngestRequest,
    base: Option<&Checkpoint>,
    report: &IngestReport,
    (copied, bounds, objects): (&Copied, Bounds, BTreeMap<String, ObjectState>),
) -> Checkpoint {
    let (ceiling, floor) = bounds;
    let lower = base.and_then(|base| base.cursor.clone());
    let seen = copied.cursor_max.clone().into_iter().chain(lower).reduce(CursorValue::max);
    let cursor = seen.map(|seen| ceiling.map_or(seen.clone(), |ceiling| seen.min(ceiling)));
    let cursor = cursor.into_iter().chain(floor).reduce(CursorValue::max);
    let content = content_after(request, base, report, copied.content);
    // A row that an earlier run has missed stays missing.
    let guarantee = match base {
        Some(base) => base.guarantee.map(|least| least.max(report.guarantee)),
        None => Some(report.guarantee),
    };
    Checkpoint {
        cursor,
        objects,
        reads: request.table.reads().to_string(),
        snapshot: report.source_snapshot.clone(),
        content,
        guarantee,
    }
}

/// What the table holds after the run has added its rows to those of `base`; `None` where its columns
/// change under these, or where a merge takes rows away.
fn content_after(
    request: &IngestRequest,
    base: Option<&Checkpoint>,
    report: &IngestReport,
    added: Content,
) -> Option<Content> {
    if request.table.mode == Mode::Merge {
        return None;
    }
    let before = match base {
        Some(base) => base.content.filter(|_| report.schema_changes.is_empty())?,
        None => Content::default(),
    };
    Some(before.and(added))
}
