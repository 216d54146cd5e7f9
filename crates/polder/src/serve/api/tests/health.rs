//! `GET /v1/health`, by whom and over what.

use super::*;

#[tokio::test]
async fn everybody_learns_whether_it_works_and_operators_what_does_not() {
    let server = Server::new().await;
    let (operator, reader) =
        (server.key(Role::Operator, &[]).await, server.key(Role::Reader, &["1"]).await);
    let bare = json!({ "status": "ok", "store": null, "catalog": null });
    let none = server.send("GET", "/v1/health", &[], &Value::Null).await;
    assert_eq!((none.status, none.body), (StatusCode::OK, bare.clone()));
    for key in [reader.as_str(), "plk_0_0"] {
        assert_eq!(server.call(key, "GET", "/v1/health", Value::Null).await.body, bare);
    }
    let told = server.call(&operator, "GET", "/v1/health", Value::Null).await.body;
    for part in ["store", "catalog"] {
        assert_eq!(told[part]["status"], "ok", "{told}");
        assert_eq!(told[part]["code"], Value::Null, "{told}");
    }
    let other = server.call(&operator, "PUT", "/v1/health", Value::Null).await;
    assert_eq!((other.status.as_u16(), other.code()), (405, "http.method_not_allowed"));
}
