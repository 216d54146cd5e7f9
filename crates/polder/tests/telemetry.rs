//! What the binary tells of itself: traces at a collector, and the logs of runs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::http::Served;
use crate::project::Project;

const FILES: &str = "
[sources.files]
type = \"files\"
url = \"./exports\"
";
const PIPELINE: &str = "
orgs:
  - id: \"1\"
    tables:
      - { name: account, source: files, from: \"{org}/account.csv\", key: [id] }
";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// A value that no trace and no log may hold.
const CELL: &str = "Wilhelmina";

fn project(telemetry: &str) -> Project {
    let project = Project::new(&format!("{FILES}{telemetry}"), PIPELINE);
    project.write("exports/1/account.csv", &format!("id,name\n1,{CELL}\n2,Bob\n"));
    project.with_env("COLLECTOR_KEY", "Bearer hunter2")
}

/// A collector of traces on this machine.
struct Collector {
    taken: Taken,
    url: String,
    // Serves as long as it is there.
    _runtime: Runtime,
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Span>>>);

async fn take(State(taken): State<Taken>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    if headers["authorization"] != "Bearer hunter2" {
        return StatusCode::UNAUTHORIZED;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let named = resource.resource.unwrap().attributes;
        let name = named.iter().find(|named| named.key == "service.name").unwrap();
        let name = name.value.clone().unwrap().value;
        assert_eq!(name, Some(Attribute::StringValue("lake".into())));
        for scope in resource.scope_spans {
            taken.0.lock().unwrap().extend(scope.spans);
        }
    }
    StatusCode::OK
}

impl Collector {
    fn start() -> Self {
        let (runtime, taken) = (Runtime::new().unwrap(), Taken::default());
        let routes = Router::new().route("/v1/traces", post(take)).with_state(taken.clone());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { taken, url, _runtime: runtime }
    }

    fn setting(&self) -> String {
        format!(
            "[telemetry]\nurl = \"{}\"\nprivate = true\nservice_name = \"lake\"\n\
             headers = {{ authorization = \"env:COLLECTOR_KEY\" }}\n",
            self.url
        )
    }

    /// The one span of this name.
    fn span(&self, name: &str) -> Span {
        let taken = self.taken.0.lock().unwrap();
        let names: Vec<_> = taken.iter().map(|span| span.name.as_str()).collect();
        let mut found = taken.iter().filter(|span| span.name == name);
        let span = found.next().unwrap_or_else(|| panic!("{name}: {names:?}")).clone();
        assert!(found.next().is_none(), "{name} twice: {names:?}");
        span
    }
}

fn attribute(span: &Span, name: &str) -> Option<Attribute> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

fn text(value: &str) -> Attribute {
    Attribute::StringValue(value.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A run's log, once it has a line with these words.
fn log(served: &Served, run: &str, words: &str) -> Vec<Value> {
    for _ in 0..600 {
        let path = format!("/v1/orgs/1/runs/{run}/logs");
        let page = served.call("", "GET", &path, "");
        assert_eq!(page.status, 200, "{}", page.body);
        let lines = page.body["items"].as_array().unwrap().clone();
        if lines.iter().any(|line| line["message"].as_str().unwrap().contains(words)) {
            assert!(!page.text.contains(CELL), "{}", page.text);
            return lines;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{words:?} is not in the log of {run}");
}

#[test]
fn a_run_is_told_line_by_line_and_is_in_the_trace_of_who_asked() {
    let collector = Collector::start();
    let project = project(&collector.setting());
    let served = Served::start(&project);
    let header = format!("traceparent: 00-{TRACE}-{CALLER}-01");
    let asked = served.send(("POST", "/v1/orgs/1/runs"), &header, "{}");
    assert_eq!(asked.status, 202, "{}", asked.body);
    let ended = served.wait("", asked.header("location"));
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let id = ended["runs"][0]["id"].as_str().unwrap();
    let lines = log(&served, id, "the run succeeded");
    let planned = &lines[0];
    assert_eq!(planned["message"], "the run is planned");
    assert_eq!(planned["level"], "info");
    assert!(planned["fields"]["splits"].is_u64(), "{planned}");
    let read = lines.iter().find(|line| line["fields"]["rows_read"] == 2);
    assert_eq!(read.expect("the rows are told of")["fields"]["rows_written"], 2);
    assert_eq!(served.call("", "GET", "/healthz", "").status, 200);
    assert_eq!(served.stop(), Some(0), "what waits is sent first");

    let request = collector.span("POST /v1/orgs/{org}/runs");
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.into(), CALLER.into())
    );
    assert_eq!(attribute(&request, "http.route"), Some(text("/v1/orgs/{org}/runs")));
    assert_eq!(attribute(&request, "http.response.status_code"), Some(Attribute::IntValue(202)));
    assert_eq!(attribute(&request, "org"), Some(text("1")));
    let run = collector.span("run");
    assert_eq!((&run.trace_id, &run.parent_span_id), (&request.trace_id, &request.span_id));
    for (name, value) in [("org", "1"), ("table", "account"), ("run_id", id), ("kind", "ingest")] {
        assert_eq!(attribute(&run, name), Some(text(value)), "{name}");
    }
    assert_eq!(attribute(&run, "outcome"), Some(text("succeeded")));
    assert_eq!(attribute(&run, "rows"), Some(Attribute::IntValue(2)));
    assert!(matches!(attribute(&run, "bytes"), Some(Attribute::IntValue(bytes)) if bytes > 0));
    for phase in ["plan", "stage", "read", "publish"] {
        assert_eq!(collector.span(phase).parent_span_id, run.span_id, "{phase}");
    }
    let publish = collector.span("publish");
    assert_eq!(collector.span("audit").parent_span_id, publish.span_id);
    let taken = collector.taken.0.lock().unwrap();
    assert!(taken.iter().all(|span| span.events.is_empty() && !span.name.contains("healthz")));
    assert!(!format!("{taken:?}").contains(CELL));
}

#[test]
fn a_collector_that_is_not_there_harms_nothing() {
    // Nobody listens there.
    let project = project("[telemetry]\nurl = \"http://127.0.0.1:9/hunter2\"\nprivate = true\n");
    let began = Instant::now();
    let output = project.output(&["run", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(began.elapsed() < Duration::from_mins(1), "{errors}");
    assert!(errors.contains("traces were not sent: the collector cannot be called"), "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
    assert_eq!(project.number("SELECT count(*) FROM org_1.account"), 2);
    // A run of the command line has its log too.
    let served = Served::start(&project);
    let runs = served.call("", "GET", "/v1/orgs/1/runs", "").body;
    let id = runs["items"][0]["id"].as_str().unwrap();
    let lines = log(&served, id, "the run succeeded");
    assert_eq!(lines[0]["message"], "the run is planned");
    assert_eq!(served.stop(), Some(0));
}

#[test]
fn a_run_that_fails_says_why_in_its_log() {
    let project = project("");
    project.write("exports/1/account.csv", &format!("id,name\n1,{CELL},too much\n"));
    let served = Served::start(&project);
    let asked = served.call("", "POST", "/v1/orgs/1/runs", "{}");
    let ended = served.wait("", asked.header("location"));
    let id = ended["runs"][0]["id"].as_str().unwrap();
    let lines = log(&served, id, "the run ended");
    let last = lines.last().unwrap();
    assert_eq!(last["level"], "warn", "{last}");
    assert!(last["fields"]["code"].as_str().unwrap().starts_with("source."), "{last}");
}
