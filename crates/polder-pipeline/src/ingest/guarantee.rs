//! What runs of a table can promise, before there is one.

use std::num::NonZeroUsize;
use std::sync::Arc;

use polder_core::spec::{Mode, TableSpec};
use polder_core::{Assurance, CursorRange, OrgId, Result, Source};

use super::{IngestLimits, whole_table};

/// The guarantee that runs of the table have as far as its spec, and the source's catalog and rights,
/// tell; a run's report has the one it had. Reads no rows.
///
/// # Errors
/// What the source reports: of a table that is not there, for instance.
pub async fn expected_guarantee(
    source: &dyn Source,
    org: &OrgId,
    spec: &TableSpec,
) -> Result<Assurance> {
    let limits = IngestLimits { splits: NonZeroUsize::MIN, memory_bytes: 0, connections: None };
    let mut read = whole_table(spec, org, limits, &Arc::default());
    if spec.mode != Mode::FullRefresh {
        read.cursor = spec.cursor.clone().map(|column| CursorRange { column, lower: None });
    }
    Ok(Assurance::of(spec, &source.doubts(&read).await?))
}
