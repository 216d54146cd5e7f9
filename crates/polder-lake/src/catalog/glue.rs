//! AWS Glue's Data Catalog as the lake's: one database an org, and for each table the parameters by
//! which Athena, Trino and Spark find it.
//!
//! A commit is one `UpdateTable` that names the version it was made for; Glue refuses it once the
//! table has another one. No version is archived: the metadata files are the history.

mod client;
mod documents;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use object_store::client::HttpClient;
use polder_core::{Error, ErrorCode, Result};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use self::client::{Client, Failure, Outcome};
use self::documents::Entry;
use super::metadata_files::{MetadataFiles, Next};
use super::names::namespace_text;
use super::{Catalog, CommitFailure, TableState};
use crate::settings::GlueSettings;
use crate::storage::Store;

/// Updates of a database tried while others change it too.
const UPDATES_MAX: u32 = 8;

/// A lake's catalog in AWS Glue.
#[derive(Debug)]
pub struct GlueCatalog {
    client: Client,
    files: MetadataFiles,
    /// Databases have no versions: within this process one call at a time changes them.
    databases: Mutex<()>,
}

impl GlueCatalog {
    /// Opens the catalog, and asks it something: whether it is there and takes the keys.
    pub async fn open(settings: &GlueSettings, store: Store) -> Result<Self> {
        let catalog = Self::over(settings, store, Client::transport(settings)?)?;
        let asked = catalog.client.read("GetDatabases", json!({ "MaxResults": 1 })).await;
        asked.map_err(|failure| failure.error)?;
        Ok(catalog)
    }

    /// The same through another transport: how tests lose answers on their way. It has to send every
    /// request at most once.
    pub fn over(settings: &GlueSettings, store: Store, http: HttpClient) -> Result<Self> {
        let client = Client::new(settings, http)?;
        Ok(Self { client, files: MetadataFiles::new(store), databases: Mutex::default() })
    }

    /// The table as Glue has it now.
    async fn entry(&self, ident: &TableIdent) -> Result<Option<Entry>> {
        let database = database_of(ident)?;
        let body = json!({ "DatabaseName": database, "Name": ident.name });
        match self.client.read("GetTable", body).await {
            Ok(mut answer) => Entry::new(answer["Table"].take()).map(Some),
            Err(Failure { outcome: Outcome::Missing, .. }) => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }

    async fn database(&self, name: &str) -> Result<Option<Value>> {
        match self.client.read("GetDatabase", json!({ "Name": name })).await {
            Ok(mut answer) => Ok(Some(answer["Database"].take())),
            Err(Failure { outcome: Outcome::Missing, .. }) => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }

    /// All pages of a list.
    async fn list(
        &self,
        action: &str,
        mut body: Value,
        items: &str,
    ) -> Result<Vec<Value>, Failure> {
        let mut found = Vec::new();
        loop {
            let mut page = self.client.read(action, body.clone()).await?;
            match page[items].take() {
                Value::Array(more) => found.extend(more),
                Value::Null => {}
                _ => {
                    let error = documents::not_understood("a list");
                    return Err(Failure { outcome: Outcome::Refused, error });
                }
            }
            match page["NextToken"].take() {
                Value::String(token) if !token.is_empty() => body["NextToken"] = token.into(),
                _ => return Ok(found),
            }
        }
    }

    /// Sends the swap, once.
    async fn swap(
        &self,
        ident: &TableIdent,
        entry: Option<&Entry>,
        next: &TableState,
    ) -> Result<(), Failure> {
        let mut body = json!({
            "DatabaseName": namespace_text(&ident.namespace),
            "TableInput": documents::table_input(&ident.name, entry, next),
        });
        let action = match entry {
            None => "CreateTable",
            Some(entry) => {
                body["VersionId"] = json!(entry.version);
                body["SkipArchive"] = json!(true);
                "UpdateTable"
            }
        };
        self.client.call(action, body).await.map(drop)
    }

    /// What a swap was that Glue did not acknowledge. The new metadata file goes unless it may be the
    /// table's.
    async fn unacknowledged(
        &self,
        is_new: bool,
        next: Next,
        failure: Failure,
    ) -> Result<TableState, CommitFailure> {
        let Failure { outcome, error } = failure;
        if matches!(outcome, Outcome::Exists | Outcome::Changed | Outcome::Unknown) {
            let now = self.entry(&next.state.ident).await;
            match &now {
                // Carried out after all: its answer was lost, or it reached Glue twice.
                Ok(Some(now)) if now.metadata_location == next.state.metadata_location => {
                    return Ok(self.files.keep(next));
                }
                // It may yet be carried out, or was before the change that is there now.
                _ if outcome == Outcome::Unknown => {
                    let message = "AWS Glue's answer to the commit was lost";
                    let unknown = Error::new(ErrorCode::LakeUnknownOutcome, message);
                    return Err(CommitFailure::Unknown(unknown.caused_by(error)));
                }
                Ok(_) => {}
                Err(_) => return Err(CommitFailure::Conflict(super::outrun().caused_by(error))),
            }
        }
        self.files.discard(vec![next.state.metadata_location]).await;
        Err(match outcome {
            Outcome::Exists | Outcome::Changed => {
                CommitFailure::Conflict(super::outrun().caused_by(error))
            }
            // Dropped since it was read.
            Outcome::Missing if !is_new => {
                CommitFailure::Conflict(super::outrun().caused_by(error))
            }
            _ => CommitFailure::Rejected(error),
        })
    }
}

/// The database that holds the table.
///
/// # Errors
/// `spec.invalid` for names that Glue does not have.
fn database_of(ident: &TableIdent) -> Result<String> {
    let database = namespace_text(&ident.namespace);
    documents::check_database_name(&database)?;
    documents::check_table_name(&ident.name)?;
    Ok(database)
}

/// The names of a list that are Glue's own, in order.
fn names(listed: &[Value], is_name: impl Fn(&str) -> bool) -> Vec<String> {
    let names = listed.iter().filter_map(|item| item["Name"].as_str());
    let mut names: Vec<String> = names.filter(|name| is_name(name)).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[async_trait]
impl Catalog for GlueCatalog {
    async fn namespaces(&self) -> Result<Vec<String>> {
        let listed = self.list("GetDatabases", json!({}), "DatabaseList").await;
        let listed = listed.map_err(|failure| failure.error)?;
        Ok(names(&listed, documents::is_database_name))
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        documents::check_database_name(name)?;
        Ok(self.database(name).await?.map(|database| documents::properties(&database)))
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        documents::check_database_name(name)?;
        let _alone = self.databases.lock().await;
        let mut last = None;
        for _ in 0..UPDATES_MAX {
            let database = self.database(name).await?;
            let mut wanted = properties.clone();
            let action = match &database {
                None => "CreateDatabase",
                Some(database) => {
                    let present = documents::properties(database);
                    if wanted.keys().all(|key| present.contains_key(key)) {
                        return Ok(());
                    }
                    wanted.extend(present);
                    "UpdateDatabase"
                }
            };
            let input = documents::database_input(name, database.as_ref(), &wanted);
            let mut body = json!({ "DatabaseInput": input });
            if database.is_some() {
                body["Name"] = json!(name);
            }
            // Whatever comes of it, the database is looked at again: it may be another's.
            match self.client.call(action, body).await {
                Err(Failure { outcome: Outcome::Refused, error }) => return Err(error),
                Err(failure) => {
                    last = Some(failure.error);
                    client::wait(client::PAUSE).await;
                }
                Ok(_) => last = None,
            }
        }
        let busy = || Error::new(ErrorCode::LakeUnavailable, "others keep changing the database");
        Err(last.unwrap_or_else(busy).detail(name))
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        documents::check_database_name(namespace)?;
        let body = json!({ "DatabaseName": namespace });
        let mut listed = match self.list("GetTables", body, "TableList").await {
            Ok(listed) => listed,
            Err(Failure { outcome: Outcome::Missing, .. }) => return Ok(Vec::new()),
            Err(failure) => return Err(failure.error),
        };
        listed.retain(documents::is_iceberg);
        Ok(names(&listed, documents::is_table_name))
    }

    fn lists_all(&self) -> bool {
        false
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        match self.entry(ident).await? {
            Some(entry) => self.files.state_at(ident, entry.metadata_location).await.map(Some),
            None => Ok(None),
        }
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let entry = self.entry(ident).await.map_err(CommitFailure::Rejected)?;
        let base = match &entry {
            Some(entry) => {
                let base = self.files.state_at(ident, entry.metadata_location.clone()).await;
                Some(base.map_err(CommitFailure::Rejected)?)
            }
            None => None,
        };
        let next = self.files.write_next(ident, base.as_ref(), requirements, updates).await?;
        match self.swap(ident, entry.as_ref(), &next.state).await {
            Ok(()) => Ok(self.files.keep(next)),
            Err(failure) => self.unacknowledged(entry.is_none(), next, failure).await,
        }
    }

    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        documents::check_database_name(name)?;
        let _alone = self.databases.lock().await;
        let missing =
            || Error::new(ErrorCode::LakeNotFound, "the database is not in AWS Glue").detail(name);
        let mut last = None;
        for _ in 0..UPDATES_MAX {
            let database = self.database(name).await?.ok_or_else(missing)?;
            let mut wanted = documents::properties(&database);
            let before = wanted.clone();
            wanted.retain(|key, _| !remove.contains(key));
            wanted.extend(set.clone());
            if wanted == before {
                return Ok(());
            }
            let input = documents::database_input(name, Some(&database), &wanted);
            let body = json!({ "Name": name, "DatabaseInput": input });
            // Whatever comes of it, the database is looked at again: it may be another's.
            match self.client.call("UpdateDatabase", body).await {
                Err(Failure { outcome: Outcome::Refused, error }) => return Err(error),
                Err(failure) => {
                    last = Some(failure.error);
                    client::wait(client::PAUSE).await;
                }
                Ok(_) => last = None,
            }
        }
        let busy = || Error::new(ErrorCode::LakeUnavailable, "others keep changing the database");
        Err(last.unwrap_or_else(busy).detail(name))
    }

    async fn content(&self, name: &str) -> Result<Vec<String>> {
        documents::check_database_name(name)?;
        // Whatever it is: tables of other kinds and views, too.
        match self.list("GetTables", json!({ "DatabaseName": name }), "TableList").await {
            Ok(listed) => Ok(names(&listed, |_| true)),
            Err(Failure { outcome: Outcome::Missing, .. }) => Ok(Vec::new()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn forget(&self, ident: &TableIdent) -> Result<()> {
        let body = json!({ "DatabaseName": database_of(ident)?, "Name": ident.name });
        match self.client.read("DeleteTable", body).await {
            Ok(_) | Err(Failure { outcome: Outcome::Missing, .. }) => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn clear(&self, name: &str) -> Result<()> {
        for table in self.content(name).await? {
            let body = json!({ "DatabaseName": name, "Name": table });
            // Doing it again does no harm. Glue removes the table's versions with it.
            match self.client.read("DeleteTable", body).await {
                Ok(_) | Err(Failure { outcome: Outcome::Missing, .. }) => {}
                Err(failure) => return Err(failure.error),
            }
        }
        Ok(())
    }
}
