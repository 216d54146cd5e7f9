//! Documents set aside on disk between inferring their schema and decoding them.
//!
//! The file has no name (it is gone when its last handle is, whatever ends the process) and holds
//! runs of documents, each compressed on its own (zstd level 1), so that splits are runs of runs.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use polder_core::{Error, ErrorCode, Result, RunProgress};

use super::column::Decoder;
use super::raw::document_at;
use crate::blocking::Batches;

/// Bytes of documents compressed together.
const RUN_BYTES: usize = 1 << 20;
const LEVEL: i32 = 1;
/// Rows of one batch, however small they are.
const ROWS_MAX: usize = 65_536;

/// Takes documents.
pub(crate) struct SpillWriter {
    file: File,
    compressor: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
    compressed: Vec<u8>,
    rows_buffered: u64,
    spilled: Spilled,
}

#[derive(Default)]
struct Spilled {
    runs: Vec<Run>,
    rows: u64,
    end: u64,
}

#[derive(Clone, Copy)]
struct Run {
    offset: u64,
    stored: usize,
    bytes: usize,
}

/// Documents at rest.
pub(crate) struct Spill {
    file: File,
    runs: Vec<Run>,
    rows: u64,
}

impl SpillWriter {
    /// # Errors
    /// `source.failed` when there is no room for temporary files.
    pub(crate) fn new() -> Result<Self> {
        let file = tempfile::tempfile().map_err(failed)?;
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
        let (buffer, compressed) = (Vec::with_capacity(RUN_BYTES), Vec::new());
        Ok(Self {
            file,
            compressor,
            buffer,
            compressed,
            rows_buffered: 0,
            spilled: Spilled::default(),
        })
    }

    pub(crate) fn push(&mut self, document: &[u8]) -> Result<()> {
        if !self.buffer.is_empty() && self.buffer.len() + document.len() > RUN_BYTES {
            self.end_run()?;
        }
        self.buffer.extend_from_slice(document);
        self.rows_buffered += 1;
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.compressed.resize(zstd::zstd_safe::compress_bound(self.buffer.len()), 0);
        let stored = self
            .compressor
            .compress_to_buffer(&self.buffer, &mut self.compressed[..])
            .map_err(failed)?;
        self.file.write_all(&self.compressed[..stored]).map_err(failed)?;
        let run = Run { offset: self.spilled.end, stored, bytes: self.buffer.len() };
        self.spilled.runs.push(run);
        self.spilled.end += stored as u64;
        self.spilled.rows += std::mem::take(&mut self.rows_buffered);
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Spill> {
        self.end_run()?;
        Ok(Spill { file: self.file, runs: self.spilled.runs, rows: self.spilled.rows })
    }
}

impl Spill {
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// At most `count` ranges of runs that together are all, of about the same size each.
    pub(crate) fn ranges(&self, count: usize) -> Vec<Range<usize>> {
        let total = self.runs.len();
        let count = count.min(total);
        (0..count).map(|part| part * total / count..(part + 1) * total / count).collect()
    }

    fn read(&self, run: usize, decompressor: &mut zstd::bulk::Decompressor<'_>) -> Result<Vec<u8>> {
        let run = self.runs[run];
        let mut stored = vec![0; run.stored];
        self.file.read_exact_at(&mut stored, run.offset).map_err(failed)?;
        decompressor.decompress(&stored, run.bytes).map_err(failed)
    }
}

/// Decodes some runs of a spill, batch by batch.
pub(crate) struct DocumentBatches {
    spill: Arc<Spill>,
    runs: Range<usize>,
    decoder: Decoder,
    decompressor: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
    position: usize,
    batch_bytes: usize,
    progress: Arc<RunProgress>,
}

impl DocumentBatches {
    pub(crate) fn new(
        spill: Arc<Spill>,
        runs: Range<usize>,
        decoder: Decoder,
        batch_bytes: usize,
        progress: Arc<RunProgress>,
    ) -> Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(failed)?;
        let (buffer, position) = (Vec::new(), 0);
        Ok(Self { spill, runs, decoder, decompressor, buffer, position, batch_bytes, progress })
    }
}

impl Batches for DocumentBatches {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut bytes = 0;
        while bytes < self.batch_bytes && self.decoder.rows() < ROWS_MAX {
            if self.position == self.buffer.len() {
                let Some(run) = self.runs.next() else { break };
                self.buffer = self.spill.read(run, &mut self.decompressor)?;
                self.position = 0;
            }
            let document = document_at(&self.buffer, self.position)?;
            self.decoder.append(document)?;
            self.position += document.len();
            bytes += self.decoder.estimate(document.len());
        }
        if self.decoder.rows() == 0 {
            return Ok(None);
        }
        self.decoder.finish(&self.progress).map(Some)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorCode::SourceFailed, "temporary storage failed")
        .detail(format!("in {}", std::env::temp_dir().display()))
        .hint("make room there, or point TMPDIR at a folder with room")
        .caused_by(error)
}
