//! Parameters of requests, and listings in pages: a cursor is the last item of the page before.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::Api;
use super::problem::{Problem, Reply};

/// Items in a page when the client does not say how many.
const PAGE_ITEMS: usize = 100;
const PAGE_ITEMS_MAX: usize = 1000;

/// Which page of a listing.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// At most so many items.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl Paging {
    pub(super) fn limit(&self) -> Reply<usize> {
        let Some(text) = &self.limit else { return Ok(PAGE_ITEMS) };
        let limit = text.parse().ok().filter(|limit| (1..=PAGE_ITEMS_MAX).contains(limit));
        limit.ok_or_else(|| {
            Problem::invalid(format!("limit has to be a number from 1 to {PAGE_ITEMS_MAX}"))
        })
    }

    /// The last item that was seen; empty at the beginning.
    pub(super) fn after(&self) -> Reply<String> {
        let Some(cursor) = &self.cursor else { return Ok(String::new()) };
        let decoded = URL_SAFE_NO_PAD.decode(cursor).ok();
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        decoded.ok_or_else(|| Problem::invalid("cursor is no next_cursor of an earlier answer"))
    }
}

/// The cursor after an item.
pub(super) fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

/// The number of the last item of the page before; `None` at the beginning.
pub(super) fn numbered(after: &str) -> Reply<Option<i64>> {
    if after.is_empty() {
        return Ok(None);
    }
    let number = after.parse::<i64>().map(Some);
    number.map_err(|_| Problem::invalid("cursor is no next_cursor of an earlier answer"))
}

/// `?dry_run=true`: say what would be, change nothing.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DryRun {
    /// Only say what would be; nothing is changed.
    #[param(value_type = Option<bool>)]
    dry_run: Option<String>,
}

impl DryRun {
    pub(super) fn wanted(&self) -> Reply<bool> {
        flag("dry_run", self.dry_run.as_deref())
    }
}

/// `?dry_run=true`, and `?yes=true` for what takes tables out of pipelines or has rows go.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Sure {
    /// Only say what would be; nothing is changed.
    #[param(value_type = Option<bool>)]
    dry_run: Option<String>,
    /// Also what takes tables out of the pipeline, or has rows or states go: 409 without.
    #[param(value_type = Option<bool>)]
    yes: Option<String>,
}

impl Sure {
    /// Whether this is a dry run, and whether what is destructive is meant.
    pub(super) fn wanted(&self) -> Reply<(bool, bool)> {
        Ok((flag("dry_run", self.dry_run.as_deref())?, flag("yes", self.yes.as_deref())?))
    }
}

/// A parameter that is true or false; false when absent.
pub(super) fn flag(name: &str, said: Option<&str>) -> Reply<bool> {
    match said {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Problem::invalid(format!("{name} has to be true or false"))),
    }
}

/// The query's parameters.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, api).await;
        let Query(found) = query.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
        Ok(Self(found))
    }
}

/// The path's parameters.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, api).await;
        let Path(found) = path.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
        Ok(Self(found))
    }
}

/// A request's body, not looked at yet: who may not send it learns nothing from it.
pub(super) struct Body(Bytes);

impl FromRequest<Api> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        match Bytes::from_request(request, api).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_))) => {
                Err(Problem::too_large())
            }
            Err(_) => Err(Problem::invalid("the request was cut off")),
        }
    }
}

impl Body {
    /// # Errors
    /// What the parser says: unknown names, wrong types.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Reply<T> {
        serde_json::from_slice(&self.0)
            .map_err(|error| Problem::invalid(format!("the request's JSON: {error}")))
    }

    /// As [`Self::parse`]; nothing at all says what its type says by default.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(super) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Reply<T> {
        if self.0.is_empty() { Ok(T::default()) } else { self.parse() }
    }
}

/// A JSON document.
pub(super) fn answer(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            let message = "the answer cannot be written as JSON";
            let error =
                polder_core::Error::new(polder_core::ErrorCode::Internal, message).caused_by(error);
            Problem::from(error).into_response()
        }
    }
}
