//! `pg_catalog`: what psql, drivers and tools ask about tables and types.
//!
//! It is planned and computed apart from the lake, over rows in memory: a statement that names
//! `pg_catalog` reads nothing else, and finds no table that the session's own listing did not have. The
//! system tables that are the same everywhere, the functions, and the rewriting of what DataFusion
//! does not understand are `datafusion-pg-catalog`'s.

use std::any::Any;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemTable, MemoryCatalogProvider,
    MemoryCatalogProviderList, SchemaProvider, TableProvider,
};
use datafusion::common::{Result as DataFusionResult, ScalarValue};
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::execution::TaskContext;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{
    ColumnarValue, ScalarUDF, Signature, SimpleScalarUDF, Volatility, create_udf,
};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Expr, ObjectName, visit_expressions, visit_relations};
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::{
    PG_CATALOG_TABLES, PgCatalogSchemaProvider, PgCatalogStaticTables,
};
use datafusion_pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use futures::StreamExt;
use polder_core::{Error, ErrorCode, QueryStream, Result};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::super::error::{planning, running, syntax};
use super::super::statement;
use super::super::weight;
use super::super::workers::{Running, Workers, lost};
use super::tables::{self, Shown};

const CATALOG: &str = "lake";
const SCHEMA: &str = "pg_catalog";
/// Bytes of a question: psql's longest has some 3,000.
const BYTES_MAX: usize = 32 * 1024;
/// Bytes that an answer is computed in.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// How long one may be planned.
const PLANNING_MAX: Duration = Duration::from_secs(10);
/// Functions that a statement without tables asks the system by.
const FUNCTIONS: [&str; 9] = [
    "current_catalog",
    "current_database",
    "current_schema",
    "current_schemas",
    "format_type",
    "obj_description",
    "session_user",
    "current_user",
    "version",
];

/// Answers questions to `pg_catalog`. One for all sessions: what each may see comes with its question.
pub struct PostgresCatalog {
    workers: Arc<Workers>,
    tables: Arc<PgCatalogStaticTables>,
    parser: PostgresCompatibilityParser,
    /// Functions and rules.
    functions: SessionState,
}

impl PostgresCatalog {
    /// Starts its threads.
    ///
    /// # Errors
    /// `query.failed` when the system gives no threads.
    pub fn start() -> Result<Self> {
        let state = SessionStateBuilder::new_with_default_features()
            .with_file_formats(Vec::new())
            .with_table_factories(HashMap::new())
            .build();
        let context = SessionContext::new_with_state(state);
        context.register_catalog(CATALOG, Arc::new(MemoryCatalogProvider::new()));
        setup_pg_catalog(&context, CATALOG, EmptyContextProvider)
            .map_err(|error| planning(*error))?;
        Ok(Self {
            workers: Arc::new(Workers::start(1)?),
            tables: Arc::new(PgCatalogStaticTables::try_new().map_err(planning)?),
            parser: PostgresCompatibilityParser::new(),
            functions: context.state(),
        })
    }

    /// Whether a statement asks the system, and not the lake.
    pub fn concerns(&self, sql: &str) -> bool {
        let lower = sql.to_ascii_lowercase();
        let may = lower.contains("pg_")
            || FUNCTIONS.iter().any(|name| lower.contains(name))
            || lower.contains("has_");
        // Some of psql's questions are parsed as ones without tables, as nothing answers to them.
        let names_it = lower.contains("from pg_catalog.");
        may && self.parsed(sql).is_ok_and(|statement| asks_the_system(&statement, names_it))
    }

    fn parsed(&self, sql: &str) -> Result<ast::Statement> {
        if sql.len() > BYTES_MAX {
            let message = format!("a question to pg_catalog has {BYTES_MAX} bytes at most");
            return Err(Error::new(ErrorCode::QueryLimit, message));
        }
        statement::bounded(sql)?;
        let mut statements = self.parser.parse(sql).map_err(|error| syntax(&error.to_string()))?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => Ok(statement),
            _ => Err(Error::new(ErrorCode::QueryInvalid, "exactly one statement is expected")),
        }
    }

    /// Answers a statement that [`Self::concerns`] it.
    ///
    /// # Errors
    /// `query.invalid` for what cannot be planned; `query.limit` for what would take too long.
    pub async fn query(&self, sql: &str, shown: Shown) -> Result<QueryStream> {
        let mut statement = self.parsed(sql)?;
        statement::hold(&mut statement)?;
        let state = self.state(shown).map_err(planning)?;
        let work = async move { plan(&state, statement).await };
        let io = Handle::current();
        let mut tasks = JoinSet::new();
        tasks.spawn_blocking_on(move || io.block_on(work), self.workers.handle());
        let (plan, context) = match tokio::time::timeout(PLANNING_MAX, tasks.join_next()).await {
            Ok(Some(Ok(planned))) => planned?,
            Ok(Some(Err(error))) => return Err(lost(error)),
            Ok(None) => return Err(Error::new(ErrorCode::Internal, "it was not planned")),
            Err(_) => {
                let message = format!("planning took longer than {} s", PLANNING_MAX.as_secs());
                return Err(Error::new(ErrorCode::QueryLimit, message));
            }
        };
        let schema = plan.schema();
        let batches = Running::start(&self.workers, move |sender| async move {
            let mut stream = match execute_stream(plan, context) {
                Ok(stream) => stream,
                Err(error) => {
                    let _ = sender.send(Err(running(error))).await;
                    return;
                }
            };
            while let Some(batch) = stream.next().await {
                // A send that fails means nobody listens any more.
                if sender.send(batch.map_err(running)).await.is_err() {
                    return;
                }
            }
        });
        Ok(QueryStream { schema, batches: Box::pin(batches) })
    }

    /// A session that sees what is shown.
    fn state(&self, shown: Shown) -> DataFusionResult<SessionState> {
        let nothing: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
        let common = PgCatalogSchemaProvider::try_new(
            nothing,
            Arc::clone(&self.tables),
            EmptyContextProvider,
        )?;
        let functions = functions(&shown);
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, Arc::new(System { common, shown }))?;
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(1);
        let options = config.options_mut();
        options.sql_parser.map_string_types_to_utf8view = false;
        let mut builder = SessionStateBuilder::new_from_existing(self.functions.clone())
            .with_config(config)
            .with_catalog_list(Arc::new(catalogs))
            .with_runtime_env(environment()?);
        // The last of a name is the one that is called.
        builder.scalar_functions().get_or_insert_default().extend(functions);
        Ok(builder.build())
    }
}

/// No files, no other addresses, no spilling.
fn environment() -> DataFusionResult<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let environment = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(MEMORY_BYTES)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    environment.deregister_object_store(ObjectStoreUrl::local_filesystem().as_ref())?;
    Ok(environment)
}

async fn plan(
    state: &SessionState,
    statement: ast::Statement,
) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>)> {
    let statement = Statement::Statement(Box::new(statement));
    let logical = state.statement_to_plan(statement).await.map_err(planning)?;
    let options =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&logical).map_err(planning)?;
    weight::check(&logical)?;
    let plan = state.create_physical_plan(&logical).await.map_err(planning)?;
    Ok((plan, state.task_ctx()))
}

/// Whether a statement names a system table, or no table and one of the system's functions. `names_it`:
/// whether the text from which it was parsed names such a table.
fn asks_the_system(statement: &ast::Statement, names_it: bool) -> bool {
    let (mut any, mut system) = (false, false);
    let _ = visit_relations(statement, |name| {
        any = true;
        system |= is_of_the_system(name);
        ControlFlow::<()>::Continue(())
    });
    if any || names_it {
        return !any || system;
    }
    let called = visit_expressions(statement, |expr| match expr {
        Expr::Function(function) if last(&function.name).is_some_and(|name| is_asking(&name)) => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    called.is_break()
}

fn is_asking(name: &str) -> bool {
    FUNCTIONS.contains(&name) || name.starts_with("pg_") || name.starts_with("has_")
}

fn is_of_the_system(name: &ObjectName) -> bool {
    let Some(table) = last(name) else { return false };
    let parts: Vec<String> =
        name.0.iter().filter_map(|part| part.as_ident()).map(|part| part.value.clone()).collect();
    match parts.as_slice() {
        [_] => table == "pg_get_keywords" || PG_CATALOG_TABLES.contains(&table.as_str()),
        [.., schema, _] => schema.eq_ignore_ascii_case(SCHEMA),
        [] => false,
    }
}

fn last(name: &ObjectName) -> Option<String> {
    Some(name.0.last()?.as_ident()?.value.to_ascii_lowercase())
}

/// The system tables as one session sees them.
#[derive(Debug)]
struct System {
    common: PgCatalogSchemaProvider<Arc<dyn CatalogProviderList>, EmptyContextProvider>,
    shown: Shown,
}

#[async_trait]
impl SchemaProvider for System {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_names(&self) -> Vec<String> {
        self.common.table_names()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let Some(table) = self.common.build_table_by_name(name)? else { return Ok(None) };
        let schema = table.schema();
        match tables::rows(&name.to_ascii_lowercase(), &schema, &self.shown) {
            Some(rows) => Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![rows?]])?))),
            None => Ok(Some(table.try_into_table_provider()?)),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.common.table_exist(name)
    }
}

/// What the session is called by, instead of what the library would say.
fn functions(shown: &Shown) -> Vec<Arc<ScalarUDF>> {
    let schema = shown.schema.as_deref().unwrap_or("public");
    let texts = [
        ("current_database", Vec::new(), shown.database.as_str()),
        ("current_catalog", Vec::new(), shown.database.as_str()),
        ("current_schema", Vec::new(), schema),
        ("session_user", Vec::new(), shown.user.as_str()),
        ("current_user", Vec::new(), shown.user.as_str()),
        ("pg_get_userbyid", vec![DataType::Int32], shown.user.as_str()),
        ("version", Vec::new(), shown.version.as_str()),
    ];
    let text = |(name, takes, text): (&str, Vec<DataType>, &str)| {
        let value = ColumnarValue::Scalar(ScalarValue::Utf8(Some(text.to_owned())));
        let call =
            Arc::new(move |_: &[ColumnarValue]| -> DataFusionResult<_> { Ok(value.clone()) });
        Arc::new(create_udf(name, takes, DataType::Utf8, Volatility::Stable, call))
    };
    // Nothing is described.
    let none = |name: &str| {
        let call = Arc::new(|_: &[ColumnarValue]| -> DataFusionResult<_> {
            Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None)))
        });
        let signature = Signature::variadic_any(Volatility::Stable);
        let function = SimpleScalarUDF::new_with_signature(name, signature, DataType::Utf8, call);
        Arc::new(ScalarUDF::from(function))
    };
    let described = ["obj_description", "col_description", "shobj_description"].map(none);
    texts.map(text).into_iter().chain(described).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Listed};
    use super::*;

    fn shown() -> Shown {
        let column = |name: &str, oid, length| Column {
            name: name.to_owned(),
            nullable: name != "id",
            oid,
            length,
            modifier: -1,
        };
        let columns = vec![column("id", 20, 8), column("at", 1184, 8), column("Note", 25, -1)];
        let table = |schema: &str, name: &str| Listed {
            schema: schema.to_owned(),
            name: name.to_owned(),
            columns: columns.clone(),
        };
        Shown {
            database: "lake".to_owned(),
            user: "ann".to_owned(),
            schema: Some("org_1".to_owned()),
            version: "PostgreSQL 15".to_owned(),
            tables: vec![table("org_1", "deal"), table("org_1", "Odd \"name\"")],
        }
    }

    async fn rows(catalog: &PostgresCatalog, sql: &str) -> Vec<String> {
        let found = catalog.query(sql, shown()).await.expect(sql);
        let batches: Vec<_> = found.batches.map(|batch| batch.expect(sql)).collect().await;
        let table = arrow::util::pretty::pretty_format_batches(&batches).expect(sql).to_string();
        let lines = table.lines().filter(|line| line.starts_with('|')).skip(1);
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn questions_to_the_system_are_told_from_those_to_the_lake() {
        let catalog = PostgresCatalog::start().expect("catalog");
        for system in [
            "SELECT * FROM pg_catalog.pg_class",
            "select relname from pg_class c join pg_namespace n on n.oid = c.relnamespace",
            "SELECT version()",
            "SELECT current_schema(), current_database()",
            "SELECT pg_catalog.format_type(23, -1)",
        ] {
            assert!(catalog.concerns(system), "{system}");
        }
        for lake in [
            "SELECT 1",
            "SELECT pg_note FROM deal",
            "SELECT 'pg_catalog.pg_class'",
            "SELECT * FROM org_1.pg_class",
            "SELECT version FROM deal",
            "SELECT * FROM deal FOR VERSION AS OF 'v1'",
        ] {
            assert!(!catalog.concerns(lake), "{lake}");
        }
    }

    #[tokio::test]
    async fn tables_and_columns_are_those_that_are_shown() {
        let catalog = PostgresCatalog::start().expect("catalog");
        let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN \
                   pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r') \
                   ORDER BY 2";
        assert_eq!(rows(&catalog, sql).await, ["| org_1 | Odd \"name\" |", "| org_1 | deal |"]);
        let sql = "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), \
                   a.attnotnull FROM pg_catalog.pg_attribute a JOIN pg_class c \
                   ON c.oid = a.attrelid WHERE c.relname = 'deal' ORDER BY a.attnum";
        assert_eq!(
            rows(&catalog, sql).await,
            [
                "| id | bigint | true |",
                "| at | timestamp with time zone | false |",
                "| Note | text | false |",
            ]
        );
        let sql = "SELECT current_schema(), current_database(), session_user, version()";
        assert_eq!(rows(&catalog, sql).await, ["| org_1 | lake | ann | PostgreSQL 15 |"]);
    }

    #[tokio::test]
    async fn nothing_but_questions_is_answered() {
        let catalog = PostgresCatalog::start().expect("catalog");
        for sql in [
            "COPY pg_class TO '/tmp/x'",
            "EXPLAIN ANALYZE COPY pg_class TO '/tmp/x'",
            "CREATE TABLE pg_class (a int)",
            "DELETE FROM pg_class",
            "SET datafusion.execution.batch_size = 1",
            "SELECT * FROM pg_class; SELECT 1",
            "SELECT * FROM pg_class, deal",
        ] {
            assert!(catalog.query(sql, shown()).await.is_err(), "{sql}");
        }
        let long = format!("SELECT * FROM pg_class WHERE relname = '{}'", "x".repeat(BYTES_MAX));
        let error = catalog.query(&long, shown()).await.err().expect("long");
        assert_eq!(error.code(), ErrorCode::QueryLimit);
    }
}
