//! What a run reads: everything or what came since the checkpoint, and whether the columns are there that
//! its table spec names. The source is not asked here.

use polder_core::spec::{Mode, TableSpec};
use polder_core::{Checkpoint, Error, ErrorCode, Result, Source, TableSchema};
use polder_lake::LakeTable;

use super::{IngestRequest, Outcome};

/// What a run reads, and why.
pub(super) enum Scope {
    Full(&'static str),
    Since(Checkpoint),
}

/// What a run has to read.
///
/// # Errors
/// `spec.invalid` for a mode that lacks what it needs.
pub(super) fn decide(
    request: &IngestRequest,
    source: &dyn Source,
    table: Option<&LakeTable>,
) -> Result<Scope> {
    let full = |reason| Ok(Scope::Full(reason));
    let spec = &request.table;
    if spec.mode == Mode::FullRefresh {
        return full("mode: full_refresh");
    }
    let capabilities = source.capabilities();
    let follows = capabilities.cursor && spec.cursor.is_some();
    if spec.mode == Mode::Merge && (spec.key.is_empty() || !follows) {
        return Err(Error::new(ErrorCode::SpecInvalid, "mode: merge needs a key and a cursor")
            .hint("name them: key: [id], cursor: updated_at; files have none: use mode: append"));
    }
    if !(capabilities.objects || follows) {
        return Err(Error::new(ErrorCode::SpecInvalid, "mode: append needs a cursor here")
            .hint("name the column by which new and changed rows are found: cursor: updated_at"));
    }
    let Some(table) = table else { return full("first load") };
    if request.full_refresh {
        return full("asked for");
    }
    let Some(checkpoint) = table.checkpoint()? else { return full("no checkpoint") };
    let reads = spec.reads().to_string();
    if checkpoint.reads != reads {
        return full("the table spec reads other rows");
    }
    if !capabilities.objects && checkpoint.cursor.is_none() {
        return full("no cursor value seen yet");
    }
    Ok(Scope::Since(checkpoint))
}

/// What the run does, and the reason of a full load.
pub(super) fn scope_words(request: &IngestRequest, scope: &Scope) -> (Outcome, Option<String>) {
    match scope {
        Scope::Full(reason) => (Outcome::FullRefresh, Some((*reason).to_owned())),
        Scope::Since(_) if request.table.mode == Mode::Merge => (Outcome::Merge, None),
        Scope::Since(_) => (Outcome::Append, None),
    }
}

/// Every column the spec names has to exist: in the table to partition and sort it, in the source to tell
/// its rows apart and to find new ones. A schema that was inferred (`complete` is false) may lack a mark
/// that no row has yet.
pub(super) fn check_columns(spec: &TableSpec, schema: &TableSchema, complete: bool) -> Result<()> {
    let retention = spec.retention.iter().map(|kept| (&kept.column, true));
    let sort = spec.sort.iter().flatten().map(|field| (&field.column, true));
    let partition = spec.partition.iter().map(|field| (&field.column, true)).chain(retention);
    let marks = spec.deleted_at.as_ref().filter(|_| complete);
    let of_source = spec.key.iter().chain(&spec.cursor).chain(marks);
    let of_source = of_source.map(|column| (column, false));
    for (column, may_be_retired) in of_source.chain(partition).chain(sort) {
        if schema.field(column).is_none_or(|field| field.retired && !may_be_retired) {
            let present = schema.fields.iter().filter(|field| !field.retired);
            let names: Vec<_> = present.map(|field| field.name.as_str()).collect();
            return Err(Error::new(
                ErrorCode::SpecUnknownName,
                format!("the source table has no column {column:?}"),
            )
            .hint(format!("its columns are: {}", names.join(", "))));
        }
    }
    Ok(())
}
