//! Tables: created, staged, registered, loaded, renamed, dropped.

use std::collections::HashMap;

use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuilder, TableProperties};
use iceberg::{TableCreation, TableIdent};
use polder_core::{ErrorCode, Principal};
use serde_json::Value;
use serde_json::value::RawValue;

use super::documents::{
    CreateTableRequest, Loaded, LoadedTable, Recall, RegisterRequest, RenameRequest, not_metadata,
};
use super::kept::Keeper;
use super::refusal::{Answer, Refusal, RefusalKind, show};
use super::{IcebergCatalog, may_see};
use crate::catalog::metadata_files::parse_json;
use crate::catalog::sql::{EntryKind, Swap};
use crate::catalog::{CommitFailure, TableState, metadata_json};
use crate::hold;

impl IcebergCatalog {
    /// The names of the namespace's tables, in order.
    pub async fn list_tables(
        &self,
        principal: &Principal,
        namespace: &[String],
    ) -> Answer<Vec<String>> {
        self.list(principal, namespace, EntryKind::Table).await
    }

    /// Where the table's metadata is now: what changes with every commit.
    pub async fn table_pointer(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
    ) -> Answer<String> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        Ok(self.present(&ident, EntryKind::Table).await?.metadata_location)
    }

    /// The table, unless its metadata file is one whose state the client `has`.
    ///
    /// # Errors
    /// `NoSuchTable`; `NotFound` when its metadata file is gone.
    pub async fn load_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        has: impl Fn(&str) -> bool,
    ) -> Answer<Loaded> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        let mut metadata_location = self.present(&ident, EntryKind::Table).await?.metadata_location;
        loop {
            if has(&metadata_location) {
                return Ok(Loaded::Unchanged { metadata_location });
            }
            let error = match self.catalog.files.text_now(&metadata_location).await {
                Ok(metadata) => {
                    let metadata_location = Some(metadata_location);
                    return Ok(Loaded::Table(LoadedTable { metadata_location, metadata }));
                }
                Err(error) => error,
            };
            // A commit in between may have removed the file of the state before it.
            let now = self.present(&ident, EntryKind::Table).await?.metadata_location;
            if now == metadata_location {
                return Err(missing(error, &now));
            }
            metadata_location = now;
        }
    }

    /// The table as an earlier answer had it. Where the file of that state is gone, as it is now.
    ///
    /// # Errors
    /// `NoSuchNamespace`; `NoSuchTable` and `NotFound` where that is gone too.
    pub async fn table_again(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        recall: Recall,
    ) -> Answer<LoadedTable> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        self.require_namespace(&ident.namespace).await?;
        let location = match recall {
            Recall::File(location) => location,
            Recall::Staged(text) => {
                let metadata = RawValue::from_string(text).map_err(not_metadata)?;
                return Ok(LoadedTable { metadata_location: None, metadata: metadata.into() });
            }
        };
        match self.catalog.files.text_at(&location).await {
            Ok(metadata) => {
                return Ok(LoadedTable { metadata_location: Some(location), metadata });
            }
            Err(error) => {
                let refusal = missing(error, &location);
                if refusal.kind != RefusalKind::NotFound {
                    return Err(refusal);
                }
            }
        }
        match self.load_table(principal, namespace, name, |_| false).await? {
            Loaded::Table(table) => Ok(table),
            // Of a client that has nothing.
            Loaded::Unchanged { .. } => Err(Refusal::absent(EntryKind::Table, &show(&ident))),
        }
    }

    pub(super) async fn table_at(
        &self,
        ident: &TableIdent,
        location: String,
    ) -> Answer<TableState> {
        let state = self.catalog.files.state_at(ident, location.clone()).await;
        state.map_err(|error| missing(error, &location))
    }

    /// Creates a table, or says what its first state would be (`stage-create`).
    ///
    /// # Errors
    /// `NoSuchNamespace`; `AlreadyExists`; `Forbidden` for a location outside the namespace's own.
    pub async fn create_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        mut request: CreateTableRequest,
    ) -> Answer<LoadedTable> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        let ident = Self::new_ident(namespace, &request.name)?;
        self.require_free(&ident, EntryKind::Table).await?;
        let location = match &request.location {
            Some(location) => location.trim_end_matches('/').to_owned(),
            None => self.new_location(&ident.namespace).await?,
        };
        let staged = request.stage_create;
        Keeper::of(principal).drop_kept(&mut request.properties);
        let metadata = new_metadata(request, location)?;
        self.fence(&ident.namespace).await?.check_table(&metadata)?;
        if staged {
            let metadata = metadata_json::text(&metadata)?.into();
            return Ok(LoadedTable { metadata_location: None, metadata });
        }
        let written = self.write_table(&ident, None, metadata).await?;
        self.put_new_entry(&ident, EntryKind::Table, &written.swap).await?;
        Ok(self.committed(written))
    }

    /// Swaps in a new name. A conflict is explained: the name was taken, or the namespace dropped.
    pub(super) async fn put_new_entry(
        &self,
        ident: &TableIdent,
        kind: EntryKind,
        swap: &Swap,
    ) -> Answer<()> {
        match self.catalog.swap_new(std::slice::from_ref(swap)).await {
            Err(failure @ CommitFailure::Conflict(_)) => {
                self.require_namespace(&ident.namespace).await?;
                self.require_free(ident, kind).await?;
                Err(failure.into())
            }
            other => Ok(other?),
        }
    }

    /// Takes an existing metadata file for a table.
    ///
    /// # Errors
    /// `Forbidden` when the file, or anything it names, lies outside the namespace's own storage, and
    /// when a client's file changes what Polder keeps in the table it takes the place of;
    /// `AlreadyExists` unless the request says `overwrite`.
    pub async fn register_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        request: RegisterRequest,
    ) -> Answer<LoadedTable> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        let ident = Self::new_ident(namespace, &request.name)?;
        let before = match self.catalog.entry(&ident).await? {
            Some(entry) if request.overwrite && entry.kind == EntryKind::Table => {
                Some(entry.metadata_location)
            }
            Some(_) => return Err(self.taken(&ident, EntryKind::Table).await),
            None => None,
        };
        let location = request.metadata_location;
        let fence = self.fence(&ident.namespace).await?;
        fence.check(&location)?;
        let bytes = self.store.read(&location).await.map_err(|error| missing(error, &location))?;
        let unfit = |error: polder_core::Error| {
            Refusal::invalid(format!("Cannot register {location}: {}", error.message()))
        };
        let metadata: TableMetadata = parse_json(&bytes, &location).map_err(unfit)?;
        fence.check_table(&metadata)?;
        let keeper = Keeper::of(principal);
        let mut document: Value = parse_json(&bytes, &location).map_err(unfit)?;
        match &before {
            Some(before) => self.check_replaced(keeper, &ident, before, &metadata).await?,
            None if keeper.drop_from(&mut document) => {
                return self.register_without_kept(&ident, document).await;
            }
            None => {}
        }
        let text: Box<RawValue> = parse_json(&bytes, &location).map_err(unfit)?;
        if before.as_deref() != Some(location.as_str()) {
            let (kind, to) = (EntryKind::Table, location.clone());
            let swap = Swap { ident: ident.clone(), kind, from: before, to };
            // Not through `swap_new`, which removes a file that was not swapped in: this one is theirs.
            match self.catalog.swap_all(&[swap]).await {
                Err(CommitFailure::Conflict(_)) => {
                    return Err(self.taken(&ident, EntryKind::Table).await);
                }
                other => other?,
            }
        }
        Ok(LoadedTable { metadata_location: Some(location), metadata: text.into() })
    }

    /// Whether a metadata file may take the place of the table's own.
    async fn check_replaced(
        &self,
        keeper: Keeper,
        ident: &TableIdent,
        before: &str,
        after: &TableMetadata,
    ) -> Answer<()> {
        hold::check_table(&self.catalog, ident, "replacing it").await?;
        if keeper == Keeper::Client {
            let before = self.table_at(ident, before.to_owned()).await?;
            keeper.check_whole(&before.metadata, after)?;
        }
        Ok(())
    }

    /// A new table of a document without what Polder keeps, in a metadata file of its own.
    async fn register_without_kept(
        &self,
        ident: &TableIdent,
        document: Value,
    ) -> Answer<LoadedTable> {
        let metadata = serde_json::from_value(document)
            .map_err(|cause| Refusal::invalid(format!("Cannot register the table: {cause}")))?;
        let written = self.write_table(ident, None, metadata).await?;
        self.put_new_entry(ident, EntryKind::Table, &written.swap).await?;
        Ok(self.committed(written))
    }

    /// Why a name cannot be had.
    pub(super) async fn taken(&self, ident: &TableIdent, wanted: EntryKind) -> Refusal {
        let reason = match self.require_namespace(&ident.namespace).await {
            Ok(()) => self.require_free(ident, wanted).await,
            gone => gone,
        };
        let meanwhile = || {
            let message = format!("Cannot commit: {} changed meanwhile", show(ident));
            Refusal::new(RefusalKind::CommitFailed, message)
        };
        reason.err().unwrap_or_else(meanwhile)
    }

    /// # Errors
    /// `NoSuchTable`; `NoSuchNamespace`; `AlreadyExists`; `Forbidden` when the table's files do not
    /// lie where the new namespace's files have to.
    pub async fn rename_table(&self, principal: &Principal, request: RenameRequest) -> Answer<()> {
        let RenameRequest { source, destination } = request;
        let from = Self::ident(principal, &source.namespace, &source.name, EntryKind::Table)?;
        let entry = self.present(&from, EntryKind::Table).await?;
        hold::check_table(&self.catalog, &from, "renaming it").await?;
        let namespace = Self::namespace(principal, &destination.namespace)?;
        let to = Self::new_ident(namespace, &destination.name)?;
        self.require_namespace(&to.namespace).await?;
        match self.catalog.entry(&to).await? {
            Some(found) if found.kind == EntryKind::View => {
                let (from, to) = (show(&from), show(&to));
                let message = format!("Cannot rename {from} to {to}. View already exists");
                return Err(Refusal::exists(message));
            }
            Some(_) => {
                return Err(Refusal::exists(format!("Table already exists: {}", show(&to))));
            }
            None => {}
        }
        let table = self.table_at(&from, entry.metadata_location).await?;
        self.fence(&to.namespace).await?.check_table(&table.metadata)?;
        if self.catalog.rename_entry(EntryKind::Table, &from, &to).await? {
            return Ok(());
        }
        self.present(&from, EntryKind::Table).await?;
        Err(self.taken(&to, EntryKind::Table).await)
    }

    /// Takes the table out of the catalog; with `purge` its files go too.
    pub async fn drop_table(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        purge: bool,
    ) -> Answer<()> {
        let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
        hold::check_table(&self.catalog, &ident, "dropping it").await?;
        loop {
            let entry = self.present(&ident, EntryKind::Table).await?;
            if self.catalog.drop_entry(&ident, &entry).await? {
                if purge {
                    self.purge(&ident, entry.metadata_location).await?;
                }
                return Ok(());
            }
            // Somebody committed in between: look again, and drop that state.
        }
    }

    /// Whether the principal may see the namespace at all.
    pub fn sees(principal: &Principal, namespace: &[String]) -> bool {
        iceberg::NamespaceIdent::from_vec(namespace.to_vec())
            .is_ok_and(|namespace| may_see(principal, &namespace))
    }
}

/// A file that the catalog leads to and that is not there, in Iceberg's words.
pub(super) fn missing(error: polder_core::Error, location: &str) -> Refusal {
    let gone = error.code() == ErrorCode::LakeNotFound
        || (error.code() == ErrorCode::LakeCorrupt && error.message().contains("is missing"));
    if gone {
        let message = format!("Failed to open input stream for file: {location}");
        return Refusal::new(RefusalKind::NotFound, message);
    }
    error.into()
}

/// The first state of a table, with field ids assigned anew as the specification asks.
fn new_metadata(request: CreateTableRequest, location: String) -> Answer<TableMetadata> {
    let mut properties: HashMap<String, String> = request.properties;
    let version = match properties.get(TableProperties::PROPERTY_FORMAT_VERSION).map(String::as_str)
    {
        None | Some("2") => FormatVersion::V2,
        Some("1") => FormatVersion::V1,
        Some("3") => FormatVersion::V3,
        Some(other) => {
            return Err(Refusal::invalid(format!("Unsupported format version: v{other}")));
        }
    };
    // Answers about a table, which Iceberg never keeps as its properties.
    properties.retain(|key, _| !TableProperties::RESERVED_PROPERTIES.contains(&key.as_str()));
    let creation = TableCreation {
        name: request.name,
        location: Some(location),
        schema: request.schema,
        partition_spec: request.partition_spec,
        sort_order: request.write_order,
        properties,
        format_version: version,
    };
    let built = TableMetadataBuilder::from_table_creation(creation)
        .and_then(TableMetadataBuilder::build)
        .map_err(|cause| Refusal::validation(&cause))?;
    Ok(built.metadata)
}
