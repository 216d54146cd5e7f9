//! A walk over the bytes of a BSON document (bsonspec.org, version 1.1).
//!
//! Every length is checked before it is used. Strings are handed out as bytes: whoever stores them
//! checks that they are UTF-8.

use polder_core::{Error, ErrorCode, Result};

/// The element types of the specification.
pub(super) mod kind {
    pub(crate) const DOUBLE: u8 = 0x01;
    pub(crate) const STRING: u8 = 0x02;
    pub(crate) const DOCUMENT: u8 = 0x03;
    pub(crate) const ARRAY: u8 = 0x04;
    pub(crate) const BINARY: u8 = 0x05;
    pub(crate) const UNDEFINED: u8 = 0x06;
    pub(crate) const OBJECT_ID: u8 = 0x07;
    pub(crate) const BOOLEAN: u8 = 0x08;
    pub(crate) const DATE: u8 = 0x09;
    pub(crate) const NULL: u8 = 0x0A;
    pub(crate) const REGEX: u8 = 0x0B;
    pub(crate) const DB_POINTER: u8 = 0x0C;
    pub(crate) const JAVASCRIPT: u8 = 0x0D;
    pub(crate) const SYMBOL: u8 = 0x0E;
    pub(crate) const JAVASCRIPT_WITH_SCOPE: u8 = 0x0F;
    pub(crate) const INT32: u8 = 0x10;
    pub(crate) const TIMESTAMP: u8 = 0x11;
    pub(crate) const INT64: u8 = 0x12;
    pub(crate) const DECIMAL128: u8 = 0x13;
    pub(crate) const MAX_KEY: u8 = 0x7F;
    pub(crate) const MIN_KEY: u8 = 0xFF;
}

/// One element: its type, its name and the bytes of its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) kind: u8,
    pub(super) key: &'a [u8],
    pub(super) bytes: &'a [u8],
}

/// A value as inference and decoding tell values apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Boolean(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Decimal(Decimal),
    String(&'a [u8]),
    /// MongoDB's deprecated symbol; in JSON lines a number that no BSON number holds exactly.
    Symbol(&'a [u8]),
    ObjectId(&'a [u8]),
    /// Milliseconds since the epoch.
    Date(i64),
    /// Subtype and content.
    Binary(u8, &'a [u8]),
    Document(&'a [u8]),
    Array(&'a [u8]),
    /// A type that only text keeps: regular expressions, code, internal timestamps, …
    Other,
}

/// A decimal128 (IEEE 754-2008, BID encoding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decimal {
    /// `±coefficient × 10^exponent`; zero has a sign too.
    Finite {
        negative: bool,
        coefficient: u128,
        exponent: i32,
    },
    Infinity {
        negative: bool,
    },
    NaN,
}

impl<'a> Element<'a> {
    /// The value; the walk has checked the length of its bytes.
    pub(super) fn value(&self) -> Value<'a> {
        let bytes = self.bytes;
        match self.kind {
            kind::NULL => Value::Null,
            kind::BOOLEAN => Value::Boolean(bytes[0] != 0),
            kind::INT32 => Value::Int(int32(bytes)),
            kind::INT64 => Value::Long(int64(bytes)),
            kind::DOUBLE => Value::Double(f64::from_bits(int64(bytes).cast_unsigned())),
            kind::DECIMAL128 => Value::Decimal(Decimal::from_bid(bytes)),
            kind::STRING => Value::String(string(bytes)),
            kind::SYMBOL => Value::Symbol(string(bytes)),
            kind::OBJECT_ID => Value::ObjectId(bytes),
            kind::DATE => Value::Date(int64(bytes)),
            kind::BINARY => Value::Binary(bytes[4], &bytes[5..]),
            kind::DOCUMENT => Value::Document(bytes),
            kind::ARRAY => Value::Array(bytes),
            _ => Value::Other,
        }
    }

    /// The name of the value's type, for messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self.kind {
            kind::DOUBLE => "double",
            kind::STRING => "string",
            kind::DOCUMENT => "document",
            kind::ARRAY => "array",
            kind::BINARY => "binary",
            kind::UNDEFINED => "undefined",
            kind::OBJECT_ID => "objectId",
            kind::BOOLEAN => "bool",
            kind::DATE => "date",
            kind::NULL => "null",
            kind::REGEX => "regex",
            kind::DB_POINTER => "dbPointer",
            kind::JAVASCRIPT | kind::JAVASCRIPT_WITH_SCOPE => "javascript",
            kind::SYMBOL => "symbol",
            kind::INT32 => "int",
            kind::TIMESTAMP => "timestamp",
            kind::INT64 => "long",
            kind::DECIMAL128 => "decimal",
            kind::MIN_KEY => "minKey",
            kind::MAX_KEY => "maxKey",
            _ => "unknown",
        }
    }
}

impl Decimal {
    /// Reads 16 little-endian bytes. Coefficients above 34 digits are zero, as the standard says.
    fn from_bid(bytes: &[u8]) -> Self {
        const COEFFICIENT_MAX: u128 = 10_u128.pow(34) - 1;
        let low = int64(bytes).cast_unsigned();
        let high = int64(&bytes[8..]).cast_unsigned();
        let negative = high >> 63 == 1;
        if (high >> 58) & 0x1F == 0x1F {
            return Self::NaN;
        }
        if (high >> 58) & 0x1F == 0x1E {
            return Self::Infinity { negative };
        }
        // The second form (two bits set) only encodes coefficients that are out of range.
        let (shift, canonical) = if (high >> 61) & 3 == 3 { (47, false) } else { (49, true) };
        let exponent = ((high >> shift) & 0x3FFF) as i32 - 6176;
        let coefficient = (u128::from(high & 0x1_FFFF_FFFF_FFFF) << 64) | u128::from(low);
        let in_range = canonical && coefficient <= COEFFICIENT_MAX;
        Self::Finite { negative, coefficient: if in_range { coefficient } else { 0 }, exponent }
    }
}

/// The elements of a document or array.
pub(super) struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// Checks the document's own length and terminator.
    pub(super) fn new(document: &'a [u8]) -> Result<Self> {
        match document {
            [_, _, _, _, .., 0] if length(document) == Some(document.len()) => {
                Ok(Self { rest: &document[4..document.len() - 1] })
            }
            _ => Err(malformed("a document's length is wrong")),
        }
    }

    fn split(&mut self) -> Result<Element<'a>> {
        let (&kind, rest) = self.rest.split_first().ok_or_else(|| malformed("it ends early"))?;
        let end = rest.iter().position(|b| *b == 0).ok_or_else(|| malformed("a name is open"))?;
        let (key, rest) = (&rest[..end], &rest[end + 1..]);
        let size = value_size(kind, rest).filter(|size| *size <= rest.len());
        let size = size.ok_or_else(|| malformed("a value's length is wrong"))?;
        let (bytes, rest) = rest.split_at(size);
        self.rest = rest;
        Ok(Element { kind, key, bytes })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let element = self.split();
        if element.is_err() {
            self.rest = &[];
        }
        Some(element)
    }
}

/// The documents in a BSON array.
pub(crate) fn documents_of(array: &[u8]) -> Result<impl Iterator<Item = Result<&[u8]>>> {
    Ok(Elements::new(array)?.map(|element| match element? {
        Element { kind: kind::DOCUMENT, bytes, .. } => Ok(bytes),
        _ => Err(malformed("a batch holds something else than documents")),
    }))
}

/// The document that starts at `offset` of a run of documents.
pub(super) fn document_at(bytes: &[u8], offset: usize) -> Result<&[u8]> {
    let rest = bytes.get(offset..).unwrap_or_default();
    length(rest)
        .and_then(|size| rest.get(..size))
        .filter(|document| document.len() >= 5)
        .ok_or_else(|| malformed("a document's length is wrong"))
}

/// The size of a value of `kind` at the start of `bytes`; `None` for what no value can be.
fn value_size(kind: u8, bytes: &[u8]) -> Option<usize> {
    match kind {
        kind::NULL | kind::UNDEFINED | kind::MIN_KEY | kind::MAX_KEY => Some(0),
        kind::BOOLEAN => Some(1),
        kind::INT32 => Some(4),
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => Some(8),
        kind::OBJECT_ID => Some(12),
        kind::DECIMAL128 => Some(16),
        // The length counts the terminator.
        kind::STRING | kind::SYMBOL | kind::JAVASCRIPT => terminated(bytes),
        kind::DB_POINTER => Some(terminated(bytes)? + 12),
        kind::BINARY => length(bytes)?.checked_add(5),
        kind::DOCUMENT | kind::ARRAY => length(bytes).filter(|size| *size >= 5),
        kind::JAVASCRIPT_WITH_SCOPE => length(bytes).filter(|size| *size >= 14),
        kind::REGEX => {
            let pattern = bytes.iter().position(|b| *b == 0)? + 1;
            Some(pattern + bytes[pattern..].iter().position(|b| *b == 0)? + 1)
        }
        _ => None,
    }
}

fn terminated(bytes: &[u8]) -> Option<usize> {
    let size = length(bytes).filter(|size| *size >= 1)?.checked_add(4)?;
    (bytes.get(size - 1) == Some(&0)).then_some(size)
}

fn length(bytes: &[u8]) -> Option<usize> {
    let prefix: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    usize::try_from(i32::from_le_bytes(prefix)).ok()
}

/// The content of a length-prefixed, terminated string.
pub(super) fn string(bytes: &[u8]) -> &[u8] {
    &bytes[4..bytes.len() - 1]
}

pub(super) fn int32(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |chunk| i32::from_le_bytes(*chunk))
}

pub(super) fn int64(bytes: &[u8]) -> i64 {
    bytes.first_chunk().map_or(0, |chunk| i64::from_le_bytes(*chunk))
}

/// A text of the source as UTF-8.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| malformed("a text is not UTF-8"))
}

pub(super) fn malformed(what: &str) -> Error {
    Error::new(ErrorCode::SourceMalformed, "a document cannot be read").detail(what)
}
