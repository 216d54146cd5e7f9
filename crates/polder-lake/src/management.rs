//! The management tables in the lake: rows are added, and each addition is one commit.

use std::collections::BTreeSet;

use arrow::array::{AsArray, RecordBatch};
use iceberg::TableRequirement;
use polder_core::{
    Authorized, Error, ErrorCode, ManagementTable, ORG_COLUMN, OrgId, Principal, Result,
};
use uuid::Uuid;

use crate::catalog::CommitFailure;
use crate::erase::ERASURES;
use crate::lake::Lake;
use crate::stage::{StageKind, StageRequest};
use crate::table::LakeTable;

/// Tries to find or give a table its shape while others do the same.
const TRIES_MAX: u32 = 8;
const TARGET_FILE_BYTES: u64 = 32 << 20;
const MEMORY_BYTES: usize = 32 << 20;

impl Lake {
    /// Adds rows, in the layout of [`ManagementTable::schema`], to a management table in one commit.
    /// The table is made where it is absent, and gets the columns it lacks.
    ///
    /// # Errors
    /// `control.denied` to whoever is not Polder itself; `lake.fenced` for rows of an org that leaves; `internal` for rows of another layout;
    /// `lake.unknown_outcome` if nobody can say whether the rows are there.
    pub async fn record(
        &self,
        by: &Principal,
        table: &ManagementTable,
        rows: RecordBatch,
    ) -> Result<()> {
        let own = by.authorize(&OrgId::management())?;
        self.check_orgs(by, table, &rows).await?;
        let mut last = None;
        for _ in 0..TRIES_MAX {
            self.ensure_shape(&own, table).await?;
            let request = request(table, StageKind::Files);
            let added = async {
                let stage = self.stage(&own, table.name, request).await?;
                let mut writer = stage.writer();
                writer.write(rows.clone()).await?;
                let files = writer.finish().await?;
                stage.append_files(files).await
            };
            match added.await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == ErrorCode::LakeConflict => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorCode::LakeConflict, "too many writers")))
    }

    /// Checks that no row is of an org that leaves, but for the row that says that it has.
    async fn check_orgs(
        &self,
        by: &Principal,
        table: &ManagementTable,
        rows: &RecordBatch,
    ) -> Result<()> {
        if table.name == ERASURES {
            return Ok(());
        }
        let column =
            rows.column_by_name(ORG_COLUMN).and_then(|column| column.as_string_opt::<i32>());
        let orgs: BTreeSet<&str> = column.into_iter().flatten().flatten().collect();
        for org in orgs {
            // Rows may be of no org: of the whole lake.
            if let Ok(org) = org.parse::<OrgId>() {
                self.check_open(&by.authorize(&org)?).await?;
            }
        }
        Ok(())
    }

    /// A management table as it is now; `None` if nothing was recorded yet.
    ///
    /// # Errors
    /// `control.denied` to an org's principal: its rows are not the only ones there.
    pub async fn management_table(&self, by: &Principal, name: &str) -> Result<Option<LakeTable>> {
        self.table(&by.authorize(&OrgId::management())?, name).await
    }

    /// Makes the table, or gives it the columns it lacks.
    async fn ensure_shape(&self, own: &Authorized<OrgId>, table: &ManagementTable) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let present = self.table(own, table.name).await?;
            if let Some(present) = &present {
                check_known(present, table)?;
            }
            let kind = if present.is_some() { StageKind::Append } else { StageKind::Replace };
            let stage = match &present {
                Some(present) => self.stage_on(present, request(table, kind))?,
                None => self.stage(own, table.name, request(table, kind)).await?,
            };
            if stage.target.updates.is_empty() {
                return Ok(());
            }
            let requirements = match &stage.base {
                None => vec![TableRequirement::NotExist],
                Some(base) => vec![
                    TableRequirement::UuidMatch { uuid: base.metadata.uuid() },
                    TableRequirement::CurrentSchemaIdMatch {
                        current_schema_id: base.metadata.current_schema_id(),
                    },
                ],
            };
            let updates = stage.target.updates.clone();
            match self.catalog().commit(&stage.ident, &requirements, updates).await {
                // Of a lost answer the table itself tells.
                Ok(_) | Err(CommitFailure::Conflict(_) | CommitFailure::Unknown(_)) => {}
                Err(CommitFailure::Rejected(error)) => return Err(error),
            }
        }
        Err(Error::new(ErrorCode::LakeConflict, "the management table does not take its columns")
            .detail(table.name))
    }
}

/// Columns are added and never dropped: those that this version does not know are a later one's.
fn check_known(present: &LakeTable, table: &ManagementTable) -> Result<()> {
    let (present, known) = (present.schema(), table.schema());
    match present.fields.iter().find(|field| known.field(&field.name).is_none()) {
        None => Ok(()),
        Some(field) => {
            let message = format!("management table {} has an unknown column", table.name);
            Err(Error::new(ErrorCode::LakeSchemaRefused, message)
                .detail(field.name.clone())
                .hint("a newer version of polder has written it: use that one"))
        }
    }
}

fn request(table: &ManagementTable, kind: StageKind) -> StageRequest {
    StageRequest {
        run_id: Uuid::now_v7(),
        schema: table.schema(),
        partition: table.partition(),
        sort: None,
        kind,
        target_file_bytes: TARGET_FILE_BYTES,
        memory_bytes: MEMORY_BYTES,
    }
}
