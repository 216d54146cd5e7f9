//! Metadata of earlier states goes, and manifests that have become many are made few.

use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use iceberg::TableUpdate;
use polder_core::{Authorized, OrgId, Result};
use serde::Serialize;
use uuid::Uuid;

use super::orphans::is_metadata;
use crate::catalog::{TableState, keeps_files};
use crate::commit::{
    Action, Failure, Fragmented, Prepared, commit, expired_from, fragmented, no_table,
};
use crate::lake::{Lake, ident};
use crate::table::Properties;

/// Iceberg's own name for how many metadata files a table's log holds.
const PREVIOUS_MAX: &str = "write.metadata.previous-versions-max";
const REMOVALS_MAX: usize = 16;

/// What is kept of a table's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// Metadata files of earlier states.
    pub files: usize,
    /// Others stay as long as they are younger than this: a commit may be under way. In milliseconds.
    pub older_than_ms: i64,
    /// Only count.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MetadataTidied {
    /// Metadata files that went.
    pub files: usize,
    /// Manifests of the present state, before and after.
    pub manifests_before: usize,
    pub manifests_after: usize,
}

impl Lake {
    /// Merges manifests where many are small, lets the table remember as many metadata files as asked,
    /// and removes those that it does not remember.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown table; `lake.conflict`, `lake.unknown_outcome` as for
    /// [`crate::Stage::commit`]; `lake.held` for a table under legal hold. Run again, it goes on.
    pub async fn tidy_metadata(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        request: &MetadataRequest,
    ) -> Result<MetadataTidied> {
        if !request.dry_run {
            self.check_hold(org, Some(table), "removing old metadata").await?;
        }
        let ident = ident(org.get(), table);
        let mut state = self.state(&ident).await?.ok_or_else(|| no_table(table))?;
        let Fragmented { manifests, merged } = fragmented(self.store(), &state).await?;
        let mut tidied =
            MetadataTidied { files: 0, manifests_before: manifests, manifests_after: merged };
        if merged < manifests && !request.dry_run {
            self.rewrite_manifests(&ident).await?;
        }
        let wanted = request.files.to_string();
        if state.metadata.properties().get(PREVIOUS_MAX) != Some(&wanted) && !request.dry_run {
            let mut action = Remember { table, wanted, id: Uuid::new_v4() };
            let done = commit(self, &ident, &mut action).await;
            done.map_err(|Failure { error, .. }| error)?;
        }
        if !request.dry_run {
            state = self.state(&ident).await?.ok_or_else(|| no_table(table))?;
        }
        tidied.files = self.remove_metadata(&state, request).await?;
        Ok(tidied)
    }

    async fn remove_metadata(
        &self,
        state: &TableState,
        request: &MetadataRequest,
    ) -> Result<usize> {
        if keeps_files(&state.metadata) {
            return Ok(0);
        }
        // What the log names stays, also where a catalog keeps more than it was asked to.
        let most = if request.dry_run { request.files } else { usize::MAX };
        let log = state.metadata.metadata_log().iter().rev().take(most);
        let kept = log.map(|entry| entry.metadata_file.clone());
        let kept = kept.chain(expired_from(&state.metadata));
        let kept = kept.chain([state.metadata_location.clone()]);
        let kept = kept.map(|location| self.store().path(&location));
        let kept = kept.collect::<Result<std::collections::HashSet<_>>>()?;
        let folder = format!("{}/metadata", state.metadata.location());
        let mut found = self.store().list(&folder).await?;
        let since_ms = Utc::now().timestamp_millis() - request.older_than_ms;
        found.retain(|file| {
            is_metadata(&file.path) && file.modified_ms < since_ms && !kept.contains(&file.path)
        });
        let files = found.len();
        if !request.dry_run {
            let removed = futures::stream::iter(found)
                .map(|file| async move { self.store().delete_path(&file.path).await });
            removed.buffer_unordered(REMOVALS_MAX).try_collect::<()>().await?;
        }
        Ok(files)
    }
}

/// Lets the table remember so many metadata files.
struct Remember<'a> {
    table: &'a str,
    wanted: String,
    id: Uuid,
}

impl Action for Remember<'_> {
    type Done = ();

    fn find(&self, present: &TableState, _sent: bool) -> Option<()> {
        Properties(present.metadata.properties()).commit_ids().contains(&self.id).then_some(())
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        present.map(drop).ok_or_else(|| no_table(self.table))
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<()>> {
        let present = present.ok_or_else(|| no_table(self.table))?;
        let id = Properties(present.metadata.properties()).with_commit(self.id);
        let set = [id, (PREVIOUS_MAX.to_owned(), self.wanted.clone())];
        let updates = vec![TableUpdate::SetProperties { updates: set.into() }];
        Ok(Prepared { updates, done: () })
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
