#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use polder_control::runs::{self, RunState};
use polder_core::Principal;
use polder_core::validation::CheckName;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Somebody who takes alerts, and answers as told.
#[derive(Clone, Default)]
struct Taker {
    answers: Arc<Mutex<Vec<u16>>>,
    taken: Arc<Mutex<Vec<(HeaderMap, String)>>>,
}

async fn take(State(taker): State<Taker>, headers: HeaderMap, body: String) -> StatusCode {
    taker.taken.lock().unwrap().push((headers, body));
    let mut answers = taker.answers.lock().unwrap();
    let status = if answers.is_empty() { 204 } else { answers.remove(0) };
    StatusCode::from_u16(status).unwrap()
}

impl Taker {
    async fn start(answers: &[u16], tasks: &mut JoinSet<()>) -> (Self, String) {
        let taker = Self { answers: Arc::new(Mutex::new(answers.to_vec())), ..Self::default() };
        let routes = Router::new().route("/hook", post(take)).with_state(taker.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (taker, url)
    }

    fn calls(&self) -> usize {
        self.taken.lock().unwrap().len()
    }
}

fn alerts(url: &str, on: &[Verdict]) -> Alerts {
    let client = outgoing::client(true, CALL_MAX).unwrap();
    let hook = Hook {
        name: "ops".into(),
        url: url.parse().unwrap(),
        key: hmac::Key::new(hmac::HMAC_SHA256, SECRET),
        on: on.to_vec(),
        client,
    };
    Alerts { hooks: vec![hook], pause: Duration::from_millis(1) }
}

fn report(verdict: Verdict) -> ValidationReport {
    let check = Check::new(CheckName::MissingKeys, verdict, "0 rows missing", "2 rows missing");
    ValidationReport {
        id: Uuid::new_v4(),
        org: "401".into(),
        table: "deal".into(),
        version: Some("v3".into()),
        snapshot_id: Some(i64::MAX),
        source_snapshot: None,
        source_state: None,
        verdict,
        pending: 0,
        checks: vec![check.with_samples(["secret-key".to_owned()])],
        staged: false,
        quarantine: None,
        started_ms: 0,
        duration_ms: 1,
    }
}

/// A store of a test's own.
async fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("polder.db").display());
    let store = Store::open(&url).await.unwrap();
    (folder, store)
}

/// As a validation's end has it: the alerts are kept, and then sent.
async fn tell(alerts: &Alerts, store: &Store, spec: &ValidationSpec, report: &ValidationReport) {
    let org = Principal::Operator.authorize(&report.org.parse().unwrap()).unwrap();
    let of = alerts.of(org.get(), spec, report);
    let said = (RunState::Succeeded, "{}");
    runs::keep_validation(store, &org, (&report.table, 0), said, &of).await.unwrap();
    for waiting in kept::waiting(store, &org, &id(report)).await.unwrap() {
        alerts.send(store, waiting).await;
    }
}

/// How many times an alert was sent in vain that is kept for later.
async fn kept_after(store: &Store, report: &ValidationReport) -> Option<i64> {
    let org = Principal::Operator.authorize(&report.org.parse().unwrap()).unwrap();
    let waiting = kept::waiting(store, &org, &id(report)).await.unwrap();
    waiting.first().map(|waiting| waiting.tries)
}

#[tokio::test]
async fn an_alert_is_signed_and_says_what_was_found_without_rows() {
    let mut tasks = JoinSet::new();
    let (taker, url) = Taker::start(&[], &mut tasks).await;
    let said = report(Verdict::Failed);
    let (_folder, store) = store().await;
    let alerts = alerts(&url, &[Verdict::Failed]);
    tell(&alerts, &store, &ValidationSpec::default(), &said).await;
    let (headers, body) = taker.taken.lock().unwrap().remove(0);
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let signature = header("webhook-signature");
    let bytes = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
    let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    hmac::verify(&key, signed.as_bytes(), &bytes).unwrap();
    assert_eq!(header("webhook-id"), format!("validation-{}", said.id));
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["type"], "table.validated");
    assert_eq!(document["data"]["checks"][0]["check"], "missing_keys");
    assert_eq!(document["data"]["snapshot_id"], i64::MAX.to_string(), "whole in every language");
    assert!(!body.contains("secret-key"), "{body}");
}

#[tokio::test]
async fn calls_are_repeated_as_often_as_it_helps_and_no_oftener() {
    // Answers, calls, and whether it is kept for later.
    let cases: [(&[u16], usize, bool); 6] = [
        (&[], 1, false),
        (&[503, 429], 3, false),
        (&[500; 9], TRIES_MAX as usize, true),
        (&[400], 1, false),
        (&[410], 1, false),
        // Not followed, and not taken.
        (&[302], 1, false),
    ];
    let (_folder, store) = store().await;
    for (answers, calls, later) in cases {
        let mut tasks = JoinSet::new();
        let (taker, url) = Taker::start(answers, &mut tasks).await;
        let alerts = alerts(&url, &[Verdict::Failed]);
        let said = report(Verdict::Failed);
        tell(&alerts, &store, &ValidationSpec::default(), &said).await;
        assert_eq!(taker.calls(), calls, "{answers:?}");
        assert_eq!(kept_after(&store, &said).await, later.then_some(1), "{answers:?}");
        let posted = taker.taken.lock().unwrap();
        assert!(posted.iter().all(|call| call.0["webhook-id"] == posted[0].0["webhook-id"]));
    }
}

#[tokio::test]
async fn only_those_are_told_who_want_to_hear_and_are_named() {
    let mut tasks = JoinSet::new();
    let (taker, url) = Taker::start(&[], &mut tasks).await;
    let alerts = alerts(&url, &[Verdict::Failed, Verdict::Stale]);
    let named = |names: &[&str]| ValidationSpec {
        alerts: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..ValidationSpec::default()
    };
    let (_folder, store) = store().await;
    tell(&alerts, &store, &ValidationSpec::default(), &report(Verdict::Verified)).await;
    tell(&alerts, &store, &named(&[]), &report(Verdict::Failed)).await;
    tell(&alerts, &store, &named(&["others"]), &report(Verdict::Failed)).await;
    assert_eq!(taker.calls(), 0);
    tell(&alerts, &store, &named(&["ops"]), &report(Verdict::Stale)).await;
    assert_eq!(taker.calls(), 1);
}

/// What was not taken is sent again: by whichever server has the same store, once, and under the same id.
#[tokio::test]
async fn an_alert_that_was_not_taken_is_sent_again_by_another_server() {
    let mut tasks = JoinSet::new();
    let (taker, url) = Taker::start(&[500; 6], &mut tasks).await;
    let (_folder, store) = store().await;
    let said = report(Verdict::Failed);
    tell(&alerts(&url, &[Verdict::Failed]), &store, &ValidationSpec::default(), &said).await;
    assert_eq!((taker.calls(), kept_after(&store, &said).await), (5, Some(1)));
    let org = Principal::Operator.authorize(&said.org.parse().unwrap()).unwrap();
    let waiting = async || kept::waiting(&store, &org, &id(&said)).await.unwrap().remove(0);
    // One whose receiver is in no file any more waits as well.
    let nobody = Alerts { hooks: Vec::new(), pause: Duration::ZERO };
    nobody.send(&store, waiting().await).await;
    assert_eq!((taker.calls(), kept_after(&store, &said).await), (5, Some(2)));
    let another = alerts(&url, &[Verdict::Failed]);
    another.send(&store, waiting().await).await;
    assert_eq!((taker.calls(), kept_after(&store, &said).await), (6, Some(3)), "one call");
    let (one, two) = (waiting().await, waiting().await);
    futures::future::join(another.send(&store, one), another.send(&store, two)).await;
    assert_eq!((taker.calls(), kept_after(&store, &said).await), (7, None), "taken, and forgotten");
    let posted = taker.taken.lock().unwrap();
    assert!(posted.iter().all(|call| call.0["webhook-id"] == posted[0].0["webhook-id"]));
    assert!(posted.iter().all(|call| call.1 == posted[0].1));
}
