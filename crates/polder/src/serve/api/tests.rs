//! The API without a socket: requests in, status, headers and documents out.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use polder_control::keys::{self, KeyRequest};
use polder_control::{audit, queue};
use polder_core::Role;
use polder_lake::service::IcebergCatalog;
use ring::hmac;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;

mod caps;
mod conditions;
mod description;
mod doors;
mod gate;
mod group_routes;
mod health;
mod key_routes;
mod labels;
mod matrix;
mod pages;
mod postgres;
mod template_routes;
mod undo_routes;
mod unreadable_routes;

const PROCESS: &str = r#"
[lake]
warehouse = "./lake"
catalog = "sqlite://./c.db"
[store]
url = "sqlite://./c.db"
[sources.files]
type = "files"
url = "./exports"
"#;
const PIPELINE: &str = r#"
templates:
  crm:
    tables:
      - { name: opportunity, source: files, from: "{org}/opportunity*.csv", mode: append }
      - { name: account, source: files, from: "{org}/account*.csv", key: [id] }
orgs:
  - { id: "1", name: One, template: crm }
  - { id: "2", name: Two, template: crm }
"#;

/// A server over a folder of its own.
struct Server {
    /// Of every door: `/v1`, `/mcp`, `/iceberg`, `/v1/churn`, `/metrics`.
    routes: Router,
    store: Store,
    ledger: Arc<Ledger>,
    folder: TempDir,
    /// For the door that is no route.
    settings: Arc<Settings>,
}

/// The doors beside `/v1` and `/mcp`.
async fn others(
    app: &App,
    store: &Store,
    (clients, ledger): (&Arc<Clients>, &Arc<Ledger>),
    eraser: crate::eraser::Eraser,
) -> Router {
    let settings = crate::serve::iceberg::Settings {
        catalog: IcebergCatalog::open(&app.lake_settings().unwrap()).await.unwrap(),
        clients: Arc::clone(clients),
        store: store.clone(),
        ledger: Arc::clone(ledger),
        pace: Pace::new(app.config.process.server.catalog_rate_limit),
    };
    let catalog = crate::serve::iceberg::routes(settings, Arc::default());
    let notices = crate::serve::churn::routes(crate::serve::churn::Settings {
        secret: Some(hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef")),
        clients: Arc::clone(clients),
        eraser,
        wake: Arc::default(),
        ledger: Arc::clone(ledger),
    });
    let shown = crate::serve::scrape::Shown {
        clients: Arc::clone(clients),
        store: store.clone(),
        metrics: Arc::default(),
        ledger: Arc::clone(ledger),
    };
    Router::new()
        .nest(crate::serve::ICEBERG, catalog)
        .nest(crate::serve::CHURN, notices)
        .route("/metrics", get(crate::serve::scrape::show).with_state(shown))
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
    bytes: Vec<u8>,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

impl Server {
    async fn new() -> Self {
        // The matrix asks more often than a person.
        Self::with("[server]\nrate_limit = { per_second = 10000, burst = 10000 }\n").await
    }

    async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("polder.toml", &format!("{PROCESS}{more}"));
        write("pipelines/crm.yaml", PIPELINE);
        write("exports/1/opportunity.csv", "id,amount\n1,10\n2,20\n");
        let app = App::load(Some(Path::new(&folder.path().join("polder.toml")))).unwrap();
        let app = Arc::new(app.served().await.unwrap());
        let (store, lake) = (app.store().await.unwrap(), app.lake().await.unwrap());
        let mut clients = Clients::default();
        clients.take_keys(store.clone(), true);
        let (clients, ledger) = (Arc::new(clients), Arc::new(Ledger::new(store.clone())));
        let eraser = app.eraser().await.unwrap();
        let others = others(&app, &store, (&clients, &ledger), eraser).await;
        let limit = app.config.process.server.rate_limit;
        let engine = Arc::new(crate::cli::engine(&app, &lake).unwrap());
        let bootstraps = crate::cli::bootstraps(&app, &lake).unwrap();
        let settings = Settings {
            app,
            store: store.clone(),
            engine,
            trino: None,
            bootstraps,
            lake,
            clients,
            wake: Arc::default(),
            metrics: Arc::default(),
            ledger: Arc::clone(&ledger),
            changes: Arc::default(),
            pace: Pace::new(limit),
            watchers: Arc::default(),
            stop: CancellationToken::new(),
        };
        let settings = Arc::new(settings);
        let api = routes(Arc::clone(&settings));
        let agents = crate::serve::mcp::routes(Arc::clone(&settings), api.clone());
        Self { routes: others.merge(agents).merge(api), store, ledger, folder, settings }
    }

    /// The audit log, without the files that were applied at the start.
    async fn log(&self) -> Vec<audit::Entry> {
        self.ledger.flush().await;
        let mut log = audit::after(&self.store, 0, 10_000).await.unwrap();
        log.retain(|entry| entry.action != "plan.apply");
        log
    }

    async fn key(&self, role: Role, orgs: &[&str]) -> String {
        let orgs = orgs.iter().map(|org| org.parse().unwrap()).collect();
        let request = KeyRequest { role, orgs, name: None, expires_ms: None };
        keys::create(&self.store, &request).await.unwrap().1.expose_secret().to_owned()
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = if body.is_null() { String::new() } else { body.to_string() };
        if !body.is_null() {
            request = request.header("content-type", "application/json");
        }
        self.answer(request.body(Body::from(text)).unwrap()).await
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.routes.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body, bytes: bytes.to_vec() }
    }

    async fn call(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let bearer = format!("Bearer {key}");
        self.send(method, path, &[("authorization", &bearer)], &body).await
    }
}

#[tokio::test]
async fn an_operator_makes_orgs_and_the_shapes_are_the_contracts() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let new = json!({ "id": "401", "name": "Acme", "template": "crm" });
    let dry = server.call(&key, "POST", "/v1/orgs?dry_run=true", new.clone()).await;
    assert_eq!(dry.status, StatusCode::OK, "{}", dry.body);
    assert_eq!(server.call(&key, "GET", "/v1/orgs/401", Value::Null).await.status, 404);
    let made = server.call(&key, "POST", "/v1/orgs", new.clone()).await;
    assert_eq!((made.status, made.header("location")), (StatusCode::CREATED, "/v1/orgs/401"));
    assert_eq!(made.body["namespace"], "org_401");
    assert_eq!(made.body["tables"], 2);
    let again = server.call(&key, "POST", "/v1/orgs", new).await;
    assert_eq!((again.status.as_u16(), again.code()), (409, "control.conflict"));
    assert_eq!(again.header("content-type"), "application/problem+json");
    let unknown = json!({ "id": "9", "template": "crmm" });
    let unknown = server.call(&key, "POST", "/v1/orgs", unknown).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (422, "spec.unknown_name"));
    assert!(unknown.body["hint"].as_str().unwrap().contains("crm"), "{}", unknown.body);
    for bad in [json!({ "id": "a b" }), json!({}), json!({ "id": "9", "nam": "x" }), json!([])] {
        let refused = server.call(&key, "POST", "/v1/orgs", bad).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"));
    }
    let off = server.call(&key, "DELETE", "/v1/orgs/401", Value::Null).await;
    assert_eq!((off.status, &off.body["enabled"]), (StatusCode::OK, &json!(false)));
    let states = server.call(&key, "GET", "/v1/orgs/401/history", Value::Null).await;
    assert_eq!(
        (states.body["items"].as_array().unwrap().len(), &states.body["next_cursor"]),
        (2, &Value::Null)
    );
    let who = states.body["items"][0]["who"].as_str().unwrap();
    assert!(who.starts_with("key:plk_"), "{}", states.body);
}

#[tokio::test]
async fn a_writer_adds_a_table_and_changes_what_is_theirs_to_change() {
    let server = Server::new().await;
    let key = server.key(Role::Writer, &["1"]).await;
    let tables = "/v1/orgs/1/tables";
    let name = json!({ "name": "opportunity" });
    let dry = server.call(&key, "POST", &format!("{tables}?dry_run=true"), name.clone()).await;
    assert_eq!((dry.status, &dry.body["dry_run"]), (StatusCode::OK, &json!(true)));
    let made = server.call(&key, "POST", tables, name.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.header("location"), "/v1/orgs/1/tables/opportunity");
    assert_eq!(made.body["spec"]["from"], "{org}/opportunity*.csv");
    assert_eq!(made.body["spec"], dry.body["spec"]);
    assert_eq!(server.call(&key, "POST", tables, name).await.status, 409);
    // Whose rows they are is the operator's word, by whichever door.
    let elsewhere = json!({ "name": "account", "from": "*/account*.csv" });
    let refused = server.call(&key, "POST", tables, elsewhere).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, "control.denied"));
    let path = "/v1/orgs/1/tables/opportunity";
    for patch in [json!({ "from": "*/x.csv" }), json!({ "filter": null }), json!({ "source": "f" })]
    {
        let refused = server.call(&key, "PATCH", path, patch).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.body);
    }
    let found = server.call(&key, "GET", path, Value::Null).await;
    assert_eq!((&found.body["version"], &found.body["rows"]), (&Value::Null, &Value::Null));
    let tag = found.header("etag").to_owned();
    let bearer = format!("Bearer {key}");
    let with = |tag: &str| vec![("authorization", bearer.clone()), ("if-match", tag.to_owned())];
    let change = |tag: &str, body: Value| {
        let headers = with(tag);
        let server = &server;
        async move {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            server.send("PATCH", path, &headers, &body).await
        }
    };
    let changed = change(&tag, json!({ "mode": "full_refresh", "key": ["id"] })).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    assert_eq!(changed.body["spec"]["mode"], "full_refresh");
    let stale = change(&tag, json!({ "mode": "append" })).await;
    assert_eq!((stale.status.as_u16(), stale.code()), (412, "control.stale"));
    let back = change(changed.header("etag"), json!({ "key": null })).await;
    assert_eq!(back.body["spec"]["key"], json!([]), "null is the default again");
    let misspelt = server.call(&key, "PATCH", path, json!({ "cursr": "x" })).await;
    assert_eq!((misspelt.status.as_u16(), misspelt.code()), (400, "spec.invalid"));
    assert_eq!(misspelt.body["hint"], "did you mean `cursor`?");
    let unsure = server.call(&key, "DELETE", path, Value::Null).await;
    assert_eq!((unsure.status.as_u16(), unsure.code()), (409, "control.conflict"));
    assert!(unsure.body["hint"].as_str().unwrap().contains("?yes=true"), "{}", unsure.body);
    let dry = server.call(&key, "DELETE", &format!("{path}?dry_run=true"), Value::Null).await;
    assert_eq!(dry.status, StatusCode::OK, "{}", dry.body);
    let gone = server.call(&key, "DELETE", &format!("{path}?yes=true"), Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(server.call(&key, "GET", path, Value::Null).await.code(), "control.not_found");
    let other = server.key(Role::Operator, &[]).await;
    let left = server.call(&other, "GET", "/v1/orgs/2/tables/opportunity", Value::Null).await;
    assert_eq!(left.status, StatusCode::OK, "the other org has it still");
}

#[tokio::test]
async fn what_has_rows_go_needs_a_yes() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let path = "/v1/orgs/1/tables/opportunity";
    let keep = |keep: &str| json!({ "retention": { "column": "at", "keep": keep } });
    let versions = |n: u32| json!({ "maintenance": { "keep_versions": n } });
    let change = async |path: &str, body: Value| server.call(&key, "PATCH", path, body).await;
    for (body, says) in [
        (keep("6 months"), Some("retention: for ever -> 6 months")),
        (keep("12 months"), None),
        (keep("3 months"), Some("retention: 12 months -> 3 months")),
        (versions(9), None),
        (versions(1), Some("keep_versions: 9 -> 1")),
        (json!({ "retention": null }), None),
    ] {
        let unsure = change(path, body.clone()).await;
        let Some(says) = says else {
            assert_eq!(unsure.status, StatusCode::OK, "{body}: {}", unsure.body);
            continue;
        };
        assert_eq!((unsure.status.as_u16(), unsure.code()), (409, "control.conflict"), "{body}");
        let detail = unsure.body["detail"].as_str().unwrap();
        assert!(detail.contains(says) && detail.contains("after the undo window"), "{detail}");
        let dry = change(&format!("{path}?dry_run=true"), body.clone()).await;
        assert_eq!(dry.status, StatusCode::OK, "{}", dry.body);
        let meant = change(&format!("{path}?yes=true"), body).await;
        assert_eq!(meant.status, StatusCode::OK, "{}", meant.body);
    }
    // Another template, or none, takes tables away.
    let none = json!({ "template": null });
    let renamed = change("/v1/orgs/1", json!({ "name": "One and only" })).await;
    assert_eq!(renamed.status, StatusCode::OK);
    server.call(&key, "PUT", "/v1/templates/none", json!({ "tables": [] })).await;
    let other = json!({ "template": "none" });
    let unsure = change("/v1/orgs/2", other.clone()).await;
    assert_eq!((unsure.status.as_u16(), unsure.code()), (409, "control.conflict"));
    assert_eq!(change("/v1/orgs/2?yes=true", other).await.status, StatusCode::OK);
    assert_eq!(change("/v1/orgs/2", none).await.status, StatusCode::OK, "the files' word again");
}

#[tokio::test]
async fn a_table_that_no_template_has_is_no_way_around_the_operator() {
    let server = Server::new().await;
    let (writer, operator) =
        (server.key(Role::Writer, &["1"]).await, server.key(Role::Operator, &[]).await);
    let own = json!({ "name": "lead", "source": "files", "from": "1/*.csv" });
    let refused = server.call(&writer, "POST", "/v1/orgs/1/tables", own.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, "control.denied"));
    let nothing = json!({ "name": "no_such_thing" });
    let refused = server.call(&writer, "POST", "/v1/orgs/1/tables", nothing).await;
    assert_eq!(refused.code(), "source.not_found");
    let made = server.call(&operator, "POST", "/v1/orgs/1/tables", own).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let gone = server.call(&writer, "DELETE", "/v1/orgs/1/tables/lead?yes=true", Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK);
}

#[tokio::test]
async fn runs_are_queued_as_one_operation_and_cancelled() {
    let server = Server::new().await;
    let key = server.key(Role::Writer, &["1"]).await;
    let body = json!({ "tables": ["opportunity", "account"] });
    let dry = server.call(&key, "POST", "/v1/orgs/1/runs?dry_run=true", body.clone()).await;
    assert_eq!((dry.status, &dry.body["id"]), (StatusCode::OK, &Value::Null));
    let planned = |table: &str| json!({ "table": table, "kind": "ingest", "full_refresh": false, "validate": false });
    assert_eq!(dry.body["planned"], json!([planned("account"), planned("opportunity")]));
    assert_eq!(dry.body["runs"], json!([]));
    let asked = server.call(&key, "POST", "/v1/orgs/1/runs", body).await;
    assert_eq!(asked.status, StatusCode::ACCEPTED, "{}", asked.body);
    let place = asked.header("location").to_owned();
    assert!(place.starts_with("/v1/operations/"), "{place}");
    let operation = server.call(&key, "GET", &place, Value::Null).await;
    assert_eq!((&operation.body["status"], operation.status.as_u16()), (&json!("queued"), 200));
    let foreign = server.key(Role::Writer, &["2"]).await;
    assert_eq!(server.call(&foreign, "GET", &place, Value::Null).await.status, 404);
    let runs = server.call(&key, "GET", "/v1/orgs/1/runs?limit=1", Value::Null).await;
    let next = runs.body["next_cursor"].as_str().unwrap();
    let path = format!("/v1/orgs/1/runs?limit=1&cursor={next}");
    let rest = server.call(&key, "GET", &path, Value::Null).await;
    assert_eq!(rest.body["next_cursor"], Value::Null);
    for page in [&runs, &rest] {
        let run = page.body["items"][0]["id"].as_str().unwrap();
        let path = format!("/v1/orgs/1/runs/{run}");
        assert_eq!(server.call(&key, "GET", &path, Value::Null).await.body["status"], "queued");
        let (cancel, retry) = (format!("{path}/cancel"), format!("{path}/retry"));
        let dry = async |path: &str| {
            server.call(&key, "POST", &format!("{path}?dry_run=true"), Value::Null).await.status
        };
        assert_eq!((dry(&cancel).await.as_u16(), dry(&retry).await.as_u16()), (200, 409));
        let stopped = server.call(&key, "POST", &cancel, Value::Null).await;
        assert_eq!((stopped.status.as_u16(), &stopped.body["status"]), (202, &json!("cancelled")));
        let late = server.call(&key, "POST", &cancel, Value::Null).await;
        assert_eq!((late.status, dry(&cancel).await), (StatusCode::CONFLICT, StatusCode::CONFLICT));
    }
    let operation = server.call(&key, "GET", &place, Value::Null).await;
    assert_eq!(operation.body["status"], "cancelled");
    let claimer = queue::Claimer { owner: "s", per_org: 1 };
    let none = queue::claim(&server.store, claimer).await.unwrap();
    assert!(none.is_none(), "nothing is left to do");
    let unknown = json!({ "tables": ["nope"] });
    assert_eq!(server.call(&key, "POST", "/v1/orgs/1/runs", unknown).await.status, 404);
}

#[tokio::test]
async fn a_caller_that_comes_too_often_is_told_when_to_come_back() {
    let server = Server::with("[server]\nrate_limit = { per_second = 1, burst = 2 }\n").await;
    let (one, other) =
        (server.key(Role::Reader, &["1"]).await, server.key(Role::Reader, &["1"]).await);
    for _ in 0..2 {
        assert_eq!(server.call(&one, "GET", "/v1/orgs", Value::Null).await.status, 200);
    }
    let refused = server.call(&one, "GET", "/v1/orgs", Value::Null).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (429, "http.too_many"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(server.call(&other, "GET", "/v1/orgs", Value::Null).await.status, 200);
}

#[tokio::test]
async fn only_who_may_pauses_and_the_history_of_a_pause_is_shown() {
    let server = Server::new().await;
    let (writer, admin) =
        (server.key(Role::Writer, &["1"]).await, server.key(Role::Admin, &["1"]).await);
    let pause = "/v1/orgs/1/pause";
    assert_eq!(server.call(&writer, "POST", pause, Value::Null).await.status, 403);
    let dry = server.call(&admin, "POST", &format!("{pause}?dry_run=true"), Value::Null).await;
    assert_eq!((dry.status.as_u16(), &dry.body["paused"]), (200, &json!(false)));
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", bearer.as_str()), ("polder-reason", "moving house")];
    let paused = server.send("POST", pause, &headers, &Value::Null).await;
    assert_eq!(paused.body["paused"], true);
    assert_eq!(paused.body["pauses"][0]["why"], "moving house");
    let order = json!({ "tables": ["account"] });
    assert_eq!(server.call(&writer, "POST", "/v1/orgs/1/runs", order).await.status, 202);
    let claimer = queue::Claimer { owner: "s", per_org: 1 };
    assert!(queue::claim(&server.store, claimer).await.unwrap().is_none());
    let resumed = server.call(&admin, "POST", "/v1/orgs/1/resume", Value::Null).await;
    assert_eq!(resumed.body["paused"], false);
    assert!(queue::claim(&server.store, claimer).await.unwrap().is_some());
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k1")];
    let new = json!({ "id": "401" });
    let first = server.send("POST", "/v1/orgs", &headers, &new).await;
    let second = server.send("POST", "/v1/orgs", &headers, &new).await;
    assert_eq!((first.status, second.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_eq!(first.body, second.body);
    assert_eq!(first.header("location"), second.header("location"));
    assert_eq!(first.header("etag"), second.header("etag"));
    let other = server.send("POST", "/v1/orgs", &headers, &json!({ "id": "402" })).await;
    assert_eq!((other.status.as_u16(), other.code()), (409, "control.conflict"));
    // Keys are each caller's own.
    let another = server.key(Role::Operator, &[]).await;
    let bearer = format!("Bearer {another}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k1")];
    let theirs = server.send("POST", "/v1/orgs", &headers, &new).await;
    assert_eq!(theirs.status, StatusCode::CONFLICT, "the org is there");
}

#[tokio::test]
async fn changes_and_refusals_are_in_the_audit_log() {
    let server = Server::new().await;
    let (reader, writer) =
        (server.key(Role::Reader, &["1"]).await, server.key(Role::Writer, &["1"]).await);
    server.call(&reader, "GET", "/v1/orgs/1", Value::Null).await;
    server.call(&reader, "POST", "/v1/orgs/1/runs", json!({})).await;
    server.call(&reader, "GET", "/v1/orgs/2", Value::Null).await;
    server.call(&writer, "POST", "/v1/orgs/1/runs", json!({})).await;
    server.call("plk_wrong_key", "GET", "/v1/orgs/1", Value::Null).await;
    server.send("GET", "/v1/orgs/1", &[], &Value::Null).await;
    let log = server.log().await;
    let said: Vec<_> =
        log.iter().map(|e| (e.action.as_str(), e.org.as_deref(), e.outcome.as_str())).collect();
    assert_eq!(
        said,
        [
            ("POST /v1/orgs/{org}/runs", Some("1"), "control.denied"),
            ("GET /v1/orgs/{org}", Some("2"), "control.not_found"),
            ("POST /v1/orgs/{org}/runs", Some("1"), "done"),
            ("GET /v1/orgs/{org}", Some("1"), "control.unauthenticated"),
        ],
    );
    assert!(log[0].who.starts_with("key:plk_") && log[3].who == "-");
    assert!(audit::verify(&server.store, None).await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn listings_come_in_pages_of_what_one_may_see() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    for id in 10..15 {
        let new = json!({ "id": id.to_string() });
        assert_eq!(server.call(&operator, "POST", "/v1/orgs", new).await.status, 201);
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/orgs?limit=3{cursor}");
        let page = server.call(&operator, "GET", &path, Value::Null).await;
        let items = page.body["items"].as_array().unwrap().clone();
        seen.extend(items.iter().map(|org| org["id"].as_str().unwrap().to_owned()));
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["1", "10", "11", "12", "13", "14", "2"]);
    let two = server.key(Role::Reader, &["12", "2"]).await;
    let page = server.call(&two, "GET", "/v1/orgs?limit=1", Value::Null).await;
    assert_eq!(
        (&page.body["items"][0]["id"], page.body["next_cursor"].is_string()),
        (&json!("12"), true)
    );
    for bad in ["limit=0", "limit=1001", "limit=x", "cursor=%25", "what=1"] {
        let refused = server.call(&operator, "GET", &format!("/v1/orgs?{bad}"), Value::Null).await;
        assert_eq!(refused.code(), "spec.invalid", "{bad}");
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_is_too_long_is_said_in_problems() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/orgs/1", 405),
        ("GET", "/v1/orgs/..%2F1", 404),
        ("GET", "/v1/orgs/1/runs/x", 404),
        ("GET", "/v1/operations/x", 404),
        ("GET", "/v1/sources/nope/tables", 404),
        ("GET", "/v1/orgs/1/tables/account/schema", 404),
    ] {
        let answer = server.call(&key, method, path, Value::Null).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.body["status"], status, "{method} {path}: {}", answer.body);
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let long = json!({ "id": "x".repeat(BODY_BYTES_MAX) });
    let refused = server.call(&key, "POST", "/v1/orgs", long).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (413, "http.too_large"));
    let none = server.send("GET", "/v1/orgs", &[], &Value::Null).await;
    assert_eq!((none.status.as_u16(), none.header("www-authenticate")), (401, "Bearer"));
}

/// The API's shape is public: a change of it shows in a diff of this file.
#[test]
fn the_committed_description_is_the_codes() {
    let committed = include_str!("../../../../../openapi/polder.json");
    let document = serde_json::to_string_pretty(&api_description()).unwrap();
    let hint = "cargo run -p polder -- schema api > openapi/polder.json";
    assert!(committed.trim_end() == document, "changed on purpose? {hint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_answered_in_the_form_that_is_asked_for() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let sql = json!({ "sql": "SELECT id, CAST(amount AS DECIMAL(38, 2)) AS amount FROM \
                              files.\"1/opportunity.csv\" ORDER BY id" });
    let found = server.call(&operator, "POST", "/v1/query", sql.clone()).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
    assert_eq!(found.body["columns"][1]["name"], "amount");
    assert_eq!(found.body["rows"], json!([[1, "10.00"], [2, "20.00"]]));
    let bearer = format!("Bearer {operator}");
    let asked = async |accept: &str| {
        let headers = [("authorization", &*bearer), ("accept", accept)];
        server.send("POST", "/v1/query", &headers, &sql).await
    };
    let csv = asked("text/csv").await;
    assert_eq!(csv.header("content-type"), "text/csv");
    assert_eq!(String::from_utf8(csv.bytes).unwrap(), "id,amount\n1,10.00\n2,20.00\n");
    let stream = asked("application/vnd.apache.arrow.stream;q=1, */*").await;
    let reader = arrow::ipc::reader::StreamReader::try_new(&*stream.bytes, None).unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2);
    assert_eq!(asked("image/png").await.status, StatusCode::BAD_REQUEST);
    let zero = json!({ "sql": "SELECT 1 / (value - value) FROM generate_series(1, 2)" });
    for accept in ["*/*", "text/csv", "application/vnd.apache.arrow.stream"] {
        let headers = [("authorization", &*bearer), ("accept", accept)];
        let refused = server.send("POST", "/v1/query", &headers, &zero).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (422, "query.failed"), "{accept}");
    }

    // For an org's key there are neither sources nor other orgs.
    let reader = server.key(Role::Reader, &["1"]).await;
    for sql in ["SELECT * FROM files.\"1/opportunity.csv\"", "SELECT * FROM org_2.opportunity", "x"]
    {
        let refused = server.call(&reader, "POST", "/v1/query", json!({ "sql": sql })).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "query.invalid"), "{sql}");
    }
    let sql = json!({ "sql": "SELECT a.x, b.x FROM (SELECT 1 AS x) a, (SELECT 2 AS x) b" });
    let twice = server.call(&reader, "POST", "/v1/query", sql).await;
    assert_eq!(twice.body["rows"], json!([[1, 2]]), "{}", twice.body);
    let none = server.send("POST", "/v1/query", &[], &json!({ "sql": "SELECT 1" })).await;
    assert_eq!(none.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_an_org_used_and_what_is_left_of_its_limits_is_shown() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let reader = server.key(Role::Reader, &["1"]).await;
    let path = "/v1/orgs/1/usage";
    let before = server.call(&reader, "GET", path, Value::Null).await;
    assert_eq!(before.status, StatusCode::OK, "{}", before.body);
    assert_eq!(before.body["items"], json!([]));
    assert_eq!(before.body["limits"]["rows_left"], Value::Null);
    assert_eq!(before.body["limits"]["reached"], false);
    for bad in [json!(0), json!(-1), json!("much"), json!(1.5)] {
        for name in ["rows_per_day", "bytes_per_day"] {
            let body = json!({ "limits": { name: bad } });
            let refused = server.call(&operator, "PATCH", "/v1/orgs/1", body).await;
            assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{bad}");
        }
    }
    let limits = json!({ "limits": { "rows_per_day": 10, "bytes_per_day": "1 MB" } });
    let set = server.call(&operator, "PATCH", "/v1/orgs/1", limits).await;
    let shown = json!({
        "runs": null, "weight": null, "rows_per_day": 10, "bytes_per_day": 1_000_000,
        "memory_mb": null, "connections": null,
    });
    assert_eq!(set.body["limits"], shown, "{}", set.body);
    let org = polder_core::Principal::Operator.authorize(&"1".parse().unwrap()).unwrap();
    for _ in 0..2 {
        let run = polder_control::runs::enqueue(&server.store, &org, "account").await.unwrap();
        let ended = (polder_control::runs::RunState::Succeeded, "{}");
        let spent = polder_control::Spent { rows: 4, bytes: 600_000 };
        polder_control::runs::finish(&server.store, &org, run, spent, ended).await.unwrap();
    }
    let used = server.call(&reader, "GET", &format!("{path}?days=2"), Value::Null).await.body;
    let today = &used["items"][0];
    assert_eq!((&today["runs"], &today["rows"]), (&json!(2), &json!(8)), "{used}");
    assert_eq!(today["bytes"], 1_200_000);
    assert_eq!(
        (&used["limits"]["rows_left"], &used["limits"]["bytes_left"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(used["limits"]["reached"], true);
    let (day, anew) = (today["day"].as_str().unwrap(), &used["limits"]["begins_anew_at"]);
    let anew = anew.as_str().unwrap();
    assert!(day.len() == 10 && day < anew && anew.ends_with("T00:00:00.000Z"), "{used}");
    let held = json!({
        "memory_mb": 0, "memory_mb_max": 256, "connections": {}, "connections_max": null,
    });
    assert_eq!(used["now"], held);
    for bad in [json!({ "memory_mb": 15 }), json!({ "connections": 0 })] {
        let body = json!({ "limits": bad });
        let refused = server.call(&operator, "PATCH", "/v1/orgs/1", body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{bad}");
    }
    let limits = json!({ "limits": { "memory_mb": 64, "connections": 2 } });
    let set = server.call(&operator, "PATCH", "/v1/orgs/1", limits).await.body;
    assert_eq!(
        (&set["limits"]["memory_mb"], &set["limits"]["connections"]),
        (&json!(64), &json!(2))
    );
    let now = server.call(&reader, "GET", path, Value::Null).await.body["now"].clone();
    assert_eq!((&now["memory_mb_max"], &now["connections_max"]), (&json!(64), &json!(2)));
    let other = server.call(&operator, "GET", "/v1/orgs/2/usage", Value::Null).await;
    assert_eq!(other.body["items"], json!([]), "an org's own");
    for bad in ["days=0", "days=401", "days=x", "since=1"] {
        let refused = server.call(&reader, "GET", &format!("{path}?{bad}"), Value::Null).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{bad}");
    }
}

#[tokio::test]
async fn a_runs_log_comes_in_pages_to_its_org_alone() {
    let server = Server::new().await;
    let (reader, foreign) =
        (server.key(Role::Reader, &["1"]).await, server.key(Role::Reader, &["2"]).await);
    let org = polder_core::Principal::Operator.authorize(&"1".parse().unwrap()).unwrap();
    let run = polder_control::runs::enqueue(&server.store, &org, "account").await.unwrap();
    let path = format!("/v1/orgs/1/runs/{run}/logs");
    let empty = server.call(&reader, "GET", &path, Value::Null).await;
    assert_eq!((empty.status, &empty.body["items"]), (StatusCode::OK, &json!([])));
    let begin = empty.body["next_cursor"].as_str().unwrap().to_owned();
    let line = |seq: i64| polder_control::run_logs::Line {
        seq,
        at_ms: 1_800_000_000_000 + seq,
        level: "warn".into(),
        message: format!("line {seq}"),
        fields: json!({ "attempt": seq }).to_string(),
    };
    let lines: Vec<_> = (0..3).map(line).collect();
    polder_control::run_logs::append(&server.store, &org, run, &lines).await.unwrap();
    let place = format!("{path}?limit=2&cursor={begin}");
    let first = server.call(&reader, "GET", &place, Value::Null).await.body;
    assert_eq!(first["table"], "account", "{first}");
    let shown = json!({ "at": "2027-01-15T08:00:00.001Z", "level": "warn", "message": "line 1",
                        "fields": { "attempt": 1 } });
    assert_eq!((first["items"].as_array().unwrap().len(), &first["items"][1]), (2, &shown));
    let next = format!("{path}?cursor={}", first["next_cursor"].as_str().unwrap());
    let second = server.call(&reader, "GET", &next, Value::Null).await.body;
    assert_eq!(second["items"][0]["message"], "line 2", "{second}");
    assert!(second["next_cursor"].is_string(), "the run goes on: {second}");
    let ended = (polder_control::runs::RunState::Failed, "{}");
    let spent = polder_control::Spent::default();
    polder_control::runs::finish(&server.store, &org, run, spent, ended).await.unwrap();
    let last = server.call(&reader, "GET", &next, Value::Null).await.body;
    assert_eq!((&last["items"], &last["next_cursor"]), (&second["items"], &Value::Null));
    for other in [path.replace("/1/", "/2/"), path.replace(&run.to_string(), "x")] {
        let key = if other.contains("/2/") { &foreign } else { &reader };
        let none = server.call(key, "GET", &other, Value::Null).await;
        assert_eq!((none.status.as_u16(), none.code()), (404, "control.not_found"), "{other}");
    }
    assert_eq!(server.call(&foreign, "GET", &path, Value::Null).await.status, 404);
    let refused = server.call(&reader, "GET", &format!("{path}?cursor=eA"), Value::Null).await;
    assert_eq!(refused.code(), "spec.invalid");
}
