//! Tables that another engine fills for a run: made with the columns, field ids and partitions that the
//! run's files have, and gone from the catalog before the run publishes.
//!
//! Such a table lies in the folder of the run's own, so that its files are where that table's are, and what
//! a killed run leaves of it is found by orphan removal there. What was written is read back row by row;
//! a file is taken as it is only if its footer says of every column of single values what the rows say.

use std::collections::{HashMap, HashSet};

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use iceberg::spec::{PartitionSpec, Schema};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::spec::{PartitionField, Transform};
use polder_core::{Error, ErrorCode, Imported, LakeType, Predicate, Result};
use uuid::Uuid;

use crate::catalog::CommitFailure;
use crate::read::footer;
use crate::scan::{BatchStream, ScanFile, ScanRequest};
use crate::schema;
use crate::stage::Stage;
use crate::table::LakeTable;
use crate::write::{StagedFile, Taken};

/// The names of such tables begin so, and no others'.
pub(crate) const PREFIX: &str = "polder_intake_";
/// The property that says so of a table: the name of the one it is for.
const FOR: &str = "polder.intake-for";

/// A table for another engine to fill.
#[derive(Debug)]
pub struct Intake {
    ident: TableIdent,
    uuid: Uuid,
}

impl Intake {
    /// Its name, beside the table it is for.
    pub fn name(&self) -> &str {
        self.ident.name()
    }
}

impl Stage {
    /// Makes a table for another engine to fill, in the place of one that an earlier run has left.
    ///
    /// # Errors
    /// `lake.conflict` where somebody else's table has its name, or another run made it at the same moment;
    /// `lake.failed` for a catalog that places tables or numbers columns by itself; `lake.*` of the catalog.
    pub async fn open_intake(&self) -> Result<Intake> {
        let name = format!("{PREFIX}{}", self.ident.name());
        let ident = TableIdent::new(self.ident.namespace().clone(), name);
        let catalog = self.lake.catalog();
        if let Some(left) = catalog.load(&ident).await? {
            if !left.metadata.properties().contains_key(FOR) {
                let message = "a table has the name of one that Polder has another engine fill";
                return Err(Error::new(ErrorCode::LakeConflict, message)
                    .detail(ident.to_string())
                    .hint("give that table another name"));
            }
            catalog.forget(&ident).await?;
        }
        let uuid = Uuid::new_v4();
        let made = catalog.commit(&ident, &[TableRequirement::NotExist], self.intake(uuid)?).await;
        let made = made.map_err(|failure| match failure {
            CommitFailure::Conflict(error)
            | CommitFailure::Rejected(error)
            | CommitFailure::Unknown(error) => error.within("making a table for another engine"),
        })?;
        // The files that come are of these ids, and are going to be this table's.
        let inside = made.metadata.location().strip_prefix(self.target.location.as_str());
        if made.metadata.current_schema().as_struct() != self.target.schema.as_struct()
            || inside.is_none_or(|below| !below.starts_with('/'))
        {
            catalog.forget(&ident).await?;
            let message = "the catalog gives a new table another place, or its columns other ids";
            return Err(Error::new(ErrorCode::LakeFailed, message)
                .hint("read the table with engine: embedded"));
        }
        Ok(Intake { ident, uuid: made.metadata.uuid() })
    }

    fn intake(&self, uuid: Uuid) -> Result<Vec<TableUpdate>> {
        let schema = Schema::clone(&self.target.schema);
        // Other engines make paths of partition values: where these are values of rows, their files are cut
        // here.
        let is_date = |column: &str| {
            self.request.schema.field(column).is_some_and(|of| of.data_type == LakeType::Date)
        };
        let shown = |field: &PartitionField| match field.transform {
            Transform::Identity | Transform::Truncate(_) => true,
            Transform::Day => is_date(&field.column),
            _ => false,
        };
        let wanted = &self.request.partition;
        let partition: &[PartitionField] = if wanted.iter().any(shown) { &[] } else { wanted };
        let spec = schema::partition_spec(partition, &schema)?;
        let own = HashMap::from([(FOR.to_owned(), self.ident.name().to_owned())]);
        Ok(vec![
            TableUpdate::AssignUuid { uuid },
            TableUpdate::SetLocation {
                location: format!("{}/intake/{uuid}", self.target.location),
            },
            // A new table begins with columns that are numbered anew, and a spec of those.
            TableUpdate::AddSpec { spec: PartitionSpec::unpartition_spec().into_unbound() },
            TableUpdate::AddSchema { schema },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
            TableUpdate::AddSpec { spec },
            TableUpdate::SetDefaultSpec { spec_id: -1 },
            TableUpdate::SetProperties { updates: own },
        ])
    }

    /// The files that the other engine has written; none without rows.
    ///
    /// # Errors
    /// `lake.conflict` if the table is another run's by now; `lake.audit_failed` if it holds anything but
    /// what `imported` says.
    pub async fn intake_files(
        &self,
        intake: &Intake,
        imported: &Imported,
    ) -> Result<Vec<ScanFile>> {
        let state = self.lake.catalog().load(&intake.ident).await?;
        let state =
            state.filter(|state| state.metadata.uuid() == intake.uuid).ok_or_else(|| {
                let message = "another run of the table has taken the place of this one";
                Error::new(ErrorCode::LakeConflict, message).detail(intake.ident.to_string())
            })?;
        let table = LakeTable::new(&self.org()?, state, self.lake.store())?;
        let snapshots = table.snapshots();
        if snapshots.is_empty() && imported.rows == 0 {
            return Ok(Vec::new());
        }
        let marked = table.summaries_with(imported.mark.key, &imported.mark.value).is_some();
        let [snapshot] = &snapshots[..] else {
            return Err(unlike("it is not one snapshot"));
        };
        if !marked {
            return Err(unlike("its snapshot is another statement's"));
        }
        let scan =
            ScanRequest { snapshot: Some(snapshot.id), filter: Predicate::True, columns: None };
        let files = table.plan(scan).await?.files;
        let rows: u64 = files.iter().filter_map(|file| file.rows).sum();
        if rows != imported.rows || files.iter().any(|file| file.has_deletes) {
            let detail = format!("{rows} rows in its manifests, {} written", imported.rows);
            return Err(unlike("it holds other rows").detail(detail));
        }
        Ok(files)
    }

    /// Takes the table out of the catalog, if it is this run's still; its files stay.
    ///
    /// # Errors
    /// `lake.*` of the catalog. The table then names its files until the next run: none of them may be
    /// published, as whoever dropped the table would remove them.
    pub async fn close_intake(&self, intake: Intake) -> Result<()> {
        let Intake { ident, uuid } = intake;
        let catalog = self.lake.catalog();
        let own = catalog.load(&ident).await?.is_some_and(|state| state.metadata.uuid() == uuid);
        if own { catalog.forget(&ident).await } else { Ok(()) }
    }

    /// Reads all rows of a file that another engine has written for this stage.
    ///
    /// # Errors
    /// `lake.*` in the stream when the file cannot be read.
    pub fn read_handed(&self, file: &ScanFile) -> Result<BatchStream> {
        self.read_file(file, None)
    }

    /// Takes such a file over, showing its rows to `see`. `None` where its footer does not say of every
    /// column of single values what its rows say, or it has rows of several partitions: they have to be written anew.
    ///
    /// # Errors
    /// `lake.audit_failed` if it holds other rows than its manifest says; `lake.*` when it cannot be read;
    /// those of `see`.
    pub async fn take_handed(
        &self,
        file: &ScanFile,
        mut see: impl FnMut(&RecordBatch) -> Result<()> + Send,
    ) -> Result<Option<StagedFile>> {
        let mut taken = Taken::new(self.layout());
        let mut rows = self.read_handed(file)?;
        while let Some(batch) = rows.try_next().await? {
            taken.add(&batch)?;
            see(&batch)?;
        }
        let store = self.store();
        let footer = footer(&store, &file.path, file.size_bytes).await?;
        let footer = footer.map_err(|cause| {
            unlike("a file cannot be read back").detail(file.path.clone()).caused_by(cause)
        })?;
        if file.rows != Some(taken.rows()) {
            return Err(unlike("a file has other rows than its manifest").detail(file.path.clone()));
        }
        taken.file(file.path.clone(), file.size_bytes, footer)
    }

    /// Removes files that another engine has written and this stage has not taken.
    pub async fn drop_handed(&self, files: &[ScanFile], taken: &[StagedFile]) {
        let taken: HashSet<&str> = taken.iter().map(StagedFile::location).collect();
        let left = files.iter().filter(|file| !taken.contains(file.path.as_str()));
        self.discard(left.map(|file| file.path.clone()).collect()).await;
    }
}

fn unlike(what: &str) -> Error {
    let message = format!("what another engine has written is not what was asked for: {what}");
    Error::new(ErrorCode::LakeAuditFailed, message)
        .hint("nothing was published; run again, and look at that engine if it happens again")
}
