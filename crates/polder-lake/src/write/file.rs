//! One Parquet file in the making.
//!
//! `ArrowWriter` goes through all columns with every batch. With many columns, each one's dictionary
//! has left the processor's caches until its next values come; so several batches are written at once
//! here, column by column.

use std::fmt;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnWriter, ArrowRowGroupWriterFactory, ArrowWriterOptions, compute_leaves,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::writer::SerializedFileWriter;
use polder_core::digest;

use super::Tail;

/// Rows of a row group; Parquet's own default.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// From so many columns on, what a row group takes beside its values counts.
pub(super) const COLUMNS_MANY: usize = 1_000;
/// Bytes that a column takes in memory, its place in the footer included, whatever its values.
const COLUMN_BYTES: usize = 2 << 10;

pub(super) struct FileWriter {
    schema: SchemaRef,
    file: SerializedFileWriter<Vec<u8>>,
    factory: ArrowRowGroupWriterFactory,
    /// The row group at hand: a writer for each leaf column.
    columns: Vec<ArrowColumnWriter>,
    rows: usize,
}

impl FileWriter {
    pub(super) fn new(schema: SchemaRef, options: ArrowWriterOptions) -> Result<Self> {
        let writer = ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options)?;
        let (file, factory) = writer.into_serialized_writer()?;
        Ok(Self { schema, file, factory, columns: Vec::new(), rows: 0 })
    }

    /// Encodes rows, which may end row groups.
    pub(super) fn write(&mut self, batches: &[RecordBatch]) -> Result<()> {
        let mut group = Vec::with_capacity(batches.len());
        for batch in batches {
            let mut batch = batch.clone();
            while self.rows + batch.num_rows() >= ROW_GROUP_ROWS {
                let fits = ROW_GROUP_ROWS - self.rows;
                group.push(batch.slice(0, fits));
                batch = batch.slice(fits, batch.num_rows() - fits);
                self.encode(&std::mem::take(&mut group))?;
                self.flush()?;
            }
            if batch.num_rows() > 0 {
                self.rows += batch.num_rows();
                group.push(batch);
            }
        }
        self.encode(&group)
    }

    fn encode(&mut self, batches: &[RecordBatch]) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        if self.columns.is_empty() {
            let number = self.file.flushed_row_groups().len();
            self.columns = self.factory.create_column_writers(number)?;
        }
        let mut columns = &mut self.columns[..];
        for (index, field) in self.schema.fields().iter().enumerate() {
            let mut leaves = 0;
            for batch in batches {
                let parts = compute_leaves(field, batch.column(index))?;
                leaves = parts.len();
                for (part, column) in parts.iter().zip(&mut *columns) {
                    column.write(part)?;
                }
            }
            columns = &mut columns[leaves..];
        }
        Ok(())
    }

    /// Ends the row group at hand, if it has rows.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.rows = 0;
        if self.columns.is_empty() {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for column in self.columns.drain(..) {
            column.close()?.append_to_row_group(&mut group)?;
        }
        group.close()?;
        Ok(())
    }

    /// Ends the rows and writes what follows them: page indexes and footer.
    pub(super) fn finish(&mut self) -> Result<(ParquetMetaData, Tail)> {
        self.flush()?;
        let metadata = self.file.finish()?;
        let made = self.file.inner();
        let from = rows_end(&metadata);
        let tail = self.file.bytes_written() - from as usize;
        let tail = made.len().checked_sub(tail).map(|from| &made[from..]);
        let tail = tail.ok_or_else(|| {
            ParquetError::General("the bytes of a footer were taken away".to_owned())
        })?;
        let hash = digest::bytes(tail);
        Ok((metadata, Tail { from, hash }))
    }

    /// The bytes made since the last call.
    pub(super) fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(self.file.inner_mut())
    }

    /// Of all bytes made so far.
    pub(super) fn bytes_written(&self) -> usize {
        self.file.bytes_written()
    }

    /// What the row group at hand will have, nearly: what is in progress is not compressed yet.
    pub(super) fn in_progress_bytes(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    /// Column chunks of all row groups that have ended.
    pub(super) fn chunks(&self) -> usize {
        self.file.flushed_row_groups().iter().map(RowGroupMetaData::num_columns).sum()
    }

    /// Whether the row group at hand is of many columns with little in each: ended now, it would take more
    /// memory by its place in the footer than it gives back.
    pub(super) fn is_mostly_columns(&self) -> bool {
        let columns = self.columns.len();
        columns >= COLUMNS_MANY && self.memory_bytes() < columns * COLUMN_BYTES
    }

    /// What the row group at hand takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::memory_size).sum()
    }
}

/// Where the row groups of a file end.
fn rows_end(metadata: &ParquetMetaData) -> u64 {
    let chunks = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let ends = chunks.map(ColumnChunkMetaData::byte_range).map(|(start, length)| start + length);
    // A file begins with four bytes.
    ends.max().unwrap_or(4)
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter").field("rows", &self.rows).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array};
    use arrow::datatypes::{DataType, Field, Schema};
    use parquet::file::properties::WriterProperties;

    use super::*;

    /// A writer of so many columns, with so many rows in its row group.
    fn writer(columns: usize, rows: i32) -> FileWriter {
        let field = |number: usize| Field::new(format!("c{number}"), DataType::Int32, false);
        let schema = Arc::new(Schema::new((0..columns).map(field).collect::<Vec<_>>()));
        let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
        let options = ArrowWriterOptions::new().with_properties(properties);
        let mut writer = FileWriter::new(Arc::clone(&schema), options).expect("writer");
        let values: ArrayRef = Arc::new((0..rows).collect::<Int32Array>());
        let batch = RecordBatch::try_new(schema, vec![values; columns]).expect("batch");
        writer.write(&[batch]).expect("written");
        writer
    }

    #[test]
    fn a_row_group_of_many_columns_with_little_in_each_is_told() {
        assert!(writer(1_200, 4).is_mostly_columns());
        assert!(!writer(1_200, 4_096).is_mostly_columns(), "there are values enough");
        assert!(!writer(999, 4).is_mostly_columns(), "not many");
        assert!(!writer(2, 4).is_mostly_columns());
    }

    #[test]
    fn chunks_are_those_of_row_groups_that_have_ended() {
        let mut writer = writer(7, 10);
        assert_eq!(writer.chunks(), 0);
        writer.flush().expect("a row group");
        writer.flush().expect("nothing");
        assert_eq!(writer.chunks(), 7);
        assert!(!writer.is_mostly_columns(), "there is none at hand");
    }
}
