//! Names of columns and tables as specs say them: suggestions, repetitions.

use polder_core::{Error, ErrorCode, Result};

/// Names are suggested from this similarity (Jaro–Winkler) on.
const SIMILAR: f64 = 0.75;
const SUGGESTIONS_MAX: usize = 3;

/// The names most like `wanted`, joined by commas; `None` if nothing is alike.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut alike: Vec<(f64, &str)> = names
        .map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let best: Vec<_> = alike.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name).collect();
    (!best.is_empty()).then(|| best.join(", "))
}

/// Fails when a table spec names a column twice.
pub(crate) fn each_once(columns: Option<&[String]>) -> Result<()> {
    let columns = columns.unwrap_or_default();
    let twice = columns.iter().enumerate().find(|(number, name)| columns[..*number].contains(name));
    match twice {
        None => Ok(()),
        Some((_, name)) => {
            let message = format!("column {name:?} is named twice");
            Err(Error::new(ErrorCode::SpecInvalid, message).hint("name it once in `columns`"))
        }
    }
}
