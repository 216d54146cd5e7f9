//! Which columns are worth a dictionary. Parquet's writer tries one for every column and gives up
//! once it is large; for columns whose values hardly repeat (keys, times, free text), all that work is
//! lost.

use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use parquet::file::properties::{DEFAULT_DICTIONARY_PAGE_SIZE_LIMIT, WriterProperties};
use parquet::schema::types::ColumnPath;

/// Rows looked at.
const SAMPLE_ROWS: usize = 4_096;
/// Fewer values say nothing.
const VALUES_MIN: usize = 1_024;

/// The properties for files of rows like these; `None` if they are too few to tell.
pub(super) fn properties(
    base: &WriterProperties,
    rows: &[RecordBatch],
) -> Option<WriterProperties> {
    let sample = rows.iter().max_by_key(|batch| batch.num_rows())?;
    if sample.num_rows() < VALUES_MIN {
        return None;
    }
    let mut builder = base.clone().into_builder();
    let sample = sample.slice(0, sample.num_rows().min(SAMPLE_ROWS));
    for (column, field) in sample.columns().iter().zip(sample.schema_ref().fields()) {
        if hardly_repeats(column) {
            let path = ColumnPath::new(vec![field.name().clone()]);
            builder = builder.set_column_dictionary_enabled(path, false);
        }
    }
    Some(builder.build())
}

/// Whether the values of a row group would hardly fit into a dictionary.
///
/// Of `n` values drawn from `N`, about `n²/2N` were drawn before: by the repetitions in the sample, `N`
/// values take more than a dictionary's page may.
fn hardly_repeats(column: &ArrayRef) -> bool {
    let values = column.len() - column.null_count();
    if values < VALUES_MIN {
        return false;
    }
    distinct(column).is_some_and(|Distinct { count, bytes }| {
        let repeated = values - count;
        let drawn_from_min = DEFAULT_DICTIONARY_PAGE_SIZE_LIMIT * count / bytes.max(1);
        repeated * 2 * drawn_from_min < values * values
    })
}

/// Values of a sample that differ.
struct Distinct {
    count: usize,
    /// Of all of them, as a dictionary has them.
    bytes: usize,
}

/// How many values there are, nulls left out; `None` for types that are not looked at.
fn distinct(column: &ArrayRef) -> Option<Distinct> {
    let data = column.to_data();
    let valid = |row: &usize| column.is_valid(*row);
    let rows = (0..column.len()).filter(valid);
    let buffers = data.buffers();
    match column.data_type() {
        DataType::Utf8 | DataType::Binary => {
            let offsets = &data.buffer::<i32>(0)[data.offset()..];
            let bytes = buffers[1].as_slice();
            let value = |row: usize| &bytes[offsets[row] as usize..offsets[row + 1] as usize];
            let values: HashSet<_> = rows.map(value).collect();
            let lengths = values.len() * size_of::<u32>();
            let bytes = lengths + values.iter().map(|value| value.len()).sum::<usize>();
            Some(Distinct { count: values.len(), bytes })
        }
        DataType::Boolean => None,
        fixed => {
            let width = match fixed {
                DataType::FixedSizeBinary(width) => *width as usize,
                other => other.primitive_width()?,
            };
            let bytes = buffers[0].as_slice();
            let value = |row: usize| &bytes[(data.offset() + row) * width..][..width];
            let count = rows.map(value).collect::<HashSet<_>>().len();
            // Parquet has short decimals as integers.
            let stored = match fixed {
                DataType::Decimal128(..=9, _) => 4,
                DataType::Decimal128(..=18, _) => 8,
                _ => width,
            };
            Some(Distinct { count, bytes: count * stored })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, FixedSizeBinaryArray, Int32Array, Int64Array, StringArray};

    use super::*;

    fn fixed(of: impl Fn(i64) -> i64) -> ArrayRef {
        let values: Vec<[u8; 16]> = (0..8_000).map(|i| i128::from(of(i)).to_be_bytes()).collect();
        Arc::new(FixedSizeBinaryArray::try_from_iter(values.iter()).expect("16 bytes each"))
    }

    #[test]
    fn only_columns_whose_values_hardly_repeat_go_without() {
        let rows = || 0..8_000_i64;
        // 20,000 values at random, or as good as.
        let some = |i: i64| i * 7_919 % 20_011 % 1_000;
        let text = |of: &dyn Fn(i64) -> i64| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows().map(|i| of(i).to_string())))
        };
        let mostly_null: Int32Array = (0..8_000).map(|i| (i % 10 == 0).then_some(i)).collect();
        let booleans: BooleanArray = (0..8_000).map(|i| Some(i % 2 == 0)).collect();
        let cases: [(ArrayRef, bool); 8] = [
            (Arc::new(Int64Array::from_iter_values(rows())), true),
            (Arc::new(Int64Array::from_iter_values(rows().map(some))), false),
            (text(&|i| i), true),
            (text(&some), false),
            (fixed(|i| i), true),
            (fixed(some), false),
            (Arc::new(mostly_null), false),
            (Arc::new(booleans), false),
        ];
        for (number, (column, expected)) in cases.into_iter().enumerate() {
            assert_eq!(hardly_repeats(&column), expected, "case {number}");
            let sliced = column.slice(3, 5_000);
            assert_eq!(hardly_repeats(&sliced), expected, "case {number}, sliced");
        }
    }

    #[test]
    fn a_writer_s_properties_follow_its_first_rows() {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5_000));
        let ones: ArrayRef = Arc::new(Int64Array::from_iter_values((0..5_000).map(|_| 1)));
        let batch = RecordBatch::try_from_iter([("id", ids), ("one", ones)]).expect("batch");
        let base = WriterProperties::default();
        let of = |properties: &WriterProperties, name: &str| {
            properties.dictionary_enabled(&ColumnPath::new(vec![name.to_owned()]))
        };
        let made = properties(&base, &[batch.slice(0, 100), batch.clone()]).expect("enough rows");
        assert_eq!((of(&made, "id"), of(&made, "one")), (false, true));
        assert!(properties(&base, &[batch.slice(0, 100)]).is_none());
    }
}
