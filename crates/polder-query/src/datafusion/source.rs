//! A table of a source as DataFusion scans it: columns and what can be said of the rows go to the
//! source, its splits become partitions. Where only the rows tell the columns, all are read the first
//! time, and what they told is kept (`learnt`). Parts of a query that the source answers as a whole are found
//! in `pushdown`, and read here.
//!
//! The source's connections belong to the runtime that asked the query, so reading happens there; the
//! engine's threads get batches.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Statistics, project_schema};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, Partitioning,
    PlanProperties,
};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use polder_core::spec::{FormatOptions, OnUnrepresentable};
use polder_core::{
    ConnectionLimits, Error, ErrorCode, Field, Learnt, OrgId, PartRequest, Predicate, ReadRequest,
    RunProgress, Source, Split, TableSchema,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::learnt::Known;
use super::workers::lost;
use super::{filter, keys};

/// Bytes a batch of a source aims at.
const BATCH_BYTES: usize = 1 << 20;
/// Batches read ahead of the engine, for each split.
const BATCHES_AHEAD: usize = 2;
/// How long a connection to a source is waited for: less than a query may be planned, as nobody ends one
/// that waits.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(20);
/// A limit below which one split is enough.
const FEW_ROWS: usize = 10_000;
/// Characters of what a source was asked besides that EXPLAIN ANALYZE shows.
const TOLD_CHARS: usize = 120;

/// Gives the source of a name; `None` if the configuration has none.
pub type OpenSource =
    Arc<dyn Fn(&str) -> polder_core::Result<Option<Arc<dyn Source>>> + Send + Sync>;

/// Where a source's table was found.
pub(super) struct Found {
    pub(super) source: Arc<dyn Source>,
    /// The source's.
    pub(super) name: String,
    /// As EXPLAIN shows it.
    pub(super) place: String,
    pub(super) from: String,
}

/// A source's table that a query names.
pub(super) struct SourceTable {
    pub(super) source: Arc<dyn Source>,
    /// The source's.
    pub(super) name: String,
    /// As EXPLAIN shows it.
    place: String,
    pub(super) from: String,
    pub(super) columns: TableSchema,
    schema: SchemaRef,
    rows: Option<u64>,
    splits: NonZeroUsize,
    /// The splits of all rows, where learning the columns meant reading them.
    read: Mutex<Option<Vec<Box<dyn Split>>>>,
    /// The columns are those that were learnt before.
    pub(super) learnt: Option<Arc<Learnt>>,
    known: Arc<Known>,
}

/// What is wanted of a table.
struct Wanted {
    /// Columns, by position.
    columns: Vec<usize>,
    predicate: Predicate,
    /// Rows that are enough.
    limit: Option<usize>,
}

/// What a scan reads.
struct Reading {
    splits: Vec<Box<dyn Split>>,
    /// Where in the splits' batches the columns are.
    positions: Vec<usize>,
    rows: Option<u64>,
    /// What the source was asked, if it was by columns that were learnt before.
    statement: Option<String>,
}

impl SourceTable {
    /// # Errors
    /// What [`Source::plan`] says of the table.
    pub(super) async fn open(
        found: Found,
        partitions: usize,
        known: &Arc<Known>,
    ) -> polder_core::Result<Self> {
        let Found { source, name, place, from } = found;
        let splits = NonZeroUsize::new(partitions).unwrap_or(NonZeroUsize::MIN);
        let complete = source.capabilities().complete_schema;
        let mut learnt = None;
        let mut read = None;
        let (columns, rows) = if complete {
            let planned = source.plan(request(&from, NonZeroUsize::MIN)).await;
            let plan = planned.map_err(|error| error.within(&place))?;
            (plan.schema, plan.rows_estimated)
        } else if let Some(before) = known.of(&place) {
            let (columns, rows) = (before.schema.clone(), Some(before.rows));
            learnt = Some(before);
            (columns, rows)
        } else {
            let since = Instant::now();
            let planned = source.learn(request(&from, splits)).await;
            let (plan, told) = planned.map_err(|error| error.within(&place))?;
            known.learn(&place, told, since);
            read = Some(plan.splits);
            (plan.schema, plan.rows_estimated)
        };
        let (schema, read, known) = (columns.to_arrow(), Mutex::new(read), Arc::clone(known));
        Ok(Self { source, name, place, from, columns, schema, rows, splits, read, learnt, known })
    }

    async fn reading(&self, wanted: Wanted) -> polder_core::Result<Reading> {
        if let Some(learnt) = &self.learnt {
            return self.part(learnt, wanted).await;
        }
        if let Some(splits) = self.all() {
            let (positions, rows) = (wanted.columns, self.rows);
            return Ok(Reading { splits, positions, rows, statement: None });
        }
        let columns = self.fields(&wanted.columns);
        let splits = self.splits(wanted.limit);
        let request = ReadRequest {
            columns: Some(names(&columns)),
            predicate: wanted.predicate.clone(),
            known_schema: Some(columns.clone()),
            ..request(&self.from, splits)
        };
        let plan = self.source.plan(request).await?;
        if plan.schema.to_arrow() != columns.to_arrow() {
            let message = "the source's columns changed while the query was planned";
            return Err(Error::new(ErrorCode::SourceUnavailable, message).hint("try again"));
        }
        let positions = (0..wanted.columns.len()).collect();
        let all = wanted.predicate == Predicate::True;
        let rows = if all { self.rows } else { plan.rows_estimated };
        Ok(Reading { splits: plan.splits, positions, rows, statement: None })
    }

    /// All rows, if they have been read and not been taken.
    fn all(&self) -> Option<Vec<Box<dyn Split>>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let shared: Option<Vec<_>> = read.as_ref()?.iter().map(|split| split.share()).collect();
        shared.or_else(|| read.take())
    }

    /// Some rows, by the columns that were learnt before.
    async fn part(&self, learnt: &Arc<Learnt>, wanted: Wanted) -> polder_core::Result<Reading> {
        // Who wants all columns wants new ones, too.
        let all = wanted.columns.len() == self.columns.fields.len();
        let columns = (!all).then(|| names(&self.fields(&wanted.columns)));
        let splits = self.splits(wanted.limit);
        let positions =
            if all { wanted.columns } else { (0..wanted.columns.len()).collect::<Vec<_>>() };
        let read =
            ReadRequest { columns, predicate: wanted.predicate, ..request(&self.from, splits) };
        let limit = wanted.limit.map(|limit| limit as u64);
        let request = PartRequest { read, learnt: Arc::clone(learnt), limit };
        let Some(part) = self.source.plan_part(request).await? else {
            return Err(self.known.outdate(&self.place));
        };
        let (plan, statement) = (part.plan, Some(part.statement));
        Ok(Reading { splits: plan.splits, positions, rows: plan.rows_estimated, statement })
    }

    /// The columns to read. Counting rows needs one too.
    fn fields(&self, wanted: &[usize]) -> TableSchema {
        let read = if wanted.is_empty() { &[0][..] } else { wanted };
        let fields = read.iter().filter_map(|index| self.columns.fields.get(*index)).cloned();
        TableSchema::new(fields.collect())
    }

    fn splits(&self, limit: Option<usize>) -> NonZeroUsize {
        let few = limit.is_some_and(|limit| limit <= FEW_ROWS);
        if few { NonZeroUsize::MIN } else { self.splits }
    }
}

fn names(columns: &TableSchema) -> Vec<String> {
    columns.fields.iter().map(|field| field.name.clone()).collect()
}

/// All of a table, as Polder's own request.
pub(super) fn request(from: &str, splits_max: NonZeroUsize) -> ReadRequest {
    ReadRequest {
        org: OrgId::management(),
        from: from.to_owned(),
        filter: None,
        predicate: Predicate::True,
        columns: None,
        cursor: None,
        snapshot_read: None,
        key: Vec::new(),
        objects_read: BTreeMap::new(),
        known_schema: None,
        types: BTreeMap::new(),
        on_unrepresentable: OnUnrepresentable::Error,
        format: FormatOptions::default(),
        splits_max,
        batch_bytes: BATCH_BYTES,
        connections: ConnectionLimits { of_org: None, patience: Some(CONNECTION_PATIENCE) },
        progress: Arc::new(RunProgress::default()),
    }
}

impl fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceTable").field("place", &self.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// The source may leave rows out; which, the engine decides.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = project_schema(&self.schema, projection)?;
        let all = || (0..self.columns.fields.len()).collect();
        let wanted = Wanted {
            columns: projection.cloned().unwrap_or_else(all),
            predicate: filter::predicate(filters, &self.columns),
            // Rows that a filter here may leave out do not count.
            limit: limit.filter(|_| filters.is_empty()),
        };
        // Others are read as they were planned: there is nothing to wait for.
        let narrows = self.source.capabilities().complete_schema;
        let fields = wanted.columns.iter().filter_map(|index| self.columns.fields.get(*index));
        let columns = fields.filter(|_| narrows).cloned().collect();
        let reading = self.reading(wanted).await;
        let Reading { splits, positions, rows, statement } =
            reading.map_err(|error| external(error.within(&self.place)))?;
        let scan = SourceScan::new(&self.place, schema, positions, splits, rows);
        Ok(Arc::new(SourceScan { asked: statement, ..scan.of_columns(columns) }))
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The splits of one plan, or of one answer, read once.
#[derive(Clone)]
pub(super) struct SourceScan {
    place: String,
    /// What the source was asked, where it answers a part of the query.
    statement: Option<String>,
    /// What the source was asked, where it has read a part of a table. How many rows that are, is known.
    asked: Option<String>,
    positions: Vec<usize>,
    splits: Arc<[Once]>,
    rows: Option<u64>,
    properties: Arc<PlanProperties>,
    /// Where the source's connections live.
    io: Handle,
    /// As the schema has them, where the source may be asked for fewer rows once keys are known.
    columns: Vec<Field>,
    /// What operators above will say of the rows they want.
    filters: Vec<Arc<dyn PhysicalExpr>>,
    /// What the source was asked besides, by what they said.
    told: Told,
    metrics: ExecutionPlanMetricsSet,
}

/// A split until it is read.
type Once = Mutex<Option<Box<dyn Split>>>;
type Told = Arc<Mutex<BTreeSet<String>>>;

/// What operators above a scan say of the rows they want, and where it is told.
struct Keys {
    filters: Vec<Arc<dyn PhysicalExpr>>,
    columns: Vec<Field>,
    told: Told,
}

impl SourceScan {
    pub(super) fn new(
        place: &str,
        schema: SchemaRef,
        positions: Vec<usize>,
        splits: Vec<Box<dyn Split>>,
        rows: Option<u64>,
    ) -> Self {
        // No rows are one partition without any.
        let partitions = Partitioning::UnknownPartitioning(splits.len().max(1));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            partitions,
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            place: place.to_owned(),
            statement: None,
            asked: None,
            positions,
            splits: splits.into_iter().map(|split| Mutex::new(Some(split))).collect(),
            rows,
            properties: Arc::new(properties),
            io: Handle::current(),
            columns: Vec::new(),
            filters: Vec::new(),
            told: Told::default(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The scan of a table's columns, in the order of its schema.
    fn of_columns(self, columns: Vec<Field>) -> Self {
        Self { columns, ..self }
    }

    /// Reads a split, from the first time that the stream is asked on: by then a join has its other side.
    fn narrowed(
        &self,
        split: Box<dyn Split>,
    ) -> BoxStream<'static, polder_core::Result<RecordBatch>> {
        let (filters, columns) = (self.filters.clone(), self.columns.clone());
        let keys = Keys { filters, columns, told: Arc::clone(&self.told) };
        let io = self.io.clone();
        futures::stream::once(async move { read(split, Some(keys), &io) }).flatten().boxed()
    }

    /// The scan of an answer to this statement.
    pub(super) fn answering(self, statement: String) -> Self {
        Self { statement: Some(statement), ..self }
    }
}

impl fmt::Debug for SourceScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceScan").field("place", &self.place).finish_non_exhaustive()
    }
}

impl DisplayAs for SourceScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(statement) = &self.statement {
            return write!(f, "SourceAnswer: {}, {statement}", self.place);
        }
        let schema = self.schema();
        let columns: Vec<&str> =
            schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(
            f,
            "SourceScan: {}, columns=[{}], splits={}",
            self.place,
            columns.join(", "),
            self.splits.len()
        )?;
        match (&self.asked, self.rows) {
            (Some(asked), Some(rows)) => write!(f, ", rows={rows}, {asked}")?,
            (Some(asked), None) => write!(f, ", {asked}")?,
            (None, _) => {}
        }
        if self.filters.is_empty() {
            return Ok(());
        }
        // Nothing is told before the query runs.
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        write!(f, ", keys=[{}]", told.join("; "))
    }
}

impl ExecutionPlan for SourceScan {
    fn name(&self) -> &'static str {
        if self.statement.is_some() { "SourceAnswer" } else { "SourceScan" }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        _context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if self.splits.is_empty() {
            return Ok(Box::pin(EmptyRecordBatchStream::new(self.schema())));
        }
        let split = self
            .splits
            .get(partition)
            .and_then(|split| split.lock().unwrap_or_else(PoisonError::into_inner).take());
        let split = split.ok_or_else(|| {
            external(Error::new(ErrorCode::Internal, "a source's split was read twice"))
        })?;
        let (schema, positions) = (self.schema(), self.positions.clone());
        let (place, named) = (self.place.clone(), self.schema());
        let rows_read = MetricBuilder::new(&self.metrics).output_rows(partition);
        let batches = if self.filters.is_empty() {
            read(split, None, &self.io).boxed()
        } else {
            self.narrowed(split)
        };
        let batches = batches.map(move |batch| {
            let batch = batch.map_err(|error| external(error.within(&place)))?;
            let batch = batch.project(&positions)?;
            rows_read.add(batch.num_rows());
            let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let columns = batch.columns().to_vec();
            Ok(RecordBatch::try_new_with_options(Arc::clone(&named), columns, &rows)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    /// Keeps what joins will say of the keys they have. They do not rely on it.
    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let mut filters = self.filters.clone();
        if matches!(phase, FilterPushdownPhase::Post) && !self.columns.is_empty() {
            let said = result.parent_filters.iter().map(|parent| &parent.filter);
            filters.extend(said.filter(|filter| keys::is_dynamic(filter)).cloned());
        }
        let kept: FilterPushdownPropagation<Arc<dyn ExecutionPlan>> =
            FilterPushdownPropagation::all_unsupported(result);
        if filters.len() == self.filters.len() {
            return Ok(kept);
        }
        Ok(kept.with_updated_node(Arc::new(Self { filters, ..self.clone() })))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let mut known = Statistics::new_unknown(&self.schema());
        let parts = if partition.is_some() { self.splits.len().max(1) as u64 } else { 1 };
        known.num_rows =
            self.rows.map_or(Precision::Absent, |rows| Precision::Inexact((rows / parts) as usize));
        known.column_statistics =
            vec![ColumnStatistics::new_unknown(); self.schema().fields().len()];
        Ok(known)
    }
}

/// Reads a split on `io`, a few batches ahead; of it what `keys` want, as far as the source can tell. Dropping
/// the stream cancels the read.
fn read(
    mut split: Box<dyn Split>,
    keys: Option<Keys>,
    io: &Handle,
) -> impl Stream<Item = polder_core::Result<RecordBatch>> + use<> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let mut tasks = JoinSet::new();
    tasks.spawn_on(
        async move {
            if let Some(keys) = keys
                && let Err(error) = narrow(split.as_mut(), keys).await
            {
                let _ = sender.send(Err(error)).await;
                return;
            }
            let mut batches = split.read();
            while let Some(batch) = batches.next().await {
                let last = batch.is_err();
                if sender.send(batch.map(|batch| batch.records)).await.is_err() || last {
                    return;
                }
            }
        },
        io,
    );
    futures::stream::unfold((receiver, tasks), async |(mut receiver, mut tasks)| {
        if let Some(batch) = receiver.recv().await {
            return Some((batch, (receiver, tasks)));
        }
        // The channel also closes when the task panics: rows would be missing without a word.
        match tasks.join_next().await {
            Some(Err(error)) => Some((Err(lost(error)), (receiver, tasks))),
            Some(Ok(())) | None => None,
        }
    })
}

async fn narrow(split: &mut dyn Split, wanted: Keys) -> polder_core::Result<()> {
    let Keys { filters, columns, told } = wanted;
    keys::settled(&filters).await;
    let predicate = keys::predicate(&filters, &columns);
    if predicate == Predicate::True {
        return Ok(());
    }
    if let Some(said) = split.narrow(&predicate).await? {
        let mut shown: String = said.chars().take(TOLD_CHARS).collect();
        if shown.len() < said.len() {
            shown.push('…');
        }
        told.lock().unwrap_or_else(PoisonError::into_inner).insert(shown);
    }
    Ok(())
}
