//! DataFusion's Parquet reader with Polder's differences: which filters may skip rows by statistics, what is
//! done with those of joins besides, and what `EXPLAIN` shows of the planning.
//!
//! Reading, row-group and page pruning are DataFusion's.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::error::Result;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::DisplayFormatType;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use object_store::ObjectStore;

use super::keys::is_dynamic;
use super::sieve;

/// A [`FileSource`] over DataFusion's for Parquet.
#[derive(Clone)]
pub(super) struct LakeFiles {
    parquet: Arc<dyn FileSource>,
    /// What `EXPLAIN` says about the scan.
    note: Arc<str>,
    /// Filters that are filled in while the query runs, by the table's columns.
    filled: Vec<Arc<dyn PhysicalExpr>>,
}

impl LakeFiles {
    pub(super) fn new(parquet: Arc<dyn FileSource>, note: &str) -> Self {
        Self { parquet, note: note.into(), filled: Vec::new() }
    }

    fn around(&self, parquet: Arc<dyn FileSource>) -> Arc<dyn FileSource> {
        Arc::new(Self { parquet, ..self.clone() })
    }
}

/// Whether statistics can prove that no row passes `filter`.
///
/// Not over floating-point columns: Parquet's and Iceberg's bounds leave NaN out (Iceberg spec,
/// *Manifests*, `lower_bounds`), while SQL's comparison, PostgreSQL's as DataFusion's, puts NaN
/// above or below all numbers. A file whose bounds end at 4 may hold a NaN that passes `x > 5`.
fn may_prune(filter: &Arc<dyn PhysicalExpr>, table: &Schema) -> bool {
    collect_columns(filter).iter().all(|column| {
        table.field_with_name(column.name()).is_ok_and(|field| !has_float(field.data_type()))
    })
}

/// Whether the type is, or contains, a floating-point type.
pub(super) fn has_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        DataType::List(element) => has_float(element.data_type()),
        DataType::Struct(members) => members.iter().any(|m| has_float(m.data_type())),
        _ => false,
    }
}

impl FileSource for LakeFiles {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        scan: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let opener = self.parquet.create_file_opener(store, scan, partition)?;
        Ok(sieve::around(opener, &self.filled, self.projection()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_schema(&self) -> &TableSchema {
        self.parquet.table_schema()
    }

    fn with_batch_size(&self, rows: usize) -> Arc<dyn FileSource> {
        self.around(self.parquet.with_batch_size(rows))
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.parquet.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.parquet.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.parquet.metrics()
    }

    fn file_type(&self) -> &str {
        self.parquet.file_type()
    }

    fn fmt_extra(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match format {
            DisplayFormatType::TreeRender => writeln!(f, "{}", self.note)?,
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, ", {}", self.note)?;
            }
        }
        self.parquet.fmt_extra(format, f)
    }

    fn supports_repartitioning(&self) -> bool {
        self.parquet.supports_repartitioning()
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        // The filter stays above the scan in any case; below it only skips.
        let all = filters.len();
        let table = Arc::clone(self.table_schema().table_schema());
        let pruning: Vec<_> =
            filters.into_iter().filter(|filter| may_prune(filter, &table)).collect();
        let mut with_filled = self.clone();
        with_filled.filled.extend(pruning.iter().filter(|filter| is_dynamic(filter)).cloned());
        let pushed = self.parquet.try_pushdown_filters(pruning, config)?;
        let kept =
            FilterPushdownPropagation::with_parent_pushdown_result(vec![PushedDown::No; all]);
        Ok(match pushed.updated_node {
            Some(parquet) => kept.with_updated_node(with_filled.around(parquet)),
            None => kept,
        })
    }

    fn try_pushdown_projection(
        &self,
        projection: &ProjectionExprs,
    ) -> Result<Option<Arc<dyn FileSource>>> {
        let pushed = self.parquet.try_pushdown_projection(projection)?;
        Ok(pushed.map(|parquet| self.around(parquet)))
    }
}
