//! A new state of a table in the making: what it will look like, and where its rows go.
//!
//! [`Stage::begin`] fixes the schema with its field ids and the partition spec; writers put files
//! below the table's location, where no metadata names them; [`Stage::commit`] (in [`crate::commit`])
//! publishes them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iceberg::spec::{
    PartitionSpecRef, Schema, SchemaRef as IcebergSchemaRef, SortOrder, SortOrderRef,
    TableMetadata, UnboundPartitionSpec,
};
use iceberg::{TableIdent, TableUpdate};
use polder_core::spec::{PartitionField, SortField};
use polder_core::{Content, Error, ErrorCode, Predicate, Result, TableSchema};
use uuid::Uuid;

use crate::catalog::{self, TableState};
use crate::commit::read_list;
use crate::lake::Lake;
use crate::schema::{self, Base};
use crate::storage::Store;
use crate::table::{Properties, follows};
use crate::write::{Budget, Layout, StagedDeletes, StagedFile, TableWriter};

/// What a run is going to publish.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// Identifies the run in the table for good: committing twice with one id publishes once.
    pub run_id: Uuid,
    /// The table's columns after the commit. Batches have exactly [`TableSchema::to_arrow`]'s layout.
    pub schema: TableSchema,
    pub partition: Vec<PartitionField>,
    /// The table's default sort order after the commit; `None` leaves the one it has. It says how files
    /// shall be, not how these are: see [`Stage::sorted_writer`].
    pub sort: Option<Vec<SortField>>,
    pub kind: StageKind,
    /// The size data files aim at, in bytes.
    pub target_file_bytes: u64,
    /// Bytes that all writers of the stage may hold together.
    pub memory_bytes: usize,
}

/// What becomes of the rows the table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// The new rows replace them; the table is created where there is none. Schema and partitions
    /// may be any. The result is a version (`v1`, `v2`, …).
    Replace,
    /// The new rows are added. The table has to exist; its columns may evolve as Iceberg allows
    /// without touching a file, and the partitions of new files may change.
    Append,
    /// Rows are added, and rows the table has may go: see [`Stage::commit_delta`]. Otherwise as
    /// [`Self::Append`].
    Merge,
    /// Files change, and the run's checkpoint does not: see [`Stage::rewrite_files`] and the like.
    /// The table has to exist and to have exactly these columns.
    Files,
}

/// What the run says of itself, to be checked before it is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSummary {
    /// Rows that the files have to hold.
    pub rows: u64,
    /// What they have to hold in all, in the columns of the stage: they are decoded again to see it. `None` where that
    /// is not known.
    pub content: Option<Content>,
    /// Columns in which no two rows of the files may be alike, looked at with the content; none if empty.
    pub unique: Vec<String>,
}

/// Rows that come and rows that go.
#[derive(Debug)]
pub struct RowDelta {
    pub files: Vec<StagedFile>,
    /// Of the table's data files, or of `files`.
    pub deletes: Vec<StagedDeletes>,
    /// Where rows to delete were looked for. A file that may hold such rows and comes in between is
    /// a conflict.
    pub among: Predicate,
}

/// A commit that is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub snapshot_id: i64,
    /// The run's commit had been made before this call, which found it.
    pub already: bool,
    /// The version (and tag) that a replace made.
    pub version: Option<String>,
}

/// See the module. Dropping a stage publishes nothing.
#[derive(Debug)]
pub struct Stage {
    pub(crate) lake: Lake,
    pub(crate) ident: TableIdent,
    pub(crate) request: StageRequest,
    /// The table as it was when the stage began.
    pub(crate) base: Option<TableState>,
    pub(crate) target: Target,
    writers: Writers,
}

/// Makes a stage's writers, also where the stage itself cannot go.
#[derive(Clone, Debug)]
pub struct Writers {
    layout: Arc<Layout>,
    budget: Arc<Budget>,
    made: Arc<AtomicUsize>,
}

impl Writers {
    /// [`Stage::writer`].
    pub fn writer(&self) -> TableWriter {
        self.numbered(None)
    }

    fn numbered(&self, order: Option<i32>) -> TableWriter {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        TableWriter::new(Arc::clone(&self.layout), Arc::clone(&self.budget), number, order)
    }
}

/// The table's shape after the commit.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) location: String,
    pub(crate) schema: IcebergSchemaRef,
    pub(crate) spec: PartitionSpecRef,
    pub(crate) order: SortOrderRef,
    /// What makes the table have this schema, spec and order. Empty if it has them already.
    pub(crate) updates: Vec<TableUpdate>,
}

impl Stage {
    pub(crate) fn begin(
        lake: &Lake,
        ident: TableIdent,
        base: Option<TableState>,
        new_location: Option<(Uuid, String)>,
        request: StageRequest,
    ) -> Result<Self> {
        let target = match (&base, new_location) {
            (Some(base), _) => target_of(base, &request)?,
            (None, Some(place)) if request.kind == StageKind::Replace => {
                new_target(place, &request)?
            }
            (None, _) => {
                return Err(Error::new(ErrorCode::LakeNotFound, "there is no table to append to")
                    .detail(ident.to_string())
                    .hint("load it once in full: run with --full-refresh"));
            }
        };
        let layout = Layout::new(&request, &target, lake.store().clone())?;
        let budget = Arc::new(Budget::new(request.memory_bytes));
        let writers = Writers { layout: Arc::new(layout), budget, made: Arc::default() };
        Ok(Self { lake: lake.clone(), ident, request, base, target, writers })
    }

    /// A writer with files of its own; one per split. All writers of a stage share its memory bound.
    pub fn writer(&self) -> TableWriter {
        self.writers.writer()
    }

    /// What makes them.
    pub fn writers(&self) -> Writers {
        self.writers.clone()
    }

    /// What all files of the stage have in common.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.writers.layout)
    }

    /// A writer whose files are marked as sorted by the table's order after the commit: rows have to
    /// come in that order, anew after each [`TableWriter::cut`]. Nobody checks that they do.
    ///
    /// # Errors
    /// `internal` for a table without an order.
    pub fn sorted_writer(&self) -> Result<TableWriter> {
        let order = &self.target.order;
        match i32::try_from(order.order_id) {
            Ok(id) if !order.is_unsorted() => Ok(self.writers.numbered(Some(id))),
            _ => Err(Error::new(ErrorCode::Internal, "the table has no order to sort rows by")),
        }
    }

    /// Removes staged files, and waits until what dropped writers have left is removed too. Only for a
    /// stage whose commit was not attempted.
    pub async fn abort(self, files: Vec<StagedFile>) {
        self.remove(&files).await;
        self.lake.store().cleaned_up().await;
    }

    /// Checks that the table is still the one the caller read before this stage began, so that what
    /// was decided from its rows (which of them are known) holds for the commit too.
    ///
    /// # Errors
    /// `lake.conflict` if a run committed in between.
    pub fn check_base(&self, seen: Option<&crate::LakeTable>) -> Result<()> {
        let unchanged = match (&self.base, seen) {
            (Some(base), Some(seen)) => follows(&base.metadata, seen.metadata()),
            (None, None) => true,
            _ => false,
        };
        if unchanged {
            return Ok(());
        }
        Err(Error::new(ErrorCode::LakeConflict, "another run changed the table meanwhile")
            .detail(self.ident.to_string()))
    }

    /// Checks that no file of the table is partitioned by a column that the stage drops: several
    /// readers, DuckDB and the `iceberg` crate among them, fail on such a table.
    ///
    /// # Errors
    /// `lake.schema_refused` if one is.
    pub(crate) async fn check_partitions(&self) -> Result<()> {
        let evolves = matches!(self.request.kind, StageKind::Append | StageKind::Merge);
        let Some(base) = self.base.as_ref().filter(|_| evolves) else { return Ok(()) };
        let metadata = &base.metadata;
        let present = metadata.current_schema();
        let lost = |id: i32| self.target.schema.field_by_id(id).is_none();
        let broken: HashMap<i32, &str> = metadata
            .partition_specs_iter()
            .filter_map(|spec| {
                let field = spec.fields().iter().find(|field| lost(field.source_id))?;
                Some((spec.spec_id(), present.name_by_field_id(field.source_id)?))
            })
            .collect();
        let Some(snapshot) = metadata.current_snapshot().filter(|_| !broken.is_empty()) else {
            return Ok(());
        };
        let listed = read_list(&self.store(), snapshot).await?;
        let Some(name) = listed.iter().find_map(|found| broken.get(&found.partition_spec_id))
        else {
            return Ok(());
        };
        let message = format!("column {name:?} cannot be dropped: files are partitioned by it");
        Err(Error::new(ErrorCode::LakeSchemaRefused, message).detail(self.ident.to_string()).hint(
            "set on_dropped_column: keep, or change `partition` and run `polder maintain repartition` \
             first",
        ))
    }

    /// Whether the table would have the shape that the files were written in, if they were staged now.
    pub(crate) fn has_shape_of(&self, present: &TableState) -> bool {
        // Files of a rewrite may be marked with the order's id.
        let marks = self.request.kind == StageKind::Files;
        target_of(present, &self.request).is_ok_and(|target| {
            target.schema == self.target.schema
                && target.spec == self.target.spec
                && (!marks || target.order == self.target.order)
        })
    }

    /// The store, as far as the table's metadata may lead.
    pub(crate) fn store(&self) -> Store {
        self.lake.store().of_table(&self.target.location)
    }

    pub(crate) async fn remove(&self, files: &[StagedFile]) {
        self.discard(files.iter().map(|file| file.location().to_owned()).collect()).await;
    }

    /// The partition spec that a file of the table was written for.
    ///
    /// # Errors
    /// `internal` if the table has no such spec.
    pub(crate) fn spec_of(&self, spec_id: i32) -> Result<PartitionSpecRef> {
        let base = self.base.as_ref().and_then(|base| base.metadata.partition_spec_by_id(spec_id));
        base.cloned().ok_or_else(|| Error::new(ErrorCode::Internal, "an unknown partition spec"))
    }

    /// Removes files that no metadata names.
    pub(crate) async fn discard(&self, locations: Vec<String>) {
        if let Err(error) = self.store().delete(locations).await {
            tracing::warn!(table = %self.ident, "staged files stay until orphan removal: {error}");
        }
    }
}

fn new_target((uuid, location): (Uuid, String), request: &StageRequest) -> Result<Target> {
    let schema = schema::replace(&request.schema, None)?;
    let spec = schema::partition_spec(&request.partition, &schema)?;
    let mut updates = vec![
        TableUpdate::AssignUuid { uuid },
        TableUpdate::SetLocation { location: location.clone() },
    ];
    updates.extend(reshape(schema.clone(), spec));
    let order = request.sort.as_deref().map(|sort| schema::sort_order(sort, &schema));
    updates.extend(ordered(order.transpose()?.unwrap_or_else(SortOrder::unsorted_order)));
    let target = previewed(None, location, updates)?;
    // Every file is read by these ids: the catalog must not have numbered the columns anew.
    if target.schema.as_struct() != schema.as_struct() {
        return Err(Error::new(ErrorCode::Internal, "a new table's field ids were changed"));
    }
    Ok(target)
}

/// The table's shape after the request, following on `base`.
fn target_of(base: &TableState, request: &StageRequest) -> Result<Target> {
    let metadata = &base.metadata;
    let present = metadata.current_schema();
    let marks = Properties(metadata.properties()).schema(present)?;
    let last_column_id = metadata.last_column_id();
    let old = Base { schema: present, marks: &marks, last_column_id };
    let updates = match request.kind {
        StageKind::Replace => {
            let schema = schema::replace(&request.schema, Some(&old))?;
            let spec = schema::partition_spec(&request.partition, &schema)?;
            with_order(metadata, &schema, request, reshape(schema.clone(), spec).to_vec())?
        }
        StageKind::Append | StageKind::Merge | StageKind::Files => {
            let schema = schema::evolve(&request.schema, &old)?;
            if request.kind == StageKind::Files && schema.as_struct() != present.as_struct() {
                let message = "the table's columns are others now";
                return Err(Error::new(ErrorCode::LakeConflict, message));
            }
            evolved(metadata, &schema, request)?
        }
    };
    previewed(Some(base), metadata.location().to_owned(), updates)
}

/// What gives the table this schema, and the request's partitions and order to new files.
fn evolved(
    metadata: &TableMetadata,
    schema: &Schema,
    request: &StageRequest,
) -> Result<Vec<TableUpdate>> {
    let mut updates = Vec::new();
    let lacks = |id: i32| schema.field_by_id(id).is_none();
    let spec = metadata.default_partition_spec();
    let other = spec.fields().iter().any(|field| lacks(field.source_id))
        || schema::fields_of_spec(spec, schema) != request.partition;
    let partition =
        other.then(|| schema::partition_spec(&request.partition, schema)).transpose()?;
    // A new spec may name a new column.
    updates.push(TableUpdate::AddSchema { schema: schema.clone() });
    updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
    if let Some(spec) = partition {
        updates.push(TableUpdate::AddSpec { spec });
        updates.push(TableUpdate::SetDefaultSpec { spec_id: -1 });
    }
    with_order(metadata, schema, request, updates)
}

/// The updates with what gives the table the request's order besides: an order that names a column
/// that goes has to go before the column, and one may name a column that comes.
fn with_order(
    metadata: &TableMetadata,
    schema: &Schema,
    request: &StageRequest,
    updates: Vec<TableUpdate>,
) -> Result<Vec<TableUpdate>> {
    let present = metadata.default_sort_order();
    let lacks = |id: i32| schema.field_by_id(id).is_none();
    let lost = present.fields.iter().any(|field| lacks(field.source_id));
    let mut all = Vec::with_capacity(updates.len() + 4);
    if lost {
        all.extend(ordered(SortOrder::unsorted_order()));
    }
    all.extend(updates);
    let Some(sort) = &request.sort else { return Ok(all) };
    let order = schema::sort_order(sort, schema)?;
    let has = if lost { order.is_unsorted() } else { order.fields == present.fields };
    if !has {
        all.extend(ordered(order));
    }
    Ok(all)
}

fn ordered(sort_order: SortOrder) -> [TableUpdate; 2] {
    [
        TableUpdate::AddSortOrder { sort_order },
        TableUpdate::SetDefaultSortOrder { sort_order_id: -1 },
    ]
}

fn reshape(schema: Schema, spec: UnboundPartitionSpec) -> [TableUpdate; 4] {
    [
        TableUpdate::AddSchema { schema },
        TableUpdate::SetCurrentSchema { schema_id: -1 },
        TableUpdate::AddSpec { spec },
        TableUpdate::SetDefaultSpec { spec_id: -1 },
    ]
}

/// Applies the updates here, to learn the ids that the catalog will give.
fn previewed(
    base: Option<&TableState>,
    location: String,
    updates: Vec<TableUpdate>,
) -> Result<Target> {
    let metadata = catalog::apply(base, updates.clone()).map_err(|cause| {
        Error::new(ErrorCode::LakeSchemaRefused, "the table cannot take these columns")
            .hint("a column may have the name of a partition field the table had: rename it")
            .caused_by(cause)
    })?;
    let unchanged = base.is_some_and(|base| {
        base.metadata.current_schema_id() == metadata.current_schema_id()
            && base.metadata.default_partition_spec_id() == metadata.default_partition_spec_id()
            && base.metadata.default_sort_order_id() == metadata.default_sort_order_id()
    });
    Ok(Target {
        location,
        schema: metadata.current_schema().clone(),
        spec: metadata.default_partition_spec().clone(),
        order: metadata.default_sort_order().clone(),
        updates: if unchanged { Vec::new() } else { updates },
    })
}
