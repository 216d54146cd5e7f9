//! Values that the lake types do not have.

use polder_core::ErrorCode;
use polder_core::spec::OnUnrepresentable;

use super::support::{Database, Vary, read, request};

const ODD: [(&str, &str, Option<&str>); 12] = [
    ("date", "'infinity'", Some("9999-12-31")),
    ("date", "'-infinity'", Some("0001-01-01")),
    ("date", "'0044-03-15 BC'", Some("0001-01-01")),
    ("date", "'10000-01-01'", Some("9999-12-31")),
    ("timestamp", "'infinity'", Some("9999-12-31 23:59:59.999999")),
    ("timestamptz", "'0001-01-01 00:00 BC'", Some("0001-01-01 00:00:00+00")),
    ("time", "'24:00'", Some("23:59:59.999999")),
    ("numeric(5,2)", "'NaN'", None),
    ("int[]", "'{{1,2},{3,4}}'", None),
    ("int[]", "'[0:1]={1,2}'", Some("{1,2}")),
    ("date[]", "'{infinity,2020-01-01}'", Some("{9999-12-31,2020-01-01}")),
    ("numeric(5,2)[]", "'{NaN}'", Some("{NULL}")),
];

#[tokio::test]
async fn odd_values_follow_the_policy_and_are_counted() {
    let database = Database::new().await;
    let source = database.source();
    database.run("SET TimeZone = 'UTC'").await;
    for (index, (sql_type, value, nearest)) in ODD.into_iter().enumerate() {
        let place = format!("{sql_type} {value}");
        let table = format!("odd_{index}");
        database
            .run(&format!(
                "CREATE TABLE {table} (v {sql_type} NOT NULL); INSERT INTO {table} VALUES ({value})"
            ))
            .await;
        let error = read(&source, request(&table)).await.err().expect(&place);
        assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{place}");
        let told = format!("{error:?}");
        assert!(told.contains(&table) && told.contains("clamp"), "{told}");
        assert!(!told.contains("infinity") && !told.contains("0044"), "no values: {told}");

        let clamp = request(&table).policy(OnUnrepresentable::Clamp);
        let progress = clamp.progress.clone();
        let found = read(&source, clamp).await.expect(&place);
        assert_eq!(found.texts("v"), [nearest.map(str::to_owned)], "{place}");
        assert_eq!(progress.snapshot().altered.get("v"), Some(&1), "{place}");

        let null = request(&table).policy(OnUnrepresentable::Null);
        let progress = null.progress.clone();
        let found = read(&source, null).await.expect(&place);
        assert!(found.schema.fields[0].nullable, "{place}");
        assert_eq!(progress.snapshot().altered.get("v"), Some(&1), "{place}");

        let text = request(&table).policy(OnUnrepresentable::Text);
        let progress = text.progress.clone();
        let found = read(&source, text).await.expect(&place);
        let expected = database.texts(&format!("SELECT v::text FROM {table}")).await;
        assert_eq!(found.texts("v"), expected[0], "{place}");
        assert!(progress.snapshot().altered.is_empty(), "text changes nothing");
    }
}

#[tokio::test]
async fn a_cursor_keeps_its_type_under_the_text_policy() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE t (at timestamptz, d date); INSERT INTO t VALUES (now(), 'infinity')")
        .await;
    let request = request("t").policy(OnUnrepresentable::Text).cursor("at", None);
    let found = read(&database.source(), request.clone()).await.expect("read");
    assert_eq!(found.schema.field("at").expect("at").data_type.to_string(), "timestamptz");
    assert_eq!(found.texts("d"), [Some("infinity".to_owned())]);
    database.run("INSERT INTO t VALUES ('infinity')").await;
    let error = read(&database.source(), request).await.err().expect("no such timestamp");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
}

#[tokio::test]
async fn a_cursor_is_never_made_null() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE t (at timestamptz NOT NULL); INSERT INTO t VALUES ('infinity')")
        .await;
    let source = database.source();
    let null = request("t").policy(OnUnrepresentable::Null).cursor("at", None);
    let error = read(&source, null).await.err().expect("refused");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    let clamp = request("t").policy(OnUnrepresentable::Clamp).cursor("at", None);
    let found = read(&source, clamp).await.expect("read");
    assert_eq!(found.texts("at"), [Some("9999-12-31 23:59:59.999999+00".to_owned())]);
}
