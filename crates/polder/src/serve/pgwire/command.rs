//! What a statement is that is no query: settings, transactions, and what is refused.

use polder_query::postgres::{Piece, Word};

/// Words that begin a statement that would write.
const WRITES: [&str; 24] = [
    "ALTER", "ANALYZE", "CALL", "CLUSTER", "COMMENT", "COPY", "CREATE", "DELETE", "DO", "DROP",
    "GRANT", "IMPORT", "INSERT", "LOCK", "MERGE", "NOTIFY", "REASSIGN", "REFRESH", "REINDEX",
    "REPLACE", "REVOKE", "TRUNCATE", "UPDATE", "VACUUM",
];
/// Words that begin what this door does not have.
const UNSUPPORTED: [&str; 7] =
    ["DECLARE", "EXECUTE", "FETCH", "LISTEN", "MOVE", "PREPARE", "SECURITY"];

/// A statement by what has to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// For the engine, or for `pg_catalog`.
    Query,
    Begin(&'static str),
    Commit,
    Rollback,
    /// `ROLLBACK TO`: a failed transaction goes on.
    Restore,
    Set {
        name: String,
        value: Vec<String>,
        local: bool,
    },
    /// One setting, or all.
    Reset(Option<String>),
    /// One setting, or all.
    Show(Option<String>),
    /// `DISCARD ALL`: as new.
    Discard,
    /// One prepared statement, or all.
    Deallocate(Option<String>),
    /// One cursor, or all.
    Close(Option<String>),
    /// Harmless: nothing has to be done.
    Nothing(&'static str),
    Write(String),
    Unsupported(String),
}

impl Command {
    pub(super) fn of(piece: &Piece) -> Self {
        let words = piece.words.as_slice();
        let is = |at: usize, keyword: &str| words.get(at).is_some_and(|word| word.is(keyword));
        let first = words.first().filter(|word| !word.quoted);
        let first = first.map_or_else(String::new, |word| word.text.to_ascii_uppercase());
        match first.as_str() {
            "BEGIN" => Self::Begin("BEGIN"),
            "START" if is(1, "TRANSACTION") => Self::Begin("START TRANSACTION"),
            "COMMIT" | "END" if is(1, "PREPARED") => {
                Self::Unsupported("COMMIT PREPARED".to_owned())
            }
            "COMMIT" | "END" => Self::Commit,
            "ROLLBACK" if words.iter().any(|word| word.is("TO")) => Self::Restore,
            "ROLLBACK" | "ABORT" => Self::Rollback,
            "SAVEPOINT" => Self::Nothing("SAVEPOINT"),
            "RELEASE" => Self::Nothing("RELEASE"),
            "UNLISTEN" => Self::Nothing("UNLISTEN"),
            "DISCARD" if is(1, "ALL") => Self::Discard,
            "DISCARD" => Self::Nothing("DISCARD"),
            "DEALLOCATE" => {
                let from = if is(1, "PREPARE") { 2 } else { 1 };
                Self::Deallocate(named(words.get(from)))
            }
            "CLOSE" => Self::Close(named(words.get(1))),
            "RESET" => Self::Reset(setting(&words[1..]).map(|(name, _)| name)),
            "SHOW" if is(1, "TABLES") || is(1, "COLUMNS") => Self::Query,
            "SHOW" => Self::Show(setting(&words[1..]).map(|(name, _)| name)),
            "SET" => set(&words[1..]),
            verb if WRITES.contains(&verb) => Self::Write(verb.to_owned()),
            verb if UNSUPPORTED.contains(&verb) => Self::Unsupported(verb.to_owned()),
            _ => Self::Query,
        }
    }
}

/// One name, or all.
fn named(word: Option<&Word>) -> Option<String> {
    let word = word.filter(|word| !word.is("ALL"))?;
    Some(if word.quoted { word.text.clone() } else { word.text.to_ascii_lowercase() })
}

/// A setting's name in its own words, and how many these are; none for ALL.
fn setting(words: &[Word]) -> Option<(String, usize)> {
    let is = |at: usize, keyword: &str| words.get(at).is_some_and(|word| word.is(keyword));
    if is(0, "TIME") && is(1, "ZONE") {
        return Some(("timezone".to_owned(), 2));
    }
    if is(0, "TRANSACTION") && is(1, "ISOLATION") {
        return Some(("transaction_isolation".to_owned(), 3));
    }
    if is(0, "SESSION") && is(1, "AUTHORIZATION") {
        return Some(("session_authorization".to_owned(), 2));
    }
    let first = words.first().filter(|word| !word.is("ALL"))?;
    // `polder.x` is one name of several words.
    let mut name = first.text.to_ascii_lowercase();
    let mut taken = 1;
    while is(taken, ".") {
        name.push('.');
        name.push_str(&words.get(taken + 1)?.text.to_ascii_lowercase());
        taken += 2;
    }
    Some((name, taken))
}

fn set(words: &[Word]) -> Command {
    let local = words.first().is_some_and(|word| word.is("LOCAL"));
    let is_session = words.first().is_some_and(|word| word.is("SESSION"));
    let is_authorization = words.get(1).is_some_and(|word| word.is("AUTHORIZATION"));
    let words = if local || (is_session && !is_authorization) { &words[1..] } else { words };
    let is = |at: usize, keyword: &str| words.get(at).is_some_and(|word| word.is(keyword));
    // All that it may say of a transaction is true already, or has no effect where nothing writes.
    if is(0, "TRANSACTION") || is(0, "CHARACTERISTICS") {
        return Command::Nothing("SET");
    }
    if is(0, "ROLE") || is(0, "CONSTRAINTS") {
        return Command::Unsupported(format!("SET {}", words[0].text.to_ascii_uppercase()));
    }
    if is(0, "NAMES") {
        let value = words.iter().skip(1).map(|word| word.text.clone()).collect();
        return Command::Set { name: "client_encoding".to_owned(), value, local };
    }
    let Some((name, taken)) = setting(words) else {
        return Command::Unsupported("SET ALL".to_owned());
    };
    let rest = words.get(taken..).unwrap_or_default();
    let rest = match rest.first() {
        Some(word) if word.is("TO") || (!word.quoted && word.text == "=") => &rest[1..],
        _ => rest,
    };
    if matches!(rest, [word] if word.is("DEFAULT")) {
        return Command::Reset(Some(name));
    }
    Command::Set { name, value: values(rest), local }
}

/// The values of a list; a sign belongs to the number after it.
fn values(words: &[Word]) -> Vec<String> {
    let mut values = Vec::new();
    let mut sign = "";
    for word in words {
        match word.text.as_str() {
            "," | "+" if !word.quoted => {}
            "-" if !word.quoted => sign = "-",
            text => {
                values.push(format!("{sign}{text}"));
                sign = "";
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use polder_query::postgres::pieces;

    use super::*;

    fn of(sql: &str) -> Command {
        Command::of(&pieces(sql).expect(sql)[0])
    }

    fn set_to(name: &str, value: &[&str], local: bool) -> Command {
        let value = value.iter().map(|value| (*value).to_owned()).collect();
        Command::Set { name: name.to_owned(), value, local }
    }

    #[test]
    fn settings_are_read_as_postgresql_has_them() {
        let cases = [
            ("SET extra_float_digits = 3", set_to("extra_float_digits", &["3"], false)),
            ("set session DateStyle to ISO, mdy", set_to("datestyle", &["ISO", "mdy"], false)),
            ("SET LOCAL statement_timeout TO '5s'", set_to("statement_timeout", &["5s"], true)),
            ("SET TIME ZONE 'UTC'", set_to("timezone", &["UTC"], false)),
            ("SET TIME ZONE -5", set_to("timezone", &["-5"], false)),
            ("SET NAMES 'UTF8'", set_to("client_encoding", &["UTF8"], false)),
            ("SET polder.x = 1", set_to("polder.x", &["1"], false)),
            ("SET application_name = 'a''b'", set_to("application_name", &["a'b"], false)),
            ("SET search_path = DEFAULT", Command::Reset(Some("search_path".to_owned()))),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Nothing("SET")),
            ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", Command::Nothing("SET")),
            ("SET SESSION AUTHORIZATION ann", set_to("session_authorization", &["ann"], false)),
            ("SET ROLE ann", Command::Unsupported("SET ROLE".to_owned())),
            ("RESET ALL", Command::Reset(None)),
            ("RESET statement_timeout", Command::Reset(Some("statement_timeout".to_owned()))),
            ("SHOW TIME ZONE", Command::Show(Some("timezone".to_owned()))),
            (
                "SHOW TRANSACTION ISOLATION LEVEL",
                Command::Show(Some("transaction_isolation".to_owned())),
            ),
            ("SHOW ALL", Command::Show(None)),
            ("SHOW TABLES", Command::Query),
        ];
        for (sql, expected) in cases {
            assert_eq!(of(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_writes_is_told_from_what_is_harmless() {
        let cases = [
            ("begin read write", Command::Begin("BEGIN")),
            ("START TRANSACTION", Command::Begin("START TRANSACTION")),
            ("END", Command::Commit),
            ("ROLLBACK TO SAVEPOINT a", Command::Restore),
            ("ABORT", Command::Rollback),
            ("DISCARD ALL", Command::Discard),
            ("DEALLOCATE PREPARE \"A\"", Command::Deallocate(Some("A".to_owned()))),
            ("DEALLOCATE ALL", Command::Deallocate(None)),
            ("CLOSE c", Command::Close(Some("c".to_owned()))),
            ("copy t to stdout", Command::Write("COPY".to_owned())),
            ("INSERT INTO t SELECT 1", Command::Write("INSERT".to_owned())),
            ("DECLARE c CURSOR FOR SELECT 1", Command::Unsupported("DECLARE".to_owned())),
            ("SELECT 1", Command::Query),
            ("(SELECT 1)", Command::Query),
            ("\"INSERT\"", Command::Query),
            ("EXPLAIN ANALYZE COPY t TO 'x'", Command::Query),
        ];
        for (sql, expected) in cases {
            assert_eq!(of(sql), expected, "{sql}");
        }
    }
}
