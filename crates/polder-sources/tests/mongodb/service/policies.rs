//! Values that the lake types do not have.

use std::collections::BTreeMap;

use bson::{Bson, DateTime, Document, doc};
use polder_core::ErrorCode;
use polder_core::spec::OnUnrepresentable;
use polder_sources::mongodb::MongodbSource;

use super::support::Database;
use super::swap::Swap;
use crate::reading::{NULL, Vary, read, refused, request};

/// What a policy makes of a collection's column `v`: its type, its values, how many were altered.
async fn under(
    source: &MongodbSource,
    collection: &str,
    policy: OnUnrepresentable,
    types: &[(&str, &str)],
) -> (String, Vec<String>, BTreeMap<String, u64>) {
    let asked = request(collection).policy(policy).types(types).columns(&["v"]);
    let progress = asked.progress.clone();
    let found = read(source, asked).await.expect(collection);
    (found.types(), found.shown("v"), progress.snapshot().altered)
}

/// Documents with dates under a name, and the way on which they are `millis`: not every server takes
/// dates beyond the years 1 to 9999.
async fn dates(millis: &[i64], name: &str) -> (Vec<Document>, Swap) {
    let date = |millis: i64| doc! { name: DateTime::from_millis(millis) };
    let stored: Vec<_> = (0..millis.len()).map(|n| date(1_234_567_890_123 + n as i64)).collect();
    let pairs = stored.iter().cloned().zip(millis.iter().map(|millis| date(*millis)));
    let swap = Swap::new(&pairs.collect::<Vec<_>>()).await;
    (stored, swap)
}

#[tokio::test]
async fn documents_of_refused_and_altered_values_are_named_by_their_key() {
    let database = Database::new().await;
    let value = |id: i32| doc! { "_id": { "org": "a", "n": id }, "v": f64::from(id) / 2.0 };
    database.insert("t", (1..=20).map(value).collect()).await;
    let source = database.source();
    let named = request("t").key(&["_id"]).types(&[("v", "int")]);
    let error = refused(&source, named.clone()).await;
    assert!(error.message().contains("column v "), "{error:?}");
    let key = |id: i32| format!("_id={{\"org\":\"a\",\"n\":{id}}}");
    assert!(
        error.detail_text().expect("detail").ends_with(&format!("row {}", key(1))),
        "{error:?}"
    );
    let progress = named.progress.clone();
    read(&source, named.policy(OnUnrepresentable::Null)).await.expect("read");
    let counted = progress.snapshot();
    assert_eq!(counted.altered, [("v".to_owned(), 10)].into());
    let keys = [1, 3, 5, 7, 9].map(key).to_vec();
    assert_eq!(counted.altered_keys, [("v".to_owned(), keys)].into());
}

fn altered(values: u64) -> BTreeMap<String, u64> {
    if values == 0 { BTreeMap::new() } else { [("v".to_owned(), values)].into() }
}

#[tokio::test]
async fn decimals_that_are_no_numbers_are_text_or_follow_the_policy() {
    let database = Database::new().await;
    let texts = ["1.5", "NaN", "Infinity", "-Infinity"];
    let value = |text: &str| doc! { "v": Bson::Decimal128(text.parse().expect("decimal")) };
    database.insert("t", texts.map(value).to_vec()).await;
    let source = database.source();
    for (policy, lake_type, values, changed) in [
        (OnUnrepresentable::Error, "string(Decimal)", texts, 0),
        (OnUnrepresentable::Text, "string(Decimal)", texts, 0),
        (OnUnrepresentable::Null, "decimal(2, 1)", ["1.5", NULL, NULL, NULL], 3),
        (OnUnrepresentable::Clamp, "decimal(2, 1)", ["1.5", NULL, "9.9", "-9.9"], 3),
    ] {
        let found = under(&source, "t", policy, &[]).await;
        let expected =
            (format!("v {lake_type}"), values.map(str::to_owned).to_vec(), altered(changed));
        assert_eq!(found, expected, "{policy:?}");
    }
}

#[tokio::test]
async fn dates_beyond_the_lake_s_years_follow_the_policy() {
    let database = Database::new().await;
    let millis = [i64::MIN, -62_135_596_800_001, 0, 253_402_300_800_000, i64::MAX];
    let (stored, swap) = dates(&millis, "v").await;
    database.insert("t", stored).await;
    let source = swap.source(&database);
    let error = refused(&source, request("t")).await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(
        error.message().contains("column v") && error.hint_text().expect("hint").contains("clamp")
    );
    assert!(!format!("{error:?}").contains("775808"), "no values: {error:?}");

    let (first, last) = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z");
    let epoch = "1970-01-01T00:00:00Z";
    let text = |millis: i64| format!(r#"{{"$date":{{"$numberLong":"{millis}"}}}}"#);
    let mut texts = millis.map(text);
    texts[2] = format!(r#"{{"$date":"{epoch}"}}"#);
    for (policy, lake_type, values, changed) in [
        (OnUnrepresentable::Text, "string(Json)", texts, 0),
        (
            OnUnrepresentable::Null,
            "timestamptz",
            [NULL, NULL, epoch, NULL, NULL].map(str::to_owned),
            4,
        ),
        (
            OnUnrepresentable::Clamp,
            "timestamptz",
            [first, first, epoch, last, last].map(str::to_owned),
            4,
        ),
    ] {
        let found = under(&source, "t", policy, &[]).await;
        assert_eq!(
            found,
            (format!("v {lake_type}"), values.to_vec(), altered(changed)),
            "{policy:?}"
        );
    }
}

#[tokio::test]
async fn nested_values_follow_the_policy_too() {
    let database = Database::new().await;
    let (stored, swap) = dates(&[i64::MAX], "0").await;
    let odd = stored[0].get("0").expect("a date").clone();
    let inner = doc! { "0": &odd, "l": [odd, DateTime::from_millis(0)], "n": 1_i32 };
    database.insert("t", vec![doc! { "v": inner }]).await;
    let source = swap.source(&database);
    let error = refused(&source, request("t")).await;
    assert!(error.message().contains("v.0"), "{error:?}");
    let (_, values, counted) = under(&source, "t", OnUnrepresentable::Null, &[]).await;
    assert_eq!(values, ["{0: ∅, l: [∅, 1970-01-01T00:00:00Z], n: 1}"]);
    assert_eq!(counted.values().sum::<u64>(), 2, "{counted:?}");
    let (types, ..) = under(&source, "t", OnUnrepresentable::Text, &[]).await;
    assert_eq!(types, "v struct<0: string, l: list<string>, n: int>");
}

#[tokio::test]
async fn declared_types_take_what_fits_and_the_policy_the_rest() {
    let database = Database::new().await;
    let cases: [(&str, Bson, Option<&str>, Option<&str>); 14] = [
        // Type, value, as it is read or as it is clamped.
        ("decimal(5, 2)", "12.50".into(), Some("12.50"), None),
        ("decimal(5, 2)", 0.1.into(), Some("0.10"), None),
        ("decimal(5, 2)", "1.006".into(), None, Some("1.01")),
        ("decimal(5, 2)", f64::NEG_INFINITY.into(), None, Some("-999.99")),
        ("long", 3.0.into(), Some("3"), None),
        ("long", f64::INFINITY.into(), None, Some("9223372036854775807")),
        ("int", i64::MIN.into(), None, Some("-2147483648")),
        ("int", f64::NAN.into(), None, Some(NULL)),
        ("float", 1e300.into(), None, Some("3.4028235e38")),
        (
            "double",
            Bson::Decimal128("9E+6111".parse().expect("decimal")),
            None,
            Some("1.7976931348623157e308"),
        ),
        ("date", DateTime::from_millis(86_400_000).into(), Some("1970-01-02"), None),
        ("date", DateTime::from_millis(86_400_001).into(), None, Some("1970-01-02")),
        ("timestamptz", "2024-02-29T12:00:00+05:30".into(), Some("2024-02-29T06:30:00Z"), None),
        ("string", doc! { "a": 1_i32 }.into(), Some(r#"{"a":1}"#), None),
    ];
    let source = database.source();
    for (index, (declared, value, exact, clamped)) in cases.into_iter().enumerate() {
        let place = format!("{value} as {declared}");
        let name = format!("case_{index}");
        database.insert(&name, vec![doc! { "v": value }]).await;
        let types = [("v", declared)];
        let changed = u64::from(exact.is_none());
        let (found, values, counted) =
            under(&source, &name, OnUnrepresentable::Clamp, &types).await;
        assert_eq!(found, format!("v {declared}"), "{place}");
        assert_eq!(values, [exact.or(clamped).expect("either")], "{place}");
        assert_eq!(counted, altered(changed), "{place}");
        let (_, values, _) = under(&source, &name, OnUnrepresentable::Null, &types).await;
        assert_eq!(values, [exact.unwrap_or(NULL)], "{place}");
        if exact.is_none() {
            let error = refused(&source, request(&name).types(&types)).await;
            assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{place}");
        }
    }
}

#[tokio::test]
async fn what_is_no_value_of_the_declared_type_is_refused_whatever_the_policy() {
    let database = Database::new().await;
    database.insert("t", vec![doc! { "v": "secret" }]).await;
    for policy in [OnUnrepresentable::Error, OnUnrepresentable::Null, OnUnrepresentable::Clamp] {
        let asked = request("t").types(&[("v", "long")]).policy(policy);
        let error = refused(&database.source(), asked).await;
        assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{policy:?}");
        assert!(error.hint_text().expect("hint").contains("types:"), "{error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
