//! Planning a scan: which files a filter leaves, by partition and column statistics. Their rows are
//! read in [`crate::read`].

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{Stream, TryStreamExt};
use iceberg::expr::Predicate as IcebergPredicate;
use iceberg::scan::FileScanTask;
use iceberg::spec::{DataContentType, ManifestContentType, PrimitiveType, Struct, Transform, Type};
use polder_core::spec::PartitionField;
use polder_core::{Error, ErrorCode, Predicate, Result};

use crate::catalog::TableState;
use crate::commit::{is_live, read_list};
use crate::error;
use crate::predicate::{Prunable, pruning};
use crate::schema;
use crate::storage::Store;
use crate::table::LakeTable;

/// Which rows and columns of which state.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// `None`: the table as it is now.
    pub snapshot: Option<i64>,
    pub filter: Predicate,
    /// Top-level columns, in this order; `None` for all.
    pub columns: Option<Vec<String>>,
}

/// The files that may hold wanted rows.
#[derive(Clone, Debug)]
pub struct ScanPlan {
    pub files: Vec<ScanFile>,
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanFile {
    /// The file's full address: `file:///…` or `s3://…`.
    pub path: String,
    pub size_bytes: u64,
    /// Rows in the file, before deletes.
    pub rows: Option<u64>,
    /// Some of its rows may be deleted: read such a file through [`LakeTable::read`].
    pub has_deletes: bool,
}

/// A file's place in the partitions of one spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePartition {
    pub(crate) spec_id: i32,
    pub(crate) values: Struct,
}

/// Batches in the layout of [`LakeTable::schema_at`], without field ids.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

impl LakeTable {
    /// Finds the files that may hold wanted rows, by partition and column statistics.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown snapshot; `query.invalid` for an unknown column; `lake.corrupt`
    /// for metadata that names a file outside the org's storage.
    pub async fn plan(&self, scan: ScanRequest) -> Result<ScanPlan> {
        let mut files: Vec<ScanFile> = self.tasks(&scan).await?.iter().map(scan_file).collect();
        // The crate plans concurrently; the order of the answer should not depend on it.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(ScanPlan { files })
    }

    /// Reads the wanted rows. Dropping the stream stops reading.
    ///
    /// # Errors
    /// As [`Self::plan`]; `lake.*` in the stream when files cannot be read.
    pub async fn read(&self, scan: ScanRequest) -> Result<BatchStream> {
        let tasks = self.tasks(&scan).await?;
        self.read_tasks(scan, tasks)
    }

    /// Reads all rows of some files of the table as it is now, deleted rows left out.
    ///
    /// # Errors
    /// As [`Self::read`]; `lake.not_found` if the table has one of the files no more.
    pub async fn read_files(&self, files: &HashSet<String>) -> Result<BatchStream> {
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let mut tasks = self.tasks(&scan).await?;
        tasks.retain(|task| files.contains(&task.data_file_path));
        let found: HashSet<_> = tasks.iter().map(|task| &task.data_file_path).collect();
        if found.len() < files.len() {
            let message = format!("files of table {} are gone", self.name());
            return Err(Error::new(ErrorCode::LakeNotFound, message));
        }
        self.read_tasks(scan, tasks)
    }

    /// The files of the table as it is now that are partitioned in another way.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub async fn files_partitioned_otherwise(
        &self,
        partition: &[PartitionField],
    ) -> Result<Vec<ScanFile>> {
        let metadata = self.metadata();
        let schema = metadata.current_schema();
        let other: HashSet<i32> = metadata
            .partition_specs_iter()
            .filter(|spec| schema::fields_of_spec(spec, schema) != partition)
            .map(|spec| spec.spec_id())
            .collect();
        let places = places(&self.state(), self.store()).await?;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let mut files = self.plan(scan).await?.files;
        files.retain(|file| {
            places.get(&file.path).is_none_or(|place| other.contains(&place.spec_id))
        });
        Ok(files)
    }

    pub(crate) async fn tasks(&self, scan: &ScanRequest) -> Result<Vec<FileScanTask>> {
        let failed = |cause| error::iceberg("plan the scan", cause);
        let metadata = self.metadata();
        let Some(snapshot) = scan.snapshot.or(metadata.current_snapshot_id()) else {
            return Ok(Vec::new());
        };
        let columns = self.prunable(scan, snapshot)?;
        let builder = self.iceberg().scan().snapshot_id(snapshot);
        let builder = match pruning(&scan.filter, &columns) {
            IcebergPredicate::AlwaysTrue => builder,
            IcebergPredicate::AlwaysFalse => return Ok(Vec::new()),
            filter => builder.with_filter(filter),
        };
        let scan = builder.build().map_err(failed)?;
        let tasks = scan.plan_files().await.map_err(failed)?;
        let tasks: Vec<FileScanTask> = tasks.try_collect().await.map_err(failed)?;
        // Engines read these without asking this table's store. Their deletes are read through it.
        let store = self.store();
        tasks.iter().try_for_each(|task| store.path(&task.data_file_path).map(drop))?;
        Ok(tasks)
    }

    /// The columns of the filter whose statistics say what the filter means, by the filter's names.
    ///
    /// Statistics belong to field ids, and the crate compares them in the type of the schema they
    /// were written in: a column that was renamed is found by its id, one that was ever of another
    /// type skips nothing.
    fn prunable(&self, scan: &ScanRequest, snapshot: i64) -> Result<HashMap<String, Prunable>> {
        let asked = self.iceberg_schema(scan.snapshot)?;
        let schema = self.iceberg_schema(Some(snapshot))?;
        let metadata = self.metadata();
        let specs = || metadata.partition_specs_iter().flat_map(|spec| spec.fields());
        // The crate cannot plan a filter over partitions whose column is gone from the schema.
        let plannable = specs().all(|field| schema.field_by_id(field.source_id).is_some());
        let mut found = HashMap::new();
        for name in scan.filter.columns() {
            let field = asked.as_struct().field_by_name(name).ok_or_else(|| {
                Error::new(ErrorCode::QueryInvalid, format!("there is no column {name:?}"))
            })?;
            let Some(own) = schema.field_by_id(field.id).filter(|_| plannable) else { continue };
            let Type::Primitive(primitive) = &*own.field_type else { continue };
            // Nor does it know how to truncate bytes and decimals.
            let uncut = matches!(primitive, PrimitiveType::Binary | PrimitiveType::Decimal { .. });
            let truncated = uncut
                && specs().any(|spec| {
                    spec.source_id == own.id && matches!(spec.transform, Transform::Truncate(_))
                });
            let mut past = metadata.schemas_iter().filter_map(|past| past.field_by_id(own.id));
            if !truncated && past.all(|past| same_statistics(&past.field_type, &own.field_type)) {
                let data_type = schema::lake_type(&own.field_type)?;
                found.insert(name.to_owned(), Prunable { name: own.name.clone(), data_type });
            }
        }
        Ok(found)
    }

    pub(crate) fn layout(&self, scan: &ScanRequest) -> Result<Layout> {
        let (columns, ids) = self.schema_at(scan.snapshot)?;
        let plain = columns.to_arrow();
        let Some(names) = &scan.columns else {
            return Ok(Layout { ids, plain, wanted: columns.fields.len() });
        };
        let mut seen = HashSet::new();
        let mut indices = Vec::new();
        for name in names.iter().map(String::as_str).chain(scan.filter.columns()) {
            let index = plain.index_of(name).map_err(|_| {
                Error::new(ErrorCode::QueryInvalid, format!("there is no column {name:?}"))
            })?;
            let asked = indices.len() < names.len();
            if seen.insert(index) || asked {
                indices.push(index);
            }
        }
        let project = |schema: &SchemaRef| {
            let chosen = schema.project(&indices);
            chosen.map(Arc::new).map_err(|cause| error::arrow("choose columns", cause))
        };
        Ok(Layout { ids: project(&ids)?, plain: project(&plain)?, wanted: names.len() })
    }
}

/// The columns to read.
pub(crate) struct Layout {
    /// With field ids at every level.
    pub(crate) ids: SchemaRef,
    pub(crate) plain: SchemaRef,
    /// How many of them, from the start, were asked for: the filter may need more.
    pub(crate) wanted: usize,
}

/// Where the live data files of a state lie in the table's partitions, by address.
pub(crate) async fn places(
    state: &TableState,
    store: &Store,
) -> Result<HashMap<String, FilePartition>> {
    let failed = |cause| error::iceberg("read a manifest", cause);
    let Some(snapshot) = state.metadata.current_snapshot() else { return Ok(HashMap::new()) };
    let store = store.of_table(state.metadata.location());
    let file_io = store.file_io();
    let mut places = HashMap::new();
    for manifest in read_list(&store, snapshot).await? {
        if manifest.content != ManifestContentType::Data || !is_live(&manifest) {
            continue;
        }
        let loaded = manifest.load_manifest(&file_io).await.map_err(failed)?;
        for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
            let values = entry.data_file().partition().clone();
            let place = FilePartition { spec_id: manifest.partition_spec_id, values };
            places.insert(entry.file_path().to_owned(), place);
        }
    }
    Ok(places)
}

/// Whether bounds written for one type may be compared with values of the other. A decimal of
/// another precision is the same number.
fn same_statistics(a: &Type, b: &Type) -> bool {
    let scale = |t: &Type| match t {
        Type::Primitive(PrimitiveType::Decimal { scale, .. }) => Some(*scale),
        _ => None,
    };
    a == b || (scale(a).is_some() && scale(a) == scale(b))
}

pub(crate) fn scan_file(task: &FileScanTask) -> ScanFile {
    debug_assert!(task.deletes.iter().all(|file| file.file_type != DataContentType::Data));
    ScanFile {
        path: task.data_file_path.clone(),
        size_bytes: task.file_size_in_bytes,
        rows: task.record_count,
        has_deletes: !task.deletes.is_empty(),
    }
}
