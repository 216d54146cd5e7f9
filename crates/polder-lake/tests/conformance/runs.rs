//! The lake over the catalog: what runs, rollbacks and maintenance make of tables, and what orgs see.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use polder_core::retention::Retention;
use polder_core::{Authorized, ErrorCode, Field, LakeType, OrgId, Principal, TableSchema};
use polder_lake::{Committed, Lake, LakeTable, Predicate, StageKind, StageRequest};
use uuid::Uuid;

use super::{Limits, new_org};
use crate::support::*;

type Org = Authorized<OrgId>;

async fn run_of(
    lake: &Lake,
    org: &Org,
    table: &str,
    request: StageRequest,
    batches: &[RecordBatch],
) -> polder_core::Result<Committed> {
    let stage = lake.stage(org, table, request).await?;
    let files = written(&stage, batches).await;
    let summary = summary(&files);
    let rows = summary.rows as i64;
    stage.commit(files, &checkpoint(rows), summary).await
}

async fn replaced(lake: &Lake, org: &Org, table: &str, ids: std::ops::Range<i64>) -> Committed {
    let request = request(StageKind::Replace, &id_and_text());
    run_of(lake, org, table, request, &[rows(ids)]).await.expect("replace")
}

async fn appended(lake: &Lake, org: &Org, table: &str, ids: std::ops::Range<i64>) -> Committed {
    let request = request(StageKind::Append, &id_and_text());
    run_of(lake, org, table, request, &[rows(ids)]).await.expect("append")
}

async fn opened(lake: &Lake, org: &Org, table: &str) -> LakeTable {
    lake.table(org, table).await.expect("load").expect("table")
}

pub(super) async fn a_table_lives(lake: &Lake) {
    let org = new_org();
    assert!(lake.tables(&org).await.expect("none").is_empty());
    replaced(lake, &org, "t", 0..100).await;
    let first = opened(lake, &org, "t").await;
    assert_eq!(ids(&first).await, (0..100).collect::<Vec<_>>());
    let request = request(StageKind::Append, &id_and_text());
    let once = run_of(lake, &org, "t", request.clone(), &[rows(100..103)]).await.expect("append");
    let again = run_of(lake, &org, "t", request, &[rows(100..103)]).await.expect("the same run");
    assert!(!once.already && again.already);
    assert_eq!(again.snapshot_id, once.snapshot_id);
    let now = opened(lake, &org, "t").await;
    assert_eq!(ids(&now).await, (0..103).collect::<Vec<_>>());
    assert_eq!(now.checkpoint().expect("checkpoint"), Some(checkpoint(3)));
    assert_eq!((now.uuid(), now.location()), (first.uuid(), first.location()));
    // A run that another one has outrun.
    let append = crate::support::request(StageKind::Append, &id_and_text());
    let outrun = lake.stage(&org, "t", append).await.expect("stage");
    replaced(lake, &org, "t", 7..8).await;
    let files = written(&outrun, &[rows(9..10)]).await;
    let counted = summary(&files);
    let error = outrun.commit(files, &checkpoint(0), counted).await.expect_err("too late");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    let now = opened(lake, &org, "t").await;
    assert_eq!(ids(&now).await, [7]);
    let v1 = now.resolve("v1").expect("v1");
    assert_eq!(read_at(&now, Some(v1), Predicate::True).await.num_rows(), 100);
    assert_eq!(lake.tables(&org).await.expect("tables"), ["t"]);
    let error = run_of(
        lake,
        &org,
        "absent",
        crate::support::request(StageKind::Append, &id_and_text()),
        &[],
    )
    .await
    .expect_err("nothing to append to");
    assert_eq!(error.code(), ErrorCode::LakeNotFound);
}

pub(super) async fn columns_and_partitions_change(lake: &Lake) {
    let org = new_org();
    let mut columns = TableSchema::new(vec![
        Field::new("id", LakeType::Long).with_source_id(1),
        Field::new("text", LakeType::String).with_source_id(2),
    ]);
    let mut first = request(StageKind::Replace, &columns);
    first.partition = vec!["bucket(4, id)".parse().expect("field")];
    run_of(lake, &org, "t", first, &[rows(0..20)]).await.expect("create");
    // Another column, and another name for one.
    "label".clone_into(&mut columns.fields[1].name);
    columns.fields.push(Field::new("score", LakeType::Long).with_source_id(3));
    let more = batch(
        &columns,
        vec![
            Arc::new(Int64Array::from(vec![20, 21])),
            Arc::new(StringArray::from(vec!["a", "b"])),
            Arc::new(Int64Array::from(vec![Some(200), None])),
        ],
    );
    let mut evolved = request(StageKind::Append, &columns);
    // By a column that the table does not have before the run is published.
    evolved.partition =
        ["bucket(4, id)", "score"].map(|field| field.parse().expect("field")).into();
    run_of(lake, &org, "t", evolved, &[more]).await.expect("evolved");
    let now = opened(lake, &org, "t").await;
    assert_eq!(now.schema(), columns);
    let all = read(&now, Predicate::True).await;
    assert_eq!((all.num_rows(), longs(&all, "score")), (22, vec![200]));
    let missing = read(&now, Predicate::IsNull("score".into())).await;
    assert_eq!(missing.num_rows(), 21);
    assert!(missing.column_by_name("label").expect("renamed").null_count() == 0);
    // The old files follow another partitioning.
    let partition = vec!["truncate(10, id)".parse().expect("field")];
    let old = now.files_partitioned_otherwise(&partition).await.expect("files");
    let old: std::collections::HashSet<String> = old.into_iter().map(|file| file.path).collect();
    let mut rewrite = request(StageKind::Files, &columns);
    rewrite.partition.clone_from(&partition);
    let stage = lake.stage_on(&now, rewrite).expect("stage");
    let batches: Vec<RecordBatch> =
        now.read_files(&old).await.expect("read").try_collect().await.expect("rows");
    let files = written(&stage, &batches).await;
    stage.rewrite_files(old.into_iter().collect(), files).await.expect("rewritten");
    let now = opened(lake, &org, "t").await;
    assert_eq!(now.partition(), partition);
    assert!(now.files_partitioned_otherwise(&partition).await.expect("files").is_empty());
    assert_eq!(ids(&now).await, (0..22).collect::<Vec<_>>());
    assert_eq!(files_planned(&now, Predicate::True).await, 3, "ids 0 to 21 by tens");
    // And the whole table another shape.
    let other = schema(&[("text", LakeType::Long)]);
    let one = batch(&other, vec![Arc::new(Int64Array::from(vec![5]))]);
    let done = run_of(lake, &org, "t", request(StageKind::Replace, &other), &[one]).await;
    assert_eq!(done.expect("replace").version.as_deref(), Some("v2"));
    let now = opened(lake, &org, "t").await;
    assert_eq!((now.schema(), now.partition()), (other, vec![]));
    let v1 = now.resolve("v1").expect("v1");
    assert_eq!(read_at(&now, Some(v1), Predicate::True).await.num_rows(), 20);
}

pub(super) async fn versions_come_and_go(lake: &Lake) {
    let org = new_org();
    replaced(lake, &org, "t", 0..3).await;
    replaced(lake, &org, "t", 10..15).await;
    appended(lake, &org, "t", 15..16).await;
    let id = Uuid::new_v4();
    let done = lake.rollback(&org, "t", "v1", id).await.expect("rollback");
    let kept_as = done.done.clone().expect("moved").kept_as;
    assert_eq!(lake.rollback(&org, "t", "v1", id).await.expect("once"), done);
    let now = opened(lake, &org, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2]);
    assert_eq!(now.checkpoint().expect("checkpoint"), Some(checkpoint(3)));
    lake.rollback(&org, "t", &kept_as, Uuid::new_v4()).await.expect("and back");
    let now = opened(lake, &org, "t").await;
    assert_eq!(ids(&now).await, [10, 11, 12, 13, 14, 15]);
    replaced(lake, &org, "t", 20..22).await;
    replaced(lake, &org, "t", 30..33).await;
    let nothing_for_its_age = Retention { versions: 2, history_ms: -1, history_min: 1 };
    let expired = lake.expire(&org, "t", &nothing_for_its_age, Uuid::new_v4()).await.expect("done");
    assert!(expired.snapshots > 0 && expired.files > 0, "{expired:?}");
    assert!(expired.names.contains(&"v1".to_owned()), "{expired:?}");
    let now = opened(lake, &org, "t").await;
    let versions: Vec<u64> = now.versions().iter().map(|version| version.number).collect();
    assert_eq!(versions, [3, 4]);
    assert_eq!(ids(&now).await, [30, 31, 32]);
    let v3 = now.resolve("v3").expect("v3");
    assert_eq!(longs(&read_at(&now, Some(v3), Predicate::True).await, "id"), [20, 21]);
    appended(lake, &org, "t", 33..34).await;
    assert_eq!(ids(&opened(lake, &org, "t").await).await, [30, 31, 32, 33]);
}

pub(super) async fn concurrent_runs_all_get_in_once(lake: &Lake) {
    let org = new_org();
    replaced(lake, &org, "t", 0..0).await;
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..8_i64 {
        let (lake, org) = (lake.clone(), org.clone());
        runs.spawn(async move {
            let request = request(StageKind::Append, &id_and_text());
            for _ in 0..100 {
                let rows = [rows(number..number + 1)];
                match run_of(&lake, &org, "t", request.clone(), &rows).await {
                    Ok(_) => return,
                    Err(error) => assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}"),
                }
            }
            panic!("no attempt of a hundred got in");
        });
    }
    runs.join_all().await;
    let now = opened(lake, &org, "t").await;
    assert_eq!(ids(&now).await, (0..8).collect::<Vec<i64>>());
    assert_eq!(now.snapshots().len(), 9);
}

pub(super) async fn orgs_see_their_own(lake: &Lake) {
    let (one, two) = (new_org(), new_org());
    replaced(lake, &one, "t", 0..1).await;
    replaced(lake, &one, "u", 0..1).await;
    replaced(lake, &two, "t", 5..7).await;
    let all = lake.orgs(&Principal::Operator).await.expect("orgs");
    assert!(all.contains(one.get()) && all.contains(two.get()));
    let own = lake.orgs(&Principal::Org(two.get().clone())).await.expect("orgs");
    assert_eq!(own, [two.get().clone()]);
    assert_eq!(lake.tables(&one).await.expect("tables"), ["t", "u"]);
    assert_eq!(lake.tables(&two).await.expect("tables"), ["t"]);
    assert!(lake.table(&two, "u").await.expect("load").is_none());
    let (a, b) = (opened(lake, &one, "t").await, opened(lake, &two, "t").await);
    assert_eq!((ids(&a).await, ids(&b).await), (vec![0], vec![5, 6]));
    let folder =
        |table: &LakeTable| table.location().rsplit_once('/').expect("folder").0.to_owned();
    assert_ne!(folder(&a), folder(&b));
}

pub(super) async fn names_are_kept(lake: &Lake, limits: Limits) {
    let mut names = vec!["account_2026"];
    if !limits.plain_names {
        names.extend([
            "Großkunden 東京",
            "a \"quoted\" 'name'",
            "../org_2/t",
            "a%2Fb",
            "a+b c?d#e",
            "back\\slash",
            "dotted.name",
            "Account_2026",
        ]);
    }
    let org = new_org();
    for (number, name) in names.iter().enumerate() {
        let number = number as i64;
        replaced(lake, &org, name, number..number + 1).await;
        appended(lake, &org, name, 100..101).await;
    }
    let mut listed = lake.tables(&org).await.expect("tables");
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
    let found = opened(lake, &org, "account_2026").await;
    assert_eq!(found.name(), "account_2026");
    assert_eq!(ids(&found).await, [0, 100]);
}
