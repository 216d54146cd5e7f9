//! Whose documents are read.

use bson::{Bson, doc};
use polder_core::{ErrorCode, Source};
use serde_json::json;

use super::support::Database;
use crate::reading::{Vary, read, request};

#[tokio::test]
async fn only_the_orgs_documents_are_read() {
    let database = Database::new().await;
    let email = |id: i32, org: Bson| doc! { "_id": id, "org": org, "in": { "org": id / 2 } };
    database
        .insert(
            "emails",
            vec![
                email(1, "401".into()),
                email(2, "402".into()),
                email(3, 401_i32.into()),
                email(4, "401".into()),
                email(5, Bson::Null),
                email(802, "{org}".into()),
            ],
        )
        .await;
    let source = database.source();
    let cases = [
        (json!({ "org": "{org}" }), vec!["1", "4"]),
        (json!({ "org": { "$numberInt": "{org}" } }), vec!["3"]),
        (json!({ "org": { "$in": ["{org}", "40x"] }, "_id": { "$gt": 1 } }), vec!["4"]),
        (json!({ "$or": [{ "org": "{org}" }, { "org": 401 }] }), vec!["1", "3", "4"]),
        (json!({ "in.org": { "$numberLong": "{org}" } }), vec!["802"]),
        (json!({ "org": { "$regex": "^{org}$" } }), vec!["1", "4"]),
        (json!({ "org": { "$exists": true, "$type": "int" } }), vec!["3"]),
        (json!({ "org": "4{org}" }), vec![]),
    ];
    for (filter, ids) in cases {
        let place = filter.to_string();
        let found = read(&source, request("emails").matching(filter)).await.expect(&place);
        let read = if found.rows.num_rows() == 0 { Vec::new() } else { found.shown("_id") };
        assert_eq!(read, ids, "{place}");
    }
}

#[tokio::test]
async fn a_collection_per_org_is_reached_by_its_own_name_only() {
    let database = Database::new().await;
    database.insert("emails_401", vec![doc! { "_id": 1_i32 }]).await;
    database.insert("emails_402", vec![doc! { "_id": 2_i32 }]).await;
    let source = database.source();
    let own = read(&source, request("emails_{org}")).await.expect("own");
    assert_eq!(own.shown("_id"), ["1"]);
    let mut other = request("emails_{org}");
    other.org = "40".parse().expect("org");
    let error = source.plan(other).await.err().expect("no such");
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
    for from in ["", "$cmd", "a\0b"] {
        let error = source.plan(request(from)).await.err().expect("no collection");
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{from:?}");
    }
}
