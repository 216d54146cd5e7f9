//! Trino's errors in Polder's words. No cell value passes: messages that may quote one are left out.

use polder_core::{Error, ErrorCode, REFUSED};
use serde::Deserialize;

use super::import::refusal;

/// Why Trino ended a statement.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Failure {
    message: Option<String>,
    error_name: Option<String>,
    error_type: Option<String>,
}

/// Found while a statement is analysed: such messages quote the statement and names, never a cell.
const OF_ANALYSIS: [&str; 12] = [
    "SYNTAX_ERROR",
    "TYPE_MISMATCH",
    "AMBIGUOUS_NAME",
    "EXPRESSION_NOT_AGGREGATE",
    "EXPRESSION_NOT_SCALAR",
    "MISMATCHED_COLUMN_ALIASES",
    "NESTED_AGGREGATION",
    "NESTED_WINDOW",
    "MISSING_GROUP_BY",
    "MISSING_COLUMN_NAME",
    "NOT_SUPPORTED",
    "TYPE_NOT_FOUND",
];

impl Failure {
    pub(super) fn into_error(self) -> Error {
        let name = self.error_name.unwrap_or_else(|| "no name".to_owned());
        let message = self.message.unwrap_or_default();
        if let Some(number) = refusal(&message) {
            // Whoever made the statement knows what it refuses.
            let message = "a statement refused what it was asked for";
            return Error::new(ErrorCode::SourceUnrepresentable, message)
                .detail(format!("{REFUSED}{number}"));
        }
        if matches!(name.as_str(), "ICEBERG_COMMIT_ERROR" | "TRANSACTION_CONFLICT") {
            let message = "another writer changed the table before Trino's commit";
            return Error::new(ErrorCode::LakeConflict, message).detail(name);
        }
        if name.ends_with("NOT_FOUND") || OF_ANALYSIS.contains(&name.as_str()) {
            return Error::new(ErrorCode::QueryInvalid, format!("Trino: {}", first_line(&message)))
                .detail(name);
        }
        let error = |code, message: &str| Error::new(code, message).detail(name.clone());
        match (name.as_str(), self.error_type.as_deref()) {
            ("DIVISION_BY_ZERO", _) => error(ErrorCode::QueryFailed, "division by zero")
                .hint("divide by nullif(divisor, 0) to get null instead"),
            ("PERMISSION_DENIED", _) => {
                error(ErrorCode::QueryFailed, "Trino does not let Polder's user do this")
                    .hint("check Trino's access control for [trino] user")
            }
            (
                "USER_CANCELED"
                | "ADMINISTRATIVELY_KILLED"
                | "ADMINISTRATIVELY_PREEMPTED"
                | "ABANDONED_QUERY",
                _,
            ) => error(ErrorCode::QueryFailed, "the query was ended in Trino"),
            ("ICEBERG_TOO_MANY_OPEN_PARTITIONS", _) => {
                error(ErrorCode::QueryLimit, "the rows have more partitions than Trino writes at once").hint(
                    "raise iceberg.max-partitions-per-writer in its catalog, partition more coarsely, or \
                     load with engine: embedded",
                )
            }
            (_, Some("INSUFFICIENT_RESOURCES")) => {
                error(ErrorCode::QueryLimit, "the query needs more than Trino lets it have")
                    .hint("narrow the query, or raise Trino's limits")
            }
            (_, Some("USER_ERROR")) => {
                error(ErrorCode::QueryFailed, "the query failed in Trino, by a value or a setting")
                    .hint("Trino's own page of the query shows its message")
            }
            _ => error(ErrorCode::QueryFailed, "the query failed inside Trino")
                .hint("Trino's own page of the query shows its message"),
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &str, kind: &str, message: &str) -> Error {
        let document = serde_json::json!({
            "message": message, "errorCode": 1, "errorName": name, "errorType": kind,
            "failureInfo": { "type": "io.trino.spi.TrinoException" },
        });
        serde_json::from_value::<Failure>(document).expect("failure").into_error()
    }

    #[test]
    fn names_pass_and_cells_do_not() {
        let unknown =
            failure("COLUMN_NOT_FOUND", "USER_ERROR", "line 1:8: Column 'x' cannot be resolved");
        assert_eq!(unknown.code(), ErrorCode::QueryInvalid);
        assert!(unknown.message().contains("Column 'x'"));
        let cast =
            failure("INVALID_CAST_ARGUMENT", "USER_ERROR", "Cannot cast 'Ann Smith' to BIGINT");
        assert_eq!(cast.code(), ErrorCode::QueryFailed);
        assert!(!format!("{cast:?}").contains("Ann"), "{cast:?}");
    }

    #[test]
    fn who_has_to_act_is_told_by_the_code() {
        let cases = [
            ("ICEBERG_COMMIT_ERROR", "EXTERNAL", ErrorCode::LakeConflict),
            ("EXCEEDED_GLOBAL_MEMORY_LIMIT", "INSUFFICIENT_RESOURCES", ErrorCode::QueryLimit),
            ("ICEBERG_TOO_MANY_OPEN_PARTITIONS", "USER_ERROR", ErrorCode::QueryLimit),
            ("DIVISION_BY_ZERO", "USER_ERROR", ErrorCode::QueryFailed),
            ("SYNTAX_ERROR", "USER_ERROR", ErrorCode::QueryInvalid),
            ("GENERIC_INTERNAL_ERROR", "INTERNAL_ERROR", ErrorCode::QueryFailed),
        ];
        for (name, kind, code) in cases {
            assert_eq!(failure(name, kind, "m").code(), code, "{name}");
        }
        assert!(failure("ICEBERG_COMMIT_ERROR", "EXTERNAL", "m").retryable());
    }
}
