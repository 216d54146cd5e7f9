//! Turns a parser's complaint into one that names file, line, column, the offending text and the
//! nearest right name.

use std::path::{Path, PathBuf};

use polder_core::{Error, ErrorCode, Result};

/// A configuration file's text with its name.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) content: String,
}

/// Line and column, both from 1, the column in characters.
pub(super) type Place = (usize, usize);

impl Text {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let content = std::fs::read_to_string(path).map_err(|error| {
            Error::new(ErrorCode::SpecInvalid, format!("{} cannot be read", path.display()))
                .caused_by(error)
        })?;
        Ok(Self { path: path.to_owned(), content })
    }

    pub(super) fn at_byte(&self, offset: usize) -> Place {
        let before = self.content.get(..offset).unwrap_or(&self.content);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// The place of `value` as a whole word, at or after the first place of every word of `after`.
    /// Finds where a name stands that parsed well but means nothing.
    pub(super) fn find(&self, after: &[&str], value: &str) -> Option<Place> {
        let mut from = 0;
        for word in after {
            from = find_word(&self.content, from, word)?;
        }
        find_word(&self.content, from, value).map(|at| self.at_byte(at))
    }

    /// `file:line:column` and the line itself with a mark under the column.
    fn show(&self, place: Option<Place>) -> String {
        let Some((line, column)) = place else {
            return self.path.display().to_string();
        };
        let text = self.content.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let margin = line.to_string().len();
        let gap = " ".repeat(column.saturating_sub(1));
        let path = self.path.display();
        format!("{path}:{line}:{column}\n{line} | {text}\n{:margin$} | {gap}^", "")
    }

    /// An error about this file.
    pub(super) fn error(&self, code: ErrorCode, place: Option<Place>, message: String) -> Error {
        Error::new(code, message).detail(self.show(place))
    }
}

fn find_word(text: &str, from: usize, word: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let mut start = from;
    while let Some(found) = text.get(start..)?.find(word) {
        let at = start + found;
        let before = text[..at].chars().next_back().is_none_or(|c| !is_word(c));
        let after = text[at + word.len()..].chars().next().is_none_or(|c| !is_word(c));
        if before && after {
            return Some(at);
        }
        start = at + word.len().max(1);
    }
    None
}

/// A parser's message about a document that no file holds.
pub(super) fn explain_value(name: &str, message: &str) -> Error {
    explain(&Text { path: name.into(), content: String::new() }, None, message)
}

/// A parser's message with its place and, where it lists what it expected, the nearest name.
pub(super) fn explain(text: &Text, place: Option<Place>, message: &str) -> Error {
    let first_line = message.lines().next().unwrap_or(message);
    let cut = first_line.split(" at line ").next().unwrap_or(first_line);
    let (what, hint) = match cut.split_once("; ") {
        Some((what, hint)) => (what, Some(hint.to_owned())),
        None => (cut, None),
    };
    let hint = hint.or_else(|| {
        // `unknown field `x`, expected one of a, b` in the words of serde's two parsers.
        let (wrong, expected) = what.split_once("expected")?;
        let wrong = wrong.split('`').nth(1)?;
        let names = expected.split(|c: char| !c.is_alphanumeric() && c != '_');
        let names = names.filter(|name| !matches!(*name, "" | "one" | "of" | "or"));
        nearest(wrong, names).map(|name| format!("did you mean `{name}`?"))
    });
    let error = text.error(ErrorCode::SpecInvalid, place, what.to_owned());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The name most like `wrong`, if one is close enough to be a slip of the hand.
pub(super) fn nearest<'a>(
    wrong: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = wrong.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `did you mean …?`, or the list of what there is.
pub(super) fn suggest<'a>(wrong: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(wrong, names.clone()) {
        return format!("did you mean {name:?}?");
    }
    let known: Vec<_> = names.take(20).collect();
    if known.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there is: {}", known.join(", "))
    }
}
