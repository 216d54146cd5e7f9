//! Lakes over catalogs and stores that fail on purpose, and what must be true of their tables.

pub(crate) mod catalog;
pub(crate) mod changes;
pub(crate) mod check;
pub(crate) mod conditions;
pub(crate) mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use polder_core::{Authorized, OrgId, Result};
use polder_lake::{
    Catalog, CatalogSettings, Lake, LakeSettings, LakeTable, S3Settings, SqlCatalog, Store,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::catalog::FaultyCatalog;
use self::check::Checked;
use self::conditions::{Conditions, Unconditional};
use self::objects::FaultyObjects;
use crate::between::Through;
use crate::conformance::new_org;
use crate::support::*;

/// Cases under way at the same time; most of their time goes by in pauses.
const CASES_MAX: usize = 16;
const WAREHOUSE: &str = "s3://memory/lake";

tokio::task_local! {
    /// Which one a case is of those side by side.
    static CASE: usize;
}

/// Opens a client of one catalog, as each process has its own. What a new kind of catalog has to give
/// to be held to all that is in here.
pub(crate) type Connect = Arc<dyn Fn(Store) -> BoxFuture<'static, Arc<dyn Catalog>> + Send + Sync>;

/// Clients opened like this.
pub(crate) fn by<C, F>(open: impl Fn(Store) -> F + Send + Sync + 'static) -> Connect
where
    C: Catalog + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    Arc::new(move |store| {
        let opened = open(store);
        Box::pin(async move { Arc::new(opened.await.expect("catalog")) as Arc<dyn Catalog> })
    })
}

/// The embedded catalog at this address.
pub(crate) fn sql(url: String) -> Connect {
    by(move |store| {
        let url = url.clone();
        async move { SqlCatalog::open(&url.into(), store).await }
    })
}

/// The embedded catalog in a folder. Cases side by side have a file each: SQLite has one writer at a time, and
/// on a busy machine one of many waits until it gives up, which is an attempt more.
pub(crate) fn sqlite(folder: &TempDir) -> Connect {
    let folder = folder.path().to_owned();
    by(move |store| {
        let case = CASE.try_with(|case| format!("-{case}")).unwrap_or_default();
        let url = format!("sqlite://{}/catalog{case}.db", folder.display());
        async move { SqlCatalog::open(&url.into(), store).await }
    })
}

/// An S3 store whose bucket is in memory: what is written there goes through `object_store`.
pub(crate) fn in_memory(objects: Arc<dyn ObjectStore>) -> Store {
    let settings = LakeSettings {
        warehouse: WAREHOUSE.to_owned(),
        catalog: CatalogSettings::Sql(String::new().into()),
        s3: Some(S3Settings { region: "r".to_owned(), ..S3Settings::default() }),
    };
    Store::open(&settings).expect("store").with_objects(objects)
}

/// Where the files of a lake are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On S3, in the memory of this process.
    Memory,
    /// On local disk, where a server that writes the states of tables itself finds them too.
    Disk,
    /// Where a server has its warehouse, and takes tables nowhere else.
    Warehouse(Box<LakeSettings>),
}

impl Place {
    /// A store there, new but for a server's, and its folder.
    pub(crate) fn store(&self) -> (Store, Option<TempDir>) {
        match self {
            Self::Memory => (in_memory(Arc::new(InMemory::new())), None),
            Self::Disk => {
                let (store, _, folder) = on_disk();
                (store, Some(folder))
            }
            Self::Warehouse(settings) => (Store::open(settings).expect("store"), None),
        }
    }
}

/// The folder of an org's files in a warehouse that many share; the org gets its namespace.
async fn folder_of(catalog: &dyn Catalog, warehouse: &str, org: &OrgId) -> String {
    let (namespace, chosen) = (org.namespace(), Uuid::new_v4());
    let wanted = BTreeMap::from([
        ("polder.org-uuid".to_owned(), chosen.to_string()),
        ("location".to_owned(), format!("{warehouse}/{chosen}")),
    ]);
    // A server that chooses them itself takes none of these.
    catalog.ensure_namespace(&namespace, &wanted).await.expect("namespace");
    let found = catalog.namespace(&namespace).await.expect("namespace").expect("there");
    format!("{warehouse}/{}", found["polder.org-uuid"])
}

/// A store on local disk, its root, and its folder.
fn on_disk() -> (Store, String, TempDir) {
    let folder = TempDir::new().expect("folder");
    let settings = Scratch::settings(&folder);
    let store = Store::open(&settings).expect("store");
    (store, format!("file://{}", settings.warehouse), folder)
}

/// A table in a store of its own, seen through faults and without.
pub(crate) struct Ground {
    root: String,
    /// The store's, if it is on local disk; gone with this value.
    _folder: Option<TempDir>,
    /// Through the faults.
    pub(crate) lake: Lake,
    /// As another process has it, and without faults.
    pub(crate) clean: Lake,
    pub(crate) catalog: Arc<FaultyCatalog>,
    pub(crate) objects: Arc<FaultyObjects>,
    pub(crate) org: Authorized<OrgId>,
    pub(crate) table: String,
}

impl Ground {
    pub(crate) async fn on(connect: &Connect, place: &Place) -> Self {
        match place {
            Place::Memory => Self::new(connect).await,
            Place::Disk => Self::local(connect).await,
            Place::Warehouse(settings) => Self::shared(connect, settings).await,
        }
    }

    /// On S3, in memory.
    pub(crate) async fn new(connect: &Connect) -> Self {
        Self::over(connect, Arc::new(InMemory::new())).await
    }

    /// On S3, whatever it is made of.
    pub(crate) async fn over(connect: &Connect, plain: Arc<dyn ObjectStore>) -> Self {
        let objects = Arc::new(FaultyObjects::new(Arc::clone(&plain)));
        let faulty = in_memory(Arc::clone(&objects) as Arc<dyn ObjectStore>);
        Self::with(connect, WAREHOUSE.to_owned(), faulty, in_memory(plain), objects).await
    }

    /// On S3, in memory, of a store that knows no conditional put. Refused ones are no operation of the
    /// store that fails.
    pub(crate) async fn unconditional(connect: &Connect, conditions: Conditions) -> Self {
        let plain: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let objects = Arc::new(FaultyObjects::new(Arc::clone(&plain)));
        let over = |inner| in_memory(Arc::new(Unconditional { inner, conditions }));
        let faulty = over(Arc::clone(&objects) as Arc<dyn ObjectStore>);
        Self::with(connect, WAREHOUSE.to_owned(), faulty, over(plain), objects).await
    }

    /// On local disk, where writing bypasses the store that fails.
    async fn local(connect: &Connect) -> Self {
        let (store, root, folder) = on_disk();
        let objects = Arc::new(FaultyObjects::new(Arc::new(InMemory::new())));
        let ground = Self::with(connect, root, store.clone(), store, objects).await;
        Self { _folder: Some(folder), ..ground }
    }

    /// Beside the tables of others, in an org of its own.
    async fn shared(connect: &Connect, settings: &LakeSettings) -> Self {
        let store = Store::open(settings).expect("store");
        let org = new_org();
        let catalog = connect(store.clone()).await;
        let root = folder_of(&*catalog, &settings.warehouse, org.get()).await;
        let objects = Arc::new(FaultyObjects::new(Arc::new(InMemory::new())));
        let ground = Self::with(connect, root, store.clone(), store, objects).await;
        Self { org, ..ground }
    }

    async fn with(
        connect: &Connect,
        root: String,
        faulty: Store,
        store: Store,
        objects: Arc<FaultyObjects>,
    ) -> Self {
        let catalog = Arc::new(FaultyCatalog::new(connect(faulty.clone()).await));
        let lake = Lake::new(faulty, Through::catalog(&catalog));
        let clean = Lake::new(store.clone(), connect(store).await);
        let (org, table) = (org("401"), format!("t{}", Uuid::new_v4().simple()));
        Self { root, _folder: None, lake, clean, catalog, objects, org, table }
    }

    /// The table, as another process has it.
    pub(crate) async fn now(&self) -> LakeTable {
        table_of(&self.clean, &self.org, &self.table).await
    }

    /// The table's ids, as another process reads them.
    pub(crate) async fn ids(&self) -> Vec<i64> {
        ids(&self.now().await).await
    }

    pub(crate) async fn check(&self) -> Checked {
        check::check(&self.clean, &self.now().await).await
    }

    /// Every file of the lake.
    pub(crate) async fn files(&self) -> BTreeSet<String> {
        files(&self.clean, &self.root).await
    }

    /// Every file but the states of tables.
    pub(crate) async fn contents(&self) -> BTreeSet<String> {
        let mut files = self.files().await;
        files.retain(|file| !file.ends_with(".metadata.json"));
        files
    }

    /// The files that no state of the table reaches.
    pub(crate) async fn orphans(&self) -> BTreeSet<String> {
        let reached = self.check().await.files;
        self.files().await.difference(&reached).cloned().collect()
    }
}

/// Every file below an address, but for the sums that Hadoop keeps of its own on local disk.
pub(crate) async fn files(lake: &Lake, below: &str) -> BTreeSet<String> {
    let prefix = lake.object_path(below).expect("path");
    let url = lake.store_url();
    let url = url.strip_suffix('/').unwrap_or(url);
    let found: Vec<_> = lake.object_store().list(Some(&prefix)).try_collect().await.expect("list");
    let found = found.into_iter().filter(|file| file.location.extension() != Some("crc"));
    found.map(|file| format!("{url}/{}", file.location)).collect()
}

/// Runs the cases side by side; the first that fails fails all.
pub(crate) async fn side_by_side<F>(cases: impl IntoIterator<Item = F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CASES_MAX));
    let mut tasks = JoinSet::new();
    for (number, case) in cases.into_iter().enumerate() {
        let places = Arc::clone(&places);
        tasks.spawn(async move {
            let _place = places.acquire().await.expect("open");
            CASE.scope(number, case).await;
        });
    }
    tasks.join_all().await;
}
