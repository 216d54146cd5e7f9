//! Documents and collections of every shape; what `discover` shows.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use polder_core::{Capabilities, ErrorCode, LakeType, Source};

use super::support::Database;
use crate::reading::{NULL, Vary, read, refused, request};

#[tokio::test]
async fn values_without_a_common_type_become_json_that_keeps_them_all() {
    let database = Database::new().await;
    let values = [
        Bson::from(1_i32),
        Bson::from("1"),
        Bson::from(doc! { "a": [1_i64, "x", Bson::Null] }),
        Bson::from(vec![1.5, -0.0]),
        Bson::Null,
        Bson::from(ObjectId::from_bytes([1; 12])),
        Bson::from(i64::MIN),
        Bson::Decimal128("1.10".parse().expect("decimal")),
        Bson::from(DateTime::from_millis(1_500)),
        Bson::from(DateTime::from_millis(-62_135_596_800_000)),
        Bson::from(f64::NAN),
        Bson::from(true),
    ];
    let document =
        |value: Bson| doc! { "v": &value, "in": { "v": &value, "n": 1_i32 }, "l": [value] };
    database.insert("t", values.into_iter().map(document).collect()).await;
    let found = read(&database.source(), request("t")).await.expect("read");
    let types =
        "_id string(ObjectId), v string(Json), in struct<v: string, n: int>, l list<string>";
    assert_eq!(found.types(), types);
    let texts = [
        "1",
        "\"1\"",
        r#"{"a":[1,"x",null]}"#,
        "[1.5,-0.0]",
        NULL,
        r#"{"$oid":"010101010101010101010101"}"#,
        "-9223372036854775808",
        r#"{"$numberDecimal":"1.10"}"#,
        r#"{"$date":"1970-01-01T00:00:01.500Z"}"#,
        r#"{"$date":{"$numberLong":"-62135596800000"}}"#,
        r#"{"$numberDouble":"NaN"}"#,
        "true",
    ];
    assert_eq!(found.shown("v"), texts);
    assert_eq!(found.shown("in"), texts.map(|text| format!("{{v: {text}, n: 1}}")));
    assert_eq!(found.shown("l"), texts.map(|text| format!("[{text}]")));
}

#[tokio::test]
async fn members_that_only_the_last_document_has_are_columns() {
    let database = Database::new().await;
    let filler = "x".repeat(1_000);
    let mut documents: Vec<Document> =
        (0..4_000).map(|n| doc! { "_id": n, "at": n, "in": { "a": n }, "f": &filler }).collect();
    documents[3_999].insert("late", vec![doc! { "deep": true }]);
    documents[3_999].insert("at", 2.5);
    documents[3_999].insert("in", doc! { "a": 1_i32, "b": "x" });
    database.insert("t", documents).await;
    let mut asked = request("t").splits(3);
    asked.batch_bytes = 200_000;
    let progress = asked.progress.clone();
    let found = read(&database.source(), asked).await.expect("read");
    let types = "_id int, at double, in struct<a: int, b: string>, f string, \
                 late list<struct<deep: boolean>>";
    assert_eq!(found.types(), types);
    assert_eq!((found.splits, found.rows_estimated), (3, Some(4_000)));
    assert!(found.batches > 10, "{} batches keep to their size", found.batches);
    let ids: Vec<_> = (0..4_000).map(|n: i32| n.to_string()).collect();
    assert_eq!(found.shown("_id"), ids, "every document once, in order");
    assert_eq!(found.shown("at")[..2], ["0.0", "1.0"]);
    assert_eq!(found.shown("at")[3_999], "2.5");
    assert_eq!(found.shown("in")[3_998..], ["{a: 3998, b: ∅}", "{a: 1, b: x}"]);
    let late = found.shown("late");
    assert!(late[..3_999].iter().all(|value| value == NULL));
    assert_eq!(late[3_999], "[{deep: true}]");
    let counted = progress.snapshot();
    assert_eq!(counted.rows_read, 4_000);
    assert!(counted.bytes_read > 4_000_000, "{}", counted.bytes_read);
}

/// With `_id` it has 10,000 paths, which are as many as a table may have.
fn wide(row: i32) -> Document {
    let mut document = doc! { "_id": row };
    for number in 0..909 {
        let member = |member: i32| (format!("m{member}"), Bson::Int32(row + number * 10 + member));
        document.insert(format!("s{number}"), (0..10).map(member).collect::<Document>());
    }
    document
}

/// The values of a member of [`wide`], each after its name.
fn members(row: i32, number: i32, quote: &str, space: &str) -> String {
    let member = |n: i32| format!("{quote}m{n}{quote}:{space}{}", row + number * 10 + n);
    (0..10).map(member).collect::<Vec<_>>().join(&format!(",{space}"))
}

#[tokio::test]
async fn ten_thousand_paths_are_columns_and_what_is_beyond_is_text() {
    let database = Database::new().await;
    database.insert("t", (0..20).map(wide).collect()).await;
    let source = database.source();
    let mut asked = request("t").splits(3);
    asked.batch_bytes = 1 << 20;
    let found = read(&source, asked).await.expect("read");
    assert_eq!((found.schema.fields.len(), found.rows.num_rows()), (910, 20));
    for number in 0..909 {
        let expected: Vec<_> =
            (0..20).map(|row| format!("{{{}}}", members(row, number, "", " "))).collect();
        assert_eq!(found.shown(&format!("s{number}")), expected, "s{number}");
    }

    let mut beyond = wide(20);
    beyond.get_document_mut("s908").expect("members").insert("more", 1_i32);
    database.insert("t", vec![beyond]).await;
    let found = read(&source, request("t")).await.expect("read");
    let last = found.shown("s908");
    assert_eq!(last[0], format!("{{{}}}", members(0, 908, "\"", "")));
    assert_eq!(last[20], format!("{{{},\"more\":1}}", members(20, 908, "\"", "")));
    let other = found.schema.field("s907").expect("column");
    assert!(matches!(other.data_type, LakeType::Struct(_)), "{}", other.data_type);

    let map: Document = (0..1_001).map(|n| (format!("k{n}"), Bson::Int32(n))).collect();
    database.insert("map", vec![map]).await;
    let error = refused(&source, request("map")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{error:?}");
    assert!(error.hint_text().expect("hint").contains("`columns:`"), "{error:?}");
}

#[tokio::test]
async fn empty_collections_and_documents_are_read() {
    let database = Database::new().await;
    database.insert("none", Vec::new()).await;
    let source = database.source();
    let none = read(&source, request("none").splits(4)).await.expect("no documents");
    assert_eq!((none.types().as_str(), none.rows.num_rows(), none.splits), ("", 0, 0));
    assert_eq!(none.rows_estimated, Some(0));
    database.insert("bare", vec![doc! { "_id": 1_i32 }, doc! { "_id": 2_i32, "a": 1_i64 }]).await;
    let bare = read(&source, request("bare")).await.expect("documents");
    assert_eq!(bare.shown("a"), [NULL, "1"]);
    // What the lake table has stays, whatever this read sees of it.
    let again = read(&source, request("none").known(&bare.schema)).await.expect("no documents");
    assert_eq!(again.schema, bare.schema);
    let asked = request("bare").columns(&["missing"]);
    let missing = read(&source, asked).await.expect("a column that no document has");
    assert_eq!(missing.shown("missing"), [NULL, NULL]);
    assert!(missing.warnings.iter().any(|text| text.contains("missing")), "{:?}", missing.warnings);
}

#[tokio::test]
async fn a_known_type_stays_where_the_values_fit() {
    let database = Database::new().await;
    let first = doc! { "l": 1_i64, "d": 0.5, "s": { "a": "x" }, "o": [1_i64], "m": [1_i32, "x"] };
    database.insert("first", vec![first]).await;
    let source = database.source();
    let known = read(&source, request("first")).await.expect("read").schema;
    let narrow =
        doc! { "l": 1_i32, "d": 2_i32, "o": [], "s": { "b": 1_i32 }, "m": [1_i32], "n": 1_i32 };
    database.insert("narrow", vec![narrow]).await;
    let found = read(&source, request("narrow").known(&known)).await.expect("read");
    let types = "_id string(ObjectId), l long, d double, s struct<a: string, b: int>, o list<long>, \
                 m list<string>, n int";
    assert_eq!(found.types(), types);
    assert_eq!(found.shown("s"), ["{a: ∅, b: 1}"]);
    assert_eq!(found.shown("m"), ["[1]"]);
    database.insert("other", vec![doc! { "l": "x", "d": 1_i64 << 60, "o": 1_i32 }]).await;
    let found = read(&source, request("other").known(&known)).await.expect("read");
    let field = |name: &str| found.schema.field(name).expect("field").data_type.to_string();
    assert_eq!([field("l"), field("d"), field("o")], ["string", "long", "int"]);
    assert_eq!(found.shown("d"), ["1152921504606846976"], "no double holds all of these");
}

#[tokio::test]
async fn names_of_every_kind_are_columns() {
    let database = Database::new().await;
    let odd = doc! { "_id": 1_i32, "é ü": 1_i32, "A": 2_i32, "a": 3_i32, "select": 4_i32, "x.y": 5_i32,
    "x": { "y": 6_i32 }, "\"": { "z.w": 7_i32 } };
    database.insert("größe.1", vec![odd]).await;
    let source = database.source();
    let found = read(&source, request("größe.1")).await.expect("read");
    let types = "_id int, é ü int, A int, a int, select int, x.y int, x string(Json), \
                 \" struct<z.w: int>";
    assert_eq!(found.types(), types);
    assert_eq!(found.shown("x"), [r#"{"y":6}"#], "x.y is another column");
    assert!(found.warnings.iter().any(|text| text.starts_with("x is")), "{:?}", found.warnings);
    assert_eq!((found.shown("A"), found.shown("a")), (vec!["2".to_owned()], vec!["3".to_owned()]));
    let some = read(&source, request("größe.1").columns(&["x.y", "a"])).await.expect("some");
    assert_eq!(some.types(), "x.y int, a int");
    assert_eq!((some.shown("x.y"), some.shown("a")), (vec!["5".to_owned()], vec!["3".to_owned()]));
    let none = read(&source, request("größe.1").columns(&["é ü"])).await.expect("without _id");
    assert_eq!((none.types().as_str(), none.shown("é ü")), ("é ü int", vec!["1".to_owned()]));
}

#[tokio::test]
async fn documents_of_any_size_and_depth_are_read() {
    let database = Database::new().await;
    let large = "x".repeat(15 << 20);
    let deep = (0..90).fold(Bson::from(1_i32), |inner, _| doc! { "d": inner }.into());
    let map: Document = (0..1_500).map(|n| (format!("k{n}"), Bson::from(n))).collect();
    database.insert("t", vec![doc! { "_id": 1_i32, "s": &large }, doc! { "_id": 2_i32 }]).await;
    database.insert("t", vec![doc! { "_id": 3_i32, "deep": deep, "map": map }]).await;
    let mut asked = request("t");
    asked.batch_bytes = 1;
    let found = read(&database.source(), asked).await.expect("read");
    assert_eq!(
        (found.batches, found.shown("_id")),
        (3, ["1", "2", "3"].map(str::to_owned).to_vec())
    );
    assert_eq!(found.shown("s")[0].len(), large.len());
    let deep = &found.shown("deep")[2];
    assert_eq!(deep.matches('d').count(), 90, "structs, then text: nothing is cut off: {deep}");
    let map: serde_json::Value = serde_json::from_str(&found.shown("map")[2]).expect("json");
    assert_eq!((map.as_object().expect("a map").len(), &map["k1499"]), (1_500, &1_499.into()));

    let wide: Document = (0..1_500).map(|n| (format!("k{n}"), Bson::from(n))).collect();
    database.insert("wide", vec![wide]).await;
    let source = database.source();
    let error = source.plan(request("wide")).await.err().expect("too many columns");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.hint_text().expect("hint").contains("columns:"));
    let some = read(&source, request("wide").columns(&["k1499"])).await.expect("as the hint says");
    assert_eq!(some.shown("k1499"), ["1499"]);
}

#[tokio::test]
async fn discover_shows_what_can_be_read() {
    let database = Database::new().await;
    database.insert("emails", vec![doc! { "a": 1_i32 }, doc! { "a": 2_i32 }]).await;
    database.insert("calls", Vec::new()).await;
    database.run(doc! { "create": "seen", "viewOn": "emails", "pipeline": [{ "$match": { "a": 2_i32 } }] }).await;
    let source = database.source();
    assert_eq!(
        source.capabilities(),
        Capabilities { cursor: true, objects: false, complete_schema: false }
    );
    let told = source.check().await.expect("check");
    assert!(told.starts_with("MongoDB ") && told.contains(&database.name), "{told}");
    let tables = source.discover().await.expect("discover");
    let shown: Vec<_> =
        tables.iter().map(|table| (&*table.name, table.kind, table.rows_estimated)).collect();
    let expected = [
        ("calls", "collection", Some(0)),
        ("emails", "collection", Some(2)),
        ("seen", "view", None),
    ];
    assert_eq!(shown, expected);
    assert!(tables.iter().all(|table| table.key == ["_id"]));
    for (table, rows) in tables.iter().zip([0, 2, 1]) {
        let found = read(&source, request(&table.name)).await.expect("the name works as `from`");
        assert_eq!(found.rows.num_rows(), rows, "{}", table.name);
    }
}
