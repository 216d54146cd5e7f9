//! What stays as it is: the properties that Polder keeps, and names that appeared meanwhile.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::databases::{Database, on_each};
use super::{Catalog, SECRET, new_table, set};

on_each!(
    a_client_of_an_org_leaves_alone_what_polder_keeps,
    a_file_or_snapshot_of_a_client_does_not_speak_for_polder,
    a_name_that_appeared_meanwhile_keeps_its_snapshot,
);

fn changes(updates: &[Value]) -> Value {
    json!({ "requirements": [], "updates": updates })
}

fn point(name: &str, kind: &str, id: i64) -> Value {
    json!({ "action": "set-snapshot-ref", "ref-name": name, "type": kind, "snapshot-id": id })
}

async fn a_client_of_an_org_leaves_alone_what_polder_keeps(database: Database) {
    let catalog = Catalog::with_clients(database).await;
    let operator = catalog.bearer("op", SECRET).await;
    let client = catalog.bearer("c1", &SECRET.to_uppercase()).await;
    let as_operator = [("authorization", operator.as_str())];
    let as_client = [("authorization", client.as_str())];
    let namespace = json!({ "namespace": ["org_1"] });
    catalog.send("POST", "/v1/namespaces", &as_operator, &namespace).await;
    let mut copied = new_table("t");
    copied["properties"] = json!({ "polder.checkpoint": "another's", "comment": "mine" });
    for staged in [true, false] {
        copied["stage-create"] = staged.into();
        let path = "/v1/namespaces/org_1/tables";
        let made = catalog.send("POST", path, &as_client, &copied).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
        let properties = &made.body["metadata"]["properties"];
        assert_eq!(properties["comment"], "mine");
        assert!(properties["polder.checkpoint"].is_null(), "{properties}");
    }
    let path = "/v1/namespaces/org_1/tables/t";
    let kept = set("polder.checkpoint", "1");
    for (who, headers) in [("another Polder", &as_operator), ("whoever sends all back", &as_client)]
    {
        let answer = catalog.send("POST", path, headers, &kept).await;
        assert_eq!(answer.status, StatusCode::OK, "{who}: {}", answer.body);
    }
    let removal = json!({ "action": "remove-properties", "removals": ["polder.checkpoint"] });
    let refused = [
        set("polder.checkpoint", "2"),
        set("polder.expired-from", "[]"),
        changes(std::slice::from_ref(&removal)),
    ];
    for body in refused {
        let mut part = body.clone();
        part["identifier"] = json!({ "namespace": ["org_1"], "name": "t" });
        let together = json!({ "table-changes": [part] });
        for (path, body) in [(path, &body), ("/v1/transactions/commit", &together)] {
            let answer = catalog.send("POST", path, &as_client, body).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} {body}: {}", answer.body);
            assert_eq!(answer.error_type(), "ForbiddenException");
            assert!(answer.message().contains("is kept by Polder"), "{}", answer.message());
        }
    }
    let found = catalog.send("GET", path, &as_client, &Value::Null).await;
    assert_eq!(found.body["metadata"]["properties"]["polder.checkpoint"], "1");
    // A table that is replaced as a whole has read nothing of a source.
    let main = json!({ "action": "remove-snapshot-ref", "ref-name": "main" });
    let replaced = catalog.send("POST", path, &as_client, &changes(&[main, removal])).await;
    assert_eq!(replaced.status, StatusCode::OK, "{}", replaced.body);
    assert!(replaced.body["metadata"]["properties"]["polder.checkpoint"].is_null());
}

async fn a_file_or_snapshot_of_a_client_does_not_speak_for_polder(database: Database) {
    let catalog = Catalog::with_clients(database).await;
    let operator = catalog.bearer("op", SECRET).await;
    let client = catalog.bearer("c1", &SECRET.to_uppercase()).await;
    let as_operator = [("authorization", operator.as_str())];
    let as_client = [("authorization", client.as_str())];
    let namespace = json!({ "namespace": ["org_1"] });
    catalog.send("POST", "/v1/namespaces", &as_operator, &namespace).await;
    let (tables, path) = ("/v1/namespaces/org_1/tables", "/v1/namespaces/org_1/tables/t");
    let register = "/v1/namespaces/org_1/register";
    let mut table = new_table("t");
    table["properties"] = json!({ "polder.checkpoint": "1", "comment": "mine" });
    let made = catalog.send("POST", tables, &as_operator, &table).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let (first, metadata) = (&made.body["metadata-location"], &made.body["metadata"]);
    let location = metadata["location"].as_str().unwrap();
    let forged = changes(&[json!({ "action": "add-snapshot", "snapshot": {
        "snapshot-id": 1, "sequence-number": 1, "timestamp-ms": metadata["last-updated-ms"],
        "manifest-list": format!("{location}/metadata/1.avro"), "schema-id": 0,
        "summary": { "operation": "append", "polder.run-id": "another's" },
    } })]);
    let refused = catalog.send("POST", path, &as_client, &forged).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.body);
    assert!(refused.message().contains("polder.run-id"), "{}", refused.message());
    // An earlier state in place of the present one, and then as a table of its own.
    let later = catalog.send("POST", path, &as_operator, &set("polder.checkpoint", "2")).await;
    assert_eq!(later.status, StatusCode::OK, "{}", later.body);
    let mut body = json!({ "name": "t", "metadata-location": first, "overwrite": true });
    let refused = catalog.send("POST", register, &as_client, &body).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.body);
    let found = catalog.send("GET", path, &as_client, &Value::Null).await;
    assert_eq!(found.body["metadata"]["properties"]["polder.checkpoint"], "2");
    body["name"] = "n".into();
    let registered = catalog.send("POST", register, &as_client, &body).await;
    assert_eq!(registered.status, StatusCode::OK, "{}", registered.body);
    assert_ne!(&registered.body["metadata-location"], first);
    let properties = &registered.body["metadata"]["properties"];
    assert_eq!(properties["comment"], "mine");
    assert!(properties["polder.checkpoint"].is_null(), "{properties}");
}

async fn a_name_that_appeared_meanwhile_keeps_its_snapshot(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    let made = catalog.table("a", "t").await.body["metadata"].clone();
    let (location, at) = (made["location"].as_str().unwrap(), &made["last-updated-ms"]);
    let path = "/v1/namespaces/a/tables/t";
    let snapshot = |id: i64| {
        json!({ "action": "add-snapshot", "snapshot": {
            "snapshot-id": id, "sequence-number": id, "timestamp-ms": at,
            "manifest-list": format!("{location}/metadata/{id}.avro"),
            "summary": { "operation": "append" }, "schema-id": 0,
        } })
    };
    for id in [1, 2] {
        let body = changes(&[snapshot(id), point("main", "branch", id)]);
        let answer = catalog.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
    // One client has looked which snapshots nothing names, and another one names one of them.
    let tagged = catalog.post(path, &changes(&[point("audit", "tag", 1)])).await;
    assert_eq!(tagged.status, StatusCode::OK, "{}", tagged.body);
    let removal = json!({ "action": "remove-snapshots", "snapshot-ids": [1] });
    let refused = catalog.post(path, &changes(std::slice::from_ref(&removal))).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{}", refused.body);
    assert_eq!(refused.error_type(), "CommitFailedException");
    assert!(refused.message().contains("audit"), "{}", refused.message());
    let found = catalog.get(path).await.body["metadata"].clone();
    assert_eq!(found["refs"]["audit"]["snapshot-id"], 1);
    assert_eq!(found["snapshots"].as_array().unwrap().len(), 2);
    let name = json!({ "action": "remove-snapshot-ref", "ref-name": "audit" });
    // As Iceberg's own client sends them: the names after what they named.
    let gone = catalog.post(path, &changes(&[removal, name])).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.body);
    assert_eq!(gone.body["metadata"]["snapshots"].as_array().unwrap().len(), 1);
}
