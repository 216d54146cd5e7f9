//! What a stage finds out about rows and takes away: reading the table it began from and the files it
//! has written, and deletes by position in both.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::scan::FileScanTask;
use iceberg::spec::{DataFileFormat, ManifestContentType};
use polder_core::{Error, ErrorCode, OrgId, Predicate, Result};

use crate::catalog::TableState;
use crate::commit::{deletes_of, read_list};
use crate::error;
use crate::field_ids::field_id;
use crate::placed::{self, PlacedStream};
use crate::read::{Finish, decode};
use crate::scan::{self, BatchStream, FilePartition, ScanFile};
use crate::schema;
use crate::stage::Stage;
use crate::storage::Store;
use crate::table::LakeTable;
use crate::write::{self, StagedDeletes, StagedFile};

/// The delete files of one data file alone, by the data file's address.
type OwnDeletes = HashMap<String, Vec<String>>;

impl Stage {
    /// The table as it was when the stage began; `None` for a new one.
    ///
    /// # Errors
    /// `internal` for a table outside the orgs' namespaces.
    pub fn table(&self) -> Result<Option<LakeTable>> {
        let Some(base) = &self.base else { return Ok(None) };
        LakeTable::new(&self.org()?, base.clone(), self.lake.store()).map(Some)
    }

    /// The org whose table it is.
    pub(crate) fn org(&self) -> Result<OrgId> {
        let namespace = self.ident.namespace().to_url_string();
        OrgId::from_namespace(&namespace)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "a table outside the orgs' namespaces"))
    }

    /// Reads top-level columns of a file that this stage has written, or all, with the rows' places.
    ///
    /// # Errors
    /// `internal` for an unknown column; `lake.*` in the stream when the file cannot be read.
    pub fn read_staged(
        &self,
        file: &StagedFile,
        columns: Option<&[String]>,
    ) -> Result<PlacedStream> {
        let batches = self.read_file(&file.as_scanned(), columns)?;
        Ok(placed::placed(file.as_scanned(), Vec::new(), batches))
    }

    /// Reads top-level columns of a file that has the columns of this stage, or all.
    pub(crate) fn read_file(
        &self,
        file: &ScanFile,
        columns: Option<&[String]>,
    ) -> Result<BatchStream> {
        let failed = |cause| error::arrow("choose columns", cause);
        let plain = self.request.schema.to_arrow();
        let ids = schema::arrow_schema(&self.request.schema, &self.target.schema);
        let chosen: Vec<usize> = match columns {
            None => (0..plain.fields().len()).collect(),
            Some(names) => {
                let index = |name: &String| plain.index_of(name).map_err(failed);
                names.iter().map(index).collect::<Result<_>>()?
            }
        };
        let project = |layout: &arrow::datatypes::Schema| layout.project(&chosen).map_err(failed);
        let (plain, ids) = (Arc::new(project(&plain)?), project(&ids)?);
        let task = FileScanTask::builder()
            .with_file_size_in_bytes(file.size_bytes)
            .with_start(0)
            .with_length(0)
            .with_record_count(file.rows)
            .with_data_file_path(file.path.clone())
            .with_data_file_format(DataFileFormat::Parquet)
            .with_schema(Arc::clone(&self.target.schema))
            .with_project_field_ids(
                ids.fields().iter().filter_map(|field| field_id(field)).collect(),
            )
            .with_case_sensitive(true)
            .build();
        let runtime = iceberg::Runtime::try_current()
            .map_err(|cause| error::iceberg("read a staged file", cause))?;
        let reader = ArrowReaderBuilder::new(self.lake.store().file_io(), runtime);
        let wanted = plain.fields().len();
        let finish = Finish { layout: plain, filter: Predicate::True, wanted };
        let batches = decode(reader, vec![task])?.map(move |batch| finish.apply(&batch?));
        Ok(Box::pin(batches))
    }

    /// Writes deletes of rows of some of the table's data files, by their positions in each, from 0.
    /// One file each: where the table has delete files of that data file alone, the new one takes
    /// their positions over and replaces them.
    ///
    /// # Errors
    /// `lake.conflict` if the table has one of the files no more; `internal` for no positions, or
    /// positions that a file does not have; `lake.*` when the store fails.
    pub async fn write_deletes(
        &self,
        deletes: &[(ScanFile, Vec<u64>)],
    ) -> Result<Vec<StagedDeletes>> {
        self.write_deletes_with(deletes, &[]).await
    }

    /// [`Self::write_deletes`] of rows of files that this stage has written, too.
    ///
    /// # Errors
    /// As there.
    pub async fn write_deletes_with(
        &self,
        deletes: &[(ScanFile, Vec<u64>)],
        staged: &[StagedFile],
    ) -> Result<Vec<StagedDeletes>> {
        if deletes.is_empty() {
            return Ok(Vec::new());
        }
        let (mut places, own) = match &self.base {
            Some(base) => {
                let places = scan::places(base, self.lake.store()).await?;
                (places, own_deletes(base, &self.store()).await?)
            }
            None => (HashMap::new(), HashMap::new()),
        };
        places.extend(staged.iter().map(|file| {
            let (spec_id, values) = (self.target.spec.spec_id(), file.data_file().partition());
            (file.location().to_owned(), FilePartition { spec_id, values: values.clone() })
        }));
        let mut written: Vec<StagedDeletes> = Vec::with_capacity(deletes.len());
        for (file, positions) in deletes {
            let replaces = own.get(&file.path).cloned().unwrap_or_default();
            match self.write_deletes_of(&places, file, positions, replaces).await {
                Ok(deletes) => written.push(deletes),
                Err(error) => {
                    self.drop_deletes(&written).await;
                    return Err(error);
                }
            }
        }
        Ok(written)
    }

    async fn write_deletes_of(
        &self,
        places: &HashMap<String, FilePartition>,
        file: &ScanFile,
        positions: &[u64],
        replaces: Vec<String>,
    ) -> Result<StagedDeletes> {
        let place = places.get(&file.path).ok_or_else(|| {
            Error::new(ErrorCode::LakeConflict, "a file to delete rows of is gone")
                .detail(self.ident.to_string())
        })?;
        let store = &self.store();
        let mut all = positions.to_vec();
        if !positions.is_empty() {
            for earlier in &replaces {
                all.extend(placed::positions(store, earlier, &file.path).await?);
            }
        }
        let written = write::write_deletes(store, &self.target.location, file, place, &all).await?;
        Ok(written.replacing(replaces))
    }

    /// Removes files that this stage has written and is not going to commit.
    pub async fn drop_files(&self, files: &[StagedFile]) {
        self.remove(files).await;
    }

    /// The same of delete files.
    pub async fn drop_deletes(&self, deletes: &[StagedDeletes]) {
        let written = deletes.iter().map(|deletes| deletes.location().to_owned());
        self.discard(written.collect()).await;
    }

    /// A partition spec of the table, as it was or as the stage makes it.
    pub(crate) fn has_spec(&self, spec_id: i32) -> Result<iceberg::spec::PartitionSpecRef> {
        if self.target.spec.spec_id() == spec_id {
            return Ok(Arc::clone(&self.target.spec));
        }
        self.spec_of(spec_id)
    }
}

/// The live delete files of a state that delete rows of one data file alone.
async fn own_deletes(state: &TableState, store: &Store) -> Result<OwnDeletes> {
    let failed = |cause| error::iceberg("read a manifest", cause);
    let Some(snapshot) = state.metadata.current_snapshot() else { return Ok(HashMap::new()) };
    let file_io = store.file_io();
    let mut found = OwnDeletes::new();
    for manifest in read_list(store, snapshot).await? {
        if manifest.content != ManifestContentType::Deletes {
            continue;
        }
        let loaded = manifest.load_manifest(&file_io).await.map_err(failed)?;
        for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
            if let Some(of) = deletes_of(entry.data_file()) {
                found.entry(of).or_default().push(entry.file_path().to_owned());
            }
        }
    }
    Ok(found)
}
