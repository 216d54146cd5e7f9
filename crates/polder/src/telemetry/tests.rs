#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use polder_control::queue::JobKind;
use polder_control::{Spent, Store, run_logs, runs};
use polder_core::{Authorized, ErrorCode, OrgId, Principal};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::ServiceExt;
use tracing::Instrument;
use tracing::subscriber::set_default;
use tracing_subscriber::registry;
use uuid::Uuid;

use super::*;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector, which answers as told and well after that.
#[derive(Clone, Default)]
struct Taker {
    answers: Arc<Mutex<Vec<u16>>>,
    taken: Arc<Mutex<Vec<Span>>>,
}

async fn take(State(taker): State<Taker>, body: Bytes) -> StatusCode {
    let answer = taker.answers.lock().unwrap().pop();
    if let Some(status) = answer {
        return StatusCode::from_u16(status).unwrap();
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    taker.taken.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
    StatusCode::OK
}

impl Taker {
    async fn start(answers: &[u16], tasks: &mut JoinSet<()>) -> (Self, String) {
        let taker = Self { answers: Arc::new(Mutex::new(answers.to_vec())), ..Self::default() };
        let routes = Router::new().route("/v1/traces", post(take)).with_state(taker.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (taker, url)
    }

    fn names(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|span| span.name.clone()).collect()
    }
}

fn org(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.parse().unwrap()).unwrap()
}

/// Asks for something at a route of its own, with a caller's trace or without.
async fn ask(caller: Option<&str>) -> String {
    async fn handler() -> String {
        note_org(org("401").get());
        traceparent().unwrap_or_default()
    }
    let routes = Router::new().route("/v1/orgs/{org}/runs", post(handler));
    let routes = routes.layer(axum::middleware::from_fn(request));
    let asked = Request::post("/v1/orgs/401/runs?secret=hunter2");
    let asked = match caller {
        Some(caller) => asked.header("traceparent", caller),
        None => asked,
    };
    let answer = routes.oneshot(asked.body(Body::empty()).unwrap()).await.unwrap();
    let text = to_bytes(answer.into_body(), 1000).await.unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_and_the_run_it_asks_for_are_one_trace() {
    let mut tasks = JoinSet::new();
    // The first call is answered such that another one may help.
    let (taker, url) = Taker::start(&[503], &mut tasks).await;
    let spans = Spans::to_address(&url, 1.0);
    let heard = set_default(registry().with(spans.layer()));
    let carried = ask(Some(CALLER)).await;
    assert!(carried.starts_with(&CALLER[..36]), "{carried}");
    let span = run_span(org("401").get(), "deal", Uuid::nil(), JobKind::Ingest, Some(&carried));
    let work = async {
        let spent = Spent { rows: 5, bytes: 7 };
        let planned = async {};
        planned.instrument(tracing::info_span!("plan")).await;
        tracing::warn!("events are lines, and no part of traces");
        note_end(&tracing::Span::current(), "succeeded", &Ok(()), spent);
    };
    work.instrument(span).await;
    // The second call comes by itself, before the end.
    let began = Instant::now();
    while taker.names().len() < 3 {
        assert!(began.elapsed() < Duration::from_mins(1), "{:?}", taker.names());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    spans.end().await;
    drop(heard);
    assert_eq!(taker.names(), ["POST /v1/orgs/{org}/runs", "plan", "run"]);
    let got = taker.taken.lock().unwrap();
    let [request, plan, run] = &got[..] else { panic!("{got:?}") };
    assert_eq!(request.parent_span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    assert_eq!((&run.parent_span_id, &plan.parent_span_id), (&request.span_id, &run.span_id));
    assert!(got.iter().all(|span| span.trace_id == request.trace_id));
    assert!(got.iter().all(|span| span.events.is_empty()));
    let mut names: Vec<_> = run.attributes.iter().map(|known| known.key.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["bytes", "kind", "org", "outcome", "rows", "run_id", "table"]);
    assert!(!format!("{got:?}").contains("hunter2"), "nor what a query says");
}

#[tokio::test]
async fn the_share_counts_also_of_what_callers_send() {
    let mut tasks = JoinSet::new();
    for (ratio, caller, sent) in [
        (0.0, None, 0),
        (1.0, None, 1),
        (0.0, Some(CALLER.to_owned()), 0),
        (1.0, Some(CALLER.to_owned()), 1),
        (1.0, Some(CALLER.replace("-01", "-00")), 0),
        (1.0, Some("nonsense".to_owned()), 1),
    ] {
        let (taker, url) = Taker::start(&[], &mut tasks).await;
        let spans = Spans::to_address(&url, ratio);
        let heard = set_default(registry().with(spans.layer()));
        ask(caller.as_deref()).await;
        spans.end().await;
        drop(heard);
        assert_eq!(taker.names().len(), sent, "{ratio} {caller:?}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_dead_or_hangs() {
    // Nobody listens there.
    let closed = SocketAddr::from(([127, 0, 0, 1], 9));
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = |at: SocketAddr| format!("http://{at}/v1/traces");
    for url in [address(closed), address(hangs.local_addr().unwrap())] {
        let spans = Spans::to_address(&url, 1.0);
        let heard = set_default(registry().with(spans.layer()));
        let began = Instant::now();
        for _ in 0..20_000 {
            drop(tracing::info_span!("plan"));
        }
        spans.end().await;
        drop(heard);
        // A minute and more where each batch is waited for.
        assert!(began.elapsed() < Duration::from_secs(40), "{url}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_run_has_the_lines_that_are_told_in_its_span() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("c.db").display());
    let store = Store::open(&url).await.unwrap();
    let run = runs::enqueue(&store, &org("401"), "deal").await.unwrap();
    let other = runs::enqueue(&store, &org("402"), "deal").await.unwrap();
    let _heard = set_default(registry().with(caught()));
    let span = run_span(org("401").get(), "deal", run, JobKind::Ingest, None);
    let log = RunLog::begin(&span, &store, (org("401").get(), run), 2);
    let work = async {
        let why = "why";
        tracing::warn!(org = "401", attempt = 1, code = %"x", exact = true, "it failed: {why}");
        tracing::debug!("too much");
        tracing::info!(target: "sqlx::query", "SELECT 'hunter2'");
        let task = async { tracing::info!("in a task") };
        let mut tasks = JoinSet::new();
        tasks.spawn(task.instrument(tracing::info_span!("read")));
        tasks.join_all().await;
        let began = Instant::now();
        while run_logs::page(&store, &org("401"), run, None, 9).await.unwrap().len() < 2 {
            assert!(began.elapsed() < Duration::from_mins(1), "they are not written down");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::error!("the last word");
    };
    log.kept(work.instrument(span)).await;
    tracing::info!("outside of any run");
    let lines = run_logs::page(&store, &org("401"), run, None, 9).await.unwrap();
    let told: Vec<_> = lines.iter().map(|line| (&*line.level, &*line.message)).collect();
    let expected = [("warn", "it failed: why"), ("info", "in a task"), ("error", "the last word")];
    assert_eq!(told, expected);
    let fields: Value = serde_json::from_str(&lines[0].fields).unwrap();
    assert_eq!(fields, json!({ "attempt": 1, "code": "x", "exact": true }));
    assert!(run_logs::page(&store, &org("402"), other, None, 9).await.unwrap().is_empty());
}

#[test]
fn a_wrong_setting_is_refused_with_what_to_do_and_without_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("key", "Bearer hunter2");
    write("broken", "hunter2\nX-Other: y");
    let found = |setting: &str| {
        let lake = "[lake]\nwarehouse = \"./lake\"\ncatalog = \"sqlite://./c.db\"\n\
                    [store]\nurl = \"sqlite://./c.db\"\n";
        write("polder.toml", &format!("{lake}[telemetry]\n{setting}\n"));
        let file = folder.path().join("polder.toml");
        check(&App::load(Some(file.as_path()))?)
    };
    let good = "url = \"https://collector.example.com/v1/traces\"\n";
    found(good).unwrap();
    found(&format!("{good}sample_ratio = 0\nheaders = {{ authorization = \"file:key\" }}"))
        .unwrap();
    found("url = \"http://127.0.0.1:4318/v1/traces\"\nprivate = true").unwrap();
    for (bad, code) in [
        ("url = \"http://127.0.0.1:4318/v1/traces\"".to_owned(), ErrorCode::SpecInvalid),
        ("url = \"https://u:hunter2@example.com/\"".to_owned(), ErrorCode::SpecInvalid),
        (format!("{good}sample_ratio = 1.5"), ErrorCode::SpecInvalid),
        (format!("{good}headers = {{ \"a b\" = \"file:key\" }}"), ErrorCode::SpecInvalid),
        (format!("{good}headers = {{ a = \"file:broken\" }}"), ErrorCode::SpecSecret),
    ] {
        let error = found(&bad).unwrap_err();
        assert_eq!(error.code(), code, "{bad}: {error:?}");
        assert!(error.hint_text().is_some(), "{bad}: {error:?}");
        assert!(!format!("{error}{}", error.causes().join(" ")).contains("hunter2"), "{bad}");
    }
}
