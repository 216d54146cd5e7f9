//! The API of a server that runs elsewhere, as a key opens it: for agents of `polder mcp`. What the other tools
//! read does not come from there.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use polder_core::{Error, ErrorCode, Result};
use reqwest::Client;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::request::{ANSWER_BYTES_MAX, REASON, answered};
use crate::outgoing;

/// How long one call may take: a plan asks the source for the table's columns.
const CALL_MAX: Duration = Duration::from_mins(1);
/// What `/mcp` wants to be asked for; it answers in the first of them.
const ACCEPTED: &str = "application/json, text/event-stream";

/// A server, and the key that is shown to it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote {
    client: Client,
    /// Without a slash at its end.
    url: String,
    authorization: HeaderValue,
}

impl Remote {
    /// # Errors
    /// `spec.invalid` for what is no address, `spec.secret` for what is no key.
    pub(super) fn new(url: &str, key: &SecretString) -> Result<Self> {
        let url = outgoing::checked(url, true).map_err(|error| {
            error.within("--server").hint("write https://host, or http://host:port")
        })?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Error::new(ErrorCode::SpecInvalid, "--server has more than an address")
                .hint("write https://host, without ? and #"));
        }
        let bearer = format!("Bearer {}", key.expose_secret());
        let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| {
            Error::new(ErrorCode::SpecSecret, "what --key leads to is no key")
                .hint("polder keys create --role writer --org ID makes one")
        })?;
        authorization.set_sensitive(true);
        let client = outgoing::client(true, CALL_MAX)?;
        Ok(Self { client, url: url.as_str().trim_end_matches('/').to_owned(), authorization })
    }

    /// Whether the server's own agents are offered a tool with this key.
    ///
    /// # Errors
    /// As [`answered`]; `control.store` for a server that cannot be called, or has no tools.
    pub(super) async fn offers(&self, tool: &str) -> Result<bool> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
        let (status, bytes) = self.post("/mcp", &body).await?;
        let answer = answered(status, &bytes)?;
        let tools = answer["result"]["tools"].as_array();
        let tools = tools.ok_or_else(|| self.failed("does not say which tools it has"))?;
        Ok(tools.iter().any(|found| found["name"] == tool))
    }

    /// # Errors
    /// `control.store` for a server that cannot be called, or answers with too much.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Vec<u8>)> {
        let away =
            |cause: reqwest::Error| self.failed("cannot be called").caused_by(cause.without_url());
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::ACCEPT, ACCEPTED)
            .header(header::CONTENT_TYPE, "application/json")
            .header("polder-reason", REASON)
            .body(body.to_string());
        let mut answer = request.send().await.map_err(away)?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(away)? {
            if bytes.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(self.failed("answers too much"));
            }
            bytes.extend_from_slice(&part);
        }
        Ok((answer.status(), bytes))
    }

    fn failed(&self, why: &str) -> Error {
        Error::new(ErrorCode::ControlStore, format!("the server at {} {why}", self.url))
            .hint("see whether polder serve runs there, and --server names it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_keys_are_looked_at_before_anything_is_called() {
        let key = SecretString::from("plk_1_x");
        for good in ["http://127.0.0.1:7070", "https://lake.example/", "https://a.example/polder/"]
        {
            let remote = Remote::new(good, &key).expect(good);
            assert_eq!(remote.url, good.trim_end_matches('/'));
            assert!(!format!("{:?}", remote.authorization).contains("plk_1_x"));
        }
        for bad in ["", "lake.example", "ftp://a.example", "https://u:p@a.example", "http://a/?b"] {
            let error = Remote::new(bad, &key).err().expect(bad);
            assert_eq!(error.code(), ErrorCode::SpecInvalid, "{bad}");
        }
        let error =
            Remote::new("http://127.0.0.1", &SecretString::from("a\nb")).err().expect("key");
        assert_eq!(error.code(), ErrorCode::SpecSecret);
    }
}
