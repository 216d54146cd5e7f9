//! `polder query`: one SQL query, printed as it arrives.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use polder_core::{Engine, Error, ErrorCode, Principal, QueryStream, Result, Session};
use polder_query::{DataFusionEngine, DataFusionSettings};

use crate::app::App;
use crate::{exit, output};

/// Rows a table on the terminal holds at most; it has to be laid out as a whole.
const TABLE_ROWS_MAX: u64 = 10_000;

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// One SELECT over `lake.org_<id>.<table>`; time travel by FOR VERSION AS OF <snapshot or tag>.
    sql: String,
    /// How to print the rows.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Fail if the answer has more rows than this.
    #[arg(long, value_name = "ROWS")]
    rows_max: Option<u64>,
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
        let memory_bytes = app.config.process.limits.query_memory_mb << 20;
        let settings = DataFusionSettings {
            memory_bytes,
            partitions: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            spill_dir: std::env::temp_dir(),
        };
        let engine = DataFusionEngine::new(&app.lake().await?, settings)?;
        let table_max = (self.format == Format::Table).then_some(TABLE_ROWS_MAX);
        let session = Session {
            principal: Principal::Operator,
            rows_max: self.rows_max.or(table_max),
            memory_bytes_max: memory_bytes,
        };
        let answer = engine.query(&self.sql, &session).await?;
        tokio::select! {
            printed = self.print(answer) => printed?,
            _ = tokio::signal::ctrl_c() => return Ok(exit::INTERRUPTED),
        }
        Ok(exit::OK)
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
                    written(writer.write(&readable(&batch)?))?;
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

async fn print_table(answer: QueryStream) -> Result<()> {
    let schema = readable_schema(&answer.schema);
    let batches: Vec<RecordBatch> = answer.batches.try_collect().await?;
    let batches = batches.iter().map(readable).collect::<Result<Vec<_>>>()?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let batches = if batches.is_empty() { vec![RecordBatch::new_empty(schema)] } else { batches };
    let options = FormatOptions::new().with_null("NULL");
    let text = pretty_format_batches_with_options(&batches, &options).map_err(print_failed)?;
    output::line(&text.to_string());
    output::note(&format!("{} rows", output::number(rows as u64)));
    Ok(())
}

/// An answer cut off by its reader (`| head`) is not an error.
fn written<T>(outcome: std::result::Result<T, ArrowError>) -> Result<T> {
    outcome.map_err(print_failed)
}

fn print_failed(error: ArrowError) -> Error {
    Error::new(ErrorCode::QueryFailed, "the answer cannot be printed").caused_by(error)
}

/// UUIDs as people write them instead of 16 bytes in hex.
pub(crate) fn readable(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::FixedSizeBinary(16) => uuid_text(column),
        _ => Arc::clone(column),
    });
    RecordBatch::try_new(readable_schema(batch.schema_ref()), columns.collect())
        .map_err(print_failed)
}

fn readable_schema(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::FixedSizeBinary(16) => {
            Field::new(field.name(), DataType::Utf8, field.is_nullable())
        }
        _ => field.as_ref().clone(),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn uuid_text(column: &ArrayRef) -> ArrayRef {
    let values = column.as_fixed_size_binary().iter();
    let texts = values
        .map(|value| value.and_then(|v| uuid::Uuid::from_slice(v).ok()).map(|id| id.to_string()));
    Arc::new(texts.collect::<StringArray>())
}

/// Nested columns as text, as CSV has no other way.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let batch = readable(batch)?;
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
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(print_failed)
}

/// Each value of a nested column as JSON.
fn json_text(field: &Field, column: &ArrayRef) -> Result<ArrayRef> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", field.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(column)]).map_err(print_failed)?;
    let mut lines = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut lines);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(print_failed)?;
    drop(writer);
    let text = String::from_utf8_lossy(&lines);
    let values = text.lines().enumerate().map(|(row, line)| {
        // Each line is {"v":…}.
        column.is_valid(row).then(|| line["{\"v\":".len()..line.len() - 1].to_owned())
    });
    Ok(Arc::new(values.collect::<StringArray>()))
}
