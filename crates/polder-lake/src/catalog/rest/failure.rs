//! What the catalog's refusals mean: the error model of the specification, and the status codes as
//! Iceberg's own client reads them (`ErrorHandlers`, 1.11).

use polder_core::{Error, ErrorCode};
use reqwest::StatusCode;
use serde::Deserialize;

use super::client::{Answer, Lost};
use crate::catalog::CommitFailure;

/// The most that is repeated of a server's message.
const MESSAGE_CHARS_MAX: usize = 500;

#[derive(Deserialize)]
struct ErrorDocument {
    error: ErrorModel,
}

#[derive(Deserialize)]
struct ErrorModel {
    #[serde(default)]
    message: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

fn model(answer: &Answer) -> Option<ErrorModel> {
    serde_json::from_slice::<ErrorDocument>(&answer.body).ok().map(|document| document.error)
}

/// The server does not know the caller, or does not believe the token any more.
pub(super) fn is_refused_caller(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 419)
}

/// The same request may succeed soon.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// Whether a 404 says that a namespace or table is not there. One without Iceberg's error model comes
/// from somebody else on the way, and one about a file means that the catalog has lost it.
pub(super) fn is_absence(answer: &Answer) -> bool {
    model(answer).is_some_and(|model| model.kind.as_deref() != Some("NotFoundException"))
}

/// A refusal as an error.
pub(super) fn error(what: &str, answer: &Answer) -> Error {
    let status = answer.status.as_u16();
    let (code, hint) = match status {
        300..=399 => (ErrorCode::LakeFailed, "the catalog is elsewhere: correct [lake] catalog"),
        401 | 403 | 419 => (
            ErrorCode::LakeFailed,
            "check [catalog.rest] credential or token, and what its owner may do in the catalog",
        ),
        404 => (ErrorCode::LakeNotFound, "check [lake] catalog and [catalog.rest] warehouse"),
        409 => (ErrorCode::LakeConflict, "run again"),
        429 | 500 | 502..=599 => (ErrorCode::LakeUnavailable, "try again later"),
        _ => (ErrorCode::LakeFailed, "see what the catalog says, and its log"),
    };
    let error = Error::new(code, format!("cannot {what}: the catalog answers {status}")).hint(hint);
    let Some(model) = model(answer) else { return error };
    let said = format!(
        "{}: {}",
        model.kind.as_deref().unwrap_or("the catalog says"),
        model.message.as_deref().unwrap_or_default()
    );
    error.caused_by(said.chars().take(MESSAGE_CHARS_MAX).collect::<String>())
}

/// What a refused commit was.
///
/// The specification calls the outcome unknown after 500, 502 and 504, and says of 503 that the
/// request "could have been partially processed"; Iceberg's own client takes all of them as unknown.
pub(super) fn of_commit(answer: &Answer) -> CommitFailure {
    let error = error("commit to the catalog", answer);
    match answer.status.as_u16() {
        409 => CommitFailure::Conflict(error),
        408 | 500 | 502..=599 => unknown(error),
        _ => CommitFailure::Rejected(error),
    }
}

/// What a new table's commit is that was never sent, because the catalog could not be told of the
/// table.
pub(super) fn of_announcement(error: Error) -> CommitFailure {
    match error.code() {
        ErrorCode::LakeConflict => CommitFailure::Conflict(error),
        _ => CommitFailure::Rejected(error),
    }
}

/// What a commit without an answer was.
pub(super) fn of_lost_commit(lost: Lost) -> CommitFailure {
    match lost {
        Lost::NotSent(error) => CommitFailure::Rejected(error),
        Lost::Unanswered(error) => unknown(error),
    }
}

pub(super) fn unknown(cause: Error) -> CommitFailure {
    let message = "the catalog's answer to the commit was lost";
    CommitFailure::Unknown(Error::new(ErrorCode::LakeUnknownOutcome, message).caused_by(cause))
}
