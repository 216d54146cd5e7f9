//! DataFusion's errors in Polder's words: a code, a message without the library's internals, a hint.
//!
//! Nothing is logged here, and no cell value passes: errors that happen while rows are computed keep
//! their kind and lose the text in which Arrow quotes the value.

use arrow::error::ArrowError;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use polder_core::{Error, ErrorCode};

/// The most names a hint lists.
const NAMES_MAX: usize = 20;

/// An error found before the first row: nearly always the query's own fault.
pub(super) fn planning(error: DataFusionError) -> Error {
    convert(error, ErrorCode::QueryInvalid)
}

/// An error found while rows were computed.
pub(super) fn running(error: DataFusionError) -> Error {
    convert(error, ErrorCode::QueryFailed)
}

fn convert(error: DataFusionError, otherwise: ErrorCode) -> Error {
    let planned = otherwise == ErrorCode::QueryInvalid;
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(inner) => Error::new(ErrorCode::QueryFailed, "the query failed").caused_by(inner),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            convert(*inner, otherwise)
        }
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(first) => convert(first, otherwise),
            None => Error::new(otherwise, "the query failed"),
        },
        DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
            Ok(inner) => convert(inner, otherwise),
            Err(shared) => copy(&shared, otherwise),
        },
        DataFusionError::SchemaError(schema, _) => self::schema(*schema),
        DataFusionError::ArrowError(arrow, _) => self::arrow(*arrow, otherwise),
        DataFusionError::SQL(parser, _) => syntax(&parser.to_string()),
        DataFusionError::ResourcesExhausted(text) => exhausted(&text),
        DataFusionError::NotImplemented(text) => {
            Error::new(ErrorCode::QueryInvalid, format!("not supported: {}", clean(&text)))
        }
        DataFusionError::Plan(text) | DataFusionError::Configuration(text) => plan(&text),
        // While planning these come from folding the query's own constants, later from cells.
        DataFusionError::Execution(text) if planned => plan(&text),
        DataFusionError::Internal(text) if planned => plan(&text),
        DataFusionError::Execution(text) => Error::new(ErrorCode::QueryFailed, redact(&text)),
        DataFusionError::ObjectStore(inner) => {
            Error::new(ErrorCode::LakeUnavailable, "a data file could not be read").caused_by(inner)
        }
        DataFusionError::ParquetError(inner) => {
            Error::new(ErrorCode::LakeCorrupt, "a data file could not be decoded")
                .detail(redact(&inner.to_string()))
        }
        DataFusionError::IoError(inner) => {
            Error::new(ErrorCode::Internal, "the query could not use its spill files")
                .hint("look at the free space of the spill directory")
                .caused_by(inner)
        }
        other => Error::new(ErrorCode::Internal, "the query failed inside the engine")
            .detail(redact(&first_line(&other.strip_backtrace()))),
    }
}

/// An error shared by several partitions cannot be moved out: say the same again.
fn copy(error: &DataFusionError, otherwise: ErrorCode) -> Error {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(ours) = current.downcast_ref::<Error>() {
            let mut again = Error::new(ours.code(), ours.message());
            if let Some(detail) = ours.detail_text() {
                again = again.detail(detail);
            }
            if let Some(hint) = ours.hint_text() {
                again = again.hint(hint);
            }
            return again;
        }
        next = current.source();
    }
    match error.find_root() {
        DataFusionError::ResourcesExhausted(text) => exhausted(text),
        DataFusionError::ArrowError(inner, _) => {
            Error::new(otherwise, redact(&first_line(&inner.to_string())))
        }
        root => Error::new(otherwise, redact(&first_line(&root.strip_backtrace()))),
    }
}

fn arrow(error: ArrowError, otherwise: ErrorCode) -> Error {
    match error {
        ArrowError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
            Ok(inner) => convert(*inner, otherwise),
            Err(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => {
                    Error::new(ErrorCode::QueryFailed, "the query failed").caused_by(inner)
                }
            },
        },
        ArrowError::DivideByZero => Error::new(otherwise, "division by zero")
            .hint("divide by nullif(divisor, 0) to get null instead"),
        ArrowError::ArithmeticOverflow(_) => {
            Error::new(otherwise, "a result does not fit its type")
                .hint("cast the operands to a wider type first")
        }
        ArrowError::CastError(_) | ArrowError::ParseError(_) => {
            Error::new(otherwise, "a value cannot be converted to the type the query asks for")
                .hint("try_cast(value AS type) gives null for such values")
        }
        other => Error::new(otherwise, redact(&first_line(&other.to_string()))),
    }
}

/// SQL text that cannot be parsed.
pub(super) fn syntax(text: &str) -> Error {
    let text = text.trim_start_matches("sql parser error: ");
    Error::new(ErrorCode::QueryInvalid, format!("the SQL cannot be parsed: {}", first_line(text)))
}

fn exhausted(text: &str) -> Error {
    let error = Error::new(ErrorCode::QueryLimit, "the query needs more memory than it may hold");
    if text.contains("disk") {
        return error.hint("the spill directory's limit is reached: narrow the query");
    }
    error.hint("narrow the query, or raise the memory limit of queries")
}

fn plan(text: &str) -> Error {
    let text = clean(text);
    if let Some(rest) = text.strip_prefix("Invalid function '")
        && let Some((name, rest)) = rest.split_once('\'')
    {
        let near = rest.split('\'').nth(1).unwrap_or_default();
        let error = Error::new(ErrorCode::QueryInvalid, format!("there is no function {name}"));
        return if near.is_empty() { error } else { error.hint(format!("did you mean {near}?")) };
    }
    Error::new(ErrorCode::QueryInvalid, text)
}

fn schema(error: SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => unknown_column(&field, &valid_fields),
        SchemaError::AmbiguousReference { field } => {
            let message = format!("column {} is ambiguous", quoted(&field.name));
            Error::new(ErrorCode::QueryInvalid, message)
                .hint("put the table's name or alias in front of it")
        }
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => {
            let message = format!("two columns are named {}", quoted(&name));
            Error::new(ErrorCode::QueryInvalid, message).hint("give one of them another alias")
        }
    }
}

fn unknown_column(field: &Column, valid: &[Column]) -> Error {
    let message = format!("column {} does not exist", quoted(&field.name));
    let error = Error::new(ErrorCode::QueryInvalid, message);
    let names: Vec<&str> = valid.iter().map(|column| column.name.as_str()).collect();
    match near(&field.name, &names) {
        Some(name) => error.hint(format!("did you mean {}?", quoted(name))),
        None if names.is_empty() => error,
        None => error.hint(format!("the columns are {}", list(&names))),
    }
}

/// The name most like `wanted`, if one is like it.
pub(super) fn near<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let distance = |name: &&&str| strsim::damerau_levenshtein(&wanted, &name.to_lowercase());
    let best = names.iter().min_by_key(distance)?;
    (distance(&best) <= wanted.chars().count().max(3) / 3).then_some(*best)
}

/// Some names for a hint, quoted where SQL needs it.
pub(super) fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let shown: Vec<String> = names.iter().take(NAMES_MAX).map(|name| quoted(name)).collect();
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", shown.join(", "))
}

/// `name` as it has to be written in SQL: bare where that works, else in double quotes.
pub(super) fn quoted(name: &str) -> String {
    let mut letters = name.bytes();
    let plain = letters.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn clean(text: &str) -> String {
    let mut text = text.trim();
    let prefixes = ["Error during planning: ", "Execution error: ", "Internal error: "];
    while let Some(rest) = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    let bug = "\nThis issue was likely caused by a bug";
    text.split(bug).next().unwrap_or(text).replace('\n', " ").trim().to_owned()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// `text` without what stands between quotes and without numbers: it may be a cell.
fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut inside: Option<char> = None;
    let mut in_number = false;
    for letter in first_line(&clean(text)).chars() {
        match inside {
            Some(quote) if letter == quote => inside = None,
            Some(_) => continue,
            None if letter == '\'' || letter == '"' => {
                inside = Some(letter);
                redacted.push_str("'…");
                continue;
            }
            None => {}
        }
        let digit = letter.is_ascii_digit();
        // The digits of `Int64` are a part of its name.
        if digit && (in_number || !redacted.ends_with(char::is_alphanumeric)) {
            if !in_number {
                redacted.push('…');
            }
            in_number = true;
            continue;
        }
        in_number = false;
        redacted.push(if letter == '"' { '\'' } else { letter });
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_do_not_pass() {
        let cases = [
            (
                "Cannot cast string 'Ann Smith' to value of Int64 type",
                "Cannot cast string '…' to value of Int64 type",
            ),
            ("Can't cast value 70000 to type Int16", "Can'…"),
            ("value of 12.5 is too large", "value of ….… is too large"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn names_are_quoted_where_sql_needs_it() {
        for (name, expected) in [("a_1", "a_1"), ("Amount", "\"Amount\""), ("a\"b", "\"a\"\"b\"")] {
            assert_eq!(quoted(name), expected);
        }
        assert_eq!(near("oportunity", &["user", "opportunity"]), Some("opportunity"));
        assert_eq!(near("amount", &["Amount", "id"]), Some("Amount"));
        assert_eq!(near("amount", &["id"]), None);
    }

    #[test]
    fn an_error_of_the_lake_passes_unchanged() {
        let ours = Error::new(ErrorCode::LakeNotFound, "no such tag").hint("tags: v1");
        let wrapped = DataFusionError::External(Box::new(ours)).context("while planning");
        let error = planning(wrapped);
        assert_eq!((error.code(), error.hint_text()), (ErrorCode::LakeNotFound, Some("tags: v1")));
    }
}
