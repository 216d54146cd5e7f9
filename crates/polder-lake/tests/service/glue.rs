//! The lake's catalog in AWS Glue: moto, behind a gate that refuses a stale version as Glue does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::join_all;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use polder_core::{ErrorCode, Principal};
use polder_lake::{
    Catalog, CatalogSettings, CommitFailure, GlueCatalog, GlueSettings, Lake, LakeSettings,
    StageKind, Store,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{life_of_a_table, s3, variable};
use crate::conformance;
use crate::faulty::{self, Connect, Place};
use crate::support::*;
use crate::{faults, stress};

/// What happens to one request that changes a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is carried out, and the connection breaks.
    AnswerLost,
    /// The connection breaks before it is carried out.
    RequestLost,
    /// There is no connection.
    NoConnection,
    /// It is carried out, and this is the answer (status, kind).
    CarriedOutThen(u16, &'static str),
    /// It is not carried out, and this is the answer.
    Answers(u16, &'static str),
    /// It waits until the test lets it go.
    Held,
}

/// The way to the server, with faults on it.
#[derive(Debug)]
struct Wire {
    server: HttpClient,
    faults: Mutex<Vec<Fault>>,
    /// The requests that change a table, as they were sent.
    sent: Mutex<Vec<Value>>,
    arrived: Semaphore,
    let_go: Semaphore,
}

#[derive(Clone, Debug)]
struct Wired(Arc<Wire>);

fn broken(kind: HttpErrorKind) -> HttpError {
    HttpError::new(kind, std::io::Error::other("the connection broke"))
}

#[async_trait]
impl HttpService for Wired {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let wire = &self.0;
        let target = request.headers()["x-amz-target"].to_str().expect("text").to_owned();
        if !matches!(target.as_str(), "AWSGlue.UpdateTable" | "AWSGlue.CreateTable") {
            return wire.server.execute(request).await;
        }
        let body = request.body().as_bytes().expect("a body");
        wire.sent.lock().expect("sent").push(serde_json::from_slice(body).expect("json"));
        let fault = wire.faults.lock().expect("faults").pop();
        let answer = |status: u16, kind: &str| {
            let body = json!({ "__type": kind, "message": "as the test says" });
            let mut answer = HttpResponse::new(body.to_string().into());
            *answer.status_mut() = status.try_into().expect("status");
            answer
        };
        match fault {
            None => wire.server.execute(request).await,
            Some(Fault::AnswerLost) => {
                wire.server.execute(request).await?;
                Err(broken(HttpErrorKind::Interrupted))
            }
            Some(Fault::RequestLost) => Err(broken(HttpErrorKind::Interrupted)),
            Some(Fault::NoConnection) => Err(broken(HttpErrorKind::Connect)),
            Some(Fault::CarriedOutThen(status, kind)) => {
                wire.server.execute(request).await?;
                Ok(answer(status, kind))
            }
            Some(Fault::Answers(status, kind)) => Ok(answer(status, kind)),
            Some(Fault::Held) => {
                wire.arrived.add_permits(1);
                wire.let_go.acquire().await.expect("open").forget();
                wire.server.execute(request).await
            }
        }
    }
}

/// A lake on local disk, its catalog an account's of its own.
struct Glue {
    folder: TempDir,
    settings: LakeSettings,
    wire: Arc<Wire>,
}

fn account() -> GlueSettings {
    GlueSettings {
        region: "eu-west-1".to_owned(),
        endpoint: Some(variable("POLDER_TEST_GLUE_URL")),
        catalog_id: Some(format!("{:012}", Uuid::new_v4().as_u128() % 1_000_000_000_000)),
        access_key: Some("test".to_owned().into()),
        secret_key: Some("test".to_owned().into()),
    }
}

impl Glue {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let catalog = CatalogSettings::Glue(account());
        let settings = LakeSettings { catalog, ..Scratch::settings(&folder) };
        let options = ClientOptions::new().with_allow_http(true);
        let wire = Wire {
            server: ReqwestConnector::default().connect(&options).expect("transport"),
            faults: Mutex::default(),
            sent: Mutex::default(),
            arrived: Semaphore::new(0),
            let_go: Semaphore::new(0),
        };
        Self { folder, settings, wire: Arc::new(wire) }
    }

    fn glue(&self) -> &GlueSettings {
        match &self.settings.catalog {
            CatalogSettings::Glue(glue) => glue,
            other => panic!("not in Glue: {other:?}"),
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.settings).expect("store")
    }

    async fn lake(&self) -> Lake {
        Lake::open(self.settings.clone()).await.expect("lake")
    }

    async fn catalog(&self) -> GlueCatalog {
        GlueCatalog::open(self.glue(), self.store()).await.expect("catalog")
    }

    /// The catalog over the wire, with the faults of its next changes.
    fn wired(&self, faults: &[Fault]) -> GlueCatalog {
        let mut faults = faults.to_vec();
        faults.reverse();
        *self.wire.faults.lock().expect("faults") = faults;
        self.wire.sent.lock().expect("sent").clear();
        let http = HttpClient::new(Wired(Arc::clone(&self.wire)));
        GlueCatalog::over(self.glue(), self.store(), http).expect("catalog")
    }

    fn sent(&self) -> Vec<Value> {
        self.wire.sent.lock().expect("sent").clone()
    }

    /// Another client of the same catalog.
    async fn ask(&self, action: &str, mut body: Value) -> Value {
        body["CatalogId"] = json!(self.glue().catalog_id);
        let mut request = HttpRequest::new(body.to_string().into());
        *request.method_mut() = "POST".parse().expect("method");
        let endpoint = self.glue().endpoint.as_ref().expect("endpoint");
        *request.uri_mut() = format!("{endpoint}/").parse().expect("address");
        let target = format!("AWSGlue.{action}").parse().expect("header");
        request.headers_mut().insert("x-amz-target", target);
        let (key_id, secret_key) = ("test".to_owned(), "test".to_owned());
        let credential = AwsCredential { key_id, secret_key, token: None };
        AwsAuthorizer::new(&credential, "glue", "eu-west-1").authorize(&mut request, None);
        let answer = self.wire.server.execute(request).await.expect("answer");
        let status = answer.status();
        let text = answer.into_body().bytes().await.expect("body");
        assert!(status.is_success(), "{action}: {}", String::from_utf8_lossy(&text));
        serde_json::from_slice(&text).unwrap_or_default()
    }

    async fn entry(&self, name: &str) -> Value {
        let body = json!({ "DatabaseName": "org_401", "Name": name });
        self.ask("GetTable", body).await["Table"].take()
    }

    /// Every metadata file of the lake.
    fn metadata_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().join("lake")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                let text = path.display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if text.ends_with(".metadata.json") {
                    found.push(text);
                }
            }
        }
        found.sort_unstable();
        found
    }
}

fn t() -> TableIdent {
    TableIdent::new(NamespaceIdent::new("org_401".to_owned()), "t".to_owned())
}

fn set(key: &str, value: &str) -> Vec<TableUpdate> {
    vec![TableUpdate::SetProperties { updates: [(key.to_owned(), value.to_owned())].into() }]
}

async fn with_table() -> Glue {
    let glue = Glue::new();
    let lake = glue.lake().await;
    run(&lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..3)])
        .await
        .expect("create");
    glue
}

async fn property(glue: &Glue, key: &str) -> Option<String> {
    let state = glue.catalog().await.load(&t()).await.expect("load").expect("table");
    state.metadata.properties().get(key).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_may_be_in_glue() {
    let settings = LakeSettings { catalog: CatalogSettings::Glue(account()), ..s3() };
    life_of_a_table(&Lake::open(settings).await.expect("lake")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_in_glue_keeps_its_word() {
    let glue = Glue::new();
    let limits = conformance::Limits { plain_names: true, ..conformance::Limits::default() };
    let catalog = Arc::new(glue.catalog().await);
    conformance::keeps_its_word_within(&glue.lake().await, catalog, limits).await;
}

/// Clients of an account of its own.
fn connect() -> Connect {
    let glue = account();
    faulty::by(move |store| {
        let glue = glue.clone();
        async move { GlueCatalog::open(&glue, store).await }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_through_glue_are_exact() {
    faults::hold_sample(&connect(), &Place::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_through_glue_lose_and_double_nothing() {
    stress::hold_all(&connect(), &Place::Memory, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_at_the_same_time_all_get_in_once() {
    let glue = Glue::new();
    let lakes = [glue.lake().await, glue.lake().await, glue.lake().await, glue.lake().await];
    run(&lakes[0], "race", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    let mut runs = JoinSet::new();
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
}

/// Makes a change that is overtaken on its way to Glue by another one of somebody else.
async fn overtaken(
    glue: &Glue,
    requirements: &[TableRequirement],
    theirs: (TableIdent, Vec<TableUpdate>),
    ours: (TableIdent, Vec<TableUpdate>),
) -> CommitFailure {
    let slow = glue.wired(&[Fault::Held]);
    let quick = glue.catalog().await;
    let wire = Arc::clone(&glue.wire);
    let overtake = async {
        wire.arrived.acquire().await.expect("open").forget();
        let made = quick.commit(&theirs.0, requirements, theirs.1).await;
        wire.let_go.add_permits(1);
        made.expect("the quick one wins")
    };
    let (slow, quick) = tokio::join!(slow.commit(&ours.0, requirements, ours.1), overtake);
    let now = glue.catalog().await.load(&theirs.0).await.expect("load").expect("table");
    assert_eq!(now.metadata_location, quick.metadata_location);
    slow.expect_err("too late")
}

#[tokio::test]
async fn of_two_changes_to_one_version_one_is_made() {
    let glue = with_table().await;
    let version = glue.entry("t").await["VersionId"].clone();
    let before = glue.metadata_files().len();
    let failure =
        overtaken(&glue, &[], (t(), set("who", "quick")), (t(), set("who", "slow"))).await;
    assert!(matches!(failure, CommitFailure::Conflict(_)), "{failure:?}");
    assert_eq!(property(&glue, "who").await.as_deref(), Some("quick"));
    assert_eq!(glue.metadata_files().len(), before + 1, "the loser's file is gone");
    let [sent] = &glue.sent()[..] else { panic!("sent once: {:?}", glue.sent()) };
    assert_eq!(sent["VersionId"], version);
    assert_eq!(sent["SkipArchive"], json!(true));
}

#[tokio::test]
async fn of_two_creations_one_is_made() {
    let glue = with_table().await;
    let like = glue.catalog().await.load(&t()).await.expect("load").expect("table").metadata;
    let new = |folder: &str| {
        let location =
            TableUpdate::SetLocation { location: format!("{}{folder}", like.location()) };
        let schema = TableUpdate::AddSchema { schema: like.current_schema().as_ref().clone() };
        (TableIdent::new(t().namespace, "new".to_owned()), vec![location, schema])
    };
    let before = glue.metadata_files().len();
    let absent = [TableRequirement::NotExist];
    let failure = overtaken(&glue, &absent, new("1"), new("2")).await;
    assert!(matches!(failure, CommitFailure::Conflict(_)), "{failure:?}");
    assert_eq!(glue.metadata_files().len(), before + 1, "the loser's file is gone");
    assert_eq!(glue.lake().await.tables(&org("401")).await.expect("tables"), ["new", "t"]);
}

#[tokio::test]
async fn a_table_that_was_dropped_meanwhile_is_a_conflict() {
    let glue = with_table().await;
    let slow = glue.wired(&[Fault::Held]);
    let drop = async {
        glue.wire.arrived.acquire().await.expect("open").forget();
        glue.ask("DeleteTable", json!({ "DatabaseName": "org_401", "Name": "t" })).await;
        glue.wire.let_go.add_permits(1);
    };
    let ident = t();
    let (failure, ()) = tokio::join!(slow.commit(&ident, &[], set("a", "b")), drop);
    let failure = failure.expect_err("gone");
    assert!(matches!(failure, CommitFailure::Conflict(_)), "{failure:?}");
    assert!(slow.load(&t()).await.expect("load").is_none());
}

/// What a fault makes of a commit: made, or this failure, after which the file is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    Made,
    Conflict,
    Rejected(ErrorCode),
    Unknown,
}

#[tokio::test]
async fn what_became_of_a_commit_is_known_or_said_to_be_unknown() {
    use ErrorCode::{LakeFailed, LakeUnavailable};
    let cases = [
        (Fault::AnswerLost, Becomes::Made),
        (Fault::CarriedOutThen(500, "InternalServiceException"), Becomes::Made),
        (Fault::CarriedOutThen(400, "OperationTimeoutException"), Becomes::Made),
        // The request reached Glue twice.
        (Fault::CarriedOutThen(400, "ConcurrentModificationException"), Becomes::Made),
        (Fault::RequestLost, Becomes::Unknown),
        (Fault::Answers(500, "InternalServiceException"), Becomes::Unknown),
        (Fault::Answers(503, ""), Becomes::Unknown),
        (Fault::Answers(400, "OperationTimeoutException"), Becomes::Unknown),
        (Fault::NoConnection, Becomes::Rejected(LakeUnavailable)),
        (Fault::Answers(400, "ThrottlingException"), Becomes::Rejected(LakeUnavailable)),
        (Fault::Answers(429, ""), Becomes::Rejected(LakeUnavailable)),
        (Fault::Answers(400, "ConcurrentModificationException"), Becomes::Conflict),
        (Fault::Answers(400, "EntityNotFoundException"), Becomes::Conflict),
        (Fault::Answers(400, "AccessDeniedException"), Becomes::Rejected(LakeFailed)),
        (Fault::Answers(400, "InvalidInputException"), Becomes::Rejected(LakeFailed)),
    ];
    let glue = with_table().await;
    for (number, (fault, expected)) in cases.into_iter().enumerate() {
        let value = number.to_string();
        let before = (glue.metadata_files().len(), property(&glue, "case").await);
        let made = glue.wired(&[fault]).commit(&t(), &[], set("case", &value)).await;
        let became = match made {
            Ok(_) => Becomes::Made,
            Err(CommitFailure::Conflict(error)) => {
                assert_eq!(error.code(), ErrorCode::LakeConflict, "{fault:?}");
                Becomes::Conflict
            }
            Err(CommitFailure::Rejected(error)) => Becomes::Rejected(error.code()),
            Err(CommitFailure::Unknown(error)) => {
                assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome, "{fault:?}");
                Becomes::Unknown
            }
        };
        assert_eq!(became, expected, "{fault:?}");
        assert_eq!(glue.sent().len(), 1, "{fault:?}: sent once");
        let now = property(&glue, "case").await;
        let stays = match expected {
            Becomes::Made => {
                assert_eq!(now, Some(value), "{fault:?}");
                1
            }
            // It might be the table's: only orphan removal may take it.
            Becomes::Unknown => 1,
            Becomes::Conflict | Becomes::Rejected(_) => 0,
        };
        assert_eq!(glue.metadata_files().len(), before.0 + stays, "{fault:?}");
        if expected != Becomes::Made {
            assert_eq!(now, before.1, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_run_publishes_once_whatever_becomes_of_answers() {
    let cases: [&[Fault]; 6] = [
        &[Fault::AnswerLost],
        &[Fault::RequestLost, Fault::AnswerLost],
        &[Fault::NoConnection, Fault::Answers(400, "ThrottlingException")],
        &[Fault::Answers(500, "InternalServiceException")],
        &[Fault::CarriedOutThen(400, "ConcurrentModificationException")],
        &[Fault::RequestLost, Fault::Answers(503, "")],
    ];
    let glue = Glue::new();
    for (number, faults) in cases.into_iter().enumerate() {
        // The first case creates the table.
        let kind = if number == 0 { StageKind::Replace } else { StageKind::Append };
        let lake = Lake::new(glue.store(), Arc::new(glue.wired(faults)));
        let id = number as i64;
        let done = run(&lake, "t", request(kind, &id_and_text()), &[rows(id..id + 1)]).await;
        assert!(!done.expect("published").already, "{faults:?}");
        let now = table(&glue.lake().await, "t").await;
        assert_eq!(ids(&now).await, (0..=id).collect::<Vec<i64>>(), "{faults:?}");
        assert_eq!(now.snapshots().len(), number + 1, "{faults:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let glue = with_table().await;
    let denied = glue.wired(&[Fault::Answers(400, "AccessDeniedException")]);
    let Err(CommitFailure::Rejected(error)) = denied.commit(&t(), &[], set("a", "b")).await else {
        panic!("not refused");
    };
    assert_eq!(error.detail_text(), Some("as the test says"));
    assert!(error.hint_text().expect("hint").contains("Lake Formation"), "{error:?}");
    let nowhere = GlueSettings { endpoint: Some("http://127.0.0.1:9".to_owned()), ..account() };
    let settings =
        LakeSettings { catalog: CatalogSettings::Glue(nowhere), ..glue.settings.clone() };
    let error = Lake::open(settings).await.expect_err("nobody there");
    assert_eq!(error.code(), ErrorCode::LakeUnavailable);
    assert!(error.hint_text().expect("hint").contains("[catalog.glue] endpoint"), "{error:?}");
}

#[tokio::test]
async fn names_that_glue_would_change_are_refused() {
    let glue = with_table().await;
    let lake = glue.lake().await;
    for name in ["T", "größe", "a-b", "a.b", "../x"] {
        let request = request(StageKind::Replace, &id_and_text());
        let staged = lake.stage(&org("401"), name, request).await;
        let error = staged.expect_err(name);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{name}");
        assert!(error.hint_text().expect("hint").contains("lower-case"), "{name}");
        // Glue finds `t` by the name `T`; it is not that table.
        let error = lake.table(&org("401"), name).await.expect_err(name);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{name}");
    }
    // Two orgs would share one database.
    run(&lake, "t", request(StageKind::Replace, &id_and_text()), &[]).await.expect("replace");
    glue.ask("CreateDatabase", json!({ "DatabaseInput": { "Name": "org_acme" } })).await;
    for id in ["Acme", "ac-me"] {
        let request = request(StageKind::Replace, &id_and_text());
        let error = lake.stage(&org(id), "t", request).await.expect_err(id);
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{id}");
        assert_eq!(lake.tables(&org(id)).await.expect_err(id).code(), ErrorCode::SpecInvalid);
    }
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let glue = with_table().await;
    let location = glue.entry("t").await["Parameters"].clone();
    for number in 0..205 {
        let name = format!("more_{number:03}");
        let input = json!({ "Name": name, "Parameters": location });
        glue.ask("CreateTable", json!({ "DatabaseName": "org_401", "TableInput": input })).await;
        let input = json!({ "Name": format!("org_{number:03}") });
        glue.ask("CreateDatabase", json!({ "DatabaseInput": input })).await;
    }
    let lake = glue.lake().await;
    let tables = lake.tables(&org("401")).await.expect("tables");
    assert_eq!((tables.len(), tables[204].as_str()), (206, "more_204"));
    let orgs = lake.orgs(&Principal::Operator).await.expect("orgs");
    assert_eq!(orgs.len(), 206);
}

#[tokio::test]
async fn tables_that_are_not_icebergs_are_not_the_lakes() {
    let glue = with_table().await;
    let parameters = [json!({}), json!({ "table_type": "DELTA", "metadata_location": "s3://b/x" })];
    for (name, parameters) in ["hive", "delta"].into_iter().zip(parameters) {
        let input = json!({ "Name": name, "Parameters": parameters });
        glue.ask("CreateTable", json!({ "DatabaseName": "org_401", "TableInput": input })).await;
    }
    let lake = glue.lake().await;
    assert_eq!(lake.tables(&org("401")).await.expect("tables"), ["t"]);
    for name in ["hive", "delta"] {
        let error = lake.table(&org("401"), name).await.expect_err(name);
        assert!(error.message().contains("is no Iceberg table"), "{error:?}");
        let replace = request(StageKind::Replace, &id_and_text());
        let error = run(&lake, name, replace, &[rows(0..1)]).await.expect_err(name);
        assert!(error.message().contains("is no Iceberg table"), "{error:?}");
    }
}

#[tokio::test]
async fn what_other_engines_keep_with_a_table_stays() {
    let glue = with_table().await;
    let before = glue.entry("t").await;
    let mut input = json!({
        "Name": "t", "Owner": "analysts", "TableType": "EXTERNAL_TABLE",
        "Parameters": before["Parameters"], "StorageDescriptor": before["StorageDescriptor"],
    });
    input["Parameters"]["classification"] = json!("crm");
    glue.ask("UpdateTable", json!({ "DatabaseName": "org_401", "TableInput": input })).await;
    let lake = glue.lake().await;
    let schema = schema(&[
        ("id", polder_core::LakeType::Long),
        ("text", polder_core::LakeType::String),
        ("more", polder_core::LakeType::Date),
    ]);
    run(&lake, "t", request(StageKind::Replace, &schema), &[]).await.expect("replace");
    let after = glue.entry("t").await;
    assert_eq!(
        (&after["Owner"], &after["TableType"]),
        (&json!("analysts"), &json!("EXTERNAL_TABLE"))
    );
    let now = table(&lake, "t").await;
    let location = now.metadata_location().to_owned();
    let log = metadata(&now)["metadata-log"].take();
    let previous = &log.as_array().and_then(|log| log.last()).expect("a log")["metadata-file"];
    let parameters = json!({
        "classification": "crm",
        "table_type": "ICEBERG",
        "metadata_location": location,
        "previous_metadata_location": previous,
    });
    assert_eq!(after["Parameters"], parameters);
    let columns = after["StorageDescriptor"]["Columns"].as_array().expect("columns");
    let shown: Vec<_> = columns.iter().map(|c| (c["Name"].as_str(), c["Type"].as_str())).collect();
    let expected = [("id", "bigint"), ("text", "string"), ("more", "date")];
    assert_eq!(shown, expected.map(|(name, kind)| (Some(name), Some(kind))));
    let id = json!({
        "iceberg.field.id": "1", "iceberg.field.optional": "true", "iceberg.field.current": "true",
    });
    assert_eq!(columns[0]["Parameters"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_to_name_a_property_of_a_database_wins() {
    let glue = Glue::new();
    let catalogs = join_all((0..4).map(|_| glue.catalog())).await;
    let ensured = catalogs.iter().enumerate().map(|(number, catalog)| async move {
        let wanted = BTreeMap::from([("number".to_owned(), number.to_string())]);
        catalog.ensure_namespace("org_9", &wanted).await.expect("ensured");
        catalog.namespace("org_9").await.expect("read").expect("there")["number"].clone()
    });
    let seen = join_all(ensured).await;
    assert!(seen.iter().all(|number| *number == seen[0]), "{seen:?}");
    let more = BTreeMap::from([
        ("number".to_owned(), "another".to_owned()),
        ("location".to_owned(), "s3://bucket/o".to_owned()),
    ]);
    catalogs[0].ensure_namespace("org_9", &more).await.expect("more");
    let database = glue.ask("GetDatabase", json!({ "Name": "org_9" })).await["Database"].take();
    assert_eq!(database["LocationUri"], json!("s3://bucket/o"));
    assert_eq!(database["Parameters"], json!({ "number": seen[0] }));
    assert_eq!(catalogs[1].namespaces().await.expect("list"), ["org_9"]);
    assert!(catalogs[1].namespace("org_8").await.expect("read").is_none());
}
