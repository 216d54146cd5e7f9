//! The catalog itself: namespaces, and commits of which only the metadata is real.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, NestedField, Operation, PrimitiveType, Schema, Snapshot,
    SnapshotReference, SnapshotRetention, SortOrder, StructType, Summary, Transform, Type,
    UnboundPartitionSpec,
};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use polder_core::{Authorized, OrgId};
use polder_lake::{Catalog, CommitFailure, Lake, StageKind, TableState};
use uuid::Uuid;

use super::new_org;
use crate::support::*;

fn properties(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What the catalog says of the keys asked for. Catalogs may have properties of their own.
async fn found(catalog: &dyn Catalog, name: &str, keys: &[&str]) -> Vec<Option<String>> {
    let all = catalog.namespace(name).await.expect("namespace").expect("there");
    keys.iter().map(|key| all.get(*key).cloned()).collect()
}

pub(super) async fn namespaces_are_kept(catalog: &dyn Catalog) {
    let name = new_org().get().namespace();
    assert!(catalog.namespace(&name).await.expect("none yet").is_none());
    assert!(catalog.tables(&name).await.expect("no tables").is_empty());
    catalog.ensure_namespace(&name, &properties(&[("a", "1")])).await.expect("created");
    assert_eq!(found(catalog, &name, &["a"]).await, [Some("1".to_owned())]);
    let more = properties(&[("a", "2"), ("b", "3")]);
    catalog.ensure_namespace(&name, &more).await.expect("added to");
    catalog.ensure_namespace(&name, &properties(&[])).await.expect("nothing to add");
    let kept = found(catalog, &name, &["a", "b"]).await;
    assert_eq!(kept, [Some("1".to_owned()), Some("3".to_owned())], "what is there stays");
    let all = catalog.namespaces().await.expect("namespaces");
    assert_eq!(all.iter().filter(|found| **found == name).count(), 1);
}

pub(super) async fn of_two_that_make_a_namespace_one_wins(catalog: &Arc<dyn Catalog>) {
    let name = new_org().get().namespace();
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (catalog, name) = (Arc::clone(catalog), name.clone());
        makers.spawn(async move {
            let (one, two) = (format!("one {number}"), format!("two {number}"));
            let wanted = properties(&[("one", &one), ("two", &two)]);
            catalog.ensure_namespace(&name, &wanted).await.expect("there");
            found(&*catalog, &name, &["one", "two"]).await
        });
    }
    let seen = makers.join_all().await;
    assert!(seen.iter().all(|found| *found == seen[0]), "{seen:?}");
    let number = |value: &Option<String>| value.as_deref().map(|text| text[4..].to_owned());
    assert_eq!(number(&seen[0][0]), number(&seen[0][1]), "all properties are the winner's");
}

/// A folder of an org's, in which tables can be made.
pub(super) struct Bench {
    catalog: Arc<dyn Catalog>,
    org: Authorized<OrgId>,
    folder: String,
}

/// A change that leads a table to another state.
fn snapshot(id: i64, parent: Option<&TableState>, schema_id: i32) -> Snapshot {
    let last = parent.map_or(0, |parent| parent.metadata.last_updated_ms());
    let sequence = parent.map_or(1, |parent| parent.metadata.next_sequence_number());
    let place = parent.map_or("s3://nowhere", |parent| parent.metadata.location());
    Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(parent.and_then(|parent| parent.metadata.current_snapshot_id()))
        .with_sequence_number(sequence)
        .with_timestamp_ms(chrono::Utc::now().timestamp_millis().max(last))
        .with_manifest_list(format!("{place}/metadata/snap-{id}.avro"))
        .with_summary(Summary {
            operation: Operation::Append,
            additional_properties: HashMap::from([("note".to_owned(), "é \"x\"".to_owned())]),
        })
        .with_schema_id(schema_id)
        .build()
}

fn points(name: &str, snapshot_id: i64, retention: SnapshotRetention) -> TableUpdate {
    let reference = SnapshotReference::new(snapshot_id, retention);
    TableUpdate::SetSnapshotRef { ref_name: name.to_owned(), reference }
}

fn main_to(snapshot_id: i64) -> TableUpdate {
    points(MAIN_BRANCH, snapshot_id, SnapshotRetention::branch(None, None, None))
}

fn tag(name: &str, snapshot_id: i64) -> TableUpdate {
    points(name, snapshot_id, SnapshotRetention::Tag { max_ref_age_ms: None })
}

fn long(id: i32, name: &str) -> NestedField {
    NestedField::optional(id, name, Type::Primitive(PrimitiveType::Long))
}

/// Ids as runs choose them: one level after the other.
fn schema(more: Vec<NestedField>) -> Schema {
    let member = NestedField::required(5, "b", Type::Primitive(PrimitiveType::String));
    let pair = StructType::new(vec![Arc::new(long(4, "a")), Arc::new(member)]);
    let mut fields = vec![
        NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long)),
        NestedField::optional(2, "naïve", Type::Primitive(PrimitiveType::Timestamptz))
            .with_doc("a \"doc\""),
        NestedField::optional(3, "pair", Type::Struct(pair)),
    ];
    fields.extend(more);
    Schema::builder().with_fields(fields.into_iter().map(Arc::new)).build().expect("schema")
}

fn spec(fields: &[(i32, &str, Transform)]) -> UnboundPartitionSpec {
    fields
        .iter()
        .fold(UnboundPartitionSpec::builder(), |spec, (source, name, transform)| {
            spec.add_partition_field(*source, *name, *transform).expect("field")
        })
        .build()
}

fn set(list: &[(&str, &str)]) -> TableUpdate {
    TableUpdate::SetProperties { updates: properties(list).into_iter().collect() }
}

fn refs(state: &TableState) -> serde_json::Value {
    serde_json::to_value(&*state.metadata).expect("json")["refs"].clone()
}

#[track_caller]
fn conflict(outcome: Result<TableState, CommitFailure>, what: &str) {
    match outcome {
        Err(CommitFailure::Conflict(_)) => {}
        other => panic!("{what}: {other:?}"),
    }
}

impl Bench {
    pub(super) async fn new(lake: &Lake, catalog: Arc<dyn Catalog>) -> Self {
        let org = new_org();
        let request = request(StageKind::Replace, &id_and_text());
        let stage = lake.stage(&org, "first", request).await.expect("stage");
        stage.commit(Vec::new(), &checkpoint(0), summary(&[])).await.expect("commit");
        let first = lake.table(&org, "first").await.expect("load").expect("table");
        let (folder, _) = first.location().rsplit_once('/').expect("below the org's folder");
        let folder = folder.to_owned();
        Self { catalog, org, folder }
    }

    fn ident(&self, name: &str) -> TableIdent {
        TableIdent::new(NamespaceIdent::new(self.org.get().namespace()), name.to_owned())
    }

    /// What a first run sends.
    fn creation(&self, uuid: Uuid, snapshot_id: i64) -> Vec<TableUpdate> {
        vec![
            TableUpdate::AssignUuid { uuid },
            TableUpdate::SetLocation { location: format!("{}/{uuid}", self.folder) },
            TableUpdate::AddSortOrder { sort_order: SortOrder::unsorted_order() },
            TableUpdate::SetDefaultSortOrder { sort_order_id: -1 },
            TableUpdate::AddSchema { schema: schema(vec![]) },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
            TableUpdate::AddSpec {
                spec: spec(&[(2, "month", Transform::Month), (1, "id_b", Transform::Bucket(16))]),
            },
            TableUpdate::SetDefaultSpec { spec_id: -1 },
            TableUpdate::AddSnapshot { snapshot: snapshot(snapshot_id, None, 0) },
            main_to(snapshot_id),
            tag("v1", snapshot_id),
            set(&[("polder.x", "{\"é\": 1}"), ("other", "2")]),
        ]
    }

    pub(super) async fn a_forgotten_name_is_free(&self) {
        let before = self.created("forgotten").await;
        let ident = self.ident("forgotten");
        self.catalog.forget(&ident).await.expect("forgotten");
        assert!(self.catalog.load(&ident).await.expect("load").is_none());
        self.catalog.forget(&ident).await.expect("nothing to forget");
        let tables = self.catalog.tables(&self.org.get().namespace()).await.expect("tables");
        assert!(!tables.contains(&"forgotten".to_owned()), "{tables:?}");
        let after = self.created("forgotten").await;
        assert_ne!(after.metadata.uuid(), before.metadata.uuid());
    }

    async fn commit(
        &self,
        name: &str,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        self.catalog.commit(&self.ident(name), requirements, updates).await
    }

    async fn created(&self, name: &str) -> TableState {
        let updates = self.creation(Uuid::new_v4(), 1);
        self.commit(name, &[TableRequirement::NotExist], updates).await.expect("created")
    }

    async fn load(&self, name: &str) -> TableState {
        self.catalog.load(&self.ident(name)).await.expect("load").expect("table")
    }

    /// A commit that has to be made, and is what is loaded next.
    async fn changed(&self, before: &TableState, updates: Vec<TableUpdate>) -> TableState {
        let name = before.ident.name();
        let requirements = requirements(before);
        let after = self.commit(name, &requirements, updates).await.expect("committed");
        let loaded = self.load(name).await;
        assert_eq!(loaded.metadata_location, after.metadata_location);
        assert_eq!(loaded.metadata.uuid(), before.metadata.uuid());
        after
    }

    /// A commit that adds a snapshot to `main`.
    async fn advanced(&self, before: &TableState, snapshot_id: i64) -> TableState {
        let schema_id = before.metadata.current_schema_id();
        let snapshot = snapshot(snapshot_id, Some(before), schema_id);
        let updates = vec![TableUpdate::AddSnapshot { snapshot }, main_to(snapshot_id)];
        self.changed(before, updates).await
    }

    pub(super) async fn a_table_is_made_as_it_was_sent(&self) {
        let name = "made";
        assert!(self.catalog.load(&self.ident(name)).await.expect("load").is_none());
        let uuid = Uuid::new_v4();
        let sent = self.creation(uuid, 4_611_686_018_427_387_905);
        let made = self.commit(name, &[TableRequirement::NotExist], sent).await.expect("created");
        let metadata = &made.metadata;
        assert_eq!(metadata.uuid(), uuid);
        assert_eq!(metadata.location(), format!("{}/{uuid}", self.folder));
        assert_eq!(metadata.format_version(), FormatVersion::V2);
        assert_eq!(metadata.current_schema().as_struct(), schema(vec![]).as_struct());
        assert_eq!(metadata.last_column_id(), 5);
        let fields = metadata.default_partition_spec().fields();
        let fields: Vec<_> = fields
            .iter()
            .map(|field| (field.source_id, field.field_id, field.name.as_str(), field.transform))
            .collect();
        let expected =
            [(2, 1000, "month", Transform::Month), (1, 1001, "id_b", Transform::Bucket(16))];
        assert_eq!(fields, expected);
        assert!(metadata.default_sort_order().is_unsorted());
        assert_eq!(metadata.current_snapshot_id(), Some(4_611_686_018_427_387_905));
        let first = metadata.current_snapshot().expect("snapshot");
        assert_eq!(first.summary().additional_properties["note"], "é \"x\"");
        assert_eq!((first.sequence_number(), first.schema_id()), (1, Some(0)));
        assert_eq!(metadata.properties()["polder.x"], "{\"é\": 1}");
        assert_eq!(metadata.properties()["other"], "2");
        assert!(metadata.snapshot_for_ref("v1").is_some());
        let loaded = self.load(name).await;
        assert_eq!(loaded.metadata_location, made.metadata_location);
        assert_eq!(loaded.metadata.current_schema(), metadata.current_schema());
        assert_eq!(loaded.metadata.default_partition_spec(), metadata.default_partition_spec());
        let again = self.creation(Uuid::new_v4(), 2);
        let again = self.commit(name, &[TableRequirement::NotExist], again).await;
        conflict(again, "a second creation");
        assert_eq!(self.load(name).await.metadata_location, made.metadata_location);
        let namespace = self.org.get().namespace();
        let listed = self.catalog.tables(&namespace).await.expect("tables");
        assert_eq!(listed, ["first", "made"]);
        // Nothing is made by a commit to a table that is not there.
        let assumed = [TableRequirement::UuidMatch { uuid }];
        let absent = self.commit("absent", &assumed, vec![set(&[("a", "1")])]).await;
        assert!(
            matches!(absent, Err(CommitFailure::Conflict(_) | CommitFailure::Rejected(_))),
            "{absent:?}"
        );
        assert!(self.catalog.load(&self.ident("absent")).await.expect("load").is_none());
    }

    pub(super) async fn stale_requirements_are_refused(&self) {
        let before = self.created("stale").await;
        let metadata = &before.metadata;
        let reference = |name: &str, snapshot_id| TableRequirement::RefSnapshotIdMatch {
            r#ref: name.to_owned(),
            snapshot_id,
        };
        let stale = [
            TableRequirement::NotExist,
            TableRequirement::UuidMatch { uuid: Uuid::new_v4() },
            reference(MAIN_BRANCH, Some(99)),
            reference(MAIN_BRANCH, None),
            reference("v1", None),
            reference("v2", Some(1)),
            TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: 6 },
            TableRequirement::CurrentSchemaIdMatch { current_schema_id: 1 },
            TableRequirement::LastAssignedPartitionIdMatch { last_assigned_partition_id: 1002 },
            TableRequirement::DefaultSpecIdMatch { default_spec_id: 1 },
            TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id: 1 },
        ];
        for requirement in stale {
            let what = format!("{requirement:?}");
            let updates = match requirement {
                TableRequirement::NotExist => self.creation(Uuid::new_v4(), 5),
                _ => vec![set(&[("changed", "yes")])],
            };
            conflict(self.commit("stale", &[requirement], updates).await, &what);
            assert_eq!(self.load("stale").await.metadata_location, before.metadata_location);
        }
        let mut good = requirements(&before);
        good.push(reference("v1", Some(1)));
        good.push(reference("v2", None));
        let default_sort_order_id = metadata.default_sort_order_id();
        good.push(TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id });
        let updates = vec![set(&[("changed", "yes")])];
        let after = self.commit("stale", &good, updates).await.expect("all hold");
        assert_eq!(after.metadata.properties()["changed"], "yes");
    }

    pub(super) async fn shapes_change_and_come_back(&self) {
        let before = self.created("shapes").await;
        let fields = vec![long(6, "more")];
        let updates = vec![
            TableUpdate::AddSchema { schema: schema(fields.clone()) },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
            TableUpdate::AddSpec {
                spec: spec(&[
                    (1, "id_b", Transform::Bucket(16)),
                    (6, "more_t", Transform::Truncate(10)),
                ]),
            },
            TableUpdate::SetDefaultSpec { spec_id: -1 },
            TableUpdate::AddSnapshot { snapshot: snapshot(2, Some(&before), 1) },
            main_to(2),
        ];
        let after = self.changed(&before, updates).await;
        let metadata = &after.metadata;
        assert_eq!((metadata.current_schema_id(), metadata.last_column_id()), (1, 6));
        assert_eq!(metadata.current_schema().as_struct(), schema(fields).as_struct());
        let ids = |state: &TableState| -> Vec<(i32, i32)> {
            let fields = state.metadata.default_partition_spec().fields();
            fields.iter().map(|field| (field.source_id, field.field_id)).collect()
        };
        assert_eq!(ids(&after), [(1, 1001), (6, 1002)], "an equal field keeps its id");
        assert_eq!(metadata.snapshot_by_id(2).expect("new").schema_id(), Some(1));
        assert_eq!(metadata.snapshot_by_id(1).expect("old").schema_id(), Some(0));
        // Back to the shape it had, and to its rows.
        let back = vec![
            TableUpdate::AddSortOrder { sort_order: SortOrder::unsorted_order() },
            TableUpdate::SetDefaultSortOrder { sort_order_id: -1 },
            TableUpdate::SetCurrentSchema { schema_id: 0 },
            TableUpdate::SetDefaultSpec { spec_id: before.metadata.default_partition_spec_id() },
            main_to(1),
            tag("before-rollback-1", 2),
        ];
        let rolled_back = self.changed(&after, back).await;
        assert_eq!(rolled_back.metadata.current_schema_id(), 0);
        assert_eq!(ids(&rolled_back), [(2, 1000), (1, 1001)]);
        assert_eq!(rolled_back.metadata.current_snapshot_id(), Some(1));
        assert_eq!(refs(&rolled_back)["before-rollback-1"]["snapshot-id"], 2);
        // A shape that the table has had is not another one.
        let same = vec![
            TableUpdate::AddSchema { schema: schema(vec![long(6, "more")]) },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
        ];
        let same = self.changed(&rolled_back, same).await;
        assert_eq!(same.metadata.current_schema_id(), 1);
        assert_eq!(same.metadata.schemas_iter().len(), 2);
    }

    pub(super) async fn properties_branches_and_tags_change(&self) {
        let before = self.created("names").await;
        let two = self.advanced(&before, 2).await;
        let retention = SnapshotRetention::branch(Some(3), Some(1_000_000), None);
        let updates = vec![
            set(&[("other", "3"), ("new", "")]),
            TableUpdate::RemoveProperties { removals: vec!["polder.x".to_owned()] },
            points(MAIN_BRANCH, 2, retention),
            points("audit", 1, SnapshotRetention::branch(None, None, Some(86_400_000))),
            tag("v2", 2),
        ];
        let three = self.changed(&two, updates).await;
        let properties = three.metadata.properties();
        assert_eq!((properties["other"].as_str(), properties["new"].as_str()), ("3", ""));
        assert!(!properties.contains_key("polder.x"));
        let now = refs(&three);
        assert_eq!(now["main"]["min-snapshots-to-keep"], 3);
        assert_eq!(now["main"]["max-snapshot-age-ms"], 1_000_000);
        assert_eq!(
            (&now["audit"]["type"], &now["audit"]["snapshot-id"]),
            (&"branch".into(), &1.into())
        );
        assert_eq!(now["audit"]["max-ref-age-ms"], 86_400_000);
        assert_eq!((&now["v2"]["type"], &now["v2"]["snapshot-id"]), (&"tag".into(), &2.into()));
        let updates = vec![
            points("audit", 2, SnapshotRetention::branch(None, None, None)),
            TableUpdate::RemoveSnapshotRef { ref_name: "v1".to_owned() },
        ];
        let four = self.changed(&three, updates).await;
        let now = refs(&four);
        let names: Vec<_> = now.as_object().expect("refs").keys().map(String::as_str).collect();
        assert_eq!(names, ["audit", "main", "v2"]);
        assert_eq!(now["audit"]["snapshot-id"], 2);
    }

    pub(super) async fn snapshots_go_and_take_no_name_with_them(&self) {
        let mut state = self.created("expiry").await;
        for id in 2..=4 {
            state = self.advanced(&state, id).await;
        }
        state = self.changed(&state, vec![tag("kept", 2)]).await;
        let remove = |snapshot_ids: Vec<i64>| TableUpdate::RemoveSnapshots { snapshot_ids };
        let drop = |name: &str| TableUpdate::RemoveSnapshotRef { ref_name: name.to_owned() };
        let requirements = requirements(&state);
        let too_much = vec![drop("v1"), remove(vec![1, 2, 3])];
        conflict(self.commit("expiry", &requirements, too_much).await, "a tag would go");
        let now = self.load("expiry").await;
        assert_eq!(now.metadata_location, state.metadata_location);
        let after = self.changed(&now, vec![drop("v1"), remove(vec![1, 3])]).await;
        let mut left: Vec<_> =
            after.metadata.snapshots().map(|found| found.snapshot_id()).collect();
        left.sort_unstable();
        assert_eq!(left, [2, 4]);
        let names = refs(&after);
        let names: Vec<_> = names.as_object().expect("refs").keys().cloned().collect();
        assert_eq!(names, ["kept", "main"]);
        self.advanced(&after, 5).await;
    }

    pub(super) async fn of_writers_that_race_one_wins(&self) {
        let mut state = self.created("race").await;
        for round in 0..3 {
            let mut writers = tokio::task::JoinSet::new();
            for number in 0..6 {
                let id = 10 + round * 10 + number;
                let updates = vec![
                    TableUpdate::AddSnapshot { snapshot: snapshot(id, Some(&state), 0) },
                    main_to(id),
                    set(&[(&format!("won-{id}"), "yes")]),
                ];
                let (catalog, ident) = (Arc::clone(&self.catalog), self.ident("race"));
                let requirements = requirements(&state);
                writers.spawn(
                    async move { (id, catalog.commit(&ident, &requirements, updates).await) },
                );
            }
            let outcomes = writers.join_all().await;
            let mut won = Vec::new();
            for (id, outcome) in outcomes {
                match outcome {
                    Ok(_) => won.push(id),
                    lost => conflict(lost, "a writer that was too late"),
                }
            }
            assert_eq!(won.len(), 1, "round {round}: {won:?}");
            let now = self.load("race").await;
            assert_eq!(now.metadata.current_snapshot_id(), Some(won[0]));
            assert!(now.metadata.properties().contains_key(&format!("won-{}", won[0])));
            assert_eq!(now.metadata.snapshots().len(), 2 + round as usize);
            state = now;
        }
    }

    pub(super) async fn of_creators_that_race_one_wins(&self) {
        for round in 0..2 {
            let name = format!("created_{round}");
            let mut creators = tokio::task::JoinSet::new();
            for number in 1..=4 {
                let (catalog, ident) = (Arc::clone(&self.catalog), self.ident(&name));
                let uuid = Uuid::new_v4();
                let updates = self.creation(uuid, number);
                creators.spawn(async move {
                    let outcome =
                        catalog.commit(&ident, &[TableRequirement::NotExist], updates).await;
                    (uuid, outcome)
                });
            }
            let mut won = Vec::new();
            for (uuid, outcome) in creators.join_all().await {
                match outcome {
                    Ok(_) => won.push(uuid),
                    lost => conflict(lost, "a creator that was too late"),
                }
            }
            assert_eq!(won.len(), 1, "{won:?}");
            assert_eq!(self.load(&name).await.metadata.uuid(), won[0]);
        }
    }
}

/// All that a run requires of the state it was made for.
fn requirements(state: &TableState) -> Vec<TableRequirement> {
    let metadata = &state.metadata;
    vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_owned(),
            snapshot_id: metadata.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
        TableRequirement::LastAssignedFieldIdMatch {
            last_assigned_field_id: metadata.last_column_id(),
        },
        TableRequirement::DefaultSpecIdMatch {
            default_spec_id: metadata.default_partition_spec_id(),
        },
        TableRequirement::LastAssignedPartitionIdMatch {
            last_assigned_partition_id: metadata.last_partition_id(),
        },
    ]
}
