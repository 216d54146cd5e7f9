//! The orgs and tables of pipelines that a command is for.

use clap::Args;
use polder_control::OrgPipeline;
use polder_core::{Error, ErrorCode, OrgId, Result};

#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only these orgs.
    #[arg(long, value_name = "ID")]
    org: Vec<OrgId>,
    /// Only these tables.
    #[arg(long, value_name = "NAME")]
    table: Vec<String>,
}

impl Selection {
    /// The names of tables that were given.
    pub(crate) fn tables(&self) -> &[String] {
        &self.table
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.org.is_empty() && self.table.is_empty()
    }

    /// The pipelines and tables asked for, each name checked.
    ///
    /// # Errors
    /// `spec.unknown_name` for an org or table that no pipeline has, naming those there are.
    pub(crate) fn pipelines(&self, pipelines: &[OrgPipeline]) -> Result<Vec<OrgPipeline>> {
        if pipelines.is_empty() {
            return Err(Error::new(ErrorCode::SpecInvalid, "no org has a pipeline")
                .hint("write pipelines/*.yaml beside polder.toml, or run `polder init`"));
        }
        if let Some(org) = self.org.iter().find(|org| !pipelines.iter().any(|p| p.org == **org)) {
            let known: Vec<_> = pipelines.iter().take(20).map(|p| p.org.to_string()).collect();
            return Err(Error::new(
                ErrorCode::SpecUnknownName,
                format!("org {org} has no pipeline"),
            )
            .hint(format!("orgs with one: {}", known.join(", "))));
        }
        let tables = || pipelines.iter().flat_map(|pipeline| &pipeline.tables);
        if let Some(name) = self.table.iter().find(|name| !tables().any(|t| t.name == **name)) {
            let mut known: Vec<_> = tables().map(|table| table.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::new(
                ErrorCode::SpecUnknownName,
                format!("no pipeline has table {name:?}"),
            )
            .hint(format!("there is: {}", known.join(", "))));
        }
        let mut selected = pipelines.to_vec();
        selected.retain(|pipeline| self.org.is_empty() || self.org.contains(&pipeline.org));
        if !self.table.is_empty() {
            for pipeline in &mut selected {
                pipeline.tables.retain(|table| self.table.contains(&table.name));
            }
        }
        Ok(selected)
    }
}
