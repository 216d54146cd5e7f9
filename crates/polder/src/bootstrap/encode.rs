//! A bootstrap's bytes: the manifest, parts of rows, and behind each part a mark that says how to go on.
//!
//! | format | the body is | a mark is |
//! |---|---|---|
//! | NDJSON | `{"manifest": …}`, `{"table": …, "row": …}` | `{"mark": …}` |
//! | Arrow | one IPC stream after another; the table's name is in the schema's metadata | a stream without columns, `polder.mark` in its metadata |
//! | Parquet | a tar archive with a file for each part | the member `mark.json` |

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use polder_core::{Error, ErrorCode, Result};
use serde::Serialize;
use serde_json::json;

/// Characters of a table's name in a member's.
const NAME_CHARS_MAX: usize = 60;
const TAR_BLOCK: usize = 512;

/// In which form rows are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Arrow,
    Parquet,
    Ndjson,
}

impl Format {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "arrow" => Some(Self::Arrow),
            "parquet" => Some(Self::Parquet),
            "ndjson" => Some(Self::Ndjson),
            _ => None,
        }
    }

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/x-tar",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

/// Turns what is sent into bytes.
pub(super) struct Encoder {
    form: Form,
}

enum Form {
    Ndjson,
    Arrow(Option<Box<StreamWriter<Vec<u8>>>>),
    Parquet { part: Option<(String, Box<ArrowWriter<Vec<u8>>>)>, parts: u64 },
}

/// Rows ready to be measured and sent in part.
pub(super) enum Rows {
    /// Lines of JSON, and where each ends.
    Lines {
        text: Vec<u8>,
        ends: Vec<usize>,
    },
    Batch(RecordBatch),
}

impl Rows {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Lines { ends, .. } => ends.len(),
            Self::Batch(batch) => batch.num_rows(),
        }
    }

    /// Bytes of the first `rows`, as budgets count them.
    pub(super) fn bytes(&self, rows: usize) -> u64 {
        match self {
            Self::Lines { ends, .. } => rows.checked_sub(1).map_or(0, |last| ends[last] as u64),
            Self::Batch(batch) => {
                let part = batch.slice(0, rows);
                // What cannot be sliced to the byte counts as a whole.
                let size = |column: &arrow::array::ArrayRef| {
                    let data = column.to_data();
                    data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
                };
                part.columns().iter().map(|column| size(column) as u64).sum()
            }
        }
    }
}

impl Encoder {
    pub(super) fn new(format: Format) -> Self {
        let form = match format {
            Format::Ndjson => Form::Ndjson,
            Format::Arrow => Form::Arrow(None),
            Format::Parquet => Form::Parquet { part: None, parts: 0 },
        };
        Self { form }
    }

    pub(super) fn manifest(&mut self, manifest: &impl Serialize) -> Result<Vec<u8>> {
        let text = json(manifest)?;
        match self.form {
            Form::Ndjson => Ok(line("manifest", &text)),
            Form::Arrow(_) => labelled("polder.manifest", &text),
            Form::Parquet { .. } => member("manifest.json", text.as_bytes()),
        }
    }

    /// Brings rows of a table into the form that is sent.
    pub(super) fn prepare(&self, table: &str, batch: RecordBatch) -> Result<Rows> {
        if !matches!(self.form, Form::Ndjson) {
            return Ok(Rows::Batch(batch));
        }
        let rows = crate::answer::lines(&batch)?;
        let before = format!("{{\"table\":{},\"row\":", json!(table)).into_bytes();
        let (mut text, mut ends) = (Vec::with_capacity(rows.len() * 2), Vec::new());
        // Line ends inside of values are escaped.
        for row in rows.split(|byte| *byte == b'\n').filter(|row| !row.is_empty()) {
            text.extend_from_slice(&before);
            text.extend_from_slice(row);
            text.extend_from_slice(b"}\n");
            ends.push(text.len());
        }
        Ok(Rows::Lines { text, ends })
    }

    /// The first `count` of some rows of a table.
    pub(super) fn rows(&mut self, table: &str, rows: Rows, count: usize) -> Result<Vec<u8>> {
        let batch = match rows {
            Rows::Lines { mut text, ends } => {
                text.truncate(count.checked_sub(1).map_or(0, |last| ends[last]));
                return Ok(text);
            }
            Rows::Batch(batch) => batch.slice(0, count),
        };
        match &mut self.form {
            Form::Ndjson => Err(Error::new(ErrorCode::Internal, "rows of another format")),
            Form::Arrow(open) => {
                let writer = match open {
                    Some(writer) => writer,
                    None => open.insert(Box::new(arrow_writer(table, batch.schema_ref())?)),
                };
                writer.write(&batch).map_err(crate::answer::failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Form::Parquet { part, parts } => {
                let (_, writer) = if let Some(part) = part {
                    part
                } else {
                    *parts += 1;
                    let name: String = utf8_percent_encode(table, NON_ALPHANUMERIC)
                        .to_string()
                        .chars()
                        .take(NAME_CHARS_MAX)
                        .collect();
                    let name = format!("{parts:06}-{name}.parquet");
                    part.insert((name, Box::new(parquet_writer(table, batch.schema_ref())?)))
                };
                writer.write(&batch).map_err(unwritable)?;
                Ok(Vec::new())
            }
        }
    }

    /// Ends the part that is open; to be called before rows of another table.
    pub(super) fn close(&mut self) -> Result<Vec<u8>> {
        match &mut self.form {
            Form::Ndjson => Ok(Vec::new()),
            Form::Arrow(open) => match open.take() {
                Some(writer) => writer.into_inner().map_err(crate::answer::failed),
                None => Ok(Vec::new()),
            },
            Form::Parquet { part, .. } => match part.take() {
                Some((name, writer)) => member(&name, &writer.into_inner().map_err(unwritable)?),
                None => Ok(Vec::new()),
            },
        }
    }

    /// Ends the part that is open, and says how to go on.
    pub(super) fn mark(&mut self, mark: &impl Serialize, last: bool) -> Result<Vec<u8>> {
        let mut bytes = self.close()?;
        let text = json(mark)?;
        match self.form {
            Form::Ndjson => bytes.extend(line("mark", &text)),
            Form::Arrow(_) => bytes.extend(labelled("polder.mark", &text)?),
            Form::Parquet { .. } => {
                bytes.extend(member("mark.json", text.as_bytes())?);
                if last {
                    bytes.extend([0; 2 * TAR_BLOCK]);
                }
            }
        }
        Ok(bytes)
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|cause| Error::new(ErrorCode::Internal, "no JSON").caused_by(cause))
}

fn line(name: &str, text: &str) -> Vec<u8> {
    format!("{{\"{name}\":{text}}}\n").into_bytes()
}

fn arrow_writer(table: &str, schema: &Schema) -> Result<StreamWriter<Vec<u8>>> {
    let metadata = HashMap::from([("polder.table".to_owned(), table.to_owned())]);
    let schema = schema.clone().with_metadata(metadata);
    StreamWriter::try_new(Vec::new(), &schema).map_err(crate::answer::failed)
}

/// A whole stream without columns, that says something in its schema's metadata.
fn labelled(name: &str, text: &str) -> Result<Vec<u8>> {
    let schema = Schema::empty().with_metadata(HashMap::from([(name.to_owned(), text.to_owned())]));
    let writer = StreamWriter::try_new(Vec::new(), &schema).map_err(crate::answer::failed)?;
    writer.into_inner().map_err(crate::answer::failed)
}

fn parquet_writer(table: &str, schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>> {
    let metadata = HashMap::from([("polder.table".to_owned(), table.to_owned())]);
    let schema = Arc::new(schema.as_ref().clone().with_metadata(metadata));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    ArrowWriter::try_new(Vec::new(), schema, Some(properties)).map_err(unwritable)
}

fn unwritable(cause: ParquetError) -> Error {
    Error::new(ErrorCode::QueryFailed, "the rows cannot be written as Parquet").caused_by(cause)
}

/// A file in a tar archive (POSIX.1-1988, ustar).
fn member(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut header = [0_u8; TAR_BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    if name.len() >= 100 || content.len() >= 1 << 33 {
        return Err(Error::new(ErrorCode::Internal, "a part is too long for its archive"));
    }
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = Vec::with_capacity(TAR_BLOCK + content.len().next_multiple_of(TAR_BLOCK));
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(TAR_BLOCK), 0);
    Ok(bytes)
}
