//! One lake table at one snapshot as DataFusion scans it.
//!
//! Files are chosen by the lake (manifests, partitions, column statistics) and read by DataFusion's
//! Parquet reader, spread over the partitions by size; DataFusion splits large files further by row
//! groups. Tables with delete files go through Iceberg's own reader.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::project_schema;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::{TableType, physical_plan::FileSource};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt, TryStreamExt};
use polder_core::TableSchema;

use super::field_ids::FieldIdAdapterFactory;
use super::filter;
use super::parquet::LakeFiles;
use super::statistics;
use super::views;
use polder_lake::{Lake, LakeTable, Predicate, ScanFile, ScanRequest, SnapshotInfo};

/// Bytes read from a file's end in one go, in the hope that its footer is among them.
pub(super) const FOOTER_BYTES: usize = 64 * 1024;

/// What every scan of the lake needs.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) url: ObjectStoreUrl,
    pub(super) lake: Lake,
    /// Footers by file. Files are never rewritten under the same name.
    pub(super) footers: Arc<dyn FileMetadataCache>,
}

/// A table's state that a query names.
pub(super) struct LakeTableProvider {
    table: LakeTable,
    /// `None` for the table as it is now.
    snapshot: Option<i64>,
    columns: TableSchema,
    /// Its texts are [`views`].
    schema: SchemaRef,
    files: Files,
}

impl LakeTableProvider {
    /// # Errors
    /// What [`LakeTable::schema_at`] says of the snapshot.
    pub(super) fn new(
        table: LakeTable,
        snapshot: Option<i64>,
        files: Files,
    ) -> polder_core::Result<Self> {
        let (columns, schema) = table.schema_at(snapshot)?;
        Ok(Self { table, snapshot, columns, schema: views::of(&schema), files })
    }

    /// The columns alone are wanted, for `information_schema` to name their types.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn listed(table: LakeTable, files: Files) -> polder_core::Result<Self> {
        let provider = Self::new(table, None, files)?;
        Ok(Self { schema: views::answered(&provider.schema), ..provider })
    }

    fn request(&self, projection: Option<&Vec<usize>>, filter: Predicate) -> ScanRequest {
        let name = |index: &usize| self.schema.field(*index).name().clone();
        let columns = projection.map(|indices| indices.iter().map(name).collect());
        ScanRequest { snapshot: self.snapshot, filter, columns }
    }

    /// The state, if the table has one.
    fn state(&self) -> Option<SnapshotInfo> {
        match self.snapshot {
            None => self.table.current_snapshot(),
            Some(id) => self.table.snapshots().into_iter().find(|s| s.id == id),
        }
    }

    /// The bytes of a row in its files, on average, where the state's writer counted them.
    pub(super) fn stored_row_bytes(&self) -> Option<u64> {
        let state = self.state()?;
        Some(state.bytes? / state.rows?.max(1))
    }

    /// `read`: the columns to read, all if absent, and what their rows are filtered by.
    async fn file_scan(
        &self,
        files: &[ScanFile],
        groups: usize,
        read: (Option<&Vec<usize>>, &Predicate),
    ) -> Result<FileScanConfigBuilder> {
        let footers = Arc::clone(&self.files.footers);
        let reader = CachedParquetFileReaderFactory::new(self.files.lake.object_store(), footers);
        let parquet = ParquetSource::new(Arc::clone(&self.schema))
            .with_parquet_file_reader_factory(Arc::new(reader))
            .with_metadata_size_hint(FOOTER_BYTES)
            .with_enable_page_index(true);
        let in_all = self
            .state()
            .and_then(|state| state.files)
            .map_or_else(|| "?".to_owned(), |all| all.to_string());
        let note = format!("files={} of {in_all}", files.len());
        let source: Arc<dyn FileSource> = Arc::new(LakeFiles::new(Arc::new(parquet), &note));
        Ok(FileScanConfigBuilder::new(self.files.url.clone(), source)
            .with_file_groups(spread(&self.files.lake, files, groups)?)
            .with_statistics(statistics::of_scan(files, &self.schema, read, &self.files).await)
            .with_expr_adapter(Some(Arc::new(FieldIdAdapterFactory))))
    }
}

impl fmt::Debug for LakeTableProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeTableProvider")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for LakeTableProvider {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projected = project_schema(&self.schema, projection)?;
        let predicate = filter::predicate(filters, &self.columns);
        let request = self.request(projection, predicate.clone());
        let plan = self.table.plan(request).await.map_err(external)?;
        if plan.files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(projected)));
        }
        if plan.files.iter().any(|file| file.has_deletes) {
            let read = IcebergRead {
                table: self.table.clone(),
                snapshot: self.snapshot,
                filter: predicate,
                schema: projected,
            };
            let schema = Arc::clone(&read.schema);
            let streams: Vec<Arc<dyn PartitionStream>> = vec![Arc::new(read)];
            let exec = StreamingTableExec::try_new(schema, streams, None, None, false, limit)?;
            return Ok(Arc::new(exec));
        }
        let scan: FileScanConfig = self
            .file_scan(&plan.files, state.config().target_partitions(), (projection, &predicate))
            .await?
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}

fn external(error: polder_core::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Spreads the files over at most `groups` groups of about the same number of bytes: each file,
/// largest first, goes to the group that has least.
fn spread(lake: &Lake, files: &[ScanFile], groups: usize) -> Result<Vec<FileGroup>> {
    let mut by_size: Vec<&ScanFile> = files.iter().collect();
    by_size.sort_by_key(|file| std::cmp::Reverse(file.size_bytes));
    let mut spread: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); groups.max(1)];
    for file in by_size {
        let part = part(lake, file)?;
        if let Some((bytes, group)) = spread.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes += file.size_bytes;
            group.push(part);
        }
    }
    let filled = spread.into_iter().filter(|(_, group)| !group.is_empty());
    Ok(filled.map(|(_, group)| FileGroup::new(group)).collect())
}

/// A file as DataFusion names it.
pub(super) fn part(lake: &Lake, file: &ScanFile) -> Result<PartitionedFile> {
    let mut part = PartitionedFile::new("", file.size_bytes);
    part.object_meta.location = lake.object_path(&file.path).map_err(external)?;
    Ok(part)
}

/// A scan through Iceberg's reader, which applies delete files.
struct IcebergRead {
    table: LakeTable,
    snapshot: Option<i64>,
    filter: Predicate,
    /// The columns to read, in order.
    schema: SchemaRef,
}

impl fmt::Debug for IcebergRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IcebergRead")
    }
}

impl PartitionStream for IcebergRead {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let table = self.table.clone();
        let schema = Arc::clone(&self.schema);
        let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
        let request = ScanRequest {
            snapshot: self.snapshot,
            filter: self.filter.clone(),
            columns: Some(columns),
        };
        let batches = futures::stream::once(async move { table.read(request).await })
            .try_flatten()
            .map(move |batch| Ok(typed(&batch.map_err(external)?, &schema)?));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

/// The batch with exactly the types of the schema: Iceberg's reader has no views, and leaves out what is said of
/// the fields inside lists, structs and maps; operators that put batches together compare that too.
fn typed(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let one = |(column, field): (&ArrayRef, &FieldRef)| {
        let (is, wanted) = (column.data_type(), field.data_type());
        let same = is.equals_datatype(wanted) || views::is_of(wanted, is);
        if is == wanted || !same {
            return Ok(Arc::clone(column));
        }
        // The same but for metadata and layout: no value changes.
        cast(column, wanted)
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(one).collect::<Result<_, _>>()?;
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)
}
