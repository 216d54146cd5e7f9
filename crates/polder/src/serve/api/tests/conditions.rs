//! `If-Match` of what is no document of the desired state: keys, runs, sources, and what of an org is paused.

use polder_control::Spent;
use polder_core::ErrorCode;

use super::*;

impl Server {
    /// A request that is meant for one state alone.
    async fn only_at(&self, key: &str, tag: &str, (method, path): (&str, &str)) -> Answer {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("if-match", tag)];
        self.send(method, path, &headers, &Value::Null).await
    }

    /// The entity tag that something has now.
    async fn tag(&self, key: &str, path: &str) -> String {
        let found = self.call(key, "GET", path, Value::Null).await;
        assert_eq!(found.status, StatusCode::OK, "{path}: {}", found.body);
        assert!(!found.header("etag").is_empty(), "{path}");
        found.header("etag").to_owned()
    }

    /// Is refused for a tag that was, in a dry run too.
    async fn stale(&self, key: &str, tag: &str, (method, path): (&str, &str)) {
        for path in [path.to_owned(), format!("{path}?dry_run=true")] {
            let stale = self.only_at(key, tag, (method, &path)).await;
            let told = (stale.status.as_u16(), stale.code());
            assert_eq!(told, (412, "control.stale"), "{method} {path}: {}", stale.body);
            assert_eq!(stale.header("content-type"), "application/problem+json");
        }
    }
}

#[tokio::test]
async fn a_key_is_followed_and_ended_as_it_was_read() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let old = server.key(Role::Writer, &["1"]).await;
    let path = format!("/v1/keys/{}", &old[.."plk_000000000000".len()]);
    let rotate = format!("{path}/rotate");
    let first = server.tag(&admin, &path).await;
    assert_eq!(server.tag(&admin, &path).await, first);
    let dry = format!("{rotate}?dry_run=true");
    assert_eq!(server.only_at(&admin, &first, ("POST", &dry)).await.status, 200);
    assert_eq!(server.only_at(&admin, &first, ("POST", &rotate)).await.status, 201);
    // It ends within a day now.
    server.stale(&admin, &first, ("POST", &rotate)).await;
    server.stale(&admin, &first, ("DELETE", &path)).await;
    let keys = server.call(&admin, "GET", "/v1/keys", Value::Null).await;
    assert_eq!(keys.body["items"].as_array().unwrap().len(), 2, "one followed: {}", keys.body);
    assert_eq!(server.call(&old, "GET", "/v1/orgs/1", Value::Null).await.status, 200);
    let second = server.tag(&admin, &path).await;
    let gone = server.only_at(&admin, &second, ("DELETE", &path)).await;
    assert_eq!((gone.status.as_u16(), &gone.body["state"]), (200, &json!("revoked")));
    assert_eq!(gone.header("etag"), server.tag(&admin, &path).await);
    server.stale(&admin, &second, ("DELETE", &path)).await;
    assert_eq!(server.only_at(&admin, "*", ("DELETE", &path)).await.status, 200);
}

#[tokio::test]
async fn a_run_is_stopped_and_tried_again_as_it_was_read() {
    let server = Server::new().await;
    let writer = server.key(Role::Writer, &["1"]).await;
    let order = json!({ "tables": ["opportunity"] });
    let queued = server.call(&writer, "POST", "/v1/orgs/1/runs", order).await;
    let path = format!("/v1/orgs/1/runs/{}", queued.body["runs"][0]["id"].as_str().unwrap());
    let (cancel, retry) = (format!("{path}/cancel"), format!("{path}/retry"));
    let waiting = server.tag(&writer, &path).await;
    let claimer = queue::Claimer { owner: "s", per_org: 1 };
    let (_, lease) = queue::claim(&server.store, claimer).await.unwrap().unwrap();
    server.stale(&writer, &waiting, ("POST", &cancel)).await;
    let held = queue::renew(&server.store, &lease).await.unwrap();
    assert_eq!(held, queue::Renewed::Held, "nobody asked it to stop");
    let running = server.tag(&writer, &path).await;
    let dry = format!("{cancel}?dry_run=true");
    assert_eq!(server.only_at(&writer, &running, ("POST", &dry)).await.status, 200);
    let failed = queue::Outcome::Failed(ErrorCode::SpecInvalid);
    queue::finish(&server.store, &lease, failed, Spent::default(), "{}").await.unwrap();
    // That it has ended is the second thing wrong with it.
    server.stale(&writer, &running, ("POST", &cancel)).await;
    server.stale(&writer, &running, ("POST", &retry)).await;
    let found = server.call(&writer, "GET", &path, Value::Null).await;
    assert_eq!(found.body["status"], "failed", "{}", found.body);
    let again = server.only_at(&writer, found.header("etag"), ("POST", &retry)).await;
    assert_eq!((again.status.as_u16(), &again.body["status"]), (202, &json!("queued")));
    assert_eq!(again.header("etag"), server.tag(&writer, &path).await);
    server.stale(&writer, found.header("etag"), ("POST", &cancel)).await;
    let stopped = server.only_at(&writer, again.header("etag"), ("POST", &cancel)).await;
    assert_eq!((stopped.status.as_u16(), &stopped.body["status"]), (202, &json!("cancelled")));
    assert_eq!(stopped.header("etag"), server.tag(&writer, &path).await);
}

#[tokio::test]
async fn a_source_is_paused_and_resumed_as_it_was_read() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let path = "/v1/sources/files";
    let (pause, resume) = (format!("{path}/pause"), format!("{path}/resume"));
    let first = server.tag(&operator, path).await;
    let paused = server.only_at(&operator, &first, ("POST", &pause)).await;
    assert_eq!((paused.status.as_u16(), &paused.body["paused"]), (200, &json!(true)));
    assert_eq!(paused.header("etag"), server.tag(&operator, path).await);
    server.stale(&operator, &first, ("POST", &pause)).await;
    server.stale(&operator, &first, ("POST", &resume)).await;
    let found = server.call(&operator, "GET", path, Value::Null).await;
    assert_eq!(found.body, paused.body, "it is paused still");
    let resumed = server.only_at(&operator, paused.header("etag"), ("POST", &resume)).await;
    assert_eq!((resumed.status.as_u16(), &resumed.body["paused"]), (200, &json!(false)));
    assert_eq!(resumed.header("etag"), first, "as one of which nothing is known");
    let none = server.call(&operator, "GET", "/v1/sources/none", Value::Null).await;
    assert_eq!((none.status.as_u16(), none.code()), (404, "control.not_found"));
}

#[tokio::test]
async fn an_org_is_paused_and_resumed_as_its_schedules_were_read() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let (schedules, table) = ("/v1/orgs/1/schedules", "/v1/orgs/1/tables/opportunity");
    let first = server.tag(&admin, schedules).await;
    assert_ne!(
        first,
        server.tag(&server.key(Role::Reader, &["2"]).await, "/v1/orgs/2/schedules").await
    );
    let paused = server.only_at(&admin, &first, ("POST", "/v1/orgs/1/pause")).await;
    assert_eq!((paused.status.as_u16(), &paused.body["paused"]), (200, &json!(true)));
    assert_eq!(paused.header("etag"), server.tag(&admin, schedules).await);
    for what in ["/v1/orgs/1/pause", "/v1/orgs/1/resume"] {
        server.stale(&admin, &first, ("POST", what)).await;
    }
    // Of a table it may be that of the table, or that of the schedules.
    let pause = format!("{table}/pause");
    server.stale(&admin, &first, ("POST", &pause)).await;
    let found = server.call(&admin, "GET", schedules, Value::Null).await;
    assert_eq!(found.body["pauses"].as_array().unwrap().len(), 1, "{}", found.body);
    let both = server.only_at(&admin, paused.header("etag"), ("POST", &pause)).await;
    assert_eq!(both.body["pauses"].as_array().unwrap().len(), 2, "{}", both.body);
    server.stale(&admin, paused.header("etag"), ("POST", "/v1/orgs/1/resume")).await;
    let of_table = server.tag(&admin, table).await;
    let resume = format!("{table}/resume");
    assert_eq!(server.only_at(&admin, &of_table, ("POST", &resume)).await.status, 200);
    let resumed =
        server.only_at(&admin, paused.header("etag"), ("POST", "/v1/orgs/1/resume")).await;
    assert_eq!((resumed.status.as_u16(), &resumed.body["paused"]), (200, &json!(false)));
    assert_eq!(resumed.header("etag"), first, "nothing is paused");
}
