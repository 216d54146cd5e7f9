//! The engine: SQL and a session in, batches out, within the session's limits.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{NullEquality, TableReference};
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::execution::TaskContext;
use datafusion::execution::cache::DefaultFilesMetadataCache;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::{Analyzer, AnalyzerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use polder_core::{Description, Engine, Error, ErrorCode, QueryStream, Result, Session};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::batches;
use super::bounded::{self, Allowance};
use super::compact::CompactJoins;
use super::conditions::Conditions;
use super::doubles::DoublesWithDecimals;
use super::error::{planning, running};
use super::keys::KEYS_MAX;
use super::learnt::{Kept, Known};
use super::names::{CATALOG, INFORMATION_SCHEMA, Listing, Names, Sources, default_schema};
use super::postgres::{self, Value};
use super::pushdown;
use super::reach;
use super::shared;
use super::source::OpenSource;
use super::statement;
use super::table::Files;
use super::uuids::{UuidComparisons, UuidLists};
use super::views;
use super::weight;
use super::workers::{Running, Sender, Workers, lost};
use polder_lake::Lake;

/// How long a query may be planned, and how long it may wait for its turn.
const PLANNING_MAX: Duration = Duration::from_secs(30);
const WAITING_MAX: Duration = Duration::from_mins(1);
/// Statements planned at the same time. One that is given up on keeps its place until it ends.
const PLANNERS: usize = 4;
/// Bytes of Parquet footers kept.
const FOOTERS_BYTES: usize = 64 * 1024 * 1024;
/// Bytes a query may spill.
const SPILL_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Bytes of a join's keys that are sent to a scan as a list, for each partition of its smaller side.
const KEYS_BYTES_MAX: usize = 1024 * 1024;
/// Whole numbers that a join finds by their place in an array of four bytes each, as long as from the least to the greatest:
/// without such an array each is hashed, twice where the join's filter reaches a scan.
const PLACES_MAX: usize = 8 << 20;
/// Bytes that a query may hold for each place of such an array: it takes one of 32 of them.
const MEMORY_A_PLACE: usize = 4 * 32;
/// A row group is the least that a partition can have: of seven, one of two threads has four, and the other waits.
const PARTITIONS_PER_THREAD: usize = 2;
/// Threads up to which a join's smaller side is gathered into one table: handing all rows of both sides to the
/// partition of their key costs more than one thread saves that builds it alone.
const GATHERING_THREADS_MAX: usize = 4;
/// The unit in which memory is handed out to queries.
const MEMORY_UNIT: usize = 1024 * 1024;

/// What all queries of a process share.
#[derive(Clone, Debug)]
pub struct DataFusionSettings {
    /// Bytes all running queries together may hold. A query whose session asks for more gets this.
    pub memory_bytes: usize,
    /// Threads that compute; sources are read in as many splits.
    pub threads: usize,
    /// Where sorts, joins and aggregations spill. Created when needed.
    pub spill_dir: PathBuf,
}

/// SQL over the lake and the sources with DataFusion, in this process.
///
/// Tables are named `lake.org_<id>.<table>`; a session of one org may leave out all but the table. The
/// operator's sessions also have `<source>.<schema>.<table>`, read where they are, as they are now.
pub struct DataFusionEngine {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    planners: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    memory_units: usize,
}

struct Shared {
    settings: DataFusionSettings,
    files: Files,
    sources: Sources,
    /// Functions and rules, made once.
    functions: SessionState,
}

/// A statement in DataFusion's terms, found to be one that may be run.
struct Logical {
    plan: LogicalPlan,
    state: SessionState,
    allowance: Arc<Allowance>,
}

/// A query that can be started.
struct Planned {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl DataFusionEngine {
    /// An engine over the lake alone. See [`Self::with_sources`].
    pub fn new(lake: &Lake, settings: DataFusionSettings) -> Result<Self> {
        Self::with_sources(lake, Arc::new(|_| Ok(None)), settings)
    }

    /// Starts the engine's threads. Sources are opened when a query names them.
    ///
    /// # Errors
    /// `query.failed` when the system gives no threads.
    pub fn with_sources(
        lake: &Lake,
        open: OpenSource,
        settings: DataFusionSettings,
    ) -> Result<Self> {
        let files = Files {
            url: ObjectStoreUrl::parse(lake.store_url()).map_err(planning)?,
            lake: lake.clone(),
            footers: Arc::new(DefaultFilesMetadataCache::new(FOOTERS_BYTES)),
        };
        let kept = Arc::new(Kept::default());
        let sources = Sources { open, partitions: settings.threads, kept };
        let functions = functions();
        let workers = Arc::new(Workers::start(settings.threads)?);
        let memory_units = (settings.memory_bytes / MEMORY_UNIT).max(1);
        Ok(Self {
            shared: Arc::new(Shared { settings, files, sources, functions }),
            workers,
            planners: Arc::new(Semaphore::new(PLANNERS)),
            memory: Arc::new(Semaphore::new(memory_units)),
            memory_units,
        })
    }

    async fn plan(&self, sql: &str, session: &Session) -> Result<Planned> {
        let (sql, session) = (sql.to_owned(), session.clone());
        self.on_planner(move |shared| async move { shared.plan(&sql, &session).await }).await
    }

    /// Does what plans on a thread of the engine, and not for ever.
    async fn on_planner<T, F>(
        &self,
        work: impl FnOnce(Arc<Shared>) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let turn = turn(&self.planners, 1).await?;
        let shared = Arc::clone(&self.shared);
        let io = Handle::current();
        let mut tasks = JoinSet::new();
        tasks.spawn_blocking_on(
            move || {
                let _turn = turn;
                // The lake's connections belong to the caller's runtime; the stack is ours.
                io.block_on(work(shared))
            },
            self.workers.handle(),
        );
        match tokio::time::timeout(PLANNING_MAX, tasks.join_next()).await {
            Ok(Some(Ok(planned))) => planned,
            Ok(Some(Err(error))) => Err(lost(error)),
            Ok(None) => Err(Error::new(ErrorCode::Internal, "the query was not planned")),
            Err(_) => {
                let message = format!("planning took longer than {} s", PLANNING_MAX.as_secs());
                Err(Error::new(ErrorCode::QueryLimit, message).hint("write a simpler query"))
            }
        }
    }
}

#[async_trait]
impl Engine for DataFusionEngine {
    async fn query(&self, sql: &str, session: &Session) -> Result<QueryStream> {
        let units = session.memory_bytes_max.div_ceil(MEMORY_UNIT).clamp(1, self.memory_units);
        let memory = turn(&self.memory, units).await?;
        let planned = self.plan(sql, session).await?;
        let schema = views::answered(&planned.plan.schema());
        let rows_max = session.rows_max;
        let batches = Running::start(&self.workers, move |sender| async move {
            let _memory = memory;
            run(planned, rows_max, sender).await;
        });
        Ok(QueryStream { schema, batches: Box::pin(batches) })
    }

    async fn describe(&self, sql: &str, session: &Session) -> Result<Description> {
        let (sql, session) = (sql.to_owned(), session.clone());
        self.on_planner(move |shared| async move { shared.describe(&sql, &session).await }).await
    }
}

/// Waits for `permits`, not for ever.
async fn turn(of: &Arc<Semaphore>, permits: usize) -> Result<OwnedSemaphorePermit> {
    let permits = u32::try_from(permits).unwrap_or(u32::MAX);
    let waiting = Arc::clone(of).acquire_many_owned(permits);
    match tokio::time::timeout(WAITING_MAX, waiting).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => {
            Err(Error::new(ErrorCode::QueryLimit, "too many queries are running")
                .hint("try again later, or let queries use less memory each"))
        }
    }
}

/// Computes the batches and sends them, until somebody stops listening.
async fn run(planned: Planned, rows_max: Option<u64>, sender: Sender) {
    let mut stream = match execute_stream(planned.plan, planned.context) {
        Ok(stream) => stream,
        Err(error) => {
            let _ = sender.send(Err(running(error))).await;
            return;
        }
    };
    let mut rows: u64 = 0;
    let schema = views::answered(&stream.schema());
    while let Some(batch) = stream.next().await {
        let batch = batch.and_then(|batch| views::answer(batch, &schema));
        let batch = batch.map_err(running).and_then(|batch| {
            rows += batch.num_rows() as u64;
            match rows_max.filter(|max| rows > *max) {
                Some(max) => Err(Error::new(
                    ErrorCode::QueryLimit,
                    format!("the query has more than {max} rows"),
                )
                .hint("add LIMIT or aggregate")),
                None => Ok(batch),
            }
        });
        let last = batch.is_err();
        // A send that fails means nobody listens any more.
        if sender.send(batch).await.is_err() || last {
            return;
        }
    }
}

impl Shared {
    async fn logical(&self, sql: &str, session: &Session, known: &Arc<Known>) -> Result<Logical> {
        let prepared = statement::prepare(sql)?;
        let listing_tables = matches!(prepared.statement, ast::Statement::ShowTables { .. });
        let statement = Statement::Statement(Box::new(prepared.statement));
        let mut references =
            self.functions.resolve_table_references(&statement).map_err(planning)?;
        let functions = self.functions.table_functions();
        references.retain(|r| r.schema().is_some() || !functions.contains_key(r.table()));
        let names = Names {
            principal: &session.principal,
            versions: &prepared.versions,
            snapshots: &session.snapshots,
            files: self.files.clone(),
            sources: &self.sources,
            known,
        };
        let listing = if listing_tables { Listing::Names } else { listing(&references) };
        let catalogs = MemoryCatalogProviderList::new();
        for (name, catalog) in names.resolve(&references, listing).await? {
            catalogs.register_catalog(name, Arc::new(catalog));
        }
        let allowance = Arc::new(Allowance::new(self.memory(session), sql));
        let mut builder = SessionStateBuilder::new_from_existing(self.functions.clone())
            .with_config(self.config(session))
            .with_catalog_list(Arc::new(catalogs))
            .with_runtime_env(self.environment(session)?);
        let bounded = bounded::functions(&self.functions, &allowance);
        // The last of a name is the one that is called.
        builder.scalar_functions().get_or_insert_default().extend(bounded);
        let state = builder.build();
        let plan = state.statement_to_plan(statement).await.map_err(planning)?;
        let options = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        options.verify_plan(&plan).map_err(planning)?;
        weight::check(&plan)?;
        Ok(Logical { plan, state, allowance })
    }

    /// As [`Self::logical`], by what is known of the sources' tables while that suffices.
    async fn logical_now(&self, sql: &str, session: &Session) -> Result<Logical> {
        let mut known = Known::new(&self.sources.kept, session.pushdown);
        loop {
            let logical = Box::pin(self.logical(sql, session, &known)).await;
            match known.anew(logical.as_ref().err()) {
                Some(anew) => known = anew,
                None => return logical,
            }
        }
    }

    async fn plan(&self, sql: &str, session: &Session) -> Result<Planned> {
        let mut known = Known::new(&self.sources.kept, session.pushdown);
        loop {
            let planned = Box::pin(self.plan_with(sql, session, &known)).await;
            match known.anew(planned.as_ref().err()) {
                Some(anew) => known = anew,
                None => return planned,
            }
        }
    }

    async fn plan_with(&self, sql: &str, session: &Session, known: &Arc<Known>) -> Result<Planned> {
        let Logical { plan, mut state, allowance } = self.logical(sql, session, known).await?;
        let bounded_calls = allowance.divide(&plan).map_err(planning)?;
        let mut plan = state.optimize(&plan).map_err(planning)?;
        // What such a call makes is bounded, and it is called for a batch.
        let memory = if bounded_calls == 0 { self.memory(session) } else { 0 };
        let batch_rows = batches::rows(&plan, memory).map_err(planning)?;
        state.config_mut().options_mut().execution.batch_size = batch_rows;
        if session.pushdown {
            plan = pushdown::push(plan).await?;
        }
        if plan.exists(|node| Ok(joins_nulls(node))).map_err(planning)? {
            let options = state.config_mut().options_mut();
            options.optimizer.enable_join_dynamic_filter_pushdown = false;
        }
        let plan = shared::share(plan, self.memory(session)).map_err(planning)?;
        let planner = state.query_planner();
        let plan = planner.create_physical_plan(&plan, &state).await.map_err(planning)?;
        Ok(Planned { plan, context: state.task_ctx() })
    }

    /// The parameters' types as the statement says them, and the columns it gives for nulls of these types.
    async fn describe(&self, sql: &str, session: &Session) -> Result<Description> {
        let count = postgres::parameters(sql)?;
        let mut parameters = vec![None; count];
        if count > 0 {
            let plan = self.logical_now(sql, session).await?.plan;
            // Fails for one that is used as two types: then nothing is known of any.
            let found = plan.get_parameter_types().unwrap_or_default();
            for (at, parameter) in parameters.iter_mut().enumerate() {
                let found = found.get(&format!("${}", at + 1)).cloned().flatten();
                *parameter = found.as_ref().map(views::plain);
            }
        }
        let nulls: Vec<_> = parameters.iter().cloned().map(Value::Null).collect();
        let schema = self.plan(&postgres::bind(sql, &nulls)?, session).await?.plan.schema();
        Ok(Description { parameters, schema: views::answered(&schema) })
    }

    fn config(&self, session: &Session) -> SessionConfig {
        let schema = default_schema(&session.principal).unwrap_or_else(|| "public".to_owned());
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, schema)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .with_target_partitions(self.settings.threads.max(1) * PARTITIONS_PER_THREAD)
            .with_repartition_joins(self.settings.threads > GATHERING_THREADS_MAX);
        let options = config.options_mut();
        // 0.1 is a decimal, as in PostgreSQL: `amount > 0.1` compares exactly.
        options.sql_parser.parse_float_as_decimal = true;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.parquet.schema_force_view_types = false;
        // Measured: filtering while decoding makes TPC-H a third slower (see `sieve`).
        options.execution.parquet.pushdown_filters = false;
        // Columns of a union keep what is said of the first part's (here, field ids) in one of both schemas alone: the check
        // refuses aggregations of them.
        options.execution.skip_physical_aggregate_schema_check = true;
        // 53.1 leaves out rows by it: a file without values takes the bound of `min` away, and arguments that are no
        // columns are not bounded at all (apache/datafusion#25147, #24816).
        options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        // Keys of a join's smaller side, as a list: sources know no other way.
        options.optimizer.enable_join_dynamic_filter_pushdown = session.pushdown;
        options.optimizer.hash_join_inlist_pushdown_max_distinct_values = KEYS_MAX;
        options.optimizer.hash_join_inlist_pushdown_max_size = KEYS_BYTES_MAX;
        // A table for each partition has as many places.
        let tables = if options.optimizer.repartition_joins {
            options.execution.target_partitions
        } else {
            1
        };
        let places = (self.memory(session) / MEMORY_A_PLACE / tables).min(PLACES_MAX);
        let usual = options.execution.perfect_hash_join_small_build_threshold;
        options.execution.perfect_hash_join_small_build_threshold = places.max(usual);
        config
    }

    /// Bytes that a query of the session may hold.
    fn memory(&self, session: &Session) -> usize {
        session.memory_bytes_max.min(self.settings.memory_bytes)
    }

    fn environment(&self, session: &Session) -> Result<Arc<RuntimeEnv>> {
        let memory = self.memory(session);
        let spill = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![self.settings.spill_dir.clone()]))
            .with_max_temp_directory_size(SPILL_BYTES_MAX);
        let caches = CacheManagerConfig::default()
            .with_file_metadata_cache(Some(Arc::clone(&self.files.footers)));
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
            .with_disk_manager_builder(spill)
            .with_cache_manager(caches)
            .build_arc()
            .map_err(running)?;
        // The lake's object store and nothing else: no query reaches another address.
        let local = ObjectStoreUrl::local_filesystem();
        environment.deregister_object_store(local.as_ref()).map_err(running)?;
        environment.register_object_store(self.files.url.as_ref(), self.files.lake.object_store());
        Ok(environment)
    }
}

/// Whether nulls find each other (`a IS NOT DISTINCT FROM b`): the filter that DataFusion 53.1 makes of a
/// join's keys is not true for a null.
fn joins_nulls(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Join(join) if join.null_equality == NullEquality::NullEqualsNull)
}

/// A session without tables: functions and rules.
fn functions() -> SessionState {
    let mut builder = SessionStateBuilder::new_with_default_features()
        .with_file_formats(Vec::new())
        .with_table_factories(HashMap::new());
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(UuidComparisons));
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> =
        vec![Arc::new(UuidLists), Arc::new(DoublesWithDecimals)];
    rules.extend(Analyzer::new().rules);
    let own: [Arc<dyn PhysicalOptimizerRule + Send + Sync>; 2] =
        [Arc::new(Conditions), Arc::new(CompactJoins)];
    let physical = reach::rules().chain(own).collect();
    builder.with_analyzer_rules(rules).with_physical_optimizer_rules(physical).build()
}

/// What a statement with these references reads of `information_schema`.
fn listing(references: &[TableReference]) -> Listing {
    let of_information_schema =
        references.iter().filter(|r| r.schema() == Some(INFORMATION_SCHEMA));
    of_information_schema.fold(Listing::Nothing, |most, reference| {
        most.max(match reference.table() {
            "columns" => Listing::Columns,
            _ => Listing::Names,
        })
    })
}
