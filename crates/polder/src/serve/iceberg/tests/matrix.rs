//! Who may what, of every operation that the catalog says it has: every role, in its own org, in another's
//! and in one that is not there.

use polder_control::keys::{self, KeyRequest};
use polder_core::{Right, Role};
use secrecy::ExposeSecret;

use super::*;
use crate::serve::iceberg::config::ENDPOINTS;

/// A catalog whose callers show keys, with an operator's.
async fn with_keys() -> (Catalog, Store, String) {
    let catalog = Catalog::open(Database::Sqlite).await;
    let store = Store::open(&catalog.store).await.unwrap();
    let mut clients = Clients::default();
    clients.take_keys(store.clone(), true);
    let catalog = catalog.another_with(clients).await;
    let operator = key(&store, Role::Operator).await;
    (catalog, store, operator)
}

async fn key(store: &Store, role: Role) -> String {
    let own: &[&str] = if role == Role::Operator { &[] } else { &["1"] };
    let orgs = own.iter().map(|org| org.parse().unwrap()).collect();
    let request = KeyRequest { role, orgs, name: None, expires_ms: None };
    let (_, shown) = keys::create(store, &request).await.unwrap();
    format!("Bearer {}", shown.expose_secret())
}

/// A body that each operation takes; one that has none is read or dropped.
fn body(endpoint: &str, namespace: &str) -> Value {
    let rename = |name: &str| {
        json!({
            "source": { "namespace": [namespace], "name": name },
            "destination": { "namespace": [namespace], "name": "moved" },
        })
    };
    let Some(path) = endpoint.strip_prefix("POST /v1/{prefix}/") else { return Value::Null };
    match path {
        "namespaces" => json!({ "namespace": [namespace, "below"] }),
        "namespaces/{namespace}/properties" => json!({ "updates": { "a": "b" } }),
        "namespaces/{namespace}/tables" => new_table("new"),
        "namespaces/{namespace}/tables/{table}" => set("a", "b"),
        "namespaces/{namespace}/tables/{table}/metrics" => json!({ "report-type": "scan-report" }),
        "namespaces/{namespace}/tables/{table}/sign" => json!({
            "region": "x", "uri": "https://b.example/k", "method": "GET", "headers": {},
        }),
        "namespaces/{namespace}/register" | "namespaces/{namespace}/register-view" => {
            json!({ "name": "new", "metadata-location": "file:///nowhere/1.metadata.json" })
        }
        "namespaces/{namespace}/views" => new_view("new"),
        "namespaces/{namespace}/views/{view}" => json!({ "requirements": [], "updates": [] }),
        "tables/rename" => rename("t"),
        "views/rename" => rename("v"),
        "transactions/commit" => {
            let mut change = set("a", "b");
            change["identifier"] = json!({ "namespace": [namespace], "name": "t" });
            json!({ "table-changes": [change] })
        }
        _ => panic!("{endpoint} is not in the matrix: say which body it takes"),
    }
}

/// Whether an operation changes something.
fn changes(endpoint: &str) -> bool {
    let reads = endpoint.starts_with("GET") || endpoint.starts_with("HEAD");
    !reads && !endpoint.ends_with("/metrics") && !endpoint.ends_with("/sign")
}

/// A table and a view that every operation finds, whatever the ones before have done.
async fn prepare(catalog: &Catalog, operator: &str, namespace: &str) {
    let headers = [("authorization", operator)];
    let below = format!("/v1/namespaces/{namespace}");
    for (method, path, body) in [
        ("POST", "/v1/namespaces".to_owned(), json!({ "namespace": [namespace] })),
        ("DELETE", format!("{below}/tables/moved"), Value::Null),
        ("DELETE", format!("{below}/tables/new"), Value::Null),
        ("DELETE", format!("{below}/views/moved"), Value::Null),
        ("DELETE", format!("{below}/views/new"), Value::Null),
        ("POST", format!("{below}/tables"), new_table("t")),
        ("POST", format!("{below}/views"), new_view("v")),
    ] {
        let done = catalog.send(method, &path, &headers, &body).await;
        assert!(!done.status.is_server_error(), "{method} {path}: {}", done.body);
    }
}

async fn ask(catalog: &Catalog, bearer: &str, endpoint: &str, namespace: &str) -> Answer {
    let (method, path) = endpoint.split_once(' ').unwrap();
    let path = path.replace("/{prefix}", "").replace("{namespace}", namespace);
    let path = path.replace("{table}", "t").replace("{view}", "v");
    let headers = [("authorization", bearer)];
    catalog.send(method, &path, &headers, &body(endpoint, namespace)).await
}

#[tokio::test]
async fn every_operation_and_role_in_ones_own_org_in_anothers_and_in_none() {
    let (catalog, store, operator) = with_keys().await;
    let mut ready = false;
    for role in Role::ALL {
        let bearer = key(&store, role).await;
        for endpoint in ENDPOINTS.into_iter().filter(|one| *one != "POST /v1/oauth/tokens") {
            for namespace in ["org_1", "org_2"].into_iter().filter(|_| !ready) {
                prepare(&catalog, &operator, namespace).await;
            }
            ready = !changes(endpoint);
            let mut answers = Vec::new();
            for namespace in ["org_1", "org_2", "org_9"] {
                answers.push(ask(&catalog, &bearer, endpoint, namespace).await);
            }
            let [own, foreign, none] = &answers[..] else { panic!("three were asked for") };
            let place = format!("{} {endpoint}: {}", role.as_str(), own.body);
            for answer in &answers {
                assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{place}");
                assert!(!answer.status.is_server_error(), "{place}");
            }
            let lacks = format!("A {} may not change anything", role.as_str());
            let forbidden = changes(endpoint) && !role.has(Right::Write);
            assert_eq!(own.message() == lacks, forbidden, "{place}");
            assert_ne!(own.status, StatusCode::NOT_FOUND, "{place}");
            if role == Role::Operator {
                assert_eq!(foreign.status, own.status, "{place}");
                continue;
            }
            let text = foreign.body.to_string().replace("org_2", "org_9");
            let told = (foreign.status, text.as_str(), foreign.headers.len());
            let expect = (none.status, none.body.to_string(), none.headers.len());
            assert_eq!(told, (expect.0, expect.1.as_str(), expect.2), "{place}");
        }
    }
}
