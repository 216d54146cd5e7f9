//! The audit log's entries of the served catalog, and how often one caller may come.

use futures::FutureExt;
use polder_control::audit::{self, Entry};

use super::*;

impl Catalog {
    async fn log(&self) -> Vec<Entry> {
        self.ledger.sum_up();
        self.ledger.flush().await;
        let store = Store::open(&self.store).await.unwrap();
        assert!(audit::verify(&store, None).await.unwrap().problems.is_empty());
        audit::after(&store, 0, 10_000).await.unwrap()
    }
}

/// Who, what, of which org, and how it ended.
fn said(entry: &Entry) -> (&str, &str, Option<&str>, &str) {
    let subject = entry.subject.as_deref().unwrap_or_default();
    (&entry.who, subject, entry.org.as_deref(), &entry.outcome)
}

#[tokio::test]
async fn changes_and_refusals_are_in_the_audit_log_and_reads_are_not() {
    let catalog = Catalog::with_clients(Database::Sqlite).await;
    let operator = catalog.bearer("op", SECRET).await;
    let client = catalog.bearer("c1", &SECRET.to_uppercase()).await;
    let none = Value::Null;
    let send = async |bearer: &str, method: &str, path: &str, body: &Value| {
        let headers = [("authorization", bearer)];
        catalog.send(method, path, &headers, body).await.status.as_u16()
    };
    for name in ["org_1", "org_2"] {
        let body = json!({ "namespace": [name] });
        assert_eq!(send(&operator, "POST", "/v1/namespaces", &body).await, 200);
    }
    let (tables, table) = ("/v1/namespaces/org_1/tables", "/v1/namespaces/org_1/tables/t");
    assert_eq!(send(&client, "POST", tables, &new_table("t")).await, 200);
    assert_eq!(send(&client, "POST", table, &set("a", "b")).await, 200);
    assert_eq!(send(&client, "GET", table, &none).await, 200);
    assert_eq!(send(&client, "GET", "/v1/namespaces/org_1/tables/no", &none).await, 404);
    assert_eq!(send(&client, "POST", tables, &new_table("t")).await, 409);
    assert_eq!(send(&client, "GET", "/v1/namespaces/org_2", &none).await, 404);
    assert_eq!(send("Bearer polder1.1.2.3", "GET", table, &none).await, 401);
    assert_eq!(catalog.get(table).await.status.as_u16(), 401);
    assert_eq!(send(&client, "DELETE", &format!("{table}?purgeRequested=true"), &none).await, 204);
    let log = catalog.log().await;
    let found: Vec<_> = log.iter().map(said).collect();
    assert_eq!(
        found,
        [
            ("client:op", "org_1", Some("1"), "done"),
            ("client:op", "org_2", Some("2"), "done"),
            ("client:c1", "org_1.t", Some("1"), "done"),
            ("client:c1", "org_1.t", Some("1"), "done"),
            ("client:c1", "org_1.t", Some("1"), "AlreadyExistsException"),
            ("client:c1", "org_2", Some("2"), "NoSuchNamespaceException"),
            ("-", "org_1.t", Some("1"), "NotAuthorizedException"),
            ("client:c1", "org_1.t", Some("1"), "done"),
        ],
    );
    let action = "DELETE /iceberg/v1/namespaces/{namespace}/tables/{table}";
    assert_eq!(log[7].action, action);
    assert_eq!(log[7].detail.as_deref(), Some("purgeRequested=true"));
}

#[tokio::test]
async fn a_repetition_has_no_entry_of_its_own() {
    let catalog = Catalog::open(Database::Sqlite).await;
    catalog.namespace("a").await;
    let key = [("idempotency-key", "01977c2e-0000-7000-8000-000000000001")];
    for _ in 0..3 {
        let made = catalog.send("POST", "/v1/namespaces/a/tables", &key, &new_table("t")).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    }
    let log = catalog.log().await;
    let found: Vec<_> = log.iter().map(said).collect();
    assert_eq!(found, [("anybody", "a", None, "done"), ("anybody", "a.t", None, "done")]);
}

#[tokio::test]
async fn a_change_whose_client_hangs_up_has_an_entry() {
    let catalog = Catalog::open(Database::Sqlite).await;
    catalog.namespace("a").await;
    let cut_off = catalog.post("/v1/namespaces/a/tables", &new_table("t")).now_or_never();
    assert!(cut_off.is_none(), "it takes more than a moment");
    let log = catalog.log().await;
    let found: Vec<_> = log.iter().map(said).collect();
    assert_eq!(found, [("anybody", "a", None, "done"), ("anybody", "a.t", None, "unknown")]);
}

#[tokio::test]
async fn many_commits_at_once_have_an_entry_each() {
    let catalog = Catalog::open(Database::Sqlite).await;
    catalog.namespace("a").await;
    catalog.table("a", "t").await;
    let commits = (0..8).map(|n| {
        let body = set(&format!("k{n}"), "v");
        let catalog = &catalog;
        async move { catalog.post("/v1/namespaces/a/tables/t", &body).await.status }
    });
    let done = futures::future::join_all(commits).await;
    assert!(done.iter().all(|status| *status == StatusCode::OK), "{done:?}");
    assert_eq!(catalog.log().await.len(), 2 + 8);
}

#[tokio::test]
async fn whoever_comes_too_often_is_told_when_to_come_back() {
    let catalog = Catalog::open(Database::Sqlite).await;
    let limit = RateLimit { per_second: 1, burst: 2 };
    let limited = catalog.limited(Clients::default(), limit).await;
    for _ in 0..2 {
        assert_eq!(limited.get("/v1/config").await.status, StatusCode::OK);
    }
    // One more a second, which a slow machine may take for one request.
    let mut refused = limited.get("/v1/config").await;
    for _ in 0..50 {
        if refused.status != StatusCode::OK {
            break;
        }
        refused = limited.get("/v1/config").await;
    }
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.error_type(), "TooManyRequestsException");
    assert!(refused.headers.contains_key("retry-after"));
    // What engines do is far below the limit that holds where nobody sets one.
    for _ in 0..300 {
        assert_eq!(catalog.get("/v1/config").await.status, StatusCode::OK);
    }
}
