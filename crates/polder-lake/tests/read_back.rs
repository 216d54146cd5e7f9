//! The rows of a run, decoded again before they are published: files that hold others, and rows that are there
//! twice.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use polder_core::ErrorCode;
use polder_lake::{RunSummary, Stage, StageKind, StagedFile};
use proptest::prelude::*;

use crate::support::{
    MEMORY_BYTES, Scratch, batch, checkpoint, content, id_and_text, ids, org, request, rows,
    summary, table, written,
};

/// Rows of one digit each.
fn texts(texts: &[&str]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(0..texts.len() as i64);
    batch(&id_and_text(), vec![Arc::new(ids), Arc::new(StringArray::from(texts.to_vec()))])
}

async fn stage(scratch: &Scratch, memory_bytes: usize) -> Stage {
    let mut request = request(StageKind::Replace, &id_and_text());
    request.memory_bytes = memory_bytes;
    scratch.lake.stage(&org("401"), "t", request).await.expect("stage")
}

/// Commits the files as those of these rows, of which no two may be alike in `unique`.
async fn commit(
    stage: Stage,
    files: Vec<StagedFile>,
    batches: &[RecordBatch],
    unique: &[&str],
) -> Result<(), polder_core::Error> {
    let unique = unique.iter().map(|name| (*name).to_owned()).collect();
    let summary = RunSummary { content: Some(content(batches)), unique, ..summary(&files) };
    stage.commit(files, &checkpoint(1), summary).await.map(drop)
}

fn path(file: &StagedFile) -> &str {
    file.location().strip_prefix("file://").expect("local")
}

async fn nothing_is_left(scratch: &Scratch) {
    let found = scratch.lake.table(&org("401"), "t").await.expect("load").expect("table");
    assert!(found.current_snapshot().is_none(), "nothing was published");
    assert!(scratch.files(".parquet").is_empty(), "nor left");
}

/// What a footer says is the same of both: rows, nulls, least and greatest values, and the size.
#[tokio::test]
async fn other_rows_with_the_same_footer_are_found() {
    let scratch = Scratch::new().await;
    let (own, other) = (texts(&["a", "b", "z"]), texts(&["a", "c", "z"]));
    for unique in [&[][..], &["id"]] {
        let stage = stage(&scratch, MEMORY_BYTES).await;
        let files = written(&stage, std::slice::from_ref(&own)).await;
        let foreign = written(&stage, std::slice::from_ref(&other)).await;
        assert_eq!(files[0].size_bytes(), foreign[0].size_bytes());
        std::fs::rename(path(&foreign[0]), path(&files[0])).expect("in its place");
        let error = commit(stage, files, std::slice::from_ref(&own), unique).await;
        let error = error.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::LakeAuditFailed, "{error}");
        assert!(error.message().contains("other rows"), "{error}");
        nothing_is_left(&scratch).await;
    }
    // By footers alone it is not.
    let stage = stage(&scratch, MEMORY_BYTES).await;
    let files = written(&stage, &[own]).await;
    let foreign = written(&stage, &[other]).await;
    std::fs::rename(path(&foreign[0]), path(&files[0])).expect("in its place");
    let rows = summary(&files);
    stage.commit(files, &checkpoint(1), rows).await.expect("published");
}

/// Whichever byte it is: of rows, of the indexes that they are skipped by, or of the footer.
#[tokio::test]
async fn a_flipped_byte_is_found() {
    let scratch = Scratch::new().await;
    let own = [rows(0..200)];
    let whole = stage(&scratch, MEMORY_BYTES).await;
    let files = written(&whole, &own).await;
    let bytes = std::fs::read(path(&files[0])).expect("file");
    whole.abort(files).await;
    let mut found = 0;
    for at in (4..bytes.len()).step_by(bytes.len() / 60) {
        let stage = stage(&scratch, MEMORY_BYTES).await;
        let files = written(&stage, &own).await;
        let mut bytes = std::fs::read(path(&files[0])).expect("file");
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(path(&files[0]), bytes).expect("damaged");
        match commit(stage, files, &own, &["id"]).await {
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::LakeAuditFailed, "byte {at}: {error}");
                found += 1;
            }
            // Not every bit of a page's header says something of its rows.
            Ok(()) => assert_eq!(ids(&table(&scratch.lake, "t").await).await.len(), 200),
        }
    }
    assert!(found > 45, "{found} found");
}

/// In the order of the key or not, in one file or several, in one pass over the hashes or in many.
#[tokio::test]
async fn rows_that_are_there_twice_are_named() {
    let scratch = Scratch::new().await;
    let turned = |ids: &[i64]| {
        let texts: Vec<String> = ids.iter().map(|id| format!("row {id}")).collect();
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(StringArray::from(texts))];
        batch(&id_and_text(), columns)
    };
    let cases: [(Vec<Vec<RecordBatch>>, &str); 5] = [
        (vec![vec![rows(0..500), rows(499..900)]], "id=499"),
        (vec![vec![rows(0..500)], vec![rows(499..900)]], "id=499"),
        (vec![vec![rows(400..900)], vec![rows(0..402)]], "id=400; id=401"),
        (vec![vec![turned(&[9, 3, 5, 3, 9, 1])]], "id=3; id=9"),
        (vec![vec![turned(&[9, 3, 5])], vec![turned(&[4, 5, 1])], vec![rows(50..900)]], "id=5"),
    ];
    for (files, named) in cases {
        for (memory_bytes, unique) in [(MEMORY_BYTES, "id"), (1 << 10, "id"), (1 << 10, "text")] {
            let stage = stage(&scratch, memory_bytes).await;
            let mut staged = Vec::new();
            for batches in &files {
                staged.extend(written(&stage, batches).await);
            }
            let error = commit(stage, staged, &files.concat(), &[unique]).await;
            let error = error.expect_err("refused");
            assert_eq!(error.code(), ErrorCode::LakeAuditFailed, "{error}");
            assert!(error.message().ends_with(&format!("twice by ({unique})")), "{error}");
            let named = match unique {
                "id" => named.to_owned(),
                _ => named.replace("id=", "text=row "),
            };
            assert_eq!(error.detail_text(), Some(&*named), "{error}");
            nothing_is_left(&scratch).await;
        }
    }
    // What differs in one of the columns is not there twice.
    for (memory_bytes, unique) in [(MEMORY_BYTES, ["id", "text"]), (1 << 10, ["text", "id"])] {
        let stage = stage(&scratch, memory_bytes).await;
        let own = [texts(&["a", "b", "a", "b"]), turned(&[3, 2, 1, 0])];
        let files = written(&stage, &own).await;
        commit(stage, files, &own, &unique).await.expect("published");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Of whatever rows, files and memory: a commit stands if no id is there twice.
    #[test]
    fn no_row_is_refused_that_is_there_once(
        parts in prop::collection::vec(prop::collection::vec(0..2_000_i64, 1..60), 1..4),
        sorted in any::<bool>(),
        memory_bytes in prop::sample::select(vec![1 << 9, 1 << 12, MEMORY_BYTES]),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let scratch = Scratch::new().await;
            let stage = stage(&scratch, memory_bytes).await;
            let (mut batches, mut files) = (Vec::new(), Vec::new());
            for mut ids in parts {
                if sorted {
                    ids.sort_unstable();
                }
                let texts: Vec<String> = ids.iter().map(|id| format!("row {}", id % 7)).collect();
                let columns: Vec<arrow::array::ArrayRef> =
                    vec![Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(texts))];
                let own = batch(&id_and_text(), columns);
                files.extend(written(&stage, std::slice::from_ref(&own)).await);
                batches.push(own);
            }
            let mut all: Vec<i64> = batches.iter().flat_map(|own| crate::support::longs(own, "id")).collect();
            let rows = all.len();
            all.sort_unstable();
            all.dedup();
            let done = commit(stage, files, &batches, &["id"]).await;
            assert_eq!(done.is_ok(), all.len() == rows, "{done:?}");
            if done.is_ok() {
                assert_eq!(ids(&table(&scratch.lake, "t").await).await, all);
            }
        });
    }
}
