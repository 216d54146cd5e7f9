//! `COPY … (FORMAT binary)` taken apart into rows and fields (PostgreSQL manual, *COPY*, *Binary
//! Format*), wherever the server cuts its messages.
//!
//! What a field's bytes mean is not known here.

use std::ops::Range;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER: usize = SIGNATURE.len() + 8;
/// Room that is kept for rows that come in several pieces; what a larger one took is given back.
const CARRY_BYTES_KEPT: usize = 4 << 20;

/// The framing of one stream. Rows that lie within one piece are not copied.
pub(super) struct Frames {
    place: Place,
    /// The beginning of a header or row whose end has not come yet.
    carry: Vec<u8>,
    /// Those of the row at hand.
    fields: Vec<Field>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Rows,
    End,
}

/// Where a field lies in its buffer, and its length; −1 is null.
#[derive(Clone, Copy, Default)]
struct Field {
    start: u32,
    length: i32,
}

impl Field {
    #[inline]
    fn of(self, buffer: &[u8]) -> Option<&[u8]> {
        let (start, length) = (self.start as usize, usize::try_from(self.length).ok()?);
        Some(&buffer[start..start + length])
    }
}

/// One row.
pub(super) struct Row<'a> {
    /// What it lies in.
    pub(super) buffer: &'a [u8],
    /// Bytes on the wire, lengths included.
    pub(super) size: usize,
    fields: &'a [Field],
}

/// Takes the rows that are found.
pub(super) trait Sink {
    type Error: From<Broken>;

    fn row(&mut self, row: &Row<'_>) -> Result<(), Self::Error>;

    /// The last call with rows of `buffer`: those that wait must be taken.
    fn settle(&mut self, buffer: &[u8]) -> Result<(), Self::Error>;
}

/// Rows of one buffer that wait to be taken column by column.
pub(super) struct Rows {
    columns: usize,
    count: usize,
    size: usize,
    /// Of row after row.
    fields: Vec<Field>,
}

impl Rows {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, count: 0, size: 0, fields: Vec::new() }
    }

    #[inline]
    pub(super) fn push(&mut self, row: &Row<'_>) {
        self.fields.extend_from_slice(row.fields);
        self.size += row.size;
        self.count += 1;
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all rows.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// A column's fields, one for each row; `None` is null. `buffer` is what the rows lie in.
    #[inline]
    pub(super) fn column<'a>(
        &self,
        buffer: &'a [u8],
        index: usize,
    ) -> impl Iterator<Item = Option<&'a [u8]>> {
        self.fields.chunks_exact(self.columns.max(1)).map(move |row| row[index].of(buffer))
    }

    pub(super) fn clear(&mut self) {
        (self.count, self.size) = (0, 0);
        self.fields.clear();
    }
}

/// The bytes are not what COPY sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

impl Frames {
    pub(super) fn new(columns: usize) -> Self {
        Self { place: Place::Header, carry: Vec::new(), fields: vec![Field::default(); columns] }
    }

    /// Passes on every row that is complete with `piece`, a part of `buffer`. Before another buffer,
    /// the sink has to be [settled](Sink::settle).
    pub(super) fn feed<S: Sink>(
        &mut self,
        buffer: &[u8],
        piece: Range<usize>,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        if self.carry.is_empty() {
            let taken = self.take(&buffer[..piece.end], piece.start, sink)?;
            self.carry.extend_from_slice(&buffer[taken..piece.end]);
            return Ok(());
        }
        sink.settle(buffer)?;
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(&buffer[piece]);
        let taken = self.take(&carry, 0, sink)?;
        sink.settle(&carry)?;
        carry.drain(..taken);
        if taken > 0 && carry.capacity() > CARRY_BYTES_KEPT {
            carry.shrink_to(CARRY_BYTES_KEPT);
        }
        self.carry = carry;
        Ok(())
    }

    /// To be called when the stream has ended: whether it ended where it should.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        match self.place {
            Place::End => Ok(()),
            _ => Err(Broken("the stream ended before its trailer")),
        }
    }

    /// Where in `buffer` the first row begins that is not complete.
    fn take<S: Sink>(
        &mut self,
        buffer: &[u8],
        start: usize,
        sink: &mut S,
    ) -> Result<usize, S::Error> {
        let mut at = start;
        if self.place == Place::Header {
            let Some(length) = header(&buffer[at..])? else { return Ok(at) };
            self.place = Place::Rows;
            at += length;
        }
        while self.place == Place::Rows {
            match self.scan(buffer, at)? {
                Scanned::Part => return Ok(at),
                Scanned::Trailer => {
                    self.place = Place::End;
                    at += TRAILER.len();
                }
                Scanned::Row { end } => {
                    sink.row(&Row { buffer, size: end - at, fields: &self.fields })?;
                    at = end;
                }
            }
        }
        if at == buffer.len() { Ok(at) } else { Err(Broken("bytes follow the trailer").into()) }
    }

    /// Finds the fields of the row that begins at `start`, if it is all there.
    #[inline]
    fn scan(&mut self, buffer: &[u8], start: usize) -> Result<Scanned, Broken> {
        let Some((count, mut rest)) = buffer[start..].split_first_chunk::<2>() else {
            return Ok(Scanned::Part);
        };
        if *count == TRAILER {
            return Ok(Scanned::Trailer);
        }
        if usize::from(u16::from_be_bytes(*count)) != self.fields.len() {
            return Err(Broken("a row has another number of fields than were asked for"));
        }
        for field in &mut self.fields {
            let Some((length, after)) = rest.split_first_chunk::<4>() else {
                return Ok(Scanned::Part);
            };
            let length = i32::from_be_bytes(*length);
            if length < -1 {
                return Err(Broken("a field has a negative length"));
            }
            // Rows have at most some 2 GB, and so have buffers.
            *field = Field { start: (buffer.len() - after.len()) as u32, length };
            let Some(next) = after.get(length.max(0) as usize..) else {
                return Ok(Scanned::Part);
            };
            rest = next;
        }
        Ok(Scanned::Row { end: buffer.len() - rest.len() })
    }
}

/// In the place of a row's number of fields: there are no more rows.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

enum Scanned {
    /// The row is not complete.
    Part,
    Trailer,
    /// A row, and where it ends.
    Row {
        end: usize,
    },
}

/// The length of the header at the beginning of `bytes`, if it is all there.
fn header(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let Some(fixed) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let (signature, [f0, f1, f2, f3, e0, e1, e2, e3]) = fixed.split_at(SIGNATURE.len()) else {
        return Ok(None);
    };
    if signature != SIGNATURE {
        return Err(Broken("the stream does not begin with COPY's signature"));
    }
    let flags = u32::from_be_bytes([*f0, *f1, *f2, *f3]);
    if flags >> 16 != 0 {
        return Err(Broken("the stream has flags that are not known"));
    }
    let length = HEADER + u32::from_be_bytes([*e0, *e1, *e2, *e3]) as usize;
    Ok((bytes.len() >= length).then_some(length))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A stream as COPY sends it.
    pub(crate) fn stream(rows: &[Vec<Option<&[u8]>>], extension: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(&(extension.len() as u32).to_be_bytes());
        bytes.extend_from_slice(extension);
        for row in rows {
            bytes.extend_from_slice(&(row.len() as u16).to_be_bytes());
            for field in row {
                let length = field.map_or(-1, |field| field.len() as i32);
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(field.unwrap_or_default());
            }
        }
        bytes.extend_from_slice(&TRAILER);
        bytes
    }

    type Read = Vec<Vec<Option<Vec<u8>>>>;

    /// Takes rows in groups of two, as what they are worth.
    struct Taken {
        waiting: Rows,
        rows: Read,
    }

    impl Sink for Taken {
        type Error = Broken;

        fn row(&mut self, row: &Row<'_>) -> Result<(), Broken> {
            self.waiting.push(row);
            if self.waiting.count() == 2 { self.settle(row.buffer) } else { Ok(()) }
        }

        fn settle(&mut self, buffer: &[u8]) -> Result<(), Broken> {
            let first = self.rows.len();
            self.rows.resize(first + self.waiting.count(), Vec::new());
            for index in 0..self.waiting.columns {
                let fields = self.waiting.column(buffer, index);
                for (row, field) in self.rows[first..].iter_mut().zip(fields) {
                    row.push(field.map(<[u8]>::to_vec));
                }
            }
            self.waiting.clear();
            Ok(())
        }
    }

    fn read(chunks: &[&[u8]], columns: usize) -> Result<Read, Broken> {
        let mut frames = Frames::new(columns);
        let mut taken = Taken { waiting: Rows::new(columns), rows: Read::new() };
        for chunk in chunks {
            frames.feed(chunk, 0..chunk.len(), &mut taken)?;
            taken.settle(chunk)?;
        }
        frames.finish().map(|()| taken.rows)
    }

    /// The same, the pieces lying in one buffer with other bytes between them.
    fn read_apart(chunks: &[&[u8]], columns: usize) -> Result<Read, Broken> {
        let mut buffer = Vec::new();
        let mut pieces = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(b"d....");
            pieces.push(buffer.len()..buffer.len() + chunk.len());
            buffer.extend_from_slice(chunk);
        }
        let mut frames = Frames::new(columns);
        let mut taken = Taken { waiting: Rows::new(columns), rows: Read::new() };
        for piece in pieces {
            frames.feed(&buffer, piece, &mut taken)?;
        }
        taken.settle(&buffer)?;
        frames.finish().map(|()| taken.rows)
    }

    fn example() -> (Vec<u8>, Read) {
        let rows: Vec<Vec<Option<&[u8]>>> = vec![
            vec![Some(b"abc"), None, Some(b"")],
            vec![None, None, None],
            vec![Some(&[7; 40]), Some(b"x"), Some(b"\xff\xff")],
        ];
        let expected = rows
            .iter()
            .map(|row| row.iter().map(|field| field.map(<[u8]>::to_vec)).collect())
            .collect();
        (stream(&rows, b"ext"), expected)
    }

    #[test]
    fn rows_survive_every_cut() {
        let (bytes, expected) = example();
        assert_eq!(read(&[&bytes], 3).expect("whole"), expected);
        for first in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(first);
            assert_eq!(read(&[head, tail], 3).expect("two"), expected, "cut at {first}");
            for second in 0..=tail.len() {
                let (middle, tail) = tail.split_at(second);
                assert_eq!(read(&[head, middle, tail], 3).expect("three"), expected);
                assert_eq!(read_apart(&[head, middle, tail], 3).expect("apart"), expected);
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single, 3).expect("bytes"), expected);
    }

    #[test]
    fn the_room_of_a_huge_row_is_given_back() {
        let huge = vec![7_u8; 4 * CARRY_BYTES_KEPT];
        let rows: Vec<Vec<Option<&[u8]>>> = vec![vec![Some(b"a")], vec![Some(&huge)]];
        let bytes = stream(&rows, b"");
        let mut frames = Frames::new(1);
        let mut taken = Taken { waiting: Rows::new(1), rows: Read::new() };
        let mut most = 0;
        for chunk in bytes.chunks(1 << 20) {
            frames.feed(chunk, 0..chunk.len(), &mut taken).expect("rows");
            taken.settle(chunk).expect("taken");
            most = most.max(frames.carry.capacity());
        }
        frames.finish().expect("the end");
        assert!(most > 3 * CARRY_BYTES_KEPT, "the row came in pieces: {most}");
        assert!(frames.carry.capacity() <= CARRY_BYTES_KEPT, "{}", frames.carry.capacity());
        assert!(taken.rows == [vec![Some(b"a".to_vec())], vec![Some(huge.clone())]]);
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let bytes = stream(&[vec![], vec![]], b"");
        assert_eq!(read(&[&bytes], 0).expect("rows").len(), 2);
    }

    #[test]
    fn broken_streams_are_refused() {
        let (bytes, _) = example();
        assert!(read(&[&bytes[..bytes.len() - 1]], 3).is_err(), "cut short");
        assert!(read(&[&bytes], 2).is_err(), "another number of fields");
        assert!(read(&[&bytes, b"x"], 3).is_err(), "bytes after the trailer");
        assert!(read(&[b"PGCOPY\n\xff\r\nX0000000000"], 3).is_err(), "another signature");
        let mut negative = stream(&[], b"");
        negative.truncate(HEADER);
        negative.extend_from_slice(&[0, 1, 0xff, 0xff, 0xff, 0xfe]);
        assert!(read(&[&negative], 1).is_err(), "negative length");
        let mut flags = stream(&[], b"");
        flags[12] = 1;
        assert!(read(&[&flags], 0).is_err(), "unknown flags");
    }
}
