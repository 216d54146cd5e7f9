//! Spilled documents as splits of a read plan.

use std::ops::Range;
use std::sync::Arc;

use futures::stream;
use polder_core::{BatchStream, ReadRequest, RunProgress, Split, TableSchema};

use super::column::{Decoder, DecoderOptions};
use super::spill::{DocumentBatches, Spill};
use super::text::Dialect;
use crate::blocking;

/// Some of a plan's documents.
#[derive(Clone)]
struct DocumentSplit {
    spill: Arc<Spill>,
    runs: Range<usize>,
    schema: Arc<TableSchema>,
    options: DecoderOptions,
    key: Vec<String>,
    batch_bytes: usize,
    progress: Arc<RunProgress>,
}

/// Cuts the documents into at most as many splits as the request allows.
pub(crate) fn splits(
    spill: Spill,
    schema: &TableSchema,
    dialect: Dialect,
    request: &ReadRequest,
) -> Vec<Box<dyn Split>> {
    let ranges = spill.ranges(request.splits_max.get());
    let all = DocumentSplit::new(spill, schema, dialect, request);
    ranges
        .into_iter()
        .map(|runs| Box::new(DocumentSplit { runs, ..all.clone() }) as Box<dyn Split>)
        .collect()
}

/// All documents as one split, even if there are none.
pub(crate) fn one_split(
    spill: Spill,
    schema: &TableSchema,
    dialect: Dialect,
    request: &ReadRequest,
) -> Box<dyn Split> {
    Box::new(DocumentSplit::new(spill, schema, dialect, request))
}

impl DocumentSplit {
    /// All documents.
    fn new(spill: Spill, schema: &TableSchema, dialect: Dialect, request: &ReadRequest) -> Self {
        let options = DecoderOptions { dialect, on_unrepresentable: request.on_unrepresentable };
        Self {
            runs: spill.ranges(1).pop().unwrap_or_default(),
            spill: Arc::new(spill),
            schema: Arc::new(schema.clone()),
            options,
            key: request.key.clone(),
            batch_bytes: request.batch_bytes,
            progress: request.progress.clone(),
        }
    }
}

impl Split for DocumentSplit {
    fn describe(&self) -> String {
        format!("spilled runs [{}, {})", self.runs.start, self.runs.end)
    }

    /// The documents were counted when they were set aside.
    fn share(&self) -> Option<Box<dyn Split>> {
        Some(Box::new(self.clone()))
    }

    fn read(self: Box<Self>) -> BatchStream {
        let decoder = Decoder::new(&self.schema, self.options).with_key(self.key);
        match DocumentBatches::new(self.spill, self.runs, decoder, self.batch_bytes, self.progress)
        {
            Ok(batches) => blocking::stream(batches),
            Err(error) => Box::pin(stream::once(async { Err(error) })),
        }
    }
}
