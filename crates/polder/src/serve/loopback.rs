//! Where nobody has to show who they are, only programs of this machine may call. A browser on it sends also
//! what a page of somebody else tells it to: such a request names the page in `Origin`, and the page's own
//! name in `Host` where that was made to lead here (DNS rebinding). Either is refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use polder_core::{Error, ErrorCode};

use super::clients::Clients;
use super::{CHURN, HEALTH, ICEBERG, api, iceberg};

const HINT: &str = "call it at 127.0.0.1 or localhost, or have keys asked for: polder keys create \
                    --role operator";

/// Lets a request through, unless it came by another name where nobody has to show who they are.
pub(super) async fn guard(
    State(clients): State<Arc<Clients>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    // A notice is signed, and whether the server lives is no secret.
    let is_notice = request.method() == Method::POST && path.trim_end_matches('/') == CHURN;
    if clients.required() || is_notice || path == HEALTH {
        return next.run(request).await;
    }
    let Some(name) = foreign(request.uri(), request.headers()) else {
        return next.run(request).await;
    };
    let message =
        format!("without keys this server answers to this machine alone, and {name} names another");
    tracing::debug!(path, "{message}");
    if path.starts_with(ICEBERG) {
        return iceberg::forbidden(format!("{message}: {HINT}"));
    }
    api::refusal(Error::new(ErrorCode::ControlDenied, message).hint(HINT))
}

/// The header that names another machine, or none.
fn foreign(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let all = |name: HeaderName| {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default())
    };
    let mut hosts = all(header::HOST).chain(uri.authority().map(Authority::as_str)).peekable();
    if hosts.peek().is_none() || !hosts.all(is_loopback) {
        return Some("Host");
    }
    let is_own = |origin: &str| {
        let origin = origin.parse::<Uri>().ok();
        origin.is_some_and(|uri| uri.authority().is_some_and(|name| is_loopback(name.as_str())))
    };
    (!all(header::ORIGIN).all(is_own)).then_some("Origin")
}

/// Whether a name with or without a port is this machine's own, whoever answers for names.
fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware;
    use tower::ServiceExt;

    use super::*;

    fn named(host: Option<&str>, origin: Option<&str>) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().expect("value"));
            }
        }
        foreign(&Uri::from_static("/v1/orgs"), &headers)
    }

    #[test]
    fn names_of_this_machine_are_told_from_others() {
        for own in
            ["localhost", "LOCALHOST:7070", "127.0.0.1:7070", "127.9.9.9", "[::1]", "[::1]:80"]
        {
            assert_eq!(named(Some(own), None), None, "{own}");
            let origin = format!("http://{own}");
            assert_eq!(named(Some("localhost"), Some(&origin)), None, "{origin}");
        }
        for other in [
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "127.0.0.1.evil.example:7070",
            "192.0.2.1",
            "0.0.0.0:7070",
            "[2001:db8::1]:7070",
            "localhost@evil.example",
            "",
            "a b",
        ] {
            assert_eq!(named(Some(other), None), Some("Host"), "{other}");
            let origin = format!("https://{other}");
            assert_eq!(named(Some("localhost"), Some(&origin)), Some("Origin"), "{origin}");
        }
        assert_eq!(named(None, None), Some("Host"));
        assert_eq!(named(Some("localhost"), Some("null")), Some("Origin"));
        let elsewhere = Uri::from_static("http://evil.example/v1/orgs");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().expect("value"));
        assert_eq!(foreign(&elsewhere, &headers), Some("Host"));
    }

    #[tokio::test]
    async fn every_door_is_guarded_while_nobody_has_to_show_who_they_are() {
        let mut asks = Clients::default();
        let secret = secrecy::SecretString::from("0123456789abcdef");
        asks.add("a", &secret, None).expect("client");
        for (clients, open) in [(Clients::default(), true), (asks, false)] {
            let clients = Arc::new(clients);
            let routes: Router = Router::new()
                .fallback(|| async { "in" })
                .layer(middleware::from_fn_with_state(clients, guard));
            let status = async |method: &str, path: &str, host: &str| {
                let request = Request::builder().method(method).uri(path).header("host", host);
                let request = request.body(Body::empty()).expect("request");
                routes.clone().oneshot(request).await.expect("answer").status()
            };
            for path in ["/v1/orgs", "/v1/query", "/iceberg/v1/config", "/metrics", "/mcp"] {
                assert_eq!(status("POST", path, "localhost:1").await, StatusCode::OK, "{path}");
                let foreign = status("POST", path, "evil.example").await;
                assert_eq!(foreign == StatusCode::FORBIDDEN, open, "{path}");
            }
            assert_eq!(status("POST", CHURN, "evil.example").await, StatusCode::OK);
            assert_eq!(status("GET", HEALTH, "evil.example").await, StatusCode::OK);
        }
    }
}
