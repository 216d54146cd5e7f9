//! The API without a socket: requests in, status, headers and documents out.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use polder_control::keys::{self, KeyRequest};
use polder_control::{audit, queue};
use polder_core::Role;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;

mod matrix;

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
    routes: Router,
    store: Store,
    _folder: TempDir,
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
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("polder.toml", PROCESS);
        write("pipelines/crm.yaml", PIPELINE);
        write("exports/1/opportunity.csv", "id,amount\n1,10\n2,20\n");
        let app = App::load(Some(Path::new(&folder.path().join("polder.toml")))).unwrap();
        let app = Arc::new(app.settled().await.unwrap());
        let (store, lake) = (app.store().await.unwrap(), app.lake().await.unwrap());
        let mut clients = Clients::default();
        clients.take_keys(store.clone(), true);
        let engine = Arc::new(crate::cli::engine(&app, &lake).unwrap());
        let bootstraps = crate::cli::bootstraps(&app, &lake).unwrap();
        let settings = Settings {
            app,
            store: store.clone(),
            engine,
            bootstraps,
            lake,
            clients: Arc::new(clients),
            wake: Arc::default(),
        };
        Self { routes: routes(Arc::new(settings)), store, _folder: folder }
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
        let response =
            self.routes.clone().oneshot(request.body(Body::from(text)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
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
    assert_eq!(states.body.as_array().unwrap().len(), 2);
    assert!(states.body[0]["who"].as_str().unwrap().starts_with("key:plk_"), "{}", states.body);
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
    let gone = server.call(&key, "DELETE", path, Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(server.call(&key, "GET", path, Value::Null).await.code(), "control.not_found");
    let other = server.key(Role::Operator, &[]).await;
    let left = server.call(&other, "GET", "/v1/orgs/2/tables/opportunity", Value::Null).await;
    assert_eq!(left.status, StatusCode::OK, "the other org has it still");
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
    let gone = server.call(&writer, "DELETE", "/v1/orgs/1/tables/lead", Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK);
}

#[tokio::test]
async fn runs_are_queued_as_one_operation_and_cancelled() {
    let server = Server::new().await;
    let key = server.key(Role::Writer, &["1"]).await;
    let body = json!({ "tables": ["opportunity", "account"] });
    let dry = server.call(&key, "POST", "/v1/orgs/1/runs?dry_run=true", body.clone()).await;
    assert_eq!((dry.status, &dry.body["id"]), (StatusCode::OK, &Value::Null));
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
        let stopped = server.call(&key, "POST", &format!("{path}/cancel"), Value::Null).await;
        assert_eq!((stopped.status.as_u16(), &stopped.body["status"]), (202, &json!("cancelled")));
        let late = server.call(&key, "POST", &format!("{path}/cancel"), Value::Null).await;
        assert_eq!(late.status, StatusCode::CONFLICT);
    }
    let operation = server.call(&key, "GET", &place, Value::Null).await;
    assert_eq!(operation.body["status"], "cancelled");
    let none = queue::claim(&server.store, "s").await.unwrap();
    assert!(none.is_none(), "nothing is left to do");
    let unknown = json!({ "tables": ["nope"] });
    assert_eq!(server.call(&key, "POST", "/v1/orgs/1/runs", unknown).await.status, 404);
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
    let log = audit::after(&server.store, 0, 100).await.unwrap();
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
    assert_eq!(committed.trim_end(), document, "changed on purpose? {hint}");
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
