//! The spans of requests and runs, and how they belong together: W3C Trace Context.

use std::collections::HashMap;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use polder_control::Spent;
use polder_control::queue::JobKind;
use polder_core::{ErrorCode, OrgId, Result};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

const TRACEPARENT: &str = "traceparent";
/// The headers by which a caller's trace is known.
const HEADERS: [&str; 2] = [TRACEPARENT, "tracestate"];

/// Carries a request out in a span of its own, which goes on with the caller's trace.
pub(crate) async fn request(request: Request, next: Next) -> Response {
    let span = request_span(&request);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}

fn request_span(request: &Request) -> Span {
    // A stranger may send any word as a method, and any path: neither is to become a name.
    let known =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let method =
        if known.contains(request.method()) { request.method().as_str() } else { "_OTHER" };
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
    let span = tracing::info_span!(
        "request",
        otel.name = name,
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        org = Empty,
        otel.status_code = Empty,
    );
    if !span.is_disabled() {
        follow(&span, &carried(request.headers()));
    }
    span
}

fn carried(headers: &HeaderMap) -> HashMap<String, String> {
    let carried = HEADERS.into_iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.to_owned(), value.to_owned()))
    });
    carried.collect()
}

/// Makes a span one of the trace that is told of, if any is.
fn follow(span: &Span, carried: &HashMap<String, String>) {
    if carried.contains_key(TRACEPARENT) {
        let context = TraceContextPropagator::new().extract(carried);
        // Fails where no traces are sent.
        let _ = span.set_parent(context);
    }
}

/// The trace that the present span belongs to, for work that is done later; `None` where none are sent.
pub(crate) fn traceparent() -> Option<String> {
    let mut carried: HashMap<String, String> = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carried);
    carried.remove(TRACEPARENT)
}

/// Says of the present span that it works for an org, once that is proven.
pub(crate) fn note_org(org: &OrgId) {
    Span::current().record("org", org.as_str());
}

/// The span of an attempt at a run, in the trace of the request that asked for it.
pub(crate) fn run_span(
    org: &OrgId,
    table: &str,
    run_id: Uuid,
    kind: JobKind,
    traceparent: Option<&str>,
) -> Span {
    let kind = kind.as_str();
    let span = tracing::info_span!(
        parent: None,
        "run",
        %org,
        table,
        %run_id,
        kind,
        outcome = Empty,
        code = Empty,
        rows = Empty,
        bytes = Empty,
        otel.status_code = Empty,
    );
    if let Some(traceparent) = traceparent {
        follow(&span, &HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]));
    }
    span
}

/// Says how an attempt ended, and what it used.
pub(crate) fn note_end<T>(span: &Span, how: &str, outcome: &Result<T>, spent: Spent) {
    span.record("outcome", how);
    match outcome {
        Ok(_) => {
            span.record("rows", spent.rows as i64);
            span.record("bytes", spent.bytes as i64);
        }
        Err(error) => {
            span.record("code", error.code().as_str());
            if error.code() != ErrorCode::Cancelled {
                span.record("otel.status_code", "ERROR");
            }
        }
    }
}
