//! The same on an S3 server, and with the catalog in PostgreSQL or Glue (`cargo xtask services up`).

mod erase;
mod glue;
mod proxy;
mod rest;
mod served;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use polder_core::ErrorCode;
use polder_lake::{
    Catalog, CatalogSettings, Lake, LakeSettings, Predicate, S3Settings, StageKind, Store,
};
use tempfile::TempDir;
use uuid::Uuid;

use self::proxy::{Fate, Proxy};
use crate::conformance;
use crate::faulty::Place;
use crate::support::*;
use crate::{faults, faulty, store_faults, stress};

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo xtask services up` and take over its environment")
    })
}

/// A lake on S3. The bucket is one that the test services always have.
fn s3() -> LakeSettings {
    LakeSettings {
        warehouse: format!("s3://polder-ready/lake-tests/{}", Uuid::new_v4()),
        catalog: CatalogSettings::Sql(String::new().into()),
        s3: Some(S3Settings {
            endpoint: Some(variable("POLDER_TEST_S3_ENDPOINT")),
            region: "us-east-1".to_owned(),
            access_key: Some(variable("S3_ACCESS_KEY").into()),
            secret_key: Some(variable("S3_SECRET_KEY").into()),
            path_style: true,
            ..S3Settings::default()
        }),
    }
}

/// A PostgreSQL database of its own, dropped at the end.
pub(crate) struct Database {
    admin: sqlx::PgPool,
    name: String,
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let address = variable("POLDER_TEST_PG_URL");
        let admin = sqlx::PgPool::connect(&address).await.expect("PostgreSQL");
        let name = format!("lake_{}", Uuid::new_v4().simple());
        sqlx::query(&format!("CREATE DATABASE {name}")).execute(&admin).await.expect("create");
        let (address, query) = match address.split_once('?') {
            Some((address, query)) => (address.to_owned(), format!("?{query}")),
            None => (address, String::new()),
        };
        let (server, _) = address.rsplit_once('/').expect("an address with a database");
        Self { admin, url: format!("{server}/{name}{query}"), name }
    }

    pub(crate) async fn drop(self) {
        let statement = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        sqlx::query(&statement).execute(&self.admin).await.expect("drop");
    }
}

/// Create, append with a new column, replace, read old versions, lose a race, abort.
async fn life_of_a_table(lake: &Lake) {
    let schema = id_and_text();
    let many: Vec<RecordBatch> = (0..4).map(|n| rows(n * 1_000..(n + 1) * 1_000)).collect();
    run(lake, "t", request(StageKind::Replace, &schema), &many).await.expect("create");
    run(lake, "t", request(StageKind::Append, &schema), &[rows(4_000..4_001)])
        .await
        .expect("append");
    assert_eq!(ids(&table(lake, "t").await).await, (0..4_001).collect::<Vec<i64>>());
    let outrun = lake.stage(&org("401"), "t", request(StageKind::Append, &schema)).await;
    let outrun = outrun.expect("stage");
    run(lake, "t", request(StageKind::Replace, &schema), &[rows(7..8)]).await.expect("replace");
    let files = written(&outrun, &[rows(9..10)]).await;
    let summary = summary(&files);
    let error = outrun.commit(files, &checkpoint(0), summary).await.expect_err("too late");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [7]);
    let v1 = now.resolve("v1").expect("v1");
    assert_eq!(read_at(&now, Some(v1), Predicate::True).await.num_rows(), 4_000);
    let stage = lake.stage(&org("401"), "t", request(StageKind::Append, &schema)).await;
    let stage = stage.expect("stage");
    let files = written(&stage, &[rows(0..1)]).await;
    stage.abort(files).await;
    assert_eq!(lake.tables(&org("401")).await.expect("tables"), ["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_live_on_s3() {
    let folder = TempDir::new().expect("folder");
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let lake = Lake::open(LakeSettings { catalog: CatalogSettings::Sql(url.into()), ..s3() })
        .await
        .expect("lake");
    assert_eq!(lake.store_url(), "s3://polder-ready");
    life_of_a_table(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_go_to_s3_in_parts() {
    let folder = TempDir::new().expect("folder");
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let lake = Lake::open(LakeSettings { catalog: CatalogSettings::Sql(url.into()), ..s3() })
        .await
        .expect("lake");
    let schema = id_and_text();
    // Text that does not compress: some 25 MB in one file, over the size of a part.
    let batches: Vec<RecordBatch> = (0..10_i64)
        .map(|part| {
            let ids = part * 20_000..(part + 1) * 20_000;
            let text: Vec<String> = ids
                .clone()
                .map(|_| (0..4).map(|_| Uuid::new_v4().simple().to_string()).collect())
                .collect();
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
            batch(&schema, vec![ids, Arc::new(StringArray::from(text))])
        })
        .collect();
    run(&lake, "t", request(StageKind::Replace, &schema), &batches).await.expect("create");
    let now = table(&lake, "t").await;
    let scan = polder_lake::ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let files = now.plan(scan).await.expect("plan").files;
    assert!(files.len() == 1 && files[0].size_bytes > 10 << 20, "{files:?}");
    assert_eq!(ids(&now).await.len(), 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_may_be_in_postgresql() {
    let database = Database::new().await;
    let folder = TempDir::new().expect("folder");
    let settings = LakeSettings {
        catalog: CatalogSettings::Sql(database.url.clone().into()),
        ..Scratch::settings(&folder)
    };
    // Several processes start at once.
    let opened = futures::future::join_all((0..4).map(|_| Lake::open(settings.clone()))).await;
    let lakes: Vec<Lake> = opened.into_iter().map(|lake| lake.expect("lake")).collect();
    life_of_a_table(&lakes[0]).await;
    let mut runs = tokio::task::JoinSet::new();
    run(&lakes[0], "race", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    for number in 0..8_i64 {
        let lake = lakes[number as usize % lakes.len()].clone();
        runs.spawn(async move {
            let request = request(StageKind::Append, &id_and_text());
            for _ in 0..100 {
                match run(&lake, "race", request.clone(), &[rows(number..number + 1)]).await {
                    Ok(_) => return,
                    Err(error) => assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}"),
                }
            }
            panic!("no attempt of a hundred got in");
        });
    }
    runs.join_all().await;
    assert_eq!(ids(&table(&lakes[0], "race").await).await, (0..8).collect::<Vec<i64>>());
    drop(lakes);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_catalog_on_postgresql_keeps_its_word() {
    let database = Database::new().await;
    let folder = TempDir::new().expect("folder");
    let settings = LakeSettings {
        catalog: CatalogSettings::Sql(database.url.clone().into()),
        ..Scratch::settings(&folder)
    };
    let lake = Lake::open(settings.clone()).await.expect("lake");
    let store = Store::open(&settings).expect("store");
    let catalog = Arc::new(Scratch::catalog(&settings, store).await);
    conformance::keeps_its_word(&lake, Arc::clone(&catalog) as Arc<dyn Catalog>).await;
    drop((lake, catalog));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_through_postgresql_are_exact() {
    let database = Database::new().await;
    let connect = faulty::sql(database.url.clone());
    faults::hold_all(&connect).await;
    faults::hold_new_and_late(&connect, &Place::Memory).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_through_postgresql_lose_and_double_nothing() {
    let database = Database::new().await;
    let connect = faulty::sql(database.url.clone());
    stress::hold_all(&connect, &Place::Memory, true).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_on_s3_are_exact_when_it_fails() {
    let folder = TempDir::new().expect("folder");
    let catalog =
        CatalogSettings::Sql(format!("sqlite://{}/own.db", folder.path().display()).into());
    let bucket = Lake::open(LakeSettings { catalog, ..s3() }).await.expect("lake").object_store();
    let part = || -> Arc<dyn ObjectStore> {
        let prefix = format!("lake-tests/{}", Uuid::new_v4());
        Arc::new(PrefixStore::new(Arc::clone(&bucket), prefix))
    };
    store_faults::hold_on(&faulty::sqlite(&folder), part).await;
}

/// What stores say that know no conditional put, as S3 itself did before August 2024.
const NOT_IMPLEMENTED: &str = "HTTP/1.1 501 Not Implemented\r\nContent-Type: application/xml\r\n\
    Content-Length: 42\r\n\r\n<Error><Code>NotImplemented</Code></Error>";

#[tokio::test(flavor = "multi_thread")]
async fn tables_live_on_an_s3_that_refuses_conditional_puts() {
    let settings = s3();
    let account = settings.s3.expect("S3");
    let endpoint = account.endpoint.clone().expect("an endpoint");
    let server = endpoint.strip_prefix("http://").expect("HTTP").trim_end_matches('/');
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let proxy = Proxy::start(server, move |asked| {
        let conditions = ["\nif-none-match:", "\nif-match:"];
        if asked.method != "PUT" || !conditions.iter().any(|name| asked.head.contains(name)) {
            return Fate::Passes;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Fate::Answered(NOT_IMPLEMENTED)
    });
    let endpoint = Some(format!("http://{}", proxy.address));
    let folder = TempDir::new().expect("folder");
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let settings = LakeSettings {
        catalog: CatalogSettings::Sql(url.into()),
        s3: Some(S3Settings { endpoint, ..account }),
        ..settings
    };
    let lake = Lake::open(settings).await.expect("lake");
    life_of_a_table(&lake).await;
    let metadata = refused.load(Ordering::SeqCst);
    assert!(metadata > 0, "no condition was asked for");
    assert!(lake.keep_audit_head(None, b"1".to_vec()).await.expect("kept"));
    let kept = lake.audit_head().await.expect("read").expect("kept");
    assert!(lake.keep_audit_head(Some(&kept), b"2".to_vec()).await.expect("kept"));
    assert!(!lake.keep_audit_head(Some(&kept), b"3".to_vec()).await.expect("others were there"));
    assert_eq!(lake.audit_head().await.expect("read").expect("kept").bytes(), b"2");
    assert_eq!(refused.load(Ordering::SeqCst), metadata + 3, "each is asked for once");
}
