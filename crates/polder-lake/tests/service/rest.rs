//! External catalogs: Apache's reference server on local disk, and SeaweedFS's on S3.

use std::sync::Arc;

use polder_lake::{
    Catalog, CatalogSettings, Lake, LakeSettings, RestCatalog, RestSettings, S3Settings, Store,
};
use tempfile::TempDir;

use super::variable;
use crate::conformance::{self, Limits};
use crate::faulty::{self, Connect, Place};
use crate::{faults, stress};

fn connect(rest: RestSettings) -> Connect {
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
    faults::hold_sample(&connect(reference()), Place::Disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_through_apaches_reference_server_lose_and_double_nothing() {
    stress::hold_all(&connect(reference()), Place::Disk, true).await;
}

/// OAuth2 client credentials, a server that has several warehouses, and no keys but those that it
/// hands out for each table.
#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_catalog_keeps_its_word() {
    let (id, secret) = (variable("S3_ACCESS_KEY"), variable("S3_SECRET_KEY"));
    let bucket = variable("POLDER_TEST_S3_TABLES");
    let rest = RestSettings {
        uri: variable("POLDER_TEST_S3_REST_URL"),
        warehouse: Some(format!("s3://{bucket}")),
        credential: Some(format!("{id}:{secret}").into()),
        ..RestSettings::default()
    };
    let settings = LakeSettings {
        // Such a bucket has folders of tables in folders of namespaces, and nothing else.
        warehouse: format!("s3://{bucket}"),
        catalog: CatalogSettings::Rest(rest),
        // Where the store is, it says itself.
        s3: Some(S3Settings { region: "us-east-1".to_owned(), ..S3Settings::default() }),
    };
    let (lake, catalog) = opened(settings).await;
    conformance::keeps_its_word_within(
        &lake,
        catalog,
        Limits { plain_names: true, creators_race: true },
    )
    .await;
}
