//! `filter:` of a table spec: an SQL condition the operator wrote, with `{org}` put in as a value.
//!
//! The condition is not understood here. A scanner that knows PostgreSQL's lexical rules (manual
//! 4.1) makes sure of two things only: that the text cannot leave the parentheses it is put into,
//! and that `{org}` stands where a value can stand.

use polder_core::{Error, ErrorCode, OrgId, Result};

use super::names::{ORG, literal};

const VALUE_HINT: &str = "{org} is put in as a quoted value: write org_id = {org}, without quotes \
                          around it; for a part of a string write key like ({org} || '-%')";

/// The condition in parentheses, with `{org}` as a string constant.
///
/// # Errors
/// `spec.invalid` when the text could end its parentheses, holds a comment, a `;` or a dollar sign,
/// or has `{org}` inside quotes.
pub(super) fn compile(filter: &str, org: &OrgId) -> Result<String> {
    let mut scanner = Scanner { text: filter, at: 0, open: Vec::new(), sql: String::from("(") };
    scanner.run(org).map_err(|flaw| flaw.into_error(filter))?;
    if filter.trim().is_empty() {
        return Err(Flaw::new("it is empty").into_error(filter));
    }
    scanner.sql.push(')');
    Ok(scanner.sql)
}

struct Flaw {
    reason: &'static str,
    hint: &'static str,
}

impl Flaw {
    const fn new(reason: &'static str) -> Self {
        Self { reason, hint: "write one SQL condition, as after WHERE" }
    }

    fn into_error(self, filter: &str) -> Error {
        Error::new(ErrorCode::SpecInvalid, format!("the filter cannot be used: {}", self.reason))
            .detail(format!("filter: {filter:?}"))
            .hint(self.hint)
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// The closing brackets that are due.
    open: Vec<char>,
    sql: String,
}

impl Scanner<'_> {
    fn run(&mut self, org: &OrgId) -> Result<(), Flaw> {
        while let Some(next) = self.rest().chars().next() {
            match next {
                '\0' => return Err(Flaw::new("it holds a NUL character")),
                ';' => return Err(Flaw::new("it holds a semicolon")),
                '-' if self.rest().starts_with("--") => return Err(comment()),
                '/' if self.rest().starts_with("/*") => return Err(comment()),
                '$' => {
                    return Err(Flaw {
                        reason: "it holds a dollar sign outside quotes",
                        hint: "write strings in single quotes, not $$…$$, and names with a dollar \
                               sign in double quotes",
                    });
                }
                '\'' => self.quoted('\'', false)?,
                '"' => self.quoted('"', false)?,
                '{' | '}' => self.placeholder(org)?,
                '(' | '[' | ')' | ']' => self.bracket(next)?,
                _ if is_word(next) => self.word()?,
                _ => self.take(next.len_utf8()),
            }
        }
        if self.open.is_empty() { Ok(()) } else { Err(Flaw::new("a bracket is not closed")) }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn take(&mut self, bytes: usize) {
        self.sql.push_str(&self.text[self.at..self.at + bytes]);
        self.at += bytes;
    }

    /// An identifier, keyword or number; with the string that follows it if it is `E'…'`.
    fn word(&mut self) -> Result<(), Flaw> {
        let rest = self.rest();
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let escapes = matches!(&rest[..length], "e" | "E") && rest[length..].starts_with('\'');
        self.take(length);
        if !escapes {
            return Ok(());
        }
        self.quoted('\'', true)?;
        // PostgreSQL would go on with the same string, escapes included (manual 4.1.2.1).
        if self.rest().trim_start().starts_with('\'') {
            return Err(Flaw::new("a string follows an escape string"));
        }
        Ok(())
    }

    /// Everything from the quote at hand to the one that closes it.
    fn quoted(&mut self, quote: char, backslash_escapes: bool) -> Result<(), Flaw> {
        let mut end = None;
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((index, c)) = chars.next() {
            if c == '\0' {
                return Err(Flaw::new("it holds a NUL character"));
            }
            if c == '\\' && backslash_escapes {
                chars.next();
            } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
                end = Some(index + 1);
                break;
            }
        }
        let end = end.ok_or(Flaw::new("a quote is not closed"))?;
        if self.rest()[..end].contains(ORG) {
            return Err(Flaw { reason: "{org} stands inside quotes", hint: VALUE_HINT });
        }
        self.take(end);
        Ok(())
    }

    fn placeholder(&mut self, org: &OrgId) -> Result<(), Flaw> {
        if !self.rest().starts_with(ORG) {
            return Err(Flaw {
                reason: "it holds a brace that is not part of {org}",
                hint: "{org} is the only placeholder; write array constants in single quotes",
            });
        }
        // The spaces keep the constant apart from its neighbours: 'a'{org} and x{org} would be
        // other constants than they look like.
        self.sql.push(' ');
        self.sql.push_str(&literal(org.as_str()));
        self.sql.push(' ');
        self.at += ORG.len();
        Ok(())
    }

    fn bracket(&mut self, bracket: char) -> Result<(), Flaw> {
        match bracket {
            '(' => self.open.push(')'),
            '[' => self.open.push(']'),
            _ if self.open.pop() != Some(bracket) => {
                return Err(Flaw::new("a bracket is closed that was not opened"));
            }
            _ => {}
        }
        self.take(1);
        Ok(())
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

fn comment() -> Flaw {
    Flaw { reason: "it holds an SQL comment", hint: "put the comment beside it, in the YAML file" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(filter: &str) -> Result<String> {
        compile(filter, &"401".parse().expect("org"))
    }

    #[test]
    fn the_org_becomes_a_constant() {
        let cases = [
            ("org_id = {org}", "(org_id =  '401' )"),
            ("org_id={org} and x in (1,2)", "(org_id= '401'  and x in (1,2))"),
            ("key like ({org} || '-%')", "(key like ( '401'  || '-%'))"),
            ("a[{org}::int] = 'x''y'", "(a[ '401' ::int] = 'x''y')"),
            (r"name = E'it\'s' and o = {org}", r"(name = E'it\'s' and o =  '401' )"),
            (r#""we""ird(" = {org}"#, r#"("we""ird(" =  '401' )"#),
            ("d > date'2020-01-01'", "(d > date'2020-01-01')"),
            ("tags @> '{a,b}' and b - -1 > 0", "(tags @> '{a,b}' and b - -1 > 0)"),
            ("stadt = 'Köln; --' and größe > 1", "(stadt = 'Köln; --' and größe > 1)"),
        ];
        for (filter, expected) in cases {
            assert_eq!(sql(filter).expect(filter), expected);
        }
    }

    #[test]
    fn nothing_leaves_the_parentheses() {
        let cases = [
            "org_id = '{org}'",
            "\"{org}\" = 1",
            r"x = E'\'{org}'",
            "1=1) or (1=1",
            "1=1; drop table t",
            "1=1 --",
            "1=1 /* x",
            "x = $$a$$",
            "x = $1",
            "x = 1$$ ' $$ ) or (1=1 --'",
            "x = E'a'\n'\\'' ) or (1=1 and 'b' = E'a'\n'\\''",
            "x = 'open",
            r"x = E'open\'",
            r"date'\' or 1=1) union (select '",
            "\"open",
            "(a[1)]",
            "a = (1",
            "a = {ORG}",
            "a = {org",
            "",
            "  ",
            "a = '\0'",
            "\0",
        ];
        for filter in cases {
            let error = sql(filter).expect_err(filter);
            assert_eq!(error.code(), ErrorCode::SpecInvalid, "{filter}");
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn a_backslash_escapes_only_in_escape_strings() {
        assert!(sql(r"x = 'a\' and y = 1").is_ok());
        assert!(sql(r"x = e'a\\' and y = 1").is_ok());
        assert!(sql(r"x = the'a\' and y = 1").is_ok(), "a typed constant is no escape string");
    }
}
