//! JSON lines: the parser's own rules, inference over all lines, bad lines.

use polder_core::ErrorCode;
use polder_core::spec::{FileFormat, OnUnrepresentable};
use serde_json::json;

use super::support::{Folder, VaryFormat, gzip};
use crate::reading::{NULL, Read, Vary, read, refused, request};

/// Declared types by column.
type Types<'a> = &'a [(&'a str, &'a str)];

async fn read_one(content: &str) -> Read {
    let folder = Folder::with(&[("a.jsonl", content)]);
    read(&folder.source(), request("a.jsonl")).await.expect(content)
}

#[tokio::test]
async fn no_digit_of_a_number_is_lost() {
    let long = "0.1234567890123456789012345678901234567890";
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["1", "-2147483648"], "int", &["1", "-2147483648"]),
        (&["1", "9223372036854775807"], "long", &["1", "9223372036854775807"]),
        (&["1", "18446744073709551616"], "decimal(20, 0)", &["1", "18446744073709551616"]),
        (&["1", "0.1", "-0", "1e300"], "double", &["1.0", "0.1", "-0.0", "1e300"]),
        (&["9007199254740993", "1"], "long", &["9007199254740993", "1"]),
        (&["9007199254740993", "0.5"], "string(Json)", &["9007199254740993", "0.5"]),
        (&["0.12345678901234567891"], "decimal(20, 20)", &["0.12345678901234567891"]),
        (&["1e400", "1"], "string(Json)", &["1E+400", "1"]),
        (&["1e400"], "string(Decimal)", &["1E+400"]),
        (&[long, "1"], "string(Json)", &[long, "1"]),
        (&["1E+999999999999"], "string(Json)", &["1E+999999999999"]),
    ];
    for (numbers, lake_type, shown) in cases {
        let lines = numbers
            .iter()
            .map(|number| format!("{{\"v\": {number}}}\n"))
            .collect::<Vec<_>>()
            .concat();
        let found = read_one(&lines).await;
        assert_eq!(found.types(), format!("v {lake_type}"), "{lines}");
        assert_eq!(found.shown("v"), *shown, "{lines}");
    }
}

#[tokio::test]
async fn nested_values_are_structs_and_lists_and_the_rest_is_json() {
    let found = read_one(
        r#"{"id": 1, "in": {"a": [1, null], "b": {"c": "x"}}, "m": 1, "t": "2024-02-29", "e": {}}
{"id": 2, "in": {"a": [], "d": true}, "m": {"k": [1.50, "\u00e9\n", null, false]}, "t": "\ud83c\udf0a\"\/"}

{"id": 3, "m": "1", "late": [{"n": 1}, {"n": 3000000000}], "in": null}
{}"#,
    )
    .await;
    let types = "id int, in struct<a: list<int>, b: struct<c: string>, d: boolean>, m string(Json), \
                 t string, e string(Json), late list<struct<n: long>>";
    assert_eq!(found.types(), types);
    assert_eq!(found.shown("id"), ["1", "2", "3", NULL]);
    let inner = ["{a: [1, ∅], b: {c: x}, d: ∅}", "{a: [], b: ∅, d: true}", NULL, NULL];
    assert_eq!(found.shown("in"), inner);
    assert_eq!(found.shown("m"), ["1", "{\"k\":[1.5,\"é\\n\",null,false]}", "\"1\"", NULL]);
    assert_eq!(found.shown("t"), ["2024-02-29", "\u{1F30A}\"/", NULL, NULL]);
    assert_eq!(found.shown("e"), ["{}", NULL, NULL, NULL]);
    assert_eq!(found.shown("late")[2], "[{n: 1}, {n: 3000000000}]");
}

#[tokio::test]
async fn a_late_line_decides_for_all_files() {
    let line = |n: u32| format!("{{\"id\": {n}, \"text\": \"{n:0100}\"}}\r\n");
    let lines = (0..30_000).map(line).collect::<Vec<_>>().concat();
    let folder = Folder::new();
    folder.write("a.jsonl", format!("\u{feff}{lines}"));
    folder.write("b.ndjson", gzip(r#"{"id": 30000.5, "more": {"x": 1}}"#));
    let asked = request("*json*").splits(3);
    let progress = asked.progress.clone();
    let found = read(&folder.source(), asked).await.expect("read");
    assert_eq!(found.types(), "id double, text string, more struct<x: int>");
    assert_eq!((found.rows.num_rows(), found.splits), (30_001, 3));
    assert_eq!(found.shown("id")[29_999..], ["29999.0", "30000.5"]);
    assert_eq!(found.shown("more")[29_999..], [NULL, "{x: 1}"]);
    let counted = progress.snapshot();
    let size = |key| folder.path(key).metadata().expect("file").len();
    assert_eq!(
        (counted.rows_read, counted.bytes_read),
        (30_001, size("a.jsonl") + size("b.ndjson"))
    );
    // A column of the lake keeps its type where the values fit it.
    folder.write("c.jsonl", "{\"id\": 7, \"new\": true}\n");
    let again =
        read(&folder.source(), request("c.jsonl").known(&found.schema)).await.expect("read");
    assert_eq!(again.types(), "id double, text string, more struct<x: int>, new boolean");
    assert_eq!(again.shown("id"), ["7.0"]);
}

const BAD: &str = "{\"id\": 1}\n\n{\"id\": 2\n{\"id\": 2, \"id\": 3}\n[4]\n{\"id\": \"secret\"}\n{\"id\": 1e20}\n{\"id\": 5} x\n{\"id\": 6}";

#[tokio::test]
async fn a_bad_line_is_an_error_that_names_file_and_line() {
    let cases: [(&[u8], Types, &str); 7] = [
        (BAD.as_bytes(), &[], "line 3: it is not valid JSON"),
        (b"{\"a\": 1, \"a\": 2}", &[], "line 1: a member appears twice"),
        (b"[{\"a\": 1}]", &[], "line 1: it is not a JSON object"),
        (b"{\"a\": 1}\n{\"a\": \"\xff\"}", &[], "line 2: it is not UTF-8"),
        (b"{\"a\": 1}\n\r\n{\"a\": \"\x01\"}", &[], "line 3: a text contains a control character"),
        (b"{\"a\": \"1\"}\n{\"a\": \"secret\"}", &[("a", "long")], "line 2: column a is no long"),
        (
            b"{\"a\": 1.0}\n{\"a\": null}\n{\"a\": 1.005}",
            &[("a", "decimal(9, 2)")],
            "line 3: column a does not fit decimal(9, 2) exactly",
        ),
    ];
    for (content, types, told) in cases {
        let folder = Folder::new();
        folder.write("401/up/a.jsonl", content);
        let error = refused(&folder.source(), request("{org}/up/*.jsonl").types(types)).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed);
        assert_eq!(error.message(), format!("file 401/up/a.jsonl {told}"));
        assert!(error.hint_text().expect("hint").contains("on_bad_line: reject"));
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert!(folder.rejects().is_empty());
    }
}

#[tokio::test]
async fn bad_lines_are_set_aside_where_the_spec_says_so() {
    let folder = Folder::with(&[("a.jsonl", BAD)]);
    let asked = request("a.jsonl").reject().types(&[("id", "int")]);
    let progress = asked.progress.clone();
    let found = read(&folder.source(), asked).await.expect("read");
    assert_eq!(
        (found.types().as_str(), found.shown("id")),
        ("id int", vec!["1".into(), "6".into()])
    );
    assert_eq!(progress.snapshot().rejected, [("a.jsonl".to_owned(), 6)].into());
    let line = |line: u64, reason: &str, raw: &str| json!({ "file": "a.jsonl", "line": line, "reason": reason, "raw": raw });
    let expected = [
        line(3, "it is not valid JSON", "{\"id\": 2"),
        line(4, "a member appears twice", "{\"id\": 2, \"id\": 3}"),
        line(5, "it is not a JSON object", "[4]"),
        line(6, "column id is no int", "{\"id\": \"secret\"}"),
        line(7, "column id does not fit int exactly", "{\"id\": 1e20}"),
        line(8, "something follows the JSON object", "{\"id\": 5} x"),
    ];
    assert_eq!(folder.rejects(), expected);
}

#[tokio::test]
async fn declared_types_follow_the_policy() {
    let folder = Folder::with(&[(
        "a.data",
        "{\"n\": 1e20, \"t\": \"2024-02-29T00:00:00Z\", \"s\": [1, \"x\"]}\n",
    )]);
    let source = folder.source();
    let types = [("n", "long"), ("t", "timestamptz"), ("s", "string"), ("none", "date")];
    for (policy, number) in
        [(OnUnrepresentable::Null, NULL), (OnUnrepresentable::Clamp, "9223372036854775807")]
    {
        let asked = request("a.data").format(FileFormat::JsonLines).types(&types).policy(policy);
        let progress = asked.progress.clone();
        let found = read(&source, asked).await.expect("read");
        assert_eq!(found.types(), "n long, t timestamptz, s string, none date");
        assert_eq!(found.shown("n"), [number]);
        assert_eq!(found.shown("t"), ["2024-02-29T00:00:00Z"]);
        assert_eq!(found.shown("s"), ["[1,\"x\"]"]);
        assert_eq!(progress.snapshot().altered, [("n".to_owned(), 1)].into());
    }
    let binary = request("a.data").format(FileFormat::JsonLines).types(&[("s", "binary")]);
    assert_eq!(refused(&source, binary).await.code(), ErrorCode::SpecInvalid);
}

#[tokio::test]
async fn lines_with_too_many_members_are_read_by_their_columns() {
    let members: Vec<_> = (0..1_500).map(|n| format!("\"k{n}\": {n}")).collect();
    let folder = Folder::with(&[("a.jsonl", &format!("{{{}}}", members.join(",")))]);
    let source = folder.source();
    let error = refused(&source, request("a.jsonl")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.message().contains("a.jsonl line 1"), "{error:?}");
    assert!(error.hint_text().expect("hint").contains("columns:"));
    let some = read(&source, request("a.jsonl").columns(&["k1499", "none"])).await.expect("some");
    assert_eq!((some.shown("k1499"), some.shown("none")), (vec!["1499".into()], vec![NULL.into()]));
    assert!(some.warnings.iter().any(|text| text.contains("none")), "{:?}", some.warnings);
}
