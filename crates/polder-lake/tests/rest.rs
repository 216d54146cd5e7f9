//! The client of external catalogs against a server that answers as a test tells it to: what is sent,
//! what is repeated, and what an answer or the lack of one means.

mod stub;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use iceberg::spec::{Operation, Snapshot, Summary};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use object_store::ObjectStoreExt;
use polder_core::{Error, ErrorCode};
use polder_lake::{
    Catalog, CatalogSettings, CommitFailure, Lake, LakeSettings, RestCatalog, RestSettings,
    S3Settings, Store,
};
use serde_json::{Value, json};

use self::stub::{Asked, Reply, Stub, refusal};

const TABLE: &str = "/v1/namespaces/org_1/tables/t";

fn ident() -> TableIdent {
    TableIdent::new(NamespaceIdent::new("org_1".to_owned()), "t".to_owned())
}

fn store() -> Store {
    let folder = std::env::temp_dir().join("polder-rest-tests");
    let settings = LakeSettings {
        warehouse: folder.display().to_string(),
        catalog: CatalogSettings::Sql(String::new().into()),
        s3: None,
    };
    Store::open(&settings).expect("store")
}

fn settings(stub: &Stub) -> RestSettings {
    RestSettings { uri: stub.address.clone(), ..RestSettings::default() }
}

fn with_credential(stub: &Stub) -> RestSettings {
    RestSettings { credential: Some("me:hunter2:x".into()), ..settings(stub) }
}

async fn open(settings: &RestSettings) -> RestCatalog {
    RestCatalog::open(settings, &store()).await.expect("catalog")
}

/// A server that says nothing of itself and answers everything else by `reply`.
fn server(reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Stub {
    Stub::start(move |asked| {
        if asked.path.starts_with("/v1/config") {
            return Reply::Json(200, json!({ "defaults": {}, "overrides": {} }));
        }
        reply(asked)
    })
}

/// A table with two snapshots, `main` and a tag.
fn table() -> Value {
    let snapshot = |id: i64| {
        json!({
            "snapshot-id": id, "sequence-number": id, "timestamp-ms": 1_700_000_000_000_i64 + id,
            "manifest-list": format!("s3://b/t/metadata/{id}.avro"),
            "summary": { "operation": "append" }, "schema-id": 0
        })
    };
    let field = json!({ "id": 3, "name": "id", "required": true, "type": "long" });
    json!({
        "metadata-location": "s3://b/t/metadata/1.metadata.json",
        "metadata": {
            "format-version": 2, "table-uuid": "8b7e5e20-5c1f-4f2e-9d53-0c1c5a4b3d21",
            "location": "s3://b/t", "last-sequence-number": 2,
            "last-updated-ms": 1_700_000_000_002_i64, "last-column-id": 3,
            "current-schema-id": 0,
            "schemas": [{ "type": "struct", "schema-id": 0, "fields": [field] }],
            "default-spec-id": 0, "partition-specs": [{ "spec-id": 0, "fields": [] }],
            "last-partition-id": 999, "default-sort-order-id": 0,
            "sort-orders": [{ "order-id": 0, "fields": [] }], "properties": {},
            "current-snapshot-id": 2, "snapshots": [snapshot(1), snapshot(2)],
            "refs": {
                "main": { "snapshot-id": 2, "type": "branch" },
                "v1": { "snapshot-id": 1, "type": "tag" }
            }
        },
        "config": {}
    })
}

fn a_change() -> Vec<TableUpdate> {
    let updates = HashMap::from([("a".to_owned(), "1".to_owned())]);
    vec![TableUpdate::SetProperties { updates }]
}

async fn commit(catalog: &RestCatalog) -> Result<(), CommitFailure> {
    catalog.commit(&ident(), &[], a_change()).await.map(drop)
}

fn everything(error: &Error) -> String {
    format!("{error:?} {:?}", error.causes())
}

#[tokio::test]
async fn a_commit_is_one_request_and_its_answer_means_what_the_specification_says() {
    #[derive(Debug, PartialEq)]
    enum Means {
        Conflict,
        Rejected { retryable: bool },
        Unknown,
    }
    let refused = Means::Rejected { retryable: false };
    let later = Means::Rejected { retryable: true };
    let mut cases: Vec<(Reply, &Means)> = vec![
        (refusal(409, "CommitFailedException"), &Means::Conflict),
        (refusal(429, "TooManyRequests"), &later),
        (Reply::Broken, &Means::Unknown),
        (Reply::Raw(200, String::new(), "so what".to_owned()), &Means::Unknown),
        (Reply::Raw(301, "Location: http://127.0.0.1:1/\r\n".to_owned(), String::new()), &refused),
        (Reply::Raw(307, "Location: http://127.0.0.1:1/\r\n".to_owned(), String::new()), &refused),
    ];
    cases.extend(
        [400, 401, 403, 405, 406, 419, 422, 501].map(|code| (refusal(code, "X"), &refused)),
    );
    cases.push((refusal(404, "NoSuchTableException"), &refused));
    cases.extend([408, 500, 502, 503, 504, 599].map(|code| (refusal(code, "X"), &Means::Unknown)));
    for (reply, means) in cases {
        let what = format!("{reply:?}");
        let stub = server(move |_| reply.clone());
        let failure = commit(&open(&settings(&stub)).await).await.expect_err(&what);
        let found = match failure {
            CommitFailure::Conflict(error) => {
                assert_eq!(error.code(), ErrorCode::LakeConflict);
                Means::Conflict
            }
            CommitFailure::Rejected(error) => Means::Rejected { retryable: error.retryable() },
            CommitFailure::Unknown(error) => {
                assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome);
                Means::Unknown
            }
        };
        assert_eq!(&found, means, "{what}");
        assert_eq!(stub.count("POST"), 1, "{what}: sent once");
    }
}

#[tokio::test]
async fn what_was_never_sent_was_not_made() {
    let stub = server(|_| Reply::Broken);
    let catalog = open(&settings(&stub)).await;
    // Nobody listens there.
    let away =
        Stub::start(|_| Reply::Json(200, json!({ "overrides": { "uri": "http://127.0.0.1:1/" } })));
    match commit(&open(&settings(&away)).await).await {
        Err(CommitFailure::Rejected(error)) => assert_eq!(error.code(), ErrorCode::LakeUnavailable),
        other => panic!("{other:?}"),
    }
    // Whereas this one may have been.
    assert!(matches!(commit(&catalog).await, Err(CommitFailure::Unknown(_))));
}

#[tokio::test]
async fn reads_are_repeated_while_the_server_is_away() {
    let stub = server(|asked| match asked.before {
        0 => Reply::Raw(503, "Retry-After: 0\r\n".to_owned(), String::new()),
        1 => Reply::Broken,
        _ => Reply::Json(200, table()),
    });
    let catalog = open(&settings(&stub)).await;
    let found = catalog.load(&ident()).await.expect("loaded").expect("table");
    assert_eq!(found.metadata_location, "s3://b/t/metadata/1.metadata.json");
    assert_eq!(stub.count(&format!("GET {TABLE}")), 3);
    let stub = server(|_| refusal(400, "BadRequestException"));
    let error = open(&settings(&stub)).await.load(&ident()).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::LakeFailed);
    assert!(everything(&error).contains("BadRequestException: so it is"), "{error:?}");
    assert_eq!(stub.count("GET /v1/namespaces"), 1, "a refusal is an answer");
}

#[tokio::test]
async fn only_iceberg_s_own_404_says_that_there_is_no_table() {
    for kind in ["NoSuchTableException", "NoSuchNamespaceException"] {
        let stub = server(move |_| refusal(404, kind));
        let catalog = open(&settings(&stub)).await;
        assert!(catalog.load(&ident()).await.expect("an answer").is_none());
        assert!(catalog.tables("org_1").await.expect("an answer").is_empty());
        assert!(catalog.namespace("org_1").await.expect("an answer").is_none());
    }
    for reply in [
        Reply::Raw(404, String::new(), "<html>nginx</html>".to_owned()),
        refusal(404, "NotFoundException"),
    ] {
        let stub = server(move |_| reply.clone());
        let catalog = open(&settings(&stub)).await;
        catalog.load(&ident()).await.expect_err("nobody said that there is no table");
    }
}

#[tokio::test]
async fn the_server_s_configuration_counts() {
    let stub = Stub::start(|asked| match asked.line().as_str() {
        "GET /base/v1/config?warehouse=a+b%2Fc" => Reply::Json(
            200,
            json!({
                "defaults": { "prefix": "not/this", "namespace-separator": "." },
                "overrides": { "prefix": "w/1", "clients": 4 },
                "endpoints": ["GET /v1/{prefix}/namespaces/{namespace}/tables/{table}"]
            }),
        ),
        _ => Reply::Json(200, table()),
    });
    let settings = RestSettings {
        uri: format!("{}/base/", stub.address),
        warehouse: Some("a b/c".to_owned()),
        ..RestSettings::default()
    };
    let catalog = open(&settings).await;
    let levels = NamespaceIdent::from_strs(["a", "b"]).expect("namespace");
    let name = TableIdent::new(levels, "x/é?".to_owned());
    catalog.load(&name).await.expect("loaded").expect("table");
    let last = stub.asked().pop().expect("asked");
    assert_eq!(last.path, "/base/v1/w/1/namespaces/a.b/tables/x%2F%C3%A9%3F");
    assert_eq!(last.headers.get("x-iceberg-access-delegation"), None, "nothing to hand out");
    // No commits are offered, so none is sent.
    assert!(matches!(commit(&catalog).await, Err(CommitFailure::Rejected(_))));
    assert_eq!(stub.count("POST"), 0);
    let unknown = Stub::start(|_| refusal(404, "NoSuchWarehouseException"));
    let error = RestCatalog::open(&self::settings(&unknown), &store()).await.expect_err("none");
    assert_eq!(error.code(), ErrorCode::LakeNotFound);
    assert!(error.hint_text().expect("hint").contains("[catalog.rest] warehouse"));
}

#[tokio::test]
async fn listings_are_read_to_their_end() {
    let page = |asked: &Asked, one: Value, more: Value| {
        let (_, token) = asked.path.split_once("pageToken=").expect("a page");
        let (mut page, next) = match token {
            "" => (one, Some("a/2")),
            "a%2F2" => (more, None),
            other => panic!("{other}"),
        };
        page["next-page-token"] = json!(next);
        Reply::Json(200, page)
    };
    let table = |name: &str| json!({ "namespace": ["org_1"], "name": name });
    let stub = server(move |asked| {
        if asked.path.contains("/tables") {
            let one = json!({ "identifiers": [table("b"), table("c")] });
            return page(asked, one, json!({ "identifiers": [table("a")] }));
        }
        let one = json!({ "namespaces": [["org_2"], ["org_1"]] });
        page(asked, one, json!({ "namespaces": [["x", "y.z"]] }))
    });
    let catalog = open(&settings(&stub)).await;
    assert_eq!(catalog.tables("org_1").await.expect("tables"), ["a", "b", "c"]);
    let namespaces = catalog.namespaces().await.expect("namespaces");
    assert_eq!(namespaces, ["org_1", "org_2", "x.y%2Ez"]);
    let endless = server(|_| Reply::Json(200, json!({ "namespaces": [], "next-page-token": "x" })));
    let error = open(&settings(&endless)).await.namespaces().await.expect_err("no end");
    assert_eq!(error.code(), ErrorCode::LakeCorrupt);
}

#[tokio::test]
async fn a_namespace_that_is_there_gets_what_it_lacks() {
    let stub = server(|asked| match asked.line().as_str() {
        // Somebody makes it between the look and the creation, and then sets something too.
        "GET /v1/namespaces/org_1" if asked.before == 0 => refusal(404, "NoSuchNamespaceException"),
        "POST /v1/namespaces" => refusal(409, "AlreadyExistsException"),
        "GET /v1/namespaces/org_1" if asked.before == 1 => {
            Reply::Json(200, json!({ "namespace": ["org_1"], "properties": { "a": "theirs" } }))
        }
        "GET /v1/namespaces/org_1" => {
            let properties = json!({ "a": "theirs", "b": "2" });
            Reply::Json(200, json!({ "namespace": ["org_1"], "properties": properties }))
        }
        _ => Reply::Json(200, json!({ "updated": ["b"], "removed": [] })),
    });
    let wanted =
        BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    open(&settings(&stub)).await.ensure_namespace("org_1", &wanted).await.expect("there");
    let asked = stub.asked();
    let update = asked.iter().find(|asked| asked.path.ends_with("/properties")).expect("update");
    assert_eq!(update.json(), json!({ "removals": [], "updates": { "b": "2" } }));
    let forgetful =
        server(|_| Reply::Json(200, json!({ "namespace": ["org_1"], "properties": null })));
    let catalog = open(&settings(&forgetful)).await;
    let error = catalog.ensure_namespace("org_1", &wanted).await.expect_err("nothing kept");
    assert!(error.message().contains("does not keep the properties"), "{error:?}");
}

#[tokio::test]
async fn a_client_gets_a_token_and_renews_it_before_it_expires() {
    let stub = server(|asked| match asked.path.as_str() {
        "/v1/oauth/tokens" => {
            let token = format!("token-{}", asked.before + 1);
            Reply::Json(
                200,
                json!({ "access_token": token, "token_type": "bearer", "expires_in": 10 }),
            )
        }
        _ => Reply::Json(200, table()),
    });
    let mut settings = with_credential(&stub);
    settings.scope = Some("PRINCIPAL_ROLE:ALL".to_owned());
    let catalog = open(&settings).await;
    let (one, two) = (ident(), ident());
    let both = futures::future::join(catalog.load(&one), catalog.load(&two)).await;
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(stub.count("POST /v1/oauth/tokens"), 1);
    let asked = stub.asked();
    let form = "grant_type=client_credentials&client_id=me&client_secret=hunter2%3Ax\
                &scope=PRINCIPAL_ROLE%3AALL";
    assert_eq!(asked[0].body, form);
    assert_eq!(asked[0].headers.get("authorization"), None);
    assert!(asked[1..].iter().all(|asked| asked.headers["authorization"] == "Bearer token-1"));
    tokio::time::sleep(Duration::from_millis(8_200)).await;
    catalog.load(&ident()).await.expect("loaded");
    let last = stub.asked().pop().expect("asked");
    assert_eq!(last.headers["authorization"], "Bearer token-2", "before its ten seconds are over");
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let tokens = |asked: &Asked| {
        let token = format!("token-{}", asked.before + 1);
        Reply::Json(200, json!({ "access_token": token, "token_type": "bearer" }))
    };
    let stub = server(move |asked| match asked.path.as_str() {
        "/v1/oauth/tokens" => tokens(asked),
        _ if asked.headers["authorization"] == "Bearer token-1" => refusal(401, "NotAuthorized"),
        _ => Reply::Json(200, table()),
    });
    let catalog = open(&with_credential(&stub)).await;
    catalog.load(&ident()).await.expect("loaded");
    commit(&catalog).await.expect("committed");
    assert_eq!((stub.count("POST /v1/oauth"), stub.count(&format!("POST {TABLE}"))), (2, 1));
    let closed = server(move |asked| match asked.path.as_str() {
        "/v1/oauth/tokens" => tokens(asked),
        _ => refusal(401, "NotAuthorizedException"),
    });
    let catalog = open(&with_credential(&closed)).await;
    match commit(&catalog).await {
        Err(CommitFailure::Rejected(error)) => {
            assert_eq!(error.code(), ErrorCode::LakeFailed);
            assert!(error.hint_text().expect("hint").contains("[catalog.rest] credential"));
            let said = everything(&error);
            assert!(!said.contains("hunter2") && !said.contains("token-"), "{said}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(closed.count(&format!("POST {TABLE}")), 2, "once with each token");
}

#[tokio::test]
async fn secrets_are_told_to_nobody_else() {
    let refused = Stub::start(|_| {
        let said = json!({ "error": "invalid_client", "error_description": "not hunter2:x" });
        Reply::Json(401, said)
    });
    let error = RestCatalog::open(&with_credential(&refused), &store()).await.expect_err("refused");
    let said = everything(&error);
    assert_eq!(error.code(), ErrorCode::LakeFailed);
    assert!(said.contains("invalid_client") && !said.contains("hunter2"), "{said}");
    assert_eq!(refused.asked().len(), 1, "nothing else was asked for without a token");
    let nobody = server(|_| Reply::Broken);
    for (credential, token) in [(Some("me:hunter2"), None), (None, Some("hunter2"))] {
        let settings = RestSettings {
            uri: "http://catalog.example/".to_owned(),
            credential: credential.map(Into::into),
            token: token.map(Into::into),
            ..RestSettings::default()
        };
        let error = RestCatalog::open(&settings, &store()).await.expect_err("plain http");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
        assert!(error.message().starts_with("[lake] catalog"), "{error:?}");
        let moved = Stub::start(|_| {
            Reply::Json(200, json!({ "overrides": { "uri": "http://catalog.example/" } }))
        });
        let settings = RestSettings { uri: moved.address.clone(), ..settings };
        if settings.token.is_some() {
            let error = RestCatalog::open(&settings, &store()).await.expect_err("plain http");
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
        }
    }
    let wrong = RestSettings { credential: Some("hunter2".into()), ..settings(&nobody) };
    let error = RestCatalog::open(&wrong, &store()).await.expect_err("no id");
    assert_eq!(error.code(), ErrorCode::SpecSecret);
    assert!(!everything(&error).contains("hunter2"));
    let oauth2_server_uri = Some("http://login.example/token".to_owned());
    let wrong = RestSettings { oauth2_server_uri, ..with_credential(&nobody) };
    let error = RestCatalog::open(&wrong, &store()).await.expect_err("plain http");
    assert!(error.message().starts_with("[catalog.rest] oauth2_server_uri"), "{error:?}");
    // A redirect is not followed: the token would go along.
    let thief = Stub::start(|_| Reply::Json(200, json!({})));
    let address = thief.address.clone();
    let stub = Stub::start(move |_| {
        Reply::Raw(307, format!("Location: {address}/v1/config\r\n"), String::new())
    });
    let settings = RestSettings { token: Some("hunter2".into()), ..settings(&stub) };
    let error = RestCatalog::open(&settings, &store()).await.expect_err("elsewhere");
    assert!(error.hint_text().expect("hint").contains("[lake] catalog"), "{error:?}");
    assert!(thief.asked().is_empty());
}

#[tokio::test]
async fn snapshots_go_only_while_every_name_is_where_it_was() {
    let stub = server(|_| Reply::Json(200, table()));
    let catalog = open(&settings(&stub)).await;
    let remove = |id: i64| TableUpdate::RemoveSnapshots { snapshot_ids: vec![id] };
    let failure = catalog.commit(&ident(), &[], vec![remove(1)]).await.expect_err("v1 would go");
    assert!(matches!(failure, CommitFailure::Conflict(_)), "{failure:?}");
    assert_eq!(stub.count("POST"), 0);
    let drop = TableUpdate::RemoveSnapshotRef { ref_name: "v1".to_owned() };
    catalog.commit(&ident(), &[], vec![drop, remove(1)]).await.expect("committed");
    let sent = stub.asked().pop().expect("asked").json();
    let reference = |name: &str, id: i64| json!({ "type": "assert-ref-snapshot-id", "ref": name, "snapshot-id": id });
    assert_eq!(sent["requirements"], json!([reference("main", 2), reference("v1", 1)]));
    assert_eq!(sent["identifier"], json!({ "namespace": ["org_1"], "name": "t" }));
}

/// Servers that answer 400 to the number of an earlier state, where 409 is meant: made anew, the
/// snapshot can be taken.
#[tokio::test]
async fn a_snapshot_for_an_earlier_state_is_a_conflict_however_the_server_says_it() {
    let stub = server(|asked| match asked.method.as_str() {
        "POST" => refusal(400, "ValidationException"),
        _ => Reply::Json(200, table()),
    });
    let catalog = open(&settings(&stub)).await;
    for (number, stale) in [(2, true), (3, false)] {
        let additional_properties = HashMap::new();
        let snapshot = Snapshot::builder()
            .with_snapshot_id(9)
            .with_parent_snapshot_id(Some(2))
            .with_sequence_number(number)
            .with_timestamp_ms(1_700_000_000_003)
            .with_manifest_list("s3://b/t/metadata/9.avro".to_owned())
            .with_summary(Summary { operation: Operation::Append, additional_properties })
            .with_schema_id(0)
            .build();
        let updates = vec![TableUpdate::AddSnapshot { snapshot }];
        let failure = catalog.commit(&ident(), &[], updates).await.expect_err("refused");
        assert_eq!(matches!(failure, CommitFailure::Conflict(_)), stale, "{number}: {failure:?}");
    }
}

#[tokio::test]
async fn a_table_that_is_made_otherwise_is_taken_back() {
    let stub = server(|asked| match asked.method.as_str() {
        "DELETE" => Reply::Raw(204, String::new(), String::new()),
        _ => Reply::Json(200, table()),
    });
    let catalog = open(&settings(&stub)).await;
    let state = catalog.load(&ident()).await.expect("loaded").expect("table");
    let creation = |uuid| {
        vec![
            TableUpdate::SetLocation { location: "s3://b/t".to_owned() },
            TableUpdate::AssignUuid { uuid },
            TableUpdate::AddSchema {
                schema: iceberg::spec::Schema::clone(state.metadata.current_schema()),
            },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
        ]
    };
    let other = creation(uuid::Uuid::new_v4());
    let failure = catalog.commit(&ident(), &[TableRequirement::NotExist], other).await;
    match failure {
        Err(CommitFailure::Rejected(error)) => assert_eq!(error.code(), ErrorCode::LakeFailed),
        other => panic!("{other:?}"),
    }
    assert_eq!(stub.count(&format!("DELETE {TABLE}")), 1);
    let asked = stub.asked();
    let posts: Vec<&Asked> = asked.iter().filter(|asked| asked.method == "POST").collect();
    let [announced, committed] = posts[..] else { panic!("{posts:?}") };
    assert_eq!(announced.path, "/v1/namespaces/org_1/tables");
    let (announced, sent) = (announced.json(), committed.json());
    assert_eq!((&announced["name"], &announced["stage-create"]), (&json!("t"), &json!(true)));
    assert_eq!(announced["location"], "s3://b/t");
    let actions: Vec<_> =
        sent["updates"].as_array().expect("updates").iter().map(|u| u["action"].clone()).collect();
    let expected = [
        "assign-uuid",
        "upgrade-format-version",
        "add-schema",
        "set-current-schema",
        "set-location",
    ];
    assert_eq!(actions, expected);
    assert_eq!(sent["requirements"], json!([{ "type": "assert-create" }]));
}

/// A catalog that hands out keys for a store, which is the stub as well. Their names count up; their lives
/// are the next of these, and then the last.
fn vending(lives_ms: &'static [i64]) -> Stub {
    let own = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let address = std::sync::Arc::clone(&own);
    let stub = Stub::start(move |asked| {
        let endpoint = address.get().cloned().unwrap_or_default();
        let life_ms = lives_ms.get(asked.before).or(lives_ms.last()).expect("a life");
        let end = chrono::Utc::now().timestamp_millis() + life_ms;
        let credentials = json!([{
            "prefix": "s3://b/t",
            "config": {
                "s3.access-key-id": format!("KEY{}", asked.before + 1),
                "s3.secret-access-key": "hunter2",
                "s3.session-token": "session",
                "s3.session-token-expires-at-ms": end.to_string()
            }
        }]);
        match asked.path.as_str() {
            "/v1/config" => Reply::Json(
                200,
                json!({ "endpoints": [
                    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}",
                    "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}/credentials"
                ]}),
            ),
            path if path.starts_with("/b/") => {
                let head = "Last-Modified: Thu, 26 Nov 2026 00:00:00 GMT\r\nETag: \"x\"\r\n";
                Reply::Raw(200, head.to_owned(), "x".to_owned())
            }
            path if path.ends_with("/credentials") => {
                Reply::Json(200, json!({ "storage-credentials": credentials }))
            }
            _ => {
                let mut table = table();
                table["storage-credentials"] = credentials;
                table["config"] = json!({
                    "s3.endpoint": endpoint, "s3.path-style-access": "true", "client.region": "r-1"
                });
                Reply::Json(200, table)
            }
        }
    });
    own.set(stub.address.clone()).expect("once");
    stub
}

async fn lake_on_s3(stub: &Stub) -> (Lake, RestCatalog) {
    let rest = settings(stub);
    let settings = LakeSettings {
        warehouse: "s3://b".to_owned(),
        catalog: CatalogSettings::Rest(rest.clone()),
        s3: Some(S3Settings { region: "us-east-1".to_owned(), ..S3Settings::default() }),
    };
    let store = Store::open(&settings).expect("store");
    let catalog = RestCatalog::open(&rest, &store).await.expect("catalog");
    let other = RestCatalog::open(&rest, &store).await.expect("catalog");
    (Lake::new(store, std::sync::Arc::new(other)), catalog)
}

/// Reads an object of the table; the key and session token that it was asked for with.
async fn key_used(lake: &Lake, stub: &Stub) -> (String, String) {
    let found = lake.object_store().get(&object_store::path::Path::from("t/data/1")).await;
    found.expect("an object").bytes().await.expect("its bytes");
    let asked = stub.asked().into_iter().rfind(|asked| asked.path.starts_with("/b/"));
    let headers = asked.expect("asked the store").headers;
    let (_, signed) = headers["authorization"].split_once("Credential=").expect("signed");
    let (key, scope) = signed.split_once('/').expect("scope");
    assert!(scope.contains("/r-1/s3/"), "{scope}: the region is the catalog's");
    (key.to_owned(), headers["x-amz-security-token"].clone())
}

#[tokio::test]
async fn keys_that_the_catalog_hands_out_are_used_and_renewed() {
    let stub = vending(&[3_600_000]);
    let (lake, catalog) = lake_on_s3(&stub).await;
    catalog.load(&ident()).await.expect("loaded").expect("table");
    let asked = stub.asked().pop().expect("asked");
    assert_eq!(asked.headers["x-iceberg-access-delegation"], "vended-credentials");
    let used = key_used(&lake, &stub).await;
    assert_eq!(used, ("KEY1".to_owned(), "session".to_owned()));
    assert_eq!(stub.count(&format!("GET {TABLE}/credentials")), 0);
    assert!(!format!("{lake:?} {catalog:?}").contains("hunter2"));
    // Keys of a short life: asked for again at the endpoint for that.
    let stub = vending(&[100]);
    let (lake, catalog) = lake_on_s3(&stub).await;
    catalog.load(&ident()).await.expect("loaded").expect("table");
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(key_used(&lake, &stub).await.0, "KEY1");
    assert_eq!(stub.count(&format!("GET {TABLE}/credentials")), 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(key_used(&lake, &stub).await.0, "KEY2");
}

#[tokio::test]
async fn a_table_to_come_gets_its_keys_when_it_is_announced() {
    let stub = vending(&[3_000, 3_600_000]);
    let (lake, catalog) = lake_on_s3(&stub).await;
    let schema = iceberg::spec::Schema::builder().build().expect("schema");
    let updates = [
        TableUpdate::SetLocation { location: "s3://b/t".to_owned() },
        TableUpdate::AddSchema { schema },
    ];
    catalog.announce(&ident(), &updates).await.expect("announced");
    let line = "POST /v1/namespaces/org_1/tables";
    let asked = stub.asked().pop().expect("asked");
    assert_eq!(asked.line(), line);
    assert_eq!(asked.headers["x-iceberg-access-delegation"], "vended-credentials");
    assert_eq!(key_used(&lake, &stub).await.0, "KEY1");
    // As it is not there yet, new keys come from announcing it again.
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    assert_eq!(key_used(&lake, &stub).await.0, "KEY2");
    assert_eq!((stub.count(line), stub.count("GET /v1/namespaces")), (2, 0));
}
