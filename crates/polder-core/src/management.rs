//! The management tables: what Polder records of its own work, as lake tables that every engine reads.
//!
//! They lie in one namespace beside the orgs' own, belong to [`OrgId::management`], and are partitioned
//! by org, so that an org's rows can go with the org.

use crate::spec::{PartitionField, Transform};
use crate::{Field, LakeType, TableSchema};

/// The first column of every management table: the org that a row is about.
pub const ORG_COLUMN: &str = "org";

/// The erasures that are done, with their certificates. These rows stay when the org's others go.
pub const ERASURES: ManagementTable = ManagementTable {
    name: "erasures",
    columns: || {
        let text = |name: &str| Field::new(name, LakeType::String);
        let time = |name: &str| Field::new(name, LakeType::Timestamptz);
        let count = |name: &str| Field::new(name, LakeType::Long);
        vec![
            text("event_id").required(),
            text("asked_by").required(),
            text("via").required(),
            text("reason"),
            time("asked_at").required(),
            time("erased_at").required(),
            count("objects").required(),
            count("bytes").required(),
            count("remains").required(),
            text("certificate").required(),
        ]
    },
};

/// A management table: its name and the columns that follow [`ORG_COLUMN`].
#[derive(Clone, Copy, Debug)]
pub struct ManagementTable {
    /// In the namespace `polder_management`.
    pub name: &'static str,
    pub columns: fn() -> Vec<Field>,
}

impl ManagementTable {
    /// All columns, in order.
    pub fn schema(&self) -> TableSchema {
        let mut fields = vec![Field::new(ORG_COLUMN, LakeType::String).required()];
        fields.extend((self.columns)());
        TableSchema::new(fields)
    }

    /// How its files are partitioned: by org.
    pub fn partition(&self) -> Vec<PartitionField> {
        vec![PartitionField { transform: Transform::Identity, column: ORG_COLUMN.to_owned() }]
    }
}

/// One row for each check of each validation (docs/reference/validation.md).
pub const VALIDATION_RESULTS: ManagementTable = ManagementTable {
    name: "validation_results",
    columns: || {
        use LakeType::{Long, String, Timestamptz};
        let required = |name: &str, data_type: LakeType| Field::new(name, data_type).required();
        vec![
            required("table", String),
            // One for all checks of a validation.
            required("validation_id", String),
            Field::new("version", String),
            Field::new("snapshot_id", Long),
            Field::new("source_snapshot", String),
            required("check", String),
            Field::new("column", String),
            required("verdict", String),
            required("expected", String),
            required("observed", String),
            required("sample_keys", LakeType::list_of(String)),
            required("table_verdict", String),
            required("started_at", Timestamptz),
            required("duration_ms", Long),
            // Of `sql`: the check's name in the table spec.
            Field::new("name", String),
            // Of a state that a run has staged and did not publish.
            Field::new("staged", LakeType::Boolean),
            // The source's name for the very rows that were compared.
            Field::new("source_state", String),
        ]
    },
};

/// What maintenance did to tables, and how large they were before and after.
pub const MAINTENANCE_HISTORY: ManagementTable = ManagementTable {
    name: "maintenance_history",
    columns: || {
        let text = |name: &str| Field::new(name, LakeType::String);
        let number = |name: &str| Field::new(name, LakeType::Long);
        vec![
            // None of what is done to an org as a whole.
            text("table_name"),
            text("maintenance_id").required(),
            text("action").required(),
            // `done`, `nothing_to_do` or `failed`.
            text("outcome").required(),
            Field::new("started_at", LakeType::Timestamptz).required(),
            number("duration_ms").required(),
            number("files_before"),
            number("bytes_before"),
            number("rows_before"),
            number("delete_files_before"),
            number("snapshots_before"),
            number("files_after"),
            number("bytes_after"),
            number("rows_after"),
            number("delete_files_after"),
            number("snapshots_after"),
            // The report, or the error, as JSON.
            text("detail").required(),
        ]
    },
};
