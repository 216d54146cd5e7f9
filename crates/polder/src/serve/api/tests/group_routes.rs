//! Groups of tables, as the API has them.

use super::*;

#[tokio::test]
async fn an_org_switches_the_groups_of_its_template() {
    let server = Server::new().await;
    let (operator, admin) =
        (server.key(Role::Operator, &[]).await, server.key(Role::Admin, &["1"]).await);
    let groups = json!({ "groups": { "sales": { "tables": ["opportunity"], "enabled": false } } });
    let made = server.call(&operator, "PATCH", "/v1/templates/crm", groups).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    assert_eq!(made.body["plan"]["switch"], 2);
    assert_eq!(made.body["template"]["groups"]["sales"]["tables"], json!(["opportunity"]));
    let org = server.call(&admin, "GET", "/v1/orgs/1", Value::Null).await;
    assert_eq!(org.body["groups"], json!({ "sales": false }));
    let patch = async |body: Value| server.call(&admin, "PATCH", "/v1/orgs/1", body).await;
    let on = patch(json!({ "groups": { "sales": true } })).await;
    assert_eq!((on.status, &on.body["groups"]), (StatusCode::OK, &json!({ "sales": true })));
    assert_ne!(on.header("etag"), org.header("etag"));
    let table = "/v1/orgs/1/tables/opportunity";
    let enabled = async || {
        server.call(&admin, "GET", table, Value::Null).await.body["spec"]["enabled"].clone()
    };
    assert_eq!(enabled().await, true);
    let back = patch(json!({ "groups": { "sales": null } })).await;
    assert_eq!((&back.body["groups"], enabled().await), (&json!({ "sales": false }), json!(false)));
    let unknown = patch(json!({ "groups": { "sale": true } })).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (422, "spec.unknown_name"));
    assert!(unknown.body["hint"].as_str().unwrap().contains("sales"), "{}", unknown.body);
    for bad in [json!({ "groups": { "sales": 1 } }), json!({ "groups": ["sales"] })] {
        assert_eq!(patch(bad).await.status, StatusCode::BAD_REQUEST);
    }
    // Whoever adds a table by its name wants it to run.
    let name = json!({ "name": "opportunity" });
    let added = server.call(&admin, "POST", "/v1/orgs/1/tables", name).await;
    assert_eq!((added.status.as_u16(), &added.body["spec"]["enabled"]), (201, &json!(true)));
    let new = json!({ "id": "9", "template": "crm", "groups": { "sales": true } });
    let made = server.call(&operator, "POST", "/v1/orgs", new).await;
    assert_eq!((made.status.as_u16(), &made.body["groups"]), (201, &json!({ "sales": true })));
    let none = json!({ "id": "10", "groups": { "sales": true } });
    assert_eq!(server.call(&operator, "POST", "/v1/orgs", none).await.code(), "spec.unknown_name");
}
