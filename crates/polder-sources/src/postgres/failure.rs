//! The driver's errors in Polder's words.
//!
//! The server's own text is passed on only where it speaks of names and SQL, never where it may
//! quote a value (SQLSTATE classes 22, 23 and what functions raise).

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use polder_core::{Error, ErrorCode};
use tokio_postgres::error::{DbError, SqlState};

/// A connection that could not be made.
pub(super) fn connecting(error: &tokio_postgres::Error, source: &str, place: &str) -> Error {
    if let Some(refusal) = error.as_db_error() {
        return refused(refusal, &format!("connecting to source {source}"), place);
    }
    let cause = StdError::source(error);
    // Asking whether the server encrypts is part of the handshake to the driver.
    let lost = cause.and_then(<dyn StdError>::downcast_ref).is_some_and(|cause: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(cause.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
    });
    let message = if lost { "the connection was lost".to_owned() } else { error.to_string() };
    let (code, hint) = if message.contains("TLS") {
        (
            ErrorCode::SourceUnavailable,
            "check the server's certificate: sslmode=require verifies it, for a certificate of your \
             own add sslrootcert=FILE; sslmode=disable for a server without TLS",
        )
    } else if cause.is_some_and(|cause| cause.to_string().contains("password missing")) {
        (ErrorCode::SourceDenied, "the server asks for a password: put one into the address")
    } else if message.contains("authentication") {
        (ErrorCode::SourceDenied, "check the server's authentication method (pg_hba.conf)")
    } else {
        (
            ErrorCode::SourceUnavailable,
            "check host and port, that the server runs, and that it listens there for this machine",
        )
    };
    let mut detail = place.to_owned();
    if let Some(cause) = cause {
        // Of the driver, the operating system or rustls: none of them has seen a value.
        detail = format!("{place}: {cause}");
    }
    Error::new(code, format!("source {source} cannot be connected to: {message}"))
        .detail(detail)
        .hint(hint)
}

/// A server that accepted the connection and did not go on with it.
pub(super) fn silent(source: &str, place: &str, waited: Duration) -> Error {
    let seconds = waited.as_secs();
    let message =
        format!("source {source} cannot be connected to: no answer came within {seconds} s");
    Error::new(ErrorCode::SourceUnavailable, message)
        .detail(place)
        .hint("check that a PostgreSQL server listens there; connect_timeout allows it more time")
}

/// Whether the server, the database or the role has as many connections as it may have.
pub(super) fn is_full(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
}

/// A statement that failed. `doing` says what it was for.
pub(super) fn asking(error: &tokio_postgres::Error, doing: &str, place: &str) -> Error {
    if let Some(refusal) = error.as_db_error() {
        return refused(refusal, doing, place);
    }
    let lost =
        error.is_closed() || StdError::source(error).is_some_and(<dyn StdError>::is::<io::Error>);
    let code = if lost { ErrorCode::SourceUnavailable } else { ErrorCode::SourceFailed };
    let failed = Error::new(code, format!("{doing} failed: {error}")).detail(place);
    if lost {
        return failed.hint("the connection was lost; the next attempt starts over");
    }
    failed
}

fn refused(refusal: &DbError, doing: &str, place: &str) -> Error {
    let state = refusal.code();
    let (code, hint) = meaning(state);
    let message = if quotes_values(state) {
        format!("{doing} failed: PostgreSQL refused a value (SQLSTATE {})", state.code())
    } else {
        format!("{doing} failed: {}", refusal.message())
    };
    let error = Error::new(code, message).detail(format!("{place}, SQLSTATE {}", state.code()));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn quotes_values(state: &SqlState) -> bool {
    ["22", "23", "P0", "38", "39", "XX"].iter().any(|class| state.code().starts_with(class))
}

const TOO_LARGE: &str = "a row of more than 1 GB does not fit into a message of PostgreSQL: leave its large \
                         columns out with `columns`, or read them as tables of their own";

fn meaning(state: &SqlState) -> (ErrorCode, Option<&'static str>) {
    match state.code() {
        "28P01" | "28000" => {
            (ErrorCode::SourceDenied, Some("check user, password and the server's pg_hba.conf"))
        }
        "42501" => (
            ErrorCode::SourceDenied,
            Some("GRANT USAGE ON SCHEMA and GRANT SELECT ON TABLE to the role of the address"),
        ),
        "22021" => (
            ErrorCode::SourceMalformed,
            Some(
                "a text is not what the database's encoding says: declare its column as binary \
                 under `types`",
            ),
        ),
        "3D000" => (ErrorCode::SourceNotFound, Some("check the database's name")),
        "42P01" | "3F000" => {
            (ErrorCode::SourceNotFound, Some("`polder discover` lists the tables"))
        }
        "42703" | "42601" | "42883" | "42804" | "42P18" | "42846" | "42803" | "42702" => {
            (ErrorCode::SpecInvalid, Some("check the filter of the table spec"))
        }
        "22P02" | "22007" | "22003" => (
            ErrorCode::SourceFailed,
            Some("check that the filter compares columns with values of their own type"),
        ),
        "40001" => (
            ErrorCode::SourceUnavailable,
            Some(
                "a standby cancels long reads: set hot_standby_feedback or a longer \
                 max_standby_streaming_delay there, or read the primary",
            ),
        ),
        // Gone from the server in version 17.
        "72000" => (
            ErrorCode::SourceUnavailable,
            Some("the server's old_snapshot_threshold ended the read: raise it or read fewer rows"),
        ),
        "26000" | "42P05" => (
            ErrorCode::SourceFailed,
            Some(
                "a pooler hands each statement to another session: connect to PostgreSQL itself or \
                 set PgBouncer's pool_mode = session",
            ),
        ),
        "53300" => (
            ErrorCode::SourceUnavailable,
            Some(
                "the server has no connection left: set max_connections of the source, or lower \
                 limits.splits or limits.runs",
            ),
        ),
        other if ["08", "53", "57P"].iter().any(|class| other.starts_with(class)) => {
            (ErrorCode::SourceUnavailable, None)
        }
        "54000" => (ErrorCode::SourceFailed, Some(TOO_LARGE)),
        "55P03" | "40P01" => (ErrorCode::SourceUnavailable, None),
        "57014" => (
            ErrorCode::SourceFailed,
            Some(
                "somebody cancelled the statement at the server, or a validation's statement_timeout \
                 was over: `validation:` of the table spec allows it more time",
            ),
        ),
        _ => (ErrorCode::SourceFailed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_meaning_somebody_can_act_on() {
        let cases = [
            (SqlState::INVALID_PASSWORD, ErrorCode::SourceDenied),
            (SqlState::INSUFFICIENT_PRIVILEGE, ErrorCode::SourceDenied),
            (SqlState::UNDEFINED_TABLE, ErrorCode::SourceNotFound),
            (SqlState::UNDEFINED_COLUMN, ErrorCode::SpecInvalid),
            (SqlState::TOO_MANY_CONNECTIONS, ErrorCode::SourceUnavailable),
            (SqlState::ADMIN_SHUTDOWN, ErrorCode::SourceUnavailable),
            (SqlState::CONNECTION_FAILURE, ErrorCode::SourceUnavailable),
            (SqlState::DISK_FULL, ErrorCode::SourceUnavailable),
            (SqlState::QUERY_CANCELED, ErrorCode::SourceFailed),
            (SqlState::SNAPSHOT_TOO_OLD, ErrorCode::SourceUnavailable),
        ];
        for (state, code) in cases {
            assert_eq!(meaning(&state).0, code, "{state:?}");
        }
        for state in [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT] {
            assert!(meaning(&state).1.expect("hint").contains("PgBouncer"), "{state:?}");
        }
        assert!(quotes_values(&SqlState::INVALID_TEXT_REPRESENTATION));
        assert!(!quotes_values(&SqlState::UNDEFINED_TABLE));
    }
}
