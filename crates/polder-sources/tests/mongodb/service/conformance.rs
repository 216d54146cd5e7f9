//! The suite that every source passes.

use std::collections::BTreeSet;

use bson::{DateTime, Document, doc};
use polder_core::CursorValue;
use polder_core::spec::Filter;
use polder_sources::conformance::{Fixture, conformance};
use serde_json::json;

use super::support::Database;

#[tokio::test]
async fn the_suite_of_all_sources_passes() {
    let database = Database::new().await;
    let filler = "x".repeat(20_000);
    // Large enough for several batches of the server and several splits.
    let email = |n: i32| -> Document {
        let at = DateTime::from_millis(i64::from(n) * 1000);
        doc! { "_id": n, "org": (400 + n % 3).to_string(), "sent_at": at, "subject": &filler }
    };
    database.insert("emails", (1..=300).map(email).collect()).await;
    database.insert("drafts", vec![doc! { "org": "402" }]).await;
    let keys = |first: u32| -> BTreeSet<String> {
        (first..=300).filter(|n| n % 3 == 1).map(|n| n.to_string()).collect()
    };
    let serde_json::Value::Object(own) = json!({ "org": "{org}" }) else { unreachable!() };
    let fixture = Fixture {
        org: "401".parse().expect("org"),
        from: "emails".to_owned(),
        filter: Some(Filter::Document(own)),
        key: "_id".to_owned(),
        keys: keys(1),
        cursor: Some(("sent_at".to_owned(), CursorValue::Timestamptz(100_000_000), keys(100))),
        columns: vec!["subject".to_owned(), "sent_at".to_owned(), "_id".to_owned()],
        empty: Some("drafts".to_owned()),
        missing: "email".to_owned(),
    };
    conformance(&database.source(), &fixture).await;
}
