//! `COPY … (FORMAT binary)` taken apart into rows and fields (PostgreSQL manual, *COPY*, *Binary
//! Format*), wherever the server cuts its messages.
//!
//! What a field's bytes mean is not known here.

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER: usize = SIGNATURE.len() + 8;

/// The framing of one stream. Rows that lie within one chunk are not copied.
pub(super) struct Frames {
    place: Place,
    /// The beginning of a header or row whose end has not come yet.
    carry: Vec<u8>,
    /// Start and length of each field of the row at hand; a length of −1 is null.
    fields: Vec<(usize, i32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Rows,
    End,
}

/// One row. Lives as long as the chunk it came in.
pub(super) struct Row<'a> {
    bytes: &'a [u8],
    fields: &'a [(usize, i32)],
}

impl<'a> Row<'a> {
    /// The fields in order; `None` is null.
    #[inline]
    pub(super) fn fields(&self) -> impl Iterator<Item = Option<&'a [u8]>> {
        self.fields.iter().map(|field| field_of(self.bytes, *field))
    }

    /// Bytes on the wire, lengths included.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

#[inline]
fn field_of(bytes: &[u8], (start, length): (usize, i32)) -> Option<&[u8]> {
    usize::try_from(length).ok().map(|length| &bytes[start..start + length])
}

/// Rows that wait to be taken column by column.
pub(super) struct Rows {
    columns: usize,
    count: usize,
    bytes: Vec<u8>,
    /// Of row after row.
    fields: Vec<(usize, i32)>,
}

impl Rows {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, count: 0, bytes: Vec::new(), fields: Vec::new() }
    }

    /// Adds a copy of the row.
    #[inline]
    pub(super) fn push(&mut self, row: &Row<'_>) {
        let base = self.bytes.len();
        self.bytes.extend_from_slice(row.bytes);
        self.fields.extend(row.fields.iter().map(|&(start, length)| (base + start, length)));
        self.count += 1;
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all rows.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// A column's fields, one for each row.
    #[inline]
    pub(super) fn column(&self, index: usize) -> impl Iterator<Item = Option<&[u8]>> {
        let fields = self.fields.iter().skip(index).step_by(self.columns.max(1));
        fields.map(|field| field_of(&self.bytes, *field))
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.bytes.clear();
        self.fields.clear();
    }
}

/// The bytes are not what COPY sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

impl Frames {
    pub(super) fn new(columns: usize) -> Self {
        Self { place: Place::Header, carry: Vec::new(), fields: vec![(0, 0); columns] }
    }

    /// Calls `row` for every row that is complete with `chunk`.
    pub(super) fn feed<E: From<Broken>>(
        &mut self,
        chunk: &[u8],
        mut row: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.carry.is_empty() {
            let taken = self.take(chunk, &mut row)?;
            self.carry.extend_from_slice(&chunk[taken..]);
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(chunk);
        let taken = self.take(&bytes, &mut row)?;
        bytes.drain(..taken);
        self.carry = bytes;
        Ok(())
    }

    /// To be called when the stream has ended: whether it ended where it should.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        match self.place {
            Place::End => Ok(()),
            _ => Err(Broken("the stream ended before its trailer")),
        }
    }

    /// How many of the bytes were complete.
    fn take<E: From<Broken>>(
        &mut self,
        bytes: &[u8],
        row: &mut impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut at = 0;
        if self.place == Place::Header {
            let Some(length) = header(bytes)? else { return Ok(0) };
            self.place = Place::Rows;
            at = length;
        }
        while self.place == Place::Rows {
            match self.scan(&bytes[at..])? {
                Scanned::Part => return Ok(at),
                Scanned::Trailer => {
                    self.place = Place::End;
                    at += TRAILER.len();
                }
                Scanned::Row(length) => {
                    row(Row { bytes: &bytes[at..at + length], fields: &self.fields })?;
                    at += length;
                }
            }
        }
        if at == bytes.len() { Ok(at) } else { Err(Broken("bytes follow the trailer").into()) }
    }

    /// Finds the fields of the row at the beginning of `bytes`, if it is all there.
    #[inline]
    fn scan(&mut self, bytes: &[u8]) -> Result<Scanned, Broken> {
        let Some(count) = bytes.first_chunk::<2>() else { return Ok(Scanned::Part) };
        if *count == TRAILER {
            return Ok(Scanned::Trailer);
        }
        if usize::from(u16::from_be_bytes(*count)) != self.fields.len() {
            return Err(Broken("a row has another number of fields than were asked for"));
        }
        let mut at = count.len();
        for field in &mut self.fields {
            let Some(length) = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
                return Ok(Scanned::Part);
            };
            let length = i32::from_be_bytes(*length);
            at += 4;
            if length < -1 {
                return Err(Broken("a field has a negative length"));
            }
            *field = (at, length);
            at += length.max(0) as usize;
        }
        Ok(if at <= bytes.len() { Scanned::Row(at) } else { Scanned::Part })
    }
}

/// In the place of a row's number of fields: there are no more rows.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

enum Scanned {
    /// The row is not complete.
    Part,
    Trailer,
    /// A row of so many bytes.
    Row(usize),
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

    fn read(chunks: &[&[u8]], columns: usize) -> Result<Read, Broken> {
        let mut frames = Frames::new(columns);
        let mut rows = Read::new();
        for chunk in chunks {
            frames.feed(chunk, |row| {
                rows.push(row.fields().map(|field| field.map(<[u8]>::to_vec)).collect());
                Ok::<_, Broken>(())
            })?;
        }
        frames.finish().map(|()| rows)
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
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single, 3).expect("bytes"), expected);
    }

    #[test]
    fn rows_are_taken_column_by_column() {
        let (bytes, expected) = example();
        let mut rows = Rows::new(3);
        for _ in 0..2 {
            let mut frames = Frames::new(3);
            let fed = frames.feed(&bytes, |row| {
                rows.push(&row);
                Ok::<_, Broken>(())
            });
            assert_eq!((fed, rows.count()), (Ok(()), 3));
            for index in 0..3 {
                let column: Vec<_> = rows.column(index).map(|f| f.map(<[u8]>::to_vec)).collect();
                let wanted: Vec<_> = expected.iter().map(|row| row[index].clone()).collect();
                assert_eq!(column, wanted);
            }
            rows.clear();
        }
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
