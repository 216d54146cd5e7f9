//! Namespaces: nested, with properties.

use std::collections::BTreeMap;

use iceberg::NamespaceIdent;
use polder_core::Principal;

use super::documents::{
    CreateNamespaceRequest, NamespaceDocument, UpdatePropertiesRequest, UpdatePropertiesResponse,
};
use super::refusal::{Answer, Refusal, RefusalKind, show_namespace};
use super::{IcebergCatalog, may_see, org_at};
use crate::catalog::Catalog;
use crate::catalog::names::{namespace_levels, namespace_text};
use crate::catalog::sql::EntryKind;
use crate::hold;
use crate::lake::org_properties;

/// Iceberg's property for where a namespace's tables go. Every namespace has one, as Trino places a
/// table itself if it knows where, and else takes the table's own new metadata for somebody else's
/// files. Here it decides nothing.
const LOCATION: &str = "location";
/// What properties of ours begin with; nobody changes them from outside.
pub(super) const OWN_PREFIX: &str = "polder.";
/// The row that keeps a namespace without properties.
const MARKER: &str = "exists";

impl IcebergCatalog {
    /// The namespaces directly below `parent` (none: the outermost ones) that the principal may see,
    /// in order.
    pub async fn list_namespaces(
        &self,
        principal: &Principal,
        parent: Option<&[String]>,
    ) -> Answer<Vec<Vec<String>>> {
        let parent = match parent {
            Some(levels) => {
                let parent = Self::namespace(principal, levels)?;
                self.require_namespace(&parent).await?;
                levels
            }
            None => &[],
        };
        let mut found: Vec<Vec<String>> = Vec::new();
        let fenced = self.catalog.fenced().await?;
        for name in self.catalog.namespaces().await? {
            let levels = namespace_levels(&name);
            if levels.first().is_some_and(|outer| fenced.contains(outer)) {
                continue;
            }
            let child = levels.starts_with(parent) && levels.len() > parent.len();
            let seen = NamespaceIdent::from_vec(levels.clone())
                .is_ok_and(|namespace| may_see(principal, &namespace));
            if child && seen {
                // A namespace whose parent another catalog never wrote down still has it.
                found.push(levels[..=parent.len()].to_vec());
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// # Errors
    /// `AlreadyExists`; `Forbidden` for a principal that may not have it; `NoSuchNamespace` when the
    /// parent is missing.
    pub async fn create_namespace(
        &self,
        principal: &Principal,
        request: CreateNamespaceRequest,
    ) -> Answer<NamespaceDocument> {
        let namespace = match Self::namespace(principal, &request.namespace) {
            Err(refusal) if refusal.kind == RefusalKind::NoSuchNamespace => {
                let message = "This principal may not create namespaces outside its own";
                return Err(Refusal::new(RefusalKind::Forbidden, message));
            }
            other => other?,
        };
        let levels: &[String] = &namespace;
        let above = match levels {
            [above @ .., _] if !above.is_empty() => Some(Self::namespace(principal, above)?),
            _ => None,
        };
        if let Some(above) = &above {
            self.require_namespace(above).await?;
        }
        self.check_settable(&namespace, request.properties.iter()).await?;
        let (name, above_name) = (namespace_text(&namespace), above.as_ref().map(namespace_text));
        let mut properties = request.properties;
        if levels.len() == 1 && org_at(&namespace).is_some() {
            // From the beginning: whoever sees the namespace has to find them.
            properties.extend(org_properties(self.store.root()));
        }
        if !self.catalog.create_namespace(&name, above_name.as_deref(), &properties).await? {
            if let Some(above) = &above {
                self.require_namespace(above).await?;
            }
            let shown = show_namespace(&namespace);
            return Err(Refusal::exists(format!("Namespace already exists: {shown}")));
        }
        self.load_namespace(principal, levels).await
    }

    /// # Errors
    /// `NoSuchNamespace`.
    pub async fn load_namespace(
        &self,
        principal: &Principal,
        levels: &[String],
    ) -> Answer<NamespaceDocument> {
        let namespace = Self::namespace(principal, levels)?;
        let mut properties = self.stored_properties(&namespace).await?;
        if !properties.contains_key(LOCATION) {
            properties.insert(LOCATION.to_owned(), self.folder(&namespace).await?);
        }
        Ok(NamespaceDocument { namespace: levels.to_vec(), properties })
    }

    async fn stored_properties(
        &self,
        namespace: &NamespaceIdent,
    ) -> Answer<BTreeMap<String, String>> {
        let found = self.catalog.namespace_properties(&namespace_text(namespace)).await?;
        let mut properties = found.ok_or_else(|| Refusal::no_namespace(namespace))?;
        properties.remove(MARKER);
        Ok(properties)
    }

    /// # Errors
    /// `NoSuchNamespace`; `NamespaceNotEmpty`; `Forbidden` for an org's own namespace, which goes
    /// with the org.
    pub async fn drop_namespace(&self, principal: &Principal, levels: &[String]) -> Answer<()> {
        let namespace = Self::namespace(principal, levels)?;
        self.require_namespace(&namespace).await?;
        if levels.len() == 1 && !matches!(principal, Principal::Operator) {
            let message = "This principal may not drop its org's namespace";
            return Err(Refusal::new(RefusalKind::Forbidden, message));
        }
        if let Some(org) = org_at(&namespace) {
            hold::check(&self.catalog, &org, None, "dropping its namespace").await?;
        }
        if self.catalog.drop_namespace(&namespace_text(&namespace)).await? {
            return Ok(());
        }
        self.require_namespace(&namespace).await?;
        Err(self.not_empty(principal, &namespace).await?)
    }

    /// What is in the way of dropping.
    async fn not_empty(
        &self,
        principal: &Principal,
        namespace: &NamespaceIdent,
    ) -> Answer<Refusal> {
        let (shown, name) = (show_namespace(namespace), namespace_text(namespace));
        let below = self.list_namespaces(principal, Some(namespace)).await?.len();
        let tables = self.catalog.entries(&name, EntryKind::Table).await?.len();
        let views = self.catalog.entries(&name, EntryKind::View).await?.len();
        let content = match (below, tables) {
            (1.., _) => format!("{below} child namespace(s)"),
            (0, 1..) => format!("{tables} table(s)"),
            (0, 0) => format!("{views} view(s)"),
        };
        let message = format!("Namespace {shown} is not empty. Contains {content}.");
        Ok(Refusal::new(RefusalKind::NamespaceNotEmpty, message))
    }

    /// # Errors
    /// `NoSuchNamespace`; `Unprocessable` when a key is both set and removed.
    pub async fn update_namespace_properties(
        &self,
        principal: &Principal,
        levels: &[String],
        request: UpdatePropertiesRequest,
    ) -> Answer<UpdatePropertiesResponse> {
        let namespace = Self::namespace(principal, levels)?;
        let UpdatePropertiesRequest { removals, updates } = request;
        if let Some(both) = removals.iter().find(|key| updates.contains_key(*key)) {
            let message = format!("Invalid namespace update: cannot set and remove key '{both}'");
            return Err(Refusal::new(RefusalKind::Unprocessable, message));
        }
        let before = self.stored_properties(&namespace).await?;
        let nothing = String::new();
        let removed_pairs = removals.iter().map(|key| (key, &nothing));
        self.check_settable(&namespace, updates.iter().chain(removed_pairs)).await?;
        if !self.catalog.alter_namespace(&namespace_text(&namespace), &updates, &removals).await? {
            return Err(Refusal::no_namespace(&namespace));
        }
        let (removed, missing) = removals.into_iter().partition(|key| before.contains_key(key));
        Ok(UpdatePropertiesResponse { updated: updates.into_keys().collect(), removed, missing })
    }

    /// Whether these properties are the client's to change. An empty value stands for removal.
    async fn check_settable<'a>(
        &self,
        namespace: &NamespaceIdent,
        properties: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Answer<()> {
        for (key, value) in properties {
            let reserved = key == MARKER
                || key.starts_with(OWN_PREFIX)
                || (key == LOCATION && org_at(namespace).is_some());
            if reserved {
                return Err(Refusal::invalid(format!("Cannot set reserved property: {key}")));
            }
            if key == LOCATION && !value.is_empty() {
                self.fence(namespace).await?.check(value)?;
            }
        }
        Ok(())
    }
}

impl crate::catalog::SqlCatalog {
    /// The properties of a namespace; `None` if there is no such namespace.
    ///
    /// # Errors
    /// `lake.fenced` for one of an org behind its fence.
    pub(super) async fn namespace_properties(
        &self,
        name: &str,
    ) -> polder_core::Result<Option<BTreeMap<String, String>>> {
        self.check_open(name).await?;
        Catalog::namespace(self, name).await
    }
}
