//! What the planner is told of a scan's rows: how many pass, about, and of each column how many values, nulls and
//! bytes there are. By these it guesses how many rows joins leave, and which side of a join is smaller.
//!
//! They are worked out of the files' footers, which the scan needs anyway and which are kept. Least and greatest values
//! go no further: DataFusion 53.1 takes a column whose bounds meet for a constant, nulls and NaN left aside, and
//! plans fail where a bound has no place in a type that a filter casts to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result, ScalarValue, Statistics};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::parquet::arrow::parquet_to_arrow_schema;
use datafusion::parquet::file::metadata::ParquetMetaData;
use futures::{FutureExt, StreamExt, TryStreamExt};
use polder_lake::{CmpOp, Literal, Predicate, ScanFile, field_id};

use super::table::{FOOTER_BYTES, Files, part};
use super::views;

/// Columns of all files beyond which none is looked at: a plan should not wait for thousands of footers.
const FIELDS_MAX: usize = 1 << 15;
/// What passes a filter that nothing is known of. DataFusion takes as much of what it is told of a scan for what the
/// filter above it leaves (`default_filter_selectivity`).
const UNKNOWN: f64 = 0.2;
/// Footers read at once.
const FOOTERS_AT_ONCE: usize = 16;

/// Of the chosen files together. `projection`: the columns that are read, with those of `filter` among them; all
/// if absent.
pub(super) async fn of_scan(
    chosen: &[ScanFile],
    schema: &SchemaRef,
    (projection, filter): (Option<&Vec<usize>>, &Predicate),
    files: &Files,
) -> Statistics {
    let bytes = chosen.iter().map(|file| file.size_bytes).sum::<u64>();
    let wanted: HashSet<usize> = match projection {
        Some(columns) => columns.iter().copied().collect(),
        None => (0..schema.fields().len()).collect(),
    };
    let fields = schema.fields().len().saturating_mul(chosen.len());
    // The scan says what is wrong with a file.
    let found = match fields {
        0..=FIELDS_MAX => columns(chosen, schema, &wanted, files).await.ok(),
        _ => None,
    };
    let mut columns = found.unwrap_or_else(|| Statistics::unknown_column(schema));
    let known = |name: &str| schema.index_of(name).ok().and_then(|at| columns.get(at));
    let passing = (passing(filter, &known) / UNKNOWN).min(1.0);
    let guess = |all: u64| Precision::Inexact((all as f64 * passing).ceil() as usize);
    let num_rows = match chosen.iter().map(|file| file.rows).sum::<Option<u64>>() {
        None => Precision::Absent,
        // Nobody may take part of the rows for all of them, nor doubt how many there are in all.
        Some(rows) if passing < 1.0 => guess(rows),
        Some(rows) => Precision::Exact(rows as usize),
    };
    for column in &mut columns {
        (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
    }
    Statistics { num_rows, total_byte_size: guess(bytes), column_statistics: columns }
}

async fn columns(
    chosen: &[ScanFile],
    schema: &SchemaRef,
    wanted: &HashSet<usize>,
    files: &Files,
) -> Result<Vec<ColumnStatistics>> {
    let store = files.lake.object_store();
    let parts = chosen.iter().map(|file| part(&files.lake, file));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let reads = parts.iter().map(|part| {
        let footer = DFParquetMetadata::new(&store, &part.object_meta)
            .with_file_metadata_cache(Some(Arc::clone(&files.footers)))
            .with_metadata_size_hint(Some(FOOTER_BYTES));
        async move { of_file(&*footer.fetch_metadata().await?, schema, wanted) }.boxed()
    });
    let reads = futures::stream::iter(reads.collect::<Vec<_>>());
    merged(&reads.buffered(FOOTERS_AT_ONCE).try_collect::<Vec<_>>().await?, schema)
}

fn merged(files: &[Statistics], schema: &SchemaRef) -> Result<Vec<ColumnStatistics>> {
    let all = Statistics::try_merge_iter(files, schema)?;
    let rows = all.num_rows.get_value().copied();
    let column = |mut column: ColumnStatistics| {
        let nulls = column.null_count.get_value().copied().unwrap_or(0);
        let values = rows.map(|rows| rows.saturating_sub(nulls));
        let distinct = whole_numbers(&column).into_iter().chain(values).min();
        column.distinct_count = distinct.map_or(Precision::Absent, Precision::Inexact);
        column.to_inexact()
    };
    Ok(all.column_statistics.into_iter().map(column).collect())
}

/// In the table's columns: the wanted ones that the file has by the same id, in the same type.
fn of_file(
    footer: &ParquetMetaData,
    schema: &SchemaRef,
    wanted: &HashSet<usize>,
) -> Result<Statistics> {
    let about = footer.file_metadata();
    let own = parquet_to_arrow_schema(about.schema_descr(), about.key_value_metadata())?;
    let fields = own.fields().iter().enumerate();
    let by_id = fields.filter_map(|(at, field)| Some((field_id(field)?, at)));
    let by_id: HashMap<_, _> = by_id.collect();
    let place = |(at, field): (usize, &FieldRef)| {
        let own_at = *by_id.get(&field_id(field)?)?;
        let (is, asked) = (own.field(own_at).data_type(), field.data_type());
        let known = (is == asked || views::is_of(asked, is)) && !asked.is_nested();
        (known && wanted.contains(&at)).then_some(own_at)
    };
    let places: Vec<_> = schema.fields().iter().enumerate().map(place).collect();
    let read: Vec<usize> = places.iter().flatten().copied().collect();
    let read = Arc::new(own.project(&read)?);
    let mut found = DFParquetMetadata::statistics_from_parquet_metadata(footer, &read)?;
    let mut own = std::mem::take(&mut found.column_statistics).into_iter();
    let columns = places.into_iter().map(|place| place.and_then(|_| own.next()));
    found.column_statistics = columns.map(Option::unwrap_or_default).collect();
    Ok(found)
}

/// How many values there are from the least to the greatest one of a column of whole numbers.
fn whole_numbers(column: &ColumnStatistics) -> Option<usize> {
    let whole = |value: &Precision<ScalarValue>| match value.get_value()? {
        ScalarValue::Int32(value) | ScalarValue::Date32(value) => value.map(i64::from),
        ScalarValue::Int64(value) => *value,
        _ => None,
    };
    let between = whole(&column.max_value)?.checked_sub(whole(&column.min_value)?)?;
    usize::try_from(between).ok()?.checked_add(1)
}

/// Which part of the rows passes, about: as if values were spread evenly, and columns had nothing to do with each
/// other. Conditions that are neither comparisons nor lists leave none out.
fn passing<'a>(filter: &Predicate, known: &impl Fn(&str) -> Option<&'a ColumnStatistics>) -> f64 {
    let mut ranges = HashMap::new();
    let others = narrowed(filter, known, &mut ranges);
    let within = ranges.into_iter().map(|(column, (from, to))| {
        let bounds = known(column).and_then(|column| {
            Some((number(column.min_value.get_value()?)?, number(column.max_value.get_value()?)?))
        });
        let Some((least, greatest)) = bounds.filter(|(least, greatest)| least < greatest) else {
            return 1.0;
        };
        ((greatest.min(to) - least.max(from)) / (greatest - least)).clamp(0.0, 1.0)
    });
    (others * within.product::<f64>()).clamp(0.0, 1.0)
}

/// Narrows the columns' ranges by a filter; what passes its other conditions.
fn narrowed<'f, 'a>(
    filter: &'f Predicate,
    known: &impl Fn(&str) -> Option<&'a ColumnStatistics>,
    ranges: &mut HashMap<&'f str, (f64, f64)>,
) -> f64 {
    // Of others than whole numbers it is not known how many there are.
    let one_of = |column: &str, values: usize| {
        let column = known(column).filter(|column| whole_numbers(column).is_some());
        let distinct = column.and_then(|column| column.distinct_count.get_value().copied());
        distinct.map_or(UNKNOWN, |distinct| values as f64 / distinct.max(1) as f64).min(1.0)
    };
    match filter {
        Predicate::And(one, other) => narrowed(one, known, ranges) * narrowed(other, known, ranges),
        Predicate::Or(one, other) => (passing(one, known) + passing(other, known)).min(1.0),
        Predicate::Cmp { column, op: CmpOp::Eq, .. } => one_of(column, 1),
        Predicate::In { column, values } => one_of(column, values.len()),
        Predicate::Cmp { column, op, value } => {
            if let Some(value) = scalar(value).as_ref().and_then(number) {
                let range = ranges.entry(column).or_insert((f64::NEG_INFINITY, f64::INFINITY));
                match op {
                    CmpOp::Lt | CmpOp::LtEq => range.1 = range.1.min(value),
                    CmpOp::Gt | CmpOp::GtEq => range.0 = range.0.max(value),
                    CmpOp::Eq | CmpOp::NotEq => {}
                }
            }
            1.0
        }
        _ => 1.0,
    }
}

fn scalar(literal: &Literal) -> Option<ScalarValue> {
    Some(match literal {
        Literal::Int(value) => ScalarValue::Int32(Some(*value)),
        Literal::Long(value) => ScalarValue::Int64(Some(*value)),
        Literal::Float(value) => ScalarValue::Float32(Some(*value)),
        Literal::Double(value) => ScalarValue::Float64(Some(*value)),
        Literal::Decimal { unscaled, precision, scale } => {
            ScalarValue::Decimal128(Some(*unscaled), *precision, i8::try_from(*scale).ok()?)
        }
        Literal::Date(value) => ScalarValue::Date32(Some(*value)),
        Literal::Timestamp(value) | Literal::Timestamptz(value) => {
            ScalarValue::TimestampMicrosecond(Some(*value), None)
        }
        _ => return None,
    })
}

/// About the value, to tell how far it is from others.
fn number(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Int32(value) | ScalarValue::Date32(value) => value.map(f64::from),
        ScalarValue::Int64(value) | ScalarValue::TimestampMicrosecond(value, _) => {
            value.map(|value| value as f64)
        }
        ScalarValue::Float32(value) => value.map(f64::from),
        ScalarValue::Float64(value) => *value,
        ScalarValue::Decimal128(value, _, scale) => {
            value.map(|value| value as f64 / 10_f64.powi(i32::from(*scale)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};

    use super::*;

    fn schema(fields: &[(&str, i32, DataType)]) -> SchemaRef {
        let field = |(name, id, of): &(&str, i32, DataType)| {
            let id = [(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())];
            Field::new(*name, of.clone(), true).with_metadata(id.into())
        };
        Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
    }

    fn footer(schema: &SchemaRef, columns: Vec<ArrayRef>) -> ParquetMetaData {
        let batch = RecordBatch::try_new(Arc::clone(schema), columns).expect("a batch");
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), None);
        let mut writer = writer.expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("a file")
    }

    #[test]
    fn columns_are_known_by_their_ids_and_types() {
        let ints = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let older = schema(&[("b", 2, DataType::Int32), ("a", 1, DataType::Int32)]);
        let newer = schema(&[
            ("id", 1, DataType::Int32),
            ("b", 2, DataType::Int64),
            ("a", 3, DataType::Int32),
        ]);
        let older = footer(&older, vec![ints(vec![Some(1), Some(2)]), ints(vec![Some(7), None])]);
        let long = Arc::new(Int64Array::from(vec![5])) as ArrayRef;
        let last = footer(&newer, vec![ints(vec![Some(-3)]), long, ints(vec![Some(4)])]);
        let of = |footers: &[&ParquetMetaData], wanted: &[usize]| {
            let wanted = wanted.iter().copied().collect();
            let found = footers.iter().map(|footer| of_file(footer, &newer, &wanted));
            let found: Vec<_> = found.collect::<Result<_>>().expect("statistics");
            merged(&found, &newer).expect("statistics")
        };

        let found = of(&[&older, &last], &[0, 1, 2]);
        let guess = |value: i32| Precision::Inexact(ScalarValue::Int32(Some(value)));
        assert_eq!((&found[0].min_value, &found[0].max_value), (&guess(-3), &guess(7)), "renamed");
        assert_eq!(found[0].null_count, Precision::Inexact(1));
        assert_eq!(found[0].distinct_count, Precision::Inexact(2), "as many as there are values");
        for unknown in [&found[1], &found[2]] {
            assert_eq!(unknown.min_value, Precision::Absent, "widened, and new");
            assert_eq!(unknown.null_count, Precision::Absent);
        }
        let found = of(&[&last], &[2]);
        assert_eq!((&found[2].min_value, &found[2].max_value), (&guess(4), &guess(4)));
        assert_eq!(found[2].distinct_count, Precision::Inexact(1));
        assert_eq!(found[0].min_value, Precision::Absent, "not asked for");
    }

    #[test]
    fn extremes_that_lie_too_far_apart_are_no_number_of_values() {
        let exact = |value: i64| Precision::Exact(ScalarValue::Int64(Some(value)));
        let column = |least: i64, greatest: i64| {
            let column = ColumnStatistics::new_unknown().with_min_value(exact(least));
            whole_numbers(&column.with_max_value(exact(greatest)))
        };
        assert_eq!(column(-1, 1), Some(3));
        assert_eq!(column(i64::MIN, i64::MAX), None);
        assert_eq!(column(0, i64::MAX), Some(1 << 63));
    }

    #[test]
    fn filters_leave_their_part_of_evenly_spread_values() {
        let value = |value: i32| Precision::Inexact(ScalarValue::Int32(Some(value)));
        let mut a = ColumnStatistics::new_unknown().with_min_value(value(0));
        a = a.with_max_value(value(100)).with_distinct_count(Precision::Inexact(50));
        let known = |name: &str| (name == "a").then_some(&a);
        let cmp = |op: CmpOp, value: i32| Predicate::Cmp {
            column: "a".to_owned(),
            op,
            value: Literal::Int(value),
        };
        let text = || Predicate::Cmp {
            column: "c".to_owned(),
            op: CmpOp::Eq,
            value: Literal::String("x".to_owned()),
        };
        let b = Predicate::IsNull("b".to_owned());
        let cases = [
            (Predicate::True, 1.0),
            (cmp(CmpOp::Lt, 25), 0.25),
            (cmp(CmpOp::GtEq, 25).and(cmp(CmpOp::Lt, 75)), 0.5),
            (cmp(CmpOp::GtEq, 25).and(b.clone()), 0.75),
            (Predicate::Or(Box::new(cmp(CmpOp::Lt, 25)), Box::new(cmp(CmpOp::Gt, 90))), 0.35),
            (Predicate::Or(Box::new(cmp(CmpOp::Lt, 25)), Box::new(b)), 1.0),
            (cmp(CmpOp::Eq, 7), 0.02),
            (text(), UNKNOWN),
            (cmp(CmpOp::Lt, 25).and(text()), 0.05),
            (cmp(CmpOp::NotEq, 7), 1.0),
            (cmp(CmpOp::Gt, 1_000), 0.0),
            (cmp(CmpOp::Lt, -1), 0.0),
        ];
        for (filter, expected) in cases {
            let found = passing(&filter, &known);
            assert!((found - expected).abs() < 1e-9, "{filter:?}: {found}, not {expected}");
        }
    }
}
