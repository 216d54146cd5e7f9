//! The driver's errors in Polder's words.

use std::io;

use mongodb::error::{Error as DriverError, ErrorKind};
use polder_core::{Error, ErrorCode};

/// Codes by which a server says that it has no snapshot reads here, or no longer has this snapshot:
/// `IllegalOperation`, `InvalidOptions`, `NotAReplicaSet`, `SnapshotTooOld`, `SnapshotUnavailable`
/// (mongod's `error_codes.yml`).
const NO_SNAPSHOT: [i32; 5] = [20, 72, 123, 239, 246];
/// States a server leaves by itself: those after which the driver reads once more (MongoDB's
/// retryable reads specification, "Retryable Error").
const TEMPORARY: [i32; 13] = [6, 7, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436];
/// `Unauthorized` and `AuthenticationFailed`.
const DENIED: [i32; 2] = [13, 18];

pub(super) fn source_error(error: DriverError) -> Error {
    let failure = match &*error.kind {
        ErrorKind::Authentication { .. } => denied(),
        ErrorKind::Command(command) if DENIED.contains(&command.code) => denied(),
        ErrorKind::Command(command) if TEMPORARY.contains(&command.code) => Error::new(
            ErrorCode::SourceUnavailable,
            format!("the MongoDB server cannot answer at present ({})", command.code_name),
        )
        .hint("run again when its replica set has a primary and is not shutting down"),
        ErrorKind::Command(command) => Error::new(
            ErrorCode::SourceFailed,
            format!("the MongoDB server refused a command ({})", command.code_name),
        ),
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::ConnectionPoolCleared { .. } => {
            // A refused login on a pooled connection arrives as a cleared pool or a failed selection.
            if error.to_string().contains("uthentication failed") {
                denied()
            } else {
                Error::new(ErrorCode::SourceUnavailable, "the MongoDB server cannot be reached")
                    .hint("check the address, the network and that the server runs")
            }
        }
        ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. } => {
            Error::new(ErrorCode::SourceMalformed, "the MongoDB server sent a malformed answer")
        }
        _ => Error::new(ErrorCode::SourceFailed, "reading from MongoDB failed"),
    };
    failure.caused_by(io::Error::other(error))
}

fn denied() -> Error {
    Error::new(ErrorCode::SourceDenied, "the MongoDB server refused the login or the access")
        .hint("check user, password, authSource and the user's read role")
}

/// Whether the server closed a connection as soon as it was made, as one does that has no more to give.
pub(super) fn is_refusal(error: &DriverError) -> bool {
    let closed = matches!(*error.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. });
    // A refused login arrives as a cleared pool, too.
    closed && !error.to_string().contains("uthentication failed")
}

/// Whether the server has no snapshot reads, or has this snapshot no more.
pub(super) fn is_without_snapshot(error: &DriverError) -> bool {
    match &*error.kind {
        ErrorKind::Command(command) => NO_SNAPSHOT.contains(&command.code),
        ErrorKind::SessionsNotSupported | ErrorKind::IncompatibleServer { .. } => true,
        ErrorKind::InvalidArgument { message, .. } => message.to_lowercase().contains("snapshot"),
        _ => false,
    }
}
