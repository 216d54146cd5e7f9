//! Trino's client protocol: a statement is posted to `/v1/statement`, its pages are fetched one after the
//! other, and a DELETE of the next one cancels it. What pages hold is not read here.

use std::fmt;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Result};
use reqwest::header::{HeaderValue, LOCATION};
use reqwest::{Method, RequestBuilder, StatusCode, Url, redirect, retry};
use secrecy::{ExposeSecret, SecretString};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::failure::Failure;
use super::segments::{self, ENCODINGS, Encoded, Segment, Spooled};
use super::types::Column;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest request: Trino answers within seconds, with a page that has no rows yet.
const REQUEST_MAX: Duration = Duration::from_mins(2);
/// The largest page, and the largest segment.
pub(super) const PAGE_BYTES_MAX: usize = 256 << 20;
/// Tries of one request, and the first pause between them; it doubles up to the longest.
const TRIES_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Requests for one segment: to the coordinator, which may send on to storage or a worker.
const SEGMENT_HOPS: usize = 3;

/// How Trino is reached.
#[derive(Clone, Debug)]
pub struct TrinoSettings {
    /// `https://host:port`, or `http://` without a password.
    pub url: String,
    pub user: String,
    pub password: Option<SecretString>,
    /// The lake's name among Trino's catalogs.
    pub catalog: String,
}

/// One statement, and the session properties it needs.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) properties: Vec<(String, String)>,
}

/// How far a statement is, and some of its rows.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub(super) id: String,
    #[serde(default)]
    pub(super) next_uri: Option<String>,
    #[serde(default)]
    pub(super) columns: Option<Vec<Column>>,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    pub(super) stats: Stats,
    #[serde(default)]
    pub(super) error: Option<Failure>,
    /// It is a part of a page, and not the last one.
    #[serde(skip)]
    pub(super) is_part: bool,
}

#[derive(Debug)]
enum Data {
    Rows(Vec<Vec<Value>>),
    Encoded(Encoded),
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        input.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("rows, or their segments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, rows: A) -> std::result::Result<Data, A::Error> {
        Deserialize::deserialize(SeqAccessDeserializer::new(rows)).map(Data::Rows)
    }

    fn visit_map<A: MapAccess<'de>>(self, encoded: A) -> std::result::Result<Data, A::Error> {
        Deserialize::deserialize(MapAccessDeserializer::new(encoded)).map(Data::Encoded)
    }
}

impl Page {
    pub(super) fn rows(&self) -> &[Vec<Value>] {
        match &self.data {
            Some(Data::Rows(rows)) => rows,
            Some(Data::Encoded(_)) | None => &[],
        }
    }

    /// Where its rows are, if they are not in it.
    pub(super) fn take_segments(&mut self) -> Vec<(String, Segment)> {
        match self.data.take() {
            Some(Data::Encoded(Encoded { encoding, segments })) => {
                segments.into_iter().map(|segment| (encoding.clone(), segment)).collect()
            }
            rows => {
                self.data = rows;
                Vec::new()
            }
        }
    }

    /// The page with these of its rows. The first one has its columns.
    pub(super) fn part(&mut self, rows: Vec<Vec<Value>>, is_last: bool) -> Self {
        Self {
            id: self.id.clone(),
            next_uri: self.next_uri.clone(),
            columns: self.columns.take(),
            data: Some(Data::Rows(rows)),
            stats: self.stats,
            error: None,
            is_part: !is_last,
        }
    }
}

/// What Trino counts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stats {
    pub(super) queued: bool,
    pub(super) processed_rows: u64,
    pub(super) processed_bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    settings: TrinoSettings,
    user: HeaderValue,
    catalog: HeaderValue,
}

impl Client {
    /// # Errors
    /// `spec.invalid` for an address, user or catalog that cannot be used.
    pub(super) fn new(settings: TrinoSettings) -> Result<Self> {
        let invalid = |what: &str| Error::new(ErrorCode::SpecInvalid, format!("[trino] {what}"));
        let url: Url = settings.url.parse().map_err(|_| invalid("url is no address"))?;
        let named = url.username().is_empty() && url.password().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !named {
            return Err(invalid("url is no address of a coordinator")
                .hint("write https://host:8443; user and password have settings of their own"));
        }
        if settings.password.is_some() && url.scheme() != "https" {
            return Err(invalid("password would be sent by http://").hint("write https://…"));
        }
        if settings.user.is_empty() || settings.user.contains(':') {
            return Err(invalid("user is empty or has a ':'"));
        }
        let text = format!("{}/v1/statement", settings.url.trim_end_matches('/'));
        let url = text.parse().map_err(|_| invalid("url is no address"))?;
        let header = |name: &str, text: &str| {
            HeaderValue::from_str(text).map_err(|_| invalid(&format!("{name} cannot be sent")))
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .timeout(REQUEST_MAX)
            // A password goes to nobody else.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .user_agent(concat!("polder/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| {
                Error::new(ErrorCode::Internal, "HTTP cannot be set up").caused_by(cause)
            })?;
        let user = header("user", &settings.user)?;
        let catalog = header("catalog", &settings.catalog)?;
        Ok(Self { http, url, settings, user, catalog })
    }

    pub(super) fn lake(&self) -> &str {
        &self.settings.catalog
    }

    /// Posts the statement. Nothing of it happens before its next page is fetched.
    pub(super) async fn begin(&self, statement: &Statement) -> Result<Page> {
        let properties: Vec<String> =
            statement.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let properties = HeaderValue::from_str(&properties.join(",")).map_err(|cause| {
            Error::new(ErrorCode::Internal, "a session property cannot be sent").caused_by(cause)
        })?;
        let request = || {
            self.request(Method::POST, self.url.clone())
                .header("x-trino-time-zone", "UTC")
                // Times with all their digits.
                .header("x-trino-client-capabilities", "PARAMETRIC_DATETIME")
                // A Trino that does not spool sends rows.
                .header("x-trino-query-data-encoding", ENCODINGS)
                .header("x-trino-catalog", self.catalog.clone())
                .header("x-trino-session", properties.clone())
                .body(statement.sql.clone())
        };
        self.page(request).await
    }

    /// Fetches a page; the same again where its answer was lost.
    pub(super) async fn next(&self, uri: &str) -> Result<Page> {
        let url = self.own(uri)?;
        self.page(|| self.request(Method::GET, url.clone())).await
    }

    /// Asks Trino to stop, once; it stops by itself where nobody fetches pages for some minutes.
    pub(super) async fn cancel(&self, uri: &str) {
        let Ok(url) = self.own(uri) else { return };
        if let Err(error) = self.request(Method::DELETE, url).send().await {
            tracing::warn!("Trino could not be told to stop: {}", error.without_url());
        }
    }

    /// The rows of a segment. Storage may delete it from then on.
    pub(super) async fn rows(&self, encoding: &str, segment: Segment) -> Result<Vec<Vec<Value>>> {
        match segment {
            Segment::Inline { data, metadata } => metadata.rows(encoding, &segments::bytes(&data)?),
            Segment::Spooled(spooled) => {
                let bytes = tried(|| self.fetched(&spooled)).await?;
                let rows = spooled.metadata.rows(encoding, &bytes)?;
                self.acknowledge(&spooled).await;
                Ok(rows)
            }
        }
    }

    /// Fetches a segment from the coordinator, or from where that sends it: storage, which is told neither user nor password.
    async fn fetched(&self, spooled: &Spooled) -> Result<Vec<u8>> {
        let mut uri = spooled.uri.clone();
        for _ in 0..SEGMENT_HOPS {
            let url = self.of_segment(&uri)?;
            let request = if url.origin() == self.url.origin() {
                self.request(Method::GET, url)
            } else {
                self.http.get(url)
            };
            let response = request.headers(spooled.headers()?).send().await.map_err(lost)?;
            match response.status() {
                StatusCode::OK => return body(response).await,
                status if status.is_redirection() => {
                    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                    uri = to.map(str::to_owned).ok_or_else(|| no_segment(status))?;
                }
                status => return Err(no_segment(status)),
            }
        }
        Err(no_segment(StatusCode::LOOP_DETECTED))
    }

    /// A segment's address: rows, and the key they are encrypted with, go as safe as everything else.
    fn of_segment(&self, uri: &str) -> Result<Url> {
        let url: Option<Url> = uri.parse().ok();
        url.filter(|url| url.scheme() == "https" || url.scheme() == self.url.scheme()).ok_or_else(|| {
            let message = "Trino names an address for its rows that is not as safe as its own";
            Error::new(ErrorCode::QueryFailed, message)
                .hint("let storage be reached by https://, or set protocol.spooling.retrieval-mode=COORDINATOR_PROXY")
        })
    }

    async fn acknowledge(&self, spooled: &Spooled) {
        let url = spooled.ack_uri.as_deref().and_then(|uri| self.own(uri).ok());
        let (Some(url), Ok(headers)) = (url, spooled.headers()) else { return };
        match self.request(Method::GET, url).headers(headers).send().await {
            Ok(answer) if answer.status().is_success() => {}
            // It is deleted after some hours.
            Ok(answer) => tracing::warn!("Trino keeps rows that were read: {}", answer.status()),
            Err(error) => {
                tracing::warn!("Trino keeps rows that were read: {}", error.without_url());
            }
        }
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self
            .http
            .request(method, url)
            .header("x-trino-user", self.user.clone())
            .header("x-trino-source", "polder");
        match &self.settings.password {
            Some(password) => {
                request.basic_auth(&self.settings.user, Some(password.expose_secret()))
            }
            None => request,
        }
    }

    /// A page's address, which has to be of the coordinator that was asked: it is sent the password.
    fn own(&self, uri: &str) -> Result<Url> {
        let url: Option<Url> = uri.parse().ok();
        url.filter(|url| url.origin() == self.url.origin()).ok_or_else(|| {
            let message = "Trino names another address for its pages than the one it was asked at";
            Error::new(ErrorCode::QueryFailed, message).hint(
                "behind a proxy set http-server.process-forwarded=true, and [trino] url as Trino names itself",
            )
        })
    }

    async fn page(&self, request: impl Fn() -> RequestBuilder) -> Result<Page> {
        let body = tried(|| answer(request())).await?;
        serde_json::from_slice(&body).map_err(|cause| {
            // The cause would quote what stands there.
            let place = format!("line {}, column {}", cause.line(), cause.column());
            Error::new(ErrorCode::QueryFailed, "Trino's answer is no page of its protocol")
                .detail(place)
        })
    }
}

/// What is asked for, again where it was lost.
async fn tried<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    let (mut tries, mut pause) = (1, PAUSE);
    loop {
        match ask().await {
            Err(error) if error.retryable() && tries < TRIES_MAX => {
                tokio::time::sleep(pause).await;
                (tries, pause) = (tries + 1, (pause * 2).min(PAUSE_MAX));
            }
            outcome => return outcome,
        }
    }
}

/// Sends the request, once, and reads the whole answer.
async fn answer(request: RequestBuilder) -> Result<Vec<u8>> {
    let response = request.send().await.map_err(lost)?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(refused(status));
    }
    body(response).await
}

async fn body(mut response: reqwest::Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > PAGE_BYTES_MAX {
            let message = format!("a page of Trino's is over {} MB", PAGE_BYTES_MAX >> 20);
            return Err(
                Error::new(ErrorCode::QueryLimit, message).hint("name the columns that are needed")
            );
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn lost(error: reqwest::Error) -> Error {
    let what = if error.is_timeout() { "does not answer in time" } else { "cannot be reached" };
    let place = error.url().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    Error::new(ErrorCode::LakeUnavailable, format!("Trino {what}"))
        .detail(place)
        .hint("check [trino] url and that the coordinator is up")
        .caused_by(error.without_url())
}

fn no_segment(status: StatusCode) -> Error {
    let code = if matches!(status.as_u16(), 429 | 500 | 502..=504) {
        ErrorCode::LakeUnavailable
    } else {
        ErrorCode::QueryFailed
    };
    Error::new(code, "rows that Trino has spooled cannot be fetched")
        .detail(status.to_string())
        .hint("check that Polder reaches the storage of Trino's spooling-manager.properties")
}

fn refused(status: StatusCode) -> Error {
    match status.as_u16() {
        429 | 502..=504 => Error::new(ErrorCode::LakeUnavailable, "Trino is not ready")
            .detail(status.to_string())
            .hint("wait until the coordinator is up"),
        401 | 403 => Error::new(ErrorCode::QueryFailed, "Trino does not take Polder's user")
            .detail(status.to_string())
            .hint("check [trino] user and password"),
        404 | 410 => Error::new(ErrorCode::QueryFailed, "Trino does not know the query any more")
            .detail(status.to_string())
            .hint("it may have been started anew: ask again"),
        _ => Error::new(ErrorCode::QueryFailed, "Trino refused the request")
            .detail(status.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> TrinoSettings {
        TrinoSettings {
            url: url.to_owned(),
            user: "polder".to_owned(),
            password: None,
            catalog: "lake".to_owned(),
        }
    }

    #[test]
    fn a_password_goes_to_its_coordinator_alone() {
        let secret = Some(SecretString::from("secret"));
        let plain = TrinoSettings { password: secret.clone(), ..settings("http://trino:8080") };
        assert_eq!(Client::new(plain).expect_err("http").code(), ErrorCode::SpecInvalid);
        let safe = TrinoSettings { password: secret, ..settings("https://trino:8443/") };
        let client = Client::new(safe).expect("https");
        assert_eq!(client.url.as_str(), "https://trino:8443/v1/statement");
        assert!(!format!("{client:?}").contains("secret\""));
        client.own("https://trino:8443/v1/statement/executing/1").expect("its own");
        for other in ["http://trino:8443/x", "https://other:8443/x", "https://trino/x", "x"] {
            assert!(client.own(other).is_err(), "{other}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        for bad in ["", "trino:8080", "file:///x", "https://user@trino", "https://u:p@trino"] {
            let error = Client::new(settings(bad)).expect_err(bad);
            assert_eq!(error.code(), ErrorCode::SpecInvalid, "{bad}");
        }
        let mut named = settings("http://trino:8080");
        named.user = "a:b".to_owned();
        assert!(Client::new(named).is_err(), "the user would end at the colon");
    }

    #[test]
    fn a_page_is_read_as_trino_writes_it() {
        let text = r#"{
            "id": "20261127_123456_00000_abcde", "infoUri": "http://t/ui/query.html?x",
            "nextUri": "http://t/v1/statement/executing/x/y/1",
            "columns": [{ "name": "n", "type": "bigint",
                "typeSignature": { "rawType": "bigint", "arguments": [] } }],
            "data": [[9007199254740993]],
            "stats": { "state": "RUNNING", "queued": false, "processedRows": 7, "processedBytes": 9 },
            "warnings": []
        }"#;
        let page: Page = serde_json::from_str(text).expect("page");
        assert_eq!((page.stats.processed_rows, page.stats.processed_bytes), (7, 9));
        assert_eq!(page.rows(), [vec![serde_json::json!(9_007_199_254_740_993_i64)]]);
        assert!(page.error.is_none() && page.next_uri.is_some());
    }
}
