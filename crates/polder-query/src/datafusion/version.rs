//! Version clauses: `FOR VERSION AS OF 123`, `FOR VERSION AS OF 'v1'`,
//! `FOR TIMESTAMP AS OF TIMESTAMP '2026-01-01 00:00:00'`.
//!
//! The parser knows no such clause in this dialect, so it is taken out of the token stream: the
//! table's name becomes a name that carries the version, and a map says what that name stands for.
//! Which snapshot it is, is not decided here.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use datafusion::sql::sqlparser::ast::Ident;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use polder_core::{Error, ErrorCode, Result};

/// Which state of a table is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A snapshot id, a tag or a branch.
    Named(String),
    /// The state at a time, in milliseconds since the epoch, UTC.
    At(i64),
}

/// One version of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clause {
    /// The table's own name, its last part.
    pub(super) table: String,
    pub(super) version: Version,
}

/// All version clauses of a statement.
#[derive(Default)]
pub(super) struct Clauses {
    pub(super) by_name: HashMap<String, Clause>,
    /// How many clauses were written; all must end up on tables.
    pub(super) occurrences: usize,
}

/// A name as SQL compares it: unquoted ones in lower case.
pub(super) fn normal(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

pub(super) fn misplaced() -> Error {
    Error::new(ErrorCode::QueryInvalid, "a version clause does not follow a lake table's name")
        .hint("write FROM lake.org_401.opportunity FOR VERSION AS OF 'v1' AS alias")
}

/// Takes the version clauses out of `tokens` (without whitespace).
///
/// # Errors
/// `query.invalid` for a clause without a table's name before it or a literal behind it.
pub(super) fn take(tokens: &[TokenWithSpan]) -> Result<(Vec<TokenWithSpan>, Clauses)> {
    let names: HashSet<String> = tokens.iter().filter_map(word).map(|w| w.value.clone()).collect();
    let mut clauses = Clauses::default();
    let mut rest: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut next = 0;
    while next < tokens.len() {
        let Some(by_time) = clause_at(&tokens[next..]) else {
            rest.push(tokens[next].clone());
            next += 1;
            continue;
        };
        let (version, used) = literal(&tokens[next + 4..], by_time)?;
        next += 4 + used;
        let Some(Token::Word(name)) = rest.last().map(|t| &t.token) else {
            return Err(misplaced());
        };
        let ident = Ident { value: name.value.clone(), ..Ident::new("") };
        let table = match name.quote_style {
            Some(_) => ident.value,
            None => normal(&ident),
        };
        let shown = match &version {
            Version::Named(name) => format!("VERSION AS OF {name}"),
            Version::At(ms) => format!("TIMESTAMP AS OF {}", shown_time(*ms)),
        };
        let mut hidden = format!("{table} FOR {shown}");
        while names.contains(&hidden) {
            hidden.push('\'');
        }
        if let Some(last) = rest.last_mut() {
            last.token = Token::make_word(&hidden, Some('"'));
        }
        clauses.by_name.insert(hidden, Clause { table, version });
        clauses.occurrences += 1;
    }
    Ok((rest, clauses))
}

fn shown_time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |time| time.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
}

fn word(token: &TokenWithSpan) -> Option<&Word> {
    match &token.token {
        Token::Word(word) => Some(word),
        _ => None,
    }
}

fn is(token: Option<&TokenWithSpan>, text: &str) -> bool {
    token
        .and_then(word)
        .is_some_and(|w| w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text))
}

/// `Some(by time?)` if a version clause starts here.
fn clause_at(tokens: &[TokenWithSpan]) -> Option<bool> {
    let kind = tokens.get(1);
    let by_time = is(kind, "TIMESTAMP") || is(kind, "SYSTEM_TIME");
    let by_version = is(kind, "VERSION") || is(kind, "SYSTEM_VERSION");
    let clause = is(tokens.first(), "FOR")
        && (by_time || by_version)
        && is(tokens.get(2), "AS")
        && is(tokens.get(3), "OF");
    clause.then_some(by_time)
}

/// The literal of a clause and how many tokens it takes.
fn literal(tokens: &[TokenWithSpan], by_time: bool) -> Result<(Version, usize)> {
    let typed = tokens.first().and_then(word).is_some_and(|w| {
        by_time && matches!(w.keyword, Keyword::TIMESTAMP | Keyword::TIMESTAMPTZ | Keyword::DATE)
    });
    let at = usize::from(typed);
    let version = match tokens.get(at).map(|t| &t.token) {
        Some(Token::Number(digits, _)) if !by_time => Version::Named(digits.clone()),
        Some(Token::SingleQuotedString(text)) if !by_time => Version::Named(text.clone()),
        Some(Token::SingleQuotedString(text)) => Version::At(milliseconds(text)?),
        _ if by_time => {
            return Err(Error::new(ErrorCode::QueryInvalid, "FOR TIMESTAMP AS OF needs a literal")
                .hint("write TIMESTAMP '2026-01-31 12:00:00' (UTC)"));
        }
        _ => {
            return Err(Error::new(ErrorCode::QueryInvalid, "FOR VERSION AS OF needs a literal")
                .hint("write a snapshot id such as 123, or a tag such as 'v1'"));
        }
    };
    if ends_expression(tokens.get(at + 1)) {
        return Ok((version, at + 1));
    }
    Err(Error::new(ErrorCode::QueryInvalid, "a version clause takes a literal, no expression"))
}

/// Whether nothing follows that would have made the literal part of a larger expression.
fn ends_expression(token: Option<&TokenWithSpan>) -> bool {
    match token.map(|t| &t.token) {
        None | Some(Token::EOF | Token::Comma | Token::RParen | Token::SemiColon) => true,
        Some(Token::Word(word)) => !matches!(
            word.keyword,
            Keyword::AT | Keyword::AND | Keyword::OR | Keyword::COLLATE | Keyword::IS
        ),
        Some(_) => false,
    }
}

/// Text → milliseconds since the epoch; without an offset it is UTC.
fn milliseconds(text: &str) -> Result<i64> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"] {
        if let Ok(time) = DateTime::parse_from_str(text, format) {
            return Ok(time.timestamp_millis());
        }
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Ok(time.and_utc().timestamp_millis());
        }
    }
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis());
    }
    Err(Error::new(ErrorCode::QueryInvalid, format!("{text:?} is not a timestamp"))
        .hint("write TIMESTAMP '2026-01-31 12:00:00' (UTC), or with an offset such as +02:00"))
}
