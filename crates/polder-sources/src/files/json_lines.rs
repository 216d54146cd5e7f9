//! JSON lines to documents: parsed once, inferred over all, spilled, then decoded as MongoDB's are.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use polder_core::{Error, ErrorCode, ReadRequest, Result};

use super::json::JsonParser;
use super::object::Input;
use super::reject::{BadLine, BadLines};
use crate::document::{Inference, InferenceOptions, Spill, SpillWriter, refusal};

const BUFFER_BYTES: usize = 256 * 1024;
/// A longer line is taken for a file that is not JSON lines.
const LINE_BYTES_MAX: u64 = 64 << 20;
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Parses every line of every file.
pub(super) fn parse(
    inputs: &[Input],
    request: &ReadRequest,
    bad_lines: &Arc<BadLines>,
) -> Result<(Spill, Inference)> {
    let mut inference = Inference::new(InferenceOptions::of(request));
    let mut spill = SpillWriter::new()?;
    let mut parser = JsonParser::default();
    let policy = request.on_unrepresentable;
    for input in inputs {
        let slice = input.open()?;
        let reader = BufReader::with_capacity(BUFFER_BYTES, input.decompressed(&slice)?);
        let mut lines = Lines { reader, bytes: Vec::new(), number: 0 };
        let mut rows = 0;
        while lines.next(input)? {
            let document = match lines.text() {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => parser.document(line),
                Err(reason) => Err(reason),
            };
            let (document, reason) = match document {
                Ok(document) => (document, refusal(document, &request.types, policy)?),
                Err(reason) => (&[][..], Some(reason.to_owned())),
            };
            if let Some(reason) = reason {
                let (file, line) = (&input.object.key, lines.number);
                bad_lines.reject(BadLine { file, line, reason: &reason, raw: &lines.bytes })?;
                continue;
            }
            inference.see(document).map_err(|error| {
                error.within(&format!("file {} line {}", input.object.key, lines.number))
            })?;
            spill.push(document)?;
            rows += 1;
        }
        input.unchanged(&slice)?;
        request.progress.add_read(rows, input.object.size);
    }
    Ok((spill.finish()?, inference))
}

struct Lines<R> {
    reader: R,
    bytes: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line; false after the last one.
    fn next(&mut self, input: &Input) -> Result<bool> {
        self.bytes.clear();
        let mut limited = self.reader.by_ref().take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|error| input.failed(error))?;
        self.number += 1;
        if read as u64 == LINE_BYTES_MAX && self.bytes.last() != Some(&b'\n') {
            let (key, line) = (&input.object.key, self.number);
            let message = format!("file {key} line {line} is longer than {LINE_BYTES_MAX} bytes");
            return Err(Error::new(ErrorCode::SourceMalformed, message)
                .hint("JSON lines have one object a line; a JSON array is not JSON lines"));
        }
        Ok(read > 0)
    }

    fn text(&self) -> Result<&str, &'static str> {
        let text = std::str::from_utf8(&self.bytes).map_err(|_| "it is not UTF-8")?;
        let first = self.number == 1;
        Ok(if first { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text })
    }
}
