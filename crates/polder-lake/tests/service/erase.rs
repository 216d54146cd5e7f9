//! The end of an org where it is harder: many writers in PostgreSQL, versions in a bucket.

use std::time::Duration;

use bytes::Bytes;
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpConnector, HttpRequest, ReqwestConnector};
use polder_core::ErrorCode;
use polder_lake::{CatalogSettings, Lake, LakeSettings, StageKind};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Database, s3, variable};
use crate::erase::{erase, nothing_comes_back, nothing_passes_a_fence};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_a_fence_in_postgresql() {
    let database = Database::new().await;
    let folder = TempDir::new().expect("folder");
    let settings = LakeSettings {
        catalog: CatalogSettings::Sql(database.url.clone().into()),
        ..Scratch::settings(&folder)
    };
    let lake = Lake::open(settings.clone()).await.expect("lake");
    let other = Lake::open(settings).await.expect("lake");
    nothing_passes_a_fence(&lake, &other).await;
    drop((lake, other));
    database.drop().await;
}

/// A statement that has looks for the fence before it was there, and waits for somebody else's lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_in_postgresql_waits_for_commits_that_have_not_seen_it() {
    let database = Database::new().await;
    let folder = TempDir::new().expect("folder");
    let settings = LakeSettings {
        catalog: CatalogSettings::Sql(database.url.clone().into()),
        ..Scratch::settings(&folder)
    };
    let lake = Lake::open(settings.clone()).await.expect("lake");
    let other = Lake::open(settings).await.expect("lake");
    let own = org("401");
    let replace = request(StageKind::Replace, &id_and_text());
    let snapshot = run(&lake, "t", replace, &[rows(0..3)]).await.expect("create").snapshot_id;

    let pool = sqlx::PgPool::connect(&database.url).await.expect("PostgreSQL");
    let mut lock = pool.begin().await.expect("transaction");
    let locked = "SELECT 1 FROM iceberg_tables FOR UPDATE";
    sqlx::query(locked).execute(&mut *lock).await.expect("lock");
    let writer = lake.clone();
    let mut commits = tokio::task::JoinSet::new();
    commits.spawn(async move { writer.pin(&org("401"), "t", "late", snapshot).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND wait_event_type = 'Lock' AND query LIKE 'UPDATE iceberg_tables%'";
    let mut looks = 0;
    loop {
        let (waiting,): (i64,) = sqlx::query_as(waits).fetch_one(&pool).await.expect("activity");
        if waiting == 1 {
            break;
        }
        looks += 1;
        assert!(looks < 6_000, "the commit never came to the row");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut fence = Box::pin(other.fence(&own, "e1"));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut fence).await;
    assert!(early.is_err(), "a commit may yet land");
    lock.commit().await.expect("release");
    assert_eq!(fence.await.expect("fence"), "e1");
    let pinned = commits.join_next().await.expect("a commit").expect("task").expect("it was first");
    assert!(pinned);
    let refused = lake.pin(&own, "t", "later", snapshot).await.expect_err("fenced");
    assert_eq!(refused.code(), ErrorCode::LakeFenced);
    pool.close().await;
    drop((lake, other));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_postgresql_bring_nothing_back() {
    for _ in 0..5 {
        let database = Database::new().await;
        let folder = TempDir::new().expect("folder");
        let settings = LakeSettings {
            catalog: CatalogSettings::Sql(database.url.clone().into()),
            ..Scratch::settings(&folder)
        };
        let lake = Lake::open(settings.clone()).await.expect("lake");
        let others = [
            Lake::open(settings.clone()).await.expect("lake"),
            Lake::open(settings).await.expect("lake"),
        ];
        nothing_comes_back(&lake, &others).await;
        let files = lake.org_files(&org("401")).await.expect("files");
        assert!(files.is_empty(), "{files:?}");
        drop((lake, others));
        database.drop().await;
    }
}

/// One signed request to the S3 server; its answer's text.
async fn ask(method: &str, path: &str, body: &'static str) -> String {
    let endpoint = variable("POLDER_TEST_S3_ENDPOINT");
    let credential = AwsCredential {
        key_id: variable("S3_ACCESS_KEY"),
        secret_key: variable("S3_SECRET_KEY"),
        token: None,
    };
    let mut request = HttpRequest::new(Bytes::from_static(body.as_bytes()).into());
    *request.method_mut() = method.parse().expect("method");
    *request.uri_mut() = format!("{endpoint}{path}").parse().expect("address");
    AwsAuthorizer::new(&credential, "s3", "us-east-1").authorize(&mut request, None);
    let options = ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(30));
    let http = ReqwestConnector::default().connect(&options).expect("client");
    let answer = http.execute(request).await.expect("answer");
    let status = answer.status();
    let text = answer.into_body().bytes().await.expect("text");
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(status.is_success(), "{method} {path}: {status} {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_markers_and_unfinished_uploads_go_too() {
    let bucket = format!("erase-{}", Uuid::new_v4());
    ask("PUT", &format!("/{bucket}"), "").await;
    let enable = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                  <Status>Enabled</Status></VersioningConfiguration>";
    ask("PUT", &format!("/{bucket}?versioning="), enable).await;
    let folder = TempDir::new().expect("folder");
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let lake = Lake::open(LakeSettings {
        warehouse: format!("s3://{bucket}/lake"),
        catalog: CatalogSettings::Sql(url.into()),
        ..s3()
    });
    let lake = lake.await.expect("lake");
    for id in ["401", "402"] {
        let stage = lake.stage(&org(id), "t", request(StageKind::Replace, &id_and_text())).await;
        let stage = stage.expect("stage");
        let files = written(&stage, &[rows(0..10)]).await;
        let summary = summary(&files);
        stage.commit(files, &checkpoint(0), summary).await.expect("commit");
        // What is removed leaves a marker, and its older version.
        let stage = lake.stage(&org(id), "t", request(StageKind::Append, &id_and_text())).await;
        let stage = stage.expect("stage");
        let files = written(&stage, &[rows(0..10)]).await;
        stage.abort(files).await;
    }
    let place = |id: &'static str| {
        let lake = lake.clone();
        async move { lake.org_folder(&org(id)).await.expect("folder").expect("one") }
    };
    let own = place("401").await.replacen(&format!("s3://{bucket}/"), "", 1);
    let theirs = place("402").await.replacen(&format!("s3://{bucket}/"), "", 1);
    ask("POST", &format!("/{bucket}/{own}/t/half?uploads="), "").await;
    let listing =
        |prefix: &str| format!("/{bucket}?prefix={}%2F&versions=", prefix.replace('/', "%2F"));
    let before = ask("GET", &listing(&theirs), "").await;
    assert!(before.contains("<DeleteMarker>"), "{before}");

    lake.fence(&org("401"), "e1").await.expect("fence");
    let mut files = lake.org_files(&org("401")).await.expect("list");
    assert_eq!(files.versions_listed, Some(true));
    let found = files.inventory();
    // A version of the data file that was given up beside the marker; one of each other file.
    assert!(found.objects >= 5 && found.delete_markers == 1 && found.uploads == 1, "{found:?}");
    erase(&lake, "401").await;

    let after = ask("GET", &listing(&own), "").await;
    assert!(!after.contains("<Key>"), "{after}");
    let uploads = format!("/{bucket}?prefix={}%2F&uploads=", own.replace('/', "%2F"));
    assert!(!ask("GET", &uploads, "").await.contains("<UploadId>"));
    assert!(lake.org_files(&org("401")).await.expect("list").is_empty());
    let keys = |text: &str| text.matches("<VersionId>").count();
    assert_eq!(keys(&ask("GET", &listing(&theirs), "").await), keys(&before));
    let theirs = lake.table(&org("402"), "t").await.expect("load").expect("table");
    assert_eq!(ids(&theirs).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_leaves_a_bucket_without_versions() {
    let folder = TempDir::new().expect("folder");
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let settings = LakeSettings { catalog: CatalogSettings::Sql(url.into()), ..s3() };
    let lake = Lake::open(settings.clone()).await.expect("lake");
    let other = Lake::open(settings).await.expect("lake");
    nothing_passes_a_fence(&lake, &other).await;
}
