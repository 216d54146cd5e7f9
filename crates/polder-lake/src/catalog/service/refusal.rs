//! Why a request was not carried out, in the words of Iceberg's own catalogs.

use std::fmt::Display;

use iceberg::{NamespaceIdent, TableIdent};
use polder_core::{Error, ErrorCode};

use crate::catalog::CommitFailure;
use crate::catalog::sql::EntryKind;

/// The kinds of refusal that Iceberg's error model tells apart. Each has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    IllegalArgument,
    Validation,
    NotAuthorized,
    Forbidden,
    NoSuchNamespace,
    NoSuchTable,
    NoSuchView,
    NotFound,
    UnsupportedOperation,
    AlreadyExists,
    NamespaceNotEmpty,
    CommitFailed,
    Unprocessable,
    CommitStateUnknown,
    Unavailable,
    Internal,
}

impl RefusalKind {
    /// The `type` of Iceberg's error model: the simple name of the Java client's exception.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::IllegalArgument => "IllegalArgumentException",
            Self::Validation => "ValidationException",
            Self::NotAuthorized => "NotAuthorizedException",
            Self::Forbidden => "ForbiddenException",
            Self::NoSuchNamespace => "NoSuchNamespaceException",
            Self::NoSuchTable => "NoSuchTableException",
            Self::NoSuchView => "NoSuchViewException",
            Self::NotFound => "NotFoundException",
            Self::UnsupportedOperation => "UnsupportedOperationException",
            Self::AlreadyExists => "AlreadyExistsException",
            Self::NamespaceNotEmpty => "NamespaceNotEmptyException",
            Self::CommitFailed => "CommitFailedException",
            Self::Unprocessable => "UnprocessableEntityException",
            Self::CommitStateUnknown => "CommitStateUnknownException",
            Self::Unavailable => "ServiceUnavailableException",
            Self::Internal => "InternalServerError",
        }
    }

    /// The status the Iceberg REST specification gives it.
    pub const fn status(self) -> u16 {
        match self {
            Self::IllegalArgument | Self::Validation => 400,
            Self::NotAuthorized => 401,
            Self::Forbidden => 403,
            Self::NoSuchNamespace | Self::NoSuchTable | Self::NoSuchView | Self::NotFound => 404,
            Self::UnsupportedOperation => 406,
            Self::AlreadyExists | Self::NamespaceNotEmpty | Self::CommitFailed => 409,
            Self::Unprocessable => 422,
            Self::CommitStateUnknown | Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

/// A request that was not carried out.
#[derive(Debug)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// For the client: no causes, no secrets.
    pub message: String,
    /// For the server's log: what went wrong below, if it is not the request's fault.
    pub cause: Option<Error>,
}

/// What an operation of the served catalog gives.
pub type Answer<T> = Result<T, Refusal>;

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), cause: None }
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::IllegalArgument, message)
    }

    /// A change the metadata cannot take.
    pub(super) fn validation(cause: &iceberg::Error) -> Self {
        Self::new(RefusalKind::Validation, cause.message())
    }

    pub(super) fn no_namespace(namespace: &NamespaceIdent) -> Self {
        let shown = show_namespace(namespace);
        let message = format!("Namespace does not exist: {shown}");
        Self::new(RefusalKind::NoSuchNamespace, message)
    }

    /// There is no such table or view.
    pub(super) fn absent(kind: EntryKind, shown: &str) -> Self {
        match kind {
            EntryKind::Table => {
                Self::new(RefusalKind::NoSuchTable, format!("Table does not exist: {shown}"))
            }
            EntryKind::View => {
                Self::new(RefusalKind::NoSuchView, format!("View does not exist: {shown}"))
            }
        }
    }

    pub(super) fn exists(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::AlreadyExists, message)
    }

    pub(super) fn requirement(message: impl Display) -> Self {
        Self::new(RefusalKind::CommitFailed, format!("Requirement failed: {message}"))
    }
}

/// `ns.sub.table`, as Iceberg's messages show it.
pub(super) fn show(ident: &TableIdent) -> String {
    format!("{}.{}", show_namespace(&ident.namespace), ident.name)
}

pub(super) fn show_namespace(namespace: &NamespaceIdent) -> String {
    let levels: &[String] = namespace;
    levels.join(".")
}

impl From<Error> for Refusal {
    fn from(cause: Error) -> Self {
        let kind = match cause.code() {
            ErrorCode::LakeUnavailable | ErrorCode::ControlIssuer => RefusalKind::Unavailable,
            ErrorCode::LakeUnknownOutcome => RefusalKind::CommitStateUnknown,
            ErrorCode::ControlDenied | ErrorCode::LakeFenced | ErrorCode::LakeHeld => {
                RefusalKind::Forbidden
            }
            ErrorCode::SpecInvalid => RefusalKind::IllegalArgument,
            _ => RefusalKind::Internal,
        };
        Self { kind, message: cause.message().to_owned(), cause: Some(cause) }
    }
}

impl From<CommitFailure> for Refusal {
    fn from(failure: CommitFailure) -> Self {
        match failure {
            CommitFailure::Conflict(cause) => {
                let message = format!("Cannot commit: {}", cause.message());
                Self::new(RefusalKind::CommitFailed, message)
            }
            CommitFailure::Rejected(cause) => cause.into(),
            CommitFailure::Unknown(cause) => Self {
                kind: RefusalKind::CommitStateUnknown,
                message: cause.message().to_owned(),
                cause: Some(cause),
            },
        }
    }
}
