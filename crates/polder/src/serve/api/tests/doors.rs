//! Who may what at the doors beside the routes of `/v1`: agents' tools, SQL that names tables of others,
//! notices, metrics. The served catalog and PostgreSQL's protocol have matrices of their own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use polder_core::Right;

use super::*;

/// An org of others, and one that is not there: texts that are in nothing else.
pub(super) const FOREIGN: &str = "4402";
pub(super) const NONE: &str = "4409";

/// A server whose lake has a table of the org of these keys, and one of another.
pub(super) async fn server() -> (Server, Vec<(Role, String)>) {
    let server = Server::new().await;
    let mut keys = Vec::new();
    for role in Role::ALL {
        let own: &[&str] = if role == Role::Operator { &[] } else { &["1"] };
        keys.push((role, server.key(role, own).await));
    }
    let operator = &keys.iter().find(|(role, _)| *role == Role::Operator).unwrap().1;
    let schema = json!({ "type": "struct", "schema-id": 0, "fields": [
        { "id": 1, "name": "id", "required": true, "type": "long" },
    ] });
    for org in ["1", FOREIGN] {
        let namespace = json!({ "namespace": [format!("org_{org}")] });
        let made = server.call(operator, "POST", "/iceberg/v1/namespaces", namespace).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
        let path = format!("/iceberg/v1/namespaces/org_{org}/tables");
        let table = json!({ "name": "deal", "schema": schema });
        let made = server.call(operator, "POST", &path, table).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    }
    (server, keys)
}

/// What an agent is told: its result or the protocol's error.
async fn tool(server: &Server, key: &str, name: &str, arguments: &Value) -> Value {
    let bearer = format!("Bearer {key}");
    let kinds = "application/json, text/event-stream";
    let headers = [("authorization", bearer.as_str()), ("accept", kinds), ("host", "127.0.0.1")];
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": name, "arguments": arguments },
    });
    let answer = server.send("POST", "/mcp", &headers, &body).await;
    assert!(answer.body.is_object(), "{}", String::from_utf8_lossy(&answer.bytes));
    answer.body
}

fn failed(said: &Value) -> bool {
    said["error"].is_object() || said["result"]["isError"] == true
}

/// Each tool that can name an org, with how it does.
fn calls(org: &str) -> Vec<(&'static str, Value)> {
    let table = format!("org_{org}.deal");
    let sql = format!("SELECT count(*) AS n FROM lake.{table}");
    vec![
        ("query", json!({ "sql": sql })),
        ("explain", json!({ "sql": sql })),
        ("describe_table", json!({ "table": table })),
        ("bootstrap", json!({ "org": org, "tables": ["deal"] })),
        ("bootstrap", json!({ "tables": [table] })),
        ("request_table", json!({ "org": org, "name": "account" })),
    ]
}

#[tokio::test]
async fn every_tool_and_role_in_ones_own_org_in_anothers_and_in_none() {
    let (server, keys) = server().await;
    for (role, key) in &keys {
        let others = calls(FOREIGN).into_iter().zip(calls(NONE));
        for ((name, own), ((_, foreign), (_, none))) in calls("1").into_iter().zip(others) {
            let place = format!("{} {name} {own}", role.as_str());
            let said = tool(&server, key, name, &own).await;
            if matches!(name, "query" | "explain") {
                assert!(!failed(&said), "{place}: {said}");
            }
            if name == "request_table" {
                let refused = said["error"].is_object();
                assert_eq!(refused, !role.has(Right::Write), "{place}: {said}");
            }
            let foreign = tool(&server, key, name, &foreign).await;
            let none = tool(&server, key, name, &none).await;
            assert!(failed(&none), "{place}: {none}");
            if *role == Role::Operator {
                continue;
            }
            let told = foreign.to_string().replace(FOREIGN, NONE);
            assert_eq!(told, none.to_string(), "{place}");
        }
        let listed = tool(&server, key, "list_tables", &json!({})).await.to_string();
        assert!(listed.contains("org_1"), "{listed}");
        assert_eq!(listed.contains(FOREIGN), *role == Role::Operator, "{listed}");
    }
    let log = server.log().await;
    let refused = |who: &str, action: &str, outcome: &str| {
        let of = |e: &&audit::Entry| e.who.starts_with(who) && e.action == action;
        let found = log.iter().filter(of).filter(|e| e.org.as_deref() == Some(FOREIGN));
        assert!(found.clone().count() > 0, "{who} {action}");
        assert!(found.clone().all(|entry| entry.outcome == outcome), "{who} {action}");
    };
    for (role, key) in keys.iter().filter(|(role, _)| *role != Role::Operator) {
        let shown: Vec<&str> = key.splitn(3, '_').take(2).collect();
        let who = format!("key:{}", shown.join("_"));
        refused(&who, "mcp describe_table", "lake.not_found");
        refused(&who, "mcp bootstrap", "lake.not_found");
        let may = role.has(Right::Write);
        let outcome = if may { "lake.not_found" } else { "control.denied" };
        refused(&who, "mcp request_table", outcome);
    }
}

#[tokio::test]
async fn sql_that_names_tables_of_others_finds_none() {
    let (server, keys) = server().await;
    for (role, key) in &keys {
        for sql in [
            "SELECT count(*) AS n FROM lake.org_{}.deal",
            "SELECT id FROM lake.org_1.deal UNION ALL SELECT id FROM org_{}.deal",
            "SELECT (SELECT max(id) FROM lake.org_{}.deal) AS n",
            "WITH d AS (SELECT * FROM lake.org_{}.deal) SELECT count(*) FROM d",
            "EXPLAIN SELECT * FROM lake.org_{}.deal",
        ] {
            let ask = async |org: &str| {
                let body = json!({ "sql": sql.replace("{}", org) });
                server.call(key, "POST", "/v1/query", body).await
            };
            let (own, foreign, none) = (ask("1").await, ask(FOREIGN).await, ask(NONE).await);
            let place = format!("{} {sql}", role.as_str());
            if !sql.starts_with("EXPLAIN") {
                assert_eq!(own.status, StatusCode::OK, "{place}: {}", own.body);
            }
            assert!(none.status.is_client_error(), "{place}: {}", none.body);
            if *role == Role::Operator {
                assert_eq!(foreign.status, own.status, "{place}: {}", foreign.body);
                continue;
            }
            let told = foreign.body.to_string().replace(FOREIGN, NONE);
            assert_eq!((foreign.status, told), (none.status, none.body.to_string()), "{place}");
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_not_configured_answers_nobody() {
    let (server, keys) = server().await;
    for (role, key) in &keys {
        let ask = async |engine: &str| {
            let body = json!({ "sql": "SELECT 1 AS n", "engine": engine });
            server.call(key, "POST", "/v1/query", body).await
        };
        let (own, trino, none) = (ask("embedded").await, ask("trino").await, ask("duck").await);
        assert_eq!(own.body["rows"], json!([[1]]), "{}: {}", role.as_str(), own.body);
        assert_eq!((trino.status.as_u16(), trino.code()), (400, "spec.invalid"), "{}", trino.body);
        assert!(none.status.is_client_error(), "{}", none.body);
    }
}

#[tokio::test]
async fn metrics_and_how_far_an_org_has_left_are_the_operators() {
    let (server, keys) = server().await;
    let before = server.log().await.len();
    for (role, key) in &keys {
        let (metrics, event) = (
            server.call(key, "GET", "/metrics", Value::Null).await,
            server.call(key, "GET", "/v1/churn/none", Value::Null).await,
        );
        let told = (metrics.status.as_u16(), event.status.as_u16());
        let expect = if *role == Role::Operator { (200, 404) } else { (401, 401) };
        assert_eq!(told, expect, "{}", role.as_str());
        // A key does not stand for a signature.
        let notice = json!({ "type": "org.churned", "data": { "org": "1" } });
        let unsigned = server.call(key, "POST", "/v1/churn", notice).await;
        assert_eq!(unsigned.status, StatusCode::UNAUTHORIZED, "{}", unsigned.body);
    }
    server.call("plk_0_0", "GET", "/metrics", Value::Null).await;
    server.send("GET", "/metrics", &[], &Value::Null).await;
    let log = server.log().await.split_off(before);
    let count = |action: &str, outcome: &str| {
        log.iter().filter(|entry| entry.action == action && entry.outcome == outcome).count()
    };
    assert_eq!(count("GET /metrics", "control.denied"), 4, "{log:?}");
    assert_eq!(count("GET /metrics", "control.unauthenticated"), 1);
    assert_eq!(count("GET /v1/churn/{id}", "control.denied"), 4);
    assert_eq!(count("POST /v1/churn", "control.denied"), keys.len());
}

#[tokio::test]
async fn a_notice_is_in_the_audit_log_taken_or_not() {
    let (server, _) = server().await;
    let before = server.log().await.len();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
    for (id, org) in [("e1", NONE), ("e2", FOREIGN)] {
        let body = json!({ "type": "org.churned", "data": { "org": org } });
        let time = chrono::Utc::now().timestamp().to_string();
        let signed = hmac::sign(&key, format!("{id}.{time}.{body}").as_bytes());
        let signature = format!("v1,{}", STANDARD.encode(signed.as_ref()));
        let headers = [
            ("webhook-id", id),
            ("webhook-timestamp", time.as_str()),
            ("webhook-signature", signature.as_str()),
        ];
        server.send("POST", "/v1/churn", &headers, &body).await;
    }
    let log = server.log().await.split_off(before);
    let said: Vec<_> =
        log.iter().map(|e| (e.who.as_str(), e.org.as_deref(), e.outcome.as_str())).collect();
    let expect = [("webhook", None, "spec.unknown_name"), ("webhook", Some(FOREIGN), "done")];
    assert_eq!(said, expect);
}

#[tokio::test]
async fn agents_come_as_often_as_others() {
    let server = Server::with("[server]\nrate_limit = { per_second = 1, burst = 2 }\n").await;
    let key = server.key(Role::Agent, &["1"]).await;
    let mut refused = server.call(&key, "POST", "/mcp", json!({})).await;
    for _ in 0..20 {
        if refused.status != StatusCode::TOO_MANY_REQUESTS {
            refused = server.call(&key, "POST", "/mcp", json!({})).await;
        }
    }
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "http.too_many"));
    assert!(!refused.header("retry-after").is_empty());
}
