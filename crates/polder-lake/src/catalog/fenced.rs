//! The fence of an org that leaves: a mark in its namespace, which every way into the org's tables
//! looks for.
//!
//! Every [`Lake`](crate::Lake) works through [`Fenced`], whichever the catalog. That a commit which
//! was under way cannot land behind the fence is the catalog's own work: the embedded one looks for
//! the mark in the statement that moves the pointer; of external ones the tables are dropped.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, OrgId, Result};

use super::names::namespace_text;
use super::{Catalog, CommitFailure, TableState};

/// The namespace property that fences an org; its value is the event that did.
pub(crate) const FENCED: &str = "polder.fenced";
/// How long a namespace that was seen open is taken for open by whoever only reads.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// Namespaces remembered as open.
const OPEN_MAX: usize = 10_000;

/// A catalog that lets nobody past a fence.
#[derive(Debug)]
pub(crate) struct Fenced {
    inner: Arc<dyn Catalog>,
    open: Mutex<HashMap<String, Instant>>,
}

impl Fenced {
    pub(crate) fn new(inner: Arc<dyn Catalog>) -> Self {
        Self { inner, open: Mutex::default() }
    }

    /// The catalog without its fences, for whoever erases.
    pub(crate) fn behind(&self) -> &dyn Catalog {
        &*self.inner
    }

    /// # Errors
    /// `lake.fenced`.
    async fn check(&self, namespace: &str) -> Result<()> {
        let Some((outer, org)) = org_of(namespace) else { return Ok(()) };
        let found = self.inner.namespace(outer).await?.unwrap_or_default();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if found.contains_key(FENCED) {
            open.remove(outer);
            return Err(fenced(&org));
        }
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(outer.to_owned(), Instant::now());
        Ok(())
    }

    /// The same, of what was true a moment ago.
    async fn check_lately(&self, namespace: &str) -> Result<()> {
        let Some((outer, _)) = org_of(namespace) else { return Ok(()) };
        let lately = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get(outer).is_some_and(|at| at.elapsed() < OPEN_FOR)
        };
        if lately { Ok(()) } else { self.check(namespace).await }
    }
}

/// The outermost level of a namespace's text, and the org whose it is.
pub(super) fn org_of(namespace: &str) -> Option<(&str, OrgId)> {
    let outer = namespace.split('.').next()?;
    let org = OrgId::from_namespace(outer)?;
    // Polder's own namespace has no fence.
    (!org.is_management()).then_some((outer, org))
}

/// The refusal of whatever an org behind the fence was to be asked.
pub(crate) fn fenced(org: &OrgId) -> Error {
    let message = format!("org {org} has left or is leaving: nothing of it is read or written");
    Error::new(ErrorCode::LakeFenced, message).hint(format!(
        "take it out of pipelines/*.yaml; `polder churn --org {org} --status` says how far it is"
    ))
}

#[async_trait]
impl Catalog for Fenced {
    async fn namespaces(&self) -> Result<Vec<String>> {
        let (mut names, fenced) = (self.inner.namespaces().await?, self.inner.fenced().await?);
        names.retain(|name| !fenced.contains(name));
        Ok(names)
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.inner.namespace(name).await
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.check(name).await?;
        self.inner.ensure_namespace(name, properties).await
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        self.check_lately(namespace).await?;
        self.inner.tables(namespace).await
    }

    fn lists_all(&self) -> bool {
        self.inner.lists_all()
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        self.check_lately(&namespace_text(&ident.namespace)).await?;
        self.inner.load(ident).await
    }

    async fn announce(&self, ident: &TableIdent, updates: &[TableUpdate]) -> Result<()> {
        self.check(&namespace_text(&ident.namespace)).await?;
        self.inner.announce(ident, updates).await
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let open = self.check(&namespace_text(&ident.namespace)).await;
        open.map_err(CommitFailure::Rejected)?;
        self.inner.commit(ident, requirements, updates).await
    }

    async fn fenced(&self) -> Result<Vec<String>> {
        self.inner.fenced().await
    }

    async fn fence(&self, name: &str, event: &str) -> Result<String> {
        let outer = org_of(name).map_or(name, |(outer, _)| outer);
        let by = self.inner.fence(name, event).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(outer);
        Ok(by)
    }

    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        self.inner.change_namespace(name, set, remove).await
    }

    async fn content(&self, name: &str) -> Result<Vec<String>> {
        self.inner.content(name).await
    }

    async fn forget(&self, ident: &TableIdent) -> Result<()> {
        self.check(&namespace_text(&ident.namespace)).await?;
        self.inner.forget(ident).await
    }

    async fn clear(&self, name: &str) -> Result<()> {
        self.inner.clear(name).await
    }
}
