//! One error for every seam: a code, what happened, where, and what to do about it.
//!
//! This module formats nothing for a terminal and knows no protocol. Each protocol's conversion
//! (exit code, problem+json, SQLSTATE, …) is one exhaustive match on [`ErrorCode`], kept where that
//! protocol lives.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of everything that can fail in Polder.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is, grouped by the side that has to act. Stable: part of the API, as [`Self::as_str`]
/// has it; serde's form is for processes of one binary alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The configuration text cannot be understood or contradicts itself.
    SpecInvalid,
    /// A configuration names something (a source, a template, a secret) that does not exist.
    SpecUnknownName,
    /// A secret reference cannot be resolved.
    SpecSecret,
    /// The source cannot be reached or refuses the connection.
    SourceUnavailable,
    /// The source refuses the credentials or a permission is missing.
    SourceDenied,
    /// The source table, column or object does not exist.
    SourceNotFound,
    /// A value of the source cannot be represented exactly and the spec says `error`.
    SourceUnrepresentable,
    /// The source sent something malformed (a bad line, a broken file, a protocol violation).
    SourceMalformed,
    /// The source failed otherwise.
    SourceFailed,
    /// The catalog or the object store cannot be reached.
    LakeUnavailable,
    /// Another writer changed the table first; nothing of ours is visible.
    LakeConflict,
    /// The outcome of a commit could not be learnt; nothing may be cleaned up.
    LakeUnknownOutcome,
    /// The lake table, snapshot, tag or namespace does not exist.
    LakeNotFound,
    /// The table's new shape is refused by the schema-change policy.
    LakeSchemaRefused,
    /// What was read back before publishing is not what the run wrote; nothing of it is visible.
    LakeAuditFailed,
    /// The org is leaving or has left: nothing of it is read or written any more.
    LakeFenced,
    /// A legal hold keeps what was to be removed.
    LakeHeld,
    /// Stored metadata or data is damaged.
    LakeCorrupt,
    /// The lake failed otherwise.
    LakeFailed,
    /// The SQL text is not valid or names something unknown.
    QueryInvalid,
    /// The query exceeded one of its limits.
    QueryLimit,
    /// The query failed while it ran.
    QueryFailed,
    /// Nobody knows who the caller is: no key or token, or none that is good.
    ControlUnauthenticated,
    /// The caller may not do this.
    ControlDenied,
    /// The control plane has no such org, table, run, operation, key or plan.
    ControlNotFound,
    /// It is there already, or the state does not allow it.
    ControlConflict,
    /// Somebody changed it since it was read.
    ControlStale,
    /// A run of the same table is under way.
    ControlBusy,
    /// The `OpenID` provider cannot be reached, or does not answer as one.
    ControlIssuer,
    /// Airflow cannot be reached, or does not do what it is asked for.
    ControlOrchestrator,
    /// The control store failed.
    ControlStore,
    /// Somebody asked for the work to stop.
    Cancelled,
    /// A bug in Polder.
    Internal,
}

impl ErrorCode {
    /// The dotted name used in JSON, logs and the docs, such as `source.unavailable`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SpecInvalid => "spec.invalid",
            Self::SpecUnknownName => "spec.unknown_name",
            Self::SpecSecret => "spec.secret",
            Self::SourceUnavailable => "source.unavailable",
            Self::SourceDenied => "source.denied",
            Self::SourceNotFound => "source.not_found",
            Self::SourceUnrepresentable => "source.unrepresentable",
            Self::SourceMalformed => "source.malformed",
            Self::SourceFailed => "source.failed",
            Self::LakeUnavailable => "lake.unavailable",
            Self::LakeConflict => "lake.conflict",
            Self::LakeUnknownOutcome => "lake.unknown_outcome",
            Self::LakeNotFound => "lake.not_found",
            Self::LakeSchemaRefused => "lake.schema_refused",
            Self::LakeAuditFailed => "lake.audit_failed",
            Self::LakeFenced => "lake.fenced",
            Self::LakeHeld => "lake.held",
            Self::LakeCorrupt => "lake.corrupt",
            Self::LakeFailed => "lake.failed",
            Self::QueryInvalid => "query.invalid",
            Self::QueryLimit => "query.limit",
            Self::QueryFailed => "query.failed",
            Self::ControlUnauthenticated => "control.unauthenticated",
            Self::ControlDenied => "control.denied",
            Self::ControlNotFound => "control.not_found",
            Self::ControlConflict => "control.conflict",
            Self::ControlStale => "control.stale",
            Self::ControlBusy => "control.busy",
            Self::ControlIssuer => "control.issuer",
            Self::ControlOrchestrator => "control.orchestrator",
            Self::ControlStore => "control.store",
            Self::Cancelled => "control.cancelled",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub const fn retryable(self) -> bool {
        match self {
            Self::SourceUnavailable
            | Self::LakeUnavailable
            | Self::LakeConflict
            | Self::LakeUnknownOutcome
            | Self::ControlBusy
            | Self::ControlIssuer
            | Self::ControlOrchestrator => true,
            Self::SpecInvalid
            | Self::SpecUnknownName
            | Self::SpecSecret
            | Self::SourceDenied
            | Self::SourceNotFound
            | Self::SourceUnrepresentable
            | Self::SourceMalformed
            | Self::SourceFailed
            | Self::LakeNotFound
            | Self::LakeSchemaRefused
            | Self::LakeAuditFailed
            | Self::LakeFenced
            | Self::LakeHeld
            | Self::LakeCorrupt
            | Self::LakeFailed
            | Self::QueryInvalid
            | Self::QueryLimit
            | Self::QueryFailed
            | Self::ControlUnauthenticated
            | Self::ControlDenied
            | Self::ControlNotFound
            | Self::ControlConflict
            | Self::ControlStale
            | Self::ControlStore
            | Self::Cancelled
            | Self::Internal => false,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error with PostgreSQL's three parts: primary message, detail and hint.
///
/// `Display` prints the message alone; whoever shows the error prints detail, hint and the chain
/// of [`std::error::Error::source`], once.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    code: ErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that says what happened. Add where with [`Self::detail`], and the way out with
    /// [`Self::hint`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { inner: Box::new(Inner { code, message, detail: None, hint: None, source: None }) }
    }

    /// Where it happened: `file:line:column`, table, column, object key. No secrets, no cell values.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.inner.detail = Some(detail.into());
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// The error of the library below that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Says which part of the work failed, in front of the message: `org 401, table opportunity: …`.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.inner.message = format!("{place}: {}", self.inner.message);
        self
    }

    pub fn code(&self) -> ErrorCode {
        self.inner.code
    }

    pub fn message(&self) -> &str {
        &self.inner.message
    }

    pub fn detail_text(&self) -> Option<&str> {
        self.inner.detail.as_deref()
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// See [`ErrorCode::retryable`].
    pub fn retryable(&self) -> bool {
        self.inner.code.retryable()
    }

    /// The messages of the chain below this error, outermost first.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = StdError::source(self);
        while let Some(error) = next {
            let text = error.to_string();
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            next = error.source();
        }
        causes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
