//! CSV as people and programs write it.

use polder_core::ErrorCode;
use polder_core::spec::{CsvOptions, FileFormat, OnUnrepresentable};
use serde_json::json;

use super::support::{Folder, VaryFormat, gzip, zstd};
use crate::reading::{NULL, Read, Vary, read, refused, request};

async fn read_one(content: &str) -> Read {
    let folder = Folder::with(&[("a.csv", content)]);
    read(&folder.source(), request("a.csv")).await.expect(content)
}

/// The only column's type and values of a file with one column.
async fn column(values: &str) -> (String, Vec<String>) {
    let found = read_one(&format!("v\n{values}\n")).await;
    (found.types(), found.shown("v"))
}

#[tokio::test]
async fn quotes_line_ends_and_marks_are_read_as_they_are_meant() {
    for content in [
        "id,text\n1,\"a \"\"b\"\", c\nd\"\n2,\"\"\n3,\n4,a\"b\n",
        "id,text\r\n1,\"a \"\"b\"\", c\nd\"\r\n2,\"\"\r\n3,\r\n4,a\"b",
        "\u{feff}id,text\n\n1,\"a \"\"b\"\", c\nd\"\n\n2,\"\"\n3,\n\"4\",a\"b\n\n\n",
    ] {
        let found = read_one(content).await;
        assert_eq!(found.types(), "id int, text string", "{content:?}");
        assert_eq!(found.shown("id"), ["1", "2", "3", "4"], "{content:?}");
        // A quoted empty text is a text; an empty field is null.
        assert_eq!(found.shown("text"), ["a \"b\", c\nd", "", NULL, "a\"b"], "{content:?}");
    }
    let crlf = read_one("v\r\n\"a\r\nb\"\r\n").await;
    assert_eq!(crlf.shown("v"), ["a\r\nb"], "a line end within quotes is kept");
    let odd = read_one("naïve é,\"a,b\",\"c\nd\",\n1,2,3,4\n").await;
    assert_eq!(odd.types(), "naïve é int, a,b int, c\nd int, column_4 int");
}

#[tokio::test]
async fn syntax_is_the_spec_s() {
    let folder = Folder::with(&[
        ("a.csv", "1;'x;''y';NA\n2;\"z\";\n"),
        ("b.TSV", "a\tb\n1\t\\N\n2\t\n"),
        ("c.export", "a|b\n1|2\n"),
    ]);
    let source = folder.source();
    let options =
        CsvOptions { delimiter: Some(';'), quote: '\'', header: false, null: "NA".to_owned() };
    let found = read(&source, request("a.csv").csv(options)).await.expect("read");
    assert_eq!(found.types(), "column_1 int, column_2 string, column_3 string");
    assert_eq!(found.shown("column_2"), ["x;'y", "\"z\""]);
    assert_eq!(found.shown("column_3"), [NULL, ""], "only the null text is null");
    let options = CsvOptions { null: "\\N".to_owned(), ..CsvOptions::default() };
    let found = read(&source, request("b.TSV").csv(options)).await.expect("read");
    assert_eq!(
        (found.types().as_str(), found.shown("b")),
        ("a int, b string", vec![NULL.to_owned(), String::new()])
    );
    let options = CsvOptions { delimiter: Some('|'), ..CsvOptions::default() };
    let asked = request("c.export").csv(options);
    assert_eq!(refused(&source, asked.clone()).await.code(), ErrorCode::SpecInvalid);
    let found = read(&source, asked.format(FileFormat::Csv)).await.expect("a format that is told");
    assert_eq!(found.types(), "a int, b int");
    let options = CsvOptions { delimiter: Some('"'), ..CsvOptions::default() };
    assert_eq!(
        refused(&source, request("a.csv").csv(options)).await.code(),
        ErrorCode::SpecInvalid
    );
}

#[tokio::test]
async fn types_are_those_of_every_value() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("1\n-2147483648\n2147483647", "int", &["1", "-2147483648", "2147483647"]),
        ("1\n2147483648", "long", &["1", "2147483648"]),
        ("1\n-9223372036854775808", "long", &["1", "-9223372036854775808"]),
        ("1\n18446744073709551616", "decimal(20, 0)", &["1", "18446744073709551616"]),
        ("1.50\n-100\n0.001", "decimal(6, 3)", &["1.500", "-100.000", "0.001"]),
        (
            "99999999999999999999999999999999999999",
            "decimal(38, 0)",
            &["99999999999999999999999999999999999999"],
        ),
        ("1e5\n2.5\n-1E-7", "double", &["100000.0", "2.5", "-1e-7"]),
        ("0.1e0\n0.12345678901234567890", "string", &["0.1e0", "0.12345678901234567890"]),
        ("true\nFALSE", "boolean", &["true", "false"]),
        ("2024-02-29\n0001-01-01\n9999-12-31", "date", &["2024-02-29", "0001-01-01", "9999-12-31"]),
        (
            "2024-02-29 12:00\n2024-02-29T12:00:00.000001",
            "timestamp",
            &["2024-02-29T12:00:00", "2024-02-29T12:00:00.000001"],
        ),
        (
            "2024-02-29T12:00:00+05:30\n2024-02-29 12:00:00.5Z",
            "timestamptz",
            &["2024-02-29T06:30:00Z", "2024-02-29T12:00:00.500Z"],
        ),
        // Types that would forget something: zeros, signs, offsets out of the years there are.
        ("00123\n5", "string", &["00123", "5"]),
        ("+49 30 1\n5", "string", &["+49 30 1", "5"]),
        ("-0\n1", "string", &["-0", "1"]),
        ("1,5", "string", &["1,5"]),
        (" 1\n2", "string", &[" 1", "2"]),
        ("0001-01-01T00:00:00+01:00", "string", &["0001-01-01T00:00:00+01:00"]),
        ("2024-02-30", "string", &["2024-02-30"]),
        ("NaN\n1", "string", &["NaN", "1"]),
        ("2024-02-29\n2024-02-29T12:00:00", "string", &["2024-02-29", "2024-02-29T12:00:00"]),
    ];
    for (values, lake_type, shown) in cases {
        let quoted: Vec<_> = values.lines().map(|value| format!("\"{value}\"")).collect();
        let (types, found) = column(&quoted.join("\n")).await;
        assert_eq!(
            (types, found),
            (format!("v {lake_type}"), shown.iter().map(|&s| s.to_owned()).collect()),
            "{values}"
        );
    }
    assert_eq!(column("").await, ("v string".to_owned(), vec![NULL.to_owned()]));
}

#[tokio::test]
async fn a_late_line_decides_for_the_whole_file() {
    let rows = (0..200_000).map(|n| format!("{n},{n}\n")).collect::<Vec<_>>().concat();
    let folder = Folder::with(&[("a.csv", &format!("id,v\n{rows}200000,x-1\n"))]);
    let asked = request("a.csv").splits(4);
    let progress = asked.progress.clone();
    let found = read(&folder.source(), asked).await.expect("read");
    assert_eq!(found.types(), "id int, v string");
    assert_eq!((found.rows.num_rows(), found.rows_estimated), (200_001, Some(200_001)));
    assert!(found.batches >= 3, "{}", found.batches);
    assert_eq!(found.shown("v")[199_999..], ["199999", "x-1"]);
    let counted = progress.snapshot();
    assert_eq!(counted.rows_read, 200_001);
    assert_eq!(counted.bytes_read, folder.path("a.csv").metadata().expect("file").len());
    // And a late file for all files.
    folder.write("b.csv", "v,more\n2.5,true\n");
    let found = read(&folder.source(), request("*.csv").splits(2)).await.expect("read");
    assert_eq!((found.types().as_str(), found.splits), ("id int, v string, more boolean", 2));
    assert_eq!(found.rows.num_rows(), 200_002);
}

#[tokio::test]
async fn files_may_order_their_columns_differently_or_lack_some() {
    let folder = Folder::with(&[
        ("a.csv", "id,name\n1,a\n"),
        ("b.csv", "name,id,late\nb,2,2024-01-01\n"),
        ("c.csv", "id\n3\n\n"),
        ("d.csv", "id,name,late\n"),
        ("e.csv", ""),
        ("f.csv", "\n\r\n\n"),
    ]);
    let source = folder.source();
    let found = read(&source, request("*.csv")).await.expect("read");
    assert_eq!(found.types(), "id int, name string, late date");
    assert_eq!(found.shown("id"), ["1", "2", "3", NULL], "in a file of one column");
    assert_eq!(found.shown("name"), ["a", "b", NULL, NULL]);
    assert_eq!(found.shown("late"), [NULL, "2024-01-01", NULL, NULL]);
    assert_eq!(found.objects.len(), 6, "files without rows were read too");
    let some = read(&source, request("*.csv").columns(&["late", "id"])).await.expect("some");
    assert_eq!(some.types(), "late date, id int");
    assert_eq!(some.shown("late"), [NULL, "2024-01-01", NULL, NULL]);
    let error = refused(&source, request("*.csv").columns(&["nam"])).await;
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
    assert!(error.hint_text().expect("hint").contains("name"));
    let error = refused(&source, request("*.csv").columns(&["id", "id"])).await;
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
    for empty in ["e.csv", "f.csv"] {
        for header in [true, false] {
            let asked = request(empty).csv(CsvOptions { header, ..CsvOptions::default() });
            let found = read(&source, asked).await.expect("nothing");
            assert_eq!(
                (found.types().as_str(), found.rows.num_rows()),
                ("", 0),
                "{empty} {header}"
            );
        }
    }
}

#[tokio::test]
async fn a_known_type_stays_where_the_values_fit() {
    let first = Folder::with(&[("a.csv", "l,d,s,t\n3000000000,1.25,x,2024-01-01\n")]);
    let known = read(&first.source(), request("a.csv")).await.expect("read").schema;
    let folder = Folder::with(&[("b.csv", "l,d,s,n\n1,2,7,9\n"), ("c.csv", "l,d\nx,100.125\n")]);
    let source = folder.source();
    let found = read(&source, request("b.csv").known(&known)).await.expect("read");
    assert_eq!(found.types(), "l long, d decimal(3, 2), s string, t date, n int");
    assert_eq!(found.shown("d"), ["2.00"]);
    let found = read(&source, request("c.csv").known(&known)).await.expect("read");
    assert_eq!(found.types(), "l string, d decimal(6, 3), s string, t date");
}

#[tokio::test]
async fn declared_types_are_exact_or_follow_the_policy() {
    let folder = Folder::with(&[(
        "a.csv",
        "zip,amount,at,id\n00123,1.006,24:00,1\n10115,,23:59:59.999999,99999999999\n",
    )]);
    let source = folder.source();
    let (zip, id) = (("zip", "string"), ("id", "decimal(38, 0)"));
    let asked = request("a.csv").types(&[zip, id]);
    let found = read(&source, asked).await.expect("read");
    assert_eq!(found.types(), "zip string, amount decimal(4, 3), at string, id decimal(38, 0)");
    assert_eq!(found.shown("zip"), ["00123", "10115"]);
    let declared = [zip, ("amount", "decimal(18, 2)"), ("id", "int")];
    for (policy, amount, id, altered) in [
        (OnUnrepresentable::Null, NULL, NULL, 1),
        (OnUnrepresentable::Clamp, "1.01", "2147483647", 1),
    ] {
        let asked = request("a.csv").types(&declared).policy(policy).key(&["zip"]);
        let progress = asked.progress.clone();
        let found = read(&source, asked).await.expect("read");
        assert_eq!(found.shown("amount"), [amount, NULL], "{policy:?}");
        assert_eq!(found.shown("id"), ["1", id], "{policy:?}");
        let counted = [("amount".to_owned(), altered), ("id".to_owned(), altered)].into();
        assert_eq!(progress.snapshot().altered, counted, "{policy:?}");
        let key = |column: &str, zip: &str| (column.to_owned(), vec![format!("zip={zip}")]);
        let keys = [key("amount", "00123"), key("id", "10115")].into();
        assert_eq!(progress.snapshot().altered_keys, keys, "{policy:?}");
    }
    for (declared, line) in [
        (("amount", "decimal(18, 2)"), "line 2: column amount does not fit decimal(18, 2) exactly"),
        (("id", "int"), "line 3: column id does not fit int exactly"),
        (("at", "time"), "line 2: column at is no time"),
        (("zip", "uuid"), "line 2: column zip is no uuid"),
    ] {
        let error = refused(&source, request("a.csv").types(&[declared])).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed);
        assert_eq!(error.message(), format!("file a.csv {line}"));
        assert!(!format!("{error:?}").contains("99999999999"), "no values: {error:?}");
    }
    let error = refused(&source, request("a.csv").types(&[("zip", "binary")])).await;
    assert_eq!(error.code(), ErrorCode::SpecInvalid);
    let unused = read(&source, request("a.csv").types(&[("none", "int")])).await.expect("read");
    assert!(unused.warnings.iter().any(|text| text.contains("none")), "{:?}", unused.warnings);
}

/// Good rows are 1, 2 and 3; lines 3, 5 (which ends on 6), 7 and 9 are bad.
const BAD: &[u8] = b"id,v\n1,a\n2\n2,b\n\"x\ny\"z,secret\n3,\xff\n3,c\n4,\"d\n5,e\n";

#[tokio::test]
async fn a_bad_line_is_an_error_that_names_file_and_line() {
    let cases: [(&[u8], &str); 6] = [
        (BAD, "line 3: it has 1 fields instead of 2"),
        (b"id,v\n1,a\n\"x\ny\"z,secret\n", "line 3: text follows a closing quote"),
        (b"id,v\n1,a\n\n1,\xff\n", "line 4: it is not UTF-8"),
        (b"id,v\n1,\"a\nb\nc\n", "line 2: a quoted field is not closed"),
        (b"id,id\n1,2\n", "line 1: the header names column id twice"),
        (b"\n\nid,\"v\n1,2\n", "line 3: a quoted field is not closed"),
    ];
    for (content, told) in cases {
        let folder = Folder::new();
        folder.write("401/up/a.csv", content);
        folder.write("401/up/0.csv", "id,v\n");
        let error = refused(&folder.source(), request("{org}/up/*.csv")).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed);
        assert_eq!(error.message(), format!("file 401/up/a.csv {told}"));
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert!(folder.rejects().is_empty());
    }
}

#[tokio::test]
async fn bad_lines_are_set_aside_where_the_spec_says_so() {
    let folder = Folder::new();
    folder.write("a.csv", BAD);
    folder.write("b.csv", gzip("v,id\nx,4\nx,y,z\n"));
    folder.write("c.csv", "id,v\n5,x\n");
    let asked = request("*.csv").reject().types(&[("id", "int")]).splits(2);
    let progress = asked.progress.clone();
    let found = read(&folder.source(), asked).await.expect("read");
    assert_eq!(found.sorted_texts("id"), ["1", "2", "3", "4", "5"]);
    assert_eq!(found.sorted_texts("v"), ["a", "b", "c", "x", "x"]);
    let counted = progress.snapshot();
    assert_eq!(counted.rejected, [("a.csv".to_owned(), 4), ("b.csv".to_owned(), 1)].into());
    assert_eq!(counted.rows_read, 5);
    let line = |file: &str, line: u64, reason: &str, raw: &str| json!({ "file": file, "line": line, "reason": reason, "raw": raw });
    let not_utf8 =
        json!({ "file": "a.csv", "line": 7, "reason": "it is not UTF-8", "raw_hex": "332cff" });
    let expected = [
        line("a.csv", 3, "it has 1 fields instead of 2", "2"),
        line("a.csv", 5, "text follows a closing quote", "\"x\ny\"z,secret"),
        not_utf8,
        line("a.csv", 9, "a quoted field is not closed", "4,\"d\n5,e"),
        line("b.csv", 3, "it has 3 fields instead of 2", "x,y,z"),
    ];
    assert_eq!(folder.rejects(), expected);
}

#[tokio::test]
async fn compression_is_told_by_the_first_bytes() {
    let content = "id,v\n1,a\n2,\"b\nc\"\n";
    let (first, second) = content.split_at(9);
    let mut skippable = vec![0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3];
    skippable.extend(zstd(content));
    for (name, bytes) in [
        ("a.csv.gz", gzip(content)),
        ("a.csv.zst", zstd(content)),
        ("a.csv", gzip(content)),
        ("a.csv.gz", content.into()),
        ("a.csv.gz", [gzip(first), gzip(second)].concat()),
        ("a.csv.zst", [zstd(first), zstd(second)].concat()),
        ("a.csv.zst", skippable),
    ] {
        let folder = Folder::new();
        folder.write(name, &bytes);
        let found = read(&folder.source(), request("a.csv*")).await.expect(name);
        assert_eq!(
            (found.shown("id"), found.shown("v")),
            (vec!["1".into(), "2".into()], vec!["a".into(), "b\nc".into()])
        );
    }
    for bytes in [gzip(content), zstd(content)] {
        let folder = Folder::new();
        folder.write("a.csv", &bytes[..bytes.len() - 3]);
        let error = refused(&folder.source(), request("a.csv")).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed, "{error:?}");
        assert!(error.message().contains("a.csv is broken or cut short"), "{error:?}");
    }
}
