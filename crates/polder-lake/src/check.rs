//! What a table can be asked of itself, without its source: whether its files can be read, whether rows
//! lie in the partition that metadata says, whether names point where they were set.
//!
//! Nothing is repaired, and rows are not compared with anything.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use iceberg::scan::FileScanTask;
use iceberg::spec::{PartitionSpec, Schema};
use polder_core::{Error, ErrorCode, Predicate, Result, TableSchema};

use crate::error;
use crate::scan::{self, FilePartition, ScanRequest};
use crate::table::{LakeTable, Properties, version_number, was_main};
use crate::write::Partitioner;

/// A version's tag that is not where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFault {
    pub name: String,
    pub snapshot_id: i64,
    /// Where it was set; `None` if the snapshot it is on was never published.
    pub set_on: Option<i64>,
}

/// A data file that cannot be read as metadata says.
#[derive(Clone, Debug)]
pub struct FileFault {
    /// The file's address.
    pub path: String,
    pub what: String,
}

impl LakeTable {
    /// Reads every data file of the table as it is now, and says which cannot be read or hold another
    /// number of rows than metadata says.
    ///
    /// # Errors
    /// As [`Self::plan`]: where metadata cannot be read.
    pub async fn unreadable_files(&self) -> Result<Vec<FileFault>> {
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let mut faults = Vec::new();
        for file in self.plan(scan).await?.files {
            let found = match self.rows_of(&file.path).await {
                Ok(rows) if file.has_deletes || file.rows.is_none_or(|listed| listed == rows) => {
                    continue;
                }
                Ok(rows) => format!("{rows} rows, {} listed", file.rows.unwrap_or_default()),
                // The store is away, which says nothing of the file.
                Err(error) if error.retryable() => return Err(error),
                Err(error) => error.to_string(),
            };
            faults.push(FileFault { path: file.path, what: found });
        }
        Ok(faults)
    }

    async fn rows_of(&self, path: &str) -> Result<u64> {
        let mut batches = self.read_files(&HashSet::from([path.to_owned()])).await?;
        let mut rows = 0;
        while let Some(batch) = batches.try_next().await? {
            rows += batch.num_rows() as u64;
        }
        Ok(rows)
    }

    /// The data files that hold rows of another partition than metadata says they are of.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn misplaced_files(&self) -> Result<Vec<String>> {
        let places = scan::places(&self.state(), self.store()).await?;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let mut misplaced = Vec::new();
        let mut checks: HashMap<i32, Option<Placing>> = HashMap::new();
        let mut tasks = self.tasks(&scan).await?;
        tasks.sort_by(|a, b| a.data_file_path.cmp(&b.data_file_path));
        for task in tasks {
            let Some(place) = places.get(&task.data_file_path) else { continue };
            let placing = match checks.entry(place.spec_id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.placing(place.spec_id)?),
            };
            let Some(placing) = placing else { continue };
            let path = task.data_file_path.clone();
            if !self.in_place(task, place, placing).await? {
                misplaced.push(path);
            }
        }
        Ok(misplaced)
    }

    /// How files of a partition spec are checked; `None` if it has no fields, or of columns that are gone.
    fn placing(&self, spec_id: i32) -> Result<Option<Placing>> {
        let metadata = self.metadata();
        let unknown =
            || Error::new(ErrorCode::LakeCorrupt, "a file is of an unknown partition spec");
        let spec = metadata.partition_spec_by_id(spec_id).ok_or_else(unknown)?;
        let schema = metadata.current_schema();
        let columns = schema.as_struct().fields();
        let of_spec = |id: i32| spec.fields().iter().any(|field| field.source_id == id);
        let wanted: Vec<_> = columns.iter().filter(|column| of_spec(column.id)).cloned().collect();
        let whole =
            spec.fields().iter().all(|field| wanted.iter().any(|c| c.id == field.source_id));
        if wanted.is_empty() || !whole {
            return Ok(None);
        }
        let names = wanted.iter().map(|column| column.name.clone()).collect();
        let part = Schema::builder().with_fields(wanted).build();
        let part = part.map_err(|cause| error::iceberg("prepare partitioning", cause))?;
        let partitioner = Partitioner::new(&PartitionSpec::clone(spec), &part)?;
        Ok(partitioner.map(|partitioner| Placing { names, partitioner }))
    }

    async fn in_place(
        &self,
        task: FileScanTask,
        place: &FilePartition,
        placing: &Placing,
    ) -> Result<bool> {
        // The file's own values, not those that its partition says.
        let task = FileScanTask { partition: None, partition_spec: None, ..task };
        let columns = Some(placing.names.clone());
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns };
        let mut batches = self.read_tasks(scan, vec![task])?;
        while let Some(batch) = batches.try_next().await? {
            let slices = placing.partitioner.split(&batch)?;
            if slices.iter().any(|slice| slice.values != place.values) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tags of versions that are not on the snapshot they were set on, as far as that is known.
    pub fn misplaced_tags(&self) -> Vec<TagFault> {
        let metadata = self.metadata();
        let set = Properties(metadata.properties()).version_snapshots();
        let refs = self.refs().into_iter();
        let versions = refs.filter_map(|found| Some((version_number(&found.name)?, found)));
        let fault = |(number, found): (u64, crate::RefInfo)| {
            let set_on = set.get(&number).copied();
            let wrong = match set_on {
                Some(set_on) => set_on != found.snapshot_id,
                None => !was_main(metadata, found.snapshot_id),
            };
            let (name, snapshot_id) = (found.name, found.snapshot_id);
            wrong.then_some(TagFault { name, snapshot_id, set_on })
        };
        versions.filter_map(fault).collect()
    }

    /// The columns as the last run or rollback left them; `None` if that is not known.
    pub fn columns_as_published(&self) -> Option<TableSchema> {
        Properties(self.metadata().properties()).published_columns()
    }
}

struct Placing {
    /// The columns that files are partitioned by.
    names: Vec<String>,
    partitioner: Partitioner,
}
