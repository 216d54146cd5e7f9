//! HTTP: one request, its answer within limits, and the repetition of what may be repeated.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use polder_core::{Error, ErrorCode, Result};
use rand::Rng;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url, redirect, retry};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::auth::Auth;
use super::failure;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest silence within an answer.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// The longest request, its answer included.
const REQUEST_MAX: Duration = Duration::from_mins(3);
/// The largest answer: metadata of a table with very many snapshots.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Tries of a request that changes nothing.
const TRIES_MAX: u32 = 4;
/// The first pause between them; it doubles, and a random part is left off.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Asks for the store's keys with an answer that holds a table.
const DELEGATION: &str = "x-iceberg-access-delegation";

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// How long the server asks to wait.
    retry_after: Option<Duration>,
}

/// Nothing came back.
#[derive(Debug)]
pub(super) enum Lost {
    /// The request was not carried out: it did not reach the server.
    NotSent(Error),
    /// It may have been carried out.
    Unanswered(Error),
}

impl Lost {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Unanswered(error) => error,
        }
    }
}

/// Sends requests one at a time, each once.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    http: reqwest::Client,
}

impl Exchange {
    /// # Errors
    /// `lake.failed` if TLS cannot be set up.
    pub(super) fn new() -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .timeout(REQUEST_MAX)
            // A redirected POST would be sent twice, and a token to somebody else.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .user_agent(concat!("polder/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| {
                Error::new(ErrorCode::LakeFailed, "HTTP cannot be set up").caused_by(cause)
            })?;
        Ok(Self { http })
    }

    pub(super) fn form(&self, url: &Url, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        self.http.post(url.clone()).header(ACCEPT, "application/json").form(fields)
    }

    /// Sends the request, once, and reads the whole answer.
    pub(super) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Lost> {
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = seconds.and_then(|text| text.trim().parse().ok());
        let body = body(response).await?;
        Ok(Answer { status, body, retry_after: retry_after.map(Duration::from_secs) })
    }
}

fn lost(error: reqwest::Error) -> Lost {
    let (unsent, builder) = (error.is_connect(), error.is_builder());
    let what = if error.is_timeout() { "does not answer in time" } else { "cannot be reached" };
    let place = error.url().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let code = if builder { ErrorCode::Internal } else { ErrorCode::LakeUnavailable };
    let error = Error::new(code, format!("the catalog {what}"))
        .detail(place)
        .hint("check [lake] catalog and that the server is up")
        .caused_by(error.without_url());
    if unsent || builder { Lost::NotSent(error) } else { Lost::Unanswered(error) }
}

async fn body(mut response: Response) -> Result<Bytes, Lost> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            let message = format!("the catalog's answer is over {} MB", ANSWER_BYTES_MAX >> 20);
            let error = Error::new(ErrorCode::LakeFailed, message)
                .hint("expire snapshots of the table: `polder maintain expire`");
            return Err(Lost::Unanswered(error));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A request to the catalog.
#[derive(Clone, Debug)]
pub(super) struct Request {
    method: Method,
    url: Url,
    body: Option<Bytes>,
    /// The store's keys are asked for.
    delegation: bool,
}

impl Request {
    pub(super) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, body: None, delegation: false }
    }

    pub(super) fn delete(url: Url) -> Self {
        Self { method: Method::DELETE, url, body: None, delegation: false }
    }

    /// # Errors
    /// `internal` for a document that is no JSON.
    pub(super) fn post(url: Url, document: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(document).map_err(|cause| {
            Error::new(ErrorCode::Internal, "a request cannot be written").caused_by(cause)
        })?;
        Ok(Self { method: Method::POST, url, body: Some(body.into()), delegation: false })
    }

    pub(super) fn with_keys(self, wanted: bool) -> Self {
        Self { delegation: wanted, ..self }
    }
}

/// The catalog's server, for one caller.
#[derive(Debug)]
pub(super) struct Client {
    exchange: Exchange,
    auth: Auth,
}

impl Client {
    pub(super) fn new(exchange: Exchange, auth: Auth) -> Self {
        Self { exchange, auth }
    }

    /// Sends the request. It is repeated once, with another token, if the server refuses the caller:
    /// nothing was carried out then.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Lost> {
        let token = self.auth.token().await.map_err(Lost::NotSent)?;
        let answer = self.send_as(request, token.as_ref()).await?;
        let Some(token) = token.filter(|_| failure::is_refused_caller(answer.status)) else {
            return Ok(answer);
        };
        match self.auth.instead_of(&token).await.map_err(Lost::NotSent)? {
            Some(other) => self.send_as(request, Some(&other)).await,
            None => Ok(answer),
        }
    }

    async fn send_as(
        &self,
        request: &Request,
        token: Option<&SecretString>,
    ) -> Result<Answer, Lost> {
        let Request { method, url, body, delegation } = request.clone();
        let mut sent = self.exchange.http.request(method, url).header(ACCEPT, "application/json");
        if let Some(token) = token {
            let text = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                let message = "the catalog's token has characters that no header holds";
                Lost::NotSent(Error::new(ErrorCode::SpecSecret, message))
            })?;
            value.set_sensitive(true);
            sent = sent.header(AUTHORIZATION, value);
        }
        if delegation {
            sent = sent.header(DELEGATION, "vended-credentials");
        }
        if let Some(body) = body {
            sent = sent.header(CONTENT_TYPE, "application/json").body(body);
        }
        self.exchange.send(sent).await
    }

    /// Sends a request that changes nothing, again while the server does not answer.
    pub(super) async fn read(&self, request: &Request) -> Result<Answer> {
        let mut pause = PAUSE;
        for _ in 1..TRIES_MAX {
            match self.send(request).await {
                Ok(answer) if !failure::is_passing(answer.status) => return Ok(answer),
                Ok(answer) => pause = answer.retry_after.unwrap_or(pause),
                Err(lost) => {
                    let error = lost.into_error();
                    if !error.retryable() {
                        return Err(error);
                    }
                }
            }
            let random = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.min(PAUSE_MAX).mul_f64(random)).await;
            pause *= 2;
        }
        self.send(request).await.map_err(Lost::into_error)
    }

    /// The document that a request leads to; `None` if the server says that there is no such thing.
    pub(super) async fn find<T: DeserializeOwned>(
        &self,
        what: &str,
        request: &Request,
    ) -> Result<Option<T>> {
        let answer = self.read(request).await?;
        if answer.status == StatusCode::NOT_FOUND && failure::is_absence(&answer) {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(failure::error(what, &answer).detail(request.url.to_string()));
        }
        parse(what, &answer).map(Some)
    }
}

/// An answer's document.
///
/// # Errors
/// `lake.corrupt` for an answer that is not what the specification says.
pub(super) fn parse<T: DeserializeOwned>(what: &str, answer: &Answer) -> Result<T> {
    serde_json::from_slice(&answer.body).map_err(|cause| {
        let message = format!("cannot {what}: the catalog's answer cannot be understood");
        Error::new(ErrorCode::LakeCorrupt, message).caused_by(cause)
    })
}
