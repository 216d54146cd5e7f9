//! Keys made, seen, followed by others and ended through the API.

use super::*;

impl Server {
    /// A key that ends after so many milliseconds.
    async fn ending(&self, role: Role, orgs: &[&str], ms: i64) -> String {
        let orgs = orgs.iter().map(|org| org.parse().unwrap()).collect();
        let expires_ms = Some(chrono::Utc::now().timestamp_millis() + ms);
        let request = KeyRequest { role, orgs, name: None, expires_ms };
        keys::create(&self.store, &request).await.unwrap().1.expose_secret().to_owned()
    }

    /// Everything that the store has written down.
    fn stored(&self) -> Vec<u8> {
        let read = |name: &str| std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        [read("c.db"), read("c.db-wal")].concat()
    }
}

/// What a key begins with.
fn id(key: &str) -> &str {
    &key[.."plk_000000000000".len()]
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn an_admin_makes_keys_for_the_own_org_and_they_are_shown_once() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let new = json!({ "role": "writer", "orgs": ["1", "1"], "name": "ci" });
    let dry = server.call(&admin, "POST", "/v1/keys?dry_run=true", new.clone()).await;
    assert_eq!((dry.status.as_u16(), &dry.body["id"]), (200, &Value::Null), "{}", dry.body);
    let made = server.call(&admin, "POST", "/v1/keys", new).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.header("cache-control"), "no-store");
    let (key, name) = (made.body["key"].as_str().unwrap(), made.body["id"].as_str().unwrap());
    assert_eq!(made.header("location"), format!("/v1/keys/{name}"));
    assert_eq!((id(key), &made.body["orgs"]), (name, &json!(["1"])));
    assert_eq!(server.call(key, "GET", "/v1/orgs/1", Value::Null).await.status, 200);
    assert_eq!(server.call(key, "GET", "/v1/keys", Value::Null).await.status, 403);
    let seen = server.call(&admin, "GET", "/v1/keys", Value::Null).await;
    let items = seen.body["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["id"]), (1, &made.body["id"]), "{}", seen.body);
    assert_eq!((&items[0]["key"], &items[0]["state"]), (&Value::Null, &json!("good")));
    let one = server.call(&admin, "GET", made.header("location"), Value::Null).await;
    assert_eq!(one.body, items[0]);
    assert!(!contains(&server.stored(), key), "a hash of it is kept");
    let log = server.log().await;
    let entry = log.iter().rfind(|entry| entry.action == "POST /v1/keys").unwrap();
    assert_eq!((entry.subject.as_deref(), entry.org.as_deref()), (Some(name), Some("1")));
    assert_eq!((entry.detail.as_deref(), entry.outcome.as_str()), (Some("writer 1"), "done"));
}

#[tokio::test]
async fn nobody_makes_more_than_they_are() {
    let server = Server::new().await;
    let (admin, operator) =
        (server.key(Role::Admin, &["1"]).await, server.key(Role::Operator, &[]).await);
    for (body, status) in [
        (json!({ "role": "operator" }), 403),
        (json!({ "role": "admin", "orgs": ["1"] }), 403),
        (json!({ "role": "reader", "orgs": ["2"] }), 404),
        (json!({ "role": "reader", "orgs": ["1", "2"] }), 404),
        (json!({ "role": "reader", "orgs": ["none"] }), 404),
        (json!({ "role": "reader", "orgs": [] }), 400),
        (json!({ "role": "reader", "orgs": ["1"], "name": "a\nb" }), 400),
        (json!({ "role": "reader", "orgs": ["1"], "expires_at": "tomorrow" }), 400),
        (json!({ "role": "reader", "orgs": ["1"], "expires_at": "2001-01-01T00:00:00Z" }), 400),
        (json!({ "role": "reader", "orgs": ["1"], "scope": "x" }), 400),
        (json!({ "role": "boss", "orgs": ["1"] }), 400),
    ] {
        for dry in ["", "?dry_run=true"] {
            let path = format!("/v1/keys{dry}");
            let refused = server.call(&admin, "POST", &path, body.clone()).await;
            assert_eq!(refused.status.as_u16(), status, "{body}: {}", refused.body);
        }
    }
    for (body, status) in [
        (json!({ "role": "operator", "orgs": ["1"] }), 400),
        (json!({ "role": "admin", "orgs": ["none"] }), 404),
        (json!({ "role": "admin", "orgs": ["1", "2"] }), 201),
        (json!({ "role": "operator" }), 201),
    ] {
        let answer = server.call(&operator, "POST", "/v1/keys", body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.body);
    }
    // Nor for longer.
    let short = server.ending(Role::Admin, &["1"], 3_600_000).await;
    let body = json!({ "role": "reader", "orgs": ["1"] });
    let made = server.call(&short, "POST", "/v1/keys", body).await;
    let own = keys::find(&server.store, id(&short)).await.unwrap().unwrap();
    let end = crate::output::rfc3339(own.expires_ms.unwrap());
    assert_eq!(made.body["expires_at"], json!(end), "{}", made.body);
    let body = json!({ "role": "reader", "orgs": ["1"], "expires_at": "2099-01-01T00:00:00Z" });
    let later = server.call(&short, "POST", "/v1/keys", body).await;
    assert_eq!((later.status.as_u16(), later.code()), (403, "control.denied"));
    let path = format!("{}/rotate", made.header("location"));
    let body = json!({ "expires_at": "2099-01-01T00:00:00Z" });
    assert_eq!(server.call(&short, "POST", &path, body).await.status, 403);
}

#[tokio::test]
async fn keys_of_other_orgs_and_of_more_orgs_are_not_there() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let hidden = [
        server.key(Role::Writer, &["2"]).await,
        server.key(Role::Reader, &["1", "2"]).await,
        server.key(Role::Admin, &["1"]).await,
        server.key(Role::Operator, &[]).await,
        admin.clone(),
    ];
    let own = server.key(Role::Agent, &["1"]).await;
    let none = "plk_ffffffffffff";
    for key in &hidden {
        for (method, rest) in [("GET", ""), ("DELETE", ""), ("POST", "/rotate")] {
            let path = |id: &str| format!("/v1/keys/{id}{rest}");
            let foreign = server.call(&admin, method, &path(id(key)), Value::Null).await;
            let absent = server.call(&admin, method, &path(none), Value::Null).await;
            assert_eq!((foreign.status.as_u16(), foreign.code()), (404, "control.not_found"));
            let text = foreign.body.to_string().replace(id(key), none);
            assert_eq!(text, absent.body.to_string(), "{method}");
        }
        let still = server.call(key, "GET", "/v1/orgs", Value::Null).await;
        assert_eq!(still.status, StatusCode::OK, "it is as good as before");
    }
    let ids = |answer: &Answer| -> Vec<String> {
        let items = answer.body["items"].as_array().unwrap();
        items.iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
    };
    let seen = server.call(&admin, "GET", "/v1/keys", Value::Null).await;
    assert_eq!(ids(&seen), [id(&own)]);
    let both = server.key(Role::Admin, &["2", "1"]).await;
    let mut expect = [id(&hidden[0]), id(&hidden[1]), id(&own)].map(str::to_owned);
    expect.sort();
    let seen = server.call(&both, "GET", "/v1/keys", Value::Null).await;
    assert_eq!(ids(&seen), expect);
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/keys?limit=1{cursor}");
        let page = server.call(&both, "GET", &path, Value::Null).await;
        paged.extend(ids(&page));
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, expect);
    let operator = server.call(&hidden[3], "GET", "/v1/keys", Value::Null).await;
    assert_eq!(ids(&operator).len(), 7);
}

#[tokio::test]
async fn a_repeated_request_gets_no_second_key_and_the_first_is_not_kept() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k1")];
    let new = json!({ "role": "reader", "orgs": ["1"] });
    let first = server.send("POST", "/v1/keys", &headers, &new).await;
    let key = first.body["key"].as_str().unwrap();
    let secret = key.strip_prefix(id(key)).unwrap();
    for _ in 0..2 {
        let again = server.send("POST", "/v1/keys", &headers, &new).await;
        assert_eq!((again.status.as_u16(), again.code()), (409, "control.conflict"));
        assert_eq!(again.header("content-type"), "application/problem+json");
        let text = again.body.to_string();
        assert!(text.contains(&format!("POST {}/rotate", first.header("location"))), "{text}");
        assert!(!text.contains(secret), "{text}");
    }
    assert!(!contains(&server.stored(), secret));
    let seen = server.call(&admin, "GET", "/v1/keys", Value::Null).await;
    assert_eq!(seen.body["items"].as_array().unwrap().len(), 1, "one was made");
    let log = server.log().await;
    let said: Vec<_> = log.iter().map(|entry| entry.outcome.as_str()).collect();
    assert_eq!(said, ["done", "repeated", "repeated"]);
}

#[tokio::test]
async fn a_key_is_followed_by_another_and_ends() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let old = server.key(Role::Writer, &["1"]).await;
    let works = async |key: &str| {
        server.call(key, "GET", "/v1/orgs/1", Value::Null).await.status == StatusCode::OK
    };
    let path = format!("/v1/keys/{}", id(&old));
    let rotate = format!("{path}/rotate");
    let dry = server.call(&admin, "POST", &format!("{rotate}?dry_run=true"), Value::Null).await;
    assert_eq!((dry.status.as_u16(), &dry.body["id"]), (200, &Value::Null));
    let made = server.call(&admin, "POST", &rotate, Value::Null).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.header("cache-control"), "no-store");
    let new = made.body["key"].as_str().unwrap();
    assert!(works(&old).await && works(new).await);
    let before = server.call(&admin, "GET", &path, Value::Null).await;
    assert!(before.body["expires_at"].is_string(), "it ends within a day: {}", before.body);
    let body = json!({ "old_until": "2001-01-01T00:00:00Z" });
    let another = server.call(&admin, "POST", &rotate, body).await;
    assert_eq!(another.status, StatusCode::CREATED, "{}", another.body);
    assert!(!works(&old).await, "at once, where that is said");
    let late = server.call(&admin, "POST", &rotate, Value::Null).await;
    assert_eq!((late.status.as_u16(), late.code()), (409, "control.conflict"), "it has expired");
    let end = format!("/v1/keys/{}?dry_run=true", id(new));
    assert_eq!(server.call(&admin, "DELETE", &end, Value::Null).await.body["state"], "good");
    assert!(works(new).await);
    let gone = server.call(&admin, "DELETE", made.header("location"), Value::Null).await;
    assert_eq!((gone.status.as_u16(), &gone.body["state"]), (200, &json!("revoked")));
    assert!(!works(new).await);
    let again = server.call(&admin, "DELETE", made.header("location"), Value::Null).await;
    assert_eq!(again.body, gone.body, "ended is ended");
    let dead = format!("{}/rotate", made.header("location"));
    assert_eq!(server.call(&admin, "POST", &dead, Value::Null).await.status, 409);
}

#[tokio::test]
async fn a_key_that_follows_another_is_good_as_long_and_no_longer_than_its_maker() {
    let server = Server::new().await;
    let now = chrono::Utc::now().timestamp_millis();
    let stored = async |id: &str| {
        keys::find(&server.store, id).await.unwrap().unwrap().expires_ms.map(|end| end - now)
    };
    let admin = server.key(Role::Admin, &["1"]).await;
    let short = server.ending(Role::Admin, &["1"], 600_000).await;
    for (maker, minutes) in [(&admin, 60), (&short, 10)] {
        let old = server.ending(Role::Writer, &["1"], 3_600_000).await;
        let path = format!("/v1/keys/{}/rotate", id(&old));
        let dry = format!("{path}?dry_run=true");
        let dry = server.call(maker, "POST", &dry, Value::Null).await;
        assert!(dry.body["expires_at"].is_string(), "{}", dry.body);
        let made = server.call(maker, "POST", &path, Value::Null).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let end = stored(made.body["id"].as_str().unwrap()).await.expect("an end");
        assert!((end - minutes * 60_000).abs() < 30_000, "{minutes}: {end}");
    }
    let endless = server.key(Role::Writer, &["1"]).await;
    let path = format!("/v1/keys/{}/rotate", id(&endless));
    let made = server.call(&admin, "POST", &path, Value::Null).await;
    assert_eq!(made.body["expires_at"], Value::Null, "{}", made.body);
}

#[tokio::test]
async fn a_whole_key_in_a_path_is_neither_answered_nor_written_down() {
    let server = Server::new().await;
    let admin = server.key(Role::Admin, &["1"]).await;
    let other = server.key(Role::Writer, &["1"]).await;
    let refused = server.call(&admin, "DELETE", &format!("/v1/keys/{other}"), Value::Null).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(!refused.body.to_string().contains(&other), "{}", refused.body);
    assert!(!contains(&server.stored(), &other));
}
