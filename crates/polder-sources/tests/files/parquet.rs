//! Parquet files of every make.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
    Decimal256Array, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array,
    Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, IntervalYearMonthArray,
    LargeBinaryArray, LargeStringArray, ListArray, MapArray, NullArray, RecordBatch, StringArray,
    StringViewArray, StructArray, Time32MillisecondArray, Time64MicrosecondArray,
    Time64NanosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, TimestampNanosecondType, i256};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{FixedLenByteArrayType, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use polder_core::ErrorCode;
use polder_core::spec::OnUnrepresentable;

use super::support::{Folder, gzip, zstd};
use crate::reading::{NULL, Read, Vary, read, refused, request};

/// A file with these columns.
fn file(columns: &[(&str, ArrayRef)]) -> Vec<u8> {
    file_with(columns, WriterProperties::builder().build())
}

fn file_with(columns: &[(&str, ArrayRef)], properties: WriterProperties) -> Vec<u8> {
    let columns = columns.iter().map(|(name, array)| (*name, array.clone(), true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("batch");
    let mut writer =
        ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("writer");
    writer.write(&batch).expect("rows");
    writer.into_inner().expect("file")
}

fn array(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn folder(files: &[(&str, Vec<u8>)]) -> Folder {
    let folder = Folder::new();
    for (key, content) in files {
        folder.write(key, content);
    }
    folder
}

async fn read_one(columns: &[(&str, ArrayRef)]) -> Read {
    let folder = folder(&[("a.parquet", file(columns))]);
    read(&folder.source(), request("a.parquet")).await.expect("read")
}

fn numbers() -> Vec<(ArrayRef, &'static str, &'static [&'static str])> {
    let decimal = |values: Vec<i128>, precision, scale| {
        array(
            Decimal128Array::from(values)
                .with_precision_and_scale(precision, scale)
                .expect("decimal"),
        )
    };
    let halves = cast(&Float32Array::from(vec![65504.0, 0.5]), &DataType::Float16).expect("halves");
    let wide = Decimal256Array::from(vec![i256::from_i128(i128::MAX), i256::MINUS_ONE])
        .with_precision_and_scale(50, 5)
        .expect("decimal");
    vec![
        (array(BooleanArray::from(vec![true, false])), "boolean", &["true", "false"]),
        (array(Int8Array::from(vec![i8::MIN, i8::MAX])), "int", &["-128", "127"]),
        (array(Int16Array::from(vec![i16::MIN, i16::MAX])), "int", &["-32768", "32767"]),
        (array(Int32Array::from(vec![i32::MIN, i32::MAX])), "int", &["-2147483648", "2147483647"]),
        (
            array(Int64Array::from(vec![i64::MIN, i64::MAX])),
            "long",
            &["-9223372036854775808", "9223372036854775807"],
        ),
        (array(UInt8Array::from(vec![0, u8::MAX])), "int", &["0", "255"]),
        (array(UInt16Array::from(vec![0, u16::MAX])), "int", &["0", "65535"]),
        (array(UInt32Array::from(vec![0, u32::MAX])), "long", &["0", "4294967295"]),
        (
            array(UInt64Array::from(vec![0, u64::MAX])),
            "decimal(20, 0)",
            &["0", "18446744073709551615"],
        ),
        (halves, "float", &["65504.0", "0.5"]),
        (
            array(Float32Array::from(vec![f32::MAX, -0.0, f32::NAN])),
            "float",
            &["3.4028235e38", "-0.0", "NaN"],
        ),
        (
            array(Float64Array::from(vec![5e-324, f64::NEG_INFINITY, 0.1])),
            "double",
            &["5e-324", "-inf", "0.1"],
        ),
        (decimal(vec![-999_999_999, 1], 9, 2), "decimal(9, 2)", &["-9999999.99", "0.01"]),
        (decimal(vec![999_999_999_999_999_999], 18, 4), "decimal(18, 4)", &["99999999999999.9999"]),
        (
            decimal(vec![10_i128.pow(38) - 1, -1], 38, 10),
            "decimal(38, 10)",
            &["9999999999999999999999999999.9999999999", "-0.0000000001"],
        ),
        // More digits than a decimal of the lake has.
        (array(wide), "string", &["1701411834604692317316873037158841.05727", "-0.00001"]),
    ]
}

fn texts_and_times() -> Vec<(ArrayRef, &'static str, &'static [&'static str])> {
    let zone = "Europe/Amsterdam";
    let words: DictionaryArray<Int32Type> =
        vec![Some("a"), Some("é"), None, Some("a")].into_iter().collect();
    let fixed =
        FixedSizeBinaryArray::try_from_iter(vec![[0_u8, 1, 255]].into_iter()).expect("bytes");
    vec![
        (
            array(StringArray::from(vec!["", "naïve \u{1F30A}", "a\0b"])),
            "string",
            &["", "naïve \u{1F30A}", "a\0b"],
        ),
        (array(LargeStringArray::from(vec!["x"])), "string", &["x"]),
        (
            array(StringViewArray::from(vec!["a text longer than twelve"])),
            "string",
            &["a text longer than twelve"],
        ),
        (array(words), "string", &["a", "é", NULL, "a"]),
        (array(BinaryArray::from_vec(vec![b"", b"\x00\xff"])), "binary", &["0x", "0x00ff"]),
        (array(LargeBinaryArray::from_vec(vec![b"\xff"])), "binary", &["0xff"]),
        (array(fixed), "binary", &["0x0001ff"]),
        (
            array(Date32Array::from(vec![0, -719_162, 2_932_896])),
            "date",
            &["1970-01-01", "0001-01-01", "9999-12-31"],
        ),
        (array(Time32MillisecondArray::from(vec![86_399_999])), "time", &["23:59:59.999"]),
        (array(Time64MicrosecondArray::from(vec![86_399_999_999])), "time", &["23:59:59.999999"]),
        (array(Time64NanosecondArray::from(vec![1_000])), "time", &["00:00:00.000001"]),
        (
            array(TimestampMillisecondArray::from(vec![-1, 253_402_300_799_999])),
            "timestamp",
            &["1969-12-31T23:59:59.999", "9999-12-31T23:59:59.999"],
        ),
        (
            array(TimestampMillisecondArray::from(vec![1]).with_timezone(zone)),
            "timestamptz",
            &["1970-01-01T00:00:00.001Z"],
        ),
        (
            array(TimestampMicrosecondArray::from(vec![-62_135_596_800_000_000])),
            "timestamp",
            &["0001-01-01T00:00:00"],
        ),
        (
            array(TimestampMicrosecondArray::from(vec![1]).with_timezone(zone)),
            "timestamptz",
            &["1970-01-01T00:00:00.000001Z"],
        ),
        (
            array(TimestampNanosecondArray::from(vec![-1_000, 1_700_000_000_000_001_000])),
            "timestamp",
            &["1969-12-31T23:59:59.999999", "2023-11-14T22:13:20.000001"],
        ),
        (
            array(TimestampNanosecondArray::from(vec![1_000]).with_timezone("+00:00")),
            "timestamptz",
            &["1970-01-01T00:00:00.000001Z"],
        ),
        (array(NullArray::new(2)), "string", &[NULL, NULL]),
    ]
}

#[tokio::test]
async fn every_type_is_read_as_it_is_stored() {
    for (values, lake_type, shown) in numbers().into_iter().chain(texts_and_times()) {
        let place = values.data_type().to_string();
        let found = read_one(&[("v", values)]).await;
        assert_eq!(found.types(), format!("v {lake_type}"), "{place}");
        assert_eq!(found.shown("v"), shown, "{place}");
    }
}

#[tokio::test]
async fn nested_values_are_lists_and_structs() {
    let inner = |name: &str, data_type| Arc::new(Field::new(name, data_type, true));
    let pairs = StructArray::from(vec![
        (inner("n", DataType::Int64), array(Int64Array::from(vec![Some(1), None, Some(3)]))),
        (inner("t", DataType::Utf8), array(StringArray::from(vec!["a", "b", "c"]))),
    ]);
    let pair = pairs.data_type().clone();
    let offsets = || OffsetBuffer::from_lengths([2, 0, 1]);
    let nulls = Some(vec![true, false, true].into());
    let list = ListArray::new(inner("item", pair), offsets(), array(pairs), nulls);
    let fours = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(
        [Some([Some(1), None]), None, Some([Some(3), Some(4)])],
        2,
    );
    let entries = StructArray::from(vec![
        (
            Arc::new(Field::new("key", DataType::Utf8, false)),
            array(StringArray::from(vec!["x", "y", "z"])),
        ),
        (inner("value", DataType::Int32), array(Int32Array::from(vec![Some(1), None, Some(3)]))),
    ]);
    let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let map = MapArray::new(entry, offsets(), entries, None, false);
    let large = cast(&list, &DataType::LargeList(inner("item", list.value_type()))).expect("large");
    let around =
        StructArray::from(vec![(inner("in", list.data_type().clone()), array(list.clone()))]);
    let columns = [
        ("l", array(list)),
        ("f", array(fours)),
        ("m", array(map)),
        ("g", large),
        ("s", array(around)),
    ];
    let found = read_one(&columns).await;
    let types = "l list<struct<n: long, t: string>>, f list<int>, \
                 m list<struct<key: string, value: int>>, g list<struct<n: long, t: string>>, \
                 s struct<in: list<struct<n: long, t: string>>>";
    assert_eq!(found.types(), types);
    let lists = ["[{n: 1, t: a}, {n: ∅, t: b}]", NULL, "[{n: 3, t: c}]"];
    assert_eq!(found.shown("l"), lists);
    assert_eq!(found.shown("g"), lists);
    assert_eq!(found.shown("s"), lists.map(|list| format!("{{in: {list}}}")));
    assert_eq!(found.shown("f"), ["[1, ∅]", NULL, "[3, 4]"]);
    assert_eq!(
        found.shown("m"),
        ["[{key: x, value: 1}, {key: y, value: ∅}]", "[]", "[{key: z, value: 3}]"]
    );
}

/// A file of one column in a type that Arrow's writer does not make.
fn raw_file<T: parquet::data_type::DataType>(message: &str, values: &[T::T]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(message).expect("schema"));
    let mut content = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut content, schema, Arc::default()).expect("writer");
    let mut group = writer.next_row_group().expect("group");
    while let Some(mut column) = group.next_column().expect("column") {
        column.typed::<T>().write_batch(values, None, None).expect("values");
        column.close().expect("column");
    }
    group.close().expect("group");
    writer.close().expect("file");
    content
}

/// The old 96-bit timestamps: nanoseconds of a Julian day.
fn wide(nanos: u64, days: i32) -> Int96 {
    let mut value = Int96::new();
    value.set_data(nanos as u32, (nanos >> 32) as u32, (2_440_588 + days).cast_unsigned());
    value
}

#[tokio::test]
async fn old_timestamps_and_uuids_are_read() {
    let message = "message m { required int96 v; }";
    let values = [wide(0, 0), wide(86_399_999_999_000, 2_932_896), wide(1_000, -719_162)];
    let uneven = [wide(1_500, 0)];
    let nested = "message m { required group g { required int96 v; } required int96 w; }";
    let uuids = "message m { required fixed_len_byte_array(16) v (UUID); }";
    let folder = folder(&[
        ("a.parquet", raw_file::<Int96Type>(message, &values)),
        ("b.parquet", raw_file::<Int96Type>(message, &uneven)),
        ("c.parquet", raw_file::<Int96Type>(nested, &values)),
        ("d.parquet", raw_file::<FixedLenByteArrayType>(uuids, &[vec![0xAB_u8; 16].into()])),
    ]);
    let source = folder.source();
    let found = read(&source, request("a.parquet")).await.expect("read");
    assert_eq!(found.types(), "v timestamp");
    let shown = ["1970-01-01T00:00:00", "9999-12-31T23:59:59.999999", "0001-01-01T00:00:00.000001"];
    assert_eq!(found.shown("v"), shown);
    let error = refused(&source, request("b.parquet")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.message().contains("b.parquet column v"), "{error:?}");
    let cut = read(&source, request("b.parquet").policy(OnUnrepresentable::Clamp)).await;
    assert_eq!(cut.expect("cut").shown("v"), ["1970-01-01T00:00:00.000001"]);
    let error = refused(&source, request("c.parquet")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.hint_text().expect("hint").contains("columns:"));
    let some = read(&source, request("c.parquet").columns(&["w"])).await.expect("as the hint says");
    assert_eq!(
        (some.types().as_str(), some.shown("w")),
        ("w timestamp", shown.map(str::to_owned).to_vec())
    );
    let found = read(&source, request("d.parquet")).await.expect("read");
    assert_eq!(found.types(), "v uuid");
    assert_eq!(found.shown("v"), ["abababab-abab-abab-abab-abababababab"]);
}

#[tokio::test]
async fn digits_below_the_microsecond_follow_the_policy() {
    let nested =
        [Some(vec![]), Some(vec![Some(2_000), Some(1), Some(2)]), None, Some(vec![Some(5)])];
    let values = [
        (
            "v",
            array(TimestampNanosecondArray::from(vec![Some(-1), None, Some(1_001), Some(2_000)])),
        ),
        ("id", array(StringArray::from(vec!["a", "b", "c", "d"]))),
        ("l", array(ListArray::from_iter_primitive::<TimestampNanosecondType, _, _>(nested))),
    ];
    let folder = folder(&[("a.parquet", file(&values))]);
    let source = folder.source();
    let error = refused(&source, request("a.parquet")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.message().contains("column v"), "{error:?}");
    let (even, one) = ("1970-01-01T00:00:00.000002", "1970-01-01T00:00:00.000001");
    for (policy, shown) in [
        (OnUnrepresentable::Null, [NULL, NULL, NULL, even]),
        (OnUnrepresentable::Clamp, ["1969-12-31T23:59:59.999999", NULL, one, even]),
    ] {
        let asked = request("a.parquet").policy(policy).key(&["id"]);
        let progress = asked.progress.clone();
        let found = read(&source, asked).await.expect("read");
        assert_eq!(found.shown("v"), shown, "{policy:?}");
        let counted = progress.snapshot();
        assert_eq!(counted.altered, [("v".to_owned(), 2), ("l".to_owned(), 3)].into());
        let keys = |rows: [&str; 2]| rows.map(|row| format!("id={row}")).to_vec();
        let named = [("v".to_owned(), keys(["a", "c"])), ("l".to_owned(), keys(["b", "d"]))];
        assert_eq!(counted.altered_keys, named.into());
    }
}

#[tokio::test]
async fn files_may_have_different_columns_and_narrower_types() {
    let decimal = |value: i128, precision, scale| {
        array(
            Decimal128Array::from(vec![value])
                .with_precision_and_scale(precision, scale)
                .expect("decimal"),
        )
    };
    let members = |name: &str, value: i32| {
        let field = Arc::new(Field::new(name, DataType::Int32, true));
        array(StructArray::from(vec![(field, array(Int32Array::from(vec![value])))]))
    };
    let folder = folder(&[
        (
            "a.parquet",
            file(&[
                ("n", array(Int32Array::from(vec![1]))),
                ("d", decimal(125, 5, 2)),
                ("s", members("a", 1)),
                ("u", array(NullArray::new(1))),
                ("f", array(Float32Array::from(vec![0.1]))),
            ]),
        ),
        (
            "b.parquet",
            file(&[
                ("u", array(Int32Array::from(vec![7]))),
                ("s", members("b", 2)),
                ("d", decimal(1, 12, 4)),
                ("n", array(Int64Array::from(vec![1_i64 << 40]))),
                ("f", array(Float64Array::from(vec![0.1]))),
            ]),
        ),
        (
            "c.parquet",
            file(&[("n", array(NullArray::new(1))), ("more", array(StringArray::from(vec!["x"])))]),
        ),
        ("d.parquet", file(&[("n", array(Int32Array::from(Vec::<i32>::new())))])),
    ]);
    let source = folder.source();
    let found = read(&source, request("*.parquet").splits(2)).await.expect("read");
    let types = "n long, d decimal(12, 4), s struct<a: int, b: int>, u int, f double, more string";
    assert_eq!((found.types().as_str(), found.splits, found.rows_estimated), (types, 2, Some(3)));
    assert_eq!(found.sorted_texts("n"), ["1", "1099511627776", NULL]);
    assert_eq!(found.sorted_texts("d"), ["0.0001", "1.2500", NULL]);
    assert_eq!(found.sorted_texts("s"), ["{a: 1, b: ∅}", "{a: ∅, b: 2}", NULL]);
    assert_eq!(found.sorted_texts("u"), ["7", NULL, NULL]);
    assert_eq!(found.sorted_texts("f"), ["0.1", "0.10000000149011612", NULL], "the float as it is");
    assert_eq!(found.sorted_texts("more"), ["x", NULL, NULL]);
    // The lake's columns stay.
    let again = read(&source, request("c.parquet").known(&found.schema)).await.expect("read");
    assert_eq!((again.types().as_str(), again.shown("n")), (types, vec![NULL.into()]));
}

#[tokio::test]
async fn types_that_do_not_meet_are_told_and_can_be_declared() {
    let folder = folder(&[
        (
            "a.parquet",
            file(&[
                ("v", array(Int32Array::from(vec![1]))),
                ("i", array(Int32Array::from(vec![5]))),
            ]),
        ),
        ("b.parquet", file(&[("v", array(StringArray::from(vec!["007"])))])),
    ]);
    let source = folder.source();
    let error = refused(&source, request("*.parquet")).await;
    assert_eq!(error.code(), ErrorCode::SourceMalformed);
    assert_eq!(error.detail_text().expect("detail"), "int in a.parquet, string in b.parquet");
    assert!(error.hint_text().expect("hint").contains("types: { v: string }"));
    let found = read(&source, request("*.parquet").types(&[("v", "string")])).await.expect("read");
    assert_eq!(
        (found.types().as_str(), found.shown("v")),
        ("v string, i int", vec!["1".into(), "007".into()])
    );
    let some = read(&source, request("*.parquet").columns(&["i"])).await.expect("the other column");
    assert_eq!(some.shown("i"), ["5", NULL]);
    let error = refused(&source, request("b.parquet").types(&[("v", "long")])).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "007 would be 7: {error:?}");
    let null = request("b.parquet").types(&[("v", "long")]).policy(OnUnrepresentable::Null);
    let null = null.key(&["v"]);
    let progress = null.progress.clone();
    assert_eq!(read(&source, null).await.expect("null").shown("v"), [NULL]);
    assert_eq!(progress.snapshot().altered, [("v".to_owned(), 1)].into());
    let named = [("v".to_owned(), vec!["v=007".to_owned()])];
    assert_eq!(progress.snapshot().altered_keys, named.into());
}

#[tokio::test]
async fn columns_the_lake_cannot_hold_can_be_left_out() {
    let columns = [
        ("i", array(IntervalYearMonthArray::from(vec![1]))),
        ("id", array(Int32Array::from(vec![7]))),
    ];
    let folder = folder(&[("a.parquet", file(&columns))]);
    let source = folder.source();
    let error = refused(&source, request("a.parquet")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.message().contains("a.parquet has column i"), "{error:?}");
    assert!(error.hint_text().expect("hint").contains("columns:"));
    let some =
        read(&source, request("a.parquet").columns(&["id"])).await.expect("as the hint says");
    assert_eq!((some.types().as_str(), some.shown("id")), ("id int", vec!["7".into()]));
}

#[tokio::test]
async fn compressed_and_large_files_are_read_in_batches() {
    let numbers: Vec<i64> = (0..200_000).collect();
    let ids = array(Int64Array::from(numbers.clone()));
    let texts =
        array(StringArray::from_iter_values(numbers.iter().map(|n| format!("text {}", n % 7))));
    let columns = [("id", ids), ("text", texts)];
    let properties = |compression| {
        let builder = WriterProperties::builder().set_compression(compression);
        builder.set_max_row_group_row_count(Some(50_000)).build()
    };
    let plain = file_with(&columns, properties(Compression::SNAPPY));
    let folder = folder(&[
        ("gz.parquet", gzip(&plain)),
        ("snappy.parquet", plain.clone()),
        ("zst.parquet.zst", zstd(&plain)),
        ("lz4.parquet", file_with(&columns, properties(Compression::LZ4_RAW))),
        ("gzip.parquet", file_with(&columns, properties(Compression::GZIP(GzipLevel::default())))),
        ("zstd.parquet", file_with(&columns, properties(Compression::ZSTD(ZstdLevel::default())))),
    ]);
    let source = folder.source();
    for from in [
        "gz.parquet",
        "snappy.parquet",
        "zst.parquet.zst",
        "lz4.parquet",
        "gzip.parquet",
        "zstd.parquet",
    ] {
        let mut asked = request(from);
        asked.batch_bytes = 100_000;
        let progress = asked.progress.clone();
        let found = read(&source, asked).await.expect(from);
        assert!(found.batches > 10, "{from}: {} batches", found.batches);
        let read = found.rows.column(0).as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(read.values(), &numbers[..], "{from}");
        assert_eq!(found.shown("text")[199_999], format!("text {}", 199_999 % 7));
        assert_eq!(progress.snapshot().rows_read, 200_000);
    }
    let found = read(&source, request("*z*.parquet*").splits(3)).await.expect("all of them");
    assert_eq!(found.rows.num_rows(), 1_000_000);
}

#[tokio::test]
async fn what_is_no_parquet_file_is_named() {
    let good = file(&[("id", array(Int32Array::from(vec![1])))]);
    let mut broken = good.clone();
    broken.truncate(good.len() - 9);
    for content in
        [broken, b"id\n1\n".to_vec(), Vec::new(), gzip("id\n1\n"), gzip(good)[..40].to_vec()]
    {
        let folder = folder(&[("401/x.parquet", content)]);
        let error = refused(&folder.source(), request("{org}/*.parquet")).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed, "{error:?}");
        assert!(error.message().contains("401/x.parquet"), "{error:?}");
    }
}
