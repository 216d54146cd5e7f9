//! What an org that leaves has in an external REST catalog: listed, and dropped without its files.

use iceberg::{NamespaceIdent, TableIdent};
use polder_core::{Error, ErrorCode, Result};
use reqwest::StatusCode;

use super::client::Request;
use super::documents::{Namespaces, Tables};
use super::{RestCatalog, failure};

const VIEWS: &str = "GET /v1/{prefix}/namespaces/{namespace}/views";
/// Levels of namespaces below an org's.
const DEPTH_MAX: usize = 16;

/// What is below a namespace; namespaces before those within them.
#[derive(Debug, Default)]
pub(super) struct Below {
    pub(super) tables: Vec<TableIdent>,
    pub(super) views: Vec<TableIdent>,
    pub(super) namespaces: Vec<NamespaceIdent>,
}

impl RestCatalog {
    /// Lists a namespace and those below it.
    pub(super) async fn listed_below(&self, namespace: &NamespaceIdent) -> Result<Below> {
        let mut below = Below::default();
        let mut level = vec![namespace.clone()];
        for _ in 0..DEPTH_MAX {
            let mut next = Vec::new();
            for namespace in &level {
                self.list_into(namespace, &mut below).await?;
                next.extend(self.children(namespace).await?);
            }
            if next.is_empty() {
                return Ok(below);
            }
            below.namespaces.extend(next.iter().cloned());
            level = next;
        }
        Err(Error::new(ErrorCode::LakeFailed, "an org's namespaces are nested too deeply")
            .detail(namespace.to_string()))
    }

    async fn list_into(&self, namespace: &NamespaceIdent, below: &mut Below) -> Result<()> {
        let paths = &self.server.paths;
        let ident = |name: String| TableIdent::new(namespace.clone(), name);
        self.pages("list the catalog's tables", &paths.tables(namespace)?, |page: Tables| {
            let found = page.identifiers.unwrap_or_default().into_iter();
            below.tables.extend(found.map(|found| ident(found.name)));
            page.next_page_token
        })
        .await?;
        if !self.server.offers(VIEWS, false) {
            return Ok(());
        }
        self.pages("list the catalog's views", &paths.views(namespace)?, |page: Tables| {
            let found = page.identifiers.unwrap_or_default().into_iter();
            below.views.extend(found.map(|found| ident(found.name)));
            page.next_page_token
        })
        .await
    }

    /// The namespaces directly below one. Servers that know no nesting may list all or refuse.
    async fn children(&self, namespace: &NamespaceIdent) -> Result<Vec<NamespaceIdent>> {
        let levels: &[String] = namespace;
        let url = self.server.paths.children(namespace)?;
        let answer = self.server.client.read(&Request::get(url.clone())).await?;
        if matches!(
            answer.status,
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::NOT_ACCEPTABLE
        ) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        self.pages("list the catalog's namespaces", &url, |page: Namespaces| {
            let listed = page.namespaces.unwrap_or_default().into_iter();
            let child =
                |child: &Vec<String>| child.starts_with(levels) && child.len() == levels.len() + 1;
            found.extend(listed.filter(child).filter_map(|c| NamespaceIdent::from_vec(c).ok()));
            page.next_page_token
        })
        .await?;
        Ok(found)
    }

    /// Drops everything below a namespace, and leaves every file.
    pub(super) async fn drop_below(&self, namespace: &NamespaceIdent) -> Result<()> {
        let below = self.listed_below(namespace).await?;
        for table in &below.tables {
            self.drop_table(table).await?;
        }
        for view in &below.views {
            self.dropped("drop a view", self.server.paths.view(view)?).await?;
        }
        for namespace in below.namespaces.iter().rev() {
            self.dropped("drop a namespace", self.server.paths.namespace(namespace)?).await?;
        }
        Ok(())
    }

    /// Drops a table, if it is there, and leaves every file.
    pub(super) async fn drop_table(&self, table: &TableIdent) -> Result<()> {
        let mut url = self.server.paths.table(table)?;
        url.query_pairs_mut().append_pair("purgeRequested", "false");
        self.dropped("drop a table", url).await
    }

    async fn dropped(&self, what: &str, url: reqwest::Url) -> Result<()> {
        let answer = self.server.client.read(&Request::delete(url)).await?;
        if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(failure::error(what, &answer))
    }
}
