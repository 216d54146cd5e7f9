//! An org of the store that cannot be read: its own routes say so, and nothing else is stopped.

use super::*;

#[tokio::test]
async fn an_org_that_cannot_be_read_is_told_of_and_given_anew() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let (own, foreign) =
        (server.key(Role::Writer, &["2"]).await, server.key(Role::Reader, &["1"]).await);
    let call = async |method: &str, path: &str, body: Value| {
        server.call(&operator, method, path, body).await
    };
    let url = format!("sqlite://{}", server.folder.path().join("c.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let sql = "UPDATE polder_desired SET adjusted = '{' WHERE kind = 'org' AND id = '2'";
    assert_eq!(sqlx::query(sql).execute(&pool).await.unwrap().rows_affected(), 1);
    pool.close().await;
    let listed = call("GET", "/v1/orgs", Value::Null).await;
    let orgs = listed.body["items"].as_array().unwrap();
    let told: Vec<_> = orgs.iter().map(|org| (&org["id"], org["unreadable"].is_null())).collect();
    assert_eq!(told, [(&json!("1"), true), (&json!("2"), false)]);
    for (method, path, body) in [
        ("GET", "/v1/orgs/2", Value::Null),
        ("GET", "/v1/orgs/2/tables/account", Value::Null),
        ("POST", "/v1/orgs/2/tables", json!({ "name": "account" })),
        ("PATCH", "/v1/orgs/2/tables/account?yes=true", json!({ "key": ["x"] })),
        ("POST", "/v1/orgs/2/runs", json!({})),
    ] {
        let refused = server.call(&own, method, path, body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{path}");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.starts_with("what the store has of the org cannot be read"), "{detail}");
        assert!(refused.body["hint"].as_str().unwrap().contains("POST /v1/orgs"), "{path}");
    }
    let patched = call("PATCH", "/v1/orgs/2", json!({ "name": "Two" })).await;
    assert_eq!(patched.code(), "spec.invalid", "nothing is laid over what nobody can read");
    let hidden = server.call(&foreign, "GET", "/v1/orgs/2", Value::Null).await;
    assert_eq!(hidden.status, StatusCode::NOT_FOUND, "{}", hidden.body);
    assert_eq!(call("GET", "/v1/orgs/1/tables", Value::Null).await.status, 200);
    let patch = json!({ "tables": { "account": { "description": "Who buys" } } });
    assert_eq!(call("PATCH", "/v1/templates/crm", patch).await.status, 200);
    // The server starts, and says so.
    let file = server.folder.path().join("polder.toml");
    let again = App::load(Some(&file)).unwrap().served().await.unwrap();
    let left = again.left.iter().find(|left| left.org == "2").unwrap();
    assert!(left.unreadable.is_some() && left.sentence().contains("POST /v1/orgs"));
    let new = json!({ "id": "2", "name": "Two", "template": "crm" });
    let dry = call("POST", "/v1/orgs?dry_run=true", new.clone()).await;
    assert_eq!(dry.status, StatusCode::OK, "{}", dry.body);
    assert_eq!(call("GET", "/v1/orgs/2", Value::Null).await.code(), "spec.invalid");
    let made = call("POST", "/v1/orgs", new.clone()).await;
    assert_eq!((made.status.as_u16(), &made.body["tables"]), (201, &json!(2)), "{}", made.body);
    assert_eq!(server.call(&own, "GET", "/v1/orgs/2/tables", Value::Null).await.status, 200);
    assert_eq!(call("POST", "/v1/orgs", new).await.code(), "control.conflict", "once");
}
