//! Requests that are repeated with their key: after a restart, at another server, after hanging up.

use std::time::Duration;

use axum::http::StatusCode;
use polder_control::keys::{self, KeyRequest};
use polder_core::Role;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

use super::databases::{Database, on_each};
use super::{Answer, Catalog, Store, new_table, set};
use crate::serve::Clients;

on_each!(
    a_repetition_after_a_restart_gets_the_first_answer,
    an_answer_is_made_of_the_state_now_where_its_file_is_gone,
    two_servers_that_get_one_key_give_one_answer,
    a_request_whose_client_hangs_up_is_carried_out_once,
    a_reader_changes_nothing_whatever_a_table_is_called,
);

const TABLES: &str = "/v1/namespaces/a/tables";
const TABLE: &str = "/v1/namespaces/a/tables/t";

/// How many commits a table has seen, by the name of its metadata file.
fn commits(answer: &Answer) -> u32 {
    let location = answer.body["metadata-location"].as_str().unwrap();
    let (_, file) = location.rsplit_once('/').unwrap();
    file.split('-').next().unwrap().parse().unwrap()
}

async fn a_repetition_after_a_restart_gets_the_first_answer(database: Database) {
    let before = Catalog::open(database).await;
    before.namespace("a").await;
    let mut staged = new_table("s");
    staged["stage-create"] = json!(true);
    let requests = [
        ("POST", TABLES, new_table("t")),
        ("POST", TABLES, staged),
        ("POST", TABLE, set("k", "v")),
        ("POST", TABLES, new_table("t")),
        ("POST", "/v1/namespaces", json!({ "namespace": ["a", "b"] })),
        ("DELETE", "/v1/namespaces/a%1Fb", Value::Null),
    ];
    let keys: Vec<String> = requests.iter().map(|_| Uuid::new_v4().to_string()).collect();
    let mut first = Vec::new();
    for (key, (method, path, body)) in keys.iter().zip(&requests) {
        let headers = [("idempotency-key", key.as_str())];
        first.push(before.send(method, path, &headers, body).await);
    }
    let statuses: Vec<u16> = first.iter().map(|answer| answer.status.as_u16()).collect();
    assert_eq!(statuses, [200, 200, 200, 409, 200, 204]);
    assert_eq!(commits(&first[2]), 1);
    let after = before.another().await;
    for (number, (key, (method, path, body))) in keys.iter().zip(&requests).enumerate() {
        let headers = [("idempotency-key", key.as_str())];
        let again = after.send(method, path, &headers, body).await;
        assert_eq!(again.status, first[number].status, "{number}: {}", again.body);
        assert_eq!(again.body, first[number].body, "{number}");
        for name in ["etag", "content-type"] {
            assert_eq!(again.headers.get(name), first[number].headers.get(name), "{number}");
        }
        let other = after.send("POST", TABLES, &headers, &new_table("other")).await;
        assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{number}");
    }
    assert_eq!(commits(&after.get(TABLE).await), 1, "one commit");
    assert_eq!(after.get("/v1/namespaces/a%1Fb").await.status, StatusCode::NOT_FOUND);
}

async fn an_answer_is_made_of_the_state_now_where_its_file_is_gone(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    let key = [("idempotency-key", "01977c2e-0000-7000-8000-000000000003")];
    let made = catalog.send("POST", TABLES, &key, &new_table("t")).await;
    catalog.post(TABLE, &set("k", "v")).await;
    let location = made.body["metadata-location"].as_str().unwrap();
    std::fs::remove_file(location.strip_prefix("file://").unwrap()).unwrap();
    let after = catalog.another().await;
    let again = after.send("POST", TABLES, &key, &new_table("t")).await;
    assert_eq!(again.status, StatusCode::OK, "{}", again.body);
    assert_eq!(again.body, after.get(TABLE).await.body);
    after.send("DELETE", TABLE, &[], &Value::Null).await;
    let gone = catalog.another().await.send("POST", TABLES, &key, &new_table("t")).await;
    assert_eq!(gone.error_type(), "NoSuchTableException");
}

async fn two_servers_that_get_one_key_give_one_answer(database: Database) {
    let one = Catalog::open(database).await;
    let other = one.another().await;
    one.namespace("a").await;
    for round in 0..20 {
        let body = new_table(&format!("t{round}"));
        let key = Uuid::new_v4().to_string();
        let key = [("idempotency-key", key.as_str())];
        let (left, right) = tokio::join!(
            one.send("POST", TABLES, &key, &body),
            other.send("POST", TABLES, &key, &body),
        );
        // One of them may have been refused before the other's answer was there.
        let made = if left.status == StatusCode::OK { &left } else { &right };
        assert_eq!(made.status, StatusCode::OK, "{} {}", left.body, right.body);
        for server in [&one, &other] {
            let again = server.send("POST", TABLES, &key, &body).await;
            assert_eq!((again.status, &again.body), (StatusCode::OK, &made.body));
        }
    }
}

/// At every moment of the request.
async fn a_request_whose_client_hangs_up_is_carried_out_once(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    catalog.table("a", "t").await;
    for round in 1..=30_u32 {
        let key = Uuid::new_v4().to_string();
        let key = [("idempotency-key", key.as_str())];
        let body = set("round", &round.to_string());
        let patience = Duration::from_micros(u64::from(round) * 400);
        let _ = tokio::time::timeout(patience, catalog.send("POST", TABLE, &key, &body)).await;
        let again = catalog.send("POST", TABLE, &key, &body).await;
        assert_eq!(again.status, StatusCode::OK, "{}", again.body);
        assert_eq!(commits(&again), round);
        assert_eq!(again.body, catalog.get(TABLE).await.body);
    }
}

async fn a_reader_changes_nothing_whatever_a_table_is_called(database: Database) {
    let operator = Catalog::open(database).await;
    operator.namespace("org_1").await;
    let store = Store::open(&operator.store).await.unwrap();
    let orgs = vec!["1".parse().unwrap()];
    let request = KeyRequest { role: Role::Reader, orgs, name: None, expires_ms: None };
    let (_, secret) = keys::create(&store, &request).await.unwrap();
    let mut clients = Clients::default();
    clients.take_keys(store, true);
    let server = operator.another_with(clients).await;
    let bearer = format!("Bearer {}", secret.expose_secret());
    let headers = [("authorization", bearer.as_str())];
    for name in ["t", "sign", "metrics"] {
        operator.table("org_1", name).await;
        let path = format!("/v1/namespaces/org_1/tables/{name}");
        for (method, body) in [("POST", set("k", "v")), ("DELETE", Value::Null)] {
            let refused = server.send(method, &path, &headers, &body).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{method} {name}: {}", refused.body);
        }
        let told = json!({ "report-type": "scan-report" });
        let told = server.send("POST", &format!("{path}/metrics"), &headers, &told).await;
        assert_eq!(told.status, StatusCode::NO_CONTENT, "{}", told.body);
    }
}
