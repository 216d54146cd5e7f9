//! The guarantee that a run's report and the table's checkpoint carry.

use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch};
use polder_core::{Doubt, Field, Guarantee, LakeType, TableSchema};
use polder_pipeline::{IngestReport, Outcome, expected_guarantee};
use polder_sources::memory::MemoryTable;
use serde_json::json;

use crate::support::Scratch;

/// The numbers from 1 to `last`.
fn table(last: i64, doubts: &[Doubt]) -> MemoryTable {
    let schema = TableSchema::new(vec![Field::new("id", LakeType::Long)]);
    let ids: Arc<dyn Array> = Arc::new((1..=last).collect::<Int64Array>());
    let batch = RecordBatch::try_new(schema.to_arrow(), vec![ids]).expect("batch");
    MemoryTable { schema, batches: vec![batch], doubts: doubts.to_vec(), ..MemoryTable::default() }
}

fn words(report: &IngestReport) -> Vec<Doubt> {
    report.guarantee_reasons.iter().map(|reason| reason.word).collect()
}

/// What the table says of all its runs.
async fn kept(scratch: &Scratch) -> Option<Guarantee> {
    scratch.table().await.checkpoint().expect("checkpoint").expect("some").guarantee
}

#[tokio::test]
async fn the_report_tells_its_own_run_and_the_checkpoint_the_least_of_all() {
    let scratch = Scratch::new(json!({ "mode": "append", "cursor": "id", "key": ["id"] })).await;
    scratch.put(table(2, &[]));
    assert_eq!(scratch.run().await.guarantee, Guarantee::Exact);
    assert_eq!(kept(&scratch).await, Some(Guarantee::Exact));

    scratch.put(table(3, &[Doubt::HiddenTransactions]));
    let blind = scratch.run().await;
    assert_eq!(
        (blind.guarantee, words(&blind)),
        (Guarantee::BestEffort, vec![Doubt::HiddenTransactions])
    );
    assert_eq!(kept(&scratch).await, Some(Guarantee::BestEffort));

    scratch.put(table(4, &[]));
    let seeing = scratch.run().await;
    assert_eq!((seeing.outcome, seeing.guarantee), (Outcome::Append, Guarantee::Exact));
    assert_eq!(kept(&scratch).await, Some(Guarantee::BestEffort), "what was missed stays missing");

    let mut request = scratch.request();
    request.full_refresh = true;
    scratch.ingest(&request).await.expect("reload");
    assert_eq!(kept(&scratch).await, Some(Guarantee::Exact));
}

#[tokio::test]
async fn the_spec_has_its_part_in_it() {
    let whole = Scratch::new(json!({})).await;
    whole.put(table(2, &[]));
    let report = whole.run().await;
    assert_eq!((report.guarantee, words(&report)), (Guarantee::Exact, vec![]));

    let keyless = Scratch::new(json!({ "mode": "append", "cursor": "id" })).await;
    keyless.put(table(2, &[Doubt::ChangesUnstamped]));
    let report = keyless.run().await;
    assert_eq!((report.guarantee, words(&report)), (Guarantee::AtLeastOnce, vec![Doubt::NoKey]));
    let org = "1".parse().expect("org");
    let expected = expected_guarantee(&keyless.source, &org, &keyless.spec).await.expect("known");
    assert_eq!(expected.guarantee, Guarantee::AtLeastOnce);
    let json = serde_json::to_value(&report).expect("json");
    assert_eq!(json["guarantee"], "at_least_once");
    assert_eq!(json["guarantee_reasons"][0]["word"], "no_key");
}

#[tokio::test]
async fn a_commit_that_is_found_again_claims_no_more_than_the_table_knows() {
    for (doubts, expected) in
        [(vec![], Guarantee::Exact), (vec![Doubt::HiddenTransactions], Guarantee::BestEffort)]
    {
        let scratch =
            Scratch::new(json!({ "mode": "append", "cursor": "id", "key": ["id"] })).await;
        scratch.put(table(2, &doubts));
        let request = scratch.request();
        scratch.ingest(&request).await.expect("run");
        let found = scratch.ingest(&request).await.expect("found");
        assert!(found.warnings[0].contains("was found"), "{:?}", found.warnings);
        assert_eq!(found.guarantee, expected);
        assert_eq!(words(&found).contains(&Doubt::AnswerLost), !doubts.is_empty());
    }
}
