//! What an agent's key gets of the API's larger answers: less than others, and told so.

use super::*;

const SERIES: &str = "SELECT value FROM generate_series(1, 20000) ORDER BY value";

/// Some MB of text.
const WIDE: &str = "SELECT repeat(CAST(value AS VARCHAR), 50000) AS a FROM generate_series(1, 100)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_query_ends_with_the_last_row_that_it_may_have() {
    let server = Server::new().await;
    let (agent, reader) =
        (server.key(Role::Agent, &["1"]).await, server.key(Role::Reader, &["1"]).await);
    let ask = async |key: &str, body: Value| server.call(key, "POST", "/v1/query", body).await;
    let found = ask(&agent, json!({ "sql": SERIES })).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
    let rows = found.body["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &found.body["truncated"]), (1_000, &json!(true)));
    assert_eq!(rows[999], json!([1000]));
    let most = ask(&agent, json!({ "sql": SERIES, "rows_max": 10_000 })).await;
    assert_eq!(most.body["rows"].as_array().unwrap().len(), 10_000);
    for bad in [0, 10_001] {
        let refused = ask(&agent, json!({ "sql": SERIES, "rows_max": bad })).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{bad}");
    }
    let few = ask(&agent, json!({ "sql": "SELECT 1" })).await;
    assert_eq!((&few.body["rows"], &few.body["truncated"]), (&json!([[1]]), &json!(false)));
    let wide = ask(&agent, json!({ "sql": WIDE })).await;
    assert_eq!(wide.body["truncated"], true, "{}", wide.status);
    assert!(wide.bytes.len() < 2 << 20, "{}", wide.bytes.len());
    let theirs = ask(&reader, json!({ "sql": SERIES, "rows_max": 50_000 })).await;
    assert_eq!(theirs.body["rows"].as_array().unwrap().len(), 20_000);
    assert_eq!(theirs.body["truncated"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_to_an_agent_is_never_larger() {
    let server = Server::new().await;
    let agent = server.key(Role::Agent, &["1"]).await;
    let bearer = format!("Bearer {agent}");
    for accept in ["text/csv", "application/vnd.apache.arrow.stream"] {
        let headers = [("authorization", &*bearer), ("accept", accept)];
        let ask = async |sql: &str| {
            server.send("POST", "/v1/query", &headers, &json!({ "sql": sql })).await
        };
        let whole = ask("SELECT value FROM generate_series(1, 10000)").await;
        assert_eq!(whole.status, StatusCode::OK, "{accept}: {}", whole.body);
        let wide = ask(WIDE).await;
        assert_eq!((wide.status.as_u16(), wide.code()), (422, "query.limit"), "{accept}");
    }
}
