//! CSV text to records (RFC 4180), keeping apart what was quoted and what was not.
//!
//! Written here as no CSV library tells a quoted empty field from an empty one, which is the
//! difference between an empty text and null. A quote opens a quoted field only at the field's start;
//! elsewhere it is text. Lines end in LF or CRLF.

use std::io::Read;

use polder_core::spec::CsvOptions;
use polder_core::{Error, ErrorCode, Result};

use super::super::ending;

const BUFFER_BYTES: usize = 256 * 1024;
/// A longer record is taken for a quote that never closes.
const RECORD_BYTES_MAX: usize = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The characters that structure a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    delimiter: u8,
    quote: u8,
}

impl Syntax {
    /// The syntax of the file `key`.
    pub(super) fn new(options: &CsvOptions, key: &str) -> Result<Self> {
        let ascii = |character: char, what: &str| {
            u8::try_from(character).ok().filter(u8::is_ascii).ok_or_else(|| {
                let message = format!("csv.{what} {character:?} is not one ASCII character");
                Error::new(ErrorCode::SpecInvalid, message)
            })
        };
        let delimiter = match options.delimiter {
            Some(delimiter) => ascii(delimiter, "delimiter")?,
            None => default_delimiter(key),
        };
        let quote = ascii(options.quote, "quote")?;
        if delimiter == quote || [delimiter, quote].iter().any(|b| matches!(b, b'\n' | b'\r')) {
            let message = "csv.delimiter and csv.quote are the same or a line end";
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        Ok(Self { delimiter, quote })
    }
}

fn default_delimiter(key: &str) -> u8 {
    match ending(key) {
        Some((_, ending)) if ending.to_ascii_lowercase().starts_with(".tsv") => b'\t',
        _ => b',',
    }
}

/// One record's fields.
#[derive(Debug, Default)]
pub(super) struct Record {
    content: Vec<u8>,
    fields: Vec<Field>,
    /// The line it starts on, from 1.
    pub(super) line: u64,
    /// Why it is no record, if it is none.
    pub(super) bad: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    end: usize,
    quoted: bool,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// A field's text and whether it was quoted.
    pub(super) fn field(&self, number: usize) -> (&[u8], bool) {
        let start = if number == 0 { 0 } else { self.fields[number - 1].end };
        let Field { end, quoted } = self.fields[number];
        (&self.content[start..end], quoted)
    }

    /// Whether the line had nothing on it.
    pub(super) fn is_blank(&self) -> bool {
        self.bad.is_none() && self.len() == 1 && self.field(0) == (b"", false)
    }

    fn clear(&mut self) {
        self.content.clear();
        self.fields.clear();
        self.bad = None;
    }

    fn end_field(&mut self, quoted: bool) {
        self.fields.push(Field { end: self.content.len(), quoted });
    }
}

/// The records of one file.
pub(super) struct Records<R> {
    reader: R,
    syntax: Syntax,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
    line: u64,
    last: std::ops::Range<usize>,
}

/// What a look at the buffer gave.
enum Scan {
    /// The record and the bytes it took.
    Done(usize),
    /// The buffer ends within the record.
    More,
}

impl<R: Read> Records<R> {
    pub(super) fn new(reader: R, syntax: Syntax) -> Self {
        Self {
            reader,
            syntax,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            ended: false,
            line: 1,
            last: 0..0,
        }
    }

    /// Reads the next record into `record`; false after the last one.
    ///
    /// # Errors
    /// What the reader returns, and `InvalidData` for a record that never ends.
    pub(super) fn read(&mut self, record: &mut Record) -> std::io::Result<bool> {
        if self.line == 1 && self.start == 0 {
            self.skip_byte_order_mark()?;
        }
        loop {
            if self.ended && self.start == self.end {
                return Ok(false);
            }
            record.clear();
            let bytes = &self.buffer[self.start..self.end];
            match scan(bytes, self.ended, self.syntax, record) {
                Scan::Done(size) => {
                    record.line = self.line;
                    let bytes = &bytes[..size];
                    self.line += memchr::memchr_iter(b'\n', bytes).count() as u64;
                    self.last = self.start..self.start + size;
                    self.start += size;
                    if record.bad.is_none() && std::str::from_utf8(&record.content).is_err() {
                        record.bad = Some("it is not UTF-8");
                    }
                    return Ok(true);
                }
                Scan::More => self.fill()?,
            }
        }
    }

    /// The bytes of the record read last, for the reject file.
    pub(super) fn raw(&self) -> &[u8] {
        &self.buffer[self.last.clone()]
    }

    fn skip_byte_order_mark(&mut self) -> std::io::Result<()> {
        while !self.ended && self.end < BYTE_ORDER_MARK.len() {
            self.fill()?;
        }
        if self.buffer[..self.end].starts_with(BYTE_ORDER_MARK) {
            self.start = BYTE_ORDER_MARK.len();
        }
        Ok(())
    }

    /// Reads more behind what is left, making room first.
    fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.last = 0..0;
        if self.end == self.buffer.len() {
            if self.end >= RECORD_BYTES_MAX {
                let what = format!(
                    "the record that starts on line {} is longer than {RECORD_BYTES_MAX} bytes: a \
                     quote may be missing",
                    self.line
                );
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
            }
            self.buffer.resize(self.end * 2, 0);
        }
        // A record is looked at from its start each time: a long one not for every few bytes more.
        let enough = self.end + self.end / 16;
        while !self.ended && self.end <= enough && self.end < self.buffer.len() {
            let read = self.reader.read(&mut self.buffer[self.end..])?;
            self.end += read;
            self.ended = read == 0;
        }
        Ok(())
    }
}

fn scan(bytes: &[u8], ended: bool, syntax: Syntax, record: &mut Record) -> Scan {
    let mut position = 0;
    loop {
        let field = if bytes.get(position) == Some(&syntax.quote) {
            quoted_field(bytes, position + 1, ended, syntax, record)
        } else {
            plain_field(bytes, position, ended, syntax, record)
        };
        match field {
            FieldEnd::Delimiter(next) => position = next,
            FieldEnd::Record(next) => return Scan::Done(next),
            FieldEnd::Bad(next, why) => {
                record.bad = Some(why);
                return Scan::Done(next);
            }
            FieldEnd::More => return Scan::More,
        }
    }
}

/// How a field ended, and where the next thing starts.
enum FieldEnd {
    Delimiter(usize),
    Record(usize),
    Bad(usize, &'static str),
    More,
}

fn plain_field(
    bytes: &[u8],
    start: usize,
    ended: bool,
    syntax: Syntax,
    record: &mut Record,
) -> FieldEnd {
    let rest = &bytes[start..];
    let Some(length) = rest.iter().position(|b| *b == syntax.delimiter || *b == b'\n') else {
        if !ended {
            return FieldEnd::More;
        }
        record.content.extend_from_slice(rest);
        record.end_field(false);
        return FieldEnd::Record(bytes.len());
    };
    let (field, next) = (&rest[..length], start + length + 1);
    if rest[length] == syntax.delimiter {
        record.content.extend_from_slice(field);
        record.end_field(false);
        return FieldEnd::Delimiter(next);
    }
    record.content.extend_from_slice(field.strip_suffix(b"\r").unwrap_or(field));
    record.end_field(false);
    FieldEnd::Record(next)
}

fn quoted_field(
    bytes: &[u8],
    mut start: usize,
    ended: bool,
    syntax: Syntax,
    record: &mut Record,
) -> FieldEnd {
    loop {
        let rest = &bytes[start..];
        let Some(length) = rest.iter().position(|b| *b == syntax.quote) else {
            if ended {
                return FieldEnd::Bad(bytes.len(), "a quoted field is not closed");
            }
            return FieldEnd::More;
        };
        record.content.extend_from_slice(&rest[..length]);
        let after = start + length + 1;
        match bytes.get(after) {
            Some(byte) if *byte == syntax.quote => {
                record.content.push(syntax.quote);
                start = after + 1;
                continue;
            }
            None if !ended => return FieldEnd::More,
            _ => record.end_field(true),
        }
        return match &bytes[after..] {
            [] => FieldEnd::Record(after),
            [byte, ..] if *byte == syntax.delimiter => FieldEnd::Delimiter(after + 1),
            [b'\n', ..] => FieldEnd::Record(after + 1),
            [b'\r', b'\n', ..] => FieldEnd::Record(after + 2),
            [b'\r'] if !ended => FieldEnd::More,
            rest => match rest.iter().position(|b| *b == b'\n') {
                Some(end) => FieldEnd::Bad(after + end + 1, "text follows a closing quote"),
                None if ended => FieldEnd::Bad(bytes.len(), "text follows a closing quote"),
                None => FieldEnd::More,
            },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads one byte at a time, so that every record is met at the buffer's end.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    fn records(reader: impl Read) -> Vec<String> {
        let syntax = Syntax::new(&CsvOptions::default(), "a.csv").expect("syntax");
        let mut records = Records::new(reader, syntax);
        let (mut record, mut found) = (Record::default(), Vec::new());
        while records.read(&mut record).expect("read") {
            let fields: Vec<_> = (0..record.len())
                .map(|number| {
                    let (text, quoted) = record.field(number);
                    let text = String::from_utf8_lossy(text).into_owned();
                    if quoted { format!("<{text}>") } else { text }
                })
                .collect();
            let bad = record.bad.map_or(String::new(), |why| format!(" !{why}"));
            found.push(format!("{}:{}{bad}", record.line, fields.join("|")));
        }
        found
    }

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(records(text.as_bytes()), expected, "{text:?}");
        assert_eq!(records(Drip(text.as_bytes())), expected, "{text:?} in drops");
    }

    #[test]
    fn records_end_at_line_ends_outside_quotes() {
        check("a,b\n1,2\n", &["1:a|b", "2:1|2"]);
        check("a,b\r\n1,2", &["1:a|b", "2:1|2"]);
        check("\u{feff}a\n", &["1:a"]);
        check("a,\"x\ny\"\nb,c\n", &["1:a|<x\ny>", "3:b|c"]);
        check("\"a\"\"b\",\"\",\n", &["1:<a\"b>|<>|"]);
        check("a b\"c,d\n", &["1:a b\"c|d"]);
        check("a\n\nb", &["1:a", "2:", "3:b"]);
        check("", &[]);
    }

    #[test]
    fn bad_records_say_why_and_the_next_one_is_read() {
        check("\"a\"b,c\nd\n", &["1:<a> !text follows a closing quote", "2:d"]);
        check("x\n\"a\nb", &["1:x", "2: !a quoted field is not closed"]);
        let bytes: &[u8] = b"a\n\xff\nb\n";
        assert_eq!(records(bytes)[1], "2:\u{fffd} !it is not UTF-8");
    }

    #[test]
    fn long_records_grow_the_buffer() {
        let long = "x".repeat(BUFFER_BYTES * 3);
        check(&format!("a\n\"{long}\"\nb"), &["1:a", &format!("2:<{long}>"), "3:b"]);
    }

    #[test]
    fn odd_syntax_is_refused() {
        for (delimiter, quote) in [('é', '"'), ('"', '"'), ('\n', '"')] {
            let delimiter = Some(delimiter);
            let options = CsvOptions { delimiter, quote, ..CsvOptions::default() };
            assert!(Syntax::new(&options, "a.csv").is_err());
        }
    }
}
