//! What went wrong, as PostgreSQL's clients are told: the one conversion of this door from
//! `polder_core::Error`.

use std::time::Duration;

use pgwire::messages::response::ErrorResponse;
use polder_core::{Error, ErrorCode};

/// SQLSTATEs that are no error of the engine.
pub(super) mod state {
    pub(in crate::serve::pgwire) const PROTOCOL: &str = "08P01";
    pub(in crate::serve::pgwire) const UNSUPPORTED: &str = "0A000";
    pub(in crate::serve::pgwire) const BAD_VALUE: &str = "22P02";
    pub(in crate::serve::pgwire) const BAD_SETTING: &str = "22023";
    pub(in crate::serve::pgwire) const READ_ONLY: &str = "25006";
    pub(in crate::serve::pgwire) const IN_FAILED: &str = "25P02";
    pub(in crate::serve::pgwire) const IDLE: &str = "25P03";
    pub(in crate::serve::pgwire) const NO_STATEMENT: &str = "26000";
    pub(in crate::serve::pgwire) const NOT_ALLOWED: &str = "28000";
    pub(in crate::serve::pgwire) const BAD_PASSWORD: &str = "28P01";
    pub(in crate::serve::pgwire) const NO_PORTAL: &str = "34000";
    pub(in crate::serve::pgwire) const NO_DATABASE: &str = "3D000";
    pub(in crate::serve::pgwire) const NO_SETTING: &str = "42704";
    pub(in crate::serve::pgwire) const TOO_MANY: &str = "53300";
    pub(in crate::serve::pgwire) const TOO_OFTEN: &str = "53400";
    pub(in crate::serve::pgwire) const CANCELED: &str = "57014";
    pub(in crate::serve::pgwire) const SHUTDOWN: &str = "57P01";
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The connection ends with it.
    pub(super) fatal: bool,
    pub(super) state: &'static str,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

pub(super) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(state: &'static str, message: impl Into<String>) -> Self {
        Self { fatal: false, state, message: message.into(), detail: None, hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as the end of the connection.
    pub(super) fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(state::PROTOCOL, message)
    }

    pub(super) fn canceled() -> Self {
        let message = "[control.cancelled] canceling statement due to user request";
        Self::new(state::CANCELED, message)
    }

    pub(super) fn timed_out(after: Duration) -> Self {
        let message = format!(
            "[query.limit] canceling statement due to statement timeout ({} ms)",
            after.as_millis()
        );
        Self::new(state::CANCELED, message)
    }

    pub(super) fn read_only(verb: &str) -> Self {
        let message = format!("[query.invalid] {verb} is refused: only queries can be run");
        Self::new(state::READ_ONLY, message).hint(
            "the lake is changed by runs; SELECT, EXPLAIN, SHOW TABLES and DESCRIBE are queries",
        )
    }

    /// The message that says it.
    pub(super) fn message(&self) -> ErrorResponse {
        let severity = if self.fatal { "FATAL" } else { "ERROR" };
        // A zero byte would end the field.
        let text = |text: &str| text.replace('\0', "");
        let mut fields = vec![
            (b'S', severity.to_owned()),
            (b'V', severity.to_owned()),
            (b'C', self.state.to_owned()),
            (b'M', text(&self.message)),
        ];
        fields.extend(self.detail.as_deref().map(|detail| (b'D', text(detail))));
        fields.extend(self.hint.as_deref().map(|hint| (b'H', text(hint))));
        ErrorResponse::new(fields)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, state) = (error.code(), state_of(&error));
        // Where it happened inside is for the operator.
        let inside = matches!(&state[..2], "58" | "XX");
        if inside {
            let (place, causes) = (error.detail_text().unwrap_or_default(), error.causes());
            tracing::error!(code = code.as_str(), place, ?causes, "{error}");
        }
        Self {
            fatal: false,
            state,
            message: format!("[{code}] {error}"),
            detail: error.detail_text().filter(|_| !inside).map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

/// PostgreSQL's code for an error.
fn state_of(error: &Error) -> &'static str {
    match error.code() {
        ErrorCode::QueryInvalid => invalid(error.message()),
        ErrorCode::SpecInvalid => state::BAD_SETTING,
        ErrorCode::QueryLimit => "54000",
        // Division by zero, values that cannot be cast.
        ErrorCode::QueryFailed => "22000",
        ErrorCode::LakeNotFound | ErrorCode::SourceNotFound | ErrorCode::ControlNotFound => "42P01",
        ErrorCode::LakeFenced => "55000",
        ErrorCode::ControlUnauthenticated => state::BAD_PASSWORD,
        ErrorCode::ControlDenied => "42501",
        ErrorCode::Cancelled => state::CANCELED,
        ErrorCode::LakeCorrupt => "XX001",
        ErrorCode::Internal => "XX000",
        _ => "58000",
    }
}

/// The engine has one code for a statement that cannot be planned; tools tell these apart.
fn invalid(message: &str) -> &'static str {
    let is = |part: &str| message.contains(part);
    if is("only queries can be run") {
        state::READ_ONLY
    } else if message.starts_with("table ") && is("does not exist") {
        "42P01"
    } else if message.starts_with("column ") && is("does not exist") {
        "42703"
    } else if is("there is no schema") {
        "3F000"
    } else if is("there is no function") {
        "42883"
    } else if is("is not supported") || is("not supported: ") {
        state::UNSUPPORTED
    } else if is("cannot be parsed") || is("one statement is expected") {
        "42601"
    } else {
        "42000"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_states_that_clients_look_for() {
        let of = |code, message: &str| Failure::from(Error::new(code, message)).state;
        let cases = [
            ("table deal does not exist in org_1", "42P01"),
            ("column \"x\" does not exist", "42703"),
            ("there is no schema org_2 in the lake", "3F000"),
            ("there is no function f", "42883"),
            ("only queries can be run", "25006"),
            ("the SQL cannot be parsed: x", "42601"),
            ("TABLESAMPLE is not supported", "0A000"),
            ("column x is ambiguous", "42000"),
        ];
        for (message, state) in cases {
            assert_eq!(of(ErrorCode::QueryInvalid, message), state, "{message}");
        }
        assert_eq!(of(ErrorCode::QueryLimit, "x"), "54000");
        assert_eq!(of(ErrorCode::ControlDenied, "x"), "42501");
    }

    #[test]
    fn the_stable_code_is_in_the_message_and_what_is_inside_stays_there() {
        let error = Error::new(ErrorCode::QueryInvalid, "bad").detail("here").hint("so");
        let fields = Failure::from(error).message().fields;
        assert!(fields.contains(&(b'M', "[query.invalid] bad".to_owned())), "{fields:?}");
        assert!(
            fields.contains(&(b'D', "here".to_owned()))
                && fields.contains(&(b'H', "so".to_owned()))
        );
        let error = Error::new(ErrorCode::LakeUnavailable, "away").detail("s3://bucket/key");
        let fields = Failure::from(error).message().fields;
        assert!(fields.iter().all(|(_, text)| !text.contains("bucket")), "{fields:?}");
    }
}
