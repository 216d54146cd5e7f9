//! What tables are made of, for those who tend them between runs: live files with their deletes, and
//! what lies in an org's folder without anybody reaching it.
//!
//! What is worth doing is decided in `polder_core::optimize` and `polder_core::retention`, and changes
//! of tables are commits ([`crate::commit`]).

mod age;
mod live;
mod metadata;
mod orphans;
mod reach;

pub use age::RowsBefore;
pub use live::{LiveFile, TableFiles};
pub use metadata::{MetadataRequest, MetadataTidied};
pub use orphans::{OrphanRequest, Orphans};

use serde::Serialize;

use crate::table::LakeTable;

/// How large a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// Data files of the present state, their bytes and rows, deleted rows included, where the
    /// snapshot's summary says so.
    pub files: Option<u64>,
    pub bytes: Option<u64>,
    pub rows: Option<u64>,
    pub delete_files: Option<u64>,
    pub snapshots: u64,
}

impl LakeTable {
    /// How large the table is now, as its last snapshot says.
    pub fn size(&self) -> TableSize {
        let metadata = self.metadata();
        let snapshots = metadata.snapshots().len() as u64;
        let Some(snapshot) = metadata.current_snapshot() else {
            let none = Some(0);
            return TableSize {
                files: none,
                bytes: none,
                rows: none,
                delete_files: none,
                snapshots,
            };
        };
        let summary = &snapshot.summary().additional_properties;
        let number = |key: &str| summary.get(key)?.parse().ok();
        TableSize {
            files: number("total-data-files"),
            bytes: number("total-files-size"),
            rows: number("total-records"),
            delete_files: number("total-delete-files"),
            snapshots,
        }
    }
}
