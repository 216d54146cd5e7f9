//! The least and greatest value of each column, of the rows as they were handed over: what a file's
//! footer has to say too.
//!
//! Of columns that hold single values. NaN is no value here, as in a footer.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{Array, ArrowNativeTypeOp, AsArray, GenericByteArray, RecordBatch};
use arrow::compute::{
    max, max_boolean, max_fixed_size_binary, min, min_boolean, min_fixed_size_binary,
};
use arrow::datatypes::{
    ArrowNumericType, BinaryType, ByteArrayType, DataType, Date32Type, Decimal128Type, Float32Type,
    Float64Type, Int32Type, Int64Type, SchemaRef, Time64MicrosecondType, TimestampMicrosecondType,
    Utf8Type,
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use polder_core::{Error, ErrorCode, Result};

use super::layout::STATISTICS_BYTES;
use super::metrics::{Bound, Column, Value};

const CHARACTER_BYTES_MAX: usize = 4;
/// Bytes kept of a value: one more than a footer's bound has, so that what is longer is known to be. A row
/// may have a text of hundreds of megabytes.
const HEAD_BYTES: usize = STATISTICS_BYTES + 1;

/// Of the rows handed to one file, by field id; of long values their beginnings.
#[derive(Debug, Default)]
pub(super) struct Extremes {
    columns: HashMap<i32, (Value, Value)>,
}

impl Extremes {
    pub(super) fn add(&mut self, batch: &RecordBatch, schema: &SchemaRef) {
        for (array, field) in batch.columns().iter().zip(schema.fields()) {
            let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY);
            let Some(id) = id.and_then(|id| id.parse().ok()) else { continue };
            let Some((least, greatest)) = of(array) else { continue };
            match self.columns.get_mut(&id) {
                None => {
                    self.columns.insert(id, (least, greatest));
                }
                Some(known) => {
                    if least.partial_cmp(&known.0) == Some(Ordering::Less) {
                        known.0 = least;
                    }
                    if greatest.partial_cmp(&known.1) == Some(Ordering::Greater) {
                        known.1 = greatest;
                    }
                }
            }
        }
    }

    /// The file has the extremes of the rows it was made of.
    ///
    /// # Errors
    /// `lake.audit_failed`.
    pub(super) fn check(&self, found: &HashMap<i32, Column>) -> Result<()> {
        for (id, (least, greatest)) in &self.columns {
            let Some(column) = found.get(id) else { continue };
            let known = |bound: &Bound| match bound {
                Bound::Value(value) => Some(value.clone()),
                Bound::None | Bound::Unknown => None,
            };
            let lower = known(&column.min).is_none_or(|found| begins(&found, least));
            let upper = known(&column.max).is_none_or(|found| ends(&found, greatest));
            if !lower || !upper {
                let message = "a data file has other extremes than the rows it was made of";
                return Err(Error::new(ErrorCode::LakeAuditFailed, message)
                    .detail(format!("field {id}"))
                    .hint("nothing was published; please report this"));
            }
        }
        Ok(())
    }
}

/// Whether a footer's lower bound is that of the least value: the value, or its beginning. What was cut may
/// be another row group's least value, so that this one need not be long; texts are cut at characters.
fn begins(found: &Value, least: &Value) -> bool {
    match (found, least) {
        (Value::Bytes(found), Value::Bytes(least)) => {
            beginning(found) == least.as_slice()
                || (found.len() + CHARACTER_BYTES_MAX > STATISTICS_BYTES
                    && least.starts_with(found))
        }
        _ => same(found, least),
    }
}

/// What is kept of a value.
fn beginning(value: &[u8]) -> &[u8] {
    &value[..value.len().min(HEAD_BYTES)]
}

/// Whether a footer's upper bound is that of the greatest value: the value, or one cut and raised.
fn ends(found: &Value, greatest: &Value) -> bool {
    match (found, greatest) {
        (Value::Bytes(found), Value::Bytes(greatest)) if greatest.len() > STATISTICS_BYTES => {
            found >= greatest
        }
        _ => same(found, greatest),
    }
}

fn same(one: &Value, other: &Value) -> bool {
    match (whole(one), whole(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// A whole number in the width it is compared in: decimals have several in files.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Long(value) => Some(i128::from(*value)),
        Value::Unscaled(value) => Some(*value),
        _ => None,
    }
}

/// The extremes of an array, or their beginnings; `None` where it has no value, and for types that are not
/// looked at.
fn of(array: &dyn Array) -> Option<(Value, Value)> {
    match array.data_type() {
        DataType::Boolean => {
            let array = array.as_boolean();
            Some((Value::Boolean(min_boolean(array)?), Value::Boolean(max_boolean(array)?)))
        }
        DataType::Int32 => numbers::<Int32Type>(array, Value::Int),
        DataType::Date32 => numbers::<Date32Type>(array, Value::Int),
        DataType::Int64 => numbers::<Int64Type>(array, Value::Long),
        DataType::Timestamp(..) => numbers::<TimestampMicrosecondType>(array, Value::Long),
        DataType::Time64(_) => numbers::<Time64MicrosecondType>(array, Value::Long),
        DataType::Decimal128(..) => numbers::<Decimal128Type>(array, Value::Unscaled),
        DataType::Float32 => floats::<Float32Type>(array, f32::is_nan, Value::Float),
        DataType::Float64 => floats::<Float64Type>(array, f64::is_nan, Value::Double),
        DataType::Utf8 => bytes(array.as_bytes::<Utf8Type>()),
        DataType::Binary => bytes(array.as_bytes::<BinaryType>()),
        DataType::FixedSizeBinary(_) => {
            let array = array.as_fixed_size_binary();
            let value = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
            Some((value(min_fixed_size_binary(array)?), value(max_fixed_size_binary(array)?)))
        }
        _ => None,
    }
}

/// In one pass that seldom looks further than the first eight bytes of a value.
fn bytes<T: ByteArrayType<Offset = i32>>(array: &GenericByteArray<T>) -> Option<(Value, Value)> {
    let (offsets, data) = (array.value_offsets(), array.value_data());
    let place = |row: usize| offsets[row] as usize..offsets[row + 1] as usize;
    let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
    let mut rows = (0..array.len()).filter(|row| nulls.is_none_or(|nulls| nulls.is_valid(*row)));
    let first = place(rows.next()?);
    let (mut least_head, mut greatest_head) = (head(data, &first), head(data, &first));
    let (mut least, mut greatest) = (first.clone(), first);
    for row in rows {
        let place = place(row);
        let head = head(data, &place);
        if head <= least_head && (head < least_head || data[place.clone()] < data[least.clone()]) {
            (least, least_head) = (place.clone(), head);
        }
        if head >= greatest_head
            && (head > greatest_head || data[place.clone()] > data[greatest.clone()])
        {
            (greatest, greatest_head) = (place, head);
        }
    }
    let value = |place: Range<usize>| Value::Bytes(beginning(&data[place]).to_vec());
    Some((value(least), value(greatest)))
}

/// The first eight bytes, with zeros where there are fewer: of two values with different heads, the one
/// with the smaller head is the smaller one.
fn head(data: &[u8], place: &Range<usize>) -> u64 {
    let length = place.len();
    let Some(bytes) = data[place.start..].first_chunk() else {
        let bytes = data[place.clone()].iter().enumerate();
        return bytes.fold(0, |head, (at, byte)| head | u64::from(*byte) << (56 - 8 * at));
    };
    // What follows is another value's.
    let others = if length < 8 { u64::MAX >> (8 * length) } else { 0 };
    u64::from_be_bytes(*bytes) & !others
}

fn numbers<T: ArrowNumericType>(
    array: &dyn Array,
    value: fn(T::Native) -> Value,
) -> Option<(Value, Value)> {
    let array = array.as_primitive_opt::<T>()?;
    if array.null_count() > 0 {
        return Some((value(min(array)?), value(max(array)?)));
    }
    let (first, rest) = array.values().split_first()?;
    let (least, greatest) = rest.iter().fold((*first, *first), |(least, greatest), number| {
        let least = if number.is_lt(least) { *number } else { least };
        (least, if number.is_gt(greatest) { *number } else { greatest })
    });
    Some((value(least), value(greatest)))
}

fn floats<T: ArrowNumericType>(
    array: &dyn Array,
    nan: fn(T::Native) -> bool,
    value: fn(T::Native) -> Value,
) -> Option<(Value, Value)> {
    let array = array.as_primitive_opt::<T>()?;
    let mut found: Option<(T::Native, T::Native)> = None;
    for number in array.iter().flatten().filter(|number| !nan(*number)) {
        let (least, greatest) = found.get_or_insert((number, number));
        if number < *least {
            *least = number;
        }
        if number > *greatest {
            *greatest = number;
        }
    }
    found.map(|(least, greatest)| (value(least), value(greatest)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array,
        Int32Array, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::arrow_writer::ArrowWriterOptions;
    use parquet::file::properties::WriterProperties;

    use super::super::file::FileWriter;
    use super::super::metrics::columns;
    use super::*;

    fn column(min: Value, max: Value) -> Column {
        Column { min: Bound::Value(min), max: Bound::Value(max), ..Column::default() }
    }

    fn text(text: &str) -> Value {
        Value::Bytes(text.as_bytes().to_vec())
    }

    fn extremes(array: &dyn Array) -> Extremes {
        let (least, greatest) = of(array).expect("values");
        Extremes { columns: HashMap::from([(1, (least, greatest))]) }
    }

    fn check(array: &dyn Array, min: Value, max: Value) -> bool {
        extremes(array).check(&HashMap::from([(1, column(min, max))])).is_ok()
    }

    #[test]
    fn a_footer_that_says_otherwise_is_found() {
        let numbers = || -> ArrayRef { Arc::new(Int32Array::from(vec![Some(3), None, Some(-7)])) };
        assert!(check(&numbers(), Value::Int(-7), Value::Int(3)));
        assert!(!check(&numbers(), Value::Int(-7), Value::Int(4)));
        assert!(!check(&numbers(), Value::Int(0), Value::Int(3)));
        let floats = || -> ArrayRef { Arc::new(Float64Array::from(vec![f64::NAN, 0.0, 2.5])) };
        assert!(check(&floats(), Value::Double(-0.0), Value::Double(2.5)), "zeros are equal");
        assert!(!check(&floats(), Value::Double(0.0), Value::Double(2.4)));
        let bytes = || -> ArrayRef { Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"a"])) };
        assert!(check(&bytes(), text("a"), Value::Bytes(vec![0xff])));
        let decimals = || -> ArrayRef { Arc::new(Decimal128Array::from(vec![5_i128, 900])) };
        assert!(check(&decimals(), Value::Int(5), Value::Long(900)), "in any width");
        assert!(!check(&decimals(), Value::Int(5), Value::Unscaled(901)));
    }

    #[test]
    fn long_texts_have_their_beginnings_as_bounds() {
        let long = "x".repeat(100);
        let array = || -> ArrayRef { Arc::new(StringArray::from(vec![long.as_str()])) };
        let cut = "x".repeat(64);
        let raised = format!("{}y", "x".repeat(63));
        assert!(check(&array(), text(&cut), text(&raised)));
        assert!(!check(&array(), text("w"), text(&raised)), "not its beginning");
        let cut = "x".repeat(63);
        let full = || -> ArrayRef { Arc::new(StringArray::from(vec!["x".repeat(64)])) };
        let other = check(&full(), text(&cut), text(&"x".repeat(64)));
        assert!(other, "the beginning of another row group's");
        assert!(!check(&array(), text(&cut), text(&cut)), "below the value");
        let short = || -> ArrayRef { Arc::new(StringArray::from(vec!["é", "b"])) };
        assert!(check(&short(), text("b"), text("é")));
        assert!(!check(&short(), text("b"), text("éa")), "a short one has to be exact");
    }

    #[test]
    fn of_long_values_the_beginnings_are_kept() {
        let long = |end: &str| format!("{}{end}", "x".repeat(1 << 20));
        let array = StringArray::from(vec![long("b"), long("a"), "x".repeat(64)]);
        let (least, greatest) = of(&array).expect("values");
        assert!(same(&least, &text(&"x".repeat(64))), "a short one is whole");
        assert!(same(&greatest, &text(&"x".repeat(HEAD_BYTES))));
        // A value that cannot be raised is in the footer as it is.
        let top = vec![0xff; 1 << 20];
        let array: ArrayRef = Arc::new(BinaryArray::from(vec![top.as_slice()]));
        assert!(check(&array, Value::Bytes(vec![0xff; 64]), Value::Bytes(top.clone())));
        assert!(check(&array, Value::Bytes(top.clone()), Value::Bytes(top)));
        assert!(!check(&array, Value::Bytes(vec![0xfe; 64]), Value::Bytes(vec![0xff; 65])));
    }

    #[test]
    fn texts_are_compared_byte_by_byte() {
        let words = [
            "",
            "\0",
            "a",
            "a\0",
            "ab",
            "abcdefgh",
            "abcdefgh\0",
            "abcdefghi",
            "b",
            "é",
            "\u{10ffff}",
        ];
        for (at, least) in words.iter().enumerate() {
            for greatest in &words[at..] {
                for rows in
                    [[None, Some(*least), Some(*greatest)], [Some(*greatest), None, Some(*least)]]
                {
                    let array = StringArray::from(rows.to_vec());
                    let (found_least, found_greatest) = of(&array).expect("values");
                    assert!(same(&found_least, &text(least)), "{least:?} of {rows:?}");
                    assert!(same(&found_greatest, &text(greatest)), "{greatest:?} of {rows:?}");
                }
            }
        }
    }

    fn id(name: &str, data_type: DataType, id: i32) -> Field {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, data_type, true).with_metadata(metadata)
    }

    /// Rows of two row groups: the extremes of all types, and texts that a footer cuts.
    fn groups() -> [Vec<ArrayRef>; 2] {
        let long = |end: &str| format!("{}{end}", "x".repeat(63));
        let wide = |value: i128| {
            let array = Decimal128Array::from(vec![Some(value), None, Some(-value)]);
            Arc::new(array.with_precision_and_scale(38, 2).expect("precision")) as ArrayRef
        };
        let uuid = |byte: u8| -> ArrayRef {
            let rows = [[byte; 16], [0; 16], [255; 16]];
            Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter()).expect("uuids"))
        };
        let texts = |rows: [String; 3]| -> ArrayRef { Arc::new(StringArray::from(rows.to_vec())) };
        let group = |number: i64, text: [String; 3], float: [f64; 3], bytes: [Vec<u8>; 3]| {
            let instants = TimestampMicrosecondArray::from(vec![number, i64::MIN / 2, number]);
            vec![
                texts(text),
                wide(10_i128.pow(36) + i128::from(number)),
                uuid(number as u8),
                Arc::new(BooleanArray::from(vec![Some(number == 1), None, Some(true)])) as ArrayRef,
                Arc::new(Float64Array::from(float.to_vec())),
                Arc::new(instants.with_timezone("UTC")),
                Arc::new(Time64MicrosecondArray::from(vec![Some(number), None, Some(86_399)])),
                Arc::new(BinaryArray::from_iter_values(bytes)),
            ]
        };
        [
            group(
                1,
                [long("é and more"), long("z"), long("zz")],
                [f64::NAN, -0.0, 0.0],
                [vec![255; 70], vec![], vec![255; 64]],
            ),
            group(
                2,
                [long("x"), long("y"), "\u{10ffff}".repeat(17)],
                [f64::INFINITY, f64::NAN, f64::NEG_INFINITY],
                [vec![255; 71], vec![0], vec![254; 65]],
            ),
        ]
    }

    #[test]
    fn footers_of_the_writer_have_the_extremes_of_its_rows() {
        let groups = groups();
        let types = groups[0].iter().map(|array| array.data_type().clone()).enumerate();
        let fields: Vec<Field> =
            types.map(|(at, data_type)| id(&format!("c{at}"), data_type, at as i32 + 1)).collect();
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder()
            .set_statistics_truncate_length(Some(STATISTICS_BYTES))
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties);
        let mut writer = FileWriter::new(Arc::clone(&schema), options).expect("writer");
        let mut extremes = Extremes::default();
        for columns in groups {
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("rows");
            extremes.add(&batch, &schema);
            writer.write(&[batch]).expect("written");
            writer.flush().expect("a row group");
        }
        let (metadata, _) = writer.finish().expect("footer");
        let found = columns(&metadata);
        assert_eq!((metadata.num_row_groups(), extremes.columns.len(), found.len()), (2, 8, 8));
        for (id, column) in &found {
            let none = |bound: &Bound| matches!(bound, Bound::None);
            assert!(!none(&column.min) && !none(&column.max), "column {id} has no bounds");
        }
        extremes.check(&found).expect("the same");
    }

    #[test]
    fn without_values_there_is_nothing_to_compare() {
        let none: ArrayRef = Arc::new(Int32Array::from(vec![None, None]));
        assert!(of(&none).is_none());
        let nans: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN]));
        assert!(of(&nans).is_none());
    }
}
