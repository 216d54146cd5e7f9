//! What every request passes before a handler sees it, and after.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;

use super::*;

const ROUNDS: u32 = 30;

/// At every moment of the request.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_client_hangs_up_is_carried_out_once_and_written_down() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let bearer = format!("Bearer {key}");
    let post = async |round: u32| {
        let name = format!("k{round}");
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", name.as_str())];
        server.send("POST", "/v1/orgs", &headers, &json!({ "id": format!("h{round}") })).await
    };
    let started = Instant::now();
    assert_eq!(post(0).await.status, StatusCode::CREATED);
    let took = started.elapsed();
    for round in 1..=ROUNDS {
        let _ = tokio::time::timeout(took * round / ROUNDS, post(round)).await;
        let mut again = post(round).await;
        for _ in 0..6_000 {
            // The first one is under way still.
            if again.status != StatusCode::CONFLICT {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            again = post(round).await;
        }
        assert_eq!(again.status, StatusCode::CREATED, "round {round}: {}", again.body);
        assert_eq!(again.header("location"), format!("/v1/orgs/h{round}"));
    }
    let done = async || {
        let log = server.log().await;
        let done = log.iter().filter(|e| e.action == "POST /v1/orgs" && e.outcome == "done");
        done.count()
    };
    for _ in 0..6_000 {
        if done().await > ROUNDS as usize {
            break;
        }
        // An entry is written after the answer is kept.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(done().await, ROUNDS as usize + 1, "one entry a change");
    assert!(audit::verify(&server.store, None).await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn strangers_are_slowed_down_and_do_not_fill_the_audit_log() {
    let server = Server::new().await;
    let good = server.key(Role::Reader, &["1"]).await;
    let ask = async |address: [u8; 4], key: &str| {
        let request = Request::get("/v1/orgs").header("authorization", format!("Bearer {key}"));
        let peer = ConnectInfo(SocketAddr::from((address, 4000)));
        server.answer(request.extension(peer).body(Body::empty()).unwrap()).await
    };
    let mut last = ask([192, 0, 2, 1], "plk_0_0").await;
    assert_eq!(last.status, StatusCode::UNAUTHORIZED);
    for _ in 0..60 {
        last = ask([192, 0, 2, 1], "plk_0_0").await;
    }
    assert_eq!((last.status.as_u16(), last.code()), (429, "http.too_many"));
    assert!(!last.header("retry-after").is_empty());
    assert_eq!(ask([192, 0, 2, 1], &good).await.status, StatusCode::OK, "a good key is taken");
    assert_eq!(ask([192, 0, 2, 2], "plk_0_0").await.status, StatusCode::UNAUTHORIZED);
    let log = server.log().await;
    assert!((10..15).contains(&log.len()), "{}", log.len());
    assert!(log.iter().all(|entry| entry.who == "-"));
}

#[tokio::test]
async fn a_body_has_to_be_said_to_be_json() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let ask = async |method: &str, path: &str, kind: Option<&str>, text: &'static str| {
        let request = Request::builder().method(method).uri(path);
        let mut request = request.header("authorization", format!("Bearer {key}"));
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        server.answer(request.body(Body::from(text)).unwrap()).await
    };
    let pages = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x=y"];
    for kind in pages.into_iter().map(Some).chain([None, Some("text/json"), Some("x/y+json")]) {
        for path in ["/v1/orgs", "/v1/orgs/1/runs", "/v1/orgs/1/pause", "/v1/query"] {
            let refused = ask("POST", path, kind, "{}").await;
            let said = (refused.status.as_u16(), refused.code());
            assert_eq!(said, (415, "http.not_json"), "{path} {kind:?}");
            assert!(refused.body["hint"].as_str().unwrap().contains("application/json"));
        }
    }
    for kind in
        ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
    {
        let named = ask("PATCH", "/v1/orgs/1", Some(kind), r#"{"name":"x"}"#).await;
        assert_eq!(named.status, StatusCode::OK, "{kind}: {}", named.body);
    }
    assert_eq!(ask("POST", "/v1/orgs/1/pause", None, "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_is_given_again_is_no_second_change_in_the_audit_log() {
    let server = Server::new().await;
    let key = server.key(Role::Operator, &[]).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k")];
    for _ in 0..2 {
        server.send("POST", "/v1/orgs", &headers, &json!({ "id": "401" })).await;
    }
    let log = server.log().await;
    let said: Vec<_> = log.iter().map(|entry| entry.outcome.as_str()).collect();
    assert_eq!(said, ["done", "repeated"]);
}
