//! Fields of `COPY … (FORMAT binary)` into Arrow columns.
//!
//! Each type's binary form is what its send function in PostgreSQL's source writes. A value that
//! the lake type does not have is dealt with by the table's policy, and counted; nothing is changed
//! in silence. What is asked of the server, and thus which form comes, is decided in `columns`.

use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
    Float32Builder, Float64Builder, Int32Builder, Int64Builder, ListArray, StructArray,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, FieldRef, Fields};
use polder_core::spec::OnUnrepresentable;
use polder_core::{Field, LakeType};

use super::bytes::BytesBuilder;
use super::numeric;
use super::times::{date, time, timestamp};
use super::written::Written;

/// Why a field has no exact place in its column.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw<T> {
    /// The bytes are not the type's binary form.
    Malformed(&'static str),
    /// The reason completes "holds a value that …". `nearest` is what `clamp` stores; null if none.
    Unrepresentable { reason: &'static str, nearest: Option<T> },
}

/// A field that ends the read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(&'static str),
    Unrepresentable(&'static str),
    /// Text that is found not to be UTF-8 when the column ends.
    NotUtf8 {
        row: usize,
    },
}

/// What a column's values are held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) policy: OnUnrepresentable,
    /// Whether the server has infinite intervals.
    pub(super) infinite_intervals: bool,
}

/// What a column is to have room for, before it has to grow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    pub(super) rows: usize,
    /// Of all texts or binaries together.
    pub(super) bytes: usize,
}

/// One column in the making.
pub(super) struct Column {
    builder: Builder,
    rules: Rules,
    altered: u64,
}

impl Column {
    /// `written`: what the text of it, or of its elements, is made of.
    pub(super) fn new(
        data_type: &LakeType,
        written: Option<Written>,
        rules: Rules,
        room: Room,
    ) -> Self {
        Self { builder: Builder::new(data_type, written, room), rules, altered: 0 }
    }

    /// What the column has taken so far.
    pub(super) fn taken(&self, rows: usize) -> Room {
        Room { rows, bytes: self.builder.bytes() }
    }

    /// Bytes of the texts that were written here, and may be far longer than their fields.
    pub(super) fn written(&self) -> usize {
        if self.builder.writes() { self.builder.bytes() } else { 0 }
    }

    /// Takes one field for each row; `None` is null.
    #[inline]
    pub(super) fn extend<'a>(
        &mut self,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), Refusal> {
        self.builder.extend(fields, &mut Settle { rules: self.rules, altered: &mut self.altered })
    }

    /// How many values were changed since the last [`Self::take_altered`].
    #[inline]
    pub(super) fn altered(&self) -> u64 {
        self.altered
    }

    /// How many values were changed since the last call.
    pub(super) fn take_altered(&mut self) -> u64 {
        std::mem::take(&mut self.altered)
    }

    /// The column so far.
    pub(super) fn finish(self) -> Result<ArrayRef, Refusal> {
        self.builder.finish()
    }
}

/// Bytes a row of this type takes in Arrow, and the bytes its value has on the wire; both 0 for
/// types whose values differ in size, which take about what they have on the wire.
pub(super) const fn widths(data_type: &LakeType) -> (usize, usize) {
    match data_type {
        LakeType::Boolean => (1, 1),
        LakeType::Int | LakeType::Float | LakeType::Date => (4, 4),
        LakeType::Long
        | LakeType::Double
        | LakeType::Time
        | LakeType::Timestamp
        | LakeType::Timestamptz => (8, 8),
        LakeType::Decimal { .. } => (16, 8),
        LakeType::Uuid | LakeType::Struct(_) => (16, 16),
        LakeType::String | LakeType::Binary | LakeType::List(_) => (4, 0),
    }
}

/// The policy at work.
struct Settle<'a> {
    rules: Rules,
    altered: &'a mut u64,
}

impl Settle<'_> {
    /// The value to store; `None` is null.
    #[inline]
    fn value<T>(&mut self, decoded: Result<T, Flaw<T>>) -> Result<Option<T>, Refusal> {
        match decoded {
            Ok(value) => Ok(Some(value)),
            Err(flaw) => self.flaw(flaw),
        }
    }

    #[cold]
    fn flaw<T>(&mut self, flaw: Flaw<T>) -> Result<Option<T>, Refusal> {
        let (reason, nearest) = match flaw {
            Flaw::Malformed(what) => return Err(Refusal::Malformed(what)),
            Flaw::Unrepresentable { reason, nearest } => (reason, nearest),
        };
        let stored = match self.rules.policy {
            // `text` made a string of every such column; what is left is a cursor.
            OnUnrepresentable::Error | OnUnrepresentable::Text => {
                return Err(Refusal::Unrepresentable(reason));
            }
            OnUnrepresentable::Null => None,
            OnUnrepresentable::Clamp => nearest,
        };
        *self.altered += 1;
        Ok(stored)
    }
}

enum Builder {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal { values: Decimal128Builder, precision: u8, scale: u8 },
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp { values: TimestampMicrosecondBuilder, utc: bool },
    Text(BytesBuilder),
    Written { values: BytesBuilder, form: Written },
    Binary(BytesBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Interval(Box<IntervalBuilder>),
    List(Box<ListBuilder>),
}

impl Builder {
    fn new(data_type: &LakeType, written: Option<Written>, room: Room) -> Self {
        let rows = room.rows;
        match data_type {
            LakeType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            LakeType::Int => Self::Int(Int32Builder::with_capacity(rows)),
            LakeType::Long => Self::Long(Int64Builder::with_capacity(rows)),
            LakeType::Float => Self::Float(Float32Builder::with_capacity(rows)),
            LakeType::Double => Self::Double(Float64Builder::with_capacity(rows)),
            LakeType::Decimal { precision, scale } => Self::Decimal {
                values: Decimal128Builder::with_capacity(rows),
                precision: *precision,
                scale: *scale,
            },
            LakeType::Date => Self::Date(Date32Builder::with_capacity(rows)),
            LakeType::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            LakeType::Timestamp | LakeType::Timestamptz => Self::Timestamp {
                values: TimestampMicrosecondBuilder::with_capacity(rows),
                utc: *data_type == LakeType::Timestamptz,
            },
            LakeType::String => {
                let values = BytesBuilder::new(room);
                match written {
                    None => Self::Text(values),
                    Some(form) => Self::Written { values, form },
                }
            }
            LakeType::Binary => Self::Binary(BytesBuilder::new(room)),
            LakeType::Uuid => Self::Uuid(FixedSizeBinaryBuilder::with_capacity(rows, 16)),
            LakeType::List(element) => {
                Self::List(Box::new(ListBuilder::new(element, written, room)))
            }
            // The only struct a PostgreSQL column becomes is an interval.
            LakeType::Struct(fields) => {
                Self::Interval(Box::new(IntervalBuilder::new(fields, rows)))
            }
        }
    }

    fn extend<'a>(
        &mut self,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
        settle: &mut Settle<'_>,
    ) -> Result<(), Refusal> {
        match self {
            Self::Boolean(values) => {
                let decode = |raw| fixed(raw).map(|[byte]| Some(byte != 0));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Int(values) => {
                each(fields, |raw| int(raw).map(Some), |value| values.append_option(value))
            }
            Self::Long(values) => {
                each(fields, |raw| long(raw).map(Some), |value| values.append_option(value))
            }
            Self::Float(values) => {
                let decode = |raw| fixed(raw).map(|bytes| Some(f32::from_be_bytes(bytes)));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Double(values) => {
                each(fields, |raw| double(raw).map(Some), |value| values.append_option(value))
            }
            Self::Decimal { values, precision, scale } => {
                let decode = |raw| settle.value(numeric::decimal(raw, *precision, *scale));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Date(values) => {
                let decode = |raw| settle.value(date(fixed(raw)?));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Time(values) => {
                let decode = |raw| settle.value(time(fixed(raw)?));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Timestamp { values, .. } => {
                let decode = |raw| settle.value(timestamp(fixed(raw)?));
                each(fields, decode, |value| values.append_option(value))
            }
            Self::Text(values) | Self::Binary(values) => {
                values.extend(fields);
                Ok(())
            }
            Self::Written { values, form } => {
                for field in fields {
                    match field {
                        Some(raw) => {
                            form.write(raw, &mut values.bytes)?;
                            values.end();
                        }
                        None => values.append_null(),
                    }
                }
                Ok(())
            }
            Self::Uuid(values) => {
                for field in fields {
                    match field {
                        Some(raw) => values.append_value(fixed::<16>(raw)?).map_err(|_| LENGTH)?,
                        None => values.append_null(),
                    }
                }
                Ok(())
            }
            Self::Interval(values) => values.extend(fields, settle),
            Self::List(values) => values.extend(fields, settle),
        }
    }

    fn writes(&self) -> bool {
        match self {
            Self::Written { .. } => true,
            Self::List(values) => values.elements.writes(),
            _ => false,
        }
    }

    /// Bytes of its texts or binaries.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(values) | Self::Written { values, .. } | Self::Binary(values) => {
                values.bytes.len()
            }
            Self::List(values) => values.elements.bytes(),
            _ => 0,
        }
    }

    fn finish(self) -> Result<ArrayRef, Refusal> {
        Ok(match self {
            Self::Boolean(mut values) => Arc::new(values.finish()),
            Self::Int(mut values) => Arc::new(values.finish()),
            Self::Long(mut values) => Arc::new(values.finish()),
            Self::Float(mut values) => Arc::new(values.finish()),
            Self::Double(mut values) => Arc::new(values.finish()),
            Self::Decimal { mut values, precision, scale } => {
                let data_type = DataType::Decimal128(precision, scale as i8);
                Arc::new(values.finish().with_data_type(data_type))
            }
            Self::Date(mut values) => Arc::new(values.finish()),
            Self::Time(mut values) => Arc::new(values.finish()),
            Self::Timestamp { mut values, utc } => {
                Arc::new(values.finish().with_timezone_opt(utc.then_some("+00:00")))
            }
            Self::Text(values) | Self::Written { values, .. } => Arc::new(values.finish_texts()?),
            Self::Binary(values) => Arc::new(values.finish()?),
            Self::Uuid(mut values) => Arc::new(values.finish()),
            Self::Interval(values) => Arc::new(values.finish()?),
            Self::List(values) => Arc::new(values.finish()?),
        })
    }
}

/// Decodes field after field; `None` is null, on either side.
#[inline]
fn each<'a, T>(
    fields: impl Iterator<Item = Option<&'a [u8]>>,
    mut decode: impl FnMut(&'a [u8]) -> Result<Option<T>, Refusal>,
    mut append: impl FnMut(Option<T>),
) -> Result<(), Refusal> {
    for field in fields {
        append(match field {
            Some(raw) => decode(raw)?,
            None => None,
        });
    }
    Ok(())
}

const LENGTH: Refusal = Refusal::Malformed("a value of another length than its type has");

#[inline]
fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], Refusal> {
    raw.try_into().map_err(|_| LENGTH)
}

/// `int2` or `int4`.
#[inline]
fn int(raw: &[u8]) -> Result<i32, Refusal> {
    match raw.len() {
        4 => Ok(i32::from_be_bytes(fixed(raw)?)),
        _ => Ok(i32::from(i16::from_be_bytes(fixed(raw)?))),
    }
}

/// `int2`, `int4` or `int8`.
#[inline]
fn long(raw: &[u8]) -> Result<i64, Refusal> {
    match raw.len() {
        8 => Ok(i64::from_be_bytes(fixed(raw)?)),
        _ => int(raw).map(i64::from),
    }
}

/// `float4` or `float8`.
#[inline]
fn double(raw: &[u8]) -> Result<f64, Refusal> {
    match raw.len() {
        8 => Ok(f64::from_be_bytes(fixed(raw)?)),
        _ => Ok(f64::from(f32::from_be_bytes(fixed(raw)?))),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Interval {
    months: i32,
    days: i32,
    micros: i64,
}

#[inline]
fn interval(raw: [u8; 16], has_infinite: bool) -> Result<Interval, Flaw<Interval>> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, d0, d1, d2, d3, n0, n1, n2, n3] = raw;
    let value = Interval {
        months: i32::from_be_bytes([n0, n1, n2, n3]),
        days: i32::from_be_bytes([d0, d1, d2, d3]),
        micros: i64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]),
    };
    // Infinite intervals, since PostgreSQL 17, are all three at their ends; before, those are long.
    let infinite = match value.months {
        i32::MAX => value.days == i32::MAX && value.micros == i64::MAX,
        i32::MIN => value.days == i32::MIN && value.micros == i64::MIN,
        _ => false,
    };
    if infinite && has_infinite {
        return Err(Flaw::Unrepresentable { reason: "is infinite", nearest: None });
    }
    Ok(value)
}

struct IntervalBuilder {
    months: Int32Builder,
    days: Int32Builder,
    micros: Int64Builder,
    nulls: NullBufferBuilder,
    fields: Fields,
}

impl IntervalBuilder {
    fn new(fields: &[Field], rows: usize) -> Self {
        Self {
            months: Int32Builder::with_capacity(rows),
            days: Int32Builder::with_capacity(rows),
            micros: Int64Builder::with_capacity(rows),
            nulls: NullBufferBuilder::new(rows),
            fields: fields.iter().map(Field::to_arrow).collect(),
        }
    }

    fn extend<'a>(
        &mut self,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
        settle: &mut Settle<'_>,
    ) -> Result<(), Refusal> {
        let has_infinite = settle.rules.infinite_intervals;
        let decode = |raw| settle.value(interval(fixed(raw)?, has_infinite));
        each(fields, decode, |value| self.append(value))
    }

    fn append(&mut self, value: Option<Interval>) {
        self.nulls.append(value.is_some());
        let value = value.unwrap_or_default();
        self.months.append_value(value.months);
        self.days.append_value(value.days);
        self.micros.append_value(value.micros);
    }

    fn finish(mut self) -> Result<StructArray, Refusal> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.months.finish()),
            Arc::new(self.days.finish()),
            Arc::new(self.micros.finish()),
        ];
        StructArray::try_new(self.fields, columns, self.nulls.finish())
            .map_err(|_| Refusal::Malformed("intervals that make no column"))
    }
}

/// One-dimensional arrays. The binary form (`array_send`): number of dimensions, a flag, the
/// element type's oid; for each dimension its length and lower bound; then each element as a field.
struct ListBuilder {
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    elements: Builder,
    field: FieldRef,
}

const ARRAY_CUT: Refusal = Refusal::Malformed("an array that is cut short");

impl ListBuilder {
    fn new(element: &Field, written: Option<Written>, room: Room) -> Self {
        let mut offsets = Vec::with_capacity(room.rows + 1);
        offsets.push(0);
        Self {
            offsets,
            nulls: NullBufferBuilder::new(room.rows),
            elements: Builder::new(&element.data_type, written, room),
            field: Arc::new(element.to_arrow()),
        }
    }

    fn extend<'a>(
        &mut self,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
        settle: &mut Settle<'_>,
    ) -> Result<(), Refusal> {
        for field in fields {
            match field {
                Some(raw) => self.append(raw, settle)?,
                None => self.append_null(),
            }
        }
        Ok(())
    }

    fn append(&mut self, raw: &[u8], settle: &mut Settle<'_>) -> Result<(), Refusal> {
        let mut rest = raw;
        let dimensions = take_int(&mut rest)?;
        let (_flag, _element_type) = (take_int(&mut rest)?, take_int(&mut rest)?);
        if dimensions == 0 {
            self.end(0);
            return Ok(());
        }
        let (length, lower_bound) = (take_int(&mut rest)?, take_int(&mut rest)?);
        let flaw = match (dimensions, lower_bound) {
            (1, 1) => None,
            (1, _) => Some(("is an array that does not begin at 1", Some(()))),
            _ => Some(("is an array of several dimensions", None)),
        };
        if length < 0 {
            return Err(ARRAY_CUT);
        }
        if let Some((reason, nearest)) = flaw
            && settle.flaw(Flaw::Unrepresentable { reason, nearest })?.is_none()
        {
            self.append_null();
            return Ok(());
        }
        for _ in 0..length {
            let size = take_int(&mut rest)?;
            let element = match usize::try_from(size) {
                Ok(size) => {
                    let (element, after) = rest.split_at_checked(size).ok_or(ARRAY_CUT)?;
                    rest = after;
                    Some(element)
                }
                Err(_) => None,
            };
            self.elements.extend(std::iter::once(element), settle)?;
        }
        self.end(length);
        Ok(())
    }

    fn end(&mut self, length: i32) {
        self.offsets.push(self.last() + length);
        self.nulls.append_non_null();
    }

    fn append_null(&mut self) {
        self.offsets.push(self.last());
        self.nulls.append_null();
    }

    fn last(&self) -> i32 {
        self.offsets.last().copied().unwrap_or_default()
    }

    fn finish(mut self) -> Result<ListArray, Refusal> {
        let offsets = OffsetBuffer::new(self.offsets.into());
        let elements = self.elements.finish().map_err(|refusal| match refusal {
            Refusal::NotUtf8 { row: element } => {
                let row = offsets.partition_point(|&start| start as usize <= element) - 1;
                Refusal::NotUtf8 { row }
            }
            other => other,
        })?;
        ListArray::try_new(self.field, offsets, elements, self.nulls.finish())
            .map_err(|_| Refusal::Malformed("arrays that make no column"))
    }
}

fn take_int(rest: &mut &[u8]) -> Result<i32, Refusal> {
    let (first, after) = rest.split_first_chunk::<4>().ok_or(ARRAY_CUT)?;
    *rest = after;
    Ok(i32::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Date32Type, Int32Type, TimestampMicrosecondType};

    use super::*;
    use crate::postgres::numeric::tests::encode;
    use crate::postgres::times::{DATES, DAY_MICROS, EPOCH_DAYS, OUTSIDE};

    fn one(
        data_type: &LakeType,
        policy: OnUnrepresentable,
        raw: &[u8],
    ) -> (Column, Result<(), Refusal>) {
        let rules = Rules { policy, infinite_intervals: true };
        let mut column = Column::new(data_type, None, rules, Room::default());
        let done = column.extend(std::iter::once(Some(raw)));
        (column, done)
    }

    fn array(dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [dimensions.len() as i32, 0, 23] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for (length, lower) in dimensions {
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&lower.to_be_bytes());
        }
        for element in elements {
            let length = element.map_or(-1, |element| element.len() as i32);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(element.unwrap_or_default());
        }
        bytes
    }

    #[test]
    fn dates_beyond_the_readers_years_follow_the_policy() {
        let day = |days: i32| days.to_be_bytes();
        // PostgreSQL's own days: 0001-01-01, 9999-12-31, the days beside them, and ±infinity.
        let (first, last) = (-730_119, 2_921_939);
        for days in [first, last, 0] {
            let (column, done) = one(&LakeType::Date, OnUnrepresentable::Error, &day(days));
            assert_eq!(done, Ok(()));
            let stored = column.finish().expect("column");
            assert_eq!(stored.as_primitive::<Date32Type>().value(0), days + EPOCH_DAYS);
        }
        let cases =
            [(first - 1, DATES.0), (i32::MIN, DATES.0), (last + 1, DATES.1), (i32::MAX, DATES.1)];
        for (days, nearest) in cases {
            let (_, done) = one(&LakeType::Date, OnUnrepresentable::Error, &day(days));
            assert_eq!(done, Err(Refusal::Unrepresentable(OUTSIDE)));
            let (mut column, _) = one(&LakeType::Date, OnUnrepresentable::Clamp, &day(days));
            assert_eq!(column.take_altered(), 1);
            let stored = column.finish().expect("column");
            assert_eq!(stored.as_primitive::<Date32Type>().value(0), nearest);
            let (column, _) = one(&LakeType::Date, OnUnrepresentable::Null, &day(days));
            assert!(column.finish().expect("column").is_null(0));
        }
    }

    #[test]
    fn timestamps_keep_their_microseconds() {
        let cases = [
            (0, 946_684_800_000_000),
            (-63_082_281_600_000_000, -62_135_596_800_000_000),
            (252_455_615_999_999_999, 253_402_300_799_999_999),
        ];
        for (raw, expected) in cases {
            let (column, done) =
                one(&LakeType::Timestamptz, OnUnrepresentable::Error, &i64::to_be_bytes(raw));
            assert_eq!(done, Ok(()));
            let stored = column.finish().expect("column");
            assert_eq!(stored.as_primitive::<TimestampMicrosecondType>().value(0), expected);
        }
        for raw in [i64::MIN, i64::MAX, -63_082_281_600_000_001, 252_455_616_000_000_000] {
            let raw = raw.to_be_bytes();
            let (_, done) = one(&LakeType::Timestamp, OnUnrepresentable::Text, &raw);
            assert_eq!(done, Err(Refusal::Unrepresentable(OUTSIDE)));
        }
    }

    #[test]
    fn midnight_at_the_end_of_the_day_is_no_time() {
        let raw = DAY_MICROS.to_be_bytes();
        assert!(one(&LakeType::Time, OnUnrepresentable::Error, &raw).1.is_err());
        let (mut column, done) = one(&LakeType::Time, OnUnrepresentable::Clamp, &raw);
        assert_eq!((done, column.take_altered()), (Ok(()), 1));
    }

    #[test]
    fn intervals_are_infinite_only_where_the_server_has_such() {
        let all =
            [&i64::MAX.to_be_bytes()[..], &[0x7f, 255, 255, 255, 0x7f, 255, 255, 255]].concat();
        let (_, done) = one(&LakeType::interval(), OnUnrepresentable::Error, &all);
        assert_eq!(done, Err(Refusal::Unrepresentable("is infinite")));
        let rules = Rules { policy: OnUnrepresentable::Error, infinite_intervals: false };
        let mut column = Column::new(&LakeType::interval(), None, rules, Room::default());
        assert_eq!(
            column.extend(std::iter::once(Some(&all[..]))),
            Ok(()),
            "as long as it gets before PostgreSQL 17"
        );
    }

    #[test]
    fn lists_keep_nulls_and_refuse_what_the_type_does_not_say() {
        let list = LakeType::list_of(LakeType::Int);
        let (a, b) = (1_i32.to_be_bytes(), 2_i32.to_be_bytes());
        let rules = Rules { policy: OnUnrepresentable::Null, infinite_intervals: true };
        let mut column = Column::new(&list, None, rules, Room::default());
        let rows = [
            Some(array(&[(3, 1)], &[Some(&a), None, Some(&b)])),
            None,
            Some(array(&[], &[])),
            Some(array(&[(1, 1), (2, 1)], &[Some(&a), Some(&b)])),
            Some(array(&[(1, 0)], &[Some(&a)])),
            Some(array(&[(1, 1)], &[Some(&b)])),
        ];
        column.extend(rows.iter().map(Option::as_deref)).expect("rows");
        assert_eq!(column.take_altered(), 2);
        let stored = column.finish().expect("column");
        let lists: Vec<Option<Vec<Option<i32>>>> = stored
            .as_list::<i32>()
            .iter()
            .map(|list| list.map(|list| list.as_primitive::<Int32Type>().iter().collect()))
            .collect();
        let expected = [
            Some(vec![Some(1), None, Some(2)]),
            None,
            Some(vec![]),
            None,
            None,
            Some(vec![Some(2)]),
        ];
        assert_eq!(lists, expected);
        let (mut column, _) = one(&list, OnUnrepresentable::Clamp, &array(&[(1, 0)], &[Some(&a)]));
        assert_eq!(column.take_altered(), 1);
        assert_eq!(column.finish().expect("column").as_list::<i32>().value(0).len(), 1);
    }

    #[test]
    fn decimals_take_the_columns_precision() {
        let decimal = LakeType::Decimal { precision: 4, scale: 2 };
        let (column, done) = one(&decimal, OnUnrepresentable::Error, &encode("99.99"));
        assert_eq!(done, Ok(()));
        let stored = column.finish().expect("column");
        assert_eq!(stored.data_type(), &decimal.to_arrow());
        let (_, done) = one(&decimal, OnUnrepresentable::Error, &encode("100"));
        assert!(matches!(done, Err(Refusal::Unrepresentable(_))));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        use proptest::prelude::*;
        let types = [
            LakeType::Boolean,
            LakeType::Long,
            LakeType::Decimal { precision: 9, scale: 3 },
            LakeType::Time,
            LakeType::Uuid,
            LakeType::String,
            LakeType::interval(),
            LakeType::list_of(LakeType::list_of(LakeType::Date)),
        ];
        proptest!(|(raw in prop::collection::vec(any::<u8>(), 0..64))| {
            for data_type in &types {
                let (column, done) = one(data_type, OnUnrepresentable::Clamp, &raw);
                if done.is_ok() {
                    column.finish().ok();
                }
            }
        });
    }
}
