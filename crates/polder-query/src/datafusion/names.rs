//! Names → tables: what of the lake exists for one query.
//!
//! The statement's references are looked up first, then an in-memory catalog of exactly these is
//! built: nothing lists ten thousand orgs unless the query asks for `information_schema`. What the
//! principal may not see does not exist: the error is the same.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::TableType;
use datafusion::error::DataFusionError;
use futures::{StreamExt, TryStreamExt};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};

use super::error::{list, near, quoted};
use super::learnt::{Kept, Known};
use super::metadata;
use super::source::{Found, OpenSource, SourceTable};
use super::table::{Files, LakeTableProvider};
use super::version::{self, Clause, Version};
use polder_lake::LakeTable;

/// The catalog of the lake.
pub(super) const CATALOG: &str = "lake";
pub(super) const INFORMATION_SCHEMA: &str = "information_schema";

/// Tables that `information_schema` lists at most.
const LISTED_MAX: usize = 20_000;
/// Tables loaded at the same time.
const LOADS_MAX: usize = 16;

/// How much of `information_schema` a statement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Listing {
    Nothing,
    Names,
    Columns,
}

/// The sources that queries may name.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) open: OpenSource,
    /// Splits that a table is read by at most.
    pub(super) partitions: usize,
    pub(super) kept: Arc<Kept>,
}

/// Looks names up for one principal.
pub(super) struct Names<'a> {
    pub(super) principal: &'a Principal,
    pub(super) versions: &'a HashMap<String, Clause>,
    /// Of tables whose reference has no version, where the principal is one org.
    pub(super) snapshots: &'a BTreeMap<String, i64>,
    pub(super) files: Files,
    pub(super) sources: &'a Sources,
    /// Of the sources' tables.
    pub(super) known: &'a Arc<Known>,
}

/// The namespace in which bare table names are looked up, if the principal has one.
pub(super) fn default_schema(principal: &Principal) -> Option<String> {
    match principal {
        Principal::Org(org) => Some(org.namespace()),
        Principal::Member { orgs, .. } => match orgs.as_slice() {
            [org] => Some(org.namespace()),
            _ => None,
        },
        _ => None,
    }
}

impl Names<'_> {
    /// The catalogs of a statement with these references, by name.
    ///
    /// # Errors
    /// `source.*` for a source's table that cannot be read, `query.invalid` for a name that is not
    /// there, `lake.not_found` for a version that is not, `query.limit` when `information_schema` would
    /// have to list too much.
    pub(super) async fn resolve(
        &self,
        references: &[TableReference],
        listing: Listing,
    ) -> Result<BTreeMap<String, QueryCatalog>> {
        let mut catalogs: BTreeMap<String, Schemas> = BTreeMap::new();
        let mut schemas = Schemas::new();
        let mut loaded: HashMap<(OrgId, String), LakeTable> = HashMap::new();
        for reference in references {
            if reference.schema() == Some(INFORMATION_SCHEMA) {
                continue;
            }
            if let Some(found) = self.source_table(reference).await? {
                let catalog = reference.catalog().unwrap_or(CATALOG);
                let of_source = catalogs.entry(catalog.to_owned()).or_default();
                let schema = of_source.entry(reference.schema().unwrap_or_default().to_owned());
                let tables = &mut schema.or_default().tables;
                tables.insert(reference.table().to_owned(), Some(Arc::new(found)));
                continue;
            }
            let org = self.org(reference)?;
            let (name, version) = match self.versions.get(reference.table()) {
                Some(clause) => (clause.table.as_str(), Some(&clause.version)),
                None => (reference.table(), None),
            };
            let table = self.table(&org, name, version, &mut loaded).await?;
            let schema = schemas.entry(org.get().namespace()).or_default();
            schema.tables.insert(reference.table().to_owned(), Some(table));
        }
        if listing > Listing::Nothing {
            self.list(&mut schemas, listing).await?;
        }
        catalogs.entry(CATALOG.to_owned()).or_default().extend(schemas);
        let catalog = |schemas: Schemas| QueryCatalog {
            schemas: schemas.into_iter().map(|(name, schema)| (name, Arc::new(schema))).collect(),
        };
        Ok(catalogs.into_iter().map(|(name, schemas)| (name, catalog(schemas))).collect())
    }

    /// The source's table that a reference means; `None` if it means no source. Only the operator has
    /// sources: their tables hold the rows of many orgs.
    async fn source_table(&self, reference: &TableReference) -> Result<Option<SourceTable>> {
        if *self.principal != Principal::Operator {
            return Ok(None);
        }
        let table = reference.table();
        let (name, schema) = match (reference.catalog(), reference.schema()) {
            (Some(catalog), Some(schema)) if catalog != CATALOG => (catalog, Some(schema)),
            (None, Some(schema)) if OrgId::from_namespace(schema).is_none() => (schema, None),
            _ => return Ok(None),
        };
        let Some(source) = (self.sources.open)(name)? else { return Ok(None) };
        if self.versions.contains_key(table) {
            let message = format!("source {} has no versions", quoted(name));
            return Err(Error::new(ErrorCode::QueryInvalid, message)
                .hint("time travel is the lake's: lake.org_<id>.<table> FOR VERSION AS OF …"));
        }
        let place = schema.map_or_else(
            || format!("{name}.{}", quoted(table)),
            |schema| format!("{name}.{}.{}", quoted(schema), quoted(table)),
        );
        let from = source.named_in_sql(schema, table).ok_or_else(|| {
            Error::new(ErrorCode::QueryInvalid, format!("{place} is no table of the source")).hint(
                "a table of PostgreSQL is <source>.<schema>.<table>, a collection of MongoDB \
                     <source>.<database>.<collection>, files are <source>.\"<glob>\"",
            )
        })?;
        let found = Found { source, name: name.to_owned(), place, from };
        SourceTable::open(found, self.sources.partitions, self.known).await.map(Some)
    }

    fn org(&self, reference: &TableReference) -> Result<Authorized<OrgId>> {
        if let Some(catalog) = reference.catalog().filter(|catalog| *catalog != CATALOG) {
            let message = format!("there is no catalog {}", quoted(catalog));
            return Err(Error::new(ErrorCode::QueryInvalid, message)
                .hint("the lake's tables are named lake.org_<id>.<table>"));
        }
        let default = default_schema(self.principal);
        let Some(schema) = reference.schema().or(default.as_deref()) else {
            let message = format!("table {} does not exist", quoted(reference.table()));
            return Err(Error::new(ErrorCode::QueryInvalid, message)
                .hint("say whose: lake.org_<id>.<table>"));
        };
        OrgId::from_namespace(schema)
            .and_then(|org| self.principal.authorize(&org).ok())
            .ok_or_else(|| unknown_schema(schema))
    }

    async fn table(
        &self,
        org: &Authorized<OrgId>,
        name: &str,
        version: Option<&Version>,
        loaded: &mut HashMap<(OrgId, String), LakeTable>,
    ) -> Result<Arc<dyn TableProvider>> {
        if let Some(table) = self.load(org, name, loaded).await? {
            let snapshot = snapshot(&table, version)?.or_else(|| self.fixed(name));
            return Ok(Arc::new(LakeTableProvider::new(table, snapshot, self.files.clone())?));
        }
        if let Some((base, kind)) = metadata::split(name)
            && let Some(table) = self.load(org, base, loaded).await?
        {
            if version.is_some() && !kind.is_of_state() {
                return Err(version::misplaced());
            }
            let snapshot = snapshot(&table, version)?.or_else(|| self.fixed(base));
            return metadata::table(&table, kind, snapshot).await;
        }
        Err(self.unknown_table(org, name).await?)
    }

    /// The snapshot at which the session reads a table.
    fn fixed(&self, table: &str) -> Option<i64> {
        let one_org = matches!(self.principal, Principal::Org(_));
        self.snapshots.get(table).copied().filter(|_| one_org)
    }

    async fn load(
        &self,
        org: &Authorized<OrgId>,
        name: &str,
        loaded: &mut HashMap<(OrgId, String), LakeTable>,
    ) -> Result<Option<LakeTable>> {
        let key = (org.get().clone(), name.to_owned());
        if let Some(table) = loaded.get(&key) {
            return Ok(Some(table.clone()));
        }
        let table = self.files.lake.table(org, name).await?;
        if let Some(table) = &table {
            loaded.insert(key, table.clone());
        }
        Ok(table)
    }

    async fn unknown_table(&self, org: &Authorized<OrgId>, name: &str) -> Result<Error> {
        let names = self.files.lake.tables(org).await?;
        if names.is_empty() {
            return Ok(unknown_schema(&org.get().namespace()));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let place = org.get().namespace();
        let message = format!("table {} does not exist in {place}", quoted(name));
        let hint = match near(name, &names) {
            Some(name) => format!("did you mean {}?", quoted(name)),
            None => format!("its tables are {}", list(&names)),
        };
        Ok(Error::new(ErrorCode::QueryInvalid, message).hint(hint))
    }

    async fn list(&self, schemas: &mut Schemas, listing: Listing) -> Result<()> {
        let mut listed = 0;
        let orgs = self.files.lake.orgs(self.principal).await?;
        for org in orgs.iter().chain([&OrgId::management()]) {
            let Ok(org) = self.principal.authorize(org) else { continue };
            let names = match self.files.lake.tables(&org).await {
                // Not every catalog can leave an org that is leaving out of its list.
                Err(error) if error.code() == ErrorCode::LakeFenced => continue,
                names => names?,
            };
            if names.is_empty() && org.get().is_management() {
                continue;
            }
            listed += names.len();
            if listed > LISTED_MAX {
                let message = format!("information_schema has more than {LISTED_MAX} tables");
                return Err(Error::new(ErrorCode::QueryLimit, message)
                    .hint("ask for one org's tables: polder tables --org ID"));
            }
            let loads = futures::stream::iter(names).map(|name| self.listed(&org, name, listing));
            let found: Vec<_> = loads.buffer_unordered(LOADS_MAX).try_collect().await?;
            let schema = schemas.entry(org.get().namespace()).or_default();
            for (name, table) in found {
                schema.names.push(name.clone());
                schema.tables.entry(name).or_insert(table);
            }
            schema.names.sort();
        }
        Ok(())
    }

    async fn listed(
        &self,
        org: &Authorized<OrgId>,
        name: String,
        listing: Listing,
    ) -> Result<(String, Option<Arc<dyn TableProvider>>)> {
        if listing == Listing::Names {
            return Ok((name, None));
        }
        // A table dropped since it was listed is left out of the columns.
        let Some(table) = self.files.lake.table(org, &name).await? else { return Ok((name, None)) };
        let provider = LakeTableProvider::listed(table, self.files.clone())?;
        Ok((name, Some(Arc::new(provider))))
    }
}

fn unknown_schema(name: &str) -> Error {
    let message = format!("there is no schema {} in the lake", quoted(name));
    Error::new(ErrorCode::QueryInvalid, message)
        .hint("SHOW TABLES lists what there is; an org's tables are in lake.org_<id>")
}

/// The snapshot a reference means; `None` for the table as it is now.
fn snapshot(table: &LakeTable, version: Option<&Version>) -> Result<Option<i64>> {
    match version {
        None => Ok(None),
        Some(Version::Named(name)) => table.resolve(name).map(Some),
        Some(Version::At(ms)) => metadata::at(table, *ms).map(Some),
    }
}

type Schemas = BTreeMap<String, QuerySchema>;

/// The lake, or a source, as one query sees it.
#[derive(Debug)]
pub(super) struct QueryCatalog {
    schemas: BTreeMap<String, Arc<QuerySchema>>,
}

impl CatalogProvider for QueryCatalog {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema_names(&self) -> Vec<String> {
        self.schemas.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let schema = self.schemas.get(name)?;
        Some(Arc::clone(schema) as Arc<dyn SchemaProvider>)
    }
}

/// One org's namespace, or a source's, as one query sees it.
#[derive(Debug, Default)]
struct QuerySchema {
    /// What `information_schema` shows; empty when the query does not ask.
    names: Vec<String>,
    /// The tables the query names, versions included; `None` for those only listed.
    tables: HashMap<String, Option<Arc<dyn TableProvider>>>,
}

#[async_trait]
impl SchemaProvider for QuerySchema {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_names(&self) -> Vec<String> {
        self.names.clone()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.tables.get(name).cloned().flatten())
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}
