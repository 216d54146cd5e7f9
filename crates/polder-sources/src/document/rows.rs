//! Documents as rows that messages speak of: named by their key, or by what is wrong with them.
//!
//! Each walks a document anew: for the rare one that is refused, or has altered values.

use std::collections::HashSet;

use polder_core::Error;

use super::column::write_text;
use super::infer::UNNAMED;
use super::raw::{Elements, utf8};
use super::text::Dialect;
use crate::keys;

/// The document's name, of its key's members.
pub(super) fn name(document: &[u8], key: &[String]) -> Option<String> {
    keys::name(key.iter().map(|column| (&**column, value(document, column))))
}

fn value(document: &[u8], column: &str) -> Option<String> {
    let mut members = Elements::new(document).ok()?;
    let found = members.find_map(|member| {
        let member = member.ok()?;
        let name = if member.key.is_empty() { UNNAMED.as_bytes() } else { member.key };
        (name == column.as_bytes()).then_some(member)
    });
    let mut text = String::new();
    match found {
        Some(member) => write_text(&mut text, &member, None, Dialect::Extended).ok()?,
        None => text.push_str("null"),
    }
    Some(text)
}

/// An error that a document caused, with the document's name.
#[cold]
pub(super) fn named(error: Error, document: &[u8], key: &[String]) -> Error {
    let Some(name) = name(document, key) else { return error };
    let detail = match error.detail_text() {
        Some(detail) => format!("{detail}, row {name}"),
        None => format!("row {name}"),
    };
    error.detail(detail)
}

/// A member that the document's top level has twice.
pub(super) fn twice(document: &[u8]) -> Option<String> {
    let mut seen = HashSet::new();
    let mut members = Elements::new(document).ok()?.flatten();
    let twice = members.find(|member| !seen.insert(member.key))?;
    utf8(twice.key).ok().map(str::to_owned)
}
