//! What keeps less, as the API has it: shown while it waits, taken back, and no way around the yes.

use super::*;

const TABLE: &str = "/v1/orgs/1/tables/opportunity";

fn keep(keep: &str) -> Value {
    json!({ "retention": { "column": "at", "keep": keep } })
}

#[tokio::test]
async fn what_keeps_less_is_shown_while_it_waits_and_taken_back() {
    let server = Server::new().await;
    let writer = server.key(Role::Writer, &["1"]).await;
    let call = async |method: &str, path: &str, body: Value| {
        server.call(&writer, method, path, body).await
    };
    let undo = format!("{TABLE}/undo");
    let nothing = call("POST", &undo, Value::Null).await;
    assert_eq!((nothing.status.as_u16(), nothing.code()), (409, "control.conflict"));
    let said = call("PATCH", &format!("{TABLE}?yes=true"), keep("6 months")).await;
    assert_eq!(said.status, StatusCode::OK, "{}", said.body);
    let found = call("GET", TABLE, Value::Null).await;
    for answer in [&said, &found] {
        let pending = &answer.body["pending"];
        let goes = pending["goes"][0].as_str().unwrap();
        assert!(goes.starts_with("retention: for ever -> 6 months"), "{pending}");
        assert!(pending["who"].as_str().unwrap().starts_with("key:plk_"), "{pending}");
        let until = chrono::DateTime::parse_from_rfc3339(pending["until"].as_str().unwrap());
        let minutes = (until.unwrap().to_utc() - chrono::Utc::now()).num_minutes();
        assert!((23 * 60..=24 * 60).contains(&minutes), "{pending}");
        assert_eq!(answer.body["spec"]["retention"]["keep"], "6 months", "what was said");
    }
    assert_eq!(said.body["effect"]["goes"].as_array().unwrap().len(), 1);
    let dry = call("POST", &format!("{undo}?dry_run=true"), Value::Null).await;
    assert_eq!((dry.status, &dry.body["spec"]["retention"]), (StatusCode::OK, &Value::Null));
    assert_ne!(call("GET", TABLE, Value::Null).await.body["pending"], Value::Null);
    let back = call("POST", &undo, Value::Null).await;
    assert_eq!(back.status, StatusCode::OK, "{}", back.body);
    assert_eq!(
        (&back.body["spec"]["retention"], &back.body["pending"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(call("POST", &undo, Value::Null).await.status, 409, "once");
    let stale = server
        .send(
            "POST",
            &undo,
            &[("authorization", &format!("Bearer {writer}")), ("if-match", said.header("etag"))],
            &Value::Null,
        )
        .await;
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED, "{}", stale.body);
    let log = server.log().await;
    let entry = log.iter().rfind(|entry| entry.action.ends_with("/undo")).unwrap();
    assert_eq!(entry.org.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_table_that_comes_back_to_keep_less_needs_a_yes() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let call = async |method: &str, path: &str, body: Value| {
        server.call(&operator, method, path, body).await
    };
    assert_eq!(call("PATCH", TABLE, keep("2 years")).await.status, 409, "it kept all");
    assert_eq!(call("PATCH", &format!("{TABLE}?yes=true"), keep("2 years")).await.status, 200);
    assert_eq!(call("DELETE", &format!("{TABLE}?yes=true"), Value::Null).await.status, 200);
    let mut new = keep("1 month");
    new["name"] = json!("opportunity");
    let unsure = call("POST", "/v1/orgs/1/tables", new.clone()).await;
    assert_eq!((unsure.status.as_u16(), unsure.code()), (409, "control.conflict"));
    let detail = unsure.body["detail"].as_str().unwrap();
    // It was kept for ever until lately.
    assert!(detail.contains("for ever -> 1 month"), "{detail}");
    let dry = call("POST", "/v1/orgs/1/tables?dry_run=true", new.clone()).await;
    assert_eq!(dry.status, StatusCode::OK);
    let meant = call("POST", "/v1/orgs/1/tables?yes=true", new).await;
    assert_eq!(meant.status, StatusCode::CREATED, "{}", meant.body);
    assert_ne!(call("GET", TABLE, Value::Null).await.body["pending"], Value::Null);
}

/// Of a template that cannot be read the orgs that take it are told of, and all others are as they were.
#[tokio::test]
async fn a_template_that_cannot_be_read_is_its_orgs_matter() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let call = async |method: &str, path: &str, body: Value| {
        server.call(&operator, method, path, body).await
    };
    let none = json!({ "tables": [] });
    assert_eq!(call("PUT", "/v1/templates/other", none.clone()).await.status, 201);
    let new = json!({ "id": "9", "template": "other" });
    assert_eq!(call("POST", "/v1/orgs", new).await.status, 201);
    // As a newer version may write it.
    let url = format!("sqlite://{}", server.folder.path().join("c.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let sql = "UPDATE polder_desired SET adjusted = '{\"tables\":7}' \
               WHERE kind = 'template' AND id = 'other'";
    assert_eq!(sqlx::query(sql).execute(&pool).await.unwrap().rows_affected(), 1);
    pool.close().await;
    let listed = call("GET", "/v1/orgs", Value::Null).await;
    let orgs = listed.body["items"].as_array().unwrap();
    let told: Vec<_> = orgs.iter().map(|org| (&org["id"], org["unreadable"].is_null())).collect();
    assert_eq!(told, [(&json!("1"), true), (&json!("2"), true), (&json!("9"), false)]);
    let templates = call("GET", "/v1/templates", Value::Null).await;
    let items = templates.body["items"].as_array().unwrap();
    let told: Vec<_> =
        items.iter().map(|one| (&one["name"], one["unreadable"].is_null())).collect();
    assert_eq!(told, [(&json!("crm"), true), (&json!("other"), false)]);
    let refused = call("GET", "/v1/orgs/9", Value::Null).await;
    assert_eq!(refused.code(), "spec.invalid");
    assert!(refused.body["hint"].as_str().unwrap().contains("PUT"), "{}", refused.body);
    assert_eq!(call("GET", "/v1/orgs/1/tables", Value::Null).await.status, 200);
    let patch = json!({ "tables": { "account": { "description": "Who buys" } } });
    assert_eq!(call("PATCH", "/v1/templates/crm", patch).await.status, 200);
    // The server starts, too.
    let file = server.folder.path().join("polder.toml");
    let again = App::load(Some(&file)).unwrap().served().await.unwrap();
    assert!(again.left.iter().any(|left| left.org == "9" && left.unreadable.is_some()));
    assert_eq!(call("PUT", "/v1/templates/other", none).await.status, 200);
    assert_eq!(call("GET", "/v1/orgs/9", Value::Null).await.status, 200);
}
