//! The errors of the libraries below as [`polder_core::Error`]. One function per library; each says
//! what was being done and keeps the library's error as the cause.

use std::borrow::Borrow;

use polder_core::{Error, ErrorCode};

/// An error of the `iceberg` crate. Storage failures arrive here marked as retryable.
pub(crate) fn iceberg(what: &str, error: iceberg::Error) -> Error {
    use iceberg::ErrorKind;
    let code = match error.kind() {
        _ if error.retryable() => ErrorCode::LakeUnavailable,
        _ if code_below(&error) == Some(ErrorCode::LakeCorrupt) => ErrorCode::LakeCorrupt,
        ErrorKind::CatalogCommitConflicts => ErrorCode::LakeConflict,
        ErrorKind::DataInvalid => ErrorCode::LakeCorrupt,
        ErrorKind::TableNotFound | ErrorKind::NamespaceNotFound => ErrorCode::LakeNotFound,
        _ => ErrorCode::LakeFailed,
    };
    Error::new(code, format!("cannot {what}")).caused_by(error)
}

/// The code of an error of ours that the crate has got from the store, whatever it has put around it.
fn code_below(error: &iceberg::Error) -> Option<ErrorCode> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(own) = cause.downcast_ref::<Error>() {
            return Some(own.code());
        }
        next = cause.source();
    }
    None
}

pub(crate) fn storage(what: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let code = match &error {
        E::NotFound { .. } => ErrorCode::LakeNotFound,
        E::Generic { .. } | E::JoinError { .. } => ErrorCode::LakeUnavailable,
        _ => ErrorCode::LakeFailed,
    };
    let hint = match &error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            "check the keys under [storage.s3] and what they may do in the bucket"
        }
        E::Generic { .. } => "check that the store is up and that the endpoint is right",
        _ => "check the warehouse's address",
    };
    Error::new(code, format!("cannot {what}")).hint(hint).caused_by(error)
}

pub(crate) fn io(what: &str, error: std::io::Error) -> Error {
    Error::new(ErrorCode::LakeFailed, format!("cannot {what}"))
        .hint("check the disk's free space and the folder's permissions")
        .caused_by(error)
}

/// An error of the catalog's database, which several requests may have got together.
pub(crate) fn database<E>(what: &str, error: E) -> Error
where
    E: Borrow<sqlx::Error> + Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let code = match statement_outcome(error.borrow()) {
        StatementOutcome::Refused => ErrorCode::LakeFailed,
        StatementOutcome::NotNow | StatementOutcome::Unknown => ErrorCode::LakeUnavailable,
    };
    Error::new(code, format!("cannot {what}"))
        .hint("check [lake] catalog and that its database is up")
        .caused_by(error)
}

/// What an error says of the statement it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatementOutcome {
    /// It was not carried out, and will not be.
    Refused,
    /// It was not carried out; the same statement may succeed later.
    NotNow,
    /// It may have been carried out.
    Unknown,
}

/// By SQLite's primary result code (sqlite.org/rescode.html) or PostgreSQL's SQLSTATE (manual,
/// appendix A).
pub(crate) fn statement_outcome(error: &sqlx::Error) -> StatementOutcome {
    let error = match error {
        sqlx::Error::Database(error) => error,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => return StatementOutcome::NotNow,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => return StatementOutcome::Unknown,
        _ => return StatementOutcome::Refused,
    };
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        return postgres_outcome(&code);
    }
    match code.parse::<u32>().map(|code| code & 0xFF) {
        Ok(5 | 6) => StatementOutcome::NotNow,    // busy, locked
        Ok(10 | 11) => StatementOutcome::Unknown, // input/output error, damaged file
        _ => StatementOutcome::Refused,
    }
}

fn postgres_outcome(sqlstate: &str) -> StatementOutcome {
    match sqlstate {
        // "statement completion unknown"
        "40003" => StatementOutcome::Unknown,
        "55P03" => StatementOutcome::NotNow,
        _ => match sqlstate.get(..2) {
            Some("40" | "53") => StatementOutcome::NotNow,
            Some("08" | "57" | "58" | "XX") => StatementOutcome::Unknown,
            _ => StatementOutcome::Refused,
        },
    }
}

pub(crate) fn parquet(what: &str, error: parquet::errors::ParquetError) -> Error {
    Error::new(ErrorCode::LakeFailed, format!("cannot {what}")).caused_by(error)
}

pub(crate) fn arrow(what: &str, error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, format!("cannot {what}")).caused_by(error)
}

/// A task of ours that panicked or was stopped by the runtime's end.
pub(crate) fn join(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorCode::Internal, "a task of the lake stopped unexpectedly").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_have_been_carried_out_is_told_from_what_may_have_been() {
        use StatementOutcome::{NotNow, Refused, Unknown};
        let cases = [
            ("40001", NotNow),
            ("40003", Unknown),
            ("53300", NotNow),
            ("55P03", NotNow),
            ("57P01", Unknown),
            ("08006", Unknown),
            ("42501", Refused),
            ("23505", Refused),
        ];
        for (sqlstate, outcome) in cases {
            assert_eq!(postgres_outcome(sqlstate), outcome, "{sqlstate}");
        }
        assert_eq!(statement_outcome(&sqlx::Error::PoolTimedOut), NotNow);
        let lost = std::io::Error::other("reset");
        assert_eq!(statement_outcome(&sqlx::Error::Io(lost)), Unknown);
        assert_eq!(statement_outcome(&sqlx::Error::WorkerCrashed), Unknown);
    }
}
