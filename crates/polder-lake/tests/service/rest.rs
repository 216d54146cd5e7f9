//! External catalogs: Apache's reference server on local disk, and SeaweedFS's on S3.

use std::sync::Arc;

use polder_lake::{
    Catalog, CatalogSettings, Lake, LakeSettings, RestCatalog, RestSettings, S3Settings, Store,
};
use tempfile::TempDir;

use super::{s3, variable};
use crate::conformance::{self, Limits};
use crate::faulty::{self, Connect, Place};
use crate::{faults, stress};

pub(super) fn connect(rest: RestSettings) -> Connect {
    faulty::by(move |store| {
        let rest = rest.clone();
        async move { RestCatalog::open(&rest, &store).await }
    })
}

/// Apache's reference server.
fn reference() -> RestSettings {
    RestSettings { uri: variable("POLDER_TEST_REST_URL"), ..RestSettings::default() }
}

async fn opened(settings: LakeSettings) -> (Lake, Arc<dyn Catalog>) {
    let CatalogSettings::Rest(rest) = &settings.catalog else { panic!("no REST catalog") };
    let store = Store::open(&settings).expect("store");
    let catalog = connect(rest.clone())(store).await;
    (Lake::open(settings).await.expect("lake"), catalog)
}

#[tokio::test(flavor = "multi_thread")]
async fn apaches_reference_server_keeps_its_word() {
    let folder = TempDir::new().expect("folder");
    let settings = LakeSettings {
        warehouse: folder.path().join("lake").display().to_string(),
        catalog: CatalogSettings::Rest(reference()),
        s3: None,
    };
    let (lake, catalog) = opened(settings).await;
    conformance::keeps_its_word(&lake, catalog).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_through_apaches_reference_server_are_exact() {
    faults::hold_sample(&connect(reference()), &Place::Disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_through_apaches_reference_server_lose_and_double_nothing() {
    stress::hold_all(&connect(reference()), &Place::Disk, true).await;
}

/// SeaweedFS's catalog: OAuth2 client credentials, and a server that has several warehouses.
fn seaweedfs() -> RestSettings {
    let (id, secret) = (variable("S3_ACCESS_KEY"), variable("S3_SECRET_KEY"));
    RestSettings {
        uri: variable("POLDER_TEST_S3_REST_URL"),
        warehouse: Some(format!("s3://{}", variable("POLDER_TEST_S3_TABLES"))),
        credential: Some(format!("{id}:{secret}").into()),
        ..RestSettings::default()
    }
}

fn on_seaweedfs(s3: S3Settings) -> LakeSettings {
    LakeSettings {
        // Such a bucket has folders of tables in folders of namespaces, and nothing else.
        warehouse: format!("s3://{}", variable("POLDER_TEST_S3_TABLES")),
        catalog: CatalogSettings::Rest(seaweedfs()),
        s3: Some(s3),
    }
}

/// With no keys but those that it hands out for each table.
#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_catalog_keeps_its_word() {
    // Where the store is, it says itself.
    let s3 = S3Settings { region: "us-east-1".to_owned(), ..S3Settings::default() };
    let (lake, catalog) = opened(on_seaweedfs(s3)).await;
    conformance::keeps_its_word_within(
        &lake,
        catalog,
        Limits { plain_names: true, creators_race: true },
    )
    .await;
}

/// One writer at a time. Of two that commit at the same moment it removes the metadata file of the one that
/// won, as both files have one name: the rows are there, and nobody finds the table by its file.
#[tokio::test(flavor = "multi_thread")]
async fn commits_through_seaweedfs_catalog_are_exact() {
    let settings = on_seaweedfs(s3().s3.expect("S3"));
    faults::hold_some(&connect(seaweedfs()), &Place::Warehouse(Box::new(settings))).await;
}
