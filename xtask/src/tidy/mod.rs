//! Style as a test: what a reviewer would otherwise have to say again and again.
//!
//! Layering from the manifests, sizes, banned words, files nobody includes, and ARCHITECTURE.md's
//! map. Text passes alone, well under a second; the compiler's lints are clippy's business.

mod files;
mod layers;
mod map;
mod sizes;
mod source;
mod words;

use std::time::Instant;

use crate::{Result, places};

/// Fails with every breach found, one a line.
pub(crate) fn run() -> Result {
    let start = Instant::now();
    let root = places::root();
    let files = files::read(&root)?;
    let mut problems = Vec::new();
    layers::check(&files, &mut problems);
    sizes::check(&files, &mut problems);
    words::check(&files, &words::machine_paths(&root), &mut problems);
    map::check(&files, &mut problems);
    if problems.is_empty() {
        println!("tidy: {} files in {} ms", files.len(), start.elapsed().as_millis());
        return Ok(());
    }
    problems.sort();
    Err(format!("tidy found {}:\n{}", problems.len(), problems.join("\n")))
}
