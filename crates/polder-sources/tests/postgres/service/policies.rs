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

#[tokio::test]
async fn rows_of_refused_and_altered_values_are_named_by_their_key() {
    let database = Database::new().await;
    // Rows of all sizes: some are decoded together, large ones alone.
    database
        .run(
            "CREATE TABLE t (v date, n numeric(5,2), org integer, id text, filler text);
             INSERT INTO t SELECT
               CASE WHEN i >= 150 AND i % 10 = 0 THEN date 'infinity' END,
               CASE WHEN i = 171 THEN 'NaN'::numeric ELSE i END, 401, 'row ' || i,
               (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 3000) AS j
                WHERE i % 60 = 0)
             FROM generate_series(1, 300) AS i",
        )
        .await;
    let source = database.source();
    let named = || request("t").key(&["org", "id"]);
    let error = read(&source, named()).await.err().expect("refused");
    let detail = error.detail_text().expect("detail");
    assert!(detail.contains("column \"v\"") && detail.contains("org=401, id=row 150"), "{detail}");
    let large = named().filter("id >= 'row 24' AND id < 'row 25'");
    let error = read(&source, large).await.err().expect("refused");
    assert!(error.detail_text().expect("detail").ends_with("row org=401, id=row 240"));

    for policy in [OnUnrepresentable::Null, OnUnrepresentable::Clamp] {
        let named = named().policy(policy);
        let progress = named.progress.clone();
        read(&source, named).await.expect("read");
        let counted = progress.snapshot();
        assert_eq!(counted.altered, [("n".to_owned(), 1), ("v".to_owned(), 16)].into());
        let first = [150, 160, 170, 180, 190].map(|i| format!("org=401, id=row {i}")).to_vec();
        let keys =
            [("n".to_owned(), vec!["org=401, id=row 171".to_owned()]), ("v".to_owned(), first)];
        assert_eq!(counted.altered_keys, keys.into());
    }
    let unnamed = request("t").policy(OnUnrepresentable::Null);
    let progress = unnamed.progress.clone();
    read(&source, unnamed).await.expect("read");
    assert!(progress.snapshot().altered_keys.is_empty(), "the spec names no key");
}

/// Such as `"char"` has before PostgreSQL 16.
#[tokio::test]
async fn text_that_is_not_utf_8_is_refused_with_its_row() {
    let database = Database::new().await;
    database
        .run(
            "CREATE CAST (bytea AS text) WITHOUT FUNCTION;
             CREATE TABLE t (a integer, v text, l text[], b integer);
             INSERT INTO t SELECT i, 'x', ARRAY['y', 'z'], -i FROM generate_series(1, 200) AS i;
             UPDATE t SET v = (bytea '\\xc3')::text WHERE a = 150;
             UPDATE t SET l = ARRAY['y', NULL, (bytea '\\xff')::text] WHERE a = 170",
        )
        .await;
    let source = database.source();
    for (column, row) in [("v", 150), ("l", 170)] {
        let asked = request("t").columns(&["a", column, "b"]).key(&["a", "b"]);
        let error = read(&source, asked).await.err().expect("refused");
        assert_eq!(error.code(), ErrorCode::SourceMalformed);
        let detail = error.detail_text().expect("detail");
        assert!(detail.contains(&format!("column \"{column}\"")), "{detail}");
        assert!(detail.ends_with(&format!("row a={row}, b=-{row}")), "{detail}");
    }
}

#[tokio::test]
async fn text_without_an_encoding_is_refused_or_bytes() {
    let database = Database::with("ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await;
    database
        .run(
            "CREATE TABLE t (v text, c char(3), n name);
             INSERT INTO t VALUES (E'\\xc3', E'\\xff', E'\\xfe'), (NULL, NULL, NULL)",
        )
        .await;
    let source = database.source();
    let error = read(&source, request("t")).await.err().expect("refused");
    assert_eq!(error.code(), ErrorCode::SourceMalformed);
    assert!(error.hint_text().expect("hint").contains("binary"), "{error:?}");
    assert!(!format!("{error:?}").contains("0xc3"), "no values: {error:?}");
    let bytes = request("t").types(&[("v", "binary"), ("c", "binary"), ("n", "binary")]);
    let found = read(&source, bytes).await.expect("read");
    let expected = [("v", "\\xc3"), ("c", "\\xff2020"), ("n", "\\xfe")];
    for (column, bytes) in expected {
        assert_eq!(found.texts(column), [Some(bytes.to_owned()), None]);
    }
}
