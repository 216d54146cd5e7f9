//! Position delete files: which rows of a data file are gone (spec, *Position Delete Files*).
//!
//! One file of deletes per data file, which it names in its manifest entry, so that readers and
//! conflict checks need not open it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum};
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use polder_core::{Error, ErrorCode, Result};
use uuid::Uuid;

use crate::error;
use crate::scan::{FilePartition, ScanFile};
use crate::storage::Store;

/// Spec, *Reserved Field IDs*.
pub(crate) const FILE_PATH_ID: i32 = 2_147_483_546;
const POSITION_ID: i32 = 2_147_483_545;
/// Deletes encoded at once.
const BATCH_ROWS: usize = 8192;

/// A finished delete file that no metadata names yet.
#[derive(Clone, Debug)]
pub struct StagedDeletes {
    file: DataFile,
    of: String,
    spec_id: i32,
    /// The delete files of that data file alone whose positions it has taken over.
    replaces: Vec<String>,
}

impl StagedDeletes {
    /// Where it is.
    pub fn location(&self) -> &str {
        self.file.file_path()
    }

    /// The data file whose rows it deletes.
    pub fn of(&self) -> &str {
        &self.of
    }

    pub(crate) fn file(&self) -> &DataFile {
        &self.file
    }

    pub(crate) fn spec_id(&self) -> i32 {
        self.spec_id
    }

    /// Delete files that go when this one comes.
    pub(crate) fn replaces(&self) -> &[String] {
        &self.replaces
    }

    pub(crate) fn replacing(self, replaces: Vec<String>) -> Self {
        Self { replaces, ..self }
    }
}

/// Writes the deletes of rows of one data file, by their positions in it, from 0.
///
/// # Errors
/// `internal` for no positions, or positions that the file does not have; `lake.*` when the store
/// fails.
pub(crate) async fn write(
    store: &Store,
    table_location: &str,
    of: &ScanFile,
    partition: &FilePartition,
    positions: &[u64],
) -> Result<StagedDeletes> {
    let wrong = |what: &str| Error::new(ErrorCode::Internal, what.to_owned()).detail(&*of.path);
    let mut positions = positions.to_vec();
    positions.sort_unstable();
    positions.dedup();
    let rows = of.rows.unwrap_or(u64::MAX);
    match positions.last() {
        Some(last) if *last < rows => {}
        _ => return Err(wrong("no rows to delete, or rows that the file does not have")),
    }
    let bytes = encode(&of.path, &positions)?;
    let location = format!("{table_location}/data/{}-deletes.parquet", Uuid::new_v4());
    store.put_new(&location, bytes.clone()).await?;
    // Bounds are whole here: they are the path itself.
    let path = HashMap::from([(FILE_PATH_ID, Datum::string(&of.path))]);
    let file = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location)
        .file_format(DataFileFormat::Parquet)
        .partition(partition.values.clone())
        .partition_spec_id(partition.spec_id)
        .record_count(positions.len() as u64)
        .file_size_in_bytes(bytes.len() as u64)
        .lower_bounds(path.clone())
        .upper_bounds(path)
        .referenced_data_file(Some(of.path.clone()))
        .build()
        .map_err(|cause| wrong("cannot describe a delete file").caused_by(cause))?;
    let (of, spec_id) = (of.path.clone(), partition.spec_id);
    Ok(StagedDeletes { file, of, spec_id, replaces: Vec::new() })
}

fn encode(path: &str, positions: &[u64]) -> Result<Bytes> {
    let failed = |cause| error::parquet("write a delete file", cause);
    let schema = schema();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_truncate_length(None)
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).map_err(failed)?;
    // The path stands beside every position.
    for positions in positions.chunks(BATCH_ROWS) {
        let paths = StringArray::from_iter_values(positions.iter().map(|_| path));
        let rows = positions.iter().map(|position| *position as i64);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(paths), Arc::new(Int64Array::from_iter_values(rows))];
        let batch = RecordBatch::try_new(schema.clone(), columns)
            .map_err(|cause| error::arrow("make a batch of deletes", cause))?;
        writer.write(&batch).map_err(failed)?;
    }
    Ok(Bytes::from(writer.into_inner().map_err(failed)?))
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType, id: i32| {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, data_type, false).with_metadata(id)
    };
    Arc::new(Schema::new(vec![
        field("file_path", DataType::Utf8, FILE_PATH_ID),
        field("pos", DataType::Int64, POSITION_ID),
    ]))
}
