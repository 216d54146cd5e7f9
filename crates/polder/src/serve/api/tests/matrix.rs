//! Who may what, of every route that the API's description has: every role, in its own org, in
//! another's and in one that is not there.

use polder_core::Right;

use super::*;

/// What a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It was let in: anything but 401, 403, and 404 for want of the org.
    In,
    Forbidden,
    /// As for an org that is not there.
    NoOrg,
}

/// The right that each route needs, by method and path; every route has to be here.
fn needs(method: &str, path: &str) -> Right {
    match (method, path) {
        // A source of files, as here: names of folders may be other orgs' ids.
        ("post", "/v1/orgs" | "/v1/sources/{source}/pause" | "/v1/sources/{source}/resume")
        | ("delete", "/v1/orgs/{org}")
        | ("put" | "patch" | "delete", "/v1/templates/{template}")
        | (
            "get",
            "/v1/templates/{template}/history"
            | "/v1/sources/{source}"
            | "/v1/sources/{source}/tables",
        ) => Right::Operate,
        // Which keys are theirs: `key_routes.rs`.
        ("patch", "/v1/orgs/{org}")
        | (
            "post",
            "/v1/orgs/{org}/pause" | "/v1/orgs/{org}/resume" | "/v1/keys"
            | "/v1/keys/{key}/rotate",
        )
        | ("get", "/v1/keys" | "/v1/keys/{key}")
        | ("delete", "/v1/keys/{key}") => Right::Administer,
        (
            "post",
            "/v1/orgs/{org}/tables"
            | "/v1/orgs/{org}/runs"
            | "/v1/orgs/{org}/runs/{run}/cancel"
            | "/v1/orgs/{org}/runs/{run}/retry"
            | "/v1/orgs/{org}/tables/{table}/pause"
            | "/v1/orgs/{org}/tables/{table}/resume"
            | "/v1/orgs/{org}/tables/{table}/rollback"
            | "/v1/orgs/{org}/tables/{table}/undo"
            | "/v1/orgs/{org}/tables/{table}/validations",
        )
        | ("patch" | "delete", "/v1/orgs/{org}/tables/{table}") => Right::Write,
        (
            "get",
            "/v1/orgs"
            | "/v1/orgs/{org}"
            | "/v1/orgs/{org}/history"
            | "/v1/orgs/{org}/usage"
            | "/v1/orgs/{org}/bootstrap"
            | "/v1/orgs/{org}/tables"
            | "/v1/orgs/{org}/tables/{table}"
            | "/v1/orgs/{org}/tables/{table}/schema"
            | "/v1/orgs/{org}/tables/{table}/sample"
            | "/v1/orgs/{org}/tables/{table}/versions"
            | "/v1/orgs/{org}/tables/{table}/maintenance"
            | "/v1/orgs/{org}/tables/{table}/validations"
            | "/v1/orgs/{org}/tables/{table}/validations/{validation}"
            | "/v1/orgs/{org}/runs"
            | "/v1/orgs/{org}/runs/{run}"
            | "/v1/orgs/{org}/runs/{run}/events"
            | "/v1/orgs/{org}/runs/{run}/logs"
            | "/v1/orgs/{org}/schedules"
            | "/v1/operations/{operation}"
            // Which of them: `template_routes.rs`.
            | "/v1/templates"
            | "/v1/templates/{template}"
            | "/v1/sources"
            // For everybody; what more it tells operators: `health.rs`.
            | "/v1/health",
        )
        | ("post", "/v1/query") => Right::Read,
        _ => panic!("{method} {path} is not in the matrix: say which right it needs"),
    }
}

/// A body that each changing route takes.
fn body(method: &str, path: &str) -> Value {
    match (method, path) {
        ("post", "/v1/orgs") => json!({ "id": "77" }),
        ("patch", "/v1/orgs/{org}") => json!({ "name": "x" }),
        ("post", "/v1/orgs/{org}/tables") => json!({ "name": "account" }),
        ("patch", "/v1/orgs/{org}/tables/{table}") => json!({ "key": ["id"] }),
        ("post", "/v1/orgs/{org}/tables/{table}/rollback") => json!({ "to": "v1" }),
        ("post", "/v1/orgs/{org}/runs") => json!({}),
        ("put", "/v1/templates/{template}") => json!({ "tables": [] }),
        ("patch", "/v1/templates/{template}") => json!({ "schedule": null }),
        ("post", "/v1/keys") => json!({ "role": "reader", "orgs": ["1"] }),
        ("post", "/v1/query") => json!({ "sql": "SELECT 1" }),
        _ => Value::Null,
    }
}

/// Every method and path of the description.
fn described() -> Vec<(String, String)> {
    let document = api_description();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            found.push((method.clone(), path.clone()));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

fn told(answer: &Answer, org: &str) -> Told {
    let no_org = format!("there is no org {org:?}");
    match answer.status {
        StatusCode::UNAUTHORIZED => panic!("a good key was refused: {}", answer.body),
        StatusCode::FORBIDDEN => Told::Forbidden,
        StatusCode::NOT_FOUND if answer.body["detail"] == no_org => Told::NoOrg,
        _ => Told::In,
    }
}

#[tokio::test]
async fn every_route_and_role_in_ones_own_org_in_anothers_and_in_none() {
    let server = Server::new().await;
    for role in Role::ALL {
        let own: &[&str] = if role == Role::Operator { &[] } else { &["1"] };
        let key = server.key(role, own).await;
        for (method, path) in described() {
            let right = needs(&method, &path);
            for org in ["1", "2", "none"] {
                let filled = path.replace("{org}", org).replace("{table}", "opportunity");
                let filled = filled.replace("{source}", "files").replace("{template}", "crm");
                let filled = filled.replace("{key}", "plk_000000000000");
                let filled = filled.replace("{run}", "01977c2e-0000-7000-8000-000000000001");
                let filled = filled.replace("{operation}", "01977c2e-0000-7000-8000-000000000002");
                let dry = if method == "get" { "" } else { "?dry_run=true" };
                let method = method.to_uppercase();
                let body = body(&method.to_lowercase(), &path);
                let answer = server.call(&key, &method, &format!("{filled}{dry}"), body).await;
                let of_org = path.contains("{org}");
                let expect = match (of_org, org) {
                    (true, "none") => Told::NoOrg,
                    (true, "2") if role != Role::Operator => Told::NoOrg,
                    _ if role.has(right) => Told::In,
                    _ => Told::Forbidden,
                };
                // A run or table that is not there is looked for only where one is let in.
                let place = format!("{} {method} {filled}: {}", role.as_str(), answer.body);
                assert_eq!(told(&answer, org), expect, "{place}");
                assert!(!answer.status.is_server_error(), "{place}");
            }
        }
    }
}

#[tokio::test]
async fn an_org_of_others_looks_exactly_like_none() {
    let server = Server::new().await;
    let key = server.key(Role::Admin, &["1"]).await;
    for (method, path) in described().into_iter().filter(|(_, path)| path.contains("{org}")) {
        let sent = |org: &'static str| {
            let path = path.replace("{org}", org).replace("{table}", "opportunity");
            let path = path.replace("{run}", "01977c2e-0000-7000-8000-000000000001");
            let (server, key, method) = (&server, &key, method.to_uppercase());
            async move { server.call(key, &method, &path, json!({})).await }
        };
        let (foreign, none) = (sent("2").await, sent("9").await);
        let text = foreign.body.to_string().replace("\\\"2\\\"", "\\\"9\\\"");
        assert_eq!((foreign.status, text), (none.status, none.body.to_string()), "{method} {path}");
        let names = |answer: &Answer| {
            let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(&foreign), names(&none), "{method} {path}");
    }
}

#[tokio::test]
async fn without_a_good_key_there_is_nothing() {
    let server = Server::new().await;
    for (method, path) in described().into_iter().filter(|(_, path)| path != "/v1/health") {
        let path = path.replace("{org}", "1").replace("{table}", "t").replace("{run}", "r");
        let path = path.replace("{operation}", "o").replace("{source}", "files");
        let path = path.replace("{template}", "crm").replace("{key}", "plk_0");
        for key in ["", "plk_0_0", "polder1.1.2.3"] {
            let answer = server.call(key, &method.to_uppercase(), &path, json!({})).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} {key:?}");
        }
    }
}

/// The description names what the router has: a request to each path is answered by its route.
#[tokio::test]
async fn every_described_route_is_there() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    for (method, path) in described() {
        let answer = server.call(&key, &method.to_uppercase(), &path, Value::Null).await;
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(!detail.starts_with("there is nothing at"), "{method} {path}");
        assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }
}

/// Whatever the route, and whether or not it would have been carried out.
#[tokio::test]
async fn a_dry_run_is_offered_by_every_change_and_changes_nothing() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let runs = json!({ "tables": ["opportunity"] });
    let queued = server.call(&key, "POST", "/v1/orgs/1/runs", runs).await;
    let run = queued.body["runs"][0]["id"].as_str().unwrap().to_owned();
    let keys = server.call(&key, "GET", "/v1/keys", Value::Null).await;
    let id = keys.body["items"][0]["id"].as_str().unwrap().to_owned();
    let state = async || {
        let mut state = Vec::new();
        for path in [
            "/v1/orgs",
            "/v1/templates",
            "/v1/keys",
            "/v1/sources",
            "/v1/orgs/1/history",
            "/v1/orgs/1/tables",
            "/v1/orgs/1/runs",
            "/v1/orgs/1/schedules",
            "/v1/templates/crm/history",
        ] {
            let answer = server.call(&key, "GET", path, Value::Null).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
            state.push(answer.body);
        }
        state
    };
    let before = state().await;
    let document = api_description();
    for (method, path) in described().into_iter().filter(|(method, _)| method != "get") {
        if path == "/v1/query" {
            continue;
        }
        let operation = &document["paths"][&path][&method];
        let offered = operation["parameters"].as_array().into_iter().flatten();
        let mut offered = offered.filter(|one| one["in"] == "query");
        assert!(offered.any(|one| one["name"] == "dry_run"), "{method} {path}");
        let filled = path.replace("{org}", "1").replace("{table}", "opportunity");
        let filled = filled.replace("{source}", "files").replace("{template}", "crm");
        let filled = filled.replace("{run}", &run).replace("{key}", &id);
        let sent = body(&method, &path);
        let (method, tried) = (method.to_uppercase(), format!("{filled}?dry_run=true"));
        let answer = server.call(&key, &method, &tried, sent).await;
        assert!(!answer.status.is_server_error(), "{method} {path}: {}", answer.body);
        assert_ne!(answer.status, StatusCode::CREATED, "{method} {path}");
        assert_ne!(answer.status, StatusCode::ACCEPTED, "{method} {path}");
        assert_eq!(state().await, before, "{method} {path}");
    }
}
