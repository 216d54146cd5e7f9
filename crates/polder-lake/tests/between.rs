//! A catalog in front of another one, which does something of its own to commits on their way.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::Result;
use polder_lake::{Catalog, CommitFailure, TableState};

/// What it does of its own; all else it passes on.
#[async_trait]
pub(crate) trait Between: Debug + Send + Sync {
    fn inner(&self) -> &dyn Catalog;

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        self.inner().load(ident).await
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure>;
}

/// It as a catalog.
#[derive(Debug)]
pub(crate) struct Through<B>(pub(crate) Arc<B>);

impl<B: Between + 'static> Through<B> {
    pub(crate) fn catalog(between: &Arc<B>) -> Arc<dyn Catalog> {
        Arc::new(Self(Arc::clone(between)))
    }
}

#[async_trait]
impl<B: Between> Catalog for Through<B> {
    async fn namespaces(&self) -> Result<Vec<String>> {
        self.0.inner().namespaces().await
    }

    async fn namespace(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.0.inner().namespace(name).await
    }

    async fn ensure_namespace(
        &self,
        name: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.0.inner().ensure_namespace(name, properties).await
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<String>> {
        self.0.inner().tables(namespace).await
    }

    fn lists_all(&self) -> bool {
        self.0.inner().lists_all()
    }

    async fn announce(&self, ident: &TableIdent, updates: &[TableUpdate]) -> Result<()> {
        self.0.inner().announce(ident, updates).await
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        self.0.load(ident).await
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        self.0.commit(ident, requirements, updates).await
    }

    async fn fenced(&self) -> Result<Vec<String>> {
        self.0.inner().fenced().await
    }

    async fn fence(&self, name: &str, event: &str) -> Result<String> {
        self.0.inner().fence(name, event).await
    }

    async fn change_namespace(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<()> {
        self.0.inner().change_namespace(name, set, remove).await
    }

    async fn content(&self, name: &str) -> Result<Vec<String>> {
        self.0.inner().content(name).await
    }

    async fn forget(&self, ident: &TableIdent) -> Result<()> {
        self.0.inner().forget(ident).await
    }

    async fn clear(&self, name: &str) -> Result<()> {
        self.0.inner().clear(name).await
    }
}
