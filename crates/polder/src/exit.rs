//! Exit codes: a documented API (docs/reference/exit-codes.md).

use polder_core::{Error, ErrorCode};

/// Everything that was asked for was done.
pub(crate) const OK: u8 = 0;
/// It failed, and asking again will not help.
pub(crate) const FAILED: u8 = 1;
/// The configuration or the command line is wrong. (clap uses 2 as well.)
pub(crate) const USAGE: u8 = 2;
/// `polder validate`: a table is not verified.
pub(crate) const NOT_VERIFIED: u8 = 3;
/// Some tables succeeded and some failed.
pub(crate) const PARTIAL: u8 = 4;
/// It failed for now; the same command may succeed later (BSD's `EX_TEMPFAIL`).
pub(crate) const RETRY: u8 = 75;
/// Stopped by Ctrl-C (128 + SIGINT).
pub(crate) const INTERRUPTED: u8 = 130;

/// The exit code of an error.
pub(crate) fn of(error: &Error) -> u8 {
    match error.code() {
        ErrorCode::Cancelled => INTERRUPTED,
        ErrorCode::SpecInvalid | ErrorCode::SpecUnknownName | ErrorCode::SpecSecret => USAGE,
        _ if error.retryable() => RETRY,
        _ => FAILED,
    }
}
