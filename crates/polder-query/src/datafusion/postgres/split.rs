//! A text of several statements, cut where the statements end. What each of them means is not decided here.

use std::iter::Peekable;
use std::str::CharIndices;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use polder_core::{Error, ErrorCode, Result};

use super::super::error::syntax;
use super::super::statement::SQL_BYTES_MAX;

/// Words that are kept of a statement: enough for every one that is no query.
const WORDS_MAX: usize = 32;

/// One statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Without the semicolon after it.
    pub sql: String,
    /// How it begins.
    pub words: Vec<Word>,
}

/// A word, number, quoted text or sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Without quotes.
    pub text: String,
    pub quoted: bool,
}

impl Word {
    /// Whether it is this keyword.
    pub fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text.eq_ignore_ascii_case(keyword)
    }

    fn of(token: &Token) -> Self {
        match token {
            Token::Word(word) => {
                Self { text: word.value.clone(), quoted: word.quote_style.is_some() }
            }
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => {
                Self { text: text.clone(), quoted: true }
            }
            other => Self { text: other.to_string(), quoted: false },
        }
    }
}

/// The statements of a text, in their order; none of an empty one.
///
/// # Errors
/// `query.invalid` for text without an end to a quote; `query.limit` for one that is too long.
pub fn pieces(sql: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut places = Places::new(sql);
    let (mut begun, mut words): (Option<usize>, Vec<Word>) = (None, Vec::new());
    let mut end = |begun: &mut Option<usize>, words: &mut Vec<Word>, at: usize| {
        if let Some(from) = begun.take() {
            let sql = sql[from..at].trim_end().to_owned();
            pieces.push(Piece { sql, words: std::mem::take(words) });
        }
    };
    for token in tokens(sql)? {
        if matches!(token.token, Token::Whitespace(_) | Token::EOF) {
            continue;
        }
        let at = places.byte(token.span.start);
        if token.token == Token::SemiColon {
            end(&mut begun, &mut words, at);
            continue;
        }
        begun.get_or_insert(at);
        if words.len() < WORDS_MAX {
            words.push(Word::of(&token.token));
        }
    }
    end(&mut begun, &mut words, sql.len());
    Ok(pieces)
}

/// The tokens of a text, as the engine reads them.
pub(super) fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > SQL_BYTES_MAX {
        let message = format!("the SQL text has {} bytes", sql.len());
        return Err(Error::new(ErrorCode::QueryLimit, message)
            .hint(format!("at most {SQL_BYTES_MAX} are accepted")));
    }
    Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| syntax(&error.to_string()))
}

/// Lines and columns → bytes, for places that come in their order.
pub(super) struct Places<'a> {
    chars: Peekable<CharIndices<'a>>,
    line: u64,
    column: u64,
    end: usize,
}

impl<'a> Places<'a> {
    pub(super) fn new(sql: &'a str) -> Self {
        Self { chars: sql.char_indices().peekable(), line: 1, column: 1, end: sql.len() }
    }

    pub(super) fn byte(&mut self, at: Location) -> usize {
        while (self.line, self.column) < (at.line, at.column) {
            match self.chars.next() {
                Some((_, '\n')) => (self.line, self.column) = (self.line + 1, 1),
                Some(_) => self.column += 1,
                None => break,
            }
        }
        self.chars.peek().map_or(self.end, |(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sql: &str) -> Vec<String> {
        pieces(sql).expect(sql).into_iter().map(|piece| piece.sql).collect()
    }

    #[test]
    fn statements_end_at_semicolons_outside_of_quotes() {
        let cases: [(&str, &[&str]); 6] = [
            ("", &[]),
            (" ; ;\n-- no more\n", &[]),
            ("SELECT 1", &["SELECT 1"]),
            ("BEGIN;SELECT 'a;b' ;\n COMMIT ;", &["BEGIN", "SELECT 'a;b'", "COMMIT"]),
            ("SELECT \"é;\", 'ü\n;'; SELECT 2", &["SELECT \"é;\", 'ü\n;'", "SELECT 2"]),
            ("SELECT 1 /* ; */ + 2 -- ;\n; x", &["SELECT 1 /* ; */ + 2 -- ;", "x"]),
        ];
        for (sql, expected) in cases {
            assert_eq!(cut(sql), expected, "{sql}");
        }
        assert_eq!(pieces("SELECT 'a").expect_err("open").code(), ErrorCode::QueryInvalid);
        let long = " ".repeat(SQL_BYTES_MAX + 1);
        assert_eq!(pieces(&long).expect_err("long").code(), ErrorCode::QueryLimit);
    }

    #[test]
    fn words_are_told_from_what_is_quoted() {
        let piece = pieces("set \"Set\" = 'set'").expect("one").remove(0);
        let is_set: Vec<_> = piece.words.iter().map(|word| word.is("SET")).collect();
        assert_eq!(is_set, [true, false, false, false]);
        assert_eq!(piece.words[3], Word { text: "set".to_owned(), quoted: true });
    }
}
