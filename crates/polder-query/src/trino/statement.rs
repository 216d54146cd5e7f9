//! What may be sent to Trino as a query: text whose first word begins one. Trino runs one statement a
//! request, and none that begins so changes anything. And how names and texts are quoted in statements of
//! our own.

use polder_core::{Error, ErrorCode, Result};

/// `sql`, without the semicolon at its end, which Trino does not take.
///
/// # Errors
/// `query.invalid` for anything but a query.
pub(super) fn only_query(sql: &str) -> Result<&str> {
    let sql = sql.trim();
    let sql = sql.strip_suffix(';').unwrap_or(sql);
    if is_query(sql) {
        return Ok(sql);
    }
    Err(Error::new(ErrorCode::QueryInvalid, "only queries can be run")
        .hint("use SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW or DESCRIBE"))
}

fn is_query(sql: &str) -> bool {
    let (word, rest) = first_word(sql);
    match word.to_ascii_uppercase().as_str() {
        "SELECT" | "WITH" | "VALUES" | "TABLE" | "SHOW" | "DESCRIBE" | "DESC" => true,
        "EXPLAIN" => {
            let (word, rest) = first_word(rest);
            if !word.eq_ignore_ascii_case("ANALYZE") {
                // Nothing runs that is only explained.
                return true;
            }
            let (word, after) = first_word(rest);
            is_query(if word.eq_ignore_ascii_case("VERBOSE") { after } else { rest })
        }
        _ => false,
    }
}

/// The first word after blanks, comments and opening parentheses, and what follows it.
fn first_word(sql: &str) -> (&str, &str) {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n', '(']);
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once(['\r', '\n']).map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else {
            break;
        }
    }
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    rest.split_at(end)
}

/// A text, whatever is in it: Trino knows no escapes in one.
pub(super) fn text(content: &str) -> String {
    format!("'{}'", content.replace('\'', "''"))
}

/// An identifier, whatever is in it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_pass() {
        let cases = [
            "SELECT 1",
            "  select 1 ;",
            "((SELECT 1) UNION (SELECT 2))",
            "-- why\nSELECT 1",
            "/* why */ WITH a AS (SELECT 1) SELECT * FROM a",
            "VALUES (1)",
            "TABLE t",
            "EXPLAIN SELECT 1",
            "EXPLAIN (TYPE VALIDATE) SELECT 1",
            "EXPLAIN ANALYZE VERBOSE SELECT 1",
            "EXPLAIN ANALYZE (SELECT 1)",
            "SHOW TABLES FROM lake.org_401",
            "DESCRIBE t",
        ];
        for sql in cases {
            assert!(!only_query(sql).expect(sql).ends_with(';'));
        }
    }

    #[test]
    fn nothing_else_does() {
        let cases = [
            "",
            "INSERT INTO t SELECT 1",
            "DROP TABLE t",
            "EXPLAIN ANALYZE INSERT INTO t SELECT 1",
            "EXPLAIN /* */ ANALYZE VERBOSE DELETE FROM t",
            "-- SELECT\rDROP TABLE t",
            "/* SELECT */ CALL system.runtime.kill_query()",
            "/* /* */ DROP TABLE t /* */ SELECT 1",
            "SELECTED",
            "SET SESSION x = 1",
            "CREATE TABLE t AS SELECT 1",
            "EXECUTE p",
        ];
        for sql in cases {
            assert!(only_query(sql).is_err(), "{sql:?}");
        }
    }

    #[test]
    fn names_stay_names() {
        assert_eq!(quoted("a\"; DROP TABLE t"), "\"a\"\"; DROP TABLE t\"");
    }
}
