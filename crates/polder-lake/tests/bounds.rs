//! Metadata that names files of another org, as whoever may write to a table can: nothing of them is
//! read, and nothing of them goes.

use std::collections::HashMap;
use std::path::Path;

use iceberg::spec::{
    MAIN_BRANCH, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary,
};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::retention::Retention;
use polder_core::{Error, ErrorCode};
use polder_lake::{
    Catalog, LakeTable, OrphanRequest, Predicate, ScanRequest, SqlCatalog, StageKind, Store,
};
use uuid::Uuid;

use crate::support::*;

/// Org 401 with the ids 0 to 2 in its table `t`, and org 402 with 100 to 102.
struct Neighbours {
    scratch: Scratch,
    /// Another client of the table of 401.
    catalog: SqlCatalog,
}

/// What the new state of 401's table leads to that is 402's.
#[derive(Clone, Copy, Debug)]
enum Theirs {
    List,
    Manifest,
    Data,
}

fn local(location: &str) -> &str {
    location.strip_prefix("file://").expect("local")
}

/// Bytes in which one text is another of the same length.
fn renamed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut renamed = bytes.to_vec();
    let places = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes()));
    let places: Vec<usize> = places.collect();
    assert!(!places.is_empty(), "{from} is named");
    for at in places {
        renamed[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    renamed
}

impl Neighbours {
    async fn new() -> Self {
        let scratch = Scratch::new().await;
        for (id, ids) in [("401", 0..3), ("402", 100..103)] {
            let request = request(StageKind::Replace, &id_and_text());
            let stage = scratch.lake.stage(&org(id), "t", request).await.expect("stage");
            let files = written(&stage, &[rows(ids)]).await;
            let summary = summary(&files);
            stage.commit(files, &checkpoint(0), summary).await.expect("commit");
        }
        let settings = Scratch::settings(&scratch.folder);
        let store = Store::open(&settings).expect("store");
        let catalog = Scratch::catalog(&settings, store).await;
        Self { scratch, catalog }
    }

    async fn own(&self) -> LakeTable {
        table(&self.scratch.lake, "t").await
    }

    async fn theirs(&self) -> LakeTable {
        self.scratch.lake.table(&org("402"), "t").await.expect("load").expect("table")
    }

    async fn commit(&self, updates: Vec<TableUpdate>) {
        let ident = TableIdent::new(NamespaceIdent::new("org_401".into()), "t".into());
        self.catalog.commit(&ident, &[], updates).await.expect("commit");
    }

    /// The manifest list of a new state of 401's table.
    async fn list(&self, theirs: Theirs) -> String {
        let (own, other) = (self.own().await, self.theirs().await);
        let found = metadata(&other)["snapshots"][0]["manifest-list"].clone();
        let found = found.as_str().expect("a list").to_owned();
        let made = format!("{}/metadata/snap-{}.avro", own.location(), Uuid::new_v4());
        let bytes = std::fs::read(local(&found)).expect("list");
        match theirs {
            Theirs::List => return found,
            Theirs::Manifest => std::fs::write(local(&made), bytes).expect("write"),
            Theirs::Data => {
                let bytes = renamed(&bytes, other.location(), own.location());
                std::fs::write(local(&made), bytes).expect("write");
                for path in files_below(&Path::new(local(other.location())).join("metadata")) {
                    let (_, name) = path.rsplit_once('/').expect("a name");
                    let copy = format!("{}/metadata/{name}", local(own.location()));
                    if name.strip_suffix(".avro").is_some_and(|stem| !stem.starts_with("snap-")) {
                        std::fs::copy(&path, copy).expect("copy");
                    }
                }
            }
        }
        made
    }

    /// Makes a state with such a list the current one.
    async fn lead_to(&self, theirs: Theirs) -> LakeTable {
        let list = self.list(theirs).await;
        let before = metadata(&self.own().await);
        let number = |key: &str| before[key].as_i64().expect(key);
        let summary =
            Summary { operation: Operation::Append, additional_properties: HashMap::new() };
        let id = 7;
        let snapshot = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(Some(number("current-snapshot-id")))
            .with_sequence_number(number("last-sequence-number") + 1)
            .with_timestamp_ms(number("last-updated-ms"))
            .with_manifest_list(list)
            .with_summary(summary)
            .with_schema_id(number("current-schema-id") as i32)
            .build();
        let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
        self.commit(vec![
            TableUpdate::AddSnapshot { snapshot },
            TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference },
        ])
        .await;
        self.own().await
    }

    /// The other org's table is as it was.
    async fn check_theirs(&self, what: &str) {
        assert_eq!(ids(&self.theirs().await).await, [100, 101, 102], "{what}");
    }
}

fn everything() -> ScanRequest {
    ScanRequest { snapshot: None, filter: Predicate::True, columns: None }
}

/// Whether it is refused for a file of the other org, which the error names.
fn refused(error: &Error, theirs: &LakeTable, what: &str) {
    assert_eq!(error.code(), ErrorCode::LakeCorrupt, "{what}: {error:?}");
    let text = format!("{error} {:?} {:?}", error.detail_text(), error.causes());
    assert!(text.contains("outside its org's storage"), "{what}: {text}");
    assert!(text.contains(theirs.location()), "{what}: {text}");
}

#[tokio::test]
async fn files_of_another_org_are_not_read_whatever_names_them() {
    for case in [Theirs::List, Theirs::Manifest, Theirs::Data] {
        let neighbours = Neighbours::new().await;
        let (now, theirs) = (neighbours.lead_to(case).await, neighbours.theirs().await);
        let planned = now.plan(everything()).await.expect_err("planned");
        refused(&planned, &theirs, &format!("{case:?} planned"));
        let read = now.read(everything()).await.err().expect("read");
        refused(&read, &theirs, &format!("{case:?} read"));
        // Maintenance goes the same way.
        let files = now.files(&[], &[]).await.err().expect("live files");
        refused(&files, &theirs, &format!("{case:?} tended"));
        if !matches!(case, Theirs::Data) {
            let request = OrphanRequest {
                older_than_ms: 0,
                purge_after_ms: 0,
                tables: Vec::new(),
                dry_run: true,
            };
            let orphans = neighbours.scratch.lake.orphans(&org("401"), &request).await;
            refused(&orphans.expect_err("orphans"), &theirs, &format!("{case:?} orphans"));
        }
        neighbours.check_theirs(&format!("{case:?}")).await;
    }
}

/// The property that says which expiries may not have ended is one that a client can write, and so is
/// the metadata file that it names.
#[tokio::test]
async fn an_expiry_that_was_made_up_removes_nothing_of_another_org() {
    const NOW: Retention = Retention { versions: 0, history_ms: -1, history_min: 1 };
    let neighbours = Neighbours::new().await;
    let (own, theirs) = (neighbours.own().await, neighbours.theirs().await);
    let warehouse = format!("file://{}/lake", neighbours.scratch.folder.path().display());
    // Their states, as if they were the table's own and had gone from it.
    let mut claimed = metadata(&theirs);
    claimed["table-uuid"] = own.uuid().to_string().into();
    let (here, there) = (own.location().to_owned(), theirs.location().to_owned());
    for (location, folder) in [(&warehouse, &here), (&there, &here), (&warehouse, &there)] {
        claimed["location"] = location.clone().into();
        let file = format!("{folder}/metadata/00009-{}.metadata.json", Uuid::new_v4());
        std::fs::write(local(&file), claimed.to_string()).expect("metadata");
        let named = serde_json::json!([file]).to_string();
        let updates = [("polder.expired-from".to_owned(), named)].into();
        neighbours.commit(vec![TableUpdate::SetProperties { updates }]).await;
        let lake = &neighbours.scratch.lake;
        let done = lake.expire(&org("401"), "t", &NOW, Uuid::new_v4()).await.expect("expire");
        assert_eq!(done.files, 0, "{location} claimed by {file}");
        neighbours.check_theirs(&format!("{location} claimed by {file}")).await;
    }
    assert_eq!(ids(&neighbours.own().await).await, [0, 1, 2]);
}

/// A snapshot that says it is of a run that did not get to the end goes with that run's next attempt,
/// and takes nothing of others with it.
#[tokio::test]
async fn a_snapshot_in_the_name_of_a_run_takes_nothing_of_another_org_with_it() {
    let neighbours = Neighbours::new().await;
    let list = neighbours.list(Theirs::Data).await;
    let again = request(StageKind::Append, &id_and_text());
    let before = metadata(&neighbours.own().await);
    let number = |key: &str| before[key].as_i64().expect(key);
    let claims = HashMap::from([("polder.run-id".to_owned(), again.run_id.to_string())]);
    let theirs = metadata(&neighbours.theirs().await);
    let snapshot = Snapshot::builder()
        // The one whose manifests these are: they are its own.
        .with_snapshot_id(theirs["current-snapshot-id"].as_i64().expect("id"))
        .with_parent_snapshot_id(Some(number("current-snapshot-id")))
        .with_sequence_number(number("last-sequence-number") + 1)
        .with_timestamp_ms(number("last-updated-ms"))
        .with_manifest_list(list)
        .with_summary(Summary { operation: Operation::Append, additional_properties: claims })
        .with_schema_id(number("current-schema-id") as i32)
        .build();
    neighbours.commit(vec![TableUpdate::AddSnapshot { snapshot }]).await;
    run(&neighbours.scratch.lake, "t", again, &[rows(3..4)]).await.expect("run");
    neighbours.check_theirs("after the run").await;
    let now = neighbours.own().await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3]);
    assert_eq!(now.snapshots().len(), 2, "the run's own took its place");
}
