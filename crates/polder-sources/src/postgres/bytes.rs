//! Columns of texts and of bytes in the making.

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{BinaryArray, StringArray};
use arrow::buffer::OffsetBuffer;

use super::decode::{Refusal, Room};

/// Texts or binaries, as they lie in Arrow: all bytes, and where each value ends.
pub(super) struct BytesBuilder {
    /// Of all values; what is added here becomes one by [`Self::end`].
    pub(super) bytes: Vec<u8>,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl BytesBuilder {
    pub(super) fn new(room: Room) -> Self {
        let mut offsets = Vec::with_capacity(room.rows + 1);
        offsets.push(0);
        Self {
            bytes: Vec::with_capacity(room.bytes),
            offsets,
            nulls: NullBufferBuilder::new(room.rows),
        }
    }

    pub(super) fn extend<'a>(&mut self, fields: impl Iterator<Item = Option<&'a [u8]>>) {
        for field in fields {
            match field {
                Some(raw) => {
                    self.bytes.extend_from_slice(raw);
                    self.end();
                }
                None => self.append_null(),
            }
        }
    }

    /// What was added to the bytes since the last value is one.
    #[inline]
    pub(super) fn end(&mut self) {
        self.offsets.push(self.bytes.len() as i32);
        self.nulls.append_non_null();
    }

    #[inline]
    pub(super) fn append_null(&mut self) {
        self.offsets.push(self.bytes.len() as i32);
        self.nulls.append_null();
    }

    pub(super) fn finish(mut self) -> Result<BinaryArray, Refusal> {
        let offsets = OffsetBuffer::new(self.offsets.into());
        BinaryArray::try_new(offsets, self.bytes.into(), self.nulls.finish())
            .map_err(|_| Refusal::Malformed("values that make no column"))
    }

    /// Checked to be UTF-8 as a whole: much faster than value by value.
    pub(super) fn finish_texts(self) -> Result<StringArray, Refusal> {
        let values = self.finish()?;
        StringArray::try_from_binary(values.clone()).map_err(|_| {
            let broken =
                |value: Option<&[u8]>| value.is_some_and(|v| std::str::from_utf8(v).is_err());
            Refusal::NotUtf8 { row: values.iter().position(broken).unwrap_or_default() }
        })
    }
}
