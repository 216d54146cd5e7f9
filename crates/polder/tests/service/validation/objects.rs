//! Files, held to the table that was made of them: their rows are read and digested here.

use std::sync::Arc;

use arrow::array::RecordBatch;
use polder_core::spec::StorageConfig;
use polder_core::validation::Verdict;
use polder_core::{Error, ErrorCode, Result, SecretRef, SecretResolver};
use polder_sources::files::{FilesSource, Place};
use secrecy::SecretString;
use serde_json::json;
use tempfile::TempDir;

use super::mongodb::{only, texts};
use super::proof::{Proof, failed, samples};

/// There are none to be known.
struct NoSecrets;

impl SecretResolver for NoSecrets {
    fn resolve(&self, _reference: &SecretRef) -> Result<SecretString> {
        Err(Error::new(ErrorCode::SpecSecret, "there are no secrets here"))
    }
}

/// Two orgs with two files each, of a hundred rows.
async fn proof(mode: &str) -> Proof<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    for (org, first) in [("1", 0), ("1", 100), ("2", 200), ("2", 300)] {
        let row = |i: i32| {
            let note = if i % 2 == 0 { json!("") } else { json!(null) };
            json!({ "_id": format!("{i:05}"), "name": format!("Zoë {i}"), "note": note, "amount": i })
        };
        let rows: Vec<String> = (first..first + 100).map(|i| row(i).to_string()).collect();
        std::fs::create_dir_all(folder.path().join(org)).unwrap();
        let path = folder.path().join(format!("{org}/{first}.jsonl"));
        std::fs::write(path, rows.join("\n")).unwrap();
    }
    let place = Place::open(".", &StorageConfig::default(), &NoSecrets, folder.path()).unwrap();
    let source = FilesSource::new("uploads", place, folder.path());
    let spec = json!({
        "name": "deal", "source": "uploads", "from": "{org}/*.jsonl", "mode": mode, "key": ["_id"],
        "validation": { "max_parallel": 2 },
    });
    Proof::over(folder, Arc::new(source), &spec).await
}

/// What is done to the rows, and the checks and keys that have to be named.
type Case =
    (&'static str, fn(&RecordBatch) -> Vec<RecordBatch>, &'static [&'static str], &'static str);

const CASES: [Case; 7] = [
    ("a row is lost", |rows| vec![only(rows, |id| id != "00007")], &["missing_keys"], "_id=00007"),
    (
        "the rows of a file are lost",
        |rows| vec![only(rows, |id| id < "00100")],
        &["missing_keys"],
        "",
    ),
    (
        "a file is there twice",
        |rows| vec![rows.clone(), only(rows, |id| id < "00100")],
        &["duplicates"],
        "",
    ),
    (
        "a text is cut short",
        |rows| vec![texts(rows, "name", "00007", "Zo")],
        &["values name"],
        "_id=00007",
    ),
    (
        "an empty text in the place of null",
        |rows| vec![texts(rows, "note", "00007", "")],
        &["values note"],
        "_id=00007",
    ),
    (
        "another org's row",
        |rows| vec![rows.clone(), texts(&only(rows, |id| id == "00007"), "_id", "00007", "00207")],
        &["extra_keys"],
        "_id=00207",
    ),
    (
        "another org's row in the place of an own one",
        |rows| vec![texts(rows, "_id", "00007", "00207")],
        &["missing_keys", "extra_keys"],
        "_id=00207",
    ),
];

#[tokio::test]
async fn damaged_rows_of_files_are_found_and_named() {
    for mode in ["append", "full_refresh"] {
        let proof = proof(mode).await;
        let report = proof.validate().await;
        assert_eq!(report.verdict, Verdict::Verified, "{mode}: {:#?}", report.checks);
        let right = proof.rows().await;
        assert_eq!(right.num_rows(), 200);
        for (what, alter, checks, key) in &CASES {
            proof.replace(&alter(&right)).await;
            let report = proof.validate().await;
            let expected = checks.iter().map(|check| (*check).to_owned()).collect();
            assert_eq!(failed(&report), expected, "{mode}, {what}: {:#?}", report.checks);
            assert!(key.is_empty() || samples(&report).contains(*key), "{mode}, {what}: {key}");
        }
        proof.replace(std::slice::from_ref(&right)).await;
        assert_eq!(proof.validate().await.verdict, Verdict::Verified, "{mode}");
    }
}
