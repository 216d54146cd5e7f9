//! Incremental reads: the bound, nulls, and how precise a cursor is.

use polder_core::{CursorValue, ErrorCode, Source};

use super::support::{Database, Vary, open, read, request, with_database};

#[tokio::test]
async fn the_lower_bound_is_inclusive_for_every_type() {
    let database = Database::new().await;
    let uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    let micros = 1_700_000_000_123_456;
    let cases = [
        ("int2", "7".to_owned(), CursorValue::Int(7)),
        ("int4", "-7".to_owned(), CursorValue::Int(-7)),
        ("int8", i64::MAX.to_string(), CursorValue::Int(i64::MAX)),
        ("date", "'2023-11-14'".to_owned(), CursorValue::Date(19_675)),
        ("timestamp", "'2023-11-14 22:13:20.123456'".to_owned(), CursorValue::Timestamp(micros)),
        (
            "timestamptz",
            "'2023-11-14 22:13:20.123456+00'".to_owned(),
            CursorValue::Timestamptz(micros),
        ),
        ("text", r"E'O''Neil\\ é'".to_owned(), CursorValue::Text(r"O'Neil\ é".to_owned())),
        ("varchar(50)", "'b'".to_owned(), CursorValue::Text("b".to_owned())),
        ("uuid", format!("'{uuid}'"), CursorValue::Text(uuid.to_owned())),
    ];
    let source = database.source();
    for (index, (sql_type, value, lower)) in cases.into_iter().enumerate() {
        let table = format!("t_{index}");
        database
            .run(&format!(
                "CREATE TABLE {table} (id int, c {sql_type});
                 INSERT INTO {table} VALUES (1, {value}), (2, null)"
            ))
            .await;
        let all = read(&source, request(&table).cursor("c", None)).await.expect(sql_type);
        assert_eq!(all.sorted("id"), [1, 2], "without a bound nulls are read");
        let again = request(&table).cursor("c", Some(lower.clone()));
        let again = read(&source, again).await.expect(sql_type);
        assert_eq!(again.sorted("id"), [1, 2], "{sql_type}: nulls with every bound");
        let above = match lower {
            CursorValue::Int(i64::MAX) => continue,
            CursorValue::Int(value) => CursorValue::Int(value + 1),
            CursorValue::Date(value) => CursorValue::Date(value + 1),
            CursorValue::Timestamp(value) => CursorValue::Timestamp(value + 1),
            CursorValue::Timestamptz(value) => CursorValue::Timestamptz(value + 1),
            CursorValue::Text(_) if sql_type == "uuid" => {
                CursorValue::Text("f81d4fae-7dec-11d0-a765-00a0c91e6bf7".to_owned())
            }
            CursorValue::Text(value) => CursorValue::Text(value + "!"),
        };
        let found = read(&source, request(&table).cursor("c", Some(above))).await.expect(sql_type);
        assert_eq!(found.sorted("id"), [2], "{sql_type}");
    }
}

#[tokio::test]
async fn text_cursors_are_compared_byte_by_byte() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (id int, c text COLLATE \"en-x-icu\");
             INSERT INTO t VALUES (1, 'a'), (2, 'B'), (3, 'c')",
        )
        .await;
    let bound = Some(CursorValue::Text("a".to_owned()));
    let found = read(&database.source(), request("t").cursor("c", bound)).await.expect("read");
    assert_eq!(found.sorted("id"), [1, 3], "B is below a in bytes");
}

#[tokio::test]
async fn what_cannot_be_a_cursor_is_refused() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (j jsonb, f float8, n numeric(5,2), i int, at timestamptz)").await;
    let source = database.source();
    for column in ["j", "f", "n"] {
        let error = source.plan(request("t").cursor(column, None)).await.err().expect(column);
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
    }
    let error = source.plan(request("t").cursor("nowhere", None)).await.err().expect("unknown");
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
    let other = request("t").cursor("i", Some(CursorValue::Text("x".to_owned())));
    let error = source.plan(other).await.err().expect("another kind");
    assert!(error.hint_text().expect("hint").contains("--full-refresh"));
    let hidden = request("t").cursor("i", None).columns(&["f"]);
    assert_eq!(source.plan(hidden).await.err().expect("hidden").code(), ErrorCode::SpecInvalid);
    let text = request("t").cursor("at", None).types(&[("at", "string")]);
    assert_eq!(source.plan(text).await.err().expect("text").code(), ErrorCode::SpecInvalid);
}

#[tokio::test]
async fn dates_and_rounded_times_are_coarse() {
    let database = Database::new().await;
    database
        .run(
            "CREATE DOMAIN seconds AS timestamptz(0);
             CREATE TABLE t (d date, t0 timestamp(0), t5 timestamptz(5), s seconds,
                             t6 timestamptz(6), t timestamp, i int)",
        )
        .await;
    let source = database.source();
    let cases = [
        ("d", true),
        ("t0", true),
        ("t5", true),
        ("s", true),
        ("t6", false),
        ("t", false),
        ("i", false),
    ];
    for (column, coarse) in cases {
        let plan = source.plan(request("t").cursor(column, None)).await.expect(column);
        assert!(plan.splits.iter().all(|split| split.cursor_is_coarse() == coarse), "{column}");
    }
}

#[tokio::test]
async fn texts_in_another_order_than_the_lakes_are_no_cursor() {
    let database = Database::new().await;
    let name = format!("{}_latin2", database.name);
    database
        .run(&format!(
            "CREATE DATABASE {name} ENCODING 'LATIN2' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ))
        .await;
    let url = with_database(&database.url, &name);
    {
        let source = open(&url);
        let from = format!("{name}.pg_catalog.pg_settings");
        let error = source.plan(request(&from).cursor("name", None)).await.err().expect("LATIN2");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
        assert!(error.detail_text().expect("detail").contains("LATIN2"), "{error:?}");
        assert!(error.hint_text().expect("hint").contains("uuid"), "{error:?}");
    }
    database.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
}
