//! Views: created, loaded, replaced, registered, renamed, dropped.

use std::collections::HashSet;
use std::sync::Arc;

use iceberg::spec::{
    ViewFormatVersion, ViewMetadata, ViewMetadataBuilder, ViewRepresentation, ViewVersion,
};
use iceberg::{TableIdent, ViewUpdate};
use polder_core::Principal;

use super::IcebergCatalog;
use super::commit::metadata_file;
use super::documents::{
    CommitRequest, CreateViewRequest, LoadedView, RegisterRequest, RenameRequest,
};
use super::refusal::{Answer, Refusal, show};
use super::tables::missing;
use super::{ATTEMPTS_MAX, location::Fence, requirements};
use crate::catalog::sql::{EntryKind, Swap};
use crate::catalog::{CommitFailure, metadata_json};

impl IcebergCatalog {
    /// The names of the namespace's views, in order.
    pub async fn list_views(
        &self,
        principal: &Principal,
        namespace: &[String],
    ) -> Answer<Vec<String>> {
        self.list(principal, namespace, EntryKind::View).await
    }

    /// # Errors
    /// `NoSuchView`.
    pub async fn view_exists(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
    ) -> Answer<()> {
        let ident = Self::ident(principal, namespace, name, EntryKind::View)?;
        self.present(&ident, EntryKind::View).await.map(drop)
    }

    /// # Errors
    /// `NoSuchView`; `NotFound` when its metadata file is gone.
    pub async fn load_view(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
    ) -> Answer<LoadedView> {
        let ident = Self::ident(principal, namespace, name, EntryKind::View)?;
        let entry = self.present(&ident, EntryKind::View).await?;
        self.view_at(entry.metadata_location).await
    }

    async fn view_at(&self, location: String) -> Answer<LoadedView> {
        let bytes = self.store.read(&location).await.map_err(|error| missing(error, &location))?;
        let metadata: ViewMetadata = serde_json::from_slice(&bytes).map_err(|cause| {
            Refusal::invalid(format!("Cannot parse view metadata {location}: {cause}"))
        })?;
        Ok(LoadedView { metadata_location: location, metadata: Arc::new(metadata) })
    }

    /// # Errors
    /// `NoSuchNamespace`; `AlreadyExists`; `Forbidden` for a location outside the namespace's own.
    pub async fn create_view(
        &self,
        principal: &Principal,
        namespace: &[String],
        request: CreateViewRequest,
    ) -> Answer<LoadedView> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        let ident = Self::new_ident(namespace, &request.name)?;
        self.require_free(&ident, EntryKind::View).await?;
        check_dialects(&request.view_version)?;
        let location = match request.location {
            Some(location) => location,
            None => self.new_location(&ident.namespace).await?,
        };
        let built = ViewMetadataBuilder::new(
            location,
            request.schema,
            request.view_version,
            ViewFormatVersion::V1,
            request.properties,
        )
        .and_then(ViewMetadataBuilder::build)
        .map_err(|cause| Refusal::validation(&cause))?;
        check_fence(&self.fence(&ident.namespace).await?, &built.metadata)?;
        let (swap, view) = self.write_view(&ident, None, built.metadata).await?;
        self.put_new_entry(&ident, EntryKind::View, &swap).await?;
        Ok(view)
    }

    async fn write_view(
        &self,
        ident: &TableIdent,
        from: Option<String>,
        metadata: ViewMetadata,
    ) -> Answer<(Swap, LoadedView)> {
        let to = metadata_file(from.as_deref(), metadata.location(), metadata.properties());
        self.catalog.files.write(&to, &metadata_json::text(&metadata)?).await?;
        let swap = Swap { ident: ident.clone(), kind: EntryKind::View, from, to: to.clone() };
        Ok((swap, LoadedView { metadata_location: to, metadata: Arc::new(metadata) }))
    }

    /// Takes an existing metadata file for a view.
    pub async fn register_view(
        &self,
        principal: &Principal,
        namespace: &[String],
        request: RegisterRequest,
    ) -> Answer<LoadedView> {
        let namespace = Self::namespace(principal, namespace)?;
        self.require_namespace(&namespace).await?;
        let ident = Self::new_ident(namespace, &request.name)?;
        self.require_free(&ident, EntryKind::View).await?;
        let fence = self.fence(&ident.namespace).await?;
        fence.check(&request.metadata_location)?;
        let view = self.view_at(request.metadata_location).await?;
        check_fence(&fence, &view.metadata)?;
        let to = view.metadata_location.clone();
        let swap = Swap { ident: ident.clone(), kind: EntryKind::View, from: None, to };
        match self.catalog.swap_all(&[swap]).await {
            Err(CommitFailure::Conflict(_)) => Err(self.taken(&ident, EntryKind::View).await),
            other => {
                other?;
                Ok(view)
            }
        }
    }

    /// Commits to a view. As with tables, a faster writer means doing it again on the newer state.
    pub async fn commit_view(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
        request: CommitRequest,
    ) -> Answer<LoadedView> {
        let ident = Self::ident(principal, namespace, name, EntryKind::View)?;
        let updates: Vec<ViewUpdate> = request
            .updates
            .into_iter()
            .map(|value| {
                serde_json::from_value(value).map_err(|cause| {
                    Refusal::invalid(format!("Cannot parse metadata update: {cause}"))
                })
            })
            .collect::<Answer<_>>()?;
        let fence = self.fence(&ident.namespace).await?;
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let base = self
                .view_at(self.present(&ident, EntryKind::View).await?.metadata_location)
                .await?;
            requirements::check_view(&base.metadata, &request.requirements)?;
            let Some(metadata) = apply(&base.metadata, &updates)? else { return Ok(base) };
            check_fence(&fence, &metadata)?;
            let (swap, view) =
                self.write_view(&ident, Some(base.metadata_location), metadata).await?;
            match self.catalog.swap_new(&[swap]).await {
                Ok(()) => return Ok(view),
                Err(CommitFailure::Conflict(cause)) => last = Some(cause),
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(last.map_or_else(
            || Refusal::absent(EntryKind::View, &show(&ident)),
            |cause| CommitFailure::Conflict(cause).into(),
        ))
    }

    /// # Errors
    /// `NoSuchView`; `NoSuchNamespace`; `AlreadyExists`; `Forbidden` when the view's files do not
    /// lie where the new namespace's files have to.
    pub async fn rename_view(&self, principal: &Principal, request: RenameRequest) -> Answer<()> {
        let RenameRequest { source, destination } = request;
        let from = Self::ident(principal, &source.namespace, &source.name, EntryKind::View)?;
        let entry = self.present(&from, EntryKind::View).await?;
        let namespace = Self::namespace(principal, &destination.namespace)?;
        let to = Self::new_ident(namespace, &destination.name)?;
        self.require_namespace(&to.namespace).await?;
        if let Some(found) = self.catalog.entry(&to).await? {
            let kind = if found.kind == EntryKind::View { "View" } else { "Table" };
            let (from, to) = (show(&from), show(&to));
            let message = format!("Cannot rename {from} to {to}. {kind} already exists");
            return Err(Refusal::exists(message));
        }
        let view = self.view_at(entry.metadata_location).await?;
        check_fence(&self.fence(&to.namespace).await?, &view.metadata)?;
        if self.catalog.rename_entry(EntryKind::View, &from, &to).await? {
            return Ok(());
        }
        self.present(&from, EntryKind::View).await?;
        Err(self.taken(&to, EntryKind::View).await)
    }

    /// Takes the view out of the catalog. Its metadata files stay, for registering it again.
    pub async fn drop_view(
        &self,
        principal: &Principal,
        namespace: &[String],
        name: &str,
    ) -> Answer<()> {
        let ident = Self::ident(principal, namespace, name, EntryKind::View)?;
        loop {
            let entry = self.present(&ident, EntryKind::View).await?;
            if self.catalog.drop_entry(&ident, &entry).await? {
                return Ok(());
            }
        }
    }
}

/// The view after the updates; `None` if they change nothing.
fn apply(base: &ViewMetadata, updates: &[ViewUpdate]) -> Answer<Option<ViewMetadata>> {
    let mut builder = base.clone().into_builder();
    for update in updates.iter().cloned() {
        let applied = match update {
            ViewUpdate::AssignUuid { uuid } => Ok(builder.assign_uuid(uuid)),
            ViewUpdate::UpgradeFormatVersion { format_version } => {
                builder.upgrade_format_version(format_version)
            }
            ViewUpdate::AddSchema { schema, .. } => Ok(builder.add_schema(schema)),
            ViewUpdate::SetLocation { location } => Ok(builder.set_location(location)),
            ViewUpdate::SetProperties { updates } => builder.set_properties(updates),
            ViewUpdate::RemoveProperties { removals } => Ok(builder.remove_properties(&removals)),
            ViewUpdate::AddViewVersion { view_version } => {
                check_dialects(&view_version)?;
                builder.add_version(view_version)
            }
            ViewUpdate::SetCurrentViewVersion { view_version_id } => {
                builder.set_current_version_id(view_version_id)
            }
        };
        builder = applied.map_err(|cause| Refusal::validation(&cause))?;
    }
    let built = builder.build().map_err(|cause| Refusal::validation(&cause))?;
    Ok((!built.changes.is_empty()).then_some(built.metadata))
}

/// One query for each dialect, whose names have no case.
fn check_dialects(version: &ViewVersion) -> Answer<()> {
    let mut seen = HashSet::new();
    for representation in version.representations().iter() {
        let ViewRepresentation::Sql(sql) = representation;
        if !seen.insert(sql.dialect.to_lowercase()) {
            let dialect = &sql.dialect;
            return Err(Refusal::invalid(format!(
                "Invalid view version: Cannot add multiple queries for dialect {dialect}"
            )));
        }
    }
    Ok(())
}

fn check_fence(fence: &Fence, metadata: &ViewMetadata) -> Answer<()> {
    fence.check(metadata.location())?;
    fence.check_properties(metadata.properties())
}
