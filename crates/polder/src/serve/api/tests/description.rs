//! What the description says of every operation: times by their format, headers where they are.

use super::*;

/// Every property of every schema, with where it stands.
fn properties(document: &Value) -> Vec<(String, String, Value)> {
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut found = Vec::new();
    for (schema, described) in schemas {
        for (name, property) in described["properties"].as_object().into_iter().flatten() {
            found.push((schema.clone(), name.clone(), property.clone()));
        }
    }
    found
}

#[test]
fn every_time_says_that_it_is_one() {
    let document = api_description();
    let is_time = |name: &str| name == "at" || name.ends_with("_at") || name.ends_with("_until");
    // Names of columns, cron texts, and settings of tables.
    let is_none = |name: &str, property: &Value| {
        ["deleted_at", "validate_at"].contains(&name) || property["type"] == "object"
    };
    let mut times = 0;
    for (schema, name, property) in properties(&document) {
        assert!(!name.ends_with("started_ms"), "{schema}.{name}");
        if is_time(&name) && !is_none(&name, &property) {
            assert_eq!(property["format"], "date-time", "{schema}.{name}: {property}");
            times += 1;
        }
    }
    assert!(times >= 25, "{times}");
}

fn parameters(operation: &Value) -> Vec<&str> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let headers = parameters.filter(|parameter| parameter["in"] == "header");
    headers.map(|parameter| parameter["name"].as_str().unwrap()).collect()
}

#[test]
fn headers_are_described_where_they_are() {
    let document = api_description();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            let changes = method != "get" && path != "/v1/query";
            let found = parameters(operation);
            assert_eq!(found.contains(&"Idempotency-Key"), changes, "{place}");
            assert_eq!(found.contains(&"Polder-Reason"), changes, "{place}");
            assert!(changes || !found.contains(&"If-Match"), "{place}");
            let problem = &operation["responses"]["default"]["headers"];
            assert!(problem["Retry-After"].is_object(), "{place}");
            for status in ["201", "202"] {
                let response = &operation["responses"][status];
                let one_run = path.ends_with("/cancel") || path.ends_with("/retry");
                if response.is_object() && !one_run {
                    assert!(response["headers"]["Location"].is_object(), "{place} {status}");
                }
            }
        }
    }
    for (method, path) in [
        ("delete", "/v1/keys/{key}"),
        ("post", "/v1/keys/{key}/rotate"),
        ("post", "/v1/orgs/{org}/runs/{run}/cancel"),
        ("post", "/v1/orgs/{org}/runs/{run}/retry"),
        ("post", "/v1/orgs/{org}/pause"),
        ("post", "/v1/orgs/{org}/resume"),
        ("post", "/v1/sources/{source}/pause"),
        ("post", "/v1/sources/{source}/resume"),
    ] {
        let operation = &document["paths"][path][method];
        assert!(parameters(operation).contains(&"If-Match"), "{method} {path}");
    }
    let table = &document["paths"]["/v1/orgs/{org}/tables/{table}"];
    for method in ["patch", "delete"] {
        assert!(parameters(&table[method]).contains(&"If-Match"), "{method}");
    }
    assert!(table["get"]["responses"]["200"]["headers"]["ETag"].is_object());
}

/// What is described to have an entity tag has one, and nothing else has.
#[tokio::test]
async fn tags_are_given_where_they_are_described() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let document = api_description();
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path.replace("{org}", "1").replace("{table}", "opportunity");
        let filled = filled.replace("{template}", "crm").replace("{source}", "files");
        if !item["get"].is_object() || filled.contains('{') {
            continue;
        }
        let answer = server.call(&key, "GET", &filled, Value::Null).await;
        if answer.status == StatusCode::OK {
            let described = item["get"]["responses"]["200"]["headers"]["ETag"].is_object();
            assert_eq!(!answer.header("etag").is_empty(), described, "{path}");
            seen += usize::from(described);
        }
    }
    // The org, its schedules, the table, the template and the source: of the versions there are none yet.
    assert_eq!(seen, 5);
}
