//! `polder query`: one SQL query, printed as it arrives.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use polder_core::{Engine, Principal, QueryStream, Result, Session};
use polder_lake::Lake;
use polder_query::{DataFusionEngine, DataFusionSettings};

use crate::app::App;
use crate::bootstrap::{self, Bootstraps};
use crate::{answer, exit, output};

/// Rows a table on the terminal holds at most; it has to be laid out as a whole.
const TABLE_ROWS_MAX: u64 = 10_000;

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// One SELECT over `lake.org_<id>.<table>`, with time travel by FOR VERSION AS OF <snapshot or
    /// tag>, and over the sources: `<source>.<schema>.<table>`.
    sql: String,
    /// How to print the rows.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Fail if the answer has more rows than this.
    #[arg(long, value_name = "ROWS")]
    rows_max: Option<u64>,
    /// Read the tables of sources, and compute everything here. The rows are the same; EXPLAIN shows
    /// what a source would be asked.
    #[arg(long)]
    no_pushdown: bool,
    /// Who answers; Trino in its own SQL.
    #[arg(long, value_enum, default_value = "embedded")]
    engine: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// Polder itself.
    Embedded,
    /// The Trino of `[trino]`.
    Trino,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns, for people; at most 10,000 rows.
    Table,
    /// RFC 4180 with a header; nested values as JSON.
    Csv,
    /// One JSON array of objects.
    Json,
    /// An Arrow IPC stream.
    Arrow,
}

impl Query {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        if self.engine == By::Trino {
            let trino = app.named_trino()?;
            let ended = self.ask(app, &*trino).await;
            trino.settle().await;
            return ended;
        }
        let engine = engine(app, &app.lake().await?)?;
        self.ask(app, &engine).await
    }

    async fn ask(&self, app: &App, engine: &dyn Engine) -> Result<u8> {
        let memory_bytes = app.config.process.limits.query_memory_mb << 20;
        let table_max = (self.format == Format::Table).then_some(TABLE_ROWS_MAX);
        let session = Session {
            principal: Principal::Operator,
            rows_max: self.rows_max.or(table_max),
            memory_bytes_max: memory_bytes,
            snapshots: BTreeMap::default(),
            pushdown: !self.no_pushdown,
        };
        let work = async { self.print(engine.query(&self.sql, &session).await?).await };
        tokio::select! {
            printed = work => printed.map(|()| exit::OK),
            _ = tokio::signal::ctrl_c() => Ok(exit::INTERRUPTED),
        }
    }

    async fn print(&self, answer: QueryStream) -> Result<()> {
        match self.format {
            Format::Table => print_table(answer).await,
            Format::Csv => {
                let mut writer = arrow::csv::Writer::new(std::io::stdout());
                let mut empty = true;
                let schema = answer.schema.clone();
                let mut batches = answer.batches;
                while let Some(batch) = batches.try_next().await? {
                    empty = false;
                    written(writer.write(&flat(&batch)?))?;
                }
                if empty {
                    written(writer.write(&flat(&RecordBatch::new_empty(schema))?))?;
                }
                Ok(())
            }
            Format::Json => {
                let mut writer = arrow::json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, arrow::json::writer::JsonArray>(std::io::stdout());
                let mut batches = answer.batches;
                while let Some(batch) = batches.try_next().await? {
                    written(writer.write(&answer::readable(&batch)?))?;
                }
                written(writer.finish())?;
                output::line("");
                Ok(())
            }
            Format::Arrow => {
                let mut writer = written(StreamWriter::try_new(std::io::stdout(), &answer.schema))?;
                let mut batches = answer.batches;
                while let Some(batch) = batches.try_next().await? {
                    written(writer.write(&batch))?;
                }
                written(writer.finish())?;
                written(std::io::stdout().flush().map_err(ArrowError::from))
            }
        }
    }
}

/// An engine over the lake and the configured sources.
pub(crate) fn engine(app: &App, lake: &Lake) -> Result<DataFusionEngine> {
    engine_in(app, lake, std::env::temp_dir())
}

/// The same, that spills into a folder of its own.
pub(crate) fn engine_in(app: &App, lake: &Lake, spill_dir: PathBuf) -> Result<DataFusionEngine> {
    engine_of(app, lake, app.config.process.limits.query_memory_mb << 20, spill_dir)
}

fn engine_of(
    app: &App,
    lake: &Lake,
    memory_bytes: usize,
    spill_dir: PathBuf,
) -> Result<DataFusionEngine> {
    let settings = DataFusionSettings {
        memory_bytes,
        threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        spill_dir,
    };
    DataFusionEngine::with_sources(lake, app.source_opener(), settings)
}

/// What bootstraps work with, for this process.
pub(crate) fn bootstraps(app: &App, lake: &Lake) -> Result<Bootstraps> {
    let memory_bytes = app.config.process.limits.query_memory_mb << 20;
    let engine =
        engine_of(app, lake, memory_bytes * bootstrap::ENTITIES_MAX, std::env::temp_dir())?;
    Ok(Bootstraps::new(lake.clone(), engine, memory_bytes))
}

async fn print_table(answer: QueryStream) -> Result<()> {
    let schema = answer::readable_schema(&answer.schema);
    let batches: Vec<RecordBatch> = answer.batches.try_collect().await?;
    let batches = batches.iter().map(answer::readable).collect::<Result<Vec<_>>>()?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let batches = if batches.is_empty() { vec![RecordBatch::new_empty(schema)] } else { batches };
    let options = FormatOptions::new().with_null("NULL");
    let text = pretty_format_batches_with_options(&batches, &options).map_err(answer::failed)?;
    output::line(&text.to_string());
    output::note(&format!("{} rows", output::number(rows as u64)));
    Ok(())
}

/// An answer cut off by its reader (`| head`) is not an error.
fn written<T>(outcome: std::result::Result<T, ArrowError>) -> Result<T> {
    outcome.map_err(answer::failed)
}

/// Nested columns as text, as CSV has no other way.
pub(crate) fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let batch = answer::readable(batch)?;
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
            continue;
        }
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(json_text(field, column)?);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(answer::failed)
}

/// Each value of a nested column as JSON.
fn json_text(field: &Field, column: &ArrayRef) -> Result<ArrayRef> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", field.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(column)]).map_err(answer::failed)?;
    let mut lines = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut lines);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(answer::failed)?;
    drop(writer);
    let text = String::from_utf8_lossy(&lines);
    let values = text.lines().enumerate().map(|(row, line)| {
        // Each line is {"v":…}.
        column.is_valid(row).then(|| line["{\"v\":".len()..line.len() - 1].to_owned())
    });
    Ok(Arc::new(values.collect::<StringArray>()))
}
