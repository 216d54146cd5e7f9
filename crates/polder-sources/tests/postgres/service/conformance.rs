//! The suite that every source passes.

use polder_core::CursorValue;
use polder_core::spec::Filter;
use polder_sources::conformance::{Fixture, conformance};

use super::support::Database;

#[tokio::test]
async fn the_suite_of_all_sources_passes() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE deal (id int PRIMARY KEY, org_id text, name text, at timestamptz);
             INSERT INTO deal SELECT n, 400 + n % 3, 'deal ' || n, to_timestamp(n)
             FROM generate_series(1, 300) n;
             CREATE TABLE nothing (LIKE deal); INSERT INTO nothing VALUES (1, '402')",
        )
        .await;
    let keys = |first: u32| (first..=300).filter(|n| n % 3 == 1).map(|n| n.to_string()).collect();
    let fixture = Fixture {
        org: "401".parse().expect("org"),
        from: "deal".to_owned(),
        filter: Some(Filter::Sql("org_id = {org}".to_owned())),
        key: "id".to_owned(),
        keys: keys(1),
        cursor: Some(("at".to_owned(), CursorValue::Timestamptz(100_000_000), keys(100))),
        columns: vec!["name".to_owned(), "id".to_owned(), "at".to_owned()],
        empty: Some("nothing".to_owned()),
        missing: "deals".to_owned(),
    };
    conformance(&database.source(), &fixture).await;
    database.run("CREATE TABLE later AS SELECT * FROM deal WHERE id < 100").await;
    let next = database.number("SELECT pg_current_xact_id()::text::int8").await;
    database.run("INSERT INTO later SELECT * FROM deal WHERE id >= 100").await;
    let cursor = Some(("xmin".to_owned(), CursorValue::Int(next), keys(100)));
    let later = Fixture { from: "later".to_owned(), cursor, ..fixture };
    conformance(&database.source(), &later).await;
}
