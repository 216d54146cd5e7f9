//! The protocol without a socket: requests in, status, headers and documents out.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use polder_control::Store;
use polder_core::spec::RateLimit;
use polder_lake::service::IcebergCatalog;
use polder_lake::{CatalogSettings, LakeSettings};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::{Settings, routes};
use crate::serve::{Clients, Ledger, Pace};

mod databases;
mod kept;
mod matrix;
mod noted;
mod races;
mod repetitions;
mod strangers;

use databases::{Database, PostgresDatabase, on_each};

const SECRET: &str = "0123456789abcdef";

on_each!(
    what_names_a_location_outside_is_refused_whichever_field_has_it,
    what_a_registered_file_says_is_held_to_the_same,
    locations_inside_are_taken_and_names_never_become_paths,
    a_client_of_an_org_knows_of_nothing_else,
    not_even_the_operator_moves_a_table_out_of_its_orgs_files,
    without_a_good_token_there_is_nothing,
    a_client_that_has_the_state_gets_no_body,
    what_another_server_commits_is_seen_at_once,
    listings_come_in_pages,
    a_request_with_a_key_is_carried_out_once,
    a_transaction_changes_all_tables_or_none,
    concurrent_commits_all_land,
    purging_removes_files_and_dropping_does_not,
    what_is_not_understood_is_refused_in_icebergs_error_model,
);

/// A catalog over a lake of its own.
struct Catalog {
    routes: Router,
    ledger: Arc<Ledger>,
    settings: LakeSettings,
    /// The control store's address.
    store: String,
    folder: Arc<TempDir>,
    postgres: Option<Arc<PostgresDatabase>>,
}

/// The routes over a lake and a store, and what they write down.
async fn served(
    settings: &LakeSettings,
    store: &str,
    clients: Clients,
    limit: RateLimit,
) -> (Router, Arc<Ledger>) {
    let catalog = IcebergCatalog::open(settings).await.unwrap();
    let store = Store::open(store).await.unwrap();
    let ledger = Arc::new(Ledger::new(store.clone()));
    let (clients, pace) = (Arc::new(clients), Pace::new(limit));
    let settings = Settings { catalog, clients, store, ledger: Arc::clone(&ledger), pace };
    (routes(settings, Arc::default()), ledger)
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn error_type(&self) -> &str {
        self.body["error"]["type"].as_str().unwrap_or_default()
    }

    fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}

impl Catalog {
    async fn open(database: Database) -> Self {
        Self::with(Clients::default(), database).await
    }

    /// With an operator `op` and a client `c1` of org 1.
    async fn with_clients(database: Database) -> Self {
        let mut clients = Clients::default();
        clients.add("op", &SecretString::from(SECRET), None).unwrap();
        let org = Some("1".parse().unwrap());
        clients.add("c1", &SecretString::from(SECRET.to_uppercase()), org).unwrap();
        Self::with(clients, database).await
    }

    async fn with(clients: Clients, database: Database) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let postgres = (database == Database::Postgres).then(PostgresDatabase::new);
        let url = match &postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite://{}", folder.path().join("c.db").display()),
        };
        let settings = LakeSettings {
            warehouse: folder.path().join("lake").display().to_string(),
            catalog: CatalogSettings::Sql(url.clone().into()),
            s3: None,
        };
        let (folder, postgres) = (Arc::new(folder), postgres.map(Arc::new));
        let (routes, ledger) = served(&settings, &url, clients, RateLimit::of_catalog()).await;
        Self { routes, ledger, settings, store: url, folder, postgres }
    }

    /// Another server over the same lake and store.
    async fn another(&self) -> Self {
        self.another_with(Clients::default()).await
    }

    async fn another_with(&self, clients: Clients) -> Self {
        self.limited(clients, RateLimit::of_catalog()).await
    }

    async fn limited(&self, clients: Clients, limit: RateLimit) -> Self {
        let (routes, ledger) = served(&self.settings, &self.store, clients, limit).await;
        let (settings, store) = (self.settings.clone(), self.store.clone());
        let (folder, postgres) = (Arc::clone(&self.folder), self.postgres.clone());
        Self { routes, ledger, settings, store, folder, postgres }
    }

    fn warehouse(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.send_text(method, path, headers, text).await
    }

    async fn send_text(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let (parts, body) = self.routes.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &Value::Null).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body).await
    }

    async fn namespace(&self, name: &str) {
        let made = self.post("/v1/namespaces", &json!({ "namespace": [name] })).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    }

    async fn table(&self, namespace: &str, name: &str) -> Answer {
        let path = format!("/v1/namespaces/{namespace}/tables");
        let made = self.post(&path, &new_table(name)).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
        made
    }

    /// Every file below the warehouse.
    fn files(&self) -> Vec<PathBuf> {
        fn below(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        below(&self.warehouse(), &mut found);
        found
    }

    async fn token(&self, id: &str, secret: &str) -> Answer {
        let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        let kind = ("content-type", "application/x-www-form-urlencoded");
        self.send_text("POST", "/v1/oauth/tokens", &[kind], form).await
    }

    async fn bearer(&self, id: &str, secret: &str) -> String {
        let answer = self.token(id, secret).await;
        format!("Bearer {}", answer.body["access_token"].as_str().unwrap())
    }
}

fn schema() -> Value {
    json!({
        "type": "struct", "schema-id": 0,
        "fields": [{ "id": 1, "name": "id", "required": true, "type": "long" }],
    })
}

fn new_table(name: &str) -> Value {
    json!({ "name": name, "schema": schema() })
}

fn new_view(name: &str) -> Value {
    json!({
        "name": name, "schema": schema(), "properties": {}, "view-version": {
            "version-id": 1, "schema-id": 0, "timestamp-ms": 1, "summary": {},
            "default-namespace": [], "representations": [
                { "type": "sql", "sql": "select 1", "dialect": "spark" }
            ],
        },
    })
}

/// Iceberg's properties of tables and views that are locations.
const PATHS: [&str; 5] = [
    "write.data.path",
    "write.metadata.path",
    "write.folder-storage.path",
    "write.object-storage.path",
    "write.location-provider.path",
];

fn set(key: &str, value: &str) -> Value {
    json!({ "requirements": [], "updates": [
        { "action": "set-properties", "updates": { key: value } }
    ] })
}

async fn what_names_a_location_outside_is_refused_whichever_field_has_it(database: Database) {
    let catalog = Catalog::open(database).await;
    for name in ["org_1", "org_2", "free"] {
        catalog.namespace(name).await;
        catalog.table(name, "t").await;
        let made =
            catalog.post(&format!("/v1/namespaces/{name}/views"), &new_view("present")).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    }
    let found = catalog.get("/v1/namespaces/org_2/tables/t").await;
    let theirs = found.body["metadata"]["location"].as_str().unwrap().to_owned();
    let theirs_metadata = found.body["metadata-location"].as_str().unwrap().to_owned();
    let own = catalog.get("/v1/namespaces/org_1").await.body["properties"]["location"].clone();
    let own = own.as_str().unwrap();
    let (_, other) = theirs.rsplit_once("/lake/").unwrap();
    let before = catalog.files();
    let outside = [
        theirs.clone(),
        format!("{theirs}/deeper"),
        format!("{own}/../{other}"),
        format!("{own}/%2e%2e/{other}"),
        format!("{own}/..%2F{other}"),
        format!("file://{}", catalog.folder.path().join("x").display()),
        "file:///etc/x".to_owned(),
        "s3://other/x".to_owned(),
        "x".to_owned(),
        String::new(),
    ];
    for namespace in ["org_1", "free"] {
        for location in &outside {
            let all = requests(namespace, location, &theirs_metadata);
            for (path, body) in all.into_iter().chain(changes(namespace, location)) {
                let answer = catalog.post(&path, &body).await;
                assert!(answer.status.is_client_error(), "{path} {body}: {}", answer.body);
                assert_eq!(answer.error_type(), "ForbiddenException", "{path} {body}");
            }
        }
    }
    assert_eq!(catalog.files(), before, "nothing was written");
    assert!(!catalog.folder.path().join("x").exists());
}

/// Every request that can name a location.
fn requests(namespace: &str, location: &str, metadata: &str) -> Vec<(String, Value)> {
    let of = |rest: &str| format!("/v1/namespaces/{namespace}{rest}");
    let with = |mut body: Value, key: &str, value: Value| {
        body[key] = value;
        body
    };
    let properties = |key: &str| json!({ key: location });
    let view = new_view("v");
    let replace = json!({ "requirements": [], "updates": [
        { "action": "set-location", "location": location }
    ] });
    let create = json!({ "requirements": [{ "type": "assert-create" }], "updates": [
        { "action": "add-schema", "schema": schema() },
        { "action": "set-current-schema", "schema-id": -1 },
        { "action": "set-location", "location": location }
    ] });
    let snapshot = json!({ "requirements": [], "updates": [{ "action": "add-snapshot", "snapshot": {
        "snapshot-id": 1, "sequence-number": 1, "timestamp-ms": 4_000_000_000_000_i64,
        "manifest-list": location, "summary": { "operation": "append" }, "schema-id": 0,
    } }] });
    let mut identified = set("write.data.path", location);
    identified["identifier"] = json!({ "namespace": [namespace], "name": "t" });
    let mut requests = vec![
        (of("/tables"), with(new_table("n"), "location", location.into())),
        (of("/tables/t"), snapshot),
        (of("/tables/n"), create),
        (of("/tables/t"), replace),
        ("/v1/transactions/commit".to_owned(), json!({ "table-changes": [identified] })),
        (of("/register"), json!({ "name": "n", "metadata-location": metadata })),
        (of("/register"), json!({ "name": "n", "metadata-location": location })),
        (of("/register-view"), json!({ "name": "n", "metadata-location": location })),
        (of("/views"), with(view.clone(), "location", location.into())),
        (of("/views"), with(view, "properties", properties("write.metadata.path"))),
    ];
    let staged = with(new_table("n"), "stage-create", true.into());
    requests.push((of("/tables"), with(staged.clone(), "location", location.into())));
    for key in PATHS {
        requests.push((of("/tables"), with(new_table("n"), "properties", properties(key))));
        requests.push((of("/tables"), with(staged.clone(), "properties", properties(key))));
        requests.push((of("/tables/t"), set(key, location)));
    }
    requests
}

/// Every change of what is there that can name a location.
fn changes(namespace: &str, location: &str) -> Vec<(String, Value)> {
    let (table, view) = ("tables/t", "views/present");
    let mut updates = vec![
        (view, json!({ "action": "set-location", "location": location })),
        (
            table,
            json!({ "action": "set-statistics", "snapshot-id": 1, "statistics": {
            "snapshot-id": 1, "statistics-path": location, "file-size-in-bytes": 1,
            "file-footer-size-in-bytes": 1, "blob-metadata": [],
        } }),
        ),
        (
            table,
            json!({ "action": "set-partition-statistics", "partition-statistics": {
            "snapshot-id": 1, "statistics-path": location, "file-size-in-bytes": 1,
        } }),
        ),
    ];
    let set = |key: &str| json!({ "action": "set-properties", "updates": { key: location } });
    updates.extend(PATHS.map(|key| (view, set(key))));
    let request = |(of, update): (&str, Value)| {
        let body = json!({ "requirements": [], "updates": [update] });
        (format!("/v1/namespaces/{namespace}/{of}"), body)
    };
    updates.into_iter().map(request).collect()
}

/// A file of one's own that says that a table's files, or a state of it, are elsewhere.
async fn what_a_registered_file_says_is_held_to_the_same(database: Database) {
    let catalog = Catalog::open(database).await;
    for name in ["org_1", "org_2"] {
        catalog.namespace(name).await;
        catalog.table(name, "t").await;
    }
    let found = |name: &str| format!("/v1/namespaces/{name}/tables/t");
    let own = catalog.get(&found("org_1")).await.body;
    let theirs = catalog.get(&found("org_2")).await.body["metadata"]["location"].clone();
    let log = json!([{ "timestamp-ms": 1, "metadata-file": theirs }]);
    let statistics = json!([{ "snapshot-id": 1, "statistics-path": theirs,
        "file-size-in-bytes": 1, "file-footer-size-in-bytes": 1, "blob-metadata": [] }]);
    let told = [
        ("location", theirs.clone()),
        ("properties", json!({ "write.data.path": theirs })),
        ("metadata-log", log),
        ("statistics", statistics),
    ];
    let folder = own["metadata"]["location"].as_str().unwrap();
    for (number, (field, value)) in told.into_iter().enumerate() {
        let mut said = own["metadata"].clone();
        said[field] = value;
        let location = format!("{folder}/metadata/told-{number}.metadata.json");
        let path = location.strip_prefix("file://").unwrap();
        std::fs::write(path, said.to_string()).unwrap();
        let body = json!({ "name": "n", "metadata-location": location });
        let refused = catalog.post("/v1/namespaces/org_1/register", &body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{field}: {}", refused.body);
        assert_eq!(
            catalog.get("/v1/namespaces/org_1/tables/n").await.status,
            StatusCode::NOT_FOUND
        );
    }
}

async fn locations_inside_are_taken_and_names_never_become_paths(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("org_1").await;
    let own = catalog.get("/v1/namespaces/org_1").await.body["properties"]["location"].clone();
    let own = own.as_str().unwrap();
    let mut body = new_table("t");
    body["location"] = json!(format!("{own}/mine/"));
    body["properties"] = json!({ "write.metadata.path": format!("{own}/mine/meta") });
    let made = catalog.post("/v1/namespaces/org_1/tables", &body).await;
    assert_eq!(made.body["metadata"]["location"], format!("{own}/mine"));
    let metadata = made.body["metadata-location"].as_str().unwrap();
    assert!(metadata.starts_with(&format!("{own}/mine/meta/00000-")), "{metadata}");
    for name in ["../../up", "/etc/passwd", "a/b", "..", "%2e%2e", "s3://x/y"] {
        let made = catalog.table("org_1", name).await;
        let location = made.body["metadata"]["location"].as_str().unwrap();
        let (folder, id) = location.rsplit_once('/').unwrap();
        assert_eq!(folder, own);
        assert!(uuid::Uuid::try_parse(id).is_ok(), "{location}");
    }
    let found = catalog.get("/v1/namespaces/org_1/tables/..%2F..%2Fup").await;
    assert_eq!(found.status, StatusCode::OK);
}

async fn a_client_of_an_org_knows_of_nothing_else(database: Database) {
    let catalog = Catalog::with_clients(database).await;
    let operator = catalog.bearer("op", SECRET).await;
    let client = catalog.bearer("c1", &SECRET.to_uppercase()).await;
    let as_operator = [("authorization", operator.as_str())];
    let as_client = [("authorization", client.as_str())];
    for name in ["org_1", "org_2", "free"] {
        let body = json!({ "namespace": [name] });
        let made = catalog.send("POST", "/v1/namespaces", &as_operator, &body).await;
        assert_eq!(made.status, StatusCode::OK);
        let path = format!("/v1/namespaces/{name}/tables");
        catalog.send("POST", &path, &as_operator, &new_table("t")).await;
    }
    let none = Value::Null;
    let listed = catalog.send("GET", "/v1/namespaces", &as_client, &none).await;
    assert_eq!(listed.body["namespaces"], json!([["org_1"]]));
    let own = catalog.send("GET", "/v1/namespaces/org_1/tables/t", &as_client, &none).await;
    assert_eq!(own.status, StatusCode::OK);
    for name in ["org_2", "free", "nowhere"] {
        for (method, rest, kind) in [
            ("GET", "", "NoSuchNamespaceException"),
            ("DELETE", "", "NoSuchNamespaceException"),
            ("GET", "/tables", "NoSuchNamespaceException"),
            ("GET", "/tables/t", "NoSuchTableException"),
            ("DELETE", "/tables/t?purgeRequested=true", "NoSuchTableException"),
            ("GET", "/views", "NoSuchNamespaceException"),
            ("GET", "/views/v", "NoSuchViewException"),
        ] {
            let path = format!("/v1/namespaces/{name}{rest}");
            let answer = catalog.send(method, &path, &as_client, &none).await;
            assert_eq!((answer.status.as_u16(), answer.error_type()), (404, kind), "{path}");
        }
        let path = format!("/v1/namespaces/{name}/tables");
        let made = catalog.send("POST", &path, &as_client, &new_table("x")).await;
        assert_eq!(made.error_type(), "NoSuchNamespaceException");
        let rename = json!({
            "source": { "namespace": ["org_1"], "name": "t" },
            "destination": { "namespace": [name], "name": "t2" },
        });
        let moved = catalog.send("POST", "/v1/tables/rename", &as_client, &rename).await;
        assert_eq!(moved.error_type(), "NoSuchNamespaceException");
        let mut change = set("a", "b");
        change["identifier"] = json!({ "namespace": [name], "name": "t" });
        let body = json!({ "table-changes": [change] });
        let changed = catalog.send("POST", "/v1/transactions/commit", &as_client, &body).await;
        assert_eq!(changed.error_type(), "NoSuchTableException");
    }
    let body = json!({ "namespace": ["mine"] });
    let made = catalog.send("POST", "/v1/namespaces", &as_client, &body).await;
    assert_eq!(made.status, StatusCode::FORBIDDEN);
    let body = json!({ "namespace": ["org_1", "sub"] });
    let made = catalog.send("POST", "/v1/namespaces", &as_client, &body).await;
    assert_eq!(made.status, StatusCode::OK);
}

async fn not_even_the_operator_moves_a_table_out_of_its_orgs_files(database: Database) {
    let catalog = Catalog::open(database).await;
    for name in ["org_1", "org_2", "free"] {
        catalog.namespace(name).await;
    }
    catalog.table("org_1", "t").await;
    for name in ["org_2", "free"] {
        let rename = json!({
            "source": { "namespace": ["org_1"], "name": "t" },
            "destination": { "namespace": [name], "name": "t" },
        });
        let moved = catalog.post("/v1/tables/rename", &rename).await;
        assert_eq!(moved.status, StatusCode::FORBIDDEN);
    }
    for (updates, removals) in [
        (json!({ "polder.org-uuid": "x" }), json!([])),
        (json!({ "location": "file:///x" }), json!([])),
        (json!({}), json!(["polder.org-uuid"])),
        (json!({}), json!(["location"])),
    ] {
        let body = json!({ "updates": updates, "removals": removals });
        let changed = catalog.post("/v1/namespaces/org_1/properties", &body).await;
        assert_eq!(changed.status, StatusCode::BAD_REQUEST, "{body}");
    }
}

async fn without_a_good_token_there_is_nothing(database: Database) {
    let catalog = Catalog::with_clients(database).await;
    for path in ["/v1/config", "/v1/namespaces", "/v1/namespaces/a/tables/t"] {
        let answer = catalog.get(path).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.error_type(), "NotAuthorizedException");
    }
    let wrong = catalog.token("op", "0123456789abcdeg").await;
    assert_eq!((wrong.status.as_u16(), &wrong.body["error"]), (401, &json!("invalid_client")));
    let right = catalog.token("op", SECRET).await;
    assert_eq!(right.headers["cache-control"], "no-store");
    assert_eq!(right.body["token_type"], "bearer");
    let token = right.body["access_token"].as_str().unwrap();
    let form = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
         &subject_token={token}&subject_token_type=x"
    );
    let kind = ("content-type", "application/x-www-form-urlencoded");
    let renewed = catalog.send_text("POST", "/v1/oauth/tokens", &[kind], form).await;
    let bearer = format!("Bearer {}", renewed.body["access_token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str())];
    let config = catalog.send("GET", "/v1/config", &headers, &Value::Null).await;
    assert_eq!(config.status, StatusCode::OK);
    let form = "grant_type=password".to_owned();
    let refused = catalog.send_text("POST", "/v1/oauth/tokens", &[kind], form).await;
    assert_eq!(refused.body["error"], "unsupported_grant_type");
}

async fn a_client_that_has_the_state_gets_no_body(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    let made = catalog.table("a", "t").await;
    let path = "/v1/namespaces/a/tables/t";
    let tag = made.headers["etag"].to_str().unwrap().to_owned();
    let has = [("if-none-match", tag.as_str())];
    let same = catalog.send("GET", path, &has, &Value::Null).await;
    assert_eq!((same.status, &same.body), (StatusCode::NOT_MODIFIED, &Value::Null));
    let refs = catalog.send("GET", &format!("{path}?snapshots=refs"), &has, &Value::Null).await;
    assert_eq!(refs.status, StatusCode::OK);
    let changed = catalog.post(path, &set("a", "b")).await;
    assert_ne!(changed.headers["etag"].to_str().unwrap(), tag);
    let fresh = catalog.send("GET", path, &has, &Value::Null).await;
    assert_eq!(fresh.body["metadata"]["properties"]["a"], "b");
}

async fn what_another_server_commits_is_seen_at_once(database: Database) {
    let one = Catalog::open(database).await;
    let other = one.another().await;
    one.namespace("a").await;
    one.table("a", "t").await;
    let path = "/v1/namespaces/a/tables/t";
    let mut tag = String::new();
    for round in 0..40 {
        let (writes, reads) = if round % 3 == 0 { (&one, &other) } else { (&other, &one) };
        let value = round.to_string();
        let made = writes.post(path, &set("round", &value)).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.body);
        for server in [reads, writes] {
            let has = [("if-none-match", tag.as_str())];
            let found = server.send("GET", path, &has, &Value::Null).await;
            assert_eq!(found.body["metadata"]["properties"]["round"], value);
            assert_eq!(found.body, made.body);
        }
        tag = made.headers["etag"].to_str().unwrap().to_owned();
    }
    for server in [&one, &other] {
        let has = [("if-none-match", tag.as_str())];
        let found = server.send("GET", path, &has, &Value::Null).await;
        assert_eq!(found.status, StatusCode::NOT_MODIFIED);
    }
    // A text that is kept in memory may not outlive its file.
    let location = one.get(path).await.body["metadata-location"].as_str().unwrap().to_owned();
    std::fs::remove_file(location.strip_prefix("file://").unwrap()).unwrap();
    for server in [&one, &other] {
        let gone = server.get(path).await;
        assert_eq!((gone.status.as_u16(), gone.error_type()), (404, "NotFoundException"));
    }
}

async fn listings_come_in_pages(database: Database) {
    let catalog = Catalog::open(database).await;
    for name in ["a", "b", "c"] {
        catalog.namespace(name).await;
        catalog.table("a", name).await;
    }
    for (path, key) in
        [("/v1/namespaces", "namespaces"), ("/v1/namespaces/a/tables", "identifiers")]
    {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let page = catalog.get(&format!("{path}?pageSize=2&pageToken={token}")).await;
            seen.extend(page.body[key].as_array().unwrap().clone());
            match page.body["next-page-token"].as_str() {
                Some(next) => next.clone_into(&mut token),
                None => break,
            }
        }
        assert_eq!(json!(seen), catalog.get(path).await.body[key], "{path}");
        assert_eq!(seen.len(), 3);
    }
}

async fn a_request_with_a_key_is_carried_out_once(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    let key = [("idempotency-key", "01977c2e-0000-7000-8000-000000000001")];
    let path = "/v1/namespaces/a/tables";
    let body = new_table("t");
    let (first, second) = tokio::join!(
        catalog.send("POST", path, &key, &body),
        catalog.send("POST", path, &key, &body),
    );
    assert_eq!((first.status, &first.body), (StatusCode::OK, &second.body));
    assert_eq!(first.headers["etag"], second.headers["etag"]);
    let without = catalog.post(path, &new_table("t")).await;
    assert_eq!(without.error_type(), "AlreadyExistsException");
    let other = catalog.send("POST", path, &key, &new_table("u")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    let bad = catalog.send("POST", path, &[("idempotency-key", "1")], &new_table("u")).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let key = [("idempotency-key", "01977c2e-0000-7000-8000-000000000002")];
    for _ in 0..2 {
        let gone = catalog.send("DELETE", &format!("{path}/t"), &key, &Value::Null).await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT);
    }
}

async fn a_transaction_changes_all_tables_or_none(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    for name in ["t", "u"] {
        catalog.table("a", name).await;
    }
    let before = catalog.files().len();
    let change = |name: &str, schema_id: i32| {
        let mut change = set("k", "v");
        change["identifier"] = json!({ "namespace": ["a"], "name": name });
        change["requirements"] =
            json!([{ "type": "assert-current-schema-id", "current-schema-id": schema_id }]);
        change
    };
    let body = json!({ "table-changes": [change("t", 0), change("u", 7)] });
    let refused = catalog.post("/v1/transactions/commit", &body).await;
    assert_eq!((refused.status.as_u16(), refused.error_type()), (409, "CommitFailedException"));
    assert_eq!(refused.message(), "Requirement failed: current schema changed: expected id 7 != 0");
    assert_eq!(catalog.files().len(), before, "the first table's new metadata is gone again");
    let body = json!({ "table-changes": [change("t", 0), change("t", 0)] });
    assert_eq!(catalog.post("/v1/transactions/commit", &body).await.status.as_u16(), 400);
    let body = json!({ "table-changes": [change("t", 0), change("u", 0)] });
    let done = catalog.post("/v1/transactions/commit", &body).await;
    assert_eq!(done.status, StatusCode::NO_CONTENT);
    for name in ["t", "u"] {
        let found = catalog.get(&format!("/v1/namespaces/a/tables/{name}")).await;
        assert_eq!(found.body["metadata"]["properties"]["k"], "v");
    }
}

async fn concurrent_commits_all_land(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    catalog.table("a", "t").await;
    let commits = (0..6).map(|n| {
        let body = set(&format!("k{n}"), "v");
        let catalog = &catalog;
        async move { catalog.post("/v1/namespaces/a/tables/t", &body).await.status }
    });
    let done = futures::future::join_all(commits).await;
    assert!(done.iter().all(|status| *status == StatusCode::OK), "{done:?}");
    let found = catalog.get("/v1/namespaces/a/tables/t").await;
    assert_eq!(found.body["metadata"]["properties"].as_object().unwrap().len(), 6);
}

async fn purging_removes_files_and_dropping_does_not(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    let made = catalog.table("a", "t").await;
    let path = "/v1/namespaces/a/tables/t";
    let dropped = catalog.send("DELETE", path, &[], &Value::Null).await;
    assert_eq!((dropped.status.as_u16(), catalog.files().len()), (204, 1));
    let body = json!({ "name": "t", "metadata-location": made.body["metadata-location"] });
    let again = catalog.post("/v1/namespaces/a/register", &body).await;
    assert_eq!(again.body["metadata"]["table-uuid"], made.body["metadata"]["table-uuid"]);
    let purge = format!("{path}?purgeRequested=true");
    let purged = catalog.send("DELETE", &purge, &[], &Value::Null).await;
    assert_eq!((purged.status.as_u16(), catalog.files().len()), (204, 0));
    let gone = catalog.send("DELETE", &purge, &[], &Value::Null).await;
    assert_eq!(gone.message(), "Table does not exist: a.t");
}

async fn what_is_not_understood_is_refused_in_icebergs_error_model(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    catalog.table("a", "t").await;
    let unknown = json!({ "requirements": [], "updates": [{ "action": "explode" }] });
    let requirement = json!({ "requirements": [{ "type": "assert-luck" }], "updates": [] });
    for (path, body, status) in [
        ("/v1/namespaces/a/tables/t", unknown, 400),
        ("/v1/namespaces/a/tables/t", requirement, 400),
        ("/v1/namespaces/a/tables", json!({ "name": "x" }), 400),
        ("/v1/namespaces/a/tables", json!([]), 400),
        ("/v1/namespaces", json!({ "namespace": [] }), 400),
        ("/v1/namespaces", json!({ "namespace": [""] }), 400),
        ("/v1/namespaces", json!({ "namespace": ["a\u{0}"] }), 400),
        ("/v1/namespaces", json!({ "namespace": ["no", "parent"] }), 404),
        ("/v1/nothing", json!({}), 404),
    ] {
        let answer = catalog.post(path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}");
        assert_eq!(answer.body["error"]["code"], status, "{path} {body}");
        assert!(!answer.message().is_empty() && !answer.error_type().is_empty());
    }
}
