//! Names and literals as they may stand in SQL text: `from:` taken apart, identifiers and strings
//! quoted.
//!
//! Nothing is looked up here: whether a table exists is the catalog's business.

use polder_core::{Error, ErrorCode, OrgId, Result};

/// The placeholder that stands for the org's id.
pub(super) const ORG: &str = "{org}";

/// A source table as a table spec names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableName {
    /// Another database on the same server than the one of the source's address.
    pub(super) database: Option<String>,
    pub(super) schema: String,
    pub(super) table: String,
}

impl TableName {
    /// Reads `table` (in schema `public`), `schema.table` or `database.schema.table`.
    ///
    /// A part may be double-quoted, and must be when it holds a dot or a double quote (doubled).
    /// Unquoted parts are taken as they are written and, unlike in SQL, not folded to lower case.
    /// `{org}` is replaced inside the parts after they were taken apart, so that no id can add one.
    ///
    /// # Errors
    /// `spec.invalid` when the text is not such a name.
    pub(super) fn parse(from: &str, org: &OrgId) -> Result<Self> {
        let mut parts = split(from).map_err(|reason| invalid(from, reason))?;
        for part in &mut parts {
            *part = part.replace(ORG, org.as_str());
        }
        let (database, schema, table) = match <[String; 3]>::try_from(parts) {
            Ok([database, schema, table]) => (Some(database), schema, table),
            Err(mut parts) => {
                let table = parts.pop().ok_or_else(|| invalid(from, "it is empty"))?;
                let schema = parts.pop().unwrap_or_else(|| "public".to_owned());
                if !parts.is_empty() {
                    return Err(invalid(from, "it has more than three parts"));
                }
                (None, schema, table)
            }
        };
        Ok(Self { database, schema, table })
    }

    /// `"schema"."table"`, for SQL.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.table))
    }

    /// The name as [`Self::parse`] takes it, for messages.
    pub(super) fn display(&self) -> String {
        let name = display(&self.schema, &self.table);
        match &self.database {
            Some(database) => format!("{}.{name}", display_part(database)),
            None => name,
        }
    }
}

/// `schema.table` as [`TableName::parse`] takes it: quoted only where it has to be.
pub(super) fn display(schema: &str, table: &str) -> String {
    format!("{}.{}", display_part(schema), display_part(table))
}

/// A table's name as [`TableName::parse`] takes it; `None` for one that no `from` can name.
pub(super) fn from_of(schema: &str, table: &str) -> Option<String> {
    let nameable = |part: &str| !part.is_empty() && !part.contains(['\0']) && !part.contains(ORG);
    (nameable(schema) && nameable(table)).then(|| display(schema, table))
}

fn display_part(part: &str) -> String {
    let plain = !part.is_empty()
        && !part.contains(['.', '"'])
        && !part.contains(ORG)
        && part.trim() == part;
    if plain { part.to_owned() } else { identifier(part) }
}

fn split(from: &str) -> Result<Vec<String>, &'static str> {
    let mut parts = Vec::new();
    let mut rest = from.trim();
    if rest.contains('\0') {
        return Err("it holds a NUL character");
    }
    loop {
        let (part, after) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted_part(quoted)?
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        };
        if part.is_empty() {
            return Err("a part is empty");
        }
        if !rest.starts_with('"') && part.contains('"') {
            return Err("a double quote stands inside an unquoted part");
        }
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(parts),
            None => return Err("something follows a closing quote"),
        }
    }
}

/// The part up to its closing quote, and what follows that quote.
fn quoted_part(text: &str) -> Result<(String, &str), &'static str> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or("a quote is not closed")?;
        part.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                part.push('"');
                rest = after;
            }
            None => return Ok((part, rest)),
        }
    }
}

fn invalid(from: &str, reason: &str) -> Error {
    Error::new(
        ErrorCode::SpecInvalid,
        format!("{from:?} does not name a PostgreSQL table: {reason}"),
    )
    .hint(
        "write table, schema.table or database.schema.table; put a part that holds a dot or a \
             double quote in double quotes, and double the quotes inside it",
    )
}

/// An SQL identifier (PostgreSQL manual 4.1.1), always quoted. The text holds no NUL.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string constant (PostgreSQL manual 4.1.2), right under either setting of
/// `standard_conforming_strings`. The text holds no NUL.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(from: &str) -> Result<TableName> {
        TableName::parse(from, &"a-1".parse().expect("org"))
    }

    #[test]
    fn names_are_taken_apart_before_the_org_is_put_in() {
        let cases = [
            ("opportunity", None, "public", "opportunity"),
            ("crm.Opportunity", None, "crm", "Opportunity"),
            ("org_{org}.opportunity", None, "org_a-1", "opportunity"),
            ("db_{org}.public.t", Some("db_a-1"), "public", "t"),
            (r#""a.b"."c""d""#, None, "a.b", "c\"d"),
            (r#""{org}.x".t"#, None, "a-1.x", "t"),
            ("schéma.täble ñ", None, "schéma", "täble ñ"),
            (r#"x."'; drop table y; --""#, None, "x", "'; drop table y; --"),
        ];
        for (from, database, schema, table) in cases {
            let name = parse(from).expect(from);
            assert_eq!(name.database.as_deref(), database, "{from}");
            assert_eq!((name.schema.as_str(), name.table.as_str()), (schema, table), "{from}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for from in ["", " ", ".", "a.", ".a", "a..b", "a.b.c.d", "\"a", "\"a\"b", "a\"b", "\"\""] {
            assert_eq!(parse(from).expect_err(from).code(), ErrorCode::SpecInvalid, "{from}");
        }
        assert!(parse("a\0b").is_err());
    }

    #[test]
    fn names_read_back_what_they_print() {
        for from in ["a.b", r#""a.b"."c""d""#, "\" a\".b", "db.Ä.b"] {
            let name = parse(from).expect(from);
            assert_eq!(parse(&name.display()).expect("again"), name, "{from}");
        }
    }

    #[test]
    fn quoting_leaves_no_way_out() {
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("O'Neil"), "'O''Neil'");
        assert_eq!(literal(r"\' or 1=1"), r"E'\\'' or 1=1'");
        assert_eq!(parse("a").expect("name").sql(), r#""public"."a""#);
    }
}
