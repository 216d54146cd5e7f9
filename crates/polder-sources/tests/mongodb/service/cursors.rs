//! Incremental reads: the bound, nulls, what is no cursor, how far the next checkpoint may go.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use polder_core::{CursorValue, Doubt, ErrorCode, Source};

use super::support::Database;
use crate::reading::{NULL, Vary, read, refused, request};

/// Declared types by column.
type Types<'a> = &'a [(&'a str, &'a str)];

fn date(millis: i64) -> Bson {
    DateTime::from_millis(millis).into()
}

fn id(last: u8) -> ObjectId {
    ObjectId::from_bytes([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, last])
}

#[tokio::test]
async fn the_lower_bound_is_inclusive_for_every_type() {
    let database = Database::new().await;
    let text = |text: &str| CursorValue::Text(text.to_owned());
    // Below the bound, at it and above it; the bound; a type to declare.
    let cases: [([Bson; 3], CursorValue, Types); 9] = [
        ([date(-2), date(-1), date(i64::from(i32::MAX))], CursorValue::Timestamptz(-1_000), &[]),
        // The bound has more digits than the stored values: what it may lie in is read again.
        ([date(4), date(5), date(6)], CursorValue::Timestamptz(5_999), &[]),
        ([date(4), date(5), date(6)], CursorValue::Timestamp(5_000), &[("c", "timestamp")]),
        ([date(0), date(86_400_000), date(172_800_000)], CursorValue::Date(1), &[("c", "date")]),
        ([1_i32.into(), 7_i64.into(), i64::MAX.into()], CursorValue::Int(7), &[]),
        ([i64::MIN.into(), (-7.0).into(), 8_i32.into()], CursorValue::Int(-7), &[("c", "long")]),
        (["B".into(), "a".into(), "é".into()], text("a"), &[]),
        ([id(1).into(), id(2).into(), id(3).into()], text(&id(2).to_hex()), &[]),
        // A string that looks like an ObjectId stays a string.
        (
            [id(1).to_hex().into(), id(2).to_hex().into(), id(3).to_hex().into()],
            text(&id(2).to_hex()),
            &[],
        ),
    ];
    let source = database.source();
    for (index, (values, lower, types)) in cases.into_iter().enumerate() {
        let place = format!("{values:?} from {lower}");
        let name = format!("case_{index}");
        let row = |(id, value): (usize, Bson)| doc! { "_id": id as i32, "c": value };
        let mut documents: Vec<_> = values.into_iter().enumerate().map(row).collect();
        documents.push(doc! { "_id": 3_i32, "c": Bson::Null });
        documents.push(doc! { "_id": 4_i32 });
        database.insert(&name, documents).await;
        let asked = request(&name).types(types);
        let all = read(&source, asked.clone().cursor("c", None)).await.expect(&place);
        assert_eq!(all.shown("_id"), ["0", "1", "2", "3", "4"], "without a bound nulls are read");
        let again = asked.known(&all.schema).cursor("c", Some(lower));
        let found = read(&source, again).await.expect(&place);
        assert_eq!(found.shown("_id"), ["1", "2"], "{place}");
        assert_eq!(found.schema, all.schema, "{place}");
    }
}

#[tokio::test]
async fn the_id_is_a_cursor_and_filters_hold_beside_it() {
    let database = Database::new().await;
    let email = |last: u8, org: &str| doc! { "_id": id(last), "org": org };
    let emails = vec![email(1, "401"), email(2, "402"), email(3, "401"), email(4, "401")];
    database.insert("t", emails).await;
    let asked = request("t").matching(serde_json::json!({ "org": "{org}" }));
    let lower = CursorValue::Text(id(3).to_hex());
    let found = read(&database.source(), asked.cursor("_id", Some(lower))).await.expect("read");
    assert_eq!(found.shown("_id"), [id(3).to_hex(), id(4).to_hex()]);
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let database = Database::new().await;
    let rows = |values: Vec<Bson>| values.into_iter().map(|value| doc! { "c": value }).collect();
    let cases: Vec<(&str, Vec<Bson>, Types)> = vec![
        ("doubles", vec![1.5.into()], &[]),
        ("booleans", vec![true.into()], &[]),
        ("documents", vec![doc! { "c": 1_i32 }.into()], &[]),
        ("lists", vec![vec![1_i32].into()], &[]),
        ("mixed", vec![date(1), "2024".into()], &[]),
        ("ids_and_texts", vec![id(1).into(), "x".into()], &[("c", "string")]),
        ("texts_as_times", vec!["2024-02-29T12:00:00Z".into()], &[("c", "timestamptz")]),
        ("texts_as_numbers", vec!["7".into()], &[("c", "long")]),
        ("numbers_as_texts", vec![7_i32.into()], &[("c", "string")]),
    ];
    let source = database.source();
    for (name, values, types) in cases {
        database.insert(name, rows(values)).await;
        let error = refused(&source, request(name).types(types).cursor("c", None)).await;
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{name}: {error:?}");
        assert!(error.message().contains("\"c\" cannot be a cursor"), "{name}: {error:?}");
        read(&source, request(name).types(types)).await.expect("without a cursor it is read");
    }
    for (column, columns) in [("a.b", None), ("$c", None), ("c", Some(&["_id"][..]))] {
        let asked = request("mixed").cursor(column, None);
        let asked = columns.map_or(asked.clone(), |columns| asked.columns(columns));
        let error = source.plan(asked).await.err().expect(column);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{column}: {error:?}");
    }
}

#[tokio::test]
async fn a_later_document_of_another_cursor_type_is_not_passed_over() {
    let database = Database::new().await;
    let strays: [(&str, Bson, CursorValue, Bson); 5] = [
        ("text", date(5), CursorValue::Timestamptz(5_000), "2030-01-01".into()),
        ("number", date(5), CursorValue::Timestamptz(5_000), 9_i64.into()),
        ("list", 5_i32.into(), CursorValue::Int(5), vec![1_i32].into()),
        ("date", "b".into(), CursorValue::Text("b".into()), date(9)),
        ("id", "b".into(), CursorValue::Text("b".into()), id(9).into()),
    ];
    let source = database.source();
    for (name, present, lower, stray) in strays {
        database.insert(name, vec![doc! { "_id": 1_i32, "c": present }]).await;
        let known = read(&source, request(name).cursor("c", None)).await.expect(name).schema;
        let asked = request(name).known(&known).cursor("c", Some(lower));
        assert_eq!(read(&source, asked.clone()).await.expect(name).shown("_id"), ["1"]);
        database.insert(name, vec![doc! { "_id": 2_i32, "c": stray }]).await;
        let error = refused(&source, asked).await;
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_second_read_brings_what_is_new_and_its_new_columns() {
    let database = Database::new().await;
    let email = |id: i32, more: Document| {
        let mut email = doc! { "_id": id, "sent_at": date(i64::from(id) * 1_000) };
        email.extend(more);
        email
    };
    database.insert("t", (1..=50).map(|id| email(id, doc! { "n": id })).collect()).await;
    let source = database.source();
    let first = read(&source, request("t").cursor("sent_at", None)).await.expect("first");
    assert_eq!(first.rows.num_rows(), 50);
    database
        .insert("t", vec![email(51, doc! { "n": 1_i64 << 40 }), email(52, doc! { "new": true })])
        .await;
    let lower = Some(CursorValue::Timestamptz(50_000_000));
    let asked = request("t").cursor("sent_at", lower).known(&first.schema);
    let second = read(&source, asked).await.expect("second");
    assert_eq!(second.types(), "_id int, sent_at timestamptz, n long, new boolean");
    assert_eq!(second.shown("_id"), ["50", "51", "52"]);
    assert_eq!(second.shown("n"), ["50", "1099511627776", NULL]);
    assert_eq!(second.shown("new"), [NULL, NULL, "true"]);
}

#[tokio::test]
async fn the_ceiling_leaves_time_for_documents_to_arrive() {
    let database = Database::new().await;
    let source = database.source();
    let now = || chrono::Utc::now().timestamp_micros();
    database.insert("t", vec![doc! { "_id": id(1), "at": DateTime::now(), "n": 1_i64 }]).await;
    let lag = 5 * 60 * 1_000_000;
    // The servers of these tests run on the machine of the tests, whose clock has milliseconds.
    let before = now() - 1_000;
    let times = read(&source, request("t").cursor("at", None)).await.expect("times");
    let Some(CursorValue::Timestamptz(ceiling)) = times.ceiling else { panic!("no ceiling") };
    assert!((before..=now()).contains(&(ceiling + lag)), "{ceiling}");
    let ids = read(&source, request("t").cursor("_id", None)).await.expect("ids");
    let Some(CursorValue::Text(ceiling)) = ids.ceiling else { panic!("no ceiling") };
    let seconds = i64::from_str_radix(&ceiling[..8], 16).expect("seconds");
    assert!((before / 1_000_000 - 1..=now() / 1_000_000).contains(&(seconds + 300)), "{ceiling}");
    assert_eq!(&ceiling[8..], "0000000000000000");
    let numbers = read(&source, request("t").cursor("n", None)).await.expect("numbers");
    assert_eq!(numbers.ceiling, None);
}

#[tokio::test]
async fn whoever_writes_sets_the_cursor() {
    let database = Database::new().await;
    let document = doc! { "_id": id(1), "at": date(0), "n": 1_i32, "code": "a" };
    database.insert("t", vec![document]).await;
    let source = database.source();
    for (cursor, expected) in [
        ("at", Doubt::ApplicationClock),
        ("_id", Doubt::ApplicationClock),
        ("n", Doubt::UnorderedCursor),
        ("code", Doubt::UnorderedCursor),
    ] {
        let asked = request("t").key(&["_id"]).cursor(cursor, None);
        let found = read(&source, asked.clone()).await.expect(cursor);
        assert_eq!(found.doubts[..2], [expected, Doubt::ChangesUnstamped], "{cursor}");
        assert!(!found.doubts.contains(&Doubt::KeyNotUnique), "{cursor}");
        let before = source.doubts(&asked).await.expect(cursor);
        assert_eq!(before[..2], [Doubt::ApplicationClock, Doubt::ChangesUnstamped], "{cursor}");
    }
    let whole = read(&source, request("t")).await.expect("read");
    let expected = if whole.snapshot.is_some() { vec![] } else { vec![Doubt::NoSnapshot] };
    assert_eq!(whole.doubts, expected);
}
