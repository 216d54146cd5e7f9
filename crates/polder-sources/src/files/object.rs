//! The bytes of one object on local disk, read by position, and decompressed on the way.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use polder_core::{Error, ErrorCode, Result};

const BUFFER_BYTES: usize = 256 * 1024;

/// An object that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// The path below the source's root.
    pub(super) key: String,
    pub(super) etag: String,
    pub(super) size: u64,
}

/// Where an object's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A file in place, opened when it is read.
    File(PathBuf),
    /// A part of a temporary file.
    Spilled { file: Arc<File>, offset: u64, length: u64 },
}

/// An object whose bytes are on local disk.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) object: Object,
    pub(super) content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

/// A part of an open file.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl Input {
    pub(super) fn open(&self) -> Result<Slice> {
        match &self.content {
            Content::File(path) => {
                let file = File::open(path).map_err(|error| self.failed(error))?;
                let slice = Slice { file: Arc::new(file), offset: 0, length: self.object.size };
                self.unchanged(&slice)?;
                Ok(slice)
            }
            Content::Spilled { file, offset, length } => {
                Ok(Slice { file: file.clone(), offset: *offset, length: *length })
            }
        }
    }

    /// Whether a file is still as it was listed; asked before and after it is read.
    pub(super) fn unchanged(&self, slice: &Slice) -> Result<()> {
        if let Content::Spilled { .. } = &self.content {
            return Ok(());
        }
        let now = slice.file.metadata().map_err(|error| self.failed(error))?;
        if local_etag(&now) == self.object.etag {
            return Ok(());
        }
        Err(changed(&self.object.key))
    }

    /// How the content is compressed, as its first bytes say.
    fn compression(&self, slice: &Slice) -> Result<Option<Compression>> {
        let mut magic = [0_u8; 4];
        let known = magic.len().min(usize::try_from(slice.length).unwrap_or(usize::MAX));
        slice
            .file
            .read_exact_at(&mut magic[..known], slice.offset)
            .map_err(|error| self.failed(error))?;
        Ok(match magic {
            [0x1F, 0x8B, ..] => Some(Compression::Gzip),
            // A frame, or one to be skipped before it (RFC 8878, section 3.1).
            [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => Some(Compression::Zstd),
            _ => None,
        })
    }

    /// The content, decompressed where it is compressed.
    pub(super) fn decompressed(&self, slice: &Slice) -> Result<Box<dyn Read + Send>> {
        let reader = BufReader::with_capacity(BUFFER_BYTES, slice.reader(0));
        Ok(match self.compression(slice)? {
            Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(reader)),
            Some(Compression::Zstd) => {
                let decoder = zstd::stream::read::Decoder::with_buffer(reader);
                Box::new(decoder.map_err(|error| self.failed(error))?)
            }
            None => Box::new(reader),
        })
    }

    /// Appends the decompressed content to a file; returns its length.
    fn decompress_into(&self, slice: &Slice, mut file: &File) -> Result<u64> {
        let mut reader = self.decompressed(slice)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut length = 0;
        loop {
            let read = reader.read(&mut buffer).map_err(|error| self.failed(error))?;
            if read == 0 {
                self.unchanged(slice)?;
                return Ok(length);
            }
            file.write_all(&buffer[..read]).map_err(no_room)?;
            length += read as u64;
        }
    }

    /// An error of reading this object's bytes.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        let (code, what) = match error.kind() {
            io::ErrorKind::NotFound => (ErrorCode::SourceNotFound, "is gone"),
            io::ErrorKind::PermissionDenied => (ErrorCode::SourceDenied, "may not be read"),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput => (ErrorCode::SourceMalformed, "is broken or cut short"),
            _ => (ErrorCode::SourceFailed, "cannot be read"),
        };
        Error::new(code, format!("file {} {what}", self.object.key)).caused_by(error)
    }
}

/// The same objects for a format that is read by position: compressed ones are decompressed into one
/// temporary file.
pub(super) fn seekable(inputs: Vec<Input>) -> Result<Vec<Input>> {
    let mut spill: Option<Arc<File>> = None;
    let mut end = 0;
    let mut seekable = Vec::with_capacity(inputs.len());
    for input in inputs {
        let slice = input.open()?;
        if input.compression(&slice)?.is_none() {
            seekable.push(input);
            continue;
        }
        let file = match &spill {
            Some(file) => file.clone(),
            None => spill.insert(Arc::new(tempfile::tempfile().map_err(no_room)?)).clone(),
        };
        let length = input.decompress_into(&slice, &file)?;
        let content = Content::Spilled { file, offset: end, length };
        end += length;
        seekable.push(Input { content, ..input });
    }
    Ok(seekable)
}

/// An object is not what it was when it was listed.
pub(super) fn changed(key: &str) -> Error {
    Error::new(ErrorCode::SourceFailed, format!("file {key} changed while it was read"))
        .hint("run again when nothing writes to it; new content belongs in a new file")
}

/// Temporary files cannot be written.
pub(super) fn no_room(error: io::Error) -> Error {
    Error::new(ErrorCode::SourceFailed, "temporary storage failed")
        .detail(format!("in {}", std::env::temp_dir().display()))
        .hint("make room there, or point TMPDIR at a folder with room")
        .caused_by(error)
}

/// A local file's entity tag: size and modification time.
pub(super) fn local_etag(metadata: &Metadata) -> String {
    format!("{}-{}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

impl Slice {
    fn reader(&self, position: u64) -> SliceReader {
        SliceReader { slice: self.clone(), position }
    }
}

/// Reads a slice from its start on, without moving the file's own position.
pub(super) struct SliceReader {
    slice: Slice,
    position: u64,
}

impl Read for SliceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.slice.length.saturating_sub(self.position);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let at = self.slice.offset + self.position;
        let read = self.slice.file.read_at(&mut buffer[..wanted], at)?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

impl Length for Slice {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Slice {
    type T = BufReader<SliceReader>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(self.reader(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.length);
        if end.is_none() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are not there")));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.offset + start)?;
        Ok(bytes.into())
    }
}
