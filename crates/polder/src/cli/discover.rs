//! `polder discover SOURCE`: what a source offers.

use clap::Args;
use polder_core::spec::Mode;
use polder_core::{Result, SourceTable};

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// The source's name in `polder.toml`.
    source: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Discover {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let source = app.source(&self.source)?;
        let tables = source.discover().await?;
        if self.json {
            output::document(&tables);
            return Ok(exit::OK);
        }
        for table in &tables {
            show(table);
        }
        if tables.is_empty() {
            output::note("the source offers no tables");
        }
        Ok(exit::OK)
    }
}

fn show(table: &SourceTable) {
    let rows = table
        .rows_estimated
        .map_or_else(String::new, |rows| format!(", about {} rows", output::number(rows)));
    output::line(&format!("{} ({}{rows})", table.name, table.kind));
    if !table.key.is_empty() {
        output::line(&format!("  key: [{}]", table.key.join(", ")));
    }
    if !table.cursors.is_empty() {
        output::line(&format!("  cursor candidates: {}", table.cursors.join(", ")));
    }
    if let (Mode::Merge | Mode::Append, Some(cursor)) = (table.mode, table.cursors.first()) {
        let mode = if table.mode == Mode::Merge { "merge" } else { "append" };
        output::line(&format!("  suggested: mode: {mode}, cursor: {cursor}"));
    }
    for field in &table.schema.fields {
        let required = if field.nullable { "" } else { " not null" };
        output::line(&format!("  {} {}{required}", field.name, field.data_type));
    }
}
